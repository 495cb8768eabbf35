"""What the command line asks for.

--check looks at all and changes nothing, --version, --help; else the usage.
"""

import json
import re
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import agent
from kit.parts import read
from kit.peers.registry import DIALECTS, Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, ROOT, Sidecar, wait_until

NOWHERE = "no-such-host.invalid"
TOKEN = "s3cret-token"


class Place:
    """A healthy service, a registry, the settings for both, and a look at them."""

    def __init__(self, file: Path, log: pytest.LogCaptureFixture) -> None:
        self.service, self.registry, self.file, self.log = ToyService(), Registry(), file, log

    def look(self, code: int, **others: object) -> list[str]:
        """Look as --check does, with other settings; return the lines. Here is its exit code."""
        self.log.clear()
        for peer in (self.service, self.registry):
            peer.requests.clear()
        settings = read(self.registry, self.service, **{"HEARTBEAT_FILE": self.file} | others)
        assert agent.Check(settings, agent.Signals()).run([]) == code, self.log.messages
        self.assert_unchanged()
        return self.log.messages

    def faults(self, **others: object) -> list[str]:
        """Return what a look finds that is not fine, without those words."""
        found = [line.partition(": not fine: ") for line in self.look(1, **others)]
        return [f"{what}: {why}" for what, is_fault, why in found if is_fault]

    def assert_unchanged(self) -> None:
        """Check that it has asked each once, and left everything as it was."""
        asked = [(request.operation, request.body) for request in self.registry.requests]
        assert len(asked) == len(set(asked))
        assert {operation for operation, _ in asked} <= {"list", "heartbeat"}
        beats = [body for operation, body in asked if operation == "heartbeat"]
        assert all(json.loads(body) == {"service_name": "sidecar-check"} for body in beats)
        assert len(self.service.requests) <= 1
        assert not list(self.file.parent.glob("heartbeat*"))


@pytest.fixture
def place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[Place]:
    place = Place(tmp_path / "heartbeat", caplog)
    with place.service, place.registry, caplog.at_level("INFO", "sidecar"):
        yield place
    agent.secrets.clear()


# ---- as a process


def test_all_is_well(place: Place) -> None:
    settings = {"HEARTBEAT_FILE": place.file, "SERVICE_NAME": "UP", "HEARTBEAT_INTERVAL": 31}
    sidecar = Sidecar(place.registry, place.service, **settings)
    sidecar.script.append("--check")
    with sidecar:
        assert sidecar.wait() == 0
    doubts = [line.partition("=")[0] for line in sidecar.lines[:2]]
    assert doubts == [f"settings: fine, but {n}" for n in ("HEARTBEAT_INTERVAL", "SERVICE_NAME")]
    assert sidecar.lines[2:] == [
        f"HEARTBEAT_FILE, {place.file}: fine, it can be written",
        "SERVICE_HOST, 127.0.0.1: fine, at 127.0.0.1",
        f"http probe of {place.service.url}/health: fine",
        "REGISTRY_URL, 127.0.0.1: fine, at 127.0.0.1",
        f"list of {place.registry.url}: fine, UP is not yet listed",
        "token: fine, none is set, and none is asked for",
    ]
    assert place.look(0)[0] == "settings: fine"
    assert place.service.count("health") == 2
    place.assert_unchanged()


def test_it_stops_at_ctrl_c(place: Place) -> None:
    place.service.play("health", "hang", times=FOREVER)
    settings = {"HEARTBEAT_INTERVAL": 60, "SERVICE_HEALTH_TIMEOUT": 30}
    sidecar = Sidecar(place.registry, place.service, **settings)
    sidecar.script.append("--check")
    with sidecar:
        wait_until(place.service.count)
        assert sidecar.stop(signal.SIGINT)[0] == 130
        assert "Traceback" not in sidecar.log


def test_a_record_and_a_health_file_that_are_there_are_told_and_left(place: Place) -> None:
    record = {"service_name": NAME, "endpoint": "http://a", "health_endpoint": "/", "metadata": {}}
    requests.post(f"{place.registry.url}/register", json=record, timeout=10).raise_for_status()
    file = place.file.with_name("health")
    file.write_text("of a sidecar that runs")
    before = file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns
    lines = place.look(0, HEARTBEAT_FILE=file)
    assert f"list of {place.registry.url}: fine, {NAME} is already listed" in lines
    assert (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) == before
    assert [each.name for each in file.parent.iterdir()] == [file.name]


# ---- what it finds

STOPPED = "stopped"
PROBE, LIST = "http probe of SERVICE/health", "list of REGISTRY: .*registry at REGISTRY"
NOBODY = "is it up, not on 127.0.0.1 alone, and the port right[?] Check"
ENDPOINT = "set SERVICE_HEALTH_ENDPOINT to its health check"
HEADERS = "set SERVICE_HEALTH_HEADERS_FILE to a file with the headers that it wants"
ELSEWHERE: dict[str, object] = {"SERVICE_HEALTH_ENDPOINT": "http://ann:s3cret@127.0.0.1:9/up?x=1"}
ELSE = r"http probe of http://\*{3}@127.0.0.1:9/up\?\*{3}"
FINDINGS: list[tuple[str, object, dict[str, object], str]] = [
    ("service", STOPPED, {}, f"{PROBE}: connection refused; {NOBODY} SERVICE_PORT"),
    ("service", STOPPED, {"SERVICE_HEALTH_CHECK": "tcp", **ELSEWHERE},
     f"tcp probe of SERVICE: connection refused; {NOBODY} SERVICE_PORT"),
    ("service", STOPPED, ELSEWHERE, f"{ELSE}: .*; {NOBODY} .*_ENDPOINT"),
    ("service", ["status", 404], {}, f"{PROBE}: 404: .*; {ENDPOINT}"),
    ("service", "status_301", {}, f"{PROBE}: 301, a redirect to .*; {ENDPOINT}"),
    ("service", ["status", 401], {}, f"{PROBE}: 401: .*; {HEADERS}"),
    ("service", ["status", 503], {},
     f"{PROBE}: 503: .*; it answers, but says that it is not healthy: see its own log"),
    ("service", "hang", {"SERVICE_HEALTH_TIMEOUT": 0.5},
     f"{PROBE}: no answer within 0.5 s; is it slow, or the address wrong[?]"
     " Set SERVICE_HEALTH_TIMEOUT or SERVICE_PORT"),
    ("registry", STOPPED, {}, f"{LIST}: connection refused; is it up, and REGISTRY_URL right[?]"),
    ("registry", ["status", 200, "<html></html>"], {},
     f"{LIST} answered 200, a web page: set REGISTRY_URL to where the registry is"),
]  # fmt: skip


