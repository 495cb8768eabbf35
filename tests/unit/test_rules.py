"""The rules that are functions of their inputs alone, over all inputs that hypothesis can think of."""

from __future__ import annotations

import base64
import email.utils
import itertools
import json
import math
import os
import random
import re
import socket
import statistics
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import agent
import healthcheck
from agent import (
    ACCEPTED,
    FAILED,
    LOST,
    REFUSED,
    TOKEN,
    Answer,
    backoff,
    health_metadata,
    is_host,
    next_beat,
    parse_retry_after,
    say_plain,
    say_value,
    wait_in_slot,
)

SECRET = "s3cr3t-t0ken"
any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too
told_text = st.lists(any_text | st.just(SECRET)).map("".join)  # by a peer that sends the token back

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
    assert 5 <= tries <= 10


# ---- the schedule

# Multiples of 1/64, of which floats hold sums and quotients exactly.
moments = st.integers(0, 2**40).map(lambda n: n / 64)
intervals = st.integers(1, 86400 * 64).map(lambda n: n / 64)


@given(moments, intervals, moments)
@example(0.0, 30.0, 30.0)
@example(90.0, 30.0, 10.0)  # the phase lies ahead
def test_the_next_beat_is_the_first_moment_of_the_grid_after_now(phase: float, interval: float, now: float) -> None:
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
        ("", 0), ("-5", 0), ("1.5", 0), ("soon", 0), ("²", 0), ("nan", 0), ("Infinity", 0), ("1e3", 0), ("7, 7", 0),
        (email.utils.formatdate(NOW + 42, usegmt=True), 42),
        (email.utils.formatdate(NOW - 42, usegmt=True), 0),
        (email.utils.formatdate(NOW + 86400, usegmt=True), 300),
        ("Wed, 21 Oct 99999 07:28:00 GMT", 0), ("Wed, 99 Foo 2026 07:28:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after(value: str, seconds: float) -> None:
    assert parse_retry_after(value, NOW) == seconds


dates = st.datetimes().map(email.utils.format_datetime)
damaged_dates = st.tuples(dates, st.integers(0, 40), any_text).map(lambda d: d[0][: d[1]] + d[2] + d[0][d[1] :])


@given(any_text | dates | damaged_dates | st.from_regex(r"[0-9 ,:+-]{1,30}"), st.floats(0, 1e11))
def test_any_retry_after_means_0_to_300_seconds(value: str, wall_clock: float) -> None:
    assert 0 <= parse_retry_after(value, wall_clock) <= 300


# ---- words for the log


@pytest.fixture(autouse=True, scope="module")
def secret() -> Iterator[None]:
    """Let the log know one secret."""
    agent.keep_secret(SECRET)
    yield
    del agent.secrets[SECRET]


@given(told_text | st.integers() | st.dictionaries(any_text, any_text))
@example("a" * 190 + SECRET + "b" * 190)  # the cut must not come first, and leave half a secret
def test_any_words_become_one_short_printable_line_without_secrets(words: object) -> None:
    line = say_plain(words)
    assert line.isprintable()
    assert len(line) <= 200
    assert SECRET[:6] not in line


tokens = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)


@given(tokens)
@example("tok\\en/with\"quotes'and%41")
@example("\\" * 20 + "x")
def test_a_secret_is_blotted_out_in_whatever_form_a_peer_sends_it_back(token: str) -> None:
    in_json, in_json_in_json = json.dumps(token)[1:-1], json.dumps(json.dumps(token))[3:-3]
    forms = {token, token.lower(), repr(token)[1:-1], quote(token, safe=""), in_json, in_json_in_json}
    agent.keep_secret(token)
    try:
        for form in forms:
            assert form not in say_plain(f"you sent {form}!")
            assert form not in say_value(f"/path/{form}")
    finally:
        del agent.secrets[token]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://lb:80", set()),
        ("http://key@lb", {"key", base64.b64encode(b"key:").decode()}),
        ("http://ann:pw@lb", {"pw", base64.b64encode(b"ann:pw").decode()}),
        ("http://ann:p%40w@lb", {"p%40w", "p@w", base64.b64encode(b"ann:p@w").decode()}),
    ],
)
def test_credentials_of_a_url_are_secrets(url: str, found: set[str]) -> None:
    assert set(agent.url_secrets(url)) == found


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("plain words, größer", "plain words, größer"),
        ("line\r\nERROR forged\x1b[2J\0", r"line\r\nERROR forged\x1b[2J\x00"),
        ("\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        (f"you sent {SECRET}!", "you sent ***!"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
    ],
)
def test_words_of_a_peer(words: str, line: str) -> None:
    assert say_plain(words) == line


@given(told_text)
def test_any_value_is_shown_as_one_printable_line_without_secrets(value: str) -> None:
    shown = say_value(value)
    assert shown
    assert shown.isprintable()
    assert len(shown) <= 402  # quoted and its backslashes doubled, where there are blanks
    assert SECRET not in shown


@given(st.sampled_from(["http://", "https://", ""]), any_text, any_text, any_text)
@example("", "user=a@b&key=", "", "")
@example("http://", "ann:what?", "", "")
def test_credentials_and_query_of_a_url_are_never_shown(scheme: str, before: str, after: str, end: str) -> None:
    assert "PASSWORD" not in say_value(f"{scheme}{before}PASSWORD{after}@host/path")
    assert "PASSWORD" not in say_value(f"{scheme}host/path?{before}PASSWORD{end}")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("", "''"),
        (30.0, "30.0"),
        ("two words", "'two words'"),
        ("http://lb:80", "http://lb:80"),
        ("http://ann:pw@lb:80/a?b=c#d", "http://***@lb:80/a?***"),
        ("ann:pw@lb", "***@lb"),
        ("http://ann:p@w@lb", "http://***@lb"),
    ],
)
def test_values_shown(value: object, shown: str) -> None:
    assert say_value(value) == shown


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
    return health_metadata(health) if isinstance(health, dict) else {}


@given(st.binary() | (any_json | healths).map(json.dumps).map(str.encode))
def test_metadata_of_any_health_body_is_what_the_registry_takes(body: bytes) -> None:
    metadata = told_by(body)
    assert metadata.keys() <= {"version", "status"}
    assert all(isinstance(value, str) and len(value) <= 256 for value in metadata.values())
    assert "".join(metadata.values()).encode() is not None  # no lone surrogate


@pytest.mark.parametrize(
    ("body", "metadata"),
    [
        (b'{"version": "1.2", "status": "healthy", "uptime": 3}', {"version": "1.2", "status": "healthy"}),
        (b'{"version": 2, "status": true}', {"version": "2", "status": "true"}),
        (b'{"version": 1.50, "status": null}', {"version": "1.5"}),
        (b'{"version": {"major": 1}, "status": ["up"]}', {"version": '{"major": 1}', "status": '["up"]'}),
        (b'{"version": "%s"}' % (b"v" * 300), {"version": "v" * 256}),
        (b'{"version": ""}', {"version": ""}),
        (b"{}", {}), (b"", {}), (b"OK", {}), (b'"healthy"', {}), (b'["version"]', {}), (b"\xff\xfe{", {}),
        (b'{"version": "cut off', {}),
        (b'{"version": "1"}' + b" " * 65536, {}),  # more than is read of a body
        (b'{"version": %s}' % (b"9" * 5000), {}),  # more digits than Python turns into a number
        (b'{"version": %s1%s}' % (b"[" * 30000, b"]" * 30000), {}),
    ],
)  # fmt: skip
def test_metadata_of_a_health_body(body: bytes, metadata: dict[str, str]) -> None:
    assert told_by(body) == metadata


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_metadata_nested_to_any_depth(opening: bytes) -> None:
    for depth in range(1, 1500):  # somewhere in here lies the limit of recursion
        closing = b"]" if opening == b"[" else b"}"
        metadata = told_by(b'{"version": %s1%s}' % (opening * depth, closing * depth))
        assert all(len(value) <= 256 for value in metadata.values())


# ---- what the registry's answers mean

SETTINGS = agent.read_settings({"SERVICE_NAME": "x", "SERVICE_HOST": "localhost"})


