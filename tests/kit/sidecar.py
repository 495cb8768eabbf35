"""Runs the real agent.py as a process of its own, and reads its log."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self, TypeVar

from kit.peers.server import Peer

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"  # where `python -m` finds this package and the programs beside it
AGENT = ROOT / "agent.py"
HEALTHCHECK = ROOT / "healthcheck.py"
NAME = "osint_service"
FOREVER = None
PATIENCE = 30.0  # seconds to wait for what has no promised time, on a busy machine
STOP_PROMISE = 3.0  # seconds from a signal to the end

T = TypeVar("T")


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the settings as an environment, with coverage's variables of the tests' own alone."""
    kept = {
        name: value for name, value in os.environ.items() if name.startswith(("COVERAGE", "COV_"))
    }
    kept["PATH"] = os.environ.get("PATH", "/usr/bin:/bin")
    return kept | {name: str(value) for name, value in settings.items()}


def wait_until(
    what: Callable[[], T], timeout: float = PATIENCE, why: str = "", every: float = 0.01
) -> T:
    """Return what(), asked every so many seconds, once it is true. Raises AssertionError."""
    end = time.monotonic() + timeout
    while not (result := what()):
        assert time.monotonic() < end, f"not within {timeout} s: {why or what}"
        time.sleep(every)
    return result


def run(
    *script: str, settings: Mapping[str, object], timeout: float = 20.0
) -> subprocess.CompletedProcess[str]:
    """Run a script with just these settings until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-I", *script],
        env=environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )


class Sidecar:
    """One agent process; as a context manager it is ended where the test has not stopped it.

    Args: the registry and the service, None where the settings name others; settings by their
    names. The interval is 2 s unless set otherwise.
    """

    def __init__(
        self, registry: Peer | None = None, service: Peer | None = None, **settings: object
    ) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="sidecar-")
        defaults: dict[str, object] = {
            "SERVICE_NAME": NAME,
            "SERVICE_HOST": "127.0.0.1",
            "HEARTBEAT_INTERVAL": 2,
            "HEARTBEAT_FILE": str(Path(self.directory.name) / "heartbeat"),
        }
        if service is not None:
            defaults["SERVICE_PORT"] = service.port
        if registry is not None:
            defaults["REGISTRY_URL"] = registry.url
        self.settings = defaults | settings
        self.heartbeat_file = Path(str(self.settings["HEARTBEAT_FILE"]))
        self.lines: list[str] = []
        self.times: list[float] = []  # monotonic, one for each line
        self.news = threading.Condition()  # there is another line
        self.python = [sys.executable, "-I"]
        self.script = [str(AGENT)]  # and its arguments
        self.health_script = [str(HEALTHCHECK)]
        self.stdout = subprocess.PIPE  # or a descriptor; then nobody reads it

    def start(self) -> Self:
        self.process = subprocess.Popen(
            [*self.python, *self.script],
            env=environment(self.settings),
            stdin=subprocess.DEVNULL,
            stdout=self.stdout,
            stderr=subprocess.STDOUT,
            text=True,
            errors="surrogateescape",
            start_new_session=True,
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        return self

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.heard(line.rstrip("\n"))

    def heard(self, line: str) -> None:
        """Take one line of the log, as it comes, in a thread of its own."""
        with self.news:
            self.times.append(time.monotonic())
            self.lines.append(line)
            self.news.notify_all()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            print("\n".join(self.lines[-200:]))  # for the report of a failed test
        self.close()

    def close(self) -> None:
        """End the agent, by force where it does not stop, and remove its files."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()  # rather than kill, so that coverage is written
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.directory.cleanup()

    @property
    def pid(self) -> int:
        """The process that does the work."""
        return self.process.pid

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def count(self, pattern: str) -> int:
        """Return how many lines of the log match."""
        return sum(bool(re.search(pattern, line)) for line in self.lines)

    def wait_for(self, pattern: str, times: int = 1, timeout: float = PATIENCE) -> str:
        """Wait until so many lines match; return the last of them. Raises AssertionError."""
        found: list[str] = []
        seen = 0

        def enough() -> bool:
            nonlocal seen
            found.extend(line for line in self.lines[seen:] if re.search(pattern, line))
            seen = len(self.lines)
            return len(found) >= times

        with self.news:
            in_time = self.news.wait_for(enough, timeout)
        assert in_time, f"not within {timeout} s: {times} lines with {pattern!r} in:\n{self.log}"
        return found[times - 1]

    def wait_registered(self, times: int = 1, timeout: float = PATIENCE) -> None:
        self.wait_for("Service registered successfully", times, timeout)

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> tuple[int, float]:
        """Send a signal; return the exit code and the seconds until the process was gone."""
        began = time.monotonic()
        self.process.send_signal(number)
        code = self.wait(timeout)
        return code, time.monotonic() - began

    def assert_stops(self, number: int = signal.SIGTERM) -> None:
        """Send a signal, and check that the agent ends as it promises."""
        code, seconds = self.stop(number)
        assert code == 0, self.log
        assert seconds < STOP_PROMISE, self.log
        assert "Traceback" not in self.log

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the end; return the exit code. The whole log is there then."""
        code = self.process.wait(timeout)
        self.reader.join(5)
        return code

    def health(self, *arguments: str) -> tuple[int, str]:
        """Run healthcheck.py as Docker does; return the exit code and all that it printed."""
        done = run(*self.health_script, *arguments, settings=self.settings)
        return done.returncode, done.stdout

    def wait_health(
        self, pattern: str, code: int = 0, *arguments: str, timeout: float = PATIENCE
    ) -> str:
        """Wait until the health check says so with that exit code; return its line."""
        end = time.monotonic() + timeout
        while (said := self.health(*arguments))[0] != code or not re.search(pattern, said[1]):
            assert time.monotonic() < end, f"health never {code} {pattern!r}, last {said}"
            time.sleep(0.1)
        return said[1]

    def peak_memory(self) -> int:
        """Return the highest resident memory so far, in kB (Linux)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.findall(r"VmHWM:\s+(\d+)", status)[0])


