"""What a fleet does to its registry, by simulation: prints tables in Markdown.

`PYTHONPATH=tests python -m fleet.simulate`, from the project's root; --help has the sizes, the days
and the seed. How the simulation works is in simulation.py; every row is a run of the real agent.
"""

import argparse
import collections
import math
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import agent
from fleet.simulation import Trouble, between, busiest, simulate

INTERVAL = 30.0  # seconds, of a heartbeat
SPREAD = 300.0  # seconds after which a fleet is in its steady state
CYCLE = 9 * INTERVAL  # seconds of the steady state that are looked at
MINUTES = 60.0
DAY = 86400.0
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


SCENARIOS = {
    "start": Scenario("all started in one instant", Trouble()),
    "start, 45 s": Scenario("the same, registry down for the first 45 s", Trouble(0, 45)),
    "start, 10 min": Scenario("the same, for the first 10 min", Trouble(0, 10 * MINUTES)),
    "start, 10 min, hangs": Scenario(
        "the same, and it hangs", Trouble(0, 10 * MINUTES, hangs=True)
    ),
    "start, 10 min, no jitter": Scenario(
        "10 min, and sidecars without jitter", Trouble(0, 10 * MINUTES), jitter=False
    ),
    "steady, 45 s": Scenario("steady state, then down for 45 s", Trouble(SPREAD, 45)),
    "steady, 10 min": Scenario("steady state, then down for 10 min", Trouble(SPREAD, 10 * MINUTES)),
    "start, slow": Scenario("all started in one instant, N/20 taken a second", Trouble(), 1 / 20),
    "start, 10 min, slow": Scenario(
        "down for the first 10 min, then N/20 a second", Trouble(0, 10 * MINUTES), 1 / 20
    ),
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
    scenario = SCENARIOS[name]
    trouble = scenario.trouble._replace(
        capacity=math.ceil(size * scenario.share) if scenario.share < 1 else math.inf
    )
    seen = simulate(size, trouble.end + WATCHED, trouble, seed, scenario.jitter)
    arrivals = between(seen.arrivals, trouble.end, math.inf)
    waits = sorted(at - trouble.end for at in seen.back.values())
    return Figures(
        busiest(between(seen.knocks, trouble.end, math.inf), 1.0),
        busiest(arrivals, 1.0),
        busiest(arrivals, 0.1),
        share_of(waits, 0.5),
        share_of(waits, 0.99),
        waits[-1],
        len(seen.knocks) / size,
        size - len(waits),
    )


def share_of(values: list[float], share: float) -> float:
    """Return the value that so large a share of the sorted values does not exceed."""
    return values[math.ceil(share * len(values)) - 1]


class Steady(NamedTuple):
    """Requests a second in the steady state of a fleet that was started in one instant."""

    mean: float
    peak: float  # the busiest whole second; the median over some runs

    @property
    def ratio(self) -> float:
        return self.peak / self.mean


def steady(size: int, seed: int, jitter: bool = True) -> Steady:
    """Look at the steady state for a while."""
    seeds = range(seed, seed + (RUNS if jitter and size <= 1000 else 1))
    runs = [simulate(size, SPREAD + CYCLE, Trouble(), number, jitter) for number in seeds]
    cycles = [between(seen.arrivals, SPREAD, SPREAD + CYCLE) for seen in runs]
    peaks = [max(collections.Counter(map(int, cycle)).values()) for cycle in cycles]
    return Steady(len(cycles[0]) / CYCLE, statistics.median(peaks))


class Losses(NamedTuple):
    """What a loss of requests did to the records."""

    requests: int
    lost: int
    records: int  # that expired
    longest: float  # seconds that one was absent


def long_run(services: Iterable[int], days: float, loss: float, seed: int) -> Losses:
    """Run services for so many days, each in a world of its own: they do not meet."""
    runs = [
        simulate(1, days * DAY, Trouble(loss=loss), seed * 1000 + service) for service in services
    ]
    absences = [absence for seen in runs for absence in seen.absences]
    requests = sum(len(seen.arrivals) for seen in runs)
    return Losses(
        requests, sum(seen.lost for seen in runs), len(absences), max(absences, default=0.0)
    )


def one_long_run(work: tuple[int, float, float, int]) -> Losses:
    service, days, loss, seed = work
    return long_run([service], days, loss, seed)


# ---- the tables


def table(heads: Iterable[object], rows: Iterable[Iterable[object]]) -> str:
    """Return a table in Markdown, the first column to the left, the others to the right."""
    lines = [list(map(str, line)) for line in (heads, *rows)]
    lines.insert(1, [":--", *["--:"] * (len(lines[0]) - 1)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Run all scenarios in as many processes as there are cores, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[90, 1000, 10_000, 100_000], help="of the fleet"
    )
    parser.add_argument(
        "--days", type=float, default=30.0, help="simulated, of the run with losses (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=1, help="(%(default)s)")
    options = parser.parse_args()
    sizes, seed, began = options.sizes, options.seed, time.monotonic()
    print(f"Seed {seed}. Heartbeats every {INTERVAL:g} s, TTL {agent.REGISTRY_TTL:g} s.\n")
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        runs = {
            (size, name): pool.submit(outcome, size, name, seed)
            for size in sizes
            for name in SCENARIOS
        }
        steadies = {size: pool.submit(steady, size, seed) for size in sizes}
        work = {
            loss: [(service, options.days, loss, seed) for service in range(SERVICES)]
            for loss in LOSSES
        }
        losses = {loss: pool.map(one_long_run, work[loss]) for loss in LOSSES}
        print(table(
            ["after the registry's return", "N", "busiest second, not yet back", "all",
             "busiest 100 ms",
             "back: p50", "p99", "max", "calls each until back", "never back"],
            ([SCENARIOS[name].title, f"{size:,}", f"{f.knocks:,}", f"{f.second:,}", f"{f.tenth:,}",
              f"{f.median:.1f} s",
              f"{f.p99:.1f} s", f"{f.longest:.1f} s", f"{f.calls:.1f}", f.missing]
             for (size, name), f in ((key, run.result()) for key, run in runs.items())),
        ), flush=True)  # fmt: skip
        print()
        print(table(
            ["steady state", "requests a second, mean", "busiest second", "ratio"],
            ([f"{size:,}", f"{s.mean:.1f}", f"{s.peak:g}", f"{s.ratio:.2f}"]
             for size, s in ((size, run.result()) for size, run in steadies.items())),
        ), flush=True)  # fmt: skip
        print()
        rows = []
        for loss, parts in losses.items():
            requests, lost, records, longest = zip(*parts, strict=True)
            rows.append(
                [
                    f"{loss:.1%}",
                    f"{sum(requests):,}",
                    f"{sum(lost):,}",
                    sum(records),
                    f"{max(longest):.1f} s",
                ]
            )
        heads = [
            f"loss ({SERVICES} services, {options.days:g} days)",
            "requests",
            "lost",
            "records expired",
        ]
        print(table([*heads, "longest absence"], rows))
    print(f"\nTook {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
