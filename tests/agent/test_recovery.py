"""The service stays registered through every fault.

TTL 4 s and interval 2 s stand for 60 s and 30 s.
"""

import contextlib
import re
import time
from typing import Any

import pytest

from kit.peers.registry import Registry
from kit.peers.server import Exchange
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sampler, Sidecar, wait_until

INTERVAL = 2.0
SLACK = 1.5  # seconds for a loaded machine


def back_after(registry: Registry, timeout: float = 30.0) -> float:
    """Wait for the record; return the seconds that it took."""
    began = time.monotonic()
    wait_until(lambda: registry.record(NAME), timeout, "the record never came back")
    return time.monotonic() - began


# ---- the main path


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


def test_heartbeats_stay_on_the_grid_and_probe_the_service_first(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=12)
        beats = [request.at for request in registry.requests if request.operation == "heartbeat"]
        probes = [request.at for request in service.requests]
    first = beats[0]
    offsets = [(at - first) % 0.5 for at in beats[1:]]
    assert (
        sorted(min(offset, 0.5 - offset) for offset in offsets)[len(offsets) // 2] < 0.1
    )  # the median does not drift
    for at in beats:
        assert any(0 < at - probe < 0.4 for probe in probes)


def test_the_registry_may_come_up_long_after_the_sidecar(service: ToyService) -> None:
    registry = Registry(ttl=4.0)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Registration failed .attempt 3.*connection refused")
        with registry:
            sidecar.wait_registered(timeout=20)
            assert registry.record(NAME)


def test_sidecars_started_together_do_not_wait_alike(service: ToyService) -> None:
    """In the simulation of a fleet the randomness is not the agent's own; here it is."""
    with contextlib.ExitStack() as stack:
        fleet = [stack.enter_context(Sidecar(Registry(), service)) for _ in range(4)]
        for sidecar in fleet:
            sidecar.wait_for("Registration failed .attempt 2")
        waits = {tuple(re.findall(r"next in ([\d.]+) s", sidecar.log)[:2]) for sidecar in fleet}
    assert len(waits) > 1


def test_a_service_that_never_gets_healthy_is_registered_anyway(registry: Registry) -> None:
    with (
        ToyService(healthy=False) as service,
        Sidecar(registry, service, INITIAL_WAIT_TIMEOUT=1.5) as sidecar,
    ):
        began = time.monotonic()
        sidecar.wait_registered()
        assert time.monotonic() - began > 1.0
        assert sidecar.count("WARNING Service not healthy after 1.5 s: 503.*registering it anyway")
        sidecar.wait_for("Service is DOWN")  # and then it gets no heartbeat
        assert registry.count("heartbeat") == 0


def test_a_registry_down_does_not_stop_the_registration_of_an_unhealthy_service(
    service: ToyService,
) -> None:
    service.healthy = False
    registry = Registry(ttl=4.0)
    with Sidecar(registry, service, INITIAL_WAIT_TIMEOUT=0) as sidecar:
        sidecar.wait_for("Registration failed .attempt 2")
        with registry:
            sidecar.wait_registered(timeout=20)


# ---- one fault costs nothing


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("heartbeat", "status_500"),
        ("heartbeat", "hang"),
        ("heartbeat", ["slow", 0.8]),
        ("health", "hang"),
    ],
    ids=str,
)
def test_one_fault_never_costs_the_record(
    registry: Registry, service: ToyService, operation: str, fault: Any
) -> None:
    peer = service if operation == "health" else registry
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        with Sampler(lambda: registry.record(NAME)) as sampler:
            before = peer.count(operation)
            peer.play(operation, fault)
            wait_until(lambda: peer.count(operation) > before)
            sidecar.wait_for("Heartbeat accepted", times=3)
    assert not sampler.absences
    assert registry.count("register") == 1
    assert not sidecar.count("Service is DOWN")


def test_two_heartbeats_in_a_row_that_hang_do_not_cost_the_record(service: ToyService) -> None:
    """With the whole deadline for each the third would come too late."""
    with Registry(ttl=8.0) as registry, Sidecar(registry, service, HEARTBEAT_INTERVAL=4) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", "hang", times=2)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Heartbeat failed", times=2)
            sidecar.wait_for("Heartbeat accepted", times=2)
    assert not sampler.absences


