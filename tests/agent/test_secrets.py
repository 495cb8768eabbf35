"""Secrets go where they belong and nowhere else; and no peer writes into the log as it likes.

Each source of a secret (the token, its file, the credentials in both URLs, the file of headers, and
what renews a file) meets each way out: the log as text and as JSON, the line with the settings, a
traceback, the heartbeat file, the output of --check.
"""

import base64
import functools
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from agent import ACCEPTED
from kit.parts import advice_of, client, prober, problem_of
from kit.peers.faults import FORGED, NASTY, Fault, raw, status
from kit.peers.registry import Registry
from kit.peers.server import Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, run_agent, wait_until
from kit.stage import Stage


def odd(core: str) -> str:
    """Return a secret that looks different in JSON, in Python's repr and in a URL."""
    return f'a/"b\\{core}+%&='


def basic(credentials: str) -> str:
    return base64.b64encode(credentials.encode()).decode()


FIRST = {  # no five characters of one stand in another, or in what the agent says
    "token": odd("qzvkwjxhbgfpmtrd"),
    "password": "€:xkqjzwvbhgpfdmtc",  # of the registry's URL
    "header": odd("jqxwzkvhgbfpmcnd"),
    "basic": "zxqvjkwgbhpfmdcl",
    "key": "wvzqxjkbgphfmdls",  # the user in the service's URL, without a password
}
LATER = {"new token": odd("kxzjqvwhpbgfdmrs"), "new header": odd("vqzwkxjgfbhpmdtl")}
ALL = FIRST | LATER
SENT = {  # what an Authorization header, or one like it, has of them
    "password": basic(f"€:{FIRST['password']}"),
    "basic": basic(f"ann:{FIRST['basic']}"),
    "key": basic(f"{FIRST['key']}:"),
}


def leaks(text: str) -> list[str]:
    """Return the pieces of any secret, of 5 characters, that are in the text."""
    cores = [*re.findall("[a-z]{16}", " ".join(ALL.values())), *SENT.values()]
    assert len(cores) == len(ALL) + len(SENT)
    pieces = {core[at : at + 5] for core in cores for at in range(len(core) - 4)}
    return [piece for piece in pieces if piece in text]


def told(name: str) -> str:
    """Return what a peer says that has got this secret, in all forms."""
    secret = ALL[name]
    text = json.dumps(secret)
    forms = (secret, text, json.dumps(text), quote(secret, safe=""), SENT.get(name, secret))
    return f"{name}: {' '.join(forms)}"


def write_headers(file: Path, secret: str) -> None:
    """Write a file of headers; those of a few characters are no secrets."""
    few = "X-Tenant: 1\nX-Scheme: http\nX-Short: failed"
    file.write_text(f"X-Key: {secret}\nX-Auth: Basic {SENT['basic']}\n{few}\n")


def carrying(
    directory: Path, registry: Peer, service: Peer, variable: str, **settings: object
) -> dict[str, Any]:
    """Return the settings of an agent with all the first secrets."""
    headers, token = directory / "headers", directory / "token"
    write_headers(headers, FIRST["header"])
    token.write_text(FIRST["token"])
    written = f"%E2%82%AC:{quote(FIRST['password'], safe='')}"
    return settings | {
        variable: token if variable.endswith("FILE") else FIRST["token"],
        "REGISTRY_URL": registry.url.replace("//", f"//{written}@"),
        "SERVICE_HEALTH_HEADERS_FILE": headers,
        "SERVICE_HEALTH_ENDPOINT": service.url.replace("//", f"//{FIRST['key']}:@") + "/health",
    }


def carried(peer: Peer, *headers: str) -> str:
    """Return all that was sent to a peer, but not these headers."""
    lines = []
    for each in peer.requests:
        others = [item for item in each.headers.items() if item[0] not in headers]
        lines.append(f"{each.path} {others} {each.body!r}")
    return "\n".join(lines)


def sent(peer: Peer, header: str) -> set[str]:
    """Return the values of a header in what was sent to a peer."""
    return {request.headers[header] for request in peer.requests}


