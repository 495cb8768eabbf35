"""A service that is well now and then: the way back takes two healthy probes in a row."""

import time

import pytest

from kit.peers.registry import Registry
from kit.peers.server import Answer, Request
from kit.peers.service import ToyService
from kit.sidecar import NAME, Sampler, Sidecar

PROBES = 12  # to watch while the service is down, one every second or two


class Flapping(ToyService):
    """Is healthy at one probe of so many (`every`), and at all of them where that is 1.

    `probes` counts them all, `good` has when the healthy ones came.
    """

    every = 1
    probes = 0

    def start(self) -> "Flapping":
        self.good: list[float] = []
        return super().start()

    def answer(self, request: Request) -> Answer:
        self.probes += 1
        self.healthy = self.probes % self.every == 0
        if self.healthy:
            self.good.append(request.at)
        return super().answer(request)


@pytest.mark.parametrize("every", [4, 10], ids=["3-of-4-fail", "9-of-10-fail"])
def test_one_good_probe_is_not_the_way_back(registry: Registry, every: int) -> None:
    with Flapping() as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.every = every
        sidecar.wait_for("Service is DOWN")
        before = service.probes
        time.sleep(registry.ttl)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            registry.wait_for(lambda: service.probes > before + PROBES, 60)
        assert len(sampler.absences) == sampler.samples
        assert registry.count("register") == 1
        assert sidecar.count("Service is READY again") == 0


def test_two_good_probes_in_a_row_are(registry: Registry) -> None:
    """At once after the second, which comes a second or two after the first."""
    with Flapping() as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.every = 10**6
        sidecar.wait_for("Service is DOWN")
        before = len(service.good)
        service.every = 1
        sidecar.wait_registered(times=2)
        assert sidecar.count("Service is READY again") == 1
        sent = [each.at for each in registry.requests if each.operation == "register"]
        first, second = service.good[before : before + 2]
        assert 0.9 < second - first < 2 + 1.5
        assert 0 < sent[-1] - second < 1
