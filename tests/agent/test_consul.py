"""Consul behind the same states.

Against the real one where there is a `consul`, and against the embedded one.
"""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agent
from kit.consul import MASTER, ConsulAgent
from kit.peers.consul import UNKNOWN, Consul
from kit.peers.server import Answer, Peer, Request
from kit.sidecar import (
    FOREVER,
    NAME,
    Sampler,
    Sidecar,
    ToyService,
    odd_lines,
    run_agent,
    wait_until,
)

NO_LEADER = ('""', "No cluster leader")
BOTH = {"SERVICE_NAME": NAME, "SERVICE_HOST": "vertice-osint"}
REMOVED = "Service not found \\(404\\): the registry has lost the record"


def own_id(service: Peer) -> str:
    return f"{NAME}-127.0.0.1-{service.port}"


# ---- the embedded one


@pytest.fixture
def consul_peer() -> Iterator[Consul]:
    with Consul() as peer:
        yield peer


@pytest.mark.parametrize(
    ("url", "reached"),
    [
        ("consul://consul", "http://consul:8500"),
        ("consul://consul:", "http://consul:8500"),
        ("Consul://consul:80/prefix/", "http://consul:80/prefix"),
        ("consul://[::1]", "http://[::1]:8500"),
        ("consul-tls://key@consul", "https://key@consul:8500"),
        ("http://consul", "http://consul"),
    ],
)
def test_where_consul_is_reached(url: str, reached: str) -> None:
    assert agent.web_url(agent.read_settings(BOTH | {"REGISTRY_URL": url}).registry_url) == reached


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"SERVICE_METADATA": "a b=1"}, "SERVICE_METADATA='a b=1': for Consul, set it to"),
        ({"SERVICE_METADATA": "consul-a=1"}, "SERVICE_METADATA=consul-a=1: for Consul"),
        ({"SERVICE_METADATA": "a=" + 180 * "€"}, "SERVICE_METADATA=a=€.*for Consul"),
        (
            {"SERVICE_METADATA": ",".join(f"k{n}=v" for n in range(65))},
            "SERVICE_METADATA=.*at most 64 pairs",
        ),
        ({"SERVICE_ID": "a/b"}, "SERVICE_ID=a/b: set it to"),
        ({"REGISTRY_URL": "consul:///"}, "REGISTRY_URL=consul:///: set it to"),
    ],
)
def test_what_consul_cannot_take_is_refused_at_start(variables: dict[str, str], named: str) -> None:
    done = run_agent(BOTH | {"REGISTRY_URL": "consul://127.0.0.1:1"} | variables)
    assert done.returncode == 2
    assert re.search(f"Bad setting: {named}", done.stdout)
    assert odd_lines(done.stdout.splitlines()) == []


def test_consul_s_ttl_follows_the_interval_so_a_long_one_is_no_doubt() -> None:
    variables = BOTH | {"HEARTBEAT_INTERVAL": "600", "REGISTRY_URL": "consul://consul"}
    assert agent.doubts_about(agent.read_settings(variables), variables) == []


@pytest.mark.parametrize("wording", UNKNOWN)
def test_a_lost_record_comes_back_in_each_version_s_wording(
    wording: str, service: ToyService
) -> None:
    service.version = "€" * 200  # is too long for Consul, in bytes
    with Consul(wording=wording, token="secret") as consul:
        settings = {
            "REGISTRY_URL": consul.consul_url,
            "REGISTRY_TOKEN": "secret",
            "SERVICE_METADATA": "zone=eu",
        }
        with Sidecar(None, service, SERVICE_ID="osint:1", **settings) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            check = {"TTL": "4s", "Status": "passing", "DeregisterCriticalServiceAfter": "1m"}
            assert consul.records == {
                "osint:1": {
                    "ID": "osint:1", "Name": NAME, "Address": "127.0.0.1", "Port": service.port,
                    "Tags": [], "Meta": {"zone": "eu", "status": "healthy"}, "Check": check,
                }
            }  # fmt: skip
            sidecar.wait_for("WARNING version is left out of the record")
            consul.records.clear()
            sidecar.wait_for(REMOVED)
            sidecar.wait_registered(times=2)
            consul.records.clear()
            assert sidecar.stop()[0] == 0
            sidecar.wait_for("Service deregistered")
            assert "secret" not in sidecar.log
            assert odd_lines(sidecar.lines) == []
        assert {request.headers.get("X-Consul-Token") for request in consul.requests} == {"secret"}
        assert consul.count("other") == 0
        assert not any("secret" in str(request.headers) for request in service.requests)


class Place(Peer):
    """Sends everybody somewhere else."""

    target = ""

    def answer(self, _request: Request) -> Answer:
        return Answer(307, None, {"Location": self.target})


