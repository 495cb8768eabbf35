"""Tries the guide's alert rules under a real Prometheus: each where it is to fire, only there.

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
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
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
    return next(b.text for b in blocks(GUIDE) if b.text.startswith("groups:"))


def scaled_rules(scale: float) -> str:
    """Return the guide's rules for a fleet of SIZE, with all their times divided by the scale."""
    text = re.sub(rf"\b{GUIDES_SIZE}\b", str(SIZE), guides_rules())
    text = re.sub(r"\b(\d+)m\b", lambda found: f"{int(int(found[1]) * 60_000 / scale)}ms", text)
    return text.replace(f"{INTERVAL:g} * ", f"{INTERVAL / scale:g} * ")


class Fleet:
    """A fleet that has registered, its registry and its Prometheus; the stack ends all of it."""

    def __init__(self, name: str, scale: float, stack: contextlib.ExitStack) -> None:
        self.scale = scale
        kind: dict[str, Any] = {"ttl": TTL / scale, "dialect": "deployed", "token": TOKEN}
        first = Registry(**kind)
        self.replicas = [first, *(Registry(**kind, replica_of=first) for _ in range(REPLICAS - 1))]
        self.balancer, self.service = Balancer(self.replicas), ToyService()
        for peer in (*self.replicas, self.balancer, self.service):
            stack.enter_context(peer)
        self.sidecars = [self.sidecar(number, TOKEN).start() for number in range(SIZE)]
        stack.callback(self.close)
        registered = f"{name}: all registered"
        wait_until(lambda: len(first.names()) == SIZE, START, registered, every=0.2)
        self.port = ToyService().port  # a free one
        self.prometheus(stack)
        wait_until(self.answers, 60, "Prometheus answers", every=0.2)

    def sidecar(self, number: int, token: str) -> Sidecar:
        """Return a sidecar, not yet started."""
        settings = {"SERVICE_NAME": f"service_{number:02}", "LOG_LEVEL": "WARNING"}
        pace = INTERVAL / self.scale
        return Sidecar(
            self.balancer, self.service, HEARTBEAT_INTERVAL=pace, REGISTRY_TOKEN=token, **settings
        )

    def close(self) -> None:
        """End the sidecars, all at once."""
        with ThreadPoolExecutor(SIZE) as pool:
            list(pool.map(Sidecar.close, self.sidecars))

    def prometheus(self, stack: contextlib.ExitStack) -> None:
        """Start Prometheus with the rules, scraping each replica."""
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="alerts-")))
        (directory / "rules.yml").write_text(scaled_rules(self.scale))
        pace = f"{int(SCRAPES * 1000 / self.scale)}ms"
        targets = [f"127.0.0.1:{replica.port}" for replica in self.replicas]
        paces = ("scrape_interval", "scrape_timeout", "evaluation_interval")
        settings = {
            "global": dict.fromkeys(paces, pace),
            "rule_files": ["rules.yml"],
            "scrape_configs": [{"job_name": "registry", "static_configs": [{"targets": targets}]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(settings))
        command = ["prometheus", f"--config.file={directory}/prometheus.yml"]
        command += [f"--storage.tsdb.path={directory}/data"]
        command += [f"--web.listen-address=127.0.0.1:{self.port}"]
        silence = subprocess.DEVNULL
        process = subprocess.Popen(command, stdin=silence, stdout=silence, stderr=silence)
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)

    def ask(self, query: str) -> list[Any]:
        """Return what Prometheus answers to a query."""
        url = f"http://127.0.0.1:{self.port}/api/v1/query"
        answer = requests.get(url, {"query": query}, timeout=30)
        return list(answer.json()["data"]["result"])

    def answers(self) -> bool:
        """Tell whether Prometheus answers yet."""
        with contextlib.suppress(OSError):
            return bool(self.ask("up"))
        return False

    def watch(self, seconds: float, what: str) -> set[str]:
        """Look at the rules for so many seconds; print and return which of them fire."""
        fired: dict[str, float] = {}
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds / self.scale:
            for each in self.ask('ALERTS{alertstate="firing"}'):
                fired.setdefault(each["metric"]["alertname"], passed)
            time.sleep(0.5)
        said = ", ".join(f"{name} after {at:.0f} s" for name, at in fired.items()) or "silent"
        print(f"{what}: {said}", flush=True)
        return set(fired)


# ---- the situations


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
    "healthy": (lambda _fleet: None, set()),
    "a third of the sidecars stopped": (stop_a_third, {"RegisteredServicesMissing"}),
    "the store down": (lose_the_store, {"RegistryStoreDown"}),
    "one sidecar's token refused": (refuse_one, {"RegistryErrors"}),
    "every token refused": (refuse_all, {"RegistryErrors", "RegisteredServicesMissing"}),
}


def trial(
    scale: float, situations: Iterable[str] = SITUATIONS
) -> dict[str, tuple[set[str], set[str]]]:
    """Let one fleet for each situation meet it; return what fired before and after it."""
    names = list(situations)
    begin = threading.Barrier(len(names))

    def run(name: str) -> tuple[set[str], set[str]]:
        with contextlib.ExitStack() as stack:
            fleet = Fleet(name, scale, stack)
            begin.wait(START)
            quiet = fleet.watch(QUIET, f"{name}, before it")
            SITUATIONS[name][0](fleet)
            return quiet, fleet.watch(WATCHED, name)

    with ThreadPoolExecutor(len(names)) as pool:
        return dict(zip(names, pool.map(run, names), strict=True))


def main() -> int:
    """Run the trial of the command line; return its exit code."""
    parser = argparse.ArgumentParser(prog="alerts", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="divides all times (%(default)g)")
    scale = parser.parse_args().scale
    if shutil.which("prometheus") is None:
        parser.exit(1, "alerts: there is no prometheus on the PATH\n")
    wrong = {name: got for name, got in trial(scale).items() if got != (set(), SITUATIONS[name][1])}
    for name in wrong:
        print(f"{name}: expected {SITUATIONS[name][1] or 'silence'}")
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
