"""What the network does to a sidecar: nothing lasting, unless it is gone for good.

Names, addresses and connections one by one: unit/test_network.py; probes: unit/test_service.py.
"""

import contextlib
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sampler, Sidecar, odd_lines
from kit.stage import Stage

HERE, THERE = "127.0.0.11", "127.0.0.12"


def test_an_address_that_goes_mute_costs_one_request_and_no_record(service: ToyService) -> None:
    """It takes connections, which looks well until the deadline of the exchange has passed."""
    with Registry(HERE, ttl=4.0) as first, Registry(THERE, first.port, replica_of=first) as second:
        second.ttl = first.ttl
        first.pause()
        url = f"http://registry.test:{first.port}"
        sidecar = Sidecar(None, service, REGISTRY_URL=url, REGISTRY_TIMEOUT=1)
        Stage(sidecar, names={"registry.test": [HERE, THERE]})
        with sidecar:
            sidecar.wait_registered()
            assert sidecar.count("Registration failed") == 1
            with Sampler(lambda: first.record(NAME)) as sampler:
                sidecar.wait_for("Heartbeat accepted", times=2)
                assert second.connections == 1
                first.resume()
                second.pause()
                sidecar.wait_for("Heartbeat failed")
                sidecar.wait_for("Registry is back", times=2)
            assert not sampler.absences


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


def test_an_https_service_without_verification_is_warned_of_once(
    registry: Registry, tmp_path: Path
) -> None:
    tls, _ = certificate(tmp_path, "10.9.8.7")
    settings = {"SERVICE_SCHEME": "https", "SERVICE_TLS_VERIFY": "false", "HEARTBEAT_INTERVAL": 0.5}
    with ToyService(tls=tls) as service, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted", times=3)
        record = registry.record(NAME)
        assert record is not None
        assert record["endpoint"] == service.url
        assert record["metadata"] == {"version": "1.0.0", "status": "healthy"}
        assert sidecar.stop()[0] == 0
        for_it = " WARNING SERVICE_TLS_VERIFY=false: "
        assert sidecar.count(" WARNING ") == sidecar.count(for_it) == 1
        assert odd_lines(sidecar.lines) == []  # no library's warning among them


# ---- a network that is gone for two minutes (Linux, root); the clock jumps over the minutes


@contextlib.contextmanager
def isolated(device: str) -> Iterator[Sidecar]:
    """Yield a sidecar that sees but loopback and this device, and waits for what never comes."""
    needed = [shutil.which(name) for name in ("unshare", "nsenter", "ip")]
    trial = ["unshare", "--net", "ip", "link", "add", device, "type", "bridge"]
    if not all(needed) or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("needs unshare(1), nsenter(1) and ip(8) with network namespaces")
    sidecar = Sidecar(None, None, INITIAL_WAIT_TIMEOUT=86400, HEARTBEAT_INTERVAL=30)
    Stage(sidecar, jumping=True)
    script = f'{" ".join(trial[2:])} && exec "$@"'
    sidecar.python = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for("Waiting for the service")
        yield sidecar


def test_a_network_that_is_gone_ends_it_with_exit_code_1() -> None:
    with isolated("eth0") as sidecar:
        sidecar.wait_for("Waiting", times=sidecar.count("Waiting") + 10)  # ten minutes
        delete = ["--net", "ip", "link", "delete", "eth0"]
        subprocess.run(["nsenter", "--target", str(sidecar.pid), *delete], check=True)
        assert sidecar.wait() == 1
        assert "ERROR Network lost: nothing but loopback for 12" in sidecar.lines[-1]
        assert odd_lines(sidecar.lines) == []
