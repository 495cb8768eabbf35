"""SIGTERM and SIGINT: exit 0 within 3 s in every state, deregistered where the registry answers."""

import contextlib
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, STOP_PROMISE, Sidecar, wait_until
from kit.stage import Stage


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_between_heartbeats(registry: Registry, service: ToyService, number: int) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30) as sidecar:
        sidecar.wait_for("Starting heartbeat loop")
        assert registry.record(NAME)
        sidecar.assert_stops(number)
        assert registry.record(NAME) is None
        assert sidecar.count("Service deregistered") == 1


def test_while_waiting_for_the_service(registry: Registry) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        sidecar.assert_stops()
    assert registry.count() == 0  # nothing was registered, so there is nothing to take back


def test_while_the_service_hangs(registry: Registry, service: ToyService) -> None:
    service.pause()
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30) as sidecar:
        wait_until(lambda: service.connections, why="no probe")
        sidecar.assert_stops()


def test_while_backing_off(service: ToyService) -> None:
    with Sidecar(Registry(), service) as sidecar:
        sidecar.wait_for("Registration failed .attempt 3")
        sidecar.assert_stops()
        assert not sidecar.count("deregister|Deregistration")  # nothing was ever accepted


def test_while_backing_off_from_a_registry_that_is_back(
    registry: Registry, service: ToyService
) -> None:
    """What was once accepted is taken back, whatever became of the registrations since."""
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_registered()
        registry.play("register", "status_503", times=FOREVER)
        registry.forget()
        sidecar.wait_for("failed .attempt 2")
        sidecar.assert_stops()
    assert registry.count("deregister") == 1


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        ("register", "hang"),
        ("register", "drip_body"),
        ("heartbeat", "drip_headers"),
        ("heartbeat", "endless_body"),
        ("heartbeat", "drip_body"),
    ],
)
def test_in_a_request_that_hangs(
    registry: Registry, service: ToyService, operation: str, fault: str
) -> None:
    registry.play(operation, fault, times=FOREVER)
    with Sidecar(
        registry, service, HEARTBEAT_INTERVAL=30 if operation == "register" else 6
    ) as sidecar:
        wait_until(lambda: registry.count(operation), why="the request never came")
        sidecar.assert_stops()
    assert registry.record(NAME) is None


@pytest.mark.parametrize("fault", ["hang", "drip_headers", "huge_body"])
def test_with_a_registry_that_fails_at_deregistration(
    registry: Registry, service: ToyService, fault: str
) -> None:
    registry.play("deregister", fault, times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        sidecar.assert_stops()


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_with_the_registry_gone(registry: Registry, service: ToyService, how: str) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        registry.stop() if how == "stopped" else registry.pause()
        sidecar.assert_stops()
        assert sidecar.count("Deregistration failed")


def test_while_the_service_is_down(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        service.stop()
        sidecar.wait_for("Service is DOWN")
        sidecar.assert_stops()
    assert registry.record(NAME) is None


def test_more_signals_change_nothing(registry: Registry, service: ToyService) -> None:
    registry.play("deregister", "hang", times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        began = time.monotonic()
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                sidecar.process.send_signal(signal.SIGTERM)
                sidecar.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        assert sidecar.wait() == 0
        assert time.monotonic() - began < STOP_PROMISE


@pytest.mark.parametrize("delay", [0.0, 0.08, 0.2, 0.4])
def test_a_signal_at_any_moment_of_the_start_never_gets_lost(
    registry: Registry, service: ToyService, delay: float
) -> None:
    """Before Python has run its first line the signal kills the process.

    Which is as good outside a container.
    """
    with Sidecar(registry, service) as sidecar:
        time.sleep(delay)
        code, seconds = sidecar.stop()
        assert code in (0, -signal.SIGTERM)
        assert seconds < STOP_PROMISE


def test_deregistration_can_be_switched_off(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, DEREGISTER_ON_EXIT="false") as sidecar:
        sidecar.wait_registered()
        sidecar.assert_stops()
    assert registry.count("deregister") == 0
    assert registry.record(NAME)


# ---- signals twice, and signals that mean nothing


@pytest.mark.parametrize("distance", [0.0, 0.005, 0.05])
def test_two_signals_where_nothing_is_to_be_deregistered(
    registry: Registry, distance: float
) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        sidecar.process.terminate()
        time.sleep(distance)
        sidecar.assert_stops()


@pytest.mark.parametrize("deregister", ["true", "false"])
def test_a_second_signal_at_the_worst_moment(
    registry: Registry, service: ToyService, deregister: str
) -> None:
    """Just before the agent changes how it takes signals; and Python's own end takes its time."""
    sidecar = Sidecar(registry, service, DEREGISTER_ON_EXIT=deregister)
    stage = Stage(sidecar, again=False)
    with sidecar:
        sidecar.wait_registered()
        stage.set(again=True)
        sidecar.assert_stops()
        assert (registry.record(NAME) is None) == (deregister == "true")


def test_signals_that_mean_nothing_are_ignored(registry: Registry, service: ToyService) -> None:
    """So the kernel throws them away, and they cut no wait short."""
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        status = Path(f"/proc/{sidecar.pid}/status").read_text()
        ignored = int(re.findall(r"SigIgn:\s+([0-9a-f]+)", status)[0], 16)
        for name in ("HUP", "ALRM", "USR1", "USR2", "CHLD", "PIPE"):
            assert ignored >> (signal.Signals[f"SIG{name}"] - 1) & 1, name
        sidecar.assert_stops()


# ---- a name look-up that hangs


@pytest.mark.parametrize("peer", ["registry", "service"])
def test_a_name_look_up_that_hangs_is_bounded_and_ends_at_a_signal(
    registry: Registry, service: ToyService, peer: str
) -> None:
    name = f"{peer}.test"
    sidecar = Sidecar(registry, service, REGISTRY_TIMEOUT=0.5, SERVICE_HEALTH_TIMEOUT=0.5)
    if peer == "registry":
        sidecar.settings["REGISTRY_URL"] = f"http://{name}:{registry.port}"
    else:
        sidecar.settings["SERVICE_HOST"] = name
    Stage(sidecar, names={name: ["127.0.0.1"]}, held=[name])
    with sidecar:
        if peer == "registry":
            sidecar.wait_for("Registration failed .attempt 2.*no answer within 0.5 s")
        else:
            sidecar.wait_for("Waiting for the service .*no answer within 0.5 s")
        assert (
            psutil.Process(sidecar.pid).num_threads() == 2
        )  # one look-up, joined by the second try
        assert sidecar.health()[0] == 0
        sidecar.assert_stops()
