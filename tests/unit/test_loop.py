"""The loop, explored: the real agent meets every sequence of up to six outcomes, and longer ones.

Each run goes on until all has been well for longer than a record lives, and ends with a signal.
kit.world says what may come, kit.promises what has to hold. `FAULTS` are put into copies of the
agent, to see that they are found: whoever changes that text changes this one.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from hypothesis import settings

from kit.promises import PromiseError
from kit.sidecar import AGENT, HEALTHCHECK
from kit.world import SETTINGS, Choices, Replicas, World, highest, load, sequences

PARTS = 6  # of each exploration, for workers to share
Uniform = Callable[[float, float], float]
# From the start or from the first accepted registration on; what the agent draws; how many
# outcomes. Where it draws the lowest numbers, its first heartbeat is followed by a look at the
# list; where the highest, its tenth.
ROOTS: list[tuple[bool, Uniform, int]] = [(True, min, 6), (False, min, 6), (False, highest, 5)]
REPLICAS = [*itertools.product((2, 3, 5), ("strict", "random"))]
SEEDS = range(25)


class SlowProbes(World):
    """A world in which a good probe takes nearly as long as it may."""

    PROBE_TAKES = 0.98

    def events(self) -> list[str]:
        """Leave freezes out: the promise after them knows quick probes."""
        return [event for event in super().events() if event not in ("frozen", "suspended")]


def explore(
    module: Any,
    budget: int,
    from_start: bool,
    uniform: Uniform,
    first: Sequence[int] = (),
    world: type[World] = World,
) -> Iterator[list[int]]:
    """Play each sequence, and yield its choices.

    Raises PromiseError, with the first that breaks a promise.
    """
    for choices in sequences(budget, first):
        world(module, choices, uniform, from_start).run()
        yield [chosen for chosen, _ in choices.made]


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(("from_start", "uniform", "outcomes"), ROOTS)
def test_every_sequence(from_start: bool, uniform: Uniform, outcomes: int, part: int) -> None:
    for first in [*explore(load(), 2, from_start, uniform)][part::PARTS]:
        assert sum(1 for _ in explore(load(), outcomes, from_start, uniform, first))


def test_slow_probes_cost_no_record() -> None:
    assert sum(1 for _ in explore(load(), 4, False, highest, world=SlowProbes))


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
        return self.chance.randrange(count)

    def choose(self, options: Sequence[str], free: bool = False) -> str:
        """Draw what comes: in most waits nothing, and what ends a sequence only at last."""
        if free and self.budget > 0 and self.number(4):
            return options[0]
        going_on = [each for each in options if self.budget <= 1 or each != "stopped"]
        return super().choose(going_on, free)

    def freeze(self) -> tuple[float, float]:
        """Draw when a freeze begins, and how long it lasts."""
        return self.number(11) / 10, self.chance.choice((75.0, 1.0, 20.0, 46.0, 59.0, 61.0, 400.0))

    def uniform(self, low: float, high: float) -> float:
        """Stand in for random.uniform."""
        share = self.chance.random() if self.budget > 0 else 0.5
        return low + (high - low) * share


def test_longer_sequences() -> None:
    seeds = 30 * settings.default.max_examples  # type: ignore[union-attr]
    for seed in range(seeds):
        choices = Drawn(seed, budget=7 + seed * 34 // seeds)  # the shorter ones first
        others = OTHER_SETTINGS[seed % len(OTHER_SETTINGS)]
        World(load(), choices, choices.uniform, settings=SETTINGS | others).run()


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

    Every replica lists the name in the end. Raises PromiseError.
    """
    played = []
    for choices in sequences(budget):
        chance = random.Random(seed)
        order: Iterator[int] = itertools.cycle(range(size))
        if turns == "random":
            order = (chance.randrange(size) for _ in order)
        lists = listed or [False] * size
        world = Replicas(order, lists, losses, module, choices, chance.uniform, False)
        world.run()
        played.append(world)
    return played


@pytest.mark.parametrize(("size", "turns"), REPLICAS)
def test_replicas_that_answer_from_their_own_memories(size: int, turns: str) -> None:
    """In strict turns, a constant number of requests would meet the same ones for ever."""
    worlds = play_replicas(load(), size, turns, budget=2)
    assert all(len(world.promises.sent) <= 3 * world.INTERVALS for world in worlds)
    missing = 0
    for seed in SEEDS:  # they lose their memories again, in the middle of what follows
        losses = [(random.Random(seed).uniform(8, 25), range(size))]
        (world,) = play_replicas(load(), size, turns, seed=seed, losses=losses)
        missing += world.missing
    assert missing <= len(SEEDS) * size / 20


@pytest.mark.parametrize("lost", [0, 1])
def test_one_replica_of_two_that_has_lost_its_memory_is_found(lost: int) -> None:
    """Each look would meet the other one, if there were as many heartbeats between two looks."""
    for seed in SEEDS:
        losses = [(10.5, [lost])]
        assert play_replicas(load(), 2, "strict", 0, seed, [True, True], losses)


def test_where_all_lists_have_the_name_there_is_a_heartbeat_an_interval_and_few_looks() -> None:
    for seed, size in itertools.product(SEEDS, (2, 3, 5)):
        (world,) = play_replicas(load(), size, "strict", 0, seed, [True] * size)
        assert len(world.promises.sent) <= 1.15 * (world.INTERVALS + 1) + 2


# ---- does the exploration find what it is for?

