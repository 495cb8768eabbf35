"""The log.

The lines that people look for, an outage from its beginning to its end, never a flood, two formats.
"""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from kit.peers.faults import FAULTS
from kit.peers.registry import Registry
from kit.peers.server import Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, odd_lines, wait_until
from kit.stage import Stage

TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"


def in_order(sidecar: Sidecar, *patterns: str) -> bool:
    """Tell whether a line matches each pattern, each after the one before."""
    lines = iter(sidecar.lines)
    return all(any(re.search(pattern, line) for line in lines) for pattern in patterns)


# ---- what people look for


def test_the_start_up_tells_its_steps_in_order(registry: Registry) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        service.healthy = True
        sidecar.wait_for("Heartbeat accepted", times=2, timeout=30)
        registry.forget()
        sidecar.wait_registered(times=2, timeout=30)
        sidecar.stop()
        assert in_order(
            sidecar,
            "^[^ ]+ INFO Registry sidecar starts: version [0-9.]+, SERVICE_NAME=osint_service "
            "SERVICE_HOST=127.0.0.1 ",
            f"^[^ ]+ WARNING Waiting for the service at {service.url}/health: 503",
            "^[^ ]+ INFO Service is READY$",
            f"^[^ ]+ INFO Service registered successfully: {NAME} at {service.url} "
            "{'version': '1.0.0'",
            "^[^ ]+ INFO Starting heartbeat loop: every 2 s$",
            "^[^ ]+ INFO Heartbeat accepted$",
            r"^[^ ]+ WARNING Service not found \(404\): .*registering again$",
            "^[^ ]+ INFO Service registered successfully: ",
            "^[^ ]+ INFO Stopping$",
            "^[^ ]+ INFO Service deregistered$",
        )
        assert not odd_lines(sidecar.lines)


# ---- an outage


