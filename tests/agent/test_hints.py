"""What is made of what a peer sends: a hint says no more than the bytes prove."""

import gzip
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import LOST, REFUSED, TOKEN_VARIABLES
from kit.certificates import certificate
from kit.parts import advice_of, client, fit, problem_of
from kit.peers.faults import factory
from kit.peers.registry import Registry
from kit.peers.server import CONNECT, Exchange
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME

HINTS = {
    "tcp": "set SERVICE_HEALTH_CHECK to tcp",
    "https": "set SERVICE_SCHEME to https|begin REGISTRY_URL with https://",
    "http": r"set SERVICE_SCHEME to http\b|begin REGISTRY_URL with http://",
    "port": "looks like a TLS port",
    "authority": "certificate refused: .*set (SERVICE|REGISTRY)_CA_FILE",
    "client": "client certificate",
    "place": "set REGISTRY_URL to where the registry is",
    "endpoint": "set SERVICE_HEALTH_ENDPOINT to its health check",
    "headers": "set SERVICE_HEALTH_HEADERS_FILE",
    "GET": "takes no GET",
    "Accept": "wants an Accept header",
    "token": "set REGISTRY_TOKEN or REGISTRY_TOKEN_FILE",
}


def hints(line: str) -> str:
    """Return the hints in a line, and the variables that it names beside them."""
    rest = re.sub("|".join(HINTS.values()), "", line)
    found = {name for name, pattern in HINTS.items() if re.search(pattern, line)}
    return " ".join(sorted(found | set(re.findall("(?:SERVICE|REGISTRY)_[A-Z_]+", rest))))


@factory
def greets(exchange: Exchange, at_once: bytes, asked: bytes = b"") -> None:
    """Send the first at once, the other when something was asked, then FIN."""
    exchange.close_connection = True
    exchange.connection.settimeout(5)
    exchange.raw(at_once)
    exchange.connection.recv(65536)
    exchange.raw(asked)


HTTP2 = b"\0\0\x06\4\0\0\0\0\0\0\5\0\0\x40\0" + b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\1"
NGINX = "<html>The plain HTTP request was sent to HTTPS port</html>"
UNVERIFIED = "<html><h1>400 Bad Request</h1>No required SSL certificate was sent</html>"
HTTPS = "Client sent an HTTP request to an HTTPS server.\n"
# What is played when, and the hints for a service and for a registry.
Row = tuple[str, object, str, str]
IN_CLEAR: dict[str, Row] = {
    "ssh": (CONNECT, greets(b"SSH-2.0-OpenSSH_9.9\r\n", b"Invalid SSH.\r\n"), "tcp", "place"),
    "smtp": (CONNECT, greets(b"220 mail.test ESMTP\r\n", b"502 5.5.2 Error\r\n"), "tcp", "place"),
    "redis": (CONNECT, greets(b"", b"-ERR wrong number of arguments\r\n"), "tcp", "place"),
    "postgres": (CONNECT, greets(b"", b"E\0\0\0\x89SFATAL\0VFATAL\0C0A000\0\0"), "tcp", "place"),
    "gRPC": (CONNECT, greets(HTTP2), "tcp", "place"),
    "gRPC, late": (CONNECT, greets(b"", HTTP2), "tcp", "place"),
    "close": ("*", "close", "https tcp", "https place"),
    "reset": ("*", "reset", "https tcp", "https place"),
    "close at once": (CONNECT, "close", "https tcp", "https place"),  # before the body is sent
    "reset at once": (CONNECT, "reset", "https tcp", "https place"),
    "TLS alert": ("*", "tls_alert", "https port", "https port"),
    "nginx with TLS": ("*", ["status", 400, NGINX], "https port", "https port"),
    "Go with TLS": ("*", ["status", 400, HTTPS], "https port", "https port"),
    "400": ("*", ["status", 400, "no"], "", ""),
    "500": ("*", ["status", 500, "HTTPS is down"], "", ""),
    "hang": ("*", "hang", "", ""),
    "307": ("*", "status_307", "endpoint", "place"),
    "401": ("*", "status_401", "headers", "token"),
    "403": ("*", "status_403", "headers", "token"),
    "404": ("*", "status_404", "endpoint", "place"),
    "405": ("*", ["status", 405, ""], "GET endpoint tcp", "place"),
    "406": ("*", ["status", 406, ""], "Accept headers", "place"),
}


