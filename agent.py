#!/usr/bin/env python3
"""Registry sidecar: keeps the service beside it registered in a service registry.

One loop; each state is a method of `Agent` that blocks, and returns the state that follows:

    waiting -> registering -> registered
                 |   ^  ^       |   |
                 |   |  +-------+   |     nothing was accepted for two intervals
                 v   |              |
               service_down <-------+

SIGTERM or SIGINT in any state leads to `stop`: deregister, drain, exit 0. `--check` only looks.

To know the job, read to the end of `Record`. Each part below serves those above it: the registry
and the service, the sign of life, the look before a start, settings, rules, the log, an exchange,
waiting.

Nothing waits without a bound: `Signals.wait` is the only place that waits, and each byte of a
peer's answer comes in through a `PatientSocket`. A signal raises nowhere but in `Signals.wait`;
from there it ends an exchange as an error of the socket would.
"""

from __future__ import annotations

import signal

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

if __name__ == "__main__":
    # The imports below are slow, and PID 1 never gets a signal that it has no handler for, unless
    # the signal is blocked until there is one (Signals.install). One that comes before this line
    # is lost on PID 1: Docker kills the container after its grace period.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

import _thread
import base64
import contextlib
import email.utils
import errno
import functools
import http.client
import itertools
import json
import logging
import math
import os
import random
import re
import select
import socket
import stat
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

with warnings.catch_warnings():
    # requests remarks that the image has no charset_normalizer.
    warnings.simplefilter("ignore")
    import requests
    from requests.adapters import HTTPAdapter
    from requests.structures import CaseInsensitiveDict

try:
    import ssl

    from urllib3.util.ssltransport import SSLTransport
