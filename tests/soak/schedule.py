"""What the soak plays and when: an endless list of rounds that the seed alone decides.

In a round without an outage every agent meets some episodes of its own, one after another, with a pause after
each until it is back. In the other rounds the registry that all share has an outage, and some agents meet an
episode of their own besides. Between two rounds all is sane until everybody is back.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from peers.faults import FAULTS
from peers.registry import DIALECTS

WITHOUT_OUTAGE = 3  # every so many rounds
STRETCH = 7  # intervals that such a round takes about
MIXED = 0.4  # how often an agent has an episode of its own during an outage

# These come with a head that says 2xx, so an agent may take them for an acceptance, or for good health. Python's
# http.client takes a head that breaks off for a whole one.
ACKNOWLEDGING = frozenset({
    "cut_headers", "status_204", "status_206", "empty", "long_length", "short_length", "bad_length", "two_lengths",
    "broken_chunks", "endless_chunk_line", "many_headers", "gzip_not", "gzip_bomb", "huge_body", "huge_chunked",
    "endless_body", "drip_body", "deep_json", "json_text", "not_utf8", "nan_json", "huge_int_json",
    "surrogate_json", "json_list", "json_null", "json_nested", "json_huge_strings",
})  # fmt: skip
SLOW = [f"slow {tenths / 10:g}" for tenths in range(1, 7)]  # late, but perhaps within the deadline
FAILING = sorted(set(FAULTS) - ACKNOWLEDGING)
ANY = [*sorted(FAULTS), *SLOW]


class Kind(NamedTuple):
    """A kind of episode: how often it is drawn, and how long it lasts, in heartbeat intervals."""

    weight: int
    shortest: float
    longest: float
    operations: tuple[str, ...] = ()
    faults: Collection[str] = ()


# Within an interval a single fault is met, and within another one, at the end of the TTL, it shows its harm.
ONE = 2.5
AGENT_KINDS: Mapping[str, Kind] = {
    # One fault, which never costs the record.
    "one heartbeat fails": Kind(6, ONE, ONE, ("heartbeat",), [*FAILING, *SLOW]),
    "one probe fails": Kind(4, ONE, ONE, ("health",), ANY),
    "the list fails": Kind(1, 0, 0, ("list",), ANY),
    # The registry, as this agent alone sees it.
    "requests fail": Kind(3, 0.5, 4, ("heartbeat", "register", "*"), FAILING),
    "hollow answers": Kind(3, 0.5, 3, ("heartbeat", "register", "*"), sorted(ACKNOWLEDGING)),
    "record lost": Kind(2, 0, 0),
    "record lost, heartbeats acknowledged": Kind(1, 0, 0),
    # The service.
    "service stopped": Kind(2, 0.2, 7),
    "service paused": Kind(2, 0.2, 7),
    "service unhealthy": Kind(1, 0.2, 7),
    "service misbehaves": Kind(2, 0.5, 6, ("health",), FAILING),
    "service restarted with a new version": Kind(2, 0.05, 0.3),
    # The agent itself.
    "agent frozen": Kind(2, 0.2, 5),
    "agent killed": Kind(2, 0.1, 3),
    "agent stopped and started": Kind(2, 0.1, 2),
}
REGISTRY_KINDS: Mapping[str, Kind] = {
    "registry stopped": Kind(3, 0.2, 6),
    "registry paused": Kind(2, 0.2, 5),
    "store failing": Kind(1, 1, 5),
    "store open": Kind(2, 1, 6),
    "store half_open": Kind(1, 1, 5),
    "store hangs": Kind(1, 1, 5),
    "store gone": Kind(2, 0.5, 6),
    "registry restarted empty": Kind(2, 0.1, 2),
    "all records lost": Kind(1, 0, 0),
    "all records expired": Kind(1, 0, 0),
    "idle connections dropped": Kind(2, ONE, ONE),
    "no connection kept": Kind(1, ONE, ONE),
    "rate limited": Kind(1, 1, 3),
    "token changed": Kind(1, 0.5, 3),
}
KINDS = {**AGENT_KINDS, **REGISTRY_KINDS}
RESTARTS = ("agent killed", "agent stopped and started")
KEEPING = ("one heartbeat fails", "one probe fails", "the list fails", "idle connections dropped", "no connection kept")
ALONE = ("idle connections dropped", "no connection kept")  # outages that nothing else may disturb


class Episode(NamedTuple):
    """One fault: its kind, the seconds before it starts and that it lasts, and how it is played."""

    kind: str
    start: float
    length: float
    operation: str = ""
    fault: str = ""
    new_version: bool = False

    def __str__(self) -> str:
        how = f" ({self.fault} on {self.operation})" if self.fault else ""
        return f"{self.kind}{how} for {self.length:.1f} s"

    @property
    def keeps(self) -> bool:
        """Whether the record must be there all the time."""
        return self.kind in KEEPING


class Round(NamedTuple):
    """What happens at the same time: an outage, and for each agent its episodes, one after another."""

    number: int
    dialect: str
    outage: Episode | None
    tracks: tuple[tuple[Episode, ...], ...]
    calm: float  # seconds after each episode, and after the round


def rounds(seed: int, agents: int, interval: float, only: Collection[str] = ()) -> Iterator[Round]:
    """Yield the rounds of a seed, for ever; `only` keeps to these kinds. Raises ValueError where none is left.

    Agents with an even number are never restarted, so that their memory is seen over the whole time.
    """
    rng = random.Random(seed)
    draw_kind = _drawer(rng, only, AGENT_KINDS)
    draw_calmer = _drawer(rng, only, AGENT_KINDS, without=RESTARTS)
    draw_outage = _drawer(rng, only, REGISTRY_KINDS)
    if not (draw_kind or draw_outage):
        raise ValueError(f"no kind of fault is left; there are: {', '.join(KINDS)}")
    faults = {kind: deck(rng, how.faults) for kind, how in AGENT_KINDS.items() if how.faults}

    def episode(kind: str) -> Episode:
        how = KINDS[kind]
        length = rng.uniform(how.shortest, how.longest) * interval
        operation = rng.choice(how.operations) if how.operations else ""
        fault = next(faults[kind]) if how.faults else ""
        return Episode(kind, rng.uniform(0, interval), length, operation, fault, rng.random() < 0.5)

    def track(draw: Callable[[], str] | None, outage: Episode | None) -> Iterator[Episode]:
        if draw is None:
            return
        if outage:
            drawn = episode(draw())
            if rng.random() < MIXED and _goes_with(drawn, outage):
                yield drawn
            return
        left = STRETCH * interval
        while left > 0:
            drawn = episode(draw())
            left -= drawn.start + drawn.length + interval
            yield drawn

    for number in itertools.count(1):
        has_outage = draw_outage and (number % WITHOUT_OUTAGE != 1 or not draw_kind)
        outage = episode(draw_outage()) if draw_outage and has_outage else None
        tracks = tuple(
            tuple(track(draw_kind if agent % 2 else draw_calmer, outage)) for agent in range(agents)
        )
        yield Round(number, rng.choice(DIALECTS), outage, tracks, rng.uniform(0.2, 1.0) * interval)


def _goes_with(episode: Episode, outage: Episode) -> bool:
    """Tell whether both together still leave it clear who owes what by when."""
    return outage.kind not in ALONE and episode.kind.startswith(("service", "agent")) and (
        # What was asked during a pause is answered after it, when a heartbeat may be old.
        outage.kind != "registry paused" or episode.kind.startswith("agent")
    )  # fmt: skip


def deck(rng: random.Random, cards: Iterable[str]) -> Iterator[str]:
    """Yield the cards in random order, each once before any comes again."""
    cards = list(cards)
    while True:
        rng.shuffle(cards)
        yield from cards


def _drawer(
    rng: random.Random, only: Collection[str], kinds: Mapping[str, Kind], without: Collection[str] = ()
) -> Callable[[], str] | None:
    """Return what draws a kind, each as often as it weighs; None where none is left to draw."""
    left = [kind for kind in kinds if kind not in without and (not only or kind in only)]
    cards = deck(rng, [kind for kind in left for _ in range(kinds[kind].weight)])
    return (lambda: next(cards)) if left else None
