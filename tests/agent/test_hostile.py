"""Peers at their worst, on every endpoint that the sidecar uses, and below HTTP.

Each fault is played until the agent has judged it, then the peer is sane again. All along the agent
lives, keeps its deadline, its memory and its log within bounds, and afterwards the service is
registered again. It stops in time in the middle of each, and `--check` ends as well.
"""

import contextlib
import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.certificates import certificate
from kit.peers.faults import (
    BODIES,
    CONTROLS,
    DRIP,
    FAULTS,
    GOOD,
    HEADLESS,
    NASTY,
    TLS_FAULTS,
    Fault,
    bomb,
    resolve,
)
from kit.peers.registry import Registry
from kit.peers.server import CONNECT, Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, odd_lines, unreadable, wait_until

MEMORY = 60_000  # kB, at any moment
LATE = 1.0  # second that an exchange, or a stop, may take beyond its deadline
STOP = 3.0  # seconds for the whole stop
SLACK = 3.0  # seconds that a loaded machine may add to a stop, or a start
LANES = 4  # agents side by side
INTERVAL = 1.0  # seconds, below HTTP; the deadline of an exchange is half of it
TOKEN = "tok-" + "0123456789abcdef" * 2

MORE: dict[str, Any] = {  # with other parameters than in the catalogue
    "drip_headers_fast": ["drip_headers", DRIP],
    "drip_body_fast": ["drip_body", DRIP],
    "drip_body_500": ["drip_body", DRIP, "500 Oops"],
    "huge_body_500": ["huge_body", 300, "500 Oops"],
    "gzip_bomb_chunked": ["gzip_bomb", 128, True],
    "interim_several": ["interim", 100, 102, 103, 103],
    "long_header_20k": ["status", 200, GOOD, {"X-Long": "x" * 20_000}],
    "long_headers": ["status", 200, {}, {f"X-{number}": "x" * 400 for number in range(90)}],
    "too_long_headers": ["status", 200, {}, {f"X-{number}": "x" * 40_000 for number in range(90)}],
    "control_characters_200": ["status", 200, CONTROLS],
    "control_characters_300": ["status", 300, CONTROLS],
    "control_text_200": ["status", 200, NASTY],
    "control_text_404": ["status", 404, NASTY],
    "redirect_control_307": ["redirect", "http://x/\x1b[2J\x9b\xad"],
    "retry_after_nonsense_429": ["status", 429, None, {"Retry-After": "-1e999, soon\x1b"}],
    "long_detail_500": ["status", 500, {"detail": "\u202e" * 10_000}],
    "nested_detail_422": ["status", 422, {"detail": [{"input": "\x1b" * 1000}]}],
}
ALL: dict[str, Fault] = FAULTS | {name: resolve(what) for name, what in MORE.items()}

# What arrives. A number at the end of a fault's name is its status, else it is 200, but for these.
NO_ANSWER = (
    "garbage", "reset", "close", "hang", "slow", "drip_headers", "drip_headers_fast",
    "many_headers", "too_long_headers", "endless", "raw", "http2", "http09",
    "tls_alert",
    *HEADLESS, *(f"{name}_drip" for name in HEADLESS),
)  # fmt: skip
STATUS = {
    **dict.fromkeys(NO_ANSWER, 0),
    "endless_after_304_drip": 304,
    **dict.fromkeys(("redirect", "control_reason"), 307),
    **dict.fromkeys(("status", "control_characters", "control_text", "echo_token"), 500),
}
# A good status, and a body that has not ended at the deadline.
UNFINISHED = ("drip_body", "drip_body_fast")
# A good status, and no telling where the body ends: a probe may be judged either way.
UNCLEAR = {*BODIES, *(f"{name}_drip" for name in BODIES)}
# Played before anything is asked.
EARLY = (
    "empty", "long_length", "html_502", "interim", "raw", "tls_alert", "reset", "two_answers",
    "garbage", "endless_body", "status_100", "interim_103", "endless_text",
)  # fmt: skip
# Below HTTP, a good status has come with these, so the agent may take them for an answer.
TLS_UNCLEAR = {
    "tls_tiny_handshake", "tls_cut_headers", "tls_cut_body", "tls_cut_open_body",
    "tls_cut_open_body_12", "tls_tickets", "tls_long_chain", "tls_pours_after_its_end",
    "tls_drip_body", "tls_huge_body",
    *(name for name in TLS_FAULTS if "records" in name or "sealed" in name or "_key_" in name),
}  # fmt: skip
# Below HTTP, these go on for as long as the agent lets them.
FEW = ("tls_hello_requests", "tls_tiny_records", "tls_key_updates_asked", "tls_drip_body")
HOLDING = (
    *FEW, "tls_drip", "tls_silence", "tls_stops_shaking", "tls_drip_handshake",
    "tls_hello_requests_later", "tls_tickets", "tls_tiny_records_12", "tls_huge_body",
    "tls_pours_after_its_end", "tls_empty_records", "tls_sealed_hello_requests_12",
    "tls_key_updates",
)  # fmt: skip


