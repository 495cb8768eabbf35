"""What `docker inspect` shows of a real agent: its sentences, its promises, a file in trouble.

tests/unit/test_health_file.py has what the agent says when.
"""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import healthcheck
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, Sidecar


def test_healthy_in_every_state_and_ready_while_registered(registry: Registry) -> None:
    service = ToyService(health_path="/up?x=1", healthy=False)
    elsewhere = {"SERVICE_HEALTH_ENDPOINT": service.url.replace("//", "//ann:s3cret@") + "/up?x=1"}
    with service, Sidecar(registry, None, **elsewhere) as sidecar:
        shown = re.escape(service.url.replace("//", "//***@") + "/up?***")
        sidecar.wait_for(f"Waiting for the service at {shown}: 503")
        sidecar.wait_health(r"^waiting for the service for \d+ s: 503: .*\n$")
        sidecar.wait_health(r"^not ready: waiting for the service", 1, "--ready")
        registry.play("register", ["status", 503, {"detail": "come back later"}], times=FOREVER)
        service.healthy = True
        sidecar.wait_health(r"^registry failing for .*\(attempt \d+\): 503: come back later\n$")
        registry.sane()
        sidecar.wait_health(r"^registered, last heartbeat \d+ s ago\n$")
        sidecar.wait_health("^registered", 0, "--ready")
        registry.play("heartbeat", "hang", times=FOREVER)
        sidecar.wait_for("Heartbeat failed", times=2)
        assert sidecar.health()[0] == 0
        registry.stop()
        sidecar.wait_health(r"^registry unreachable for .*\(attempt \d+\): connection refused\n$")
        sidecar.wait_health("^not ready: registry unreachable", 1, "--ready")
        registry.sane()
        registry.start()
        sidecar.wait_health("^registered", 0, "--ready")
        service.stop()
        sidecar.wait_health(r"^service down for \d+ s: connection refused\n$")
        sidecar.wait_health("^not ready: service down", 1, "--ready")
        assert not sidecar.count("Traceback|s3cret|x=1")
        assert sidecar.stop()[0] == 0
        assert re.search(r"stopping for \d+ s$", sidecar.health()[1])


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


def test_a_full_file_system_is_told_by_that_name_and_written_to_when_there_is_room(
    registry: Registry, service: ToyService, tmp_path: Path
) -> None:
    """A tmpfs of one page holds the file or its draft, in a mount namespace of the agent's own."""
    unshare = [shutil.which("unshare") or "unshare", "--mount", "--map-root-user"]
    mount = ["sh", "-c", 'mount -t tmpfs -o size=4k none "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which(unshare[0]) or subprocess.run([*unshare, *mount, "true"]).returncode:
        pytest.skip("needs unshare(1) with mount namespaces")
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 0.5, "HEARTBEAT_FILE": tmp_path / "heartbeat"}
    sidecar = Sidecar(registry, service, **settings)
    sidecar.python = [*unshare, *mount, sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        line = sidecar.wait_for(" WARNING HEARTBEAT_FILE=.*")
        assert re.search("(?i)no (room|space)", line)
        assert sidecar.count(" WARNING HEARTBEAT_FILE=") == 1
        assert sidecar.stop()[0] == 0
