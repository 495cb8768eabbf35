"""Settings: each works, empty ones too, and each bad one is refused with how to mend it."""

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme
from hypothesis import example, given
from hypothesis import settings as how
from hypothesis import strategies as st

import agent
from agent import SETTINGS, Settings, SettingsError, read_settings
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import AGENT, NAME, Sidecar, environment, run_agent, wait_until

MISSING = "/tmp/no-such-file"  # in a directory that exists, so it looks like a path
NEEDED = {"SERVICE_NAME": NAME, "SERVICE_HOST": "127.0.0.1"}
DEFAULTS = {
    "SERVICE_PORT": "8080",
    "SERVICE_SCHEME": "http",
    "SERVICE_CA_FILE": "",
    "SERVICE_TLS_VERIFY": "true",
    "SERVICE_HEALTH_CHECK": "http",
    "SERVICE_HEALTH_ENDPOINT": "/health",
    "SERVICE_HEALTH_HEADERS_FILE": "",
    "SERVICE_HEALTH_TIMEOUT": "5",
    "SERVICE_HEALTH_RETRIES": "3",
    "SERVICE_METADATA": "",
    "SERVICE_ID": "",
    "SERVICE_TAGS": "",
    "REGISTRY_URL": "http://vertice-register-lb:8888",
    "REGISTRY_TIMEOUT": "10",
    "REGISTRY_TOKEN": "",
    "REGISTRY_TOKEN_FILE": "",
    "REGISTRY_CA_FILE": "",
    "SSL_CERT_FILE": "",
    "HEARTBEAT_INTERVAL": "30",
    "INITIAL_WAIT_TIMEOUT": "60",
    "DEREGISTER_ON_EXIT": "true",
    "DRAIN_SECONDS": "0",
    "HEARTBEAT_FILE": "/tmp/heartbeat",
    "LOG_LEVEL": "INFO",
    "LOG_FORMAT": "text",
}
ALIASES = ("VERTICE_REGISTRY_TOKEN", "REGISTRY_AUTH_TOKEN")
VARIABLES = (*NEEDED, *DEFAULTS, *ALIASES)
PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def read(**variables: str) -> Settings:
    """Read the settings that these variables make together with the two needed ones."""
    return read_settings(NEEDED | variables)


def doubts(settings: Settings, **variables: str) -> list[str]:
    """Return the doubts about settings, and about these variables."""
    return agent.doubts_about(settings, variables)


def changed(**values: object) -> Settings:
    """Return the default settings with some values changed."""
    return Settings({**read().values, **{name.upper(): value for name, value in values.items()}})


def problems_of(**variables: str) -> tuple[str, ...]:
    """Return the problems with these variables, none where they are good."""
    try:
        read(**variables)
    except SettingsError as error:
        return tuple(agent.say_problem(*problem) for problem in error.args)
    return ()


# ---- bad settings


class Bad(NamedTuple):
    """One bad setting: the variable, its value, what the fix says, and the value as it is shown."""

    name: str
    value: str
    fix: str
    shown: str | None = None  # as it is, unless told otherwise


NAME_FIX = "set it to the name to register"
HOST_FIX = "set it to the service's host name or address alone"
PORT_FIX = "set it to a whole number from 1 to 65535"
HEALTH_FIX = (
    "set it to a path, such as /health, or a whole URL, such as http://vertice-osint:9000/health"
)
HEADERS_FIX = "a readable file of headers"
PAIRS_FIX = "set it to k=v,k=v with each key once"
URL_FIX = "set it to http://HOST:PORT of the registry, such as http://vertice-register-lb:80"
TOKEN_FIX = "printable ASCII without blanks"
CA_FIX = "a readable file of CA certificates"

