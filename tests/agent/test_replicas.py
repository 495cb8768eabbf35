"""Replicas of the registry that answer from their own memories, since their store is gone."""

import time

import pytest

from fleet.replicas import trial
from kit.peers.registry import Registry
from kit.sidecar import FOREVER, Sidecar, wait_until

INTERVAL = 0.4  # seconds


@pytest.mark.parametrize(
    ("sidecars", "replicas", "turns"),
    [(1, 2, "strict"), (4, 3, "strict"), (2, 5, "random")],
)
def test_each_list_has_each_name_again(sidecars: int, replicas: int, turns: str) -> None:
    """In strict turns, a constant number of requests would meet the same replicas for ever."""
    with trial(sidecars, replicas, turns, INTERVAL) as fleet:
        began, before = time.monotonic(), fleet.balancer.count()
        fleet.empty()
        wait_until(lambda: not any(fleet.missing()), 150 * INTERVAL)
        sent = fleet.balancer.count() - before
        intervals = (time.monotonic() - began) / INTERVAL + 1
        assert sent <= 3 * sidecars * intervals


def test_when_the_lists_are_whole_it_is_quiet_again() -> None:
    """One heartbeat an interval, and a look now and then."""
    with trial(2, 3, "strict", INTERVAL) as fleet:
        fleet.empty()
        wait_until(lambda: not any(fleet.missing()), 150 * INTERVAL)
        time.sleep(20 * INTERVAL)  # fifteen looks in a row have found each name
        before, registered = fleet.balancer.count(), fleet.balancer.count("register")
        time.sleep(15 * INTERVAL)
        assert fleet.balancer.count("register") == registered
        assert fleet.balancer.count() - before <= 1.5 * 2 * 15 + 2
        assert not any(fleet.missing())


def test_three_requests_an_interval_are_the_most() -> None:
    """A registration that fails is followed by a heartbeat and a look, and by nothing else."""
    with (
        Registry(ttl=5 * INTERVAL) as registry,
        Sidecar(registry, SERVICE_HEALTH_CHECK="none", HEARTBEAT_INTERVAL=INTERVAL) as sidecar,
    ):
        sidecar.wait_registered()
        registry.play("list", ["status", 200, []], times=FOREVER)
        registry.play("register", "status_500", times=FOREVER)
        sidecar.wait_for("does not list it", times=2)
        began, before = time.monotonic(), registry.count()
        time.sleep(20 * INTERVAL)
        intervals = (time.monotonic() - began) / INTERVAL
        assert registry.count() - before <= 3 * (intervals + 1)
