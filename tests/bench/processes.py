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
from docker.models.containers import Container

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


class Subject(Sidecar):
    """A sidecar to measure: a command with these settings."""

    beats = 0  # heartbeats accepted so far

    def __init__(self, *command: str, **settings: Any) -> None:
        super().__init__(**settings)
        self.python, self.script = [], list(command)

    def heard(self, line: str) -> None:
        """Take one line of the log, and count the heartbeats."""
        super().heard(line)
        self.beats += "Heartbeat accepted" in line

    def wait_beats(self, times: int, timeout: float) -> None:
        """Wait for so many heartbeats. Raises AssertionError, too where the process ends."""
        until = time.monotonic() + timeout
        while self.beats < times:
            assert time.monotonic() < until, f"only {self.beats} heartbeats within {timeout:g} s"
            assert self.process.poll() is None, f"the agent has ended\n{self.lines[-5:]}"
            time.sleep(0.1)


class Renewed(Subject):
    """A sidecar whose token and probe headers change after each heartbeat, on disk."""

    FORMS = (
        ("REGISTRY_TOKEN_FILE", "{}"),
        ("SERVICE_HEALTH_HEADERS_FILE", "Authorization: Bearer {}"),
    )

    def __init__(self, *command: str, **settings: Any) -> None:
        super().__init__(*command, **settings)
        self.settings |= {name: f"{self.directory.name}/{name}" for name, _ in self.FORMS}
        self.renew()

    def renew(self) -> None:
        """Write both anew."""
        for name, form in self.FORMS:
            Path(self.directory.name, name).write_text(form.format(secrets.token_hex(450)))

    def heard(self, line: str) -> None:
        """Take one line of the log."""
        super().heard(line)
        if "Heartbeat accepted" in line:
            self.renew()


class Contained(Subject):
    """A sidecar in a container, which shares the network of this machine.

    Args: the images; the tag of one; a script and its arguments to run instead of the image's own;
    settings.
    """

    def __init__(self, images: Images, tag: str, *script: str, **settings: Any) -> None:
        super().__init__(**settings | {"HEARTBEAT_FILE": "/tmp/heartbeat"})
        self.client, self.name = images.client, unique("bench")
        variables = [f"--env={name}" for name in self.settings]
        self.python = [*DOCKER_RUN, f"--name={self.name}", f"--label={RUN}={images.run}"]
        own = ["--entrypoint=python", tag, "-I", *script] if script else [tag]
        self.script = [*variables, *own]

    def start(self) -> Self:
        """Start the container and find its process. Raises NotMeasuredError where it is hidden."""
        super().start()
        self.wait_for(".", timeout=60.0)  # its first line: by then it runs
        init = self.container().attrs["State"]["Pid"]
        try:
            self.child = int(Path(f"/proc/{init}/task/{init}/children").read_text())
        except (OSError, ValueError) as error:
            self.close()
            raise NotMeasuredError("the engine's processes are not to be seen from here") from error
        return self

    def container(self) -> Container:
        """Return the container as the engine knows it."""
        return self.client.containers.get(self.name)

    @property
    def pid(self) -> int:
        return self.child


class Version:
    """A version of the sidecar, run from its source, in a checkout of this project."""

    where = "from source"
    python: tuple[str, ...] = (sys.executable, "-I")
    tests = str(TESTS)  # the directory, for this Python

    def __init__(self, root: Path) -> None:
        self.root = root

    def agent(self, **settings: Any) -> Subject:
        """Return the agent, not yet started."""
        return Subject(*self.python, str(self.root / "agent.py"), **settings)

    def fast_agent(self, kind: type[Subject] = Subject, **settings: Any) -> Subject:
        """Return the agent with a clock that jumps over its pauses."""
        return kind(*self.python, f"{self.tests}/kit/clock.py", str(self.root), **settings)


class Image(Version):
    """The same, run in its default image."""

    where = "in the image"
    tests = "/tests"

    def __init__(self, root: Path, images: Images, name: str) -> None:
        super().__init__(root)
        self.images, self.name = images, name
        self.tag = images.build(name, root)
        self.python = (*DOCKER_RUN, "--entrypoint=python", self.tag, "-I")

    def build_with_tls(self) -> str:
        """Build the other image, and return its tag."""
        return self.images.build(f"{self.name}-tls", self.root, "--build-arg", "TLS=1")

    def agent(self, **settings: Any) -> Contained:
        return Contained(self.images, self.tag, **settings)

    def fast_agent(
        self,
        kind: type[Subject] = Subject,  # noqa: ARG002
        **settings: Any,
    ) -> Contained:
        return Contained(self.images, self.tag, "/tests/kit/clock.py", "/app", **settings)


@contextlib.contextmanager
def build_images(roots: list[Path]) -> Iterator[list[Image]]:
    """Build the images of these checkouts; remove them afterwards. Raises NotMeasuredError."""
    try:
        client = connect()
    except MissingError as missing:
        raise NotMeasuredError(str(missing)) from missing
    images = Images(client, uuid.uuid4().hex[:12])
    try:
        yield [Image(root, images, f"bench-{number}") for number, root in enumerate(roots)]
    finally:
        sweep(client, images.run)
        images.remove()
        client.close()
