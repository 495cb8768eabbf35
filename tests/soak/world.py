"""The soak's world: agents, each with a service and a registry of its own; who plays, who watches.

For each agent a thread plays its faults; one more looks at everything, every few milliseconds.
"""

from __future__ import annotations

import collections
import contextlib
import math
import random
import runpy
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, Self

import psutil

from kit.certificates import certificate
from kit.peers.faults import bomb
from kit.peers.registry import DIALECTS, Registry
from kit.peers.service import ToyService
from kit.sidecar import STOP_PROMISE, Sidecar, odd_lines
from kit.stage import Stage
from soak import watch
from soak.catalogue import ALL
from soak.plays import HOST, KINDS, Episode, deck
from soak.watch import LATE, Sample, Times, Watch

LOOK_EVERY = 0.02  # seconds
CHECK_EVERY = 10  # looks, for health and lateness
MEASURE_EVERY = 100  # looks, for memory and descriptors
WAKING = 6.0  # seconds from a start or a thaw in which the heartbeat file may be old
SECRET = "soak-secret"
TAIL = 25  # lines of a log in a report
PROGRESS_EVERY = 30.0  # seconds
SLOWER = 3  # times: an interval that is longer than the slices of a second in which an agent waits
MIXED = 0.4  # how often a fault has another one beside it that may come meanwhile
DRAIN = 0.5  # seconds


class EndedError(Exception):
    """The soak is over."""


class Violation(NamedTuple):
    """What did not hold: seconds since the start, whose, what was going on, the log's end."""

    at: float
    agent: str
    what: str
    fault: str
    tail: list[str]


