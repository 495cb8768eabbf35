"""A fleet in simulated time: the agent's own code, a thousand times and for days.

Everything follows from the seed.
"""

import pytest

import agent
from fleet.simulate import Figures, long_run, outcome, steady

SEED = 1
SMALL = 90


def is_gentle(figures: Figures, size: int) -> bool:
    """Tell whether a fleet came back as promised.

    Of 1,000 at most 45 a second, 99 of 100 within a minute.
    """
    return figures.knocks <= max(10, 45 * size / 1000) and figures.p99 <= 60 and not figures.missing


@pytest.mark.parametrize("size", [SMALL, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_fleet_in_lockstep_comes_back_spread_over_a_minute(size: int) -> None:
    assert is_gentle(outcome(size, "start, 10 min", SEED), size)


def test_without_jitter_it_would_come_back_all_at_once() -> None:
    figures = outcome(SMALL, "start, 10 min, no jitter", SEED)
    assert figures.knocks == SMALL
    assert not is_gentle(figures, SMALL)


def test_every_sidecar_is_back_within_one_step_of_the_backoff() -> None:
    """And a deadline more where the registry hung."""
    for name in ("start, 45 s", "steady, 45 s", "steady, 10 min", "start, 10 min, hangs"):
        figures = outcome(SMALL, name, SEED)
        assert not figures.missing, name
        assert figures.longest <= agent.LONGEST_WAIT + 10 * ("hangs" in name), name


@pytest.mark.parametrize("name", ["start, slow", "start, 10 min, slow"])
def test_a_registry_that_takes_few_requests_gets_the_whole_fleet_in_the_end(name: str) -> None:
    figures = outcome(SMALL, name, SEED)
    assert not figures.missing
    assert figures.calls < 25


@pytest.mark.slow
def test_a_fleet_started_at_once_is_spread_in_its_steady_state() -> None:
    assert steady(1000, SEED).ratio <= 1.5


@pytest.mark.slow
def test_a_day_in_which_requests_are_lost_costs_no_record() -> None:
    losses = long_run(range(90), 1.0, 0.01, SEED)
    assert losses.requests > 250_000
    assert losses.lost > 2_000
    assert losses.longest <= 2.0
