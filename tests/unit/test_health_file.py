"""The heartbeat file: written, read and judged, whatever is in it or in its place."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as how
from hypothesis import strategies as st

import agent
import healthcheck
from kit.sidecar import HEALTHCHECK

DAMAGED = "unhealthy: the heartbeat file is damaged"
OTHER_BOOT = f"{DAMAGED} or from another boot"
DOWN = "it said: service down for 0 s: words"
NOW = 1000.0  # seconds of the monotonic clock
DAY = 86400.0

any_text = st.text(st.characters(exclude_categories=[]), max_size=300)
numbers = st.floats().map(str) | st.floats(-1e9, 1e9).map("{:.3f}".format)
states = st.sampled_from(sorted(healthcheck.SENTENCES))
fields = st.tuples(numbers, states, numbers, numbers, st.integers().map(str), any_text)
almost_lines = (fields | st.lists(numbers | states | any_text, max_size=7)).map(
    lambda fields: " ".join(fields).encode("utf-8", "replace")
)
same_files = how(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where HEARTBEAT_FILE points to; there is nothing yet."""
    path = tmp_path / "heartbeat"
    monkeypatch.setenv("HEARTBEAT_FILE", str(path))
    return path


def check(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Run the health check in this process.

    Return its exit code and the one printable line that it printed.
    """
    code = healthcheck.main(list(arguments))
    said = capfd.readouterr()
    assert code in (0, 1)
    assert said.err == ""
    assert said.out.endswith("\n")
    assert said.out[:-1].isprintable()
    return code, said.out[:-1]


def run_script(path: Path, *arguments: str) -> tuple[int, str]:
    """Run the health check as Docker does; return its exit code and all that it printed."""
    command = [sys.executable, "-I", "-S", str(HEALTHCHECK), *arguments]
    done = subprocess.run(
        command, env={"HEARTBEAT_FILE": str(path)}, capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stdout + done.stderr


# ---- what the agent writes


@same_files
@given(states, st.integers(0, 86400), st.integers(0, 10**6), any_text)
@example("unreachable", 0, 12, "{age} {reason} {0} {")
def test_what_is_written_is_shown_on_one_line(
    path: Path, state: str, left: int, age: int, reason: str
) -> None:
    healthcheck.write(str(path), NOW + left, state, NOW, NOW - age, 7, reason)
    well, shown = healthcheck.judge(healthcheck.read(str(path)), NOW)
    assert well
    assert f" {age} s" in shown
    if "{reason}" in healthcheck.SENTENCES[state]:
        told = reason.rstrip("\n")
        assert shown.endswith(": " + "".join(c if c.isprintable() else "?" for c in told))
    assert [entry.name for entry in path.parent.iterdir()] == ["heartbeat"]  # the draft is gone


def test_the_script_judges_what_the_module_wrote(path: Path) -> None:
    now = time.monotonic()
    healthcheck.write(str(path), now + 600, "failing", now + 600, now, 2, "größer")
    code, line = run_script(path, "--ready")
    assert code == 0
    assert re.fullmatch(r"registry failing for \d+ s \(attempt 2\): größer\n", line), line


def test_a_file_that_cannot_be_written_is_told_and_the_old_one_stays(path: Path) -> None:
    healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "old")
    path.with_name("heartbeat.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "new")
    assert healthcheck.read(str(path)).endswith(b" 0 old\n")


def test_the_agents_longest_promise_is_believed() -> None:
    longest = (
        2 * agent.LONGEST_DURATION + agent.GRACE
    )  # an interval, and half of one for each deadline
    assert longest < healthcheck.FARTHEST_PROMISE


# ---- how it is judged


@pytest.mark.parametrize(
    ("state", "promise", "ready_until", "well", "ready"),
    [
        ("registered", 5, 5, True, True),
        ("registered", 0, 0, True, True),  # to the very moment
        ("registered", 5, -1, True, False),
        ("registered", -1, 5, False, False),
        ("failing", 5, 5, True, True),  # the record lives
        ("failing", 5, -1, True, False),
        ("registering", 5, "0", True, False),
        ("down", 5, "0", True, False),
        ("waiting", 5, "-inf", True, False),
        ("registered", 5, "nan", True, False),
        ("registered", 5, "inf", True, True),
        ("stopping", -1, -1, False, False),
    ],
)
def test_healthy_while_the_promise_holds_and_ready_while_the_record_lives(
    state: str, promise: float, ready_until: float | str, well: bool, ready: bool
) -> None:
    until = ready_until if isinstance(ready_until, str) else NOW + ready_until
    line = f"{NOW + promise} {state} {until} {NOW} 2 words\n".encode()
    sentence = healthcheck.SENTENCES[state].format(age="0 s", attempt=2, reason="words")
    prefix = "" if well else "unhealthy: the agent is 1 s late; it said: "
    assert healthcheck.judge(line, NOW) == (well, prefix + sentence)
    prefix = "not ready: " if well and not ready else prefix
    assert healthcheck.judge(line, NOW, ready=True) == (ready, prefix + sentence)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"", DAMAGED),
        (b"\n", DAMAGED),
        (b"1001 registered 1001 1000 0", DAMAGED),  # no reason, not even an empty one: half a line
        (b"1001 registered 1001", DAMAGED),
        (b"1001 registered 1001 soon 0 words", DAMAGED),
        (b"1001 registered 1001 1000 once words", DAMAGED),
        (b"1001 resting 1001 1000 0 words", DAMAGED),
        (b"1001  registered 1001 1000 0 words", DAMAGED),
        (b"\xff\xfe\x00", DAMAGED),
        (b"nan registered 1001 1000 0 ", OTHER_BOOT),
        (b"inf registered 1001 1000 0 ", OTHER_BOOT),
        (b"1e308 registered 1001 1000 0 ", OTHER_BOOT),
        (b"%.0f registered 0 0 0 " % (NOW + 4 * DAY), OTHER_BOOT),
        (b"-inf down 1001 1000 0 words", f"unhealthy: the agent is inf s late; {DOWN}"),
        (b"0 down 1001 1000 0 words", f"unhealthy: the agent is 1000 s late; {DOWN}"),
    ],
)
def test_lines_that_are_not_healthy(line: bytes, shown: str) -> None:
    assert (
        healthcheck.judge(line, NOW) == healthcheck.judge(line, NOW, ready=True) == (False, shown)
    )


@pytest.mark.parametrize(
    ("since", "shown"),
    [
        ("1000", "0 s"),
        ("988.4", "12 s"),
        ("nan", "a long time"),
        ("-inf", "a long time"),
        ("1e300", "a long time"),
    ],
)
def test_the_age_in_the_sentence(since: str, shown: str) -> None:
    line = f"1001 unreachable 0 {since} 9 connection refused\n".encode()
    said = f"registry unreachable for {shown} (attempt 9): connection refused"
    assert healthcheck.judge(line, NOW) == (True, said)


# ---- anything in its place


@same_files
@given(st.binary() | almost_lines, st.booleans())
@example(b"9" * 5000, False)
@example("٣ registered ٣ ٣ ٣ \u2028".encode(), True)
def test_any_bytes_give_0_or_1_and_one_printable_line(
    path: Path, capfd: pytest.CaptureFixture[str], content: bytes, ready: bool
) -> None:
    path.write_bytes(content)
    code, line = check(capfd, *["--ready"] * ready)
    assert code == 0 or line.startswith(("unhealthy: ", "not ready: "))


@contextmanager
def not_root() -> Iterator[None]:
    """Be nobody for a while, since root may read everything."""
    me = os.geteuid()
    if me == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(me)


def test_a_file_without_permission(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path.touch(0)
    with not_root():
        code, line = check(capfd)
    assert (code, line) == (1, f"unhealthy: no heartbeat file {str(path)!r}: Permission denied")


def write(promise: float) -> Callable[[Path], None]:
    """Return what writes a sound line whose promise ends so many seconds from now."""
    return lambda path: healthcheck.write(str(path), time.monotonic() + promise, "starting", 0, 0)


def hole_of_a_gigabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 30)


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda _: None, "no heartbeat file .*heartbeat': No such file or directory"),
        (Path.mkdir, "no heartbeat file .*heartbeat': Is a directory"),
        (lambda path: path.symlink_to(path), "no heartbeat file .*heartbeat': .*symbolic links.*"),
        (os.mkfifo, "the heartbeat file is damaged"),
        (Path.touch, "the heartbeat file is damaged"),
        (hole_of_a_gigabyte, "the heartbeat file is damaged"),
        (lambda path: path.write_bytes(b"\xff\n\x00 \x1b[2J \n"), "the heartbeat file is damaged"),
        (write(4 * DAY), "the heartbeat file is damaged or from another boot"),
        (write(-60), r"the agent is \d+ s late; it said: starting for \d+ s"),
    ],
    ids=[
        "missing",
        "directory",
        "loop",
        "pipe",
        "empty",
        "huge",
        "garbage",
        "another boot",
        "late",
    ],
)
def test_the_script_finds_something_else_in_place_of_the_file(
    path: Path, make: Callable[[Path], object], shown: str
) -> None:
    make(path)
    code, line = run_script(path)
    assert code == 1
    assert re.fullmatch(f"unhealthy: {shown}\n", line), line


@pytest.mark.parametrize("value", ["", " "], ids=["empty", "blank"])
def test_an_empty_heartbeat_file_variable_means_the_default(
    path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    settings = agent.read_settings(
        {"SERVICE_NAME": "abc", "SERVICE_HOST": "h", "HEARTBEAT_FILE": value}
    )
    assert settings.heartbeat_file == healthcheck.DEFAULT_PATH
    monkeypatch.setattr(healthcheck, "DEFAULT_PATH", str(path))
    monkeypatch.setenv("HEARTBEAT_FILE", value)
    write(60)(path)
    code, line = check(capfd)
    assert (code, line[:13]) == (0, "starting for ")


# ---- what it costs


def loaded_modules(path: Path, *arguments: str) -> set[str]:
    """Return the modules that an isolated Python imports when run with these arguments."""
    command = [sys.executable, "-I", "-S", "-X", "importtime", *arguments]
    done = subprocess.run(
        command, env={"HEARTBEAT_FILE": str(path)}, capture_output=True, text=True, timeout=60
    )
    return {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }


def test_it_imports_nothing_beyond_os_sys_and_time(path: Path) -> None:
    write(60)(path)
    for arguments in ((), ("--ready",)):
        modules = loaded_modules(path, str(HEALTHCHECK), *arguments)
        assert "posix" in modules
        assert modules <= loaded_modules(path, "-c", "import os, sys, time")
