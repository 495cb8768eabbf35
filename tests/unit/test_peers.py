"""The peers refuse and misbehave as they say: one too kind would let tests pass for nothing."""

import socket
from typing import Any

import requests

from kit.peers.faults import FAULTS
from kit.peers.registry import Registry
from kit.peers.server import Peer

GET = b"GET /x HTTP/1.1\r\nHost: peer\r\nConnection: close\r\n\r\n"
A = {"service_name": "a", "endpoint": "http://a", "health_endpoint": "/", "metadata": {"k": "v"}}


def post(registry: Registry, path: str, body: object) -> requests.Response:
    return requests.post(registry.url + path, json=body, timeout=10)


def test_a_bad_registration_is_422(registry: Registry) -> None:
    bad: list[tuple[Any, str, list[str]]] = [
        *(({k: A[k] for k in A if k != left_out}, "missing", ["body", left_out]) for left_out in A),
        ([], "model_attributes_type", ["body"]),
        (A | {"metadata": None}, "dict_type", ["body", "metadata"]),
        (A | {"metadata": {"k": 1}}, "string_type", ["body", "metadata", "k"]),
        (A | {"service_name": 5}, "string_type", ["body", "service_name"]),
    ]
    for body, kind, place in bad:
        answer = post(registry, "/register", body)
        problems = [(problem["type"], problem["loc"]) for problem in answer.json()["detail"]]
        assert (answer.status_code, problems) == (422, [(kind, place)])
    assert not registry.names()


def test_it_lets_a_record_expire() -> None:
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


def test_no_fault_looks_like_a_sane_answer() -> None:
    with Peer() as peer:
        sane = received(peer)
        for name in FAULTS.keys() - {"slow"}:  # which is sane, but late
            peer.play("any", name)
            assert received(peer) != sane, name


def received(peer: Peer) -> bytes:
    """Send a GET; return the first bytes that come, without the time that they tell."""
    with socket.create_connection(("127.0.0.1", peer.port), timeout=0.3) as connection:
        connection.sendall(GET)
        try:
            data = connection.recv(65536)
        except OSError as error:
            data = repr(error).encode()
    return b"\r\n".join(line for line in data.split(b"\r\n") if not line.startswith(b"Date:"))
