"""The real `Agent` in simulated time: what reaches out of it is replaced, and nothing else.

Its states, schedule, backoff, jitter, probes and the meaning of answers are agent.py's. Replaced
are the clock and the sleep, the look at the network, the heartbeat file unless one is given, and
what carries an exchange.
"""

from collections.abc import Callable, Mapping

import agent
from kit.clock import Clock

# Carries one request and brings the answer; it is given the method, the path and the timeout.
Carrier = Callable[[str, str, float], agent.Answer]


class Undisturbed(agent.Signals):
    """Signals that never come: a pause is slept in one go, and this process's stay as they are."""

    def pause_until(self, end: float) -> None:
        self.sleep(max(end - self.clock(), 0.0))

    def mask(self) -> None:
        self.stopping = False

    def unmask(self) -> None:
        """Take none."""


class NoFile(agent.SignOfLife):
    """A sign of life that nobody sees."""

    def promise(self, duration: float) -> None:
        """Write no file."""


class NoNetwork(agent.Network):
    """A network that nobody looks at: real looks, at every simulated pause, would take hours."""

    def check(self) -> None:
        """Find it as it was."""


class Line(agent.Peer):
    """A way to a simulated peer: no socket is opened."""

    def __init__(self, url: str, signals: agent.Signals, carry: Carrier) -> None:
        super().__init__(url, signals, True, None)
        self.carry = carry

    def exchange(
        self, method: str, path: str, _headers: Mapping[str, str], _body: bytes, timeout: float
    ) -> agent.Answer:
        return self.carry(method, path, timeout)


def simulated_agent(
    settings: agent.Settings,
    clock: Clock,
    uniform: agent.Uniform,
    registry: Carrier,
    service: Carrier | None = None,
    life: agent.SignOfLife | None = None,
) -> agent.Agent:
    """Return the agent. Without a service, SERVICE_HEALTH_CHECK has to be none."""
    signals = Undisturbed(clock, clock.sleep)
    its_registry = agent.choose_registry(settings, signals)
    its_registry.peer = Line(settings.registry_url, signals, registry)
    its_service = agent.Service(settings, signals)
    if service:
        its_service.peer = Line(settings.health_url, signals, service)
    its_life = life or NoFile(settings.heartbeat_file, clock)
    network = NoNetwork(clock)
    return agent.Agent(
        settings, signals, its_registry, its_service, its_life, network, clock, uniform
    )
