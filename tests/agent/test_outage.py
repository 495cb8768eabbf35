"""A registry that takes some requests and not others, while the service lives or dies."""

import time

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sampler, Sidecar, wait_until

INTERVAL = 2.0
TTL = 2 * INTERVAL


def test_a_service_that_died_in_an_outage_is_not_put_back(registry: Registry) -> None:
    """Retries of a heartbeat probe no more, but the registration that follows them does."""
    with ToyService() as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", "status_503", times=FOREVER)
        sidecar.wait_for("Heartbeat failed")
        service.stop()  # right after the probe of this slot
        sidecar.wait_for("Service is DOWN", timeout=3 * TTL)
        time.sleep(TTL)
        assert registry.record(NAME) is None
        assert registry.count("register") == 1
        service.start()
        sidecar.wait_registered(times=2)
        assert registry.record(NAME)


def test_registrations_alone_keep_the_record_without_a_gap(
    registry: Registry, service: ToyService
) -> None:
    """What is left of the record's life is used: the registration comes before its end."""
    registry.play("heartbeat", "status_503", times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_registered(times=5, timeout=8 * TTL)
        assert not sampler.absences
        assert sampler.samples > 100


def test_registrations_in_place_of_heartbeats_are_few(
    registry: Registry, service: ToyService
) -> None:
    """They come when the record's life is at its end, not with each failed heartbeat."""
    registry.play("heartbeat", "status_503", times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        began = time.monotonic()
        sidecar.wait_registered(times=4, timeout=8 * TTL)
        assert time.monotonic() - began > 3 * INTERVAL


def test_a_registry_that_dies_with_the_service_hears_of_neither(service: ToyService) -> None:
    """Back again, it gets no request for a service that is still down."""
    registry = Registry(ttl=TTL)
    with registry, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.stop()
        sidecar.wait_for("Heartbeat failed")
        service.stop()
        sidecar.wait_for("Service is DOWN", timeout=3 * TTL)
        before = registry.count()
        registry.forget()
        registry.start()
        time.sleep(TTL)
        assert registry.count() == before
        service.start()
        wait_until(lambda: registry.record(NAME))
