"""How each kind of fault is played: a generator that begins it, waits by a yield, and ends it."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from kit.peers.balancer import TURNS
from kit.peers.faults import Fault
from kit.peers.registry import STORES, Registry
from kit.peers.server import Exchange
from soak.catalogue import named_fault
from soak.schedule import SLOW, Episode
from soak.unit import ANY_OPERATION, Aim, Unit, write

if TYPE_CHECKING:
    from soak.world import World

REGISTERED = r"^\S+ INFO Service registered successfully"  # no words of a peer
DRAIN = 0.5  # seconds
IDLE = 0.2  # seconds
JUST_DUE = 0.3  # seconds after a heartbeat was due
REPLICAS = 3
PROMISED = 100  # intervals until each replica lists each name
MOST_REQUESTS = 3  # in an interval
LEFT_OVER = 2  # lines: one fits into the pipe behind the filler, one waits in the agent

Play = Iterator[
    float
]  # begins a fault, yields the seconds until its next step, ends it in the last


@contextlib.contextmanager
def aimed(unit: Unit, operation: str, name: str) -> Iterator[None]:
    """Let a fault meet all of an agent's requests of this kind to the registry meanwhile."""
    aim = Aim(operation, name, named_fault(name), once=False)
    unit.aim(aim)
    yield
    unit.unaim(aim)


