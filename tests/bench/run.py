"""The benchmark: what the sidecar costs, beside references measured in the same run, as one Markdown table.

    sh tests/bench.sh [--quick] [--output FILE]
    python tests/bench/run.py [--quick] [--output FILE]      where the requirements that bench.sh names are installed

Linux only. Where a Docker engine and the base image are found, the image is built and measured too. A figure
that cannot be had on this machine says why. What costs CPU is repeated in turn with its references, and the
median is shown, since machines are noisy. Takes about 4 minutes, with --quick one or two.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

if not __package__:  # run as a script
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
from bench import cpu, image_sizes
from bench.processes import (
    BENCH,
    DOCKER_RUN,
    Contained,
    Memory,
    NotMeasuredError,
    Peers,
    Subject,
    build_images,
    descriptors,
    memory,
    run_peers,
)
from bench.relay import Relay
from containers.engine import Images, MissingError, connect
from docker.errors import DockerException
from fleet.simulate import outcome
from harness import AGENT, HEALTHCHECK, ROOT
from peers.faults import FAULTS

FAST_AGENT = str(BENCH / "fast_agent.py")
FAST_IN_IMAGE = ("/bench/fast_agent.py", "/app")
PASS = ("-I", "-S", "-c", "pass")
IMPORT_REQUESTS = ("-I", "-W", "ignore", "-c", "import requests")
WARM_UP = 20  # heartbeats before anything is measured
LIMIT = 24  # MB of memory that the container lives in


class Scale(NamedTuple):
    """How much is measured."""

    heartbeats: int  # for the memory
    repeats: int
    rounds: int  # of probe and heartbeat, in each repeat
    packets: int  # heartbeats to count them for
    images: bool


FULL = Scale(10_000, 5, 1000, 100, images=True)
QUICK = Scale(1000, 3, 200, 20, images=False)


class Row(NamedTuple):
    """One line of the table: a figure of the sidecar, those of the references, and what it should be."""

    figure: str
    sidecar: str
    plain: str = ""  # requests alone: a loop on a Session, or its import
    bare: str = ""  # a Python that does nothing
    reach: str = ""
    reached: bool | None = None

    def cells(self) -> list[str]:
        verdict = {None: "", True: "reached", False: "**not reached**"}[self.reached]
        return [*self[:5], verdict]


HEADINGS = Row("figure", "sidecar", "plain requests", "bare Python", "to reach")
Rows = Iterator[Row]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


# ---------------------------------------------------------------------------- memory


def memory_rows(peers: Peers, scale: Scale) -> Rows:
    """Memory on this machine's Python, and whether it grows."""
    with Subject.of(FAST_AGENT, str(ROOT), **peers.settings) as agent:
        growth = grow(agent, scale.heartbeats)
    plain, bare = idle_memory("import requests"), idle_memory("")
    yield Row("memory at start: RSS / PSS / private", str(growth.before), str(plain), str(bare))
    yield from growth.rows()


class Growth(NamedTuple):
    """The memory of a sidecar before and after so many heartbeats."""

    heartbeats: int
    before: Memory
    after: Memory
    descriptors: tuple[int, int]

    @property
    def kilobytes(self) -> int:
        return (self.after.rss - self.before.rss) // 1024

    def rows(self) -> Rows:
        """Return the lines of the table."""
        yield Row(f"memory after {self.heartbeats:,} heartbeats: RSS / PSS / private", str(self.after))
        yield Row(
            f"RSS grows over {self.heartbeats:,} heartbeats by",
            f"{self.kilobytes} kB",
            reach="< 256 kB",
            reached=self.kilobytes < 256,
        )
        yield Row(
            "file descriptors before and after",
            "{}, {}".format(*self.descriptors),
            reach="as many",
            reached=self.descriptors[1] <= self.descriptors[0],
        )


def grow(subject: Subject, heartbeats: int) -> Growth:
    """Let a sidecar send so many heartbeats and return what came of its memory."""
    subject.wait_beats(WARM_UP, timeout=60.0)
    before, files = memory(subject.pid), descriptors(subject.pid)
    subject.wait_beats(WARM_UP + heartbeats, timeout=600.0)
    return Growth(heartbeats, before, memory(subject.pid), (files, descriptors(subject.pid)))


def idle_memory(code: str) -> Memory:
    """Return the memory of a Python that has run this code and waits."""
    code = f"{code}\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-I", *([] if "import" in code else ["-S"]), "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            return memory(process.pid)
        finally:
            process.kill()


