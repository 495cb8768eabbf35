"""Runs the real agent.py in surroundings that a test sets: name service, threads, clock.

    python -I stage.py FILE      a Stage writes FILE, and writes it again while the agent runs

Nothing that travels is replaced: a name leads to real sockets on loopback. The scenery, each part
of it optional:

agent     the program: what the sidecar would have run without a stage
names     {name: [address, ...]}, or the name of an exception for the look-up to end with
held      names whose look-up answers only when they are here no longer, and then what was true
          when it began
threads   False: there is no thread to be had
jumping   True, from the start: time.sleep takes no time, but time.monotonic says that it did
again     True: whenever the agent changes how it takes signals, one more SIGTERM comes before;
          where this is named at the start, if only as False, Python's own end takes 0.3 s
"""

from __future__ import annotations

import builtins
import json
import os
import runpy
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.sidecar import Sidecar

LONGEST_HOLD = 60.0  # seconds
SLOW_END = 0.3  # seconds


class Stage:
    """The test's side: puts a sidecar that has not been started yet on a stage."""

    def __init__(self, sidecar: Sidecar, **scenery: object) -> None:
        self.path = Path(sidecar.directory.name) / "stage.json"
        self.scenery: dict[str, object] = {}
        self.set(agent=sidecar.script[0], **scenery)
        sidecar.script = [__file__, str(self.path)]

    def set(self, **scenery: object) -> None:
        """Change some of the scenery; the agent's next step meets it."""
        self.scenery |= scenery
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.scenery))
        draft.replace(self.path)


# The agent's side.

path = Path(sys.argv[-1])
resolve, start = socket.getaddrinfo, threading.Thread.start
monotonic, sleep = time.monotonic, time.sleep
take_signal = signal.signal
skipped = 0.0  # seconds


def scenery() -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def look_up(
    host: Any,
    port: Any,
    family: int = 0,
    type: int = 0,  # noqa: A002
    proto: int = 0,
    flags: int = 0,
) -> list[Any]:
    """Do what socket.getaddrinfo does, for the stage's names."""
    if flags & socket.AI_NUMERICHOST:  # no question for a name service
        return resolve(host, port, family, type, proto, flags)
    name = host.decode() if isinstance(host, bytes) else host
    found = scenery().get("names", {}).get(name, [name])
    end = monotonic() + LONGEST_HOLD
    while name in scenery().get("held", []) and monotonic() < end:
        sleep(0.01)
    if isinstance(found, str):
        raise getattr(builtins, found)(f"played for {name}")
    return [
        one for address in found for one in resolve(address, port, family, type, proto, flags)
    ]


def start_thread(self: threading.Thread) -> None:
    if not scenery().get("threads", True):
        raise RuntimeError("can't start new thread")
    start(self)


def skip(seconds: Any) -> None:
    global skipped
    skipped += seconds


def take_signal_late(signalnum: int, handler: Any) -> Any:
    """Do what signal.signal does, after one more SIGTERM where that is asked for."""
    if scenery()["again"]:
        os.kill(os.getpid(), signal.SIGTERM)
    return take_signal(signalnum, handler)


class SlowEnd:
    """Goes when Python has given back the signals and takes its modules apart."""

    def __del__(self, sleep: Any = sleep, seconds: float = SLOW_END) -> None:
        sleep(seconds)


def main() -> None:
    """Set the stage, and run the agent on it as `python agent.py` would."""
    socket.getaddrinfo = look_up
    threading.Thread.start = start_thread  # type: ignore[method-assign]
    if scenery().get("jumping"):
        time.monotonic = lambda: monotonic() + skipped
        time.sleep = skip
    if "again" in scenery():
        signal.signal = take_signal_late
        sys.slow_end = SlowEnd()  # type: ignore[attr-defined]  # sys is among the last to go
    sys.argv[:] = [scenery()["agent"]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
