"""The faults that the soak plays, by name, and what the head of each looks like to a client.

The names are those of kit/peers, whatever it holds, and some that only make sense between the
agent and its registry. Nobody keeps a list of what is a failure: each fault is played
once, and looked at.
"""

import functools
import json
import re
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import NamedTuple

from kit.peers.faults import FAULTS, TLS_FAULTS, Fault, bomb, html_page, resolve
from kit.peers.server import Exchange, Peer

SLOW = [f"slow {tenths / 10:g}" for tenths in range(1, 7)]  # late, but perhaps within the deadline
RETRY_SOON = [f"{code}, Retry-After: {wait}" for code in (429, 503) for wait in (1, 2, 4)]
PATIENCE = 2.0  # seconds; what has brought no head by then fails by every deadline of the soak
MOST = 1 << 20  # bytes; nor does a head end beyond these


def retry_after(name: str) -> float:
    """Return the seconds that this fault's Retry-After asks for, 0 where it has none."""
    return float(name.partition("Retry-After: ")[2] or 0)


def cut_list(exchange: Exchange) -> None:
    """Send a list that breaks off; what has come of it is a list, too."""
    exchange.close_connection = True
    exchange.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n["another_service"]')


_page = ["status", 200, html_page(200, "OK"), {"Content-Type": "text/html"}]
_names = json.dumps([f"service_{number}" for number in range(10_000)])
OWN: dict[str, Fault] = {
    "web page": resolve(_page),
    "list in an object": resolve(["json_text", '{"services":["another_service"]}']),
    "list too long": resolve(["json_text", _names]),
    "cut list": cut_list,
}
ALL = FAULTS | OWN


def named_fault(name: str) -> Fault:
    """Return the fault of this name: of ALL, a refusal with Retry-After, or "slow 0.3"."""
    if name in ALL or name in TLS_FAULTS:
        return (ALL | TLS_FAULTS)[name]
    if wait := retry_after(name):
        return resolve(["status", int(name[:3]), None, {"Retry-After": f"{wait:g}"}])
    kind, parameter = name.split()
    return resolve([kind, float(parameter)])


# ---- what they look like


class Look(NamedTuple):
    """Whether a head came that says 2xx, and whether a web page followed."""

    good: bool
    page: bool


def below() -> list[str]:
    """Return what a connection meets below HTTP."""
    return sorted(TLS_FAULTS)


def anything() -> list[str]:
    """Return every fault of an answer."""
    return sorted((*ALL, *SLOW))


def failing() -> list[str]:
    """Return what is no acceptance of the registry's, however it is read."""
    return [name for name, look in looks().items() if look.page or not look.good]


def failing_or_slow() -> list[str]:
    return [*failing(), *SLOW]


def hollow() -> list[str]:
    """Return what an agent may take for an acceptance, though the record gains nothing by it."""
    return sorted(looks().keys() - failing())


def unhealthy() -> list[str]:
    """Return what no healthy service answers."""
    return [name for name, look in looks().items() if not look.good]


class _Gallery(Peer):
    """Shows one fault at each path."""

    def route(self, _method: str, path: str) -> str:
        return path


@functools.cache
def looks() -> Mapping[str, Look]:
    """Look at every fault once, at all of them at the same time."""
    bomb(128)  # takes its time, which is none of the fault's
    names = sorted(ALL)
    with _Gallery() as gallery, ThreadPoolExecutor(len(names)) as pool:
        for number, name in enumerate(names):
            gallery.play(f"/{number}", named_fault(name), times=None)
        seen = pool.map(lambda number: _look(gallery, f"/{number}"), range(len(names)))
        return dict(zip(names, seen, strict=True))


def _look(gallery: Peer, path: str) -> Look:
    """Ask for one of them, and read on until it is clear what it is.

    A head that breaks off counts as one: Python's http.client does not tell them apart.
    """
    end, received, total, closed = time.monotonic() + PATIENCE, b"", 0, False
    address = gallery.host, gallery.port
    with socket.create_connection(address) as connection, suppress(TimeoutError):
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        while not closed and total < MOST and b"\r\n\r\n" not in received:
            connection.settimeout(max(end - time.monotonic(), 0.001))
            block = _receive(connection)
            closed, total = not block, total + len(block)
            received = _after_interim(received + block)
    head, ended, body = received.partition(b"\r\n\r\n")
    good = re.match(rb"HTTP/1\.\d +2\d\d\b", head) is not None and (bool(ended) or closed)
    return Look(good, body.lstrip().startswith(b"<") or b"text/html" in head.lower())


def _receive(connection: socket.socket) -> bytes:
    """Return what has come, nothing when the connection has ended. Raises TimeoutError."""
    try:
        return connection.recv(65536)
    except ConnectionError:
        return b""


def _after_interim(received: bytes) -> bytes:
    """Return what follows the 1xx answers."""
    interim = re.match(rb"(?:HTTP/1\.\d +1\d\d\b[^\n]*\n(?:[^\r\n][^\n]*\n)*\r?\n)*", received)
    return received[interim.end() :] if interim else received
