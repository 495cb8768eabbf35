"""The log: the lines that people look for, an outage from beginning to end, never a flood."""

import re
import time

import pytest

from kit.peers.faults import FAULTS
from kit.peers.registry import Registry
from kit.peers.server import Exchange
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sampler, Sidecar, odd_lines
from kit.stage import Stage

SLACK = 1.5  # seconds for a loaded machine


def test_the_start_up_tells_its_steps_in_order_and_the_record_lives(registry: Registry) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        assert registry.count() == 0
        service.healthy = True
        sidecar.wait_registered()
        record = registry.record(NAME)
        assert record is not None
        assert record["endpoint"] == service.url
        assert record["health_endpoint"] == "/health"
        assert record["metadata"] == {"version": "1.0.0", "status": "healthy"}
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Heartbeat accepted", times=4)
        assert not sampler.absences
        assert sampler.samples > 50
        assert registry.count("get") == 0  # never: its errors cut the registry off
        assert sidecar.count(" WARNING | ERROR ") == 1  # that it waits
        registry.forget()
        sidecar.wait_registered(times=2)
        sidecar.stop()
    lines = iter(sidecar.lines)
    for step in (
        "INFO Registry sidecar starts: version [0-9.]+, SERVICE_NAME=osint_service "
        "SERVICE_HOST=127.0.0.1 ",
        f"WARNING Waiting for the service at {service.url}/health: 503",
        "INFO Service is READY$",
        f"INFO Service registered successfully: {NAME} at {service.url} {{'version': '1.0.0'",
        "INFO Starting heartbeat loop: every 2 s$",
        "INFO Heartbeat accepted$",
        r"WARNING Service not found \(404\): .*registering again$",
        "INFO Service registered successfully: ",
        "INFO Stopping$",
        "INFO Service deregistered$",
    ):
        assert any(re.search(f"^[^ ]+ {step}", line) for line in lines), step
    assert sidecar.count("Starting heartbeat loop") == 1
    assert not odd_lines(sidecar.lines)


def test_an_outage_is_told_from_its_beginning_to_its_end(service: ToyService) -> None:
    """The registry comes late, and later it hangs for a while."""
    registry = Registry(ttl=4.0)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for(f"attempt 3.: registry at {registry.url}: connection refused")
        with registry:
            sidecar.wait_for("Heartbeat accepted")
            registry.pause()
            sidecar.wait_for("No heartbeat accepted for two intervals")
            sidecar.wait_for("Registration failed", times=sidecar.count("Registration failed") + 1)
            announced = float(re.findall(r"next in ([\d.]+) s", sidecar.log)[-1])
            returned = time.monotonic()
            registry.resume()
            sidecar.wait_for("Registry is back after", times=2, timeout=60)
            assert registry.record(NAME)
            assert time.monotonic() - returned < max(announced, 2.0) + SLACK
            beats = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=beats + 1)
            sidecar.stop()
    attempts = re.findall(r"failed \(attempt (\d+)\): .*; next in [\d.]+ s", sidecar.log)
    ends = re.findall(
        r"INFO Registry is back after (\d+) s \(failures: (\d+)\)$", sidecar.log, re.M
    )
    # Each attempt has its line.
    assert [*map(int, attempts)] == [n + 1 for _, failures in ends for n in range(int(failures))]
    first, back = (
        [at for line, at in zip(sidecar.lines, sidecar.times, strict=True) if words in line]
        for words in ("failed (attempt 1)", "is back after")
    )
    for (seconds, _), began, ended in zip(ends, first, back, strict=True):
        assert int(seconds) == pytest.approx(ended - began, abs=2)


SECONDS = 5.0  # of each lasting fault, where hundreds of lines could come


def test_no_lasting_fault_is_a_flood_and_each_failed_request_has_one_line(
    registry: Registry, service: ToyService
) -> None:
    played: list[str] = []

    def fail(exchange: Exchange) -> None:
        played.append(exchange.asked.operation)
        FAULTS["html_502" if len(played) % 2 else "garbage"](exchange)

    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        # Heartbeats that are lost at once: four lines in an interval.
        registry.play("heartbeat", "status_404", times=FOREVER)
        time.sleep(SECONDS)
        assert 1 <= len(sidecar.lines) - sidecar.count("Heartbeat accepted") <= 60
        registry.sane()
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 1)
        before = len(sidecar.lines)
        # Retries in one slot, then registrations at 1, 2, 4 s: a line for each.
        registry.play("*", fail, times=FOREVER)
        time.sleep(SECONDS)
        assert 1 <= len(sidecar.lines) - before <= 20
        sidecar.wait_for("Registration failed", times=2)
        sidecar.stop()
        assert played[-1] == "deregister"
        lines = [line for line in sidecar.lines[before:] if re.search(" failed[ :]|GET /", line)]
        assert len(played) - len(lines) in (0, 1)  # the stop may have cut one short
        assert not odd_lines(sidecar.lines)


def test_a_service_that_stays_away_is_told_of_every_half_minute(registry: Registry) -> None:
    """The clock jumps over the pauses between the probes."""
    with ToyService(healthy=False) as service:
        sidecar = Sidecar(registry, service, HEARTBEAT_INTERVAL=30, INITIAL_WAIT_TIMEOUT=86400)
        Stage(sidecar, jumping=True)
        with sidecar:
            sidecar.wait_for("Waiting for the service", times=4)
            assert service.count() > 3 * 15  # one every second or two
            service.healthy = True
            sidecar.wait_for("Heartbeat accepted")
            service.healthy = False
            sidecar.wait_for("Service has been DOWN for", times=3)
        told = re.findall(r"Service has been DOWN for (\d+) s: 503", sidecar.log)[:3]
        assert all(
            29 <= int(now) - int(then) <= 35 for then, now in zip(["0", *told], told, strict=False)
        )


def test_a_level_leaves_out_what_is_below_and_durations_are_told_in_short(
    registry: Registry,
) -> None:
    settings = {"HEARTBEAT_INTERVAL": 0.3, "INITIAL_WAIT_TIMEOUT": 0.123456}
    with (
        ToyService(healthy=False) as service,
        Sidecar(registry, service, LOG_LEVEL="warning", **settings) as sidecar,
    ):
        sidecar.wait_for("WARNING Service not healthy after 0.12 s: .*; registering it anyway")
        sidecar.wait_for("ERROR Service is DOWN")
        sidecar.stop()
    assert {line.split()[1] for line in sidecar.lines} == {"WARNING", "ERROR"}
