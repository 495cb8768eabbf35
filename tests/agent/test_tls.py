"""A service that speaks https, and health that is found elsewhere.

At another port or host, or behind headers.
"""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.server import Answer, Request
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, odd_lines

SECRET = "5f1e0c9ab7d2e386"


class Secure(NamedTuple):
    """An https service on loopback, and the file of the authority that signed its certificate."""

    service: ToyService
    ca_file: str


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Secure]:
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    with ToyService(tls=tls) as service:
        yield Secure(service, ca_file)


# ---- https


def test_an_https_service_is_verified_by_its_own_authority_and_registered_as_https(
    registry: Registry, secure: Secure
) -> None:
    settings = {"SERVICE_SCHEME": "https", "SERVICE_CA_FILE": secure.ca_file}
    with Sidecar(registry, secure.service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        record = registry.record(NAME)
        assert record is not None
        assert (
            record["endpoint"] == secure.service.url == f"https://127.0.0.1:{secure.service.port}"
        )
        assert record["metadata"] == {"version": "1.0.0", "status": "healthy"}
        assert sidecar.stop()[0] == 0
        assert not sidecar.count(" WARNING ")


@pytest.mark.parametrize(
    ("host", "trusted", "why"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("10.9.8.7", True, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
def test_an_https_service_that_cannot_be_verified_is_not_healthy(
    registry: Registry, tmp_path: Path, host: str, trusted: bool, why: str
) -> None:
    tls, ca_file = certificate(tmp_path, host)
    settings = {"SERVICE_SCHEME": "https"} | ({"SERVICE_CA_FILE": ca_file} if trusted else {})
    with ToyService(tls=tls) as service, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for(
            f"Waiting for the service at https://.*: certificate refused: {re.escape(why)}"
        )
        sidecar.wait_health("^waiting for the service for .*: certificate refused: ")
        assert sidecar.stop()[0] == 0
        assert service.count() == registry.count() == 0


def test_without_verification_it_registers_and_warns_once(
    registry: Registry, secure: Secure
) -> None:
    settings = {"SERVICE_SCHEME": "https", "SERVICE_TLS_VERIFY": "false", "HEARTBEAT_INTERVAL": 0.5}
    with Sidecar(registry, secure.service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert sidecar.stop()[0] == 0
        assert (
            sidecar.count(" WARNING ") == sidecar.count(" WARNING SERVICE_TLS_VERIFY=false: ") == 1
        )
        assert odd_lines(sidecar.lines) == []  # no library's warning among them


def test_a_tcp_check_of_an_https_service_is_a_plain_connection(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, SERVICE_SCHEME="https", SERVICE_HEALTH_CHECK="tcp") as sidecar:
        sidecar.wait_registered()
        record = registry.record(NAME)
        assert record is not None
        assert record["endpoint"] == f"https://127.0.0.1:{service.port}"
        assert service.count() == 0


def test_a_service_that_has_answered_http_is_not_taken_for_a_tls_port(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_registered()
        service.play("health", "reset", times=FOREVER)
        sidecar.wait_for("Service is DOWN")
        assert not sidecar.count("looks like a TLS port")


# ---- health elsewhere


def test_health_at_another_port_is_probed_there_and_shown_in_the_record(
    registry: Registry, service: ToyService
) -> None:
    with ToyService(version="7", health_path="/manage/health?full=1") as management:
        url = f"{management.url}/manage/health?full=1"
        with Sidecar(registry, service, SERVICE_HEALTH_ENDPOINT=url) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            record = registry.record(NAME)
            assert record is not None
            assert (record["endpoint"], record["health_endpoint"]) == (service.url, url)
            assert record["metadata"] == {"version": "7", "status": "healthy"}
            assert service.count() == 0
            management.stop()
            sidecar.wait_for("Service is DOWN: connection refused")


def test_health_behind_tls_beside_a_plain_service(
    registry: Registry, service: ToyService, secure: Secure
) -> None:
    settings = {
        "SERVICE_HEALTH_ENDPOINT": f"{secure.service.url}/health",
        "SERVICE_CA_FILE": secure.ca_file,
    }
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()
        record = registry.record(NAME)
        assert record is not None
        assert (record["endpoint"], record["health_endpoint"]) == (
            service.url,
            f"{secure.service.url}/health",
        )
        assert not sidecar.count(" WARNING ")


def test_credentials_of_a_health_url_are_sent_to_the_service_alone(registry: Registry) -> None:
    with Guarded("Authorization", basic(f"ann:{SECRET}")) as service:
        url = service.url.replace("//", f"//ann:{SECRET}@") + "/health"
        with Sidecar(registry, service, SERVICE_HEALTH_ENDPOINT=url) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            record = registry.record(NAME)
            assert record is not None
            assert record["health_endpoint"] == f"{service.url}/health"
            service.wanted = "another"
            sidecar.wait_for(r"Service is DOWN: 401: .*\*\*\*")
            shown = sidecar.log + sidecar.health()[1]
        assert f"SERVICE_HEALTH_ENDPOINT=http://***@127.0.0.1:{service.port}/health " in sidecar.log
        assert leaks(shown) == []
        assert not any(SECRET.encode() in request.body for request in registry.requests)


# ---- headers


class Guarded(ToyService):
    """A service whose health wants a header.

    It refuses with what came instead, and with the password in it.
    """

    def __init__(self, name: str, wanted: str) -> None:
        super().__init__()
        self.name, self.wanted = name, wanted

    def answer(self, request: Request) -> Answer:
        given = request.headers.get_all(self.name) or []
        if given == [self.wanted]:
            return super().answer(request)
        clear = [base64.b64decode(word[6:]).decode() for word in given if word.startswith("Basic ")]
        return Answer(401, {"detail": f"no access for {given} {clear}"})


def basic(credentials: str) -> str:
    return "Basic " + base64.b64encode(credentials.encode()).decode()


def leaks(text: str) -> list[str]:
    """Return the lines that show a part of the secret, or of what is sent for it."""
    sent = (SECRET, basic(f"ann:{SECRET}")[6:])
    parts = [secret[at : at + 6] for secret in sent for at in range(4, len(secret) - 5)]
    return [line for line in text.splitlines() if any(part in line for part in parts)]


def test_a_service_that_wants_its_own_host_header(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "headers"
    file.write_bytes(
        b"\xef\xbb\xbfHost: osint.example.org\r\n\r\nX-Trace:\r\n"
    )  # as an editor of Windows has it
    with (
        Guarded("Host", "osint.example.org") as service,
        Sidecar(registry, service, SERVICE_HEALTH_HEADERS_FILE=file) as sidecar,
    ):
        sidecar.wait_registered()
        assert sidecar.stop()[0] == 0
        assert {request.headers["X-Trace"] for request in service.requests} == {""}
        assert not any("osint.example.org" in str(request.headers) for request in registry.requests)


def test_headers_are_read_again_when_their_file_has_changed_and_show_in_no_log(
    registry: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text(f"Authorization: {basic('ann:old')}\n")
    settings = {
        "SERVICE_HEALTH_HEADERS_FILE": str(file),
        "HEARTBEAT_INTERVAL": 0.5,
        "LOG_LEVEL": "DEBUG",
    }
    with (
        Guarded("Authorization", basic(f"ann:{SECRET}")) as service,
        Sidecar(registry, service, **settings) as sidecar,
    ):
        sidecar.wait_for("Waiting for the service at .*: 401: ")
        file.write_text(f"Authorization: {basic(f'ann:{SECRET}')}\n")
        sidecar.wait_for("Heartbeat accepted")
        service.wanted = "another"
        sidecar.wait_for(r"Service is DOWN: 401: .*\*\*\*")
        shown = sidecar.log + sidecar.health()[1]
        new = tmp_path / "new"
        new.write_text("Authorization: another\n")
        new.replace(file)
        sidecar.wait_for("Service is READY again")
        assert sidecar.stop()[0] == 0
        assert leaks(shown + sidecar.log) == []


def test_headers_that_can_be_read_no_more_stay_as_they_were_and_that_is_told_once_for_each_reason(
    registry: Registry, tmp_path: Path
) -> None:
    file = tmp_path / "headers"
    file.write_text("X-Key: yes\n")
    settings = {"SERVICE_HEALTH_HEADERS_FILE": str(file), "HEARTBEAT_INTERVAL": 0.2}
    with Guarded("X-Key", "yes") as service, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        told = "SERVICE_HEALTH_HEADERS_FILE cannot be read, what it held stays in force: "
        file.unlink()
        sidecar.wait_for(f"{told}.*[Nn]o such file")
        sidecar.wait_for("Heartbeat accepted", sidecar.count("Heartbeat accepted") + 3)
        file.write_text("no header\n")
        sidecar.wait_for(f"{told}line 1 must be")
        sidecar.wait_for("Heartbeat accepted", sidecar.count("Heartbeat accepted") + 3)
        assert sidecar.count(told) == 2
        assert not sidecar.count("Health probe")
