"""Words: answers beside secrets, quotes around settings, token files of Windows, the log's own."""

import codecs
import contextlib
import itertools
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import AGENT, FOREVER, HEALTHCHECK, NAME, ROOT, Sidecar, run_agent, wait_until

SECRET = "5f1e0c9ab7d24386"
NEEDED = {
    "SERVICE_NAME": NAME,
    "SERVICE_HOST": "127.0.0.1",
    "REGISTRY_URL": "http://127.0.0.1:9",
}


# ---- what an answer means is read before anything is blotted out of it, or cut


def quoted(line: str, pattern: str) -> str:
    """Return what a line of the log quotes of the peer: the group of the pattern."""
    found = re.search(pattern, line)
    assert found is not None, line
    return found[1].lower()


@contextlib.contextmanager
def admitted(service: ToyService, token: str) -> Iterator[tuple[Registry, Sidecar]]:
    """Run a registry that wants the token, and a sidecar whose first heartbeat it has accepted."""
    settings = {"HEARTBEAT_INTERVAL": 0.5, "REGISTRY_TOKEN": token}
    with (
        Registry(token=token, dialect="deployed") as registry,
        Sidecar(registry, service, **settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        yield registry, sidecar


@pytest.mark.parametrize("token", ["e", "registered"])
def test_a_lost_record_is_known_by_its_wording_whatever_the_token(
    service: ToyService, token: str
) -> None:
    with admitted(service, token) as (registry, sidecar):
        # Not forgotten: a look at the list would find that first, and say so in other words.
        detail = {"detail": f"Heartbeat failed: Service '{NAME}' not registered"}
        registry.play("heartbeat", ["status", 500, detail])
        line = sidecar.wait_for(r"Service not found \(404\)", timeout=8)
        sidecar.wait_registered(times=2)
        assert not sidecar.count(" failed ")
        assert token.lower() not in quoted(line, r"lost the record \((.*)\); registering again")


def test_a_lost_record_is_known_by_its_wording_whatever_the_password(service: ToyService) -> None:
    with Registry(dialect="deployed") as registry:
        settings = {"REGISTRY_URL": registry.url.replace("//", "//ann:registered@")}
        with Sidecar(None, service, HEARTBEAT_INTERVAL=0.5, **settings) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            registry.forget()
            sidecar.wait_for(r"Service not found \(404\)", timeout=8)
            assert not sidecar.count(" failed ")


@pytest.mark.parametrize("token", ["e", "401"])
def test_a_refused_token_is_known_by_its_wording_whatever_the_token(
    service: ToyService, token: str
) -> None:
    with admitted(service, token) as (registry, sidecar):
        registry.token = "another"
        for what in ("Heartbeat failed", "Registration failed"):
            line = sidecar.wait_for(
                f"{what}.* refuses the token .*: set REGISTRY_TOKEN to", timeout=8
            )
            assert token not in quoted(line, r"refuses the token \((.*)\): set")


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("not registered", r"Service not found \(404\)"),
        ("401: Invalid registry token", "asks for a token, and none is set .*: set REGISTRY_TOKEN"),
    ],
)
def test_what_stands_beyond_200_characters_is_read_too(
    registry: Registry, service: ToyService, said: str, meant: str
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        detail = f"Heartbeat failed: Service '{'x' * 200}' failed: {said}"
        registry.play("heartbeat", ["status", 500, {"detail": detail}])
        sidecar.wait_for(meant, timeout=8)
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 1)


# ---- quotes, as `docker run --env-file` passes them on


@pytest.mark.parametrize(
    ("name", "quote"),
    [
        ("REGISTRY_TOKEN", '"'),
        ("VERTICE_REGISTRY_TOKEN", "'"),
        ("REGISTRY_AUTH_TOKEN", '"'),
        ("REGISTRY_TOKEN_FILE", "'"),
    ],
)
def test_quotes_around_a_token_are_warned_of(
    tmp_path: Path, service: ToyService, name: str, quote: str
) -> None:
    token = f"{quote}{SECRET}{quote}"
    file = tmp_path / "token"
    file.write_text(f"{token}\n")
    settings = {name: str(file) if name == "REGISTRY_TOKEN_FILE" else token}
    with Registry(token=token) as registry, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()  # this registry's token is like that
        told = [line for line in sidecar.lines if re.search(f" WARNING {name}[:= ].*quotes", line)]
        assert len(told) == 1
        assert re.search("quotes.* part of", told[0])
        assert not sidecar.count(SECRET)