# ---------------------------------------------------------------------------- CPU


def round_rows(peers: Peers, scale: Scale) -> Rows:
    """CPU for a probe and a heartbeat, on this machine's Python."""
    yield round_row(
        "CPU for a probe and a heartbeat, with log, health file and every ninth GET /services",
        scale,
        agent=lambda: Subject.of(FAST_AGENT, str(ROOT), **peers.settings),
        plain=[sys.executable, "-I", str(BENCH / "plain_session.py"), *peers.urls],
    )


def round_row(figure: str, scale: Scale, agent: Callable[[], Subject], plain: list[str]) -> Row:
    """Measure the rounds of the sidecar and of plain_session.py, in turn; `plain` is its command without ROUNDS."""
    ours, least = [], []
    for _ in range(scale.repeats):
        least.append(plain_round([*plain, str(scale.rounds)]))
        with agent() as subject:
            ours.append(cpu_of_a_round(subject, scale.rounds))
    ratio = statistics.median(one / other for one, other in zip(ours, least, strict=True))
    return Row(
        figure,
        f"{milliseconds(statistics.median(ours))}, {ratio:.2f}x",
        f"{milliseconds(statistics.median(least))} (the two calls alone)",
        reach="≤ 1.1x plain requests",
        reached=ratio <= 1.1,
    )


def cpu_of_a_round(subject: Subject, rounds: int) -> float:
    """Return the CPU seconds that a running sidecar spends on a probe and a heartbeat."""
    subject.wait_beats(WARM_UP, timeout=60.0)
    first, before = subject.beats, cpu.cpu_seconds(subject.pid)
    subject.wait_beats(first + rounds, timeout=120.0)
    return (cpu.cpu_seconds(subject.pid) - before) / (subject.beats - first)


def plain_round(command: list[str]) -> float:
    """Run plain_session.py and return its CPU seconds for the two calls."""
    return float(subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout) / 1000


def start_rows(peers: Peers, scale: Scale) -> Rows:
    """CPU and time until registered, on this machine's Python, from the source."""
    starts = [start_up(Subject.of(str(AGENT), **peers.settings)) for _ in range(scale.repeats)]
    agent = median_of(starts)
    plain, bare = map(
        statistics.median,
        cpu.interleaved(scale.repeats, [[sys.executable, *IMPORT_REQUESTS], [sys.executable, *PASS]]),
    )
    yield Row(
        "CPU until registered, from source",
        milliseconds(agent.cpu),
        f"{milliseconds(plain)} (import)",
        milliseconds(bare),
        reach="≤ 150 ms",
        reached=agent.cpu <= 0.15,
    )
    yield Row("time until registered, from source", f"{agent.time:.2f} s")


class StartUp(NamedTuple):
    """What it took until registered, in seconds."""

    cpu: float
    time: float


def start_up(subject: Subject) -> StartUp:
    """Run a sidecar and return what it took until registered."""
    with subject:
        took = subject.registered_after()
        return StartUp(cpu.cpu_seconds(subject.pid), took)


def median_of(starts: list[StartUp]) -> StartUp:
    return StartUp(*map(statistics.median, zip(*starts, strict=True)))


def check_rows(_peers: Peers, scale: Scale) -> Rows:
    """CPU of a health check process, from the source."""
    commands = [[sys.executable, "-I", "-S", str(HEALTHCHECK)], [sys.executable, *PASS]]
    yield check_row("CPU of a health check, from source", *cpu.interleaved(10 * scale.repeats, commands))


def check_row(figure: str, check: list[float], bare: list[float]) -> Row:
    ratio = statistics.median(check) / statistics.median(bare)
    return Row(
        figure,
        f"{milliseconds(statistics.median(check))}, {ratio:.2f}x",
        bare=milliseconds(statistics.median(bare)),
        reach="≤ 1.3x bare Python",
        reached=ratio <= 1.3,
    )


# ---------------------------------------------------------------------------- the wire


def wire_rows(peers: Peers, scale: Scale) -> Rows:
    """Bytes, packets and connections to the registry, of a real agent at a real pace."""
    with Relay(peers.registry) as relay:
        settings = peers.settings | {"HEARTBEAT_INTERVAL": 0.25, "REGISTRY_URL": relay.url}
        with Subject.of(str(AGENT), **settings) as agent:
            traffic = watch(agent, relay, scale.packets)
    yield Row(
        "bytes on the wire, heartbeat: request / answer",
        f"{traffic.request} / {traffic.answer}",
        reach="request ≤ 200",
        reached=traffic.request <= 200,
    )
    yield Row(
        f"TCP connections to the registry for {scale.packets} heartbeats",
        str(traffic.connections),
        reach="1",
        reached=traffic.connections == 1,
    )
    yield Row(
        f"TCP packets in both directions for {scale.packets} heartbeats, with registration and GET /services",
        str(traffic.packets),
    )


