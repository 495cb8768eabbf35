"""Every fault of TLS, from either side, against the TLS image at 24 MB and a tenth of a CPU.

The exchange ends by its budget or its deadline, nothing is killed, `docker stop` is heard in the
middle. A tenth of a CPU needs some time of its own: SLOW says how much.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import docker
import pytest
import trustme

from containers import engine
from containers.engine import Images, Lab, Node, PeerNode
from kit.peers.faults import TLS_FAULTS
from kit.peers.server import CONNECT
from kit.sidecar import TESTS, unreadable, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.timeout(600)]

TIGHT = {"mem_limit": "24m", "memswap_limit": "24m"}
INTERVAL = 3.0  # seconds; the deadline of an exchange is half of it
LATE = 1.0  # second that an exchange may take beyond its deadline
# Seconds that a tenth of a CPU may add, to an exchange and to a stop: what 128 KB of handshakes or
# tiny records cost to look at, ten times over, and the end of Python itself.
SLOW = 1.0
BUSY = 3.0  # seconds that a machine may add whose CPUs are all taken
GRACE = 8  # seconds from SIGTERM to SIGKILL, fewer than Docker's own 10
LANES = 3  # sidecars side by side
GOOD = "Heartbeat accepted|Service has changed"
BAD = {
    "registry": "Heartbeat failed|Registration failed|Service not found",
    "service": "Health probe .* failed",
}
SIDES = pytest.mark.parametrize("side", ["registry", "service"])
# What goes on for as long as the agent lets it.
HOLDING = [
    "tls_drip_body",
    "tls_drip_handshake",
    "tls_empty_records",
    "tls_hello_requests",
    "tls_hello_requests_later",
    "tls_huge_body",
    "tls_key_updates",
    "tls_key_updates_asked",
    "tls_sealed_hello_requests_12",
    "tls_silence",
    "tls_tickets",
    "tls_tiny_records",
    "tls_tiny_records_12",
]


@pytest.fixture(scope="module")
def forger_image(images: Images) -> str:
    """The peers, with what they need to seal records of their own: its tag."""
    pinned = re.findall("^cryptography==.*", (TESTS / "requirements.txt").read_text(), re.MULTILINE)
    install = f"RUN pip install --quiet --root-user-action ignore {pinned[0]}\n"
    dockerfile = engine.PEER_DOCKERFILE + install
    return images.build("forgers", engine.PEERS, dockerfile=dockerfile)


@pytest.fixture
def hostile(
    client: docker.DockerClient, run: str, tls_image: str, forger_image: str
) -> Iterator[Lab]:
    """A network whose peers can play every fault."""
    with Lab(client, run, tls_image, forger_image) as lab:
        yield lab


class Lane:
    """A registry and a service that speak https, and a sidecar for them."""

    def __init__(self, lab: Lab, number: int) -> None:
        hosts = f"registry{number}", f"service{number}"
        authority = trustme.CA()
        certificate = authority.issue_cert(*hosts)
        files = {
            "ca.pem": authority.cert_pem.bytes(),
            "cert.pem": certificate.cert_chain_pems[0].bytes(),
            "key.pem": certificate.private_key_pem.bytes(),
        }
        volumes = {lab.volume(files): {"bind": "/tls", "mode": "ro"}}
        tls = ("--tls", "/tls/cert.pem", "/tls/key.pem")
        self.registry = lab.registry(
            *tls, "--no-keep-alive", alias=hosts[0], ttl=60, volumes=volumes
        )
        self.service = lab.service(*tls, alias=hosts[1], volumes=volumes)
        self.sidecar = lab.sidecar(
            TIGHT | {"volumes": volumes},
            alias=f"sidecar{number}",
            SERVICE_HOST=hosts[1],
            SERVICE_SCHEME="https",
            SERVICE_CA_FILE="/tls/ca.pem",
            SERVICE_HEALTH_RETRIES=100,  # so that the service is not given up
            REGISTRY_URL=f"https://{hosts[0]}:8888",
            REGISTRY_CA_FILE="/tls/ca.pem",
            HEARTBEAT_INTERVAL=INTERVAL,
        )
        self.sidecar.wait_for("Heartbeat accepted")

    def peer(self, side: str) -> PeerNode:
        return self.registry if side == "registry" else self.service

    def first(self, node: Node, pattern: str, since: float) -> float:
        """Return when the first such line of a log came since then, 0 where there is none."""
        for line in node.container.logs(timestamps=True, since=int(since)).decode().splitlines():
            stamp, _, text = line.partition(" ")
            at = datetime.fromisoformat(re.sub(r"(\.\d{6})\d*Z", r"\1+00:00", stamp)).timestamp()
            if at > since and re.search(pattern, text):
                return at
        return 0.0

    def wait_first(self, node: Node, pattern: str, since: float, timeout: float = 20.0) -> float:
        why = f"{pattern!r} of {node.alias}"
        return wait_until(lambda: self.first(node, pattern, since), timeout, why, every=0.1)

    def check(self) -> None:
        """Look whether the sidecar has lived through all of it, and whether its log is readable."""
        assert self.sidecar.restarts == 0
        assert self.sidecar.state["OOMKilled"] is False
        assert unreadable(self.sidecar.log.splitlines()) == []


def in_lanes(lab: Lab, names: list[str], work: Callable[[Lane, str], None]) -> None:
    """Share the faults among some sidecars."""

    def run(number: int, share: list[str]) -> None:
        lane = Lane(lab, number)
        for name in share:
            try:
                work(lane, name)
                lane.check()
            except Exception as error:
                error.add_note(f"at the fault {name}")
                raise

    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(run, itertools.count(), [names[number::LANES] for number in range(LANES)]))


@SIDES
def test_every_exchange_ends_in_time_within_24_mb(hostile: Lab, side: str) -> None:
    slowest: dict[str, float] = {}

    def suffer(lane: Lane, name: str) -> None:
        since = time.time()
        lane.peer(side).tell(play=[CONNECT, name, None])
        played = lane.wait_first(lane.peer(side), f"{CONNECT} -> fault", since)
        # Some of them bring a good status, so the agent may take them for an answer.
        judged = lane.wait_first(lane.sidecar, f"{BAD[side]}|{GOOD}", played)
        slowest[name] = judged - played
        lane.peer(side).tell(sane="*")
        lane.wait_first(lane.sidecar, "Heartbeat accepted", time.time(), 30.0)

    in_lanes(hostile, sorted(TLS_FAULTS), suffer)
    print(sorted(((round(taken, 1), name) for name, taken in slowest.items()), reverse=True)[:10])
    limit = INTERVAL / 2 + LATE + SLOW + BUSY
    assert {name: taken for name, taken in slowest.items() if taken > limit} == {}


@SIDES
def test_docker_stop_is_heard_in_the_middle(hostile: Lab, side: str) -> None:
    """At the registry, the deregistration meets the same once more."""
    stops: dict[str, float] = {}

    def stop(lane: Lane, name: str) -> None:
        since = time.time()
        lane.peer(side).tell(play=[CONNECT, name, None])
        lane.wait_first(lane.peer(side), f"{CONNECT} -> fault", since)
        began = time.time()
        lane.sidecar.container.stop(timeout=GRACE)
        assert lane.sidecar.state["ExitCode"] == 0
        finished = re.sub(r"(\.\d{6})\d*Z", r"\1+00:00", lane.sidecar.state["FinishedAt"])
        stops[name] = datetime.fromisoformat(finished).timestamp() - began
        lane.peer(side).tell(sane="*")
        began = time.time()
        lane.sidecar.container.start()
        lane.wait_first(lane.sidecar, "Heartbeat accepted", began, 30.0)

    in_lanes(hostile, HOLDING, stop)
    print(sorted(((round(taken, 1), name) for name, taken in stops.items()), reverse=True))
    assert max(stops.values()) < 3.0 + SLOW + BUSY
