"""A real Consul, where there is one, behind the same states.

What is sent, and what its answers mean: unit/test_consul.py. The real one with losses, outages and
a dead service: the demo, in docs/test_demo.py.
"""

import re
from pathlib import Path

import pytest

from kit.consul import MASTER, ConsulAgent
from kit.peers.service import ToyService
from kit.sidecar import Sampler, Sidecar, wait_until

pytestmark = pytest.mark.slow
NO_LEADER = ('""', "No cluster leader")
REMOVED = "Service not found \\(404\\): the registry has lost the record"


def own_id(service: ToyService) -> str:
    return f"osint_service-127.0.0.1-{service.port}"


def test_replicas_stand_side_by_side_and_a_lost_leader_costs_no_heartbeat(tmp_path: Path) -> None:
    """Each comes and goes for itself. One of two servers alone is no leader."""
    with (
        ConsulAgent(tmp_path, servers=2) as consul,
        ConsulAgent(tmp_path, servers=2, join=consul) as other_server,
        ToyService() as first,
        ToyService() as second,
    ):
        settings = {"REGISTRY_URL": consul.wait_leader().url, "HEARTBEAT_INTERVAL": 1}
        one = Sidecar(None, first, SERVICE_METADATA="zone=eu", SERVICE_TAGS="a,b", **settings)
        with one, Sidecar(None, second, **settings) as two:
            records = {record["ID"]: record for record in consul.wait_passing(2)}
            record = records[own_id(first)]
            assert (record["Address"], record["Port"]) == ("127.0.0.1", first.port)
            assert record["Meta"] == {"version": "1.0.0", "status": "healthy", "zone": "eu"}
            assert record["Tags"] == ["a", "b"]
            with Sampler(lambda: len(consul.passing()) == 2, every=0.1) as sampler:
                one.wait_for("Heartbeat accepted", times=12, timeout=40)  # with a look among them
            assert sampler.samples > 50
            assert sampler.absences == []
            assert not one.count(" WARNING ")

            consul.forget(own_id(first))
            one.wait_for(REMOVED)
            assert len(consul.wait_passing(2)) == 2
            one.assert_stops()
            assert one.count("Service deregistered") == 1
            assert [record["ID"] for record in consul.passing()] == [own_id(second)]  # at once

            other_server.kill()
            wait_until(lambda: consul.ask("GET", "/v1/status/leader").text in NO_LEADER, every=0.1)
            two.wait_for("Heartbeat accepted", times=two.count("Heartbeat accepted") + 5)
            assert not two.count("WARNING|ERROR")


def test_maintenance_and_an_operator_s_check_outlive_all_that_the_sidecar_does(
    tmp_path: Path, service: ToyService
) -> None:
    record = own_id(service)
    own, maintenance = f"service:{record}", f"_service_maintenance:{record}"
    with ConsulAgent(tmp_path) as consul:

        def stays(status: str) -> bool:
            """Tell whether the operator's checks are there, and the sidecar's has that status."""
            found = consul.statuses()
            assert found.items() >= {maintenance: "critical", "disk": "warning"}.items()
            return found.get(own) == status

        settings = {"REGISTRY_URL": consul.wait_leader().url}
        with Sidecar(None, service, **settings) as sidecar:
            consul.wait_passing()
            enable = f"/v1/agent/service/maintenance/{record}?enable=true&reason=disk"
            consul.ask("PUT", enable).raise_for_status()
            disk = {"Name": "disk", "ServiceID": record, "TTL": "1h", "Status": "warning"}
            consul.ask("PUT", "/v1/agent/check/register", json=disk).raise_for_status()
            service.version = "2.0.0"  # a new version
            sidecar.wait_registered(times=2)
            assert stays("passing")
            service.stop()
            sidecar.wait_for("Service is DOWN")
            wait_until(lambda: stays("critical"))
            service.start()  # and a restart of the service
            sidecar.wait_registered(times=3)
            wait_until(lambda: stays("passing"))
            assert consul.passing() == []
            sidecar.assert_stops()  # and one of the sidecar
            assert sidecar.count("Service taken out of traffic") == 1
            assert stays("critical")
        with Sidecar(None, service, **settings) as sidecar:
            sidecar.wait_registered()
            wait_until(lambda: stays("passing"))
            consul.ask("PUT", enable.replace("true", "false")).raise_for_status()
            consul.ask("PUT", "/v1/agent/check/deregister/disk").raise_for_status()
            assert consul.wait_passing()[0]["Meta"]["version"] == "2.0.0"
            sidecar.assert_stops()
            assert consul.statuses() == {}
            assert sidecar.count("Service deregistered") == 1


def test_acls_ask_for_the_token_and_the_log_says_which_variable_to_set(
    tmp_path: Path, service: ToyService
) -> None:
    secret = tmp_path / "token"
    secret.write_text("wrong-token")
    with ConsulAgent(tmp_path, acl=True) as consul:
        consul.wait_leader()
        with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
            asked = "none is set .403: Permission denied.*set REGISTRY_TOKEN or REGISTRY_TOKEN_FILE"
            sidecar.wait_for(asked)
        with Sidecar(None, service, REGISTRY_URL=consul.url, REGISTRY_TOKEN_FILE=secret) as sidecar:
            sidecar.wait_for(
                "refuses the token .403: ACL not found.*that REGISTRY_TOKEN_FILE names"
            )
            assert consul.passing() == []
            secret.write_text(MASTER)
            consul.wait_passing()
            consul.forget(own_id(service))
            sidecar.wait_for(REMOVED)
            consul.wait_passing()
            consul.forget(own_id(service))
            assert sidecar.stop()[0] == 0
            assert sidecar.count("Service deregistered") == 1
            assert not re.search(f"wrong-token|{MASTER}", sidecar.log)
        assert not any(MASTER in str(request.headers) for request in service.requests)
