"""The agent's parts in this process, to be asked one by one; what they ask is a real server."""

import agent
from kit.peers.server import Peer
from kit.sidecar import NAME


def read(registry: Peer | None, service: Peer | None, /, **variables: object) -> agent.Settings:
    """Return the settings for these peers, as a Sidecar has them."""
    places: dict[str, object] = {"SERVICE_NAME": NAME, "SERVICE_HOST": "127.0.0.1"}
    if registry is not None:
        places["REGISTRY_URL"] = registry.url
    if service is not None:
        places["SERVICE_PORT"] = service.port
    return agent.read_settings({key: str(each) for key, each in (places | variables).items()})


def client(
    registry: Peer | None = None, signals: agent.Signals | None = None, /, **variables: object
) -> agent.Registry:
    """Return what speaks with a registry."""
    return agent.choose_registry(read(registry, None, **variables), signals or agent.Signals())


def prober(service: Peer | None = None, /, **variables: object) -> agent.Service:
    """Return what probes a service."""
    return agent.Service(read(None, service, **variables), agent.Signals())
