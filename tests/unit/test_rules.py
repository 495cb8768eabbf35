"""The rules that are functions of their inputs alone, and what answers mean."""

import email.utils
import json
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import agent
from agent import ACCEPTED, FAILED, LOST, REFUSED, Answer, backoff, parse_retry_after
from kit.parts import read
from kit.simulated import Line

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
    assert agent.wait_in_slot(wait, left, 1.0) == seconds


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
    due = agent.next_beat(phase, interval, now)
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
        ("0", 0), ("7", 7), ("20\t ", 20), ("300", 300), ("301", 300), ("9" * 5000, 300),
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
    assert agent.begin_after(list("abc"), failed) == list(order)


# ---- hosts and tokens


@given(any_text)
def test_any_text_is_a_host_or_not_and_a_token_or_not(text: str) -> None:
    assert not agent.is_host(text) or (text.isascii() and text.isprintable() and " " not in text)
    assert bool(re.fullmatch(agent.TOKEN, text)) == all("!" <= char <= "~" for char in text)


# ---- what a service tells of itself

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)
healths = st.dictionaries(st.sampled_from(["version", "status", "other"]), any_json)


def told_by(body: bytes) -> dict[str, str]:
    """Return what a service with this health body tells of itself."""
    health = Answer(200, body=body).json()
    return agent.health_metadata(health) if isinstance(health, dict) else {}


@given(st.binary() | (any_json | healths).map(json.dumps).map(str.encode))
def test_metadata_of_any_health_body_is_what_the_registry_takes(body: bytes) -> None:
    metadata = told_by(body)
    assert metadata.keys() <= {"version", "status"}
    assert all(isinstance(value, str) and len(value) <= 256 for value in metadata.values())
    assert "".join(metadata.values()).encode() is not None  # no lone surrogate


@pytest.mark.parametrize(
    ("body", "metadata"),
    [
        (b'{"version": "1.2", "status": "up", "uptime": 3}', {"version": "1.2", "status": "up"}),
        (b'{"version": 2, "status": true}', {"version": "2", "status": "true"}),
        (b'{"version": 1.50, "status": null}', {"version": "1.5"}),
        (b'{"version": {"major": 1}, "status": ["up"]}', {}),
        (b'{"version": "%s"}' % (b"v" * 300), {"version": "v" * 256}),
        (b'{"version": ""}', {"version": ""}),
        (b"{}", {}), (b"", {}), (b"OK", {}), (b'"healthy"', {}), (b'["version"]', {}),
        (b"\xff\xfe{", {}),
        (b'{"version": "cut off', {}),
        (b'{"version": "1"}' + b" " * 65536, {}),  # more than is read of a body
        (b'{"version": %s}' % (b"9" * 5000), {}),  # more digits than Python turns into a number
        (b'{"version": %s1%s}' % (b"[" * 30000, b"]" * 30000), {}),  # deeper than Python goes
        (b'{"a":' * 10000 + b"1" + b"}" * 10000, {}),
    ],
)  # fmt: skip
def test_metadata_of_a_health_body(body: bytes, metadata: dict[str, str]) -> None:
    assert told_by(body) == metadata


# ---- what the registry's answers mean

SETTINGS = read(None, None)


class Answered(agent.Registry):
    """A registry that has answered so; nothing is sent."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(SETTINGS, agent.Signals())
        self.peer = Line(SETTINGS.registry_url, agent.Signals(), lambda *_: self.answer)
        self.answer = answer


def detail(status: int, words: str) -> Answer:
    """Return an answer in the registry's form."""
    return Answer(status, body=json.dumps({"detail": words}).encode())


OK = Answer(200)
DOWN = Answer(0, failure=ConnectionRefusedError(111, "Connection refused"))
UNKNOWN = detail(500, "Heartbeat failed: Service 'x' not registered")
WRONG_TOKEN = detail(500, "Registration failed: 401: Invalid registry token")


@pytest.mark.parametrize(
    ("answer", "meaning"),
    [
        (OK, ACCEPTED),
        (Answer(200, {"Content-Type": "Text/HTML; charset=utf-8"}, b"Welcome"), FAILED),
        (Answer(200, body=b"\n<p>Welcome"), FAILED),
        (Answer(200, body=b"\xef\xbb\xbf<p>Welcome"), FAILED),
        (DOWN, FAILED),
        (UNKNOWN, LOST),
        (WRONG_TOKEN, REFUSED),
        (detail(500, "Heartbeat failed: 401: Unauthorized"), REFUSED),
        (UNKNOWN._replace(status=503), LOST),
        (UNKNOWN._replace(status=200), ACCEPTED),
        (UNKNOWN._replace(status=422), FAILED),
        (WRONG_TOKEN._replace(status=200), ACCEPTED),
        (Answer(404), LOST),
        (detail(410, "gone"), LOST),
        (Answer(401), REFUSED),
        (detail(403, "forbidden"), REFUSED),
        (detail(500, "Heartbeat failed: Error connecting to the store"), FAILED),
        (detail(500, "Heartbeat failed: Circuit breaker HALF_OPEN (test phase)"), FAILED),
        (detail(429, "Rate limit exceeded"), FAILED),
        (Answer(307, {"Location": "http://lb/register"}), FAILED),
    ],
)
def test_what_an_answer_to_a_heartbeat_means(answer: Answer, meaning: str) -> None:
    assert Answered(answer).heartbeat(10).meaning == meaning


def test_a_registry_that_has_answered_before_brings_no_hint_about_its_port() -> None:
    registry = Answered(DOWN)
    assert "8888 is its port" in registry.heartbeat(10).advice
    registry.answer = OK
    registry.heartbeat(10)
    registry.answer = DOWN
    assert "8888 is its port" not in registry.heartbeat(10).advice


@given(st.integers(0, 999), any_text)
def test_success_is_neither_lost_nor_refused(status: int, said: str) -> None:
    answer = detail(status, said)
    assert answer.ok == (status // 100 == 2)
    assert answer.ok == (Answered(answer).heartbeat(10).meaning == ACCEPTED)
