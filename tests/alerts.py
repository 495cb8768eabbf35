"""Tries the guide's alert rules under a real Prometheus.

Each fires in the situation that it is for, and only there.

    PYTHONPATH=tests python -m alerts --scale 10

For each situation there is a fleet of real agents with the guide's interval, three replicas of the
embedded registry behind a balancer, and a Prometheus that scrapes each replica. All fleets are left
alone for five minutes, in which no rule may fire; then each meets its situation, and is watched for
nine minutes more. All on loopback. `--scale 10` divides all times by ten, those in the rules as
well. The exit code is 1 where another set of rules has fired than is expected. Needs `prometheus`
on the PATH (Debian has it: apt-get install prometheus).
"""

import argparse
import contextlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import yaml

from kit.documents import blocks
from kit.peers.balancer import Balancer
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import Sidecar, wait_until

GUIDE = "INTEGRATION_GUIDE.md"
SIZE, REPLICAS = 30, 3
GUIDES_SIZE = 90  # services, in the guide's rules
INTERVAL, TTL = 30.0, 60.0  # seconds
SCRAPES = 15.0  # seconds between two
QUIET, WATCHED = 300.0, 540.0  # seconds before and after the situation
START = 240.0  # seconds until a fleet is registered, on a busy machine; not scaled
TOKEN, OTHER = "right", "wrong"


def guides_rules() -> str:
    """Return the guide's file of alert rules."""
    return next(
        b.text for b in blocks(GUIDE) if b.language == "yaml" and b.text.startswith("groups:")
    )


def scaled_rules(scale: float) -> str:
    """Return the guide's rules for a fleet of SIZE, with all their times divided by the scale."""
    text = re.sub(rf"\b{GUIDES_SIZE}\b", str(SIZE), guides_rules())
    text = re.sub(r"\b(\d+)m\b", lambda found: f"{int(int(found[1]) * 60_000 / scale)}ms", text)
    return text.replace(f"{INTERVAL:g} * ", f"{INTERVAL / scale:g} * ")


class Fleet:
    """A fleet, its registry and its Prometheus. A context manager."""

    def __init__(self, name: str, scale: float) -> None:
        self.name, self.scale = name, scale
        kind: dict[str, Any] = {"ttl": TTL / scale, "dialect": "deployed", "token": TOKEN}
        first = Registry(**kind)
        self.replicas = [first, *(Registry(**kind, replica_of=first) for _ in range(REPLICAS - 1))]
        self.balancer = Balancer(self.replicas)
        self.service = ToyService()
        self.sidecars = [self.sidecar(number, TOKEN) for number in range(SIZE)]
        self.port = ToyService().port  # a free one
        self.fired: dict[str, float] = {}  # seconds after the situation began
        self.quiet: set[str] = set()  # what has fired before

    def sidecar(self, number: int, token: str) -> Sidecar:
        """Return a sidecar, not yet started."""
        settings = {
            "SERVICE_NAME": f"service_{number:02}",
            "HEARTBEAT_INTERVAL": INTERVAL / self.scale,
            "REGISTRY_TOKEN": token,
            "LOG_LEVEL": "WARNING",
        }
        return Sidecar(self.balancer, self.service, **settings)

    def __enter__(self) -> Self:
        self.exit = contextlib.ExitStack()
        for peer in (*self.replicas, self.balancer, self.service):
            self.exit.enter_context(peer)
        self.directory = Path(
            self.exit.enter_context(tempfile.TemporaryDirectory(prefix="alerts-"))
        )
        self.exit.callback(self.close)
        for sidecar in self.sidecars:
            sidecar.start()
        wait_until(
            lambda: len(self.replicas[0].names()) == SIZE,
            START,
            f"{self.name}: all registered",
            every=0.2,
        )
        self.process = self.prometheus()
        return self

    def close(self) -> None:
        """End the sidecars, all at once."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(Sidecar.close, self.sidecars))

    def __exit__(self, *exception: object) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.exit.close()

    def prometheus(self) -> subprocess.Popen[bytes]:
        """Start Prometheus with the rules, scraping each replica."""
        (self.directory / "rules.yml").write_text(scaled_rules(self.scale))
        pace = f"{int(SCRAPES * 1000 / self.scale)}ms"
        targets = [f"127.0.0.1:{replica.port}" for replica in self.replicas]
        settings = {
            "global": {
                "scrape_interval": pace,
                "scrape_timeout": pace,
                "evaluation_interval": pace,
            },
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "registry", "static_configs": [{"targets": targets}]}],
        }
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(settings))
        with (self.directory / "log").open("wb") as log:
            return subprocess.Popen(
                ["prometheus", f"--config.file={self.directory}/prometheus.yml",
                 f"--storage.tsdb.path={self.directory}/data",
                 f"--web.listen-address=127.0.0.1:{self.port}"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def ask(self, query: str) -> list[Any]:
        """Return what Prometheus answers to a query."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query?query={quote(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return list(json.load(answer)["data"]["result"])

    def firing(self) -> set[str]:
        """Return the names of the rules that fire now."""
        return {each["metric"]["alertname"] for each in self.ask('ALERTS{alertstate="firing"}')}

    def size(self) -> float:
        """Return the fleet's size as the guide's query has it."""
        accepted = 'registry_operations_total{operation="heartbeat",status="success"}'
        window = f"{int(300_000 / self.scale)}ms"
        found = self.ask(f"{INTERVAL / self.scale} * sum(rate({accepted}[{window}]))")
        return float(found[0]["value"][1]) if found else 0.0

    def note(self, names: set[str], passed: float) -> None:
        """Note when each of these has fired for the first time."""
        for name in names - set(self.fired):
            self.fired[name] = passed

    def watch(self, seconds: float, note: Callable[[set[str], float], None]) -> None:
        """Look at the rules for so many seconds, and note what fires."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds / self.scale:
            note(self.firing(), passed)
            time.sleep(0.5)


# ---- the situations


def nothing(_fleet: Fleet) -> None:
    """Leave the fleet alone."""


def stop_a_third(fleet: Fleet) -> None:
    """Stop a third of the sidecars, as in a deploy that went wrong."""
    for sidecar in fleet.sidecars[: SIZE // 3]:
        sidecar.process.terminate()


def lose_the_store(fleet: Fleet) -> None:
    """Let the store fail until the breakers have opened."""
    for replica in fleet.replicas:
        replica.store = "failing"
    time.sleep(5)
    for replica in fleet.replicas:
        replica.store = "open"


def refuse_one(fleet: Fleet) -> None:
    """Give one of the sidecars a wrong token."""
    fleet.sidecars[0].close()
    fleet.sidecars[0] = fleet.sidecar(0, OTHER).start()


def refuse_all(fleet: Fleet) -> None:
    """Change the registry's token."""
    for replica in fleet.replicas:
        replica.token = OTHER


