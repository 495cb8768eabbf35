"""What goes into the log: one printable line, short, and without a secret."""

import base64
import codecs
import html
import http.client
import itertools
import json
import logging
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import agent
from agent import Answer, say_plain, say_seconds, say_value
from kit.sidecar import AGENT, HEALTHCHECK, ROOT

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
    escaped = quote(token, safe="")
    forms = {token, in_json, in_json_in_json, quote(token), escaped}
    forms |= {html.escape(token), html.escape(token).replace("&#x27;", "&#39;")}
    forms |= {repr(token)[1:-1], re.sub("%..", lambda found: found[0].lower(), escaped)}
    agent.secrets.clear()
    agent.keep_secret("another", [token])
    for form in forms:
        assert form not in say_plain(f"you sent {form}!")
        assert form not in say_value(f"/path/{form}")


def test_a_source_s_secret_and_the_one_before_are_blotted_out_and_no_older_one() -> None:
    for number in range(100):
        agent.keep_secret("file", [f"s3cret-{number}"])
        agent.keep_secret("file", [f"s3cret-{number}"])  # the same once more is no renewal
    assert say_plain("s3cret-97 s3cret-98 s3cret-99") == "s3cret-97 *** ***"
    agent.keep_secret("another", ["other"])
    agent.keep_secret("file", [])
    assert say_plain("s3cret-98 s3cret-99 other") == "s3cret-98 *** ***"


def basic(login: str) -> str:
    return base64.b64encode(login.encode()).decode()


@pytest.mark.parametrize(
    ("url", "login", "forms"),
    [
        ("http://key@lb", "key:", "key"),
        ("http://ann:pw@lb", "ann:pw", "pw"),
        ("http://ann:p%40w@lb", "ann:p@w", "p%40w p@w"),
        ("http://a:p%C3%B6@lb", "a:pö", "p%C3%B6 pö"),
        ("http://%E2%82%AC:p%e2%82%ac@lb", "€:p€", "p%e2%82%ac p€"),
    ],
)
def test_credentials_of_a_url_are_secrets(url: str, login: str, forms: str) -> None:
    assert set(agent.url_secrets(url)) - {""} == {basic(login), *forms.split()}
    assert agent.basic_credentials(url) == {"Authorization": f"Basic {basic(login)}"}
    assert not any(agent.url_secrets("http://lb:80"))


@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"Bearer {SECRET}",
        f"Basic {basic(f'ann:{SECRET}')}",
        f"a=1; session={SECRET}",
        f'Digest username="ann", response="{SECRET}"',
    ],
)
def test_what_is_secret_in_a_header_is_blotted_out_and_the_log_stays_readable(value: str) -> None:
    agent.secrets.clear()
    headers = {"X-Key": value, "X-Tenant": "1", "X-Scheme": "http", "X-Short": "osint"}
    headers |= {"Accept": "application/json", "Host": "osint-service", "User-Agent": "curl/8"}
    agent.keep_secret("headers", agent.header_secrets(headers))
    said = "http://osint-service:1 takes application/json of curl/8"
    assert say_plain(f"{said} {value} {SECRET}") == f"{said} *** ***"


