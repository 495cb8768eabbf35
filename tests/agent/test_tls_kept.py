"""The registry's connection inside TLS: kept, and opened again at no price."""

from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import Sidecar


@pytest.mark.parametrize("farewell", [True, False], ids=["close_notify", "bare-FIN"])
def test_a_connection_closed_while_idle_costs_nothing(
    service: ToyService, tmp_path: Path, farewell: bool
) -> None:
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    with Registry(tls=tls, idle_timeout=0.3) as registry:
        registry.farewell = farewell
        with Sidecar(registry, service, HEARTBEAT_INTERVAL=1, REGISTRY_CA_FILE=ca_file) as sidecar:
            sidecar.wait_for("Heartbeat accepted", times=4)
            assert sidecar.stop()[0] == 0
            assert not sidecar.count(" WARNING | ERROR ")
        assert registry.connections >= 4


def test_one_connection_serves_many_heartbeats(service: ToyService, tmp_path: Path) -> None:
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    with (
        Registry(tls=tls) as registry,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, REGISTRY_CA_FILE=ca_file) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted", times=5)
        assert sidecar.stop()[0] == 0
        assert registry.connections == 1