class Traffic(NamedTuple):
    """What went between a sidecar and its registry; bytes of the longest heartbeat and its answer."""

    connections: int
    packets: int
    request: int
    answer: int


def watch(subject: Subject, relay: Relay, heartbeats: int) -> Traffic:
    """Wait for so many heartbeats through the relay and return what they took."""
    subject.wait_beats(heartbeats, timeout=120.0)
    connections, packets = relay.connections, relay.packets()
    requests, answers = relay.sizes(b"POST /heartbeat")
    return Traffic(connections, packets, max(requests), max(answers))


# ---------------------------------------------------------------------------- the image


def image_rows(peers: Peers, scale: Scale) -> Rows:
    """All that is measured inside the image."""
    if not scale.images:
        raise NotMeasuredError("left out by --quick")
    with build_images() as images:
        image = images.build("bench", ROOT)

        def agent(*script: str, options: tuple[str, ...] = (), **settings: Any) -> Contained:
            return Contained(images, image, *script, options=options, **peers.settings | settings)

        for words, options in (("free", ()), ("at 0.1 CPU", ("--cpus=0.1",))):
            starts = [start_up(agent(options=options)) for _ in range(scale.repeats)]
            yield from contained_start_rows(words, median_of(starts))
        yield round_row(
            "CPU for a probe and a heartbeat, image",
            scale,
            agent=lambda: agent(*FAST_IN_IMAGE),
            plain=[*DOCKER_RUN, "--entrypoint=python", image, "-I", "/bench/plain_session.py", *peers.urls],
        )
        with agent() as subject:
            yield from idle_rows(subject, scale)
        with agent(*FAST_IN_IMAGE) as subject:
            growth = grow(subject, scale.heartbeats)
        for row in growth.rows():
            yield row._replace(figure=f"{row.figure}, image")
        yield faults_row(images, image)


def contained_start_rows(words: str, agent: StartUp) -> Rows:
    """CPU and time until registered."""
    yield Row(
        f"CPU until registered, image, {words}",
        milliseconds(agent.cpu),
        reach="≤ 150 ms",
        reached=agent.cpu <= 0.15,
    )
    yield Row(
        f"time until registered, image, {words}",
        f"{agent.time:.2f} s",
        reach="≤ 10 s at 0.1 CPU",
        reached=agent.time <= 10,
    )


def idle_rows(agent: Contained, scale: Scale) -> Rows:
    """The memory of a running container, and the CPU of a health check in it."""
    agent.wait_registered(timeout=60.0)
    idle = memory(agent.pid)
    yield Row(
        "memory of an idle container: RSS / PSS / private", str(idle), reach="RSS ≤ 18 MB", reached=idle.rss <= 18e6
    )
    commands = "python -I -S /app/healthcheck.pyc -- python -I -S -c pass"
    code, found = agent.container().exec_run(f"python -I /bench/cpu.py {10 * scale.repeats} {commands}")
    assert code == 0
    assert isinstance(found, bytes)
    yield check_row("CPU of a health check, image", *json.loads(found))


def faults_row(images: Images, image: str) -> Row:
    """Every misbehaviour of the catalogue, by the registry and the service, in a container with little memory."""
    options = (f"--memory={LIMIT}m", f"--memory-swap={LIMIT}m")
    played, peak = "none", 0
    with run_peers() as peers:
        settings = peers.settings | {"HEARTBEAT_INTERVAL": 2}  # which leaves 1 s for each exchange
        with Contained(images, image, *FAST_IN_IMAGE, options=options, **settings) as agent:
            try:
                agent.wait_beats(1, timeout=60.0)
                for played in FAULTS:
                    for port in (peers.service, peers.registry):
                        play(port, played, agent)
                    peak = agent.peak_memory() * 1024
                agent.wait_beats(agent.beats + 10, timeout=60.0)
                peak = agent.peak_memory() * 1024
                outcome = "alive"
            except AssertionError as error:
                outcome = f"after {played}: {error}"
    return Row(
        f"a container limited to {LIMIT}m, {len(FAULTS)} faults played by either side: peak RSS",
        f"{peak / 1e6:.1f} MB, {outcome}",
        reach="alive",
        reached=outcome == "alive",
    )