class Endpoint(NamedTuple):
    """Who is asked for what, how often, and how the agent's judgement shows in its log."""

    of_service: bool
    operation: str
    bad: str
    good: str
    interval: float  # seconds; the deadline is half of it
    lanes: int  # agents side by side
    recovery: float = 15.0  # seconds for the backoff under way and a heartbeat, on a busy machine
    secure: bool = False


PROBED, WELL = "Health probe", "Heartbeat accepted|Service has changed"
# Near the end of a record's life a heartbeat has hundredths of a second here, as few as none.
BEAT = r"Heartbeat failed(?!.*no answer within 0\.0)|Service not found"
FAILED, REGISTERED = "Registration failed", "Service registered successfully"
ENDPOINTS = {
    "health": Endpoint(True, "health", PROBED, WELL, 0.7, 5),
    "register": Endpoint(False, "register", FAILED, REGISTERED, 0.7, 12),
    "heartbeat": Endpoint(False, "heartbeat", BEAT, "Heartbeat accepted", 0.7, 5),
    "list": Endpoint(False, "list", "GET /services does not", "(?!)", 0.3, 16),
    "service": Endpoint(True, CONNECT, PROBED, WELL, 0.7, 3),
    "registry": Endpoint(False, CONNECT, f"{BEAT}|{FAILED}", "Heartbeat accepted", 0.7, 3),
    "secure service": Endpoint(
        True, CONNECT, "Health probe .* failed", WELL, INTERVAL, LANES, 30.0, True
    ),
    "secure registry": Endpoint(
        False, CONNECT, f"{BEAT}|{FAILED}", WELL, INTERVAL, LANES, 30.0, True
    ),
}
SLOW = ("register", "list", "secure registry")  # asked for so seldom that their faults take long
PARTS = 2  # tests for an endpoint that meets all, to share among the cores


def is_good(name: str, operation: str) -> bool:
    """Tell whether this fault is a success all the same, by what arrives.

    Any 2xx, whatever its body; and what is not there is deregistered.
    """
    if operation == "list" or (operation == "health" and name in UNFINISHED):
        return False  # none of them lists the service; and a probe has to end in time
    number = re.search(r"_(\d{3})$", name)
    code = STATUS.get(name, int(number[1]) if number else 200)
    return 200 <= code < 300 or (operation == "deregister" and code in (404, 410))


def judgement(name: str, endpoint: Endpoint) -> str:
    """Return a pattern for what the agent must say about this fault."""
    if endpoint.secure:
        either = name in TLS_UNCLEAR
    else:
        either = endpoint.operation == CONNECT or (
            endpoint.operation == "health" and name in UNCLEAR
        )
        if not either and is_good(name, endpoint.operation):
            return endpoint.good
    return f"{endpoint.good}|{endpoint.bad}" if either else endpoint.bad


class Played:
    """A fault that notes when it was played, and how far the log was then."""

    def __init__(self, name: str, sidecar: Sidecar) -> None:
        self.fault, self.sidecar = (ALL | TLS_FAULTS)[name], sidecar
        self.at: list[float] = []
        self.mark = 0

    def __call__(self, exchange: Exchange) -> None:
        self.mark = self.mark or len(self.sidecar.lines)
        self.at.append(time.monotonic())
        self.fault(exchange)

    def judgements(self, pattern: str) -> list[float]:
        """Return the times of the matching lines since the first play."""
        since = range(self.mark, len(self.sidecar.lines)) if self.at else ()
        return [
            self.sidecar.times[at] for at in since if re.search(pattern, self.sidecar.lines[at])
        ]


