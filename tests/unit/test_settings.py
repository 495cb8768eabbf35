"""Settings: each works, empty ones too, and each bad one is refused with how to mend it."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import certifi
from hypothesis import example, given
from hypothesis import settings as how
from hypothesis import strategies as st

import agent
from agent import SETTINGS, TOKEN_VARIABLES, Settings, SettingsError, read_settings
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import AGENT, NAME, Sidecar, run, run_agent

MISSING = "/tmp/no-such-file"  # in a directory that exists, so it looks like a path
NEEDED = {"SERVICE_NAME": NAME, "SERVICE_HOST": "127.0.0.1"}
SECRET_FILES = ("REGISTRY_TOKEN_FILE", "SERVICE_HEALTH_HEADERS_FILE")
CA = certifi.where()
FILES = (*SECRET_FILES, "REGISTRY_CA_FILE", "SERVICE_CA_FILE")


def read(**variables: str) -> Settings:
    """Read the settings that these variables make together with the two needed ones."""
    return read_settings(NEEDED | variables)


def problems_of(**variables: str) -> list[str]:
    """Return the problems with these variables, none where they are good."""
    try:
        read(**variables)
    except SettingsError as error:
        return [agent.say_problem(*problem) for problem in error.args]
    return []


# ---- bad settings

NAME_FIX = "set it to the name to register.*not `index`, the registry's own"
HOST_FIX = "set it to the service's host name or address alone"
PORT_FIX = "set it to a whole number from 1 to 65535"
HEALTH_FIX = (
    "set it to a path, such as /health, or a whole URL, such as http://vertice-osint:9000/health"
)
PAIRS_FIX = "set it to k=v,k=v with each key once, at most 256 characters each"
URL_FIX = "set it to http://HOST:PORT of the registry, such as http://vertice-register-lb:80"
TOKEN_FIX = "printable ASCII without blanks"
TOKEN_FILE_FIX = "set it to a readable file that holds the token"
HEADERS_FIX = "set it to a readable file of headers"
CA_FIX = "set it to a readable file of CA certificates"
TRUTH_FIX = "set it to one of true, yes, on, 1, false, no, off, 0"
SECONDS_FIX = "set it to seconds from 0.01 to 86400"
SECONDS_OR_0_FIX = "set it to seconds from 0 to 86400"

# The variable, how to mend it, and bad values. Where a value is not shown as it is, the way it is
# shown stands beside it.
BAD: list[tuple[str, str, list[str | tuple[str, str]]]] = [
    ("SERVICE_NAME", NAME_FIX, [
        ("a\nERROR forged", r"'a\\nERROR forged'"), "", (" \t ", ""), "a/b",
        ("two words", "'two words'"), "index", "-first", "..", "dienst-größe",
        ("n" * 300, "n" * 197 + "..."),
    ]),
    ("SERVICE_HOST", HOST_FIX, [
        ("\udcff:1", r"\udcff:1"),  # a byte that is no UTF-8
        "", "http://osint", "osint:8080", "osint/api", ("two hosts", "'two hosts'"), "a..b",
        "h" * 64, "1::2::3", "[::1", "fe80::1%eth0",
    ]),
    ("SERVICE_PORT", PORT_FIX, [
        "0", "65536", "-1", "http", "80.5", ("9" * 5000, "9" * 197 + "..."),
        "٨٠",  # digits, though not ours
    ]),
    ("SERVICE_PORT", f"{PORT_FIX}.*Kubernetes or a Docker link", ["tcp://10.96.0.7:80"]),
    ("SERVICE_SCHEME", "set it to one of http, https", ["h2"]),
    ("SERVICE_CA_FILE", f"{CA_FIX} .*no such file", [MISSING]),
    ("SERVICE_TLS_VERIFY", TRUTH_FIX, ["never"]),
    ("SERVICE_HEALTH_HEADERS_FILE", f"{HEADERS_FIX} .*no such file", [MISSING]),
    ("SERVICE_HEALTH_HEADERS_FILE", f"{HEADERS_FIX} .*line 1 must be `Name: value`", [os.devnull]),
    ("SERVICE_HEALTH_CHECK", "set it to one of http, tcp, none", ["udp"]),
    ("SERVICE_HEALTH_ENDPOINT", HEALTH_FIX, [
        ("ftp://ann:s3cret@osint/health", "ftp://***@osint/health"),
        "health", "//health", ("/health check", "'/health check'"), "/health#top",
        "http://osint:0/health", "http://osint/health#top",
        ("http://osint/health?key=s3cret key", "http://osint/health?***"),
    ]),
    ("SERVICE_HEALTH_TIMEOUT", SECONDS_FIX, ["0", "5s"]),
    ("SERVICE_HEALTH_RETRIES", "set it to a whole number from 1 to 100", ["0", "101"]),
    ("SERVICE_METADATA", PAIRS_FIX, [
        ("a=1\x1b[2J", r"a=1\x1b[2J"), "team", "=blue", "a=1,b", "a=1,a=2",
        ("a=" + "v" * 300, "a=" + "v" * 195 + "..."),
    ]),
    ("SERVICE_ID", "set it to the record's ID", ["a/b", ".."]),
    ("SERVICE_TAGS", "set it to a,b, at most 256 characters each", [
        ("a,b\x1b[2J", r"a,b\x1b[2J"), ("a," + "t" * 300, "a," + "t" * 195 + "..."),
    ]),
    ("REGISTRY_URL", URL_FIX, [
        ("http://ann:s3cret@lb:0", "http://***@lb:0"), "vertice-register-lb:80",
        "ftp://vertice-register-lb", "http://", "http:///services", "http://lb:0",
        "http://lb:65536", "http://lb:eighty", ("http://l b", "'http://l b'"), "http://[::1",
        "http://[v1.x]", "http://[::1]x", "http://lb\\register", "http://lb/#register",
        ("http://ann:s3cret@", "http://***@"), ("ftp://ann:a/b@s3cret@lb", "ftp://***@lb"),
        ("http://ann:a#s3cret@lb", "http://***@lb"), ("http://lb/?token=s3cret", "http://lb/?***"),
        ("ann:s3cret@lb", "***@lb"),
    ]),
    ("REGISTRY_TIMEOUT", SECONDS_FIX, ["-1"]),
    ("REGISTRY_TOKEN", TOKEN_FIX, [("s3cret token", "***"), ("s3crét", "***")]),
    ("VERTICE_REGISTRY_TOKEN", TOKEN_FIX, [("s3cret\ntoken", "***")]),
    ("REGISTRY_AUTH_TOKEN", TOKEN_FIX, [("s3cret" * 1000, "***")]),
    ("REGISTRY_TOKEN_FILE", f"{TOKEN_FILE_FIX} .*no such file", [MISSING]),
    ("REGISTRY_TOKEN_FILE", f"{TOKEN_FILE_FIX} .*is a directory", ["/"]),
    ("REGISTRY_TOKEN_FILE", f"{TOKEN_FILE_FIX} .*must hold one token", [os.devnull]),
    ("REGISTRY_CA_FILE", f"{CA_FIX} .*no such file", [MISSING]),
    ("REGISTRY_CA_FILE", CA_FIX, [os.devnull]),
    ("HEARTBEAT_INTERVAL", SECONDS_FIX, [
        "0", "-30", "nan", "inf", "1e1", "86401", ("half a minute", "'half a minute'"),
    ]),
    ("HEARTBEAT_INTERVAL", "set it to 30 or less: .*forgets a service after 60 s",
     ["60.5", "86400"]),
    ("INITIAL_WAIT_TIMEOUT", SECONDS_OR_0_FIX, ["-0.1", "forever"]),
    ("DEREGISTER_ON_EXIT", TRUTH_FIX, ["maybe"]),
    ("DRAIN_SECONDS", SECONDS_OR_0_FIX, ["3s"]),
    ("HEARTBEAT_FILE", "set it to a path for a file of its own", [os.devnull]),
    ("LOG_LEVEL", "set it to one of DEBUG, INFO, WARNING, ERROR, CRITICAL", ["LOUD"]),
    ("LOG_FORMAT", "set it to one of text, json", ["xml"]),
]  # fmt: skip
FIRST_TWO = ("SERVICE_NAME is not set", "HEARTBEAT_INTERVAL=x")


def refusals() -> Iterator[tuple[str, str, str]]:
    """Yield each bad setting, its value, and the pattern of the line that refuses it."""
    for name, fix, values in BAD:
        for each in values:
            value, shown = each if isinstance(each, tuple) else (each, each)
            said = f"{name}={re.escape(shown)}: " if shown else f"{name} is not set: "
            yield name, value, f"{said}.*{fix}.*"


def test_every_bad_setting_is_refused_in_a_line_with_its_value_and_the_way_to_mend_it() -> None:
    for name, value, line in refusals():
        (problem,) = problems_of(**{name: value})
        assert re.fullmatch(line, problem), (problem, line)
        assert "s3cr" not in problem
    assert {name for name, *_ in BAD} == SETTINGS.keys() - {"SSL_CERT_FILE"}
    assert len(problems_of(HEARTBEAT_INTERVAL="60.5", SERVICE_PORT="x")) == 2
    assert not problems_of(HEARTBEAT_INTERVAL="86400", REGISTRY_URL="consul://consul")


def test_all_bad_settings_are_named_at_once_and_nobody_is_asked(tmp_path: Path) -> None:
    """Also where the log is to be JSON, or for critical lines alone; and by --check."""
    bad = {name: (value, line) for name, value, line in reversed([*refusals()])}  # the first ones
    told = problems_of(**{name: value for name, (value, _) in bad.items()})
    for line, name in zip(told, filter(bad.__contains__, SETTINGS), strict=True):
        assert re.fullmatch(bad[name][1], line)

    file = tmp_path / "heartbeat"
    with Registry() as registry, ToyService() as service:
        good = {"SERVICE_PORT": str(service.port), "REGISTRY_URL": registry.url}
        good |= {"SERVICE_HOST": "127.0.0.1", "HEARTBEAT_FILE": str(file)}
        good |= {"HEARTBEAT_INTERVAL": "x", "LOG_FORMAT": " JSON ", "LOG_LEVEL": "ERROR"}
        as_json = '{"time": "[^"]+", "level": "ERROR", "message": "%s"}'
        for arguments, form in (((), as_json), (("--check",), "%s")):
            done = run_agent(good, *arguments)
            assert done.returncode == 2
            for line, name in zip(done.stdout.splitlines(), FIRST_TWO, strict=True):
                assert re.fullmatch(form % f"Bad setting: {name}: .*", line)
        assert registry.connections == service.connections == 0
    assert not file.exists()


BAD_HEADERS = [
    "X-Key s3cret", "Host: a\nhost: s3cret", "Bad Name: s3cret", ": s3cret",
    "X-Key: a\rX-Other: s3cret", "X-Key: a\x0bX-Other: s3cret", "X-Key: s3crét",
    "X-Key: a\n folded s3cret", "Content-Length: 5", "transfer-encoding: chunked",
    "Connection: keep-alive", "X-Key: " + "s3cret" * 1000,
    *("A: b\n" + "\n" * blanks + "X-Key: s3cret" for blanks in (4081, 4083)),
]  # fmt: skip


def test_a_file_without_what_it_should_hold_is_refused_never_shown_nor_waited_for(
    tmp_path: Path,
) -> None:
    pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    contents = [(name, b"\xff\xfe") for name in FILES]
    for text in ("", "two s3crets", "x" * 100_000, pem):
        contents += [(name, text.encode()) for name in FILES]
    contents += [("SERVICE_HEALTH_HEADERS_FILE", text.encode()) for text in BAD_HEADERS]
    path, pipe = tmp_path / "file", tmp_path / "pipe"
    os.mkfifo(pipe)
    for name, content in contents:
        path.write_bytes(content)
        for each in {path, pipe if name in SECRET_FILES else path}:
            (problem,) = problems_of(**{name: str(each)})
            what = "of headers (" if "HEADERS" in name else ""
            assert problem.startswith(f"{name}={each}: set it to a readable file {what}")
            assert "s3cr" not in problem


def test_https_in_an_image_without_tls_names_the_build_argument() -> None:
    code = "import runpy, sys; sys.modules['ssl'] = None; "
    code += f"runpy.run_path({str(AGENT)!r}, run_name='__main__')"
    https = {
        "SERVICE_SCHEME": "https",
        "SERVICE_HEALTH_ENDPOINT": "https://osint/health",
        "REGISTRY_URL": "https://lb",
    }
    done = run("-c", code, settings=NEEDED | https | {"REGISTRY_CA_FILE": "/nowhere"}, timeout=60)
    assert done.returncode == 2
    fix = "this image has no TLS; build it with --build-arg TLS=1, or use http://"
    assert [line.split(" ", 1)[1] for line in done.stdout.splitlines()] == [
        f"ERROR Bad setting: {name}={value}: {fix}" for name, value in https.items()
    ]


SSL_CERT_FILE = [
    ({}, False),
    ({"SERVICE_SCHEME": "https"}, True),
    ({"SERVICE_SCHEME": "https", "SERVICE_HEALTH_CHECK": "tcp"}, False),
    ({"SERVICE_SCHEME": "https", "SERVICE_CA_FILE": CA}, False),
    ({"SERVICE_HEALTH_ENDPOINT": "https://osint/health"}, True),
    ({"REGISTRY_URL": "https://lb"}, True),
    ({"REGISTRY_URL": "consul-tls://lb"}, True),
    ({"REGISTRY_URL": "https://lb", "REGISTRY_CA_FILE": CA}, False),
    ({"REGISTRY_URL": "https://lb", "SERVICE_CA_FILE": CA}, True),
]


def test_a_bad_ssl_cert_file_is_refused_where_https_has_no_file_of_its_own() -> None:
    for variables, refused in SSL_CERT_FILE:
        for bad in (MISSING, os.devnull):
            lines = problems_of(SSL_CERT_FILE=bad, **variables)
            assert len(lines) == refused, variables
            assert all(line.startswith(f"SSL_CERT_FILE={bad}: ") for line in lines)


# ---- good settings

# What each is by default, by the key "", and what other texts mean.
GOOD: dict[str, dict[str, object]] = {
    "SERVICE_NAME": {each: each for each in ("abc", "osint_service-2", "A.b", "index2")},
    "SERVICE_HOST": {
        "vertice-osint": "vertice-osint", "a.b.example.": "a.b.example.",
        "under_score": "under_score",
        "10.0.0.1": "10.0.0.1", "::1": "::1", "[::1]": "::1", "[fe80::1]": "fe80::1",
        "::ffff:10.0.0.1": "::ffff:10.0.0.1",
    },
    "SERVICE_PORT": {"": 8080, "1": 1, "65535": 65535, "0080": 80},
    "SERVICE_HEALTH_CHECK": {"": "http", "http": "http", "TCP": "tcp", "None": "none"},
    "SERVICE_SCHEME": {"": "http", "http": "http", "HTTPS": "https"},
    "SERVICE_TLS_VERIFY": {"": True, "true": True, "No": False},
    "SERVICE_HEALTH_ENDPOINT": {
        "": "/health", "/": "/", "/a/b?c=d&e=%20": "/a/b?c=d&e=%20",
        "http://lb/h?a=1": "http://lb/h?a=1",
        "https://ann:s3cret@[::1]:9000/": "https://ann:s3cret@[::1]:9000/",
    },
    "SERVICE_HEALTH_TIMEOUT": {"": 5.0, "0.01": 0.01, "15": 15.0, "16": 15.0},  # half an interval
    "SERVICE_HEALTH_RETRIES": {"": 3, "1": 1, "100": 100},
    "SERVICE_METADATA": {
        "": {}, "a=1": {"a": "1"}, " a = 1 , b = x y ,": {"a": "1", "b": "x y"}, "a=": {"a": ""},
        ",": {}, "url=http://h?q=1": {"url": "http://h?q=1"}, "ort=Köln": {"ort": "Köln"},
    },
    "SERVICE_ID": {"": "", "osint:1": "osint:1", "i" * 255: "i" * 255},
    "SERVICE_TAGS": {
        "": [], "a": ["a"], "a, b ,": ["a", "b"], ",": [],
        "urlprefix-/x strip=/x": ["urlprefix-/x strip=/x"],
    },
    "REGISTRY_URL": {
        "": "http://vertice-register-lb:8888",
        "consul://consul/": "consul://consul",
        "consul-tls://ann:s3cret@[::1]:1": "consul-tls://ann:s3cret@[::1]:1",
        "http://lb": "http://lb", "http://lb:80/": "http://lb:80", "http://lb:80//": "http://lb:80",
        "https://lb/api/": "https://lb/api", "http://[::1]:80": "http://[::1]:80",
        "http://ann:s3cret@lb": "http://ann:s3cret@lb",
    },
    "REGISTRY_TIMEOUT": {"": 10.0, "0.5": 0.5, ".5": 0.5, "5.": 5.0, "86400": 15.0},
    **{name: {each: each for each in ("", "s3cret", "!~", "t" * 4095)} for name in TOKEN_VARIABLES},
    **{name: {"": ""} for name in (*FILES, "SSL_CERT_FILE")},
    "HEARTBEAT_INTERVAL": {"": 30.0, "0.01": 0.01, "29.5": 29.5, "60": 60.0},
    "INITIAL_WAIT_TIMEOUT": {"": 60.0, "0": 0.0, "0.0": 0.0, "3600": 3600.0},
    "DEREGISTER_ON_EXIT": {
        "": True, "true": True, "Yes": True, "ON": True, "1": True,
        "false": False, "No": False, "off": False, "0": False,
    },
    "DRAIN_SECONDS": {"": 0.0, "0": 0.0, "2.5": 2.5, "86400": 86400.0},
    "HEARTBEAT_FILE": {
        "": "/tmp/heartbeat", "/run/heartbeat": "/run/heartbeat", "with blank": "with blank",
    },
    "LOG_LEVEL": {"": "INFO", "debug": "DEBUG", "Warning": "WARNING", "CRITICAL": "CRITICAL"},
    "LOG_FORMAT": {"": "text", "JSON": "json", "text": "text"},
}  # fmt: skip


def test_good_values_count_and_are_shown_whatever_blanks_are_around_them() -> None:
    assert GOOD.keys() == SETTINGS.keys()
    assert read(SERVICE_HOST="::1").endpoint == "http://[::1]:8080"
    defaults = {name: meanings[""] for name, meanings in GOOD.items() if name not in NEEDED}
    assert read().values == NEEDED | defaults
    for name, meanings in GOOD.items():
        for value, meaning in meanings.items():
            for blank in ("", " ", "\t\n"):
                settings = read(**{name: blank + value + blank})
                assert settings.values[name] == meaning, (name, value)
                shown = "***" if name in TOKEN_VARIABLES else agent.say_value(meaning)
                line = agent.say_settings(settings) + " "
                assert (f"{name}={shown} " in line) == (meaning not in ("", [], {}))


def test_settings_and_doubts_reach_the_log_and_the_record(tmp_path: Path) -> None:
    """The doubts stop nothing."""
    token_file = tmp_path / "token"
    token_file.write_text("t0ken-of-the-file\n")
    with (
        Registry(token="t0ken-of-the-file") as registry,
        ToyService(health_path="/up?deep=1") as service,
    ):
        settings = {
            "SERVICE_NAME": "Other-name",
            "SERVICE_HOST": "localhost",
            "SERVICE_PORT": str(service.port),
            "SERVICE_HEALTH_ENDPOINT": "/up?deep=1",
            "SERVICE_METADATA": "team=blue # ours, version=9",
            "SERVICE_TAGS": "a",
            "REGISTRY_URL": registry.url.replace("//", "//ann:s3cret@") + "//",
            "REGISTRY_TOKEN": "t0ken-of-the-environment",
            "REGISTRY_TOKEN_FILE": str(token_file),
            "REGISTRY_TOKEN_FILES": "s3cret",
            "HEARTBEAT_INTERVAL": "31",
            "DEREGISTER_ON_EXIT": "no",
            "HEARTBEAT_FILE": str(tmp_path / "beat"),
        }
        with Sidecar(
            None, None, **{name: f" {value} " for name, value in settings.items()}
        ) as sidecar:
            sidecar.wait_registered()
            record = registry.record("Other-name")
            assert sidecar.stop()[0] == 0
    assert record is not None
    assert record["endpoint"] == f"http://localhost:{service.port}"
    assert record["health_endpoint"] == "/up?deep=1"
    # Ours come before the service's.
    assert record["metadata"] == {"team": "blue # ours", "version": "9", "status": "healthy"}
    assert registry.count("deregister") == 0
    assert (tmp_path / "beat").exists()
    sound = read_settings(settings)
    doubts = [f"WARNING {doubt}" for doubt in agent.doubts_about(sound, settings)]
    start = f"INFO Registry sidecar starts: version {agent.VERSION}, {agent.say_settings(sound)}"
    assert len(doubts) == 6
    assert [line.partition(" ")[2] for line in sidecar.lines[:7]] == [start, *doubts]
    assert not re.search("s3cret|t0ken", sidecar.log)


def test_token_variables_take_precedence_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" f\n")
    variables = {
        "REGISTRY_TOKEN_FILE": str(tmp_path / "token"),
        "REGISTRY_TOKEN": "a",
        "VERTICE_REGISTRY_TOKEN": "b",
        "REGISTRY_AUTH_TOKEN": "c",
    }
    for name, token in zip([*variables, "REGISTRY_TOKEN"], ["f", "a", "b", "c", ""], strict=True):
        settings = read(**variables)
        assert (agent.choose_token(settings).now(), settings.token_name) == (token, name)
        variables[name] = " "


# ---- doubtful settings

NAMES_DOUBT = "names are by convention 3 to 64 lowercase letters"
CA_DOUBT = "_CA_FILE: has no effect while nothing is verified there"
HTTPS = {"SERVICE_SCHEME": "https"}
# Variables, and the beginning of the one doubt about them, as a pattern; or that there is none.
DOUBTS: list[tuple[dict[str, str], str | None]] = [
    ({}, None),
    ({"SERVICE_HOST": "localhost"}, "SERVICE_HOST=localhost: callers .* reach themselves; set it"),
    ({"SERVICE_HOST": "[::]"}, "SERVICE_HOST=::: callers .* reach themselves"),
    ({"HEARTBEAT_INTERVAL": "30.5"}, r"HEARTBEAT_INTERVAL=30\.5: .* after 60 s.* set it to 30 or"),
    ({"HEARTBEAT_INTERVAL": "600", "REGISTRY_URL": "consul://consul"}, None),  # its TTL follows
    ({"SERVICE_HEALTH_RETRIES": "8"}, None),
    ({"SERVICE_HEALTH_RETRIES": "9"}, "SERVICE_HEALTH_RETRIES=9: .* take 63 s,.* after 60 s; set"),
    ({"SERVICE_NAME": "ab"}, f"SERVICE_NAME=ab: {NAMES_DOUBT}"),
    ({"SERVICE_NAME": "n" * 65}, f"SERVICE_NAME=n{{65}}: {NAMES_DOUBT}"),
    ({"SERVICE_NAME": "Osint.Service"}, f"SERVICE_NAME=Osint.Service: {NAMES_DOUBT}"),
    ({"DRAIN_SECONDS": "8.5"}, None),
    ({"DRAIN_SECONDS": "9"}, r"DRAIN_SECONDS=9: needs stop_grace_period: 12s \(else 10s\)$"),
    (
        {"DRAIN_SECONDS": "9", "DEREGISTER_ON_EXIT": "false"},
        "DRAIN_SECONDS=9: has no effect while DEREGISTER_ON_EXIT=false$",
    ),
    ({"DRAIN_SECONDS": "0", "DEREGISTER_ON_EXIT": "false"}, None),
    # What is set for https, and is of no use, or verifies nobody.
    ({"REGISTRY_CA_FILE": CA}, "REGISTRY" + CA_DOUBT),
    ({"REGISTRY_CA_FILE": CA, "REGISTRY_URL": "https://lb"}, None),
    ({"REGISTRY_CA_FILE": CA, "REGISTRY_URL": "consul-tls://lb"}, None),
    ({"SERVICE_CA_FILE": CA}, "SERVICE" + CA_DOUBT),
    ({"SERVICE_CA_FILE": CA, **HTTPS}, None),
    ({"SERVICE_CA_FILE": CA, "SERVICE_HEALTH_ENDPOINT": "HTTPS://osint/health"}, None),
    ({"SERVICE_CA_FILE": CA, **HTTPS, "SERVICE_HEALTH_CHECK": "tcp"}, "SERVICE" + CA_DOUBT),
    ({"SERVICE_TLS_VERIFY": "false", **HTTPS}, "SERVICE_TLS_VERIFY=false: a probe believes"),
    ({"SERVICE_TLS_VERIFY": "false"}, None),
    # What Consul alone takes.
    ({"SERVICE_ID": "a:1"}, "SERVICE_ID: has no effect"),
    ({"SERVICE_TAGS": "a:1", "REGISTRY_URL": "https://lb"}, "SERVICE_TAGS: has no effect"),
    ({"SERVICE_ID": "a:1", "REGISTRY_URL": "consul-tls://lb"}, None),
    ({"SERVICE_TAGS": "a:1", "REGISTRY_URL": "consul://lb"}, None),
    # A comment in a value.
    ({"SERVICE_METADATA": "team=osint # who"}, "SERVICE_METADATA: .*#"),
    ({"SERVICE_METADATA": "team=osint #who"}, "SERVICE_METADATA: .*#"),
    ({"SERVICE_METADATA": "team=osint#1"}, None),
    ({"HEARTBEAT_FILE": "/tmp/heartbeat # where"}, "HEARTBEAT_FILE: .*#"),
    ({"REGISTRY_TOKEN": "s3cret#1"}, None),
]


def doubts(**variables: str) -> list[str]:
    """Return the doubts about these variables."""
    return agent.doubts_about(read(**variables), variables)


def test_a_doubtful_setting_is_warned_of() -> None:
    for variables, doubt in DOUBTS:
        lines = doubts(**variables)
        assert len(lines) == (doubt is not None), (variables, lines)
        assert all(re.match(str(doubt), line) for line in lines), (lines, doubt)


SLIPS = {
    "REGISTRY_TOKEN_FILES": "REGISTRY_TOKEN_FILE", "REGISTRY_TOKN": "REGISTRY_TOKEN",
    "REGISTRY_TOKENFILE": "REGISTRY_TOKEN_FILE", "REGISTRY_ULR": "REGISTRY_URL",
    "SERVICE_HEALTH_TIMOUT": "SERVICE_HEALTH_TIMEOUT", "SERVICE_TAG": "SERVICE_TAGS",
    "SERVICE_HEALTH_ENDPOINTS": "SERVICE_HEALTH_ENDPOINT", "SERVICE_PROT": "SERVICE_PORT",
    "HEARTBEAT_INTERVAL_SECONDS": "HEARTBEAT_INTERVAL", "LOG_LEVLE": "LOG_LEVEL",
    "DEREGISTER_ON_EXIST": "DEREGISTER_ON_EXIT", "INITIAL_WAIT_TIMEOUT_S": "INITIAL_WAIT_TIMEOUT",
}  # fmt: skip
# What Kubernetes and Docker links set for services called registry, service, registry-url; and
# what has nothing to do with the sidecar.
NO_SLIPS = """
REGISTRY_SERVICE_HOST REGISTRY_SERVICE_PORT REGISTRY_SERVICE_PORT_HTTP REGISTRY_PORT
REGISTRY_PORT_80_TCP REGISTRY_PORT_80_TCP_ADDR REGISTRY_PORT_80_TCP_PORT REGISTRY_PORT_80_TCP_PROTO
SERVICE_SERVICE_HOST SERVICE_SERVICE_PORT SERVICE_PORT_80_TCP
REGISTRY_URL_SERVICE_HOST REGISTRY_URL_PORT_80_TCP_ADDR REGISTRY_NAME
REGISTRY_ENV_REGISTRY_TOKEN REGISTRY_URL_ENV_PATH
PATH HOME HOSTNAME LANG TZ SSL_CERT_DIR GPG_KEY PYTHON_VERSION
LOG_DIR REGISTRY SERVICE REGISTRY_USER SERVICE_VERSION HEARTBEAT
"""


def test_a_variable_that_looks_like_a_setting_is_warned_of_and_no_other() -> None:
    for name, meant in SLIPS.items():
        (line,) = doubts(**{name: "s3cret"})
        assert re.match(rf"{name}: is no setting.*\b{meant}\b", line)
        assert "s3cr" not in line
    done = run_agent({"SERVICE_NAMES": "osint", "SERVICE_HOST": "vertice-osint"})
    assert "SERVICE_NAME is not set" in done.stdout
    assert "SERVICE_NAMES: is no setting of the sidecar; SERVICE_NAME is one" in done.stdout
    for name in (*NO_SLIPS.split(), *SETTINGS):
        assert agent.doubts_about(read(), {name: "tcp://10.96.0.7:80"}) == [], name


# ---- any settings at all

# What an environment can hold: any text but NUL, and bytes that are no UTF-8 (as surrogates).
# Beside that, pieces of sound values, so that the parts behind the first check are reached.
anything = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.sampled_from("\udc80\udcff")
)
words = "http:// https:// ann:s3cret@ lb ::1 [::1] 1 0 e v1.x ß \udcff"
pieces = st.sampled_from([*words.split(), *"[]:/.,=@?#%-_&; \t\n\\'\""])
values = anything | st.lists(pieces, max_size=8).map("".join)


def settle(variables: Mapping[str, str]) -> Settings | None:
    """Read the settings; check that each problem is one line that names a variable."""
    try:
        return read_settings(variables)
    except SettingsError as error:
        problems = [agent.say_problem(*problem) for problem in error.args]
    assert problems
    for problem in problems:
        assert problem.isprintable()
        assert re.match(f"({'|'.join(SETTINGS)})(=| is not set: )", problem)
        assert len(problem) < 1000
        of_url = problem.startswith(("REGISTRY_URL", "SERVICE_HEALTH_ENDPOINT"))
        assert not (of_url and "s3cret" in problem)
    return None


@given(st.dictionaries(st.sampled_from([*SETTINGS]), values))
def test_any_environment_gives_settings_or_problems_a_line_each(variables: dict[str, str]) -> None:
    settle(variables)


@how(max_examples=400)
@given(st.sampled_from([*SETTINGS]), values)
@example("REGISTRY_URL", "http://[v1.x]")
@example("REGISTRY_URL", "http://x[::1]")
@example("SERVICE_HOST", "\udcff:")
def test_any_value_is_refused_or_works(name: str, value: str) -> None:
    settings = settle(NEEDED | {name: value})
    if settings:
        assert agent.say_settings(settings).isprintable()
        assert all(line.isprintable() for line in agent.doubts_about(settings, {}))
        for url in (settings.registry_url + "/register", settings.health_url):
            headers = (("X-Registry-Token", agent.choose_token(settings).now()),)
            agent.prepare("POST", url, headers, b"{}")  # requests takes them
