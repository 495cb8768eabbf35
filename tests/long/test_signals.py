"""SIGTERM and the deadline at the points where CPython runs a signal handler.

How one gets to such a point, and how many there are: tests/long/signals/. Some points of each
window are played, others in each run; with EVERY_POINT=1 all, in half an hour.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import AGENT, FOREVER, TESTS, Sidecar, odd_lines

SIGNALS = TESTS / "long" / "signals"
EVERY = "EVERY_POINT" in os.environ
POINTS = 10**6 if EVERY else 80  # of a window
ACCEPTED = "Heartbeat accepted|Service registered successfully"
LEAST_ACCEPTED = 4  # by an agent that went on
LEAST_POINTS = 300
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def build(name: str, home: Path) -> Path:
    """Return the shared library of this name, built from its source in tests/long/signals/."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler (cc, gcc or clang)")
    built, source = home / f"{name}.so", str(SIGNALS / f"{name}.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), source, "-ldl"]
    subprocess.run(command, check=True)
    return built


class Way(NamedTuple):
    """A window of an agent's life (signals/deliver.py says which), and what it is like there."""

    window: str = "beat"
    tls: bool = False
    kept: bool = True  # the registry's connection
    host: str = "127.0.0.1"  # or a name, that has to be looked up
    settings: Mapping[str, object] = {}
    arguments: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)  # exit codes
    late: bool = True  # whether the deadline is played, too


WAYS = {
    "kept": Way(),
    "name": Way(kept=False, host="localhost", settings={"SERVICE_HEALTH_CHECK": "tcp"}),
    "tls": Way(tls=True),
    "tls-new": Way(tls=True, kept=False, host="localhost"),
    "start": Way("start", late=False),
    "stop": Way("stop", settings={"DRAIN_SECONDS": 5}, late=False),
    # 0: it came after the work
    "check": Way("start", arguments=("--check",), codes=(130, 0), late=False),
}


@pytest.mark.parametrize(
    ("number", "way"),
    [
        *((signal.SIGTERM, way) for way in WAYS),
        *((signal.SIGALRM, way) for way in WAYS if WAYS[way].late),
    ],
)
def test_at_points_of_a_window(number: signal.Signals, way: str, tmp_path: Path) -> None:
    this = WAYS[way]
    tls, ca_file = certificate(tmp_path, this.host) if this.tls else (None, "")
    scheme = "https" if this.tls else "http"
    with Registry(keep_alive=this.kept, tls=tls) as registry, ToyService(tls=tls) as service:
        settings = {
            "SERVICE_NAME": "service_{point}",
            "SERVICE_HOST": this.host,
            "SERVICE_PORT": service.port,
            "SERVICE_SCHEME": scheme,
            "SERVICE_CA_FILE": ca_file,
            "REGISTRY_URL": f"{scheme}://{this.host}:{registry.port}",
            "REGISTRY_CA_FILE": ca_file,
            "HEARTBEAT_FILE": tmp_path / "{point}",
            **this.settings,
        }
        script, library = SIGNALS / "deliver.py", build("points", tmp_path)
        seed = random.SystemRandom().randrange(10**6)
        arguments = [AGENT, library, number.name, this.window, POINTS, seed, *this.arguments]
        done = subprocess.run(
            [sys.executable, "-I", *map(str, (script, *arguments))],
            env={key: str(value) for key, value in settings.items()},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        first, *reports = map(json.loads, done.stdout.splitlines())
        print(f"{len(reports)} of {first['place']} points, seed {seed}")
        assert int(first["place"]) > LEAST_POINTS, "the window is not what it should be"
        assert len(reports) == min(POINTS, int(first["place"]))
        assert sum(bool(report["place"]) for report in reports) > 0.9 * len(reports)
        wrong = [judge(report, number, this, registry) for report in (first, *reports)]
        assert not any(wrong), summary(wrong)


def summary(wrong: list[str]) -> str:
    """Return the first line of each thing that went wrong, then the first one whole."""
    found = list(filter(None, wrong))
    heads = [text.split("\n")[0] for text in found]
    return "\n".join([f"{len(found)} of {len(wrong)}", *heads, found[0]])


def judge(report: dict[str, Any], number: signal.Signals, way: Way, registry: Registry) -> str:
    """Say what is wrong with an agent, if anything is."""
    said, lines = report["stdout"], report["stdout"].splitlines()
    odd = [line for line in lines if not line.isprintable()] if way.arguments else odd_lines(lines)
    # A registration that nobody has heard accepted may be another's record: it expires by itself.
    heard = "Service registered successfully" in said
    found = {
        f"exit {report['code']}": report["code"] not in way.codes,
        "more than log lines": report["stderr"] or odd or " ERROR " in said or "Traceback" in said,
        "its record is still there": heard and registry.record(f"service_{report['point']}"),
        "no heartbeats afterwards": number == signal.SIGALRM
        and len(re.findall(ACCEPTED, said)) < LEAST_ACCEPTED,
    }
    wrong = ", ".join(what for what, is_wrong in found.items() if is_wrong)
    whole = "\n".join(["", *lines[1:], report["stderr"]])
    return f"{report['point']} {report['place']}: {wrong}{whole}" if wrong else ""


def test_in_the_gap_before_a_sleep(registry: Registry, tmp_path: Path) -> None:
    """Where Python has looked for signals, and the kernel does not sleep yet."""
    registry.play("register", ["status", 429, None, {"Retry-After": "100"}], times=FOREVER)
    gap = build("gap", tmp_path)
    with Sidecar(registry, SERVICE_HEALTH_CHECK="none", LD_PRELOAD=gap) as sidecar:
        assert sidecar.wait(10) == 0
