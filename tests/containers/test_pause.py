"""A paused container at the interval that people have: 30 s, the record's life 60 s."""

import time

import pytest

from containers.engine import Lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]

PAUSE = 75  # seconds
SOON = 3.0  # seconds from the thaw to the registration, at 0.1 CPU on a busy machine


def test_after_a_pause_the_record_is_back_at_once(lab: Lab) -> None:
    """Five of them, each somewhere in its interval, since the first heartbeat has a random phase.

    A wait that counted its slices would go on for what was left of the interval.
    """
    registry, _service = lab.registry(ttl=60), lab.service()
    names = [f"service_{number}" for number in range(5)]
    sidecars = {
        name: lab.sidecar(alias=name, SERVICE_NAME=name, HEARTBEAT_INTERVAL=30) for name in names
    }
    for name in names:
        registry.wait_record(name)
    for sidecar in sidecars.values():
        sidecar.container.pause()
    time.sleep(PAUSE)
    assert not registry.control()["records"]
    thawed = {}
    for name, sidecar in sidecars.items():
        thawed[name] = time.time()
        sidecar.container.unpause()
    waits = {name: registry.wait_record(name)["registered_at"] - thawed[name] for name in names}
    print("seconds from the thaw to the registration:", *(f"{s:.2f}" for s in waits.values()))
    assert max(waits.values()) < SOON
    for sidecar in sidecars.values():
        sidecar.wait_health("healthy", r"registered, last heartbeat \d s ago", timeout=10)
