"""Names, addresses and connections: what the agent's own parts make of real servers.

Only the name service is made up; and the clock, where an hour has to pass.
"""

import _thread
import collections
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import agent
from kit.certificates import certificate
from kit.parts import client, prober
from kit.peers.dead import dead_port
from kit.peers.faults import raw
from kit.peers.server import CONNECT, Exchange, Peer
from kit.peers.tls import Session
from kit.sidecar import FOREVER, wait_until

HOST = "peer.test"
HERE, THERE, DEAD, DEAD_TOO = (f"127.0.0.{number}" for number in (11, 12, 13, 14))
SLACK = 1.0  # seconds that a loaded machine may add
WAYS = pytest.mark.parametrize("way", ["registry", "http", "tcp"])
resolve = socket.getaddrinfo


class Names:
    """The name service: HOST has these addresses, or looking it up ends with this exception."""

    def __init__(self) -> None:
        self.found: Sequence[str] | Exception = ["127.0.0.1"]
        self.asked: list[str] = []  # for which family
        self.answers = threading.Event()  # with what was true when it was asked
        self.answers.set()

    def look_up(self, host: Any, port: Any, family: int, kind: int, *numeric: int) -> list[Any]:
        """Do what socket.getaddrinfo does."""
        if host != HOST or numeric:
            return resolve(host, port, family, kind, *numeric)
        self.asked.append(socket.AddressFamily(family).name)
        found = self.found
        assert self.answers.wait(60)
        if isinstance(found, Exception):
            raise found
        fit = [each for each in found if (":" in each) == (family == socket.AF_INET6)]
        if not fit:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [place for each in fit for place in resolve(each, port, family, kind)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(socket, "getaddrinfo", names.look_up)
    return names


def caller(way: str, port: int, timeout: float) -> Callable[[], str]:
    """Return what asks HOST something, and returns the problem: "" where it answers."""
    if way == "registry":
        registry = client(REGISTRY_URL=f"http://{HOST}:{port}")
        return lambda: registry.deregister(timeout).advice
    place = {"SERVICE_HOST": HOST, "SERVICE_PORT": port, "SERVICE_HEALTH_CHECK": way}
    service = prober(**place, SERVICE_HEALTH_TIMEOUT=timeout)
    return lambda: "" if service.probe() else service.problem


# ---- several addresses: each gets its share of the deadline, IPv6 where no IPv4 address connects


@WAYS
@pytest.mark.parametrize(
    ("addresses", "families"),
    [
        (["127.0.0.1"], "4"),
        (["::1", "127.0.0.1"], "4"),
        ([DEAD, "127.0.0.1"], "4"),
        ([DEAD, DEAD_TOO, "127.0.0.1"], "4"),
        (["::1", THERE, DEAD, "127.0.0.1"], "4"),
        (["::1"], "46"),
        ([THERE, "::1"], "46"),
        ([DEAD, "::1"], "46"),
    ],
)
def test_one_address_that_answers_is_enough(
    names: Names, addresses: list[str], families: str, way: str
) -> None:
    names.found = addresses
    peer = Peer("::1" if families == "46" else "127.0.0.1")
    with peer, dead_port(DEAD, peer.port), dead_port(DEAD_TOO, peer.port):
        assert caller(way, peer.port, timeout=2)() == ""
    assert names.asked == [{"4": "AF_INET", "6": "AF_INET6"}[each] for each in families]


def test_where_all_addresses_are_dead_the_deadline_holds(names: Names) -> None:
    names.found = [DEAD, DEAD_TOO]
    port = Peer(DEAD).port
    with dead_port(DEAD, port), dead_port(DEAD_TOO, port):
        began = time.monotonic()
        assert "no answer within" in caller("registry", port, 1)()
        assert 0.3 < time.monotonic() - began < 1 + SLACK  # IPv6 would have had a share, too


@pytest.mark.parametrize("way", ["registry", "http"])
def test_an_address_that_never_answers_costs_one_exchange(names: Names, way: str) -> None:
    """It takes connections, which looks well until the deadline of the exchange has passed."""
    names.found = [HERE, THERE]
    with Peer(HERE) as first, Peer(THERE, first.port) as second:
        first.pause()
        call = caller(way, first.port, 0.5)
        assert "no answer within 0.5 s" in call()
        assert [call() for _ in range(3)] == ["", "", ""]
        assert first.connections == 1
        first.resume()
        second.pause()  # while the registry's connection is kept
        assert "no answer within 0.5 s" in call()
        assert call() == ""


@pytest.mark.parametrize("way", ["registry", "http"])
def test_an_address_may_fall_silent_while_its_connection_is_kept(names: Names, way: str) -> None:
    names.found = [HERE, THERE]
    with Peer(HERE) as first, Peer(THERE, first.port):
        call = caller(way, first.port, 0.5)
        assert call() == ""
        first.pause()
        assert "no answer within 0.5 s" in call()
        assert call() == ""


class SamePort(agent.PatientSocket):
    """A socket that gets the port it connects to, as an ephemeral one does now and then."""

    def connect_ex(self, place: Any, /) -> int:
        self.bind(place)
        return super().connect_ex(place)


def test_a_connection_that_meets_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = agent.Wire(HERE, Peer(HERE).port, agent.Signals())
    wire.begin(5)
    monkeypatch.setattr(agent, "PatientSocket", SamePort)
    with pytest.raises(ConnectionRefusedError):
        wire.open()


# ---- names that move, and look-ups that fail


def test_a_registry_that_has_moved_is_followed_within_an_hour(names: Names) -> None:
    seconds = 0.0
    signals = agent.Signals(lambda: seconds)
    names.found = [HERE]
    with Peer(HERE) as old, Peer(THERE, old.port) as new:
        registry = client(None, signals, REGISTRY_URL=f"http://{HOST}:{old.port}")
        for beat in range(600):
            if beat == 300:
                names.found = [THERE]
            seconds += 30
            assert registry.heartbeat(10).meaning == agent.ACCEPTED
        # An hour is 120 heartbeats.
        assert (old.count(), new.count()) == (360, 240)
        for peer, connections in ((old, 3), (new, 2)):
            counts = collections.Counter(request.connection for request in peer.requests)
            assert list(counts.values()) == [120] * connections


@WAYS
def test_a_late_answer_of_the_name_service_serves_nobody(names: Names, way: str) -> None:
    """It comes in the pause after a failed attempt. By then the name has moved."""
    names.found = [HERE]
    names.answers.clear()
    with Peer(HERE) as old, Peer(THERE, old.port) as new:
        call = caller(way, old.port, 0.5)
        assert "no answer within 0.5 s" in call()
        assert "no answer within 0.5 s" in call()
        assert names.asked == ["AF_INET"]  # the second one has joined the first
        names.found = [THERE]
        names.answers.set()
        time.sleep(0.5)
        assert call() == ""
        wait_until(lambda: new.connections)
        assert not old.connections


def no_thread(*_: object) -> int:
    raise RuntimeError("can't start new thread")


@WAYS
@pytest.mark.parametrize("error", [UnicodeError("odd"), MemoryError("all gone"), None])
def test_whatever_a_look_up_raises_is_a_failed_exchange(
    names: Names, monkeypatch: pytest.MonkeyPatch, error: Exception | None, way: str
) -> None:
    """None: there is no thread to be had for it."""
    with Peer() as peer:
        call = caller(way, peer.port, 5)
        with monkeypatch.context() as patch:
            if error is None:
                patch.setattr(_thread, "start_new_thread", no_thread)
            names.found = error or names.found
            problem = call()
        assert (str(error) if error else "name look-up failed: no thread for it") in problem
        names.found = ["127.0.0.1"]
        assert call() == ""


# ---- a network that is gone, as in another container's that has restarted


@pytest.mark.parametrize(
    ("before", "after", "ends"),
    [
        (["eth0"], [], True),
        (["eth0", "sit0"], ["tunl0", "sit0"], True),
        (["eth0", "eth1"], ["eth0"], False),
        ([], [], False),
        (["tunl0", "sit0"], ["tunl0", "sit0"], False),
    ],
)
def test_a_network_that_is_gone_for_two_minutes_ends_it(
    monkeypatch: pytest.MonkeyPatch, before: list[str], after: list[str], ends: bool
) -> None:
    now, devices = 0, before
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(["lo", *devices])))
    network = agent.Network(lambda: now)
    in_time = [(600, before), (630, after), (749, after), (750, before), (1000, after)]
    for now, devices in (*in_time, (1119, after)):  # noqa: B007
        network.check()
    now = 1120
    with pytest.raises(SystemExit, match="1") if ends else contextlib.nullcontext():
        network.check()


