"""Runs the real agent, of any version, with a clock that jumps over its pauses.

    python -I fast_agent.py DIRECTORY      the directory that agent.py or agent.pyc lies in

So 10,000 heartbeats take a minute and have the deadlines of the real interval, where an interval
of 10 ms would leave 5 ms for each exchange. Only the time is made up: connections, files and the
log are real. time.monotonic and time.sleep are replaced before the agent is imported, so nothing
here depends on how it is made inside.
"""

from __future__ import annotations

import sys
import time

monotonic = time.monotonic
skipped = 0.0  # seconds


def clock() -> float:
    """Return what the monotonic clock would show, had the agent slept."""
    return monotonic() + skipped


def sleep(seconds: float, /) -> None:
    """Let the time pass at once."""
    global skipped
    skipped += seconds


if __name__ == "__main__":
    time.monotonic = clock
    time.sleep = sleep  # type: ignore[assignment]  # the stubs let it take more than a float
    sys.path.insert(0, sys.argv[1])
    import agent

    raise SystemExit(agent.main())
