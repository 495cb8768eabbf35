"""What fails around a sidecar on real containers, with 24 MB of memory for it.

After each failure the record is right again within the promised time, and the sidecar has neither
restarted nor been unhealthy.
"""

import re

import pytest

from containers.engine import INTERVAL, SECOND, TIGHT, TTL, Lab, Node, PeerNode, wait_until
from kit.peers.faults import FAULTS

pytestmark = pytest.mark.docker

SLACK = 30  # seconds that a busy machine may add to a promised time
SILENT_DNS = """
import socket
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("", 53))
while True:
    server.recv(512)
"""
CUT_OFF = 10  # seconds, for the agent's two minutes
SOON_CUT_OFF = f"""
import sys
sys.path.append("/app")
import agent
agent.CUT_OFF = {CUT_OFF}
sys.exit(agent.main())
"""
PLAY_ALL = """
import json, sys, urllib.request
from kit.peers.faults import FAULTS
for fault in FAULTS:
    command = {"play": [sys.argv[2], fault]}
    urllib.request.urlopen(sys.argv[1], json.dumps(command).encode())
"""


def assert_calm(sidecar: Node) -> None:
    """Check that the sidecar is healthy, has never restarted, run out of memory or into a bug."""
    state = sidecar.state
    assert state["Status"] == "running"
    assert not state["OOMKilled"]
    assert sidecar.restarts == 0
    assert state["Health"]["Status"] == "healthy"
    assert "Traceback" not in sidecar.log


def assert_registered(registry: PeerNode, sidecar: Node, version: str = "1.0.0") -> None:
    """Check that the record is right within the promised time, and stays.

    That is its present wait, as logged, or two intervals.
    """
    waits = [float(wait) for wait in re.findall(r"next in (\d+\.\d) s", sidecar.log)[-1:]]
    wait_until(
        lambda: ((registry.record() or {}).get("metadata") or {}).get("version") == version,
        max(*waits, 2 * INTERVAL, 0) + SLACK, f"a record with version {version}",
    )  # fmt: skip
    record = registry.wait_record()
    assert record["endpoint"] == "http://service:8080"
    assert record["metadata"] == {"version": version, "status": "healthy"}
    sidecar.wait_health("healthy", "^registered, last heartbeat")
    seen = record["last_heartbeat"]
    wait_until(
        lambda: (registry.record() or {}).get("last_heartbeat", seen) > seen, SLACK, "a heartbeat"
    )


def test_the_registry_fails(lab: Lab) -> None:
    """Absent at the start, hanging, cut off, and at last replaced at another address."""
    lab.service()
    sidecar = lab.sidecar(TIGHT)
    absent = r"^registry unreachable for \d+ s \(attempt [2-9]\): name look-up failed"
    sidecar.wait_health("healthy", absent)
    registry = lab.registry()
    assert_registered(registry, sidecar)

    longer_than_ttl = r"^registry unreachable for (?:[5-9]|\d\d) s"
    registry.container.pause()
    sidecar.wait_health("healthy", longer_than_ttl)
    registry.container.unpause()
    assert_registered(registry, sidecar)

    lab.network.disconnect(registry.container)
    sidecar.wait_health("healthy", longer_than_ttl)
    lab.network.connect(registry.container, aliases=[registry.alias])
    assert_registered(registry, sidecar)
    assert sidecar.count(r"Registry is back after \d+ s") >= 3

    other = lab.registry()  # beside the first one, which therefore keeps its address
    assert other.address != registry.address
    registry.container.remove(force=True)
    assert_registered(other, sidecar)
    assert_calm(sidecar)


def test_the_service_fails(lab: Lab) -> None:
    """Stopped and started, then replaced by another version of itself."""
    registry, service, sidecar = lab.registry(), lab.service(), lab.sidecar(TIGHT)
    assert_registered(registry, sidecar)
    service.container.stop(timeout=0)
    sidecar.wait_health("healthy", r"^service down for \d+ s")
    registry.wait_no_record(timeout=TTL + SLACK)
    service.container.start()
    assert_registered(registry, sidecar)

    service.container.remove(force=True)
    lab.service("--version", "2.0.0")
    assert_registered(registry, sidecar, version="2.0.0")
    assert_calm(sidecar)


