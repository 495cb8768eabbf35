"""Is the soak sound? Its schedule, each of its checks on times made up, and whole runs: clean ones, and with a bug."""

from __future__ import annotations

import itertools
import math
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.peers.faults import FAULTS
from kit.sidecar import AGENT, HEALTHCHECK, TESTS, environment, wait_until
from soak.catalogue import (
    RETRY_LATER,
    RETRY_SOON,
    anything,
    failing,
    hollow,
    looks,
    unhealthy,
    useless,
)
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
from soak.schedule import AGENT_KINDS, ALONE, KINDS, REGISTRY_KINDS, RESTARTS, Episode, rounds
from soak.world import World

SOAK = [sys.executable, "-m", "soak"]
TIMES = Times(ttl=4, interval=2, health_timeout=0.5, registry_timeout=1, slack=0.5)

# ---- the schedule


def episodes(seed: int, number: int, agents: int = 4, **options: Any) -> list[Episode]:
    first = itertools.islice(rounds(seed, agents, 2.0, **options), number)
    return [episode for this in first for track in ((this.outage,), *this.tracks) for episode in track if episode]


def test_every_kind_and_every_fault_is_played_before_long() -> None:
    played = episodes(1, 200, agents=8)
    assert {episode.kind for episode in played} == set(KINDS)
    assert {episode.fault for episode in played} >= {*anything(), *RETRY_LATER, *RETRY_SOON}


def test_what_goes_on_at_the_same_time_leaves_it_clear_who_owes_what() -> None:
    for this in itertools.islice(rounds(3, 6, 2.0), 100):
        assert not any(episode.kind in RESTARTS for track in this.tracks[::2] for episode in track)
        if this.outage:
            assert this.outage.kind in REGISTRY_KINDS
            assert all(len(track) <= 1 for track in this.tracks)
            assert this.outage.kind not in ALONE or not any(this.tracks)


def test_there_is_a_play_for_each_kind_and_for_nothing_else() -> None:
    with World(1, TIMES) as world:
        assert world.plays.on_agent.keys() == AGENT_KINDS.keys()
        assert world.plays.on_registry.keys() == REGISTRY_KINDS.keys()


def test_faults_are_told_apart_by_how_they_look() -> None:
    seen = looks()
    assert seen.keys() >= FAULTS.keys()
    refusals = {"reset", "hang", "slow", "drip_headers", "endless_header_line", "status_103"}
    assert refusals <= {*failing()} & {*unhealthy()}
    assert {"cut_headers", "drip_body", "many_headers", "huge_body", "empty"} <= {*hollow()}
    assert "web page" in failing()
    assert "web page" not in unhealthy()
    assert {"status_500", "web page", "list in an object", "cut list"} <= {*useless()}
    assert not {"json_list", "slow 0.1"} & {*useless()}


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


def test_any_other_fault_may_cost_it() -> None:
    story = Story()
    story.watch.disturb("registry stopped")
    assert not story.lose(4.5)
    assert story.watch.waiting


@pytest.mark.parametrize(("until", "wrong"), [(15.0, False), (15.9, False), (16.1, True)])
def test_back_within_an_interval_and_two_deadlines(until: float, wrong: bool) -> None:
    story = Story()
    story.watch.disturb("record lost")
    story.lose(11.9)
    story.watch.restore("record lost", 12.0)
    assert bool(story.lose(until)) == wrong  # 12 + 2 + 0.5 + 1 + 0.5
    assert not story.lose(until + 1 if wrong else until)


def test_an_announced_wait_is_waited_for_but_not_one_from_after_the_fault() -> None:
    story = Story()
    story.watch.disturb("registry stopped")
    story.watch.said("x WARNING Registration failed (attempt 4): refused; next in 9.0 s", 10.0)
    story.watch.restore("registry stopped", 12.0)
    assert story.watch.due() == pytest.approx(19.0 + 2.0)
    story.watch.said("x WARNING Registration failed (attempt 5): 500; next in 20.0 s", 19.0)
    assert story.watch.due() == pytest.approx(19.0 + 2.0)
    story.watch.said("x WARNING Registration failed (attempt 5): 500; next in 9.0 s", 12.8)  # was under way
    assert story.watch.due() == pytest.approx(21.8 + 2.0)
    story.watch.restarted()
    assert story.watch.due() == pytest.approx(14.0 + 2.0)


def test_the_moment_of_return_is_measured_and_the_old_record_does_not_count() -> None:
    story = Story()
    story.watch.disturb("service restarted with a new version")
    story.watch.version = "2"
    story.watch.restore("service restarted with a new version", 2.0)
    assert not story.watch.see(2.1, story.record)  # what was registered before
    assert not story.refresh(2.5)  # alive, but with the old version
    assert story.watch.waiting
    assert not story.refresh(3.5, version="2")
    back = story.watch.backs[-1]
    assert (back.took, back.promised, back.causes) == (1.5, 4.0, ("service restarted with a new version",))
    assert "the record is gone" in story.lose(7.5)


def test_a_dead_service_gets_no_request_and_its_record_expires() -> None:
    story = Story()
    story.watch.disturb("service stopped")
    story.watch.dead_since = 10.0
    assert TIMES.death == 5.0  # three probes of 0.5 s, two waits of 1 s, a request of 1 s, slack
    for operation in ("heartbeat", "register"):
        assert not story.watch.request(14.9, operation)
        assert story.watch.request(15.1, operation) == f"a {operation} 5.1 s after the service died (5.0 s promised)"
    assert not story.watch.request(15.1, "deregister")
    assert not story.refresh(18.9)
    assert story.refresh(19.1) == "the record of a dead service does not expire"
    story.watch.dead_since = math.inf
    assert not story.watch.request(30.0, "heartbeat")


