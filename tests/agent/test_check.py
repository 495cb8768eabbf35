"""What the command line asks for.

--check looks at all and changes nothing, --version, --help; else the usage.
"""

import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent
from kit.certificates import certificate
from kit.peers.registry import DIALECTS, Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, ROOT, Sidecar, run_agent, wait_until

NOWHERE = "no-such-host.invalid"


class Place:
    """A healthy service, a registry, and the settings for both.

    `check` runs `agent.py --check` with them.
    """

    def __init__(self, directory: Path) -> None:
        self.service, self.registry = ToyService(), Registry()
        self.settings: dict[str, object] = {
            "SERVICE_NAME": NAME,
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": self.service.port,
            "REGISTRY_URL": self.registry.url,
            "HEARTBEAT_FILE": directory / "heartbeat",
        }

    def look(self, **settings: object) -> subprocess.CompletedProcess[str]:
        """Run it with some settings changed."""
        self.registry.requests.clear()
        self.service.requests.clear()
        return run_agent(self.settings | settings, "--check")

    def check(self, code: int, **settings: object) -> list[str]:
        """Return the lines that it prints.

        Whatever it finds, it must leave everything as it was.
        """
        done = self.look(**settings)
        assert done.returncode == code, done.stdout
        asked = [(request.operation, request.body) for request in self.registry.requests]
        assert len(asked) == len(set(asked)), "each is asked once"
        assert {operation for operation, _ in asked} <= {"list", "heartbeat"}
        beats = [body for operation, body in asked if operation == "heartbeat"]
        assert all(json.loads(body) == {"service_name": "sidecar-check"} for body in beats)
        assert len(self.service.requests) <= 1
        assert not list(Path(str(self.settings["HEARTBEAT_FILE"])).parent.glob("heartbeat*"))
        return done.stdout.splitlines()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    place = Place(tmp_path)
    with place.service, place.registry:
        yield place


def faults(lines: list[str]) -> list[str]:
    """Return the lines that tell of something wrong."""
    return [line for line in lines if ": not fine: " in line]


def test_all_is_well(place: Place) -> None:
    assert place.check(0) == [
        "settings: fine",
        f"HEARTBEAT_FILE, {place.settings['HEARTBEAT_FILE']}: fine, it can be written",
        "SERVICE_HOST, 127.0.0.1: fine, at 127.0.0.1",
        f"http probe of {place.service.url}/health: fine",
        "REGISTRY_URL, 127.0.0.1: fine, at 127.0.0.1",
        f"list of {place.registry.url}: fine, {NAME} is not yet listed",
        "token: fine, none is set, and none is asked for",
    ]
    assert place.service.count("health") == 1


def test_a_name_that_is_registered_already_is_told(place: Place) -> None:
    with Sidecar(place.registry, place.service) as sidecar:
        sidecar.wait_registered()
        lines = run_agent(place.settings, "--check").stdout.splitlines()
        assert f"list of {place.registry.url}: fine, {NAME} is already listed" in lines


def test_the_service_is_down(place: Place) -> None:
    place.service.stop()
    (line,) = faults(place.check(1))
    assert line == (
        f"http probe of {place.service.url}/health: not fine: connection refused;"
        " is it up, not on 127.0.0.1 alone, and the port right? Check SERVICE_PORT"
    )


@pytest.mark.parametrize(
    ("fault", "fix"),
    [
        (["status", 404], "404: .*; set SERVICE_HEALTH_ENDPOINT to its health check"),
        ("status_301", "301, a redirect to .*; set SERVICE_HEALTH_ENDPOINT to its health check"),
        (
            ["status", 401],
            "401: .*; set SERVICE_HEALTH_HEADERS_FILE to a file with the headers that it wants",
        ),
        (["status", 503], "503: .*; it answers, but says that it is not healthy: see its own log"),
        (
            "hang",
            "no answer within 0.5 s; is it slow, or the address wrong\\?"
            " Set SERVICE_HEALTH_TIMEOUT or .*_PORT",
        ),
    ],
)
def test_a_probe_that_fails_says_what_to_set(place: Place, fault: object, fix: str) -> None:
    place.service.play("health", fault, times=FOREVER)
    (line,) = faults(place.check(1, SERVICE_HEALTH_TIMEOUT=0.5))
    assert re.fullmatch(f"http probe of {place.service.url}/health: not fine: {fix}", line), line


