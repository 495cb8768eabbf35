"""What goes into the log: one printable line, short, and without a secret."""

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import agent
from agent import say_plain, say_value

SECRET = "s3cr3t-t0ken"
any_text = st.text(st.characters(exclude_categories=[]))  # lone surrogates too
told_text = st.lists(any_text | st.just(SECRET)).map("".join)  # by a peer that sends the token back


@pytest.fixture(autouse=True)
def secret() -> None:
    """Let the log know one secret; tests/unit/conftest.py forgets it."""
    agent.keep_secret("test", [SECRET])


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
    forms = {token, in_json, in_json_in_json, quote(token), quote(token, safe="")}
    agent.keep_secret("another", [token])
    try:
        for form in forms:
            assert form not in say_plain(f"you sent {form}!")
            assert form not in say_value(f"/path/{form}")
    finally:
        del agent.secrets["another"]


def test_a_source_s_secret_and_the_one_before_are_blotted_out_and_no_older_one() -> None:
    for number in range(100):
        agent.keep_secret("file", [f"s3cret-{number}"])
        agent.keep_secret("file", [f"s3cret-{number}"])  # the same once more is no renewal
    assert say_plain("s3cret-97 s3cret-98 s3cret-99") == "s3cret-97 *** ***"
    agent.keep_secret("another", ["other"])
    agent.keep_secret("file", [])
    assert say_plain("s3cret-98 s3cret-99 other") == "s3cret-98 *** ***"


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://lb:80", set()),
        ("http://key@lb", {"key", base64.b64encode(b"key:").decode()}),
        ("http://ann:pw@lb", {"pw", base64.b64encode(b"ann:pw").decode()}),
        ("http://ann:p%40w@lb", {"p%40w", "p@w", base64.b64encode(b"ann:p@w").decode()}),
        ("http://a:p%C3%B6@lb", {"p%C3%B6", "pö", base64.b64encode("a:pö".encode()).decode()}),
    ],
)
def test_credentials_of_a_url_are_secrets(url: str, found: set[str]) -> None:
    assert {secret for secret in agent.url_secrets(url) if secret} == found


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
def test_credentials_and_query_of_a_url_are_never_shown(
    scheme: str, before: str, after: str, end: str
) -> None:
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
