"""What the log makes of what a peer sends: a hint says no more than the bytes prove."""

import gzip
import json
import re
import zlib
from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.peers.faults import Fault
from kit.peers.registry import Registry
from kit.peers.server import CONNECT, Exchange
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, odd_lines, unreadable

TCP = "SERVICE_HEALTH_CHECK(=| to )tcp"
LIKE_TLS = "looks like a TLS port"
CLIENT_CERTIFICATE = "client certificate"
NO_TLS = r"SERVICE_SCHEME to http\b|REGISTRY_URL with http://"
HTTP2 = b"\0\0\x06\4\0\0\0\0\0\0\5\0\0\x40\0" + b"\0\0\x08\7\0\0\0\0\0\0\0\0\0\0\0\0\1"


def says(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


def line_of(sidecar: Sidecar, pattern: str) -> str:
    """Run the agent until a line matches, and stop it; return the line."""
    with sidecar:
        line = sidecar.wait_for(pattern)
        assert sidecar.stop()[0] == 0
    assert odd_lines(sidecar.lines) == []
    assert unreadable(sidecar.lines) == []
    return line


def line_of_probe(registry: Registry, service: ToyService, **settings: object) -> str:
    """Return what the log says of a first probe that fails."""
    return line_of(Sidecar(registry, service, **settings), "Waiting for the service at ")


def line_of_registration(registry: Registry, **settings: object) -> str:
    """Return what the log says of a first registration that fails."""
    sidecar = Sidecar(registry, None, SERVICE_HEALTH_CHECK="none", **settings)
    return line_of(sidecar, "Registration failed ")


# ---- a probe by http


def greets(*said: bytes) -> Fault:
    """Return a fault: the first of these at once, the others when something was asked, then FIN."""

    def play(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.connection.settimeout(5)
        exchange.raw(said[0])
        exchange.connection.recv(65536)
        exchange.raw(b"".join(said[1:]))

    return play


SPEAKERS: dict[str, Fault] = {
    "ssh": greets(b"SSH-2.0-OpenSSH_9.9\r\n", b"Invalid SSH identification string.\r\n"),
    "smtp": greets(b"220 mail.test ESMTP\r\n", b"502 5.5.2 Error: command not recognized\r\n"),
    "redis": greets(b"", b"-ERR wrong number of arguments for 'get' command\r\n"),
    "postgres": greets(b"", b"E\0\0\0\x89SFATAL\0VFATAL\0C0A000\0Munsupported protocol\0\0"),
    "gRPC": greets(HTTP2),
    "gRPC-late": greets(b"", HTTP2),
}


@pytest.mark.parametrize("fault", SPEAKERS.values(), ids=SPEAKERS)
def test_what_answers_but_not_in_http_gets_a_tcp_check(registry: Registry, fault: Fault) -> None:
    with ToyService() as service:
        service.play(CONNECT, fault, times=FOREVER)
        line = line_of_probe(registry, service)
    assert says(TCP, line)
    assert not says(f"{LIKE_TLS}|SERVICE_SCHEME", line)


@pytest.mark.parametrize("fault", ["close", "reset"])
@pytest.mark.parametrize("operation", ["health", CONNECT])
def test_a_close_or_a_reset_without_a_byte_may_be_either(
    registry: Registry, fault: str, operation: str
) -> None:
    with ToyService() as service:
        service.play(operation, fault, times=FOREVER)
        line = line_of_probe(registry, service)
    assert says(TCP, line)
    assert says("SERVICE_SCHEME", line)
    assert not says(LIKE_TLS, line)


PROOFS_OF_TLS: dict[str, object] = {
    "alert": "tls_alert",
    "nginx": ["status", 400, "<html>The plain HTTP request was sent to HTTPS port</html>"],
    "Go": ["status", 400, "Client sent an HTTP request to an HTTPS server.\n"],
}


@pytest.mark.parametrize("fault", PROOFS_OF_TLS.values(), ids=PROOFS_OF_TLS)
def test_what_only_a_tls_port_says_is_one(registry: Registry, fault: object) -> None:
    with ToyService() as service:
        service.play("health", fault, times=FOREVER)
        line = line_of_probe(registry, service)
    assert says(LIKE_TLS, line)
    assert not says(TCP, line)


@pytest.mark.parametrize(
    "fault",
    [["status", 400, "no"], ["status", 500, "HTTPS is down"], "hang"],
    ids=str,
)
def test_what_proves_nothing_gets_no_hint(registry: Registry, fault: object) -> None:
    with ToyService() as service:
        service.play("health", fault, times=FOREVER)
        line = line_of_probe(registry, service, SERVICE_HEALTH_TIMEOUT=0.5)
    assert not says(f"{LIKE_TLS}|{TCP}|SERVICE_SCHEME", line)


def test_a_registry_that_speaks_no_http_gets_no_advice_for_a_service() -> None:
    with Registry() as registry:
        registry.play(CONNECT, SPEAKERS["ssh"], times=FOREVER)
        line = line_of_registration(registry)
    assert not says(f"SERVICE_|{LIKE_TLS}", line)


@pytest.mark.parametrize(
    ("code", "meaning"), [(405, "GET|method"), (406, "accept|format|type")], ids=str
)
def test_a_status_that_few_know_is_explained(registry: Registry, code: int, meaning: str) -> None:
    with ToyService() as service:
        service.play("health", ["status", code, ""], times=FOREVER)
        line = line_of_probe(registry, service)
    assert says(rf": {code}\b.*({meaning})", line)


def test_a_registry_that_takes_no_post_is_told_so() -> None:
    with Registry() as registry:
        registry.play("register", ["status", 405, ""], times=FOREVER)
        line = line_of_registration(registry)
    assert says(r"\b405\b.*(POST|method|REGISTRY_URL)", line)


# ---- who is refused, and why


BASIC = {"WWW-Authenticate": 'Basic realm="registry"'}


@pytest.mark.parametrize("token", ["", "tok-0123456789"])
@pytest.mark.parametrize("credentials", ["", "ann:wrong-word@"])
@pytest.mark.parametrize("headers", [{}, BASIC], ids=["bare", "basic"])
def test_a_401_names_what_was_refused(
    token: str, credentials: str, headers: dict[str, str]
) -> None:
    """A balancer that asks for a password knows nothing of the registry's token."""
    with Registry() as registry:
        registry.play("register", ["status", 401, "", headers], times=FOREVER)
        url = registry.url.replace("//", f"//{credentials}")
        line = line_of_registration(registry, REGISTRY_URL=url, REGISTRY_TOKEN=token)
    basic = bool(credentials or headers)
    assert says("REGISTRY_URL", line) == basic
    assert says("REGISTRY_TOKEN", line) == (not basic)
    assert "wrong-word" not in line


UNKNOWN = json.dumps({"detail": f"Heartbeat failed: Service '{NAME}' not registered"}).encode()


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_compressed_error_is_unpacked_or_called_so(
    registry: Registry, service: ToyService, coding: str
) -> None:
    packed = {"gzip": gzip.compress(UNKNOWN), "deflate": zlib.compress(UNKNOWN)}
    body = packed.get(coding, b"\x8b\x05\x80packed\x03")
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        headers = {"Content-Encoding": coding}
        registry.play("heartbeat", lambda exchange: exchange.reply(500, body, headers), times=3)
        line = sidecar.wait_for("Service not found|Heartbeat failed")
        assert sidecar.stop()[0] == 0
    assert says(f"Service not found|compressed|{coding}", line)
    assert not re.search(r"\\x|\ufffd", sidecar.log)
    assert odd_lines(sidecar.lines) == []
    assert unreadable(sidecar.lines) == []


# ---- https


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, str]:
    return certificate(tmp_path, "127.0.0.1")[0]


@pytest.fixture
def ca_file(tls: tuple[str, str]) -> str:
    """The file of the authority that signed the certificate."""
    return str(Path(tls[0]).with_name("127.0.0.1-ca.pem"))


def test_an_authority_that_is_not_known_is_to_be_named(
    registry: Registry, tls: tuple[str, str]
) -> None:
    with ToyService(tls=tls) as service:
        line = line_of_probe(registry, service, SERVICE_SCHEME="https")
    assert says("certificate refused: .*SERVICE_CA_FILE", line)
    with Registry(tls=tls) as secure:
        line = line_of_registration(secure)
    assert says("certificate refused: .*REGISTRY_CA_FILE", line)


def test_https_at_a_plain_port_is_told(registry: Registry, service: ToyService) -> None:
    line = line_of_probe(registry, service, SERVICE_SCHEME="https")
    assert says(NO_TLS, line)
    line = line_of_registration(registry, REGISTRY_URL=registry.url.replace("http:", "https:"))
    assert says(NO_TLS, line)


ABOUT_A_CERTIFICATE = [
    "tls_alert_certificate_required",
    "tls_alert_bad_certificate",
    "tls_alert_unknown_ca",
    "tls_alert_certificate_unknown",
    "tls_wants_certificate",
    "tls_wants_certificate_12",
]


@pytest.mark.parametrize("fault", ABOUT_A_CERTIFICATE)
def test_a_peer_that_wants_a_client_certificate(
    registry: Registry, tls: tuple[str, str], ca_file: str, fault: str
) -> None:
    with ToyService(tls=tls) as service:
        service.play(CONNECT, fault, times=FOREVER)
        settings = {"SERVICE_SCHEME": "https", "SERVICE_CA_FILE": ca_file}
        line = line_of_probe(registry, service, **settings)
    assert says(CLIENT_CERTIFICATE, line)
    with Registry(tls=tls) as secure:
        secure.play(CONNECT, fault, times=FOREVER)
        line = line_of_registration(secure, REGISTRY_CA_FILE=ca_file)
    assert says(CLIENT_CERTIFICATE, line)


def test_a_server_that_wants_it_in_http_is_understood_as_well(
    registry: Registry, tls: tuple[str, str], ca_file: str
) -> None:
    """As nginx says it, after a handshake without one."""
    page = "<html><h1>400 Bad Request</h1>No required SSL certificate was sent</html>"
    with ToyService(tls=tls) as service:
        service.play("health", ["status", 400, page], times=FOREVER)
        settings = {"SERVICE_SCHEME": "https", "SERVICE_CA_FILE": ca_file}
        line = line_of_probe(registry, service, **settings)
    assert says(CLIENT_CERTIFICATE, line)


OTHER_ENDS = [
    "tls_close",
    "tls_reset",
    "tls_resets_later",
    "tls_garbage",
    "tls_no_answer",
    "tls_cut_record",
    "tls_alert_protocol_version",
    "tls_alert_internal_error",
    "tls_alert_unrecognized_name",
    "tls_hello_requests",
    "tls_warnings",
    "tls_zeros",
]


@pytest.mark.parametrize("fault", OTHER_ENDS)
def test_what_ends_otherwise_inside_tls_is_put_in_words(
    registry: Registry, tls: tuple[str, str], ca_file: str, fault: str
) -> None:
    with ToyService(tls=tls) as service:
        service.play(CONNECT, fault, times=FOREVER)
        settings = {"SERVICE_SCHEME": "https", "SERVICE_CA_FILE": ca_file}
        line = line_of_probe(registry, service, **settings)
    assert not says(f"{CLIENT_CERTIFICATE}|{LIKE_TLS}|SERVICE_SCHEME to https", line)
    if fault == "tls_garbage":
        assert not says(NO_TLS, line)
    with Registry(tls=tls) as secure:
        secure.play(CONNECT, fault, times=FOREVER)
        line = line_of_registration(secure, REGISTRY_CA_FILE=ca_file)
    assert not says(f"{CLIENT_CERTIFICATE}|SERVICE_", line)
    if fault == "tls_garbage":  # nobody is to send a token in clear because of it
        assert not says(NO_TLS, line)
