"""A process that was frozen, a host that was suspended.

An interval of 6 s stands for 30 s: a wait of several seconds is where a freeze can hide.
"""

import signal
import time

import pytest

from kit.peers.registry import Registry
from kit.peers.server import Request
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sampler, Sidecar, wait_until
from kit.stage import Stage

SOON = 2.0  # seconds from a thaw to the next request: one slice of sleep, and a loaded machine
INTERVAL = 6.0  # seconds, several slices long
SETTINGS = {"SERVICE_HEALTH_TIMEOUT": 1, "REGISTRY_TIMEOUT": 1, "HEARTBEAT_INTERVAL": INTERVAL}


def first_request(registry: Registry, before: int) -> Request:
    """Wait for the first heartbeat or registration after so many requests, and return it."""

    def sent() -> list[Request]:
        return [each for each in registry.requests[before:] if each.operation != "list"]

    return wait_until(sent)[0]


def test_after_a_freeze_the_registry_hears_of_it_at_once(service: ToyService) -> None:
    """The record is gone after two intervals: then it takes a registration."""
    with Registry(ttl=2 * INTERVAL) as registry, Sidecar(registry, service, **SETTINGS) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        for intervals, operation in ((1.4, "heartbeat"), (2.1, "register")):
            before = registry.count()
            accepted = max(each.at for each in registry.requests if each.operation == "heartbeat")
            sidecar.process.send_signal(signal.SIGSTOP)
            time.sleep(max(accepted + intervals * INTERVAL - time.monotonic(), 0))
            thawed = time.monotonic()
            sidecar.process.send_signal(signal.SIGCONT)
            with Sampler(lambda: registry.record(NAME)) as sampler:
                sent = first_request(registry, before)
                assert sent.operation == operation
                assert sent.at - thawed < SOON
                wait_until(lambda: registry.record(NAME))
                sidecar.wait_health("registered, last heartbeat [0-3] s ago", timeout=5)
            assert operation == "register" or not sampler.absences


# The registry's time goes on, and of the agent's clocks one alone.
@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="no clock tells of a suspension")
def test_a_suspension_is_seen_like_a_freeze(service: ToyService) -> None:
    """A heartbeat would prove nothing where the store is down: it is accepted for any name."""
    suspended = 0.0
    clock = lambda: time.monotonic() + suspended  # noqa: E731
    with Registry(ttl=2 * INTERVAL, clock=clock) as registry:
        sidecar = Sidecar(registry, service, HEARTBEAT_INTERVAL=INTERVAL)
        stage = Stage(sidecar, ahead=0.0)
        with sidecar:
            sidecar.wait_for("Heartbeat accepted")
            sidecar.wait_health("registered, last heartbeat [01] s ago", 0, "--ready")
            before = registry.count()
            sidecar.process.send_signal(signal.SIGSTOP)
            suspended = 100.0
            stage.set(ahead=suspended)
            assert registry.record(NAME) is None
            assert sidecar.health("--ready")[0] == 1
            resumed = time.monotonic()
            sidecar.process.send_signal(signal.SIGCONT)
            sent = first_request(registry, before)
            assert sent.operation == "register"
            assert sent.at - resumed < SOON
            sidecar.wait_health("registered, last heartbeat [0-3] s ago", 0, "--ready", timeout=5)
            assert not sidecar.count(r"failed \(attempt")
