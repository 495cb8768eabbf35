"""SIGTERM and the deadline at every point where CPython runs a signal handler; SIGTERM at any time.

How one gets to such a point, and how many there are: tests/long/signals/.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import AGENT, FOREVER, TESTS, Sidecar, odd_lines

SIGNALS = TESTS / "long" / "signals"
ACCEPTED = re.compile("Heartbeat accepted|Service registered successfully")
LEAST_ACCEPTED = 4  # by an agent that went on
LEAST_POINTS = 300
STRIDE = {"start": 31, "check": 31}  # else 7; most of a start is Python's parsers


def build(name: str, home: Path) -> Path:
    """Return the shared library of this name, built from its source in tests/long/signals/."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if not compiler or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler (cc, gcc or clang)")
    built = home / f"{name}.so"
    source = str(SIGNALS / f"{name}.c")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(built), source, "-ldl"]
    subprocess.run(command, check=True)
    return built


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/long/signals/points.c, built."""
    return build("points", tmp_path_factory.mktemp("signals"))


class Way(NamedTuple):
    """A window of an agent's life (signals/deliver.py says which), and what it is like there."""

    window: str = "2"
    tls: bool = False
    kept: bool = True  # the registry's connection
    host: str = "127.0.0.1"  # or a name, that has to be looked up
    settings: Mapping[str, object] = {}
    arguments: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0,)  # exit codes


WAYS = {
    "kept": Way(),
    "name": Way(kept=False, host="localhost", settings={"SERVICE_HEALTH_CHECK": "tcp"}),
    "tls": Way(tls=True),
    "tls-new": Way(tls=True, kept=False, host="localhost"),
    "start": Way("start"),
    "stop": Way("stop", settings={"DRAIN_SECONDS": 5}),
    "check": Way("start", arguments=("--check",), codes=(130, 0)),  # 0: it came after the work
}


