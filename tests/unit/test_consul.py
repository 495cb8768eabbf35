"""Consul in place of the registry: what is sent to the embedded one, and what its answers mean."""

import re
import time
from collections.abc import Iterator

import pytest

import agent
from kit.parts import client, prober, read
from kit.peers.consul import UNKNOWN, Consul
from kit.sidecar import FOREVER, NAME, STOP_PROMISE

SECRET = {"REGISTRY_TOKEN": "secret"}
MANY = ",".join(f"k{n}=v" for n in range(65))


@pytest.fixture
def consul() -> Iterator[Consul]:
    """Consul, whose ACLs want a token."""
    with Consul(token="secret") as peer:
        yield peer


def asker(consul: Consul, **variables: object) -> agent.Registry:
    """Return what speaks with it."""
    return client(**{"REGISTRY_URL": consul.consul_url} | SECRET | variables)


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
    assert agent.web_url(read(None, None, REGISTRY_URL=url).registry_url) == reached


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"SERVICE_METADATA": "a b=1"}, "SERVICE_METADATA='a b=1': for Consul, set it to"),
        ({"SERVICE_METADATA": "consul-a=1"}, "SERVICE_METADATA=consul-a=1: for Consul"),
        ({"SERVICE_METADATA": "a=" + 180 * "€"}, "SERVICE_METADATA=a=€.*for Consul"),
        ({"SERVICE_METADATA": MANY}, "SERVICE_METADATA=.*at most 64 pairs"),
        ({"SERVICE_ID": "a/b"}, "SERVICE_ID=a/b: set it to"),
        ({"REGISTRY_URL": "consul:///"}, "REGISTRY_URL=consul:///: set it to"),
    ],
)
def test_what_consul_cannot_take_is_refused_at_start(variables: dict[str, str], named: str) -> None:
    with pytest.raises(agent.SettingsError) as refused:
        read(None, None, **{"REGISTRY_URL": "consul://127.0.0.1:1"} | variables)
    (problem,) = refused.value.args
    assert re.match(named, agent.say_problem(*problem))


# ---- the record


@pytest.mark.parametrize("wording", UNKNOWN)
def test_the_record_comes_and_goes_and_is_missed_in_each_version_s_wording(
    consul: Consul, caplog: pytest.LogCaptureFixture, wording: str
) -> None:
    consul.wording = wording
    registry = asker(consul, SERVICE_ID="osint:1", SERVICE_METADATA="zone=eu", HEARTBEAT_INTERVAL=2)
    assert registry.look(5).meaning == registry.prove_token(5).meaning == agent.LOST
    assert registry.heartbeat(5).meaning == agent.LOST
    assert {request.operation for request in consul.requests} == {"get", "heartbeat"}
    # A version of so many bytes is too long for Consul.
    metadata = {"zone": "eu", "status": "healthy", "version": "€" * 200}
    assert registry.register(metadata, 5).meaning == agent.ACCEPTED
    check = {"TTL": "4s", "Status": "passing", "DeregisterCriticalServiceAfter": "1m"}
    assert consul.records == {
        "osint:1": {
            "ID": "osint:1", "Name": NAME, "Address": "127.0.0.1", "Port": 8080,
            "Tags": [], "Meta": {"zone": "eu", "status": "healthy"}, "Check": check,
        }
    }  # fmt: skip
    assert "version is left out of the record" in caplog.text
    assert registry.look(5).meaning == registry.heartbeat(5).meaning == agent.ACCEPTED
    assert registry.deregister(5).meaning == agent.ACCEPTED
    assert consul.records == {}
    assert registry.deregister(5).meaning == agent.ACCEPTED  # it is gone, and that is all
    assert registry.look(5).meaning == agent.LOST
    assert {request.headers.get("X-Consul-Token") for request in consul.requests} == {"secret"}
    assert consul.count("other") == 0


def test_a_refused_token_is_told(consul: Consul) -> None:
    registry = asker(consul, REGISTRY_TOKEN="wrong")
    for answer in (registry.look(5), registry.prove_token(5), registry.register({}, 5)):
        assert answer.meaning == agent.REFUSED
        assert "refuses the token (403: Permission denied)" in answer.advice
    consul.play("heartbeat", ["status", 500, "ACL not found"])  # by its words alone
    assert registry.heartbeat(5).meaning == agent.REFUSED


@pytest.mark.parametrize(
    ("metadata", "meta"),
    [
        ("zone=eu", {"scheme": "https", "secure": "true", "zone": "eu"}),
        ("secure=false,scheme=h2", {"scheme": "h2", "secure": "false"}),  # a user comes first
    ],
)
def test_the_record_of_an_https_service_says_so_and_has_the_tags(
    consul: Consul, metadata: str, meta: dict[str, str]
) -> None:
    settings = {"SERVICE_SCHEME": "https", "SERVICE_METADATA": metadata}
    tags = "urlprefix-/osint, traefik.enable=true"
    told = prober(**settings).metadata
    assert asker(consul, SERVICE_TAGS=tags, **settings).register(told, 5).meaning == agent.ACCEPTED
    (record,) = consul.records.values()
    assert record["Meta"] == meta
    assert record["Tags"] == ["urlprefix-/osint", "traefik.enable=true"]


def test_a_record_that_is_another_service_s_is_told_and_is_no_loss(consul: Consul) -> None:
    one, other = (
        asker(consul, SERVICE_ID="osint:1", SERVICE_NAME=name) for name in ("one", "another")
    )
    one.register({}, 5)
    assert one.look(5).advice == ""
    other.register({}, 5)
    assert other.look(5).advice == ""
    answer = one.look(5)
    assert answer.meaning == agent.ACCEPTED
    assert re.search("osint:1.*another.*SERVICE_ID", answer.advice)


# ---- what others have put on the record


def test_a_record_with_somebody_else_s_checks_is_left_and_critical(consul: Consul) -> None:
    registry = asker(consul, SERVICE_ID="osint:1")
    registry.register({}, 5)
    others = {"osint:1": {"_service_maintenance:osint:1": "critical"}}
    consul.others |= others
    answer = registry.deregister(5)
    assert answer.meaning == agent.ACCEPTED
    assert "out of traffic" in answer.advice
    assert (consul.status("osint:1"), consul.count("deregister")) == ("critical", 0)
    registry.register({}, 5)
    # Consul leaves a check critical that was, so a registration alone would not do.
    assert consul.status("osint:1") == "passing"
    assert consul.others == others
    consul.others.clear()
    assert registry.deregister(5).meaning == agent.ACCEPTED
    assert consul.records == {}


@pytest.mark.parametrize("fault", ["hang", "reset", "status_500", "huge_body", "garbage"])
def test_a_look_for_checks_that_fails_holds_no_deregistration_up(
    consul: Consul, fault: str
) -> None:
    registry = asker(consul)
    registry.register({}, 5)
    consul.play("checks", fault, times=FOREVER)
    began = time.monotonic()
    assert registry.deregister(agent.STOP_TIMEOUT).meaning == agent.ACCEPTED
    assert time.monotonic() - began < STOP_PROMISE
    assert consul.records == {}
