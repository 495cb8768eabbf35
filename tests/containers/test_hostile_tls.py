"""Every fault of TLS, from either side, against the TLS image at 24 MB and a tenth of a CPU.

The exchange ends by its budget or its deadline, nothing is killed, `docker stop` is heard in the
middle. A tenth of a CPU needs some time of its own: SLOW says how much.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from containers import engine
from containers.engine import TIGHT, Images, Lab, Node, PeerNode, certificate
from kit.peers.faults import TLS_FAULTS
from kit.peers.server import CONNECT
from kit.sidecar import TESTS, unreadable, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(600)]

INTERVAL = 3.0  # seconds; the deadline of an exchange is half of it
LATE = 1.0  # second that an exchange may take beyond its deadline
# Seconds that a tenth of a CPU may add, to an exchange and to a stop: what 128 KB of handshakes or
# tiny records cost to look at, ten times over, and the end of Python itself.
SLOW = 1.0
BUSY = 3.0  # seconds that a machine may add whose CPUs are all taken
GRACE = 8  # seconds from SIGTERM to SIGKILL, fewer than Docker's own 10
LANES = 4  # sidecars side by side, for each side
TLS = ("--tls", "/tls/cert.pem", "/tls/key.pem")
GOOD = "Heartbeat accepted|Service has changed"
BAD = {
    "registry": "Heartbeat failed|Registration failed|Service not found",
    "service": "Health probe .* failed",
}
# What goes on for as long as the agent lets it.
HOLDING = {
    "tls_drip_body", "tls_drip_handshake", "tls_empty_records", "tls_hello_requests",
    "tls_hello_requests_later", "tls_huge_body", "tls_key_updates", "tls_key_updates_asked",
    "tls_sealed_hello_requests_12", "tls_silence", "tls_tickets", "tls_tiny_records",
    "tls_tiny_records_12",
}  # fmt: skip


@pytest.fixture(scope="module")
def forger_image(images: Images) -> str:
    """The peers, with what they need to seal records of their own: its tag."""
    pinned = re.findall("^cryptography==.*", (TESTS / "requirements.txt").read_text(), re.MULTILINE)
    install = f"RUN pip install --quiet --root-user-action ignore {pinned[0]}\n"
    return images.build("forgers", engine.PEERS, dockerfile=engine.PEER_DOCKERFILE + install)


def moment(text: str) -> float:
    """Return a time stamp of the engine in Unix time."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d*Z", r"\1+00:00", text)).timestamp()


def first(node: Node, pattern: str, since: float, timeout: float = 20.0) -> float:
    """Wait for the first such line of a log since then; return when it came."""

    def found() -> float:
        for line in node.container.logs(timestamps=True, since=int(since)).decode().splitlines():
            stamp, _, text = line.partition(" ")
            if moment(stamp) > since and re.search(pattern, text):
                return moment(stamp)
        return 0.0

    return wait_until(found, timeout, f"{pattern!r} of {node.alias}", every=0.2)


def suffer_all(lab: Lab, tls: dict[str, Any], side: str, number: int, names: list[str]) -> None:
    """Let a sidecar and its own peer on this side go through some faults.

    Its other peer is sane.
    """
    own = f"{side}{number}"
    hosts = {"registry": "registry", "service": "service", side: own}
    start, more = (lab.registry, ["--no-keep-alive"]) if side == "registry" else (lab.service, [])
    peer = start(*TLS, *more, alias=own, **tls)
    sidecar = lab.sidecar(
        TIGHT | tls,
        alias=f"sidecar-of-{own}",
        SERVICE_NAME=own,
        SERVICE_HOST=hosts["service"],
        SERVICE_SCHEME="https",
        SERVICE_CA_FILE="/tls/ca.pem",
        SERVICE_HEALTH_RETRIES=100,  # so that the service is not given up
        REGISTRY_URL=f"https://{hosts['registry']}:8888",
        REGISTRY_CA_FILE="/tls/ca.pem",
        HEARTBEAT_INTERVAL=INTERVAL,
    )
    sidecar.wait_for("Heartbeat accepted")
    for name in names:
        try:
            suffer(sidecar, peer, side, name)
        except Exception as error:
            error.add_note(f"at the fault {name} of {own}")
            raise


def suffer(sidecar: Node, peer: PeerNode, side: str, name: str) -> None:
    """Play one fault until it is judged, and where it holds once more until a stop."""
    since = time.time()
    peer.control(play=[CONNECT, name, None])
    played = first(peer, f"{CONNECT} -> fault", since)
    # Some of them bring a good status, so the agent may take them for an answer.
    judged = first(sidecar, f"{BAD[side]}|{GOOD}", played)
    assert judged - played < INTERVAL / 2 + LATE + SLOW + BUSY
    assert sidecar.restarts == 0
    assert sidecar.state["OOMKilled"] is False
    if name in HOLDING:
        first(peer, f"{CONNECT} -> fault", judged)
        began = time.time()
        sidecar.container.stop(timeout=GRACE)  # at the registry the deregistration meets it as well
        assert sidecar.state["ExitCode"] == 0
        assert moment(sidecar.state["FinishedAt"]) - began < 3.0 + SLOW + BUSY
    peer.control(sane="*")
    since = time.time()
    if name in HOLDING:
        sidecar.container.start()
    first(sidecar, "Heartbeat accepted", since, 30.0)
    assert unreadable(sidecar.log.splitlines()) == []


def test_every_exchange_ends_in_time_within_24_mb_and_hears_a_stop(
    images: Images, tls_image: str, forger_image: str, tmp_path: Path
) -> None:
    assert set(TLS_FAULTS) > HOLDING
    # The long ones come first, so that each lane has its share of them.
    names = sorted(TLS_FAULTS, key=lambda name: (name not in HOLDING, name))
    with Lab(images, tls_image, forger_image) as lab, ThreadPoolExecutor(2 * LANES) as pool:
        lanes = [(side, number) for side in BAD for number in range(LANES)]
        tls = certificate(tmp_path, "registry", "service", *(f"{side}{n}" for side, n in lanes))
        lab.registry(*TLS, ttl=60, **tls)
        lab.service(*TLS, **tls)
        work = [
            pool.submit(suffer_all, lab, tls, side, number, names[number::LANES])
            for side, number in lanes
        ]
        for each in work:
            each.result()