@pytest.mark.parametrize("token", [f'a"{SECRET}"b', f"\"{SECRET}'"])
def test_a_token_with_a_quote_in_it_is_not_warned_of(service: ToyService, token: str) -> None:
    with (
        Registry(token=token) as registry,
        Sidecar(registry, service, REGISTRY_TOKEN=token) as sidecar,
    ):
        sidecar.wait_registered()
        assert not sidecar.count("WARNING|quotes")


IN_QUOTES = {  # values that would be right without the quotes
    "SERVICE_NAME": "osint_service",
    "SERVICE_HOST": "vertice-osint",
    "SERVICE_PORT": "8049",
    "SERVICE_HEALTH_CHECK": "tcp",
    "SERVICE_HEALTH_ENDPOINT": "/health",
    "SERVICE_HEALTH_TIMEOUT": "5",
    "SERVICE_HEALTH_RETRIES": "3",
    "SERVICE_METADATA": "team=osint,zone=eu",
    "REGISTRY_URL": "http://vertice-register-lb:80",
    "REGISTRY_TIMEOUT": "10",
    "REGISTRY_TOKEN_FILE": str(ROOT / "README.md"),
    "REGISTRY_CA_FILE": str(ROOT / "README.md"),
    "HEARTBEAT_INTERVAL": "30",
    "INITIAL_WAIT_TIMEOUT": "60",
    "DEREGISTER_ON_EXIT": "false",
    "DRAIN_SECONDS": "3",
    "HEARTBEAT_FILE": "/tmp/heartbeat",
    "LOG_LEVEL": "DEBUG",
    "LOG_FORMAT": "text",
}


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_value_in_quotes_is_refused_and_the_quotes_are_named(quote: str) -> None:
    done = run_agent({name: f"{quote}{value}{quote}" for name, value in IN_QUOTES.items()})
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    for name, value in IN_QUOTES.items():
        shown = f"{name}={re.escape(f'{quote}{value}{quote}')}: "
        assert [line for line in lines if re.search(f"{shown}.*quotes.* part of", line)], (
            name,
            lines,
        )
    assert len(lines) == len(IN_QUOTES)


@pytest.mark.parametrize("value", ['"team=osint,zone=eu"', "'team=osint'", '""'])
def test_metadata_in_quotes_is_refused(value: str) -> None:
    done = run_agent(NEEDED | {"SERVICE_METADATA": value})
    assert done.returncode == 2
    assert re.search(r"Bad setting: SERVICE_METADATA=.*quotes.* part of", done.stdout)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_TOKEN", f'"two words {SECRET}"'),
        ("REGISTRY_URL", f'"http://ann:{SECRET}@registry"'),
    ],
)
def test_a_refused_secret_in_quotes_is_told_of_the_quotes_and_not_shown(
    name: str, value: str
) -> None:
    done = run_agent(NEEDED | {name: value})
    assert done.returncode == 2
    assert re.search(f"Bad setting: {name}=.*quotes.* part of", done.stdout)
    assert SECRET not in done.stdout


def test_a_value_without_quotes_is_not_told_of_any() -> None:
    bad = {
        "SERVICE_PORT": "http",
        "LOG_LEVEL": "LOUD",
        "SERVICE_METADATA": "team",
        "SERVICE_NAME": "",
    }
    done = run_agent(NEEDED | bad)
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == len(bad)
    assert "quotes" not in done.stdout


# ---- token files as Windows writes them

UTF_16 = {
    "little-endian": codecs.BOM_UTF16_LE + f"{SECRET}\r\n".encode("utf-16-le"),
    "big-endian": codecs.BOM_UTF16_BE + f"{SECRET}\r\n".encode("utf-16-be"),
    "without a mark": f"{SECRET}\r\n".encode("utf-16-le"),
}
WITH_MARK = codecs.BOM_UTF8 + f"{SECRET}\r\n".encode()


