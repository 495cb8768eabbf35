"""What must hold all along, as checks on times that somebody else has taken.

Nothing here waits or asks a clock. A Watch is told what happens to one agent, and sees the
registry's record of it every few milliseconds; it complains of what does not hold. All times are
seconds of the monotonic clock. The machine may be loaded: what Lateness has noted since a moment
is added to every promise from that moment.
"""

import bisect
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# The deadlines, scaled down with the interval: 5 s and 10 s in 30 s would be less, but for a loaded
# machine.
HEALTH_TIMEOUT, REGISTRY_TIMEOUT, RETRIES = 0.6, 0.8, 3
LATE = 0.3  # seconds of lateness within a TTL, beyond which a lost record is the machine's fault
ANNOUNCEMENT = re.compile(r"(?:Registration|Heartbeat) failed .*; next in ([\d.]+) s$")
FLOOD = 50  # lines of log in five intervals
MANY_DESCRIPTORS = 12
MOST_MEMORY = 60_000  # kB
GROWTH = 1024  # kB
WARM_UP = 1 / 3  # of a life
ENOUGH = 20  # samples


class Times(NamedTuple):
    """The durations that the promises are made of."""

    interval: float
    slack: float  # for a loaded machine

    @property
    def ttl(self) -> float:
        return 2 * self.interval

    @property
    def death(self) -> float:
        """The longest that a dead service may still get a heartbeat.

        All probes, the waits between, one request.
        """
        waits = (RETRIES - 1) * min(2.0, self.interval / 2)
        return RETRIES * HEALTH_TIMEOUT + waits + REGISTRY_TIMEOUT + self.slack

    @property
    def step(self) -> float:
        """The longest that the agent's next step takes that nothing hinders."""
        return HEALTH_TIMEOUT + REGISTRY_TIMEOUT + self.slack


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
    """A return to the registry: the seconds it took, and those promised, after which faults."""

    took: float
    promised: float
    causes: tuple[str, ...]


class Watch:
    """What one agent owes. It is sane while no cause disturbs it."""

    def __init__(self, times: Times, complain: Callable[[str], object]) -> None:
        self.times, self.complain, self.late = times, complain, Lateness()
        self.version = "1"  # what the record must show
        self.causes: list[str] = []
        self.backs: list[Back] = []
        self.excused = 0  # absences for which the machine was too late
        self.dead_since = math.inf  # the service
        self.announced: list[tuple[float, float]] = []  # when, and a wait of how many seconds
        self._past: list[str] = []  # causes since the record was last right
        self._sane_since: float | None = None  # and not seen back yet
        self._within = 0.0
        self._settled = False  # back: from here on the record must stay
        self._stamp: object = None
        self._refreshed_at = -math.inf

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

    def restore(self, cause: str, now: float, intervals: float = 1.0) -> None:
        """End a fault. After the last one, the agent must be back within so many intervals."""
        self.causes.remove(cause)
        self._within = max(self._within, intervals * self.times.interval)
        if not self.causes:
            self._sane_since = now

    def said(self, line: str, now: float) -> None:
        """Take a line of the log, for the waits that it announces."""
        if found := ANNOUNCEMENT.search(line):
            self.announced = [*self.announced[-20:], (now, float(found[1]))]

    def asked(self, now: float, operation: str) -> None:
        """Take a request of the agent to the registry."""
        dead, promised = now - self.dead_since, self.times.death
        late = self.late.since(self.dead_since)
        if operation in ("heartbeat", "register") and dead > promised + late:
            promise = f"({promised:.1f} s promised)"
            self.complain(f"a {operation} {dead:.1f} s after the service died {promise}")

    def see(self, now: float, record: Mapping[str, Any] | None) -> None:
        """Take a look at the record."""
        if record is not None and record["last_heartbeat"] != self._stamp:
            self._stamp, self._refreshed_at = record["last_heartbeat"], now
        if record is None and self._settled:
            self._settled = False
            if self.late.since(now - self.times.ttl) < LATE:
                age = now - self._refreshed_at
                self.complain(f"the record is gone, {age:.2f} s after it was last refreshed")
            else:
                self.excused += 1
        if self._sane_since is not None:
            self._see_back(now, record, self._sane_since)

    def _see_back(self, now: float, record: Mapping[str, Any] | None, since: float) -> None:
        promised = self._due(since) - since
        right = record is not None and record["metadata"].get("version") == self.version
        if right and self._refreshed_at >= since:
            self.backs.append(Back(self._refreshed_at - since, promised, tuple(self._past)))
        elif now - since > promised:
            self.complain(
                f"not registered with version {self.version}, {now - since:.1f} s after all was"
                f" sane ({promised:.1f} s promised); the record is {record}"
            )
            right = False
        else:
            return
        self._settled = right
        self._sane_since, self._within = None, 0.0  # seen back, or given up: it is told once
        self._past.clear()

    def _due(self, since: float) -> float:
        """Return the moment by which the agent has to be back.

        What was promised, or the wait that it announced last. A request that was under way when all
        became sane may fail as yet, so its announcement counts; a later one does not.
        """
        late = self.late.since(since)
        counts = since + REGISTRY_TIMEOUT + 0.5 + late
        waits = [at + wait for at, wait in self.announced if at <= counts]
        return max([since + self._within, *waits]) + self.times.step + late


class Sample(NamedTuple):
    """A look at a process: resident memory in kB, and its open descriptors."""

    memory: int
    descriptors: int


def growth(samples: Sequence[Sample]) -> Sample | None:
    """Return by how much a life's second half exceeds its first one after the warm-up.

    None where it was too short. Medians of memory; the fewest descriptors, since a probe's and a
    look-up's come and go.
    """
    kept = samples[int(len(samples) * WARM_UP) :]
    if len(kept) < ENOUGH:
        return None
    halves = kept[: len(kept) // 2], kept[len(kept) // 2 :]
    memory = [statistics.median(sample.memory for sample in half) for half in halves]
    descriptors = [min(sample.descriptors for sample in half) for half in halves]
    return Sample(round(memory[1] - memory[0]), descriptors[1] - descriptors[0])


def resources(samples: Sequence[Sample]) -> list[str]:
    """Return what is wrong with the memory and the descriptors of a life."""
    if not samples:
        return []
    memory, descriptors = map(max, zip(*samples, strict=True))
    grown = growth(samples) or Sample(0, 0)
    found = {
        f"{memory} kB of memory": memory > MOST_MEMORY,
        f"{descriptors} descriptors open": descriptors > MANY_DESCRIPTORS,
        f"memory grows: {grown.memory} kB more in the second half": grown.memory > GROWTH,
        f"descriptors leak: {grown.descriptors} more in the second half": grown.descriptors > 1,
    }
    return [what for what, wrong in found.items() if wrong]


def log_floods(times: Sequence[float], interval: float) -> list[str]:
    """Say how many lines came within five intervals, where they were too many."""
    ends = (bisect.bisect_right(times, at + 5 * interval) - i for i, at in enumerate(times))
    most = max(ends, default=0)
    return [f"{most} lines of log within {5 * interval:g} s"] if most > FLOOD else []