def run_agent(
    settings: Mapping[str, object], *arguments: str, timeout: float = 20.0
) -> subprocess.CompletedProcess[str]:
    """Run the agent with just these settings and arguments until it ends by itself."""
    return run(str(AGENT), *arguments, settings=settings, timeout=timeout)


def break_agent(directory: Path, code: str) -> Path:
    """Write a copy of the agent with this code before its last lines, and its healthcheck.py.

    So a test puts a bug into it, without a word of its source. Return the copy of agent.py.
    """
    source, last, end = AGENT.read_text().rpartition('\nif __name__ == "__main__":\n')
    broken = directory / "agent.py"
    broken.write_text(f"{source}\n{code}\n{last}{end}")
    shutil.copy(HEALTHCHECK, directory)
    return broken


LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR|CRITICAL) .{1,400}")


def odd_lines(lines: Iterable[str]) -> list[str]:
    """Return what is not one printable line of the agent's own form, of a bearable length.

    So a traceback is odd, and a line forged by a peer; not the line with the settings, a long one.
    """
    own = (line for line in lines if "Registry sidecar starts" not in line)
    return [line for line in own if not (LINE.fullmatch(line) and line.isprintable())]


# What no reader needs: a library's place, its constants, a capital made small.
RUBBISH = re.compile(r"_ssl\.c|\[SSL|\[X509|Traceback|\b[a-z][A-Z]{2,}|no reason given")
CONSTANT = re.compile(r"\b[A-Z0-9]+(?:_[A-Z0-9]+)+\b")
OURS = re.compile("(SERVICE|REGISTRY|VERTICE|HEARTBEAT|INITIAL|DEREGISTER|DRAIN|LOG|SSL)_[A-Z_]+")


def unreadable(lines: Iterable[str]) -> list[str]:
    """Return the lines with words in them that only a programmer could read."""
    return [
        line
        for line in lines
        if RUBBISH.search(line)
        or not all(OURS.fullmatch(constant) for constant in CONSTANT.findall(line))
    ]


class Sampler:
    """Looks all the time whether something is there, and remembers each time it was not."""

    def __init__(self, present: Callable[[], object], every: float = 0.02) -> None:
        self.present, self.every = present, every
        self.samples = 0
        self.absences: list[float] = []
        self._end = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._end.wait(self.every):
            self.samples += 1
            if not self.present():
                self.absences.append(time.monotonic())

    def __exit__(self, *exception: object) -> None:
        self._end.set()
        self._thread.join()