class Unit:
    """One agent with its service, its own way to the registry, and what is known of them."""

    def __init__(self, number: int, world: World) -> None:
        self.name, self.world = f"soak_{number}", world
        self.tls, self.slow, self.restarts = number % 3 == 1, number % 3 == 2, number % 2 == 1
        interval = world.times.interval * (SLOWER if self.slow else 1)
        self.times = world.times._replace(interval=interval)
        self.wait, self.watch = world.wait, Watch(self.times, self.complain)
        self.rng = random.Random(f"{world.seed} {number}")
        self.home = Path(world.directory.name) / self.name
        self.home.mkdir()
        tls, authority = certificate(self.home, HOST) if self.tls else (None, "")
        ca_file = self.trust(authority) if authority else ""
        self.service = ToyService(version=self.watch.version, tls=tls)
        self.registry = Registry(
            ttl=self.times.ttl, failing_delay=interval / 8, hang_delay=interval, tls=tls
        )
        self.renew_token()
        scheme = "https" if self.tls else "http"
        self.sidecar = Sidecar(
            SERVICE_NAME=self.name,
            SERVICE_HOST=HOST,
            SERVICE_PORT=self.service.port,
            SERVICE_SCHEME=scheme,
            SERVICE_CA_FILE=ca_file,
            REGISTRY_URL=f"{scheme}://{HOST}:{self.registry.port}",
            REGISTRY_CA_FILE=ca_file,
            HEARTBEAT_INTERVAL=interval,
            SERVICE_HEALTH_TIMEOUT=watch.HEALTH_TIMEOUT,
            SERVICE_HEALTH_RETRIES=watch.RETRIES,
            REGISTRY_TIMEOUT=watch.REGISTRY_TIMEOUT,
            REGISTRY_TOKEN_FILE=self.home / "token",
            INITIAL_WAIT_TIMEOUT=86400,  # so that a dead service is never registered
        )
        self.sidecar.script = [str(world.agent)]
        # With the schedule's seed for what it draws, a run repeats itself as far as clocks let it.
        names = {HOST: ["127.0.0.1"]}
        self.stage = Stage(self.sidecar, names=names, seed=f"{world.seed} {number}", ahead=0.0)
        self.ahead = 0.0  # seconds for which its host was suspended
        self.running = self.frozen = False
        self.awake_at = 0.0  # since when it is running and not frozen
        self.kinds = self.draw_kinds(lambda _: True)
        self.kinds_beside = self.draw_kinds(lambda name: name.startswith(("agent", "service")))
        self.drawn: collections.Counter[str] = collections.Counter()
        self.ranks = {fault: self.rng.random() for fault in sorted(ALL)}
        self.doing: list[Episode] = []
        self.judged = 0  # requests
        self.read = 0  # lines of the log
        self.lives: list[list[Sample]] = []
        self.run_delay = 0.0  # seconds that the process had to wait for a processor

    def complain(self, what: str) -> None:
        """Note what does not hold."""
        at, doing = time.monotonic() - self.world.began, "; ".join(map(str, self.doing))
        lines = self.sidecar.lines[-TAIL:]
        self.world.violations.append(Violation(at, self.name, what, doing or "all sane", lines))
        if self.world.stop_at_first:
            self.world.end.set()

    # ---- what is done to it

    def start(self) -> None:
        self.sidecar.start()
        self.lives.append([])
        self.run_delay = 0.0
        self.awake_at = time.monotonic()
        self.watch.announced.clear()
        self.running = True

    def freeze(self) -> None:
        self.frozen = True
        self.sidecar.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.woken()
        self.sidecar.process.send_signal(signal.SIGCONT)
        self.frozen = False

    def suspend(self) -> None:
        """Let its host have been suspended for a while, in which the registry's clock went on."""
        self.ahead += self.rng.choice((1.1, 3.0)) * self.times.ttl
        self.woken()
        self.stage.set(ahead=self.ahead)
        self.registry.expire()

    def woken(self) -> None:
        with self.world.lock:
            self.awake_at = time.monotonic()

    def write(self, name: str, text: str) -> Path:
        """Replace one of its files in one step, as a mounted secret is renewed; return it."""
        draft = self.home / "new"
        draft.write_text(text)
        return draft.replace(self.home / name)

    def renew_token(self) -> None:
        """Renew it in the file first: what meets the old one is repeated with the new one."""
        token = f"{SECRET}-{self.rng.random()}"
        self.write("token", token)
        self.registry.token = token

    def change_token(self) -> None:
        """Refuse the old one before there is the new one."""
        self.registry.token = f"{SECRET}-{self.rng.random()}"

    def tell_token(self) -> None:
        self.write("token", str(self.registry.token))

    def drain(self) -> None:
        """Let all be answered that was asked during a pause, though nobody waits for it."""
        self.wait(DRAIN)

    def new_version(self) -> None:
        """Give the service a new version, which the record must show."""
        self.service.version = self.watch.version = str(int(self.watch.version) + 1)

    def show(self, tls: tuple[str, str]) -> None:
        """Let the peers show this certificate to whoever connects."""
        self.service.certify(tls)
        self.registry.certify(tls)

    def trust(self, authority: str) -> Path:
        """Let the agent trust this authority; return the file that says so."""
        return self.write("ca.pem", Path(authority).read_text())

    def leave(self) -> None:
        """Note that the process is about to end, and may."""
        with self.world.lock:
            self.running = False

    def kill(self) -> None:
        self.leave()
        self.sidecar.process.kill()
        self.sidecar.wait()

    def terminate(self) -> None:
        """Send SIGTERM: the agent has to stop as promised, and take its record away if it can."""
        self.leave()
        sane, slack, late = len(self.doing) < 2, self.times.slack, self.watch.late
        began = time.monotonic()
        try:
            code, took = self.sidecar.stop(timeout=STOP_PROMISE + slack + 10)
        except subprocess.TimeoutExpired:
            self.complain("SIGTERM does not end the agent")
            self.kill()
            return
        if code != 0 or took > STOP_PROMISE + slack + late.since(began):
            self.complain(f"SIGTERM: exit code {code} after {took:.1f} s")
        if sane and self.registry.record(self.name) and late.since(began) < LATE:
            self.complain("the record is still there after SIGTERM")

    def clear_away(self) -> None:
        """End whatever runs, and remove the files."""
        self.leave()
        if self.lives:  # it was started
            self.sidecar.process.kill()
            self.sidecar.close()
        self.service.stop()
        self.registry.stop()

    # ---- who plays

    def draw_kinds(self, fits: Callable[[str], bool]) -> Iterator[str]:
        """Yield kinds that are for this agent, each as often as it weighs before it comes again.

        Some are never restarted, so that their memory is seen over all the time.
        """
        only = self.world.only
        mine = {
            name: kind.weight
            for name, kind in KINDS.items()
            if kind.tls <= self.tls and self.slow <= kind.slow
            if kind.restarts <= self.restarts and fits(name)
        }
        return deck(self.rng, [n for n in mine for _ in range(mine[n]) if not only or n in only])

    def draw(self, name: str) -> Episode:
        """Draw an episode of a kind, with one of the faults that were played least so far."""
        kind, rng, interval = KINDS[name], self.rng, self.times.interval
        fault = min(kind.faults(), key=lambda name: (self.drawn[name], self.ranks.get(name, 0)))
        self.drawn[fault] += 1
        length = rng.uniform(kind.shortest, kind.longest) * interval
        start, operation = rng.uniform(0, interval), rng.choice(kind.operations)
        return Episode(name, kind, start, length, operation, fault, rng.random() < 0.5)

    def play(self, until: float) -> None:
        """Play one fault after another; after each the agent is back, or it is told of.

        At last it stops. Raises EndedError.
        """
        self.settle()
        while time.monotonic() < until and (name := next(self.kinds, "")):
            self.registry.dialect = self.rng.choice(DIALECTS)
            calm = self.rng.uniform(0.2, 1.0) * self.times.interval
            first, toss = self.draw(name), self.rng.random() < 0.5
            beside = next(self.kinds_beside, "") if self.rng.random() < MIXED else ""
            with contextlib.ExitStack() as one, contextlib.ExitStack() as other:
                self.wait(first.start)
                one.enter_context(self.meets(first))
                if beside and beside.startswith(first.kind.beside):
                    second = self.draw(beside)
                    self.wait(second.start)
                    other.enter_context(self.meets(second))
                    self.wait(second.length)
                    (one if toss else other).close()
                self.wait(first.length)
            self.settle()
            self.wait(calm)
        self.finish()

    @contextlib.contextmanager
    def meets(self, episode: Episode) -> Iterator[None]:
        """Meet one fault meanwhile."""
        with self.world.lock:
            self.world.played[episode.name] += 1
            self.doing.append(episode)
            self.watch.disturb(episode.name, episode.kind.keeps)
            if episode.kind.dead:
                self.watch.dead_since = time.monotonic()
        with episode.kind.play(episode, self):
            yield
        with self.world.lock:
            if episode.kind.dead:
                self.watch.dead_since = math.inf
            self.watch.restore(episode.name, time.monotonic(), episode.kind.back)
            self.doing.remove(episode)

    def settle(self) -> None:
        """Wait until the agent is back; one that is not in time complains by itself."""
        while self.watch.waiting:
            self.wait(LOOK_EVERY)

    # ---- what is seen of it

    def look(self, looks: int) -> None:
        """Judge what has happened since the last look."""
        if looks % CHECK_EVERY == 0 and self.running:
            self.check_health()
            self.note_run_delay()
        if looks % MEASURE_EVERY == 0 and self.running:
            with contextlib.suppress(psutil.Error):  # it ended just now
                process = psutil.Process(self.sidecar.process.pid)
                memory = process.memory_info().rss // 1024
                self.lives[-1].append(Sample(memory, process.num_fds()))
        self.judge_requests()
        self.read_log()
        self.watch.see(time.monotonic(), self.registry.record(self.name))
        if self.running and (code := self.sidecar.process.poll()) is not None:
            self.running = False
            self.complain(f"the agent ended by itself with exit code {code}")
            self.world.end.set()  # who plays counts on it

    def judge_requests(self) -> None:
        with self.registry.lock:
            new = self.registry.count() - self.judged
            requests = self.registry.requests[-new:] if new else []
        self.judged += new
        for request in requests:
            self.watch.asked(request.at, request.operation)
            if request.operation not in ("register", "heartbeat", "list", "deregister"):
                self.complain(f"a request that no sidecar makes: {request.method} {request.path}")

    def check_health(self) -> None:
        """Judge the heartbeat file as healthcheck.py does."""
        now, late = time.monotonic(), self.watch.late
        if self.frozen or now < self.awake_at + WAKING + late.since(self.awake_at):
            return
        well, sentence = self.health(late=late.since(now - self.times.interval))
        if not well:
            self.complain(f"the health check says: {sentence}")
            self.awake_at = now  # once is enough

    def health(self, late: float = 0.0, ready: bool = False) -> tuple[bool, str]:
        """Return what healthcheck.py finds, and its sentence."""
        check = self.world.healthcheck
        try:
            line = check["read"](str(self.sidecar.heartbeat_file))
        except OSError as error:
            return False, f"no heartbeat file: {error.strerror}"
        well, sentence = check["judge"](line, check["clock"]() + self.ahead - late, ready=ready)
        return bool(well), str(sentence)

    def note_run_delay(self) -> None:
        """Note as lateness what the process had to wait for a processor (Linux)."""
        with contextlib.suppress(OSError, IndexError, ValueError):
            schedule = Path(f"/proc/{self.sidecar.process.pid}/schedstat").read_text()
            delay = int(schedule.split()[1]) / 1e9
            if not self.frozen:
                self.watch.late.add(time.monotonic(), delay - self.run_delay)
            self.run_delay = delay

    def read_log(self) -> None:
        lines, times = self.sidecar.lines, self.sidecar.times
        while self.read < len(lines):
            line, at = lines[self.read], times[self.read]
            self.read += 1
            self.watch.said(line, at)
            if odd_lines([line]):
                self.complain(f"an odd line in the log: {line!r}")
            if SECRET in line:
                self.complain("a token is in the log")

    def finish(self) -> None:
        """Stop it by SIGTERM, and look at its whole life."""
        if self.running:
            ready, sentence = self.health(ready=True)
            if not self.watch.waiting and not ready:
                self.complain(f"healthcheck.py --ready at the end: {sentence}")
            with self.world.lock:
                self.watch.disturb("the end")
            self.terminate()
        with self.world.lock:
            self.judge_requests()
            self.read_log()
        wrong = [what for life in self.lives for what in watch.resources(life)]
        wrong += watch.log_floods(self.sidecar.times, self.times.interval)
        for what in wrong:
            self.complain(what)