SITUATIONS: dict[str, tuple[Callable[[Fleet], None], set[str]]] = {
    "healthy": (nothing, set()),
    "a third of the sidecars stopped": (stop_a_third, {"RegisteredServicesMissing"}),
    "the store down": (lose_the_store, {"RegistryStoreDown"}),
    "one sidecar's token refused": (refuse_one, {"RegistryErrors"}),
    "every token refused": (refuse_all, {"RegistryErrors", "RegisteredServicesMissing"}),
}


def run(fleet: Fleet, begin: threading.Barrier) -> set[str]:
    """Let a fleet meet its situation; return the names of the rules that have fired."""
    with fleet:
        wait_until(lambda: answers(fleet), 60, "Prometheus answers", every=0.2)
        begin.wait(START)
        fleet.watch(QUIET, lambda names, _: fleet.quiet.update(names))
        print(
            f"{fleet.name}: before it, {', '.join(fleet.quiet) or 'silent'};"
            f" size {fleet.size():.1f}",
            flush=True,
        )
        SITUATIONS[fleet.name][0](fleet)
        fleet.watch(WATCHED, fleet.note)
        fired = (
            ", ".join(f"{name} after {now:.0f} s" for name, now in fleet.fired.items()) or "silent"
        )
        print(f"{fleet.name}: {fired}; size {fleet.size():.1f}", flush=True)
    return set(fleet.fired)


def answers(fleet: Fleet) -> bool:
    """Tell whether Prometheus answers yet."""
    with contextlib.suppress(OSError):
        return bool(fleet.ask("up"))
    return False


def trial(
    scale: float, situations: Iterable[str] = SITUATIONS
) -> dict[str, tuple[set[str], set[str]]]:
    """Let one fleet for each situation meet it; return what fired before and after it."""
    fleets = [Fleet(name, scale) for name in situations]
    begin = threading.Barrier(len(fleets))
    with ThreadPoolExecutor(len(fleets)) as pool:
        fired = list(pool.map(lambda fleet: run(fleet, begin), fleets))
    return {fleet.name: (fleet.quiet, names) for fleet, names in zip(fleets, fired, strict=True)}


def main() -> int:
    """Run the trial of the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="alerts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="divides all times (%(default)g)")
    scale = parser.parse_args().scale
    if shutil.which("prometheus") is None:
        print("alerts: there is no prometheus on the PATH", file=sys.stderr)
        return 1
    wrong = {name: got for name, got in trial(scale).items() if got != (set(), SITUATIONS[name][1])}
    for name in wrong:
        print(f"{name}: expected {SITUATIONS[name][1] or 'silence'}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
