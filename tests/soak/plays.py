"""How each kind of fault is played: a generator that begins it, yields, and then ends it."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from kit.peers.faults import Fault
from kit.peers.registry import STORES
from kit.peers.server import Exchange
from soak.catalogue import named_fault
from soak.schedule import Episode
from soak.unit import Aim, Unit

if TYPE_CHECKING:
    from soak.world import World

ACKNOWLEDGED = "record lost, heartbeats acknowledged"
REGISTERED = r"^\S+ INFO Service registered successfully"  # no words of a peer
DRAIN = 0.5  # seconds
IDLE = 0.2  # seconds
SUSPENDED = 3  # intervals
LEFT_OVER = 2  # lines: one fits into the pipe behind the filler, one waits in the agent


@contextlib.contextmanager
def aimed(unit: Unit, operation: str, name: str) -> Iterator[None]:
    """Let a fault meet all of an agent's requests of this kind to the registry meanwhile."""
    aim = Aim(operation, name, named_fault(name), once=False)
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
        self.on_agent: Mapping[str, Callable[[Episode, Unit], Iterator[None]]] = {
            "one heartbeat fails": self.one_request,
            "one heartbeat is asked to wait": self.one_request,
            "one probe fails": self.one_probe,
            "the list fails": self.next_list,
            "the list is useless, registrations fail": self.useless_lists,
            "new version, registrations fail": self.new_version_refused,
            "first address dead": self.first_address_dead,
            "log not read": self.log_not_read,
            "host suspended": self.suspended,
            "requests fail": self.requests,
            "a website in its place": self.requests,
            "heartbeats are asked to wait": self.requests,
            "registrations are asked to wait": self.requests,
            "hollow answers": self.requests,
            "record lost": self.lost,
            ACKNOWLEDGED: self.acknowledged,
            "service stopped": self.service_stopped,
            "service paused": self.service_paused,
            "service unhealthy": self.service_unhealthy,
            "service misbehaves": self.service_misbehaves,
            "service flaps": self.service_flaps,
            "service restarted with a new version": self.service_stopped,
            "agent frozen": self.frozen,
            "agent frozen beyond the TTL": self.frozen_long,
            "agent killed": self.killed,
            "agent stopped and started": self.stopped,
        }
        self.on_registry: Mapping[str, Callable[[Episode], Iterator[None]]] = {
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
        }

    # ---- the registry, as one agent sees it

    def one_request(self, episode: Episode, unit: Unit) -> Iterator[None]:
        aim = Aim(episode.operation, episode.fault, named_fault(episode.fault), once=True)
        unit.aim(aim)
        yield
        unit.unaim(aim)

    def next_list(self, episode: Episode, unit: Unit) -> Iterator[None]:
        """Whenever it comes: this one stays until it is met."""
        unit.aim(Aim(episode.operation, episode.fault, named_fault(episode.fault), once=True))
        yield

    def requests(self, episode: Episode, unit: Unit) -> Iterator[None]:
        """Where no registration is accepted meanwhile, none may seem so to the agent."""
        before = unit.sidecar.count(REGISTERED)
        with aimed(unit, episode.operation, episode.fault):
            if episode.operation == "register":  # which nobody would ask for
                self.registry.forget(unit.name)
            yield
            registered = unit.sidecar.count(REGISTERED) > before
        if registered and episode.operation != "heartbeat" and episode.kind != "hollow answers":
            self.world.violation(unit, f"{episode.fault} was taken for an acceptance")

    def useless_lists(self, episode: Episode, unit: Unit) -> Iterator[None]:
        """Each look that tells nothing is worth one registration at most, whatever comes of it."""
        unit.unaim_all(operation="list")
        before = unit.asked.copy()
        refusal = "status_429" if episode.toss else "status_500"
        with aimed(unit, "list", episode.fault), aimed(unit, "register", refusal):
            yield
        asked = unit.asked - before
        if asked["register"] > asked["list"]:
            self.world.violation(
                unit, f"{asked['register']} registrations for {asked['list']} useless lists"
            )

    def new_version_refused(self, episode: Episode, unit: Unit) -> Iterator[None]:
        unit.new_version()
        with aimed(unit, episode.operation, episode.fault):
            yield

    def first_address_dead(self, episode: Episode, unit: Unit) -> Iterator[None]:
        """Of the registry's name, the service's or both; and no connection to either is kept."""

        def close(exchange: Exchange) -> None:
            exchange.close_connection = True
            exchange.sane()

        aim = Aim("*", episode.kind, close, once=False)
        unit.service.keep_alive = False
        unit.aim(aim)
        unit.lead(dead_first=episode.operation.split(" and "))
        yield
        unit.lead()
        unit.unaim(aim)
        unit.service.keep_alive = True

    def lost(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        self.registry.forget(unit.name)
        yield

    def acknowledged(self, episode: Episode, unit: Unit) -> Iterator[None]:
        def acknowledge(exchange: Exchange) -> None:
            if self.registry.record(unit.name):
                unit.unaim(aim)
                exchange.sane()
            else:
                exchange.reply(200, {"message": "Heartbeat received"})

        aim = Aim("heartbeat", episode.kind, acknowledge, once=False)
        self.registry.forget(unit.name)
        unit.aim(aim)
        yield

    # ---- the service

    def one_probe(self, episode: Episode, unit: Unit) -> Iterator[None]:
        unit.service.play("health", self._counted(episode.fault))
        yield
        unit.service.sane()

    def service_misbehaves(self, episode: Episode, unit: Unit) -> Iterator[None]:
        with dead(unit):
            unit.service.play("health", self._counted(episode.fault), times=None)
            yield
            unit.service.sane()

    def service_stopped(self, episode: Episode, unit: Unit) -> Iterator[None]:
        with dead(unit):
            unit.service.stop()
            yield
            if episode.toss or "new version" in episode.kind:
                unit.new_version()
            unit.service.start()

    def service_paused(self, episode: Episode, unit: Unit) -> Iterator[None]:
        with dead(unit):
            unit.service.pause()
            yield
            if episode.toss:
                unit.service.stop()
                unit.new_version()
                unit.service.start()
            unit.service.resume()

    def service_unhealthy(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        with dead(unit):
            unit.service.healthy = False
            yield
            unit.service.healthy = True

    def service_flaps(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        """Let three probes of four fail: it may be listed meanwhile, or not."""
        probes = itertools.count()

        def flap(exchange: Exchange) -> None:
            if next(probes) % 4:
                exchange.reply(503)
            else:
                exchange.sane()

        unit.service.play("health", flap, times=None)
        yield
        unit.service.sane()

    def _counted(self, name: str) -> Fault:
        """Return a fault of the catalogue that counts as met when it is."""
        fault = named_fault(name)

        def counted(exchange: Exchange) -> None:
            self.world.met["health", name] += 1
            fault(exchange)

        return counted

    # ---- the agent

    def log_not_read(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        """Each heartbeat has its line; all but the first ones have to be counted as dropped."""
        unit.sidecar.stop_reading()
        before = unit.asked["heartbeat"]
        yield
        unit.sidecar.read_again()
        with unit.lock:
            lines = unit.asked["heartbeat"] - before - LEFT_OVER
            unit.watch.expect_loss(lines, time.monotonic())

    def frozen(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        unit.freeze()
        yield
        unit.thaw()

    def frozen_long(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        """What is asked just before may be answered just after: then nobody knows what is first."""
        idle = time.monotonic() - unit.asked_at > IDLE
        unit.freeze()
        yield
        unit.register_first = idle and not self.world.outage
        unit.thaw()

    def suspended(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        """As after a freeze: but only a clock that goes on meanwhile shows it."""
        idle = time.monotonic() - unit.asked_at > IDLE
        unit.suspend(SUSPENDED * self.world.times.interval)
        unit.register_first = idle and not self.world.outage
        yield

    def killed(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        unit.kill()
        yield
        unit.start()

    def stopped(self, _episode: Episode, unit: Unit) -> Iterator[None]:
        self.world.terminate(unit)
        yield
        unit.start()

    # ---- the registry, as everybody sees it

    def registry_stopped(self, episode: Episode) -> Iterator[None]:
        self.registry.stop()
        yield
        if episode.kind == "registry restarted empty":
            self.registry.forget()
        self.registry.start()

    def registry_paused(self, _episode: Episode) -> Iterator[None]:
        self.registry.pause()
        yield
        self.registry.resume()
        time.sleep(
            DRAIN
        )  # what was asked meanwhile is answered now, though nobody waits for it any more

    def store(self, episode: Episode) -> Iterator[None]:
        self.registry.store = episode.kind.removeprefix("store ")
        yield
        self.registry.store = "up"

    def all_lost(self, _episode: Episode) -> Iterator[None]:
        self.registry.forget()
        yield

    def all_expired(self, _episode: Episode) -> Iterator[None]:
        self.registry.expire()
        yield

    def idle_dropped(self, _episode: Episode) -> Iterator[None]:
        before = self.registry.idle_timeout
        peers = (self.registry, *(unit.service for unit in self.world.units))
        for peer in peers:
            peer.idle_timeout = self.world.times.interval / 4
        yield
        for peer in peers:
            peer.idle_timeout = before

    def none_kept(self, _episode: Episode) -> Iterator[None]:
        peers = (self.registry, *(unit.service for unit in self.world.units))
        for peer in peers:
            peer.keep_alive = False
        yield
        for peer in peers:
            peer.keep_alive = True

    def limited(self, _episode: Episode) -> Iterator[None]:
        self.registry.limits = {"register": (0, 1.0), "heartbeat": (0, 1.0)}
        yield
        self.registry.limits = {}

    def token_renewed(self, _episode: Episode) -> Iterator[None]:
        """Renew it in the file first: what meets the old one is repeated with the new one."""
        token = self.world.new_token()
        self.world.hand_out(token)
        self.registry.token = token
        yield

    def token_changed(self, _episode: Episode) -> Iterator[None]:
        token = self.world.new_token()
        self.registry.token = token
        yield
        self.world.hand_out(token)
