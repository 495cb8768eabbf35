"""A fleet in one process: the real `Agent` of agent.py, thousands of them, on a simulated clock.

Each sidecar is a greenlet that runs the agent's own states, as kit/simulated.py has it.
"""

import functools
import heapq
import itertools
import json
import logging
import math
import random
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from greenlet import getcurrent, greenlet

import agent
from kit.clock import Clock
from kit.simulated import simulated_agent

OVERSHOOT = 1e-4  # seconds that a sleep takes too long, as every real one does
NAME = "service_{:06}"
SETTINGS = agent.read_settings(
    {"SERVICE_NAME": "service", "SERVICE_HOST": "localhost", "SERVICE_HEALTH_CHECK": "none"}
)
REFUSED = agent.Answer(failure=ConnectionRefusedError(111, "Connection refused"))
LATE = agent.Answer(failure=agent.LateError())
LONG_LIST = b" " * (agent.MAX_BODY + 1)  # longer than the agent keeps it


class World(Clock):
    """The simulated clock, and whose turn it is: the sleeper's who wakes first."""

    def __init__(self) -> None:
        super().__init__()
        self.until = 0.0  # the end of `run`
        self.sleepers: list[tuple[float, int, greenlet]] = []  # a heap
        self.numbers = itertools.count()  # settle ties
        self.hub = getcurrent()

    def start(self, work: Callable[[], object]) -> None:
        """Have a greenlet of its own begin this work now."""
        heapq.heappush(self.sleepers, (self(), next(self.numbers), greenlet(work, self.hub)))

    def sleep(self, seconds: float, /) -> None:
        """Let the others go on until so many seconds have passed."""
        wake = self() + seconds + OVERSHOOT
        if wake <= self.until and (not self.sleepers or wake < self.sleepers[0][0]):
            self.skipped = wake  # nobody wakes before
            return
        heapq.heappush(self.sleepers, (wake, next(self.numbers), getcurrent()))
        self.hub.switch()

    def run(self, until: float) -> None:
        """Let simulated time pass until then, and stop all."""
        self.until = until
        while self.sleepers and self.sleepers[0][0] <= until:
            self.skipped, _, sleeper = heapq.heappop(self.sleepers)
            sleeper.switch()
        self.skipped = until
        self.sleepers.clear()  # a greenlet that is thrown away while it sleeps ends there


class Trouble(NamedTuple):
    """What goes wrong between the fleet and the registry."""

    start: float = 0.0  # of the outage, in seconds from the start of the fleet
    outage: float = 0.0  # its length in seconds
    hangs: bool = False  # whether it answers nothing then, or refuses at once
    capacity: float = math.inf  # requests in each whole second; beyond, it answers 503
    # Share of requests lost: half before the registry, half of the answers; half hang, half fail.
    loss: float = 0.0

    @property
    def end(self) -> float:
        return self.start + self.outage


class Registry:
    """The registry as far as a fleet can tell, and what it saw of the fleet."""

    def __init__(self, world: World, trouble: Trouble, chance: random.Random, size: int) -> None:
        self.world, self.trouble, self.chance = world, trouble, chance
        self.too_long = size * len(json.dumps([NAME.format(0)])) > agent.MAX_BODY
        self.expires: dict[str, float] = {}  # when each record does
        self.second, self.taken = 0, 0  # requests taken in this second
        self.arrivals = array("d")  # times of all requests
        self.knocks = array("d")  # of those since the outage began, of sidecars not yet back
        self.back: dict[str, float] = {}  # when the registry first took a call after its outage
        self.lost = 0  # requests or answers
        self.absences = array("d")  # seconds, of each record that expired

    def exchange(self, name: str, _method: str, path: str, timeout: float) -> agent.Answer:
        """Carry one request there and the answer back, in simulated time."""
        now, trouble = self.world(), self.trouble
        self.arrivals.append(now)
        if now >= trouble.start and name not in self.back:
            self.knocks.append(now)
        if trouble.start <= now < trouble.end:
            return self.no_answer(timeout, trouble.hangs)
        if trouble.loss and self.chance.random() < trouble.loss:
            self.lost += 1
            if self.chance.random() < 0.5:
                self.answer(name, path, now)  # and this answer is lost
            return self.no_answer(timeout, self.chance.random() < 0.5)
        return self.answer(name, path, now)

    def no_answer(self, timeout: float, hangs: bool) -> agent.Answer:
        if not hangs:
            return REFUSED
        self.world.sleep(timeout)
        return LATE

    def answer(self, name: str, path: str, now: float) -> agent.Answer:
        """Answer as the deployed one does."""
        if int(now) != self.second:
            self.second, self.taken = int(now), 0
        self.taken += 1
        if self.taken > self.trouble.capacity:
            return agent.Answer(503)
        if path == "/services":
            live = [] if self.too_long else [n for n, end in self.expires.items() if end > now]
            return agent.Answer(200, body=LONG_LIST if self.too_long else json.dumps(live).encode())
        expires = self.expires.get(name, math.inf)
        if path == "/heartbeat" and not now < expires < math.inf:
            return agent.Answer(404)
        if expires < now:
            self.absences.append(now - expires)
        self.expires[name] = now + agent.REGISTRY_TTL
        if now >= self.trouble.end:
            self.back.setdefault(name, now)
        return agent.Answer(200)


def simulate(size: int, lasts: float, trouble: Trouble, seed: int, jitter: bool = True) -> Registry:
    """Start so many sidecars in one instant; return what the registry saw in `lasts` seconds."""
    world, chance = World(), random.Random(seed)
    registry = Registry(world, trouble, chance, size)
    uniform = chance.uniform if jitter else max
    logging.disable(logging.CRITICAL)
    try:
        for name in map(NAME.format, range(size)):
            settings = agent.Settings({**SETTINGS.values, "SERVICE_NAME": name})
            carry = functools.partial(registry.exchange, name)
            world.start(simulated_agent(settings, world, uniform, carry).run)
        world.run(lasts)
    finally:
        logging.disable(logging.NOTSET)
    # Those that are absent to the end count as well.
    registry.absences.extend(lasts - end for end in registry.expires.values() if end < lasts)
    return registry


def busiest(times: Sequence[float], width: float) -> int:
    """Return the most of the times, which are in order, in any window of `width` seconds."""
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - width:
            first += 1
        most = max(most, last - first + 1)
    return most
