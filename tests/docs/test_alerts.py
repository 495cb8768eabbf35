"""The guide's alert rules and its scrape configuration, by promtool's own tests.

With made-up metrics of 90 services behind three replicas. With a real Prometheus, agents and
registries, `alerts.py` tries the same, see tests/long/test_alerts.py.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from alerts import GUIDE, guides_rules
from kit.documents import blocks

STEP = 15  # seconds between two scrapes
BEFORE, AFTER = 80, 60  # scrapes before the situation, and after it
REPLICAS = 3
FIRING = 'ALERTS{alertstate="firing"}'

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


class Change(NamedTuple):
    """What a counter of each replica grows by at each scrape, before the situation and after it."""

    operation: str
    status: str
    before: float
    after: float

    def series(self) -> list[dict[str, str]]:
        """Return the counter at each replica, as promtool writes it."""
        labels = f'operation="{self.operation}",status="{self.status}"'
        turn = self.before * BEFORE
        values = f"0+{self.before}x{BEFORE} {turn + self.after}+{self.after}x{AFTER}"
        name = "registry_operations_total"
        return [
            {"series": f'{name}{{instance="{number}",{labels}}}', "values": values}
            for number in range(REPLICAS)
        ]


class Breaker(NamedTuple):
    """The breaker of one replica."""

    opens: bool

    def series(self) -> list[dict[str, str]]:
        """Return its gauge."""
        name = 'registry_circuit_breaker_open{instance="0"}'
        return [{"series": name, "values": f"0x{BEFORE} {int(self.opens)}x{AFTER}"}]


# 90 services, a heartbeat each in 30 s: one a second at each replica.
ALL = Change("heartbeat", "success", 15, 15)
GONE, ONE_GONE = ALL._replace(after=0), ALL._replace(after=15 * 89 / 90)
MISSING, ERRORS, STORE = "RegisteredServicesMissing", "RegistryErrors", "RegistryStoreDown"
SEVERITIES = {MISSING: "warning", ERRORS: "warning", STORE: "critical"}
SITUATIONS: dict[str, tuple[list[Change | Breaker], set[str]]] = {
    "a healthy fleet": ([ALL], set()),
    "one service of 90 is stopped": ([ONE_GONE], set()),
    "a third of the sidecars is stopped": ([ALL._replace(after=10)], {MISSING}),
    "all of them are stopped": ([GONE], {MISSING}),
    "one sidecar's token is refused, which tries once in 45 s": (
        [ONE_GONE, Change("register", "error", 0, STEP / 45 / REPLICAS)],
        {ERRORS},
    ),
    "every token is refused": ([GONE, Change("register", "error", 0, 10)], {ERRORS, MISSING}),
    "the store is down, and heartbeats are accepted from memory": (
        [GONE, Change("heartbeat", "cache_mode", 0, 15)],
        {STORE},
    ),
    "the same, and sidecars register in place of heartbeats": (
        [GONE, Change("register", "cache_fallback", 0, 15)],
        {STORE},
    ),
    "breakers are half open": ([GONE, Change("register", "circuit_breaker_open", 0, 15)], {STORE}),
    "people ask for single records, which fail": ([ALL, Change("get", "error", 0, 5)], set()),
    "an open breaker is seen where no sidecar calls": ([ALL, Breaker(opens=True)], {STORE}),
    "a breaker that is closed": ([ALL, Breaker(opens=False)], set()),
}


def promtool(directory: Path, *arguments: str, **files: str) -> None:
    """Run promtool beside these files, and check that it finds nothing wrong."""
    for name, text in files.items():
        (directory / f"{name}.yml").write_text(text)
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_rule_fires_where_it_should_and_only_there(tmp_path: Path, situation: str) -> None:
    """Nothing fires before the situation, and ten minutes after it just these rules do."""
    changes, names = SITUATIONS[situation]
    firing = [
        {"labels": FIRING[:-1] + f',alertname="{name}",severity="{SEVERITIES[name]}"}}', "value": 1}
        for name in sorted(names)
    ]
    calm = BEFORE * STEP
    looks: list[dict[str, Any]] = [
        {"expr": FIRING, "eval_time": f"{calm}s", "exp_samples": []},
        {"expr": FIRING, "eval_time": f"{calm + 600}s", "exp_samples": firing},
    ]
    series = [each for change in changes for each in change.series()]
    test = {"interval": f"{STEP}s", "input_series": series, "promql_expr_test": looks}
    file = {"rule_files": ["rules.yml"], "evaluation_interval": f"{STEP}s", "tests": [test]}
    promtool(tmp_path, "test", "rules", "test.yml", rules=guides_rules(), test=yaml.safe_dump(file))


def test_the_rules_and_the_scrape_configuration_are_valid(tmp_path: Path) -> None:
    (scrapes,) = (b.text for b in blocks(GUIDE) if b.text.startswith("scrape_configs:"))
    promtool(tmp_path, "check", "rules", "rules.yml", rules=guides_rules())
    promtool(tmp_path, "check", "config", "prometheus.yml", prometheus=scrapes)