BAD = [
    Bad("SERVICE_NAME", "", NAME_FIX),
    Bad("SERVICE_NAME", " \t ", NAME_FIX, ""),
    Bad("SERVICE_NAME", "a/b", NAME_FIX),
    Bad("SERVICE_NAME", "two words", NAME_FIX, "'two words'"),
    Bad("SERVICE_NAME", "index", "not `index`, the registry's own"),
    Bad("SERVICE_NAME", "-first", NAME_FIX),
    Bad("SERVICE_NAME", "..", NAME_FIX),
    Bad("SERVICE_NAME", "dienst-größe", NAME_FIX),
    Bad("SERVICE_NAME", "a\nERROR forged", NAME_FIX, r"'a\\nERROR forged'"),
    Bad("SERVICE_NAME", "n" * 300, NAME_FIX, "n" * 197 + "..."),
    Bad("SERVICE_HOST", "", HOST_FIX),
    Bad("SERVICE_HOST", "http://osint", HOST_FIX),
    Bad("SERVICE_HOST", "osint:8080", HOST_FIX),
    Bad("SERVICE_HOST", "osint/api", HOST_FIX),
    Bad("SERVICE_HOST", "two hosts", HOST_FIX, "'two hosts'"),
    Bad("SERVICE_HOST", "a..b", HOST_FIX),
    Bad("SERVICE_HOST", "h" * 64, HOST_FIX),
    Bad("SERVICE_HOST", "1::2::3", HOST_FIX),
    Bad("SERVICE_HOST", "[::1", HOST_FIX),
    Bad("SERVICE_HOST", "fe80::1%eth0", HOST_FIX),
    Bad("SERVICE_HOST", "\udcff:1", HOST_FIX, r"\udcff:1"),  # a byte that is no UTF-8
    Bad("SERVICE_PORT", "0", PORT_FIX),
    Bad("SERVICE_PORT", "65536", PORT_FIX),
    Bad("SERVICE_PORT", "-1", PORT_FIX),
    Bad("SERVICE_PORT", "http", PORT_FIX),
    Bad("SERVICE_PORT", "80.5", PORT_FIX),
    Bad("SERVICE_PORT", "9" * 5000, PORT_FIX, "9" * 197 + "..."),
    Bad("SERVICE_PORT", "٨٠", PORT_FIX),  # digits, though not ours
    Bad("SERVICE_PORT", "tcp://10.96.0.7:80", f"{PORT_FIX}.*Kubernetes or a Docker link"),
    Bad("SERVICE_SCHEME", "h2", "set it to one of http, https"),
    Bad("SERVICE_CA_FILE", MISSING, f"{CA_FIX} .*no such file"),
    Bad("SERVICE_TLS_VERIFY", "never", "set it to one of true, yes, on, 1, false, no, off, 0"),
    Bad("SERVICE_HEALTH_HEADERS_FILE", MISSING, f"{HEADERS_FIX} .*no such file"),
    Bad("SERVICE_HEALTH_HEADERS_FILE", os.devnull, f"{HEADERS_FIX} .*line 1 must be `Name: value`"),
    Bad("SERVICE_HEALTH_CHECK", "udp", "set it to one of http, tcp, none"),
    Bad("SERVICE_HEALTH_ENDPOINT", "health", HEALTH_FIX),
    Bad("SERVICE_HEALTH_ENDPOINT", "//health", HEALTH_FIX),
    Bad("SERVICE_HEALTH_ENDPOINT", "/health check", HEALTH_FIX, "'/health check'"),
    Bad("SERVICE_HEALTH_ENDPOINT", "/health#top", HEALTH_FIX),
    Bad(
        "SERVICE_HEALTH_ENDPOINT",
        "ftp://ann:s3cret@osint/health",
        HEALTH_FIX,
        "ftp://***@osint/health",
    ),
    Bad("SERVICE_HEALTH_ENDPOINT", "http://osint:0/health", HEALTH_FIX),
    Bad("SERVICE_HEALTH_ENDPOINT", "http://osint/health#top", HEALTH_FIX),
    Bad(
        "SERVICE_HEALTH_ENDPOINT",
        "http://osint/health?key=s3cret key",
        HEALTH_FIX,
        "http://osint/health?***",
    ),
    Bad("SERVICE_HEALTH_TIMEOUT", "0", "set it to seconds from 0.01 to 86400"),
    Bad("SERVICE_HEALTH_TIMEOUT", "5s", "set it to seconds from 0.01 to 86400"),
    Bad("SERVICE_HEALTH_RETRIES", "0", "set it to a whole number from 1 to 100"),
    Bad("SERVICE_HEALTH_RETRIES", "101", "set it to a whole number from 1 to 100"),
    Bad("SERVICE_METADATA", "team", PAIRS_FIX),
    Bad("SERVICE_METADATA", "=blue", PAIRS_FIX),
    Bad("SERVICE_METADATA", "a=1,b", PAIRS_FIX),
    Bad("SERVICE_METADATA", "a=1,a=2", PAIRS_FIX),
    Bad("SERVICE_METADATA", "a=1\x1b[2J", PAIRS_FIX, r"a=1\x1b[2J"),
    Bad(
        "SERVICE_METADATA",
        "a=" + "v" * 300,
        "at most 256 characters each",
        "a=" + "v" * 195 + "...",
    ),
    Bad("SERVICE_ID", "a/b", "set it to the record's ID"),
    Bad("SERVICE_ID", "..", "set it to the record's ID"),
    Bad("SERVICE_TAGS", "a,b\x1b[2J", "set it to a,b", r"a,b\x1b[2J"),
    Bad("SERVICE_TAGS", "a," + "t" * 300, "at most 256 characters", "a," + "t" * 195 + "..."),
    Bad("REGISTRY_URL", "vertice-register-lb:80", URL_FIX),
    Bad("REGISTRY_URL", "ftp://vertice-register-lb", URL_FIX),
    Bad("REGISTRY_URL", "http://", URL_FIX),
    Bad("REGISTRY_URL", "http:///services", URL_FIX),
    Bad("REGISTRY_URL", "http://lb:0", URL_FIX),
    Bad("REGISTRY_URL", "http://lb:65536", URL_FIX),
    Bad("REGISTRY_URL", "http://lb:eighty", URL_FIX),
    Bad("REGISTRY_URL", "http://l b", URL_FIX, "'http://l b'"),
    Bad("REGISTRY_URL", "http://[::1", URL_FIX),
    Bad("REGISTRY_URL", "http://[v1.x]", URL_FIX),
    Bad("REGISTRY_URL", "http://[::1]x", URL_FIX),
    Bad("REGISTRY_URL", "http://lb\\register", URL_FIX),
    Bad("REGISTRY_URL", "http://lb/#register", URL_FIX),
    Bad("REGISTRY_URL", "http://ann:s3cret@", URL_FIX, "http://***@"),
    Bad("REGISTRY_URL", "ftp://ann:a/b@s3cret@lb", URL_FIX, "ftp://***@lb"),
    Bad("REGISTRY_URL", "http://ann:a#s3cret@lb", URL_FIX, "http://***@lb"),
    Bad("REGISTRY_URL", "http://lb/?token=s3cret", URL_FIX, "http://lb/?***"),
    Bad("REGISTRY_URL", "http://ann:s3cret@lb:0", URL_FIX, "http://***@lb:0"),
    Bad("REGISTRY_URL", "ann:s3cret@lb", URL_FIX, "***@lb"),
    Bad("REGISTRY_TIMEOUT", "-1", "set it to seconds from 0.01 to 86400"),
    Bad("REGISTRY_TOKEN", "s3cret token", TOKEN_FIX, "***"),
    Bad("REGISTRY_TOKEN", "s3crét", TOKEN_FIX, "***"),
    Bad("VERTICE_REGISTRY_TOKEN", "s3cret\ntoken", TOKEN_FIX, "***"),
    Bad("REGISTRY_AUTH_TOKEN", "s3cret" * 1000, TOKEN_FIX, "***"),
    Bad("REGISTRY_TOKEN_FILE", MISSING, "a readable file that holds the token .*no such file"),
    Bad("REGISTRY_TOKEN_FILE", "/", "a readable file that holds the token .*is a directory"),
    Bad(
        "REGISTRY_TOKEN_FILE",
        os.devnull,
        "a readable file that holds the token .*must hold one token",
    ),
    Bad("REGISTRY_CA_FILE", MISSING, f"{CA_FIX} .*no such file"),
    Bad("REGISTRY_CA_FILE", os.devnull, CA_FIX),
    Bad("HEARTBEAT_INTERVAL", "0", "set it to seconds from 0.01 to 86400"),
    Bad("HEARTBEAT_INTERVAL", "-30", "seconds from 0.01"),
    Bad("HEARTBEAT_INTERVAL", "nan", "seconds from 0.01"),
    Bad("HEARTBEAT_INTERVAL", "inf", "seconds from 0.01"),
    Bad("HEARTBEAT_INTERVAL", "1e1", "seconds from 0.01"),
    Bad("HEARTBEAT_INTERVAL", "86401", "seconds from 0.01"),
    Bad("HEARTBEAT_INTERVAL", "half a minute", "seconds from 0.01", "'half a minute'"),
    Bad("INITIAL_WAIT_TIMEOUT", "-0.1", "set it to seconds from 0 to 86400"),
    Bad("INITIAL_WAIT_TIMEOUT", "forever", "set it to seconds from 0 to 86400"),
    Bad("DEREGISTER_ON_EXIT", "maybe", "set it to one of true, yes, on, 1, false, no, off, 0"),
    Bad("DRAIN_SECONDS", "3s", "set it to seconds from 0 to 86400"),
    Bad("LOG_LEVEL", "LOUD", "set it to one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
    Bad("LOG_FORMAT", "xml", "set it to one of text, json"),
]


class Peers(NamedTuple):
    registry: Registry
    service: ToyService

    @property
    def connections(self) -> int:
        return self.registry.connections + self.service.connections

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which an agent would register here."""
        return NEEDED | {"SERVICE_PORT": str(self.service.port), "REGISTRY_URL": self.registry.url}


@pytest.fixture(scope="module")
def unasked() -> Iterator[Peers]:
    """A registry and a service that an agent with bad settings must leave alone."""
    with Registry() as registry, ToyService() as service:
        yield Peers(registry, service)


def refusals(settings: Mapping[str, str], unasked: Peers) -> list[str]:
    """Run the real agent.

    Return the lines in which it refuses the settings, without their times.
    """
    before = unasked.connections
    done = run_agent(settings, timeout=60)
    assert done.returncode == 2, done.stdout
    assert "Traceback" not in done.stdout
    assert "s3cr" not in done.stdout
    assert unasked.connections == before
    return [line.split(" ", 1)[1] for line in done.stdout.splitlines()]


def expected(bad: Bad) -> str:
    """Return the pattern of the whole line that refuses this setting."""
    shown = bad.value if bad.shown is None else bad.shown
    start = f"{bad.name}={re.escape(shown)}: " if shown else f"{bad.name} is not set: "
    return f"ERROR Bad setting: {start}.*{bad.fix}.*"


def rounds() -> list[list[Bad]]:
    """Share out BAD.

    At most one for each variable at a time, for the token's three names together.
    """
    variables: dict[str, list[Bad]] = {}
    for bad in BAD:
        variables.setdefault("REGISTRY_TOKEN" if bad.name in ALIASES else bad.name, []).append(bad)
    return [
        [bad for bad in together if bad] for together in itertools.zip_longest(*variables.values())
    ]


@pytest.mark.parametrize("bads", rounds(), ids=lambda bads: f"{len(bads)} at once")
def test_every_bad_setting_is_named_in_one_go_with_its_value_and_the_way_to_mend_it(
    bads: list[Bad], unasked: Peers
) -> None:
    lines = refusals(unasked.settings | {bad.name: bad.value for bad in bads}, unasked)
    assert len(lines) == len(bads), lines
    for bad in bads:
        assert sum(bool(re.fullmatch(expected(bad), line)) for line in lines) == 1, (bad, lines)


@pytest.mark.parametrize("interval", ["60.5", "86400"])
def test_an_interval_above_the_registry_s_ttl_is_refused(interval: str, unasked: Peers) -> None:
    variables = {"HEARTBEAT_INTERVAL": interval, "SERVICE_PORT": "x"}
    lines = refusals(unasked.settings | variables, unasked)
    fix = "set it to 30 or less: .*forgets a service after 60 s"
    assert len(lines) == 2
    assert re.fullmatch(f"ERROR Bad setting: HEARTBEAT_INTERVAL={interval}: {fix}", lines[1])
    assert problems_of(HEARTBEAT_INTERVAL=interval, REGISTRY_URL="consul://consul") == ()


def test_every_setting_but_the_heartbeat_file_has_bad_values() -> None:
    assert {bad.name for bad in BAD} == set(VARIABLES) - {"HEARTBEAT_FILE", "SSL_CERT_FILE"}


def test_bad_settings_are_told_as_json_where_that_is_asked_for_and_at_any_level(
    unasked: Peers,
) -> None:
    bad = {"LOG_FORMAT": " JSON ", "LOG_LEVEL": "CRITICAL", "SERVICE_PORT": "x", "SERVICE_NAME": ""}
    lines = [
        json.loads(line)
        for line in run_agent(unasked.settings | bad, timeout=60).stdout.splitlines()
    ]
    assert [sorted(line) for line in lines] == [["level", "message", "time"]] * 2
    assert {line["level"] for line in lines} == {"ERROR"}
    assert sorted(line["message"].split(":")[1] for line in lines) == [
        " SERVICE_NAME is not set",
        " SERVICE_PORT=x",
    ]


SECRET_FILES = ("REGISTRY_TOKEN_FILE", "SERVICE_HEALTH_HEADERS_FILE")
FILES = (*SECRET_FILES, "REGISTRY_CA_FILE", "SERVICE_CA_FILE")


@pytest.mark.parametrize("name", FILES)
def test_a_file_without_what_it_should_hold_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    for content in (b"", b"two words", b"\xff\xfe", b"x" * 100_000, PEM.encode()):
        path.write_bytes(content)
        (problem,) = problems_of(**{name: str(path)})
        assert problem.startswith(f"{name}={path}: set it to a readable file")


@pytest.mark.parametrize(
    "content",
    [
        "X-Key s3cret",
        "Host: a\nhost: s3cret",
        "Bad Name: s3cret",
        ": s3cret",
        "X-Key: a\rX-Other: s3cret",
        "X-Key: a\x0bX-Other: s3cret",
        "X-Key: s3crét",
        "X-Key: a\n folded s3cret",
        "Content-Length: 5",
        "transfer-encoding: chunked",
        "Connection: keep-alive",
        "X-Key: " + "s3cret" * 1000,
        *("A: b\n" + "\n" * blanks + "X-Key: s3cret" for blanks in (4081, 4083)),
    ],
)
def test_headers_that_could_break_a_request_are_refused_and_never_shown(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "headers"
    path.write_bytes(content.encode())
    (problem,) = problems_of(SERVICE_HEALTH_HEADERS_FILE=str(path))
    assert problem.startswith(
        f"SERVICE_HEALTH_HEADERS_FILE={path}: set it to a readable file of headers ("
    )
    assert "s3cr" not in problem


def test_a_pipe_in_place_of_the_token_file_is_refused_not_waited_for(
    tmp_path: Path, unasked: Peers
) -> None:
    path = tmp_path / "token"
    os.mkfifo(path)
    (line,) = refusals(unasked.settings | {"REGISTRY_TOKEN_FILE": str(path)}, unasked)
    assert line.startswith(f"ERROR Bad setting: REGISTRY_TOKEN_FILE={path}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REGISTRY_URL", "https://lb"),
        ("SERVICE_SCHEME", "https"),
        ("SERVICE_HEALTH_ENDPOINT", "https://osint/health"),
    ],
)
def test_https_in_an_image_without_tls_names_the_build_argument(
    unasked: Peers, name: str, value: str
) -> None:
    run = f"runpy.run_path({str(AGENT)!r}, run_name='__main__')"
    code = f"import runpy, sys; sys.modules['ssl'] = None; {run}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        env=environment(unasked.settings | {name: value, "REGISTRY_CA_FILE": "/nowhere"}),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (2, "")
    fix = "this image has no TLS; build it with --build-arg TLS=1, or use http://"
    assert done.stdout.split(" ", 1)[1] == f"ERROR Bad setting: {name}={value}: {fix}\n"


# ---- good settings

GOOD: dict[str, dict[str, object]] = {
    "SERVICE_NAME": {each: each for each in ("abc", "osint_service-2", "A.b", "index2")},
    "SERVICE_HOST": {
        "vertice-osint": "vertice-osint", "a.b.example.": "a.b.example.",
        "under_score": "under_score",
        "10.0.0.1": "10.0.0.1", "::1": "::1", "[fe80::1]": "fe80::1",
        "::ffff:10.0.0.1": "::ffff:10.0.0.1",
    },
    "SERVICE_PORT": {"1": 1, "65535": 65535, "0080": 80},
    "SERVICE_HEALTH_CHECK": {"http": "http", "TCP": "tcp", "None": "none"},
    "SERVICE_SCHEME": {"http": "http", "HTTPS": "https"},
    "SERVICE_TLS_VERIFY": {"true": True, "No": False},
    "SERVICE_HEALTH_ENDPOINT": {
        each: each
        for each in ("/", "/a/b?c=d&e=%20", "http://lb/h?a=1", "https://ann:s3cret@[::1]:9000/")
    },
    "SERVICE_HEALTH_TIMEOUT": {"0.01": 0.01, "15": 15.0, "16": 15.0},  # at most half an interval
    "SERVICE_HEALTH_RETRIES": {"1": 1, "100": 100},
    "SERVICE_METADATA": {
        "a=1": {"a": "1"}, " a = 1 , b = x y ,": {"a": "1", "b": "x y"}, "a=": {"a": ""}, ",": {},
        "url=http://h?q=1": {"url": "http://h?q=1"}, "ort=Köln": {"ort": "Köln"},
    },
    "SERVICE_ID": {"osint:1": "osint:1", "i" * 255: "i" * 255},
    "SERVICE_TAGS": {
        "a": ["a"], "a, b ,": ["a", "b"], ",": [],
        "urlprefix-/x strip=/x": ["urlprefix-/x strip=/x"],
    },
    "REGISTRY_URL": {
        "consul://consul/": "consul://consul",
        "consul-tls://ann:s3cret@[::1]:1": "consul-tls://ann:s3cret@[::1]:1",
        "http://lb": "http://lb", "http://lb:80/": "http://lb:80", "http://lb:80//": "http://lb:80",
        "https://lb/api/": "https://lb/api", "http://[::1]:80": "http://[::1]:80",
        "http://ann:s3cret@lb": "http://ann:s3cret@lb",
    },
    "REGISTRY_TIMEOUT": {"0.5": 0.5, ".5": 0.5, "5.": 5.0, "86400": 15.0},
    "REGISTRY_TOKEN": {"s3cret": "s3cret", "!~": "!~", "t" * 4095: "t" * 4095},
    "HEARTBEAT_INTERVAL": {"0.01": 0.01, "29.5": 29.5, "60": 60.0},
    "INITIAL_WAIT_TIMEOUT": {"0": 0.0, "0.0": 0.0, "3600": 3600.0},
    "DEREGISTER_ON_EXIT": {
        "true": True, "Yes": True, "ON": True, "1": True,
        "false": False, "No": False, "off": False, "0": False,
    },
    "DRAIN_SECONDS": {"0": 0.0, "2.5": 2.5, "86400": 86400.0},
    "HEARTBEAT_FILE": {"/run/heartbeat": "/run/heartbeat", "with blank": "with blank"},
    "LOG_LEVEL": {"debug": "DEBUG", "Warning": "WARNING", "CRITICAL": "CRITICAL"},
    "LOG_FORMAT": {"JSON": "json", "text": "text"},
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_values_with_and_without_blanks_around_them(name: str) -> None:
    for value, meaning in GOOD[name].items():
        for blank in ("", " ", "\t\n"):
            assert getattr(read(**{name: blank + value + blank}), name.lower()) == meaning


@pytest.mark.parametrize("name", DEFAULTS)
def test_an_empty_setting_is_an_unset_one(name: str) -> None:
    default = read(**{name: DEFAULTS[name]} if DEFAULTS[name] else {})
    values = [read(**{name: text}).values for text in ("", " \t")]
    assert values == [default.values] * 2
    assert read().values == default.values


def test_every_setting_is_in_the_tables() -> None:
    fields = SETTINGS.keys() - set(ALIASES)
    assert fields == {*NEEDED, *DEFAULTS} == {*GOOD, *FILES, "SSL_CERT_FILE"}


def test_the_start_line_shows_every_default() -> None:
    unset = dict.fromkeys(DEFAULTS.keys() - {"SERVICE_PORT", "HEARTBEAT_FILE"}, "")
    # The service is ill, so the agent waits, and never looks the default registry up.
    with ToyService(healthy=False) as service, Sidecar(None, service, **unset) as sidecar:
        line = sidecar.wait_for("Registry sidecar starts")
        assert sidecar.stop()[0] == 0
    for name in unset:
        shown = {"true": "True"}.get(DEFAULTS[name], DEFAULTS[name])
        shows = (
            re.search(rf" {name}={re.escape(shown)}(\.0)?( |$)", line)
            if shown
            else name not in line
        )
        assert shows, name


def test_every_setting_reaches_the_start_line_and_the_record(tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text("t0ken-of-the-file\n")
    with (
        Registry(token="t0ken-of-the-file") as registry,
        ToyService(health_path="/up?deep=1") as service,
    ):
        settings = {
            "SERVICE_NAME": "other-name",
            "SERVICE_HOST": "localhost",
            "SERVICE_PORT": str(service.port),
            "SERVICE_HEALTH_CHECK": "HTTP",
            "SERVICE_HEALTH_ENDPOINT": "/up?deep=1",
            "SERVICE_HEALTH_TIMEOUT": "1.5",
            "SERVICE_HEALTH_RETRIES": "2",
            "SERVICE_METADATA": "team=blue, version=9",
            "SERVICE_ID": "osint-1",
            "REGISTRY_URL": registry.url.replace("//", "//ann:s3cret@") + "/",
            "REGISTRY_TIMEOUT": "2.5",
            "REGISTRY_TOKEN": "t0ken-of-the-environment",
            "REGISTRY_TOKEN_FILE": str(token_file),
            "HEARTBEAT_INTERVAL": "8.5",
            "INITIAL_WAIT_TIMEOUT": "7",
            "DEREGISTER_ON_EXIT": "no",
            "DRAIN_SECONDS": "8.5",
            "HEARTBEAT_FILE": str(tmp_path / "beat"),
            "LOG_LEVEL": "info",
            "LOG_FORMAT": "Text",
        }
        with Sidecar(
            None, None, **{name: f" {value} " for name, value in settings.items()}
        ) as sidecar:
            sidecar.wait_registered()
            record = registry.record("other-name")
            assert sidecar.stop()[0] == 0
    assert record is not None
    assert record["endpoint"] == f"http://localhost:{service.port}"
    assert record["health_endpoint"] == "/up?deep=1"
    assert record["metadata"] == {
        "team": "blue",
        "version": "9",
        "status": "healthy",
    }  # ours before the service's
    assert registry.count("deregister") == 0
    assert (tmp_path / "beat").exists()
    assert "s3cret" not in sidecar.log
    assert "t0ken" not in sidecar.log
    otherwise = {
        "SERVICE_HEALTH_CHECK": "http",
        "SERVICE_HEALTH_ENDPOINT": "/up?***",
        "SERVICE_METADATA": "\"{'team': 'blue', 'version': '9'}\"",
        "REGISTRY_URL": registry.url.replace("//", "//***@"),
        "REGISTRY_TOKEN": "***",
        "INITIAL_WAIT_TIMEOUT": "7.0",
        "DEREGISTER_ON_EXIT": "False",
        "LOG_LEVEL": "INFO",
        "LOG_FORMAT": "text",
    }
    line = sidecar.lines[0] + " "
    for name, shown in (settings | otherwise).items():
        assert f" {name}={shown} " in line, line


@pytest.mark.parametrize("check", ["tcp", "none"])
def test_a_service_without_http(registry: Registry, check: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if check == "none":
            listening.close()  # nothing at all is asked of the service
        with Sidecar(
            registry, SERVICE_PORT=port, SERVICE_HEALTH_CHECK=check, SERVICE_METADATA="a=1"
        ) as sidecar:
            sidecar.wait_for("Service is READY")
            sidecar.wait_registered()
            record = registry.record(NAME)
            assert record is not None
            assert record["metadata"] == {"a": "1"}


def test_an_ipv6_address_is_registered_in_brackets(registry: Registry) -> None:
    with contextlib.ExitStack() as stack:
        service, check = ToyService("::1"), "http"
        try:
            stack.enter_context(service)
        except OSError:  # no IPv6 here: then without a probe
            service, check = ToyService(), "none"
        sidecar = stack.enter_context(
            Sidecar(registry, service, SERVICE_HOST="::1", SERVICE_HEALTH_CHECK=check)
        )
        sidecar.wait_registered()
        record = registry.record(NAME)
        assert record is not None
        assert record["endpoint"] == f"http://[::1]:{service.port}"
    assert read(SERVICE_HOST="[::1]").values == read(SERVICE_HOST="::1").values


def test_a_slash_at_the_end_of_the_registry_url_never_doubles(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(None, service, REGISTRY_URL=registry.url + "//") as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        sidecar.stop()
        wait_until(lambda: registry.count("deregister"))
        paths = {request.path for request in registry.requests}
        assert paths - {"/services"} == {"/register", "/heartbeat", f"/deregister/{NAME}"}


def test_agent_and_health_check_agree_on_a_heartbeat_file_in_blanks(
    service: ToyService, tmp_path: Path
) -> None:
    path = tmp_path / "heartbeat"
    with Sidecar(Registry(), service, HEARTBEAT_FILE=f" {path} ") as sidecar:
        sidecar.wait_health("^(waiting|registering|registry unreachable) for", 0)
        assert path.exists()


# ---- the token


@pytest.mark.parametrize(
    ("variables", "token", "name"),
    [
        ({}, "", "REGISTRY_TOKEN"),
        ({"REGISTRY_AUTH_TOKEN": "c"}, "c", "REGISTRY_AUTH_TOKEN"),
        (
            {"REGISTRY_AUTH_TOKEN": "c", "VERTICE_REGISTRY_TOKEN": "b"},
            "b",
            "VERTICE_REGISTRY_TOKEN",
        ),
        (
            {"REGISTRY_AUTH_TOKEN": "c", "VERTICE_REGISTRY_TOKEN": "b", "REGISTRY_TOKEN": "a"},
            "a",
            "REGISTRY_TOKEN",
        ),
        (
            {"REGISTRY_AUTH_TOKEN": "c", "VERTICE_REGISTRY_TOKEN": "", "REGISTRY_TOKEN": " "},
            "c",
            "REGISTRY_AUTH_TOKEN",
        ),
        ({"REGISTRY_TOKEN": "a", "REGISTRY_TOKEN_FILE": "FILE"}, "f", "REGISTRY_TOKEN_FILE"),
    ],
)
def test_token_variables_take_precedence_in_their_order(
    tmp_path: Path, variables: dict[str, str], token: str, name: str
) -> None:
    (tmp_path / "token").write_text(" f\n")
    settings = read(
        **{key: value.replace("FILE", str(tmp_path / "token")) for key, value in variables.items()}
    )
    assert (agent.choose_token(settings).now(), settings.token_name) == (token, name)


# ---- doubtful settings


@pytest.mark.parametrize(
    ("variables", "doubt"),
    [
        ({}, None),
        ({"HEARTBEAT_INTERVAL": "30"}, None),
        (
            {"HEARTBEAT_INTERVAL": "30.5"},
            r"HEARTBEAT_INTERVAL=30\.5: .*forgets a service after 60 s.* set it to 30 or",
        ),
        ({"SERVICE_NAME": "ab"}, "SERVICE_NAME=ab: names are by convention 3 to 64 lowercase"),
        (
            {"SERVICE_NAME": "n" * 65},
            "SERVICE_NAME=n{65}: names are by convention 3 to 64 lowercase",
        ),
        ({"SERVICE_NAME": "Osint.Service"}, "SERVICE_NAME=Osint.Service: names are by convention"),
    ],
)
def test_a_doubtful_setting_is_warned_of(variables: dict[str, str], doubt: str | None) -> None:
    lines = doubts(read(**variables))
    assert len(lines) == bool(doubt)
    assert all(re.match(str(doubt), line) for line in lines)


@pytest.mark.parametrize(
    ("drain", "deregister", "words"),
    [
        ("8.5", "true", None),
        ("9", "true", "DRAIN_SECONDS=9: needs stop_grace_period: 12s (else 10s)"),
        ("9", "false", "DRAIN_SECONDS=9: has no effect while DEREGISTER_ON_EXIT=false"),
        ("0", "false", None),
    ],
)
def test_a_drain_that_docker_would_cut_short_is_warned_of(
    drain: str, deregister: str, words: str | None
) -> None:
    lines = doubts(read(DRAIN_SECONDS=drain, DEREGISTER_ON_EXIT=deregister))
    assert lines == [words] * bool(words)


def test_a_ca_file_without_https_is_warned_of() -> None:
    (doubt,) = doubts(changed(registry_ca_file="/ca.pem"))
    assert doubt.startswith("REGISTRY_CA_FILE: has no effect")
    for url in ("https://lb", "HTTPS://lb", "consul-tls://lb"):
        assert doubts(changed(registry_ca_file="/ca.pem", registry_url=url)) == []


@pytest.mark.parametrize(
    ("settings", "doubt"),
    [
        ({"service_ca_file": "/ca.pem"}, "SERVICE_CA_FILE: has no effect"),
        ({"service_ca_file": "/ca.pem", "service_scheme": "https"}, None),
        ({"service_ca_file": "/ca.pem", "service_health_endpoint": "HTTPS://osint/health"}, None),
        (
            {
                "service_ca_file": "/ca.pem",
                "service_scheme": "https",
                "service_health_check": "tcp",
            },
            "SERVICE_CA_FILE: ",
        ),
        (
            {"service_tls_verify": False, "service_scheme": "https"},
            "SERVICE_TLS_VERIFY=false: a probe believes",
        ),
        ({"service_tls_verify": False}, None),
    ],
)
def test_tls_settings_of_no_use_and_a_probe_that_verifies_nobody_are_warned_of(
    settings: dict[str, Any], doubt: str | None
) -> None:
    lines = doubts(changed(**settings))
    assert len(lines) == bool(doubt)
    assert all(line.startswith(str(doubt)) for line in lines)


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://lb", True), ("https://lb", True), ("consul://lb", False), ("consul-tls://lb", False)],
)
@pytest.mark.parametrize("variables", [{"SERVICE_ID": "osint:1"}, {"SERVICE_TAGS": "a,b"}])
def test_what_consul_alone_takes_is_warned_of_elsewhere(
    variables: dict[str, str], url: str, warned: bool
) -> None:
    (name,) = variables
    lines = doubts(read(REGISTRY_URL=url, **variables))
    assert len(lines) == warned
    assert all(line.startswith(f"{name}: has no effect") for line in lines)


SLIPS = {
    "REGISTRY_TOKEN_FILES": "REGISTRY_TOKEN_FILE",
    "REGISTRY_TOKN": "REGISTRY_TOKEN",
    "REGISTRY_TOKENFILE": "REGISTRY_TOKEN_FILE",
    "REGISTRY_ULR": "REGISTRY_URL",
    "SERVICE_HEALTH_TIMOUT": "SERVICE_HEALTH_TIMEOUT",
    "SERVICE_HEALTH_ENDPOINTS": "SERVICE_HEALTH_ENDPOINT",
    "SERVICE_PROT": "SERVICE_PORT",
    "SERVICE_TAG": "SERVICE_TAGS",
    "HEARTBEAT_INTERVAL_SECONDS": "HEARTBEAT_INTERVAL",
    "DEREGISTER_ON_EXIST": "DEREGISTER_ON_EXIT",
    "INITIAL_WAIT_TIMEOUT_S": "INITIAL_WAIT_TIMEOUT",
    "LOG_LEVLE": "LOG_LEVEL",
}
NO_SLIPS = (
    # What Kubernetes and Docker links set for services called registry, service, registry-url.
    *(f"{name}_SERVICE_{what}" for name in ("REGISTRY", "SERVICE") for what in ("HOST", "PORT")),
    *("REGISTRY_SERVICE_PORT_HTTP", "REGISTRY_PORT", "REGISTRY_PORT_80_TCP", "SERVICE_PORT_80_TCP"),
    *(f"REGISTRY_PORT_80_TCP_{what}" for what in ("ADDR", "PORT", "PROTO")),
    *("REGISTRY_URL_SERVICE_HOST", "REGISTRY_URL_PORT_80_TCP_ADDR", "REGISTRY_NAME"),
    *("REGISTRY_ENV_REGISTRY_TOKEN", "REGISTRY_URL_ENV_PATH"),
    *("PATH", "HOME", "HOSTNAME", "LANG", "TZ", "SSL_CERT_DIR", "GPG_KEY", "PYTHON_VERSION"),
    *(
        "LOG_DIR",
        "REGISTRY",
        "SERVICE",
        "REGISTRY_USER",
        "SERVICE_VERSION",
        "HEARTBEAT",
        *VARIABLES,
    ),
)


@pytest.mark.parametrize("name", SLIPS)
def test_a_variable_that_looks_like_a_setting_is_warned_of(name: str) -> None:
    (line,) = doubts(read(), **{name: "s3cret"})
    assert re.match(rf"{name}: is no setting.*\b{SLIPS[name]}\b", line)
    assert "s3cr" not in line


@pytest.mark.parametrize("name", NO_SLIPS)
def test_a_variable_that_is_somebody_else_s_is_not_warned_of(name: str) -> None:
    assert doubts(read(), **{name: "tcp://10.96.0.7:80"}) == []


@pytest.mark.parametrize(
    ("variables", "warned"),
    [
        ({"SERVICE_METADATA": "team=osint # who"}, True),
        ({"SERVICE_METADATA": "team=osint #who"}, True),
        ({"SERVICE_METADATA": "team=osint#1"}, False),
        ({"HEARTBEAT_FILE": "/tmp/heartbeat # where"}, True),
        ({"REGISTRY_TOKEN": "s3cret#1"}, False),
    ],
)
def test_a_comment_in_a_value_is_warned_of(variables: dict[str, str], warned: bool) -> None:
    (name,) = variables
    lines = doubts(read(**variables), **variables)
    assert len(lines) == warned
    assert all(line.startswith(f"{name}: ") and "#" in line for line in lines)


def test_doubts_about_names_and_comments_reach_the_log(
    registry: Registry, service: ToyService
) -> None:
    odd = {"REGISTRY_TOKEN_FILES": "s3cret", "SERVICE_METADATA": "team=osint # who"}
    others = dict.fromkeys(("REGISTRY_SERVICE_HOST", "REGISTRY_PORT_80_TCP"), "10.96.0.7")
    with Sidecar(registry, service, SERVICE_TAGS="a", **odd, **others) as sidecar:
        sidecar.wait_registered()
        assert sidecar.count(" WARNING REGISTRY_TOKEN_FILES: .*REGISTRY_TOKEN_FILE") == 1
        assert sidecar.count(" WARNING SERVICE_METADATA: .*#") == 1
        assert sidecar.count(" WARNING SERVICE_TAGS: has no effect") == 1
        assert sidecar.count(" WARNING ") == 3
        assert not sidecar.count("s3cret")


@pytest.mark.parametrize(
    ("variables", "refused"),
    [
        ({}, False),
        ({"SERVICE_SCHEME": "https"}, True),
        ({"SERVICE_SCHEME": "https", "SERVICE_HEALTH_CHECK": "tcp"}, False),
        ({"SERVICE_SCHEME": "https", "SERVICE_CA_FILE": "CA"}, False),
        ({"SERVICE_HEALTH_ENDPOINT": "https://osint/health"}, True),
        ({"REGISTRY_URL": "https://lb"}, True),
        ({"REGISTRY_URL": "consul-tls://lb"}, True),
        ({"REGISTRY_URL": "https://lb", "REGISTRY_CA_FILE": "CA"}, False),
        ({"REGISTRY_URL": "https://lb", "SERVICE_CA_FILE": "CA"}, True),
    ],
)
@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_bad_ssl_cert_file_is_refused_where_https_has_no_file_of_its_own(
    tmp_path: Path, variables: dict[str, str], refused: bool, content: str | None
) -> None:
    authority, bad = tmp_path / "ca.pem", tmp_path / "bad.pem"
    trustme.CA().cert_pem.write_to_path(str(authority))
    if content:
        bad.write_text(content)
    named = {key: value.replace("CA", str(authority)) for key, value in variables.items()}
    lines = problems_of(SSL_CERT_FILE=str(bad), **named)
    assert len(lines) == refused
    assert all(line.startswith(f"SSL_CERT_FILE={bad}: ") for line in lines)


def test_doubts_stop_nothing(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, SERVICE_NAME="UP", HEARTBEAT_INTERVAL=31) as sidecar:
        sidecar.wait_registered()
        assert (
            sidecar.count(" WARNING SERVICE_NAME=UP: ")
            == sidecar.count(" WARNING HEARTBEAT_INTERVAL=31: ")
            == 1
        )


# ---- any settings at all

# What an environment can hold: any text but NUL, and bytes that are no UTF-8 (as surrogates).
# Beside that, pieces of sound values, so that the parts behind the first check are reached.
anything = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.sampled_from("\udc80\udcff")
)
pieces = st.lists(
    st.sampled_from(
        [
            "http://",
            "https://",
            "ann:s3cret@",
            "lb",
            "::1",
            "[::1]",
            "1",
            "0",
            "e",
            "v1.x",
            "ß",
            "\udcff",
        ]
    )
    | st.sampled_from(list("[]:/.,=@?#%-_&; \t\n\\'\"")),
    max_size=8,
).map("".join)
values = anything | pieces


def settle(variables: Mapping[str, str]) -> Settings | None:
    """Read the settings and check what holds for all.

    Each problem is one line that names a variable.
    """
    problems: tuple[str, ...] = ()
    settings = None
    try:
        settings = read_settings(variables)
    except SettingsError as error:
        problems = tuple(agent.say_problem(*problem) for problem in error.args)
    assert settings or problems
    for problem in problems:
        assert problem.isprintable()
        assert re.match(f"({'|'.join(VARIABLES)})(=| is not set: )", problem)
        assert len(problem) < 1000
        assert not (
            problem.startswith(("REGISTRY_URL", "SERVICE_HEALTH_ENDPOINT")) and "s3cret" in problem
        )
    return settings


@given(st.dictionaries(st.sampled_from(VARIABLES), values))
def test_any_environment_gives_settings_or_problems_a_line_each(variables: dict[str, str]) -> None:
    settle(variables)


@how(max_examples=400)
@given(st.sampled_from(VARIABLES), values)
@example("REGISTRY_URL", "http://[v1.x]")
@example("REGISTRY_URL", "http://x[::1]")
@example("SERVICE_HOST", "\udcff:")
def test_any_value_is_refused_or_works(name: str, value: str) -> None:
    settings = settle(NEEDED | {name: value})
    if settings:
        assert agent.say_settings(settings).isprintable()
        assert all(line.isprintable() for line in doubts(settings))
        for url in (settings.registry_url + "/register", settings.health_url):
            headers = (("X-Registry-Token", agent.choose_token(settings).now()),)
            agent.prepare("POST", url, headers, b"{}")  # requests takes them
