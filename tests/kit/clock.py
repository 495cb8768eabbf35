"""The one clock of the tests' own: it goes on as another one does, and jumps over every sleep.

    python -I clock.py DIRECTORY      runs the agent.py or agent.pyc in it, of any version, so

Then 10,000 heartbeats take a minute and have the deadlines of the real interval. Only the time is
made up: connections, files and the log are real. It imports nothing that an image may lack.
"""

import sys
import time
from collections.abc import Callable


class Clock:
    """Called, it tells the time in seconds.

    Args: the clock that it follows beside its sleeps, by default one that shows 0.0 for ever.
    Attributes: the seconds `skipped` so far; whoever adds to them lets that much time pass.
    """

    def __init__(self, base: Callable[[], float] = float) -> None:
        self.base = base
        self.skipped = 0.0

    def __call__(self) -> float:
        return self.base() + self.skipped

    def sleep(self, seconds: float, /) -> None:
        """Let so many seconds pass at once."""
        self.skipped += seconds


def jump() -> Clock:
    """Have all of this process's clocks but the wall clock jump over every sleep."""
    gettime = time.clock_gettime
    clock = Clock(time.monotonic)
    time.monotonic = clock
    time.clock_gettime = lambda which: gettime(which) + clock.skipped
    time.sleep = clock.sleep  # type: ignore[assignment]  # the stubs let it take more than a float
    return clock


if __name__ == "__main__":
    jump()
    sys.path.insert(0, sys.argv[1])
    import agent

    raise SystemExit(agent.main())
