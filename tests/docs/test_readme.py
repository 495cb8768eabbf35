"""Does the README tell the truth? Its settings, its log and health lines, its commands."""

import json
import os
import re
import signal
import subprocess
import time
from typing import Any

import pytest
import requests
import yaml

import agent
from kit.documents import blocks, code, occurs, read, table
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, ROOT, Sidecar, wait_until

README, GUIDE = "README.md", "INTEGRATION_GUIDE.md"
FIGURES = "tests/FIGURES.md"
# The commands outside the blocks that tests/containers/test_documents.py types in: what runs them.
DOCUMENTS, TRY = "tests/containers/test_documents.py", "tests/containers/test_try.py"
RUN_ELSEWHERE = {
    "sh tests/demo.sh": "tests/docs/test_demo.py",
    "sh tests/run.sh": "this very run",
    "sh tests/run.sh all": "CI",
    "docker build -t vertice-registry-sidecar:latest .": "tests/containers/test_image.py",
    "docker compose -f docker/try.yml up --build": TRY,
    "docker compose kill service": TRY,
    "docker compose start service": TRY,
    "docker compose stop registry": TRY,
    "docker compose start registry": TRY,
    "docker compose ps": TRY,
    "docker compose stop sidecar": TRY,
    "docker compose start sidecar": TRY,
    "docker compose down --rmi local": TRY,
    "docker compose run --rm --no-deps vertice-osint-sidecar --check": DOCUMENTS,
    "docker compose up -d": DOCUMENTS,
    "docker logs vertice-osint-sidecar": DOCUMENTS,
    "docker exec vertice-osint-sidecar python -I -S /app/healthcheck.pyc --ready": DOCUMENTS,
    "docker compose rm -s -f vertice-osint-sidecar": DOCUMENTS,
    "docker run --rm vertice-registry-sidecar:latest --help": DOCUMENTS,
    "docker pause": "tests/containers/test_failures.py",
    "docker inspect": DOCUMENTS,
    "docker stop": DOCUMENTS,
    "docker compose stop": "tests/containers/test_stop_order.py",
}
PATIENCE = 60.0  # seconds, for a machine that does much else


def test_the_settings_table_is_complete_and_its_defaults_are_right() -> None:
    rows = {code(name)[0]: default for name, default, _ in table(README, "Settings")}
    in_the_row_of_another = {"VERTICE_REGISTRY_TOKEN", "REGISTRY_AUTH_TOKEN"}
    assert set(rows) == set(agent.SETTINGS) - in_the_row_of_another
    for name, default in rows.items():
        assert "".join(code(default)) == agent.SETTINGS[name].default, name
        assert default in ("none", "required") or code(default), name


def test_the_size_that_it_tells_of_agent_py_is_its_own() -> None:
    lines = (ROOT / "agent.py").read_text(encoding="utf-8").splitlines()
    job = next(
        number for number, line in enumerate(lines) if re.fullmatch("# -+ the registry", line)
    )
    told = re.search(
        r"script of ([\d,]+) lines, of which the\s+first (\d+) are the job", read(README)
    )
    assert told
    assert abs(int(told[1].replace(",", "")) - len(lines)) <= 100
    assert abs(int(told[2]) - job) <= 50


@pytest.mark.parametrize("document", [README, GUIDE])
def test_the_looks_after_an_outage_are_as_many_as_it_says(document: str) -> None:
    assert re.search(rf"until {agent.PROOF} looks in a row have\s+found it", read(document))


def forgets(registry: Registry) -> bool:
    """Let the registry forget all records, also one that has just been put back."""
    registry.forget()
    return True


