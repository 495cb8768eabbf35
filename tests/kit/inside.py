"""The agent's own exchanges with real peers, in the process of the test: what it makes of answers.

What needs no loop, log or signal needs no process either.
"""

import agent
from kit.peers.server import Peer
from kit.sidecar import NAME, unreadable

LONGEST = 400  # characters of what is said of an answer


def settings(**variables: object) -> agent.Settings:
    """Return the settings of an agent that begins now: it knows no secrets but its own."""
    agent.secrets.clear()
    needed = {"SERVICE_NAME": NAME, "SERVICE_HOST": "127.0.0.1"}
    read = agent.read_settings(needed | {name: str(value) for name, value in variables.items()})
    for name in ("registry_url", "service_health_endpoint"):
        agent.keep_secret(name, agent.url_secrets(getattr(read, name)))
    return read


def registry_at(peer: Peer, **variables: object) -> agent.Registry:
    """Return what speaks with a registry."""
    return agent.choose_registry(
        settings(**{"REGISTRY_URL": peer.url} | variables), agent.Signals()
    )


def service_at(peer: Peer, **variables: object) -> agent.Service:
    """Return what probes a service."""
    return agent.Service(settings(SERVICE_PORT=peer.port, **variables), agent.Signals())


def problem_at(peer: Peer, **variables: object) -> str:
    """Return what is said of a first probe, which fails."""
    service = service_at(peer, **variables)
    assert not service.probe()
    return fit(service.problem)


def advice_at(peer: Peer, **variables: object) -> str:
    """Return what is said of a first registration, which fails."""
    registry = registry_at(peer, **variables)
    answer = registry.register({}, registry.settings.registry_timeout)
    assert answer.meaning not in (agent.ACCEPTED, agent.LOST)
    return fit(answer.advice)


def fit(line: str) -> str:
    """Check that it is fit for the log, and for people; return it."""
    assert line.isprintable()
    assert len(line) < LONGEST
    assert unreadable([line]) == []
    return line
