"""One agent with its service, the names that lead to both, and the reader of its log."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import math
import os
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kit.certificates import certificate
from kit.peers.balancer import Balancer
from kit.peers.faults import Fault
from kit.peers.server import Answer, Request
from kit.peers.service import ToyService
from kit.sidecar import Sidecar
from kit.stage import Stage
from soak.invariants import Sample, Watch
from soak.schedule import SLOW, TLS, trait

if TYPE_CHECKING:
    from soak.world import World

ANY_OPERATION = "*"
LIVE, DEAD = "127.0.0.1", "127.0.0.66"
PAGE, ROOM = 4096, 65536  # bytes that a pipe holds: at least, and usually
FILLER = "." * 63
LONG = 900  # characters of a bearer token


class Aim(NamedTuple):
    """A fault that waits for the requests of one agent to the registry; `once`: for one only."""

    operation: str
    name: str
    fault: Fault
    once: bool


class Certificate(NamedTuple):
    """The files of a certificate and of its key, and its authority's certificate."""

    files: tuple[str, str]
    authority: str


class StallingSidecar(Sidecar):
    """A sidecar whose log need not be read all the time."""

    def __init__(self, **settings: object) -> None:
        super().__init__(None, None, **settings)
        self.reading = threading.Event()
        self.reading.set()
        self.held = threading.Event()  # the reader has stopped

    def heard(self, line: str) -> None:
        if not self.reading.is_set():
            self.held.set()
            self.reading.wait()
        if line != FILLER:
            super().heard(line)

    def stop_reading(self) -> None:
        """Read no more, and leave no room in the pipe. Raises OSError, TimeoutError."""
        filler = f"{FILLER}\n".encode()
        self.reading.clear()
        self.held.clear()
        # By an open file of our own, so that it is not the agent's that never blocks.
        pipe = os.open(f"/proc/{self.process.pid}/fd/1", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(pipe, filler)
            if not self.held.wait(5):
                raise TimeoutError("the reader of the log does not stop")
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PAGE)
            with contextlib.suppress(BlockingIOError):
                while True:
                    os.write(pipe, filler)
        finally:
            os.close(pipe)

    def read_again(self) -> None:
        assert self.process.stdout is not None
        fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, ROOM)
        self.reading.set()


class GuardedService(ToyService):
    """A service that tells its health to those alone who show this bearer token, if one is set."""

    bearer = ""

    def answer(self, request: Request) -> Answer:
        if self.bearer and request.headers["Authorization"] != f"Bearer {self.bearer}":
            return Answer(401, {"detail": "Unauthorized"})
        return super().answer(request)