@pytest.mark.parametrize(
    ("variable", "kind"), [("REGISTRY_TOKEN", "json"), ("REGISTRY_TOKEN_FILE", "text")]
)
def test_no_secret_gets_into_the_log_the_heartbeat_file_or_the_wrong_hands(
    tmp_path: Path, registry: Registry, service: ToyService, variable: str, kind: str
) -> None:
    quick: dict[str, Any] = {"HEARTBEAT_INTERVAL": 0.5, "SERVICE_HEALTH_RETRIES": 100}
    logged: dict[str, Any] = {"LOG_FORMAT": kind, "LOG_LEVEL": "DEBUG"}
    settings = carrying(tmp_path, registry, service, variable, **quick, **logged)
    sidecar, shown = Sidecar(**settings), [""]
    stage = Stage(sidecar)
    registry.ttl = 60

    def hear(peer: Peer, operation: str, names: Sequence[str]) -> None:
        """Let a peer say all these secrets, in turn; note what the heartbeat file shows."""
        turns = itertools.cycle(names)

        def play(exchange: Exchange) -> None:
            shown.append(sidecar.heartbeat_file.read_text())
            exchange.reply(503, {"detail": told(next(turns))})

        met = peer.count(operation)
        peer.play(operation, play, times=FOREVER)
        wait_until(lambda: peer.count(operation) > met + len(names) + 1)
        wait_until(lambda: all(any(f"{name}: ***" in line for line in shown) for name in names))
        peer.sane()

    service.healthy = False
    with sidecar:
        hear(service, "health", [*FIRST])  # before anything was sent to the registry
        service.healthy = True
        sidecar.wait_for("Heartbeat accepted")
        names = list(FIRST)
        write_headers(tmp_path / "headers", LATER["new header"])
        wait_until(lambda: LATER["new header"] in sent(service, "X-Key"))
        if variable.endswith("FILE"):
            (tmp_path / "token").write_text(LATER["new token"])
            wait_until(lambda: LATER["new token"] in sent(registry, "X-Registry-Token"))
            names.append("new token")
        names.append("new header")
        hear(registry, "heartbeat", names)
        hear(service, "health", names)
        stage.set(networks=" ".join(map(told, names)))
        assert sidecar.wait() == 1

    assert "Registry sidecar starts" in sidecar.lines[0]
    assert sidecar.count("A bug in the sidecar") == sidecar.count("RuntimeError: token: ") == 1
    for name in names:
        for what in ("Heartbeat failed", "Health probe"):
            assert sidecar.count(rf"{what}.* 503: {name}: \*\*\*"), name
    assert not leaks(sidecar.log + "".join(shown))
    if kind == "json":
        assert all(json.loads(line)["message"] for line in sidecar.lines)

    assert sent(registry, "Authorization") == {f"Basic {SENT['password']}"}
    assert not leaks(carried(registry, "Authorization", "X-Registry-Token"))
    assert sent(service, "Authorization") == {f"Basic {SENT['key']}"}
    assert not leaks(carried(service, "Authorization", "X-Key", "X-Auth"))


@pytest.mark.parametrize("variable", ["REGISTRY_TOKEN", "REGISTRY_TOKEN_FILE"])
def test_no_secret_gets_into_what_a_check_prints(
    tmp_path: Path, registry: Registry, service: ToyService, variable: str
) -> None:
    settings = carrying(tmp_path, registry, service, variable, SERVICE_NAME=NAME)
    settings |= {"SERVICE_HOST": "127.0.0.1", "HEARTBEAT_FILE": tmp_path / "heartbeat"}
    said = ["status", 503, {"detail": " ".join(FIRST.values())}]
    service.play("health", said)
    registry.play("list" if variable == "REGISTRY_TOKEN" else "heartbeat", said)
    done = run_agent(settings, "--check")
    assert done.returncode == 1
    assert done.stdout.count("503: " + " ".join(["***"] * len(FIRST))) == 2
    assert not leaks(done.stdout)


# ---- the places where a registry may send the token back


def text(said: str) -> Fault:
    """Return a fault that sends this, in UTF-8, and closes."""
    return raw(said.encode("utf-8", "surrogatepass"))


def moved(place: str) -> Fault:
    """Return a redirect to there."""
    return status(307, "", {"Location": place})


TOKEN = FIRST["token"]
SHORT = f"token {TOKEN[:12]}"  # the beginning of a body that ends inside the token
ECHOES = {
    "detail": status(500, {"detail": f"{TOKEN} refused"}),
    "401": status(401, {"detail": f"Invalid registry token {TOKEN}"}),
    "404": status(404, {"detail": f"no {TOKEN}"}),
    "text": status(500, f"token {TOKEN} refused"),
    "cut by the log": status(500, {"detail": "x" * 185 + TOKEN}),
    "no HTTP": text(f"X-Registry-Token: {TOKEN}\r\n\r\n"),
    "path": moved(f"http://127.0.0.1:9/{TOKEN}/login"),
    "query": moved(f"/login?again={TOKEN}"),
    "credentials": moved(f"http://user:{TOKEN}@127.0.0.1:9/"),
    "in UTF-8": text(f"HTTP/1.1 307 No\r\nLocation: /€{TOKEN}/x\r\nContent-Length: 0\r\n\r\n"),
    "escaped path": moved(f"/{quote(TOKEN, safe='')}/login"),
    "escaped text": status(500, json.dumps([json.dumps([TOKEN])])),
    "nested detail": status(422, {"detail": [{"input": {"X-Registry-Token": TOKEN}}]}),
}
PARTS = {  # what is not whole is not quoted at all
    "a line that is no HTTP": text(SHORT),
    "cut off": text(f"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\n{SHORT}"),
    "over 64 KB": status(500, "x" * 65_000 + TOKEN * 100),
    # What is kept of it ends inside the token, and blanks before it count for nothing.
    "over 64 KB, blank": status(500, " " * (65_536 - 12) + TOKEN * 100),
}


