"""The heartbeat file: written, read and judged, whatever is in it or in its place."""

import itertools
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as how
from hypothesis import strategies as st

import agent
import healthcheck
from kit.clock import Clock
from kit.parts import read
from kit.sidecar import HEALTHCHECK
from kit.simulated import simulated_agent

DAMAGED = "unhealthy: the heartbeat file is damaged"
OTHER_BOOT = f"{DAMAGED} or from another boot"
LATE = "unhealthy: the agent is"
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
    """Run the health check here; return its exit code and the one printable line it printed."""
    code = healthcheck.main(list(arguments))
    said = capfd.readouterr()
    assert code in (0, 1)
    assert said.err == ""
    assert said.out.endswith("\n")
    assert said.out[:-1].isprintable()
    return code, said.out[:-1]


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
        told = "".join(c if c.isprintable() else "?" for c in reason.rstrip("\n"))
        assert shown.endswith(f": {told}")
    assert [entry.name for entry in path.parent.iterdir()] == ["heartbeat"]  # the draft is gone


def test_the_file_is_replaced_in_one_step_and_a_link_in_the_draft_s_place_not_followed(
    path: Path,
) -> None:
    """On a shared directory somebody else may have put the link there, to what is not there yet."""
    victim = path.with_name("victim")
    path.with_name("heartbeat.new").symlink_to(victim)
    healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "old")
    with path.open("rb") as before:
        healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "new")
        assert before.read().endswith(b" 0 old\n")
    assert healthcheck.read(str(path)).endswith(b" 0 new\n")
    assert not path.is_symlink()
    assert not victim.exists()


def test_a_file_that_cannot_be_written_is_told_and_the_old_one_stays(path: Path) -> None:
    healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "old")
    limit, highest = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, highest))  # bytes: room for half a line
    try:
        with pytest.raises(OSError, match="no space left"):
            healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, highest))
    path.with_name("heartbeat.new").unlink()
    path.with_name("heartbeat.new").mkdir()
    with pytest.raises(OSError, match="directory"):
        healthcheck.write(str(path), NOW, "down", NOW, NOW, 0, "new")
    assert healthcheck.read(str(path)).endswith(b" 0 old\n")


def test_the_agents_longest_promise_is_believed() -> None:
    # An interval, and half of one for each deadline.
    assert 2 * agent.LONGEST_DURATION + agent.GRACE < healthcheck.FARTHEST_PROMISE


# ---- how it is judged

READY, HEALTHY, SICK = (True, True), (True, False), (False, False)
LINES: list[tuple[bytes, tuple[bool, bool], str]] = [
    (b"1005 registered 1005 1000 0 ", READY, "registered, last heartbeat 0 s ago"),
    (b"1000 registered 1000 990 0 ", READY, "registered, last heartbeat 10 s ago"),  # just so
    (b"1005 registered inf 1000 0 ", READY, "registered, last heartbeat 0 s ago"),
    (b"1005 registered 999 1000 0 ", HEALTHY, "registered, last heartbeat 0 s ago"),
    (b"1005 registered nan 1000 0 ", HEALTHY, "registered, last heartbeat 0 s ago"),
    (b"1005 failing 1005 1000 2 words", READY, "registry failing for 0 s (attempt 2): words"),
    (b"1005 failing 999 1000 2 words", HEALTHY, "registry failing for 0 s (attempt 2): words"),
    (b"1005 registering 0 1000 0 ", HEALTHY, "registering for 0 s"),
    (b"1005 down 0 988.4 0 words", HEALTHY, "service down for 12 s: words"),
    (b"1005 waiting -inf nan 0 words", HEALTHY, "waiting for the service for a long time: words"),
    (b"1005 stopping 0 -inf 0 ", HEALTHY, "stopping for a long time"),
    (b"1005 draining 0 1e300 0 ", HEALTHY, "deregistered, draining for a long time"),
    (b"999 registering 1005 1000 0 ", SICK, f"{LATE} 1 s late; it said: registering for 0 s"),
    (b"0 stopping 1001 1000 0 ", SICK, f"{LATE} 1000 s late; it said: stopping for 0 s"),
    (b"-inf stopping 1001 1000 0 ", SICK, f"{LATE} inf s late; it said: stopping for 0 s"),
    (b"\n", SICK, DAMAGED),
    (b"1001 registered 1001 1000 0", SICK, DAMAGED),  # not even an empty reason: half a line
    (b"1001 registered 1001 soon 0 words", SICK, DAMAGED),
    (b"1001 registered 1001 1000 once words", SICK, DAMAGED),
    (b"1001 resting 1001 1000 0 words", SICK, DAMAGED),
    (b"1001  registered 1001 1000 0 words", SICK, DAMAGED),
    (b"\xff\xfe\x00", SICK, DAMAGED),
    (b"nan registered 1001 1000 0 ", SICK, OTHER_BOOT),
    (b"inf registered 1001 1000 0 ", SICK, OTHER_BOOT),
    (b"1e308 registered 1001 1000 0 ", SICK, OTHER_BOOT),
    (b"%.0f registered 0 0 0 " % (NOW + 4 * DAY), SICK, OTHER_BOOT),
]


