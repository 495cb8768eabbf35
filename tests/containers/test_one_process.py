"""A container that may have one process, and so no thread beside it: names cannot be looked up."""

import pytest

from containers.engine import Lab

pytestmark = pytest.mark.docker


def test_a_lack_of_threads_is_told_in_the_words_of_a_look_up(lab: Lab) -> None:
    lab.registry()
    lab.service()
    alone = lab.sidecar({"pids_limit": 1, "healthcheck": None, "restart_policy": None})
    alone.wait_for("Waiting for the service .*name look-up failed: .*thread")
    assert alone.stop() == 0
    assert "Traceback" not in alone.log


def test_addresses_need_none(lab: Lab) -> None:
    registry, service = lab.registry(), lab.service()
    alone = lab.sidecar(
        {"pids_limit": 1, "healthcheck": None, "restart_policy": None},
        SERVICE_HOST=service.address,
        REGISTRY_URL=f"http://{registry.address}:8888",
    )
    alone.wait_for("Heartbeat accepted")
    assert alone.stop() == 0
    registry.wait_no_record()