class Place:
    """A registry and a service, secure or not, and the settings for both."""

    def __init__(self, directory: Path, secure: bool = True, keep_alive: bool = False) -> None:
        tls, ca_file = certificate(directory, "127.0.0.1") if secure else (None, "")
        # An expired record of a short TTL would be a fault of its own.
        self.registry = Registry(tls=tls, keep_alive=keep_alive)
        self.service = ToyService(tls=tls)
        self.settings: dict[str, object] = {
            "HEARTBEAT_INTERVAL": INTERVAL,
            # So that the service is not given up, from which it takes longer to recover.
            "SERVICE_HEALTH_RETRIES": 100,
            "REGISTRY_TOKEN": TOKEN,
        }
        if secure:
            files = {"SERVICE_CA_FILE": ca_file, "REGISTRY_CA_FILE": ca_file}
            self.settings |= {"SERVICE_SCHEME": "https"} | files

    def sidecar(self, **settings: object) -> Sidecar:
        return Sidecar(self.registry, self.service, **(self.settings | settings))

    def peer(self, of_service: bool) -> Peer:
        return self.service if of_service else self.registry


def check_memory(sidecar: Sidecar) -> None:
    with contextlib.suppress(OSError, IndexError):  # only Linux tells, and of who lives
        assert sidecar.peak_memory() < MEMORY


def check_log(sidecar: Sidecar) -> None:
    assert not odd_lines(sidecar.lines)
    assert TOKEN[:10] not in sidecar.log


@contextlib.contextmanager
def telling(name: str) -> Iterator[None]:
    """Add the fault's name to whatever fails."""
    try:
        yield
    except Exception as error:
        error.add_note(f"at the fault {name}")
        raise


def suffer(sidecar: Sidecar, place: Place, endpoint: Endpoint, name: str) -> None:
    """Play one fault until it is judged, then wait for the recovery."""
    peer, registry = place.peer(endpoint.of_service), place.registry
    played = Played(name, sidecar)
    peer.play(endpoint.operation, played, times=FOREVER)
    if endpoint.operation == "register":
        registry.forget()
    judged = judgement(name, endpoint)
    wait_until(lambda: played.judgements(judged), 30, f"{judged!r} in:\n{sidecar.log}")
    first = played.judgements(f"{endpoint.good}|{endpoint.bad}")[0]
    assert first - played.at[0] < endpoint.interval / 2 + LATE
    assert len(played.judgements(endpoint.bad)) <= len(played.at)
    assert sidecar.heartbeat_file.read_text().rstrip("\n").isprintable()
    check_memory(sidecar)

    beats = sidecar.count("Heartbeat accepted")
    peer.sane()
    sidecar.wait_for("Heartbeat accepted", times=beats + 1, timeout=endpoint.recovery)
    wait_until(
        lambda: registry.record(NAME), endpoint.recovery, f"registered again in:\n{sidecar.log}"
    )


def suffer_each(directory: Path, endpoint: Endpoint, names: Iterable[str]) -> None:
    """Play these faults to one agent, one after another."""
    place = Place(directory, endpoint.secure, keep_alive=endpoint.operation != CONNECT)
    timeouts = dict.fromkeys(("REGISTRY_TIMEOUT", "SERVICE_HEALTH_TIMEOUT"), endpoint.interval / 2)
    sidecar = place.sidecar(HEARTBEAT_INTERVAL=endpoint.interval, **timeouts)
    with place.registry, place.service, sidecar:
        sidecar.wait_for("Heartbeat accepted")
        for name in names:
            with telling(name):
                suffer(sidecar, place, endpoint, name)
        assert sidecar.health()[0] == 0
        assert sidecar.stop()[0] == 0
        check_log(sidecar)
        if endpoint.secure:
            assert not unreadable(sidecar.lines)


def part_of(names: Iterable[str], part: int, parts: int = PARTS) -> list[str]:
    bomb(128)  # packed before an agent waits for it
    return sorted(names)[part::parts]


SHARES = [
    pytest.param(where, part, parts, marks=[pytest.mark.slow] * (where in SLOW))
    for where, endpoint in ENDPOINTS.items()
    for parts in [1 if endpoint.operation == CONNECT else PARTS]
    for part in range(parts)
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("where", "part", "parts"), SHARES)
def test_the_agent_bears_every_fault_and_recovers(
    tmp_path: Path, where: str, part: int, parts: int
) -> None:
    endpoint, lanes = ENDPOINTS[where], ENDPOINTS[where].lanes
    early = EARLY if endpoint.operation == CONNECT else ALL
    names = part_of(TLS_FAULTS if endpoint.secure else early, part, parts)
    with ThreadPoolExecutor(lanes) as pool:
        shares = [names[number::lanes] for number in range(lanes)]
        list(pool.map(suffer_each, directories(tmp_path), [endpoint] * lanes, shares))


def directories(parent: Path) -> Iterator[Path]:
    """Make one after another."""
    for number in itertools.count():
        (directory := parent / str(number)).mkdir()
        yield directory


