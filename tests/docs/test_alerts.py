"""The guide's alert rules, by promtool's own unit tests.

What fires in which situation, and when nothing does.

With made-up metrics of 90 services behind three replicas. With a real Prometheus, agents and
registries, `alerts.py` tries the same, see tests/long/test_alerts.py.
"""

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from alerts import GUIDE, guides_rules
from kit.documents import blocks

STEP = 15  # seconds between two scrapes
BEFORE, AFTER = 80, 60  # scrapes before the situation, and after it
CALM = BEFORE * STEP  # seconds
REPLICAS = 3

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


class Change(NamedTuple):
    """What a counter of one replica grows by at each scrape, before the situation and after it."""

    operation: str
    status: str
    before: float
    after: float


# 90 services, a heartbeat each in 30 s: one a second at each replica.
ALL = Change("heartbeat", "success", 15, 15)
GONE = ALL._replace(after=0)
MISSING, ERRORS, STORE = "RegisteredServicesMissing", "RegistryErrors", "RegistryStoreDown"
SEVERITIES = {MISSING: "warning", ERRORS: "warning", STORE: "critical"}
SITUATIONS: dict[str, tuple[list[Change], set[str]]] = {
    "a healthy fleet": ([ALL], set()),
    "one service of 90 is stopped": ([ALL._replace(after=15 * 89 / 90)], set()),
    "a third of the sidecars is stopped": ([ALL._replace(after=10)], {MISSING}),
    "all of them are stopped": ([GONE], {MISSING}),
    "one sidecar's token is refused, which tries once in 45 s": (
        [ALL._replace(after=15 * 89 / 90), Change("register", "error", 0, STEP / 45 / REPLICAS)],
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
}


def counters(change: Change) -> list[dict[str, str]]:
    """Return the series of one counter at each replica, as promtool writes them."""
    labels = f'operation="{change.operation}",status="{change.status}"'
    turn = change.before * BEFORE
    values = f"0+{change.before}x{BEFORE} {turn + change.after}+{change.after}x{AFTER}"
    names = [
        f'registry_operations_total{{instance="{number}",{labels}}}' for number in range(REPLICAS)
    ]
    return [{"series": name, "values": values} for name in names]


def gauge(is_open: bool) -> dict[str, str]:
    """Return the series of one replica's breaker."""
    return {
        "series": 'registry_circuit_breaker_open{instance="0"}',
        "values": f"0x{BEFORE} {int(is_open)}x{AFTER}",
    }


def fires(tmp_path: Path, series: list[dict[str, str]], names: set[str]) -> None:
    """Have promtool check that nothing fires before the situation.

    Ten minutes after it just these rules.
    """
    (tmp_path / "rules.yml").write_text(guides_rules())
    shown = [
        f'ALERTS{{alertname="{name}",alertstate="firing",severity="{severity}"}}'
        for name, severity in SEVERITIES.items()
        if name in names
    ]
    firing = [{"labels": labels, "value": 1} for labels in shown]
    looks = [
        {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{CALM}s", "exp_samples": []},
        {
            "expr": 'ALERTS{alertstate="firing"}',
            "eval_time": f"{CALM + 600}s",
            "exp_samples": firing,
        },
    ]
    test = {"interval": f"{STEP}s", "input_series": series, "promql_expr_test": looks}
    file = {"rule_files": ["rules.yml"], "evaluation_interval": f"{STEP}s", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(file))
    command = ["promtool", "test", "rules", "test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_rule_fires_where_it_should_and_only_there(tmp_path: Path, situation: str) -> None:
    changes, names = SITUATIONS[situation]
    fires(tmp_path, [each for change in changes for each in counters(change)], names)


@needs_promtool
def test_an_open_breaker_is_seen_where_no_sidecar_calls(tmp_path: Path) -> None:
    fires(tmp_path, [*counters(ALL), gauge(is_open=True)], {STORE})
    fires(tmp_path, [*counters(ALL), gauge(is_open=False)], set())


@needs_promtool
def test_the_scrape_configuration_is_valid(tmp_path: Path) -> None:
    (text,) = [b.text for b in blocks(GUIDE) if b.text.startswith("scrape_configs:")]
    (tmp_path / "prometheus.yml").write_text(text)
    command = ["promtool", "check", "config", "prometheus.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
