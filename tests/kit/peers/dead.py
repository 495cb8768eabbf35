"""An address that swallows every SYN."""

import contextlib
import socket
from collections.abc import Iterator


@contextlib.contextmanager
def dead_port(address: str, port: int) -> Iterator[None]:
    """Hold a port at which no connection is made, nor refused: its backlog is full (Linux)."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield
