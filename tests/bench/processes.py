"""What the benchmark starts, and what it reads of a running process."""

import contextlib
import secrets
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil

from containers.engine import RUN, Images, MissingError, connect, sweep, unique
from kit.program import Program
from kit.sidecar import TESTS, Sidecar

# With --init Python begins with no CPU spent: PID 1 has run the engine's own runc before it.
DOCKER_RUN = (
    "docker", "run", "--rm", "--init", "--network=host", f"--volume={TESTS}:/tests:ro",
    "--memory=64m", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)  # fmt: skip


class NotMeasuredError(Exception):
    """A figure cannot be had here; the words say why."""


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, as exact as the kernel has it."""
    return sum(part.rss for part in psutil.Process(pid).memory_maps())


def descriptors(pid: int) -> int:
    """Return how many file descriptors a process has open when it does nothing."""
    looks = []
    for _ in range(20):  # a probe, for one, has a connection of its own for a moment
        looks.append(psutil.Process(pid).num_fds())
        time.sleep(0.01)
    return min(looks)


class Peers(NamedTuple):
    """The base URLs of a service and of a registry, in processes of their own."""

    service: str
    registry: str

    @property
    def settings(self) -> dict[str, Any]:
        """The agent's settings."""
        port = self.service.rpartition(":")[2]
        return {"REGISTRY_URL": self.registry, "SERVICE_PORT": port, "HEARTBEAT_INTERVAL": 30}


@contextlib.contextmanager
def run_peers() -> Iterator[Peers]:
    """Start the peers, and end them afterwards."""
    with Program("registry") as registry, Program("service") as service:
        yield Peers(service.url, registry.url)


class Version:
    """A version of the sidecar: a checkout of this project, from source or in its image."""

    def __init__(self, root: Path, images: Images | None = None, name: str = "") -> None:
        """Args: with the images of a run, one is built; its name."""
        self.root, self.images, self.name = root, images, name
        self.where = "in the image" if images else "from source"
        self.tests, self.home = ("/tests", "/app") if images else (str(TESTS), str(root))
        self.tag = images.build(name, root) if images else ""

    def command(self, *script: str, options: tuple[str, ...] = ()) -> list[str]:
        """Return what runs a script in Python, the agent without one. Args: of `docker run`."""
        if not self.images:
            return [sys.executable, "-I", *(script or [f"{self.home}/agent.py"])]
        entry = ["--entrypoint=python"] if script else []
        return [*DOCKER_RUN, *options, *entry, self.tag, *(["-I", *script] if script else [])]

    def fast_agent(self, renews: bool = False, **settings: Any) -> "Subject":
        """Return the agent with a clock that jumps over its pauses."""
        return Subject(self, f"{self.tests}/kit/clock.py", self.home, renews=renews, **settings)


class Subject(Sidecar):
    """A sidecar to measure; one in a container shares the network of this machine.

    Args: its version; a script and its arguments in place of the agent; whether its token and its
    probe headers change on disk after each heartbeat; settings.
    """

    def __init__(
        self, version: Version, *script: str, renews: bool = False, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.images, self.name, self.beats = version.images, unique("bench"), 0
        self.secrets: dict[Path, str] = {}
        if renews:
            token, headers = (Path(self.directory.name, name) for name in ("token", "headers"))
            self.secrets = {token: "{}", headers: "Authorization: Bearer {}"}
            self.settings |= {"REGISTRY_TOKEN_FILE": token, "SERVICE_HEALTH_HEADERS_FILE": headers}
            self.renew()
        options: list[str] = []
        if self.images:
            self.settings["HEARTBEAT_FILE"] = "/tmp/heartbeat"
            options = [f"--name={self.name}", f"--label={RUN}={self.images.run}"]
            options += [f"--env={name}" for name in self.settings]
        self.python, self.script = [], version.command(*script, options=(*options,))

    def renew(self) -> None:
        """Write the secrets anew."""
        for path, form in self.secrets.items():
            path.write_text(form.format(secrets.token_hex(450)))

    def heard(self, line: str) -> None:
        """Take one line of the log, and count the heartbeats that were accepted."""
        super().heard(line)
        if "Heartbeat accepted" in line:
            self.beats += 1
            self.renew()

    def wait_beats(self, times: int, timeout: float) -> None:
        """Wait for so many heartbeats. Raises AssertionError, too where the process ends."""
        until = time.monotonic() + timeout
        while self.beats < times:
            assert time.monotonic() < until, f"only {self.beats} heartbeats within {timeout:g} s"
            assert self.process.poll() is None, f"the agent has ended\n{self.lines[-5:]}"
            time.sleep(0.1)

    def start(self) -> Self:
        """Start it, and find its process. Raises NotMeasuredError where that is hidden."""
        super().start()
        self.child = self.process.pid
        if self.images:
            self.wait_for(".", timeout=60.0)  # its first line: by then it runs
            try:
                self.container = self.images.client.containers.get(self.name)
                init = psutil.Process(self.container.attrs["State"]["Pid"])
                self.child = init.children()[0].pid
            except (psutil.Error, IndexError) as error:
                self.close()
                raise NotMeasuredError("the engine's processes are not to be seen here") from error
        return self

    @property
    def pid(self) -> int:
        return self.child


@contextlib.contextmanager
def build_images(roots: list[Path]) -> Iterator[list[Version]]:
    """Build the images of these checkouts; remove them afterwards. Raises NotMeasuredError."""
    try:
        client = connect()
    except MissingError as missing:
        raise NotMeasuredError(str(missing)) from missing
    images = Images(client, uuid.uuid4().hex[:12])
    try:
        yield [Version(root, images, f"bench-{number}") for number, root in enumerate(roots)]
    finally:
        sweep(client, images.run)
        images.remove()
        client.close()
