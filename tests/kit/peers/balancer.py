"""A balancer in front of replicas of the registry: each request goes to the next, or to any.

As nginx does it, a kept connection stays with no replica. The replicas answer in this process:
what travels, travels between the sidecar and the balancer.
"""

import itertools
import random
from collections.abc import Sequence
from typing import Any

from kit.peers.registry import Registry
from kit.peers.server import Answer, Peer, Request

TURNS = ("strict", "random")


class Balancer(Peer):
    """Args: the replicas; turns, one of TURNS; those of Peer.

    `replicas` may be changed any time.
    """

    def __init__(self, replicas: Sequence[Registry], turns: str = "strict", **options: Any) -> None:
        super().__init__(**options)
        self.replicas, self.turns = list(replicas), turns
        self._turn = itertools.count()

    def route(self, method: str, path: str) -> str:
        """Return the registry's operation."""
        return self.replicas[0].route(method, path)

    def answer(self, request: Request) -> Answer:
        """Answer as the replica whose turn it is."""
        if self.turns == "random":
            return random.choice(self.replicas).answer(request)
        with self.lock:
            turn = next(self._turn)
        return self.replicas[turn % len(self.replicas)].answer(request)
