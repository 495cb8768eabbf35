"""The guide's files are valid.

Kubernetes manifests, alert rules, and every sidecar's settings in them.

What needs a Docker engine, the compose files and the drill, is tried in
tests/containers/test_documents.py.
"""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

import agent
from kit.documents import Block, blocks, code, table
from kit.peers.registry import Registry

GUIDE = "INTEGRATION_GUIDE.md"
KUBERNETES = "1.29"  # the first with native sidecars, which the guide asks for


def files(key: str) -> list[tuple[Block, Any]]:
    """Return the documents in the guide's YAML blocks that have this top-level key."""
    found = [
        (b, document)
        for b in blocks(GUIDE)
        if b.language == "yaml"
        for document in yaml.safe_load_all(b.text)
    ]
    return [(block, document) for block, document in found if key in document]


MANIFESTS = [document for _, document in files("apiVersion")]
COMPOSE = [document for _, document in files("services")]


def test_every_block_is_of_a_kind_that_some_test_looks_at() -> None:
    assert {b.language for b in blocks(GUIDE)} == {"yaml", "console", "sh"}
    yaml_documents = [
        d for b in blocks(GUIDE) if b.language == "yaml" for d in yaml.safe_load_all(b.text)
    ]
    known = [files(key) for key in ("apiVersion", "services", "groups", "scrape_configs")]
    assert len(yaml_documents) == sum(map(len, known))


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_kubernetes_manifests_fit_the_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def settings_of(example: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a container, as Compose or Kubernetes writes it.

    With ${X:-default} filled in.
    """
    given = example.get("environment") or {
        each["name"]: each["value"] for each in example.get("env", [])
    }
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in given.items()}


def test_the_agent_accepts_the_settings_of_every_example(tmp_path: Path) -> None:
    containers = [service for document in COMPOSE for service in document["services"].values()]
    for manifest in MANIFESTS:
        if manifest["kind"] == "Deployment":
            containers += manifest["spec"]["template"]["spec"]["initContainers"]
    (tmp_path / "token").write_text("secret\n")
    sidecars = [variables for each in containers if (variables := settings_of(each))]
    assert len(sidecars) == 4
    for variables in sidecars:
        if "REGISTRY_TOKEN_FILE" in variables:
            variables["REGISTRY_TOKEN_FILE"] = str(tmp_path / "token")
        whole = {"SERVICE_NAME": "osint_service", "SERVICE_HOST": "vertice-osint"} | variables
        assert agent.doubts_about(agent.read_settings(whole), whole) == []


def test_the_alert_rules_are_valid(tmp_path: Path) -> None:
    ((block, rules),) = files("groups")
    for rule in rules["groups"][0]["rules"]:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed: only the rules' structure was checked")
    (tmp_path / "rules.yml").write_text(block.text)
    done = subprocess.run(
        [promtool, "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_queries_name_metrics_and_labels_that_the_registry_has() -> None:
    with Registry() as registry:
        metrics = requests.get(f"{registry.url}/metrics", timeout=10).text
    ((_, rules),) = files("groups")
    expressions = [rule["expr"] for rule in rules["groups"][0]["rules"]]
    expressions += [code(row[0])[0] for row in table(GUIDE, "Monitoring")]
    for expression in expressions:
        for metric in re.findall(r"registry_\w+", expression):
            assert f"# TYPE {metric} " in metrics
