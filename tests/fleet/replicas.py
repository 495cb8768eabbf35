"""Real sidecars, and replicas behind a balancer that each answer from a memory of their own.

Heartbeats are accepted for any name, since the store that the replicas had in common is gone.
"""

import contextlib
from collections.abc import Iterator

from kit.peers.balancer import Balancer
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import Sidecar, wait_until


class Trial:
    """Replicas behind a balancer, and sidecars of these names that have registered there."""

    def __init__(self, balancer: Balancer, names: list[str]) -> None:
        self.balancer, self.names = balancer, names

    def empty(self) -> None:
        """Let all replicas lose their memories."""
        for replica in self.balancer.replicas:
            replica.forget()

    def missing(self) -> list[int]:
        """Return for each replica how many names its list lacks."""
        lists = [replica.listed() for replica in self.balancer.replicas]
        return [len(set(self.names).difference(found)) for found in lists]


@contextlib.contextmanager
def trial(sidecars: int, replicas: int, turns: str, interval: float) -> Iterator[Trial]:
    """Start everything, and wait until each sidecar has registered."""
    registries = [Registry(ttl=2 * interval, store="open") for _ in range(replicas)]
    names = [f"service_{number}" for number in range(sidecars)]
    with contextlib.ExitStack() as stack:
        balancer = stack.enter_context(Balancer(registries, turns))
        service = stack.enter_context(ToyService())
        for name in names:
            settings = {"SERVICE_NAME": name, "HEARTBEAT_INTERVAL": interval}
            stack.enter_context(Sidecar(balancer, service, **settings))
        wait_until(lambda: balancer.count("register") >= sidecars, 60)
        yield Trial(balancer, names)
