"""The test peers do what they say: the registry's API and oddities, the toy service, every misbehaviour."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import pytest
from peers import faults
from peers.faults import FAULTS
from peers.registry import Registry
from peers.server import PORTS, Peer
from peers.service import ToyService

PEERS = Path(__file__).parent / "peers"
GET = b"GET /x HTTP/1.1\r\nHost: peer\r\n\r\n"
LAST_GET = GET[:-2] + b"Connection: close\r\nX-Registry-Token: tok-1\r\nAuthorization: Basic abc\r\n\r\n"
A = {"service_name": "a", "endpoint": "http://a:1", "health_endpoint": "/health", "metadata": {"k": "v"}}


class Reply(NamedTuple):
    status: int
    body: Any  # decoded where it is JSON
    headers: http.client.HTTPMessage


class Client:
    """A keep-alive client of one peer."""

    all: ClassVar[list[http.client.HTTPConnection]] = []

    def __init__(self, peer: Peer, context: ssl.SSLContext | None = None) -> None:
        if context:
            self.http: http.client.HTTPConnection = http.client.HTTPSConnection(
                "localhost", peer.port, timeout=10, context=context
            )
        else:
            self.http = http.client.HTTPConnection("127.0.0.1", peer.port, timeout=10)
        self.all.append(self.http)

    def __call__(self, method: str, path: str, body: object = None, token: str | None = None) -> Reply:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        self.http.request(method, path, data, {"X-Registry-Token": token} if token else {})
        response = self.http.getresponse()
        text = response.read()
        kind = response.headers.get("Content-Type", "")
        return Reply(response.status, json.loads(text) if "json" in kind else text, response.headers)

    def register(self, **changes: object) -> Reply:
        return self("POST", "/register", A | changes)

    def heartbeat(self, name: str = "a", token: str | None = None) -> Reply:
        return self("POST", "/heartbeat", {"service_name": name}, token)


class Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    yield
    while Client.all:
        Client.all.pop().close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Iterator[Registry]:
    with Registry(ttl=60, failing_delay=0.05, hang_delay=0.05, clock=clock) as peer:
        yield peer


@pytest.fixture
def ask(registry: Registry) -> Client:
    return Client(registry)


@pytest.fixture(scope="module")
def module_peer() -> Iterator[Peer]:
    with Peer() as peer:
        yield peer


@pytest.fixture
def peer(module_peer: Peer) -> Iterator[Peer]:
    yield module_peer
    module_peer.sane()


def open_to(peer: Peer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", peer.port), timeout=10)


def raw(peer: Peer, limit: int = 1 << 30, quiet: float = 5.0) -> bytes:
    """Send one GET; return what comes until the end, the limit, or so many seconds of silence."""
    with open_to(peer) as connection:
        connection.sendall(LAST_GET)
        connection.settimeout(quiet)
        data = bytearray()
        try:
            while len(data) < limit and (more := connection.recv(1 << 16)):
                data += more
        except TimeoutError:
            pass
        return bytes(data)


# The registry: plain answers.


def test_register_is_an_upsert(registry: Registry, ask: Client, clock: Clock) -> None:
    assert ask.register()[:2] == (201, {"message": "Service registered successfully", "service_name": "a"})
    clock.now += 50
    assert ask.register(endpoint="http://b:2", metadata={}).status == 201
    record = ask("GET", "/services/a").body
    assert record == registry.record("a")
    assert (record["endpoint"], record["metadata"], record["ttl_remaining"]) == ("http://b:2", {}, 60)
    assert set(record) == {*A, "registered_at", "last_heartbeat", "ttl_remaining"}


BAD_BODIES: dict[str, tuple[object, str, list[object]]] = {
    **{f"no {k}": ({i: A[i] for i in A if i != k}, "missing", ["body", k]) for k in A},
    "not JSON": (b"{", "json_invalid", ["body", 1]),
    "a list": ([], "model_attributes_type", ["body"]),
    "metadata a list": (A | {"metadata": []}, "dict_type", ["body", "metadata"]),
    "metadata null": (A | {"metadata": None}, "dict_type", ["body", "metadata"]),
    **{
        f"metadata value {v!r}": (A | {"metadata": {"k": v}}, "string_type", ["body", "metadata", "k"])
        for v in (1, True, None, {"nested": "x"})
    },
    "name a number": (A | {"service_name": 5}, "string_type", ["body", "service_name"]),
}


@pytest.mark.parametrize("case", BAD_BODIES)
@pytest.mark.parametrize("dialect", ["documented", "deployed"])
def test_bad_registration_is_422(registry: Registry, ask: Client, case: str, dialect: str) -> None:
    body, kind, place = BAD_BODIES[case]
    registry.dialect = dialect
    status, answer, _ = ask("POST", "/register", body)
    assert status == 422
    assert not registry.names()
    assert [(problem["type"], problem["loc"]) for problem in answer["detail"]] == [(kind, place)]


def test_heartbeat_refreshes_and_silence_expires(registry: Registry, ask: Client, clock: Clock) -> None:
    ask.register()
    clock.now += 59
    assert ask.heartbeat()[:2] == (200, {"message": "Heartbeat received", "service_name": "a"})
    clock.now += 59.9
    assert registry.names() == ["a"]
    clock.now += 0.2
    assert registry.record("a") is None
    assert ask.heartbeat().status == 404
    assert ask("GET", "/services/a").status == 404


@pytest.mark.parametrize(
    ("dialect", "status", "detail"),
    [
        ("documented", 404, "Service 'x' not registered"),
        ("deployed", 500, "Heartbeat failed: Service 'x' not registered"),
    ],
)
def test_unknown_heartbeat(registry: Registry, ask: Client, dialect: str, status: int, detail: str) -> None:
    registry.dialect = dialect
    assert ask.heartbeat("x")[:2] == (status, {"detail": detail})


@pytest.mark.parametrize("token", [None, "wrong"])
@pytest.mark.parametrize(
    ("method", "path", "phrase"),
    [
        ("POST", "/register", "Registration failed"),
        ("POST", "/heartbeat", "Heartbeat failed"),
        ("DELETE", "/deregister/a", "Deregistration failed"),
    ],
)
def test_token_is_asked_for(
    registry: Registry, ask: Client, method: str, path: str, phrase: str, token: str | None
) -> None:
    registry.token = "right"
    assert ask(method, path, A, token)[:2] == (401, {"detail": "Invalid registry token"})
    registry.dialect = "deployed"
    assert ask(method, path, A, token)[:2] == (500, {"detail": f"{phrase}: 401: Invalid registry token"})
    assert ask("POST", "/register", A, "right").status == 201
    assert ask(method, path, A, "right").status in (200, 201)
    assert ask("GET", "/services").status == 200


def test_deregister_answers_200_known_or_not(registry: Registry, ask: Client) -> None:
    ask.register()
    assert [ask("DELETE", f"/deregister/{name}").status for name in ("a", "a", "b%20c")] == [200, 200, 200]
    assert [ask("DELETE", f"/deregister/{name}").status for name in ("a/b", "a%2Fb", "")] == [404, 404, 404]
    assert registry.names() == []


@pytest.mark.parametrize(("dialect", "linger"), [("documented", 0), ("deployed", 30)])
def test_list_is_sorted_and_lingers(
    registry: Registry, ask: Client, clock: Clock, dialect: str, linger: float
) -> None:
    registry.dialect = dialect
    for name in "cab":
        ask.register(service_name=name)
    assert ask("GET", "/services").body == ["a", "b", "c"]
    registry.expire("b")
    assert registry.names() == ["a", "c"]
    if linger:
        clock.now += linger - 0.1
        assert ask("GET", "/services").body == ["a", "b", "c"]
        clock.now += 0.2
    assert ask("GET", "/services").body == ["a", "c"]
    registry.forget("c")
    assert ask("GET", "/services").body == ["a"]


def test_get_of_the_deployed_one_fails_and_takes_the_balancer_down(
    registry: Registry, ask: Client, clock: Clock
) -> None:
    registry.dialect = "deployed"
    ask.register()
    assert [ask("GET", "/services/a").status for _ in range(6)] == [500, 500, 500, 500, 200, 500]
    status, page, headers = ask.heartbeat()
    assert (status, headers["Content-Type"]) == (502, "text/html")
    assert b"502 Bad Gateway" in page
    clock.now += registry.blackout
    assert ask.heartbeat().status == 200


def test_health_and_metrics(ask: Client) -> None:
    ask.register()
    ask.heartbeat()
    ask.heartbeat("x")
    ask("GET", "/services")
    assert ask("GET", "/health").body["active_services"] == 1
    lines = ask("GET", "/metrics").body.decode().splitlines()
    assert "registry_active_services 1" in lines
    for pair in ("register success", "heartbeat success", "heartbeat error", "list success"):
        operation, status = pair.split()
        assert f'registry_operations_total{{operation="{operation}",status="{status}"}} 1' in lines


def test_trailing_slash_loses_the_port_and_double_slash_is_404(registry: Registry, ask: Client) -> None:
    status, _, headers = ask("POST", "/register/", A)
    assert (status, headers["Location"]) == (307, "http://127.0.0.1/register")
    assert ask("POST", "//register", A).status == 404
    assert ask("GET", "/register").status == 405
    assert registry.names() == []
    assert registry.count("other") == 3


# The registry: its store, its limits, its index.


def test_failing_store_is_500_after_a_while(registry: Registry, ask: Client) -> None:
    ask.register()
    registry.store = "failing"
    before = time.monotonic()
    assert [ask.register().status, ask.heartbeat().status, ask("GET", "/services").status] == [500] * 3
    assert time.monotonic() - before >= 3 * registry.failing_delay


def test_open_breaker_acknowledges_everything(registry: Registry, ask: Client) -> None:
    registry.store = "open"
    assert ask.heartbeat().status == 200
    assert ask("GET", "/services").body == []
    assert ask.register()[:2] == (201, {"message": "Service registered successfully", "service_name": "a"})
    assert ask("GET", "/services").body == ["a"]
    assert registry.record("a") is None
    assert 'operation="register",status="circuit_breaker_open"} 1' in ask("GET", "/metrics").body.decode()
    registry.store = "up"
    assert ask.heartbeat().status == 404


def test_half_open_breaker(registry: Registry, ask: Client) -> None:
    ask.register(service_name="b")
    registry.store = "half_open"
    message = "Service registered (circuit breaker open, local cache)"
    assert ask.register()[:2] == (201, {"message": message, "service_name": "a"})
    answers = [ask.heartbeat("b") for _ in range(20)]
    assert [answer.status for answer in answers] == [*[500] * 9, 200] * 2
    assert "HALF_OPEN (test phase)" in answers[0].body["detail"]
    assert registry.names() == ["b"]


@pytest.mark.parametrize(("store", "status"), [("hangs", 504), ("gone", 502)])
def test_nginx_answers_with_a_page(registry: Registry, ask: Client, store: str, status: int) -> None:
    registry.store = store
    before = time.monotonic()
    for reply in (ask.register(), ask.heartbeat()):
        assert (reply.status, reply.headers["Content-Type"]) == (status, "text/html")
        assert f"<h1>{status} ".encode() in reply.body
    assert (time.monotonic() - before >= 2 * registry.hang_delay) or store == "gone"


def test_limits(registry: Registry, ask: Client, clock: Clock) -> None:
    registry.limits = {"heartbeat": (2, 60.0), "register": (3, 1.0)}
    assert [ask.register(service_name=name).status for name in "abcd"] == [201, 201, 201, 429]
    assert [ask.heartbeat().status for _ in range(2)] == [200, 200]
    assert ask.heartbeat("b").status == 200
    assert ask.heartbeat().headers["Retry-After"] is None
    registry.retry_after = 7
    status, _, headers = ask.heartbeat()
    assert (status, headers["Retry-After"]) == (429, "7")
    clock.now += 59
    assert [ask.register().status, ask.heartbeat().status] == [201, 429]
    clock.now += 1
    assert ask.heartbeat().status == 200


def test_the_name_index_corrupts_the_index(ask: Client) -> None:
    ask.register()
    assert ask.register(service_name="index").status == 201
    assert "WRONGTYPE" in ask("GET", "/services").body["detail"]
    assert ask.register(service_name="b").status == 500
    ask("DELETE", "/deregister/index")
    assert ask("GET", "/services").body == ["a"]


@pytest.mark.parametrize("switch", [{"dialect": "klingon"}, {"store": "ajar"}])
def test_unknown_switches_are_refused(switch: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is one of"):
        Registry(**switch)


# The toy service.


def test_toy_service() -> None:
    with ToyService() as service:
        ask = Client(service)
        assert ask("GET", "/health")[:2] == (200, {"status": "healthy", "version": "1.0.0"})
        service.version, service.status, service.extra = "2", None, {"load": 1}
        assert ask("GET", "/health").body == {"version": "2", "load": 1}
        service.body = "fine"
        assert ask("GET", "/health")[:2] == (200, b"fine")
        service.healthy = False
        assert ask("GET", "/health").status == 503
        service.health_path, service.healthy = "/up?full=1", True
        assert [ask("GET", "/health").status, ask("GET", "/up?full=1").status] == [404, 200]
        assert (service.count("health"), service.count("other"), service.count()) == (5, 1, 6)
    with ToyService(not_ready_for=0.2) as service:
        ask = Client(service)
        assert ask("GET", "/health").status == 503
        assert service.wait_for(lambda: ask("GET", "/health").status == 200)


# The peer: requests, connections, life.


def test_requests_are_remembered() -> None:
    with Peer() as peer, open_to(peer) as connection:
        for body in (b"", b"x" * 500):
            head = b"POST /path?q HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nContent-Length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK")
            request = peer.requests[-1]
            assert (request.operation, request.method, request.path) == ("any", "POST", "/path?q")
            assert (request.body, request.size, request.connection) == (body, len(head + body), 1)
            assert request.headers["x-a"] == "1"
            assert 0 <= time.monotonic() - request.at < 60
        raw(peer)
        assert peer.requests[-1].connection == peer.connections == 2


def test_keep_alive_false_closes_each_connection() -> None:
    with Peer(keep_alive=False) as peer:
        ask = Client(peer)
        assert [ask("GET", "/").headers["Connection"] for _ in range(3)] == ["close"] * 3
        assert peer.connections == 3


def test_idle_connections_are_closed() -> None:
    with Peer(idle_timeout=0.1) as peer, open_to(peer) as connection:
        connection.sendall(GET)
        assert connection.recv(4096)
        assert connection.recv(4096) == b""


def test_a_stopped_peer_refuses_and_comes_back_on_its_port() -> None:
    peer = Registry()
    assert PORTS[0] <= peer.port < PORTS[1]
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            open_to(peer)
        with peer, open_to(peer) as idle, open_to(peer) as busy:
            Client(peer).register()
            peer.play("*", "hang")
            busy.sendall(GET)
            assert peer.wait_for(lambda: peer.requests[-1].path == "/x")
            peer.stop()
            assert idle.recv(1) == busy.recv(1) == b""
    assert peer.names() == ["a"]


def test_a_paused_peer_accepts_and_answers_later(registry: Registry) -> None:
    registry.pause()
    with open_to(registry) as connection:
        connection.sendall(GET)
        connection.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert Client(registry)("GET", "/_control").body["counts"] == {}
        registry.resume()
        connection.settimeout(10)
        assert connection.recv(4096).startswith(b"HTTP/1.1 404")


def test_plays_count_and_queue_up(registry: Registry, ask: Client) -> None:
    registry.play("heartbeat", "status_503", times=2, after=1)
    registry.play("heartbeat", faults.status(429, headers={"Retry-After": "9"}), times=None)
    ask.register()
    replies = [ask.heartbeat() for _ in range(5)]
    assert [reply.status for reply in replies] == [200, 503, 503, 429, 429]
    assert replies[-1].headers["Retry-After"] == "9"
    assert ask("GET", "/services").status == 200
    registry.sane("register")
    assert ask.heartbeat().status == 429
    registry.play("*", ["status", 418])
    assert ask("GET", "/services").status == 418
    registry.sane()
    assert ask.heartbeat().status == 200
    assert registry.count("heartbeat") == 7
    with pytest.raises(KeyError):
        registry.play("heartbeat", "no such fault")


def test_control_endpoint(registry: Registry, ask: Client) -> None:
    ask.register()
    control = Client(registry)
    state = control("POST", "/_control", {"play": ["heartbeat", ["status", 410], None], "store": "open"}).body
    assert (state["counts"], state["connections"], state["store"]) == ({"register": 1}, 1, "open")
    assert state["records"]["a"]["endpoint"] == "http://a:1"
    assert ask.heartbeat().status == 410
    control("POST", "/_control", {"sane": "*", "store": "up", "forget": None, "ttl": 5})
    assert ask.heartbeat().status == 404
    assert registry.ttl == 5
    assert control("POST", "/_control", {"pause": True}).status == 200
    assert control("POST", "/_control", {"pause": False}).status == 200
    bads: list[object] = [{"stare": "up"}, {"store": "ajar"}, {"play": 5}, {"play": ["x", "none"]}, [], b"{"]
    for bad in bads:
        assert control("POST", "/_control", bad).status == 400
    assert registry.connections == 1
    assert registry.count() == 3


def test_wait_for_gives_up() -> None:
    with pytest.raises(TimeoutError):
        Peer().wait_for(lambda: False, timeout=0.02)


def test_many_clients_at_once() -> None:
    def beat() -> None:
        ask = Client(peer)
        done.append([ask.heartbeat().status for _ in range(5)])

    done: list[list[int]] = []
    with Registry() as peer:
        Client(peer).register()
        threads = [threading.Thread(target=beat) for _ in range(100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert done == [[200] * 5] * 100
        assert (peer.count("heartbeat"), peer.connections) == (500, 101)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_tls(tmp_path: Path) -> None:
    cert, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost"
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", "-out", cert, "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    with Registry(tls=(cert, key)) as peer:
        ask = Client(peer, ssl.create_default_context(cafile=cert))
        assert peer.url.startswith("https://")
        assert ask.register().status == 201
        peer.play("heartbeat", "huge_body")
        peer.play("heartbeat", "reset")
        ask.http.request("POST", "/heartbeat", b"{}")
        assert ask.http.getresponse().read(1000) == b" " * 1000
        ask.http.close()
        with pytest.raises(ConnectionError):
            ask.heartbeat()
        ask.http.close()
        assert ask.heartbeat().status == 200
        raw(peer)  # no TLS at all: the peer must bear it
        assert ask.heartbeat().status == 200


# The faults.


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_ends_when_the_client_goes(peer: Peer, name: str) -> None:
    peer.play("any", name)
    with open_to(peer) as connection:
        connection.sendall(GET)
        connection.settimeout(0.05)
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            connection.recv(1000)
    server = peer._server
    assert server
    assert peer.wait_for(lambda: not server.open)
    assert raw(peer, limit=15).startswith(b"HTTP/1.1 200 OK")


ENDLESS = ["hang", "slow", "drip_body", "drip_headers", "status_100", "huge_body", "huge_chunked",
           "endless_body", "endless_header_line", "endless_chunk_line"]  # fmt: skip


def test_every_long_fault_ends_when_the_peer_stops() -> None:
    with Peer() as peer:
        sockets = []
        for name in ENDLESS:
            peer.play("any", name)
            sockets.append(open_to(peer))
            sockets[-1].sendall(GET)
            peer.wait_for(lambda: peer.count() == len(sockets))
        server = peer._server
        peer.stop()
        assert server
        assert not server.open
        for connection in sockets:
            connection.close()


@pytest.mark.parametrize("code", faults.STATUSES)
def test_statuses(peer: Peer, code: int) -> None:
    peer.play("any", f"status_{code}")
    peer.play("any", faults.status(code, body="text", headers={"X-More": "1"}))
    first, second = raw(peer), raw(peer)
    assert first.startswith(b"HTTP/1.1 %d " % code)
    assert second.startswith(b"HTTP/1.1 %d " % code)
    assert b"\r\nX-More: 1\r\n" in second
    assert second.endswith(b"\r\n\r\n" if code < 200 or code in (204, 304) else b"\r\n\r\ntext")


def length_of(data: bytes) -> tuple[int, int]:
    """Return the length that the headers promise and the one that came."""
    head, _, body = data.partition(b"\r\n\r\n")
    return int(head.split(b"Content-Length: ")[1].split()[0]), len(body)


def forged(data: bytes) -> bool:
    return f"\n{faults.FORGED}".encode() in data


def inflated(data: bytes) -> int:
    unpack, size, rest = zlib.decompressobj(31), 0, data.partition(b"\r\n\r\n")[2]
    while rest and (block := unpack.decompress(rest, 1 << 22)):
        size, rest = size + len(block), unpack.unconsumed_tail
    return size


def detail(data: bytes) -> str:
    return str(json.loads(data.partition(b"\r\n\r\n")[2])["detail"])


SEEN: dict[str, Callable[[bytes], bool]] = {
    "garbage": lambda data: b"HTTP" not in data and b"\x1b" in data and forged(data) and len(data) > 4096,
    "close": lambda data: data == b"",
    "hang": lambda data: data == b"",
    "html_502": lambda data: data.startswith(b"HTTP/1.1 502 ") and data.endswith(b"</html>\r\n"),
    "redirect": lambda data: b" 307 " in data and b"\r\nLocation: http://127.0.0.1:9/elsewhere\r\n" in data,
    "control_reason": lambda data: b"\x1b[2J\x07\x9b31m\r2026" in data.partition(b"\n")[0],
    "empty": lambda data: b" 200 OK" in data and length_of(data) == (0, 0),
    "cut_headers": lambda data: b" 200 OK" in data and b"\r\n\r\n" not in data,
    "long_length": lambda data: length_of(data) == (1000, 2),
    "short_length": lambda data: length_of(data) == (2, 22),
    "bad_length": lambda data: b"\r\nContent-Length: banana\r\n" in data,
    "two_lengths": lambda data: data.count(b"\r\nContent-Length: ") == 2,
    "broken_chunks": lambda data: b"\r\n\r\n2\r\n{}\r\nzebra\r\n" in data,
    "endless_chunk_line": lambda data: b"\n" not in data.partition(b"\r\n\r\n")[2] and len(data) > 2_000_000,
    "endless_header_line": lambda data: data.count(b"\n") == 1 and len(data) > 2_000_000,
    "many_headers": lambda data: data.count(b"\r\nX-Header-") == 10_000 and length_of(data) == (2, 2),
    "gzip_not": lambda data: b"\r\nContent-Encoding: gzip\r\n" in data and data.endswith(b"}"),
    "gzip_bomb": lambda data: length_of(data)[0] < 200_000 and inflated(data) == 128 << 20,
    "huge_body": lambda data: length_of(data)[0] == 300 << 20 and len(data) > 2_000_000,
    "huge_chunked": lambda data: b"\r\n\r\n10000\r\n    " in data and len(data) > 2_000_000,
    "endless_body": lambda data: b"Content-Length" not in data and len(data) > 2_000_000,
    "status_100": lambda data: data.count(b"HTTP/1.1 100 Continue\r\n\r\n") > 1000 and b" 200 " not in data,
    "control_characters": lambda data: forged(detail(data).encode()) and "\u202e" in detail(data),
    "control_text": lambda data: forged(data) and b"\x1b[31m" in data,
    "echo_token": lambda data: data.startswith(b"HTTP/1.1 500 ") and "tok-1, Auth" in detail(data),
    "deep_json": lambda data: data.count(b"[") == 100_000,
    "not_utf8": lambda data: b"\xff" in data,
    "nan_json": lambda data: b":NaN," in data,
    "json_list": lambda data: data.endswith(b'\r\n\r\n["healthy"]'),
    "json_huge_strings": lambda data: b"9" * 60_000 in data,
}


@pytest.mark.parametrize("name", SEEN)
def test_faults_as_seen_on_the_wire(peer: Peer, name: str) -> None:
    peer.play("any", name)
    limit = 50_000 if name == "status_100" else 2_100_000
    assert SEEN[name](raw(peer, limit, quiet=0.1 if name == "hang" else 5.0))


def test_reset_is_a_reset(peer: Peer) -> None:
    peer.play("any", "reset")
    with pytest.raises(ConnectionResetError):
        raw(peer)


def test_slow_is_sane_but_late_and_keeps_the_connection(registry: Registry, ask: Client) -> None:
    registry.play("register", faults.slow(0.2))
    before = time.monotonic()
    assert ask.register().status == 201
    assert time.monotonic() - before >= 0.2
    assert ask.heartbeat().status == 200
    assert registry.connections == 1


@pytest.mark.parametrize(("name", "headers_first"), [("drip_body", True), ("drip_headers", False)])
def test_drips_come_byte_by_byte(peer: Peer, name: str, headers_first: bool) -> None:
    peer.play("any", [name, 0.01])
    with open_to(peer) as connection:
        connection.sendall(GET)
        parts = [connection.recv(4096) for _ in range(10)]
    assert (len(parts[0]) > 50) is headers_first
    assert all(len(part) < 5 for part in parts[1:])


def test_sizes_are_parameters(peer: Peer) -> None:
    for fault in (faults.huge_body(1), faults.huge_chunked(megabytes=1)):
        peer.play("any", fault)
        data = raw(peer)
        assert 1 << 20 <= len(data) < (1 << 20) + 1000


# The command lines.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("script", "options", "operation"),
    [("registry.py", ["--dialect", "deployed", "--token", "t"], "heartbeat"), ("service.py", [], "other")],
)
def test_command_line(tmp_path: Path, script: str, options: list[str], operation: str, number: int) -> None:
    shutil.copytree(PEERS, tmp_path / "peers", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, str(tmp_path / "peers" / script), "--port", "0", "--verbose", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        assert process.stdout
        url = process.stdout.readline().split()[-1]
        client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
        client.request("POST", "/heartbeat", json.dumps({"service_name": "a\n\x1b"}))
        assert client.getresponse().status == (500 if operation == "heartbeat" else 404)
        client.close()
        line = process.stdout.readline()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert f" {operation} " in line
        assert "\x1b" not in line


def test_command_line_says_when_its_port_is_taken(peer: Peer) -> None:
    command = [sys.executable, str(PEERS / "registry.py"), "--port", str(peer.port)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert str(peer.port) in done.stdout
    assert not done.stderr


def test_every_fault_is_tested_by_its_look() -> None:
    """A new entry of the catalogue needs a test of what it does."""
    elsewhere = {"reset", "slow", "drip_body", "drip_headers", "status", "json_text", "huge_int_json",
                 "surrogate_json", "json_null", "json_nested", "interim", "long_header",
                 "answer_then_reset", "raw", "endless"}  # fmt: skip
    statuses = {f"status_{code}" for code in faults.STATUSES}
    endless = faults.HEADLESS | faults.BODIES
    tables = {*faults.SENT, *endless, *(f"{name}_drip" for name in endless)}
    assert set(FAULTS) == set(itertools.chain(SEEN, elsewhere, statuses, tables))