def real_output() -> tuple[list[str], list[str]]:
    """Return the log and the health lines of real agents in all that the README tells of."""
    health: list[str] = []

    def note(sidecar: Sidecar, *patterns: str, code: int = 0) -> None:
        health.extend(sidecar.wait_health(pattern, code, timeout=PATIENCE) for pattern in patterns)

    registry = Registry(ttl=4.0, dialect="deployed", token="secret")
    service = ToyService()
    with Sidecar(registry, service, REGISTRY_TOKEN="secret", HEARTBEAT_INTERVAL=1) as sidecar:
        note(sidecar, "^waiting.*refused")
        with service, registry:
            registry.stop()
            sidecar.wait_for("Registration failed", timeout=PATIENCE)
            registry.start()
            sidecar.wait_for("Heartbeat accepted", timeout=PATIENCE)
            note(sidecar, "^registered")
            registry.forget()
            sidecar.wait_for("has lost the record", timeout=PATIENCE)
            registry.play("*", ["status", 503, {"detail": "come back later"}], times=FOREVER)
            note(sidecar, "^registry failing")
            registry.sane()
            sidecar.wait_for("Registry is back", times=2, timeout=PATIENCE)
            registry.play("heartbeat", ["status", 200, {}], times=FOREVER)
            wait_until(lambda: forgets(registry) and sidecar.count("does not list"), 60, every=0.2)
            registry.sane()
            registry.play("list", ["status", 500], times=FOREVER)
            sidecar.wait_for("does not tell", timeout=PATIENCE)
            registry.sane()
            registry.play("*", ["status", 200, "<html></html>"], times=1)
            sidecar.wait_for("a web page", timeout=PATIENCE)
            os.kill(sidecar.pid, signal.SIGSTOP)
            time.sleep(2.5)  # more than two intervals
            os.kill(sidecar.pid, signal.SIGCONT)
            sidecar.wait_for("No heartbeat accepted for two intervals", timeout=PATIENCE)
            registry.token = "other"
            sidecar.wait_for("refuses the token", timeout=PATIENCE)
            registry.token = "secret"
            seen = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=seen + 1, timeout=PATIENCE)
            service.stop()
            note(sidecar, "^service down")
            service.start()
            sidecar.wait_for("READY again", timeout=PATIENCE)
            service.version = "2.0.0"
            sidecar.wait_for("Service has changed", timeout=PATIENCE)
            registry.play("*", "hang")
            sidecar.wait_for("no answer within", timeout=PATIENCE)
            registry.stop()
            note(sidecar, "^registry unreachable.*refused")
            registry.start()
            note(sidecar, "^registered")
            sidecar.process.kill()
            note(sidecar, "^unhealthy: the agent is", code=1)
            with Sidecar(registry, service, REGISTRY_TOKEN="secret", DRAIN_SECONDS=30) as draining:
                draining.wait_registered()
                os.kill(draining.pid, signal.SIGTERM)
                note(draining, "draining")
            with Sidecar(registry, service) as without_token:
                without_token.wait_for("asks for a token", timeout=PATIENCE)
    log = list(sidecar.lines)
    with Sidecar(None, None, SERVICE_NAME="a b", REGISTRY_URL="https://") as sidecar:
        sidecar.wait()
    return log + without_token.lines + sidecar.lines, health


def test_every_log_line_and_health_line_that_it_quotes_is_real() -> None:
    log, health = real_output()
    # In tests/containers/test_failures.py, with a DNS server that answers nothing; in
    # tests/agent/test_log_unread.py; in tests/agent/test_stop.py.
    elsewhere = (
        "name look-up failed",
        "lines of the log were dropped",
        "Network lost: nothing but loopback for ",
    )
    for row in table(README, "What happens when"):
        for quoted in code(row[2]):
            found = any(words in quoted for words in elsewhere) or occurs(quoted, log)
            assert found, f"{quoted!r} is not in the log:\n" + "\n".join(log)
    for row in table(README, "Health"):
        assert occurs(code(row[1])[0], health), f"{row[1]} is not in:\n" + "".join(health)
    for row in table(GUIDE, "Words to search the log for"):
        assert any(code(row[0])[0] in line for line in log), f"{row[0]} finds nothing"


def test_the_example_to_paste_is_accepted_by_the_agent() -> None:
    example: dict[str, Any] = yaml.safe_load(
        next(b.text for b in blocks(README) if b.language == "yaml")
    )
    (sidecar,) = example["services"].values()
    variables = {name: str(value) for name, value in sidecar["environment"].items()}
    assert agent.doubts_about(agent.read_settings(variables), variables) == []