def test_the_token_goes_nowhere_but_to_consul(service: ToyService) -> None:
    with Peer() as elsewhere, Place() as place:
        place.target = elsewhere.url
        url = place.url.replace("http", "consul")
        with Sidecar(None, service, REGISTRY_URL=url, REGISTRY_TOKEN="secret") as sidecar:
            sidecar.wait_for(
                "answered 307, a redirect to .*, which is not followed.*set REGISTRY_URL"
            )
        assert elsewhere.count() == 0


def test_a_look_asks_for_the_record() -> None:
    with Consul(token="secret") as consul:
        variables = BOTH | {"REGISTRY_URL": consul.consul_url, "REGISTRY_TOKEN": "secret"}
        registry = agent.choose_registry(agent.read_settings(variables), agent.Signals())
        assert registry.look(5).meaning == agent.LOST
        assert registry.register({}, 5).meaning == registry.look(5).meaning == agent.ACCEPTED
        consul.token = "other"
        assert registry.look(5).meaning == agent.REFUSED
        consul.token = "secret"
        assert registry.deregister(5).meaning == agent.ACCEPTED
        assert registry.look(5).meaning == agent.LOST


def test_check_asks_consul_and_tells_of_a_refused_token(service: ToyService) -> None:
    with Consul(token="secret") as consul:
        place = {
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": service.port,
            "REGISTRY_URL": consul.consul_url,
        }
        done = run_agent(BOTH | place | {"REGISTRY_TOKEN": "secret"}, "--check")
        assert (done.returncode, "fine, osint_service is not yet listed" in done.stdout) == (
            0,
            True,
        )
        done = run_agent(BOTH | place | {"REGISTRY_TOKEN": "wrong"}, "--check")
        assert (done.returncode, "refuses the token (403: Permission denied)" in done.stdout) == (
            1,
            True,
        )
        assert {request.operation for request in consul.requests} == {"get"}


# ---- what a record tells of the service


def test_the_record_of_an_https_service_says_so_and_has_the_tags(consul_peer: Consul) -> None:
    settings: dict[str, Any] = {
        "REGISTRY_URL": consul_peer.consul_url,
        "SERVICE_PORT": 8443,
        "SERVICE_SCHEME": "https",
        "SERVICE_HEALTH_CHECK": "none",
        "SERVICE_TAGS": "urlprefix-/osint, traefik.enable=true",
        "SERVICE_METADATA": "zone=eu",
    }
    with Sidecar(None, None, **settings) as sidecar:
        sidecar.wait_registered()
        (record,) = consul_peer.records.values()
        assert record["Meta"] == {"scheme": "https", "secure": "true", "zone": "eu"}
        assert record["Tags"] == ["urlprefix-/osint", "traefik.enable=true"]
        assert not sidecar.count(" WARNING ")


def test_what_a_user_says_of_the_scheme_comes_first(consul_peer: Consul) -> None:
    settings: dict[str, Any] = {
        "REGISTRY_URL": consul_peer.consul_url,
        "SERVICE_SCHEME": "https",
        "SERVICE_HEALTH_CHECK": "none",
        "SERVICE_METADATA": "secure=false,scheme=h2",
    }
    with Sidecar(None, None, **settings) as sidecar:
        sidecar.wait_registered()
        (record,) = consul_peer.records.values()
        assert record["Meta"] == {"scheme": "h2", "secure": "false"}


# ---- two sidecars with one ID


def test_a_record_that_is_another_service_s_is_told_in_every_ninth_heartbeat(
    consul_peer: Consul, service: ToyService
) -> None:
    settings: dict[str, Any] = {
        "REGISTRY_URL": consul_peer.consul_url,
        "SERVICE_ID": "osint:1",
        "HEARTBEAT_INTERVAL": 0.5,
    }
    others = r" WARNING .*osint:1.*another"
    with ToyService() as other, Sidecar(None, service, **settings) as first:
        first.wait_for("Heartbeat accepted", times=12)
        assert consul_peer.count("get") >= 1
        assert not first.count(others)
        with Sidecar(None, other, SERVICE_NAME="another_service", **settings) as second:
            second.wait_registered()
            line = first.wait_for(others)
            assert "SERVICE_ID" in line
            began = first.count("Heartbeat accepted")
            first.wait_for(others, times=2, timeout=30)
            assert first.count("Heartbeat accepted") - began >= 5
            second.wait_for("Heartbeat accepted", times=12)
            assert not second.count(others)
            assert first.count("Service registered successfully") == 1  # it is no loss


# ---- what others have put on the record


