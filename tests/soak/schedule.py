"""What the soak plays and when: an endless list of rounds that the seed alone decides.

In a round without an outage every agent meets some episodes of its own, one after another, with a
pause after each until it is back. In the other rounds the registry that all share has an outage,
and some agents meet an episode of their own besides. Between two rounds all is sane until everybody
is back.
"""

import collections
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple

from kit.peers.registry import DIALECTS
from kit.peers.server import CONNECT
from soak.catalogue import RETRY_SOON, anything, below, failing, failing_or_slow, hollow, unhealthy

WITHOUT_OUTAGE = 2  # every so many rounds
STRETCH = 8  # intervals that such a round takes about
MIXED = 0.4  # how often an agent has an episode of its own during an outage


# Agents of these traits take turns.
PLAIN = "plain"
TLS = "TLS"  # speaks it with registry and service
SLOW = "slow"  # has a longer interval than the slices of a second in which the agent waits
TRAITS = (PLAIN, TLS, SLOW)
SLOWER = 3  # times


def trait(agent: int) -> str:
    """Return the trait of the agent with this number."""
    return TRAITS[agent % len(TRAITS)]


class Kind(NamedTuple):
    """A kind of episode: how often it is drawn, how long it lasts, what it may cost.

    Times are in heartbeat intervals. Where it keeps the record, that must be there all the time.
    """

    weight: int
    shortest: float
    longest: float
    operations: tuple[str, ...] = ()
    faults: Callable[[], Collection[str]] = tuple
    keeps: bool = False
    back: float = 1.0  # the agent is back within so many, beside the deadlines of its requests
    traits: tuple[str, ...] = (PLAIN, TLS)  # of the agents that meet it


# Within an interval a fault is met, and within another one, at the end of the TTL, it shows its
# harm.
MET, ONE = 1.2, 2.5
TWO_PROBES = 2.5  # intervals for the way back of a service that was down, and their deadlines
AGENT_KINDS: Mapping[str, Kind] = {
    # One fault, which never costs the record.
    "one heartbeat fails": Kind(12, ONE, ONE, ("heartbeat",), failing_or_slow, keeps=True),
    "one probe fails": Kind(10, ONE, ONE, ("health",), anything, keeps=True),
    "the list fails": Kind(1, 0, 0, ("list",), anything, keeps=True),
    # Nor do these, though they last.
    "first address dead": Kind(
        2, 3, 5, ("registry", "service", "registry and service"), keeps=True
    ),
    "log not read": Kind(1, 4, 7, keeps=True),
    "one probe's TLS fails": Kind(12, ONE, ONE, (CONNECT,), below, keeps=True, traits=(TLS,)),
    "probe headers renewed": Kind(2, ONE, ONE, keeps=True),
    "authority and certificates renewed": Kind(4, ONE, ONE, keeps=True, traits=(TLS,)),
    # The registry, as this agent alone sees it.
    "requests fail": Kind(6, MET, 4, ("heartbeat", "register", "*"), failing),
    "the registry's TLS fails": Kind(10, MET, 3, (CONNECT,), below, traits=(TLS,)),
    "a website in its place": Kind(1, MET, 3, ("register", "*"), ["web page"].copy),
    "registrations are asked to wait": Kind(2, MET, 3, ("register",), RETRY_SOON.copy),
    "hollow answers": Kind(5, MET, 3, ("heartbeat", "register", "*"), hollow),
    "record lost": Kind(2, 0, 0),
    # The service.
    "service stopped": Kind(2, 0.2, 7, back=TWO_PROBES),
    "service paused": Kind(2, 0.2, 7, back=TWO_PROBES),
    "service unhealthy": Kind(1, 0.2, 7, back=TWO_PROBES),
    "service misbehaves": Kind(2, MET, 6, ("health",), unhealthy, back=TWO_PROBES),
    "service restarted with a new version": Kind(2, 0.05, 0.3, back=TWO_PROBES),
    "service flaps": Kind(2, 4, 8, ("health",), unhealthy, back=TWO_PROBES),
    "certificates renewed before their authority": Kind(3, 0.2, 4, back=TWO_PROBES, traits=(TLS,)),
    # The agent itself. The TTL is two intervals.
    "agent frozen": Kind(2, 0.2, 1.8, traits=(PLAIN, TLS, SLOW)),
    "agent frozen beyond the TTL": Kind(3, 2.1, 2.5, back=0, traits=(PLAIN, TLS, SLOW)),
    "agent's host suspended": Kind(2, 2.2, 6, back=0, traits=(PLAIN, TLS, SLOW)),
    "agent killed": Kind(2, 0.1, 3, traits=(PLAIN, TLS, SLOW)),
    "agent stopped and started": Kind(2, 0.1, 2),
    "agent stopped right after a new token": Kind(2, 0.1, 1),
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
    "idle connections dropped": Kind(2, ONE, ONE, keeps=True),
    "no connection kept": Kind(1, ONE, ONE, keeps=True),
    "rate limited": Kind(1, 1, 3),
    "token changed": Kind(1, 0.5, 3),
    "token renewed": Kind(2, ONE, ONE, keeps=True),
    "replicas without a store": Kind(2, 0, 0),
}
KINDS = {**AGENT_KINDS, **REGISTRY_KINDS}
RESTARTS = ("agent killed", "agent stopped and started", "agent stopped right after a new token")
QUIET = ("idle connections dropped", "no connection kept")  # not a warning comes of these outages
ALONE = (*QUIET, "token renewed", "replicas without a store")  # nothing else may disturb these


