"""A model of all that one agent meets, in simulated time: every outcome is chosen, and judged.

The real `Agent` runs in it, with the real `Record`, `Signals` and `SignOfLife`. Modelled are the
registry, the service, the network, and what may come in between: a process that is frozen, a host
that is suspended, a service that is replaced, a signal. `Choices` says which outcome comes next;
`Promises` raises Broken as soon as one of the invariants does not hold.
"""

from __future__ import annotations

import itertools
import math
import signal
import time
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kit.clock import Clock
from kit.sidecar import AGENT, HEALTHCHECK

SETTINGS = {
    "SERVICE_NAME": "osint_service",
    "SERVICE_HOST": "vertice-osint",
    "INITIAL_WAIT_TIMEOUT": "5",  # so that it passes within the outcomes that are explored
}
TTL = 60.0  # seconds that a record lives after each request that the registry took
WAIT_ASKED = 100  # seconds, in a Retry-After: longer than a record lives
FREEZE = 75.0  # seconds: longer than a record lives
ANSWER = 0.01  # seconds that a peer takes to answer
OVERSHOOT = 1e-4  # seconds that a sleep takes too long, as every real one does
STEP = 1.1  # seconds after a freeze in which the agent has to notice it: a slice of its waits
LONGEST = 5000.0  # seconds of a run
SETTLED = TTL + 2  # seconds after the last trouble, in which a record must not expire again

# What may come of each request; the first is what comes where all is well. Lost means that the
# registry took the request, and the answer did not come.
PROBE = ("well", "failing", "late")
HEARTBEAT = ("accepted", "not known", "refused", "failing", "asked to wait", "late", "lost")
REGISTRATION = ("accepted", "refused", "failing", "asked to wait", "late", "lost")
LOOK = ("has it", "lacks it", "tells nothing", "late")
UNKNOWN = tuple(what for what in HEARTBEAT if what != "accepted")  # where there is no record
ABSENT = tuple(what for what in LOOK if what != "has it")
# In between. The last three last until the end: which requests the registry still takes, and a
# store that is lost, after which it takes heartbeats for any name.
FOR_GOOD = ("registrations only", "heartbeats only", "store lost")
EVENTS = ("nothing", "stopped", "frozen", "replaced", *FOR_GOOD)
GOOD = {"well", "accepted", "acknowledged", "has it", "not known", "lacks it"}
STATUS = {
    "accepted": 200,
    "acknowledged": 200,
    "has it": 200,
    "lacks it": 200,
    "tells nothing": 503,
    "not known": 404,
    "refused": 401,
    "failing": 503,
    "asked to wait": 503,
}


class Broken(AssertionError):
    """A promise was not kept."""


class Times:
    """What the agent knows of time: stands in for the module `time`."""

    CLOCK_BOOTTIME, CLOCK_MONOTONIC = time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC

    def __init__(self) -> None:
        self.true, self.awake = Clock(), Clock()  # the second stands still while the host sleeps
        self.asked_awake = False

    def clock_gettime(self, which: int) -> float:
        """Return the time of one of the two clocks."""
        if which == self.CLOCK_BOOTTIME:
            return self.true.skipped
        self.asked_awake = True
        return self.awake.skipped

    def monotonic(self) -> float:
        """Return the time of the clock that stands still in a suspension."""
        return self.clock_gettime(self.CLOCK_MONOTONIC)


class Choices:
    """Says what comes next: what was given, then the first of what there is.

    Args: the choices given, as numbers; how many outcomes may be chosen. Attributes: the choices
    `made`, each with how many there were.
    """

    def __init__(self, given: Sequence[int] = (), budget: int = 6) -> None:
        self.given, self.budget = given, budget
        self.made: list[tuple[int, int]] = []

    def number(self, count: int) -> int:
        """Return one of so many numbers."""
        place = len(self.made)
        chosen = self.given[place] if place < len(self.given) else 0
        self.made.append((chosen, count))
        return chosen

    def outcome(self, options: Sequence[str]) -> str:
        """Choose an outcome."""
        if self.budget <= 0:
            return options[0]
        self.budget -= 1
        return options[self.number(len(options))]

    def event(self, options: Sequence[str]) -> str:
        """Choose what comes in between: that nothing does costs nothing."""
        if self.budget <= 0:
            return options[0]
        chosen = self.number(len(options))
        self.budget -= chosen > 0
        return options[chosen]

    def fraction(self) -> float:
        """Choose when something comes in a wait: by default soon."""
        return 0.0

    def duration(self, usual: float) -> float:
        """Choose how long something lasts."""
        return usual


