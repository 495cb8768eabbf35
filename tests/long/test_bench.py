"""The benchmark runs; and those of its figures that do not depend on speed are reached."""

from collections.abc import Iterator

import pytest

from bench import run
from bench.processes import NotMeasuredError, Peers, Version, build_images, run_peers
from bench.run import Row
from containers.compose import unavailable
from kit.sidecar import ROOT

TINY = run.Scale(heartbeats=40, repeats=1, rounds=40, sidecars=2, seconds=2.0)
NOW = [Version(ROOT)]
NOW_AND_BEFORE = NOW * 2


@pytest.fixture
def peers() -> Iterator[Peers]:
    with run_peers() as peers:
        yield peers


def broken(error: Exception) -> run.Rows:
    raise error
    yield


def test_what_cannot_be_measured_says_why_and_what_fails_is_a_failure() -> None:
    missing, failed = NotMeasuredError("no Docker engine"), AssertionError("3 beats\nand a log")
    rows = [*run.explained("images", broken(missing)), *run.explained("memory", broken(failed))]
    assert rows == [
        Row("images", ["not measured: no Docker engine"]),
        Row("memory", ["failed: 3 beats"], reached=False),
    ]


@pytest.mark.slow
def test_every_figure_from_source_is_measured_for_both_versions(peers: Peers) -> None:
    for row in run.rows_of(run.SOURCE_SECTIONS, NOW_AND_BEFORE, peers, TINY):
        assert [str(cell).lstrip("-")[0].isdecimal() for cell in row.cells] == [True, True], row


@pytest.mark.docker
@pytest.mark.slow
def test_every_figure_of_the_image_is_measured_and_its_memory_is_flat(peers: Peers) -> None:
    # tests/containers has the sizes.
    sections = [section for section in run.IMAGE_SECTIONS if section is not run.size_rows]
    try:
        with build_images([ROOT]) as images:
            rows = list(run.rows_of(sections, images, peers, TINY))
    except NotMeasuredError as missing:
        unavailable(str(missing))
    for row in rows:
        assert str(row.cells[0])[0].isdecimal(), row
        assert row.reached or "growth" not in row.figure, row


def test_a_heartbeat_takes_200_bytes_and_a_hundred_of_them_one_connection(peers: Peers) -> None:
    rows = list(run.wire_rows(NOW, peers, TINY))
    assert [row.reached for row in rows] == [True, True], rows


@pytest.mark.slow
def test_memory_and_descriptors_are_flat_over_10_000_heartbeats(peers: Peers) -> None:
    (row,) = run.growth_rows(NOW, peers, TINY._replace(heartbeats=10_000))
    assert row.reached, row
