"""The soak's world.

The registry, the services, the agents, the faults they meet, and the eyes that watch.
"""

import collections
import contextlib
import heapq
import itertools
import math
import re
import runpy
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from kit.peers.balancer import Balancer
from kit.peers.dead import dead_port
from kit.peers.registry import Registry
from kit.peers.server import Exchange, Request
from kit.sidecar import AGENT, STOP_PROMISE, odd_lines
from soak.catalogue import retry_after
from soak.invariants import FLOOD, LATE, Sample, Times, about_registry, dropped, flooded, resources
from soak.plays import Plays
from soak.schedule import KINDS, QUIET, Episode, Round
from soak.unit import ANY_OPERATION, DEAD, Aim, Unit, write

LOOK_EVERY = 0.02  # seconds
CHECK_EVERY = 10  # looks, for health and lateness
MEASURE_EVERY = 100  # looks, for memory and descriptors
WAKING = 6.0  # seconds from a start or a thaw in which the heartbeat file may be old
SECRET = "soak-secret"
TAIL = 25  # lines of a log in a report
FAULTY = re.compile("WARNING (Heartbeat|Registration) failed|WARNING Health probe")


class Violation(NamedTuple):
    """Something that did not hold.

    Seconds since the start, whom it concerns, what was going on, the log's end.
    """

    at: float
    agent: str
    what: str
    fault: str
    tail: list[str]


