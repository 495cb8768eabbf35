"""The failure table on real containers.

Every sidecar has 24 MB of memory, and must live through all of it. After each failure the record is
right again within the promised time, and the sidecar has neither restarted nor been unhealthy.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from containers.engine import INTERVAL, SECOND, TTL, Lab, Node, PeerNode, wait_until
from kit.peers.faults import FAULTS
from kit.sidecar import NAME

pytestmark = pytest.mark.docker

TIGHT = {"mem_limit": "24m", "memswap_limit": "24m"}
SLACK = 30  # seconds that a busy machine may add to a promised time
RETRY = re.compile(r"next in (\d+\.\d) s")
SILENT_DNS = """
import socket
server = socket.socket(type=socket.SOCK_DGRAM)
server.bind(("", 53))
while True:
    server.recv(512)
"""
HEAVY = (
    "gzip_bomb", "huge_body", "huge_chunked", "endless_body", "endless_header_line", "many_headers",
    "deep_json", "chunk_negative", "chunk_huge", "endless_chunk_line", "endless_trailers",
    "interim_103",
)  # fmt: skip


class Scene(NamedTuple):
    """A registry, a service and a sidecar, each in its container."""

    lab: Lab
    registry: PeerNode
    service: PeerNode
    sidecar: Node


@pytest.fixture
def scene(lab: Lab) -> Iterator[Scene]:
    """A service that its sidecar keeps registered.

    At the end the sidecar must have had a calm life.
    """
    scene = Scene(lab, lab.registry(), lab.service(), lab.sidecar(TIGHT))
    scene.registry.wait_record()
    scene.sidecar.wait_health("healthy", "^registered")
    yield scene
    assert_calm(scene.sidecar)


def assert_calm(sidecar: Node) -> None:
    """Check that the sidecar has never restarted, run out of memory or into a bug.

    Is healthy.
    """
    state = sidecar.state
    assert state["Status"] == "running"
    assert not state["OOMKilled"]
    assert sidecar.restarts == 0
    assert state["Health"]["Status"] == "healthy"
    assert "Traceback" not in sidecar.log


def promised(sidecar: Node) -> float:
    """Return the seconds within which the sidecar comes back.

    Its present wait, as logged, or two intervals.
    """
    waits = RETRY.findall(sidecar.log)
    return max(float(waits[-1]) if waits else 0.0, 2 * INTERVAL) + SLACK


def assert_registered(registry: PeerNode, sidecar: Node, version: str = "1.0.0") -> None:
    """Check that the record is there within the promised time, and right, and stays."""
    timeout = promised(sidecar)
    wait_until(
        lambda: ((registry.record() or {}).get("metadata") or {}).get("version") == version,
        timeout, f"a record with version {version}",
    )  # fmt: skip
    record = registry.wait_record()
    assert record["endpoint"] == "http://service:8080"
    assert record["metadata"] == {"version": version, "status": "healthy"}
    sidecar.wait_health("healthy", "^registered, last heartbeat")
    seen = record["last_heartbeat"]
    wait_until(
        lambda: (registry.record() or {}).get("last_heartbeat", seen) > seen,
        SLACK,
        "another heartbeat",
    )


# ---------------------------------------------------------------------------- the registry


def test_registry_absent_at_the_start(lab: Lab) -> None:
    _service, sidecar = lab.service(), lab.sidecar(TIGHT)
    sidecar.wait_health(
        "healthy", r"^registry unreachable for \d+ s \(attempt [2-9]\): name look-up failed"
    )
    registry = lab.registry()
    assert_registered(registry, sidecar)
    assert_calm(sidecar)


Outage = Callable[[Scene], None]


def stop(scene: Scene) -> None:
    scene.registry.container.stop(timeout=0)


def start(scene: Scene) -> None:
    scene.registry.container.start()


def pause(scene: Scene) -> None:
    scene.registry.container.pause()


def unpause(scene: Scene) -> None:
    scene.registry.container.unpause()


def disconnect(scene: Scene) -> None:
    scene.lab.network.disconnect(scene.registry.container)


def connect(scene: Scene) -> None:
    scene.lab.network.connect(scene.registry.container, aliases=[scene.registry.alias])


@pytest.mark.parametrize(
    ("begin", "end"),
    [pytest.param(stop, start, id="stopped"), pytest.param(pause, unpause, id="hanging"),
     pytest.param(disconnect, connect, id="disconnected")],
)  # fmt: skip
def test_registry_outage(scene: Scene, begin: Outage, end: Outage) -> None:
    begin(scene)
    longer_than_ttl = r"^registry unreachable for (?:[5-9]|\d\d) s"
    scene.sidecar.wait_health("healthy", longer_than_ttl, timeout=60)
    end(scene)
    assert_registered(scene.registry, scene.sidecar)
    assert scene.sidecar.count(r"Registry is back after \d+ s") >= 1


def test_registry_replaced_under_its_name_at_another_address(scene: Scene) -> None:
    old = scene.registry.address
    registry = scene.lab.registry()  # beside the first one, which therefore keeps its address
    assert registry.address != old
    scene.registry.container.remove(force=True)
    assert_registered(registry, scene.sidecar)


# ---------------------------------------------------------------------------- the service


def test_service_stopped_and_started(scene: Scene) -> None:
    scene.service.container.stop(timeout=0)
    scene.sidecar.wait_health("healthy", r"^service down for \d+ s")
    scene.registry.wait_no_record(timeout=TTL + SLACK)
    scene.service.container.start()
    assert_registered(scene.registry, scene.sidecar)


def test_service_restarted_with_a_new_version(scene: Scene) -> None:
    scene.service.container.remove(force=True)
    scene.lab.service("--version", "2.0.0")
    assert_registered(scene.registry, scene.sidecar, version="2.0.0")


# ---------------------------------------------------------------------------- the sidecar


def test_sidecar_killed(lab: Lab) -> None:
    """The restart policy brings it back, and it registers again.

    The service's record need not even expire.
    """
    registry, _service, sidecar = lab.registry(), lab.service(), lab.sidecar(TIGHT)
    first = registry.wait_record()["registered_at"]
    # From the host's process space: neither `docker kill` (which the engine takes for a stop that
    # was wanted) nor a process inside (where PID 1 is immune) would do.
    killer = ["python", "-c", f"import os; os.kill({sidecar.state['Pid']}, 9)"]
    lab.run(lab.peer_image, killer, "killer", pid_mode="host")
    wait_until(
        lambda: (registry.record() or {}).get("registered_at", first) > first,
        SLACK,
        "a new registration",
    )
    assert sidecar.restarts == 1
    assert sidecar.count("Registry sidecar starts") == 2
    assert_registered(registry, sidecar)


def test_dead_dns(lab: Lab) -> None:
    """A look-up that hangs makes the sidecar neither unhealthy nor deaf to SIGTERM."""
    dns = lab.run(lab.peer_image, ["python", "-c", SILENT_DNS], "dns")
    lab.service()
    # The engine answers for containers' names by itself, and asks this DNS for all others.
    sidecar = lab.sidecar(
        {**TIGHT, "dns": [dns.address]}, REGISTRY_URL="http://registry.example:8888"
    )
    sidecar.wait_health(
        "healthy", r"^registry unreachable for \d+ s \(attempt [2-9]\): no answer within 1 s"
    )
    assert_calm(sidecar)
    assert sidecar.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_in_the_network_of_a_service_that_restarts(lab: Lab) -> None:
    """Two minutes after, the sidecar ends.

    Its restart policy brings it into the service's new network.
    """
    registry, service = lab.registry(ttl=60), lab.service()
    shared = {
        "network": None,
        "networking_config": None,
        "network_mode": f"container:{service.container.id}",
    }
    sidecar = lab.sidecar(TIGHT | shared, HEARTBEAT_INTERVAL=30)
    first = registry.wait_record()["registered_at"]
    service.container.restart(timeout=1)
    registry.wait_no_record(timeout=60 + SLACK)
    assert sidecar.restarts == 0
    record = registry.wait_record(timeout=120 + SLACK)
    assert record["registered_at"] > first
    assert sidecar.restarts == 1
    assert sidecar.count("ERROR Network lost: nothing but loopback for 1[23][0-9] s; exit 1, ") == 1
    sidecar.wait_health("healthy", "^registered, last heartbeat")


# ---------------------------------------------------------------------------- peers at their worst


@pytest.mark.parametrize("operation", ["health", "heartbeat"])
def test_every_fault_of_a_peer(lab: Lab, operation: str) -> None:
    """Garbage, floods, bombs: 24 MB are enough, and once the peer is sane all is well."""
    registry, service = lab.registry(), lab.service()
    # A service that is not given up is probed again much sooner.
    options = {**TIGHT, "nano_cpus": SECOND}
    sidecar = lab.sidecar(options, HEARTBEAT_INTERVAL=0.5, SERVICE_HEALTH_RETRIES=100)
    registry.wait_record()
    peer = service if operation == "health" else registry
    asked = peer.control()["counts"].get(operation, 0)
    for fault in FAULTS:
        peer.tell(play=[operation, fault])
    asked += len(FAULTS)
    wait_until(lambda: peer.control()["counts"][operation] > asked, 300, "all faults are played")
    assert_registered(registry, sidecar)
    assert_calm(sidecar)


def registrations(state: dict[str, Any]) -> int:
    """Return how many have come, by what the registry tells of itself."""
    return int(state["counts"]["register"])


def test_every_heavy_answer_to_a_registration(lab: Lab) -> None:
    registry, _service = lab.registry(), lab.service()
    sidecar = lab.sidecar({**TIGHT, "nano_cpus": SECOND}, HEARTBEAT_INTERVAL=1)
    registry.wait_record()
    for fault in HEAVY:
        asked = registrations(registry.control(play=["register", fault]))
        registry.tell(forget=NAME)
        wait_until(lambda: registrations(registry.control()) > asked, SLACK, fault)  # noqa: B023
        registry.wait_record(timeout=promised(sidecar))
    assert_registered(registry, sidecar)
    assert_calm(sidecar)
