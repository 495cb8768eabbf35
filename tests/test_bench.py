"""The benchmark runs; and those of its figures that do not depend on the machine's speed are reached."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bench import processes, run
from bench.processes import NotMeasuredError, Peers, Subject
from bench.relay import Relay
from bench.run import Row
from containers.compose import unavailable
from containers.engine import MissingError, connect
from harness import ROOT

TINY = run.Scale(heartbeats=40, repeats=1, rounds=40, packets=5, images=True)
ON_ENGINE = (run.image_rows, run.size_rows)


@pytest.fixture
def peers() -> Iterator[Peers]:
    with processes.run_peers() as peers:
        yield peers


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


def test_a_heartbeat_takes_200_bytes_and_a_hundred_of_them_one_connection(peers: Peers) -> None:
    with Relay(peers.registry) as relay:
        settings = peers.settings | {"REGISTRY_URL": relay.url}
        with Subject.of(run.FAST_AGENT, str(ROOT), **settings) as agent:
            traffic = run.watch(agent, relay, 100)
    assert traffic.connections == 1
    assert 100 < traffic.request <= 200


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_memory_and_descriptors_are_flat_over_10_000_heartbeats(peers: Peers) -> None:
    with Subject.of(run.FAST_AGENT, str(ROOT), **peers.settings) as agent:
        growth = run.grow(agent, 10_000)
        assert not agent.count("WARNING|ERROR")
    assert growth.kilobytes < 256
    assert growth.descriptors[1] <= growth.descriptors[0]
