"""A model of all that one agent meets, in simulated time: `Choices` says what comes next.

The real `Agent` runs in it, with the real `Record`, `Signals` and `SignOfLife`. Modelled are the
registry, the service, the network, and what may come in between: a process that is frozen, a host
that is suspended, a service that is replaced, a signal. kit.promises judges all of it.
"""

import functools
import logging
import math
import signal
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kit.promises import TTL, PromiseError, Promises
from kit.sidecar import AGENT, HEALTHCHECK

SETTINGS = {
    "SERVICE_NAME": "osint_service",
    "SERVICE_HOST": "vertice-osint",
    "INITIAL_WAIT_TIMEOUT": "5",  # it passes within the outcomes that are explored
    "DRAIN_SECONDS": "4",
}
RETRY_AFTER = 100  # seconds: longer than a record lives
WAIT = {"Retry-After": str(RETRY_AFTER)}
FREEZE = 75.0  # seconds: longer than a record lives
ANSWER = 0.01  # seconds that a peer takes to answer
OVERSHOOT = 1e-4  # seconds that a sleep takes too long, as every real one does
SETTLED = TTL + 2  # seconds after the last trouble in which the record must not expire again

# What may come of each request; the first is what comes where all is well. "lost": the request was
# taken, and its answer did not come. "stopped": a signal comes while the agent waits for it.
# "denied", "is wrong": somebody in between says that there is no record, but there is.
PROBE = ("well", "failing", "late", "stopped")
FAILURES = ("refused", "failing", "asked to wait", "late", "lost", "stopped")
REGISTRATION = ("accepted", *FAILURES)
HEARTBEAT = {
    True: ("accepted", "not known", "denied", *FAILURES),
    False: ("not known", *FAILURES),
}
LOOK = {True: ("has it", "lacks it", "is wrong"), False: ("lacks it",)}
NO_LOOK = ("tells nothing", "late", "stopped")
DEREGISTRATION = ("accepted", "failing", "late")
# What may come in a wait. The last four last until the end: what the registry still takes, and a
# store that is lost, after which it takes heartbeats for any name.
FOR_GOOD = ("registrations only", "heartbeats only", "nothing taken", "store lost")
EVENTS = ("nothing", "stopped", "frozen", "suspended", "replaced", *FOR_GOOD)
NO_FAILURE = {"well", "accepted", "acknowledged", "has it", "lacks it", "is wrong"}
NO_FAILURE |= {"not known", "stopped"}


class Choices:
    """Says what comes next: what was given, then what comes where all is well.

    Args: the numbers of the choices; how many outcomes may be chosen, of which that nothing comes
    in a wait is none. `made` are the choices so far, each with the number of its options.
    """

    def __init__(self, given: Sequence[int] = (), budget: int = 6) -> None:
        self.given, self.budget = given, budget
        self.made: list[tuple[int, int]] = []

    def number(self, count: int) -> int:
        place = len(self.made)
        chosen = self.given[place] if place < len(self.given) else 0
        self.made.append((chosen, count))
        return chosen

    def choose(self, options: Sequence[str], free: bool = False) -> str:
        """Choose what comes; whether the first of it, that nothing does, is no outcome."""
        if self.budget <= 0 or len(options) == 1:
            return options[0]
        chosen = self.number(len(options))
        self.budget -= not free or chosen > 0
        return options[chosen]

    def freeze(self) -> tuple[float, float]:
        """Choose after which share of a wait a freeze begins, and how many seconds it lasts."""
        return 0.1, FREEZE


@functools.cache
def load(agent_text: str = "", health_text: str = "") -> Any:
    """Return a copy of the module agent, with one of healthcheck, of its own or of other texts."""
    module: Any = types.ModuleType("agent_copy")
    module.__file__ = str(AGENT)
    exec(compile(agent_text or AGENT.read_text(), AGENT, "exec"), vars(module))
    module.healthcheck = types.ModuleType("healthcheck_copy")
    health_text = health_text or HEALTHCHECK.read_text()
    exec(compile(health_text, HEALTHCHECK, "exec"), vars(module.healthcheck))
    # Nobody reads its words, and they would take a third of the time.
    module.log = logging.Logger("of nobody", logging.CRITICAL + 1)
    module.say_plain = module.Answer.say = lambda _words: ""
    return module


@functools.cache
def known_settings(module: Any, variables: tuple[tuple[str, str], ...]) -> Any:
    """Return the module's Settings of the variables, as plain attributes, which are quicker."""
    settings = module.read_settings(dict(variables))
    names = (name for name in dir(settings) if not name.startswith("_"))
    return types.SimpleNamespace(**{name: getattr(settings, name) for name in names})