@pytest.mark.parametrize(("line", "verdicts", "shown"), LINES)
def test_healthy_while_the_promise_holds_and_ready_while_the_record_lives(
    line: bytes, verdicts: tuple[bool, bool], shown: str
) -> None:
    prefix = "not ready: " if verdicts == HEALTHY else ""
    for ending in (b"", b"\n"):
        assert healthcheck.judge(line + ending, NOW) == (verdicts[0], shown)
        judged = healthcheck.judge(line + ending, NOW, ready=True)
        assert judged == (verdicts[1], prefix + shown)


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


def test_a_file_without_permission(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path.touch(0)
    me = os.geteuid()
    os.seteuid(me or 65534)  # root may read everything
    try:
        code, line = check(capfd)
    finally:
        os.seteuid(me)
    assert (code, line) == (1, f"unhealthy: no heartbeat file {str(path)!r}: Permission denied")


def write(path: Path) -> None:
    """Write a sound line whose promise holds for a minute."""
    healthcheck.write(str(path), healthcheck.clock() + 60, "failing", 0, 0)


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
    ],
)
def test_something_else_in_place_of_the_file(
    path: Path, capfd: pytest.CaptureFixture[str], make: Callable[[Path], object], shown: str
) -> None:
    make(path)
    code, line = check(capfd)
    assert code == 1
    assert re.fullmatch(f"unhealthy: {shown}", line), line


