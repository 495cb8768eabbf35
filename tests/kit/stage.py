"""Runs the real agent.py in surroundings that a test sets: name service, networks, clocks, signals.

    python -I stage.py FILE [PROGRAM ARGUMENT...]

A Stage writes FILE, and writes it again while the agent runs. The program is the agent where none
is named; a health check on the same stage has the same clocks.

Nothing that travels is replaced: a name leads to real sockets on loopback. The scenery, each part
of it optional:

agent     the program: what the sidecar would have run without a stage
names     {name: [address, ...]}: a question for one family finds the addresses of that family, see
          Stage.questions
held      names whose look-up answers only when they are here no longer, and then what was true
          when it began
networks  what an exception says that ends the look at the list of networks, as none ever did
jumping   True, from the start: time.sleep takes no time, but the clocks say that it did
ahead     from the start, and more of it later: the seconds for which the host was suspended; only
          the clock that goes on meanwhile (CLOCK_BOOTTIME) has them
seed      from the start: what the agent draws by chance follows from it
again     True: whenever the agent changes how it takes signals, one more SIGTERM comes before;
          where this is named at the start, if only as False, Python's own end takes 0.3 s
"""

from __future__ import annotations

import json
import os
import random
import runpy
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kit.sidecar import Sidecar

LONGEST_HOLD = 60.0  # seconds
SLOW_END = 0.3  # seconds
BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", None)  # where there is one


class Stage:
    """The test's side: puts a sidecar that has not been started yet on a stage."""

    def __init__(self, sidecar: Sidecar, **scenery: object) -> None:
        self.path = Path(sidecar.directory.name) / "stage.json"
        self.scenery: dict[str, object] = {}
        self.set(agent=sidecar.script[0], **scenery)
        sidecar.script = [__file__, str(self.path)]
        sidecar.health_script = [*sidecar.script, *sidecar.health_script]

    def set(self, **scenery: object) -> None:
        """Change some of the scenery; the agent's next step meets it."""
        self.scenery |= scenery
        draft = self.path.with_suffix(".new")
        draft.write_text(json.dumps(self.scenery))
        draft.replace(self.path)

    def questions(self, name: str) -> list[str]:
        """Return the families that the name was looked up for: AF_INET, AF_INET6 or AF_UNSPEC."""
        asked = self.path.with_suffix(".asked")
        lines = asked.read_text().splitlines() if asked.exists() else []
        return [family for asked_name, family in map(str.split, lines) if asked_name == name]


# The agent's side.

path = Path(sys.argv[1]) if __name__ == "__main__" else Path()
resolve, name_networks = socket.getaddrinfo, socket.if_nameindex
monotonic, clock_gettime, sleep = time.monotonic, time.clock_gettime, time.sleep
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
    names = scenery().get("names", {})
    if name not in names:
        return resolve(host, port, family, type, proto, flags)
    with path.with_suffix(".asked").open("a") as file:
        file.write(f"{name} {socket.AddressFamily(family).name}\n")
    end = monotonic() + LONGEST_HOLD
    while name in scenery().get("held", []) and monotonic() < end:
        sleep(0.01)
    answer = []
    for address in names[name]:
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        if family in (socket.AF_UNSPEC, kind):
            answer += resolve(address, port, kind, type, proto, flags)
    if not answer:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    return answer


def list_networks() -> list[tuple[int, str]]:
    """Do what socket.if_nameindex does, or fail as it never does."""
    if words := scenery().get("networks"):
        raise RuntimeError(words)
    return name_networks()


def skip(seconds: Any) -> None:
    global skipped
    skipped += seconds


def moved_monotonic() -> float:
    return monotonic() + skipped


def moved_clock(clock: int) -> float:
    """Do what time.clock_gettime does, on a host that was suspended."""
    suspended = scenery().get("ahead", 0.0) if clock == BOOT_CLOCK else 0.0
    return clock_gettime(clock) + skipped + suspended


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
    socket.if_nameindex = list_networks
    if "jumping" in scenery() or "ahead" in scenery():
        time.monotonic, time.clock_gettime = moved_monotonic, moved_clock
    if "jumping" in scenery():
        time.sleep = skip
    random.seed(scenery().get("seed"))
    if "again" in scenery():
        signal.signal = take_signal_late
        sys.slow_end = SlowEnd()  # type: ignore[attr-defined]  # sys is among the last to go
    sys.argv[:] = sys.argv[2:] or [scenery()["agent"]]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