@pytest.mark.parametrize(
    "options", [{"idle_timeout": 0.5}, {"keep_alive": False}, {"idle_timeout": 1.99}], ids=str
)
def test_connections_dropped_while_idle_cost_neither_heartbeat_nor_warning(
    options: dict[str, Any],
) -> None:
    with (
        Registry(ttl=4.0, **options) as registry,
        ToyService(**options) as service,
        Sidecar(registry, service) as sidecar,
    ):
        sidecar.wait_registered()
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Heartbeat accepted", times=3)
    assert not sampler.absences
    assert not sidecar.count("WARNING|ERROR")


# ---- outages


@pytest.mark.parametrize(
    ("kind", "length"),
    [
        ("stopped", 2.5),
        ("paused", 4.0),
        ("hangs", 5.0),
        pytest.param("gone", 20.0, marks=pytest.mark.slow),
    ],
)
def test_after_an_outage_the_record_is_back_within_one_backoff_step(
    service: ToyService, kind: str, length: float
) -> None:
    with (
        Registry(ttl=4.0, failing_delay=0.2, hang_delay=0.4) as registry,
        Sidecar(registry, service) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        if kind == "stopped":
            registry.stop()
        elif kind == "paused":
            registry.pause()
        else:
            registry.store = kind
        time.sleep(length)
        announced = re.findall(
            r"failed .* next in ([\d.]+) s", sidecar.log
        )  # what is promised is this wait
        returned = time.monotonic()
        registry.start()
        registry.resume()
        registry.store = "up"
        sidecar.wait_for("Registry is back after", timeout=60)
        assert registry.record(NAME)
        assert time.monotonic() - returned < max(float(announced[-1]), INTERVAL) + SLACK
        waits = [
            float(wait)
            for wait in re.findall(r"Registration failed .* next in ([\d.]+) s", sidecar.log)
        ]
        assert all(1.0 <= wait <= 60.0 for wait in waits)


def test_retry_after_is_honoured(service: ToyService) -> None:
    with Registry(ttl=4.0) as registry:
        registry.play("register", ["status", 429, {"detail": "slow down"}, {"Retry-After": "3"}])
        with Sidecar(registry, service) as sidecar:
            wait = re.search(
                r"next in ([\d.]+) s", sidecar.wait_for("Registration failed .*slow down")
            )
            assert wait is not None
            assert 4.0 <= float(wait[1]) <= 5.0
            sidecar.wait_registered()
            first, second = (
                request.at for request in registry.requests if request.operation == "register"
            )
            assert second - first >= 3.9


# ---- a lost record


@pytest.mark.parametrize("dialect", ["documented", "deployed"])
def test_a_lost_record_is_back_within_one_interval(service: ToyService, dialect: str) -> None:
    with Registry(ttl=4.0, dialect=dialect) as registry, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.forget()
        assert back_after(registry) < INTERVAL + SLACK
        sidecar.wait_for(r"Service not found \(404\).*registering again")
        sidecar.wait_registered(times=2)


def test_410_means_lost_too(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", "status_410")
        sidecar.wait_registered(times=2)


def test_a_record_lost_behind_acknowledged_heartbeats_is_back_within_ten_intervals(
    service: ToyService,
) -> None:
    """A registry that answers 200 to any heartbeat, and lists an expired name for another interval.

    Once the list has lacked the name, each heartbeat is a registration for a while: then a loss is
    over by the next.
    """
    with (
        Registry(ttl=600.0, linger=0.5) as registry,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        registry.play(
            "heartbeat", ["status", 200, {"message": "Heartbeat received"}], times=FOREVER
        )
        for _ in range(2):
            registry.expire()
            began, beats = time.monotonic(), registry.count("heartbeat")
            back_after(registry)
            assert registry.count("heartbeat") - beats <= 10
            assert time.monotonic() - began < 10 * 0.5 + SLACK
        sidecar.wait_for(r"Service not found \(404\).*GET /services")


def test_where_the_list_does_not_tell_the_record_is_sent_again(
    registry: Registry, service: ToyService
) -> None:
    registry.ttl = 600
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        registry.play("list", "huge_body")
        sidecar.wait_for("GET /services does not tell")
        sidecar.wait_registered(times=2)
        sidecar.wait_for("Heartbeat accepted", times=12)
        assert registry.count("register") < 6  # once for the list, and not at every heartbeat


def test_an_open_breaker_and_its_end_leave_the_service_registered(service: ToyService) -> None:
    with (
        Registry(ttl=4.0, dialect="deployed") as registry,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        registry.store = "open"
        sidecar.wait_for("GET /services does not list")  # the replica's memory begins empty
        sidecar.wait_registered(times=2)
        registry.store = "half_open"
        sidecar.wait_for("HALF_OPEN")
        registry.store = "up"
        registry.forget()
        assert back_after(registry) < 5.0


# ---- the service goes and comes


@pytest.mark.parametrize("how", ["stopped", "hanging", "failing"])
def test_a_dead_service_leaves_by_ttl_and_is_registered_at_once_on_return(
    registry: Registry, service: ToyService, how: str
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        if how == "stopped":
            service.stop()
        elif how == "hanging":
            service.pause()
        else:
            service.healthy = False
        sidecar.wait_for("ERROR Service is DOWN")
        assert sidecar.count("Health probe [123] of 3 failed") == 3
        beats = registry.count("heartbeat")
        wait_until(lambda: registry.record(NAME) is None, 10)
        assert registry.count("heartbeat") == beats
        assert registry.count("deregister") == 0
        service.version = "2.0.0"
        if how == "hanging":
            service.stop()
        service.healthy = True
        service.start()
        sidecar.wait_for("Service is READY again")
        sidecar.wait_registered(times=2)
        record = registry.record(NAME)
        assert record is not None
        assert record["metadata"] == {"version": "2.0.0", "status": "healthy"}


def test_two_failed_probes_cost_nothing(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.play("health", "status_503", times=2)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Health probe 2 of 3 failed")
            sidecar.wait_for("Heartbeat accepted", times=3)
    assert not sampler.absences
    assert not sidecar.count("DOWN")


def test_a_new_version_after_a_quick_restart_is_registered(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.stop()
        service.version = "1.0.1"
        service.start()
        sidecar.wait_for("Service has changed")
        sidecar.wait_registered(times=2)
        record = registry.record(NAME)
        assert record is not None
        assert record["metadata"] == {"version": "1.0.1", "status": "healthy"}
        registered = registry.count("register")
        beats = registry.count("heartbeat")
        wait_until(lambda: registry.count("heartbeat") > beats, why="no heartbeat after it")
        assert registry.count("register") == registered


def test_a_service_dead_during_an_outage_is_not_registered_when_the_registry_returns(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.stop()
        sidecar.wait_for("Registration failed", timeout=20)
        service.stop()
        sidecar.wait_for("Service is DOWN", timeout=20)
        registry.start()
        registered = registry.count("register")
        time.sleep(2.5)
        assert registry.count("register") == registered
        service.start()
        sidecar.wait_registered(times=2)


def test_a_repeated_heartbeat_waits_for_no_probe_and_the_next_slot_probes_again(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", "status_500")
        failed = sidecar.wait_for("Heartbeat failed")
        probes = service.count()
        sidecar.wait_for("Heartbeat accepted", times=2)
        assert service.count() == probes
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert service.count() > probes
    # The wait of one or two seconds is for an interval of 30 s: here it is a fifteenth of that.
    assert float(failed.split("next in ")[1].removesuffix(" s")) <= 0.2


@pytest.mark.parametrize("fault", ["close", "reset"])
def test_a_kept_connection_closed_at_that_very_moment_costs_no_heartbeat(
    registry: Registry, service: ToyService, fault: str
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=1) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", fault)
        beats = registry.count("heartbeat")
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert registry.count("heartbeat") >= beats + 3  # one of them twice
        assert not sidecar.count("WARNING")


def test_a_new_connection_that_is_closed_at_once_is_a_failed_attempt(
    registry: Registry, service: ToyService
) -> None:
    registry.play("register", "close")
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for(
            r"Registration failed \(attempt 1\): .*connection closed without an answer"
        )


def test_an_answer_that_broke_off_is_no_reason_to_send_at_once_again(
    registry: Registry, service: ToyService
) -> None:
    """The registry was there, and has perhaps done what it was asked to."""
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=1) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", cut_off_in_the_status)
        sidecar.wait_for(r"WARNING Heartbeat failed \(attempt 1\)")
        sidecar.wait_for("Heartbeat accepted", times=2)


def cut_off_in_the_status(exchange: Exchange) -> None:
    exchange.close_connection = True
    exchange.raw(b"HTTP/1.1 2")