class Episode(NamedTuple):
    """One fault: its kind, the seconds before it starts and that it lasts, and how it is played."""

    kind: str
    start: float
    length: float
    operation: str = ""
    fault: str = ""
    toss: bool = False  # of a coin, for what can be played in two ways

    def __str__(self) -> str:
        how = f" ({self.fault} on {self.operation})" if self.fault else ""
        return f"{self.kind}{how} for {self.length:.1f} s"


class Round(NamedTuple):
    """What happens at the same time.

    An outage, and for each agent its episodes, one after another.
    """

    number: int
    dialect: str
    outage: Episode | None
    tracks: tuple[tuple[Episode, ...], ...]
    calm: float  # seconds after each episode, and after the round


def rounds(seed: int, agents: int, interval: float, only: Collection[str] = ()) -> Iterator[Round]:
    """Yield the rounds of a seed, for ever; `only` keeps to these kinds.

    Raises ValueError where none is left. Agents with an even number are never restarted, so that
    their memory is seen over the whole time.
    """
    rng = random.Random(seed)
    draw_kind = [_drawer(rng, only, _kinds_for(agent)) for agent in range(agents)]
    draw_outage = _drawer(rng, only, REGISTRY_KINDS)
    if not (any(draw_kind) or draw_outage):
        raise ValueError(f"no kind of fault is left; there are: {', '.join(KINDS)}")
    played: collections.Counter[str] = collections.Counter()

    def episode(kind: str, own: float = interval) -> Episode:
        how = KINDS[kind]
        length = rng.uniform(how.shortest, how.longest) * own
        operation = rng.choice(how.operations) if how.operations else ""
        fault = rarest(rng, how.faults(), played) if how.faults() else ""
        played[fault] += 1
        return Episode(kind, rng.uniform(0, interval), length, operation, fault, rng.random() < 0.5)

    def track(agent: int, outage: Episode | None) -> Iterator[Episode]:
        draw, own = draw_kind[agent], own_interval(agent, interval)
        if draw is None:
            return
        if outage:
            if rng.random() < MIXED and _goes_with(kind := draw(), outage.kind):
                yield episode(kind, own)
            return
        left = STRETCH * interval
        while left > 0:
            drawn = episode(draw(), own)
            left -= drawn.start + drawn.length + own
            yield drawn

    for number in itertools.count(1):
        has_outage = draw_outage and (number % WITHOUT_OUTAGE != 1 or not any(draw_kind))
        outage = episode(draw_outage()) if draw_outage and has_outage else None
        tracks = tuple(tuple(track(agent, outage)) for agent in range(agents))
        yield Round(number, rng.choice(DIALECTS), outage, tracks, rng.uniform(0.2, 1.0) * interval)


def own_interval(agent: int, interval: float) -> float:
    """Return the HEARTBEAT_INTERVAL of the agent with this number."""
    return SLOWER * interval if trait(agent) == SLOW else interval


def _kinds_for(agent: int) -> Mapping[str, Kind]:
    return {
        name: kind
        for name, kind in AGENT_KINDS.items()
        if trait(agent) in kind.traits and (agent % 2 or name not in RESTARTS)
    }


def _goes_with(kind: str, outage: str) -> bool:
    """Tell whether both together still leave it clear who owes what by when."""
    # What was asked during a pause is answered after it, when a heartbeat may be old.
    fitting = ("agent",) if outage == "registry paused" else ("agent", "service")
    return outage not in ALONE and kind.startswith(fitting)


def rarest(rng: random.Random, faults: Collection[str], played: Mapping[str, int]) -> str:
    """Return one of those that were played least so far, so that before long each is."""
    least = min(played.get(fault, 0) for fault in faults)
    return rng.choice([fault for fault in faults if played.get(fault, 0) == least])


def deck(rng: random.Random, cards: Iterable[str]) -> Iterator[str]:
    """Yield the cards in random order, each once before any comes again."""
    cards = list(cards)
    while True:
        rng.shuffle(cards)
        yield from cards


def _drawer(
    rng: random.Random,
    only: Collection[str],
    kinds: Mapping[str, Kind],
) -> Callable[[], str] | None:
    """Return what draws a kind, each as often as it weighs; None where none is left to draw."""
    left = [kind for kind in kinds if not only or kind in only]
    cards = deck(rng, [kind for kind in left for _ in range(kinds[kind].weight)])
    return (lambda: next(cards)) if left else None
