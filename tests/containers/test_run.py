"""The hardened container: registered, healthy, stopped; what it costs."""

import re
from datetime import datetime

import pytest

from containers.engine import WAIT, Lab, Node, wait_until

pytestmark = pytest.mark.docker

# Seconds from a ready service to its record: 10 are promised at 0.1 CPU; a busy machine takes
# longer.
PROMPTLY = 20
MEMORY = 18 * 1024  # kB


def moment(text: str) -> float:
    """Return a time stamp of the engine or of the registry (RFC 3339) in Unix time."""
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text)).timestamp()


def memory(node: Node, field: str) -> int:
    """Return VmRSS or VmHWM of a container's first process in kB."""
    _, status = node.execute("cat", "/proc/1/status")
    return int(re.findall(rf"{field}:\s+(\d+) kB", status)[0])


def test_it_runs_hardened(lab: Lab) -> None:
    """From start to stop under the limits of the template."""
    registry, _service, sidecar = lab.registry(), lab.service(), lab.sidecar()
    record = registry.wait_record()
    assert record["endpoint"] == "http://service:8080"
    assert record["metadata"] == {"version": "1.0.0", "status": "healthy"}
    assert record["registered_at"] - moment(sidecar.state["StartedAt"]) <= PROMPTLY
    sidecar.wait_health("healthy", r"^registered, last heartbeat \d+ s ago$")
    assert memory(sidecar, "VmRSS") <= MEMORY

    assert sidecar.stop() == 0
    assert registry.record() is None
    sidecar.wait_for("Service deregistered")


def test_ready_follows_registration(lab: Lab) -> None:
    """`--ready` after the health check's command is for those who wait for the registration."""
    command = ("python", "-I", "-S", "/app/healthcheck.pyc", "--ready")
    _service, sidecar = lab.service(), lab.sidecar()
    sidecar.wait_for("Registration failed")
    code, said = sidecar.execute(*command)
    assert code == 1
    assert said.startswith("not ready: registry unreachable")
    lab.registry().wait_record()
    wait_until(lambda: sidecar.execute(*command)[0] == 0, WAIT, "ready")


def test_a_look_before_the_start(lab: Lab) -> None:
    """Run `--check` beside a service and a registry, then beside names that nobody has."""
    registry, service = lab.registry(), lab.service()
    lines = {
        0: ["settings: fine", "HEARTBEAT_FILE, /tmp/heartbeat: fine",
            "SERVICE_HOST, service: fine, at ",
            "http probe of http://service:8080/health: fine",
            "REGISTRY_URL, registry: fine, at ",
            "list of http://registry:8888: fine, osint_service is not yet listed",
            "token: fine, none is set, and none is asked for"],
        1: ["settings: fine", "HEARTBEAT_FILE, /tmp/heartbeat: fine",
            "SERVICE_HOST, nobody: not fine: name look-up failed: Name does not resolve; share",
            "REGISTRY_URL, nowhere: not fine: name look-up failed: Name does not resolve; share"],
        2: ["Bad setting: SERVICE_PORT=x: "],
    }  # fmt: skip
    once = {"restart_policy": None, "command": ["--check"]}
    nowhere = {"SERVICE_HOST": "nobody", "REGISTRY_URL": "http://nowhere"}
    for code, settings in enumerate(({}, nowhere, {"SERVICE_PORT": "x"})):
        sidecar = lab.sidecar(once, alias=f"check{code}", **settings)
        assert sidecar.container.wait(timeout=60)["StatusCode"] == code, sidecar.log
        for expected, line in zip(lines[code], sidecar.log.splitlines(), strict=True):
            assert line.startswith(expected)
    assert registry.control()["counts"] == {"list": 1, "heartbeat": 1}  # of sidecar-check
    assert service.control()["counts"] == {"health": 1}