@pytest.mark.parametrize(("peer", "plays", "settings", "finding"), FINDINGS)
def test_what_is_not_fine_is_told_with_the_way_to_mend_it(
    place: Place, peer: str, plays: object, settings: dict[str, object], finding: str
) -> None:
    one = place.service if peer == "service" else place.registry
    one.stop() if plays == STOPPED else one.play("*", plays)
    (line,) = place.faults(**settings)
    for name, each in (("SERVICE", place.service), ("REGISTRY", place.registry)):
        finding = re.sub(rf"\b{name}\b", each.url, finding)
    assert re.fullmatch(finding, line), line


def test_other_kinds_of_probe(place: Place) -> None:
    for kind in ("tcp", "none"):
        lines = place.look(0, SERVICE_HEALTH_CHECK=kind)
        assert f"{kind} probe of {place.service.url}: fine" in lines
        assert place.service.count() == 0
    place.service.stop()
    place.look(0, SERVICE_HEALTH_CHECK="none")


def test_a_health_file_that_cannot_be_written_is_a_fault(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "heartbeat", tmp_path / "file" / "heartbeat", tmp_path):
        (line,) = place.faults(HEARTBEAT_FILE=path)
        assert line.startswith(f"HEARTBEAT_FILE, {path}: ")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # can be made, but not written
    try:
        (line,) = place.faults()  # and nothing is left of the trial
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert line.startswith(f"HEARTBEAT_FILE, {place.file}: ")


def test_each_name_that_does_not_resolve_is_told_and_nothing_is_asked_there(place: Place) -> None:
    short = {"SERVICE_HEALTH_TIMEOUT": 2, "REGISTRY_TIMEOUT": 2}
    lines = place.faults(SERVICE_HOST=NOWHERE, REGISTRY_URL=f"http://{NOWHERE}", **short)
    for line, name in zip(lines, ("SERVICE_HOST", "REGISTRY_URL"), strict=True):
        assert line.startswith(f"{name}, {NOWHERE}: ")
        assert line.endswith(f"; share its network, or check {name}")
    assert place.service.count() == 0

    # Where health is elsewhere, the name is for callers alone, and may be known to them alone.
    elsewhere = {"SERVICE_HOST": NOWHERE, "SERVICE_HEALTH_ENDPOINT": f"{place.service.url}/health"}
    assert f"http probe of {place.service.url}/health: fine" in place.look(0, **elsewhere, **short)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_token_is_proved_by_a_heartbeat_for_a_name_that_nobody_uses(
    place: Place, tmp_path: Path, dialect: str
) -> None:
    place.registry.token, place.registry.dialect = TOKEN, dialect
    said = place.look(0, VERTICE_REGISTRY_TOKEN=TOKEN)[-1]
    assert said == "token: fine, VERTICE_REGISTRY_TOKEN is accepted"
    (sent,) = [each for each in place.registry.requests if each.operation == "heartbeat"]
    assert sent.headers["X-Registry-Token"] == TOKEN
    assert not any("X-Registry-Token" in request.headers for request in place.service.requests)

    place.registry.token = "another"
    file = tmp_path / "token"
    file.write_text(TOKEN)
    refused: dict[str, dict[str, object]] = {
        "set REGISTRY_TOKEN to the registry's token": {"REGISTRY_TOKEN": TOKEN},
        "that REGISTRY_TOKEN_FILE names": {"REGISTRY_TOKEN_FILE": file},
        "and none is set": {},
    }
    for advice, variables in refused.items():
        (line,) = place.faults(**variables)
        assert line.startswith("token: ")
        assert advice in line
        assert "s3cret" not in line


def test_a_registry_that_takes_any_heartbeat_proves_no_token_and_is_no_fault(place: Place) -> None:
    """Its store is down: a heartbeat is accepted whatever its name, and its token may be wrong."""
    place.registry.store = "open"
    lines = place.look(0, REGISTRY_TOKEN=TOKEN)
    assert lines[-1].startswith("token: fine, not proven")
    assert "s3cret" not in " ".join(lines)


# ---- the version and the usage


def test_the_version_and_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert (agent.main(["--version"]), *capsys.readouterr()) == (0, f"{agent.VERSION}\n", "")
    assert agent.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert usage.startswith("usage: agent.py [--check | --version | --help]\n")
    for arguments in (["--chek"], ["-h"], [""], ["--check", "--version"]):
        assert (agent.main(arguments), *capsys.readouterr()) == (2, "", usage), arguments


def test_the_image_is_labelled_with_the_version_of_the_agent() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert f"\nARG VERSION={agent.VERSION}\n" in text
    assert 'org.opencontainers.image.version="$VERSION"' in text
