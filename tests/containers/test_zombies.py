"""The agent is PID 1 of its container: what others leave behind is left to it, and it reaps it."""

import re

import pytest

from containers.engine import INTERVAL, Lab, Node, wait_until

pytestmark = pytest.mark.docker


def processes(node: Node) -> list[str]:
    """Return the lines of `ps` in a container that show a zombie or a sleep."""
    code, said = node.execute("ps", "-o", "stat,comm")
    assert code == 0, said
    return [line for line in said.splitlines() if re.search("^Z|sleep$", line)]


def test_what_a_command_in_the_container_leaves_behind_is_reaped(lab: Lab) -> None:
    _registry, _service, sidecar = lab.registry(), lab.service(), lab.sidecar()
    sidecar.wait_for("Heartbeat accepted")
    for _ in range(3):
        code, said = sidecar.container.exec_run(["sh", "-c", "(sleep 0.2 &)"])
        assert (code, said) == (0, b"")
    wait_until(lambda: not processes(sidecar), 1 + 2 * INTERVAL, "no zombie is left")
    assert sidecar.stop() == 0
