"""DRAIN_SECONDS: a stopped sidecar lives on while callers notice that the record is gone."""

import signal
import time

import pytest

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, STOP_PROMISE, Sidecar


def test_it_lives_on_after_the_deregistration_and_says_so(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, DRAIN_SECONDS=2) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Draining for 2 s; another signal ends it")
        assert registry.record(NAME) is None
        assert sidecar.count("Service deregistered") == 1
        sidecar.wait_health("^deregistered, draining for [0-2] s")
        assert sidecar.health("--ready")[0] == 1
        beats = registry.count("heartbeat"), registry.count("register")
        assert sidecar.wait() == 0
        assert 1.9 < time.monotonic() - sidecar.times[-1] < 2 + STOP_PROMISE
        assert (registry.count("heartbeat"), registry.count("register")) == beats


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_another_signal_ends_the_drain(
    registry: Registry, service: ToyService, number: int
) -> None:
    with Sidecar(registry, service, DRAIN_SECONDS=60) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Draining for 60 s")
        sidecar.assert_stops(number)


def test_a_signal_during_the_deregistration_ends_the_drain_but_not_that(
    registry: Registry, service: ToyService
) -> None:
    registry.play("deregister", ["slow", 0.7])
    with Sidecar(registry, service, DRAIN_SECONDS=60) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Stopping")
        sidecar.assert_stops()
        assert sidecar.count("Service deregistered") == 1
    assert registry.record(NAME) is None


@pytest.mark.parametrize("why", ["off", "failed", "never registered"])
def test_no_drain_where_nothing_was_deregistered(
    registry: Registry, service: ToyService, why: str
) -> None:
    if why == "never registered":
        registry.play("register", "status_503", times=FOREVER)
    with Sidecar(
        registry, service, DRAIN_SECONDS=60, DEREGISTER_ON_EXIT=str(why != "off")
    ) as sidecar:
        sidecar.wait_for(
            "Registration failed" if why == "never registered" else "Starting heartbeat loop"
        )
        if why == "failed":
            registry.stop()
        sidecar.assert_stops()
        assert not sidecar.count("Draining")
