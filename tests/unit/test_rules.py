"""The rules that are functions of their inputs alone."""

import email.utils
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import agent
from agent import backoff, begin_after, is_host, next_beat, parse_retry_after, wait_in_slot

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too

# ---- backoff


@pytest.mark.parametrize("attempt", [*range(1, 12), 100, 10**30])
def test_a_wait_is_drawn_from_the_upper_half_of_a_ceiling_that_doubles(attempt: int) -> None:
    drawn = object()
    ceiling = {1: 2, 2: 4, 3: 8, 4: 16, 5: 32}.get(attempt, 60)

    def uniform(low: float, high: float) -> Any:
        assert (low, high) == (ceiling / 2, ceiling)
        return drawn

    assert backoff(attempt, uniform) is drawn


# ---- the wait inside a slot


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


# ---- Retry-After

NOW = 1_800_000_000.0  # Unix time


def date(moment: float) -> str:
    """Return that moment as a header has it."""
    return email.utils.formatdate(moment, usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0), ("7", 7), ("300", 300), ("301", 300), ("9" * 5000, 300),
        ("", 0), ("-5", 0), ("1.5", 0), ("soon", 0), ("²", 0), ("nan", 0), ("Infinity", 0),
        ("1e3", 0), ("7, 7", 0),
        (date(NOW + 42), 42), (date(NOW - 42), 0), (date(NOW + 86400), 300),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0), ("Wed, 99 Foo 2026 07:28:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after(value: str, seconds: float) -> None:
    for told in ("", "nonsense"):
        assert parse_retry_after(value, told, NOW) == seconds
    if seconds == 42:  # a date, reckoned from that of the same answer: the peer's clock may be off
        for off in (600, -9999):
            assert parse_retry_after(date(NOW + off + 42), date(NOW + off), NOW) == 42


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
    assert bool(re.fullmatch(agent.TOKEN, text)) == all("!" <= char <= "~" for char in text)
