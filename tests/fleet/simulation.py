"""A fleet in one process: the real `Agent` of agent.py, thousands of them, on a simulated clock.

Each sidecar is a greenlet that runs the agent's own states: schedule, phase, backoff, jitter, probes and the
meaning of answers are agent.py's. Replaced is what reaches out of it: what the constructor takes (clock, randomness,
signals and their sleep), the heartbeat file, the look at the network, and `Peer.exchange` with the registry.
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
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from greenlet import getcurrent, greenlet

import agent

OVERSHOOT = 1e-4  # seconds that a sleep takes too long, as every real one does
TTL = agent.REGISTRY_TTL
SETTINGS = agent.read_settings(
    {"SERVICE_NAME": "service", "SERVICE_HOST": "localhost", "SERVICE_HEALTH_CHECK": "none", "LOG_LEVEL": "CRITICAL"}
)
REFUSED = agent.Answer(failure=ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"))
LATE = agent.Answer(failure=agent.LateError())
NOT_FOUND = agent.Answer(404)
OVERLOADED = agent.Answer(503)
CREATED, OK = agent.Answer(201), agent.Answer(200)
# Longer than the agent keeps it.
LONG_LIST = agent.Answer(200, body=b" " * (agent.MAX_BODY + 1))


class World:
    """The simulated clock, and whose turn it is: the sleeper's who wakes first."""

    def __init__(self) -> None:
        self.now = 0.0  # seconds
        self.until = 0.0  # the end of `run`
        self.sleepers: list[tuple[float, int, greenlet]] = []  # a heap
        self.numbers = itertools.count()  # settle ties
        self.hub = getcurrent()

    def clock(self) -> float:
        return self.now

    def start(self, work: Callable[[], object]) -> None:
        """Have a greenlet of its own begin this work now."""
        heapq.heappush(self.sleepers, (self.now, next(self.numbers), greenlet(work, self.hub)))

    def sleep(self, seconds: float) -> None:
        """Let the others go on until so many seconds have passed."""
        wake = self.now + seconds + OVERSHOOT
        if wake <= self.until and (not self.sleepers or wake < self.sleepers[0][0]):
            self.now = wake  # nobody wakes before
            return
        heapq.heappush(self.sleepers, (wake, next(self.numbers), getcurrent()))
        self.hub.switch()

    def run(self, until: float) -> None:
        """Let simulated time pass until then."""
        self.until = until
        while self.sleepers and self.sleepers[0][0] <= until:
            self.now, _, sleeper = heapq.heappop(self.sleepers)
            sleeper.switch()
        self.now = until

    def end(self) -> None:
        """Stop all: a greenlet that is thrown away while it sleeps ends there."""
        self.sleepers.clear()


class Trouble(NamedTuple):
    """What goes wrong between the fleet and the registry."""

    start: float = 0.0  # of the outage, in seconds from the start of the fleet
    outage: float = 0.0  # its length in seconds
    hangs: bool = False  # whether it answers nothing then, or refuses at once
    capacity: float = math.inf  # requests in each whole second; beyond, it answers 503
    loss: float = 0.0  # share of requests lost: half before the registry, half of the answers; half hang, half fail

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
        self.absences.extend(self.world.now - expires for expires in self.expires.values() if expires < self.world.now)


class Line(agent.Peer):
    """A sidecar's way to the registry; no socket is opened."""

    def __init__(self, real: agent.Peer, registry: Registry, name: str) -> None:
        self.wire, self.far_end, self.name = real.wire, registry, name

    def exchange(  # the simulated registry needs but the path
        self,
        method: str,  # noqa: ARG002
        path: str,
        headers: Mapping[str, str],  # noqa: ARG002
        body: bytes,  # noqa: ARG002
        timeout: float,
    ) -> agent.Answer:
        return self.far_end.exchange(self.name, path, timeout)


class NoSignals(agent.Signals):
    """Nothing interrupts a simulated wait, and so no file is needed for it."""

    def __init__(self, sleep: Callable[[float], None]) -> None:
        self.sleep, self.stopping = sleep, False

    def pause(self, duration: float) -> None:
        """Sleep in one go."""
        self.sleep(duration)


class NoFile(agent.SignOfLife):
    """A sign of life that nobody sees."""

    def promise(self, duration: float) -> None:
        """Write no file."""


class NoNetwork(agent.Network):
    """A network that nobody looks at: real looks, at every simulated pause, would take hours."""

    def check(self) -> None:
        """Find it as it was."""


class Sidecar(agent.Agent):
    """The real agent, without its heartbeat file, on a line to a simulated registry."""

    def __init__(self, world: World, registry: Registry, number: int, uniform: agent.Uniform) -> None:
        name = name_of(number)
        settings = SETTINGS._replace(service_name=name)
        super().__init__(settings, NoSignals(world.sleep), world.clock, uniform)
        self.life = self.record.life = NoFile(settings.heartbeat_file, world.clock)
        self.network = NoNetwork(world.clock)
        self.registry.peer = Line(self.registry.peer, registry, name)


def name_of(number: int) -> str:
    return f"service_{number:06}"


def no_jitter(_low: float, high: float) -> float:
    """Stand in for random.uniform where a fleet is to move in lockstep for ever."""
    return high


def simulate(size: int, lasts: float, trouble: Trouble, seed: int, jitter: bool = True) -> Registry:
    """Start that many sidecars in the same instant, let `lasts` seconds pass; return what the registry saw."""
    logging.disable(logging.CRITICAL)
    try:
        world, chance = World(), random.Random(seed)
        registry = Registry(world, trouble, chance, size)
        for number in range(size):
            world.start(Sidecar(world, registry, number, chance.uniform if jitter else no_jitter).run)
        world.run(lasts)
        registry.end()
        world.end()
    finally:
        logging.disable(logging.NOTSET)
    return registry


def busiest(times: Sequence[float], width: float) -> int:
    """Return the most arrivals in any window of `width` seconds, wherever it begins. Args: times in order."""
    most = first = 0
    for last, time in enumerate(times):
        while times[first] <= time - width:
            first += 1
        most = max(most, last - first + 1)
    return most


def between(times: array[float], start: float, end: float) -> array[float]:
    """Return the part of the times, which are in order, from start until before end."""
    return times[bisect.bisect_left(times, start) : bisect.bisect_left(times, end)]
