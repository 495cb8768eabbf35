"""The rules that are functions of their inputs alone.

Over all inputs that hypothesis can think of.
"""

import email.utils
import itertools
import math
import random
import re
import statistics

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent import (
    TOKEN,
    backoff,
    begin_after,
    is_host,
    next_beat,
    parse_retry_after,
    wait_in_slot,
)

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too

# ---- backoff


@given(st.integers(1, 10**30) | st.integers(1, 20), st.randoms(use_true_random=False))
def test_every_wait_is_between_one_second_and_sixty(attempt: int, source: random.Random) -> None:
    assert 1 <= backoff(attempt, source.uniform) <= 60


def expected_wait(attempt: int) -> float:
    return backoff(attempt, lambda low, high: (low + high) / 2)


def test_the_expected_wait_doubles_until_its_cap() -> None:
    waits = [expected_wait(attempt) for attempt in range(1, 12)]
    assert waits[:5] == [1.5, 3, 6, 12, 24]
    assert set(waits[5:]) == {45}


@pytest.mark.parametrize("attempt", [1, 2, 100])
def test_waits_spread_evenly_over_half_of_their_ceiling(attempt: int) -> None:
    uniform = random.Random(7).uniform
    waits = [backoff(attempt, uniform) for _ in range(2000)]
    ceiling = min(2.0**attempt, 60)
    assert max(waits) - min(waits) > 0.49 * ceiling
    assert statistics.fmean(waits) == pytest.approx(0.75 * ceiling, rel=0.02)
    assert statistics.pstdev(waits) == pytest.approx(0.5 * ceiling / math.sqrt(12), rel=0.1)


# ---- the wait inside a slot

retry_afters = st.floats(0, 300)


@pytest.mark.parametrize(
    ("wait", "left", "seconds"),
    [
        (1.5, 50, 1.5),
        (11.5, 50, 11.5),  # honoured in full
        (301.5, 50, 25),  # as far as the record lives: half of it is left for another try
        (60, 1.5, 1),
        (1.5, 0, 1),
        (301.5, -20, 1),  # then it is time to register
    ],
)
def test_the_wait_for_a_repeated_heartbeat(wait: float, left: float, seconds: float) -> None:
    assert wait_in_slot(wait, left, 1.0) == seconds


@given(
    st.floats(0.01, 60),
    st.lists(retry_afters, min_size=1, max_size=9),
    st.randoms(use_true_random=False),
)
def test_whatever_the_registry_asks_for_a_failed_heartbeat_is_repeated_while_the_record_lives(
    interval: float, asked: list[float], source: random.Random
) -> None:
    pace = min(1.0, interval / 30)
    left, tries = interval, 0
    for retry_after in itertools.cycle(asked):
        tries += 1
        left -= wait_in_slot(pace * backoff(tries, source.uniform) + retry_after, left, pace)
        if left <= 0:
            break
    assert 5 <= tries <= 12


# ---- the schedule

# Multiples of 1/64, of which floats hold sums and quotients exactly.
moments = st.integers(0, 2**40).map(lambda n: n / 64)
intervals = st.integers(1, 86400 * 64).map(lambda n: n / 64)


@given(moments, intervals, moments)
@example(0.0, 30.0, 30.0)
@example(90.0, 30.0, 10.0)  # the phase lies ahead
def test_the_next_beat_is_the_first_moment_of_the_grid_after_now(
    phase: float, interval: float, now: float
) -> None:
    due = next_beat(phase, interval, now)
    assert now < due <= now + interval
    assert (due - phase) % interval == 0


@given(moments, intervals, st.lists(st.floats(0, 0.99), min_size=1, max_size=50))
def test_late_beats_make_no_later_beats(phase: float, interval: float, delays: list[float]) -> None:
    due = next_beat(phase, interval, phase)
    for delay in delays:
        due = next_beat(phase, interval, due + delay * interval)
    assert due == phase + (1 + len(delays)) * interval


# ---- Retry-After

NOW = 1_800_000_000.0  # Unix time


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0), ("7", 7), ("300", 300), ("301", 300), ("9" * 5000, 300),
        ("", 0), ("-5", 0), ("1.5", 0), ("soon", 0), ("²", 0), ("nan", 0), ("Infinity", 0),
        ("1e3", 0), ("7, 7", 0),
        (email.utils.formatdate(NOW + 42, usegmt=True), 42),
        (email.utils.formatdate(NOW - 42, usegmt=True), 0),
        (email.utils.formatdate(NOW + 86400, usegmt=True), 300),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0), ("Wed, 99 Foo 2026 07:28:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after(value: str, seconds: float) -> None:
    assert parse_retry_after(value, "", NOW) == seconds


@pytest.mark.parametrize(("date", "seconds"), [(NOW + 600, 42), (NOW - 9999, 42), (None, 300)])
def test_a_date_is_reckoned_from_that_of_the_same_answer(
    date: float | None, seconds: float
) -> None:
    """For the peer's clock may be wrong; where it tells no time, the own one has to serve."""
    value = email.utils.formatdate((date or NOW + 600) + 42, usegmt=True)
    told = "nonsense" if date is None else email.utils.formatdate(date, usegmt=True)
    assert parse_retry_after(value, told, NOW) == seconds


dates = st.datetimes().map(email.utils.format_datetime)
damaged_dates = st.tuples(dates, st.integers(0, 40), any_text).map(
    lambda d: d[0][: d[1]] + d[2] + d[0][d[1] :]
)


@given(
    any_text | dates | damaged_dates | st.from_regex(r"[0-9 ,:+-]{1,30}"),
    any_text | dates,
    st.floats(0, 1e11),
)
def test_any_retry_after_means_0_to_300_seconds(value: str, date: str, wall_clock: float) -> None:
    assert 0 <= parse_retry_after(value, date, wall_clock) <= 300


# ---- whom to try next


@pytest.mark.parametrize(
    ("failed", "order"), [(None, "abc"), ("a", "bca"), ("b", "cab"), ("c", "abc"), ("gone", "abc")]
)
def test_the_next_exchange_begins_after_the_address_that_failed(failed: str, order: str) -> None:
    assert begin_after(list("abc"), failed) == list(order)


# ---- hosts and tokens


@given(any_text)
def test_any_text_is_a_host_or_not_and_a_token_or_not(text: str) -> None:
    assert not is_host(text) or (text.isascii() and text.isprintable() and " " not in text)
    assert bool(re.fullmatch(TOKEN, text)) == all("!" <= char <= "~" for char in text)
