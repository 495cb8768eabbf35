"""A log that nobody takes: it costs lines, which are counted, and nothing else."""

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import socket
import sys
import threading

import pytest

import agent
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sidecar, odd_lines, wait_until

PIPE = 8192  # bytes; a pipe of one page alone would be full with any line in it
ROOM = 1000  # bytes of it; enough for the first lines and a few heartbeats'


def test_what_was_dropped_is_counted_and_told(registry: Registry) -> None:
    """No line is torn, and none lost without being counted."""
    sidecar = Sidecar(registry, HEARTBEAT_INTERVAL=0.5, SERVICE_HEALTH_CHECK="none")
    read_end, sidecar.stdout = os.pipe()
    fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, PIPE)
    os.write(sidecar.stdout, b"x" * (PIPE - ROOM))
    with sidecar:
        os.close(sidecar.stdout)
        wait_until(lambda: registry.count("heartbeat") > 10)
        assert os.read(read_end, PIPE - ROOM) == b"x" * (PIPE - ROOM)
        sidecar.process.stdout = os.fdopen(read_end)
        sidecar.reader = threading.Thread(target=sidecar._read, daemon=True)
        sidecar.reader.start()
        told = sidecar.wait_for(r"WARNING .*\d+ lines of the log were dropped")
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 3)
        sidecar.assert_stops()
    assert sidecar.count("Service deregistered")
    assert sidecar.count("were dropped") == 1
    dropped = int(re.findall(r"(\d+) lines of", told)[0])
    assert dropped > 0
    # Four lines until the first heartbeat, one for each, and two of the stop.
    written = 4 + registry.count("heartbeat") + 2
    assert len(sidecar.lines) - 1 + dropped == written
    assert not odd_lines(sidecar.lines)


def dead_end(kind: str) -> tuple[int, int]:
    """Return the two ends of what takes no more bytes: a pipe, a socket or a terminal."""
    if kind == "socket":
        ours, theirs = (each.detach() for each in socket.socketpair())
    else:
        ours, theirs = os.openpty() if kind == "terminal" else os.pipe()
    os.set_blocking(theirs, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(theirs, b"x")
    os.set_blocking(theirs, True)
    if kind == "terminal":
        os.read(ours, 20)  # so that a part of a line fits
    return ours, theirs


@pytest.mark.parametrize(
    "kind", ["pipe", "terminal", "socket", "no reader", ">/dev/full 2>&1", ">&- 2>&-"]
)
def test_a_log_that_takes_nothing_stops_nothing(
    registry: Registry, service: ToyService, kind: str
) -> None:
    """Full before its first line, as Docker's `tty: true`; a reader that is gone; a full disk.

    O_NONBLOCK would be set for all who have the file in common, and they would lose lines.
    """
    sidecar, ends = Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5), list[int]()
    if kind.startswith(">"):
        sidecar.python = ["sh", "-c", f'exec "$@" {kind}', "sh", sys.executable, "-I"]
    else:
        ends += dead_end(kind)
        sidecar.stdout = ends[1]
        if kind == "no reader":
            os.close(ends.pop(0))

    def blocks() -> bool:
        return all(map(os.get_blocking, ends))

    with sidecar:
        wait_until(lambda: not blocks() or registry.count("heartbeat") > 4)
        assert blocks()
        assert registry.connections == 1  # no socket has got the number of the closed one
        registry.forget()
        wait_until(lambda: registry.record(NAME))
        assert sidecar.health()[0] == 0
        service.healthy = False
        wait_until(lambda: not registry.record(NAME))
        sidecar.assert_stops()
    assert blocks()
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("as_json", [False, True])
def test_a_count_that_was_lost_with_its_line_is_told_with_the_next(as_json: bool) -> None:
    """As behind a full disk, or a reader that went away and was replaced."""
    nobody, broken = os.pipe()
    os.close(nobody)
    reader, writer = os.pipe()
    handler = agent.Log(plain=False)
    handler.as_json = as_json
    try:
        for file in (broken, writer):
            handler.file, handler.poller = file, select.poll()
            handler.poller.register(file, select.POLLOUT)
            for _ in range(3):
                handler.emit(logging.makeLogRecord({"msg": "words", "levelname": "INFO"}))
        lines = os.read(reader, 4096).decode().splitlines()
    finally:
        for file in (broken, reader, writer):
            os.close(file)
    told = [json.loads(line)["message"] if as_json else line.split(" ", 2)[2] for line in lines]
    assert told == ["3 lines of the log were dropped because nobody read them", *["words"] * 3]
    assert "WARNING" in lines[0]
