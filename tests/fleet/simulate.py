"""What a fleet does to its registry, by simulation: prints tables in Markdown.

`PYTHONPATH=tests python -m fleet.simulate`, from the project's root; --help has the sizes, the days
and the seed. How the simulation works is in simulation.py; every row is a run of the real agent.
"""

import argparse
import collections
import itertools
import math
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import agent
from fleet.simulation import Trouble, busiest, simulate

INTERVAL = 30.0  # seconds, of a heartbeat
SPREAD = 300.0  # seconds after which a fleet is in its steady state
CYCLE = 9 * INTERVAL  # seconds of the steady state that are looked at
MINUTES, DAY = 60.0, 86400.0
WATCHED = 360.0  # seconds after the registry's return
# Of a steady state, of which the median counts; fewer of a fleet so large that chance evens out.
RUNS = 5
SERVICES = 90  # in the long run with requests lost
LOSSES = (0.001, 0.01, 0.05)


class Scenario(NamedTuple):
    title: str
    trouble: Trouble
    share: float = math.inf  # of the fleet, whose requests the registry takes in a second
    jitter: bool = True


LONG = Trouble(0, 10 * MINUTES)
SCENARIOS = {
    "start": Scenario("all started in one instant", Trouble()),
    "start, 45 s": Scenario("the same, registry down for the first 45 s", Trouble(0, 45)),
    "start, 10 min": Scenario("the same, for the first 10 min", LONG),
    "start, 10 min, hangs": Scenario("the same, and it hangs", LONG._replace(hangs=True)),
    "start, 10 min, no jitter": Scenario("10 min, and sidecars without jitter", LONG, jitter=False),
    "steady, 45 s": Scenario("steady state, then down for 45 s", Trouble(SPREAD, 45)),
    "steady, 10 min": Scenario("steady state, then down for 10 min", LONG._replace(start=SPREAD)),
    "start, slow": Scenario("all started in one instant, N/20 taken a second", Trouble(), 1 / 20),
    "start, 10 min, slow": Scenario("down for the first 10 min, then N/20 a second", LONG, 1 / 20),
}


class Figures(NamedTuple):
    """What came of a scenario, counted from the registry's return."""

    knocks: int  # in the busiest second, of sidecars not yet back
    second: int  # arrivals of any kind in the busiest second
    tenth: int  # and in the busiest 100 ms
    median: float  # seconds until back
    p99: float
    longest: float
    calls: float  # of a sidecar, from the start of the outage until it was back
    missing: int  # sidecars that never came back


def outcome(size: int, name: str, seed: int) -> Figures:
    """Run one of SCENARIOS with so many sidecars."""
    _, trouble, share, jitter = SCENARIOS[name]
    capacity = math.ceil(size * share) if share < 1 else math.inf
    end = trouble.end
    seen = simulate(size, end + WATCHED, trouble._replace(capacity=capacity), seed, jitter)
    knocks, arrivals = ([at for at in times if at >= end] for times in (seen.knocks, seen.arrivals))
    waits = sorted(at - end for at in seen.back.values())
    median, p99, longest = (waits[math.ceil(part * len(waits)) - 1] for part in (0.5, 0.99, 1))
    crowds = busiest(knocks, 1.0), busiest(arrivals, 1.0), busiest(arrivals, 0.1)
    return Figures(*crowds, median, p99, longest, len(seen.knocks) / size, size - len(waits))


class Steady(NamedTuple):
    """Requests a second in the steady state of a fleet that was started in one instant."""

    mean: float
    peak: float  # the busiest whole second; the median over some runs

    @property
    def ratio(self) -> float:
        return self.peak / self.mean


def steady(size: int, seed: int) -> Steady:
    """Look at the steady state for a while."""
    peaks, means = [], []
    for number in range(seed, seed + (RUNS if size <= 1000 else 1)):
        arrivals = simulate(size, SPREAD + CYCLE, Trouble(), number).arrivals
        cycle = collections.Counter(int(at) for at in arrivals if SPREAD <= at < SPREAD + CYCLE)
        peaks.append(max(cycle.values()))
        means.append(cycle.total() / CYCLE)
    return Steady(means[0], statistics.median(peaks))


class Losses(NamedTuple):
    """What a loss of requests did to the records."""

    requests: int
    lost: int
    records: int  # that expired
    longest: float  # seconds that one was absent


def long_run(services: Iterable[int], days: float, loss: float, seed: int) -> Losses:
    """Run services for so many days, each in a world of its own: they do not meet."""
    trouble = Trouble(loss=loss)
    runs = [simulate(1, days * DAY, trouble, seed * 1000 + service) for service in services]
    absences = [absence for seen in runs for absence in seen.absences]
    requests, lost = sum(len(seen.arrivals) for seen in runs), sum(seen.lost for seen in runs)
    return Losses(requests, lost, len(absences), max(absences, default=0.0))


# ---- the tables

BACK = (
    "after the registry's return|N|busiest second, not yet back|all|busiest 100 ms"
    "|back: p50|p99|max|calls each until back|never back"
)


def back_row(size: int, name: str, seed: int) -> str:
    found = outcome(size, name, seed)
    counts = "|".join(f"{number:,}" for number in (size, *found[:3]))
    times = "|".join(f"{seconds:.1f} s" for seconds in found[3:6])
    return f"{SCENARIOS[name].title}|{counts}|{times}|{found.calls:.1f}|{found.missing}"


def steady_row(size: int, seed: int) -> str:
    found = steady(size, seed)
    return f"{size:,}|{found.mean:.1f}|{found.peak:g}|{found.ratio:.2f}"


def losses_row(loss: float, parts: Iterable[Losses]) -> str:
    requests, lost, records, longest = zip(*parts, strict=True)
    return f"{loss:.1%}|{sum(requests):,}|{sum(lost):,}|{sum(records)}|{max(longest):.1f} s"


def show(head: str, rows: Iterable[str]) -> None:
    """Print a table in Markdown, the first column to the left, the others to the right."""
    for line in (head, ":--" + "|--:" * head.count("|"), *rows):
        print(f"| {line.replace('|', ' | ')} |")
    print(flush=True)


def main() -> int:
    """Run all scenarios in as many processes as there are cores, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    sizes = [90, 1000, 10_000, 100_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="of the fleet")
    days = "of the run with losses (%(default)s)"
    parser.add_argument("--days", type=float, default=30.0, help=days)
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    options = parser.parse_args()
    seed, began = itertools.repeat(options.seed), time.monotonic()
    print(f"Seed {options.seed}. Heartbeats every {INTERVAL:g} s, TTL {agent.REGISTRY_TTL:g} s.\n")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        pairs = zip(*itertools.product(options.sizes, SCENARIOS), strict=True)
        back = pool.map(back_row, *pairs, seed)
        states = pool.map(steady_row, options.sizes, seed)
        each = [[number] for number in range(SERVICES)]
        every = itertools.repeat(options.days)
        runs = [pool.map(long_run, each, every, itertools.repeat(loss), seed) for loss in LOSSES]
        show(BACK, back)
        show("steady state|requests a second, mean|busiest second|ratio", states)
        head = f"loss ({SERVICES} services, {options.days:g} days)"
        head += "|requests|lost|records expired|longest absence"
        show(head, map(losses_row, LOSSES, runs))
    print(f"Took {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