# Text of agent.py (or healthcheck.py), what stands there instead, and what is found of it.
FAULTS = {
    "no retry inside a slot": ("self.record.retry_wait(failures, answer)", "30", "record expires"),
    "beats for a dead service": (
        "if probed and not self",
        "if probed and None is self",
        "a heartbeat for",
    ),
    "no look at the list": ("if self.look_in > 0", "if True", "the record is absent"),
    "a look that ends the heartbeats": (
        "self.record.look()",
        "if (self.record.look_in, self.record.look())[0] <= 1: return self.registering",
        "a registration for nothing",
    ),
    "a pause that counts": (
        "left = end - self.clock()",
        "left = left - SLICE if 'left' in vars() else end - self.clock()",
        "the health file is",
    ),
    "a clock that stands still in a suspension": (
        'getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)',
        "time.CLOCK_MONOTONIC",
        "the record is absent",
    ),
    "one registration after a missed look": ("(answer, PROOF)", "(answer, 0)", "lists lack it"),
    "no probe before the last registration": (
        "self.record.wants_registration()",
        "self.record.wants_registration() and self.record.left() > 0",
        "the service was not probed before",
    ),
    "a gap before the registration": (
        "return self.left() - needed",
        "return self.left()",
        "the record expires",
    ),
    "one good probe for the way back": ("GOOD_PROBES = 2", "GOOD_PROBES = 1", "that is down"),
    "registers a dead service": (
        "elif not self.is_healthy()",
        "elif self.is_healthy() is None",
        "that is down",
    ),
    "one failed probe is enough": (
        "retries = self.settings.service_health_retries",
        "retries = 1",
        "down after 1 failed probes",
    ),
    "a heartbeat's Retry-After in full": ("min(wait, left / 2)", "wait", "the record expires"),
    "LOST is but a failure": ("LOST:\n                if", "0:\n                if", "is absent"),
    "a new version is not registered": ("self.service.metadata != self.metadata", "0", "as it is"),
    "a new version ends the heartbeats": ("failed.meaning == ACCEPTED", "failed", "expires"),
    "no promise before a request": (
        "self.life.promise(timeout)\n        now =",
        "now =",
        "the health file is",
    ),
    "no promise before a probe": (
        "self.life.promise(self.settings.service_health_timeout)",
        "",
        "the health file is",
    ),
    "a pause promises no exchange": (
        "clock() + exchanges)\n        while",
        "clock() - exchanges)\n        while",
        "the health file is",
    ),
    "a TTL from the answer on": ("self.lost = now", "self.lost = self.clock()", "ready for longer"),
    "a backoff that does not grow": ("2.0 ** min(attempt - 1, 16)", "1", "requests in two"),
    "no heed of Retry-After": ("uniform) + answer.retry_after", "uniform)", "before Retry-After"),
    "waits too long at first": ("since + patience:", "since + 3 * patience:", "first registration"),
    "beats when the record is over": ("self.record.left() <= 0", "0", "last accepted request"),
    "a retry puts it back unprobed": ("not probed and not self.is_healthy()", "0", "not probed"),
    "a retry looks unprobed": ("if probed:", "if True:", "was not probed"),
    "good probes not in a row": ("+ 1 if self.probe() else 0", "+ self.probe()", "that is down"),
    "a look after each heartbeat": (
        "1 if self.doubt else int(self.uniform(*LOOK_EVERY))",
        "1",
        "a look 1 heartbeats after the one before",
    ),
    "each heartbeat registers": ("self.metadata = metadata", "self.metadata = {}", "for nothing"),
    "probes without a pause": (
        "self.pause(self.settings.pace * self.uniform(1.0, 2.0))",
        "pass",
        "a probe right after",
    ),
    "a request without time for another": (
        "min(self.settings.registry_timeout, timeout)",
        "self.settings.registry_timeout",
        "last accepted request",
    ),
    "gives up what was never there": ("not self.service.seen:", "0:", "down after 4 failed"),
    "heartbeats that drift": (
        "next_beat(self.phase, self.settings.heartbeat_interval, self.accepted_at)",
        "self.accepted_at + self.settings.heartbeat_interval",
        "off the grid",
    ),
    "registrations for retries": ("interval / 4 + self", "interval / 2 + self", "for nothing"),
    "a list is believed more than heartbeats": (
        "self.record.look()",
        "if self.record.look() or self.record.doubt > 1: return self.registering",
        "the record expires",
    ),
    "no pause between two good probes": (
        "self.pause(self.probe_wait())",
        "self.pause(0 if good else self.probe_wait())",
        "a probe right after",
    ),
    "a long doubt after LOST": ("max(self.doubt, 1)", "PROOF", "a registration for nothing"),
    "stops without a word": ("return self.stop()", "return 0", "0 deregistrations"),
    "deregisters what is not its own": (" or self.metadata is None", "", "1 deregistrations"),
}


def mutant(old: str, new: str) -> Any:
    """Return a copy of the agent with a fault."""
    texts = [script.read_text() for script in (AGENT, HEALTHCHECK)]
    assert "".join(texts).count(old) == 1, "the text to replace is not there once"
    return load(*(text.replace(old, new) for text in texts))


def shortest(module: Any) -> str:
    """Return the first promise that is broken, and by which shortest sequence; "" where none is."""
    try:
        for budget in range(1, 6):
            for from_start, uniform, _ in ROOTS:
                assert [*explore(module, budget, from_start, uniform)]
            if budget == 3:
                for size, turns in REPLICAS:
                    play_replicas(module, size, turns, budget=1)
    except PromiseError as broken:
        return str(broken)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found(name: str) -> None:
    old, new, finding = FAULTS[name]
    found = shortest(mutant(old, new))
    print(found)
    assert finding in found.partition("\n")[0]
