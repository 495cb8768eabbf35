"""The benchmark runs; and those of its figures that do not depend on speed are reached."""

from collections.abc import Iterator

import pytest

from bench import run
from bench.processes import NotMeasuredError, Peers, Version, build_images, run_peers
from containers.compose import unavailable
from kit.sidecar import ROOT

TINY = run.Scale(heartbeats=40, repeats=1, rounds=40)
NOW = [Version(ROOT)]


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
        run.Row("images", ["not measured: no Docker engine"]),
        run.Row("memory", ["failed: 3 beats"], reached=False),
    ]


@pytest.mark.slow
def test_every_figure_from_source_is_measured_for_both_versions(peers: Peers) -> None:
    for row in run.rows_of(run.SOURCE_SECTIONS, NOW * 2, peers, TINY):
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


@pytest.mark.slow
def test_figures_that_do_not_depend_on_speed_are_reached(peers: Peers) -> None:
    """200 bytes a heartbeat, a hundred on one connection; flat memory over 10,000 of them."""
    rows = list(run.wire_rows(NOW, peers, TINY))
    rows += run.growth_rows(NOW, peers, TINY._replace(heartbeats=10_000))
    assert [row.reached for row in rows] == [True, True, True], rows