def test_every_block_and_command_is_of_a_kind_that_some_test_looks_at() -> None:
    assert {b.language for b in blocks(README)} == {"", "yaml", "console", "sh"}
    commands = re.findall(r"(?:`|^\$ )((?:sh|docker) [^`\n]+)", read(README), re.MULTILINE)
    assert set(commands) == set(RUN_ELSEWHERE)


def test_the_diagram_fits_a_terminal_and_has_the_requests_of_the_code() -> None:
    (diagram,) = (b.text for b in blocks(README) if not b.language)
    for line in diagram.splitlines():
        assert line.isascii()
        assert len(line) <= 80
    for row in table(README, "What the registry must offer"):
        path = code(row[0])[0].removesuffix("/osint_service").split()[1]
        assert path in diagram


def shape_of(content: object) -> object:
    """Return the keys of JSON objects, whatever their values."""
    return (
        {key: shape_of(value) for key, value in content.items()}
        if isinstance(content, dict)
        else None
    )


def test_the_agent_sends_the_requests_that_the_registry_must_offer(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        wait_until(lambda: registry.count("list"), 30)
        sidecar.stop()
    sent = {(r.method, r.path): shape_of(r.json()) if r.body else None for r in registry.requests}
    promised = {}
    for request, body, _ in table(README, "What the registry must offer"):
        method, path = code(request)[0].split()
        promised[method, path] = shape_of(json.loads(code(body)[0])) if code(body) else None
    assert sent == promised


def test_the_registry_answers_them_as_it_must(registry: Registry) -> None:
    for request, body, answer in table(README, "What the registry must offer"):
        method, path = code(request)[0].split()
        content = json.loads(code(body)[0]) if code(body) else None
        got = requests.request(method, registry.url + path, json=content, timeout=PATIENCE)
        status, _, said = code(answer)[0].partition(" ")
        assert (got.status_code, got.json()) == (int(status), json.loads(said))


ANSWERS = [
    (row[0], int(status), json.loads(body or "{}"))
    for row in table(README, "What the registry must offer", number=2)
    for status, _, body in (answer.partition(" ") for answer in code(row[1]))
]


@pytest.mark.parametrize(("meaning", "status", "body"), ANSWERS)
def test_an_answer_counts_as_it_says(
    registry: Registry, meaning: str, status: int, body: dict[str, str]
) -> None:
    registry.play("heartbeat", ["status", status, body], times=1)
    settings = agent.read_settings(
        {"SERVICE_NAME": NAME, "SERVICE_HOST": "abc", "REGISTRY_URL": registry.url}
    )
    assert agent.Registry(settings, agent.Signals()).heartbeat(PATIENCE).meaning == meaning


def test_the_figures_stand_in_the_full_tables() -> None:
    every = [
        row[:2]
        for heading in ("What one costs", "What a soak shows")
        for row in table(FIGURES, heading)
    ]
    few = table(README, "Figures")
    assert len(few) == 6
    assert [row for row in few if row not in every] == []


def anchors(text: str) -> set[str]:
    """Return what links to a document's headings are made of."""
    return {
        re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-")
        for h in re.findall(r"^#+ (.+)$", text, re.M)
    }


@pytest.mark.parametrize("document", [README, GUIDE, FIGURES])
def test_links_and_paths_lead_somewhere(document: str) -> None:
    text = read(document)
    for path in re.findall(r"\btests/[\w/*.]*\w", text):
        assert list(ROOT.glob(path)), path
    for target in re.findall(r"\]\(([^)]+)\)", text):
        path, _, anchor = target.partition("#")
        there = (ROOT / document).parent / path if path else ROOT / document
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text(encoding="utf-8")), target


def test_the_scripts_are_plain_posix_sh() -> None:
    for script in ROOT.glob("tests/*.sh"):
        subprocess.run(["sh", "-n", script], check=True, env={"PATH": os.environ["PATH"]})
