#!/usr/bin/env python3
"""The sidecar's own health: one line in a file, written by the agent and judged by Docker.

The line holds six fields, separated by single spaces; times are seconds of `clock`, which every
process of a machine shares:

    <promise> <state> <ready until> <since> <attempt> <reason>

`promise` is the moment by which the agent will have written the next line. A living loop keeps
it, whatever the registry and the service do; a dead, stuck or stopped one does not. SENTENCES
says what each state shows.

As a script: print the sentence; exit 0 while the promise holds, else 1. With `--ready`: exit 0
only while the service is registered and its last heartbeat was accepted within two intervals.
"""

import os
import sys
import time

DEFAULT_PATH = "/tmp/heartbeat"  # a tmpfs in the container
LONGEST_LINE = 4096  # bytes; the agent writes far fewer
FARTHEST_PROMISE = 3 * 86400.0  # seconds; beyond it the line is from another boot or damaged

SENTENCES = {
    "starting": "starting for {age}",
    "waiting": "waiting for the service for {age}: {reason}",
    "registering": "registering for {age}",
    "registered": "registered, last heartbeat {age} ago",
    "unreachable": "registry unreachable for {age} (attempt {attempt}): {reason}",
    "failing": "registry failing for {age} (attempt {attempt}): {reason}",
    "down": "service down for {age}: {reason}",
    "stopping": "stopping for {age}",
    "draining": "deregistered, draining for {age}",
}


# A clock that goes on while the machine sleeps, as the registry's does; Linux alone has one.
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def clock() -> float:
    """Return the seconds since the machine started: the one clock of the sidecar."""
    return time.clock_gettime(CLOCK)


def write(
    path: str,
    promise: float,
    state: str,
    ready_until: float,
    since: float,
    attempt: int = 0,
    reason: str = "",
) -> None:
    """Replace the heartbeat file in one step, so that no reader ever sees half a line.

    Args: `promise`, `ready_until`, `since` in seconds of `clock`; `state`, a key of SENTENCES;
    `attempt` and `reason`, where its sentence has them. Raises OSError where the file cannot be
    written.
    """
    line = f"{promise:.3f} {state} {ready_until:.3f} {since:.3f} {attempt} {reason}\n"
    draft = path + ".new"
    write_new(draft, line.encode("utf-8", "replace"))
    os.replace(draft, path)


def write_new(path: str, content: bytes) -> None:
    """Write a file that was not there before; what lies in its place goes, a link among it.

    Raises OSError.
    """
    if os.path.lexists(path):
        os.unlink(path)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        if os.write(file, content) < len(content):
            raise OSError(None, "no space left on device")
    finally:
        os.close(file)


def try_out(path: str) -> None:
    """Raise OSError where the heartbeat file could not be written; leave it as it is."""
    if os.path.isdir(path):
        raise IsADirectoryError(None, "it is a directory")
    trial = path + ".check"
    try:
        write_new(trial, b"x" * 200)
    finally:
        if os.path.lexists(trial):
            os.unlink(trial)


def read(path: str) -> bytes:
    """Return the file's first bytes. Raises OSError. Never waits, not even for a pipe."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(file, LONGEST_LINE)
    finally:
        os.close(file)


def judge(line: bytes, now: float, ready: bool = False) -> tuple[bool, str]:
    """Compare the promise in `line` with `now` (seconds of `clock`) and say what is to be shown.

    Return whether all is well (with `ready`: whether the service is registered, too) and one
    printable line. Any bytes are taken; what is not a line of `write` is not healthy.
    """
    fields = line.decode("utf-8", "replace").rstrip("\n").split(" ", 5)
    try:
        promise, ready_until, since = (float(fields[number]) for number in (0, 2, 3))
        state, attempt, reason = fields[1], int(fields[4]), fields[5]
        sentence = SENTENCES[state]
    except (ValueError, IndexError, KeyError):
        return False, "unhealthy: the heartbeat file is damaged"
    if not promise - now < FARTHEST_PROMISE:  # so written, NaN is caught as well
        return False, "unhealthy: the heartbeat file is damaged or from another boot"
    age = f"{now - since:.0f} s" if abs(now - since) < FARTHEST_PROMISE * 1000 else "a long time"
    sentence = sentence.format(age=age, attempt=attempt, reason=reason)
    sentence = "".join(char if char.isprintable() else "?" for char in sentence)
    if now > promise:
        return False, f"unhealthy: the agent is {now - promise:.0f} s late; it said: {sentence}"
    if ready and not now <= ready_until:
        return False, f"not ready: {sentence}"
    return True, sentence


def main(arguments: list[str]) -> int:
    """Judge the file that HEARTBEAT_FILE names, print one line, return the exit code."""
    path = os.environ.get("HEARTBEAT_FILE", "").strip() or DEFAULT_PATH
    try:
        well, sentence = judge(read(path), clock(), ready="--ready" in arguments)
    except OSError as error:
        well, sentence = False, f"unhealthy: no heartbeat file {path!r}: {error.strerror}"
    os.write(1, sentence.encode("utf-8", "replace") + b"\n")
    return 0 if well else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
