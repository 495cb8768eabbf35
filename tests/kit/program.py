"""A peer as a process of its own, which can be killed and started again on the same port."""

import select
import subprocess
import sys
from typing import Self
from urllib.parse import urlsplit

from kit.sidecar import TESTS

PATIENCE = 20.0  # seconds until it listens


class ProgramError(Exception):
    """It does not start; the message has what it printed."""


class Program:
    """One of kit.peers, by its name. As a context manager, it runs meanwhile.

    The port is a free one unless it is given.
    """

    def __init__(self, name: str, port: int = 0) -> None:
        self.name, self.port = name, port
        self.process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    def start(self, *options: str) -> Self:
        """Start it and wait until it listens. Raises ProgramError."""
        command = [sys.executable, "-m", f"kit.peers.{self.name}", f"--port={self.port}", *options]
        self.process = subprocess.Popen(
            command,
            cwd=TESTS,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # Ctrl-C is for whoever started it, who ends it in order
        )
        assert self.process.stdout is not None
        in_time, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
        said = self.process.stdout.readline() if in_time else ""
        if " listening on " not in said:
            said += self.kill()
            raise ProgramError(f"{self.name} does not start: {said or 'it printed nothing'}")
        self.port = urlsplit(said.split()[-1]).port or 0
        return self

    def kill(self) -> str:
        """End it, if it runs, like a crash; return what it has printed since the start."""
        if self.process is None:
            return ""
        process, self.process = self.process, None
        process.kill()
        said, _ = process.communicate()
        return said or ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.kill()