def test_a_tls_port_without_tls_and_the_authority_that_is_missing(
    place: Place, tmp_path: Path
) -> None:
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    with ToyService(tls=tls) as service:
        place.settings["SERVICE_PORT"] = service.port
        (line,) = faults(place.check(1))
        assert "set SERVICE_SCHEME to https" in line
        (line,) = faults(place.check(1, SERVICE_SCHEME="https"))
        assert line.endswith("certificate; set SERVICE_CA_FILE to a file with its authority")
        lines = place.look(SERVICE_SCHEME="https", SERVICE_CA_FILE=ca_file).stdout.splitlines()
        assert f"http probe of {service.url}/health: fine" in lines


def test_the_registry_is_down_also_at_the_port_that_only_the_host_has(place: Place) -> None:
    place.registry.stop()
    line = faults(place.check(1))[0]
    assert line.endswith(
        f"registry at {place.registry.url}: connection refused; is it up, and REGISTRY_URL right?"
    )
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8888)) == 0:
            pytest.skip("somebody listens on port 8888")
    line = faults(place.check(1, REGISTRY_URL="http://127.0.0.1:8888"))[0]
    hint = "8888 is its port on the host; inside its Docker network it is 80: check REGISTRY_URL"
    assert line.endswith(f"connection refused ({hint})")


def test_a_web_page_in_place_of_the_registry(place: Place) -> None:
    place.registry.play("list", ["status", 200, "<html></html>"])
    (line,) = faults(place.check(1))
    assert line.endswith("answered 200, a web page: set REGISTRY_URL to where the registry is")


def test_each_name_that_does_not_resolve_is_told_and_nothing_is_asked_there(place: Place) -> None:
    lines = place.check(1, SERVICE_HOST=NOWHERE, SERVICE_HEALTH_TIMEOUT=2)
    assert len(faults(lines)) == 1
    assert faults(lines)[0].startswith(f"SERVICE_HOST, {NOWHERE}: not fine: ")
    assert faults(lines)[0].endswith("; share its network, or check SERVICE_HOST")
    assert place.service.count() == 0
    (line,) = faults(place.check(1, REGISTRY_URL=f"http://{NOWHERE}", REGISTRY_TIMEOUT=2))
    assert line.startswith(f"REGISTRY_URL, {NOWHERE}: not fine: ")
    assert line.endswith("; share its network, or check REGISTRY_URL")


def test_health_elsewhere_is_asked_for_though_the_service_has_no_known_name(place: Place) -> None:
    url = f"http://ann:s3cret@127.0.0.1:{place.service.port}/health"
    lines = place.check(
        1, SERVICE_HOST=NOWHERE, SERVICE_HEALTH_TIMEOUT=2, SERVICE_HEALTH_ENDPOINT=url
    )
    assert f"http probe of http://***@127.0.0.1:{place.service.port}/health: fine" in lines
    place.service.stop()
    assert faults(place.check(1, SERVICE_HEALTH_ENDPOINT=url))[0].endswith(
        "Check SERVICE_HEALTH_ENDPOINT"
    )


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_other_kinds_of_probe(place: Place, check: str) -> None:
    lines = place.check(0, SERVICE_HEALTH_CHECK=check)
    assert f"{check} probe of {place.service.url}: fine" in lines
    assert place.service.count() == 0


TOKEN = "s3cret-token"


def token_line(lines: list[str]) -> str:
    """Return the line about the token, of which nothing may show."""
    (line,) = [line for line in lines if line.startswith("token: ")]
    assert "s3cret" not in "\n".join(lines)
    return line


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_token_is_proved_by_a_heartbeat_for_a_name_that_nobody_uses(
    place: Place, dialect: str
) -> None:
    place.registry.token, place.registry.dialect = TOKEN, dialect
    line = token_line(place.check(0, VERTICE_REGISTRY_TOKEN=TOKEN))
    assert re.match("token: fine.*VERTICE_REGISTRY_TOKEN", line), line
    (sent,) = [each for each in place.registry.requests if each.operation == "heartbeat"]
    assert sent.headers["X-Registry-Token"] == TOKEN
    assert not any("X-Registry-Token" in request.headers for request in place.service.requests)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("variable", "advice"),
    [
        ("REGISTRY_TOKEN", "set REGISTRY_TOKEN to the registry's token"),
        ("REGISTRY_TOKEN_FILE", "that REGISTRY_TOKEN_FILE names"),
        ("", "and none is set"),
    ],
)
def test_a_token_that_the_registry_refuses_is_a_fault(
    place: Place, tmp_path: Path, dialect: str, variable: str, advice: str
) -> None:
    place.registry.token, place.registry.dialect = "another", dialect
    file = tmp_path / "token"
    file.write_text(TOKEN)
    token = {variable: file if variable.endswith("FILE") else TOKEN} if variable else {}
    (line,) = faults(place.check(1, **token))
    assert line.startswith("token: not fine: ")
    assert advice in line
    assert "s3cret" not in line