# ---- answers that look unusual


@pytest.mark.parametrize("way", ["registry", "http"])
def test_long_headers_and_early_hints_are_ordinary(names: Names, way: str) -> None:
    with Peer() as peer:
        peer.play("*", ["interim", 102, 103, 103])
        peer.play("*", lambda exchange: exchange.reply(200, {}, {"X-Long": "x" * 20_000}))
        call = caller(way, peer.port, 5)
        assert [call() for _ in range(4)] == [""] * 4
        assert peer.connections == (1 if way == "registry" else 4)
    assert len(names.asked) == peer.connections


# What ends a body that says nothing of the connection's end.
ENDED = {
    "blank": b"200 OK\r\nTransfer-Encoding: chunked \r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "list": b"200 OK\r\nTransfer-Encoding: identity, Chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "no-body": b"204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n",
    "not-modified": b"304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n",
}


@pytest.mark.parametrize("sent", ENDED.values(), ids=ENDED)
def test_a_body_ends_where_its_framing_says_so(sent: bytes) -> None:
    """RFC 9112, section 6.3. The connection stays open."""

    def play(exchange: Exchange) -> None:
        exchange.connection.sendall(b"HTTP/1.1 " + sent)
        read.wait(30)

    read = threading.Event()
    with Peer() as peer:
        peer.play("*", play)
        asked = agent.Peer(peer.url, agent.Signals(), True, None)
        answer = asked.exchange("GET", "/", {}, b"", 5.0)
        read.set()
    assert (answer.status, answer.body) == (int(sent[:3]), b"{}" if sent[:3] == b"200" else b"")
    assert answer.failure is None


