"""A fleet in simulated time: the agent's own code, a thousand times and for days. Everything follows from the seed."""

from __future__ import annotations

import pytest
from fleet.simulate import Figures, long_run, outcome, steady

import agent

SEED = 1
SIZES = [90, pytest.param(1000, marks=pytest.mark.slow)]
SERVICES = range(90)
LOSS = 0.01  # of requests
LONGEST_ABSENCE = 2.0  # seconds


def is_gentle(figures: Figures, size: int) -> bool:
    """Tell whether a fleet came back as promised: of 1,000 at most 45 a second, 99 of 100 within a minute."""
    return figures.knocks <= max(10, 45 * size / 1000) and figures.p99 <= 60 and not figures.missing


@pytest.mark.parametrize("size", SIZES)
def test_a_fleet_in_lockstep_comes_back_spread_over_a_minute(size: int) -> None:
    assert is_gentle(outcome(size, "start, 10 min", SEED), size)


@pytest.mark.parametrize("size", SIZES)
def test_without_jitter_it_would_come_back_all_at_once(size: int) -> None:
    figures = outcome(size, "start, 10 min, no jitter", SEED)
    assert figures.knocks == size
    assert not is_gentle(figures, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["start, 45 s", "steady, 45 s", "steady, 10 min"])
def test_every_sidecar_is_back_within_one_step_of_the_backoff(name: str, size: int) -> None:
    figures = outcome(size, name, SEED)
    assert not figures.missing
    assert figures.longest <= agent.LONGEST_WAIT


@pytest.mark.parametrize("size", SIZES)
def test_an_outage_that_hangs_costs_one_deadline_more(size: int) -> None:
    figures = outcome(size, "start, 10 min, hangs", SEED)
    assert not figures.missing
    assert figures.longest <= agent.LONGEST_WAIT + 10


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["start, slow", "start, 10 min, slow"])
def test_a_registry_that_takes_few_requests_gets_the_whole_fleet_in_the_end(name: str, size: int) -> None:
    figures = outcome(size, name, SEED)
    assert not figures.missing
    assert figures.calls < 25


@pytest.mark.slow
def test_a_fleet_started_at_once_is_spread_in_its_steady_state() -> None:
    assert steady(1000, SEED).ratio <= 1.5


@pytest.mark.slow
def test_without_jitter_it_would_beat_as_one() -> None:
    assert steady(1000, SEED, jitter=False).peak >= 1000


@pytest.mark.slow
def test_a_hundred_thousand_are_but_a_hundred_times_a_thousand() -> None:
    few, many = outcome(1000, "start, 10 min", SEED), outcome(100_000, "start, 10 min", SEED)
    assert is_gentle(many, 100_000)
    assert many.knocks <= 1.5 * 100 * few.knocks
    assert many.calls <= 1.5 * few.calls


@pytest.mark.parametrize("days", [0.25, pytest.param(30, marks=pytest.mark.slow)])
def test_lost_requests_cost_no_record(days: float) -> None:
    losses = long_run(SERVICES, days, LOSS, SEED)
    assert losses.requests > days * 250_000
    assert losses.lost > days * 2_000
    assert losses.longest <= LONGEST_ABSENCE


@pytest.mark.slow
def test_without_retries_inside_the_slot_they_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "backoff", lambda _attempt, _uniform: 30.0)
    losses = long_run(SERVICES, 1, LOSS, SEED)
    assert losses.records > 100
    assert losses.longest > LONGEST_ABSENCE


def test_the_same_seed_gives_the_same_figures() -> None:
    first, second, other = (outcome(90, "steady, 45 s", seed) for seed in (SEED, SEED, SEED + 1))
    assert first == second != other
