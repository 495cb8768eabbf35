"""What the tests in this process have in common."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

import agent

# The same examples in each run, and none judged by its speed. `--hypothesis-profile search` with
# tests/unit looks further.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "search", settings.get_profile("tests"), derandomize=False, max_examples=3000
)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def forget_secrets() -> Iterator[None]:
    """Let no test's secrets be blotted out of another's words."""
    yield
    agent.secrets.clear()