class Slow(agent.PatientSocket):
    """A socket on which sending takes longer than the other side needs to close."""

    def sendall(self, *arguments: Any) -> None:
        time.sleep(0.05)
        super().sendall(*arguments)


def test_an_answer_counts_though_it_comes_before_the_request_was_heard(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of an overloaded gateway, which reads nothing and closes at once."""
    monkeypatch.setattr(agent, "PatientSocket", Slow)
    busy = b"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"
    with Peer() as peer:
        peer.play(CONNECT, raw(busy), times=FOREVER)
        asked = agent.Peer(peer.url, agent.Signals(), False, None)
        answers = [asked.exchange("POST", "/", {}, b"{}", 5.0) for _ in range(5)]
    assert [answer.retry_after for answer in answers] == [9] * 5


# ---- the registry's connection: kept, opened again at no price; what comes between is no answer


@pytest.fixture(params=["plain", "tls"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Peer, agent.Registry]]:
    """Yield a registry and what speaks with it."""
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    secure = request.param == "tls"
    with Peer(tls=tls if secure else None) as peer:
        yield peer, client(peer, **({"REGISTRY_CA_FILE": ca_file} if secure else {}))


LONG_INTERIM = b"HTTP/1.1 102 Processing\r\nX-Long: " + 1000 * b"x" + b"\r\n\r\n"


def test_no_more_bytes_are_taken_than_an_exchange_may_have(
    peer: tuple[Peer, agent.Registry],
) -> None:
    peer[0].play("*", raw(LONG_INTERIM * 300))
    assert peer[1].heartbeat(5).advice.endswith(": the answer is longer than 128 KB")


UNASKED = (
    b"HTTP/1.1 408 Request Time-out\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
    b"good-bye\r\n",
)


@pytest.mark.parametrize("end", ["none", "close_notify", "bare FIN", *UNASKED])
def test_what_comes_while_it_is_idle_costs_nothing(
    peer: tuple[Peer, agent.Registry], end: str | bytes
) -> None:
    """As from a balancer that says why it will close, or from one that mixes its answers up."""
    server, registry = peer
    server.farewell = end == "close_notify"
    idle = threading.Semaphore(0)

    def play(exchange: Exchange) -> None:
        exchange.sane()
        if isinstance(end, bytes):
            time.sleep(0.05)
            exchange.raw(end)
        exchange.close_connection = end in ("close_notify", "bare FIN")
        idle.release()

    server.play("*", play, times=FOREVER)
    for _ in range(3):
        assert registry.heartbeat(10).meaning == agent.ACCEPTED
        assert idle.acquire(timeout=10)
        time.sleep(0.1)
    if isinstance(end, str):
        assert server.connections == (1 if end == "none" else 3)


def test_one_that_ends_as_the_next_request_comes_costs_nothing(
    peer: tuple[Peer, agent.Registry],
) -> None:
    server, registry = peer
    server.play("*", "reset", after=1)
    assert [registry.heartbeat(10).meaning for _ in range(3)] == [agent.ACCEPTED] * 3
    assert (server.count(), server.connections) == (4, 2)


@pytest.mark.parametrize("peer", ["tls"], indirect=True)
def test_what_came_together_with_an_answer_is_none_either(
    peer: tuple[Peer, agent.Registry],
) -> None:
    """OpenSSL has it already, so no look at the socket shows it."""
    server, registry = peer

    def answer_twice(exchange: Exchange) -> None:
        session = Session(exchange)
        session.shake()
        while True:
            session.hear_request()
            session.say(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}", UNASKED[1])

    server.play(CONNECT, answer_twice, times=FOREVER)
    assert [registry.heartbeat(10).meaning for _ in range(3)] == [agent.ACCEPTED] * 3
