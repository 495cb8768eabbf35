"""The kinds of fault: how often each is drawn, how long it lasts, what it may cost, how it goes.

A play is a context manager: it begins its fault for one agent, and ends it.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from kit.peers.balancer import TURNS
from kit.peers.faults import Fault
from kit.peers.registry import STORES, Registry
from kit.peers.server import CONNECT, Exchange
from soak import catalogue

if TYPE_CHECKING:
    from soak.world import Unit

REGISTERED = r"^\S+ INFO Service registered successfully"  # no words of a peer
DRAIN = 0.5  # seconds
REPLICAS = 3
LISTED_WITHIN = 100  # intervals, until each replica lists the name
MOST_REQUESTS = 3  # in an interval

Play = Callable[["Episode", "Unit"], Iterator[None]]


class Kind(NamedTuple):
    """A kind of fault. Times are in heartbeat intervals."""

    play: Callable[[Episode, Unit], contextlib.AbstractContextManager[None]]
    weight: int  # how often it is drawn
    shortest: float
    longest: float
    operations: tuple[str, ...] = ("",)
    faults: Callable[[], Collection[str]] = lambda: ("",)
    keeps: bool = False  # whether the record must be there all the time
    back: float = 1.0  # the agent is back within so many, beside the deadlines of its requests
    beside: tuple[str, ...] = ()  # what may come meanwhile: how the names of such kinds begin
    tls: bool = False  # whether those alone meet it that speak TLS
    slow: bool = False  # whether those meet it, too, that have a long interval
    restarts: bool = False
    quiet: bool = False  # whether no warning may come of it


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


@contextlib.contextmanager
def unkept(unit: Unit) -> Iterator[None]:
    """Let no connection between the agent and the registry be kept meanwhile."""
    unit.front.keep_alive = False
    yield
    unit.front.keep_alive = True


@contextlib.contextmanager
def dead(unit: Unit) -> Iterator[None]:
    """Count the service as dead meanwhile: the agent then owes that it sends no heartbeat."""
    unit.watch.dead_since = time.monotonic()
    yield
    unit.watch.dead_since = math.inf


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
    unit.front.play(episode.operation, counted(episode, unit))
    yield
    if episode.length:  # else it stays until it is met
        unit.front.sane(episode.operation)


@kind("one probe fails", 10, ONE, ONE,
      operations=("health",), faults=catalogue.anything, keeps=True)  # fmt: skip
@kind("one probe's TLS fails", 12, ONE, ONE,
      operations=(CONNECT,), faults=catalogue.below, keeps=True, tls=True)  # fmt: skip
def one_probe(episode: Episode, unit: Unit) -> Iterator[None]:
    unit.service.play(episode.operation, counted(episode, unit))
    yield
    unit.service.sane()


# ---- nor do these, though they last


@kind("probe headers renewed", 2, ONE, ONE, keeps=True)
def headers_renewed(_: Episode, unit: Unit) -> Iterator[None]:
    unit.new_bearer()
    yield


@kind("token renewed", 2, ONE, ONE, keeps=True)
def token_renewed(_: Episode, unit: Unit) -> Iterator[None]:
    unit.renew_token()
    yield


@kind("authority and certificates renewed", 4, ONE, 2 * ONE, keeps=True, tls=True)
def authority_renewed(episode: Episode, unit: Unit) -> Iterator[None]:
    """Spoil the file first, where the toss says so: what it held stays in force."""
    new = unit.make_certificates()
    with unkept(unit):
        if episode.toss:
            unit.write("ca.pem", "no certificate")
            unit.events += 2  # the registry's and the service's warning
            unit.world.wait(ONE * unit.times.interval)
        unit.trust(new)
        unit.show(new)
        yield


@kind("connections dropped", 3, ONE, ONE, keeps=True, quiet=True)
def dropped(episode: Episode, unit: Unit) -> Iterator[None]:
    """Close them after each answer or, where the toss says so, when idle, TLS without its end."""
    peers, before = (unit.front, unit.service), unit.front.idle_timeout
    for peer in peers:
        peer.keep_alive, peer.farewell = episode.toss, not episode.toss
        peer.idle_timeout = unit.times.interval / 4 if episode.toss else before
    yield
    for peer in peers:
        peer.keep_alive, peer.farewell, peer.idle_timeout = True, True, before


# ---- the registry


@kind("requests fail", 14, MET, 4,
      operations=("heartbeat", "register", "*"), faults=catalogue.anything)  # fmt: skip
def requests_fail(episode: Episode, unit: Unit) -> Iterator[None]:
    """Where no registration is accepted meanwhile, none may seem so to the agent."""
    before = unit.sidecar.count(REGISTERED)
    unit.front.play(episode.operation, counted(episode, unit), times=None)
    if episode.operation == "register":  # which nobody would ask for
        unit.registry.forget()
    yield
    registered = unit.sidecar.count(REGISTERED) > before
    unit.front.sane(episode.operation)
    if registered and episode.operation != "heartbeat" and episode.fault in catalogue.failing():
        unit.complain(f"{episode.fault} was taken for an acceptance")


@kind("the registry's TLS fails", 10, MET, 3,
      operations=(CONNECT,), faults=catalogue.below, tls=True)  # fmt: skip
def connections_fail(episode: Episode, unit: Unit) -> Iterator[None]:
    fault = counted(episode, unit)

    def played(exchange: Exchange) -> None:
        unit.events += 1  # for no request may come of it
        fault(exchange)

    with unkept(unit):
        unit.front.play(episode.operation, played, times=None)
        yield
        unit.front.sane(episode.operation)


@kind("record lost", 3, 0, 0)
def lost(episode: Episode, unit: Unit) -> Iterator[None]:
    (unit.registry.forget if episode.toss else unit.registry.expire)()
    yield


@kind("registry stopped", 5, 0.1, 6, beside=("agent", "service"))
def registry_stopped(episode: Episode, unit: Unit) -> Iterator[None]:
    """Lose the record meanwhile, where the toss says so."""
    unit.front.stop()
    yield
    if episode.toss:
        unit.registry.forget()
    unit.front.start()


# What was asked during a pause is answered after it, when a heartbeat may be old.
@kind("registry paused", 2, 0.2, 5, beside=("agent",))
def registry_paused(_: Episode, unit: Unit) -> Iterator[None]:
    unit.front.pause()
    yield
    unit.front.resume()
    unit.world.wait(DRAIN)  # all that is answered now, though nobody waits for it any more


@kind("store down", 7, 1, 5, operations=STORES[1:], beside=("agent", "service"))
def store_down(episode: Episode, unit: Unit) -> Iterator[None]:
    unit.registry.store = episode.operation
    yield
    unit.registry.store = "up"


@kind("token changed", 1, 0.5, 3, beside=("agent", "service"))
def token_changed(_: Episode, unit: Unit) -> Iterator[None]:
    """Refuse the old one before there is the new one."""
    unit.registry.token = unit.world.new_secret()
    yield
    unit.write("token", unit.registry.token)


@kind("replicas without a store", 2, 0, 0)
def replicas_alone(episode: Episode, unit: Unit) -> Iterator[None]:
    """Let each answer from its own memory: before long all list the name, by few requests."""
    registry, before, intervals = unit.registry, unit.front.count(), 0
    registry.store = "open"
    registry.forget()
    token = registry.token
    replicas = [registry, *(Registry(store="open", token=token) for _ in range(1, REPLICAS))]
    unit.front.replicas, unit.front.turns = replicas, TURNS[episode.toss]
    while not all(replica.listed() for replica in replicas) and intervals < LISTED_WITHIN:
        unit.world.wait(unit.times.interval)
        intervals += 1
    if not all(replica.listed() for replica in replicas):
        unit.complain(f"not in each list after {intervals} intervals")
    if (asked := unit.front.count() - before) > MOST_REQUESTS * (intervals + 1):
        unit.complain(f"{asked} requests in {intervals} intervals")
    yield
    unit.front.replicas, registry.store = [registry], "up"


# ---- the service


@kind("service misbehaves", 3, 0.2, 7, faults=catalogue.unhealthy, back=TWO_PROBES)
@kind("service flaps", 2, 4, 8, faults=catalogue.unhealthy, back=TWO_PROBES)
def service_misbehaves(episode: Episode, unit: Unit) -> Iterator[None]:
    """Or flap: three probes fail, so that it is down, then one of four is well, never two."""
    fault, probes = counted(episode, unit), itertools.count(1)

    def played(exchange: Exchange) -> None:
        if episode.name == "service flaps" and next(probes) % 4 == 0:
            exchange.sane()
        else:
            fault(exchange)

    with dead(unit):
        unit.service.play("health", played, times=None)
        yield
        unit.service.sane()


@kind("service stopped", 4, 0.05, 7, back=TWO_PROBES)
@kind("service paused", 2, 0.2, 7, back=TWO_PROBES)
def service_gone(episode: Episode, unit: Unit) -> Iterator[None]:
    """Let it come back with a new version, where the toss says so."""
    stops = episode.name == "service stopped"
    with dead(unit):
        (unit.service.stop if stops else unit.service.pause)()
        yield
        if episode.toss:
            unit.service.stop()
            unit.new_version()
        unit.service.start()
        unit.service.resume()


@kind("certificates renewed before their authority", 3, 0.2, 4, back=TWO_PROBES, tls=True)
def authority_late(_: Episode, unit: Unit) -> Iterator[None]:
    """Let the agent refuse the peers meanwhile."""
    new = unit.make_certificates()
    with unkept(unit), dead(unit):
        unit.show(new)
        yield
        unit.trust(new)


# ---- the agent itself; the TTL is two intervals


@kind("agent frozen", 2, 0.2, 1.8, slow=True)
@kind("agent frozen beyond the TTL", 3, 2.1, 2.5, back=0, slow=True)
def frozen(episode: Episode, unit: Unit) -> Iterator[None]:
    idle = unit.is_idle()
    unit.freeze()
    yield
    unit.thaw(register_first=idle and episode.length > unit.times.ttl)


@kind("agent's host suspended", 2, 0, 0, back=0, slow=True)
def suspended(episode: Episode, unit: Unit) -> Iterator[None]:
    """Suspend it: as frozen, but it takes no time, and only a clock that goes on shows it."""
    unit.suspend((3.0 if episode.toss else 1.1) * unit.times.ttl, register_first=unit.is_idle())
    yield


@kind("agent killed", 2, 0.1, 3, restarts=True)
def killed(_: Episode, unit: Unit) -> Iterator[None]:
    unit.kill()
    yield
    unit.start()


@kind("agent stopped and started", 4, 0.1, 2, restarts=True)
def stopped(episode: Episode, unit: Unit) -> Iterator[None]:
    """Stop it right after its token was renewed, where the toss says so."""
    if episode.toss:
        unit.renew_token()
    unit.terminate()
    yield
    unit.start()
