"""A network that is gone for two minutes ends the agent (Linux, root).

In a network namespace whose only device is taken away; the clock jumps over the minutes.
"""

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kit.sidecar import Sidecar, odd_lines
from kit.stage import Stage


@contextlib.contextmanager
def isolated(*devices: str) -> Iterator[Sidecar]:
    """Yield a sidecar that sees but loopback and these devices, and waits for what never comes."""
    needed = [shutil.which(name) for name in ("unshare", "nsenter", "ip")]
    trial = ["unshare", "--net", "ip", "link", "add", "eth0", "type", "bridge"]
    if not all(needed) or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("needs unshare(1), nsenter(1) and ip(8) with network namespaces")
    sidecar = Sidecar(None, None, INITIAL_WAIT_TIMEOUT=86400, HEARTBEAT_INTERVAL=30)
    Stage(sidecar, jumping=True)
    add = 'do ip link add "$device" type bridge || exit; done'
    script = f'for device in {" ".join(devices)}; {add}; exec "$@"'
    sidecar.python = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for("Waiting for the service")
        yield sidecar


def take_away(sidecar: Sidecar, device: str) -> None:
    command = ["nsenter", "--target", str(sidecar.pid), "--net", "ip", "link", "delete", device]
    subprocess.run(command, check=True)


def test_a_network_that_is_gone_for_two_minutes_ends_it_with_exit_code_1() -> None:
    with isolated("eth0", "tunl0") as sidecar:
        before = sidecar.count("Waiting")
        sidecar.wait_for("Waiting", times=before + 10)  # ten minutes
        take_away(sidecar, "eth0")
        assert sidecar.wait() == 1
        assert "ERROR Network lost: nothing but loopback for 12" in sidecar.lines[-1]
        assert odd_lines(sidecar.lines) == []


@pytest.mark.parametrize("devices", [[], ["tunl0", "sit0"], ["eth0", "eth1"]], ids=str)
def test_it_stays_where_there_never_was_a_network_or_another_is_left(devices: list[str]) -> None:
    with isolated(*devices) as sidecar:
        if "eth1" in devices:
            take_away(sidecar, "eth1")
        before = sidecar.count("Waiting")
        sidecar.wait_for("Waiting", times=before + 10)
        sidecar.assert_stops()