def load(agent_text: str = "", health_text: str = "") -> Any:
    """Return a copy of the module agent, with one of healthcheck, of its own or of other texts."""
    module = types.ModuleType("agent_copy")
    module.__file__ = str(AGENT)
    exec(compile(agent_text or AGENT.read_text(), str(AGENT), "exec"), module.__dict__)
    health = types.ModuleType("healthcheck_copy")
    exec(compile(health_text or HEALTHCHECK.read_text(), str(HEALTHCHECK), "exec"), health.__dict__)
    module.healthcheck = health  # type: ignore[attr-defined]
    module.model_settings = module.read_settings(SETTINGS)  # type: ignore[attr-defined]
    return module


class Promises:
    """What the agent owes. Told of everything that happens; raises Broken.

    Times are seconds of the true clock. An absence is excused while the service is down, and after
    three failed requests, a freeze, or what the registry itself lost; it then has its bound.
    """

    MOST_REQUESTS = 16  # to the registry, in any 60 s

    def __init__(self, settings: Any) -> None:
        self.interval, self.retries = settings.heartbeat_interval, settings.service_health_retries
        self.late_probe = settings.service_health_timeout
        self.late_request = settings.registry_timeout
        self.now = 0.0
        # The service, as its probes show it.
        self.failed_probes = self.good_probes = 0  # in a row
        self.seen = self.down = False
        self.well_at = -math.inf
        self.fresh = False  # the agent has not waited since
        # The record.
        self.expires = math.inf
        self.absent_since: float | None = 0.0
        self.due_by = math.inf  # an absence has to be over
        self.excused = True  # the record may expire
        self.failures = 0  # requests since the record was last refreshed
        # What the agent was told.
        self.accepted_at = -math.inf  # the last request that it knows to be accepted was sent
        self.told = False  # a registration was accepted
        self.failed_registrations = 0  # in a row
        self.wait_until = -math.inf  # as a Retry-After asks for
        self.taking = frozenset({"heartbeat", "register"})
        self.lost = False  # it was told that there is no record
        self.store_lost = False
        # What it said and sent.
        self.promised = 1.0  # the next line of the health file
        self.sent: list[float] = []
        self.frozen = False  # in a wait, and nothing was sent since
        self.stopping = False
        self.deregistered = 0
        self.trouble(0.0)

    # Time

    def passes(self, seconds: float) -> None:
        """Note that time passes in which the agent runs, or could."""
        self.now += seconds
        if self.now > LONGEST:
            raise Broken("it never settles")
        if self.now > self.promised + 0.1:
            raise Broken(f"the health file is {self.now - self.promised:.2f} s late")
        self.look()

    def stands_still(self, seconds: float) -> None:
        """Note that time passes in which it cannot run."""
        self.excused = True
        self.now += seconds
        self.promised = max(self.promised, self.now + STEP)
        self.expire()
        self.frozen = not self.stopping
        self.trouble()

    def look(self) -> None:
        """Look for a record that has expired, and for an absence that is too long."""
        self.expire()
        if self.absent_since is not None and self.now > self.due_by:
            raise Broken(f"the record is absent for {self.now - self.absent_since:.1f} s")

    def expire(self) -> None:
        """Let the record expire when it is time for it."""
        if self.now > self.expires:
            if not self.excused:
                raise Broken(f"the record expires after {self.failures} failures")
            self.vanishes(self.expires)

    def trouble(self, since: float | None = None) -> None:
        """Note that something was wrong until now: how long may an absence last from here?"""
        if self.taking != {"heartbeat", "register"} and "register" not in self.taking:
            self.due_by = math.inf
            return
        bound = self.interval + 1
        if "heartbeat" not in self.taking:
            bound += self.interval  # which tell nothing of an absence
        if self.failed_registrations:
            bound += min(2.0**self.failed_registrations, 60.0)
        start = self.now if since is None else since
        bound += max(self.wait_until - start, 0)
        if self.failed_probes or self.down:
            bound += 5
        if self.store_lost:
            bound += 10 * self.interval
        self.due_by = start + bound

    # The record

    def vanishes(self, since: float) -> None:
        """Note that the registry has no record any more."""
        self.expires, self.absent_since = math.inf, since
        self.trouble(max(since, 0))

    def is_there(self) -> bool:
        """Tell whether the registry has the record."""
        return self.absent_since is None

    def refreshed(self, lasts: float = TTL, known: bool = True) -> None:
        """Note that the registry took a request for the record, and whether the agent knows it."""
        if known:
            self.excused, self.failures = self.down, 0
        elif self.absent_since is not None:
            self.excused = True
        self.absent_since, self.expires = None, self.now + lasts

    # Requests, and what comes of them

    def probed(self, well: bool) -> None:
        """Note what a probe showed."""
        if well:
            self.failed_probes, self.good_probes = 0, self.good_probes + 1
            self.seen, self.fresh, self.well_at = True, True, self.now
            if self.good_probes >= 2:
                self.down = False
            return
        self.failed_probes, self.good_probes = self.failed_probes + 1, 0
        if (self.told or self.seen) and self.failed_probes >= self.retries:
            self.down = self.excused = True
        self.trouble()

    def sends(self, what: str) -> None:
        """Judge that a request is sent to the registry."""
        now = self.now
        if self.stopping:
            raise Broken(f"a {what} of an agent that stops")
        self.sent.append(now)
        if len(self.sent) > self.MOST_REQUESTS and now - self.sent[-1 - self.MOST_REQUESTS] < 60:
            raise Broken(f"more than {self.MOST_REQUESTS} requests in 60 s")
        if what == "look":
            return
        if self.down or (self.told and self.failed_probes >= self.retries):
            raise Broken(f"a {what} for a service that is down")
        first = what == "register" and not self.seen and not self.told
        if first and self.now < 5:
            raise Broken("a registration of a service that was never healthy, before its time")
        if what == "heartbeat" and now - self.accepted_at > 2 * self.interval + STEP:
            raise Broken(f"a heartbeat {now - self.accepted_at:.1f} s after the last accepted one")
        if what == "register" and not first:
            if self.failed_probes:
                raise Broken("a registration right after a failed probe")
            if self.absent_since is not None and not self.fresh:
                raise Broken(f"put back {now - self.well_at:.1f} s after the last good probe")
            if now < self.wait_until - 0.001 and now - self.accepted_at > 2 * self.interval:
                raise Broken(f"a registration {self.wait_until - now:.1f} s before it is asked for")

    def accepted(self, what: str, sent_at: float) -> None:
        """Note that the agent was told that a request was accepted."""
        self.accepted_at, self.told = sent_at, self.told or what == "register"
        if not self.seen:
            self.failed_probes = 0  # it is registered all the same, so count anew
        self.failed_registrations, self.wait_until = 0, -math.inf
        self.frozen = self.lost = False

    def failed(self, what: str, wait: float) -> None:
        """Note that one failed, as the agent sees it."""
        self.frozen = False
        if what == "register":
            self.failed_registrations += 1
            if self.lost or self.now - self.accepted_at > 2 * self.interval:
                self.wait_until = self.now + wait
        self.trouble()

    def goes_wrong(self) -> None:
        """Note a failed request or probe: three may cost the record."""
        self.failures += 1
        self.excused = self.excused or self.failures >= 3
        self.trouble()


