"""Runs the real agent with a clock that jumps over its pauses.

    python -I fast_agent.py DIRECTORY      the directory that agent.py or agent.pyc lies in

So 10,000 heartbeats take a minute and have the deadlines of the real interval, where an interval of 10 ms
would leave 5 ms for each exchange. Only the time is made up: connections, files and the log are real.
"""

from __future__ import annotations

import functools
import sys
import time

sys.path.insert(0, sys.argv[1])
import agent

skipped = 0.0  # seconds


def clock() -> float:
    """Return what the monotonic clock would show, had the agent slept."""
    return time.monotonic() + skipped


def sleep(seconds: float) -> None:
    """Let the time pass at once."""
    global skipped
    skipped += seconds


if __name__ == "__main__":
    agent.Agent = functools.partial(agent.Agent, clock=clock)  # type: ignore[assignment,misc]
    agent.Signals = functools.partial(agent.Signals, sleep=sleep)  # type: ignore[assignment,misc]
    raise SystemExit(agent.main())