@pytest.mark.parametrize("filler", ["%5c", "%5C%5C\\\\"])
def test_what_a_peer_says_is_searched_in_linear_time(filler: str) -> None:
    agent.keep_secret("url", agent.url_secrets(r"http://u:%5C%5Cx@lb"))

    def cost(size: int) -> float:
        """Return the seconds of CPU that ten such bodies cost."""
        answer = Answer(500, body=(filler * (size // len(filler))).encode())
        began = time.process_time()
        for _ in range(10):
            assert answer.say()
        return time.process_time() - began

    small, large = cost(16_000), cost(64_000)
    assert large < 5 * small + 0.5


def say_500(body: bytes) -> str:
    return Answer(500, body=body).say()


@pytest.mark.parametrize(
    ("say", "what", "line"),
    [
        (say_plain, "plain words, größer", "plain words, größer"),
        (say_plain, "line\r\nERROR forged\x1b[2J\0", r"line\r\nERROR forged\x1b[2J\x00"),
        (say_plain, "\u202egnp.exe\u2028", r"\u202egnp.exe\u2028"),
        (say_plain, "x" * 200, "x" * 200),
        (say_plain, "x" * 201, "x" * 197 + "..."),
        (say_value, "", "''"),
        (say_value, 30.0, "30.0"),
        (say_value, "two words", "'two words'"),
        (say_value, "http://lb:80", "http://lb:80"),
        (say_value, "http://ann:pw@lb:80/a?b=c#d", "http://***@lb:80/a?***"),
        (say_value, "ann:pw@lb", "***@lb"),
        (say_value, "http://ann:p@w@lb", "http://***@lb"),
        (say_seconds, 30.0, "30 s"),
        (say_seconds, 2.123456, "2.12 s"),
        (say_seconds, 0.5, "0.5 s"),
        (say_seconds, 1e5, "100000 s"),
        (say_seconds, 0.001, "0 s"),
        (say_500, b'{"detail":"no disk"}', "500: no disk"),
        (say_500, b'{"message":"no power"}', "500: no power"),
        (say_500, b'{"error":"no room"}', "500: no room"),
        (say_500, b'{"reason":"no time"}', '500: {"reason":"no time"}'),
        (say_500, b"no store\n", "500: no store"),
        (say_500, b"two\nlines\tand \x1b[31m", r"500: two\nlines\tand \x1b[31m"),
        (say_500, "naïve 注册".encode(), "500: naïve 注册"),
        (say_500, b"\r\n <!DOCTYPE html><html></html>", "500"),
        (say_500, b"", "500"),
    ],
)
def test_what_is_said(say: Callable[[object], str], what: object, line: str) -> None:
    assert say(what) == line


def test_no_character_of_unicode_controls_the_log() -> None:
    for start in range(0, sys.maxunicode + 1, 4096):
        step = 1 if start < 0x20000 or start == 0xE0000 else 61  # hardly any is assigned there
        assert agent.escape("".join(map(chr, range(start, start + 4096, step)))).isprintable()


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


# ---- settings that are quoted, or not what they seem


def settings(**variables: str) -> agent.Settings:
    """Read these beside the two that are needed."""
    return agent.read_settings({"SERVICE_NAME": "osint", "SERVICE_HOST": "osint"} | variables)


def problems(**variables: str) -> list[str]:
    """Return what is said of settings that are refused."""
    with pytest.raises(agent.SettingsError) as refused:
        settings(**variables)
    lines = [agent.say_problem(*problem) for problem in refused.value.args]
    assert SECRET not in "".join(lines)
    return lines


GOOD = {  # where the default is nothing
    **dict.fromkeys(agent.SETTINGS, "a"),
    "SERVICE_METADATA": "team=osint",
    **{name: __file__ for name in agent.SETTINGS if name.endswith("_FILE")},
}


@pytest.mark.parametrize("quote", "\"'")
def test_a_value_in_quotes_is_refused_and_the_quotes_are_named(quote: str) -> None:
    """As `docker run --env-file` passes them on."""
    names = agent.SETTINGS.keys() - set(agent.TOKEN_VARIABLES)
    said = problems(
        **{name: f"{quote}{agent.SETTINGS[name].default or GOOD[name]}{quote}" for name in names}
    )
    for line in said:
        assert re.search(rf"^[A-Z_]+=\W*{quote}.*{quote}\W*: .*; the quotes are part of", line)
    assert {line.partition("=")[0] for line in said} == names


@pytest.mark.parametrize(
    ("name", "value", "quoted"),
    [
        ("SERVICE_METADATA", '""', True),
        ("REGISTRY_TOKEN", f'"two words {SECRET}"', True),
        ("REGISTRY_URL", f'"http://ann:{SECRET}@registry"', True),
        ("SERVICE_PORT", "http", False),
        ("SERVICE_NAME", "", False),
    ],
)
def test_quotes_are_told_of_where_there_are_some(name: str, value: str, quoted: bool) -> None:
    (line,) = problems(**{name: value})
    assert line.startswith(name)
    assert ("quotes" in line) == quoted


@pytest.mark.parametrize("name", [*agent.TOKEN_VARIABLES, "REGISTRY_TOKEN_FILE"])
def test_a_token_in_quotes_is_doubted(tmp_path: Path, name: str) -> None:
    doubt = f"{name}: the token is in quotes, and they are part of it"
    for quotes, told in (('""', True), ("''", True), ("\"'", False), ("ab", False)):
        token = f"{quotes[0]}{SECRET}{quotes[1]}"
        (tmp_path / "token").write_text(f"{token}\n")
        value = str(tmp_path / "token") if name.endswith("FILE") else token
        assert agent.doubts_about(settings(**{name: value}), {}) == [doubt] * told


@pytest.mark.parametrize("name", ["REGISTRY_TOKEN_FILE", "SERVICE_HEALTH_HEADERS_FILE"])
@pytest.mark.parametrize("typed", [SECRET, f"Ab/c+{SECRET}==", f"/{SECRET}/x", f"Bearer {SECRET}"])
def test_a_secret_in_the_place_of_its_file_is_hidden(name: str, typed: str) -> None:
    agent.secrets.clear()
    (line,) = problems(**{name: typed})
    assert line.startswith(f"{name}=***: set it to a readable file")


def test_probes_that_outlast_the_ttl_are_doubted_also_where_it_is_for_their_time() -> None:
    variables = {"SERVICE_HEALTH_RETRIES": "6"}
    assert agent.doubts_about(settings(**variables), variables) == []
    (line,) = agent.doubts_about(settings(**variables, SERVICE_HEALTH_TIMEOUT="15"), variables)
    assert line.startswith("SERVICE_HEALTH_RETRIES=")


UTF_16 = "the file is UTF-16"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (codecs.BOM_UTF8 + f"{SECRET}\r\n".encode(), ""),
        (codecs.BOM_UTF8 + b"\r\n", "it must hold one token"),
        (codecs.BOM_UTF16_LE + f"{SECRET}\r\n".encode("utf-16-le"), UTF_16),
        (codecs.BOM_UTF16_BE + f"{SECRET}\r\n".encode("utf-16-be"), UTF_16),
        (f"{SECRET}\r\n".encode("utf-16-le"), UTF_16),
    ],
)
def test_token_files_as_windows_writes_them(tmp_path: Path, content: bytes, problem: str) -> None:
    named = {"REGISTRY_TOKEN_FILE": str(tmp_path / "token")}
    (tmp_path / "token").write_bytes(content)
    if problem:
        (line,) = problems(**named)
        assert re.match(f"REGISTRY_TOKEN_FILE=.* that holds the token .{problem}", line)
    else:
        assert agent.choose_token(settings(**named)).now() == SECRET


# ---- words for what has no bytes


def test_a_refused_connection_alone_brings_the_hint_about_port_8888(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refused = ConnectionRefusedError(111, "Connection refused")
    late, closed = agent.LateError("no answer within 1 s"), http.client.RemoteDisconnected("closed")
    unknown = socket.gaierror(socket.EAI_NONAME, "unknown")
    for port, failure in itertools.product((8888, 8889), (refused, late, closed, unknown, None)):
        url = f"http://vertice-register-lb:{port}"
        registry = agent.choose_registry(settings(REGISTRY_URL=url), agent.Signals())
        answer = Answer(0 if failure else 502, failure=failure)
        monkeypatch.setattr(registry.peer, "exchange", lambda *_, answer=answer: answer)
        hinted = "8888 is its port on the host" in registry.register({}, 1).advice
        assert hinted == (failure is refused and port == 8888), failure


def test_json_is_one_object_a_line_with_time_level_and_message() -> None:
    log, record = agent.Log(plain=False), logging.makeLogRecord({"levelname": "INFO"})
    record.msg, record.created = 'say "no"\u2028 größer', 86400.5
    assert log.format(record) == '1970-01-02T00:00:00Z INFO say "no"\u2028 größer\n'
    log.as_json = True
    line = log.format(record)
    assert line.isascii()
    told: dict[str, Any] = {"time": "1970-01-02T00:00:00Z", "level": "INFO", "message": record.msg}
    assert line == json.dumps(told) + "\n"


@pytest.mark.parametrize("script", [AGENT, HEALTHCHECK])
def test_a_script_points_to_no_file_that_is_not_there(script: Path) -> None:
    names = set(re.findall(r"\b[\w./-]+\.(?:md|rst|py|sh|txt|ya?ml|toml)\b", script.read_text()))
    assert {name for name in names if not (ROOT / name).is_file()} == set()