class World:
    """The registry, the service, the network, and the agent among them.

    Args: the module, see `load`; the choices; what stands in for random.uniform; from where on it
    is chosen: True from the start, False from the first accepted registration.
    """

    def __init__(
        self,
        module: Any,
        choices: Choices,
        uniform: Callable[[float, float], float],
        from_start: bool = True,
    ) -> None:
        self.module, self.choices, self.choosing = module, choices, from_start
        self.story: list[tuple[float, str, str]] = []
        self.times = Times()
        settings = module.model_settings
        self.promises = Promises(settings)
        health = module.healthcheck
        health.time, health.write = self.times, self.writes
        signals = self.signals = module.Signals(health.clock, self.sleep)
        signals.pause, signals.block, signals.unblock = self.pause, self.block, self.unblock
        self.freeze_at, self.freezing, self.stop_soon = math.inf, "", False
        # The service, as the agent sees it.
        self.metadata, self.version = {"version": "0"}, 0
        self.problem, self.seen, self.place = "no answer yet", False, "http://vertice-osint/health"
        # The registry.
        self.stored: Any = None  # the metadata of the record
        self.for_good, self.asked_at, self.sane_since = "", 0.0, 0.0
        life = module.SignOfLife("", health.clock)
        self.agent = module.Agent(settings, signals, self, self, life, self, health.clock, uniform)

    def run(self) -> None:
        """Let the agent run until all is well again for a while; then stop it."""
        if self.agent.run() != 0:
            raise Broken("it does not exit with 0")
        promises = self.promises
        if promises.deregistered != promises.told:
            raise Broken(f"{promises.deregistered} deregistrations at the stop")

    def tell(self) -> str:
        """Return what has happened, a line each."""
        lines = (f"{when:8.2f} s  {what}: {outcome}" for when, what, outcome in self.story)
        return "\n".join(lines)

    # Time

    def sleep(self, seconds: float) -> None:
        """Sleep as the agent does; here a freeze, a suspension or a signal may come."""
        if self.stop_soon:
            self.stop()
        until = self.freeze_at - self.promises.now
        if seconds < until:
            self.passes(seconds + OVERSHOOT)
            return
        self.freeze_at = math.inf
        self.passes(until)
        lasts = self.choices.duration(FREEZE)
        self.times.true.skipped += lasts
        if self.freezing == "frozen":
            self.times.awake.skipped += lasts
        self.promises.stands_still(lasts)
        self.sane_since = self.promises.now

    def passes(self, seconds: float) -> None:
        """Let time pass."""
        self.times.true.skipped += seconds
        self.times.awake.skipped += seconds
        self.promises.passes(seconds)

    def stop(self) -> None:
        """Send SIGTERM. Raises the agent's Stop where it waits."""
        self.stop_soon = False
        self.promises.stopping = True
        self.promises.due_by = self.promises.expires = math.inf
        self.signals.note(signal.SIGTERM, None)

    def block(self) -> None:
        """Leave the process's own signals alone."""
        self.signals.stopping = False

    def unblock(self) -> None:
        """Leave the process's own signals alone."""

    def pause(self, end: float) -> None:
        """Wait, in one go where nothing comes in between."""
        module, signals, promises = self.module, self.signals, self.promises
        if not self.choosing or promises.stopping:
            event = "nothing"
        elif self.choices.budget > 0:
            event = self.choices.event(self.events())
        else:
            event = "nothing"
            if self.is_settled():
                self.stop_soon = True
        promises.fresh = False
        module.SLICE = math.inf
        if event != "nothing":
            self.story.append((promises.now, "in between", event))
            self.happens(event, end - self.times.true.skipped)
        module.Signals.pause(signals, end)

    def events(self) -> tuple[str, ...]:
        """Return what may come in between, but for what can make no difference."""
        known = self.seen and self.version == int(self.metadata["version"])
        out = {"replaced"} if not known else set()
        if self.for_good or not self.promises.is_there():
            out.update(FOR_GOOD)
        options = tuple(event for event in EVENTS if event not in out)
        # An agent that never asks the other clock sees a suspension as it sees a freeze.
        return (*options, "suspended") if self.times.asked_awake else options

    def happens(self, event: str, wait: float) -> None:
        """Let something come in a wait of so many seconds."""
        promises = self.promises
        if event == "stopped":
            self.stop_soon = True
        elif event in ("frozen", "suspended"):
            self.module.SLICE = 1.0  # of waits, as it is
            share = 0.1 + 0.8 * self.choices.fraction()
            self.freezing, self.freeze_at = event, promises.now + share * max(wait, 0)
        elif event == "replaced":
            self.version += 1
        else:
            self.for_good = event
            if event == "store lost":
                self.stored = None
                promises.expires = math.inf
                promises.store_lost = True
                promises.vanishes(promises.now)
            else:
                promises.taking = frozenset(
                    {"register"} if event == "registrations only" else {"heartbeat"}
                )
                promises.trouble()
        self.sane_since = promises.now

    def is_settled(self) -> bool:
        """Tell whether the record has been well for long enough that it would have expired."""
        promises = self.promises
        well = promises.is_there() and promises.accepted_at >= self.sane_since
        if promises.taking == {"heartbeat"}:
            well = True
        long = 2 * SETTLED if self.for_good else SETTLED
        return well and promises.now > self.sane_since + long and self.is_true()

    def is_true(self) -> bool:
        """Tell whether the record shows the service as it is."""
        if self.stored == {"version": str(self.version)} or "register" not in self.promises.taking:
            return True
        if self.promises.now > self.sane_since + 400:
            raise Broken("the record does not show the service as it is")
        return False

    def check(self) -> None:
        """Find the network as it was."""

    def writes(
        self, _path: str, promise: float, state: str, ready: float, *_rest: object
    ) -> None:
        """Take what would stand in the health file."""
        promises = self.promises
        promises.promised = promise - self.module.GRACE  # which is for slow machines
        # Where the agent's clock has stood still, its promise is later than it thinks.
        behind = self.times.true.skipped - self.module.healthcheck.clock()
        promises.promised += behind
        ready += behind
        if state == "down" and not promises.down:
            raise Broken(f"down after {promises.failed_probes} failed probes in a row")
        if ready > max(promises.now, promises.accepted_at + 2 * promises.interval) + 0.001:
            raise Broken("ready for longer than two intervals after the last accepted request")

    # The service

    def probe(self) -> bool:
        """Answer a probe."""
        outcome = self.ask("probe", PROBE)
        well = outcome == "well"
        if well:
            self.seen = True
            self.metadata = {"version": str(self.version)}
        else:
            self.problem = outcome
        self.promises.probed(well)
        return well

    # The registry

    def register(self, metadata: Any, timeout: float) -> Any:
        """Answer a registration."""
        self.promises.sends("register")
        if self.for_good == "heartbeats only":
            options: tuple[str, ...] = ("failing",)
        else:
            options = REGISTRATION
        outcome = self.ask("register", options, timeout)
        if outcome in ("accepted", "lost"):
            self.stored = metadata
        return self.answer("register", outcome, timeout)

    def heartbeat(self, timeout: float) -> Any:
        """Answer a heartbeat."""
        self.promises.sends("heartbeat")
        if self.for_good == "registrations only":
            options: tuple[str, ...] = ("failing",)
        elif self.for_good == "store lost":
            options = ("accepted",) if self.promises.is_there() else ("acknowledged",)
        else:
            options = HEARTBEAT if self.promises.is_there() else UNKNOWN
        outcome = self.ask("heartbeat", options, timeout)
        return self.answer("heartbeat", outcome, timeout)

    def look(self, timeout: float) -> Any:
        """Answer a look at the list."""
        self.promises.sends("look")
        outcome = self.ask("look", LOOK if self.promises.is_there() else ABSENT, timeout)
        return self.answer("look", outcome, timeout)

    def deregister(self, _timeout: float) -> Any:
        """Answer a deregistration."""
        self.promises.deregistered += 1
        self.passes(ANSWER)
        return self.module.Answer(200, meaning=self.module.ACCEPTED)

    def ask(self, what: str, options: Sequence[str], timeout: float = 5.0) -> str:
        """Choose what comes of a request, and let its time pass. Raises the agent's Stop."""
        outcome = options[0]
        if self.choosing and len(options) > 1:
            outcome = self.choices.outcome(options)
        promises = self.promises
        self.story.append((promises.now, what, outcome))
        self.asked_at = promises.now
        if outcome not in GOOD:
            promises.goes_wrong()
        if outcome in ("late", "lost"):
            if outcome == "lost":
                promises.refreshed(known=False)
            self.passes(timeout)
        else:
            self.passes(ANSWER)
        if outcome != options[0]:
            self.sane_since = promises.now
        return outcome

    def answer(self, what: str, outcome: str, _timeout: float) -> Any:
        """Return the answer; note what it means for the record and for the agent."""
        module, promises = self.module, self.promises
        if outcome in ("not known", "lacks it") and promises.is_there():
            self.stored = None
            promises.vanishes(promises.now)
        if outcome in ("accepted", "acknowledged", "has it"):
            if what != "look":
                if outcome == "accepted":
                    promises.refreshed(math.inf if self.for_good == "store lost" else TTL)
                promises.accepted(what, self.asked_at)
                self.choosing = True
            return module.Answer(200, meaning=module.ACCEPTED)
        if outcome in ("not known", "lacks it"):
            promises.lost = promises.lost or what == "heartbeat"
            return module.Answer(STATUS[outcome], meaning=module.LOST)
        wait = WAIT_ASKED if outcome == "asked to wait" else 0
        if what != "look":
            promises.failed(what, wait)
        meaning = module.REFUSED if outcome == "refused" else module.FAILED
        if outcome in ("late", "lost"):
            return module.Answer(failure=module.LateError("late"), meaning=meaning, advice="late")
        headers = {"Retry-After": str(wait)} if wait else {}
        return module.Answer(STATUS[outcome], headers, meaning=meaning, advice=outcome)


def every(budget: int, first: Sequence[int] = ()) -> Iterator[Choices]:
    """Yield the choices for each sequence; each is to be played before the next is asked for.

    Args: how many outcomes; the choices that each begins with.
    """
    given = list(first)
    while True:
        choices = Choices(given, budget)
        yield choices
        made = choices.made
        while len(made) > len(first) and made[-1][0] + 1 == made[-1][1]:
            made.pop()
        if len(made) <= len(first):
            return
        given = [*(chosen for chosen, _ in made[:-1]), made[-1][0] + 1]


def lowest(low: float, _high: float) -> float:
    """Stand in for random.uniform."""
    return low


def highest(low: float, high: float) -> float:
    """Stand in for random.uniform."""
    return low + (high - low) * (1 - 1e-9)
