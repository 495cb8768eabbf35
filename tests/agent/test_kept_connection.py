"""The registry's connection.

Kept, opened again at no price, and what comes between is no answer.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.peers.faults import Fault
from kit.peers.registry import Registry
from kit.peers.server import CONNECT, Exchange
from kit.peers.service import ToyService
from kit.peers.tls import Session
from kit.sidecar import FOREVER, Sidecar

TLS = pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])


@pytest.fixture
def tls(tmp_path: Path) -> tuple[str, str]:
    return certificate(tmp_path, "127.0.0.1")[0]


@pytest.fixture
def registry(tls: tuple[str, str], secure: bool) -> Iterator[Registry]:
    with Registry(tls=tls if secure else None) as registry:
        yield registry


def settings(tls: tuple[str, str], secure: bool) -> dict[str, object]:
    """Return the settings for a registry of that kind, which never is looked at between."""
    ca_file = str(Path(tls[0]).with_name("127.0.0.1-ca.pem"))
    return {"HEARTBEAT_INTERVAL": 2} | ({"REGISTRY_CA_FILE": ca_file} if secure else {})


@TLS
def test_one_connection_serves_many_heartbeats(
    service: ToyService, registry: Registry, tls: tuple[str, str], secure: bool
) -> None:
    with Sidecar(registry, service, **settings(tls, secure)) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        late = sidecar.count(" WARNING ")  # on a loaded machine
        assert registry.connections <= 1 + late


@TLS
@pytest.mark.parametrize("farewell", [True, False], ids=["close_notify", "bare-FIN"])
def test_one_that_is_closed_while_idle_costs_nothing(
    service: ToyService, registry: Registry, tls: tuple[str, str], secure: bool, farewell: bool
) -> None:
    registry.farewell, registry.idle_timeout = farewell, 0.3
    with Sidecar(registry, service, **settings(tls, secure)) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert sidecar.stop()[0] == 0
        assert not sidecar.count(" WARNING | ERROR ")
    assert registry.connections >= 3


UNASKED = {
    "408": b"HTTP/1.1 408 Request Time-out\r\nContent-Length: 0\r\n\r\n",
    "404": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
    "no-http": b"good-bye\r\n",
}


@TLS
@pytest.mark.parametrize("text", UNASKED.values(), ids=UNASKED)
def test_what_comes_while_it_is_idle_is_no_answer(
    service: ToyService, registry: Registry, tls: tuple[str, str], secure: bool, text: bytes
) -> None:
    """As from a balancer that says why it will close, or from one that mixes its answers up."""

    def play(exchange: Exchange) -> None:
        exchange.sane()
        exchange.raw(text)

    with Sidecar(registry, service, **settings(tls, secure)) as sidecar:
        sidecar.wait_registered()
        registry.play("heartbeat", play, times=FOREVER)
        # The last one before a look at the list, which follows at once, is left out.
        sidecar.wait_for("Heartbeat accepted", times=3)
        failed = sidecar.count("Heartbeat failed|Service not found")
    assert failed == 0


def answers_twice() -> Fault:
    """Return a fault: each request is answered twice, by two records that are sent as one."""

    def play(exchange: Exchange) -> None:
        session = Session(exchange)
        session.shake()
        while True:
            session.hear_request()
            good = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}"
            session.say(good, UNASKED["404"])

    return play


@pytest.mark.parametrize("secure", [True], ids=["tls"])
def test_what_came_together_with_an_answer_is_none_either(
    service: ToyService, registry: Registry, tls: tuple[str, str], secure: bool
) -> None:
    """OpenSSL has it already, so no look at the socket shows it."""
    registry.play(CONNECT, answers_twice(), times=FOREVER)
    with Sidecar(registry, service, **settings(tls, secure)) as sidecar:
        sidecar.wait_for("Heartbeat", times=3)
        failed = sidecar.count("failed|Service not found")
    assert failed == 0