def play(port: int, fault: str, agent: Subject, timeout: float = 30.0) -> None:
    """Let a peer play the fault, and wait until it was asked again. Raises AssertionError, too if the agent ends."""
    before, until = control(port), time.monotonic() + timeout
    control(port, play=["*", fault, 1])
    while control(port) < before + 2:
        assert agent.process.poll() is None, "the agent has ended"
        assert time.monotonic() < until, f"no request within {timeout:g} s"
        time.sleep(0.05)


def control(port: int, **command: object) -> int:
    """Command a peer; return how many requests it has had."""
    data = json.dumps(command).encode() if command else None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/_control", data, timeout=10) as answer:
        return sum(json.load(answer)["counts"].values())


def size_rows(_peers: Peers, scale: Scale) -> Rows:
    """The sizes of the images."""
    if not scale.images:
        raise NotMeasuredError("left out by --quick")
    with build_images() as images:
        for variant in image_sizes.VARIANTS:
            got, limit = image_sizes.measure(images.client, variant), variant.limit
            sizes, most = (" / ".join(map(image_sizes.megabytes, pair or ())) for pair in (got, limit))
            yield Row(
                f"image on disk / compressed, {variant.name}",
                sizes,
                reach=f"≤ {most}" if limit else "",
                reached=all(size <= highest for size, highest in zip(got, limit, strict=True)) if limit else None,
            )


def fleet_rows(_peers: Peers, _scale: Scale) -> Rows:
    """The worst of three simulated outages; tests/fleet/simulate.py has the whole of it."""
    runs = [outcome(1000, "start, 10 min", seed) for seed in (1, 2, 3)]
    knocks, longest = max(run.knocks for run in runs), max(run.longest for run in runs)
    missing = sum(run.missing for run in runs)
    yield Row(
        "1,000 sidecars in lockstep, registry back after 10 min: registrations in the busiest second, all back after",
        f"{knocks}, {longest:.0f} s" + (f", but {missing} never" if missing else ""),
        reach="≤ 45, 60 s",
        reached=knocks <= 45 and longest <= 60 and not missing,
    )


def line_rows(_peers: Peers, _scale: Scale) -> Rows:
    """The length of the source."""
    lines = len(AGENT.read_text().splitlines())
    yield Row("lines of the source, with docstrings", str(lines), reach="as few as stay readable")


# ---------------------------------------------------------------------------- the table

SECTIONS: tuple[tuple[str, Callable[[Peers, Scale], Rows]], ...] = (
    ("the wire", wire_rows),
    ("CPU for a probe and a heartbeat", round_rows),
    ("CPU and time until registered", start_rows),
    ("CPU of a health check", check_rows),
    ("memory", memory_rows),
    ("the image", image_rows),
    ("image sizes", size_rows),
    ("the fleet", fleet_rows),
    ("lines", line_rows),
)


def measure(scale: Scale) -> Rows:
    """Yield every row; where a section cannot be measured here, a row that says why."""
    with run_peers() as peers:
        for name, section in SECTIONS:
            print(f"measuring: {name}", file=sys.stderr)
            try:
                yield from section(peers, scale)
            except NotMeasuredError as error:
                yield Row(name, f"not measured: {error}")
            except (AssertionError, OSError, subprocess.SubprocessError, DockerException) as error:
                yield Row(name, f"failed: {str(error).partition(chr(10))[0]}", reached=False)


def table(rows: list[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADINGS.cells(), ["---"] * 6, *(row.cells() for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def machine() -> str:
    """Say in a few words where this was measured."""
    words = [f"{os.cpu_count()} cores", platform.machine(), f"Linux {platform.release().partition('-')[0]}"]
    words.append(f"Python {platform.python_version()}")
    with contextlib.suppress(MissingError):
        words.append(f"Docker {connect().version()['Version']}")
    return ", ".join(words)


def main() -> int:
    """Measure, print the table and write it. Returns 1 where a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, and no images")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the table there, too")
    options = parser.parse_args()
    if sys.platform != "linux":
        print("run.py: reads /proc, so it needs Linux", file=sys.stderr)
        return 2
    rows = list(measure(QUICK if options.quick else FULL))
    command = f"sh tests/bench.sh{' --quick' if options.quick else ''}"
    text = f"Measured by `{command}` on {machine()}:\n\n{table(rows)}"
    print(text, end="")
    if options.output:
        options.output.write_text(text)
    return 1 if any(row.reached is False for row in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
