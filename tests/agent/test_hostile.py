"""Peers at their worst, on every endpoint that the sidecar uses.

Each fault is played until the agent has judged it, then the peer is sane again. All along the agent
lives, keeps its deadline, its memory and its log within bounds, and afterwards the service is
registered again.
"""

import contextlib
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest

from kit.peers.faults import BODIES, DRIP, FAULTS, HEADLESS, Fault, bomb, resolve
from kit.peers.registry import Registry
from kit.peers.server import CONNECT, Exchange
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, odd_lines, wait_until

MEMORY = 60_000  # kB, at any moment
LATE = 1.0  # second that an exchange, or a stop, may take beyond its deadline
SLACK = 10.0  # seconds that a loaded machine may add to a recovery
RECOVERY = (
    5.0  # seconds for the backoff under way, of the first attempt or the second, and a heartbeat
)
STOP = 3.0  # seconds for the whole stop
TOKEN = "tok-" + "0123456789abcdef" * 2

MORE: dict[str, Any] = {  # with other parameters than in the catalogue
    "drip_headers_fast": ["drip_headers", DRIP],
    "drip_body_fast": ["drip_body", DRIP],
    "drip_body_500": ["drip_body", DRIP, "500 Oops"],
    "huge_body_500": ["huge_body", 300, "500 Oops"],
    "gzip_bomb_chunked": ["gzip_bomb", 128, True],
    "interim_several": ["interim", 100, 102, 103, 103],
    "long_header_20k": ["long_header", 20_000],
    "long_headers": ["status", 200, {}, {f"X-{number}": "x" * 400 for number in range(90)}],
    "too_long_headers": ["status", 200, {}, {f"X-{number}": "x" * 40_000 for number in range(90)}],
    "control_characters_200": ["control_characters", 200],
    "control_characters_300": ["control_characters", 300],
    "control_text_200": ["control_text", 200],
    "control_text_404": ["control_text", 404],
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


class Endpoint(NamedTuple):
    """Who is asked for what, how often, and how the agent's judgement shows in its log."""

    of_service: bool
    operation: str
    bad: str
    good: str
    interval: float  # seconds; the deadline is half of it
    lanes: int  # agents side by side


PROBED, WELL = "Health probe", "Heartbeat accepted|Service has changed"
BEAT = "Heartbeat failed|Heartbeat refused|Service not found"
FAILED, REGISTERED = "Registration failed", "Service registered successfully"
ENDPOINTS = {
    "health": Endpoint(True, "health", PROBED, WELL, 0.7, 5),
    "register": Endpoint(False, "register", FAILED, REGISTERED, 0.7, 12),
    "heartbeat": Endpoint(False, "heartbeat", BEAT, "Heartbeat accepted", 0.7, 5),
    "list": Endpoint(False, "list", "GET /services does not", "(?!)", 0.3, 16),
    "service": Endpoint(True, CONNECT, PROBED, WELL, 0.7, 3),
    "registry": Endpoint(False, CONNECT, f"{BEAT}|{FAILED}", "Heartbeat accepted", 0.7, 3),
}
SLOW = ("register", "list")  # asked for so seldom that their faults take long
PARTS = 2  # tests for each endpoint, to share among the cores


def is_good(name: str, operation: str) -> bool:
    """Tell whether this fault is a success all the same, by what arrives.

    Any 2xx, whatever its body.
    """
    if operation == "list" or (operation == "health" and name in UNFINISHED):
        return False  # none of them lists the service; and a probe has to end in time
    number = re.search(r"_(\d{3})$", name)
    return 200 <= STATUS.get(name, int(number[1]) if number else 200) < 300


def judgement(name: str, endpoint: Endpoint) -> str:
    """Return a pattern for what the agent must say about this fault."""
    if endpoint.operation == CONNECT or (endpoint.operation == "health" and name in UNCLEAR):
        return f"{endpoint.good}|{endpoint.bad}"
    return endpoint.good if is_good(name, endpoint.operation) else endpoint.bad


class Played:
    """A fault that notes when it was played, and how far the log was then."""

    def __init__(self, name: str, sidecar: Sidecar) -> None:
        self.fault, self.sidecar = ALL[name], sidecar
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


def check_memory(sidecar: Sidecar) -> None:
    with contextlib.suppress(
        OSError, IndexError
    ):  # only Linux tells, and not of a process that has just ended
        assert sidecar.peak_memory() < MEMORY


def suffer(
    sidecar: Sidecar, registry: Registry, service: ToyService, endpoint: Endpoint, name: str
) -> None:
    """Play one fault until it is judged, then wait for the recovery."""
    peer = service if endpoint.of_service else registry
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
    sidecar.wait_for("Heartbeat accepted", times=beats + 1, timeout=RECOVERY + SLACK)
    wait_until(
        lambda: registry.record(NAME), RECOVERY + SLACK, f"registered again in:\n{sidecar.log}"
    )


def suffer_each(endpoint: Endpoint, names: Sequence[str]) -> None:
    """Play these faults to one agent, one after another."""
    settings = {
        "HEARTBEAT_INTERVAL": endpoint.interval,
        "REGISTRY_TIMEOUT": endpoint.interval / 2,
        "SERVICE_HEALTH_TIMEOUT": endpoint.interval / 2,
        # So that the service is not given up, from which it takes longer to recover.
        "SERVICE_HEALTH_RETRIES": 100,
        "REGISTRY_TOKEN": TOKEN,
    }
    keep = endpoint.operation != CONNECT
    with (
        Registry(keep_alive=keep) as registry,
        ToyService() as service,
        Sidecar(registry, service, **settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        for name in names:
            with telling(name):
                suffer(sidecar, registry, service, endpoint, name)
        assert sidecar.health()[0] == 0
        assert sidecar.stop()[0] == 0
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


def part_of(names: Iterable[str], part: int) -> list[str]:
    bomb(128)  # packed before an agent waits for it
    return sorted(names)[part::PARTS]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize(
    "where",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ENDPOINTS],
)
def test_the_agent_bears_every_fault_and_recovers(where: str, part: int) -> None:
    endpoint = ENDPOINTS[where]
    names, lanes = part_of(EARLY if endpoint.operation == CONNECT else ALL, part), endpoint.lanes
    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(suffer_each, [endpoint] * lanes, (names[n::lanes] for n in range(lanes))))


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
        outcome = (
            "Service deregistered$" if is_good(name, "deregister") else "Deregistration failed: "
        )
        assert sidecar.count(outcome) == 1
        assert sidecar.count("deregister|Deregistration") == 1
        assert not odd_lines(sidecar.lines)
        assert TOKEN[:10] not in sidecar.log


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_the_agent_stops_whatever_its_deregistration_meets(part: int) -> None:
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(stop_during, part_of(ALL, part)))
