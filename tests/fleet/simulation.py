"""A fleet in one process: the real `Agent` of agent.py, thousands of them, on a simulated clock.

Each sidecar is a greenlet that runs the agent's own states, as kit/simulated.py has it.
"""

from __future__ import annotations

import bisect
import errno
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
TTL = agent.REGISTRY_TTL
SETTINGS = agent.read_settings(
    {
        "SERVICE_NAME": "service",
        "SERVICE_HOST": "localhost",
        "SERVICE_HEALTH_CHECK": "none",
        "LOG_LEVEL": "CRITICAL",
    }
)
REFUSED = agent.Answer(failure=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
LATE = agent.Answer(failure=agent.LateError())
NOT_FOUND = agent.Answer(404)
OVERLOADED = agent.Answer(503)
CREATED, OK = agent.Answer(201), agent.Answer(200)
# Longer than the agent keeps it.
LONG_LIST = agent.Answer(200, body=b" " * (agent.MAX_BODY + 1))


class World(Clock):
    """The simulated clock, and whose turn it is: the sleeper's who wakes first."""

    def __init__(self) -> None:
        super().__init__()
        self.until = 0.0  # the end of `run`
        self.sleepers: list[tuple[float, int, greenlet]] = []  # a heap
        self.numbers = itertools.count()  # settle ties
        self.hub = getcurrent()

    @property
    def now(self) -> float:
        """The time in seconds."""
        return self.skipped

    def start(self, work: Callable[[], object]) -> None:
        """Have a greenlet of its own begin this work now."""
        heapq.heappush(self.sleepers, (self.now, next(self.numbers), greenlet(work, self.hub)))

    def sleep(self, seconds: float, /) -> None:
        """Let the others go on until so many seconds have passed."""
        wake = self.now + seconds + OVERSHOOT
        if wake <= self.until and (not self.sleepers or wake < self.sleepers[0][0]):
            self.skipped = wake  # nobody wakes before
            return
        heapq.heappush(self.sleepers, (wake, next(self.numbers), getcurrent()))
        self.hub.switch()

    def run(self, until: float) -> None:
        """Let simulated time pass until then."""
        self.until = until
        while self.sleepers and self.sleepers[0][0] <= until:
            self.skipped, _, sleeper = heapq.heappop(self.sleepers)
            sleeper.switch()
        self.skipped = until

    def end(self) -> None:
        """Stop all: a greenlet that is thrown away while it sleeps ends there."""
        self.sleepers.clear()


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
        self.world, self.trouble, self.chance, self.size = world, trouble, chance, size
        self.expires: dict[str, float] = {}  # when each record does
        self.second, self.taken = 0, 0  # requests taken in this second
        self.arrivals = array("d")  # times of all requests
        self.knocks = array("d")  # of those since the outage began, of sidecars not yet back
        self.back: dict[str, float] = {}  # when the registry first took a call after its outage
        self.lost = 0  # requests or answers
        self.absences = array("d")  # seconds, of each record that expired and came back

    def exchange(self, name: str, path: str, timeout: float) -> agent.Answer:
        """Carry one request there and the answer back, in simulated time."""
        now, trouble = self.world.now, self.trouble
        self.arrivals.append(now)
        if now >= trouble.start and name not in self.back:
            self.knocks.append(now)
        if trouble.start <= now < trouble.end:
            return self.no_answer(timeout, trouble.hangs)
        if trouble.loss and self.chance.random() < trouble.loss:
            self.lost += 1
            if self.chance.random() < 0.5:
                self.answer(name, path)  # and this answer is lost
            return self.no_answer(timeout, self.chance.random() < 0.5)
        return self.answer(name, path)

    def no_answer(self, timeout: float, hangs: bool) -> agent.Answer:
        if not hangs:
            return REFUSED
        self.world.sleep(timeout)
        return LATE

    def answer(self, name: str, path: str) -> agent.Answer:
        """Answer as the deployed one does."""
        now = self.world.now
        if int(now) != self.second:
            self.second, self.taken = int(now), 0
        self.taken += 1
        if self.taken > self.trouble.capacity:
            return OVERLOADED
        expires = self.expires.get(name, math.inf)
        if path == "/services":
            return self.list_names()
        if path == "/heartbeat" and not now < expires < math.inf:
            return NOT_FOUND
        if expires < now:
            self.absences.append(now - expires)
        self.expires[name] = now + TTL
        if now >= self.trouble.end:
            self.back.setdefault(name, now)
        return CREATED if path == "/register" else OK

    def list_names(self) -> agent.Answer:
        if self.size * len(json.dumps([name_of(0)])) > agent.MAX_BODY:
            return LONG_LIST
        live = sorted(name for name, expires in self.expires.items() if expires > self.world.now)
        return agent.Answer(200, body=json.dumps(live).encode())

    def end(self) -> None:
        """Count the records that are absent to the end."""
        self.absences.extend(
            self.world.now - expires
            for expires in self.expires.values()
            if expires < self.world.now
        )


def start_sidecar(world: World, registry: Registry, number: int, uniform: agent.Uniform) -> None:
    """Start the real agent, on a line to the simulated registry."""
    name = name_of(number)
    settings = agent.Settings({**SETTINGS.values, "SERVICE_NAME": name})

    def carry(_method: str, path: str, timeout: float) -> agent.Answer:
        return registry.exchange(name, path, timeout)

    world.start(simulated_agent(settings, world, uniform, carry).run)


def name_of(number: int) -> str:
    return f"service_{number:06}"


def no_jitter(_low: float, high: float) -> float:
    """Stand in for random.uniform where a fleet is to move in lockstep for ever."""
    return high


def simulate(size: int, lasts: float, trouble: Trouble, seed: int, jitter: bool = True) -> Registry:
    """Start that many sidecars in the same instant, let `lasts` seconds pass.

    Return what the registry saw.
    """
    logging.disable(logging.CRITICAL)
    try:
        world, chance = World(), random.Random(seed)
        registry = Registry(world, trouble, chance, size)
        for number in range(size):
            start_sidecar(world, registry, number, chance.uniform if jitter else no_jitter)
        world.run(lasts)
        registry.end()
        world.end()
    finally:
        logging.disable(logging.NOTSET)
    return registry


def busiest(times: Sequence[float], width: float) -> int:
    """Return the most arrivals in any window of `width` seconds, wherever it begins.

    Args: times in order.
    """
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - width:
            first += 1
        most = max(most, last - first + 1)
    return most


def between(times: array[float], start: float, end: float) -> array[float]:
    """Return the part of the times, which are in order, from start until before end."""
    return times[bisect.bisect_left(times, start) : bisect.bisect_left(times, end)]
