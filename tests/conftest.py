"""Fixtures: a registry and a toy service on loopback for each test."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from kit.peers.registry import Registry
from kit.peers.service import ToyService

# The same examples in each run, and none judged by its speed. `--hypothesis-profile search` looks
# further.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "search", settings.get_profile("tests"), derandomize=False, max_examples=3000
)
settings.load_profile("tests")


@pytest.fixture
def registry() -> Iterator[Registry]:
    """The embedded registry with the scaled-down TTL of 4 s, for agents with an interval of 2 s."""
    with Registry(ttl=4.0) as peer:
        yield peer


@pytest.fixture
def service() -> Iterator[ToyService]:
    """A healthy toy service."""
    with ToyService() as peer:
        yield peer
