"""Consul behind the same states: the embedded one, and the real one where there is a `consul`.

What is sent, and what its answers mean: unit/test_consul.py.
"""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.consul import MASTER, ConsulAgent
from kit.peers.consul import Consul
from kit.peers.server import Peer
from kit.peers.service import ToyService
from kit.sidecar import Sampler, Sidecar, odd_lines, wait_until

NO_LEADER = ('""', "No cluster leader")
REMOVED = "Service not found \\(404\\): the registry has lost the record"


def own_id(service: Peer) -> str:
    return f"osint_service-127.0.0.1-{service.port}"


def test_losses_and_others_are_told_and_no_token(service: ToyService) -> None:
    """With a maintenance on the record, which outlives the sidecar."""
    with Consul(wording="old with ACLs", token="secret") as consul:
        settings = {"REGISTRY_URL": consul.consul_url, "REGISTRY_TOKEN": "secret"}
        with Sidecar(None, service, HEARTBEAT_INTERVAL=0.5, **settings) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            consul.records.clear()
            sidecar.wait_for(REMOVED)
            sidecar.wait_registered(times=2)
            record = own_id(service)
            consul.records[record]["Port"] = 1
            sidecar.wait_for(f" WARNING The record {record} is another's .* 1")
            consul.others[record] = {f"_service_maintenance:{record}": "critical"}
            sidecar.assert_stops()
            assert sidecar.count("Service taken out of traffic") == 1
            assert sidecar.count("Service registered successfully") == 2  # the other is no loss
            assert "secret" not in sidecar.log
            assert odd_lines(sidecar.lines) == []
        assert not any("secret" in str(request.headers) for request in service.requests)


# ---- the real one


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """A real server on its own, ready."""
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as server:
        yield server.wait_leader()


@pytest.fixture
def consul(server: ConsulAgent) -> ConsulAgent:
    """The server, without what a test that failed has left there."""
    for record in server.get("/v1/agent/services") or {}:
        server.forget(record)
    server.wait_passing(0)
    return server


@pytest.mark.slow
def test_replicas_stand_side_by_side_and_each_comes_and_goes_for_itself(
    consul: ConsulAgent,
) -> None:
    settings = {"REGISTRY_URL": consul.url, "HEARTBEAT_INTERVAL": 1, "SERVICE_TAGS": "a,b"}
    with (
        ToyService() as first,
        ToyService() as second,
        Sidecar(None, first, SERVICE_METADATA="zone=eu", **settings) as one,
        Sidecar(None, second, **settings) as two,
    ):
        records = {record["ID"]: record for record in consul.wait_passing(2)}
        record = records[own_id(first)]
        assert (record["Address"], record["Port"]) == ("127.0.0.1", first.port)
        assert record["Meta"] == {"version": "1.0.0", "status": "healthy", "zone": "eu"}
        assert record["Tags"] == ["a", "b"]
        with Sampler(consul.passing, every=0.1) as sampler:
            one.wait_for("Heartbeat accepted", times=12, timeout=40)  # with a look among them
        assert sampler.samples > 50
        assert sampler.absences == []
        assert not one.count(" WARNING ")

        consul.forget(own_id(first))
        one.wait_for(REMOVED)
        assert len(consul.wait_passing(2)) == 2

        with Sampler(
            lambda: own_id(second) in {r["ID"] for r in consul.passing()}, every=0.05
        ) as sampler:
            one.assert_stops()
            assert [r["ID"] for r in consul.passing()] == [own_id(second)]  # gone at once
            two.wait_for("Heartbeat accepted", times=two.count("Heartbeat accepted") + 2)
        assert sampler.absences == []
        assert one.count("Service deregistered") == 1


@pytest.mark.slow
def test_a_dead_service_is_critical_and_what_an_operator_has_set_outlives_all(
    consul: ConsulAgent, service: ToyService
) -> None:
    record = own_id(service)
    own, maintenance = f"service:{record}", f"_service_maintenance:{record}"

    def stays(status: str) -> bool:
        """Tell whether the operator's checks are there, and the sidecar's has that status."""
        found = consul.statuses()
        assert found.items() >= {maintenance: "critical", "disk": "warning"}.items()
        return found.get(own) == status

    with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        consul.wait_passing()
        service.stop()
        died = time.monotonic()
        consul.wait_passing(0)
        # The TTL, and what Consul takes to see that it is over.
        assert time.monotonic() - died < 4 + 2
        assert consul.statuses() == {own: "critical"}
        sidecar.wait_for("Service is DOWN")
        service.version = "2.0.0"
        service.start()
        assert consul.wait_passing()[0]["Meta"]["version"] == "2.0.0"

        sidecar.process.send_signal(signal.SIGSTOP)  # frozen: critical until it goes on
        consul.wait_passing(0)
        sidecar.process.send_signal(signal.SIGCONT)
        sidecar.wait_for("No heartbeat accepted for two intervals; registering again")
        consul.wait_passing()

        enable = f"/v1/agent/service/maintenance/{record}?enable=true&reason=disk"
        consul.ask("PUT", enable).raise_for_status()
        disk = {"Name": "disk", "ID": "disk", "ServiceID": record, "TTL": "1h", "Status": "warning"}
        consul.ask("PUT", "/v1/agent/check/register", json=disk).raise_for_status()
        service.version = "3.0.0"  # a new version
        sidecar.wait_for(r"Service registered .*3\.0\.0")
        assert stays("passing")
        service.stop()
        sidecar.wait_for("Service is DOWN", times=2)
        wait_until(lambda: stays("critical"))
        service.start()  # and a restart of the service
        wait_until(lambda: stays("passing"))
        assert consul.passing() == []
        assert sidecar.stop()[0] == 0  # and one of the sidecar
        assert stays("critical")
    with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        sidecar.wait_registered()
        wait_until(lambda: stays("passing"))
        consul.ask("PUT", enable.replace("true", "false")).raise_for_status()
        consul.ask("PUT", "/v1/agent/check/deregister/disk").raise_for_status()
        assert consul.wait_passing()[0]["Meta"]["version"] == "3.0.0"
        assert sidecar.stop()[0] == 0
        assert consul.statuses() == {}
        assert sidecar.count("Service deregistered") == 1


@pytest.mark.slow
def test_an_agent_that_was_killed_has_the_record_again_when_it_is_back(
    consul: ConsulAgent, service: ToyService
) -> None:
    """With its data, then without."""
    with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        for times, empty in enumerate((False, True), 1):
            consul.wait_passing()
            consul.kill()
            sidecar.wait_for("failed .attempt 2.*connection refused", times)
            sidecar.wait_health("registry unreachable")
            consul.start(empty)
            sidecar.wait_for("Registry is back", times, timeout=60)
            consul.wait_leader()
            assert [record["ID"] for record in consul.wait_passing()] == [own_id(service)]
        assert odd_lines(sidecar.lines) == []


@pytest.mark.slow
def test_a_lost_leader_costs_no_heartbeat(tmp_path: Path, service: ToyService) -> None:
    """One of two servers alone is no leader."""
    with (
        ConsulAgent(tmp_path, servers=2) as first,
        ConsulAgent(tmp_path, servers=2, join=first) as second,
        Sidecar(None, service, REGISTRY_URL=first.wait_leader().url) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted", times=3)
        second.kill()
        wait_until(lambda: first.ask("GET", "/v1/status/leader").text in NO_LEADER, 30, every=0.1)
        beats = sidecar.count("Heartbeat accepted")
        sidecar.wait_for("Heartbeat accepted", times=beats + 5, timeout=30)
        assert sidecar.count("WARNING|ERROR") == 0


@pytest.mark.slow
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
