"""Fixtures: a registry and a toy service on loopback for each test."""

from collections.abc import Iterator

import pytest

from kit.peers.registry import Registry
from kit.peers.service import ToyService


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
