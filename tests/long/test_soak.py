"""The soak is sound: its checks on times made up, whole runs with and without a bug."""

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.sidecar import TESTS, break_agent, environment
from soak.watch import GROWTH, MANY_DESCRIPTORS, MOST_MEMORY, Sample, Times, Watch, resources

TIMES = Times(interval=2, slack=0.5)


class Story:
    """A watch, what it complains of, and a record that is refreshed whenever the story says so."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.watch = Watch(TIMES, self.told.append)
        self.refreshes = 0
        self.watch.disturb("start")
        self.watch.restore("start", 0.0)
        self.refresh(0.5)

    def refresh(self, now: float) -> None:
        self.refreshes += 1
        self.watch.see(now, {"last_heartbeat": self.refreshes, "metadata": {"version": "1"}})


def test_a_single_fault_must_not_cost_the_record() -> None:
    story = Story()
    story.watch.disturb("one heartbeat fails", keeps=True)
    story.watch.see(4.5, None)
    assert story.told == ["the record is gone, 4.00 s after it was last refreshed"]


def test_back_within_an_interval_and_two_deadlines_or_told_once() -> None:
    story = Story()
    story.watch.disturb("record lost")
    story.watch.restore("record lost", 12.0)
    story.watch.see(15.8, None)  # 12 + 2 + 0.6 + 0.8 + 0.5
    assert not story.told
    story.watch.see(16.0, None)
    story.watch.see(17.0, None)
    assert [told[:28] for told in story.told] == ["not registered with version "]


def test_a_dead_service_gets_no_request() -> None:
    story = Story()
    story.watch.disturb("service stopped")
    story.watch.dead_since = 10.0
    # Three probes of 0.6 s, two waits of 1 s, a request of 0.8 s, slack.
    assert TIMES.death == pytest.approx(5.1)
    for at, operation in ((15.0, "heartbeat"), (15.0, "register"), (15.2, "deregister")):
        story.watch.asked(at, operation)
    assert not story.told
    story.watch.asked(15.2, "heartbeat")
    story.watch.asked(15.2, "register")
    assert story.told == [
        "a heartbeat 5.2 s after the service died (5.1 s promised)",
        "a register 5.2 s after the service died (5.1 s promised)",
    ]


def test_memory_and_descriptors_that_grow_are_told_and_flat_ones_not() -> None:
    flat = [Sample(28_000 + n % 7, 5 + n % 2) for n in range(90)]
    warming = [Sample(10_000 + 300 * n, 5) for n in range(30)]
    slow = [Sample(28_000, 5 + n // 30) for n in range(90)]
    assert [resources(samples) for samples in (flat, warming + flat, slow)] == [[], [], []]
    growing = [Sample(28_000 + n * GROWTH // 20, 5 + n // 15) for n in range(90)]
    assert [wrong[:10] for wrong in resources(growing)] == ["memory gro", "descriptor"]
    most = resources([Sample(MOST_MEMORY + 1, MANY_DESCRIPTORS + 1)])
    assert most == ["60001 kB of memory", "13 descriptors open"]


def soak(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the soak to its end."""
    return subprocess.run(
        [sys.executable, "-m", "soak", *map(str, arguments)],
        env=environment({"PYTHONPATH": TESTS}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


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


# Of bugs in the loop, tests/unit has its exploration; these need sockets and processes.
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
    "is deaf to SIGTERM": Bug(
        "Signals.note = lambda *given: None",
        "agent stopped and started",
        "SIGTERM does not end the agent",
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
    found = rf"VIOLATION \(seed 7\) at [\d.]+ s, soak_\d: .*({bug.finding})"
    assert re.search(found, done.stdout), done.stdout
    assert re.search(r"^  \| .* INFO Service registered successfully", done.stdout, re.MULTILINE)
