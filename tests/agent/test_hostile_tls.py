"""A registry and a service at their worst below HTTP: floods, tiny records, drips, cuts, alerts.

Whatever comes: the exchange ends by its budget or its deadline, the agent recovers, stops at once
in the middle of it, says what happened in plain words; and `--check` ends as well.
"""

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.peers.faults import TLS_FAULTS
from kit.peers.registry import Registry
from kit.peers.server import CONNECT, Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, odd_lines, unreadable, wait_until

INTERVAL = 1.0  # seconds; the deadline of an exchange is half of it
LATE = 1.0  # second that an exchange may take beyond its deadline
STOP = 3.0  # seconds for a stop
SLACK = 3.0  # seconds that a loaded machine may add to a stop, or a start
RECOVERY = 30.0  # seconds, on a loaded machine
MEMORY = 60_000  # kB, at any moment
LANES = 4  # agents side by side
# What goes on for as long as the agent lets it.
HOLDING = [
    "tls_hello_requests",
    "tls_drip",
    "tls_silence",
    "tls_stops_shaking",
    "tls_drip_handshake",
    "tls_hello_requests_later",
    "tls_tickets",
    "tls_tiny_records",
    "tls_tiny_records_12",
    "tls_drip_body",
    "tls_huge_body",
    "tls_pours_after_its_end",
    "tls_empty_records",
    "tls_sealed_hello_requests_12",
    "tls_key_updates",
    "tls_key_updates_asked",
]
# A good status has come, so the agent may take it for an answer.
UNCLEAR = {
    "tls_tiny_handshake",
    "tls_cut_headers",
    "tls_cut_body",
    "tls_cut_open_body",
    "tls_cut_open_body_12",
    "tls_tickets",
    "tls_long_chain",
    "tls_pours_after_its_end",
    "tls_drip_body",
    *(name for name in TLS_FAULTS if "records" in name or "sealed" in name or "_key_" in name),
    "tls_huge_body",
}
GOOD = "Heartbeat accepted|Service has changed"
BAD = {
    "registry": "Heartbeat failed|Registration failed|Service not found",
    "service": "Health probe .* failed",
}
SIDES = pytest.mark.parametrize("side", ["registry", "service"])
FEW = ("tls_hello_requests", "tls_tiny_records", "tls_key_updates_asked", "tls_drip_body")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in HOLDING]
)


class Place:
    """An https registry and an https service, and the settings for both."""

    def __init__(self, directory: Path) -> None:
        tls, ca_file = certificate(directory, "127.0.0.1")
        # An expired record of a short TTL would be a fault of its own.
        self.registry = Registry(tls=tls, keep_alive=False)
        self.service = ToyService(tls=tls)
        self.settings: dict[str, object] = {
            "SERVICE_SCHEME": "https",
            "SERVICE_CA_FILE": ca_file,
            "REGISTRY_CA_FILE": ca_file,
            "SERVICE_HEALTH_RETRIES": 100,  # so that the service is not given up
            "HEARTBEAT_INTERVAL": INTERVAL,
        }

    @contextlib.contextmanager
    def open(self, **settings: object) -> Iterator[Sidecar]:
        """Give an agent that is registered there."""
        with (
            self.registry,
            self.service,
            Sidecar(self.registry, self.service, **(self.settings | settings)) as sidecar,
        ):
            sidecar.wait_registered(timeout=RECOVERY)
            yield sidecar

    def peer(self, side: str) -> Peer:
        return self.registry if side == "registry" else self.service


class Played:
    """A fault that notes when it was first played."""

    def __init__(self, name: str) -> None:
        self.fault, self.at = TLS_FAULTS[name], 0.0

    def __call__(self, exchange: Exchange) -> None:
        self.at = self.at or time.monotonic()
        self.fault(exchange)


def in_lanes(work: Callable[[Path, str, list[str]], None], tmp_path: Path, side: str) -> None:
    """Share the faults among some agents: work(directory, side, names)."""
    lanes = [tmp_path / str(lane) for lane in range(LANES)]
    for lane in lanes:
        lane.mkdir()
    names = sorted(TLS_FAULTS)
    with ThreadPoolExecutor(LANES) as pool:
        shares = [names[number::LANES] for number in range(LANES)]
        list(pool.map(work, lanes, itertools.repeat(side), shares))


