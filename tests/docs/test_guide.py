"""The guide's files are valid: Kubernetes manifests, and every sidecar's settings in them.

Its alert rules are tried in test_alerts.py; what needs a Docker engine, the compose files and the
drill, in tests/containers/test_documents.py.
"""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

import agent
from kit.documents import blocks, code, table
from kit.peers.registry import Registry

README, GUIDE = "README.md", "INTEGRATION_GUIDE.md"
KUBERNETES = "1.29"  # the first with native sidecars, which the guide asks for
YAML = {
    document: [
        each
        for block in blocks(document)
        if block.language == "yaml"
        for each in yaml.safe_load_all(block.text)
    ]
    for document in (README, GUIDE)
}
MANIFESTS = [document for document in YAML[GUIDE] if "apiVersion" in document]
(RULES,) = (document["groups"][0]["rules"] for document in YAML[GUIDE] if "groups" in document)


def test_every_block_is_of_a_kind_that_some_test_looks_at() -> None:
    assert {b.language for b in blocks(GUIDE)} == {"yaml", "console", "sh"}
    for document in YAML[GUIDE]:
        assert len(document.keys() & {"apiVersion", "services", "groups", "scrape_configs"}) == 1


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_kubernetes_manifests_fit_the_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def settings_of(example: dict[str, Any]) -> dict[str, str]:
    """Return the environment of a container, as Compose or Kubernetes writes it.

    With ${X:-default} filled in.
    """
    listed = {each["name"]: each["value"] for each in example.get("env", [])}
    given = example.get("environment", listed)
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", str(value)) for name, value in given.items()}


def test_the_agent_accepts_the_settings_of_every_example(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    file = {"REGISTRY_TOKEN_FILE": str(tmp_path / "token")}
    needed = {"SERVICE_NAME": "osint_service", "SERVICE_HOST": "vertice-osint"}
    containers = [each for m in MANIFESTS if m["kind"] == "Deployment"
                  for each in m["spec"]["template"]["spec"]["initContainers"]]  # fmt: skip
    for document in YAML[README] + YAML[GUIDE]:
        containers += document.get("services", {}).values()
    sidecars = [variables for each in containers if (variables := settings_of(each))]
    assert len(sidecars) == 5
    for variables in sidecars:
        whole = needed | variables | (file if "REGISTRY_TOKEN_FILE" in variables else {})
        assert agent.doubts_about(agent.read_settings(whole), whole) == []


def test_alert_rules_and_queries_name_what_the_registry_has() -> None:
    with Registry() as registry:
        metrics = requests.get(f"{registry.url}/metrics", timeout=10).text
    expressions = [code(row[0])[0] for row in table(GUIDE, "Monitoring")]
    for rule in RULES:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        expressions.append(rule["expr"])
    for metric in re.findall(r"registry_\w+", " ".join(expressions)):
        assert f"# TYPE {metric} " in metrics
