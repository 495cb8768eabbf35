"""The demo as people run it.

It works, notices an agent that is broken, and leaves nothing behind.
"""

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from kit.consul import find_consul
from kit.sidecar import ROOT, TESTS, break_agent, environment

STORY = """
1. The agent waits
agent │ .*Waiting for the service
✓ .*nothing has been registered
agent │ .*Service registered successfully
✓ .*registered, with its address and its version
agent │ .*Heartbeat accepted
\\$ curl http://127.0.0.1:[0-9]+/services/osint_service
"metadata": {"version": "1.0.0", "status": "healthy"}
registered, last heartbeat [0-9]+ s ago
✓ heartbeats keep the record alive
2. The registry forgets
agent │ .*the registry has lost the record
✓ .*brought the record back
3. The registry is gone
agent │ .*Heartbeat failed .attempt 4.*connection refused
registry unreachable for
✓ the sidecar itself stays healthy
agent │ .*Registry is back
✓ registered again
4. The service crashes
agent │ .*ERROR Service is DOWN
"detail": "Service 'osint_service' not found"
✓ no heartbeat for a dead service
agent │ .*Service is READY again
"metadata": {"version": "2.0.0", "status": "healthy"}
✓ registered with its new version
5. SIGTERM
agent │ .*Service deregistered
✓ deregistered
✓ the agent exited with code 0
✓ Everything worked
"""

# Code put into a copy of agent.py; the step that must notice; what the demo then says.
BUGS = [
    ("Agent.is_healthy = lambda self: True", 4, "service down"),
    ("Agent.stop = lambda self: 0", 5, "deregistered: the record is gone at once"),
]


DEMO = [sys.executable, "-m", "demo"]


def surroundings(directory: Path, **more: str) -> dict[str, str]:
    """Return an environment in which the demo's temporary files lie in this directory.

    Lines are not wrapped.
    """
    settings = {
        "TMPDIR": directory,
        "COLUMNS": "1000",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONPATH": TESTS,
    }
    return environment(settings | {"http_proxy": "http://127.0.0.1:9"} | more)


def run_demo(command: list[str], directory: Path, **more: str) -> tuple[int, str]:
    """Run the demo to its end; return its exit code and all that it printed."""
    done = subprocess.run(
        command,
        env=surroundings(directory, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=240,
    )
    print(done.stdout)  # for the report of a failed test
    return done.returncode, done.stdout


def assert_story(output: str) -> None:
    """Look for the lines of the story, one after the other."""
    position = 0
    for pattern in STORY.strip().splitlines():
        found = re.compile(pattern).search(output, position)
        assert found, f"{pattern!r} does not follow on:\n{output[:position][-500:]}"
        position = found.end()


def assert_nothing_left(directory: Path) -> None:
    """Look for files of a demo that has ended, and (Linux) for processes with its environment."""
    assert not list(directory.iterdir())
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another's, or it has ended meanwhile
            assert str(directory).encode() not in environ.read_bytes(), f"{environ.parent} lives"


def test_the_story_comes_true(tmp_path: Path) -> None:
    code, output = run_demo(DEMO, tmp_path)
    assert code == 0
    assert_story(output)
    assert "\033" not in output
    assert "Traceback" not in output
    assert_nothing_left(tmp_path)


@pytest.mark.slow
def test_the_story_with_a_real_consul(tmp_path: Path) -> None:
    find_consul()
    code, output = run_demo([*DEMO, "--consul"], tmp_path)
    assert code == 0
    assert "Traceback" not in output
    assert output.count("✓") == STORY.count("✓")
    assert_nothing_left(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("bug", "step", "words"), BUGS)
def test_a_broken_agent_is_noticed(tmp_path: Path, bug: str, step: int, words: str) -> None:
    project, directory = tmp_path / "project", tmp_path / "tmp"
    directory.mkdir()
    (project / "tests").mkdir(parents=True)
    shutil.copy(ROOT / "healthcheck.py", project)
    shutil.copy(TESTS / "demo.py", project / "tests")
    shutil.copytree(TESTS / "kit", project / "tests" / "kit")
    shutil.copy(break_agent(tmp_path, bug), project)

    code, output = run_demo(DEMO, directory, PYTHONPATH=str(project / "tests"))
    assert code == 1
    assert re.match(rf"✗ step {step} \(.*{words}", output.splitlines()[-1])
    assert "Traceback" not in output
    assert_nothing_left(directory)


@contextlib.contextmanager
def demo_on_a_terminal(
    directory: Path, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """Yield a demo in a process group of its own, and what it prints on a terminal."""
    screen, terminal = pty.openpty()
    with open(screen, encoding="utf-8") as output:
        demo = subprocess.Popen(
            DEMO,
            env=surroundings(directory, TERM="xterm", **more),
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        try:
            yield demo, output
        finally:
            demo.terminate()  # of no effect where it has ended; it ends its own processes
            demo.wait(60)


@pytest.mark.parametrize(
    ("moment", "number", "no_color"),
    [
        ("The registry is at", signal.SIGINT, ""),
        ("Waiting for the service", signal.SIGTERM, "1"),
    ],
)
def test_a_signal_ends_it_and_all_that_it_started(
    tmp_path: Path, moment: str, number: signal.Signals, no_color: str
) -> None:
    """Ctrl-C on a terminal is a SIGINT for the whole process group.

    It is in colour there unless NO_COLOR is set.
    """
    lines = []
    with demo_on_a_terminal(tmp_path, NO_COLOR=no_color) as (demo, output):
        with contextlib.suppress(
            OSError
        ):  # so ends a terminal whose last process has gone, on Linux
            for line in output:
                lines.append(line)
                if moment in line:
                    os.killpg(demo.pid, number)
        assert demo.wait(60) == 128 + number, "".join(lines)
        with pytest.raises(ProcessLookupError):
            os.killpg(demo.pid, 0)
    shown = "".join(lines)
    assert ("\033[1m1. " in shown) == (not no_color)
    assert "Traceback" not in shown
    assert_nothing_left(tmp_path)
