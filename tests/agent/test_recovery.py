"""The service stays registered, or is again: one real process for each kind of trouble.

TTL 4 s and interval 2 s stand for 60 s and 30 s. unit/test_loop.py plays all sequences of these.
"""

import re
import time

from fleet.replicas import trial
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sampler, Sidecar, wait_until

INTERVAL = 2.0
SLACK = 1.5  # seconds for a loaded machine


def back_after(registry: Registry, timeout: float = 30.0) -> float:
    """Wait for the record; return the seconds that it took."""
    began = time.monotonic()
    wait_until(lambda: registry.record(NAME), timeout, "the record never came back")
    return time.monotonic() - began


def test_waits_registers_and_keeps_the_record_alive(registry: Registry) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        assert registry.count() == 0
        service.healthy = True
        sidecar.wait_for("Service is READY")
        sidecar.wait_registered()
        sidecar.wait_for("Starting heartbeat loop")
        record = registry.record(NAME)
        assert record is not None
        assert record["endpoint"] == service.url
        assert record["health_endpoint"] == "/health"
        assert record["metadata"] == {"version": "1.0.0", "status": "healthy"}
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Heartbeat accepted", times=4)
    assert not sampler.absences
    assert sampler.samples > 50
    assert registry.count("get") == 0  # never: its errors cut the registry off
    assert not sidecar.count("WARNING.*(Heartbeat|Registration)|ERROR")


def test_a_registry_that_comes_late_and_goes_for_a_while(service: ToyService) -> None:
    registry = Registry(ttl=4.0)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Registration failed .attempt 3.*connection refused")
        with registry:
            sidecar.wait_registered(timeout=20)
            sidecar.wait_for("Heartbeat accepted")
            registry.pause()
            sidecar.wait_for("No heartbeat accepted for two intervals", timeout=20)
            sidecar.wait_for("Registration failed", times=4)
            announced = float(re.findall(r"next in ([\d.]+) s", sidecar.log)[-1])
            returned = time.monotonic()
            registry.resume()
            sidecar.wait_for("Registry is back after", times=2, timeout=60)
            assert registry.record(NAME)
            assert time.monotonic() - returned < max(announced, INTERVAL) + SLACK
        waits = re.findall(r"Registration failed .* next in ([\d.]+) s", sidecar.log)
        assert all(1.0 <= float(wait) <= 60.0 for wait in waits)


def test_heartbeats_that_bring_no_answer_do_not_cost_the_record(service: ToyService) -> None:
    """With the whole deadline for each the third would come too late."""
    with Registry(ttl=8.0) as registry, Sidecar(registry, service, HEARTBEAT_INTERVAL=4) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", "hang", times=2)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Heartbeat failed", times=2)
            sidecar.wait_for("Heartbeat accepted", times=2)
    assert not sampler.absences


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

        def comes_back(version: str, says: str, times: int) -> None:
            service.version = version
            service.start()
            sidecar.wait_for(says)
            sidecar.wait_registered(times)
            record = registry.record(NAME)
            assert record is not None
            assert record["metadata"] == {"version": version, "status": "healthy"}

        sidecar.wait_for("Heartbeat accepted")
        service.stop()
        comes_back("1.0.1", "Service has changed", times=2)
        service.stop()
        sidecar.wait_for("ERROR Service is DOWN")
        assert sidecar.count("Health probe 3 of 3 failed") == 1
        beats = registry.count("heartbeat")
        wait_until(lambda: registry.record(NAME) is None, 10)
        assert registry.count("heartbeat") == beats
        assert registry.count("deregister") == 0
        comes_back("2.0.0", "Service is READY again", times=3)
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
