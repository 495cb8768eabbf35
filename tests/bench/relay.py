"""A TCP relay between a sidecar and its registry that keeps count of what passes."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from typing import Self

COUNTERS = struct.Struct("=II")  # tcpi_segs_out and tcpi_segs_in of struct tcp_info (linux/tcp.h)
COUNTERS_AT = 136
TCP_CLOSE = 7  # the first byte of struct tcp_info: the connection has ended, and counts no more
HANDSHAKE = 2  # packets, SYN and SYN with ACK: they come before the socket that counts


@dataclass
class Exchange:
    """The bytes of one request and of its answer."""

    request: bytearray = field(default_factory=bytearray)
    answer: bytearray = field(default_factory=bytearray)


class Relay:
    """Passes connections on to a port of this machine. Use it as a context manager.

    `connections` and `exchanges` hold what came so far; `packets()` counts the packets in both directions.
    """

    def __init__(self, port: int) -> None:
        self.target = ("127.0.0.1", port)
        self.connections = 0
        self.exchanges: list[Exchange] = []
        self._open: set[socket.socket] = set()
        self._packets = 0  # of the connections that have ended
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # ends accept(), which close() alone does not
        self._listener.close()
        with self._lock:
            for connection in self._open:
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def packets(self) -> int:
        """Return how many TCP packets went to and fro between the sidecar and here, empty ones included."""
        with self._lock:
            return self._packets + sum(map(packets_of, self._open))

    def sizes(self, start: bytes) -> tuple[list[int], list[int]]:
        """Return the bytes of the requests that begin so, and of their answers."""
        found = [exchange for exchange in self.exchanges if exchange.request.startswith(start)]
        return [len(exchange.request) for exchange in found], [len(exchange.answer) for exchange in found]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with self._lock:
            self.connections += 1
            self._open.add(near)
        with near:
            with contextlib.suppress(OSError), socket.create_connection(self.target) as far:
                self._pass_on(near, far)
            end(near)
            with self._lock:
                self._open.remove(near)
                self._packets += packets_of(near)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        """Pass on what comes, until one of the two sides closes."""
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        exchange = Exchange()
        with selectors.DefaultSelector() as selector:
            selector.register(near, selectors.EVENT_READ, far)
            selector.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in selector.select():
                    source, sink = key.fileobj, key.data
                    assert isinstance(source, socket.socket)
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is far:
                        exchange.answer += data
                    else:
                        if exchange.answer or not exchange.request:
                            exchange = Exchange()
                            self.exchanges.append(exchange)
                        exchange.request += data
                    sink.sendall(data)


def packets_of(connection: socket.socket) -> int:
    """Return the packets of an accepted connection so far, in both directions."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, received = COUNTERS.unpack_from(info, COUNTERS_AT)
    return HANDSHAKE + int(sent) + int(received)


def end(connection: socket.socket, timeout: float = 1.0) -> None:
    """Close our side and wait for the other, so that the last packets are counted. Seconds."""
    with contextlib.suppress(OSError):  # the other side has reset it
        connection.shutdown(socket.SHUT_WR)
    until = time.monotonic() + timeout
    while connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != TCP_CLOSE and time.monotonic() < until:
        time.sleep(0.001)
