"""What the tests in this process have in common."""

from collections.abc import Iterator

import pytest

import agent


@pytest.fixture(autouse=True)
def forget_secrets() -> Iterator[None]:
    """Let no test's secrets be blotted out of another's words."""
    yield
    agent.secrets.clear()
