"""What the benchmark starts, and what it reads of a running process from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Self

from containers.engine import RUN, Images, MissingError, connect, sweep, unique
from docker.models.containers import Container
from harness import ROOT, Sidecar

BENCH = Path(__file__).resolve().parent
DOCKER_RUN = (
    "docker", "run", "--rm", "--network=host", f"--volume={BENCH}:/bench:ro", "--memory=64m", "--read-only",
    "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges",
)  # fmt: skip


class NotMeasuredError(Exception):
    """A figure cannot be had here; the words say why."""


class Memory(NamedTuple):
    """The memory of a process in bytes: resident; its share of it; what it shares with nobody."""

    rss: int
    pss: int
    private: int

    def __str__(self) -> str:
        return " / ".join(f"{size / 1e6:.1f}" for size in self) + " MB"


def memory(pid: int) -> Memory:
    """Return the memory of a process. Raises OSError where it has ended, NotMeasuredError where it may not be read."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except PermissionError as error:
        raise NotMeasuredError("the memory of other users' processes is for root to read") from error
    kilobytes = {name: int(size) for name, size in re.findall(r"^(\w+): +(\d+) kB", text, re.MULTILINE)}
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return Memory(kilobytes["Rss"] * 1024, kilobytes["Pss"] * 1024, private * 1024)


def descriptors(pid: int) -> int:
    """Return how many file descriptors a process has open. Raises OSError."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def started(pid: int) -> float:
    """Return when a process was started, in seconds of the monotonic clock, to 10 ms."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])  # field 22, proc(5)
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - since_boot


class Peers(NamedTuple):
    """A registry and a service in processes of their own, so that their work is not the benchmark's."""

    registry: int  # port
    service: int  # port

    @property
    def settings(self) -> dict[str, Any]:
        """The agent's settings."""
        return {"REGISTRY_URL": self.urls[1], "SERVICE_PORT": self.service, "HEARTBEAT_INTERVAL": 30}

    @property
    def urls(self) -> tuple[str, str]:
        """The base URLs of the service and of the registry."""
        return f"http://127.0.0.1:{self.service}", f"http://127.0.0.1:{self.registry}"


@contextlib.contextmanager
def run_peers() -> Iterator[Peers]:
    """Start the peers, and end them afterwards."""
    with peer("registry.py") as registry, peer("service.py") as service:
        yield Peers(registry, service)


@contextlib.contextmanager
def peer(script: str) -> Iterator[int]:
    """Run a test peer; yield its port."""
    command = [sys.executable, str(ROOT / "tests" / "peers" / script), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


class Subject(Sidecar):
    """A sidecar to measure: the agent, or a script of this directory, on this machine's Python or in an image."""

    beats = 0  # heartbeats accepted so far

    @classmethod
    def of(cls, *script: str, **settings: Any) -> Self:
        """Return a sidecar that runs the script with its arguments."""
        subject = cls(**settings)
        subject.script = list(script)
        return subject

    def heard(self, line: str) -> None:
        """Take one line of the log, and count the heartbeats."""
        super().heard(line)
        self.beats += "Heartbeat accepted" in line

    def wait_beats(self, times: int, timeout: float) -> None:
        """Wait for so many heartbeats. Raises AssertionError after timeout seconds, and where the process ends."""
        until = time.monotonic() + timeout
        while self.beats < times:
            assert time.monotonic() < until, f"only {self.beats} heartbeats within {timeout:g} s"
            assert self.process.poll() is None, f"ended:\n{self.lines[-5:]}"
            time.sleep(0.1)

    def registered_after(self) -> float:
        """Wait for the registration; return the seconds it took since the process began."""
        self.wait_registered(timeout=60.0)
        line = next(n for n, line in enumerate(self.lines) if "Service registered successfully" in line)
        return self.times[line] - started(self.pid)


class Contained(Subject):
    """A sidecar in a container, which shares the network of this machine.

    Arguments: the images; the tag of one; a script and its arguments to run instead of the image's own; options
    of `docker run`; settings. The container has `--init`, so that Python begins with no CPU spent: PID 1 has run
    the engine's own runc before it.
    """

    def __init__(
        self, images: Images, image: str, *script: str, options: tuple[str, ...] = (), **settings: Any
    ) -> None:
        super().__init__(**settings | {"HEARTBEAT_FILE": "/tmp/heartbeat"})
        self.client, self.name = images.client, unique("bench")
        variables = [f"--env={name}" for name in self.settings]
        self.python = [
            *DOCKER_RUN, "--init", f"--name={self.name}", f"--label={RUN}={images.run}", *options, *variables,
        ]  # fmt: skip
        self.script = ["--entrypoint=python", image, "-I", *script] if script else [image]

    def start(self) -> Self:
        """Start the container and find its process. Raises NotMeasuredError where it is not one of this machine."""
        super().start()
        self.wait_for(".", timeout=60.0)  # its first line: by then it runs
        init = self.container().attrs["State"]["Pid"]
        try:
            self.child = int(Path(f"/proc/{init}/task/{init}/children").read_text())
        except (OSError, ValueError) as error:
            self.close()
            raise NotMeasuredError("the processes of the engine are not to be seen from here") from error
        return self

    def container(self) -> Container:
        """Return the container as the engine knows it."""
        return self.client.containers.get(self.name)

    @property
    def pid(self) -> int:
        return self.child


@contextlib.contextmanager
def build_images() -> Iterator[Images]:
    """Yield what builds images; containers and images are removed afterwards. Raises NotMeasuredError."""
    try:
        client = connect()
    except MissingError as missing:
        raise NotMeasuredError(str(missing)) from missing
    images = Images(client, uuid.uuid4().hex[:12])
    try:
        yield images
    finally:
        sweep(client, images.run)
        images.remove()
        client.close()