@contextlib.contextmanager
def unkept(unit: Unit) -> Iterator[None]:
    """Let no connection between an agent and the registry be kept meanwhile."""

    def close(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.sane()

    aim = Aim(ANY_OPERATION, "unkept", close, once=False)
    unit.aim(aim)
    yield
    unit.unaim(aim)


@contextlib.contextmanager
def dead(unit: Unit) -> Iterator[None]:
    """Count the service as dead meanwhile: the agent then owes that it sends no heartbeat."""
    unit.watch.dead_since = time.monotonic()
    yield
    unit.watch.dead_since = math.inf


class Plays:
    """The plays by kind: those on one agent, and those on the registry, which concern everybody."""

    def __init__(self, world: World) -> None:
        self.world, self.registry = world, world.registry
        others = [Registry(store="open") for _ in range(1, REPLICAS)]
        self.replicas = [self.registry, *others]  # all but the first usually out of reach
        self.on_agent: Mapping[str, Callable[[Episode, Unit], Play]] = {
            "one heartbeat fails": self.one_request,
            "one probe fails": self.one_probe,
            "the list fails": self.next_list,
            "first address dead": self.first_address_dead,
            "log not read": self.log_not_read,
            "one probe's TLS fails": self.one_probe,
            "probe headers renewed": self.headers_renewed,
            "authority and certificates renewed": self.authority_renewed,
            "requests fail": self.requests,
            "the registry's TLS fails": self.connections,
            "a website in its place": self.requests,
            "registrations are asked to wait": self.requests,
            "hollow answers": self.requests,
            "record lost": self.lost,
            "service stopped": self.service_stopped,
            "service paused": self.service_paused,
            "service unhealthy": self.service_unhealthy,
            "service misbehaves": self.service_misbehaves,
            "service flaps": self.service_flaps,
            "service restarted with a new version": self.service_stopped,
            "certificates renewed before their authority": self.authority_late,
            "agent frozen": self.frozen,
            "agent frozen beyond the TTL": self.frozen_long,
            "agent's host suspended": self.suspended,
            "agent killed": self.killed,
            "agent stopped and started": self.stopped,
            "agent stopped right after a new token": self.stopped_after_renewal,
        }
        self.on_registry: Mapping[str, Callable[[Episode], Play]] = {
            "registry stopped": self.registry_stopped,
            "registry paused": self.registry_paused,
            **{f"store {state}": self.store for state in STORES if state != "up"},
            "registry restarted empty": self.registry_stopped,
            "all records lost": self.all_lost,
            "all records expired": self.all_expired,
            "idle connections dropped": self.idle_dropped,
            "no connection kept": self.none_kept,
            "rate limited": self.limited,
            "token changed": self.token_changed,
            "token renewed": self.token_renewed,
            "replicas without a store": self.replicas_alone,
        }

    # ---- the registry, as one agent sees it

    def one_request(self, episode: Episode, unit: Unit) -> Play:
        aim = Aim(episode.operation, episode.fault, named_fault(episode.fault), once=True)
        unit.aim(aim)
        yield episode.length
        unit.unaim(aim)

    def next_list(self, episode: Episode, unit: Unit) -> Play:
        """Whenever it comes: this one stays until it is met."""
        unit.aim(Aim(episode.operation, episode.fault, named_fault(episode.fault), once=True))
        yield episode.length

    def requests(self, episode: Episode, unit: Unit) -> Play:
        """Where no registration is accepted meanwhile, none may seem so to the agent."""
        before = unit.sidecar.count(REGISTERED)
        with aimed(unit, episode.operation, episode.fault):
            if episode.operation == "register":  # which nobody would ask for
                self.registry.forget(unit.name)
            yield episode.length
            registered = unit.sidecar.count(REGISTERED) > before
        if registered and episode.operation != "heartbeat" and episode.kind != "hollow answers":
            self.world.violation(unit, f"{episode.fault} was taken for an acceptance")

    def connections(self, episode: Episode, unit: Unit) -> Play:
        fault = self._counted(episode)

        def play(exchange: Exchange) -> None:
            unit.events += 1  # for no request may come of it
            fault(exchange)

        with unkept(unit):
            unit.front.play(episode.operation, play, times=None)
            yield episode.length
            unit.front.sane(episode.operation)

    def first_address_dead(self, episode: Episode, unit: Unit) -> Play:
        """Let the first address be dead of the registry's name, the service's or both."""
        with unkept(unit):
            unit.lead(dead_first=episode.operation.split(" and "))
            yield episode.length
            unit.lead()

    def lost(self, episode: Episode, unit: Unit) -> Play:
        self.registry.forget(unit.name)
        yield episode.length

    # ---- the service

    def one_probe(self, episode: Episode, unit: Unit) -> Play:
        unit.service.play(episode.operation, self._counted(episode))
        yield episode.length
        unit.service.sane()

    def service_misbehaves(self, episode: Episode, unit: Unit) -> Play:
        with dead(unit):
            unit.service.play(episode.operation, self._counted(episode), times=None)
            yield episode.length
            unit.service.sane()

    def service_stopped(self, episode: Episode, unit: Unit) -> Play:
        with dead(unit):
            unit.service.stop()
            yield episode.length
            if episode.toss or "new version" in episode.kind:
                unit.new_version()
            unit.service.start()

    def service_paused(self, episode: Episode, unit: Unit) -> Play:
        with dead(unit):
            unit.service.pause()
            yield episode.length
            if episode.toss:
                unit.service.stop()
                unit.new_version()
                unit.service.start()
            unit.service.resume()

    def service_unhealthy(self, episode: Episode, unit: Unit) -> Play:
        with dead(unit):
            unit.service.healthy = False
            yield episode.length
            unit.service.healthy = True

    def service_flaps(self, episode: Episode, unit: Unit) -> Play:
        """Let three probes fail, so that it is down, then one of four be well.

        Never two in a row.
        """
        fault, probes = self._counted(episode), itertools.count(1)

        def flap(exchange: Exchange) -> None:
            if next(probes) % 4:
                fault(exchange)
            else:
                exchange.sane()

        with dead(unit):
            unit.service.play(episode.operation, flap, times=None)
            yield episode.length
            unit.service.sane()

    def headers_renewed(self, episode: Episode, unit: Unit) -> Play:
        unit.new_bearer()
        yield episode.length

    def authority_renewed(self, episode: Episode, unit: Unit) -> Play:
        """Spoil the file first, where the toss says so: what it held stays in force."""
        new = unit.make_certificates()
        with unkept(unit):
            if episode.toss:
                write(unit.ca_file, "no certificate")
                unit.events += 2  # the registry's and the service's warning
                yield episode.length
            unit.trust(new)
            unit.show(new)
            yield episode.length

    def authority_late(self, episode: Episode, unit: Unit) -> Play:
        """Let the agent refuse the peers meanwhile."""
        new = unit.make_certificates()
        with unkept(unit), dead(unit):
            unit.show(new)
            yield episode.length
            unit.trust(new)

    def _counted(self, episode: Episode) -> Fault:
        """Return an episode's fault, which counts as met when it is."""
        fault = named_fault(episode.fault)

        def counted(exchange: Exchange) -> None:
            self.world.met[episode.operation, episode.fault] += 1
            fault(exchange)

        return counted

    # ---- the agent

    def log_not_read(self, episode: Episode, unit: Unit) -> Play:
        """Each heartbeat has its line; all but the first ones have to be counted as dropped."""
        unit.sidecar.stop_reading()
        before = unit.asked["heartbeat"]
        yield episode.length
        unit.sidecar.read_again()
        with unit.lock:
            lines = unit.asked["heartbeat"] - before - LEFT_OVER
            unit.watch.expect_loss(lines, time.monotonic())

    def frozen(self, episode: Episode, unit: Unit) -> Play:
        unit.freeze()
        yield episode.length
        unit.thaw()

    def frozen_long(self, episode: Episode, unit: Unit) -> Play:
        """Freeze it; where the toss says so, from one moment right after a heartbeat to another.

        What is asked just before may be answered just after: then nobody knows what is first.
        """
        if episode.toss:
            yield unit.until_due() + JUST_DUE
        idle = time.monotonic() - unit.asked_at > IDLE
        unit.freeze()
        yield episode.length
        if episode.toss:
            yield unit.until_due() + JUST_DUE
        unit.register_first = idle and not self.world.outage
        unit.thaw()

    def suspended(self, episode: Episode, unit: Unit) -> Play:
        """Suspend it: as frozen, but it takes no time, and only a clock that goes on shows it."""
        idle = time.monotonic() - unit.asked_at > IDLE
        unit.suspend(episode.length)
        unit.register_first = idle and not self.world.outage
        yield 0.0

    def killed(self, episode: Episode, unit: Unit) -> Play:
        unit.kill()
        yield episode.length
        unit.start()

    def stopped(self, episode: Episode, unit: Unit) -> Play:
        self.world.terminate(unit)
        yield episode.length
        unit.start()

    def stopped_after_renewal(self, episode: Episode, unit: Unit) -> Play:
        self._renew_token()
        self.world.terminate(unit)
        yield episode.length
        unit.start()

    # ---- the registry, as everybody sees it

    def registry_stopped(self, episode: Episode) -> Play:
        for front in self.world.fronts:
            front.stop()
        yield episode.length
        if episode.kind == "registry restarted empty":
            self.registry.forget()
        for front in self.world.fronts:
            front.start()

    def registry_paused(self, episode: Episode) -> Play:
        for front in self.world.fronts:
            front.pause()
        yield episode.length
        for front in self.world.fronts:
            front.resume()
        yield DRAIN  # what was asked meanwhile is answered now, though nobody waits for it any more

    def store(self, episode: Episode) -> Play:
        self.registry.store = episode.kind.removeprefix("store ")
        yield episode.length
        self.registry.store = "up"

    def all_lost(self, episode: Episode) -> Play:
        self.registry.forget()
        yield episode.length

    def all_expired(self, episode: Episode) -> Play:
        self.registry.expire()
        yield episode.length

    def limited(self, episode: Episode) -> Play:
        self.registry.limits = {"register": (0, 1.0), "heartbeat": (0, 1.0)}
        yield episode.length
        self.registry.limits = {}

    def idle_dropped(self, episode: Episode) -> Play:
        """Drop them, TLS without its end where the toss says so."""
        peers = (*self.world.fronts, *(unit.service for unit in self.world.units))
        before = self.registry.idle_timeout
        for peer in peers:
            peer.idle_timeout, peer.farewell = self.world.times.interval / 4, not episode.toss
        yield episode.length
        for peer in peers:
            peer.idle_timeout, peer.farewell = before, True

    def none_kept(self, episode: Episode) -> Play:
        for front in self.world.fronts:
            front.keep_alive = False
        yield episode.length
        for front in self.world.fronts:
            front.keep_alive = True

    def token_changed(self, episode: Episode) -> Play:
        self.registry.token = self.world.new_secret()
        yield episode.length
        self.world.hand_out(self.registry.token)

    def token_renewed(self, episode: Episode) -> Play:
        self._renew_token()
        yield episode.length

    def _renew_token(self) -> None:
        """Renew it in the file first: what meets the old one is repeated with the new one."""
        token = self.world.new_secret()
        self.world.hand_out(token)
        self.registry.token = token

    def replicas_alone(self, episode: Episode) -> Play:
        """Let each answer from its own memory: before long all list each name, by few requests.

        Those with a long interval are not waited for.
        """
        world = self.world
        units = [unit for unit in world.units if unit.trait != SLOW]
        for replica in self.replicas:
            replica.token, replica.store = self.registry.token, "open"
            replica.forget()
        for front in world.fronts:
            front.replicas, front.turns = self.replicas, TURNS[episode.toss]
        before, intervals = {unit: unit.asked.total() for unit in units}, 0
        while (missing := self._missing(units)) and intervals < PROMISED:
            yield world.times.interval
            intervals += 1
        for front in world.fronts:
            front.replicas = [self.registry]
        self.registry.store = "up"
        for unit in units:
            if (asked := unit.asked.total() - before[unit]) > MOST_REQUESTS * (intervals + 1):
                world.violation(unit, f"{asked} requests in {intervals} intervals")
        if missing:
            world.violation(None, f"not in each list after {intervals} intervals: {missing}")

    def _missing(self, units: Iterable[Unit]) -> list[str]:
        """Return the names that some replica does not list."""
        lists = [replica.listed() for replica in self.replicas]
        return [unit.name for unit in units if not all(unit.name in names for names in lists)]
