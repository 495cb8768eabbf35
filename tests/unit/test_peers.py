"""The peers misbehave as they say; a registry or a fault that was too kind would let other tests pass for nothing."""

from __future__ import annotations

import itertools
import json
import socket
import time
import zlib
from collections.abc import Callable, Iterator

import pytest
import requests

from kit.peers import faults
from kit.peers.faults import FAULTS
from kit.peers.registry import Registry
from kit.peers.server import Peer

GET = b"GET /x HTTP/1.1\r\nHost: peer\r\n\r\n"
LAST_GET = GET[:-2] + b"Connection: close\r\nX-Registry-Token: tok-1\r\nAuthorization: Basic abc\r\n\r\n"
A = {"service_name": "a", "endpoint": "http://a:1", "health_endpoint": "/health", "metadata": {"k": "v"}}


def post(registry: Registry, path: str, body: object) -> requests.Response:
    return requests.post(registry.url + path, json=body, timeout=10)


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


def raw(peer: Peer, limit: int = 1 << 30, quiet: float = 30.0) -> bytes:
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


# The registry refuses what the real one refuses.


BAD_BODIES: dict[str, tuple[object, str, list[object]]] = {
    **{f"no {k}": ({i: A[i] for i in A if i != k}, "missing", ["body", k]) for k in A},
    "a list": ([], "model_attributes_type", ["body"]),
    "metadata null": (A | {"metadata": None}, "dict_type", ["body", "metadata"]),
    "metadata a number": (A | {"metadata": {"k": 1}}, "string_type", ["body", "metadata", "k"]),
    "name a number": (A | {"service_name": 5}, "string_type", ["body", "service_name"]),
}


@pytest.mark.parametrize("case", BAD_BODIES)
def test_bad_registration_is_422(registry: Registry, case: str) -> None:
    body, kind, place = BAD_BODIES[case]
    answer = post(registry, "/register", body)
    assert answer.status_code == 422
    assert [(problem["type"], problem["loc"]) for problem in answer.json()["detail"]] == [(kind, place)]
    assert not registry.names()


def test_a_heartbeat_refreshes_the_record_and_silence_lets_it_expire() -> None:
    now = 1000.0
    with Registry(ttl=60, clock=lambda: now) as registry:
        post(registry, "/register", A)
        now = 1059.0
        assert post(registry, "/heartbeat", A).status_code == 200
        now = 1118.9
        assert registry.names() == ["a"]
        now = 1119.1
        assert registry.names() == []
        assert post(registry, "/heartbeat", A).status_code == 404


def test_requests_beyond_a_limit_are_429() -> None:
    now = 1000.0
    with Registry(ttl=600, limits={"heartbeat": (2, 60.0)}, retry_after=7, clock=lambda: now) as registry:
        post(registry, "/register", A)
        answers = [post(registry, "/heartbeat", A) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[-1].headers["Retry-After"] == "7"
        now = 1061.0
        assert post(registry, "/heartbeat", A).status_code == 200


# Connections are dropped.


def test_keep_alive_false_closes_each_connection() -> None:
    with Peer(keep_alive=False) as peer, requests.Session() as session:
        answers = [session.get(peer.url, timeout=10) for _ in range(3)]
        assert [answer.headers["Connection"] for answer in answers] == ["close"] * 3
        assert peer.connections == 3


def test_idle_connections_are_closed() -> None:
    with Peer(idle_timeout=0.1) as peer, open_to(peer) as connection:
        connection.sendall(GET)
        assert connection.recv(4096)
        assert connection.recv(4096) == b""


# The faults.


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
    "many_headers": lambda data: data.count(b"\r\nX-Header-") == 10_000 and length_of(data) == (2, 2),
    "gzip_not": lambda data: b"\r\nContent-Encoding: gzip\r\n" in data and data.endswith(b"}"),
    "gzip_bomb": lambda data: length_of(data)[0] < 200_000 and inflated(data) == 128 << 20,
    "huge_body": lambda data: length_of(data)[0] == 300 << 20 and len(data) > 2_000_000,
    "huge_chunked": lambda data: b"\r\n\r\n10000\r\n    " in data and len(data) > 2_000_000,
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
    assert SEEN[name](raw(peer, 2_100_000, 0.1 if name == "hang" else 30.0))


@pytest.mark.parametrize("name", faults.HEADLESS | faults.BODIES)
def test_the_endless_do_not_end(peer: Peer, name: str) -> None:
    start, block = (faults.HEADLESS | faults.BODIES)[name]
    peer.play("any", name)
    data = raw(peer, 500_000)
    assert data.startswith(start + block)
    assert len(data) >= 500_000


def test_reset_is_a_reset(peer: Peer) -> None:
    peer.play("any", "reset")
    with pytest.raises(ConnectionResetError):
        raw(peer)


def test_slow_is_sane_but_late(registry: Registry) -> None:
    registry.play("register", faults.slow(0.2))
    before = time.monotonic()
    assert post(registry, "/register", A).status_code == 201
    assert time.monotonic() - before >= 0.2


@pytest.mark.parametrize(("name", "headers_first"), [("drip_body", True), ("drip_headers", False)])
def test_drips_come_byte_by_byte(peer: Peer, name: str, headers_first: bool) -> None:
    peer.play("any", [name, 0.01])
    with open_to(peer) as connection:
        connection.sendall(GET)
        parts = [connection.recv(4096) for _ in range(10)]
    assert (len(parts[0]) > 50) is headers_first
    assert all(len(part) < 5 for part in parts[1:])


def test_every_fault_is_tested_by_its_look() -> None:
    """A new entry of the catalogue needs a test of what it does."""
    elsewhere = {"reset", "slow", "drip_body", "drip_headers", "status", "json_text", "huge_int_json",
                 "surrogate_json", "json_null", "json_nested", "interim", "long_header",
                 "answer_then_reset", "raw", "endless"}  # fmt: skip
    statuses = {f"status_{code}" for code in faults.STATUSES}
    endless = faults.HEADLESS | faults.BODIES
    tables = {*faults.SENT, *endless, *(f"{name}_drip" for name in endless)}
    assert set(FAULTS) == set(itertools.chain(SEEN, elsewhere, statuses, tables))
