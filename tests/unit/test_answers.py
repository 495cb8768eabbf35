"""What the answers of a service and of the registry mean."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

import agent
from agent import ACCEPTED, FAILED, LOST, REFUSED, Answer, health_metadata
from kit.simulated import Line

any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too

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

SETTINGS = agent.read_settings({"SERVICE_NAME": "x", "SERVICE_HOST": "localhost"})


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
        (Answer(400), FAILED),
        (detail(429, "Rate limit exceeded"), FAILED),
        (Answer(502), FAILED),
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
