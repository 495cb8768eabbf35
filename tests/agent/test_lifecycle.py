"""The process: however Python is started, whoever its parent is, whatever is left to it."""

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, Sidecar, break_agent, wait_until

BLOCKED = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
WAYS = {
    # In another directory, without isolation, by a shell that leaves a child behind.
    "a wrapper": ["sh", "-c", 'cd / && { true & exec "$@"; }', "sh", sys.executable],
    # As in the image, by a parent that has blocked all signals.
    "blocked": [sys.executable, "-c", f"{BLOCKED}; os.execv(sys.argv[1], sys.argv[1:])",
                sys.executable, "-I", "-OO"],
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_started_it_stops(registry: Registry, service: ToyService, way: str) -> None:
    sidecar = Sidecar(registry, service)
    sidecar.python = WAYS[way]
    with sidecar:
        sidecar.wait_registered()
        assert not psutil.Process(sidecar.pid).children()
        sidecar.assert_stops()


def test_a_bug_is_logged_with_its_traceback_and_exit_code_1(
    service: ToyService, tmp_path: Path
) -> None:
    """No input is known that would do it, so a copy of the agent is broken on purpose."""
    sidecar = Sidecar(None, service)
    sidecar.script = [str(break_agent(tmp_path, "Agent.registering = lambda self: 1 / 0"))]
    with sidecar:
        assert sidecar.wait() == 1
        assert "A bug in the sidecar" in sidecar.log
        assert "ZeroDivisionError" in sidecar.log


def test_what_is_left_to_pid_1_is_reaped(registry: Registry, service: ToyService) -> None:
    unshare, nsenter = shutil.which("unshare"), shutil.which("nsenter")
    trial = [unshare or "unshare", "--pid", "--fork", "true"]
    if not unshare or not nsenter or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("needs unshare(1) and nsenter(1) with PID namespaces")
    registry.play("register", "status_500", times=FOREVER)
    sidecar = Sidecar(registry, service)
    sidecar.python = [unshare, "--pid", "--fork", "--kill-child", sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for("attempt 2")
        (agent,) = psutil.Process(sidecar.pid).children()
        left: set[psutil.Process] = set()
        for _ in range(3):
            leave = [nsenter, "--target", str(agent.pid), "--pid", "sh", "-c", "(sleep 1 &)"]
            subprocess.run(leave, check=True)
            left |= {*agent.children()}
        assert len(left) == 3
        wait_until(lambda: not agent.children(), why="nobody left")
        agent.terminate()
        assert sidecar.wait() == 0
