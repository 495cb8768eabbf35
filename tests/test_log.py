"""The log: the lines that people look for, an outage from its beginning to its end, never a flood, two formats."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from harness import AGENT, FOREVER, NAME, Sidecar, environment, odd_lines, run_agent, wait_until
from peers.faults import FAULTS
from peers.registry import Registry
from peers.server import Exchange, Peer
from peers.service import ToyService

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
            "^[^ ]+ INFO Registry sidecar starts: SERVICE_NAME=osint_service SERVICE_HOST=127.0.0.1 ",
            f"^[^ ]+ WARNING Waiting for the service at {service.url}: 503",
            "^[^ ]+ INFO Service is READY$",
            f"^[^ ]+ INFO Service registered successfully: {NAME} at {service.url} {{'version': '1.0.0'",
            "^[^ ]+ INFO Starting heartbeat loop: every 2 s$",
            "^[^ ]+ INFO Heartbeat accepted$",
            r"^[^ ]+ WARNING Service not found \(404\): .*registering again$",
            "^[^ ]+ INFO Service registered successfully: ",
            "^[^ ]+ INFO Stopping$",
            "^[^ ]+ INFO Service deregistered$",
        )
        assert not odd_lines(sidecar.lines)


def test_the_log_starts_with_the_settings_in_force_and_no_secret(registry: Registry, service: ToyService) -> None:
    url = registry.url.replace("//", "//user:pass-5f1e0c9a@")
    settings = {"REGISTRY_TOKEN": "tok-5f1e0c9a", "REGISTRY_URL": url, "SERVICE_METADATA": "team=osint"}
    with Sidecar(None, service, REGISTRY_TIMEOUT=0.75, LOG_LEVEL="debug", **settings) as sidecar:
        sidecar.wait_for("Service is READY")
        first = sidecar.lines[0]
    for name, value in {
        "SERVICE_NAME": NAME,
        "SERVICE_PORT": str(service.port),
        "REGISTRY_URL": registry.url.replace("//", "//***@"),
        "REGISTRY_TIMEOUT": "0.75",
        "REGISTRY_TOKEN": r"\*\*\*",
        "SERVICE_METADATA": '"?.*team.*osint.*',
        "HEARTBEAT_INTERVAL": "2.0",
        "LOG_LEVEL": "DEBUG",
    }.items():
        assert re.search(f" {name}={value.replace('***@', re.escape('***@'))}( |$)", first), name
    assert "5f1e0c9a" not in sidecar.log


# ---- an outage


def test_an_outage_is_told_from_its_beginning_to_its_end(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        began = time.monotonic()
        registry.stop()
        sidecar.wait_for(r"failed \(attempt 1\)", timeout=30)
        shortest = time.monotonic()
        sidecar.wait_for(r"Registration failed \(attempt", timeout=30)
        shortest = time.monotonic() - shortest
        registry.start()
        end = sidecar.wait_for("Registry is back after", timeout=30)
        longest = time.monotonic() - began
        sidecar.wait_for("Service registered successfully", times=2)
        sidecar.stop()
    attempts = [int(number) for number in re.findall(r"failed \(attempt (\d+)\): .*; next in [\d.]+ s", sidecar.log)]
    assert attempts == list(range(1, len(attempts) + 1))  # each attempt has its line
    told = re.search(r"INFO Registry is back after (\d+) s \(failures: (\d+)\)$", end)
    assert told is not None
    assert shortest - 1 <= int(told[1]) <= longest + 1
    assert int(told[2]) == len(attempts)
    assert in_order(sidecar, f" failed .*registry at {registry.url}: connection refused", "is back after")


def test_each_failed_request_has_one_line_and_each_line_a_request(registry: Registry, service: ToyService) -> None:
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
        assert len(played) == sidecar.count(" failed[ :]|GET /services does not tell")


def test_a_dead_service_is_told_once_and_so_is_its_return(registry: Registry, service: ToyService) -> None:
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
        assert sidecar.count("ERROR Service is DOWN: 503: .*; no heartbeat until it is healthy again") == 1
        assert sidecar.count("WARNING Health probe . of 3 failed: 503") == 3
        assert sidecar.count("Service is DOWN") == 1


# ---- no flood: five seconds of each lasting fault, at an interval that would allow for hundreds of lines

SECONDS = 5.0
LASTING = {  # fault: endpoint, what is played, the most lines that five seconds may bring
    # A registry that fails: retries in one slot, then registrations at 1, 2, 4 s: a line for each.
    "registry fails": ("registry", "*", "html_502", 20),
    "registry resets": ("registry", "*", "reset", 20),
    "registry garbles": ("registry", "*", "garbage", 20),
    "registry refuses": ("registry", "*", "status_401", 20),
    # Heartbeats that are lost or refused at once: four lines in an interval.
    "heartbeat lost": ("registry", "heartbeat", "status_404", 60),
    "heartbeat refused": ("registry", "heartbeat", "status_401", 60),
    # A service that is down is told once, and then every 30 s.
    "service fails": ("service", "health", "control_text", 8),
    "service resets": ("service", "health", "reset", 8),
}


def suffer(kind: str) -> None:
    """Let one lasting fault last; check what the log says of it."""
    which, operation, fault, most = LASTING[kind]
    with Registry() as registry, ToyService() as service, Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
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
    with ToyService(healthy=False) as service, Sidecar(registry, service, HEARTBEAT_INTERVAL=0.2) as sidecar:
        wait_until(lambda: service.count() >= 8, 30)
        assert sidecar.count("Waiting for the service") == 1
        assert len(sidecar.lines) <= 3


def test_a_heartbeat_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, registry: Registry, service: ToyService
) -> None:
    file = tmp_path / "missing" / "heartbeat"
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.2, HEARTBEAT_FILE=file) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=5)
        assert sidecar.count(f"WARNING HEARTBEAT_FILE={file} cannot be written: ") == 1


# ---- what peers say


@pytest.mark.parametrize("code", [403, 404, 500, 502, 504])
def test_an_error_page_is_told_by_its_status_alone(registry: Registry, service: ToyService, code: int) -> None:
    page = f"\r\n <!DOCTYPE html><html><head><title>{code} Error</title></head><body>nginx</body></html>"
    registry.play("register", ["status", code, page])
    service.play("health", ["status", code, page])
    with Sidecar(registry, service, INITIAL_WAIT_TIMEOUT=0) as sidecar:
        sidecar.wait_for(f"not healthy after 0 s: {code}; registering it all the same")
        line = sidecar.wait_for("Registration failed")
        assert re.search(rf"[ (]{code}[;)]", line)
        assert "<" not in sidecar.log
        assert "nginx" not in sidecar.log


SAID = [
    ({"detail": "no store"}, "500: no store; next in"),
    ({"message": "no store"}, "500: no store; next in"),
    ({"error": "no store"}, "500: no store; next in"),
    ({"reason": "no store"}, '500: {"reason":"no store"}; next in'),
    ("no store\n", "500: no store; next in"),
    ("", "500; next in"),
    ("x" * 1000, f"500: {'x' * 197}[.][.][.]; next in"),
    ("two\nlines\tand \x1b[31m", r"500: two\\nlines\\tand \\x1b\[31m; next in"),
    ("naïve 注册", "500: naïve 注册; next in"),
]


@pytest.mark.parametrize(("body", "told"), SAID, ids=[told[:24] for _, told in SAID])
def test_what_a_peer_says_is_told_in_short(registry: Registry, service: ToyService, body: object, told: str) -> None:
    registry.play("register", ["status", 500, body])
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for(f"registry at {registry.url} answered {told} [0-9.]+ s$")


# ---- formats and levels


def test_json_is_one_object_a_line_with_time_level_and_message(registry: Registry, service: ToyService) -> None:
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


def test_a_settings_error_follows_the_format_too() -> None:
    done = run_agent({"LOG_FORMAT": "json", "SERVICE_NAME": "index", "SERVICE_PORT": "many"})
    assert done.returncode == 2
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["level"] for record in records} == {"ERROR"}
    assert [record["message"].split("=")[0].split(" is ")[0] for record in records] == [
        "Bad setting: SERVICE_NAME",
        "Bad setting: SERVICE_HOST",
        "Bad setting: SERVICE_PORT",
    ]


LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_leaves_out_what_is_below(registry: Registry, level: str) -> None:
    with ToyService() as service, Sidecar(registry, service, HEARTBEAT_INTERVAL=0.3, LOG_LEVEL=level) as sidecar:
        wait_until(lambda: registry.count("heartbeat"), 30)
        service.healthy = False
        wait_until(lambda: service.count() >= 7, 30)  # three failed probes, and the first of a service that is down
        sidecar.stop()
    there = {line.split()[1] for line in sidecar.lines}
    assert there == {known for known in ("INFO", "WARNING", "ERROR") if LEVELS.index(known) >= LEVELS.index(level)}


def test_a_log_that_nobody_reads_stops_nothing(tmp_path: Path, registry: Registry, service: ToyService) -> None:
    settings = {
        "SERVICE_NAME": NAME,
        "SERVICE_HOST": "127.0.0.1",
        "SERVICE_PORT": service.port,
        "REGISTRY_URL": registry.url,
        "HEARTBEAT_INTERVAL": 0.5,
        "HEARTBEAT_FILE": tmp_path / "heartbeat",
    }
    command = [sys.executable, "-I", str(AGENT)]
    with subprocess.Popen(command, env=environment(settings), stdout=subprocess.PIPE) as agent:
        try:
            assert agent.stdout is not None
            agent.stdout.close()
            wait_until(lambda: registry.record(NAME), 30)
            registry.forget()
            wait_until(lambda: registry.record(NAME), 30)
            agent.terminate()
            assert agent.wait(30) == 0
            assert registry.record(NAME) is None
        finally:
            agent.kill()