def test_a_record_with_somebody_else_s_checks_is_left_and_critical(
    consul_peer: Consul, service: ToyService
) -> None:
    record, maintenance = own_id(service), f"_service_maintenance:{own_id(service)}"
    settings: dict[str, Any] = {"REGISTRY_URL": consul_peer.consul_url, "HEARTBEAT_INTERVAL": 30}
    with Sidecar(None, service, **settings) as sidecar:
        sidecar.wait_registered()
        consul_peer.others[record] = {maintenance: "critical"}
        code, seconds = sidecar.stop()
        assert (code, seconds < 3) == (0, True)
        assert consul_peer.status(record) == "critical"
        assert consul_peer.count("deregister") == 0
        assert odd_lines(sidecar.lines) == []
    with Sidecar(None, service, **settings) as sidecar:
        sidecar.wait_registered()
        # Consul leaves a check critical that was, so a registration alone would not do.
        wait_until(lambda: consul_peer.status(record) == "passing", 5)
        assert consul_peer.others == {record: {maintenance: "critical"}}
        consul_peer.others.clear()
        assert sidecar.stop()[0] == 0
        assert consul_peer.records == {}
        assert sidecar.count("Service deregistered") == 1


@pytest.mark.parametrize("fault", ["hang", "reset", "status_500", "huge_body", "garbage"])
def test_a_look_for_checks_that_fails_holds_no_stop_up(
    consul_peer: Consul, service: ToyService, fault: str
) -> None:
    consul_peer.play("checks", fault, times=FOREVER)
    with Sidecar(None, service, REGISTRY_URL=consul_peer.consul_url) as sidecar:
        sidecar.wait_registered()
        code, seconds = sidecar.stop()
        assert (code, seconds < 3) == (0, True)


# ---- the real one


@pytest.fixture
def consul(tmp_path: Path) -> Iterator[ConsulAgent]:
    """A real server on its own, ready."""
    with ConsulAgent(tmp_path) as server:
        yield server.wait_leader()


@pytest.mark.slow
def test_replicas_stand_side_by_side_and_each_comes_and_goes_for_itself(
    consul: ConsulAgent,
) -> None:
    with ToyService() as first, ToyService() as second:
        urls = {"REGISTRY_URL": consul.url}
        with (
            Sidecar(None, first, SERVICE_METADATA="zone=eu", **urls) as one,
            Sidecar(None, second, **urls) as two,
        ):
            records = {record["ID"]: record for record in consul.wait_passing(2)}
            record = records[own_id(first)]
            assert (record["Address"], record["Port"]) == ("127.0.0.1", first.port)
            assert record["Meta"] == {"version": "1.0.0", "status": "healthy", "zone": "eu"}
            with Sampler(consul.passing, every=0.1) as sampler:
                one.wait_for("Heartbeat accepted", times=8, timeout=40)
            assert sampler.samples > 50
            assert sampler.absences == []

            consul.forget(own_id(first))
            one.wait_for(REMOVED)
            assert len(consul.wait_passing(2)) == 2

            with Sampler(
                lambda: own_id(second) in {r["ID"] for r in consul.passing()}, every=0.05
            ) as sampler:
                code, seconds = one.stop()
                assert [r["ID"] for r in consul.passing()] == [own_id(second)]  # gone at once
                two.wait_for("Heartbeat accepted", times=two.count("Heartbeat accepted") + 2)
            assert (code, seconds < 3) == (0, True)
            assert sampler.absences == []
            assert one.count("Service deregistered") == 1


@pytest.mark.slow
def test_a_dead_service_is_critical_after_its_ttl_and_passes_when_it_is_back(
    consul: ConsulAgent,
) -> None:
    with ToyService() as service, Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        consul.wait_passing()
        service.stop()
        died = time.monotonic()
        consul.wait_passing(0)
        assert (
            time.monotonic() - died < 4 + 2
        )  # the TTL, and what Consul takes to see that it is over
        assert consul.known() == ["critical"]
        sidecar.wait_for("Service is DOWN")
        service.version = "2.0.0"
        service.start()
        assert consul.wait_passing()[0]["Meta"]["version"] == "2.0.0"

        sidecar.process.send_signal(signal.SIGSTOP)  # frozen: critical until it goes on
        consul.wait_passing(0)
        sidecar.process.send_signal(signal.SIGCONT)
        sidecar.wait_for("No heartbeat accepted for two intervals; registering again")
        consul.wait_passing()


def statuses(consul: ConsulAgent, record: str) -> dict[str, str]:
    """Return the statuses of all checks of a record, by their IDs."""
    checks = (consul.get("/v1/agent/checks") or {}).values()
    return {each["CheckID"]: each["Status"] for each in checks if each["ServiceID"] == record}


