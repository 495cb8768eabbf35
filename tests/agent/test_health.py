"""A real agent that is stopped, cannot write its heartbeat file, or has no descriptor left.

What it says when, through a whole life: unit/test_health_file.py.
"""

import resource
import signal
import time
from pathlib import Path

import healthcheck
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import Sidecar


def test_a_stopped_process_is_unhealthy_as_soon_as_its_promise_is_broken(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=1) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        sidecar.process.send_signal(signal.SIGSTOP)
        promise = float(sidecar.heartbeat_file.read_bytes().split()[0])
        # The slot, both deadlines, the grace, and what a busy machine takes.
        assert promise - healthcheck.clock() < 1 + 0.5 + 0.5 + 5 + 0.5
        assert sidecar.health()[0] == 0
        time.sleep(max(promise - healthcheck.clock(), 0.0))
        sidecar.wait_health("^unhealthy: the agent is [0-9]+ s late; it said: registered", 1)
        sidecar.process.send_signal(signal.SIGCONT)
        sidecar.wait_health("^registered", 0)


def test_a_heartbeat_file_that_cannot_be_written_never_stops_the_agent(
    registry: Registry, service: ToyService, tmp_path: Path
) -> None:
    """First its directory is missing, then another directory is in its place."""
    path = tmp_path / "none" / "heartbeat"
    (tmp_path / "other" / "heartbeat").mkdir(parents=True)
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, HEARTBEAT_FILE=path) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert sidecar.health()[0] == 1
        (tmp_path / "other").rename(path.parent)
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 3)
        assert sidecar.health()[0] == 1
        # Said once, not at every step.
        assert sidecar.count("HEARTBEAT_FILE=.* cannot be written") == 1
        path.rmdir()
        sidecar.wait_health("^registered", 0)


def test_without_a_descriptor_to_be_had_the_service_is_down_until_there_is_one(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=1) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        soft, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, hard))
        sidecar.wait_for("Service is DOWN")
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (soft, hard))
        sidecar.wait_registered(times=2)
        sidecar.wait_health("registered")
        assert "Traceback" not in sidecar.log
