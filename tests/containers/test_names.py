"""Names as musl looks them up, with a name server that fails for one type of question."""

import re

import pytest

from containers.engine import Lab

pytestmark = pytest.mark.docker

SERVER = "127.0.0.53"
# How the name server answers for IPv4 and for IPv6: well, with an error, not at all, or that the
# name has no such address.
FAILS_FOR_IPV6 = ("ok.refused", "ok.nxdomain", "ok.servfail", "ok.notimp", "ok.nothing")
BOTH, IPV6_ALONE = "ok.ok", "nodata.ok"


def test_one_question_finds_a_name_and_a_resolver_that_fails_for_ipv6_hinders_nobody(
    lab: Lab,
) -> None:
    """Registry and service by name. musl fails for both types where it is asked for both."""
    names = lab.run(
        lab.peer_image,
        ["python", "-m", "kit.peers.names", "--host", SERVER],
        "names",
        network="bridge",
        networking_config=None,
        dns=[SERVER],
        sysctls={"net.ipv6.conf.all.disable_ipv6": 0},
    )
    names.wait_for("listening on")
    registry = lab.registry("--host", "::", **names.inside)
    service = lab.service("--host", "::", **names.inside)

    def questions(kind: str, name: str) -> int:
        """Return how often a name was asked for."""
        return names.count(f"^names {kind} {re.escape(name)}$")

    sidecars = {
        ways: lab.sidecar(
            names.inside,
            alias=ways,
            SERVICE_NAME=ways.replace(".", "-"),
            SERVICE_HOST=f"{ways}.service.test",
            REGISTRY_URL=f"http://{ways}.registry.test:8888",
        )
        for ways in (*FAILS_FOR_IPV6, BOTH, IPV6_ALONE)
    }
    for ways, sidecar in sidecars.items():
        registry.wait_record(ways.replace(".", "-"))
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert sidecar.stop() == 0
        assert sidecar.count("WARNING|ERROR") == 0
        if ways != IPV6_ALONE:
            assert questions("AAAA", f"{ways}.registry.test") == 0
            assert questions("AAAA", f"{ways}.service.test") == 0
        assert questions("A", f"{ways}.registry.test") == 1  # the connection is kept
    asked = sum(questions("A", f"{ways}.service.test") for ways in sidecars)
    assert asked == service.control()["counts"]["health"]  # one for each probe
