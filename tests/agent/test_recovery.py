"""The service stays registered, or is again: one real process for each kind of trouble.

unit/test_loop.py plays all sequences of these, and agent/test_log.py a start and an outage.
"""

import time

from fleet.replicas import trial
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sidecar, wait_until

SLACK = 1.5  # seconds for a loaded machine


def back_after(registry: Registry, timeout: float = 30.0) -> float:
    """Wait for the record; return the seconds that it took."""
    began = time.monotonic()
    wait_until(lambda: registry.record(NAME), timeout, "the record never came back")
    return time.monotonic() - began


def test_a_lost_record_and_an_open_breaker_leave_the_service_registered(
    service: ToyService,
) -> None:
    with (
        Registry(ttl=4.0, dialect="deployed") as registry,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        registry.forget()
        assert back_after(registry) < 0.5 + SLACK
        sidecar.wait_for(r"Service not found \(404\).*registering again")
        sidecar.wait_registered(times=2)
        registry.store = "open"
        sidecar.wait_for("GET /services does not list")  # the replica's memory begins empty
        sidecar.wait_registered(times=3)
        registry.store = "up"
        registry.forget()
        assert back_after(registry) < 5.0


def test_a_service_that_restarts_and_one_that_stays_away(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:

        def comes_back(version: str, says: str, times: int) -> str:
            service.version = version
            service.start()
            line = sidecar.wait_for(says)
            sidecar.wait_registered(times)
            record = registry.record(NAME)
            assert record is not None
            assert record["metadata"] == {"version": version, "status": "healthy"}
            return line

        sidecar.wait_for("Heartbeat accepted")
        service.stop()
        comes_back("1.0.1", "Service has changed", times=2)
        began = time.monotonic()
        service.stop()
        sidecar.wait_for("ERROR Service is DOWN: connection refused; no heartbeat until it is heal")
        shortest, beats = time.monotonic(), registry.count("heartbeat")
        assert sidecar.count("WARNING Health probe 3 of 3 failed: connection refused") == 1
        wait_until(lambda: registry.record(NAME) is None, 10)
        assert registry.count("heartbeat") == beats
        assert registry.count("deregister") == 0
        shortest = time.monotonic() - shortest
        back = comes_back("2.0.0", "INFO Service is READY again after", times=3)
        told = float(back.split()[-2])
        assert shortest - 1 <= told <= time.monotonic() - began + 1
        assert sidecar.count("Service (is|has been) DOWN") == 1
        sidecar.wait_for("Heartbeat accepted")


def test_each_list_of_the_replicas_has_each_name_again() -> None:
    interval = 0.4
    with trial(2, 3, "strict", interval) as fleet:
        began, before = time.monotonic(), fleet.balancer.count()
        fleet.empty()
        wait_until(lambda: not any(fleet.missing()), 150 * interval)
        sent = fleet.balancer.count() - before
        intervals = (time.monotonic() - began) / interval + 1
        assert sent <= 3 * 2 * intervals
