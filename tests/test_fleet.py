"""Many sidecars at once: they neither retry nor beat together, and all come back."""

from __future__ import annotations

import contextlib
import time

import pytest
from harness import Sidecar, wait_until
from peers.registry import Registry
from peers.service import ToyService

FLEET = 32



@pytest.mark.slow
def test_agents_started_at_once_against_a_dead_registry_do_not_retry_together(service: ToyService) -> None:
    registry = Registry(ttl=60)
    registry.play("register", "close", times=None)
    with registry, contextlib.ExitStack() as stack:
        fleet = [
            stack.enter_context(
                Sidecar(registry, service, SERVICE_NAME=f"service_{number}", HEARTBEAT_INTERVAL=30)
            )
            for number in range(FLEET)
        ]
        wait_until(lambda: all(sidecar.count("Registration failed") >= 4 for sidecar in fleet), 60)
        tries = {sidecar.settings["SERVICE_NAME"]: [] for sidecar in fleet}  # type: dict[object, list[float]]
        for request in registry.requests:
            tries[request.json()["service_name"]].append(request.at)
        for attempt in (2, 3):  # counted from the first, which the start of the processes spreads already
            waits = sorted(times[attempt] - times[attempt - 1] for times in tries.values())
            low, high = 2.0 ** (attempt - 1), 2.0**attempt
            assert low - 0.1 < waits[0]
            assert waits[-1] - waits[0] > 0.6 * (high - low)  # all over the range that the backoff draws from
            assert max(sum(at <= other < at + (high - low) / 8 for other in waits) for at in waits) < FLEET / 2
        registry.sane()
        wait_until(lambda: len(registry.names()) == FLEET, 60)


def test_agents_in_lockstep_spread_their_heartbeats_over_the_interval(registry: Registry, service: ToyService) -> None:
    registry.ttl = 60
    with contextlib.ExitStack() as stack:
        for number in range(12):
            stack.enter_context(Sidecar(registry, service, SERVICE_NAME=f"service_{number}", HEARTBEAT_INTERVAL=2))
        wait_until(lambda: len(registry.names()) == 12, 30)
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 4.2, 10)
        beats = {r.json()["service_name"]: r.at % 2 for r in registry.requests if r.operation == "heartbeat"}
    phases = sorted(beats.values())
    assert len(phases) == 12
    gaps = [later - earlier for earlier, later in zip(phases, [*phases[1:], phases[0] + 2], strict=True)]
    assert max(gaps) < 1.5  # never all in one quarter of the interval