class World:
    """Everything that runs. A context manager: on leaving it, all is ended and removed.

    Args: how many agents; the durations; the seed of what they draw by chance; the agent's file,
    which has its healthcheck.py beside it; stop_at_first, to end at the first violation.
    """

    def __init__(
        self,
        agents: int,
        times: Times,
        seed: int,
        agent: Path = AGENT,
        stop_at_first: bool = False,
    ) -> None:
        self.times, self.seed, self.agent = times, seed, agent
        self.stop_at_first = stop_at_first
        self.healthcheck = runpy.run_path(str(agent.with_name("healthcheck.py")))
        self.clock = self.healthcheck.get("clock", time.monotonic)
        self.directory = tempfile.TemporaryDirectory(prefix="soak-")
        self.token_file = Path(self.directory.name) / "token"
        self._secrets = itertools.count(1)
        token = self.new_secret()
        self.hand_out(token)
        self.registry = Registry(
            ttl=times.ttl,
            token=token,
            failing_delay=times.interval / 8,
            hang_delay=times.interval,
            retry_after=1,
        )
        self.balancer = Balancer([self.registry])  # there is but one replica, usually
        self.lock = threading.RLock()
        self.units = [Unit(number, self) for number in range(agents)]
        self.registry.ttls = {unit.name: unit.times.ttl for unit in self.units}
        self.hosts = {unit.hosts["registry"]: unit for unit in self.units}
        # All that agents take for the registry.
        self.fronts = list(dict.fromkeys([self.balancer, *(unit.front for unit in self.units)]))
        self.dead_ports = contextlib.ExitStack()
        self.plays = Plays(self)
        self.violations: list[Violation] = []
        self.played: collections.Counter[str] = collections.Counter()  # kinds
        self.met: collections.Counter[tuple[str, str]] = (
            collections.Counter()
        )  # operations, faults of the catalogue
        self.outage = ""
        self.looks = 0
        self.began = time.monotonic()
        self.end = threading.Event()
        self._eyes = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:  # Ctrl-C too: nothing stays behind
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        for front in self.fronts:
            front.play(ANY_OPERATION, self._meet, times=None)
            front.start()
        for peer in (*self.fronts, *(unit.service for unit in self.units)):
            self.dead_ports.enter_context(dead_port(DEAD, peer.port))
        for unit in self.units:
            unit.service.start()
            unit.watch.disturb("start")
            unit.start()
            unit.watch.restore("start", time.monotonic())
        self._eyes.start()

    def __exit__(self, *exception: object) -> None:
        self.end.set()
        if self._eyes.is_alive():
            self._eyes.join(10)
        for unit in self.units:
            unit.clear_away()
        self.dead_ports.close()
        self.balancer.stop()
        self.directory.cleanup()

    def new_secret(self) -> str:
        """Return a token that was never used."""
        return f"{SECRET}-{next(self._secrets)}"

    def hand_out(self, token: str) -> None:
        """Give all agents this token for the registry."""
        write(self.token_file, token)

    def violation(self, unit: Unit | None, what: str) -> None:
        """Note what does not hold."""
        tail = unit.sidecar.lines[-TAIL:] if unit else []
        fault = "; ".join(filter(None, (self.outage, *(unit.doing if unit else ())))) or "all sane"
        with self.lock:
            self.violations.append(
                Violation(
                    time.monotonic() - self.began, unit.name if unit else "all", what, fault, tail
                )
            )
        if self.stop_at_first:
            self.end.set()

    # ---- the requests to the registry

    def _meet(self, exchange: Exchange) -> None:
        """Play what is aimed at the agent that asks, else give the sane answer."""
        asked = exchange.asked
        unit = self.hosts.get(asked.headers["Host"].partition(":")[0])
        if not unit or asked.operation not in ("register", "heartbeat", "list", "deregister"):
            self.violation(unit, f"a request that no sidecar makes: {asked.method} {asked.path}")
            exchange.sane()
            return
        with self.lock:
            self._note(unit, asked)
            aim = self._take(unit, asked.operation)
            if aim and asked.operation == "register":
                unit.watch.asked_to_wait(time.monotonic(), retry_after(aim.name))
        if aim:
            aim.fault(exchange)
        else:
            exchange.sane()

    def _note(self, unit: Unit, asked: Request) -> None:
        """Judge a request to the registry."""
        unit.events += 1
        unit.asked[asked.operation] += 1
        unit.asked_at = asked.at
        self._complain(unit, unit.watch.request(asked.at, asked.operation))
        if asked.operation == "heartbeat":
            self._complain(unit, unit.watch.see(time.monotonic(), self.registry.record(unit.name)))
            # Without a probe before it, it was about to be sent when the agent froze.
            if unit.register_first and unit.service.requests[-1].at > unit.awake_at:
                self.violation(unit, "a heartbeat, not a registration, after longer than the TTL")
        unit.register_first = False

    def _take(self, unit: Unit, operation: str) -> Aim | None:
        for aim in unit.aims:
            if aim.operation in (ANY_OPERATION, operation):
                if aim.once:
                    unit.aims.remove(aim)
                self.met[operation, aim.name] += 1
                return aim
        return None

    # ---- the eyes

    def _watch(self) -> None:
        """Look at everything, again and again, until the end."""
        try:
            while not self.end.is_set():
                due = time.monotonic() + LOOK_EVERY
                time.sleep(LOOK_EVERY)
                self.looks += 1
                self._look_around(time.monotonic() - due)
        except Exception as error:
            self.violation(None, f"the soak itself has a bug: {error!r}")
            self.end.set()
            raise

    def _look_around(self, lateness: float) -> None:
        for unit in self.units:
            with self.lock:
                if lateness > LOOK_EVERY:
                    unit.watch.late.add(time.monotonic(), lateness)
                self._look(unit)

    def _look(self, unit: Unit) -> None:
        if self.looks % CHECK_EVERY == 0 and unit.running:
            self._check_health(unit)
            self._note_run_delay(unit)
        if self.looks % MEASURE_EVERY == 0 and unit.running:
            with contextlib.suppress(psutil.Error):  # it ended just now
                unit.lives[-1].append(measure(unit.sidecar.process.pid))
        self._read_log(unit)
        self._complain(unit, unit.watch.see(time.monotonic(), self.registry.record(unit.name)))
        if unit.running and unit.sidecar.process.poll() is not None:
            unit.running = False
            self.violation(
                unit, f"the agent ended by itself with exit code {unit.sidecar.process.returncode}"
            )
            self.end.set()  # the schedule counts on it

    def _complain(self, unit: Unit, what: str) -> None:
        if what:
            self.violation(unit, what)

    def _check_health(self, unit: Unit) -> None:
        """Judge the heartbeat file as healthcheck.py does."""
        now = time.monotonic()
        if unit.frozen or now < unit.awake_at + WAKING + unit.watch.late.since(unit.awake_at):
            return
        try:
            line = self.healthcheck["read"](str(unit.sidecar.heartbeat_file))
        except OSError as error:
            self.violation(unit, f"no heartbeat file: {error.strerror}")
            return
        late = unit.watch.late.since(now - unit.times.interval)
        well, sentence = self.healthcheck["judge"](line, self.clock() + unit.ahead - late)
        if not well:
            self.violation(unit, f"the health check says: {sentence}")
            unit.awake_at = now  # once is enough

    def _note_run_delay(self, unit: Unit) -> None:
        """Note as lateness what the process had to wait for a processor (Linux)."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            delay = (
                int(Path(f"/proc/{unit.sidecar.process.pid}/schedstat").read_text().split()[1])
                / 1e9
            )
            if not unit.frozen:
                unit.watch.late.add(time.monotonic(), delay - unit.run_delay)
            unit.run_delay = delay

    def _read_log(self, unit: Unit) -> None:
        lines = unit.sidecar.lines
        while unit.read < len(lines):
            line, at = lines[unit.read], unit.sidecar.times[unit.read]
            unit.read += 1
            self._complain(unit, unit.watch.said(line, at))
            if odd_lines([line]):
                self.violation(unit, f"an odd line in the log: {line!r}")
            if SECRET in line:
                self.violation(unit, "the token is in the log")
            if (
                self.outage in QUIET
                and FAULTY.search(line)
                and unit.watch.late.since(at - unit.times.ttl) < LATE
            ):
                self.violation(unit, f"a dropped connection costs a warning: {line}")

    # ---- playing

    def play(self, this: Round, until: float = math.inf) -> None:
        """Play a round, and wait until everybody is back, or should be.

        No episode begins after `until` (monotonic).
        """
        for replica in self.plays.replicas:
            replica.dialect = this.dialect
        tracks: list[tuple[Unit | None, tuple[Episode, ...]]] = list(
            zip(self.units, this.tracks, strict=True)
        )
        if this.outage:
            tracks.append((None, (this.outage,)))
        began = time.monotonic()
        steps = [
            (0.0, number, self._track(*track, this.calm, until))
            for number, track in enumerate(tracks)
        ]
        while steps and not self.end.is_set():
            at, number, track = heapq.heappop(steps)
            self.end.wait(max(began + at - time.monotonic(), 0))
            wait = next(track, None)
            if wait is not None:
                heapq.heappush(steps, (time.monotonic() - began + wait, number, track))
        self.settle()
        self.end.wait(this.calm)

    def settle(self) -> None:
        """Wait until every agent is back; those that are not in time complain by themselves."""
        while not self.end.wait(LOOK_EVERY) and any(unit.watch.waiting for unit in self.units):
            pass

    def _track(
        self, unit: Unit | None, episodes: Iterable[Episode], calm: float, until: float
    ) -> Iterator[float]:
        """Play the episodes one after another; yield the seconds to wait before each step."""
        for episode in episodes:
            yield episode.start
            if time.monotonic() > until:
                return
            yield from self._episode(episode, unit)
            if unit:
                while unit.watch.waiting and not self.outage:
                    yield LOOK_EVERY
                yield calm
                unit.doing.remove(str(episode))

    def _episode(self, episode: Episode, unit: Unit | None) -> Iterator[float]:
        """Begin an episode, yield the seconds that it lasts, end it."""
        concerned, how = [unit] if unit else self.units, KINDS[episode.kind]
        with self.lock:
            self.played[episode.kind] += 1
            if unit:
                unit.doing.append(str(episode))
            else:
                self.outage = episode.kind
            for each in concerned:
                each.events += 1  # its end
                each.watch.disturb(episode.kind, how.keeps)
        plays = self.plays
        play = (
            plays.on_agent[episode.kind](episode, unit)
            if unit
            else plays.on_registry[episode.kind](episode)
        )
        yield from play
        with self.lock:
            for each in concerned:
                each.watch.restore(episode.kind, time.monotonic(), how.back * each.times.interval)
            if not unit:
                self.outage = ""

    def terminate(self, unit: Unit) -> None:
        """Send SIGTERM and see to it that the agent stops as promised.

        Takes its record away where it can.
        """
        unit.leave()
        sane = not self.outage
        unit.sidecar.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        try:
            code = unit.reap(STOP_PROMISE + self.times.slack + 10)
        except subprocess.TimeoutExpired:
            self.violation(unit, "SIGTERM does not end the agent")
            unit.kill()
            return
        took = time.monotonic() - began
        if code != 0 or took > STOP_PROMISE + self.times.slack + unit.watch.late.since(began):
            self.violation(unit, f"SIGTERM: exit code {code} after {took:.1f} s")
        if sane and self.registry.record(unit.name) and unit.watch.late.since(began) < LATE:
            self.violation(unit, "the record is still there after SIGTERM")

    # ---- the end

    def finish(self) -> None:
        """Stop every agent by SIGTERM, and look at their whole lives."""
        for unit in self.units:
            unit.doing.append("the end of the soak")
            if unit.running:
                line = self.healthcheck["read"](str(unit.sidecar.heartbeat_file))
                now = self.clock() + unit.ahead
                ready, sentence = self.healthcheck["judge"](line, now, ready=True)
                if not unit.watch.waiting and not ready:
                    self.violation(unit, f"healthcheck.py --ready at the end: {sentence}")
                with self.lock:
                    unit.watch.disturb("the end")
                self.terminate(unit)
            with self.lock:
                self._read_log(unit)
            for number, life in enumerate(unit.lives, 1):
                for wrong in resources(life):
                    self.violation(unit, f"life {number}: {wrong}")
            window = 5 * unit.times.interval
            if (most := flooded(unit.sidecar.times, window)) > FLOOD:
                self.violation(unit, f"{most} lines of log within {window:g} s")
            lines = about_registry(unit.sidecar.lines) + dropped(unit.sidecar.lines)
            if lines > unit.events:
                self.violation(
                    unit, f"{lines} lines of log about the registry for {unit.events} events"
                )
        left = self.registry.names()
        if left and not self.violations:
            self.violation(None, f"left in the registry after SIGTERM: {left}")


def measure(pid: int) -> Sample:
    """Return what a process uses. Raises psutil.Error."""
    process = psutil.Process(pid)
    return Sample(process.memory_info().rss // 1024, process.num_fds())