@pytest.mark.slow
def test_maintenance_and_an_operator_s_check_outlive_all_that_the_sidecar_does(
    consul: ConsulAgent, service: ToyService
) -> None:
    record = own_id(service)
    own, maintenance = f"service:{record}", f"_service_maintenance:{record}"
    others = {maintenance: "critical", "disk": "warning"}

    def stays(status: str) -> bool:
        """Tell whether the operator's checks are there, and the sidecar's has that status."""
        found = statuses(consul, record)
        assert found.items() >= others.items()
        return found.get(own) == status

    with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        consul.wait_passing()
        enable = f"/v1/agent/service/maintenance/{record}?enable=true&reason=disk"
        consul.ask("PUT", enable).raise_for_status()
        disk = {"Name": "disk", "ID": "disk", "ServiceID": record, "TTL": "1h", "Status": "warning"}
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
        assert sidecar.stop()[0] == 0  # and one of the sidecar
        assert stays("critical")
    with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        sidecar.wait_registered()
        wait_until(lambda: stays("passing"))
        consul.ask("PUT", enable.replace("true", "false")).raise_for_status()
        consul.ask("PUT", "/v1/agent/check/deregister/disk").raise_for_status()
        assert consul.wait_passing()[0]["Meta"]["version"] == "2.0.0"
        assert sidecar.stop()[0] == 0
        assert consul.known() == []
        assert sidecar.count("Service deregistered") == 1


@pytest.mark.slow
def test_the_real_one_takes_tags_and_tells_of_another_service_s_record(
    consul: ConsulAgent, service: ToyService
) -> None:
    settings: dict[str, Any] = {
        "REGISTRY_URL": consul.url,
        "SERVICE_ID": "osint:1",
        "SERVICE_TAGS": "a,b",
        "SERVICE_SCHEME": "https",
        "SERVICE_HEALTH_CHECK": "none",
        "HEARTBEAT_INTERVAL": 0.5,
    }
    with Sidecar(None, service, **settings) as first:
        (record,) = consul.wait_passing()
        assert record["Tags"] == ["a", "b"]
        assert record["Meta"].items() >= {"scheme": "https", "secure": "true"}.items()
        first.wait_for("Heartbeat accepted", times=12)
        others = r" WARNING .*osint:1.*another"
        assert not first.count(others)
        with ToyService() as other, Sidecar(None, other, **settings) as second:
            second.wait_registered()
            first.wait_for(others)


@pytest.mark.slow
@pytest.mark.parametrize("empty", [True, False], ids=["empty", "with its data"])
def test_an_agent_that_was_killed_has_the_record_again_when_it_is_back(
    consul: ConsulAgent, empty: bool
) -> None:
    with ToyService() as service, Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
        consul.wait_passing()
        consul.kill()
        sidecar.wait_for("failed .attempt 2.*connection refused")
        sidecar.wait_health("registry unreachable")
        consul.start(empty)
        sidecar.wait_for("Registry is back", timeout=60)
        consul.wait_leader()
        assert [record["ID"] for record in consul.wait_passing()] == [own_id(service)]
        assert odd_lines(sidecar.lines) == []


@pytest.mark.slow
def test_a_lost_leader_costs_no_heartbeat(tmp_path: Path) -> None:
    """One of two servers alone is no leader."""
    with (
        ConsulAgent(tmp_path, servers=2) as first,
        ConsulAgent(tmp_path, servers=2, join=first) as second,
        ToyService() as service,
        Sidecar(None, service, REGISTRY_URL=first.wait_leader().url) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted", times=3)
        second.kill()
        wait_until(lambda: first.ask("GET", "/v1/status/leader").text in NO_LEADER, 30, every=0.1)
        beats = sidecar.count("Heartbeat accepted")
        sidecar.wait_for("Heartbeat accepted", times=beats + 5, timeout=30)
        assert sidecar.count("WARNING|ERROR") == 0


@pytest.mark.slow
def test_acls_ask_for_the_token_and_the_log_says_which_variable_to_set(tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("wrong-token")
    with ConsulAgent(tmp_path, acl=True) as consul, ToyService() as service:
        consul.wait_leader()
        with Sidecar(None, service, REGISTRY_URL=consul.url) as sidecar:
            sidecar.wait_for(
                "none is set .403: Permission denied.*set REGISTRY_TOKEN or REGISTRY_TOKEN_FILE"
            )
        with Sidecar(None, service, REGISTRY_URL=consul.url, REGISTRY_TOKEN_FILE=secret) as sidecar:
            sidecar.wait_for(
                "refuses the token .403: ACL not found.*the file that REGISTRY_TOKEN_FILE names"
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
