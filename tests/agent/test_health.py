"""What `docker inspect` shows.

The line for each state, healthy as long as the loop lives, --ready while registered.
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
from kit.sidecar import FOREVER, Sidecar, run_agent


def test_waiting_is_healthy_and_not_ready(registry: Registry) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_health(r"^waiting for the service for \d+ s: 503: .*\n$")
        sidecar.wait_health(r"^not ready: waiting for the service", 1, "--ready")


def test_registering_while_the_registry_is_unreachable_is_healthy_and_not_ready(
    service: ToyService,
) -> None:
    with Sidecar(Registry(), service) as sidecar:
        sidecar.wait_health(
            r"^registry unreachable for \d+ s \(attempt \d+\): connection refused\n$"
        )
        sidecar.wait_health(r"^not ready: registry unreachable", 1, "--ready")


def test_registering_and_stopping_are_shown(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30) as sidecar:
        registry.play("register", "hang")  # for a third of the interval
        sidecar.wait_health(r"^registering for \d+ s$")
        sidecar.wait_registered(timeout=30)
        assert sidecar.stop()[0] == 0
        assert re.search(r"stopping for \d+ s$", sidecar.health()[1])


def test_a_registry_that_answers_errors_is_told_with_what_it_said(
    registry: Registry, service: ToyService
) -> None:
    registry.play("register", ["status", 503, {"detail": "come back later"}], times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_health(r"^registry failing for \d+ s \(attempt \d+\): 503: come back later\n$")


def test_registered_is_healthy_and_ready(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        sidecar.wait_health(r"^registered, last heartbeat \d+ s ago\n$")
        sidecar.wait_health(r"^registered", 0, "--ready")


def test_through_a_registry_outage_healthy_all_along_and_ready_again_at_its_end(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.stop()
        end = time.monotonic() + 7
        while time.monotonic() < end:
            code, line = sidecar.health()
            assert code == 0, line
            time.sleep(0.5)
        assert sidecar.health("--ready")[0] == 1
        registry.start()
        sidecar.wait_health("^registered", 0, "--ready", timeout=30)


def test_readiness_ends_two_intervals_after_the_last_accepted_heartbeat(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        for operation in (
            "heartbeat",
            "register",
        ):  # not the list, whose failure ends the state at once
            registry.play(operation, "status_500", times=FOREVER)
        sidecar.wait_for("Heartbeat failed")
        assert sidecar.health("--ready")[0] == 0  # one failure costs nothing
        sidecar.wait_health("^not ready: registry failing", 1, "--ready")


def test_readiness_ends_with_the_record_while_probes_hold_up_the_heartbeats(
    registry: Registry, service: ToyService
) -> None:
    settings = {"HEARTBEAT_INTERVAL": 1, "SERVICE_HEALTH_RETRIES": 100}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.healthy = False
        sidecar.wait_health("^not ready: registered, last heartbeat", 1, "--ready")


def test_through_a_service_outage_healthy_and_not_ready(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.stop()
        sidecar.wait_health(r"^service down for \d+ s: connection refused\n$")
        sidecar.wait_health("^not ready: service down", 1, "--ready")
        service.start()
        sidecar.wait_health("^registered", 0, "--ready")


def test_a_hanging_registry_keeps_the_promise(registry: Registry, service: ToyService) -> None:
    registry.play("heartbeat", "hang", times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat failed", times=2)
        assert sidecar.health()[0] == 0


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
        sidecar.wait_health("^unhealthy: the agent is [0-9]+ s late; it said: registered", 1)
        sidecar.process.send_signal(signal.SIGCONT)
        sidecar.wait_health("^registered", 0)


def test_bad_settings_leave_no_heartbeat_file(tmp_path: Path) -> None:
    path = tmp_path / "heartbeat"
    assert run_agent({"SERVICE_PORT": "x", "HEARTBEAT_FILE": path}).returncode == 2
    assert not path.exists()


@pytest.mark.parametrize("kind", ["missing directory", "directory in its place"])
def test_a_heartbeat_file_that_cannot_be_written_never_stops_the_agent(
    registry: Registry, service: ToyService, tmp_path: Path, kind: str
) -> None:
    path = (
        tmp_path / "none" / "heartbeat" if kind == "missing directory" else tmp_path / "heartbeat"
    )
    if kind == "directory in its place":
        path.mkdir()
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, HEARTBEAT_FILE=path) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert (
            sidecar.count("HEARTBEAT_FILE=.* cannot be written") == 1
        )  # said once, not at every step
        assert sidecar.health()[0] == 1
        path.rmdir() if path.exists() else path.parent.mkdir()
        sidecar.wait_health("^registered", 0)


def test_the_agent_writes_the_file_by_replacing_it(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.05) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        inodes = set()
        for _ in range(200):
            line = sidecar.heartbeat_file.read_bytes()
            inodes.add(sidecar.heartbeat_file.stat().st_ino)
            assert line.count(b"\n") == 1
            assert line.endswith(b"\n")
            time.sleep(0.002)
    assert len(inodes) > 1


def test_a_link_in_the_place_of_the_draft_is_not_followed(
    registry: Registry, service: ToyService, tmp_path: Path
) -> None:
    """On a shared directory somebody else may have put it there."""
    victim, path = tmp_path / "victim", tmp_path / "heartbeat"
    victim.write_text("not yours")
    (tmp_path / "heartbeat.new").symlink_to(victim)
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, HEARTBEAT_FILE=path) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        sidecar.wait_health("^registered, last heartbeat [01] s ago", 0)
        assert not path.is_symlink()
        assert victim.read_text() == "not yours"


def test_a_full_file_system_is_told_by_that_name_and_written_to_when_there_is_room(
    registry: Registry, service: ToyService, tmp_path: Path
) -> None:
    """A tmpfs of one page holds the file or its draft, in a mount namespace of the agent's own."""
    unshare = [shutil.which("unshare") or "unshare", "--mount", "--map-root-user"]
    mount = ["sh", "-c", 'mount -t tmpfs -o size=4k none "$0" && exec "$@"', str(tmp_path)]
    if not shutil.which(unshare[0]) or subprocess.run([*unshare, *mount, "true"]).returncode:
        pytest.skip("needs unshare(1) with mount namespaces")
    settings: dict[str, Any] = {
        "HEARTBEAT_INTERVAL": 0.5,
        "HEARTBEAT_FILE": tmp_path / "heartbeat",
    }
    sidecar = Sidecar(registry, service, **settings)
    sidecar.python = [*unshare, *mount, sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        line = sidecar.wait_for(" WARNING HEARTBEAT_FILE=.*")
        assert re.search("(?i)no (room|space)", line)
        assert sidecar.count(" WARNING HEARTBEAT_FILE=") == 1
        assert sidecar.stop()[0] == 0


# ---- where the service's health is looked for


def test_health_elsewhere_that_does_not_answer_is_told_by_its_own_address(
    registry: Registry, service: ToyService
) -> None:
    elsewhere = ToyService()  # not started
    endpoint = {"SERVICE_HEALTH_ENDPOINT": elsewhere.url.replace("//", "//ann:s3cret@") + "/up?x=1"}
    shown = re.escape(elsewhere.url.replace("//", "//***@") + "/up")
    with Sidecar(registry, service, INITIAL_WAIT_TIMEOUT=2.5, **endpoint) as sidecar:
        sidecar.wait_for(f"Waiting for the service at {shown}.*: connection refused")
        sidecar.wait_registered()
        assert not sidecar.count(f"Waiting .*{service.port}|s3cret|x=1")


def test_a_tcp_check_is_told_by_host_and_port(registry: Registry) -> None:
    service = ToyService()  # not started
    with Sidecar(registry, service, SERVICE_HEALTH_CHECK="tcp") as sidecar:
        line = sidecar.wait_for("Waiting for the service at .*: connection refused")
        assert f"127.0.0.1:{service.port}" in line