def test_a_byte_order_mark_before_the_token_is_left_out(
    tmp_path: Path, service: ToyService
) -> None:
    file = tmp_path / "token"
    file.write_bytes(WITH_MARK)
    with (
        Registry(token=SECRET) as registry,
        Sidecar(registry, service, REGISTRY_TOKEN_FILE=file) as sidecar,
    ):
        sidecar.wait_registered()
        assert {request.headers["X-Registry-Token"] for request in registry.requests} == {SECRET}
        assert not sidecar.count(f"WARNING|{SECRET}")


@pytest.mark.parametrize("order", UTF_16)
def test_a_token_file_in_utf_16_is_refused_by_that_name(tmp_path: Path, order: str) -> None:
    file = tmp_path / "token"
    file.write_bytes(UTF_16[order])
    done = run_agent(NEEDED | {"REGISTRY_TOKEN_FILE": file})
    assert done.returncode == 2
    (line,) = done.stdout.splitlines()
    assert re.search("ERROR Bad setting: REGISTRY_TOKEN_FILE=.*UTF-16", line)


def test_a_byte_order_mark_without_a_token_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(codecs.BOM_UTF8 + b"\r\n")
    done = run_agent(NEEDED | {"REGISTRY_TOKEN_FILE": file})
    assert done.returncode == 2
    assert "Bad setting: REGISTRY_TOKEN_FILE=" in done.stdout


@pytest.mark.parametrize("order", UTF_16)
def test_a_token_file_that_becomes_utf_16_leaves_the_token(
    tmp_path: Path, service: ToyService, order: str
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    settings = {"REGISTRY_TOKEN_FILE": file, "HEARTBEAT_INTERVAL": 0.5}
    with Registry(token="first") as registry, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()
        file.write_bytes(UTF_16[order])
        registry.forget()
        sidecar.wait_for("WARNING REGISTRY_TOKEN_FILE.*UTF-16", timeout=8)
        sidecar.wait_registered(times=2)
        file.write_bytes(WITH_MARK)
        registry.token = SECRET
        registry.forget()
        sidecar.wait_registered(times=3)


# ---- the hint about port 8888


@pytest.fixture
def published() -> Iterator[Registry]:
    """A registry on port 8888 of an address of its own; not started."""
    for number in range(2, 250):
        registry = Registry(f"127.88.{number}.{time.time_ns() % 250 + 2}", 8888)
        try:
            with registry:
                pass
        except OSError:
            continue
        yield registry
        return
    pytest.skip("no address of loopback with a free port 8888")


HINT = "8888 is its port on the host"
ELSEWHERE: dict[str, Any] = {  # what is no refused connection
    "hang": "no answer within",
    "close": "connection closed without an answer",
    "status_502": "502",
}


def test_a_refused_connection_at_port_8888_brings_the_hint(published: Registry) -> None:
    with Sidecar(published, SERVICE_HEALTH_CHECK="none") as sidecar:
        assert HINT in sidecar.wait_for("Registration failed .*connection refused")


@pytest.mark.parametrize("fault", ELSEWHERE)
def test_no_other_failure_at_port_8888_brings_the_hint(published: Registry, fault: str) -> None:
    published.play("register", fault, times=FOREVER)
    settings: dict[str, Any] = {"SERVICE_HEALTH_CHECK": "none", "REGISTRY_TIMEOUT": 0.5}
    with published, Sidecar(published, **settings) as sidecar:
        assert HINT not in sidecar.wait_for(f"Registration failed .*{ELSEWHERE[fault]}")


def test_a_failed_look_up_brings_no_hint_about_a_port() -> None:
    """In a namespace without a network each look-up fails, and nothing leaves the machine."""
    prefix = [shutil.which("unshare") or "unshare", "--net", "--map-root-user"]
    if (
        not shutil.which(prefix[0])
        or subprocess.run([*prefix, "true"], capture_output=True).returncode
    ):
        pytest.skip("needs unshare(1) with network namespaces")
    url = "http://vertice-register-lb:8888"
    sidecar = Sidecar(None, REGISTRY_URL=url, SERVICE_HEALTH_CHECK="none")
    sidecar.python = [*prefix, sys.executable, "-I"]
    with sidecar:
        assert HINT not in sidecar.wait_for("Registration failed .*name look-up failed")


# ---- durations


def test_durations_are_told_in_short(registry: Registry, service: ToyService) -> None:
    """Intervals with many digits, and deadlines that are a part of what is left."""
    registry.play("heartbeat", "hang", times=3)
    service.play("health", "hang")
    settings = {"HEARTBEAT_INTERVAL": 2.123456, "INITIAL_WAIT_TIMEOUT": 0.654321}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("not healthy after .*no answer within")
        sidecar.wait_for("Heartbeat failed .*no answer within", times=2)
        told = [
            *sidecar.lines[1:],
            sidecar.health()[1],
        ]  # the first one shows the settings as they are
    assert not [line for line in told if re.search(r"\d\.\d{3,} s\b", line)]
    assert len([line for line in told if re.search(r"\d s\b", line)]) >= 4


# ---- the loop's first line


class Restless(ToyService):
    """A service that tells another version at each of its first probes."""

    def __init__(self, changes: int) -> None:
        super().__init__()
        self.changes = changes

    def answer(self, request: Any) -> Any:
        self.version = f"1.0.{min(self.count('health'), self.changes)}"
        return super().answer(request)


def test_the_heartbeat_loop_is_told_once_where_it_begins(registry: Registry) -> None:
    with (
        Restless(changes=4) as service,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar,
    ):
        sidecar.wait_registered(times=4)
        sidecar.wait_for("Heartbeat accepted", times=3)
        kinds = [
            line
            for line in sidecar.lines
            if re.search(" Starting heartbeat loop| Heartbeat ", line)
        ]
    starts = ["Starting" in line for line in kinds]
    assert starts[0]
    assert (True, True) not in itertools.pairwise(starts)


# ---- the heartbeat file: what could not be written is written soon after


def keep_registered(_registry: Registry) -> str:
    return "Starting heartbeat loop"


def keep_backing_off(registry: Registry) -> str:
    registry.play("register", ["status", 429, None, {"Retry-After": "60"}], times=FOREVER)
    return "Registration failed"


@pytest.mark.parametrize("keep", [keep_registered, keep_backing_off])
def test_a_heartbeat_file_that_could_not_be_written_is_tried_again_within_seconds(
    tmp_path: Path, registry: Registry, service: ToyService, keep: Any
) -> None:
    """The next step of the loop is up to 30 s away, or a minute."""
    file = tmp_path / "later" / "heartbeat"
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 30, "HEARTBEAT_FILE": file}
    state = keep(registry)
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for(state)
        sidecar.wait_for("WARNING HEARTBEAT_FILE=.* cannot be written")
        time.sleep(1)  # it pauses by now
        file.parent.mkdir()
        wait_until(file.exists, 7, "not written again")
        assert sidecar.health()[0] == 0
        assert sidecar.count("HEARTBEAT_FILE=.* cannot be written") == 1