def test_a_registry_that_takes_any_heartbeat_proves_no_token_and_is_no_fault(place: Place) -> None:
    """Its store is down: a heartbeat is accepted whatever its name, and its token may be wrong."""
    place.registry.store = "open"
    assert "not proven" in token_line(place.check(0, REGISTRY_TOKEN=TOKEN))


# ---- the health file


def test_a_health_file_that_cannot_be_written_is_a_fault(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none" / "heartbeat", tmp_path / "file" / "heartbeat", tmp_path):
        (line,) = faults(place.check(1, HEARTBEAT_FILE=path))
        assert re.match("HEARTBEAT_FILE[=, ].*: not fine: ", line), line


def test_a_health_file_that_takes_no_bytes_is_a_fault_and_nothing_is_left_of_the_trial(
    place: Place, tmp_path: Path
) -> None:
    """With such a limit a file can be made, but not written: like a full file system."""
    sidecar = Sidecar(place.registry, place.service, HEARTBEAT_FILE=tmp_path / "heartbeat")
    sidecar.python = ["sh", "-c", 'ulimit -f 0 && exec "$@"', "sh", *sidecar.python]
    sidecar.script.append("--check")
    with sidecar:
        assert sidecar.wait() == 1
        assert sidecar.count("HEARTBEAT_FILE.*: not fine: ") == 1
        assert list(tmp_path.iterdir()) == []


def test_the_health_file_of_a_sidecar_that_runs_is_left_as_it_is(place: Place) -> None:
    with Sidecar(place.registry, place.service, HEARTBEAT_INTERVAL=30) as sidecar:
        sidecar.wait_health("^registered")
        file = sidecar.heartbeat_file
        sidecar.process.send_signal(signal.SIGSTOP)  # so that nobody else writes
        before = file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns
        done = place.look(HEARTBEAT_FILE=file)
        assert done.returncode == 0, done.stdout
        assert (file.read_bytes(), file.stat().st_ino, file.stat().st_mtime_ns) == before
        assert [each.name for each in file.parent.glob("heartbeat*")] == [file.name]


# ---- settings


def test_doubtful_settings_are_told_and_are_no_fault(place: Place) -> None:
    lines = place.check(0, HEARTBEAT_INTERVAL=31, SERVICE_NAME="UP")
    assert lines[0].startswith("settings: fine, but HEARTBEAT_INTERVAL=31: ")
    assert lines[1].startswith("settings: fine, but SERVICE_NAME=UP: ")


def test_bad_settings_are_all_told_and_nobody_is_asked(place: Place) -> None:
    lines = place.check(2, SERVICE_NAME="", SERVICE_PORT="x", LOG_FORMAT="json", LOG_LEVEL="ERROR")
    assert [line.split(": ")[1] for line in lines] == ["SERVICE_NAME is not set", "SERVICE_PORT=x"]
    assert {line.split(": ")[0] for line in lines} == {"Bad setting"}
    assert place.registry.connections == place.service.connections == 0


def test_it_stops_at_ctrl_c(place: Place) -> None:
    place.service.play("health", "hang", times=FOREVER)
    sidecar = Sidecar(
        place.registry, place.service, HEARTBEAT_INTERVAL=60, SERVICE_HEALTH_TIMEOUT=30
    )
    sidecar.script.append("--check")
    with sidecar:
        wait_until(place.service.count)
        assert sidecar.stop(signal.SIGINT)[0] == 130
        assert "Traceback" not in sidecar.log


def test_the_version_and_the_usage() -> None:
    done = run_agent({}, "--version")
    assert (done.returncode, done.stdout) == (0, f"{agent.VERSION}\n")
    usage = run_agent({}, "--help")
    assert usage.returncode == 0
    assert usage.stdout.startswith("usage: agent.py [--check | --version | --help]\n")
    for arguments in (["--chek"], ["-h"], [""], ["--check", "--version"]):
        done = run_agent({}, *arguments)
        assert (done.returncode, done.stdout) == (2, usage.stdout), arguments


def test_the_image_is_labelled_with_the_version_of_the_agent() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert f"\nARG VERSION={agent.VERSION}\n" in text
    assert 'org.opencontainers.image.version="$VERSION"' in text


def test_it_says_which_version_it_is(place: Place) -> None:
    with Sidecar(place.registry, place.service) as sidecar:
        sidecar.wait_for(f"INFO Registry sidecar starts: version {agent.VERSION}, SERVICE_NAME=")
