"""The service as the agent's probe sees it: https, health elsewhere, headers, connections."""

import base64
import queue
import socket
import warnings
from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.parts import client, prober
from kit.peers.registry import Registry
from kit.peers.server import Exchange
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME

SECRET = "5f1e0c9ab7d2e386"

# ---- https


UNKNOWN = "certificate refused: unable to get local issuer certificate"
OTHER = "certificate refused: IP address mismatch, certificate is not valid for '127.0.0.1'"


@pytest.mark.parametrize(
    ("host", "settings", "problem"),
    [
        ("127.0.0.1", {"SERVICE_CA_FILE": "CA"}, ""),
        ("10.9.8.7", {"SERVICE_TLS_VERIFY": "false"}, ""),
        ("127.0.0.1", {}, UNKNOWN),
        ("10.9.8.7", {"SERVICE_CA_FILE": "CA"}, OTHER),
    ],
)
def test_an_https_service_is_verified_unless_that_is_switched_off(
    tmp_path: Path, host: str, settings: dict[str, str], problem: str
) -> None:
    tls, ca_file = certificate(tmp_path, host)
    settings = {name: value.replace("CA", ca_file) for name, value in settings.items()}
    with ToyService(tls=tls) as service, warnings.catch_warnings():
        warnings.simplefilter("error")
        elsewhere = {"SERVICE_HEALTH_ENDPOINT": service.url + "/health"}
        for place in ({"SERVICE_SCHEME": "https"}, elsewhere):
            probes = prober(service, **settings, **place)
            assert probes.probe() == (not problem)
            assert probes.problem.startswith(problem)
        assert service.count() == (0 if problem else 2)


def test_a_tcp_check_of_an_https_service_is_a_plain_connection(service: ToyService) -> None:
    assert prober(service, SERVICE_SCHEME="https", SERVICE_HEALTH_CHECK="tcp").probe()
    assert service.count() == 0


def test_a_service_that_has_answered_http_is_not_taken_for_a_tls_port(service: ToyService) -> None:
    probes = prober(service)
    assert probes.probe()
    service.play("health", "reset", times=FOREVER)
    assert [probes.probe() for _ in range(3)] == [False] * 3
    assert "TLS" not in probes.problem


def test_the_record_shows_where_the_service_and_its_health_are(registry: Registry) -> None:
    health = "https://127.0.0.1:9/manage/health?full=1"
    secret = health.replace("//", f"//ann:{SECRET}@")
    for settings, places in (
        ({"SERVICE_SCHEME": "https"}, ("https://127.0.0.1:4", "/health")),
        ({"SERVICE_HEALTH_ENDPOINT": secret}, ("http://127.0.0.1:4", health)),
    ):
        client(registry, SERVICE_PORT=4, **settings).register({}, 5)
        record = registry.record(NAME) or {}
        assert (record["endpoint"], record["health_endpoint"]) == places


def test_health_at_another_port_is_probed_there(service: ToyService) -> None:
    with ToyService(version="7", health_path="/manage/health?full=1") as management:
        url = f"{management.url}/manage/health?full=1"
        probes = prober(service, SERVICE_HEALTH_ENDPOINT=url)
        assert probes.probe()
        assert probes.metadata == {"version": "7", "status": "healthy"}
        assert service.count() == 0
        management.stop()
        assert not probes.probe()
        assert probes.problem == "connection refused"


# ---- headers


def test_headers_are_read_again_when_their_file_has_changed_and_are_secrets(
    tmp_path: Path, service: ToyService, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it can be read no more they stay as they were, and each reason is told once."""
    file, new = tmp_path / "headers", tmp_path / "new"
    # As an editor of Windows has it.
    file.write_bytes(b"\xef\xbb\xbfHost: osint.example.org\r\n\r\nX-Trace:\r\n")
    probes = prober(service, SERVICE_HEALTH_HEADERS_FILE=file)

    def sent(name: str) -> list[str] | None:
        assert probes.probe()
        return service.requests[-1].headers.get_all(name)

    assert (sent("Host"), sent("X-Trace")) == (["osint.example.org"], [""])
    encoded = base64.b64encode(f"ann:{SECRET}".encode()).decode()
    file.write_text(f"Authorization: Basic {encoded}\n")
    assert (sent("Authorization"), sent("X-Trace")) == ([f"Basic {encoded}"], None)
    service.play("health", ["status", 401, {"detail": f"not {encoded}, not ann {SECRET}."}])
    assert not probes.probe()
    assert probes.problem.startswith("401: not ***, not ann ***.")
    file.unlink()
    assert [sent("Authorization") for _ in range(3)] == 3 * [[f"Basic {encoded}"]]
    file.write_text("no header\n")
    assert [sent("Authorization") for _ in range(3)] == 3 * [[f"Basic {encoded}"]]
    told = "SERVICE_HEALTH_HEADERS_FILE cannot be read, what it held stays in force: "
    assert [line.removeprefix(told)[:12] for line in caplog.messages] == [
        "no such file",
        "line 1 must ",
    ]
    new.write_text("Authorization: another\n")
    new.replace(file)
    assert sent("Authorization") == ["another"]


# ---- connections: a service with one worker has it for others, and nothing holds up its shutdown


@pytest.mark.parametrize("status", [200, 404, 503])
def test_a_probe_closes_its_connection_where_the_service_does_not(
    service: ToyService, status: int
) -> None:
    ends = queue.Queue[bytes]()

    def stay_open(exchange: Exchange) -> None:
        exchange.close_connection = False
        exchange.reply(status, {"version": "1.0.0"}, {"Connection": "keep-alive"})
        exchange.connection.settimeout(5)
        ends.put(exchange.connection.recv(1))  # b"" is its end; a timeout puts nothing there
        exchange.close_connection = True

    service.play("health", stay_open, times=FOREVER)
    probes = prober(service)
    for _ in range(3):
        assert probes.probe() == (status == 200)
        assert ends.get(timeout=5) == b""
    assert service.connections == 3
    assert {request.headers["Connection"] for request in service.requests} == {"close"}


def test_a_tcp_probe_closes_its_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        probes = prober(SERVICE_PORT=port, SERVICE_HEALTH_CHECK="tcp")
        assert probes.probe()
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            assert connection.recv(1) == b""