# ---- settings that hardly do what was meant


@pytest.mark.parametrize(
    ("variables", "warned"),
    [
        ({}, False),
        ({"SERVICE_HEALTH_RETRIES": "8"}, False),
        ({"SERVICE_HEALTH_RETRIES": "9"}, True),  # 63 s
        ({"SERVICE_HEALTH_RETRIES": "100"}, True),
        ({"SERVICE_HEALTH_RETRIES": "6", "SERVICE_HEALTH_TIMEOUT": "15"}, True),
    ],
)
def test_probes_that_outlast_the_ttl_are_warned_of(variables: dict[str, str], warned: bool) -> None:
    with ToyService(healthy=False) as service:
        settings = {"HEARTBEAT_INTERVAL": 30, "REGISTRY_URL": "http://127.0.0.1:9"} | variables
        with Sidecar(None, service, **settings) as sidecar:
            sidecar.wait_for("Waiting for the service")
            assert sidecar.count(" WARNING SERVICE_HEALTH_RETRIES") == warned
            sidecar.stop()


# ---- the text of the scripts


@pytest.mark.parametrize("script", [AGENT, HEALTHCHECK], ids=lambda script: script.name)
def test_a_script_points_to_no_file_that_is_not_there(script: Path) -> None:
    names = set(re.findall(r"\b[\w./-]+\.(?:md|rst|py|sh|txt|ya?ml|toml)\b", script.read_text()))
    assert {name for name in names if not (ROOT / name).is_file()} == set()
