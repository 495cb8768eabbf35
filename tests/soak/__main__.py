"""Runs the soak: `PYTHONPATH=tests python -m soak --seconds 600 --seed 1 --agents 8`.

Real agents and services, one embedded registry, faults from both sides as the seed draws them, and
pauses of sanity. What is promised is checked all along. Exit code: 0 all held, 1 something did not,
2 bad arguments, 130 stopped by Ctrl-C.
"""

import argparse
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from kit.sidecar import AGENT
from soak.catalogue import anything, below
from soak.plays import KINDS
from soak.watch import Back, Times, growth
from soak.world import World

INTERVAL = 2.0  # seconds, HEARTBEAT_INTERVAL


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--seconds", type=float, default=600.0, help="how long to play (%(default)s)")
    add("--seed", type=int, help="of all that is drawn (a random one, printed)")
    add("--agents", type=int, default=8, help="(%(default)s)")
    add("--slack", type=float, default=2.0, help="seconds for a loaded machine (%(default)s)")
    add("--agent", type=Path, default=AGENT, help="another agent.py, its healthcheck.py beside it")
    add("--only", action="append", default=[], choices=KINDS, metavar="KIND",
        help=f"keep to this kind, or more: {', '.join(KINDS)}")  # fmt: skip
    add("--stop-at-first", action="store_true", help="end at the first violation")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    if options.agents < 1:
        parser.error("one agent at least")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the soak, print what came of it, return the exit code."""
    options = parse(arguments)
    times, seed, agents = Times(INTERVAL, options.slack), options.seed, options.agents
    say(f"soak: seed {seed}, {options.seconds:g} s, {agents} agents, interval {INTERVAL:g} s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    world = World(agents, times, seed, options.agent, options.only, options.stop_at_first)
    code = 0
    try:
        with world:
            world.play(options.seconds, lambda: say(progress(world)))
    except KeyboardInterrupt:
        say("stopped by hand")
        code = 130
    for line in (*table(world), *summary(world), *violations(world)):
        say(line)
    say(f"\nseed {seed}: {len(world.violations) or 'no'} violations")
    return 1 if world.violations else code


def progress(world: World) -> str:
    """Return how it goes."""
    seconds, faults = time.monotonic() - world.began, world.played.total()
    return f"{seconds:5.0f} s: {faults} faults, {len(world.violations)} violations"


def table(world: World) -> Iterator[str]:
    """Yield a Markdown table: for each kind how often it was played, and its slowest return.

    That is the one that took the largest part of what was promised, the machine's lateness
    included.
    """
    worst: dict[str, Back] = {}
    backs = [back for unit in world.units for back in unit.watch.backs]
    for back in sorted(backs, key=lambda back: back.took / back.promised):
        worst.update(dict.fromkeys(back.causes, back))
    yield "| fault | played | slowest back | promised, slack included |"
    yield "|---|---:|---:|---:|"
    for name, kind in KINDS.items():
        times = "never away | |" if kind.keeps else "| |"
        if name in worst and not kind.keeps:
            times = f"{worst[name].took:.1f} s | {worst[name].promised:.1f} s |"
        yield f"| {name} | {world.played[name]} | {times}"


def summary(world: World) -> Iterator[str]:
    """Yield lines about the whole run."""
    units = world.units
    catalogue = {*anything(), *below()}
    met, missed = len(catalogue & world.met.keys()), sorted(catalogue - world.met.keys())
    exchanges = world.met.total()
    yield f"\nfaults of the catalogue met: {met} of {len(catalogue)}, in {exchanges} exchanges"
    if missed:
        yield f"not met: {', '.join(missed)}"
    if unplayed := [name for name in KINDS if name not in world.played]:
        yield f"not played: {', '.join(unplayed)}"
    probes = sum(unit.service.count() for unit in units)
    requests = sum(unit.registry.count() for unit in units)
    yield f"requests: {requests} to the registry, {probes} probes"
    yield f"log: {sum(len(unit.sidecar.lines) for unit in units)} lines of {len(units)} agents"
    yield f"the record was looked at {world.looks * len(units)} times"
    lives = [life for unit in units for life in unit.lives]
    if samples := [sample for life in lives for sample in life]:
        memory = [sample.memory / 1000 for sample in samples]
        yield f"memory: {statistics.median(memory):.1f} MB, at most {max(memory):.1f} MB"
        if grown := [found.memory for life in lives if (found := growth(life))]:
            yield (
                f"growth in the second half of a life after warm-up: at most {max(grown)} kB,"
                f" {len(grown)} lives judged"
            )
        yield f"descriptors: at most {max(sample.descriptors for sample in samples)}"
    late = max(unit.watch.late.total for unit in units)
    excused = sum(unit.watch.excused for unit in units)
    yield (
        f"lateness of the machine: {late:.1f} s for the worst agent;"
        f" {excused} absences excused by it"
    )


def violations(world: World) -> Iterator[str]:
    """Yield what did not hold, whole."""
    for at, agent, what, fault, tail in world.violations:
        yield f"\nVIOLATION (seed {world.seed}) at {at:.1f} s, {agent}: {what}"
        yield f"  going on: {fault}"
        yield from (f"  | {line}" for line in tail)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