@pytest.mark.parametrize(("what", "wait", "wrong"), [
    ("Registration", "0.9", True), ("Registration", "1.0", False), ("Heartbeat", "0.1", False),
    ("Heartbeat", "4.0", False), ("Heartbeat", "4.1", True), ("Registration", "360.0", False),
])  # fmt: skip
def test_announced_waits_keep_their_bounds(what: str, wait: str, wrong: bool) -> None:
    assert bool(Watch(TIMES).said(f"x WARNING {what} failed (attempt 1): 500; next in {wait} s", 1.0)) == wrong


def test_a_registration_waits_as_long_as_it_was_asked_to() -> None:
    watch = Watch(TIMES)
    watch.asked_to_wait(10.0, 4.0)
    assert watch.request(13.5, "register") == "a registration 0.5 s before Retry-After allows it"
    assert not watch.request(13.5, "heartbeat")
    assert not watch.request(14.0, "register")


def test_lines_that_nobody_could_read_must_be_told_of() -> None:
    silent, few, enough = Story(), Story(), Story()
    for story in (silent, few, enough):
        story.watch.expect_loss(3, 1.0)
    assert not silent.refresh(4.9)
    assert silent.refresh(5.1) == "the log does not tell of the lines that were dropped"
    assert few.watch.said("x WARNING 2 lines of the log were dropped", 1.1)
    assert not enough.watch.said("x WARNING 3 lines of the log were dropped", 1.1)
    assert not enough.refresh(5.1)


def test_memory_and_descriptors_that_grow_are_told_and_flat_ones_not() -> None:
    flat = [Sample(28_000 + n % 7, 5 + n % 2) for n in range(90)]
    assert resources(flat) == []
    assert resources([Sample(10_000 + 300 * n, 5) for n in range(30)] + flat) == []  # until it is warm
    assert growth(flat[:20]) is None
    assert resources([Sample(28_000 + n * GROWTH // 20, 5) for n in range(90)])[0].startswith("memory grows")
    assert resources([Sample(28_000, 5 + n // 30) for n in range(90)]) == []
    assert resources([Sample(28_000, 5 + n // 15) for n in range(90)])[0].startswith("descriptors leak")
    assert resources([Sample(MOST_MEMORY + 1, MANY_DESCRIPTORS + 1)]) == ["60001 kB of memory", "13 descriptors open"]


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


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    environ = environment({"PYTHONPATH": TESTS, "TMPDIR": tmp_path})
    with subprocess.Popen(
        [*SOAK, "--seed", "6", "--agents", "2"],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        wait_until(lambda: len(list(tmp_path.glob("sidecar-*/heartbeat"))) == 2, 30)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped by hand" in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


class Bug(NamedTuple):
    """What changes in agent.py; the kind of fault that shows it; what is found; how it is sought."""

    old: str
    new: str
    kind: str
    finding: str
    seed: int = 9
    seconds: int = 120


# ---- Here stands text of agent.py: whoever changes that changes this. --------------------------
BUGS = {
    "never retries inside the slot": Bug(
        "                due = self.clock() + self.record.retry_wait(attempt, reply)\n",
        "                due = self.clock() + self.settings.heartbeat_interval\n",
        "one heartbeat fails",
        "the record is gone",
    ),
    "goes on heartbeating for a dead service": Bug(
        "            if not attempt and not self.is_healthy():\n                return self.service_down\n",
        "            self.is_healthy()\n",
        "service stopped",
        "a heartbeat .* s after the service died",
    ),
    "leaves a descriptor open with each probe": Bug(
        "        self.life.promise(self.settings.service_health_timeout)\n",
        "        self.life.promise(self.settings.service_health_timeout)\n        os.dup(1)\n",
        "record lost",
        "descriptors open",
        seconds=20,  # it is looked for in the end only
    ),
    "does not look for the record in the list": Bug(
        "        if self.beats % LOOK_EVERY:\n",
        "        if self.beats:\n",
        "record lost, heartbeats acknowledged",
        "not registered with version",
    ),
    "no share for each address": Bug(
        "now + (self.end - now) / rest",
        "self.end",
        "first address dead",
        "the record is gone",
    ),
    "a look that ends the heartbeats": Bug(
        "                self.record.look()\n",
        "                self.record.look()\n"
        "                if self.record.beats % LOOK_EVERY == 0:\n                    return self.registering\n",
        "the list is useless, registrations fail",
        "the record is gone",
    ),
}
# -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", BUGS)
def test_a_deliberate_bug_is_found(name: str, tmp_path: Path) -> None:
    bug = BUGS[name]
    text = AGENT.read_text()
    assert text.count(bug.old) == 1, "the text to replace is not there once"
    broken = tmp_path / "agent.py"
    broken.write_text(text.replace(bug.old, bug.new))
    shutil.copy(HEALTHCHECK, tmp_path)
    done = soak(
        "--seconds", bug.seconds, "--seed", bug.seed, "--agents", 3, "--only", bug.kind,
        "--stop-at-first", "--agent", broken,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout
    found = rf"VIOLATION \(seed {bug.seed}\) at [\d.]+ s, soak_\d: .*{bug.finding}"
    assert re.search(found, done.stdout), done.stdout
    assert re.search(r"^  \| .* INFO Service registered successfully", done.stdout, re.MULTILINE)