class Answered(agent.Registry):
    """A registry that has answered so; nothing is sent."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(SETTINGS, agent.Signals())
        self.answer = answer

    def ask(self, *_arguments: object) -> Answer:
        return self.answer


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
        (Answer(400), FAILED),
        (detail(429, "Rate limit exceeded"), FAILED),
        (Answer(502), FAILED),
        (Answer(307, {"Location": "http://lb/register"}), FAILED),
    ],
)
def test_what_an_answer_to_a_heartbeat_means(answer: Answer, meaning: str) -> None:
    reply = Answered(answer).heartbeat(10)
    assert (reply.meaning, reply.reached) == (meaning, answer is not DOWN)


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


# ---- hosts and tokens


@given(any_text)
def test_any_text_is_a_host_or_not_and_a_token_or_not(text: str) -> None:
    assert not is_host(text) or (text.isascii() and text.isprintable() and " " not in text)
    assert bool(re.fullmatch(TOKEN[0], text)) == all("!" <= char <= "~" for char in text)


# ---- an agent of which only the clock is a test's


class Clock:
    """Stands still but for the sleeps, which it notes."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sleeps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(round(seconds, 6))
        self.now += seconds


@pytest.mark.parametrize(("interval", "sleeps"), [("30", [1, 1, 0.5]), ("0.5", [0.5] * 5)])
def test_the_first_wait_ends_on_time_and_probes_at_least_once_an_interval(
    tmp_path: Path, interval: str, sleeps: list[float]
) -> None:
    with socket.socket() as nobody_listens:
        nobody_listens.bind(("127.0.0.1", 0))
        settings = agent.read_settings({
            "SERVICE_NAME": "osint",
            "SERVICE_HOST": "127.0.0.1",
            "SERVICE_PORT": str(nobody_listens.getsockname()[1]),
            "HEARTBEAT_INTERVAL": interval,
            "INITIAL_WAIT_TIMEOUT": "2.5",
            "HEARTBEAT_FILE": str(tmp_path / "heartbeat"),
        })
        clock = Clock()
        signals = agent.Signals(clock.sleep)
        subject = agent.Agent(settings, signals, lambda: clock.now, lambda _low, high: high)
        assert subject.waiting() == subject.registering
    assert clock.sleeps == sleeps


def test_a_fleet_started_together_neither_beats_nor_looks_for_its_records_together() -> None:
    signals, uniform = agent.Signals(), random.Random(7).uniform
    fleet = [agent.Agent(SETTINGS, signals, lambda: 0.0, uniform).record for _ in range(200)]
    assert {record.beats for record in fleet} == set(range(agent.LOOK_EVERY))
    assert {record.phase // 5 for record in fleet} == set(range(6))  # of an interval of 30 s


@pytest.mark.parametrize(
    ("left", "timeout"), [(60, 10), (31, 10), (15, 5), (3, 1), (1, 1), (-9, 1)]
)
def test_one_of_several_requests_gets_a_third_of_what_the_record_has_left(left: float, timeout: float) -> None:
    record = agent.Agent(SETTINGS, agent.Signals(), lambda: 100.0).record
    record.accepted_at = 100.0 + left - 2 * SETTINGS.heartbeat_interval
    assert record.short_timeout() == timeout


def test_the_heartbeat_file_is_written_where_it_must_say_more_and_not_for_nothing(tmp_path: Path) -> None:
    path, clock = str(tmp_path / "heartbeat"), Clock()

    def promise(seconds: float) -> tuple[bool, str]:
        life.promise(seconds)
        return healthcheck.judge(healthcheck.read(path), clock.now + seconds + agent.GRACE)

    life = agent.SignOfLife(path, lambda: clock.now)
    life.show("waiting", clock.now)
    assert promise(60)[0]
    clock.sleep(50)
    assert promise(60)[0]  # the same sentence for longer
    life.show("down", clock.now)
    assert "service down" in promise(1)[1]  # another sentence, though the old one would hold
    os.remove(path)
    life.promise(1)
    assert not os.path.exists(path)  # nothing to be said
