"""The benchmark: what the sidecar costs, as one Markdown table with what is to be reached.

    sh tests/bench.sh [--quick] [--before DIRECTORY]

--before names another checkout of this project, such as a git worktree of an older commit: every
figure is measured for it, too, in the same run. Needs Linux. Where a Docker engine and the base
image are found, the images are built and measured as well. What costs CPU is measured in turn, and
the median is shown, since machines are noisy. The exit code is 1 where a measurement has failed.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import NamedTuple, TypeVar

import psutil
from docker.errors import DockerException

from bench.cpu import cpu_seconds
from bench.image_sizes import DEFAULT_LIMIT, TLS_LIMIT, sizes
from bench.processes import (
    NotMeasuredError,
    Peers,
    Subject,
    Version,
    build_images,
    descriptors,
    resident,
    run_peers,
)
from containers.engine import BuildError, MissingError, connect
from kit.peers.registry import Registry
from kit.sidecar import ROOT

WARM_UP = 20  # heartbeats before anything is measured
ON_ONE_CONNECTION = 100  # heartbeats
T = TypeVar("T")


class Scale(NamedTuple):
    """How much is measured."""

    heartbeats: int  # for the memory
    repeats: int
    rounds: int  # of probe and heartbeat, in each repeat


FULL = Scale(10_000, 5, 1000)
QUICK = Scale(1000, 3, 200)


class Row(NamedTuple):
    """One line of the table: a figure, now and perhaps before, and what it should be."""

    figure: str
    cells: Sequence[object]
    reach: str = ""
    reached: bool | None = None  # by the first cell
    beside: str = ""  # what the figure is compared with, measured in the same run


Rows = Iterator[Row]
Section = Callable[[Sequence[Version], Peers, Scale], Rows]
Pairs = Sequence[tuple[float, float]]  # what was measured, and what beside it or after it


def in_turn(times: int, *measures: Callable[[], T]) -> list[list[T]]:
    """Take every measure so many times, one after the other; return what each has brought."""
    rounds = [[measure() for measure in measures] for _ in range(times)]
    return [list(found) for found in zip(*rounds, strict=True)]


def beside(figure: str, pairs: Sequence[Pairs], what: str, most: float) -> Row:
    """Compare CPU seconds with those of something else, measured each time right beside them.

    Args: for each version all pairs of the two; what the second is of; the factor to reach.
    """
    ratios = [median(used / least for used, least in each) for each in pairs]
    times = [1000 * median(used for used, _ in each) for each in pairs]
    cells = [f"{used:.3g} ms, {ratio:.2f}x" for used, ratio in zip(times, ratios, strict=True)]
    least = 1000 * median(least for each in pairs for _, least in each)
    return Row(figure, cells, f"≤ {most:g}x", ratios[0] <= most, f"{least:.3g} ms: {what}")


def at_most(figure: str, values: Sequence[float], form: str, limit: float) -> Row:
    """Return a row of plain numbers."""
    cells = [form.format(value) for value in values]
    return Row(figure, cells, f"≤ {form.format(limit)}", values[0] <= limit)


def in_the_image(row: Row, versions: Sequence[Version]) -> Row:
    """Return the row, its aim left out elsewhere: Python starts with less in the image."""
    return row if versions[0].images else row._replace(reach="", reached=None)


# ---- from source and in the image


def round_rows(versions: Sequence[Version], peers: Peers, scale: Scale) -> Rows:
    """CPU for a probe and a heartbeat."""
    script = f"{versions[0].tests}/bench/plain_session.py"
    plain = versions[0].command(script, *peers, str(scale.rounds))

    def plain_round() -> float:
        return float(subprocess.run(plain, capture_output=True, timeout=300, check=True).stdout)

    def agent_round(version: Version) -> float:
        with version.fast_agent(**peers.settings) as agent:
            agent.wait_beats(WARM_UP, timeout=60.0)
            first, before = agent.beats, cpu_seconds(agent.pid)
            agent.wait_beats(first + scale.rounds, timeout=120.0)
            return (cpu_seconds(agent.pid) - before) / (agent.beats - first)

    rounds = (functools.partial(agent_round, version) for version in versions)
    least, *each = in_turn(scale.repeats, plain_round, *rounds)
    figure = f"CPU for a probe and a heartbeat, {versions[0].where}"
    pairs = [list(zip(one, least, strict=True)) for one in each]
    row = beside(figure, pairs, "the two calls on a plain requests.Session", 0.85)
    yield in_the_image(row, versions)


def life_rows(versions: Sequence[Version], peers: Peers, scale: Scale) -> Rows:
    """CPU until registered, and the seconds from SIGTERM to exit."""

    def life(version: Version) -> tuple[float, float]:
        with Subject(version, **peers.settings) as agent:
            agent.wait_registered(timeout=60.0)
            cpu, process = cpu_seconds(agent.pid), psutil.Process(agent.pid)
            began = time.monotonic()
            process.terminate()
            process.wait(10.0)
            stop = time.monotonic() - began
            assert agent.wait(30.0) == 0, agent.lines[-1]
            return cpu, stop

    lives = in_turn(scale.repeats, *(functools.partial(life, version) for version in versions))
    cpu, stop = zip(*(map(median, zip(*each, strict=True)) for each in lives), strict=True)
    where, ms = versions[0].where, [1000 * seconds for seconds in cpu]
    yield in_the_image(at_most(f"CPU until registered, {where}", ms, "{:.3g} ms", 65), versions)
    yield at_most(f"from SIGTERM to exit, idle registry, {where}", stop, "{:.3g} s", 0.1)


def growth_rows(versions: Sequence[Version], peers: Peers, scale: Scale) -> Rows:
    """Growth with the number of heartbeats."""
    subjects = [version.fast_agent(**peers.settings) for version in versions]
    what = f"{scale.heartbeats:,} heartbeats, {versions[0].where}"
    yield growth_row(what, subjects, scale.heartbeats)


def renewal_rows(versions: Sequence[Version], peers: Peers, scale: Scale) -> Rows:
    """Growth with the number of renewed secrets."""
    subjects = [version.fast_agent(renews=True, **peers.settings) for version in versions]
    number = scale.heartbeats // 10
    yield growth_row(f"{number:,} renewed tokens and headers", subjects, number)


def growth_row(what: str, subjects: Sequence[Subject], heartbeats: int) -> Row:
    """Measure all of them at once: it does not depend on speed."""

    def growth(subject: Subject) -> tuple[int, int]:
        """Return by how many kB and file descriptors a sidecar grows over so many heartbeats.

        Those of a tenth come before: until then Python's memory is not yet where it stays.
        """
        with subject as agent:
            agent.wait_beats(heartbeats // 10, timeout=60.0)
            first, before, files = agent.beats, resident(agent.pid), descriptors(agent.pid)
            agent.wait_beats(first + heartbeats, timeout=600.0)
            return (resident(agent.pid) - before) // 1024, descriptors(agent.pid) - files

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(growth, subjects))
    cells = [f"{kB} kB, {files}" for kB, files in found]
    reached = found[0][0] < 256 and found[0][1] <= 0
    return Row(f"growth over {what}: RSS, file descriptors", cells, "< 256 kB, 0", reached)


# ---- from source only, and in the image only


def wire_rows(versions: Sequence[Version], peers: Peers, _scale: Scale) -> Rows:
    """Bytes and connections to the registry."""
    lengths, connections = [], []
    for version in versions:
        with Registry() as registry:
            settings = peers.settings | {"REGISTRY_URL": registry.url}
            with version.fast_agent(**settings) as agent:
                agent.wait_beats(ON_ONE_CONNECTION, timeout=60.0)
        beats = [one for one in registry.requests if one.operation == "heartbeat"]
        beats = beats[:ON_ONE_CONNECTION]
        lengths.append(max(beat.size for beat in beats))
        until = beats[-1].at
        connections.append(len({one.connection for one in registry.requests if one.at <= until}))
    yield at_most("bytes of a heartbeat request", lengths, "{}", 200)
    figure = f"TCP connections to the registry for {ON_ONE_CONNECTION} heartbeats"
    yield Row(figure, connections, "1", connections[0] == 1)


def size_rows(versions: Sequence[Version], _peers: Peers, _scale: Scale) -> Rows:
    """Sizes."""
    for words, limit in (("default", DEFAULT_LIMIT), ("TLS", TLS_LIMIT)):
        found = []
        for version in versions:
            assert version.images
            tag, name = version.tag, f"{version.name}-tls"
            if words == "TLS":
                tag = version.images.build(name, version.root, "--build-arg", "TLS=1")
            found.append(sizes(version.images.client, tag))
        reached = all(size <= most for size, most in zip(found[0], limit, strict=True))
        yield Row(f"image on disk / compressed, {words}", found, f"≤ {limit}", reached)


def idle_rows(versions: Sequence[Version], peers: Peers, scale: Scale) -> Rows:
    """Idle memory, and the CPU of a health check."""

    def check(agent: Subject) -> tuple[float, float]:
        """Return the CPU seconds of a health check, and of a Python without work."""
        command = "python -I /tests/bench/cpu.py 10 /app/healthcheck.pyc"
        code, found = agent.container.exec_run(command)
        assert code == 0, found
        assert isinstance(found, bytes)
        used, bare = map(median, zip(*json.loads(found), strict=True))
        return used, bare

    with contextlib.ExitStack() as stack:
        agents = [stack.enter_context(Subject(version, **peers.settings)) for version in versions]
        for agent in agents:
            agent.wait_registered(timeout=60.0)
        memory = [resident(agent.pid) / 1e6 for agent in agents]
        checks = in_turn(scale.repeats, *(functools.partial(check, agent) for agent in agents))
    yield at_most("memory of an idle container (RSS)", memory, "{:.4g} MB", 16.2)
    yield beside("CPU of a health check, in the image", checks, "python -I -S -c pass", 1.2)


# ---- the table

SOURCE_SECTIONS = (wire_rows, round_rows, life_rows, growth_rows, renewal_rows)
IMAGE_SECTIONS = (size_rows, idle_rows, round_rows, life_rows, growth_rows)
FAILURES = (
    AssertionError, OSError, subprocess.SubprocessError, psutil.Error, DockerException, BuildError,
)  # fmt: skip


def measure(roots: list[Path], scale: Scale, images: bool) -> Rows:
    """Yield every row; where something cannot be measured here, a row that says why."""

    def image_rows() -> Rows:
        with build_images(roots) as versions:
            yield from rows_of(IMAGE_SECTIONS, versions, peers, scale)

    with run_peers() as peers:
        yield from rows_of(SOURCE_SECTIONS, list(map(Version, roots)), peers, scale)
        if images:
            yield from explained("the image", image_rows())


def rows_of(
    sections: Iterable[Section], versions: list[Version], peers: Peers, scale: Scale
) -> Rows:
    for section in sections:
        name = f"{(section.__doc__ or '').rstrip('.')}, {versions[0].where}"
        print(f"measuring: {name}", file=sys.stderr)
        yield from explained(name, section(versions, peers, scale))


def explained(name: str, rows: Rows) -> Rows:
    """Yield the rows, and instead of an exception one that says what is missing."""
    try:
        yield from rows
    except (NotMeasuredError, PermissionError) as error:
        yield Row(name, [f"not measured: {error}"])
    except FAILURES as error:
        print(error, file=sys.stderr)
        yield Row(name, [f"failed: {str(error).partition(chr(10))[0]}"], reached=False)


def table(rows: Iterable[Row], columns: list[str]) -> str:
    """Return the rows as a Markdown table; `columns` are the headings of the rows' cells."""
    verdicts = {None: "", True: "reached", False: "**not reached**"}
    lines = [["figure", *columns, "compared with", "to reach", ""]]
    lines.append(["---"] * len(lines[0]))
    for row in rows:
        cells = [*map(str, row.cells), ""][: len(columns)]
        lines.append([row.figure, *cells, row.beside, row.reach, verdicts[row.reached]])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def machine() -> str:
    """Say in a few words where this was measured."""
    linux, python = platform.release().partition("-")[0], platform.python_version()
    words = f"{os.cpu_count()} cores, {platform.machine()}, Linux {linux}, Python {python}"
    with contextlib.suppress(MissingError):
        words += f", Docker {connect().version()['Version']}"
    return words


def main() -> int:
    """Measure, print the table and write it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, and no images")
    parser.add_argument("--before", type=Path, metavar="DIRECTORY", help="measure this, too")
    options = parser.parse_args()
    if sys.platform != "linux":
        parser.error("it reads /proc, so it needs Linux")
    if options.before and not (options.before / "agent.py").is_file():
        parser.error(f"{options.before} is no checkout of this project")
    roots, scale = [ROOT], QUICK if options.quick else FULL
    command = "sh tests/bench.sh" + " --quick" * options.quick
    if options.before:
        roots.append(options.before.resolve())
        command += " --before DIRECTORY"
    rows = list(measure(roots, scale, images=not options.quick))
    print(f"Measured by `{command}` on {machine()}:\n")
    print(table(rows, ["now", "before"][: len(roots)]), end="")
    return 1 if any(str(row.cells[0]).startswith("failed") for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
