"""The kinds of fault: how often each is drawn, how long it lasts, what it may cost, how it goes.

A play is a context manager: it begins its fault for one agent, and ends it.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Collection, Iterator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from kit.certificates import certificate
from kit.peers.faults import Fault
from kit.peers.registry import STORES
from kit.peers.server import CONNECT, Exchange
from soak import catalogue

if TYPE_CHECKING:
    from soak.world import Unit

HOST = "peer"  # the name of both
REGISTERED = r"^\S+ INFO Service registered successfully"  # no words of a peer

Play = Callable[["Episode", "Unit"], Iterator[None]]


class Kind(NamedTuple):
    """A kind of fault. Times are in heartbeat intervals."""

    play: Callable[[Episode, Unit], contextlib.AbstractContextManager[None]]
    weight: int  # how often it is drawn
    shortest: float
    longest: float
    operations: tuple[str, ...] = ("",)
    faults: Callable[[], Collection[str]] = lambda: ("",)
    perhaps: str = ""  # what else is done, where a coin says so
    undo: tuple[str, ...] = ()
    keeps: bool = False  # whether the record must be there all the time
    dead: bool = False  # whether the service counts as dead meanwhile, so nothing may be sent
    back: float = 1.0  # the agent is back within so many, beside the deadlines of its requests
    beside: tuple[str, ...] = ()  # what may come meanwhile: how the names of such kinds begin
    tls: bool = False  # whether those alone meet it that speak TLS
    slow: bool = False  # whether those meet it, too, that have a long interval
    restarts: bool = False  # whether those alone meet it that may be restarted


class Episode(NamedTuple):
    """One fault as drawn: the seconds before it starts and that it lasts, and how it is played."""

    name: str
    kind: Kind
    start: float
    length: float
    operation: str
    fault: str
    toss: bool  # of a coin, for what can be played in two ways

    def __str__(self) -> str:
        how = " on ".join(filter(None, (self.fault, self.operation)))
        return f"{self.name} ({how}) for {self.length:.1f} s"


KINDS: dict[str, Kind] = {}


def kind(
    name: str, weight: int, shortest: float, longest: float, **more: Any
) -> Callable[[Play], Play]:
    """Enter a play into KINDS; `more` as in Kind."""

    def enter(play: Play) -> Play:
        KINDS[name] = Kind(contextlib.contextmanager(play), weight, shortest, longest, **more)
        return play

    return enter


def deck(rng: random.Random, cards: list[str]) -> Iterator[str]:
    """Yield the cards in random order, each once before any comes again."""
    while cards:
        rng.shuffle(cards)
        yield from cards


def counted(episode: Episode, unit: Unit) -> Fault:
    """Return an episode's fault, which counts as met when it is."""

    def played(exchange: Exchange) -> None:
        unit.world.met[episode.fault] += 1
        catalogue.ALL[episode.fault](exchange)

    return played


# Within an interval a fault is met; within another one, at the end of the TTL, it shows its harm.
MET, ONE = 1.2, 2.5
TWO_PROBES = 2.5  # intervals for the way back of a service that was down, and their deadlines

# ---- one fault, which never costs the record


@kind("one heartbeat fails", 12, ONE, ONE,
      operations=("heartbeat",), faults=catalogue.failing_or_slow, keeps=True)  # fmt: skip
@kind("the list fails", 1, 0, 0, operations=("list",), faults=catalogue.anything, keeps=True)
def one_request(episode: Episode, unit: Unit) -> Iterator[None]:
    unit.registry.play(episode.operation, counted(episode, unit))
    yield
    if episode.length:  # else it stays until it is met
        unit.registry.sane(episode.operation)


@kind("one probe fails", 10, ONE, ONE,
      operations=("health",), faults=catalogue.anything, keeps=True)  # fmt: skip
@kind("one probe's TLS fails", 12, ONE, ONE,
      operations=(CONNECT,), faults=catalogue.below, keeps=True, tls=True)  # fmt: skip
def one_probe(episode: Episode, unit: Unit) -> Iterator[None]:
    unit.service.play(episode.operation, counted(episode, unit))
    yield
    unit.service.sane()


# ---- something is done to the unit or to a part of it, and undone; the TTL is two intervals


@kind("token renewed", 2, ONE, ONE, operations=("renew_token",), keeps=True)
@kind("token changed", 1, 0.5, 3,
      operations=("change_token",), undo=("tell_token",), beside=("agent", "service"))  # fmt: skip
@kind("record lost", 3, 0, 0, operations=("registry.forget", "registry.expire"))
@kind("registry stopped", 5, 0.1, 6, operations=("registry.stop",), perhaps="registry.forget",
      undo=("registry.start",), beside=("agent", "service"))  # fmt: skip
@kind("registry paused", 2, 0.2, 5, operations=("registry.pause",),
      undo=("registry.resume", "drain"), beside=("agent",))  # fmt: skip