@pytest.mark.parametrize("name", IN_CLEAR)
def test_a_hint_in_plain_http(service: ToyService, registry: Registry, name: str) -> None:
    operation, fault, *expected = IN_CLEAR[name]
    for peer in (service, registry):
        peer.play(operation, fault, times=FOREVER)
    timeout = 0.5 if name == "hang" else 5
    problem = problem_of(service, SERVICE_HEALTH_TIMEOUT=timeout)
    advice = advice_of(registry, REGISTRY_TIMEOUT=timeout)
    assert [hints(problem), hints(advice)] == expected, (problem, advice)


# ---- https

Secure = tuple[ToyService, Registry, str]
CLIENT = """
    tls_alert_certificate_required tls_alert_bad_certificate tls_alert_unknown_ca
    tls_alert_certificate_unknown tls_wants_certificate tls_wants_certificate_12
"""
OTHERS = """
    tls_close tls_reset tls_resets_later tls_garbage tls_no_answer tls_cut_record
    tls_alert_protocol_version tls_alert_internal_error tls_alert_unrecognized_name
    tls_hello_requests tls_warnings
"""  # nobody is to send a token in clear because of garbage
IN_TLS: dict[str, Row] = {
    **{name: (CONNECT, name, "client", "client") for name in CLIENT.split()},
    **{name: (CONNECT, name, "", "") for name in OTHERS.split()},
    "tls_zeros": (CONNECT, "tls_zeros", "http", "http"),
    "nginx, by a page": ("*", ["status", 400, UNVERIFIED], "client", "client"),
    "nginx behind TLS": ("*", ["status", 400, NGINX], "", ""),
}


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    tls, ca_file = certificate(tmp_path_factory.mktemp("tls"), "127.0.0.1")
    with ToyService(tls=tls) as service, Registry(tls=tls) as registry:
        yield service, registry, ca_file


@pytest.mark.parametrize("name", IN_TLS)
def test_a_hint_in_https(secure: Secure, name: str) -> None:
    operation, fault, *expected = IN_TLS[name]
    ca_file = secure[2]
    for peer in secure[:2]:
        peer.sane()
        peer.play(operation, fault, times=FOREVER)
    problem = problem_of(secure[0], SERVICE_SCHEME="https", SERVICE_CA_FILE=ca_file)
    advice = advice_of(secure[1], REGISTRY_CA_FILE=ca_file)
    assert [hints(problem), hints(advice)] == expected, (problem, advice)


def test_an_authority_that_is_not_known_and_a_port_without_tls(
    secure: Secure, service: ToyService, registry: Registry
) -> None:
    for peer in secure[:2]:
        peer.sane()
    assert hints(problem_of(secure[0], SERVICE_SCHEME="https")) == "authority"
    assert hints(advice_of(secure[1])) == "authority"
    assert hints(problem_of(service, SERVICE_SCHEME="https")) == "http"
    url = registry.url.replace("http:", "https:")
    assert hints(advice_of(registry, REGISTRY_URL=url)) == "http"


# ---- who is refused, and why


