"""The benchmark's measuring functions, and those of its figures that do not depend on the machine's speed."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import cpu, processes, run
from bench.processes import NotMeasuredError, Peers, Subject
from bench.relay import Relay
from bench.run import Row
from containers.compose import unavailable
from containers.engine import MissingError, connect
from harness import ROOT, wait_until
from peers.registry import Registry

TINY = run.Scale(heartbeats=40, reference_heartbeats=5, repeats=1, rounds=40, packets=5, images=True)


ON_ENGINE = (run.image_rows, run.size_rows)


@pytest.fixture
def peers() -> Iterator[Peers]:
    with processes.run_peers() as peers:
        yield peers


class Python:
    """A Python process that runs one line of code for each line of its input, and answers with its CPU seconds."""

    CODE = (
        "import sys, time\nfor line in sys.stdin:\n    exec(line)\n    print(time.process_time(), flush=True)"
    )

    def __enter__(self) -> Python:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", self.CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.communicate()

    def run(self, code: str) -> float:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(code + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


# ---- the measuring functions


def test_cpu_seconds_are_those_that_the_process_itself_sees() -> None:
    with Python() as python:
        for _ in range(3):
            before = python.run("sum(range(100_000))")
            seen = cpu.cpu_seconds(python.process.pid)
            after = python.run("sum(range(100_000))")
            assert before <= seen <= after
    with pytest.raises(OSError, match="Invalid argument"):
        cpu.cpu_seconds(python.process.pid)


def test_cpu_of_a_command_is_all_that_it_used_and_not_the_time_it_slept() -> None:
    burn = [sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"]
    doze = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1)"]
    burning, dozing = cpu.interleaved(1, [burn, doze])
    assert burning[0] >= 0.3
    assert dozing[0] < 1.0


def test_memory_and_descriptors_are_those_of_the_process() -> None:
    with Python() as python:
        python.run("import os")
        pid = python.process.pid
        before, files = processes.memory(pid), processes.descriptors(pid)
        python.run("block = b'x' * 50_000_000; files = [open(os.devnull) for _ in range(7)]")
        after = processes.memory(pid)
        assert processes.descriptors(pid) == files + 7
        python.run("del block")
        freed = processes.memory(pid)
    for grown, shrunk in ((after, before), (after, freed)):
        assert 49e6 < grown.rss - shrunk.rss < 52e6
        assert 49e6 < grown.private - shrunk.private < 52e6
    assert before.private <= before.pss <= before.rss


def test_the_start_of_a_process_is_found_to_10_ms() -> None:
    before = time.monotonic()
    with Python() as python:
        python.run("pass")
        after = time.monotonic()
        assert before - 0.02 <= processes.started(python.process.pid) <= after


def exchange(connection: socket.socket) -> tuple[int, int]:
    """Ask for the health, with the request in two packets; return the bytes of request and answer."""
    parts = b"GET /health HTTP/1.1\r\n", b"Host: registry\r\n\r\n"
    for part in parts:
        connection.sendall(part)
        time.sleep(0.05)
    return sum(map(len, parts)), len(connection.recv(65536))


def test_the_relay_counts_bytes_connections_and_packets(registry: Registry) -> None:
    with Relay(registry.port) as relay:
        address = ("127.0.0.1", int(relay.url.rpartition(":")[2]))
        with socket.create_connection(address) as connection:
            sizes = [exchange(connection) for _ in range(3)]
            wait_until(lambda: len(relay.exchanges) == 3)
            open_packets = relay.packets()
        with socket.create_connection(address) as connection:
            sizes.append(exchange(connection))
        assert relay.sizes(b"GET /health") == tuple(map(list, zip(*sizes, strict=True)))
        assert relay.sizes(b"POST") == ([], [])
        assert relay.connections == registry.connections == 2
        # At least: SYN, SYN with ACK, ACK; two packets of request and one of answer; FIN from both sides.
        assert open_packets >= 3 + 3 * 3
        wait_until(lambda: not relay._open)
        assert open_packets + 3 + 3 + 2 <= relay.packets() <= 4 * open_packets


# ---- the table


def test_a_row_says_whether_the_figure_is_reached() -> None:
    rows = [Row("size", "1 MB", reach="≤ 2 MB", reached=True), Row("time", "3 s", "4 s", reach="≤ 2 s", reached=False)]
    lines = run.table(rows).splitlines()
    assert lines[2:] == [
        "| size | 1 MB |  |  |  | ≤ 2 MB | reached |",
        "| time | 3 s | 4 s |  |  | ≤ 2 s | **not reached** |",
    ]
    assert {line.count("|") for line in lines} == {8}


def test_what_cannot_be_measured_says_why_and_what_fails_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_peers: Peers, _scale: run.Scale) -> run.Rows:
        raise NotMeasuredError("no Docker engine")

    def broken(_peers: Peers, _scale: run.Scale) -> run.Rows:
        raise AssertionError("only 3 heartbeats\nand a log")

    monkeypatch.setattr(run, "SECTIONS", (("images", without), ("memory", broken)))
    assert list(run.measure(TINY)) == [
        Row("images", "not measured: no Docker engine"),
        Row("memory", "failed: only 3 heartbeats", reached=False),
    ]


@pytest.mark.slow
def test_every_figure_of_this_machines_python_is_measured(peers: Peers) -> None:
    for name, section in run.SECTIONS:
        if section not in ON_ENGINE:
            rows = list(section(peers, TINY))
            assert rows, name
            assert all(row.sidecar[0].isdecimal() for row in rows), rows


@pytest.mark.docker
@pytest.mark.slow
def test_every_figure_of_the_image_is_measured_and_its_memory_stays_in_bounds(peers: Peers) -> None:
    try:
        connect().close()
    except MissingError as missing:
        unavailable(str(missing))
    rows = {row.figure: row for row in run.image_rows(peers, TINY)}
    assert all(row.sidecar[0].isdecimal() for row in rows.values())
    assert all(row.reached is not False for figure, row in rows.items() if "CPU" not in figure), rows


# ---- the figures


def test_a_heartbeat_takes_200_bytes_and_a_hundred_of_them_one_connection(peers: Peers) -> None:
    with Relay(peers.registry) as relay:
        settings = peers.settings | {"REGISTRY_URL": relay.url}
        with Subject.of(run.FAST_AGENT, str(ROOT), **settings) as agent:
            traffic = run.watch(agent, relay, 100)
    assert traffic.connections == 1
    assert traffic.request <= 200


def test_the_health_check_imports_nothing_that_takes_time(tmp_path: Path) -> None:
    """What it costs follows from what it imports."""
    script = ROOT / "healthcheck.py"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-X", "importtime", str(script)],
        env={"HEARTBEAT_FILE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "os" in imported
    assert not imported & {"re", "json", "typing", "argparse", "pathlib", "logging", "socket", "site"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_and_descriptors_are_flat_over_10_000_heartbeats(peers: Peers) -> None:
    with Subject.of(run.FAST_AGENT, str(ROOT), **peers.settings) as agent:
        growth = run.grow(agent, 10_000)
        assert not agent.count("WARNING|ERROR")
    assert growth.kilobytes < 256
    assert growth.descriptors[1] <= growth.descriptors[0]
