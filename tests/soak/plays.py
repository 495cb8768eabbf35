"""The kinds of fault: how often each is drawn, how long it lasts, what it may cost, how it goes.

A play is a function that begins its fault, waits, and ends it: one of an agent's gets that Unit, an
outage, which all agents meet, gets the World.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from kit.peers.balancer import TURNS
from kit.peers.faults import Fault
from kit.peers.registry import STORES, Registry
from kit.peers.server import CONNECT, Exchange, Peer
from soak import catalogue

if TYPE_CHECKING:
    from soak.world import Unit, World

REGISTERED = r"^\S+ INFO Service registered successfully"  # no words of a peer
IDLE = 0.2  # seconds
DRAIN = 0.5  # seconds
REPLICAS = 3
LISTED_WITHIN = 100  # intervals, until each replica lists each name
MOST_REQUESTS = 3  # in an interval


class Kind(NamedTuple):
    """A kind of fault. Times are in heartbeat intervals."""

    play: Callable[[Episode, Any], None]
    weight: int  # how often it is drawn
    shortest: float
    longest: float
    operations: tuple[str, ...] = ("",)
    faults: Callable[[], Collection[str]] = lambda: ("",)
    keeps: bool = False  # whether the record must be there all the time
    back: float = 1.0  # the agent is back within so many, beside the deadlines of its requests
    outage: bool = False  # whether everybody meets it
    beside: tuple[str, ...] = ("agent", "service")  # how what an agent may meet meanwhile begins
    tls: bool = False  # whether those alone meet it that speak TLS
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
Play = TypeVar("Play", bound=Callable[[Episode, Any], None])


def kind(
    name: str, weight: int, shortest: float, longest: float, **more: Any
) -> Callable[[Play], Play]:
    """Enter a play into KINDS; `more` as in Kind."""

    def enter(play: Play) -> Play:
        KINDS[name] = Kind(play, weight, shortest, longest, **more)
        return play

    return enter


def draw(rng: random.Random, name: str, interval: float, played: Mapping[str, int]) -> Episode:
    """Draw an episode of a kind, with one of the faults that were played least so far."""
    this = KINDS[name]
    fault = min(this.faults(), key=lambda fault: (played.get(fault, 0), rng.random()))
    length = rng.uniform(this.shortest, this.longest) * interval
    start, operation = rng.uniform(0, interval), rng.choice(this.operations)
    return Episode(name, this, start, length, operation, fault, rng.random() < 0.5)


def deck(rng: random.Random, fits: Callable[[Kind], bool], only: Collection[str]) -> Iterator[str]:
    """Yield the kinds that fit, each as often as it weighs before it comes again."""
    names = [name for name in KINDS if fits(KINDS[name]) and (not only or name in only)]
    cards = [name for name in names for _ in range(KINDS[name].weight)]
    while cards:
        rng.shuffle(cards)
        yield from cards


@contextlib.contextmanager
def playing(peer: Peer, operation: str, fault: Fault) -> Iterator[None]:
    """Let a fault meet all requests of an operation meanwhile."""
    peer.play(operation, fault, times=None)
    yield
    peer.sane(operation)


@contextlib.contextmanager
def unkept(unit: Unit) -> Iterator[None]:
    """Let no connection between an agent and the registry be kept meanwhile."""
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
def one_request(episode: Episode, unit: Unit) -> None:
    unit.front.play(episode.operation, counted(episode, unit))
    unit.wait(episode.length)
    unit.front.sane(episode.operation)


@kind("the list fails", 1, 0, 0, operations=("list",), faults=catalogue.anything, keeps=True)
def next_list(episode: Episode, unit: Unit) -> None:
    """Whenever it comes: this one stays until it is met."""
    unit.front.play(episode.operation, counted(episode, unit))


@kind("one probe fails", 10, ONE, ONE,
      operations=("health",), faults=catalogue.anything, keeps=True)  # fmt: skip
@kind("one probe's TLS fails", 12, ONE, ONE,
      operations=(CONNECT,), faults=catalogue.below, keeps=True, tls=True)  # fmt: skip
def one_probe(episode: Episode, unit: Unit) -> None:
    unit.service.play(episode.operation, counted(episode, unit))
    unit.wait(episode.length)
    unit.service.sane()


# ---- nor do these, though they last


@kind("probe headers renewed", 2, ONE, ONE, keeps=True)
def headers_renewed(episode: Episode, unit: Unit) -> None:
    unit.new_bearer()
    unit.wait(episode.length)


@kind("authority and certificates renewed", 4, ONE, ONE, keeps=True, tls=True)
def authority_renewed(episode: Episode, unit: Unit) -> None:
    """Spoil the file first, where the toss says so: what it held stays in force."""
    new = unit.make_certificates()
    with unkept(unit):
        if episode.toss:
            unit.write("ca.pem", "no certificate")
            unit.events += 2  # the registry's and the service's warning
            unit.wait(episode.length)
        unit.trust(new)
        unit.show(new)
        unit.wait(episode.length)


# ---- the registry, as one agent sees it


@kind("requests fail", 14, MET, 4,
      operations=("heartbeat", "register", "*"), faults=catalogue.anything)  # fmt: skip
def requests_fail(episode: Episode, unit: Unit) -> None:
    """Where no registration is accepted meanwhile, none may seem so to the agent."""
    before = unit.sidecar.count(REGISTERED)
    with playing(unit.front, episode.operation, counted(episode, unit)):
        if episode.operation == "register":  # which nobody would ask for
            unit.world.registry.forget(unit.name)
        unit.wait(episode.length)
        registered = unit.sidecar.count(REGISTERED) > before
    if registered and episode.operation != "heartbeat" and episode.fault in catalogue.failing():
        unit.complain(f"{episode.fault} was taken for an acceptance")


@kind("the registry's TLS fails", 10, MET, 3,
      operations=(CONNECT,), faults=catalogue.below, tls=True)  # fmt: skip
def connections_fail(episode: Episode, unit: Unit) -> None:
    fault = counted(episode, unit)

    def played(exchange: Exchange) -> None:
        unit.events += 1  # for no request may come of it
        fault(exchange)

    with unkept(unit), playing(unit.front, episode.operation, played):
        unit.wait(episode.length)


@kind("record lost", 3, 0, 0)
def lost(episode: Episode, unit: Unit) -> None:
    registry = unit.world.registry
    (registry.forget if episode.toss else registry.expire)(unit.name)


# ---- the service


@kind("service misbehaves", 3, 0.2, 7,
      operations=("health",), faults=catalogue.unhealthy, back=TWO_PROBES)  # fmt: skip
def service_misbehaves(episode: Episode, unit: Unit) -> None:
    with dead(unit), playing(unit.service, episode.operation, counted(episode, unit)):
        unit.wait(episode.length)


@kind("service flaps", 2, 4, 8,
      operations=("health",), faults=catalogue.unhealthy, back=TWO_PROBES)  # fmt: skip
def service_flaps(episode: Episode, unit: Unit) -> None:
    """Let three probes fail, so that it is down, then one of four be well: never two in a row."""
    fault, probes = counted(episode, unit), itertools.count(1)

    def flap(exchange: Exchange) -> None:
        if next(probes) % 4:
            fault(exchange)
        else:
            exchange.sane()

    with dead(unit), playing(unit.service, episode.operation, flap):
        unit.wait(episode.length)


@kind("service stopped", 4, 0.05, 7, back=TWO_PROBES)
def service_stopped(episode: Episode, unit: Unit) -> None:
    with dead(unit):
        unit.service.stop()
        unit.wait(episode.length)
        if episode.toss:
            unit.new_version()
        unit.service.start()


@kind("service paused", 2, 0.2, 7, back=TWO_PROBES)
def service_paused(episode: Episode, unit: Unit) -> None:
    with dead(unit):
        unit.service.pause()
        unit.wait(episode.length)
        if episode.toss:
            unit.service.stop()
            unit.new_version()
            unit.service.start()
        unit.service.resume()


@kind("certificates renewed before their authority", 3, 0.2, 4, back=TWO_PROBES, tls=True)
def authority_late(episode: Episode, unit: Unit) -> None:
    """Let the agent refuse the peers meanwhile."""
    new = unit.make_certificates()
    with unkept(unit), dead(unit):
        unit.show(new)
        unit.wait(episode.length)
        unit.trust(new)


# ---- the agent itself; the TTL is two intervals


@kind("agent frozen", 2, 0.2, 1.8)
@kind("agent frozen beyond the TTL", 3, 2.1, 2.5, back=0)
def frozen(episode: Episode, unit: Unit) -> None:
    """Freeze it: what is asked just before may be answered after; then none knows what is first."""
    idle = time.monotonic() - unit.asked_at > IDLE
    unit.freeze()
    unit.wait(episode.length)
    unit.thaw(register_first=idle and episode.length > unit.times.ttl)


@kind("agent's host suspended", 2, 2.2, 6, back=0)
def suspended(episode: Episode, unit: Unit) -> None:
    """Suspend it: as frozen, but it takes no time, and only a clock that goes on shows it."""
    unit.suspend(episode.length, register_first=time.monotonic() - unit.asked_at > IDLE)


@kind("agent killed", 2, 0.1, 3, restarts=True)
def killed(episode: Episode, unit: Unit) -> None:
    unit.kill()
    unit.wait(episode.length)
    unit.start()


@kind("agent stopped and started", 4, 0.1, 2, restarts=True)
def stopped(episode: Episode, unit: Unit) -> None:
    """Stop it right after its token was renewed, where the toss says so."""
    if episode.toss:
        unit.world.renew_token()
    unit.terminate()
    unit.wait(episode.length)
    unit.start()


# ---- the registry, as everybody sees it


@kind("registry stopped", 5, 0.1, 6, outage=True)
def registry_stopped(episode: Episode, world: World) -> None:
    """Lose all records meanwhile, where the toss says so."""
    for front in world.fronts:
        front.stop()
    world.wait(episode.length)
    if episode.toss:
        world.registry.forget()
    for front in world.fronts:
        front.start()


# What was asked during a pause is answered after it, when a heartbeat may be old.
@kind("registry paused", 2, 0.2, 5, outage=True, beside=("agent",))
def registry_paused(episode: Episode, world: World) -> None:
    for front in world.fronts:
        front.pause()
    world.wait(episode.length)
    for front in world.fronts:
        front.resume()
    world.wait(DRAIN)  # all that is answered now, though nobody waits for it any more


@kind("store down", 7, 1, 5, operations=tuple(each for each in STORES if each != "up"), outage=True)
def store(episode: Episode, world: World) -> None:
    world.registry.store = episode.operation
    world.wait(episode.length)
    world.registry.store = "up"


@kind("connections dropped", 3, ONE, ONE, keeps=True, outage=True, beside=(), quiet=True)
def dropped(episode: Episode, world: World) -> None:
    """Close them after each answer or, where the toss says so, when idle, TLS without its end."""
    peers = [*world.fronts, *(unit.service for unit in world.units)]
    before = peers[0].idle_timeout
    for peer in peers:
        if episode.toss:
            peer.idle_timeout, peer.farewell = world.times.interval / 4, False
        else:
            peer.keep_alive = False
    world.wait(episode.length)
    for peer in peers:
        peer.idle_timeout, peer.farewell, peer.keep_alive = before, True, True


@kind("token changed", 1, 0.5, 3, outage=True)
def token_changed(episode: Episode, world: World) -> None:
    """Refuse the old one before there is the new one."""
    world.registry.token = world.new_secret()
    world.wait(episode.length)
    world.hand_out(world.registry.token)


@kind("token renewed", 2, ONE, ONE, keeps=True, outage=True, beside=())
def token_renewed(episode: Episode, world: World) -> None:
    world.renew_token()
    world.wait(episode.length)


@kind("replicas without a store", 2, 0, 0, outage=True, beside=())
def replicas_alone(episode: Episode, world: World) -> None:
    """Let each answer from its own memory: before long all list each name, by few requests."""
    registry, units = world.registry, world.units
    token, dialect = registry.token, registry.dialect
    others = (Registry(store="open", token=token, dialect=dialect) for _ in range(1, REPLICAS))
    replicas = [registry, *others]
    registry.store = "open"
    registry.forget()
    for front in world.fronts:
        front.replicas, front.turns = replicas, TURNS[episode.toss]
    before, intervals = {unit: unit.front.count() for unit in units}, 0

    def missing() -> list[str]:
        lists = [set(replica.listed()) for replica in replicas]
        return [unit.name for unit in units if not all(unit.name in names for names in lists)]

    while missing() and intervals < LISTED_WITHIN:
        world.wait(world.times.interval)
        intervals += 1
    if lost := missing():
        world.violation(None, f"not in each list after {intervals} intervals: {lost}")
    for front in world.fronts:
        front.replicas = [registry]
    registry.store = "up"
    for unit in units:
        if (asked := unit.front.count() - before[unit]) > MOST_REQUESTS * (intervals + 1):
            unit.complain(f"{asked} requests in {intervals} intervals")