except ImportError:  # the default image is built without TLS
    ssl = None  # type: ignore[assignment]

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -I` leaves it out
import healthcheck

VERSION = "1.1.0"  # the Dockerfile's is held to it
REGISTRY_TTL = 60.0  # seconds without a heartbeat after which the registry drops a record

# What an answer of the registry means.
ACCEPTED = "accepted"  # or, of a look: the record is there
LOST = "lost"  # the registry has no record of the name
REFUSED = "refused"  # because of the token
FAILED = "failed"  # in any other way, no answer among them

Clock = Callable[[], float]  # healthcheck.clock, or a test's
Uniform = Callable[[float, float], float]  # random.uniform, or a test's
T = TypeVar("T")


def main(arguments: Sequence[str] = ()) -> int:
    """Do what the arguments ask for; without any, run the agent.

    Return the exit code: 0 stopped, or all is fine; 1 a bug, no network, or something is not
    fine; 2 bad settings or arguments; 130 a check was interrupted.
    """
    open_standard_files()
    checks = list(arguments) == ["--check"]
    if arguments and not checks:
        return print_about(arguments)
    signals = Signals()
    signals.install()
    log_to = Log(plain=checks)
    log_to.set_up("INFO", os.environ.get("LOG_FORMAT", "").strip().lower() == "json")
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        for problem in error.args:
            log.error("Bad setting: %s", say_problem(*problem))
        for doubt in doubts_about_names(os.environ):
            log.warning("%s", doubt)
        return 2
    keep_credentials(settings)
    doubts = doubts_about(settings, os.environ)
    try:
        if checks:
            return Check(settings, signals).run(doubts)
        log_to.set_up(settings.log_level, settings.log_format == "json")
        log.info("Registry sidecar starts: version %s, %s", VERSION, say_settings(settings))
        for doubt in doubts:
            log.warning("%s", doubt)
        return new_agent(settings, signals).run()
    except Stop:  # of a check
        return 130
    except Exception:
        log.exception("A bug in the sidecar; exit 1, so that the restart policy starts it again")
        return 1


def new_agent(settings: Settings, signals: Signals) -> Agent:
    """Return an agent with the real registry, service, sign of life and network."""
    registry, service = choose_registry(settings, signals), Service(settings, signals)
    life, network = SignOfLife(settings.heartbeat_file), Network()
    return Agent(settings, signals, registry, service, life, network)


def open_standard_files() -> None:
    """Open what is closed of stdin, stdout and stderr, or a socket would get the log's number."""
    while os.open("/", os.O_RDONLY) <= 2:
        pass


def print_about(arguments: Sequence[str]) -> int:
    """Print the version or the usage; return the exit code, 2 where neither was asked for."""
    text = {"--version": VERSION, "--help": usage()}.get(" ".join(arguments))
    print(text or usage(), file=sys.stdout if text else sys.stderr)
    return 0 if text else 2


# ------------------------------------------------------------------------------------ the agent

LOG_AGAIN = 30.0  # seconds between repeated lines about one lasting fault
GOOD_PROBES = 2  # in a row, for the way back of a service that was down
TRY_AGAIN = 2.5  # seconds between attempts to write a heartbeat file that cannot be written

State = Callable[[], Any]  # blocks, and returns the state that follows


class Agent:
    """Keeps one service registered. All that it deals with is passed in."""

    def __init__(
        self,
        settings: Settings,
        signals: Signals,
        registry: Registry,
        service: Service,
        life: SignOfLife,
        network: Network,
        clock: Clock = healthcheck.clock,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.settings, self.signals, self.clock, self.uniform = settings, signals, clock, uniform
        self.service, self.life, self.network = service, life, network
        self.record = Record(settings, registry, service, life, clock, uniform)

    def run(self) -> int:
        """Go from state to state until a signal comes; return the exit code."""
        state: State = self.waiting
        try:
            while True:
                state = state()
        except Stop:
            return self.stop()

    # The states

    def waiting(self) -> State:
        """Wait until the service is healthy, or INITIAL_WAIT_TIMEOUT has passed."""
        since, patience, said = self.clock(), self.settings.initial_wait_timeout, -math.inf
        self.life.show("waiting", since, self.service.problem)
        while not self.probe():
            now, problem = self.clock(), self.service.problem
            self.life.show("waiting", since, problem)
            if now >= since + patience:
                waited = f"Service not healthy after {say_seconds(patience)}: {problem}"
                log.warning("%s; registering it anyway", waited)
                return self.registering
            if now >= said + LOG_AGAIN:
                log.warning("Waiting for the service at %s: %s", self.service.place, problem)
                said = now
            self.pause(min(since + patience - now, self.probe_wait()))
        log.info("Service is READY")
        return self.registering

    def registering(self) -> State:
        """Repeat the registration, with backoff, until the registry takes it.

        The first one follows a probe, a good one unless INITIAL_WAIT_TIMEOUT has passed without;
        each later one has a probe of its own.
        """
        self.life.show("registering", self.clock())
        for attempt in itertools.count(1):
            answer = self.record.register(self.settings.registry_timeout)
            if answer.meaning == ACCEPTED:
                return self.registered
            wait = backoff(attempt, self.uniform) + answer.retry_after
            self.record.note_failure("Registration", answer, wait)
            self.pause(wait)
            if not self.service.seen:
                # It is registered anyway, and perhaps healthy by now.
                self.probe()
            elif not self.is_healthy():
                break
        return self.service_down

    def registered(self) -> State:
        """Probe and send a heartbeat in every slot; repeat a failed one inside the slot."""
        due, failures = self.record.due(), 0
        while True:
            self.pause(due - self.clock())
            # A retry does without a probe, because hanging probes and failing heartbeats together
            # would cost the record. But a registration needs a probe right before it.
            probed = not failures or self.record.wants_registration()
            if probed and not self.is_healthy():
                return self.service_down
            if self.record.left() <= 0:
                log.warning("No heartbeat accepted for two intervals; registering again")
                return self.registering
            answer = self.record.refresh(may_register=probed)
            if answer.meaning == LOST:
                if not probed and not self.is_healthy():
                    return self.service_down
                answer = self.record.renew()
            if answer.meaning == ACCEPTED:
                if probed:
                    self.record.look()
                due, failures = self.record.due(), 0
            else:
                failures += 1
                due = self.clock() + self.record.retry_wait(failures, answer)

    def service_down(self) -> State:
        """Send nothing, so that the record expires, until the service is healthy again."""
        since = said = self.clock()
        # Nothing is sent from now on that could end it.
        self.record.outage = None
        down = "Service is DOWN: %s; no heartbeat until it is healthy again"
        log.error(down, self.service.problem)
        good = 0
        while good < GOOD_PROBES:
            self.life.show("down", since, self.service.problem)
            self.pause(self.probe_wait())
            now, good = self.clock(), good + 1 if self.probe() else 0
            if not good and now >= said + LOG_AGAIN:
                problem = self.service.problem
                log.warning("Service has been DOWN for %.0f s: %s", now - since, problem)
                said = now
        log.info("Service is READY again after %.0f s", self.clock() - since)
        return self.registering

    def stop(self) -> int:
        """Try once, shortly, to deregister; the exit code is 0 whatever comes of it."""
        self.signals.mask()
        log.info("Stopping")
        self.life.show("stopping", self.clock())
        if self.record.withdraw() and self.settings.drain_seconds:
            self.drain(self.settings.drain_seconds)
        return 0

    def drain(self, duration: float) -> None:
        """Live on, so that callers notice before the service goes. Another signal ends it."""
        log.info("Draining for %s; another signal ends it", say_seconds(duration))
        self.life.show("draining", self.clock())
        self.life.promise(duration)
        with contextlib.suppress(Stop):
            self.signals.unmask()
            self.signals.pause_until(self.clock() + duration)
        self.signals.mask()

    # What the states do

    def probe(self) -> bool:
        """Look once whether the service is healthy."""
        self.life.promise(self.settings.service_health_timeout)
        return self.service.probe()

    def is_healthy(self) -> bool:
        """Probe until it is healthy, or SERVICE_HEALTH_RETRIES probes in a row have failed."""
        retries = self.settings.service_health_retries
        for attempt in range(1, retries + 1):
            if self.probe():
                return True
            log.warning("Health probe %d of %d failed: %s", attempt, retries, self.service.problem)
            if attempt < retries:
                self.pause(self.settings.pace * self.uniform(1.0, 2.0))
        return False

    def probe_wait(self) -> float:
        """Return the seconds until the next probe of a service that is not healthy."""
        return min(self.uniform(1.0, 2.0), self.settings.heartbeat_interval)

    def pause(self, duration: float) -> None:
        """Sleep so many seconds, by the clock. Raises Stop."""
        end = self.clock() + max(duration, 0.0)
        exchanges = self.settings.service_health_timeout + self.settings.registry_timeout
        self.life.promise(end - self.clock() + exchanges)
        while self.life.fails and self.clock() + TRY_AGAIN < end:
            self.signals.pause_until(self.clock() + TRY_AGAIN)
            self.life.promise(end - self.clock() + exchanges)
        self.signals.pause_until(end)
        self.network.check()


# ----------------------------------------------------------------------------------- the record

# A look at the list follows 7 to 10 heartbeats, a number drawn anew each time: behind a balancer
# that takes turns, a constant one would look at the same replica each time.
LOOK_EVERY = 7, 11
# After a look that missed the name, so many in a row have to find it. With the registrations
# between them, five replicas that each answer from a memory of their own then have it: simulated,
# 1 name in 1,000 is missing from a list 40 intervals after the loss of all, 1 in 10,000 after 100.
PROOF = 15


class Record:
    """The service's record in the registry: how long it lives, and what keeps it alive and true.

    It lives for two intervals. With the default of 30 s, where heartbeats fail:

        seconds left   what happens
        30             the slot begins: a probe, a heartbeat that may take 10 s
        20 ... 12.5    heartbeats; before each a wait of at most half of what is left
        12.5 ... 0     the same, but each a probe, a registration and only then a heartbeat
        0              the state `registering`

    So a registry that answers, but accepts registrations alone, gets one in time: the 12.5 s are a
    quarter of the interval, and SERVICE_HEALTH_TIMEOUT for the probe.

    Attributes: the `metadata` that the registry last took, when it last accepted a registration or
    a heartbeat, the `outage` under way. `doubt` is how many looks in a row have still to find the
    name. While there is doubt, each heartbeat is a registration, followed by a look.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        service: Service,
        life: SignOfLife,
        clock: Clock,
        uniform: Uniform,
    ) -> None:
        self.settings, self.registry, self.service, self.life = settings, registry, service, life
        self.clock, self.uniform = clock, uniform
        # A fleet started together neither beats together nor looks for its records together.
        self.phase = clock() + uniform(0, settings.heartbeat_interval)
        self.lifetime = min(2 * settings.heartbeat_interval, registry.TTL)
        self.look_in = int(uniform(1, LOOK_EVERY[1]))  # heartbeats until the next look
        self.doubt = 0
        self.lost = False  # a heartbeat was told so, and nothing was accepted since
        self.renewed = False  # the last registration was accepted
        self.metadata: Mapping[str, str] | None = None
        self.accepted_at = -math.inf
        # Since when requests have failed in a row (seconds of the clock), and how many.
        self.outage: tuple[float, int] | None = None

    # How long it lives

    def due(self) -> float:
        """Return the moment of the next heartbeat."""
        return next_beat(self.phase, self.settings.heartbeat_interval, self.accepted_at)

    def expiry(self) -> float:
        """Return the moment until which the record lives."""
        return self.accepted_at + self.lifetime

    def left(self) -> float:
        """Return the seconds for which it lives."""
        return self.expiry() - self.clock()

    def room(self) -> float:
        """Return the seconds in which heartbeats may still be tried.

        After them it takes a registration, which needs a probe, however long that takes.
        """
        needed = self.settings.heartbeat_interval / 4 + self.settings.service_health_timeout
        return self.left() - needed

    def next_timeout(self) -> float:
        """Return the deadline of a request that others may have to follow.

        Half of what is left; a heartbeat that might be the last one ends where there is no room.
        """
        room, half = self.room(), self.left() / 2
        timeout = max(min(room, half) if room > 0 else half, self.settings.pace * FIRST_WAIT)
        return min(self.settings.registry_timeout, timeout)

    def wants_registration(self) -> bool:
        """Tell whether the next request is a registration, which is a heartbeat as well."""
        changed = self.service.metadata != self.metadata
        return changed or self.doubt > 0 or self.room() <= 0

    # What keeps it alive

    def ask(self, request: Callable[[float], Answer], timeout: float) -> Answer:
        """Send a registration or a heartbeat; note that it was accepted, if it was."""
        self.life.promise(timeout)
        now = self.clock()  # the TTL may have begun at any moment since
        answer = request(timeout)
        if answer.meaning == ACCEPTED:
            self.accepted_at, self.lost = now, False
            if self.outage:
                since, failures = self.outage
                log.info("Registry is back after %.0f s (failures: %d)", now - since, failures)
            self.outage = None
            self.life.show("registered", now, ready=self.expiry())
        return answer

    def register(self, timeout: float) -> Answer:
        """Send the whole record once."""
        settings, metadata = self.settings, self.service.metadata
        answer = self.ask(functools.partial(self.registry.register, metadata), timeout)
        self.renewed = answer.meaning == ACCEPTED
        if self.renewed:
            words = (settings.service_name, settings.endpoint, say_plain(metadata))
            log.info("Service registered successfully: %s at %s %s", *words)
            if self.metadata is None:
                interval = say_seconds(settings.heartbeat_interval)
                log.info("Starting heartbeat loop: every %s", interval)
            self.metadata = metadata
        return answer

    def renew(self) -> Answer:
        """Register once, in time for more; tell where that fails."""
        answer = self.register(self.next_timeout())
        if not self.renewed:
            log.warning("Registration failed: %s; heartbeats continue", answer.advice)
        return answer

    def refresh(self, may_register: bool) -> Answer:
        """Keep the record for another TTL: by a registration where it wants one, or a heartbeat.

        A registration that fails is followed by the heartbeat, which may be accepted all the same.
        """
        failed = None
        if may_register and self.wants_registration():
            if self.metadata not in (None, self.service.metadata):
                log.info("Service has changed: %s", say_plain(self.service.metadata))
            failed = self.renew()
            if failed.meaning == ACCEPTED:
                return failed
        answer = self.ask(self.registry.heartbeat, self.next_timeout())
        if answer.meaning == ACCEPTED:
            log.info("Heartbeat accepted")
        elif answer.meaning == LOST:
            self.lost = True
            self.note_loss(answer, max(self.doubt, 1))
        return failed if failed and self.lost else answer

    def retry_wait(self, failures: int, answer: Answer) -> float:
        """Note that a slot's heartbeat has failed so often; return the seconds until the next."""
        pace = self.settings.pace
        wait, mercy = pace * backoff(failures, self.uniform), answer.retry_after
        # What the registry asks for comes first only where there is no record to lose.
        if self.lost:
            wait = wait_in_slot(wait, self.left(), pace * FIRST_WAIT) + mercy
        else:
            wait = wait_in_slot(wait + mercy, self.left(), pace * FIRST_WAIT)
        self.note_failure("Heartbeat", answer, wait, ready=0.0 if self.lost else self.expiry())
        return wait

    # What keeps it true

    def look(self) -> None:
        """Look now and then whether the registry has the record; register where it has not.

        Because some registries accept a heartbeat whatever has become of the record. A look may be
        wrong as well, so the heartbeats go on whatever comes of it. One without a usable answer
        also leads to a registration, unless there is doubt already, and changes nothing else.
        """
        self.look_in -= 1
        if self.look_in > 0:
            return
        timeout = self.next_timeout()
        self.life.promise(timeout)
        answer = self.registry.look(timeout)
        again = not self.doubt
        if answer.meaning == LOST:
            # In doubt, the toss of a coin decides. Always two requests in an interval, or always
            # three, might meet the same replicas each time.
            again = again or (self.renewed and self.uniform(0, 1) < 0.5)
            self.note_loss(answer, PROOF)
        elif answer.advice:
            log.warning("%s", answer.advice)
        if answer.meaning == ACCEPTED:
            self.doubt = max(self.doubt - 1, 0)
            again = False
        if self.look_in <= 0:
            self.look_in = 1 if self.doubt else int(self.uniform(*LOOK_EVERY))
        if again:
            self.renew()

    def withdraw(self) -> bool:
        """Try once, shortly, to deregister what was registered; tell whether it is gone."""
        # Where no registration was accepted, the record there is somebody else's. One that was
        # carried out after all, its answer cut off, expires by itself.
        if not self.settings.deregister_on_exit or self.metadata is None:
            return False
        self.life.promise(STOP_TIMEOUT)
        answer = self.registry.deregister(STOP_TIMEOUT)
        if answer.meaning == ACCEPTED:
            log.info("%s", answer.advice or "Service deregistered")
        else:
            log.warning("Deregistration failed: %s; the record expires by itself", answer.advice)
        return answer.meaning == ACCEPTED

    def note_failure(self, what: str, answer: Answer, wait: float, ready: float = 0.0) -> None:
        """Note and log a failed request; the next one follows after `wait` seconds."""
        since, failures = self.outage or (self.clock(), 0)
        self.outage = since, failures + 1
        words = (what, failures + 1, answer.advice, wait)
        log.warning("%s failed (attempt %d): %s; next in %.1f s", *words)
        state = "failing" if answer.status else "unreachable"
        self.life.show(state, since, answer.say(), failures + 1, ready)

    def note_loss(self, answer: Answer, doubt: int) -> None:
        """Note that the registry seems to have no record, and how many looks are to prove one.

        The first of them follows the next accepted request that follows a probe.
        """
        self.doubt, self.look_in = doubt, 1
        self.life.show("registering", self.clock())
        lost = "Service not found (404): the registry has lost the record (%s); registering again"
        log.warning(lost, answer.advice)


# --------------------------------------------------------------------------------- the registry


class Registry:
    """Vértice's registry: what is sent there, and what its answers mean.

    No other part knows a path, a header or a wording of it. The deployed one answers otherwise
    than it is documented: 500 for a name that it does not know, and 500 for a wrong token.
    """

    TTL = REGISTRY_TTL
    TOKEN_HEADER = "X-Registry-Token"
    REFUSAL = "failed: 401:|[Ii]nvalid registry token"
    UNKNOWN = "not registered"
    PORT_HINT = (
        " (8888 is its port on the host; inside its Docker network it is 80: check REGISTRY_URL)"
    )

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self.settings = settings
        url = web_url(settings.registry_url)
        self.peer = Peer(url, signals, True, whom_to_trust(settings, "REGISTRY_CA_FILE", url))
        self.token = choose_token(settings)
        self.reached = False  # whether it has ever accepted a request

    def register(self, metadata: Mapping[str, str], timeout: float) -> Answer:
        """Put the record there, or renew it. Whatever it holds is replaced."""
        settings = self.settings
        record = {
            "service_name": settings.service_name,
            "endpoint": settings.endpoint,
            "health_endpoint": settings.health_endpoint,
            "metadata": metadata,
        }
        return self.ask("POST", "/register", timeout, record)

    def heartbeat(self, timeout: float) -> Answer:
        """Keep the record for another TTL."""
        name = {"service_name": self.settings.service_name}
        return self.ask("POST", "/heartbeat", timeout, name, unknown=LOST)

    def deregister(self, timeout: float) -> Answer:
        """Remove the record."""
        path = f"/deregister/{self.settings.service_name}"
        return self.ask("DELETE", path, timeout, unknown=ACCEPTED)

    def look(self, timeout: float) -> Answer:
        """Look for the record, since a heartbeat is accepted whatever happens to the store.

        In the list: errors of GET /services/{name} make the balancer cut the registry off.
        """
        answer = self.ask("GET", "/services", timeout)
        names = answer.json() if answer.meaning == ACCEPTED else None
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            # A list of more than 64 KB is none.
            why = answer.advice or answer.say()
            advice = f"GET /services does not tell whether the record is there: {why}"
            return answer._replace(meaning=FAILED, advice=advice)
        if self.settings.service_name in names:
            return answer
        advice = "heartbeats are accepted, but GET /services does not list it"
        return answer._replace(meaning=LOST, advice=advice)

    def prove_token(self, timeout: float) -> Answer:
        """Ask for what changes nothing, but needs the token: LOST proves that it is accepted."""
        name = {"service_name": "sidecar-check"}
        answer = self.ask("POST", "/heartbeat", timeout, name, unknown=LOST)
        proves_nothing = "not proven: the registry takes heartbeats of names that it does not know"
        return answer._replace(advice=proves_nothing) if answer.meaning == ACCEPTED else answer

    def ask(
        self, method: str, path: str, timeout: float, content: object = None, unknown: str = FAILED
    ) -> Answer:
        """Exchange one request. `unknown` is what it means that the registry has no record."""
        token, headers, body = self.token.now(), {}, b""
        if token:
            headers[self.TOKEN_HEADER] = token
        if content is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(content, separators=(",", ":")).encode()
        answer = self.peer.exchange(method, path, headers, body, timeout)
        answer = answer._replace(meaning=self.judge(answer, unknown))
        if answer.meaning == ACCEPTED:
            self.reached = True
            return answer
        lost = answer.meaning == LOST
        return answer._replace(advice=answer.say() if lost else self.say_advice(answer))

    def judge(self, answer: Answer, unknown: str) -> str:
        """Return what an answer means. A web page is no registry's, whatever its status."""
        said = answer.message() if answer.status >= 500 else ""
        lost = answer.status in (404, 410) or re.search(self.UNKNOWN, said)
        if answer.status in (401, 403) or (not lost and re.search(self.REFUSAL, said)):
            return REFUSED
        if answer.is_page:
            return FAILED
        if answer.ok:
            return ACCEPTED
        return unknown if lost else FAILED

    def say_advice(self, answer: Answer) -> str:
        """Say what went wrong and, where the answer proves it, which variable to set."""
        url = self.settings.registry_url
        where = f"registry at {say_value(url)}"
        if answer.meaning == REFUSED:
            return f"{where} {self.say_refusal(answer)}"
        said = f"{where} answered {answer.say()}" if answer.status else f"{where}: {answer.say()}"
        secure, plain = ("consul-tls", "consul") if is_consul(url) else ("https", "http")
        place = "set REGISTRY_URL to where the registry is"
        begin = "begin REGISTRY_URL with"
        fix = say_fix(answer, "REGISTRY", f"{begin} {secure}://", f"{begin} {plain}://", place)
        if answer.ok or 300 <= answer.status < 400 or answer.status in (404, 405, 406):
            fix = place
        if fix:
            return f"{said}: {fix}"
        refused = isinstance(answer.failure, ConnectionRefusedError) and not self.reached
        return said + (self.PORT_HINT if refused and self.peer.wire.port == 8888 else "")

    def say_refusal(self, answer: Answer) -> str:
        """Say whose fault it is that the registry refuses a request, and how to mend it."""
        said = answer.say()
        wants = answer.headers.get("WWW-Authenticate", "").strip().lower()
        if wants.startswith("basic") or "Authorization" in self.peer.headers:
            return f"refuses the user or the password ({said}): put them into REGISTRY_URL"
        if not self.token.now():
            fix = "set REGISTRY_TOKEN or REGISTRY_TOKEN_FILE"
            return f"asks for a token, and none is set ({said}): {fix}"
        if self.token.path:
            fix = f"put the registry's token into the file that {self.token.name} names"
        else:
            fix = f"set {self.token.name} to the registry's token"
        return f"refuses the token ({said}): {fix}"


class Consul(Registry):
    """Consul's agent: the same by other requests, with one record for each replica.

    Not known: 500 in versions of before 2022, worded otherwise with ACLs, and 404 since.
    """

    TTL = math.inf  # a record has the one that it asks for, two intervals
    TOKEN_HEADER = "X-Consul-Token"
    REFUSAL = "Permission denied|ACL not found"
    UNKNOWN = "does not have associated TTL|Unknown check|Unknown service"

    def __init__(self, settings: Settings, signals: Signals) -> None:
        super().__init__(settings, signals)
        names = settings.service_name, settings.service_host, settings.service_port
        self.id = settings.service_id or "-".join(map(str, names))
        self.own_check = f"service:{self.id}"

    def register(self, metadata: Mapping[str, str], timeout: float) -> Answer:
        """Put the record there. Checks of others stay on it, an operator's maintenance among them.

        Consul leaves a check that was critical as it is, so a heartbeat follows.
        """
        settings = self.settings
        secure = {"scheme": "https", "secure": "true"} if settings.service_scheme == "https" else {}
        # What a user has set comes first, where there is too much.
        meta = consul_meta({**settings.service_metadata, **secure, **metadata})
        for key in metadata.keys() - meta.keys():
            log.warning("%s is left out of the record: Consul takes no such metadata", key)
        record = {
            "ID": self.id,
            "Name": settings.service_name,
            "Address": settings.service_host,
            "Port": settings.service_port,
            "Tags": settings.service_tags,
            "Meta": meta,
            "Check": {
                "TTL": f"{max(2 * settings.heartbeat_interval, 2):g}s",
                "Status": "passing",  # or it would be critical until the heartbeat
                "DeregisterCriticalServiceAfter": "1m",  # Consul takes no less
            },
        }
        answer = self.ask("PUT", "/v1/agent/service/register", timeout / 2, record)
        if answer.meaning == ACCEPTED:
            # Where this one fails, the next one does it.
            self.heartbeat(timeout / 2)
        return answer

    def heartbeat(self, timeout: float) -> Answer:
        """Let the record's own check pass for another TTL."""
        return self.ask("PUT", f"/v1/agent/check/pass/{self.own_check}", timeout, unknown=LOST)

    def deregister(self, timeout: float) -> Answer:
        """Remove the record; where others have checks on it, only take it out of traffic.

        For with it they would go, and a maintenance would end with the sidecar's next start.
        Consul removes it after a minute.
        """
        others = f'ServiceID == "{self.id}" and CheckID != "{self.own_check}"'
        answer = self.ask("GET", f"/v1/agent/checks?filter={quote(others, safe='')}", timeout / 2)
        if answer.meaning != ACCEPTED or not answer.json():
            path = f"/v1/agent/service/deregister/{self.id}"
            return self.ask("PUT", path, timeout / 2, unknown=ACCEPTED)
        path = f"/v1/agent/check/fail/{self.own_check}"
        answer = self.ask("PUT", path, timeout / 2, unknown=ACCEPTED)
        if answer.meaning != ACCEPTED:
            return answer
        advice = "Service taken out of traffic; its record has an operator's checks or maintenance"
        return answer._replace(advice=f"{advice}, so it is left for Consul to remove in a minute")

    def look(self, timeout: float) -> Answer:
        """Look whose record it is that has the ID of this one."""
        answer = self.ask("GET", f"/v1/agent/service/{self.id}", timeout, unknown=LOST)
        record = answer.json()
        if answer.meaning != ACCEPTED or not isinstance(record, dict):
            return answer
        settings = self.settings
        own = settings.service_name, settings.service_host, settings.service_port
        found = tuple(record.get(key) for key in ("Service", "Address", "Port"))
        if found == own:
            return answer
        other = say_plain(" ".join(map(str, found)))
        fix = "give each service a SERVICE_ID of its own, or none"
        return answer._replace(advice=f"The record {self.id} is another's ({other}): {fix}")

    def prove_token(self, timeout: float) -> Answer:
        """Ask for what changes nothing, but needs the token."""
        return self.look(timeout)


def choose_registry(settings: Settings, signals: Signals) -> Registry:
    """Return what speaks with the registry at REGISTRY_URL."""
    return (Consul if is_consul(settings.registry_url) else Registry)(settings, signals)


# ---------------------------------------------------------------------------------- the service


class Service:
    """The service beside the sidecar, as its probes show it.

    Attributes: `place`, where it is probed; `problem`, what the last failed probe brought; `seen`,
    whether it has ever been healthy; `told`, what it says of itself.
    """

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self.settings = settings
        # Each probe has a connection of its own: a kept one would occupy a server with one worker,
        # hold up its shutdown, and go on looking healthy when it takes no new ones.
        url = settings.health_url
        self.peer = Peer(url, signals, False, whom_to_trust(settings, "SERVICE_CA_FILE", url))
        self.port = Wire(settings.service_host, settings.service_port, signals)  # of a tcp check
        http_check = settings.service_health_check == "http"
        self.place = say_value(settings.health_url if http_check else settings.endpoint)
        name, path = "SERVICE_HEALTH_HEADERS_FILE", settings.service_health_headers_file
        self.headers: NamedFile[dict[str, str]]
        self.headers = NamedFile(name, path, read_headers, {}, header_secrets)
        self.problem = "no answer yet"
        self.seen = False
        self.told: dict[str, str] = {}

    @property
    def metadata(self) -> dict[str, str]:
        """What belongs into the record."""
        return self.told | self.settings.service_metadata

    def probe(self) -> bool:
        """Look once whether the service is healthy, within SERVICE_HEALTH_TIMEOUT."""
        kind = self.settings.service_health_check
        healthy = kind == "none" or (self.connects() if kind == "tcp" else self.answers())
        self.seen = self.seen or healthy
        return healthy

    def answers(self) -> bool:
        """Tell whether the health endpoint answers 2xx; note what it tells, if it is all there."""
        headers = {"Connection": "close"} | self.headers.now()
        timeout = self.settings.service_health_timeout
        answer = self.peer.exchange("GET", "", headers, b"", timeout)
        if not answer.ok or answer.late:
            fix = self.say_fix(answer)
            self.problem = answer.say() + (f"; {fix}" if fix else "")
            return False
        health = answer.json()
        if isinstance(health, dict):
            self.told = health_metadata(health)
        return True

    def connects(self) -> bool:
        """Tell whether the service's port takes a TCP connection."""
        self.port.begin(self.settings.service_health_timeout)
        try:
            self.port.open().close()
        except Exception as error:
            self.problem = say_failure(error)
            return False
        return True

    def say_fix(self, answer: Answer) -> str:
        """Say what may make the service healthy: no more than the answer proves."""
        if self.seen and answer.proof == CLOSED:
            return ""  # it has spoken HTTP before
        own = self.settings.service_health_endpoint.startswith("/")
        begin = "set SERVICE_SCHEME to" if own else "begin SERVICE_HEALTH_ENDPOINT with"
        tcp = "set SERVICE_HEALTH_CHECK to tcp"
        proven = say_fix(answer, "SERVICE", f"{begin} https", f"{begin} http", tcp)
        headers = "set SERVICE_HEALTH_HEADERS_FILE to a file with the headers that it wants"
        endpoint = "set SERVICE_HEALTH_ENDPOINT to its health check"
        by_status = {
            401: headers,
            403: headers,
            404: endpoint,
            405: f"it takes no GET there: {endpoint}, or {tcp}",
            406: f"it wants an Accept header: {headers}",
        }
        redirect = endpoint if 300 <= answer.status < 400 else ""
        return proven or by_status.get(answer.status, redirect)


def health_metadata(health: Mapping[str, Any]) -> dict[str, str]:
    """Return `version` and `status` as strings, where they are text, numbers or truths."""
    found = {key: health.get(key) for key in ("version", "status")}
    texts = {
        key: v if isinstance(v, str) else json.dumps(v)
        for key, v in found.items()
        if isinstance(v, str | int | float)
    }
    # A lone surrogate is no text that the registry could store: it would refuse it each time.
    return {key: v[:MAX_METADATA].encode("utf-8", "replace").decode() for key, v in texts.items()}


# ------------------------------------------------------------- the sign of life, and the network

GRACE = 5.0  # seconds that a promise in the heartbeat file allows for a slow machine
UNWRITABLE_FIX = "mount a tmpfs on /tmp, or set HEARTBEAT_FILE"
CUT_OFF = 120.0  # seconds with nothing but loopback, after which the network will not come back
# What every network namespace has: loopback, and the tunnels of some kernels.
BARE = "lo|(tunl|gre|gretap|erspan|ip_vti|ip6_vti|sit|ip6tnl|ip6gre)0"


class SignOfLife:
    """What stands in the heartbeat file, and until when: healthcheck.py judges it.

    `shown` is the state with what its sentence needs, see healthcheck.write.
    """

    def __init__(self, path: str, clock: Clock = healthcheck.clock) -> None:
        self.path, self.clock = path, clock
        self.shown: tuple[str, float, float, int, str] = ("starting", 0.0, clock(), 0, "")
        self.written: tuple[Any, ...] = ()
        self.promised = -math.inf
        self.fails = False  # whether the file could not be written

    def show(
        self, state: str, since: float, reason: str = "", attempt: int = 0, ready: float = 0.0
    ) -> None:
        """Set what the next write shows. `ready` is the moment until which the service is ready."""
        self.shown = (state, ready, since, attempt, reason)

    def promise(self, duration: float) -> None:
        """Promise the next write within so many seconds, and some grace.

        Usually the file promises that already.
        """
        until = self.clock() + duration + GRACE
        if until <= self.promised and self.shown == self.written:
            return
        try:
            healthcheck.write(self.path, until, *self.shown)
        except OSError as error:
            if not self.fails:
                words = say_value(self.path), say_failure(error), UNWRITABLE_FIX
                log.warning("HEARTBEAT_FILE=%s cannot be written: %s; %s", *words)
            self.fails = True
        else:
            self.promised, self.written = until, self.shown
            self.fails = False


class Network:
    """The network, which may be another container's: that has a new one when it has restarted."""

    def __init__(self, clock: Clock = healthcheck.clock) -> None:
        self.clock = clock
        self.was_there = False
        self.lost_at: float | None = None  # since when it has been gone
        self.check()

    def check(self) -> None:
        """Exit with code 1 once it has been gone for CUT_OFF seconds."""
        try:
            bare = all(re.fullmatch(BARE, name) for _, name in socket.if_nameindex())
        except OSError:
            return
        now = self.clock()
        if not bare:
            self.was_there, self.lost_at = True, None
        elif self.was_there and self.lost_at is None:
            self.lost_at = now
        if self.lost_at is not None and now - self.lost_at >= CUT_OFF:
            fix = "exit 1, so that the restart policy brings the sidecar into the new network"
            lost = "Network lost: nothing but loopback for %.0f s; %s"
            log.error(lost, now - self.lost_at, fix)
            raise SystemExit(1)


# ------------------------------------------------------------------------- the look before a start

FIXES = {  # what else may help where a probe's problem begins like this
    "connection refused": "is it up, not on 127.0.0.1 alone, and the port right? Check {}",
    "no answer within": "is it slow, or the address wrong? Set SERVICE_HEALTH_TIMEOUT or {}",
    "[0-9]{3}": "it answers, but says that it is not healthy: see its own log",
}


class Check:
    """A look at all that a start would need. It leaves nothing behind."""

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self.settings, self.fine = settings, True
        self.service, self.registry = Service(settings, signals), choose_registry(settings, signals)

    def run(self, doubts: Sequence[str]) -> int:
        """Print what is fine and what is not. Return the exit code: 0 or 1. Raises Stop."""
        settings, service, registry = self.settings, self.service, self.registry
        for doubt in doubts or [""]:
            self.tell("settings", "", doubt and f"but {doubt}")
        self.try_health_file()
        kind, elsewhere = settings.service_health_check, service.peer.wire.host != service.port.host
        # Then SERVICE_HOST is a name for callers alone, and perhaps known to them alone.
        for_callers = kind == "none" or (kind == "http" and elsewhere)
        timeout = settings.service_health_timeout
        if for_callers or self.look_up("SERVICE_HOST", service.port, timeout):
            self.probe()
        known = self.look_up("REGISTRY_URL", registry.peer.wire, settings.registry_timeout)
        if known and self.look():
            self.prove_token()
        return 0 if self.fine else 1

    def tell(self, what: str, problem: str, detail: str = "") -> None:
        """Print a line about one thing: that it is fine, or what is wrong."""
        detail = f"fine, {detail}" if detail else "fine"
        log.info("%s: %s", what, f"not fine: {problem}" if problem else detail)
        self.fine = self.fine and not problem

    def try_health_file(self) -> None:
        """Try whether the heartbeat file could be written."""
        path, problem = self.settings.heartbeat_file, ""
        try:
            healthcheck.try_out(path)
        except OSError as error:
            problem = f"{say_failure(error)}; {UNWRITABLE_FIX}"
        self.tell(f"HEARTBEAT_FILE, {say_value(path)}", problem, "it can be written")

    def look_up(self, variable: str, wire: Wire, timeout: float) -> bool:
        """Look a name up, and tell whether it is known."""
        wire.begin(timeout)
        found = problem = ""
        try:
            found = f"at {wire.any_address()}"
        except Exception as error:
            problem = f"{say_failure(error)}; share its network, or check {variable}"
        self.tell(f"{variable}, {wire.host}", problem, found)
        return not problem

    def probe(self) -> None:
        """Probe the service once."""
        settings, kind = self.settings, self.settings.service_health_check
        problem = "" if self.service.probe() else self.service.problem
        own = kind != "http" or settings.service_health_endpoint.startswith("/")
        fix = next((fix for start, fix in FIXES.items() if re.match(start, problem)), "")
        if fix and "; " not in problem:
            problem += "; " + fix.format("SERVICE_PORT" if own else "SERVICE_HEALTH_ENDPOINT")
        self.tell(f"{kind} probe of {self.service.place}", problem)

    def look(self) -> bool:
        """Look once for the record; tell whether the registry has said whether it is there."""
        answer = self.registry.look(self.settings.registry_timeout)
        listed = "not yet" if answer.meaning == LOST else "already"
        found = f"{self.settings.service_name} is {listed} listed"
        self.tell_answer(f"list of {say_value(self.settings.registry_url)}", answer, found)
        return answer.meaning in (ACCEPTED, LOST)

    def prove_token(self) -> None:
        """Find out whether the registry takes the token, or goes without one."""
        answer = self.registry.prove_token(self.settings.registry_timeout)
        token = self.registry.token
        found = f"{token.name} is accepted" if token.now() else "none is set, and none is asked for"
        self.tell_answer("token", answer, found)

    def tell_answer(self, what: str, answer: Answer, found: str) -> None:
        """Print a line about an answer of the registry; `found` is what it proves, if it does."""
        if answer.meaning in (FAILED, REFUSED):
            fix = "" if "REGISTRY_" in answer.advice else "; is it up, and REGISTRY_URL right?"
            self.tell(what, answer.advice + fix)
        else:
            remark = answer.advice if answer.meaning == ACCEPTED else ""
            self.tell(what, "", remark or found)


# ------------------------------------------------------------------------------------- settings

LONGEST_DURATION = 86400.0  # seconds
GRACE_PERIOD = 10.0  # seconds from SIGTERM to SIGKILL, by default, of Docker and Compose
STOP_TIMEOUT = 1.5  # seconds for the last exchange; the whole stop has 3, and DRAIN_SECONDS
MAX_METADATA = 256  # characters of a metadata value, or a tag
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
NAME = "(?!index$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}"
NAME_FIX = (
    "the name to register: lowercase letters, digits, _ and -, not `index`, the registry's own"
)
FRAMING = "Connection|Content-Length|Transfer-Encoding"  # the agent's own
HEADER = rf"(?!(?i:{FRAMING}):)([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~]*)"
URL_FIX = "http://HOST:PORT of the registry, such as http://vertice-register-lb:80"
HEALTH_FIX = "a path, such as /health, or a whole URL, such as http://vertice-osint:9000/health"
ITSELF = r"localhost|0\.0\.0\.0|::"  # hosts that are each caller itself
TOKEN = "[!-~]{0,4095}"
TOKEN_FIX = "the registry's token: printable ASCII without blanks"
TOKEN_VARIABLES = ("REGISTRY_TOKEN", "VERTICE_REGISTRY_TOKEN", "REGISTRY_AUTH_TOKEN")
CONSUL = {"consul": "http", "consul-tls": "https"}  # schemes of REGISTRY_URL, how it is reached
CONSUL_KEY = "(?!consul-)[A-Za-z0-9_-]{1,128}"
CONSUL_FIX = (
    "for Consul, set it to at most 64 pairs with values of up to 512 bytes, and keys of letters,"
    " digits, _ and - that do not begin with consul-"
)
RECORD_ID = "([A-Za-z0-9][A-Za-z0-9._:-]{0,254})?"
RECORD_ID_FIX = "the record's ID: letters, digits, . _ : and -"


class SettingsError(ValueError):
    """Settings that the agent cannot work with; `args` has (name, text, what to do) for each."""


def is_host(text: str) -> bool:
    """Tell whether `text` is a name, an IPv4 address, or an IPv6 address without brackets."""
    if ":" in text:
        try:
            return bool(socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):  # ValueError: a character that is no ASCII, a NUL
            return False
    labels = text.removesuffix(".").split(".")
    sound = all(re.fullmatch("[A-Za-z0-9_-]{1,63}", label) for label in labels)
    return len(text) <= 253 and sound


def is_quoted(text: str) -> bool:
    """Tell whether `text` stands in quotes, as `docker run --env-file` passes them on."""
    return len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]


def is_https(url: str) -> bool:
    """Tell whether the URL is one of https."""
    return url[:6].lower() == "https:"


def is_consul(url: str) -> bool:
    """Tell whether the registry at this URL is Consul."""
    return url.partition("://")[0].lower() in CONSUL


def web_url(url: str) -> str:
    """Return a registry's URL as HTTP has it: consul://HOST is http://HOST:8500."""
    if not is_consul(url):
        return url
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    port = "" if re.search(":[0-9]+$", place) else ":8500"
    return f"{CONSUL[scheme.lower()]}://{place.removesuffix(':')}{port}{slash}{path}"


def consul_meta(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what Consul takes of it, the first pairs where there are too many."""
    keys = [key for key, value in metadata.items() if len(value.encode()) <= 512]
    return {key: metadata[key] for key in [k for k in keys if re.fullmatch(CONSUL_KEY, k)][:64]}


# What a file holds that a setting names: each takes its path, and raises OSError or ValueError.


def read_text(path: str) -> str:
    """Return the text of a short file."""
    content = healthcheck.read(path)
    if len(content) >= healthcheck.LONGEST_LINE:  # no more of a file is read
        raise ValueError("it is longer than 4 KB")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:2]:
        raise ValueError("the file is UTF-16; save it as plain text")
    return content.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace").strip()


def read_token(path: str) -> str:
    """Return the token in the file."""
    token = read_text(path)
    if not re.fullmatch("[!-~]+", token):
        raise ValueError("it must hold one token, printable ASCII without blanks")
    return token


def read_headers(path: str) -> dict[str, str]:
    """Return the headers in the file."""
    headers: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        header = re.fullmatch(HEADER, line.strip())
        if header and header[1].title() not in headers:
            headers[header[1].title()] = header[2]
        elif line.strip() or number == 1:
            words = f"in printable ASCII, each name once, no {FRAMING.replace('|', ', ')}"
            raise ValueError(f"line {number} must be `Name: value` {words}")
    return headers


def read_authorities(path: str) -> Any:
    """Return a TLS context that trusts these, if the image has TLS."""
    if ssl is None:
        return None
    if os.path.exists(path) and not os.path.isfile(path):
        # OpenSSL would wait for a pipe.
        raise ValueError("it is no plain file")
    return ssl.create_default_context(cafile=path)


def say_unreadable(error: OSError | ValueError) -> str:
    """Say why a file is not what it should be."""
    if ssl is not None and isinstance(error, ssl.SSLError):
        return "it holds no certificates"
    return say_failure(error) if isinstance(error, OSError) else str(error)


# Parsers take a setting's text and return its value, or raise ValueError(what to do).


def one_of(*choices: str) -> Callable[[str], str]:
    """Parse one of these words, in any case."""

    def parse(text: str) -> str:
        for choice in choices:
            if text.lower() == choice.lower():
                return choice
        raise ValueError(f"set it to one of {', '.join(choices)}")

    return parse


def parse_truth(text: str) -> bool:
    """Parse true or false."""
    true, false = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
    return one_of(*true, *false)(text) in true


def whole(lowest: int, highest: int) -> Callable[[str], int]:
    """Parse a whole number."""

    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,9}", text) and lowest <= int(text) <= highest:
            return int(text)
        linked = "; Kubernetes or a Docker link has set it to this" if "://" in text else ""
        raise ValueError(f"set it to a whole number from {lowest} to {highest}{linked}")

    return parse


def seconds(lowest: float, highest: float = LONGEST_DURATION) -> Callable[[str], float]:
    """Parse a duration in seconds, with decimals or not."""

    def parse(text: str) -> float:
        number = re.fullmatch(r"[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9}", text)
        if number and lowest <= float(text) <= highest:
            return float(text)
        raise ValueError(f"set it to seconds from {lowest:g} to {highest:g}")

    return parse


def matching(pattern: str, fix: str) -> Callable[[str], str]:
    """Parse what matches a regular expression."""

    def parse(text: str) -> str:
        if re.fullmatch(pattern, text):
            return text
        raise ValueError(f"set it to {fix}")

    return parse


def file_of(read: Callable[[str], object], what: str) -> Callable[[str], str]:
    """Parse the path of a file that can be read, or nothing."""

    def parse(text: str) -> str:
        try:
            if text:
                read(text)
            return text
        except (OSError, ValueError) as error:
            why = say_unreadable(error)
            raise ValueError(f"set it to a readable file {what} ({why})") from error

    return parse


def parse_list(text: str, fix: str = "a,b") -> list[str]:
    """Parse what stands between commas."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    if not all(len(item) <= MAX_METADATA and item.isprintable() for item in items):
        raise ValueError(f"set it to {fix}, at most {MAX_METADATA} characters each")
    return items


def parse_host(text: str) -> str:
    """Parse a host's name or address."""
    name = re.sub(r"^\[(.*)\]$", r"\1", text)
    if is_host(name):
        return name
    raise ValueError("set it to the service's host name or address alone, such as vertice-osint")


def parse_scheme(text: str) -> str:
    """Parse http or https, if the image has TLS."""
    found = one_of("http", "https")(text)
    if found == "https" and ssl is None:
        raise ValueError("this image has no TLS; build it with --build-arg TLS=1, or use http://")
    return found


def parse_url(text: str, odd: str = r"\\?#", fix: str = URL_FIX) -> str:
    """Parse a URL; `odd` are characters that it must not have, for a regular expression."""
    try:
        # Whatever else stands there is refused before urlsplit sees it: it would want Unicode's
        # tables, which the image has not.
        sound = not re.search(rf"[^!-~]|[{odd}]", text)
        parts = urlsplit(text if sound else "")
        sound = parts.scheme in ("http", "https") and is_host(parts.hostname or "")
        sound = sound and parts.port != 0
        # It takes fewer brackets than urlsplit.
        requests.PreparedRequest().prepare_url(text if sound else "", None)
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"set it to {fix}")
    parse_scheme(parts.scheme)
    return text.rstrip("/")


def parse_registry(text: str) -> str:
    """Parse a registry's URL."""
    parse_url(web_url(text))
    return text.rstrip("/")


def parse_health(text: str) -> str:
    """Parse a path on the service, or a whole URL."""
    if not re.fullmatch('/(?!/)[!"$-~]*', text):
        parse_url(text, r"\\#", HEALTH_FIX)
    return text


def parse_pairs(text: str) -> dict[str, str]:
    """Parse k=v,k=v."""
    fix = "k=v,k=v with each key once"
    found: dict[str, str] = {}
    for item in parse_list(text, fix):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (key and equals and key not in found):
            raise ValueError(f"set it to {fix}, at most {MAX_METADATA} characters each")
        found[key] = value
    return found


def parse_heartbeat_file(text: str) -> str:
    """Parse the path of the heartbeat file."""
    if os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text):
        raise ValueError("set it to a path for a file of its own, such as /tmp/heartbeat")
    return text


class Setting(Generic[T]):
    """One environment variable; as an attribute of Settings, its value."""

    def __init__(self, default: str, parse: Callable[[str], T]) -> None:
        """Args: the text where nothing is set, the parser."""
        self.default, self.parse = default, parse

    def __set_name__(self, _owner: type, name: str) -> None:
        self.name = name.upper()

    def __get__(self, settings: Settings, _owner: type) -> T:
        value: T = settings.values[self.name]
        return value


class Settings:
    """All that the environment says, validated. Durations are in seconds."""

    service_name = Setting("", matching(NAME, NAME_FIX))
    service_host = Setting("", parse_host)
    service_port = Setting("8080", whole(1, 65535))
    service_scheme = Setting("http", parse_scheme)
    service_ca_file = Setting("", file_of(read_authorities, "of CA certificates"))
    service_tls_verify = Setting("true", parse_truth)
    service_health_check = Setting("http", one_of("http", "tcp", "none"))
    service_health_endpoint = Setting("/health", parse_health)
    service_health_headers_file = Setting("", file_of(read_headers, "of headers"))
    service_health_timeout = Setting("5", seconds(0.01))
    service_health_retries = Setting("3", whole(1, 100))
    service_metadata = Setting("", parse_pairs)
    service_id = Setting("", matching(RECORD_ID, RECORD_ID_FIX))
    service_tags = Setting("", parse_list)
    registry_url = Setting("http://vertice-register-lb:8888", parse_registry)
    registry_timeout = Setting("10", seconds(0.01))
    registry_token = Setting("", matching(TOKEN, TOKEN_FIX))
    vertice_registry_token = Setting("", matching(TOKEN, TOKEN_FIX))
    registry_auth_token = Setting("", matching(TOKEN, TOKEN_FIX))
    registry_token_file = Setting("", file_of(read_token, "that holds the token"))
    registry_ca_file = Setting("", file_of(read_authorities, "of CA certificates"))
    ssl_cert_file = Setting("", str)
    heartbeat_interval = Setting("30", seconds(0.01))
    initial_wait_timeout = Setting("60", seconds(0))
    deregister_on_exit = Setting("true", parse_truth)
    drain_seconds = Setting("0", seconds(0))
    heartbeat_file = Setting(healthcheck.DEFAULT_PATH, parse_heartbeat_file)
    log_level = Setting("INFO", one_of(*LOG_LEVELS))
    log_format = Setting("text", one_of("text", "json"))

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    @property
    def endpoint(self) -> str:
        """The service's base URL, as it stands in the record."""
        host = f"[{self.service_host}]" if ":" in self.service_host else self.service_host
        return f"{self.service_scheme}://{host}:{self.service_port}"

    @property
    def health_url(self) -> str:
        """Where the service is asked how it is."""
        where = self.service_health_endpoint
        return self.endpoint + where if where.startswith("/") else where

    @property
    def health_endpoint(self) -> str:
        """What the record shows of that: everybody may read it, so no credentials."""
        return without_credentials(self.service_health_endpoint)

    @property
    def token_name(self) -> str:
        """The variable that the token comes from, or would come from."""
        names = ("REGISTRY_TOKEN_FILE", *TOKEN_VARIABLES)
        return next((name for name in names if self.values[name]), "REGISTRY_TOKEN")

    @property
    def pace(self) -> float:
        """What shortens the waits inside a short slot, so that a retry fits in."""
        return min(1.0, self.heartbeat_interval / 30)


SETTINGS = {each.name: each for each in vars(Settings).values() if isinstance(each, Setting)}


def usage() -> str:
    """Return what --help prints."""
    rows = "\n".join(f"  {name}={each.default}" for name, each in SETTINGS.items())
    return f"""usage: agent.py [--check | --version | --help]
Keeps the service beside it registered in a registry.
--check looks at the settings, at the service and at the registry, changes nothing, and says what
is wrong; its exit code is 0 where all is fine, 1 where something is not, 2 where a setting is bad.
All settings are environment variables. These are they, with their defaults:
{rows}"""


def read_settings(variables: Mapping[str, str]) -> Settings:
    """Return the environment as settings, empty means unset. SettingsError names all problems."""
    values: dict[str, Any] = {}
    problems = []
    for name, each in SETTINGS.items():
        text = variables.get(name, "").strip()
        try:
            values[name] = each.parse(text or each.default)
            if is_quoted(text) and name not in TOKEN_VARIABLES:
                raise ValueError("set it without the quotes")
        except ValueError as error:
            hint = "; the quotes are part of the value" if text.strip("'\"") != text else ""
            problems.append((name, text, f"{error}{hint}"))
    consul = is_consul(variables.get("REGISTRY_URL", "").strip())
    problems += problems_together(values, consul)
    if problems:
        raise SettingsError(*problems)
    # An exchange that took more than half a slot would leave no room to repeat it inside the slot.
    for name in ("SERVICE_HEALTH_TIMEOUT", "REGISTRY_TIMEOUT"):
        values[name] = min(values[name], values["HEARTBEAT_INTERVAL"] / 2)
    return Settings(values)


def problems_together(values: Mapping[str, Any], consul: bool) -> list[tuple[str, str, str]]:
    """Return what is wrong with settings that are sound each by itself, as SettingsError has it.

    Those that are not sound by themselves are missing among the values.
    """
    problems = []
    metadata, interval = values.get("SERVICE_METADATA", {}), values.get("HEARTBEAT_INTERVAL", 0.0)
    if consul and consul_meta(metadata) != metadata:
        text = ",".join(f"{key}={value}" for key, value in metadata.items())
        problems.append(("SERVICE_METADATA", text, CONSUL_FIX))
    if not consul and interval > REGISTRY_TTL:
        fix = f"set it to {REGISTRY_TTL / 2:g} or less: the registry forgets a service after"
        problems.append(("HEARTBEAT_INTERVAL", f"{interval:g}", f"{fix} {REGISTRY_TTL:g} s"))
    try:
        if len(values) == len(SETTINGS) and uses_ssl_cert_file(Settings(values)):
            file_of(read_authorities, "of CA certificates")(values["SSL_CERT_FILE"])
    except ValueError as error:
        problems.append(("SSL_CERT_FILE", values["SSL_CERT_FILE"], str(error)))
    return problems


def uses_ssl_cert_file(settings: Settings) -> bool:
    """Tell whether https is spoken anywhere without a CA file of its own."""
    return any(
        is_https(url) and not settings.values[name] for name, url in ca_files(settings).items()
    )


def ca_files(settings: Settings) -> dict[str, str]:
    """Return the settings that name a CA file, and the URL that each is for, if it is verified."""
    verified = settings.service_health_check == "http" and settings.service_tls_verify
    probed = settings.health_url if verified else ""
    return {"REGISTRY_CA_FILE": web_url(settings.registry_url), "SERVICE_CA_FILE": probed}


def doubts_about_time(settings: Settings) -> Iterator[str]:
    """Doubt durations that work, but not well together."""
    interval, retries = settings.heartbeat_interval, settings.service_health_retries
    drain = settings.drain_seconds
    if 2 * interval > REGISTRY_TTL and not is_consul(settings.registry_url):
        yield (
            f"HEARTBEAT_INTERVAL={interval:g}: the registry forgets a service after"
            f" {REGISTRY_TTL:g} s, so one lost heartbeat costs the record;"
            f" set it to {REGISTRY_TTL / 2:g} or less"
        )
    longest = retries * (settings.service_health_timeout + 2 * settings.pace)
    if longest > 2 * interval:
        yield (
            f"SERVICE_HEALTH_RETRIES={retries}: that many probes can take {longest:.0f} s, and the"
            f" record expires after {2 * interval:g} s; set it lower, or SERVICE_HEALTH_TIMEOUT"
        )
    if drain and not settings.deregister_on_exit:
        yield f"DRAIN_SECONDS={drain:g}: has no effect while DEREGISTER_ON_EXIT=false"
    elif drain + STOP_TIMEOUT > GRACE_PERIOD:
        yield f"DRAIN_SECONDS={drain:g}: needs stop_grace_period: {drain + 3:g}s (else 10s)"


def doubts_about_places(settings: Settings) -> Iterator[str]:
    """Doubt what is set for https or Consul, and reaches neither."""
    for name, url in ca_files(settings).items():
        if settings.values[name] and not is_https(url):
            yield f"{name}: has no effect while nothing is verified there: no https"
    probed = settings.service_health_check == "http" and is_https(settings.health_url)
    if probed and not settings.service_tls_verify:
        yield "SERVICE_TLS_VERIFY=false: a probe believes whoever answers in its place"
    if re.fullmatch(ITSELF, settings.service_host):
        yield (
            f"SERVICE_HOST={settings.service_host}: callers in other containers would reach"
            " themselves; set it to the name by which they reach the service"
        )
    for name in ("SERVICE_ID", "SERVICE_TAGS"):
        if settings.values[name] and not is_consul(settings.registry_url):
            yield f"{name}: has no effect while REGISTRY_URL does not begin with consul://"


def doubts_about_names(variables: Mapping[str, str]) -> Iterator[str]:
    """Doubt variables that look like a setting, or hold a comment."""
    longest_first = sorted(SETTINGS, key=len, reverse=True)
    for name, text in variables.items():
        if name in SETTINGS:
            if " #" in text and name not in TOKEN_VARIABLES:
                yield f"{name}: what follows the # is part of the value; set it without"
            continue
        # Not what Kubernetes or a Docker link sets for a service of such a name.
        linked = re.search("_SERVICE_(HOST|PORT)|_PORT(_|$)|_ENV_", name)
        meant = next((known for known in longest_first if is_slip(name, known)), None)
        if meant and not linked:
            yield f"{escape(name)}: is no setting of the sidecar; {meant} is one"


def is_slip(name: str, known: str) -> bool:
    """Tell whether one character too many, too few or wrong, two swapped, or a suffix, differ."""
    if abs(len(name) - len(known)) > 1:
        return name.startswith(known + "_")
    pairs = zip(name, known, strict=False)
    same = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    rest, other = name[same:], known[same:]
    slips = [(rest[1:], other), (rest, other[1:]), (rest[1:], other[1:])]
    swapped = rest[:2] == other[:2][::-1] and rest[2:] == other[2:]
    return any(one == two for one, two in slips) or swapped


def doubts_about(settings: Settings, variables: Mapping[str, str]) -> list[str]:
    """Return a line for each setting that works, but hardly as its author meant."""
    lines = [*doubts_about_time(settings), *doubts_about_places(settings)]
    lines += doubts_about_names(variables)
    if not re.fullmatch("[a-z0-9_-]{3,64}", settings.service_name):
        convention = "names are by convention 3 to 64 lowercase letters, digits, _ and -"
        lines.append(f"SERVICE_NAME={settings.service_name}: {convention}")
    token = choose_token(settings)
    if is_quoted(token.now()):
        lines.append(f"{token.name}: the token is in quotes, and they are part of it")
    return lines


class NamedFile(Generic[T]):
    """What the file holds that a setting names: read again whenever the file has changed.

    Where it cannot be read any more, what it held stays, with one warning.
    """

    def __init__(
        self,
        name: str,
        path: str,
        read: Callable[[str], T],
        value: T,
        secrets: Callable[[T], Iterable[str]] = lambda _value: (),
    ) -> None:
        """Read it, where there is one.

        Args: the setting; its file, or "" where none is named, and the value is all there is;
        what reads the file; the value without it; what in a value has to stay out of the log.
        """
        self.name, self.path, self.read, self.secrets = name, path, read, secrets
        self.value = value
        # What the file was like when it was read, and when that failed.
        self.mark: object = ()
        self.bad_mark: object = ()
        keep_secret(name, secrets(value))
        # It was sound a moment ago, and may not be at its first use.
        self.now()

    def now(self) -> T:
        """Return what it holds by now."""
        if self.path and self.mark != (mark := file_mark(self.path)):
            try:
                self.value = self.read(self.path)
            except (OSError, ValueError) as error:
                if self.bad_mark != mark:
                    words = self.name, say_unreadable(error)
                    log.warning("%s cannot be read, what it held stays in force: %s", *words)
                self.mark, self.bad_mark = (), mark
            else:
                self.mark, self.bad_mark = mark, ()
                keep_secret(self.name, self.secrets(self.value))
        return self.value


def file_mark(path: str) -> object:
    """Return what changes whenever the file does; None where there is no such file."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def choose_token(settings: Settings) -> NamedFile[str]:
    """Return the registry's token, from its file or from a variable."""
    name, path = settings.token_name, settings.registry_token_file
    value = "" if path else settings.values[name]
    return NamedFile(name, path, read_token, value, lambda token: [token])


def whom_to_trust(settings: Settings, name: str, url: str) -> NamedFile[Any] | None:
    """Return the TLS context for a URL, from its CA file; None where it is not one of https."""
    if not is_https(url):
        return None
    if name == "SERVICE_CA_FILE" and not settings.service_tls_verify:
        trust_everybody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trust_everybody.check_hostname, trust_everybody.verify_mode = False, ssl.CERT_NONE
        return NamedFile(name, "", read_authorities, trust_everybody)
    named = next((name for name in (name, "SSL_CERT_FILE") if settings.values[name]), "")
    path = settings.values[named] if named else requests.utils.DEFAULT_CA_BUNDLE_PATH
    return NamedFile(named or "the image's CA file", path, read_authorities, None)


# ---------------------------------------------------------------------------------------- rules

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds, the bounds of every backoff
LONGEST_RETRY_AFTER = 300.0  # seconds


def backoff(attempt: int, uniform: Uniform) -> float:
    """Return the seconds to wait after failed attempt number `attempt`, counted from 1.

    The ceiling doubles from 2 s to 60 s. The wait is drawn from its upper half: so it grows, and
    agents that failed together do not come back together.
    """
    ceiling = min(2 * FIRST_WAIT * 2.0 ** min(attempt - 1, 16), LONGEST_WAIT)
    return uniform(ceiling / 2, ceiling)


def wait_in_slot(wait: float, left: float, shortest: float) -> float:
    """Return the seconds until a failed heartbeat is repeated, while the record lives.

    Args: what backoff and Retry-After ask for, how long the record lives without a heartbeat, the
    shortest wait. The record comes first: a wait takes half of what it has left, and no more.
    """
    return max(min(wait, left / 2), shortest)


def next_beat(phase: float, interval: float, now: float) -> float:
    """Return the first moment after `now` on the grid `phase + n * interval`: it never drifts."""
    return phase + (math.floor((now - phase) / interval) + 1) * interval


def parse_retry_after(value: str, date: str, wall_clock: float) -> float:
    """Return the seconds that a Retry-After header asks for, 0 to 300, and 0 for nonsense.

    It holds seconds or a date (RFC 9110, section 10.2.3), reckoned from the same answer's Date
    header: the peer's clock may be wrong. `wall_clock` (Unix time) serves where there is none.
    """
    try:
        if value.strip().isdecimal():
            return min(float(value), LONGEST_RETRY_AFTER)
        then = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    with contextlib.suppress(ValueError, TypeError, OverflowError, OSError):
        wall_clock = email.utils.parsedate_to_datetime(date).timestamp()
    return min(max(then - wall_clock, 0.0), LONGEST_RETRY_AFTER)


def begin_after(places: Sequence[T], failed: T | None) -> list[T]:
    """Return the places in their order, beginning after the one that has failed last."""
    start = places.index(failed) + 1 if failed in places else 0
    return [*places[start:], *places[:start]]


# -------------------------------------------------------------------------------------- the log

MAX_SAID = 200  # characters of a peer's words in the log
GO = str.maketrans({char: f"\\u00{ord(char):02x}" for char in "&<>"})  # its encoding/json
NO_SECRETS = ("Host", "Accept", "User-Agent")  # headers that every log may show
SHORTEST_HEADER = 6  # characters of a header's value that is kept out of it

log = logging.getLogger("sidecar")
# For each source of secrets, in each form in which a peer may send them back: what it holds, and
# what it held before.
secrets: dict[str, tuple[set[str], set[str]]] = {}


def keep_secret(source: str, values: Iterable[str]) -> None:
    """Keep what a source holds by now out of the log, and what it held before."""
    now = {form for value in values if value for form in forms(value)}
    before = secrets.get(source, (set(), set()))[0]
    if now != before:
        secrets[source] = now, before


def forms(secret: str) -> set[str]:
    """Return a secret as it stands in text, JSON (also inside JSON), Python, HTML and a URL."""
    found = {secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    found |= {form.translate(GO) for form in found}
    found |= {json.dumps(form)[1:-1] for form in found}
    in_python = secret.replace("\\", "\\\\")
    found |= {in_python, in_python.replace("'", "\\'"), secret.replace("/", r"\/")}
    found.add(secret.encode().decode("latin-1"))  # in a header
    in_html = secret.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    quoted_too = in_html.replace('"', "&quot;")
    found |= {in_html, quoted_too.replace("'", "&#x27;"), quoted_too.replace("'", "&#39;")}
    for safe in ("", "/", "!$&'()*+,;=:@/"):
        quoted = quote(secret, safe=safe)
        found |= {quoted, re.sub("%..", lambda hexadecimal: hexadecimal[0].lower(), quoted)}
    return found


def blot_out(text: str) -> str:
    """Return the text without secrets. The time it takes depends on its length alone."""
    found = {form for now, before in secrets.values() for form in now | before}
    for form in sorted(found, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def url_secrets(url: str) -> list[str]:
    """Return what stands in a URL's credentials, also in the form in which it is sent."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    basic = basic_credentials(url).get("Authorization", "").removeprefix("Basic ")
    # Without a password, the user is a key.
    return [basic, password, parts.password or ""] if password else [basic, user]


def keep_credentials(settings: Settings) -> None:
    """Keep the credentials in the settings' URLs out of the log."""
    for name in ("registry_url", "service_health_endpoint"):
        keep_secret(name, url_secrets(getattr(settings, name)))


def header_secrets(headers: Mapping[str, str]) -> list[str]:
    """Return the values of headers, what follows a scheme or a = in one, and a password."""
    found = []
    for value in (value for name, value in headers.items() if name not in NO_SECRETS):
        scheme, _, sent = value.partition(" ")
        clear = b""
        with contextlib.suppress(ValueError):
            clear = base64.b64decode(sent) if scheme.lower() == "basic" else b""
        found += [value, sent.strip(), *re.findall('=[ "]*([^ ;,"]+)', value)]
        found += [clear.decode("utf-8", "replace").partition(":")[2]]
    # The log would be unreadable without each `1` or `http`.
    return [value for value in found if len(value) >= SHORTEST_HEADER]


def escape(text: str) -> str:
    """Return `text` on one line, what is not printable written as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say_plain(words: object) -> str:
    """Make a peer's words fit for one line of a log: escaped, no secret, 200 characters."""
    text = escape(blot_out(str(words))[: MAX_SAID + 1])
    return text if len(text) <= MAX_SAID else text[: MAX_SAID - 3] + "..."


def say_value(value: object) -> str:
    """Show a setting's value on one line; credentials and the query of a URL stay hidden."""
    text = blot_out(str(value))
    # What looks like a query may be a password with a question mark.
    text = re.sub(r"^([^:]*://)?[^?]*\?.*@.*", r"\1***", text, flags=re.DOTALL)
    text = re.sub(r"^([^:]*://)?.*@", r"\1***@", text, flags=re.DOTALL)
    text = say_plain(re.sub(r"\?.*", "?***", text, flags=re.DOTALL))
    return repr(text) if " " in text or not text else text


def say_problem(name: str, text: str, fix: str) -> str:
    """Say which setting is wrong, its value unless that may be a secret, and what to do."""
    if not text:
        return f"{name} is not set: {escape(fix)}"
    # A secret was typed where the path of its file belongs, unless it looks like a path.
    directory = os.path.dirname(text.strip("'\""))
    is_path = os.path.exists(text) or (directory != "/" and os.path.isdir(directory))
    hidden = name in TOKEN_VARIABLES or (name.endswith("_FILE") and not is_path)
    return f"{name}={'***' if hidden else say_value(text)}: {escape(fix)}"


def say_settings(settings: Settings) -> str:
    """Return the settings in force on one line, without secrets."""
    shown = {name: value for name, value in settings.values.items() if value not in ("", [], {})}
    shown |= dict.fromkeys(shown.keys() & set(TOKEN_VARIABLES), "***")
    return " ".join(f"{name}={say_value(value)}" for name, value in shown.items())


def say_seconds(duration: float) -> str:
    """Say a duration with two digits behind the point at the most."""
    return f"{round(duration, 2):g} s"


class Log(logging.Handler):
    """Writes lines to stdout while somebody reads there, and counts the others.

    It never waits. Others may share the file, so it is opened anew to set O_NONBLOCK. That is
    denied to a container's user; but a pipe that poll calls writable takes PIPE_BUF bytes at once
    (pipe(7)), and the sidecar is alone in its container.
    """

    def __init__(self, plain: bool) -> None:
        """Args: whether lines go without time and level."""
        super().__init__()
        self.plain, self.as_json = plain, False
        self.file = 1
        if os.isatty(1) or stat.S_ISFIFO(os.fstat(1).st_mode):
            with contextlib.suppress(OSError):
                self.file = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        self.poller = select.poll()
        self.poller.register(self.file, select.POLLOUT)
        self.unwritten = b""  # the rest of a line that found no room
        self.dropped, self.told = 0, 0  # lines, and how many of them the rest tells of

    def set_up(self, level: str, as_json: bool) -> None:
        """Take over all lines but those of libraries, which may repeat what peers sent."""
        warnings.simplefilter("ignore")
        self.as_json = as_json
        logging.raiseExceptions = False
        logging.getLogger().handlers[:] = [logging.NullHandler()]
        log.handlers[:] = [self]
        log.propagate = False
        log.setLevel(level)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, of text or of JSON; only a bug's traceback takes more."""
        if self.plain and not record.exc_info:
            return record.getMessage() + "\n"
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": when, "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            line["traceback"] = "\n" + blot_out(trace)
        return (json.dumps(line) if self.as_json else " ".join(line.values())) + "\n"

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or count it where there is no room."""
        self.flush()
        if self.unwritten:
            self.dropped += 1
            return
        text = self.format(record)
        if self.dropped:
            words = f"{self.dropped} lines of the log were dropped because nobody read them"
            loss = log.makeRecord(log.name, logging.WARNING, "", 0, words, (), None)
            text = self.format(loss) + text
        self.told, self.dropped = self.dropped, 0
        self.unwritten = text.encode("utf-8", "backslashreplace")
        self.flush()

    def flush(self) -> None:
        """Write as much as there is room for."""
        try:
            while self.unwritten and self.poller.poll(0):
                written = os.write(self.file, self.unwritten[: select.PIPE_BUF])
                self.unwritten = self.unwritten[written:]
        except BlockingIOError:
            return
        except OSError:  # a full disk, or a reader that is gone
            self.unwritten = b""
            self.dropped += self.told + 1


# ---------------------------------------------------------------------------------- an exchange

MAX_BODY = 64 * 1024  # bytes kept of any body
# A connection is renewed before it is an hour old, so that a name that has moved is followed.
LONGEST_CONNECTION = 3600.0 - 30.0  # seconds

# What an exchange that failed has proven.
TLS_THERE = "TLS there"  # though it was asked in plain HTTP
NO_TLS_THERE = "no TLS there"
NOT_HTTP = "another protocol, or none that is HTTP/1"
CLOSED = "closed without a byte"  # though it was asked in plain HTTP
CLIENT_UNKNOWN = "a client certificate is wanted"
UNKNOWN_AUTHORITY = "a certificate whose authority is not among those known"
# OpenSSL's numbers (X509_verify_cert): the issuer is missing, or its certificate is of its own.
UNKNOWN_ISSUER = {2, 18, 19, 20, 21}


class Answer(NamedTuple):
    """What an exchange brought, and for the registry what it means.

    Status 0: no answer came. `failure` says why none came, or why its body is not whole; `secure`,
    whether TLS was spoken. `advice` is for the log: where that was, what came, and which setting
    may help.
    """

    status: int = 0
    headers: Mapping[str, str] = {}
    body: bytes = b""
    failure: Exception | None = None
    secure: bool = False
    meaning: str = ""
    advice: str = ""

    @property
    def ok(self) -> bool:
        """Tell whether it is a 2xx."""
        return 200 <= self.status < 300

    @property
    def late(self) -> bool:
        """Tell whether it was not whole before the deadline."""
        return isinstance(self.failure, LateError)

    @property
    def is_page(self) -> bool:
        """Tell whether it is made for a browser."""
        kind = self.headers.get("Content-Type", "").strip().lower()
        begins = self.body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return kind.startswith("text/html") or begins == b"<"

    @property
    def packed(self) -> str:
        """How the body is compressed, though nobody asked for that; "" where it is not."""
        encoding = self.headers.get("Content-Encoding", "").strip()
        return encoding if re.search("gzip|deflate|compress|br|zstd", encoding.lower()) else ""

    @property
    def whole(self) -> bool:
        """Tell whether all of the body is here, to be read."""
        return not self.failure and len(self.body) <= MAX_BODY and not self.packed

    @property
    def retry_after(self) -> float:
        """The seconds that it asks to be left alone."""
        date = self.headers.get("Date", "")
        return parse_retry_after(self.headers.get("Retry-After", ""), date, time.time())

    @property
    def proof(self) -> str:
        """What went wrong for certain, as above, or "": no more than the bytes say."""
        failure = self.failure
        if self.status == 400 and b"HTTPS" in self.body and not self.secure:
            return TLS_THERE
        if self.status == 400 and b"SSL certificate" in self.body:
            return CLIENT_UNKNOWN
        # http.client.RemoteDisconnected is one of the first.
        if isinstance(failure, ConnectionResetError | BrokenPipeError):
            return "" if self.secure else CLOSED
        if isinstance(failure, http.client.BadStatusLine):
            # A TLS record: its type and the first half of its version (RFC 8446, section 5.1).
            return TLS_THERE if str(failure)[:2] in ("\x15\x03", "\x16\x03") else NOT_HTTP
        if isinstance(failure, NoTLSError):
            return NO_TLS_THERE
        if ssl is not None and isinstance(failure, ssl.SSLCertVerificationError):
            return UNKNOWN_AUTHORITY if failure.verify_code in UNKNOWN_ISSUER else ""
        return ""

    def json(self) -> Any:
        """Return what a JSON body holds; None where it is none, or not whole."""
        try:
            return json.loads(self.body) if self.whole else None
        except (ValueError, RecursionError):
            return None

    def message(self) -> str:
        """Return the peer's own words for people, as they came; "" where they are not whole.

        For what is cut off may end in the middle of a secret.
        """
        found = self.json()
        keys = ("detail", "message", "error") if isinstance(found, dict) else ()
        words = next((str(found[key]) for key in keys if key in found), None)
        if words is None:
            # What has a NUL so early is UTF-16.
            readable = self.whole and b"\0" not in self.body[:4]
            return self.body.decode("utf-8", "replace").strip() if readable else ""
        return words

    def say(self) -> str:
        """Say what came, fit for the log: a status and, where something is wrong, why."""
        if not self.status:
            return say_failure(self.failure)
        said, location, message = str(self.status), self.headers.get("Location"), self.message()
        if 300 <= self.status < 400 and location:
            said += f", a redirect to {say_value(location)}, which is not followed"
        elif self.is_page:
            said += ", a web page" if self.ok else ""
        elif self.packed and not self.ok:
            said += f", compressed ({say_plain(self.packed)}) though nobody asked for that"
        elif not self.ok and message:
            said += f": {say_plain(message)}"
        return said + (", but the body did not end in time" if self.late else "")


def say_failure(error: Exception | None) -> str:
    """Say in a few words why an exchange failed, or why a file cannot be used."""
    if isinstance(error, LateError):
        return str(error)
    if isinstance(error, socket.gaierror):
        again = error.errno == socket.EAI_AGAIN
        why = " (the name server does not answer, or refuses)" if again else ""
        return say_plain(f"name look-up failed: {error.strerror}{why}")
    if isinstance(error, http.client.RemoteDisconnected):
        return "connection closed without an answer"
    if isinstance(error, http.client.BadStatusLine):
        line = str(error)
        # What is cut off may end in the middle of a secret.
        quoted = f": {line.strip()}" if line.endswith("\n") else ""
        return say_plain(f"what answers does not speak HTTP/1{quoted}")
    if ssl is not None and isinstance(error, ssl.SSLError):
        return say_plain(say_tls(error))
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror
        return say_plain(words[0].lower() + words[1:] if words[1:2].islower() else words)
    return say_plain(f"unusable answer: {type(error).__name__} {error}")


def say_fix(answer: Answer, side: str, secure: str, plain: str, other: str) -> str:
    """Say what helps against what the answer proves, "" where it proves nothing.

    Args: REGISTRY or SERVICE; what makes it TLS; what makes it plain HTTP; what to do about a
    peer that does not speak HTTP.
    """
    fixes = {
        UNKNOWN_AUTHORITY: f"set {side}_CA_FILE to a file with its authority",
        CLIENT_UNKNOWN: "it wants a client certificate, which this sidecar cannot send",
        TLS_THERE: f"this looks like a TLS port: {secure}",
        NO_TLS_THERE: plain,
        NOT_HTTP: other,
        CLOSED: f"{secure} if it speaks TLS; or {other} if it speaks no HTTP",
    }
    return fixes.get(answer.proof, "")


def say_tls(error: ssl.SSLError) -> str:
    """Say why TLS failed, without OpenSSL's own words for it where there are better ones."""
    client = "a client certificate, which this sidecar cannot send"
    reason = error.reason or ""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
        return "connection closed in the middle of TLS"
    # None is sent, so what the peer says of certificates is that it misses one.
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return f"TLS refused: the other side wants {client}"
    if "HANDSHAKE_FAILURE" in reason:
        return f"TLS refused: no cipher in common, or the other side wants {client}"
    return f"TLS failed: {reason.replace('_', ' ').lower() or 'no reason given'}"


class FinalResponse(http.client.HTTPResponse):
    """The answer after any number of interim ones (RFC 9110, section 15.2)."""

    def begin(self) -> None:
        """Read status and headers, again while they are those of an interim answer."""
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            self.headers = self.msg = None  # type: ignore[assignment]
            super().begin()
        # The library takes `chunked` for that only where nothing stands beside it, not even a blank
        # (RFC 9112, section 6.1); and what has no body for one that is (section 6.3).
        codings = ",".join(self.headers.get_all("Transfer-Encoding", [])).lower().split(",")
        if codings[-1].strip() == "chunked" and not self.chunked:
            self.chunked, self.chunk_left, self.length = True, None, None
        if self.status in (204, 304):
            self.chunked, self.length = False, 0


class Connection(http.client.HTTPConnection):
    """http.client's connection, on a wire of ours."""

    response_class = FinalResponse

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire.host, wire.port)
        self.default_port = wire.default_port  # the Host header goes without it
        self.wire = wire

    def connect(self) -> None:
        """Open the wire."""
        self.sock = self.wire.open()

    def send(self, data: Any) -> None:
        """Send, and leave it to the answer whether the peer has closed.

        For it may have answered, and closed, before it had heard all of the request.
        """
        try:
            super().send(data)
        except ConnectionError:
            if self.sock is None:  # it could not be opened
                raise


class Peer(HTTPAdapter):
    """One HTTP server, and the one connection to it, which is kept where that is wanted.

    requests carries the exchange by its transport adapter alone: what a Session adds to that
    (redirects, cookies, proxies and netrc from the environment) must not happen here. The adapter
    asks for a pool of connections, and of that for its `urlopen`: this object is both, and what
    comes back is http.client's response. (Written for requests 2.34, which requirements.txt pins.)
    """

    def __init__(
        self, url: str, signals: Signals, keep: bool, trust: NamedFile[Any] | None
    ) -> None:
        """Args: what paths follow; who waits; keep the connection; the TLS context, for https."""
        super().__init__()
        parts = urlsplit(url)
        self.url = without_credentials(url)
        self.keep = keep
        self.headers = {"User-Agent": "sidecar", "Accept-Encoding": "identity"}
        self.headers |= basic_credentials(url)
        self.wire = Wire(parts.hostname or "", parts.port, signals, trust)
        self.connection = Connection(self.wire)

    def init_poolmanager(self, *_arguments: Any, **_options: Any) -> None:
        """Make no pool."""

    def get_connection_with_tls_context(self, *_arguments: Any, **_options: Any) -> Any:
        """Return what has `urlopen`."""
        return self

    def cert_verify(self, *_arguments: Any) -> None:
        """Change nothing: the wire's context verifies."""

    def build_response(self, _request: object, response: Any) -> Any:
        """Return the response as it is."""
        return response

    def urlopen(self, method: str, url: str, body: Any, headers: Any, **_options: Any) -> Any:
        """Send a request and return the response, its body still to be read.

        Sends it once more where a kept connection turns out to be closed. Whatever the peer has
        done by then: each request of the agent may arrive twice.
        """
        sock: Any = self.connection.sock
        if sock and (sock.unread or self.wire.age() > LONGEST_CONNECTION):
            self.connection.close()
        while True:
            kept = self.connection.sock is not None
            try:
                self.connection.request(method, url, body, headers)
                return self.connection.getresponse()
            except ConnectionError:
                if not kept:
                    raise
                self.connection.close()

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> Answer:
        """Send one request and return the answer, within `timeout` seconds, whatever comes."""
        self.wire.begin(timeout)
        answer, fit = Answer(secure=self.wire.trust is not None), False
        try:
            items = tuple({**self.headers, **headers}.items())
            request = prepare(method, self.url + path, items, body)
            response: Any = self.send(request, stream=True)
            with response:
                found = CaseInsensitiveDict(response.headers.items())
                answer = answer._replace(status=response.status, headers=found)
                answer = answer._replace(body=read_body(response))
            # What was read to its end leaves the connection fit for the next request. Where the
            # peer has announced that it closes it, http.client has done so.
            fit = self.keep and answer.ok and answer.whole
        except Exception as error:  # whatever a hostile answer makes the libraries raise
            # The adapter wraps each OSError.
            wrapped = isinstance(error, requests.ConnectionError)
            answer = answer._replace(failure=error.args[0] if wrapped else error)
        finally:
            if not fit:
                self.connection.close()
        if not answer.status:
            self.wire.failed = self.wire.place or self.wire.failed
        return answer


def read_body(response: http.client.HTTPResponse) -> bytes:
    """Return the body, up to one byte more than MAX_BODY; compressed ones stay so.

    Raises http.client.IncompleteRead where the connection ended before the length that was
    announced, or before the last chunk.
    """
    body = response.read(MAX_BODY + 1)
    if response.length and len(body) <= MAX_BODY:  # so much is missing
        raise http.client.IncompleteRead(body, response.length)
    return body


@functools.lru_cache(maxsize=8)
def prepare(
    method: str, url: str, headers: tuple[tuple[str, str], ...], body: bytes
) -> requests.PreparedRequest:
    """Return the request ready to send; kept, since every heartbeat is the same."""
    return requests.Request(method, url, dict(headers), data=body or None).prepare()


def without_credentials(url: str) -> str:
    """Return a URL, or a path, without user and password."""
    return re.sub("^([a-zA-Z]+://)[^/?]*@", r"\1", url)


def basic_credentials(url: str) -> dict[str, str]:
    """Return the header for a URL's user and password, bytes as they stand there: UTF-8."""
    credentials, at, _ = urlsplit(url).netloc.rpartition("@")
    if not at:
        return {}
    user, _, password = credentials.partition(":")
    clear = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return {"Authorization": f"Basic {base64.b64encode(clear).decode()}"}


# -------------------------------------------------------------------------------------- waiting

MAX_READ = 2 * MAX_BODY  # bytes read of an exchange: handshake, status, headers, framing, body
SLICE = 1.0  # seconds of waiting in one go

# Blocks for so many seconds at most; returns something true where what it waits for is there.
Step = Callable[[float], object]


class Stop(BaseException):
    """SIGTERM or SIGINT has come. Not an Exception, so that no library swallows it."""


class LateError(TimeoutError):
    """An exchange has used up its deadline."""


class NoTLSError(OSError):
    """What answers has begun with something that is not TLS."""


class Signals:
    """Waits, for whatever it is; and SIGTERM or SIGINT ends any wait.

    The handler notes the signal, and raises only while `wait` blocks, where nothing is half done.
    `wait` blocks in slices: a signal that comes after it has looked, and before the kernel blocks,
    is heard at the end of the slice.
    """

    def __init__(
        self, clock: Clock = healthcheck.clock, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.clock, self.sleep = clock, sleep
        self.stopping = False  # a signal has come
        self.may_raise = False  # the handler

    def install(self) -> None:
        """Take over the signals, and what came of them while Python was importing."""
        for number in STOP_SIGNALS:
            signal.signal(number, self.note)
        # With SIGCHLD ignored, the kernel reaps what is left to PID 1. The others mean nothing.
        for name in ("SIGCHLD", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2"):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):  # of the process that this one was before
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        self.unmask()

    def note(self, _number: int, _frame: object) -> None:
        """Handle a signal."""
        self.stopping = True
        if self.may_raise:
            self.may_raise = False
            raise Stop

    def mask(self) -> None:
        """Leave signals with the kernel from now on, and forget those that came before.

        The last request is not to be cut short, and Python's own end would be by a signal.
        """
        # It handles what has come before it returns (signalmodule.c, PyErr_CheckSignals).
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        self.stopping = False

    def unmask(self) -> None:
        """Take signals again, those too that the kernel has kept."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def wait(self, step: Step, end: float) -> bool:
        """Repeat the step until there is what it waits for: True; or the clock says `end`: False.

        Raises Stop, also in the middle of a step: what that found is lost, nothing else is.
        """
        while True:
            left = end - self.clock()
            try:
                self.may_raise = True
                if self.stopping:
                    raise Stop
                if left <= 0:
                    return False
                if step(min(left, SLICE)):
                    return True
            finally:
                self.may_raise = False

    def pause_until(self, end: float) -> None:
        """Sleep until the clock says so, however long the machine slept meanwhile. Raises Stop."""
        self.wait(self.sleep, end)


class Wire:
    """The way to one host and port: look-up, connecting, and the bounds of what passes over it.

    Attributes: `duration` of the exchange under way, its `end` (seconds of the clock), the `budget`
    in bytes still to be read; the `place` tried last, None where its look-up failed; when the
    connection was `opened`; the place that brought no answer last, `failed`; `look_ups` without an
    answer, by family.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        signals: Signals,
        trust: NamedFile[Any] | None = None,
    ) -> None:
        """Args: the port, or None for the protocol's; the TLS context, where TLS is spoken."""
        self.default_port = 80 if trust is None else 443
        self.host, self.port = host, port or self.default_port
        self.signals, self.trust = signals, trust
        self.duration = self.end = self.opened = 0.0
        self.budget = 0
        self.place: Any = None
        self.failed: Any = None
        self.look_ups: dict[int, LookUp] = {}

    def begin(self, duration: float) -> None:
        """Give the next exchange so many seconds, and MAX_READ bytes."""
        self.duration, self.budget = duration, MAX_READ
        self.end = self.signals.clock() + duration

    def age(self) -> float:
        """Return how many seconds ago the last connection was opened."""
        return self.signals.clock() - self.opened

    def wait(self, step: Step, end: float = math.inf) -> None:
        """Wait for something. Raises LateError at `end` or at the end of all, and Stop."""
        end = min(end, self.end)
        if not self.signals.wait(step, end):
            raise LateError(f"no answer within {say_seconds(self.duration + end - self.end)}")

    def check(self) -> None:
        """Raise Stop or LateError where it is time for that."""
        self.wait(lambda _seconds: True)

    def spend(self, count: int) -> None:
        """Take so many bytes off the budget. Raises OSError where the peer has sent too much."""
        self.budget -= count
        if self.budget < 0:
            raise OSError(errno.EMSGSIZE, f"the answer is longer than {MAX_READ // 1024} KB")

    def open(self) -> Any:
        """Return a new connection, TLS and all. Raises OSError, LateError among them, and Stop."""
        sock = self.connect_anywhere()
        if self.trust is None:
            return sock
        try:
            context = self.trust.now()
            if context is None:
                raise OSError(None, f"{self.trust.name} has never been readable")
            return PatientTLS(sock, context, self.host.rstrip("."))
        except BaseException as error:
            sock.close()
            # The types of a TLS record that comes first: alert, handshake (RFC 8446, section 5.1).
            if isinstance(error, ssl.SSLError) and sock.first not in (b"", b"\x15", b"\x16"):
                raise NoTLSError(None, "what answers does not speak TLS") from None
            raise

    def connect_anywhere(self) -> PatientSocket:
        """Connect to one of the host's addresses: IPv6 where it has no IPv4 address, or none works.

        One family is asked for at a time, because musl, asked for both, fails if either fails.
        """
        self.place = None
        families = [socket.AF_INET, socket.AF_INET6]
        if re.fullmatch("[0-9.]+", self.host) or ":" in self.host:
            families = [socket.AF_INET6 if ":" in self.host else socket.AF_INET]
        not_found: list[OSError] = []
        not_connected: list[OSError] = []
        for number, family in enumerate(families, 1):
            try:
                addresses = self.addresses(family)
            except OSError as error:
                not_found.append(error)
                continue
            try:
                return self.connect_in_turn(addresses, len(families) - number)
            except OSError as error:
                not_connected.append(error)
        raise [*not_connected, *not_found][0]

    def connect_in_turn(self, addresses: list[Any], shares: int) -> PatientSocket:
        """Connect to one address after the other, each with its share of the time that is left.

        Begins after the one that brought no answer last. `shares` are kept for what comes later.
        """
        for number, address in enumerate(begin_after(addresses, self.failed)):
            now = self.signals.clock()
            self.place = address
            try:
                left = self.end - now
                # Of many addresses, some get nothing: less than a second may be less than the way.
                share = max(left / (len(addresses) - number + shares), min(left / 5, 1.0))
                return self.connect(address, now + share)
            except OSError as error:
                failure, self.failed = error, address
        raise failure

    def connect(self, address: Any, end: float) -> PatientSocket:
        """Connect to one of getaddrinfo's addresses until `end`. Raises OSError."""
        family, kind, protocol, _, place = address
        sock = PatientSocket(family, kind, protocol)
        try:
            sock.wire = self
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            problem = sock.connect_ex(place)
            if problem == errno.EINPROGRESS:
                self.wait(sock.readiness(select.POLLOUT), end)
                problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not problem and sock.getsockname() == place:
                # Nobody listens there, and it met itself.
                problem = errno.ECONNREFUSED
            if problem:
                raise OSError(problem, os.strerror(problem))
        except BaseException:
            sock.close()
            raise
        self.opened = self.signals.clock()
        return sock

    def any_address(self) -> str:
        """Return one of the host's addresses, as text. Raises OSError, LateError among them."""
        try:
            found = self.addresses(socket.AF_INET)
        except socket.gaierror:
            found = self.addresses(socket.AF_INET6)
        return str(found[0][4][0])

    def addresses(self, family: int) -> list[Any]:
        """Look the host up, or join the look-up under way: a dead DNS holds one thread, not many.

        Raises OSError, LateError among them. An answer that came when nobody waited serves nobody.
        """
        with contextlib.suppress(OSError):  # what is an address needs no look-up
            flags = socket.AI_NUMERICHOST
            return socket.getaddrinfo(self.host, self.port, family, socket.SOCK_STREAM, 0, flags)
        self.check()  # before there is a thread
        look_up = self.look_ups.get(family)
        if look_up is None or look_up.answer is not None:
            look_up = self.look_ups[family] = LookUp(self.host, self.port, family)
        self.wait(look_up.wait)
        del self.look_ups[family]
        if isinstance(look_up.answer, Exception):
            raise look_up.answer
        assert look_up.answer is not None
        return look_up.answer


class LookUp:
    """One name look-up, in a thread of its own since nothing ends a getaddrinfo.

    One that nobody waits for any more needs no care: it holds no file and ends by itself. `answer`
    is None, then the addresses or the exception.
    """

    def __init__(self, host: str, port: int, family: int) -> None:
        """Begin. Raises OSError where no thread is to be had."""
        self.host, self.port, self.family = host, port, family
        self.answer: list[Any] | Exception | None = None
        self.running = _thread.allocate_lock()
        self.running.acquire()
        try:
            # Not threading's: that waits, without a bound, for the thread's first step.
            _thread.start_new_thread(self.run, ())
        except RuntimeError as error:
            raise socket.gaierror(errno.EAGAIN, f"no thread for it ({error})") from None

    def wait(self, duration: float) -> bool:
        """Block for so many seconds at most; tell whether the answer is there."""
        return self.answer is not None or self.running.acquire(timeout=duration)

    def run(self) -> None:
        """Look up, in the thread."""
        # Signals are for the main thread, which they wake.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            question = self.host, self.port, self.family, socket.SOCK_STREAM
            self.answer = socket.getaddrinfo(*question)
        except Exception as error:
            # A traceback would hold this thread's frame.
            self.answer = error.with_traceback(None)
        finally:
            self.running.release()


class PatientSocket(socket.socket):
    """A socket that never blocks: before each read and write it waits as its wire does.

    So also those that need not wait ask for the deadline and for signals, and each byte that comes
    in is taken off the wire's budget. That all reads and writes pass here bounds an exchange;
    OpenSSL's do, too, because PatientTLS gives it bytes and not the socket.
    """

    wire: Wire
    first = b""  # the first byte that TLS has received
    # The libraries use those below; what else a socket has for it would not be bounded.
    recvfrom = recvfrom_into = recvmsg = recvmsg_into = None  # type: ignore[assignment]
    send = sendto = sendmsg = sendfile = None  # type: ignore[assignment]

    def settimeout(self, _value: float | None) -> None:
        """Stay non-blocking, whatever a library sets."""
        super().settimeout(0)

    def readiness(self, events: int) -> Step:
        """Return the step of waiting until the socket is ready."""
        poller = select.poll()
        poller.register(self.fileno(), events)
        return lambda duration: poller.poll(math.ceil(duration * 1000))

    @property
    def unread(self) -> bool:
        """Tell whether something has come in that nobody has received yet."""
        return bool(self.readiness(select.POLLIN)(0.0))

    def recv_into(self, *arguments: Any) -> int:
        """Receive. Raises LateError, Stop, and OSError where the peer has sent too much."""
        count: int = self.patiently(select.POLLIN, super().recv_into, *arguments)
        self.wire.spend(count)
        return count

    def recv(self, *arguments: Any) -> bytes:
        """Receive, in the same way."""
        received: bytes = self.patiently(select.POLLIN, super().recv, *arguments)
        self.wire.spend(len(received))
        self.first = self.first or received[:1]
        return received

    def sendall(self, data: Any, *arguments: Any) -> None:
        """Send all of it. Raises LateError, Stop."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.patiently(select.POLLOUT, super().send, view, *arguments) :]

    def patiently(self, events: int, call: Callable[..., Any], *arguments: Any) -> Any:
        """Wait until the socket is ready, and call; again where it was not ready after all."""
        while True:
            self.wire.wait(self.readiness(events))
            with contextlib.suppress(BlockingIOError):
                return call(*arguments)


if ssl is not None:

    class PatientTLS(SSLTransport):
        """TLS over a PatientSocket, verified as the context says.

        OpenSSL reads and writes memory (ssl.MemoryBIO); what it lacks comes by the socket's recv.
        """

        def recv_into(self, *arguments: Any) -> Any:
            """Receive: also what has come in before asks for the deadline and for signals."""
            self.socket.wire.check()  # type: ignore[attr-defined]
            return super().recv_into(*arguments)

        @property
        def unread(self) -> bool:
            """Tell whether something has come in that nobody has received yet."""
            waits = self.socket.unread  # type: ignore[attr-defined]
            return waits or self.incoming.pending > 0 or self.sslobj.pending() > 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