@kind("service stopped", 4, 0.05, 7, operations=("service.stop",), perhaps="new_version",
      undo=("service.start",), dead=True, back=TWO_PROBES)  # fmt: skip
@kind("service paused", 2, 0.2, 7, operations=("service.pause",), perhaps="new_version",
      undo=("service.start", "service.resume"), dead=True, back=TWO_PROBES)  # fmt: skip
@kind("agent frozen", 2, 0.2, 1.8, operations=("freeze",), undo=("thaw",), slow=True)
@kind("agent frozen beyond the TTL", 3, 2.1, 2.5,
      operations=("freeze",), undo=("thaw",), back=0, slow=True)  # fmt: skip
@kind("agent's host suspended", 2, 0, 0, operations=("suspend",), back=0, slow=True)
@kind("agent killed", 2, 0.1, 3, operations=("kill",), undo=("start",), restarts=True)
@kind("agent stopped and started", 4, 0.1, 2,
      operations=("terminate",), undo=("start",), restarts=True)  # fmt: skip
def do(episode: Episode, unit: Unit) -> Iterator[None]:
    attrgetter(episode.operation)(unit)()
    yield
    for method in (*[episode.kind.perhaps] * episode.toss, *episode.kind.undo):
        if method:
            attrgetter(method)(unit)()


@kind("store down", 7, 1, 5, operations=STORES[1:], beside=("agent", "service"))
def store_down(episode: Episode, unit: Unit) -> Iterator[None]:
    unit.registry.store = episode.operation
    yield
    unit.registry.store = "up"


# ---- connections and certificates


@kind("connections dropped", 3, ONE, ONE, keeps=True)
def dropped(episode: Episode, unit: Unit) -> Iterator[None]:
    """Close them after each answer or, where the toss says so, when idle, TLS without its end."""
    peers, before = (unit.registry, unit.service), unit.registry.idle_timeout
    for peer in peers:
        peer.keep_alive, peer.farewell = episode.toss, not episode.toss
        peer.idle_timeout = unit.times.interval / 4 if episode.toss else before
    yield
    for peer in peers:
        peer.keep_alive, peer.farewell, peer.idle_timeout = True, True, before


@kind("authority and certificates renewed", 4, ONE, 2 * ONE, keeps=True, tls=True)
@kind("certificates renewed before their authority", 3, 0.2, 4,
      dead=True, back=TWO_PROBES, tls=True)  # fmt: skip
def authority_renewed(episode: Episode, unit: Unit) -> Iterator[None]:
    """Renew the authority first, or let the agent refuse the peers meanwhile."""
    tls, authority = certificate(unit.home, HOST)
    unit.registry.keep_alive = False
    if episode.kind.keeps:
        unit.trust(authority)
    unit.show(tls)
    yield
    unit.trust(authority)
    unit.registry.keep_alive = True


# ---- the registry


@kind("requests fail", 14, MET, 4,
      operations=("heartbeat", "register", "*"), faults=catalogue.anything)  # fmt: skip
def requests_fail(episode: Episode, unit: Unit) -> Iterator[None]:
    """Where no registration is accepted meanwhile, none may seem so to the agent."""
    before = unit.sidecar.count(REGISTERED)
    unit.registry.play(episode.operation, counted(episode, unit), times=None)
    if episode.operation == "register":  # which nobody would ask for
        unit.registry.forget()
    yield
    registered = unit.sidecar.count(REGISTERED) > before
    unit.registry.sane(episode.operation)
    if registered and episode.operation != "heartbeat" and episode.fault in catalogue.failing():
        unit.complain(f"{episode.fault} was taken for an acceptance")


@kind("the registry's TLS fails", 10, MET, 3,
      operations=(CONNECT,), faults=catalogue.below, tls=True)  # fmt: skip
def connections_fail(episode: Episode, unit: Unit) -> Iterator[None]:
    unit.registry.keep_alive = False
    unit.registry.play(episode.operation, counted(episode, unit), times=None)
    yield
    unit.registry.sane(episode.operation)
    unit.registry.keep_alive = True


# ---- the service


@kind("service misbehaves", 3, 0.2, 7, faults=catalogue.unhealthy, dead=True, back=TWO_PROBES)
@kind("service flaps", 2, 4, 8, faults=catalogue.unhealthy, dead=True, back=TWO_PROBES)
def service_misbehaves(episode: Episode, unit: Unit) -> Iterator[None]:
    """Or flap: three probes fail, so that it is down, then one of four is well, never two."""
    fault, probes = counted(episode, unit), itertools.count(1)

    def played(exchange: Exchange) -> None:
        if episode.name == "service flaps" and next(probes) % 4 == 0:
            exchange.sane()
        else:
            fault(exchange)

    unit.service.play("health", played, times=None)
    yield
    unit.service.sane()
