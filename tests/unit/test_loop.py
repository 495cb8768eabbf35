"""The loop, explored: the real agent meets every sequence of up to six outcomes, and longer ones.

Each run goes on until all has been well for longer than a record lives, and ends with a signal.
kit.world says what may come, kit.promises what has to hold. `FAULTS` are put into copies of the
agent, to see that they are found.
"""

import functools
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

from kit.promises import BrokenPromiseError
from kit.sidecar import AGENT, HEALTHCHECK
from kit.world import SETTINGS, Choices, Replicas, World, highest, load, lowest, sequences

PARTS = 6  # of each exploration, for workers to share
Uniform = Callable[[float, float], float]
# From the start or from the first accepted registration on; what the agent draws; how many
# outcomes. Where it draws the lowest numbers, its first heartbeat is followed by a look at the
# list; where the highest, its tenth.
ROOTS = [(True, lowest, 6), (False, lowest, 6), (False, highest, 5)]
REPLICAS = [*itertools.product((2, 3, 5), ("strict", "random"))]
SEEDS = range(25)


@functools.cache
def the_agent() -> Any:
    """Return a copy of agent.py as it is."""
    return load()


def explore(
    module: Any, budget: int, uniform: Uniform, from_start: bool, first: Sequence[int] = ()
) -> int:
    """Play each sequence; return how many.

    Raises BrokenPromiseError, with the first that breaks a promise.
    """
    played = 0
    for choices in sequences(budget, first):
        World(module, choices, uniform, from_start).run()
        played += 1
    return played


def beginnings(module: Any, uniform: Uniform, from_start: bool) -> list[list[int]]:
    """Return the choices with which the sequences begin: their first two outcomes."""
    found = []
    for choices in sequences(2):
        World(module, choices, uniform, from_start).run()
        found.append([chosen for chosen, _ in choices.made])
    return found


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("from_start", "uniform", "outcomes"), ROOTS)
def test_every_sequence(from_start: bool, uniform: Uniform, outcomes: int, part: int) -> None:
    module = the_agent()
    for first in beginnings(module, uniform, from_start)[part::PARTS]:
        assert explore(module, outcomes, uniform, from_start, first)


OTHER_SETTINGS: list[dict[str, str]] = [
    {},
    {"HEARTBEAT_INTERVAL": "20", "SERVICE_HEALTH_RETRIES": "1"},
    {"HEARTBEAT_INTERVAL": "10", "INITIAL_WAIT_TIMEOUT": "0"},
    {"SERVICE_HEALTH_RETRIES": "5", "DEREGISTER_ON_EXIT": "false"},
]


class Drawn(Choices):
    """Choices that are drawn at random."""

    def __init__(self, seed: int, budget: int) -> None:
        super().__init__(budget=budget)
        self.chance = random.Random(seed)

    def number(self, count: int) -> int:
        """Draw one of so many numbers."""
        return self.chance.randrange(count)

    def outcome(self, options: Sequence[str]) -> str:
        """Draw what comes of a request; a signal only at last."""
        return super().outcome(without_stop(options, self.budget))

    def event(self, options: Sequence[str]) -> str:
        """Draw what comes in a wait: in most of them nothing."""
        if self.budget > 0 and self.number(4):
            return options[0]
        return super().event(without_stop(options, self.budget))

    def freeze(self) -> tuple[float, float]:
        """Draw when a freeze begins, and how long it lasts."""
        return self.number(11) / 10, self.chance.choice((75.0, 1.0, 20.0, 46.0, 59.0, 61.0, 400.0))

    def uniform(self, low: float, high: float) -> float:
        """Stand in for random.uniform."""
        share = self.chance.random() if self.budget > 0 else 0.5
        return low + (high - low) * share


def without_stop(options: Sequence[str], budget: int) -> Sequence[str]:
    """Leave out what ends a sequence, until its last outcome."""
    return [option for option in options if budget <= 1 or option != "stopped"]


def play_longer(module: Any, seed: int, budget: int) -> None:
    """Play one sequence that is drawn at random. Raises BrokenPromiseError."""
    choices, others = Drawn(seed, budget), OTHER_SETTINGS[seed % len(OTHER_SETTINGS)]
    World(module, choices, choices.uniform, settings=SETTINGS | others).run()


