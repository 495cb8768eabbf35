"""How each kind of fault is played: a generator that begins it, yields, and ends it when it is resumed.

What it yields are the seconds within which the agent must be back, 0 for the usual promise.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from peers.faults import Fault, resolve
from peers.registry import STORES
from peers.server import Exchange

from soak.schedule import Episode

if TYPE_CHECKING:
    from soak.world import Unit, World

ANY_OPERATION = "*"
ACKNOWLEDGED = "record lost, heartbeats acknowledged"
DRAIN = 0.5  # seconds


class Aim(NamedTuple):
    """A fault that waits for the requests of one agent to the registry; `once`: for one of them only."""

    operation: str
    name: str
    fault: Fault
    once: bool


def named_fault(name: str) -> Fault:
    """Return the fault of the catalogue, with a parameter where the name has one: "slow 0.3"."""
    kind, _, parameter = name.partition(" ")
    return resolve([kind, float(parameter)] if parameter else kind)


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
        self.on_agent: Mapping[str, Callable[[Episode, Unit], Iterator[float]]] = {
            "one heartbeat fails": self.one_request,
            "one probe fails": self.one_probe,
            "the list fails": self.next_list,
            "requests fail": self.requests,
            "hollow answers": self.requests,
            "record lost": self.lost,
            ACKNOWLEDGED: self.acknowledged,
            "service stopped": self.service_stopped,
            "service paused": self.service_paused,
            "service unhealthy": self.service_unhealthy,
            "service misbehaves": self.service_misbehaves,
            "service restarted with a new version": self.service_stopped,
            "agent frozen": self.frozen,
            "agent killed": self.killed,
            "agent stopped and started": self.stopped,
        }
        self.on_registry: Mapping[str, Callable[[Episode], Iterator[float]]] = {
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
        }

    # ---- the registry, as one agent sees it

    def one_request(self, episode: Episode, unit: Unit) -> Iterator[float]:
        aim = Aim(episode.operation, episode.fault, named_fault(episode.fault), once=True)
        unit.aim(aim)
        yield 0
        unit.unaim(aim)

    def next_list(self, episode: Episode, unit: Unit) -> Iterator[float]:
        """Whenever it comes: this one stays until it is met."""
        unit.aim(Aim(episode.operation, episode.fault, named_fault(episode.fault), once=True))
        yield 0

    def requests(self, episode: Episode, unit: Unit) -> Iterator[float]:
        aim = Aim(episode.operation, episode.fault, named_fault(episode.fault), once=False)
        unit.aim(aim)
        if episode.operation == "register":  # which nobody would ask for
            self.registry.forget(unit.name)
        yield 0
        unit.unaim(aim)

    def lost(self, _episode: Episode, unit: Unit) -> Iterator[float]:
        self.registry.forget(unit.name)
        yield 0

    def acknowledged(self, episode: Episode, unit: Unit) -> Iterator[float]:
        """From now on the promise counts: ten intervals."""

        def acknowledge(exchange: Exchange) -> None:
            if self.registry.record(unit.name):
                unit.unaim(aim)
                exchange.sane()
            else:
                exchange.reply(200, {"message": "Heartbeat received"})

        aim = Aim("heartbeat", episode.kind, acknowledge, once=False)
        self.registry.forget(unit.name)
        unit.aim(aim)
        yield 10 * self.world.times.interval

    # ---- the service

    def one_probe(self, episode: Episode, unit: Unit) -> Iterator[float]:
        unit.service.play("health", self._counted(episode.fault))
        yield 0
        unit.service.sane()

    def service_misbehaves(self, episode: Episode, unit: Unit) -> Iterator[float]:
        with dead(unit):
            unit.service.play("health", self._counted(episode.fault), times=None)
            yield 0
            unit.service.sane()

    def service_stopped(self, episode: Episode, unit: Unit) -> Iterator[float]:
        with dead(unit):
            unit.service.stop()
            yield 0
            if episode.new_version or "new version" in episode.kind:
                unit.new_version()
            unit.service.start()

    def service_paused(self, episode: Episode, unit: Unit) -> Iterator[float]:
        with dead(unit):
            unit.service.pause()
            yield 0
            if episode.new_version:
                unit.service.stop()
                unit.new_version()
                unit.service.start()
            unit.service.resume()

    def service_unhealthy(self, _episode: Episode, unit: Unit) -> Iterator[float]:
        with dead(unit):
            unit.service.healthy = False
            yield 0
            unit.service.healthy = True

    def _counted(self, name: str) -> Fault:
        """Return a fault of the catalogue that counts as met when it is."""
        fault = named_fault(name)

        def counted(exchange: Exchange) -> None:
            self.world.met["health", name] += 1
            fault(exchange)

        return counted

    # ---- the agent

    def frozen(self, _episode: Episode, unit: Unit) -> Iterator[float]:
        unit.frozen = True
        unit.sidecar.process.send_signal(signal.SIGSTOP)
        yield 0
        unit.sidecar.process.send_signal(signal.SIGCONT)
        unit.awake_at = time.monotonic()
        unit.frozen = False

    def killed(self, _episode: Episode, unit: Unit) -> Iterator[float]:
        unit.kill()
        yield 0
        unit.start()

    def stopped(self, _episode: Episode, unit: Unit) -> Iterator[float]:
        self.world.terminate(unit)
        yield 0
        unit.start()

    # ---- the registry, as everybody sees it

    def registry_stopped(self, episode: Episode) -> Iterator[float]:
        self.registry.stop()
        yield 0
        if episode.kind == "registry restarted empty":
            self.registry.forget()
        self.registry.start()

    def registry_paused(self, _episode: Episode) -> Iterator[float]:
        self.registry.pause()
        yield 0
        self.registry.resume()
        time.sleep(DRAIN)  # what was asked meanwhile is answered now, though nobody waits for it any more

    def store(self, episode: Episode) -> Iterator[float]:
        self.registry.store = episode.kind.removeprefix("store ")
        yield 0
        self.registry.store = "up"

    def all_lost(self, _episode: Episode) -> Iterator[float]:
        self.registry.forget()
        yield 0

    def all_expired(self, _episode: Episode) -> Iterator[float]:
        self.registry.expire()
        yield 0

    def idle_dropped(self, _episode: Episode) -> Iterator[float]:
        before = self.registry.idle_timeout
        peers = (self.registry, *(unit.service for unit in self.world.units))
        for peer in peers:
            peer.idle_timeout = self.world.times.interval / 4
        yield 0
        for peer in peers:
            peer.idle_timeout = before

    def none_kept(self, _episode: Episode) -> Iterator[float]:
        peers = (self.registry, *(unit.service for unit in self.world.units))
        for peer in peers:
            peer.keep_alive = False
        yield 0
        for peer in peers:
            peer.keep_alive = True

    def limited(self, _episode: Episode) -> Iterator[float]:
        self.registry.limits = {"register": (0, 1.0), "heartbeat": (0, 1.0)}
        yield 0
        self.registry.limits = {}

    def token_changed(self, _episode: Episode) -> Iterator[float]:
        token = self.world.new_token()
        self.registry.token = token
        yield 0
        self.world.hand_out(token)