class World:
    """The registry, the service and the network of one agent, and that agent.

    Args: the agent's module, see `load`; the choices; what stands in for random.uniform; whether
    it is chosen from the start, or from the first accepted registration on; the variables.
    """

    TTL = TTL  # as a registry tells it to the agent
    PROBE_TAKES = 0.0  # a good one, as a share of its deadline

    def __init__(
        self,
        module: Any,
        choices: Choices,
        uniform: Callable[[float, float], float],
        from_start: bool = True,
        settings: Mapping[str, str] = SETTINGS,
    ) -> None:
        self.module, self.choices, self.choosing = module, choices, from_start
        self.story: list[tuple[float, str, str]] = []
        values = known_settings(module, tuple(settings.items()))
        self.promises = Promises(values)
        health = module.healthcheck
        # The clocks; the second one stands still while the host sleeps.
        self.shown = dict.fromkeys((time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC), 0.0)
        health.time = types.SimpleNamespace(clock_gettime=self.shown.__getitem__)
        health.write = self.write
        self.sees_suspensions = health.CLOCK == time.CLOCK_BOOTTIME
        self.signals = signals = module.Signals(health.clock, self.sleep)
        signals.pause_until = self.pause
        # This process's own signals stay as they are.
        signals.mask = signals.unmask = lambda: vars(signals).update(stopping=False)
        self.stop_soon = False
        self.freeze_at, self.freeze_lasts, self.suspends = math.inf, 0.0, False
        # The service, as the agent sees it, and as it is.
        self.metadata, self.version = {"version": "0"}, 0
        self.problem, self.seen, self.place = "no answer yet", False, "vertice-osint/health"
        # The registry.
        self.stored: Any = None  # the record's metadata
        self.known: Any = None  # those of the last registration that the agent knows to be accepted
        self.for_good = ""
        self.asked_at = self.sane_since = 0.0
        self.forced = False  # there was nothing to choose
        life = module.SignOfLife("", health.clock)
        self.agent = module.Agent(values, signals, self, self, life, self, health.clock, uniform)

    def run(self) -> None:
        """Run the agent until all has been well for a while, and stop it.

        Raises PromiseError.
        """
        try:
            self.promises.ended(self.agent.run())
        except PromiseError as error:
            lines = (f"{when:8.2f} s  {what}: {outcome}" for when, what, outcome in self.story)
            raise PromiseError("\n".join([str(error), *lines])) from None
        finally:
            del self.agent, self.signals  # or each world would wait for the garbage collector

    # Time

    def passes(self, seconds: float) -> None:
        for clock in self.shown:
            self.shown[clock] += seconds
        self.promises.passes(seconds)

    def sleep(self, seconds: float) -> None:
        """Sleep in a wait of the agent's, in which a freeze or a signal may come."""
        if self.stop_soon:
            self.stop()
        awake = self.freeze_at - self.promises.now
        if seconds < awake:
            self.passes(seconds + OVERSHOOT)
            return
        self.passes(max(awake, 0.0))
        self.freeze_at = math.inf
        lasts = self.freeze_lasts
        self.shown[time.CLOCK_BOOTTIME] += lasts
        if not self.suspends:
            self.shown[time.CLOCK_MONOTONIC] += lasts
        elif not self.sees_suspensions:  # the health check goes by the agent's clock
            self.promises.promised += lasts
        self.promises.freezes(lasts)
        self.sane_since = self.promises.now

    def pause(self, end: float) -> None:
        """Wait as the agent does, but in one go where nothing comes in between."""
        promises = self.promises
        promises.fresh = False
        self.module.SLICE = math.inf
        wait = end - self.module.healthcheck.clock()
        event = "nothing"
        if promises.stopped_at == math.inf:
            promises.waits(wait, end)
            if self.choosing and self.choices.budget > 0:
                event = self.choices.choose(self.events(), free=True)
            else:
                self.stop_soon = self.choosing and self.is_settled()
        if event != "nothing":
            self.story.append((promises.now, "in between", event))
            self.happens(event, max(wait, 0.0))
        self.module.Signals.pause_until(self.signals, end)

    def events(self) -> list[str]:
        """Return what may come, but for what makes no difference."""
        without: set[str] = set()
        if self.for_good or not self.promises.present:
            without.update(FOR_GOOD)
        if not self.seen or self.metadata["version"] != str(self.version):
            without.add("replaced")
        if self.sees_suspensions:  # they are, to the agent, freezes
            without.add("suspended")
        return [event for event in EVENTS if event not in without]

    def happens(self, event: str, wait: float) -> None:
        """Let something come in a wait of so many seconds."""
        promises = self.promises
        if event == "stopped":
            self.stop_soon = True
        elif event in ("frozen", "suspended"):
            self.module.SLICE = 1.0  # as it is
            share, self.freeze_lasts = self.choices.freeze()
            self.suspends, self.freeze_at = event == "suspended", promises.now + share * wait
        elif event == "replaced":
            self.version += 1
        else:
            self.for_good = event
            promises.takes_heartbeats = event in ("heartbeats only", "store lost")
            promises.takes_registrations = event in ("registrations only", "store lost")
            promises.store_lost = event == "store lost"
            promises.excused = promises.excused or not promises.takes_anything
            if event == "store lost":
                promises.vanishes(promises.now)
            promises.goes_on()
        self.sane_since = promises.now

    def is_settled(self) -> bool:
        """Tell whether the record has been there, and true, for so long that all must be well."""
        promises = self.promises
        since = promises.now - self.sane_since
        if not promises.takes_registrations:
            return since > 2 * SETTLED
        true = self.stored == {"version": str(self.version)}
        if not true and since > 400:
            raise PromiseError("the record does not show the service as it is")
        settled = since > (2 * SETTLED if self.for_good else SETTLED)
        return settled and true and promises.present and promises.accepted_at > self.sane_since

    # Signals

    def stop(self) -> None:
        """Send a signal. Raises the agent's Stop where it waits."""
        self.stop_soon = False
        self.promises.stops()
        self.signals.note(signal.SIGTERM, None)

    # The network, and the health file

    def check(self) -> None:
        """Find the network as it was."""

    def write(self, _path: str, promise: float, state: str, ready: float, *_more: object) -> None:
        """Take what would stand in the health file."""
        behind = self.promises.now - self.module.healthcheck.clock()
        # The grace is for slow machines.
        self.promises.shows(promise - self.module.GRACE + behind, state, ready + behind)

    # The service

    def probe(self) -> bool:
        timeout = self.promises.settings.service_health_timeout
        outcome = self.ask("probe", PROBE, timeout)
        if outcome == "well":
            self.passes(self.PROBE_TAKES * timeout)
            self.seen, self.metadata = True, {"version": str(self.version)}
        self.problem = outcome
        self.promises.probed(outcome == "well")
        return outcome == "well"

    # The registry

    def register(self, metadata: Any, timeout: float) -> Any:
        self.promises.registers(metadata != self.known)
        taken = self.promises.takes_registrations
        outcome = self.ask("register", REGISTRATION if taken else ("failing",), timeout)
        if outcome in ("accepted", "lost"):
            self.stored = metadata
        if outcome == "accepted":
            self.known = metadata
        return self.answer("register", outcome)

    def heartbeat(self, timeout: float) -> Any:
        promises = self.promises
        promises.sends("heartbeat")
        options: Sequence[str] = HEARTBEAT[promises.present]
        if not promises.takes_heartbeats:
            options = ("failing",)
        elif promises.store_lost:
            options = ("accepted" if promises.present else "acknowledged", *FAILURES)
        return self.answer("heartbeat", self.ask("heartbeat", options, timeout))

    def look(self, timeout: float) -> Any:
        promises = self.promises
        promises.sends("look")
        outcome = self.ask("look", (*LOOK[promises.present], *NO_LOOK), timeout)
        promises.looked(outcome == "has it")
        if outcome == "lacks it" and promises.present:
            promises.vanishes(promises.now)
        return self.listed(outcome)

    def listed(self, outcome: str) -> Any:
        """Return the answer to a look at the list."""
        module = self.module
        if outcome == "has it":
            return module.Answer(200, meaning=module.ACCEPTED)
        if outcome in ("lacks it", "is wrong"):
            self.promises.not_known(by_look=True)
            return module.Answer(200, meaning=module.LOST)
        return module.Answer(503, WAIT, meaning=module.FAILED, advice=outcome)

    def deregister(self, timeout: float) -> Any:
        self.promises.deregistrations += 1
        accepted = self.ask("deregister", DEREGISTRATION, timeout) == "accepted"
        meaning = self.module.ACCEPTED if accepted else self.module.FAILED
        return self.module.Answer(200 if accepted else 503, meaning=meaning)

    def ask(self, what: str, options: Sequence[str], timeout: float) -> str:
        """Choose what comes of a request, and let the time of it pass. Raises the agent's Stop."""
        promises = self.promises
        outcome = self.choices.choose(options) if self.choosing else options[0]
        self.story.append((promises.now, what, outcome))
        self.asked_at, self.forced = promises.now, len(options) == 1
        if outcome == "stopped":
            self.stop()
            self.signals.wait(lambda _seconds: True, math.inf)
        if outcome not in NO_FAILURE and not self.forced:
            promises.goes_wrong()
        if outcome == "lost":
            self.lives(known=False)
        self.passes(timeout if outcome in ("late", "lost") else ANSWER)
        if outcome != options[0]:
            self.sane_since = promises.now
        return outcome

    def lives(self, known: bool) -> None:
        """Let the record live for another TTL; what only a memory holds does not expire."""
        self.promises.lives(math.inf if self.promises.store_lost else TTL, known)

    def answer(self, what: str, outcome: str) -> Any:
        """Return the answer to a registration or a heartbeat, and tell what it means."""
        module, promises = self.module, self.promises
        if outcome in ("accepted", "acknowledged"):
            if outcome == "accepted":
                self.lives(known=True)
            promises.accepted(what, self.asked_at)
            self.choosing = True
            return module.Answer(200, meaning=module.ACCEPTED)
        if outcome in ("not known", "denied"):
            if promises.present and outcome == "not known":
                promises.vanishes(promises.now)
            promises.not_known(by_look=False)
            return module.Answer(404, meaning=module.LOST)
        wait = outcome == "asked to wait"
        if not self.forced:
            promises.failed(what, RETRY_AFTER * wait)
        if outcome in ("late", "lost"):
            return module.Answer(failure=module.LateError(), meaning=module.FAILED)
        meaning = module.REFUSED if outcome == "refused" else module.FAILED
        return module.Answer(503, WAIT if wait else {}, meaning=meaning, advice=outcome)


