"""SIGTERM and the deadline at every point where CPython runs a signal handler; SIGTERM at any time.

How one gets to such a point, and how many there are: tests/long/signals/.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from kit.peers.registry import Registry
from kit.peers.server import Answer, Request
from kit.peers.service import ToyService
from kit.sidecar import AGENT, FOREVER, TESTS, Sidecar, odd_lines

SIGNALS = TESTS / "long" / "signals"
ACCEPTED = re.compile("Heartbeat accepted|Service registered successfully")


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


class UnwellAtFirst(ToyService):
    """Answers 503 once on each path, so that an agent sleeps right before it registers."""

    def __init__(self) -> None:
        super().__init__()
        self.paths: set[str] = set()

    def route(self, _method: str, _path: str) -> str:
        return "health"

    def answer(self, request: Request) -> Answer:
        if request.path in self.paths:
            return super().answer(request)
        self.paths.add(request.path)
        return Answer(503)


def deliver(number: signal.Signals, library: Path, way: str, stride: int, home: Path) -> None:
    """Deliver the signal at every so many points of one exchange, and judge what comes of it.

    Ways: "kept", a heartbeat on a kept connection, after a probe by http; "name", a heartbeat on a
    new connection, with a name look-up, after a probe by tcp with another; "register", the first
    registration.
    """
    service: ToyService = UnwellAtFirst() if way == "register" else ToyService()
    registry = Registry(keep_alive=way != "name")
    with registry, service:
        host = "localhost" if way == "name" else "127.0.0.1"
        settings = {
            "SERVICE_NAME": "service_{point}",
            "SERVICE_HOST": host,
            "SERVICE_PORT": service.port,
            "SERVICE_HEALTH_CHECK": "tcp" if way == "name" else "http",
            "SERVICE_HEALTH_ENDPOINT": "/health/{point}" if way == "register" else "/health",
            "REGISTRY_URL": f"http://{host}:{registry.port}",
            "HEARTBEAT_FILE": home / "{point}",
        }
        # The agent sleeps before its registration (where it does), and before each heartbeat.
        window = 1 if way == "register" else 2
        script = SIGNALS / "deliver.py"
        arguments = [AGENT, library, number.name, window, stride]
        done = subprocess.run(
            [sys.executable, "-I", str(script), *map(str, arguments)],
            env={name: str(value) for name, value in settings.items()},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        reports = [json.loads(line) for line in done.stdout.splitlines()]
        count = int(reports[0]["place"])
        print(f"{len(reports) - 1} of {count} points of {way}")
        assert count > 500, "the window is not what it should be"
        assert sum(bool(report["place"]) for report in reports) > 0.9 * len(reports)
        wrong = [judge(report, number, 2 * window, registry) for report in reports]
        assert not any(wrong), summary(wrong)


def summary(wrong: list[str]) -> str:
    """Return the first line of each thing that went wrong, then the first one whole."""
    found = list(filter(None, wrong))
    heads = [text.split("\n")[0] for text in found]
    return "\n".join([f"{len(found)} of {len(wrong)}", *heads, found[0]])


def judge(report: dict[str, Any], number: signal.Signals, least: int, registry: Registry) -> str:
    """Say what is wrong with an agent, if anything is; `least` acceptances show that it went on."""
    lines, wrong = report["stdout"].splitlines(), []
    if report["code"] != 0:
        wrong.append(f"exit {report['code']}")
    if report["stderr"] or odd_lines(lines) or " ERROR " in report["stdout"]:
        wrong.append("more than log lines")
    # A registration that nobody has heard accepted may be another's record: it expires by itself.
    heard = "Service registered successfully" in report["stdout"]
    if heard and registry.record(f"service_{report['point']}"):
        wrong.append("its record is still there")
    if number == signal.SIGALRM and len(ACCEPTED.findall(report["stdout"])) < least:
        wrong.append("no heartbeats afterwards")
    said = "\n".join(["", *lines[1:], report["stderr"]])
    return f"{report['point']} {report['place']}: {', '.join(wrong)}{said}" if wrong else ""


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (signal.SIGTERM, "kept"),
        (signal.SIGTERM, "name"),
        (signal.SIGTERM, "register"),
        (signal.SIGALRM, "kept"),
        (signal.SIGALRM, "name"),
    ],
)
def test_at_some_points(number: signal.Signals, way: str, library: Path, tmp_path: Path) -> None:
    deliver(number, library, way, 101, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kept", "name"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_at_every_point(number: signal.Signals, way: str, library: Path, tmp_path: Path) -> None:
    """A few of more than 2,000 points may be those where a lock stays held for good."""
    deliver(number, library, way, 1, tmp_path)


def test_in_the_gap_before_a_sleep(registry: Registry, tmp_path: Path) -> None:
    """Where Python has looked for signals, and the kernel does not sleep yet; nothing else ends it."""
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