@pytest.mark.parametrize("place", [*ECHOES, *PARTS])
def test_a_token_that_is_sent_back_is_not_said(registry: Registry, place: str) -> None:
    registry.play("heartbeat", (ECHOES | PARTS)[place])
    answer = client(registry, REGISTRY_TOKEN=TOKEN).heartbeat(5)
    for said in (answer.advice, answer.say()):
        assert ("***" in said) == (place in ECHOES)
        assert "500" in said or "HTTP" in said or place in ECHOES
        assert not leaks(said)
        assert "xxx" not in said or place in ECHOES


# ---- redirects, proxies, netrc


def test_a_redirect_is_a_failure_that_names_its_target(
    registry: Registry, service: ToyService
) -> None:
    asked, probed = client(registry, REGISTRY_TOKEN=TOKEN), prober(service)
    register = functools.partial(asked.register, {})
    ways = (register, 302), (asked.heartbeat, 303), (asked.heartbeat, 300), (asked.look, 307)
    with Peer() as elsewhere:
        for ask, code in (*ways, (asked.deregister, 308)):
            registry.play("*", ["redirect", elsewhere.url, code])
            advice = ask(5).advice
            assert f"{code}, a redirect to {elsewhere.url}, which is not followed" in advice
            assert "set REGISTRY_URL to" in advice
        service.play("health", ["redirect", elsewhere.url, 301])
        assert not probed.probe()
        told = f"301, a redirect to {elsewhere.url}, which is not followed"
        assert probed.problem == f"{told}; set SERVICE_HEALTH_ENDPOINT to its health check"
        assert elsewhere.connections == 0


def test_neither_proxies_nor_netrc_come_from_the_environment(
    tmp_path: Path, registry: Registry, service: ToyService, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(netrc))
    with Peer() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
            monkeypatch.setenv(name.lower(), proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        asked = client(registry)
        assert asked.register({}, 5).meaning == ACCEPTED
        for ask in (asked.heartbeat, asked.look, asked.deregister):
            assert ask(5).meaning == ACCEPTED
        assert prober(service).probe()
        assert proxy.connections == 0
        assert "Authorization" not in carried(registry) + carried(service)
        # The same surroundings do tell requests to use both.
        requests.get(service.url, timeout=20)
        assert proxy.requests[-1].headers["Authorization"]


# ---- a peer writes into the log

EVIL = (
    NASTY
    + "".join(map(chr, (*range(32), *range(0x7F, 0xA0))))
    + "\u202a\u202b\u202d\u2067\u2068\u2069\u200f\udc9b"
)
HEAD = "Content-Type: application/json\r\nContent-Length: 0\r\n"
FORGERIES = (
    text(f"HTTP/1.1 500 {EVIL}\r\n{HEAD}\r\n"),
    text(f"HTTP/1.1 500 Oops\r{FORGED}\r\n{HEAD}\r\n"),
    text(f"HTTP/1.1 5\x1b[31m\u2028{FORGED}\r\n\r\n"),
    text(f"HTTP/9\x1b\u202e\r{FORGED} 500 Oops\r\n\r\n"),
    text(EVIL),
    text(f"HTTP/1.1 500 Oops\r\nX: {EVIL}\r\n{HEAD}\r\n"),
    text(f"HTTP/1.1 500 Oops\r\n\x1b{EVIL}: x\r\n{HEAD}\r\n"),
    text(f"HTTP/1.1 429 Slow\r\nRetry-After: \x1b\x9b\r{FORGED}\r\n{HEAD}\r\n"),
    text(f"HTTP/1.1 500 Oops\r\nContent-Length: 1\x1b\u2028, 2\r{FORGED}\r\n\r\n"),
    text(f"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n\x1b{FORGED}\r\n"),
    text(f"HTTP/1.1 307 No\r\nLocation: /\x1b[2J\x9b\u202e\u2028{FORGED}\r{FORGED}\r\n{HEAD}\r\n"),
    status(500, {"detail": EVIL}),
    status(422, {"detail": [{"msg": EVIL, EVIL: EVIL}]}),
    status(500, EVIL),
    status(500, f"\n{FORGED}\n{FORGED}"),
    status(500, b"\x1b[31m\x9b\xff\xfe\n" + FORGED.encode()),  # not UTF-8
)


def test_no_peer_writes_into_the_log_as_it_likes(registry: Registry, service: ToyService) -> None:
    """What is said of it is one short printable line. It is not left out, either."""
    told = 0
    for fault in FORGERIES:
        for peer, say in ((registry, advice_of), (service, problem_of)):
            peer.play("*", fault)
            said = say(peer)
            assert not said.startswith(FORGED)
            told += r"\x1b[" in said
    assert told == 2 * 7


def test_no_service_puts_lines_into_the_log_by_what_it_tells_of_itself(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, LOG_FORMAT="json") as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        for health in ({"version": EVIL, "status": EVIL}, {"version": [EVIL], "status": {}}):
            changes = sidecar.count("Service has changed")
            service.body = health
            sidecar.wait_for("Service has changed", times=changes + 1)
        sidecar.stop()
    messages = [json.loads(line)["message"] for line in sidecar.lines]
    assert "".join(sidecar.lines).isascii()
    assert all(line.isprintable() for line in (*sidecar.lines, *messages))