def test_longer_sequences() -> None:
    seeds = 30 * settings.default.max_examples  # type: ignore[union-attr]
    for seed in range(seeds):
        play_longer(the_agent(), seed, budget=7 + seed * 34 // seeds)  # the shorter ones first


def play_replicas(
    module: Any,
    size: int,
    turns: str,
    budget: int = 0,
    seed: int = 7,
    listed: Sequence[bool] = (),
    losses: Sequence[tuple[float, Sequence[int]]] = (),
) -> list[Replicas]:
    """Play each sequence, after which the store is lost; return how each ended.

    Every replica lists the name in the end. Raises BrokenPromiseError.
    """
    played = []
    for choices in sequences(budget):
        chance = random.Random(seed)
        strict = itertools.cycle(range(size))
        random_turns = (chance.randrange(size) for _ in itertools.count())
        order = strict if turns == "strict" else random_turns
        lists = listed or [False] * size
        world = Replicas(order, lists, losses, module, choices, chance.uniform, False)
        world.run()
        played.append(world)
    return played


@pytest.mark.parametrize(("size", "turns"), REPLICAS)
def test_replicas_that_answer_from_their_own_memories(size: int, turns: str) -> None:
    """In strict turns, a constant number of requests would meet the same ones for ever."""
    worlds = play_replicas(the_agent(), size, turns, budget=2)
    assert all(world.sent <= 3 * world.INTERVALS for world in worlds)
    missing = 0
    for seed in SEEDS:  # they lose their memories again, in the middle of what follows
        losses = [(random.Random(seed).uniform(8, 25), range(size))]
        (world,) = play_replicas(the_agent(), size, turns, seed=seed, losses=losses)
        missing += world.missing
    assert missing <= len(SEEDS) * size / 20


@pytest.mark.parametrize("lost", [0, 1])
def test_one_replica_of_two_that_has_lost_its_memory_is_found(lost: int) -> None:
    """Each look would meet the other one, if there were as many heartbeats between two looks."""
    for seed in SEEDS:
        losses = [(10.5, [lost])]
        assert play_replicas(the_agent(), 2, "strict", 0, seed, [True, True], losses)


def test_where_all_lists_have_the_name_there_is_a_heartbeat_an_interval_and_few_looks() -> None:
    for seed, size in itertools.product(SEEDS, (2, 3, 5)):
        (world,) = play_replicas(the_agent(), size, "strict", 0, seed, [True] * size)
        assert world.sent <= 1.15 * (world.INTERVALS + 1) + 2


# ---- does the exploration find what it is for?


class Fault(NamedTuple):
    """A text of agent.py (else of healthcheck.py), what stands there instead, what is found."""

    old: str
    new: str
    finding: str
    of_agent: bool = True


# ---- Here stands text of agent.py: whoever changes that changes this. ---------------------------
FAULTS = {
    "never retries inside the slot": Fault(
        "due = self.clock() + self.record.retry_wait(failures, answer)",
        "due = self.clock() + self.settings.heartbeat_interval",
        "the record expires",
    ),
    "goes on heartbeating for a dead service": Fault(
        "if probed and not self.is_healthy():",
        "if probed and not self.is_healthy() and not probed:",
        "a heartbeat for a service that is down",
    ),
    "does not look for the record in the list": Fault(
        "if self.look_in > 0:", "if self.look_in < 1000:", "the record is absent"
    ),
    "a look that ends the heartbeats": Fault(
        "                self.record.look()\n",
        "                looks = self.record.look_in <= 1\n"
        "                self.record.look()\n"
        "                if looks:\n"
        "                    return self.registering\n",
        "a registration for nothing",
    ),
    "a pause that counts, and asks no clock": Fault(
        "            left = end - self.clock()\n            try:\n",
        "            left = left - SLICE if 'left' in vars() else end - self.clock()\n"
        "            try:\n",
        "the health file is",
    ),
    "a clock that stands still in a suspension": Fault(
        'getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)',
        "time.CLOCK_MONOTONIC",
        "the record is absent",
        of_agent=False,
    ),
    "one registration after a look that missed": Fault(
        "self.note_loss(answer, PROOF)", "self.note_loss(answer, 0)", "lists lack it"
    ),
    "registers at the end of a record, whatever the service does": Fault(
        "probed = not failures or self.record.wants_registration()\n",
        "probed = not failures or self.record.wants_registration() and self.record.left() > 0\n",
        "the service was not probed before",
    ),
    "a gap before the registration": Fault(
        "return self.left() <= self.settings.heartbeat_interval / 4",
        "return self.left() <= 0",
        "the record expires",
    ),
    "one good probe for the way back": Fault(
        "GOOD_PROBES = 2", "GOOD_PROBES = 1", "a register for a service that is down"
    ),
    "goes on registering a dead service": Fault(
        "elif not self.is_healthy():", "elif not (self.is_healthy() or True):", "that is down"
    ),
    "one failed probe takes the service down": Fault(
        "retries = self.settings.service_health_retries\n",
        "retries = 1\n",
        "down after 1 failed probes",
    ),
    "a heartbeat's Retry-After in full": Fault(
        "return max(min(wait, left / 2), shortest)", "return max(wait, shortest)", "expires"
    ),
    "a heartbeat that is not known is but a failure": Fault(
        "            if answer.meaning == LOST:\n                if not",
        "            if answer.meaning == STOP_TIMEOUT:\n                if not",
        "the record is absent",
    ),
    "a new version is not registered": Fault(
        "changed = self.service.metadata != self.metadata", "changed = 0", "as it is"
    ),
    "a new version's registration ends the heartbeats": Fault(
        "            if failed.meaning == ACCEPTED:\n",
        "            if failed.meaning:\n",
        "the record expires",
    ),
    "no promise before a request": Fault(
        "        self.life.promise(timeout)\n        now =", "        now =", "the health file is"
    ),
    "no promise before a probe": Fault(
        "        self.life.promise(self.settings.service_health_timeout)\n",
        "",
        "the health file is",
    ),
    "a pause promises no exchange": Fault(
        "self.life.promise(end - self.clock() + exchanges)\n        while",
        "self.life.promise(end - self.clock() - exchanges)\n        while",
        "the health file is",
    ),
    "the TTL is reckoned from the answer": Fault(
        "self.accepted_at, self.lost = now, False",
        "self.accepted_at, self.lost = self.clock(), False",
        "ready for longer",
    ),
    "a backoff that does not grow": Fault(
        "2.0 ** min(attempt - 1, 16)", "2.0 ** min(attempt - 1, 0)", "requests in two"
    ),
    "a registration's Retry-After is not heeded": Fault(
        "wait = backoff(attempt, self.uniform) + answer.retry_after",
        "wait = backoff(attempt, self.uniform)",
        "before Retry-After allows it",
    ),
    "waits too long for the service": Fault(
        "if now >= since + patience:", "if now >= since + 3 * patience:", "the first registration"
    ),
    "heartbeats for a record whose life is over": Fault(
        "if self.record.left() <= 0:", "if self.record.left() <= -1e9:", "last accepted request"
    ),
    "the record is put back after a retry, without a probe": Fault(
        "if not probed and not self.is_healthy():", "if not probed and False:", "was not probed"
    ),
    "looks after a retry, without a probe": Fault(
        "                if probed:\n", "                if True:\n", "was not probed"
    ),
    "two good probes, but not in a row": Fault(
        "good + 1 if self.probe() else 0", "good + self.probe()", "a service that is down"
    ),
    "a look after each heartbeat": Fault(
        "self.look_in = 1 if self.doubt else int(self.uniform(*LOOK_EVERY))",
        "self.look_in = 1",
        "a look 1 heartbeats after the one before",
    ),
    "each heartbeat is a registration": Fault(
        "            self.metadata = metadata\n",
        "            self.metadata = {}\n",
        "a registration for nothing",
    ),
    "probes without a pause between": Fault(
        "self.pause(self.settings.pace * self.uniform(1.0, 2.0))",
        "pass",
        "a probe right after",
    ),
    "a request that leaves no time for another": Fault(
        "return min(self.settings.registry_timeout, half)",
        "return self.settings.registry_timeout",
        "last accepted request",
    ),
    "gives up what it has never registered": Fault(
        "            if not self.service.seen:\n", "            if False:\n", "down after 4 failed"
    ),
    "heartbeats that drift": Fault(
        "return next_beat(self.phase, self.settings.heartbeat_interval, self.accepted_at)",
        "return self.accepted_at + self.settings.heartbeat_interval",
        "off the grid",
    ),
    "registrations in place of the first retries": Fault(
        "return self.left() <= self.settings.heartbeat_interval / 4 + self.probe_took",
        "return self.left() <= self.settings.heartbeat_interval - 5",
        "a registration for nothing",
    ),
    "a list is believed more than the heartbeats": Fault(
        "                    self.record.look()\n",
        "                    self.record.look()\n"
        "                    if self.record.doubt > 1:\n"
        "                        return self.registering\n",
        "the record expires",
    ),
    "one good probe right after the other": Fault(
        "            self.pause(self.probe_wait())\n            now, good",
        "            self.pause(0 if good else self.probe_wait())\n            now, good",
        "a probe right after",
    ),
    "long doubt after a heartbeat that is not known": Fault(
        "self.note_loss(answer, max(self.doubt, 1))",
        "self.note_loss(answer, PROOF)",
        "a registration for nothing",
    ),
    "stops without a word": Fault("return self.stop()", "return 0", "0 deregistrations"),
    "deregisters what it has not registered": Fault(
        "not self.settings.deregister_on_exit or self.metadata is None",
        "not self.settings.deregister_on_exit",
        "1 deregistrations",
    ),
}
# -------------------------------------------------------------------------------------------------


def mutant(fault: Fault) -> Any:
    """Return a copy of the agent with a fault."""
    text = (AGENT if fault.of_agent else HEALTHCHECK).read_text()
    assert text.count(fault.old) == 1, "the text to replace is not there once"
    text = text.replace(fault.old, fault.new)
    return load(text) if fault.of_agent else load(health_text=text)


def shortest(module: Any) -> str:
    """Return the first promise that is broken, and by which shortest sequence; "" where none is."""
    try:
        for budget in range(1, 6):
            for from_start, uniform, _ in ROOTS:
                explore(module, budget, uniform, from_start)
            if budget == 3:
                for size, turns in REPLICAS:
                    play_replicas(module, size, turns, budget=1)
    except BrokenPromiseError as broken:
        return str(broken)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str) -> None:
    found = shortest(mutant(FAULTS[name]))
    print(found)
    assert FAULTS[name].finding in found.partition("\n")[0]
