#!/usr/bin/env python3
"""100 real sidecars, a real registry, an outage; beside them the simulation of the same fleet. Linux, 4 minutes.

`python tests/fleet/real.py`, from the project's root. To start in one instant, all sidecars wait for the answer
to their first probe, while the toy service answers nothing; then it answers all, and the registry is down.
"""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a script
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]
from harness import Sidecar, wait_until
from peers.registry import Registry
from peers.service import ToyService

from fleet.simulate import share_of, table
from fleet.simulation import Trouble, between, busiest, simulate

SIZE = 100
OUTAGE = 90.0  # seconds
BACK_WITHIN = 75.0  # seconds that the run waits for the last sidecar; a step of the backoff is 60
STEADY = 30.0  # seconds, one interval, of the steady state
PATIENCE = 15.0  # seconds of a probe, the most that an interval of 30 s allows
SEED = 1


class Figures(NamedTuple):
    """What came of the outage, counted from the registry's return."""

    knocks: int  # in the busiest second, of sidecars not yet back
    tenth: int  # and in the busiest 100 ms
    median: float  # seconds until back
    p99: float
    longest: float
    calls: float  # of a sidecar, from the start until it was back
    mean: float  # requests a second in the steady state afterwards
    peak: int  # and in its busiest second


def figures(knocks: list[float], waits: list[float], calls: float, steady: list[float]) -> Figures:
    """Work out the figures; all times are in order and in seconds from the registry's return."""
    tenth, second = busiest(knocks, 0.1), busiest(knocks, 1.0)
    spread = (share_of(waits, 0.5), share_of(waits, 0.99), waits[-1])
    return Figures(second, tenth, *spread, calls, len(steady) / STEADY, busiest(steady, 1.0))


def real() -> Figures:
    """Run the processes. Raises AssertionError where one does not come back."""
    registry, service = Registry(), ToyService()
    registry.port  # noqa: B018  # chooses it, so that the sidecars know it while the registry is down
    with service, contextlib.ExitStack() as stack:
        service.pause()
        fleet = [
            stack.enter_context(
                Sidecar(
                    registry,
                    service,
                    SERVICE_NAME=f"service_{number:06}",
                    HEARTBEAT_INTERVAL=30,
                    SERVICE_HEALTH_TIMEOUT=PATIENCE,
                    INITIAL_WAIT_TIMEOUT=600,
                )
            )
            for number in range(SIZE)
        ]
        wait_until(lambda: service.connections >= SIZE, 60, "not all sidecars look for their service")
        service.resume()
        time.sleep(OUTAGE)
        with registry:
            back = time.monotonic()
            wait_until(lambda: len(registry.names()) == SIZE, BACK_WITHIN, "a sidecar is not back", every=0.1)
            everybody = time.monotonic()
            time.sleep(STEADY)
        asked = [(request.at - back, request.json()["service_name"]) for request in registry.requests if request.body]
        first = {name: at for at, name in reversed(asked)}
        failures = sum(sidecar.count("Registration failed") for sidecar in fleet)
        starts = sorted(first_failure(sidecar) for sidecar in fleet)
    print(f"Of {SIZE} sidecars {busiest(starts, 1.0)} began within one second; {failures} tries met the outage.\n")
    waits = sorted(first.values())
    steady = [request.at - back for request in registry.requests if request.at > everybody]
    return figures(waits, waits, failures / SIZE + 1, steady)


def first_failure(sidecar: Sidecar) -> float:
    """Return when the first try to register failed, by the monotonic clock."""
    return next(at for at, line in zip(sidecar.times, sidecar.lines, strict=False) if "Registration failed" in line)


def simulated() -> Figures:
    """Run the same fleet in simulated time."""
    trouble = Trouble(0, OUTAGE)
    seen = simulate(SIZE, OUTAGE + BACK_WITHIN + STEADY, trouble, SEED)
    knocks = [at - OUTAGE for at in between(seen.knocks, OUTAGE, float("inf"))]
    waits = sorted(at - OUTAGE for at in seen.back.values())
    steady = [at - OUTAGE for at in between(seen.arrivals, OUTAGE + BACK_WITHIN, float("inf"))]
    return figures(knocks, waits, len(seen.knocks) / SIZE, steady)


def main() -> int:
    """Print both as a table in Markdown."""
    heads = ["", "busiest second, not yet back", "busiest 100 ms", "back: p50", "p99", "max",
             "calls each until back", "steady: mean a second", "busiest second"]  # fmt: skip
    rows = [
        [title, f.knocks, f.tenth, f"{f.median:.1f} s", f"{f.p99:.1f} s", f"{f.longest:.1f} s", f"{f.calls:.1f}",
         f"{f.mean:.1f}", f.peak]
        for title, f in ((f"{SIZE} real processes", real()), (f"simulated, seed {SEED}", simulated()))
    ]  # fmt: skip
    print(table(heads, rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
