"""Names as musl looks them up, with name servers that answer one type of question alone."""

import re

import pytest

from containers.engine import TTL, Lab, Node, PeerNode

pytestmark = pytest.mark.docker

SERVER = "127.0.0.53"
ERRORS = ("refused", "nxdomain", "servfail", "notimp", "nothing")


class Names:
    """A name server, a registry and a service; sidecars look around in the same network."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.server = self.peer(
            "names",
            "--host",
            SERVER,
            network="bridge",
            networking_config=None,
            dns=[SERVER],
            sysctls={"net.ipv6.conf.all.disable_ipv6": 0},
        )
        self.inside = {
            "network": None,
            "networking_config": None,
            "network_mode": f"container:{self.server.container.id}",
        }
        anywhere = ("--host", "::", "--verbose", "--port")
        ttl = ("--ttl", str(TTL))
        self.registry = PeerNode(
            self.peer("registry", *ttl, *anywhere, "8888", **self.inside), 8888
        )
        self.service = PeerNode(self.peer("service", *anywhere, "8080", **self.inside), 8080)

    def peer(self, module: str, *arguments: str, **options: object) -> Node:
        command = ["python", "-m", f"kit.peers.{module}", *arguments]
        node = self.lab.run(self.lab.peer_image, command, module, **options)
        node.wait_for("listening on")
        return node

    def sidecar(self, ways: str) -> Node:
        """Start a sidecar that knows its service and the registry by names of this kind."""
        return self.lab.sidecar(
            self.inside,
            alias=ways,
            SERVICE_NAME=ways.replace(".", "-"),
            SERVICE_HOST=f"{ways}.service.test",
            REGISTRY_URL=f"http://{ways}.registry.test:8888",
        )

    def questions(self, kind: str, name: str) -> int:
        """Return how often the name was asked for."""
        return self.server.count(f"^names {kind} {re.escape(name)}$")


@pytest.fixture
def names(lab: Lab) -> Names:
    return Names(lab)


def test_a_resolver_that_fails_for_ipv6_hinders_nobody(names: Names) -> None:
    """Registry and service by name. musl fails for both types where it is asked for both."""
    sidecars = {error: names.sidecar(f"ok.{error}") for error in ERRORS}
    for error, sidecar in sidecars.items():
        names.registry.wait_record(f"ok-{error}")
        sidecar.wait_for("Heartbeat accepted", times=3)
        assert sidecar.count("WARNING|ERROR") == 0
        assert names.questions("AAAA", f"ok.{error}.registry.test") == 0
        assert names.questions("AAAA", f"ok.{error}.service.test") == 0
        assert names.questions("A", f"ok.{error}.registry.test") == 1  # the connection is kept


def test_a_probe_by_name_costs_one_question(names: Names) -> None:
    sidecar = names.sidecar("ok.ok")
    sidecar.wait_for("Heartbeat accepted", times=5)
    assert sidecar.stop() == 0
    probes = names.service.control()["counts"]["health"]
    assert names.questions("A", "ok.ok.service.test") == probes
    assert names.questions("AAAA", "ok.ok.service.test") == 0


def test_a_name_with_ipv6_alone_is_found(names: Names) -> None:
    sidecar = names.sidecar("nodata.ok")
    names.registry.wait_record("nodata-ok")
    sidecar.wait_for("Heartbeat accepted")
    assert sidecar.count("WARNING|ERROR") == 0
