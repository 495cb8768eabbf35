"""The demo as people run it: its story, an agent that is broken, Ctrl-C; and nothing is left."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kit.consul import find_consul
from kit.sidecar import TESTS, break_agent, environment

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


def start_demo(directory: Path, *options: str, tests: Path = TESTS) -> subprocess.Popen[str]:
    """Start it with its temporary files in a directory of its own there; lines are not wrapped."""
    (directory / "tmp").mkdir()
    settings = {"TMPDIR": directory / "tmp", "PYTHONPATH": tests, "PYTHONIOENCODING": "utf-8"}
    settings |= {"COLUMNS": "1000", "http_proxy": "http://127.0.0.1:9"}
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *options],
        env=environment(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        start_new_session=True,
    )


def end_of(demo: subprocess.Popen[str], directory: Path) -> tuple[int, str]:
    """Return exit code and output. No file and (Linux) no process of its environment is left."""
    output, _ = demo.communicate(timeout=240)
    print(output)  # for the report of a failed test
    assert "Traceback" not in output
    assert "\033" not in output
    assert not list((directory / "tmp").iterdir())
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another's, or it has ended meanwhile
            assert str(directory).encode() not in environ.read_bytes(), f"{environ.parent} lives"
    return demo.returncode, output


def test_the_story_comes_true(tmp_path: Path) -> None:
    code, output = end_of(start_demo(tmp_path), tmp_path)
    assert code == 0
    position = 0
    for pattern in STORY.strip().splitlines():
        found = re.compile(pattern).search(output, position)
        assert found, f"{pattern!r} does not follow on:\n{output[:position][-500:]}"
        position = found.end()


@pytest.mark.slow
def test_the_story_with_a_real_consul(tmp_path: Path) -> None:
    find_consul()
    code, output = end_of(start_demo(tmp_path, "--consul"), tmp_path)
    assert code == 0
    assert output.count("✓") == STORY.count("✓")


@pytest.mark.slow
def test_a_broken_agent_is_noticed(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    shutil.copytree(TESTS / "kit", tests / "kit")
    shutil.copy(TESTS / "demo.py", tests)
    break_agent(tmp_path, "Agent.stop = lambda self: 0")
    code, output = end_of(start_demo(tmp_path, tests=tests), tmp_path)
    assert code == 1
    assert re.match("✗ step 5 .*deregistered: the record is gone", output.splitlines()[-1])


def test_ctrl_c_ends_it_and_all_that_it_started(tmp_path: Path) -> None:
    """On a terminal it is a SIGINT for the whole process group."""
    demo = start_demo(tmp_path)
    assert demo.stdout
    assert any("Waiting for the service" in line for line in demo.stdout)
    os.killpg(demo.pid, signal.SIGINT)
    assert end_of(demo, tmp_path)[0] == 128 + signal.SIGINT