def check_words(lines: list[str]) -> None:
    assert odd_lines(lines) == []
    assert unreadable(lines) == []


# ---- an exchange


def judgements(sidecar: Sidecar, pattern: str, since: float) -> list[float]:
    """Return the times of the matching lines since then."""
    lines = zip(sidecar.times, sidecar.lines, strict=False)  # another thread adds to them
    return [at for at, line in lines if at > since and re.search(pattern, line)]


def suffer(sidecar: Sidecar, peer: Peer, side: str, name: str) -> None:
    """Play one fault until the agent has judged it, then wait until it has recovered."""
    pattern = BAD[side] + (f"|{GOOD}" if name in UNCLEAR else "")
    played = Played(name)
    peer.play(CONNECT, played, times=FOREVER)
    wait_until(lambda: played.at, RECOVERY)
    judged = wait_until(lambda: judgements(sidecar, pattern, played.at), RECOVERY, pattern)
    assert judged[0] - played.at < INTERVAL / 2 + LATE
    peer.sane()
    beats = sidecar.count("Heartbeat accepted")
    sidecar.wait_for("Heartbeat accepted", beats + 1, RECOVERY)


def suffer_each(directory: Path, side: str, names: list[str]) -> None:
    place = Place(directory)
    with place.open() as sidecar:
        for name in names:
            try:
                suffer(sidecar, place.peer(side), side, name)
            except Exception as error:
                error.add_note(f"at the fault {name}")
                raise
        assert sidecar.peak_memory() < MEMORY
        assert sidecar.stop()[0] == 0
        check_words(sidecar.lines)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("side", ["service", pytest.param("registry", marks=pytest.mark.slow)])
def test_every_exchange_ends_in_time_and_the_agent_recovers(tmp_path: Path, side: str) -> None:
    in_lanes(suffer_each, tmp_path, side)


# ---- a stop in the middle


@SIDES
@EACH
def test_it_stops_in_the_middle(tmp_path: Path, side: str, name: str) -> None:
    """At the registry, the deregistration meets the same once more."""
    place = Place(tmp_path)
    with place.open(HEARTBEAT_INTERVAL=2) as sidecar:
        played = Played(name)
        place.peer(side).play(CONNECT, played, times=FOREVER)
        wait_until(lambda: played.at, 15, every=0.001)
        code, seconds = sidecar.stop()
        assert code == 0
        assert seconds < STOP + SLACK
        check_words(sidecar.lines)
        if side == "service":
            assert place.registry.record(NAME) is None


# ---- --check


def look(place: Place, **settings: object) -> Sidecar:
    """Return a `--check` that has not been started yet."""
    sidecar = Sidecar(place.registry, place.service, **(place.settings | settings))
    sidecar.script.append("--check")
    return sidecar


@EACH
def test_a_check_of_both_ends(tmp_path: Path, name: str) -> None:
    place = Place(tmp_path)
    with place.registry, place.service:
        for peer in (place.registry, place.service):
            peer.play(CONNECT, name, times=FOREVER)
        began = time.monotonic()
        with look(place) as check:
            assert check.wait(30) in (0, 1)  # some of them bring a good status
            # The probe, the list, the token.
            assert time.monotonic() - began < 3 * (INTERVAL / 2 + LATE) + SLACK
            assert unreadable(check.lines) == []


@SIDES
@pytest.mark.parametrize("name", ["tls_hello_requests", "tls_drip_body"])
def test_a_check_ends_at_a_signal(tmp_path: Path, side: str, name: str) -> None:
    place = Place(tmp_path)
    played = Played(name)
    place.peer(side).play(CONNECT, played, times=FOREVER)
    with place.registry, place.service, look(place, HEARTBEAT_INTERVAL=20) as check:
        wait_until(lambda: played.at, 15)
        code, seconds = check.stop()
        assert code in (1, 130)  # 1 where the budget has ended it first
        assert seconds < STOP + SLACK
        assert unreadable(check.lines) == []
