"""What must hold all along, as checks on times that somebody else has taken.

Nothing here waits or asks a clock.

A Watch is told what happens to one agent, and sees the registry's record of it every few
milliseconds. What it returns is a sentence about what does not hold. All times are seconds of the
monotonic clock.

The machine may be loaded: what Lateness has noted since a moment is added to every promise from
that moment.
"""

from __future__ import annotations

import bisect
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from soak.schedule import SLOWER

LATE = 0.3  # seconds of lateness within a TTL, beyond which a lost record is the machine's fault
LONGEST_WAIT = 60.0  # seconds, the bound of every backoff; a Retry-After may ask for 300 more
ANNOUNCEMENT = re.compile(r"(Registration|Heartbeat) failed .*; next in ([\d.]+) s$")
DROPPED = re.compile(r"(\d+) lines of the log were dropped")
UNSEEN = re.compile(  # what the peer may know nothing of
    r"connection refused|certificate refused|no answer within"
    r"|No heartbeat accepted for two intervals|Registry is back"
)
OF_SERVICE = re.compile(
    r"Service is (DOWN|READY)|Health probe|Service has changed|Waiting for the service"
)
FLOOD = 50  # lines
MANY_DESCRIPTORS = 12
MOST_MEMORY = 60_000  # kB
GROWTH = 1024  # kB
WARM_UP = 1 / 3  # of a life
ENOUGH = 20  # samples


class Times(NamedTuple):
    """The durations that the promises are made of, in seconds, and SERVICE_HEALTH_RETRIES."""

    ttl: float
    interval: float
    health_timeout: float
    registry_timeout: float
    slack: float
    retries: int = 3

    def slower(self) -> Times:
        """Return the same for a longer interval; the deadlines stay."""
        return self._replace(ttl=SLOWER * self.ttl, interval=SLOWER * self.interval)

    @property
    def death(self) -> float:
        """The longest that a dead service may still get a heartbeat.

        Three probes, the waits between, one request.
        """
        spacing = min(2.0, self.interval / 2)
        return (
            self.retries * self.health_timeout
            + (self.retries - 1) * spacing
            + self.registry_timeout
            + self.slack
        )

    @property
    def usual(self) -> float:
        """The longest until the agent's next step is over that nothing hinders."""
        return self.interval + self.health_timeout + self.registry_timeout + self.slack


class Lateness:
    """How late a machine is, added up: what came later than it was due, at which time."""

    def __init__(self) -> None:
        self.total = 0.0
        self._times: list[float] = []
        self._totals: list[float] = []

    def add(self, now: float, seconds: float) -> None:
        if seconds > 0:
            self.total += seconds
            self._times.append(now)
            self._totals.append(self.total)

    def since(self, then: float) -> float:
        """Return the lateness noted after `then`."""
        before = bisect.bisect_right(self._times, then)
        return self.total - (self._totals[before - 1] if before else 0.0)


class Back(NamedTuple):
    """A return to the registry.

    The seconds it took and those that were promised, after which kinds of fault.
    """

    took: float
    promised: float
    causes: tuple[str, ...]


