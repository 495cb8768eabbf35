"""What the lists of replicas lack whose common store is gone, interval by interval.

    PYTHONPATH=tests python -m fleet.replicas --replicas 3 --turns strict --sidecars 12

Each replica answers from its own memory, heartbeats are accepted for any name, and a balancer gives
each request to the next replica. Real sidecars register; then all memories are emptied, and it is
counted how many names each list lacks, and how many requests that takes.
"""

import argparse
import collections
import contextlib
import itertools
import random
import time
from collections.abc import Iterator

from kit.peers.balancer import TURNS, Balancer
from kit.peers.registry import Registry
from kit.peers.server import Request
from kit.peers.service import ToyService
from kit.sidecar import Sidecar, wait_until

GOALS = {40: 0.05, 100: 0.0}  # intervals, and the share of names that a list may lack then


class Trial:
    """Replicas behind a balancer, and sidecars that have registered there."""

    def __init__(self, balancer: Balancer, names: list[str], interval: float) -> None:
        self.balancer, self.names, self.interval = balancer, names, interval

    def empty(self) -> None:
        """Let all replicas lose their memories."""
        for replica in self.balancer.replicas:
            replica.forget()

    def missing(self) -> list[int]:
        """Return for each replica how many names its list lacks."""
        lists = [replica.listed() for replica in self.balancer.replicas]
        return [len(set(self.names).difference(found)) for found in lists]

    def most(self, since: int) -> int:
        """Return the most requests that a sidecar sent in one go, since so many of all."""
        by_sidecar: dict[int, list[Request]] = collections.defaultdict(list)
        for request in self.balancer.requests[since:]:
            by_sidecar[request.connection].append(request)  # each keeps its connection
        most = 1
        for requests in by_sidecar.values():
            together = 1
            for before, request in itertools.pairwise(requests):
                near = request.at - before.at < self.interval / 2
                together = together + 1 if near else 1
                most = max(most, together)
        return most


@contextlib.contextmanager
def trial(sidecars: int, replicas: int, turns: str, interval: float) -> Iterator[Trial]:
    """Start everything, and wait until each sidecar has registered."""
    registries = [Registry(ttl=2 * interval, store="open") for _ in range(replicas)]
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(Balancer(registries, turns))
        service = stack.enter_context(ToyService())
        names = [f"service_{number}" for number in range(sidecars)]
        for name in names:
            settings = {"SERVICE_NAME": name, "HEARTBEAT_INTERVAL": interval}
            stack.enter_context(Sidecar(balancer, service, **settings))
        wait_until(lambda: balancer.count("register") >= sidecars, 60)
        yield Trial(balancer, names, interval)


def main() -> int:
    """Print the table; return 0 where the goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sidecars", type=int, default=12)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--turns", choices=TURNS, default=TURNS[0])
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS")
    parser.add_argument("--intervals", type=int, default=100)
    options = parser.parse_args()
    with trial(options.sidecars, options.replicas, options.turns, options.interval) as fleet:
        time.sleep(random.uniform(2, 12) * options.interval)
        return watch(fleet, options.intervals)


def watch(fleet: Trial, intervals: int) -> int:
    """Empty the lists, and print what they lack after each interval; return the exit code."""
    sidecars, balancer, met = len(fleet.names), fleet.balancer, True
    print(f"{sidecars} sidecars, {len(balancer.replicas)} replicas, {balancer.turns} turns")
    print("interval  missing from each list  requests per sidecar  most at once")
    fleet.empty()
    began, before = time.monotonic(), balancer.count()
    for interval in range(1, intervals + 1):
        time.sleep(max(began + interval * fleet.interval - time.monotonic(), 0))
        seen, missing = balancer.count(), fleet.missing()
        mean, most = (seen - before) / sidecars, fleet.most(before)
        lacking = " ".join(f"{number:3}" for number in missing)
        print(f"{interval:8}  {lacking:22}  {mean:20.2f}  {most:12}", flush=True)
        before = seen
        share = sum(missing) / sidecars / len(missing)
        if share > GOALS.get(interval, 1.0):
            met = False
            print(f"          the goal was {GOALS[interval]:.0%} at most, and it is {share:.0%}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