class World:
    """Everything that runs. A context manager: on leaving it, all is ended and removed.

    Args: how many agents; the durations; the seed of all that is drawn; the agent's file, which has
    its healthcheck.py beside it; the kinds of fault to keep to, all where there is none; whether to
    end at the first violation.
    """

    def __init__(
        self,
        agents: int,
        times: Times,
        seed: int,
        agent: Path,
        only: Collection[str] = (),
        stop_at_first: bool = False,
    ) -> None:
        self.times, self.seed, self.agent, self.only = times, seed, agent, only
        self.stop_at_first = stop_at_first
        self.healthcheck = runpy.run_path(str(agent.with_name("healthcheck.py")))
        bomb(128)  # before anybody is in a hurry
        self.lock, self.end = threading.RLock(), threading.Event()
        self.directory = tempfile.TemporaryDirectory(prefix="soak-")
        self.violations: list[Violation] = []
        self.met: collections.Counter[str] = collections.Counter()  # faults of the catalogue
        self.played: collections.Counter[str] = collections.Counter()  # kinds
        self.looks = 0
        self.began = time.monotonic()
        self._eyes = threading.Thread(target=self._watch, daemon=True)
        self.units = [Unit(number, self) for number in range(agents)]

    def __enter__(self) -> Self:
        try:
            for unit in self.units:
                unit.registry.start()
                unit.service.start()
                unit.watch.disturb("start")
                unit.start()
                unit.watch.restore("start", time.monotonic())
            self._eyes.start()
        except BaseException:  # Ctrl-C too: nothing stays behind
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.end.set()
        if self._eyes.is_alive():
            self._eyes.join(10)
        for unit in self.units:
            unit.clear_away()
        self.directory.cleanup()

    def wait(self, seconds: float) -> None:
        """Wait. Raises EndedError where the soak is over."""
        if self.end.wait(max(seconds, 0.0)):
            raise EndedError

    def play(self, seconds: float, progress: Callable[[], object]) -> None:
        """Let all play for so long, and then stop; call progress() now and then."""
        until = time.monotonic() + seconds
        with ThreadPoolExecutor(len(self.units)) as pool:
            jobs = [pool.submit(unit.play, until) for unit in self.units]
            try:
                while wait(jobs, PROGRESS_EVERY, FIRST_EXCEPTION).not_done:
                    if any(job.done() and job.exception() for job in jobs):
                        break
                    progress()
            finally:  # after Ctrl-C, too, nobody goes on
                self.end.set()
        for job in jobs:
            with contextlib.suppress(EndedError):
                job.result()

    def _watch(self) -> None:
        """Look at everything, again and again, until the end."""
        try:
            while not self.end.is_set():
                due = time.monotonic() + LOOK_EVERY
                time.sleep(LOOK_EVERY)
                self.looks += 1
                late = time.monotonic() - due
                for unit in self.units:
                    with self.lock:
                        if late > LOOK_EVERY:
                            unit.watch.late.add(time.monotonic(), late)
                        unit.look(self.looks)
        except Exception as error:
            self.violations.append(Violation(0.0, "the soak itself", repr(error), "", []))
            self.end.set()
            raise
