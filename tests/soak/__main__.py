"""Runs the soak: `PYTHONPATH=tests python -m soak --seconds 600 --seed 1 --agents 8`.

Real agents and services, one embedded registry, faults from both sides as the seed draws them, and
pauses of sanity. What is promised is checked all along. Exit code: 0 all held, 1 something did not,
2 bad arguments, 130 stopped by Ctrl-C.
"""

import argparse
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from kit.sidecar import AGENT
from soak.invariants import Times
from soak.report import report
from soak.schedule import KINDS, Round, rounds
from soak.world import World

PROGRESS_EVERY = 30.0  # seconds


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=600.0, help="how long to play (%(default)s)"
    )
    parser.add_argument("--seed", type=int, help="of the schedule (a random one, printed)")
    parser.add_argument("--agents", type=int, default=8, help="(%(default)s)")
    parser.add_argument(
        "--interval", type=float, default=2.0, help="HEARTBEAT_INTERVAL; the TTL is twice as long"
    )
    parser.add_argument(
        "--slack", type=float, default=2.0, help="seconds for a loaded machine (%(default)s)"
    )
    parser.add_argument("--agent", type=Path, default=AGENT,
                        help="another agent.py, its healthcheck.py beside it")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], choices=KINDS, metavar="KIND",
                        help=f"keep to this kind, or more: {', '.join(KINDS)}")  # fmt: skip
    parser.add_argument("--stop-at-first", action="store_true", help="end at the first violation")
    parser.add_argument(
        "--list", type=int, default=0, metavar="N", help="print the first N rounds and do nothing"
    )
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    if options.agents < 1 or options.interval <= 0:
        parser.error("one agent at least, and an interval above 0")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run the soak, print what came of it, return the exit code."""
    options = parse(arguments)
    schedule = rounds(options.seed, options.agents, options.interval, options.only)
    if options.list:
        for _ in range(options.list):
            this = next(schedule)
            say(f"{this.number}, {this.dialect}: {this.outage or 'no outage'}")
            for agent, track in enumerate(this.tracks):
                say(f"  {agent}: {'; '.join(map(str, track))}")
        return 0
    # Deadlines scaled down with the interval: 5 s and 10 s in 30 s would be less, but for a loaded
    # machine.
    times = Times(
        2 * options.interval,
        options.interval,
        0.3 * options.interval,
        0.4 * options.interval,
        options.slack,
    )
    say(
        f"soak: seed {options.seed}, {options.seconds:g} s, {options.agents} agents,"
        f" TTL {times.ttl:g} s, interval {times.interval:g} s"
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    world = World(options.agents, times, options.seed, options.agent, options.stop_at_first)
    code = 0
    try:
        with world:
            soak(world, schedule, options.seconds)
            if not world.end.is_set():  # else nobody has ended what was going on
                world.finish()
    except KeyboardInterrupt:
        say("stopped by hand")
        code = 130
    report(world, options.seed, say)
    return 1 if world.violations else code


def soak(world: World, schedule: Iterator[Round], seconds: float) -> None:
    """Play rounds until the time is over or the world has ended."""
    said_at = began = time.monotonic()
    told = 0
    world.settle()
    while time.monotonic() - began < seconds and not world.end.is_set():
        this = next(schedule)
        world.play(this, began + seconds)
        if time.monotonic() - said_at > PROGRESS_EVERY:
            said_at = time.monotonic()
            say(
                f"{said_at - began:5.0f} s: {this.number} rounds, {world.played.total()} faults,"
                f" {len(world.violations)} violations"
            )
            for violation in world.violations[told:]:  # the report has more, but late
                say(f"        {violation.agent}: {violation.what}")
            told = len(world.violations)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