def test_the_sidecar_is_killed(lab: Lab) -> None:
    """The restart policy brings it back, and it registers; the record need not even expire."""
    registry, _service, sidecar = lab.registry(), lab.service(), lab.sidecar(TIGHT)
    first = registry.wait_record()["registered_at"]
    # From the host's process space: neither `docker kill` (which the engine takes for a stop that
    # was wanted) nor a process inside (where PID 1 is immune) would do.
    killer = ["python", "-c", f"import os; os.kill({sidecar.state['Pid']}, 9)"]
    lab.run(lab.peer_image, killer, "killer", pid_mode="host")
    wait_until(
        lambda: (registry.record() or {}).get("registered_at", first) > first,
        SLACK, "a new registration",
    )  # fmt: skip
    assert sidecar.restarts == 1
    assert sidecar.count("Registry sidecar starts") == 2
    assert_registered(registry, sidecar)


def test_dns_is_dead(lab: Lab) -> None:
    """A look-up that hangs makes the sidecar neither unhealthy nor deaf to SIGTERM."""
    dns = lab.run(lab.peer_image, ["python", "-c", SILENT_DNS], "dns")
    lab.service()
    # The engine answers for containers' names by itself, and asks this DNS for all others.
    options = {**TIGHT, "dns": [dns.address]}
    sidecar = lab.sidecar(options, REGISTRY_URL="http://registry.example:8888")
    hangs = r"^registry unreachable for \d+ s \(attempt [2-9]\): no answer within 1 s"
    sidecar.wait_health("healthy", hangs)
    assert_calm(sidecar)
    assert sidecar.stop() == 0


def test_the_service_whose_network_it_shares_restarts(lab: Lab) -> None:
    """Two minutes after (here CUT_OFF), it ends, and its policy brings it into the new network."""
    registry, service = lab.registry(), lab.service()
    soon = {"entrypoint": ["python", "-I", "-c", SOON_CUT_OFF]}
    sidecar = lab.sidecar(TIGHT | service.inside | soon)
    first = registry.wait_record()["registered_at"]
    service.container.restart(timeout=1)
    registry.wait_no_record(timeout=TTL + SLACK)
    assert sidecar.restarts == 0
    record = registry.wait_record(timeout=CUT_OFF + SLACK)
    assert record["registered_at"] > first
    assert sidecar.restarts == 1
    assert sidecar.count("ERROR Network lost: nothing but loopback for 1[0-9] s; exit 1, ") == 1
    sidecar.wait_health("healthy", "^registered, last heartbeat")


def test_a_peer_plays_every_fault(lab: Lab) -> None:
    """Garbage, floods, bombs from both sides: 24 MB are enough, and once they are sane all is well.

    Some sidecars share the faults, so that it does not take so long.
    """
    registry, service = lab.registry(), lab.service()
    options = {**TIGHT, "nano_cpus": SECOND}
    sidecars = [
        # A service that is not given up is probed again much sooner.
        lab.sidecar(options, SERVICE_NAME=name, HEARTBEAT_INTERVAL=0.5, SERVICE_HEALTH_RETRIES=100)
        for name in ("osint_service", "second_service", "third_service")
    ]
    for sidecar in sidecars:
        sidecar.wait_for("Heartbeat accepted")
    for peer, operation in ((service, "health"), (registry, "heartbeat")):
        code, said = peer.execute("python", "-c", PLAY_ALL, peer.url, operation)
        assert code == 0, said
    for peer, operation in ((service, "health"), (registry, "heartbeat")):
        asked = peer.control()["counts"][operation] + len(FAULTS)
        wait_until(
            lambda: peer.control()["counts"][operation] > asked,  # noqa: B023
            300, f"all faults are played at {operation}",
        )  # fmt: skip
    assert_registered(registry, sidecars[0])
    for sidecar in sidecars:
        assert_calm(sidecar)