# ---- a stop in the middle


def stop_during(name: str) -> None:
    """Stop an agent whose deregistration meets this fault."""
    settings: dict[str, Any] = {
        "SERVICE_HEALTH_CHECK": "none",
        "HEARTBEAT_INTERVAL": 30,
        "REGISTRY_TOKEN": TOKEN,
    }
    with telling(name), Registry() as registry, Sidecar(registry, **settings) as sidecar:
        sidecar.wait_registered(timeout=30)
        played = Played(name, sidecar)
        registry.play("deregister", played, times=FOREVER)
        began = time.monotonic()
        sidecar.process.terminate()
        while sidecar.process.poll() is None:
            check_memory(sidecar)
            assert time.monotonic() - began < STOP + LATE
            time.sleep(0.01)
        assert sidecar.wait() == 0
        assert played.at
        good = is_good(name, "deregister")
        outcome = "Service deregistered$" if good else "Deregistration failed: "
        assert sidecar.count(outcome) == 1
        assert sidecar.count("deregister|Deregistration") == 1
        check_log(sidecar)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_the_agent_stops_whatever_its_deregistration_meets(part: int) -> None:
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(stop_during, part_of(ALL, part)))


Case = tuple[str, bool]  # a fault below HTTP, and whether it is the service's


def in_lanes(work: Callable[[Place, str, bool], None], tmp_path: Path, cases: list[Case]) -> None:
    """Play each case to an agent of its own, some side by side."""

    def run(directory: Path, case: Case) -> None:
        with telling(case[0]):
            work(Place(directory), *case)

    with ThreadPoolExecutor(LANES) as pool:
        list(pool.map(run, itertools.islice(directories(tmp_path), len(cases)), cases))


def stop_in_the_middle(place: Place, name: str, of_service: bool) -> None:
    """At the registry, the deregistration meets the same once more."""
    with place.registry, place.service, place.sidecar(HEARTBEAT_INTERVAL=2) as sidecar:
        sidecar.wait_registered()
        played = Played(name, sidecar)
        place.peer(of_service).play(CONNECT, played, times=FOREVER)
        wait_until(lambda: played.at, 15, every=0.001)
        code, seconds = sidecar.stop()
        assert code == 0
        assert seconds < STOP + SLACK
        check_log(sidecar)
        assert not unreadable(sidecar.lines)
        if of_service:
            assert place.registry.record(NAME) is None


STOPS = list(itertools.product(HOLDING, (True, False)))
QUICK = [(name, bool(number % 2)) for number, name in enumerate(FEW)]
REST = [case for case in STOPS if case not in QUICK]


@pytest.mark.parametrize("cases", [QUICK, pytest.param(REST, marks=pytest.mark.slow)], ids=len)
def test_it_stops_in_the_middle(tmp_path: Path, cases: list[Case]) -> None:
    in_lanes(stop_in_the_middle, tmp_path, cases)


# ---- --check


def look(place: Place, name: str, _of_service: bool) -> None:
    """Look with both as bad; some of them bring a good status."""
    check = place.sidecar()
    check.script.append("--check")
    with place.registry, place.service:
        for peer in (place.registry, place.service):
            peer.play(CONNECT, name, times=FOREVER)
        began = time.monotonic()
        with check:
            assert check.wait(30) in (0, 1)
            # The probe, the list, the token.
            assert time.monotonic() - began < 3 * (INTERVAL / 2 + LATE) + SLACK
            assert not unreadable(check.lines)


@pytest.mark.parametrize("names", [FEW, pytest.param(HOLDING[len(FEW) :], marks=pytest.mark.slow)])
def test_a_check_of_both_ends(tmp_path: Path, names: tuple[str, ...]) -> None:
    in_lanes(look, tmp_path, [(name, True) for name in names])


def look_until_a_signal(place: Place, name: str, of_service: bool) -> None:
    check = place.sidecar(HEARTBEAT_INTERVAL=20)
    check.script.append("--check")
    played = Played(name, check)
    place.peer(of_service).play(CONNECT, played, times=FOREVER)
    with place.registry, place.service, check:
        wait_until(lambda: played.at, 15, every=0.001)
        code, seconds = check.stop()
        assert code in (1, 130)  # 1 where the budget has ended it first
        assert seconds < STOP + SLACK
        assert not unreadable(check.lines)


def test_a_check_ends_at_a_signal(tmp_path: Path) -> None:
    cases = [("tls_hello_requests", False), ("tls_drip_body", True)]
    in_lanes(look_until_a_signal, tmp_path, cases)
