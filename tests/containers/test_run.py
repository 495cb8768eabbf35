"""The hardened container: registered, healthy, looked into, stopped; what it costs."""

import re
from datetime import datetime

import pytest

from containers.engine import INTERVAL, Lab, Node, wait_until

pytestmark = pytest.mark.docker

# Seconds from a ready service to its record: 10 are promised at 0.1 CPU; a busy machine takes
# longer.
PROMPTLY = 20
MEMORY = 18 * 1024  # kB
# What people do inside, and what that prints.
COMMANDS = {
    ("id",): r"^uid=1000\(sidecar\) gid=1000\(sidecar\)",
    ("ps",): r"\b1 (sidecar|1000) .*python -I /app/agent\.pyc",
    ("wget", "-qO-", "http://service:8080/health"): '"version":"1.0.0"',
    ("nslookup", "service"): r"Address.*: \d+\.\d+\.\d+\.\d+",
    ("ping", "-c", "1", "service"): "1 packets received",
    ("sh", "-c", "echo $((6 * 7))"): "^42$",
    ("python", "-I", "-S", "/app/healthcheck.pyc", "--ready"): "^registered, last heartbeat",
}
# The image has no Unicode tables: what asked for them would be a bug, not a bad setting.
NOT_ASCII = ("http://b\xfccher:80", "http://\xfc@registry", "http://h\u2100x")


def moment(text: str) -> float:
    """Return a time stamp of the engine (RFC 3339) in Unix time."""
    return datetime.fromisoformat(re.sub(r"(\.\d{1,6})\d*", r"\1", text)).timestamp()


def left_behind(node: Node) -> list[str]:
    """Return the lines of `ps` in a container that show a zombie or a sleep."""
    code, said = node.execute("ps", "-o", "stat,comm")
    assert code == 0, said
    return [line for line in said.splitlines() if re.search("^Z|sleep$", line)]


def test_it_runs_hardened(lab: Lab) -> None:
    """From start to stop under the limits of the template."""
    registry, _service, sidecar = lab.registry(), lab.service(), lab.sidecar()
    record = registry.wait_record()
    assert record["endpoint"] == "http://service:8080"
    assert record["metadata"] == {"version": "1.0.0", "status": "healthy"}
    assert record["registered_at"] - moment(sidecar.state["StartedAt"]) <= PROMPTLY
    sidecar.wait_health("healthy", r"^registered, last heartbeat \d+ s ago$")
    assert int(sidecar.status()["VmRSS"].removesuffix(" kB")) <= MEMORY

    for command, expected in COMMANDS.items():
        code, said = sidecar.execute(*command)
        assert code == 0, said
        assert re.search(expected, said, re.MULTILINE), f"{command}: {said}"
    for url in NOT_ASCII:
        again = ("python", "-I", "/app/agent.pyc", "--check")
        code, said = sidecar.execute(*again, environment={"REGISTRY_URL": url})
        assert (code, "Bad setting: REGISTRY_URL" in said) == (2, True), said
    for _ in range(3):  # what a command leaves behind is left to PID 1
        assert sidecar.container.exec_run(["sh", "-c", "(sleep 0.2 &)"]) == (0, b"")
    wait_until(lambda: not left_behind(sidecar), 1 + 2 * INTERVAL, "no zombie is left")

    assert sidecar.stop() == 0
    assert registry.record() is None
    sidecar.wait_for("Service deregistered")


def test_with_one_process_a_look_up_fails_for_want_of_a_thread_and_addresses_need_none(
    lab: Lab,
) -> None:
    registry, service = lab.registry(), lab.service()
    alone = {"pids_limit": 1, "healthcheck": None, "restart_policy": None}
    by_name = lab.sidecar(alone, alias="by-name")
    by_address = lab.sidecar(
        alone,
        SERVICE_HOST=service.address,
        REGISTRY_URL=f"http://{registry.address}:8888",
    )
    by_name.wait_for("Waiting for the service .*name look-up failed: .*thread")
    by_address.wait_for("Heartbeat accepted")
    for sidecar in (by_name, by_address):
        assert sidecar.stop() == 0
        assert "Traceback" not in sidecar.log
    registry.wait_no_record()
