"""What the network does to a sidecar: nothing lasting.

Names, addresses and connections one by one: unit/test_network.py; probes: unit/test_service.py. A
network that is gone for good: containers/test_failures.py.
"""

import resource

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sampler, Sidecar
from kit.stage import Stage

HERE, THERE = "127.0.0.11", "127.0.0.12"


def test_an_address_that_goes_mute_costs_one_request_and_no_record(service: ToyService) -> None:
    """It takes connections, which looks well until the deadline of the exchange has passed."""
    with Registry(HERE, ttl=4.0) as first, Registry(THERE, first.port, replica_of=first) as second:
        second.ttl = first.ttl
        first.pause()
        url = f"http://registry.test:{first.port}"
        sidecar = Sidecar(None, service, REGISTRY_URL=url, REGISTRY_TIMEOUT=1)
        Stage(sidecar, names={"registry.test": [HERE, THERE]})
        with sidecar:
            sidecar.wait_registered()
            assert sidecar.count("Registration failed") == 1
            with Sampler(lambda: first.record(NAME)) as sampler:
                sidecar.wait_for("Heartbeat accepted", times=2)
                assert second.connections == 1
                first.resume()
                second.pause()
                sidecar.wait_for("Heartbeat failed")
                sidecar.wait_for("Registry is back", times=2)
            assert not sampler.absences


def test_without_a_descriptor_to_be_had_the_service_is_down_until_there_is_one(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=1) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        soft, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, hard))
        sidecar.wait_for("Service is DOWN")
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (soft, hard))
        sidecar.wait_registered(times=2)
        sidecar.wait_health("registered")
        assert "Traceback" not in sidecar.log
