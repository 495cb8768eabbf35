"""Do README and guide tell the truth? Settings, log and health lines, commands, manifests."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import requests
import yaml

import agent
from kit.documents import blocks, code, occurs, read, table
from kit.parts import client
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, ROOT, Sidecar, wait_until

README, GUIDE, FIGURES = "README.md", "INTEGRATION_GUIDE.md", "tests/FIGURES.md"
OFFERS = "What the registry must offer"
# Commands outside the blocks that tests/containers/test_documents.py types in: what runs them.
RUN_BY = {
    "tests/docs/test_demo.py": {"sh tests/demo.sh"},
    ".ci/run": {"sh tests/run.sh", "sh tests/run.sh all"},
    "tests/containers/test_image.py": {"docker build -t vertice-registry-sidecar:latest ."},
    "tests/containers/test_try.py": {
        "docker compose -f docker/try.yml up --build",
        *(f"docker compose {verb} service" for verb in ("kill", "start")),
        *(f"docker compose {verb} registry" for verb in ("stop", "start")),
        *(f"docker compose {verb} sidecar" for verb in ("stop", "start")),
        *("docker compose ps", "docker compose down --rmi local"),
    },
    "tests/containers/test_documents.py": {
        "docker compose run --rm --no-deps vertice-osint-sidecar --check",
        *("docker compose up -d", "docker logs vertice-osint-sidecar"),
        "docker exec vertice-osint-sidecar python -I -S /app/healthcheck.pyc --ready",
        "docker compose rm -s -f vertice-osint-sidecar",
        "docker run --rm vertice-registry-sidecar:latest --help",
        *("docker inspect", "docker stop"),
    },
    "tests/containers/test_failures.py": {"docker pause"},
    "tests/containers/test_stop_order.py": {"docker compose stop"},
}
KUBERNETES = "1.29"  # the first with native sidecars, which the guide asks for
YAML = {
    name: list(
        yaml.safe_load_all("\n---\n".join(b.text for b in blocks(name) if b.language == "yaml"))
    )
    for name in (README, GUIDE)
}
MANIFESTS = [document for document in YAML[GUIDE] if "apiVersion" in document]
(RULES,) = (document["groups"][0]["rules"] for document in YAML[GUIDE] if "groups" in document)
PATIENCE = 60.0  # seconds, for a machine that does much else


def test_the_settings_table_is_complete_and_its_defaults_are_right() -> None:
    rows = {code(name)[0]: default for name, default, _ in table(README, "Settings")}
    in_the_row_of_another = {"VERTICE_REGISTRY_TOKEN", "REGISTRY_AUTH_TOKEN"}
    assert set(rows) == set(agent.SETTINGS) - in_the_row_of_another
    for name, default in rows.items():
        assert "".join(code(default)) == agent.SETTINGS[name].default, name
        assert default in ("none", "required") or code(default), name


def test_what_it_tells_of_agent_py_is_so() -> None:
    source = (ROOT / "agent.py").read_text(encoding="utf-8")
    job = source[: source.index("- the registry\n")].count("\n")
    told = re.search(r"script of ([\d,]+) lines, of which the\s+first (\d+) are", read(README))
    assert told
    assert abs(int(told[1].replace(",", "")) - source.count("\n")) <= 100
    assert abs(int(told[2]) - job) <= 50
    for document in (README, GUIDE):
        assert re.search(rf"until {agent.PROOF} looks in a row have\s+found it", read(document))


def real_output() -> tuple[list[str], list[str]]:
    """Return the log and the health lines of real agents in all that the README tells of."""
    health: list[str] = []
    registry, service = Registry(ttl=4.0, dialect="deployed", token="secret"), ToyService()
    sidecar = Sidecar(registry, service, REGISTRY_TOKEN="secret", HEARTBEAT_INTERVAL=1)

    def said(words: str, times: int = 1) -> None:
        sidecar.wait_for(words, times, timeout=PATIENCE)

    def shown(*patterns: str, of: Sidecar = sidecar, code: int = 0) -> None:
        health.extend(of.wait_health(pattern, code, timeout=PATIENCE) for pattern in patterns)

    def forgotten() -> int:
        registry.forget()  # also a record that has just been put back
        return sidecar.count("does not list")

    def plays(operation: str, status: int, body: object, words: str, times: Any = FOREVER) -> None:
        registry.play(operation, ["status", status, body], times=times)
        said(words)
        registry.sane()

    with sidecar:
        shown("^waiting.*refused")
        with service, registry:
            registry.stop()
            said("Registration failed")
            registry.start()
            said("Heartbeat accepted")
            shown("^registered")
            registry.forget()
            said("has lost the record")
            registry.play("*", ["status", 503, {"detail": "come back later"}], times=FOREVER)
            shown("^registry failing")
            registry.sane()
            said("Registry is back", times=2)
            registry.play("heartbeat", ["status", 200, {}], times=FOREVER)
            wait_until(forgotten, PATIENCE, every=0.2)
            registry.sane()
            plays("list", 500, {}, "does not tell")
            plays("*", 200, "<html></html>", "a web page", times=1)
            os.kill(sidecar.pid, signal.SIGSTOP)
            time.sleep(2.5)  # more than two intervals
            os.kill(sidecar.pid, signal.SIGCONT)
            said("No heartbeat accepted for two intervals")
            registry.token = "other"
            said("refuses the token")
            registry.token = "secret"
            said("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 1)
            service.stop()
            shown("^service down")
            service.start()
            said("READY again")
            service.version = "2.0.0"
            said("Service has changed")
            registry.play("*", "hang")
            said("no answer within")
            registry.stop()
            shown("^registry unreachable.*refused")
            registry.start()
            shown("^registered")
            sidecar.process.kill()
            shown("^unhealthy: the agent is", code=1)
            with Sidecar(registry, service, REGISTRY_TOKEN="secret", DRAIN_SECONDS=30) as draining:
                draining.wait_registered()
                os.kill(draining.pid, signal.SIGTERM)
                shown("draining", of=draining)
            with Sidecar(registry, service) as without_token:
                without_token.wait_for("asks for a token", timeout=PATIENCE)
    with Sidecar(None, None, SERVICE_NAME="a b", REGISTRY_URL="https://") as refused:
        refused.wait()
    return sidecar.lines + without_token.lines + refused.lines, health


def test_every_log_line_and_health_line_that_it_quotes_is_real() -> None:
    log, health = real_output()
    # In tests/containers/test_failures.py, with a DNS server that answers nothing; in
    # tests/agent/test_log_unread.py; in test_failures.py again.
    elsewhere = ("name look-up failed", "lines of the log were dropped", "Network lost: nothing")
    for row in table(README, "What happens when"):
        for quoted in code(row[2]):
            found = any(words in quoted for words in elsewhere) or occurs(quoted, log)
            assert found, f"{quoted!r} is not in the log:\n" + "\n".join(log)
    for row in table(README, "Health"):
        assert occurs(code(row[1])[0], health), f"{row[1]} is not in:\n" + "".join(health)
    for row in table(GUIDE, "Words to search the log for"):
        assert any(code(row[0])[0] in line for line in log), f"{row[0]} finds nothing"


def test_every_block_and_command_is_of_a_kind_that_some_test_looks_at() -> None:
    assert {b.language for b in blocks(README)} == {"", "yaml", "console", "sh"}
    assert {b.language for b in blocks(GUIDE)} == {"yaml", "console", "sh"}
    for document in YAML[GUIDE]:
        assert len(document.keys() & {"apiVersion", "services", "groups", "scrape_configs"}) == 1
    commands = re.findall(r"(?:`|^\$ )((?:sh|docker) [^`\n]+)", read(README), re.MULTILINE)
    assert set(commands) == set[str]().union(*RUN_BY.values())
    assert all((ROOT / file).is_file() for file in RUN_BY)


def test_the_diagram_fits_a_terminal_and_has_the_requests_of_the_code() -> None:
    (diagram,) = (b.text for b in blocks(README) if not b.language)
    assert diagram.isascii()
    assert max(map(len, diagram.splitlines())) <= 80
    for method_and_path, _, _, _ in offers():
        assert method_and_path[1].removesuffix("/osint_service") in diagram


def offers() -> Iterator[tuple[tuple[str, str], Any, int, Any]]:
    """Yield for each request its method and path, its body, the status and body of the answer."""
    for request, body, answer in table(README, OFFERS):
        method, path = code(request)[0].split()
        status, _, said = code(answer)[0].partition(" ")
        yield (
            (method, path),
            json.loads(code(body)[0]) if code(body) else None,
            int(status),
            json.loads(said),
        )


def shape_of(content: object) -> object:
    """Return the keys of JSON objects, whatever their values."""
    if not isinstance(content, dict):
        return None
    return {key: shape_of(value) for key, value in content.items()}


def test_the_agent_sends_the_requests_that_the_registry_must_offer(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        wait_until(lambda: registry.count("list"), 30)
        sidecar.stop()
    sent = {(r.method, r.path): shape_of(r.json()) if r.body else None for r in registry.requests}
    assert sent == {request: shape_of(body) for request, body, _, _ in offers()}


def test_the_registry_answers_them_as_it_must(registry: Registry) -> None:
    for (method, path), body, status, said in offers():
        got = requests.request(method, registry.url + path, json=body, timeout=PATIENCE)
        assert (got.status_code, got.json()) == (status, said)


def test_an_answer_counts_as_it_says(registry: Registry) -> None:
    asker = client(registry)
    for meaning, answers, _ in table(README, OFFERS, number=2):
        for answer in code(answers):
            status, _, body = answer.partition(" ")
            registry.play("heartbeat", ["status", int(status), json.loads(body or "{}")], times=1)
            assert asker.heartbeat(PATIENCE).meaning == meaning, answer


def test_the_figures_stand_in_the_full_tables() -> None:
    headings = ("What one costs", "What a soak shows")
    every = [row[:2] for heading in headings for row in table(FIGURES, heading)]
    few = table(README, "Figures")
    assert len(few) == 6
    assert [row for row in few if row not in every] == []


@pytest.mark.parametrize("document", [README, GUIDE, FIGURES])
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = read(document)
    for path in re.findall(r"\btests/[\w/*.]*\w", text):
        assert list(ROOT.glob(path)), path
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (ROOT / document).parent / path if path else ROOT / document
        assert there.exists(), target
        headings = re.findall(
            r"^#+ (.+)$", there.read_text(encoding="utf-8") if anchor else "", re.M
        )
        anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not anchor or anchor in anchors, target


# ---- the guide's files; its alert rules: test_alerts.py; compose: containers/test_documents.py


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda manifest: manifest["kind"])
def test_kubernetes_manifests_fit_the_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def settings_of(example: dict[str, Any]) -> dict[str, str]:
    """Return a container's variables from Compose or Kubernetes, ${X:-default} filled in."""
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