class Watch:
    """What one agent owes. It is sane while no cause disturbs it."""

    def __init__(self, times: Times, version: str = "") -> None:
        self.times = times
        self.version = version  # what the record must show
        self.late = Lateness()
        self.causes: list[str] = []
        self.backs: list[Back] = []
        self.excused = 0  # absences for which the machine was too late
        self.dead_since = math.inf  # the service
        self._past: list[str] = []  # causes since the record was last right
        self._sane_since: float | None = None  # and not seen back yet
        self._within = 0.0
        self._settled = False  # back: from here on the record must stay
        self._stamp: object = None
        self._refreshed_at = -math.inf
        self._announced: list[tuple[float, float]] = []
        self._may_register_at = -math.inf  # a registration was asked to wait until then
        self._lost_lines, self._read_since = 0, -math.inf  # the log has to tell of so many

    @property
    def waiting(self) -> bool:
        """Whether the agent still has to be seen back."""
        return bool(self.causes) or self._sane_since is not None

    def disturb(self, cause: str, keeps: bool = False) -> None:
        """Begin a fault. Where it keeps the record, the record must stay."""
        self.causes.append(cause)
        self._past.append(cause)
        self._sane_since = None
        self._settled = self._settled and keeps

    def restore(self, cause: str, now: float, within: float | None = None) -> None:
        """End a fault. After the last one, the agent must be back within so many seconds.

        None means one interval.
        """
        self.causes.remove(cause)
        self._within = max(self._within, self.times.interval if within is None else within)
        if not self.causes:
            self._sane_since = now

    def restarted(self) -> None:
        """Forget what the process before this one announced, and what it was asked."""
        self._announced.clear()
        self._may_register_at = -math.inf

    def asked_to_wait(self, now: float, seconds: float) -> None:
        """Note that a registration is refused with this Retry-After."""
        self._may_register_at = now + seconds

    def expect_loss(self, lines: int, now: float) -> None:
        """Note that the log is read again: it must soon tell of so many lost lines at least."""
        self._lost_lines, self._read_since = lines, now

    def said(self, line: str, now: float) -> str:
        """Take a line of the log, for announced waits and for lines that were dropped."""
        if loss := DROPPED.search(line):
            least, self._lost_lines = self._lost_lines, 0
            told = int(loss[1])
            return f"{least} lines at least were dropped, not {told}" if told < least else ""
        found = ANNOUNCEMENT.search(line)
        if not found:
            return ""
        wait = float(found[2])
        lowest, highest = 0.95, LONGEST_WAIT + 300  # the log shows tenths
        if found[1] == "Heartbeat":
            # None may wait for longer than a record lives, but one that is lost as it was asked to.
            lowest, highest = 0.0, self.times.ttl + max(self._may_register_at - now, 0.0)
        if not lowest <= wait <= highest:
            return f"a wait of {wait:g} s was announced"
        self._announced = [*self._announced[-20:], (now, wait)]
        return ""

    def see(self, now: float, record: Mapping[str, object] | None) -> str:
        """Take a look at the record."""
        if record is not None and record["last_heartbeat"] != self._stamp:
            self._stamp, self._refreshed_at = record["last_heartbeat"], now
        if record is None and self._settled:
            self._settled = False
            if self.late.since(now - self.times.ttl) < LATE:
                age = now - self._refreshed_at
                return f"the record is gone, {age:.2f} s after it was last refreshed"
            self.excused += 1
        if (
            record is not None
            and now > self.dead_since + self.times.death + self.times.ttl + self._lateness()
        ):
            self.dead_since = math.inf
            return "the record of a dead service does not expire"
        read_for = now - self._read_since - self.late.since(self._read_since)
        if self._lost_lines > 0 and read_for > self.times.usual:
            self._lost_lines = 0
            return "the log does not tell of the lines that were dropped"
        return self._see_back(now, record)

    def _see_back(self, now: float, record: Mapping[str, object] | None) -> str:
        since = self._sane_since
        if since is None:
            return ""
        metadata = record["metadata"] if record else {}
        right = isinstance(metadata, Mapping) and metadata.get("version", "") == self.version
        if record and right and self._refreshed_at >= since:
            self.backs.append(
                Back(self._refreshed_at - since, self.due() - since, tuple(self._past))
            )
            self._settled = True
            wrong = ""
        elif now > self.due():
            self._settled = False
            wrong = (
                f"not registered with version {self.version},"
                f" {now - since:.1f} s after all was sane"
                f" ({self.due() - since:.1f} s promised); the record is {record}"
            )
        else:
            return ""
        self._sane_since, self._within = None, 0.0  # seen back, or given up: it is told once
        self._past.clear()
        return wrong

    def due(self) -> float:
        """Return the moment by which the agent has to be back; only while it is waited for.

        What was promised, or the wait that it announced last. A request that was under way when all
        became sane may fail as yet, so its announcement counts; a later one does not.
        """
        assert self._sane_since is not None
        since, late = self._sane_since, self.late.since(self._sane_since)
        due = since + self._within
        for at, wait in self._announced:
            if at <= since + self.times.registry_timeout + 0.5 + late:
                due = max(due, at + wait)
        return due + self.times.usual - self.times.interval + late

    def request(self, now: float, operation: str) -> str:
        """Take a request of the agent to the registry."""
        dead = now - self.dead_since
        if operation in ("heartbeat", "register") and dead > self.times.death + self._lateness():
            promised = f"{self.times.death:.1f} s promised"
            return f"a {operation} {dead:.1f} s after the service died ({promised})"
        if operation == "register" and now < self._may_register_at:
            early = self._may_register_at - now
            return f"a registration {early:.1f} s before Retry-After allows it"
        return ""

    def _lateness(self) -> float:
        return self.late.since(self.dead_since) if self.dead_since < math.inf else 0.0


def flooded(times: Sequence[float], window: float) -> int:
    """Return the most lines that came within so many seconds."""
    return max(
        (bisect.bisect_right(times, at + window) - i for i, at in enumerate(times)), default=0
    )


def about_registry(lines: Sequence[str]) -> int:
    """Return how many lines must each have an event behind it that the registry has seen."""
    return sum(not (UNSEEN.search(line) or OF_SERVICE.search(line)) for line in lines)


def dropped(lines: Sequence[str]) -> int:
    """Return how many more there were that nobody could read."""
    return sum(int(found[1]) for line in lines if (found := DROPPED.search(line)))


class Sample(NamedTuple):
    """A look at a process: resident memory in kB, and its open descriptors."""

    memory: int
    descriptors: int


def growth(samples: Sequence[Sample]) -> Sample | None:
    """Return by how much a life's second half exceeds its first one after the warm-up.

    None where it was too short.

    Medians of memory; the fewest descriptors, since a probe's and a look-up's come and go.
    """
    kept = samples[int(len(samples) * WARM_UP) :]
    if len(kept) < ENOUGH:
        return None
    first, second = kept[: len(kept) // 2], kept[len(kept) // 2 :]
    memory = [
        round(statistics.median(sample.memory for sample in half)) for half in (first, second)
    ]
    descriptors = [min(sample.descriptors for sample in half) for half in (first, second)]
    return Sample(memory[1] - memory[0], descriptors[1] - descriptors[0])


def resources(samples: Sequence[Sample]) -> list[str]:
    """Return what is wrong with the memory and the descriptors of a life."""
    wrong = []
    if samples and (most := max(sample.memory for sample in samples)) > MOST_MEMORY:
        wrong.append(f"{most} kB of memory")
    if samples and (open_files := max(sample.descriptors for sample in samples)) > MANY_DESCRIPTORS:
        wrong.append(f"{open_files} descriptors open")
    grown = growth(samples)
    if grown and grown.memory > GROWTH:
        wrong.append(f"memory grows: {grown.memory} kB more in the second half of its life")
    if grown and grown.descriptors > 1:
        wrong.append(f"descriptors leak: {grown.descriptors} more in the second half of its life")
    return wrong