class Replicas(World):
    """A registry of several replicas, whose store is lost once all that was chosen has come.

    From then on each takes every request, and answers from its own memory. Args: for each request
    the number of the replica that it reaches; which of them list the name; after how many intervals
    which of them lose their memories. `missing` is how many lists lacked the name 40 intervals
    after the last loss; `promises.sent` begins anew where the store is lost.
    """

    SOON, INTERVALS = 40, 100  # after the last loss; in the end each list has the name

    def __init__(
        self,
        turns: Iterator[int],
        listed: Sequence[bool],
        losses: Sequence[tuple[float, Sequence[int]]],
        *arguments: Any,
    ) -> None:
        super().__init__(*arguments)
        self.turns, self.has, self.losses = turns, [*listed], [*losses]
        self.last = math.inf  # when something was lost
        self.missing = -1

    def events(self) -> list[str]:
        """Return what may come: nothing else for good."""
        return [event for event in super().events() if event not in FOR_GOOD]

    def is_settled(self) -> bool:
        """Let something be lost when it is time for it, and the agent stop at the end."""
        promises = self.promises
        if not promises.store_lost:
            if super().is_settled():
                self.last, promises.store_lost, promises.expires = promises.now, True, math.inf
                promises.sent.clear()
            return False
        intervals: float = (promises.now - self.last) / promises.settings.heartbeat_interval
        if self.losses:
            if intervals > self.losses[0][0]:
                self.last = promises.now
                for replica in self.losses.pop(0)[1]:
                    self.has[replica] = False
            return False
        if intervals > self.SOON and self.missing < 0:
            self.missing = self.has.count(False)
        if intervals > self.INTERVALS and not all(self.has):
            raise PromiseError(f"{self.has.count(False)} of {len(self.has)} lists lack it")
        return intervals > self.INTERVALS

    def register(self, metadata: Any, timeout: float) -> Any:
        if self.promises.store_lost:
            self.has[next(self.turns)] = True
        return super().register(metadata, timeout)

    def heartbeat(self, timeout: float) -> Any:
        if self.promises.store_lost:
            next(self.turns)
        return super().heartbeat(timeout)

    def look(self, timeout: float) -> Any:
        if not self.promises.store_lost:
            return super().look(timeout)
        self.promises.sends("look")
        has = "has it" if self.has[next(self.turns)] else "lacks it"
        return self.listed(self.ask("look", (has,), timeout))


def sequences(budget: int, first: Sequence[int] = ()) -> Iterator[Choices]:
    """Yield the choices for each sequence; each has to be played before the next is asked for.

    Args: how many outcomes; the choices with which each sequence begins.
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


def highest(low: float, high: float) -> float:
    """Stand in for random.uniform, whose highest number comes next to never."""
    return low + (high - low) * (1 - 1e-9)
