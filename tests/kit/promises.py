"""What an agent promises, as judged by one who sees all: the service, the record, every request.

Nothing here waits or asks a clock: a model of the agent's surroundings (kit.world) tells it what
happens. The bounds are those of the README, for an agent that computes in no time.
"""

import math
from typing import Any

TTL = 60.0  # seconds that a record lives after each request that the registry took
SLICE = 1.0  # seconds, the longest wait in one go: a freeze is noticed at its end
ENOUGH = 3  # failed requests and probes since the last accepted request that may cost the record
MOST_REQUESTS = 30  # to the registry in any two intervals
FEWEST_BEATS = 7  # from look to look, where nothing makes the agent doubt
LONGEST_RUN = 6000.0  # seconds
STOP = 3.0  # seconds until it has ended, and DRAIN_SECONDS


class PromiseError(AssertionError):
    """A promise was not kept."""


class Promises:
    """Told of everything that happens; raises PromiseError as soon as a promise is not kept.

    The record may expire (`excused`) while the service is down, after ENOUGH failures, and after a
    freeze. However it vanished, it is back by `due_by`, reckoned from the last thing that went
    wrong. Times are seconds of the true clock.
    """

    def __init__(self, settings: Any) -> None:
        self.settings = settings
        self.two_intervals = 2 * settings.heartbeat_interval  # for which the agent takes it to live
        self.now = 0.0
        self.frozen_for = 0.0  # seconds in all
        # The service, as its probes show it.
        self.failed_probes = self.good_probes = 0  # in a row
        self.seen = False  # it was healthy once
        self.down = False
        self.probed_at = -math.inf
        self.fresh = False  # healthy, and the agent has not waited since
        # The registry and the record.
        self.takes_registrations = self.takes_heartbeats = True
        self.store_lost = False  # it takes heartbeats for any name
        self.expires = math.inf
        self.absent_since: float | None = 0.0
        self.due_by = 0.0
        self.excused = True
        self.failures = 0
        # What the agent was told.
        self.accepted_at = -math.inf  # when it sent the last request that it knows to be accepted
        self.registered = False  # a registration was accepted
        self.doubts = False  # it was told that there is no record, and nothing has proved it since
        self.misled = False  # by a list, at least once
        self.look_failed = False  # and nothing was accepted since
        self.gives_up = False  # there is no record any more, as far as it knows
        self.failed_registrations = 0  # in a row
        self.asked_until = -math.inf  # as a Retry-After asks for, which the agent may heed
        self.wait_until = -math.inf  # as one asks for that a registration has to heed
        # What it said and did.
        self.promised = 0.0  # the next line of the health file
        self.grid = math.nan  # one of the moments of its heartbeats, by its clock
        self.beats = FEWEST_BEATS  # accepted requests since the last look at the list
        self.sent: list[float] = []  # times of all requests to the registry
        self.stopped_at = math.inf
        self.deregistrations = 0
        self.goes_on()

    @property
    def present(self) -> bool:
        return self.absent_since is None

    @property
    def takes_anything(self) -> bool:
        return self.takes_heartbeats or self.takes_registrations

    # Time

    def passes(self, seconds: float) -> None:
        self.now += seconds
        if self.now > LONGEST_RUN:
            raise PromiseError("it never settles")
        if self.now > self.promised + 0.1:
            raise PromiseError(f"the health file is {self.now - self.promised:.1f} s late")
        if self.now > self.stopped_at + STOP + self.settings.drain_seconds:
            raise PromiseError(f"it runs {self.now - self.stopped_at:.1f} s after the signal")
        self.expire()
        if self.absent_since is not None and self.now > self.due_by:
            raise PromiseError(f"the record is absent for {self.now - self.absent_since:.0f} s")

    def freezes(self, seconds: float) -> None:
        """Note that time passes in which it cannot run, in a wait of its own."""
        self.excused = True
        self.now += seconds
        self.frozen_for += seconds
        self.promised = max(self.promised, self.now + SLICE)
        self.expire()
        self.goes_on()
        in_order = self.registered and not (
            self.down or self.gives_up or self.failed_probes or self.failed_registrations
        )
        in_order = in_order and self.takes_registrations
        if in_order and self.now > self.accepted_at + self.two_intervals:
            self.due_by = min(self.due_by, self.now + 2 * SLICE)

    def waits(self, seconds: float, until: float) -> None:
        """Judge until which moment of its clock it waits: where all is well, for the next beat."""
        calm = self.registered and self.takes_registrations and self.takes_heartbeats
        calm = calm and not (self.failures or self.failed_probes or self.down or self.gives_up)
        if calm and seconds > 0:
            off = math.remainder(until - self.grid, self.settings.heartbeat_interval)
            if abs(off) > 0.001:
                raise PromiseError(f"a heartbeat {off:.1f} s off the grid")
            self.grid = until

    def expire(self) -> None:
        if self.now > self.expires:
            if not self.excused:
                raise PromiseError(f"the record expires after {self.failures} failures")
            self.vanishes(self.expires)

    def goes_on(self, since: float | None = None) -> None:
        """Reckon from now, or from then, how long an absence may last if all goes well."""
        start = self.now if since is None else since
        interval = self.settings.heartbeat_interval
        bound = interval + 1
        if self.failed_registrations:
            bound += min(2.0**self.failed_registrations, 60.0)
        if self.failed_probes or self.down:
            bound += 5
        if self.store_lost:
            bound += 10 * interval  # until the list is looked at
        if not self.takes_heartbeats:
            bound += interval  # nothing tells of an absence
        if not self.takes_registrations:
            bound = math.inf
        self.due_by = max(start, self.asked_until) + bound

    # The record

    def vanishes(self, since: float) -> None:
        """Note that the registry has had no record since then."""
        self.expires, self.absent_since = math.inf, since
        self.goes_on(since)

    def lives(self, lasts: float, known: bool) -> None:
        """Note that the registry took a request for the record; whether the agent hears of it."""
        if known:
            self.excused, self.failures = self.down or not self.takes_anything, 0
        elif not self.present:
            self.excused = True
        self.absent_since, self.expires = None, self.now + lasts

    # Requests, and what comes of them

    def goes_wrong(self) -> None:
        """Note that a request or a probe fails, now or when it is late."""
        self.failures += 1
        enough = ENOUGH if self.takes_heartbeats else 1
        self.excused = self.excused or self.failures >= enough
        self.goes_on()

    def probed(self, well: bool) -> None:
        known = self.registered or self.seen  # else INITIAL_WAIT_TIMEOUT may end a wait early
        soon = self.now < self.probed_at + self.settings.pace
        if known and soon and (self.failed_probes or self.down):
            raise PromiseError("a probe right after one of a service that is not well")
        self.probed_at = self.now
        self.failed_probes = 0 if well else self.failed_probes + 1
        self.good_probes = self.good_probes + 1 if well else 0
        self.seen, self.fresh = self.seen or well, well
        if self.good_probes >= 2:
            self.down = False
        elif (self.registered or self.seen) and (
            self.failed_probes >= self.settings.service_health_retries
        ):
            self.down = self.excused = self.gives_up = True
        if not well:
            self.goes_on()

    def sends(self, what: str) -> None:
        """Judge that a request is sent to the registry."""
        if self.stopped_at < math.inf:
            raise PromiseError(f"a {what} of an agent that stops")
        self.sent.append(self.now)
        before = self.sent[-1 - MOST_REQUESTS] if len(self.sent) > MOST_REQUESTS else -math.inf
        if self.now < before + self.two_intervals:
            raise PromiseError(f"more than {MOST_REQUESTS} requests in two intervals")
        if what == "look":
            if self.beats < FEWEST_BEATS and not self.doubts:
                raise PromiseError(f"a look {self.beats} heartbeats after the one before")
            self.beats = 0
        if what != "look" and self.down:
            raise PromiseError(f"a {what} for a service that is down")
        if what == "heartbeat" and self.now > self.accepted_at + self.two_intervals + SLICE:
            late = self.now - self.accepted_at
            raise PromiseError(f"a heartbeat {late:.1f} s after the last accepted request")

    def registers(self, changed: bool) -> None:
        """Judge that a registration is sent; whether the service has changed since the last."""
        self.sends("register")
        told = self.doubts or self.gives_up or self.look_failed
        last = self.settings.heartbeat_interval / 4 + self.settings.service_health_timeout
        early = self.now < self.accepted_at + self.two_intervals - last - 0.1
        if self.registered and early and not changed and not told:
            raise PromiseError("a registration for nothing")
        if not self.seen and not self.registered:  # "registering it anyway"
            since = self.now - self.settings.initial_wait_timeout
            if since < 0:
                raise PromiseError("a registration before the service was ever healthy")
            since -= self.frozen_for
            if not self.failed_registrations and since > self.settings.service_health_timeout + 0.1:
                raise PromiseError(f"first registration {since:.1f} s after its time")
            return
        if self.failed_probes:
            raise PromiseError("a registration right after a failed probe")
        if not self.present and not self.fresh:
            raise PromiseError("the record is put back, and the service was not probed before")
        if self.now < self.wait_until - 0.001:
            left = self.wait_until - self.now
            raise PromiseError(f"a registration {left:.1f} s before Retry-After allows it")

    def accepted(self, what: str, sent_at: float) -> None:
        """Note that the agent is told that a registration or a heartbeat is accepted."""
        self.accepted_at = sent_at
        self.failed_registrations, self.gives_up, self.look_failed = 0, False, False
        self.asked_until = self.wait_until = -math.inf
        self.beats += 1
        if not self.seen:
            self.failed_probes = 0  # registered all the same, so they count from here
        self.registered = self.registered or what == "register"

    def not_known(self, by_look: bool) -> None:
        """Note that the agent is told that there is no record: it registers at once.

        After a look it does where nothing has made it doubt before.
        """
        self.gives_up = self.gives_up or not by_look
        self.excused = self.excused or (self.gives_up and self.now < self.asked_until)
        if not self.failures and self.takes_registrations and not (by_look and self.doubts):
            self.due_by = min(self.due_by, self.now + 1)
        self.doubts, self.misled = True, self.misled or by_look

    def looked(self, found: bool) -> None:
        """Note what else a look at the list brought: that it has the name, or nothing."""
        self.look_failed = not found
        self.doubts = self.misled or (self.doubts and not found)

    def failed(self, what: str, wait: float) -> None:
        """Note that the agent is told, or finds, that a registration or a heartbeat failed."""
        # While the record lives, as far as the agent knows, to keep it comes first.
        no_record = self.gives_up or self.now > self.accepted_at + self.two_intervals
        if what == "register":
            self.failed_registrations += 1
            self.wait_until = self.now + wait if no_record else self.wait_until
        if what == "register" or no_record:
            self.asked_until = max(self.asked_until, self.now + wait)
        self.excused = self.excused or (no_record and wait > 0)
        self.goes_on()

    def shows(self, promise: float, state: str, ready_until: float) -> None:
        self.promised = promise
        if state == "down" and not self.down:
            raise PromiseError(f"down after {self.failed_probes} failed probes in a row")
        if ready_until > max(self.now, self.accepted_at + self.two_intervals) + 0.001:
            raise PromiseError("ready for longer than the record lives")

    def stops(self) -> None:
        self.stopped_at = self.now
        self.expires = self.due_by = math.inf

    def ended(self, code: int) -> None:
        if code != 0:
            raise PromiseError(f"exit code {code}")
        if self.deregistrations != (self.settings.deregister_on_exit and self.registered):
            raise PromiseError(f"{self.deregistrations} deregistrations at the end")
