"""Is the soak sound? Its schedule, each of its checks on times made up, and whole runs: clean ones, and with a bug."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT, environment, wait_until
from peers.faults import FAULTS
from peers.server import Peer
from soak.invariants import (
    GROWTH,
    MANY_DESCRIPTORS,
    MOST_MEMORY,
    Lateness,
    Sample,
    Times,
    Watch,
    growth,
    resources,
)
from soak.schedule import ACKNOWLEDGING, AGENT_KINDS, ALONE, KINDS, REGISTRY_KINDS, RESTARTS, Episode, rounds
from soak.world import World

SOAK = ROOT / "tests" / "soak"
TIMES = Times(ttl=4, interval=2, health_timeout=0.5, registry_timeout=1, slack=0.5)

# ---- the schedule


def episodes(seed: int, number: int, agents: int = 4, **options: Any) -> list[Episode]:
    first = itertools.islice(rounds(seed, agents, 2.0, **options), number)
    return [episode for this in first for track in ((this.outage,), *this.tracks) for episode in track if episode]


def test_every_kind_and_every_fault_is_played_before_long() -> None:
    played = episodes(1, 200, agents=8)
    assert {episode.kind for episode in played} == set(KINDS)
    assert {episode.fault for episode in played} >= set(FAULTS)


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


def test_it_can_be_kept_to_some_kinds() -> None:
    assert {episode.kind for episode in episodes(4, 20, only=["record lost", "agent killed"])} == {
        "record lost",
        "agent killed",
    }
    assert {episode.kind for episode in episodes(4, 5, only=["store open"])} == {"store open"}
    with pytest.raises(ValueError, match="no kind of fault is left"):
        next(rounds(1, 2, 2.0, only=["nonsense"]))


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_what_counts_as_a_failure_never_looks_like_an_acceptance(name: str) -> None:
    """On the wire: a head that says 2xx, and is whole or breaks off, which http.client does not tell apart.

    An agent that took it for an acceptance would be right.
    """
    with Peer() as peer:
        peer.play("any", name)
        head = read_head(peer, 10.0 if name in ACKNOWLEDGING else 0.5)
    ended = b"\r\n\r\n" in head or name == "cut_headers"
    looks = re.match(rb"HTTP/1\.1 2\d\d ", head) is not None and ended
    assert looks == (name in ACKNOWLEDGING), head[:200]


def read_head(peer: Peer, seconds: float) -> bytes:
    """Return what comes until the head is whole, the peer closes or so many seconds have passed."""
    received = b""
    end = time.monotonic() + seconds
    with socket.create_connection((peer.host, peer.port), 5) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        while (left := end - time.monotonic()) > 0 and b"\r\n\r\n" not in received:
            connection.settimeout(left)
            block = connection.recv(65536)
            received += block[: 1 << 20]
            if not block or len(received) > 1 << 20:
                break
    return received


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
    ("Heartbeat", "361.0", True), ("Registration", "360.0", False),
])  # fmt: skip
def test_announced_waits_keep_their_bounds(what: str, wait: str, wrong: bool) -> None:
    assert bool(Watch(TIMES).said(f"x WARNING {what} failed (attempt 1): 500; next in {wait} s", 1.0)) == wrong


def test_lateness_is_what_came_after_a_moment() -> None:
    late = Lateness()
    for now in (1.0, 2.0, 3.0):
        late.add(now, 0.5)
    late.add(4.0, -1.0)
    assert [late.since(then) for then in (0.0, 1.0, 2.5, 9.0)] == [1.5, 1.0, 0.5, 0.0]


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
        [sys.executable, str(SOAK), *map(str, arguments)],
        env=environment({}),
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
    assert re.search(r"\| one heartbeat fails \| [1-9]", done.stdout)


@pytest.mark.slow
def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    environ = environment({"TMPDIR": tmp_path})
    with subprocess.Popen(
        [sys.executable, str(SOAK), "--seed", "6", "--agents", "2"],
        env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        wait_until(lambda: len(list(tmp_path.glob("sidecar-*/heartbeat"))) == 2, 30)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped by hand" in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


BUGS = {
    # Each changes the agent in one place; what the soak says of it; the kind of fault that shows it.
    "never retries inside the slot": (
        """
    def failed(self, what, *rest):
        wait = super().failed(what, *rest)
        return max(wait, self.interval) if what == "Heartbeat" else wait
""",
        "the record is gone",
        "one heartbeat fails",
    ),
    "goes on heartbeating for a dead service": (
        """
    def is_healthy(self):
        super().is_healthy()
        return True
""",
        "a heartbeat .* s after the service died",
        "service stopped",
    ),
    "leaves a descriptor open with each probe": (
        """
    def probe(self):
        os.dup(1)
        return super().probe()
""",
        "descriptors open",
        "record lost",
    ),
    "does not look for the record in the list": (
        """
    def is_listed(self):
        return True
""",
        "not registered with version",
        "record lost, heartbeats acknowledged",
    ),
}
SCRIPT = """
import os, sys
sys.path.insert(0, {root!r})
import agent

class Buggy(agent.Agent):
{body}

for name in vars(Buggy):  # the change must change something
    assert name.startswith("__") or hasattr(agent.Agent, name), name
agent.Agent = Buggy
if __name__ == "__main__":
    raise SystemExit(agent.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("bug", BUGS)
def test_a_deliberate_bug_is_found(bug: str, tmp_path: Path) -> None:
    body, finding, kind = BUGS[bug]
    script = tmp_path / "agent.py"
    script.write_text(SCRIPT.format(root=str(ROOT), body=body.strip("\n")))
    seconds = 20 if "descriptor" in bug else 120  # that one is looked for in the end only
    arguments = ["--seconds", seconds, "--seed", 9, "--agents", 3, "--only", kind, "--stop-at-first"]
    done = soak(*arguments, "--agent", script)
    assert done.returncode == 1, done.stdout
    assert re.search(rf"VIOLATION \(seed 9\) at [\d.]+ s, soak_\d: .*{finding}", done.stdout), done.stdout
    assert re.search(r"^  \| .* INFO Service registered successfully", done.stdout, re.MULTILINE)
