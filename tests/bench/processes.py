"""What the benchmark starts, and what it reads of a running process."""

import contextlib
import os
import secrets
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

import psutil
from docker.models.containers import Container

from containers.engine import (
    HARDENED,
    RUN,
    SECOND,
    Images,
    MissingError,
    connect,
    remove_container,
    sweep,
    unique,
    wait_until,
)
from kit.program import Program
from kit.sidecar import TESTS, Sidecar

# With --init Python begins with no CPU spent: PID 1 has run the engine's own runc before it.
DOCKER_RUN = (
    "docker", "run", "--rm", "--init", "--network=host", f"--volume={TESTS}:/tests:ro",
    "--memory=64m", "--read-only", "--tmpfs=/tmp", "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
)  # fmt: skip


STARTED = b"Starting heartbeat loop"


class NotMeasuredError(Exception):
    """A figure cannot be had here; the words say why."""


# ---- what is read of a process


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes, as exact as the kernel has it."""
    return sum(part.rss for part in psutil.Process(pid).memory_maps())


def proportional(pid: int) -> int:
    """Return the same with what several processes share counted in parts (PSS)."""
    return int(psutil.Process(pid).memory_full_info().pss)


def host_cpu(pids: list[int]) -> float:
    """Return the CPU seconds so far of these containers' processes, of their shims and the engine.

    A health check is a child of the shim, as is the engine's runc for it.
    """
    sidecars = [psutil.Process(pid) for pid in pids]
    own_net = os.readlink("/proc/self/ns/net")
    engine = set()
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):  # it has ended
            here = os.readlink(f"/proc/{process.pid}/ns/net") == own_net  # no engine of other tests
            if here and process.name() in ("dockerd", "containerd"):
                engine.add(process)
    if not engine:
        raise NotMeasuredError("the engine's processes are not to be seen from here")
    shims = {shim for process in sidecars if (shim := process.parent())}
    times = [each.cpu_times() for each in engine | shims]
    children = sum(each.children_user + each.children_system for each in times)
    times += [process.cpu_times() for process in sidecars]
    return float(sum(each.user + each.system for each in times) + children)


def descriptors(pid: int) -> int:
    """Return how many file descriptors a process has open when it does nothing."""
    looks = []
    for _ in range(20):  # a probe, for one, has a connection of its own for a moment
        looks.append(psutil.Process(pid).num_fds())
        time.sleep(0.01)
    return min(looks)


def seconds_to_end(pid: int, timeout: float = 10.0) -> float:
    """Send SIGTERM to a process; return the seconds until it has ended.

    Raises psutil.TimeoutExpired.
    """
    process = psutil.Process(pid)
    began = time.monotonic()
    process.terminate()
    process.wait(timeout)
    return time.monotonic() - began


# ---- the peers


class Peers(NamedTuple):
    """A registry and a service in processes of their own, whose work is not the benchmark's."""

    registry: int  # port
    service: int  # port

    @property
    def settings(self) -> dict[str, Any]:
        """The agent's settings."""
        urls = {"REGISTRY_URL": self.urls[1], "SERVICE_PORT": self.service}
        return urls | {"HEARTBEAT_INTERVAL": 30}

    @property
    def urls(self) -> tuple[str, str]:
        """The base URLs of the service and of the registry."""
        return f"http://127.0.0.1:{self.service}", f"http://127.0.0.1:{self.registry}"


@contextlib.contextmanager
def run_peers() -> Iterator[Peers]:
    """Start the peers, and end them afterwards."""
    with Program("registry") as registry, Program("service") as service:
        yield Peers(registry.port, service.port)


# ---- the sidecars


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

    def __init__(self, *command: str, **settings: Any) -> None:
        super().__init__(*command, **settings)
        for name in ("REGISTRY_TOKEN_FILE", "SERVICE_HEALTH_HEADERS_FILE"):
            self.settings[name] = f"{self.directory.name}/{name}"
        self.renew()

    def renew(self) -> None:
        """Write both anew."""
        Path(str(self.settings["REGISTRY_TOKEN_FILE"])).write_text(secrets.token_hex(450))
        header = f"Authorization: Bearer {secrets.token_hex(450)}"
        Path(str(self.settings["SERVICE_HEALTH_HEADERS_FILE"])).write_text(header)

    def heard(self, line: str) -> None:
        """Take one line of the log."""
        super().heard(line)
        if "Heartbeat accepted" in line:
            self.renew()