class Unit:
    """One agent with its service, and what is known of both.

    It knows the registry by a name of its own, by which the registry knows it again, too; one that
    speaks TLS has its own way to the registry, with a certificate for that name.
    """

    def __init__(self, number: int, world: World) -> None:
        self.name, self.trait = f"soak_{number}", trait(number)
        self.lock, self.world = world.lock, world
        self.times = world.times.slower() if self.trait == SLOW else world.times
        self.watch = Watch(self.times, version="1")
        self.hosts = {"service": "service", "registry": f"registry-{number}"}
        self.home = Path(world.directory.name) / self.name
        self.home.mkdir()
        self.headers_file, self.ca_file = self.home / "headers", self.home / "ca.pem"
        tls = self.make_certificates() if self.trait == TLS else {}
        self.service = GuardedService(version="1", tls=tls["service"].files if tls else None)
        self.new_bearer()
        self.front = world.balancer
        settings: dict[str, object] = {}
        if tls:
            self.trust(tls)
            self.front = Balancer([world.registry], tls=tls["registry"].files)
            settings["SERVICE_SCHEME"] = "https"
            settings["SERVICE_CA_FILE"] = settings["REGISTRY_CA_FILE"] = self.ca_file
        self.sidecar = StallingSidecar(
            SERVICE_NAME=self.name,
            SERVICE_HOST=self.hosts["service"],
            SERVICE_PORT=self.service.port,
            REGISTRY_URL=f"http{'s' if tls else ''}://{self.hosts['registry']}:{self.front.port}",
            HEARTBEAT_INTERVAL=self.times.interval,
            SERVICE_HEALTH_TIMEOUT=self.times.health_timeout,
            SERVICE_HEALTH_RETRIES=self.times.retries,
            SERVICE_HEALTH_HEADERS_FILE=self.headers_file,
            REGISTRY_TIMEOUT=self.times.registry_timeout,
            REGISTRY_TOKEN_FILE=world.token_file,
            INITIAL_WAIT_TIMEOUT=86400,  # so that a dead service is never registered
            **settings,
        )
        self.sidecar.script = [str(world.agent)]
        # With the schedule's seed for what it draws, a run repeats itself as far as clocks let it.
        self.stage = Stage(self.sidecar, seed=f"{world.seed} {number}", ahead=0.0)
        self.ahead = 0.0  # seconds for which its host was suspended
        self.running = False
        self.frozen = False
        self.awake_at = 0.0  # since when it is running and not frozen
        self.doing: list[str] = []  # the episodes under way, for a report
        self.events = 0  # requests to the registry, and what else is worth a line
        self.asked: collections.Counter[str] = collections.Counter()  # its requests by operation
        self.asked_at = -math.inf  # the last of them
        self.register_first = False  # whether the next of them must be a registration
        self.aims: list[Aim] = []
        self.lives: list[list[Sample]] = []
        self.read = 0  # lines of the log that were looked at
        self.run_delay = 0.0  # seconds that the process had to wait for a processor

    def start(self) -> None:
        self.lead()
        self.sidecar.start()
        self.lives.append([])
        self.run_delay = 0.0
        self.events += 4  # the lines of every start and stop
        self.awake_at = time.monotonic()
        self.watch.restarted()
        self.running = True

    def lead(self, dead_first: Iterable[str] = ()) -> None:
        """Let the names "service" and "registry" lead where they should, but some to DEAD first."""
        self.stage.set(
            names={
                host: [DEAD, LIVE] if peer in dead_first else [LIVE]
                for peer, host in self.hosts.items()
            }
        )

    def until_due(self) -> float:
        """Return the seconds until its next heartbeat, or until that would be, if it were sane."""
        return (self.asked_at - time.monotonic()) % self.times.interval

    def freeze(self) -> None:
        self.frozen = True
        self.sidecar.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.sidecar.process.send_signal(signal.SIGCONT)
        self.awake_at = time.monotonic()
        self.frozen = False

    def suspend(self, seconds: float) -> None:
        """Let its host have been suspended for so long, while the registry's clock went on."""
        self.ahead += seconds
        self.stage.set(ahead=self.ahead)
        self.world.registry.expire(self.name)
        self.awake_at = time.monotonic()

    def new_bearer(self) -> None:
        """Let the service ask for another bearer token, which the agent finds in its file."""
        bearer = f"{self.world.new_secret()}-{'x' * LONG}"
        write(self.headers_file, f"Authorization: Bearer {bearer}\n")
        self.service.bearer = bearer

    def make_certificates(self) -> dict[str, Certificate]:
        """Return a new certificate for each of the two peers, of a new authority."""
        made = {peer: certificate(self.home, host) for peer, host in self.hosts.items()}
        return {
            peer: Certificate(files, Path(ca).read_text()) for peer, (files, ca) in made.items()
        }

    def show(self, certificates: Mapping[str, Certificate]) -> None:
        """Let the peers show these to whoever connects."""
        self.service.certify(certificates["service"].files)
        self.front.certify(certificates["registry"].files)

    def trust(self, certificates: Mapping[str, Certificate]) -> None:
        """Let the agent trust their authorities."""
        write(self.ca_file, "".join(each.authority for each in certificates.values()))

    def reap(self, timeout: float) -> int:
        """Wait for the process to end; return its exit code. Raises TimeoutExpired."""
        code = self.sidecar.wait(timeout)
        assert self.sidecar.process.stdout is not None
        self.sidecar.process.stdout.close()
        return code

    def kill(self) -> None:
        """End the process by SIGKILL."""
        self.leave()
        self.sidecar.process.kill()
        self.reap(10)

    def clear_away(self) -> None:
        """End whatever runs, and remove the files."""
        if self.lives:  # it was started
            self.leave()
            self.sidecar.process.kill()
            self.sidecar.reading.set()
            self.sidecar.close()
        else:
            self.sidecar.directory.cleanup()
        for peer in (self.service, self.front):
            peer.stop()

    def leave(self) -> None:
        """Note that the process is about to end, and may."""
        with self.lock:
            self.running = False

    def new_version(self) -> None:
        """Give the service a new version, which the record must show."""
        self.service.version = self.watch.version = str(int(self.watch.version) + 1)

    def aim(self, aim: Aim) -> None:
        """Let a fault wait for this agent's requests to the registry."""
        with self.lock:
            self.aims.append(aim)

    def unaim(self, aim: Aim) -> None:
        """Undo that, where the fault was not met."""
        with self.lock, contextlib.suppress(ValueError):
            self.aims.remove(aim)

    def unaim_all(self, name: str = "", operation: str = "") -> None:
        """Undo what waits by this name or operation: it is not to swallow the next fault."""
        with self.lock:
            self.aims[:] = [
                aim for aim in self.aims if aim.name != name and aim.operation != operation
            ]


def write(path: Path, text: str) -> None:
    """Replace a file in one step, as a mounted secret is renewed."""
    draft = path.with_suffix(".new")
    draft.write_text(text)
    draft.replace(path)