def deliver(number: signal.Signals, library: Path, name: str, stride: int, home: Path) -> None:
    """Deliver the signal at every so many points of one window, and judge what comes of it."""
    way = WAYS[name]
    tls, ca_file = certificate(home, way.host) if way.tls else (None, "")
    scheme = "https" if way.tls else "http"
    with Registry(keep_alive=way.kept, tls=tls) as registry, ToyService(tls=tls) as service:
        settings = {
            "SERVICE_NAME": "service_{point}",
            "SERVICE_HOST": way.host,
            "SERVICE_PORT": service.port,
            "SERVICE_SCHEME": scheme,
            "SERVICE_CA_FILE": ca_file,
            "REGISTRY_URL": f"{scheme}://{way.host}:{registry.port}",
            "REGISTRY_CA_FILE": ca_file,
            "HEARTBEAT_FILE": home / "{point}",
            **way.settings,
        }
        script = SIGNALS / "deliver.py"
        arguments = [AGENT, library, number.name, way.window, stride, *way.arguments]
        done = subprocess.run(
            [sys.executable, "-I", str(script), *map(str, arguments)],
            env={key: str(value) for key, value in settings.items()},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        count = int(reports[0]["place"])
        print(f"{len(reports) - 1} of {count} points of {name}, {number.name}")
        assert count > LEAST_POINTS, "the window is not what it should be"
        assert sum(bool(report["place"]) for report in reports) > 0.9 * len(reports)
        wrong = [judge(report, number, way, registry) for report in reports]
        assert not any(wrong), summary(wrong)


def summary(wrong: list[str]) -> str:
    """Return the first line of each thing that went wrong, then the first one whole."""
    found = list(filter(None, wrong))
    heads = [text.split("\n")[0] for text in found]
    return "\n".join([f"{len(found)} of {len(wrong)}", *heads, found[0]])


def judge(report: dict[str, Any], number: signal.Signals, way: Way, registry: Registry) -> str:
    """Say what is wrong with an agent, if anything is."""
    lines, wrong = report["stdout"].splitlines(), []
    if report["code"] not in way.codes:
        wrong.append(f"exit {report['code']}")
    odd = [line for line in lines if not line.isprintable()] if way.arguments else odd_lines(lines)
    if report["stderr"] or odd or " ERROR " in report["stdout"] or "Traceback" in report["stdout"]:
        wrong.append("more than log lines")
    # A registration that nobody has heard accepted may be another's record: it expires by itself.
    heard = "Service registered successfully" in report["stdout"]
    if heard and registry.record(f"service_{report['point']}"):
        wrong.append("its record is still there")
    if number == signal.SIGALRM and len(ACCEPTED.findall(report["stdout"])) < LEAST_ACCEPTED:
        wrong.append("no heartbeats afterwards")
    said = "\n".join(["", *lines[1:], report["stderr"]])
    return f"{report['point']} {report['place']}: {', '.join(wrong)}{said}" if wrong else ""


TERM = [(signal.SIGTERM, way) for way in WAYS]
ALWAYS = [(signal.SIGTERM, "kept"), (signal.SIGTERM, "tls")]
LATE = [(signal.SIGALRM, way) for way in ("kept", "name", "tls", "tls-new")]


@pytest.mark.parametrize(("number", "way"), TERM + LATE)
def test_at_some_points(number: signal.Signals, way: str, library: Path, tmp_path: Path) -> None:
    deliver(number, library, way, 101, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("number", "way"), TERM + LATE)
def test_at_every_point(number: signal.Signals, way: str, library: Path, tmp_path: Path) -> None:
    """At all of them with EVERY_POINT=1, in half an hour; else at one of some."""
    every = "EVERY_POINT" in os.environ or (number, way) in ALWAYS
    deliver(number, library, way, 1 if every else STRIDE.get(way, 7), tmp_path)


def test_in_the_gap_before_a_sleep(registry: Registry, tmp_path: Path) -> None:
    """Where Python has looked for signals, and the kernel does not sleep yet.

    Nothing else ends it.
    """
    registry.play("register", ["status", 429, None, {"Retry-After": "100"}], times=FOREVER)
    gap = build("gap", tmp_path)
    with Sidecar(registry, SERVICE_HEALTH_CHECK="none", LD_PRELOAD=gap) as sidecar:
        assert sidecar.wait(10) == 0


def is_prepared(pid: int) -> bool:
    """Tell whether a process catches SIGTERM, or holds it back."""
    status = Path(f"/proc/{pid}/status").read_text()
    masks = re.findall(r"Sig(?:Cgt|Blk):\s+([0-9a-f]+)", status)
    return any(int(mask, 16) >> (signal.SIGTERM - 1) & 1 for mask in masks)


def stop_after(
    accepted: int, delay: float, number: int, registry: Registry, service: ToyService
) -> str:
    """Stop an agent a while after its start, or after so many of its requests were accepted.

    Returns what went wrong, if anything did.
    """
    name = f"service_{number}"
    settings = {"SERVICE_NAME": name, "HEARTBEAT_INTERVAL": 0.5}
    with Sidecar(registry, service, **settings) as sidecar:
        if accepted:
            sidecar.wait_for(ACCEPTED.pattern, accepted, timeout=30.0)
        time.sleep(delay)
        prepared = is_prepared(sidecar.pid)
        code, seconds = sidecar.stop()
        # Python itself lets the signal kill it, before it runs the first line of agent.py.
        unborn = code == -signal.SIGTERM and not prepared and not sidecar.lines
        orderly = code == 0 and seconds < 5.0 and not odd_lines(sidecar.lines)
        heard = sidecar.count("Service registered successfully")
        if (unborn or orderly) and not (heard and registry.record(name)):
            return ""
        return f"{number}, {delay:.3f} s: exit {code} in {seconds:.1f} s\n{sidecar.log}"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_after_a_random_time(service: ToyService) -> None:
    """200 agents, each stopped between its start and its third heartbeat."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    with Registry() as registry, ThreadPoolExecutor(8) as pool:
        jobs = []
        for number in range(200):
            accepted = draw.choice([0, 0, 1, 2, 3])  # 0: it may still be starting
            delay = draw.uniform(0.0, 0.5 if accepted else 1.5)
            jobs.append(pool.submit(stop_after, accepted, delay, number, registry, service))
        wrong = [job.result() for job in jobs]
        print({what: registry.count(what) for what in ("register", "heartbeat", "deregister")})
        assert not any(wrong), summary(wrong)
