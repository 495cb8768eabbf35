"""The soak is sound.

Its schedule, its checks on times made up, whole runs with and without a bug.
"""

import itertools
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.sidecar import TESTS, break_agent, environment
from soak.catalogue import RETRY_SOON, anything, below
from soak.invariants import (
    GROWTH,
    MANY_DESCRIPTORS,
    MOST_MEMORY,
    Sample,
    Times,
    Watch,
    growth,
    resources,
)
from soak.schedule import AGENT_KINDS, KINDS, REGISTRY_KINDS, Episode, rounds
from soak.world import World

SOAK = [sys.executable, "-m", "soak"]
TIMES = Times(ttl=4, interval=2, health_timeout=0.5, registry_timeout=1, slack=0.5)

# ---- the schedule


def episodes(seed: int, number: int, agents: int = 4, **options: Any) -> list[Episode]:
    first = itertools.islice(rounds(seed, agents, 2.0, **options), number)
    return [
        episode
        for this in first
        for track in ((this.outage,), *this.tracks)
        for episode in track
        if episode
    ]


def test_every_kind_and_every_fault_is_played_before_long() -> None:
    played = episodes(1, 200, agents=8)
    assert {episode.kind for episode in played} == set(KINDS)
    assert {episode.fault for episode in played} >= {*anything(), *below(), *RETRY_SOON}


def test_there_is_a_play_for_each_kind_and_for_nothing_else() -> None:
    with World(1, TIMES, seed=1) as world:
        assert world.plays.on_agent.keys() == AGENT_KINDS.keys()
        assert world.plays.on_registry.keys() == REGISTRY_KINDS.keys()


# ---- the checks, on times made up


class Story:
    """A watch, and a record that is refreshed whenever the story says so."""

    def __init__(self) -> None:
        self.watch = Watch(TIMES, version="1")
        self.record: dict[str, object] | None = None
        self.refreshes = 0
        self.watch.disturb("start")
        self.watch.restore("start", 0.0)
        assert not self.refresh(0.5)

    def refresh(self, now: float, version: str = "1") -> str:
        self.refreshes += 1
        self.record = {"last_heartbeat": str(self.refreshes), "metadata": {"version": version}}
        return self.watch.see(now, self.record)

    def lose(self, now: float) -> str:
        self.record = None
        return self.watch.see(now, None)


def test_a_single_fault_must_not_cost_the_record() -> None:
    story = Story()
    story.watch.disturb("one heartbeat fails", keeps=True)
    assert "the record is gone" in story.lose(4.5)


@pytest.mark.parametrize(("until", "wrong"), [(15.0, False), (15.9, False), (16.1, True)])
def test_back_within_an_interval_and_two_deadlines(until: float, wrong: bool) -> None:
    story = Story()
    story.watch.disturb("record lost")
    story.lose(11.9)
    story.watch.restore("record lost", 12.0)
    assert bool(story.lose(until)) == wrong  # 12 + 2 + 0.5 + 1 + 0.5
    assert not story.lose(until + 1 if wrong else until)


def test_a_dead_service_gets_no_request_and_its_record_expires() -> None:
    story = Story()
    story.watch.disturb("service stopped")
    story.watch.dead_since = 10.0
    assert TIMES.death == 5.0  # three probes of 0.5 s, two waits of 1 s, a request of 1 s, slack
    for operation in ("heartbeat", "register"):
        assert not story.watch.request(14.9, operation)
        assert (
            story.watch.request(15.1, operation)
            == f"a {operation} 5.1 s after the service died (5.0 s promised)"
        )
    assert not story.watch.request(15.1, "deregister")
    assert not story.refresh(18.9)
    assert story.refresh(19.1) == "the record of a dead service does not expire"
    story.watch.dead_since = math.inf
    assert not story.watch.request(30.0, "heartbeat")


def test_memory_and_descriptors_that_grow_are_told_and_flat_ones_not() -> None:
    flat = [Sample(28_000 + n % 7, 5 + n % 2) for n in range(90)]
    assert resources(flat) == []
    assert (
        resources([Sample(10_000 + 300 * n, 5) for n in range(30)] + flat) == []
    )  # until it is warm
    assert growth(flat[:20]) is None
    assert resources([Sample(28_000 + n * GROWTH // 20, 5) for n in range(90)])[0].startswith(
        "memory grows"
    )
    assert resources([Sample(28_000, 5 + n // 30) for n in range(90)]) == []
    assert resources([Sample(28_000, 5 + n // 15) for n in range(90)])[0].startswith(
        "descriptors leak"
    )
    assert resources([Sample(MOST_MEMORY + 1, MANY_DESCRIPTORS + 1)]) == [
        "60001 kB of memory",
        "13 descriptors open",
    ]


# ---- whole runs


def soak(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the soak to its end."""
    return subprocess.run(
        [*SOAK, *map(str, arguments)],
        env=environment({"PYTHONPATH": TESTS}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


def test_the_command_line_lists_a_schedule_and_refuses_nonsense() -> None:
    first, second = (soak("--list", 3, "--seed", 11, "--agents", 2) for _ in range(2))
    assert first.returncode == 0
    assert first.stdout == second.stdout
    assert re.search("^2, (documented|deployed): ", first.stdout, re.MULTILINE)
    assert soak("--agents", 0).returncode == 2
    assert soak("--only", "nonsense").returncode == 2


@pytest.mark.slow
def test_a_short_soak_is_clean() -> None:
    done = soak("--seconds", 35, "--seed", 5, "--agents", 3, "--slack", 4)
    assert done.returncode == 0, done.stdout
    assert "seed 5: no violations" in done.stdout
    assert re.search(r"\| [1-9] \| [\d.]+ s \|", done.stdout)


class Bug(NamedTuple):
    """Code that breaks agent.py; the kind of fault that shows it; what is found, by when."""

    code: str
    kind: str
    finding: str
    seconds: int = 60


# Of bugs in the loop, tests/unit has its exploration; these need processes and sockets.
BUGS = {
    "leaves a descriptor open with each probe": Bug(
        "whole = Agent.probe\nAgent.probe = lambda self: (os.dup(1), whole(self))[1]",
        "record lost",
        "descriptors open",
        seconds=20,  # it is told at the end
    ),
    "reads its authorities once": Bug(
        "whole = NamedFile.now\nNamedFile.now = lambda self: self.value or whole(self)",
        "authority and certificates renewed",
        "the record is gone",
    ),
    "has a clock that stands still while the host sleeps": Bug(
        "healthcheck.CLOCK = time.CLOCK_MONOTONIC",
        "agent's host suspended",
        "a heartbeat, not a registration",
    ),
    "counts the slices of a pause": Bug(
        """
def count(self, end):
    left = end - self.clock()
    while left > 0:
        self.wait(self.sleep, self.clock() + min(left, SLICE))
        left -= SLICE
Signals.pause_until = count
""",
        "agent frozen beyond the TTL",
        "not registered",
    ),
    "waits for who reads its log": Bug(
        "whole = Log.flush\nLog.flush = lambda self: (self.poller.poll(30_000), whole(self))[1]",
        "log not read",
        "the record is gone",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_deliberate_bug_is_found(name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    done = soak(
        "--seconds", bug.seconds, "--seed", 7, "--agents", 3, "--only", bug.kind,
        "--stop-at-first", "--agent", break_agent(tmp_path, bug.code),
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    found = rf"VIOLATION \(seed 7\) at [\d.]+ s, soak_\d: .*{bug.finding}"
    assert re.search(found, done.stdout), done.stdout
    assert re.search(r"^  \| .* INFO Service registered successfully", done.stdout, re.MULTILINE)