class Contained(Subject):
    """A sidecar in a container, which shares the network of this machine.

    Args: the images; the tag of one; a script and its arguments to run instead of the image's own;
    options of `docker run`; settings.
    """

    def __init__(
        self, images: Images, tag: str, *script: str, options: tuple[str, ...] = (), **settings: Any
    ) -> None:
        super().__init__(**settings | {"HEARTBEAT_FILE": "/tmp/heartbeat"})
        self.client, self.name = images.client, unique("bench")
        variables = [f"--env={name}" for name in self.settings]
        self.python = [*DOCKER_RUN, f"--name={self.name}", f"--label={RUN}={images.run}"]
        own = ["--entrypoint=python", tag, "-I", *script] if script else [tag]
        self.script = [*options, *variables, *own]

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

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python: tuple[str, ...] = (sys.executable, "-I")
        self.tests = str(TESTS)  # the directory, for this Python

    def agent(self, **settings: Any) -> Subject:
        """Return the agent, not yet started."""
        return Subject(*self.python, str(self.root / "agent.py"), **settings)

    def renewed_agent(self, **settings: Any) -> Renewed:
        """Return it with a token and headers that are renewed all the time."""
        return Renewed(*self.python, f"{self.tests}/kit/clock.py", str(self.root), **settings)

    def fast_agent(self, **settings: Any) -> Subject:
        """Return the agent with a clock that jumps over its pauses."""
        return Subject(*self.python, f"{self.tests}/kit/clock.py", str(self.root), **settings)


class Image(Version):
    """The same, run in its default image."""

    where = "in the image"

    def __init__(self, root: Path, images: Images, name: str) -> None:
        super().__init__(root)
        self.images, self.name = images, name
        self.tag = images.build(name, root)
        self.python = (*DOCKER_RUN, "--entrypoint=python", self.tag, "-I")
        self.tests = "/tests"

    def build_with_tls(self) -> str:
        """Build the other image, and return its tag."""
        return self.images.build(f"{self.name}-tls", self.root, "--build-arg", "TLS=1")

    def agent(self, **settings: Any) -> Contained:
        return Contained(self.images, self.tag, **settings)

    def fast_agent(self, **settings: Any) -> Contained:
        """Return it; `options` are those of `docker run`."""
        return Contained(self.images, self.tag, "/tests/kit/clock.py", "/app", **settings)


@contextlib.contextmanager
def run_many(
    image: Image, number: int, interval: int | None, **settings: Any
) -> Iterator[list[int]]:
    """Run so many sidecars, each registered under its own name; yield their processes.

    Args: seconds between two health checks, None for none; settings. Raises NotMeasuredError.
    """
    client, containers = image.images.client, []
    check: dict[str, Any] = {"interval": (interval or 0) * SECOND}
    if interval is None:
        check = {"test": ["NONE"]}
    try:
        for each in range(number):
            variables = settings | {"SERVICE_NAME": f"bench_{each}", "SERVICE_HOST": "127.0.0.1"}
            containers.append(
                client.containers.run(
                    image.tag, detach=True, name=unique("bench"), labels={RUN: image.images.run},
                    network_mode="host", healthcheck=check, **HARDENED,
                    environment={name: str(value) for name, value in variables.items()},
                )
            )  # fmt: skip
        for container in containers:
            wait_until(lambda: STARTED in container.logs(), 60.0, "no heartbeats")  # noqa: B023
            container.reload()
        pids = [int(container.attrs["State"]["Pid"]) for container in containers]
        if not all(os.path.exists(f"/proc/{pid}") for pid in pids):
            raise NotMeasuredError("the engine's processes are not to be seen from here")
        yield pids
    finally:
        for container in containers:
            remove_container(container)


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