def test_a_401_names_what_was_refused(registry: Registry) -> None:
    """A balancer that asks for a password knows nothing of the registry's token."""
    basic = {"WWW-Authenticate": 'Basic realm="registry"'}
    for wants, user, token in itertools.product(({}, basic), ("", "ann:wrong@"), ("", "tok-1234")):
        registry.play("register", ["status", 401, "", wants])
        url = registry.url.replace("//", f"//{user}")
        line = advice_of(registry, REGISTRY_URL=url, REGISTRY_TOKEN=token)
        assert ("REGISTRY_URL" in line) == bool(user or wants)
        assert ("REGISTRY_TOKEN" in line) == (not (user or wants))
        assert "wrong" not in line


@pytest.mark.parametrize("dialect", ["documented", "deployed"])
@pytest.mark.parametrize("variable", [*TOKEN_VARIABLES, "REGISTRY_TOKEN_FILE", ""])
def test_a_refused_token_is_explained_with_the_variable_to_set(
    tmp_path: Path, registry: Registry, variable: str, dialect: str
) -> None:
    registry.token, registry.dialect = "another", dialect
    said, fix = "refuses the token", f"set {variable} to the registry's token"
    token: object = "s3cr3t-t0ken"
    if variable == "REGISTRY_TOKEN_FILE":
        token = tmp_path / "token"
        token.write_text("s3cr3t-t0ken")
        fix = f"put the registry's token into the file that {variable} names"
    elif not variable:
        said, fix = "asks for a token, and none is set", "set REGISTRY_TOKEN or REGISTRY_TOKEN_FILE"
    asked = client(registry, **{variable or "REGISTRY_TOKEN": token if variable else ""})
    for answer in (asked.register({}, 5), asked.heartbeat(5), asked.deregister(5)):
        assert answer.meaning == REFUSED
        assert re.search(rf"{said} \(.*Invalid registry token\): {fix}$", fit(answer.advice))


LOST_IT = f"Heartbeat failed: Service '{NAME}' not registered"
BAD_TOKEN = "Heartbeat failed: 401: Invalid registry token"


@pytest.mark.parametrize(
    ("token", "user", "detail", "meaning"),
    [
        ("e", "", LOST_IT, LOST),
        ("registered", "", LOST_IT, LOST),
        ("", "ann:registered@", LOST_IT, LOST),
        ("e", "", BAD_TOKEN, REFUSED),
        ("401", "", BAD_TOKEN, REFUSED),
        ("", "", f"Service '{'x' * 200}' failed: not registered", LOST),
        ("", "", f"Service '{'x' * 200}' failed: 401: Invalid registry token", REFUSED),
    ],
)
def test_what_an_answer_means_is_read_before_anything_is_blotted_out_of_it_or_cut(
    registry: Registry, token: str, user: str, detail: str, meaning: str
) -> None:
    registry.play("heartbeat", ["status", 500, {"detail": detail}])
    url = registry.url.replace("//", f"//{user}")
    answer = client(registry, REGISTRY_URL=url, REGISTRY_TOKEN=token).heartbeat(5)
    assert answer.meaning == meaning
    told = answer.say().lower()
    assert told in answer.advice.lower()
    assert not token or token not in told
    assert not user or "registered" not in told


# ---- what a peer says

UNKNOWN = json.dumps({"detail": LOST_IT}).encode()
PACKED = {
    "gzip": gzip.compress(UNKNOWN),
    "deflate": zlib.compress(UNKNOWN),
    "br": b"\x8b\x05\x80packed\x03",
}


@pytest.mark.parametrize("coding", PACKED)
def test_a_compressed_error_is_called_so(registry: Registry, coding: str) -> None:
    registry.play("register", ["status", 500, PACKED[coding], {"Content-Encoding": coding}])
    said = f"registry at {registry.url} answered 500, compressed ({coding}) though nobody asked"
    assert advice_of(registry).startswith(said)


def test_what_only_seems_compressed_is_read(registry: Registry) -> None:
    lost: list[object] = ["status", 500, {"detail": LOST_IT}, {"Content-Encoding": "utf-8"}]
    registry.play("heartbeat", lost)
    assert client(registry).heartbeat(5).meaning == LOST
