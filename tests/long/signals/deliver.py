"""Delivers a signal to the real agent.py at points at which CPython runs a signal handler.

The points of one window of the agent's life:

beat    from the end of its second sleep to its next: a probe and a heartbeat
start   from where it takes over SIGTERM to its first sleep, or to its end
stop    from a first SIGTERM, which ends its second sleep, to its end

Each point gets an agent of its own, forked from here after the slow imports, which runs from its
first line to its end. Its clocks and its time.sleep are ours: a sleep takes no time.

Args: agent.py; the built points.c; SIGTERM, or SIGALRM, at which the clock jumps past every
deadline; the window; how many of its points, spread over all of it, are to be played, and the seed
that says which; the agent's own arguments. The environment holds the settings; `{point}` in one of
them stands for the point's number.

Prints a line of JSON for each point: its number and place, the exit code, stdout and stderr. That
of point 0, where nothing is delivered, has the number of points as its place.
"""

import atexit
import ctypes
import faulthandler
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
import types
import warnings
from pathlib import Path
from typing import Any

LIMIT = 6.0  # seconds for one agent, which needs a twentieth of one; then it hangs
JUMP = 10.5  # seconds, more than the default deadlines and less than an interval
SLICE = 1.0  # seconds; the agent sleeps longer ones in slices
WINDOW = 2  # the sleep at whose end the window begins, where it is not the start
LAST = 6  # the sleep at whose end SIGTERM comes where it has not come before
LOST_STOP = 70  # exit code of an agent that went on after SIGTERM

agent, library, name, window, most, seed = sys.argv[1:7]
sys.argv[1:] = sys.argv[7:]  # the agent's own
number = signal.Signals[name]

points = ctypes.PyDLL(library)
points.at_point.argtypes = [ctypes.c_int, ctypes.py_object]
points.at_point.restype = None
points.begin.argtypes = [
    ctypes.c_int, ctypes.c_int, ctypes.c_double, ctypes.c_int, ctypes.py_object
]  # fmt: skip
points.monotonic.restype = ctypes.c_double
points.advance.argtypes = [ctypes.c_double]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import requests  # noqa: F401  # the slow part of what agent.py imports

take_signal = signal.signal
code = compile(Path(agent).read_text(), agent, "exec")
gc.freeze()  # so that the children need not copy what only the collector would touch


class Child:
    """One agent, and what it leaves behind."""

    def __init__(self, point: int) -> None:
        self.point, self.slept = point, 0
        self.counts = False  # whether the window is open
        names = ("place", "stdout", "stderr")
        self.files = {name: tempfile.TemporaryFile() for name in names}  # noqa: SIM115
        self.place = self.files["place"].fileno()
        self.pid = os.fork()
        if self.pid == 0:
            self.run()

    def run(self) -> None:
        """Become the agent, and end with its exit code."""
        os.dup2(self.files["stdout"].fileno(), 1)
        os.dup2(self.files["stderr"].fileno(), 2)
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        for variable, value in os.environ.items():
            os.environ[variable] = value.replace("{point}", str(self.point))
        random.seed(0)
        time.monotonic = points.monotonic
        time.clock_gettime = points.monotonic  # whatever clock it is asked for
        time.sleep = self.sleep  # type: ignore[assignment]
        if window == "start":
            signal.signal = self.take_over
        signal.signal(signal.SIGQUIT, points.at_point)
        main = types.ModuleType("__main__")
        main.__file__ = agent
        sys.modules["__main__"] = main
        try:
            exec(code, main.__dict__)
        except SystemExit as end:
            self.end()
            # The rest of the interpreter's end takes longer than the whole life of the agent.
            gc.collect()
            atexit._run_exitfuncs()
            sys.stdout.flush()
            os._exit(end.code if isinstance(end.code, int) else 1)

    def take_over(self, signalnum: int, handler: Any) -> Any:
        """Stand in for signal.signal until the window begins."""
        previous = take_signal(signalnum, handler)
        if signalnum == signal.SIGTERM:
            signal.signal = take_signal
            self.begin()
        return previous

    def begin(self) -> None:
        """Begin to count the points, of which the chosen one gets the signal."""
        jump = JUMP if number == signal.SIGALRM else 0.0
        self.counts = True
        points.begin(self.point, number, jump, self.place, signal.set_wakeup_fd)

    def end(self) -> None:
        """End the window, where it is open."""
        passed = points.end()
        if self.counts and self.point == 0:
            os.write(self.place, str(passed).encode())
        self.counts = False

    def sleep(self, seconds: float) -> None:
        """Stand in for time.sleep."""
        if window != "stop":
            self.end()
        points.advance(seconds)
        if seconds == SLICE:  # there is more to come of this sleep
            return
        self.slept += 1
        if self.slept == WINDOW and window != "start":
            self.begin()
            if window == "stop":
                signal.raise_signal(signal.SIGTERM)
        elif self.slept == LAST:
            delivered = self.point and os.fstat(self.place).st_size
            if delivered and number == signal.SIGTERM:
                os._exit(LOST_STOP)
            signal.raise_signal(signal.SIGTERM)

    def report(self) -> dict[str, Any]:
        """Wait for its end; print and return what came of it."""
        _, status = os.waitpid(self.pid, 0)
        result: dict[str, Any] = {"point": self.point, "code": os.waitstatus_to_exitcode(status)}
        for what, file in self.files.items():
            file.seek(0)
            result[what] = file.read().decode(errors="surrogateescape").rstrip("\n")
            file.close()
        print(json.dumps(result), flush=True)
        return result


count = int(Child(0).report()["place"])
stride = max(count / int(most), 1.0)
begin = random.Random(seed).uniform(1, 1 + stride)
for chosen in sorted(
    {int(begin + stride * i) for i in range(int(most))} & set(range(1, count + 1))
):
    Child(chosen).report()
