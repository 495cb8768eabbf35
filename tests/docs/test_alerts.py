"""The guide's alert rules and its scrape configuration, by promtool's own tests.

With made-up metrics of 90 services behind three replicas. With a real Prometheus, agents and
registries, `alerts.py` tries the same, see tests/long/test_alerts.py.
"""

import shutil
import subprocess
from pathlib import Path
from typing import Any

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


def counter(operation: str, status: str, before: float, after: float) -> list[dict[str, str]]:
    """Return a counter at each replica, which grows so much a scrape before and after it."""
    labels = f'operation="{operation}",status="{status}"'
    turn = before * BEFORE
    values = f"0+{before}x{BEFORE} {turn + after}+{after}x{AFTER}"
    name = "registry_operations_total"
    return [
        {"series": f'{name}{{instance="{number}",{labels}}}', "values": values}
        for number in range(REPLICAS)
    ]


def breaker(is_open: int) -> list[dict[str, str]]:
    """Return the gauge of one replica's breaker, which was closed."""
    name = 'registry_circuit_breaker_open{instance="0"}'
    return [{"series": name, "values": f"0x{BEFORE} {is_open}x{AFTER}"}]


def beats(after: float) -> list[dict[str, str]]:
    """Return the heartbeats of 90 services: one a second at each replica, before the situation."""
    return counter("heartbeat", "success", 15, after)


MISSING, ERRORS, STORE = "RegisteredServicesMissing", "RegistryErrors", "RegistryStoreDown"
SEVERITIES = {MISSING: "warning", ERRORS: "warning", STORE: "critical"}
ONE_GONE = 15 * 89 / 90
SITUATIONS: dict[str, tuple[list[dict[str, str]], set[str]]] = {
    "a healthy fleet": (beats(15), set()),
    "one service of 90 is stopped": (beats(ONE_GONE), set()),
    "a third of the sidecars is stopped": (beats(10), {MISSING}),
    "all of them are stopped": (beats(0), {MISSING}),
    "one sidecar's token is refused, which tries once in 45 s": (
        beats(ONE_GONE) + counter("register", "error", 0, STEP / 45 / REPLICAS),
        {ERRORS},
    ),
    "every token is refused": (beats(0) + counter("register", "error", 0, 10), {ERRORS, MISSING}),
    "the store is down, and heartbeats are accepted from memory": (
        beats(0) + counter("heartbeat", "cache_mode", 0, 15),
        {STORE},
    ),
    "the same, and sidecars register in place of heartbeats": (
        beats(0) + counter("register", "cache_fallback", 0, 15),
        {STORE},
    ),
    "breakers are half open": (
        beats(0) + counter("register", "circuit_breaker_open", 0, 15),
        {STORE},
    ),
    "people ask for single records, which fail": (beats(15) + counter("get", "error", 0, 5), set()),
    "an open breaker is seen where no sidecar calls": (beats(15) + breaker(1), {STORE}),
    "a breaker that is closed": (beats(15) + breaker(0), set()),
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
    series, names = SITUATIONS[situation]
    firing = [
        {"labels": FIRING[:-1] + f',alertname="{name}",severity="{SEVERITIES[name]}"}}', "value": 1}
        for name in sorted(names)
    ]
    calm = BEFORE * STEP
    looks: list[dict[str, Any]] = [
        {"expr": FIRING, "eval_time": f"{calm}s", "exp_samples": []},
        {"expr": FIRING, "eval_time": f"{calm + 600}s", "exp_samples": firing},
    ]
    test = {"interval": f"{STEP}s", "input_series": series, "promql_expr_test": looks}
    file = {"rule_files": ["rules.yml"], "evaluation_interval": f"{STEP}s", "tests": [test]}
    promtool(tmp_path, "test", "rules", "test.yml", rules=guides_rules(), test=yaml.safe_dump(file))


def test_the_rules_and_the_scrape_configuration_are_valid(tmp_path: Path) -> None:
    (scrapes,) = (b.text for b in blocks(GUIDE) if b.text.startswith("scrape_configs:"))
    promtool(tmp_path, "check", "rules", "rules.yml", rules=guides_rules())
    promtool(tmp_path, "check", "config", "prometheus.yml", prometheus=scrapes)