def test_an_outage_is_told_from_its_beginning_to_its_end(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.stop()
        sidecar.wait_for(
            r"Registration failed \(attempt", times=2, timeout=30
        )  # three seconds after the first failure
        registry.start()
        end = sidecar.wait_for("Registry is back after", timeout=30)
        beats = sidecar.count("Heartbeat accepted")
        sidecar.wait_for("Heartbeat accepted", times=beats + 1)
        assert sidecar.count("Registry is back") == 1
        sidecar.stop()
    attempts = [
        int(number)
        for number in re.findall(r"failed \(attempt (\d+)\): .*; next in [\d.]+ s", sidecar.log)
    ]
    assert attempts == list(range(1, len(attempts) + 1))  # each attempt has its line
    told = re.search(r"INFO Registry is back after (\d+) s \(failures: (\d+)\)$", end)
    assert told is not None
    first, back = (
        next(at for line, at in zip(sidecar.lines, sidecar.times, strict=True) if words in line)
        for words in ("failed (attempt 1)", "is back after")
    )
    assert int(told[1]) == pytest.approx(back - first, abs=2)
    assert int(told[2]) == len(attempts)
    assert in_order(
        sidecar, f" failed .*registry at {registry.url}: connection refused", "is back after"
    )


def test_each_failed_request_has_one_line_and_each_line_a_request(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        played: list[str] = []

        def fail(exchange: Exchange) -> None:
            played.append(exchange.asked.operation)
            FAULTS["html_502"](exchange)

        registry.play("*", fail, times=FOREVER)
        sidecar.wait_for("Registration failed", times=2, timeout=30)
        sidecar.stop()
        assert played[-1] == "deregister"
        lines = sidecar.count(" failed[ :]|GET /services does not tell")
        assert len(played) - lines in (0, 1)  # the stop may have cut one short


def test_a_dead_service_is_told_once_and_so_is_its_return(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        began = time.monotonic()
        service.healthy = False
        sidecar.wait_for("Service is DOWN", timeout=30)
        shortest, probes = time.monotonic(), service.count()
        wait_until(lambda: service.count() >= probes + 3, 30)
        shortest = time.monotonic() - shortest
        service.healthy = True
        back = sidecar.wait_for("Service is READY again after", timeout=30)
        longest = time.monotonic() - began
        sidecar.wait_registered(times=2)
        told = re.search(r"INFO Service is READY again after (\d+) s$", back)
        assert told is not None
        assert shortest - 1 <= int(told[1]) <= longest + 1
        assert (
            sidecar.count("ERROR Service is DOWN: 503: .*; no heartbeat until it is healthy again")
            == 1
        )
        assert sidecar.count("WARNING Health probe . of 3 failed: 503") == 3
        assert sidecar.count("Service is DOWN") == 1


# ---- no flood: five seconds of each lasting fault, where hundreds of lines could come

SECONDS = 5.0
LASTING = {  # fault: endpoint, what is played, the most lines that five seconds may bring
    # A registry that fails: retries in one slot, then registrations at 1, 2, 4 s: a line for each.
    "registry fails": ("registry", "*", "html_502", 20),
    "registry garbles": ("registry", "*", "garbage", 20),
    # Heartbeats that are lost or refused at once: four lines in an interval.
    "heartbeat lost": ("registry", "heartbeat", "status_404", 60),
    "heartbeat refused": ("registry", "heartbeat", "status_401", 60),
    # A service that is down is told once, and then every 30 s.
    "service fails": ("service", "health", "control_text", 8),
}


def suffer(kind: str) -> None:
    """Let one lasting fault last; check what the log says of it."""
    which, operation, fault, most = LASTING[kind]
    with (
        Registry() as registry,
        ToyService() as service,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted", timeout=30)
        before = len(sidecar.lines)
        peer: Peer = registry if which == "registry" else service
        peer.play(operation, fault, times=FOREVER)
        time.sleep(SECONDS)
        lines = sidecar.lines[before:]
        assert 1 <= len([line for line in lines if "Heartbeat accepted" not in line]) <= most, kind
        assert not odd_lines(lines)


def test_no_lasting_fault_is_a_flood() -> None:
    with ThreadPoolExecutor(len(LASTING)) as pool:
        list(pool.map(suffer, LASTING))


def test_waiting_is_told_once(registry: Registry) -> None:
    with (
        ToyService(healthy=False) as service,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.2) as sidecar,
    ):
        wait_until(lambda: service.count() >= 8, 30)
        assert sidecar.count("Waiting for the service") == 1
        assert len(sidecar.lines) <= 3


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


# ---- what peers say


@pytest.mark.parametrize("code", [404, 502])
def test_an_error_page_is_told_by_its_status_alone(
    registry: Registry, service: ToyService, code: int
) -> None:
    page = f"\r\n <!DOCTYPE html><html><head><title>{code} Error</title></head></html>"
    registry.play("register", ["status", code, page])
    service.play("health", ["status", code, page])
    with Sidecar(registry, service, INITIAL_WAIT_TIMEOUT=0) as sidecar:
        sidecar.wait_for(f"not healthy after 0 s: {code}; .*registering it anyway")
        line = sidecar.wait_for("Registration failed")
        assert re.search(rf"[ (]{code}[;):]", line)
        assert "<" not in sidecar.log


SAID = [
    ({"detail": "no disk"}, "500: no disk; next in"),
    ({"message": "no power"}, "500: no power; next in"),
    ({"error": "no room"}, "500: no room; next in"),
    ({"reason": "no time"}, '500: {"reason":"no time"}; next in'),
    ("no store\n", "500: no store; next in"),
    ("", "500; next in"),
    ("x" * 1000, f"500: {'x' * 197}[.][.][.]; next in"),
    ("two\nlines\tand \x1b[31m", r"500: two\\nlines\\tand \\x1b\[31m; next in"),
    ("naïve 注册", "500: naïve 注册; next in"),
]


def test_what_a_peer_says_is_told_in_short(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        for body, told in SAID:
            registry.play("heartbeat", ["status", 500, body])
            sidecar.wait_for(f"registry at {registry.url} answered {told} [0-9.]+ s$")


# ---- formats and levels


def test_json_is_one_object_a_line_with_time_level_and_message(
    registry: Registry, service: ToyService
) -> None:
    registry.play("register", ["status", 500, {"detail": 'say "no"\n\u2028'}])
    with Sidecar(registry, service, LOG_FORMAT="JSON", HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=2)
        sidecar.stop()
    records = [json.loads(line) for line in sidecar.lines]
    for record in records:
        assert list(record) == ["time", "level", "message"]
        when = datetime.strptime(record["time"], TIME_FORMAT).replace(tzinfo=UTC)
        assert abs(datetime.now(UTC) - when) < timedelta(minutes=5)
    assert {record["level"] for record in records} == {"INFO", "WARNING"}
    said = [record["message"] for record in records]
    assert any('say "no"\\n\\u2028; next in' in message for message in said)
    assert "Service is READY" in said
    assert "Heartbeat accepted" in said


@pytest.mark.parametrize(
    ("level", "told"), [("warning", {"WARNING", "ERROR"}), ("ERROR", {"ERROR"})]
)
def test_a_level_leaves_out_what_is_below(registry: Registry, level: str, told: set[str]) -> None:
    with (
        ToyService() as service,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.3, LOG_LEVEL=level) as sidecar,
    ):
        wait_until(lambda: registry.count("heartbeat"), 30)
        service.healthy = False
        wait_until(
            lambda: service.count() >= 7, 30
        )  # three failed probes, and the first of a service that is down
        sidecar.stop()
    assert {line.split()[1] for line in sidecar.lines} == told
