"""A Docker engine of the tests' own, for what must not be done to the one that is in use.

Leaving a swarm makes an engine forget the names of all running containers, on every network: other
tests, and whatever else runs on the machine, would find nobody any more. So a second dockerd is
started in namespaces of its own (network, mounts, processes), on a file system in memory. It ends
with the process that started it, even where that is killed.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Self

import docker
from docker.errors import DockerException

from kit.sidecar import wait_until

NEEDED = ("dockerd", "setpriv", "unshare", "ip", "mount")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
START = """\
mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec dockerd \
    --config-file "$1/daemon.json" \
    --host "unix://$1/docker.sock" --data-root /run/data --exec-opt native.cgroupdriver=cgroupfs
"""
SECONDS = 120.0  # for the start


def obstacle() -> str:
    """Return why no engine can be started here; nothing where one can."""
    if os.geteuid() != 0:
        return "an engine of the tests' own needs root"
    missing = [name for name in NEEDED if shutil.which(name, path=PATH) is None]
    return f"an engine of the tests' own needs {', '.join(missing)}" if missing else ""


class OwnEngine:
    """The engine. A context manager; `url` is for DOCKER_HOST, `client` talks to it."""

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="engine-"))  # a socket's path has to be short
        self.url = f"unix://{self.directory}/docker.sock"
        (self.directory / "daemon.json").write_text("{}")  # instead of the machine's own
        self.log = self.directory / "log"
        alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    "setpriv",
                    "--pdeathsig",
                    "KILL",
                    *alone,
                    "sh",
                    "-c",
                    START,
                    "sh",
                    str(self.directory),
                ],
                env=os.environ | {"PATH": PATH},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.client = self._connect()
        except BaseException:
            print(self.log.read_text(errors="replace")[-5000:])
            self._end()
            raise
        return self

    def _connect(self) -> docker.DockerClient:
        clients: list[docker.DockerClient] = []

        def answers() -> bool:
            assert self.process.poll() is None, "the tests' own engine has ended"
            with contextlib.suppress(DockerException):
                clients.append(docker.DockerClient(base_url=self.url, version="auto", timeout=120))
            return bool(clients)

        wait_until(answers, SECONDS, "the tests' own engine answers", every=0.1)
        return clients[0]

    def copy(self, tag: str, source: docker.DockerClient) -> None:
        """Copy an image from another engine."""
        self.client.images.load(b"".join(source.images.get(tag).save(named=tag)))

    def __exit__(self, *exception: object) -> None:
        self.client.close()
        self._end()

    def _end(self) -> None:
        self.process.kill()  # and with it all that runs in its namespaces
        self.process.wait()
        shutil.rmtree(self.directory)
