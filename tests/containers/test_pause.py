"""A paused container at the interval that people have: 30 s, the record's life 60 s."""

import time

import pytest

from containers.engine import Lab

pytestmark = [pytest.mark.docker, pytest.mark.slow]

PAUSE = 75  # seconds
SOON = 3.0  # seconds from the thaw to the registration, at 0.1 CPU on a busy machine


def test_after_a_pause_the_record_is_back_at_once(lab: Lab) -> None:
    """A wait that counted its slices would go on for what was left of the interval."""
    registry, _service = lab.registry(ttl=60), lab.service()
    sidecar = lab.sidecar(HEARTBEAT_INTERVAL=30)
    sidecar.wait_for("Heartbeat accepted")
    before = registry.control()["counts"]["register"]
    sidecar.container.pause()
    time.sleep(PAUSE)
    assert registry.record() is None
    thawed = time.time()
    sidecar.container.unpause()
    record = registry.wait_record()
    seconds = record["registered_at"] - thawed
    print(f"registered {seconds:.2f} s after the thaw")
    assert seconds < SOON
    assert registry.control()["counts"]["register"] == before + 1
    sidecar.wait_health("healthy", r"registered, last heartbeat \d s ago", timeout=10)
