"""The agent's parts in this process, to be asked one by one; what they ask is a real server.

What needs no loop, log or signal needs no process either.
"""

import agent
from kit.peers.server import Peer
from kit.sidecar import NAME, unreadable

LONGEST = 400  # characters of what is said of an answer


def read(registry: Peer | None, service: Peer | None, /, **variables: object) -> agent.Settings:
    """Return the settings for these peers, as of an agent that begins now: it knows no secrets."""
    agent.secrets.clear()
    places: dict[str, object] = {"SERVICE_NAME": NAME, "SERVICE_HOST": "127.0.0.1"}
    if registry is not None:
        places["REGISTRY_URL"] = registry.url
    if service is not None:
        places["SERVICE_PORT"] = service.port
    settings = agent.read_settings({key: str(each) for key, each in (places | variables).items()})
    agent.keep_credentials(settings)
    return settings


def client(
    registry: Peer | None = None, signals: agent.Signals | None = None, /, **variables: object
) -> agent.Registry:
    """Return what speaks with a registry."""
    return agent.choose_registry(read(registry, None, **variables), signals or agent.Signals())


def prober(service: Peer | None = None, /, **variables: object) -> agent.Service:
    """Return what probes a service."""
    return agent.Service(read(None, service, **variables), agent.Signals())


def problem_of(service: Peer, /, **variables: object) -> str:
    """Return what is said of a first probe, which fails."""
    asked = prober(service, **variables)
    assert not asked.probe()
    return fit(asked.problem)


def advice_of(registry: Peer, /, **variables: object) -> str:
    """Return what is said of a first registration, which fails."""
    asked = client(registry, **variables)
    answer = asked.register({}, asked.settings.registry_timeout)
    assert answer.meaning not in (agent.ACCEPTED, agent.LOST)
    return fit(answer.advice)


def fit(line: str) -> str:
    """Check that it is fit for the log, and for people; return it."""
    assert line.isprintable()
    assert len(line) < LONGEST
    assert unreadable([line]) == []
    return line
