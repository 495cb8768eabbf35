"""A process that was frozen, a host that was suspended, a registry whose clock is wrong.

Intervals of 2 to 6 s stand for 30 s: a wait of several seconds is where a freeze can hide.
"""

import email.utils
import re
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


def first_request(registry: Registry, before: int) -> Request:
    """Wait for the first heartbeat or registration after so many requests, and return it."""

    def sent() -> list[Request]:
        return [each for each in registry.requests[before:] if each.operation != "list"]

    return wait_until(sent)[0]


def freeze(sidecar: Sidecar, until: float) -> float:
    """Stop the process until that moment (monotonic seconds); return when it goes on."""
    sidecar.process.send_signal(signal.SIGSTOP)
    time.sleep(max(until - time.monotonic(), 0))
    thawed = time.monotonic()
    sidecar.process.send_signal(signal.SIGCONT)
    return thawed


# ---- frozen


@pytest.mark.parametrize("intervals", [1.1, 1.6, 2.05, 2.6])
def test_after_a_freeze_the_registry_hears_of_it_at_once(
    service: ToyService, intervals: float
) -> None:
    """The record is gone after two intervals: then it takes a registration."""
    settings = {"SERVICE_HEALTH_TIMEOUT": 1, "REGISTRY_TIMEOUT": 1, "HEARTBEAT_INTERVAL": INTERVAL}
    with Registry(ttl=2 * INTERVAL) as registry, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        accepted = registry.requests[-1].at
        before = registry.count()
        thawed = freeze(sidecar, accepted + intervals * INTERVAL)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sent = first_request(registry, before)
            assert sent.operation == "register" or intervals < 2
            assert sent.at - thawed < SOON
            wait_until(lambda: registry.record(NAME))
            sidecar.wait_health("registered, last heartbeat [0-3] s ago", timeout=1)
        if intervals < 2:
            assert not sampler.absences


def test_a_freeze_lengthens_no_drain(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, DRAIN_SECONDS=INTERVAL) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Draining for 6 s")
        thawed = freeze(sidecar, time.monotonic() + INTERVAL)
        assert sidecar.wait() == 0
        assert time.monotonic() - thawed < SOON


def test_a_freeze_lengthens_no_backoff(registry: Registry, service: ToyService) -> None:
    """A registration is repeated when it was due, however long the process stood still."""
    registry.play("register", ["status", 503, None, {"Retry-After": "5"}])
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Registration failed.*next in [67]")
        thawed = freeze(sidecar, time.monotonic() + 7)
        sidecar.wait_registered()
        assert time.monotonic() - thawed < SOON


# ---- suspended: the registry's time goes on, and of the agent's clocks one alone


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
            sidecar.wait_health("registered, last heartbeat [0-3] s ago", 0, "--ready", timeout=2)
            assert not sidecar.count(r"failed \(attempt")


# ---- Retry-After as a date


@pytest.mark.parametrize(
    ("ahead", "tells", "least"),
    [
        pytest.param(600, True, 31, id="ten-minutes-ahead"),
        pytest.param(-600, True, 31, id="ten-minutes-behind"),
        pytest.param(0, False, 20, id="it-does-not-tell"),  # but the time that the start takes
    ],
)
def test_a_date_is_reckoned_from_the_answers_own(
    registry: Registry, service: ToyService, ahead: int, tells: bool, least: float
) -> None:
    now = int(time.time()) + ahead
    headers = {"Retry-After": email.utils.formatdate(now + 30, usegmt=True)}
    headers["Date"] = email.utils.formatdate(now, usegmt=True) if tells else "yesterday"
    registry.play("register", ["status", 503, None, headers])
    with Sidecar(registry, service) as sidecar:
        line = sidecar.wait_for("Registration failed")
        found = re.search(r"next in ([\d.]+) s", line)
        assert found is not None
        assert least <= float(found[1]) <= 32.1  # one or two seconds are the backoff's