def test_blanks_around_the_path_do_not_count_and_an_empty_one_means_the_default(
    path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert agent.SETTINGS["HEARTBEAT_FILE"].default == healthcheck.DEFAULT_PATH
    write(path)
    for value, default in (("", path), (" ", path), (f" {path} ", "/nowhere")):
        monkeypatch.setenv("HEARTBEAT_FILE", value)
        monkeypatch.setattr(healthcheck, "DEFAULT_PATH", str(default))
        assert check(capfd)[0] == 0


# ---- as Docker runs it


def run_python(path: Path, *arguments: str) -> tuple[int, str, str]:
    """Run an isolated Python; return its exit code, its output with N s for times, its errors."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", *arguments],
        env={"HEARTBEAT_FILE": str(path)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return done.returncode, re.sub("[0-9]+ s", "N s", done.stdout), done.stderr


def test_the_script_prints_one_line_and_has_the_exit_code(path: Path) -> None:
    script, now = str(HEALTHCHECK), healthcheck.clock()
    missing = f"unhealthy: no heartbeat file {str(path)!r}: No such file or directory\n"
    assert run_python(path, script) == (1, missing, "")
    failing = "registry failing for N s (attempt 2): größer\n"
    healthcheck.write(str(path), now + 600, "failing", now + 600, now, 2, "größer")
    assert run_python(path, script, "--ready") == (0, failing, "")
    healthcheck.write(str(path), now + 600, "failing", now, now, 2, "größer")
    assert run_python(path, script, "--ready") == (1, f"not ready: {failing}", "")
    assert run_python(path, script) == (0, failing, "")


def test_it_imports_nothing_beyond_os_sys_and_time(path: Path) -> None:
    def loaded_by(*arguments: str) -> set[str]:
        lines = run_python(path, "-X", "importtime", *arguments)[2].splitlines()
        return {line.rpartition("|")[2].strip() for line in lines if "import time:" in line}

    write(path)
    modules = loaded_by(str(HEALTHCHECK), "--ready")
    assert "posix" in modules
    assert modules <= loaded_by("-c", "import os, sys, time")


# ---- what the agent says, in simulated time

REFUSED = agent.Answer(failure=ConnectionRefusedError(111, "Connection refused"))
BUSY = agent.Answer(503, body=b'{"detail": "come back later"}')
FINE = agent.Answer(200, body=b'["osint_service"]')
STORY = [  # seconds, how the service is meanwhile, what the registry does; then comes a signal
    (20, REFUSED, FINE), (20, FINE, REFUSED), (20, FINE, BUSY), (60, FINE, FINE), (80, FINE, BUSY),
    (60, FINE, FINE), (80, REFUSED, FINE), (60, FINE, FINE),
]  # fmt: skip
ENDS = [*itertools.accumulate(row[0] for row in STORY)]
SHOWN = [
    "not ready: waiting for the service: no answer yet",
    "not ready: waiting for the service: connection refused",
    "not ready: registering",
    "not ready: registry unreachable: connection refused",
    "not ready: registry failing: 503: come back later",
    "registered",
    "registry failing: 503: come back later",
    "not ready: registry failing: 503: come back later",
    "not ready: registering",
    "not ready: registry failing: 503: come back later",
    "registered",
    "not ready: registered",  # for two intervals the probes have failed
    "not ready: service down: connection refused",
    "not ready: registering",
    "registered",
    "not ready: stopping",
    "not ready: deregistered, draining",
]


class Watch(Clock):
    """A clock that looks at the file all the time: it is healthy, and ready if it may be."""

    def __init__(self, path: Path) -> None:
        super().__init__(lambda: NOW)
        self.path, self.accepted_at = str(path), 0.0
        self.shown: list[str] = []

    def sleep(self, seconds: float, /) -> None:
        self.look()
        for part in (1.0,) * int(seconds) + (seconds % 1,):
            super().sleep(part)
            self.look()

    def look(self) -> None:
        line, now = healthcheck.read(self.path), self()
        well, sentence = healthcheck.judge(line, now)
        assert well, sentence
        ready, shown = healthcheck.judge(line, now, ready=True)
        if sentence.startswith(("registered", "registry")):
            assert ready == (now <= self.accepted_at + 60.0), (now, shown)
        self.shown.append(re.sub(r", last heartbeat .*| for \d+ s( \(attempt \d+\))?", "", shown))


def test_what_is_shown_all_through_a_life(path: Path) -> None:
    clock = Watch(path)

    def meanwhile(peer: int) -> agent.Answer:
        for end, (_, *answers) in zip(ENDS, STORY, strict=True):
            if clock() - NOW < end:
                return answers[peer]
        raise agent.Stop

    def service(*_request: object) -> agent.Answer:
        clock.sleep(0.5)
        return meanwhile(0)

    def registry(_method: str, path: str, _timeout: float) -> agent.Answer:
        began = clock()
        clock.sleep(1.0)
        answer = FINE if path.startswith("/deregister") else meanwhile(1)
        if answer.ok and path in ("/register", "/heartbeat"):
            clock.accepted_at = began
        return answer

    settings = read(None, None, DRAIN_SECONDS=5, SERVICE_HEALTH_RETRIES=20)
    life = agent.SignOfLife(str(path), clock)
    mean = lambda low, high: (low + high) / 2  # noqa: E731
    assert simulated_agent(settings, clock, mean, registry, service, life).run() == 0
    assert [shown for shown, _ in itertools.groupby(clock.shown)] == SHOWN
