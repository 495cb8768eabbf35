"""The token and URL credentials go to the registry and nowhere else.

No peer writes into the log as it likes.
"""

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import pytest

import agent
from kit.peers.faults import FORGED, NASTY, Fault
from kit.peers.registry import Registry
from kit.peers.server import Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, environment, odd_lines, run_agent, wait_until
from kit.stage import Stage

SECRET = "5f1e0c9ab7d2e386"  # no five of its characters are a port
TOKEN = f"tok-{SECRET}"
ODD_TOKEN = f'a/"b\\{SECRET}+%&='  # looks different in JSON, in Python's repr and in a URL
NEEDED = {"SERVICE_NAME": NAME, "SERVICE_HOST": "127.0.0.1", "REGISTRY_URL": "http://127.0.0.1:9"}
REDIRECTS = (
    ("health", 301), ("register", 302), ("heartbeat", 303), ("heartbeat", 300), ("list", 307),
     ("deregister", 308),
)  # fmt: skip


def meet(sidecar: Sidecar, peer: Peer, operation: str, fault: Any) -> None:
    """Play a fault on an endpoint until the agent has judged it.

    After "deregister" the agent has ended.
    """
    peer.play(operation, fault, times=FOREVER)
    if operation == "register":
        assert isinstance(peer, Registry)
        peer.forget()
    if operation == "deregister":
        assert sidecar.stop()[0] == 0
    else:
        met = peer.count(operation)
        wait_until(
            lambda: peer.count(operation) >= met + 2,
            30,
            f"{operation} asked again in:\n{sidecar.log}",
        )
    peer.sane(operation)


def messages(sidecar: Sidecar) -> list[str]:
    """Return the messages of a log in JSON."""
    return [str(json.loads(line)["message"]) for line in sidecar.lines]


def leaks(secret: str, text: str) -> list[str]:
    """Return the pieces of the secret, of 5 characters, that are in the text."""
    return [secret[at : at + 5] for at in range(len(secret) - 4) if secret[at : at + 5] in text]


# ---- the token in the log


def reply(status: int, body: object = None, **headers: str) -> Fault:
    return lambda exchange: exchange.reply(status, body, headers)


def echoes(token: str) -> dict[str, Fault]:
    """Return the ways in which a registry may send the token back."""

    def no_http(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.raw(f"X-Registry-Token: {token}\r\n\r\n".encode())

    return {
        "detail": reply(500, {"detail": f"{token} refused"}),
        "401": reply(401, {"detail": f"Invalid registry token {token}"}),
        "404": reply(404, {"detail": f"no {token}"}),
        "text": reply(500, f"token {token} refused"),
        "cut by the log": reply(500, {"detail": "x" * 185 + token}),
        "no HTTP": no_http,
        "path": reply(307, None, Location=f"http://127.0.0.1:9/{token}/login"),
        "query": reply(307, None, Location=f"/login?again={token}"),
        "credentials": reply(307, None, Location=f"http://user:{token}@127.0.0.1:9/"),
        "escaped path": reply(
            307, None, Location=f"http://127.0.0.1:9/{quote(token, safe='')}/login"
        ),
        "lower-case escapes": reply(
            307, None, Location="/" + re.sub("%..", lambda m: m[0].lower(), quote(token, ""))
        ),
        "escaped text": reply(500, json.dumps([token])),
        "twice escaped text": reply(500, json.dumps([json.dumps([token])])),
        "escaped, but not what is no ASCII": reply(500, json.dumps([token], ensure_ascii=False)),
        "escaped detail": reply(422, {"detail": [{"input": {"X-Registry-Token": token}}]}),
    }


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_registry_that_echoes_the_token_brings_it_into_no_log(kind: str) -> None:
    settings = {"LOG_LEVEL": "DEBUG", "LOG_FORMAT": kind, "REGISTRY_TOKEN": ODD_TOKEN}
    with (
        Registry(token=ODD_TOKEN) as registry,
        ToyService(
            extra={"version": ODD_TOKEN}
        ) as service,  # a service has no token, but it may have the same
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.25, **settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        shown = []
        for fault in echoes(ODD_TOKEN).values():
            meet(sidecar, registry, "heartbeat", fault)
            shown.append(sidecar.heartbeat_file.read_text())
        meet(sidecar, registry, "register", "echo_token")
        shown += [sidecar.heartbeat_file.read_text(), sidecar.health()[1]]
        meet(sidecar, registry, "deregister", "echo_token")
        assert sidecar.count("Deregistration failed") == 1
        assert sidecar.log.count("***") >= 10
        said = "\n".join([sidecar.log, *shown])
        assert not leaks(SECRET, said), [line for line in said.splitlines() if leaks(SECRET, line)]


SHORT = f"token {TOKEN[:12]}"  # the beginning of a body that ends inside the token


def cut_off_at_once(exchange: Exchange) -> None:
    """Send what is no HTTP, and ends inside the token."""
    exchange.close_connection = True
    exchange.raw(SHORT.encode())


def cut_off(exchange: Exchange) -> None:
    """Promise more than is sent."""
    exchange.close_connection = True
    exchange.raw(f"HTTP/1.1 500 Oops\r\nContent-Length: 1000\r\n\r\n{SHORT}".encode())


PARTS: dict[str, Fault] = {
    "a line that is no HTTP": cut_off_at_once,
    "cut off": cut_off,
    "over 64 KB": reply(500, "x" * 65_000 + TOKEN * 100),
    # What is kept of it ends inside the token, and blanks before it count for nothing.
    "over 64 KB, blank": reply(500, " " * (65_536 - 12) + TOKEN * 100),
}


@pytest.mark.parametrize("kind", PARTS)
def test_a_body_that_is_not_whole_is_not_quoted(service: ToyService, kind: str) -> None:
    with Registry() as registry:
        settings: dict[str, Any] = {"REGISTRY_TOKEN": TOKEN, "HEARTBEAT_INTERVAL": 0.5}
        with Sidecar(registry, service, **settings) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            meet(sidecar, registry, "heartbeat", PARTS[kind])
            line = sidecar.wait_for("Heartbeat failed .*(500|does not speak HTTP)")
            assert "xxx" not in line
            assert not leaks(TOKEN, sidecar.log + sidecar.heartbeat_file.read_text())


# ---- how long it takes to look for them


@pytest.mark.parametrize("filler", ["%5c", "%5C%5C\\\\"])
def test_what_a_peer_says_is_searched_in_linear_time(service: ToyService, filler: str) -> None:
    """CPU time, not time: for each answer, of 16 and of 64 KB."""
    with Registry(ttl=60.0) as registry:
        url = registry.url.replace("//", r"//u:%5C%5Cx@")
        settings: dict[str, Any] = {"REGISTRY_URL": url, "HEARTBEAT_INTERVAL": 0.5}
        with Sidecar(None, service, **settings) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            process = psutil.Process(sidecar.pid)

            def cost(size: int) -> float:
                """Return the seconds of CPU that ten heartbeats take that fail with such a body."""
                registry.play(
                    "heartbeat", reply(500, filler * (size // len(filler))), times=FOREVER
                )
                asked = registry.count("heartbeat")
                wait_until(lambda: registry.count("heartbeat") > asked, 30)
                before, asked = process.cpu_times().user, registry.count("heartbeat")
                wait_until(lambda: registry.count("heartbeat") >= asked + 10, 60)
                registry.sane()
                return float(process.cpu_times().user - before)

            small, large = cost(16_000), cost(64_000)
            assert large < 5 * small + 0.5
            assert sidecar.count("Heartbeat failed .* 500") >= 10


# ---- what would blot out the whole log, and what must not show


def test_header_values_of_a_few_characters_leave_the_log_readable(
    tmp_path: Path, service: ToyService
) -> None:
    file = tmp_path / "headers"
    file.write_text(f"X-Tenant: 1\nX-Scheme: http\nX-Short: osint\nX-Key: {SECRET}\n")
    registry = Registry()  # not started
    with Sidecar(registry, service, SERVICE_HEALTH_HEADERS_FILE=file) as sidecar:
        line = sidecar.wait_for("Registration failed")
        assert f"registry at {registry.url}: connection refused" in line
        service.play("health", reply(503, {"detail": f"key {SECRET}"}), times=FOREVER)
        sidecar.wait_for("Health probe .* failed: 503: key \\*\\*\\*$")
        assert "***" not in "".join(line for line in sidecar.lines if "503" not in line)


MISTYPED = {
    "REGISTRY_TOKEN_FILE": TOKEN,
    "SERVICE_HEALTH_HEADERS_FILE": f"Authorization: Bearer {SECRET}",
}


@pytest.mark.parametrize("kind", ["text", "json"])
@pytest.mark.parametrize("arguments", [[], ["--check"]], ids=str)
def test_a_secret_in_the_place_of_its_file_is_refused_and_hidden(
    arguments: list[str], kind: str
) -> None:
    for secret in (TOKEN, f"Ab/c+{SECRET}==", f"/{SECRET}/x"):
        variables = NEEDED | MISTYPED | {"REGISTRY_TOKEN_FILE": secret, "LOG_FORMAT": kind}
        done = run_agent(variables, *arguments)
        assert done.returncode == 2
        for name in MISTYPED:
            assert f"Bad setting: {name}=***: set it to a readable file" in done.stdout
        assert not leaks(SECRET, done.stdout)
        assert len(done.stdout.splitlines()) == len(MISTYPED)


def test_the_path_of_a_file_that_is_not_there_is_shown(tmp_path: Path) -> None:
    for name in MISTYPED:
        path = tmp_path / "tokne"
        done = run_agent(NEEDED | {name: str(path)})
        assert done.returncode == 2
        assert f"Bad setting: {name}={path}: set it to a readable file" in done.stdout
        assert "no such file" in done.stdout.lower()


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_traceback_tells_no_secret(registry: Registry, service: ToyService, kind: str) -> None:
    """The system's list of networks raises what it never does: a bug, for the agent."""
    settings: dict[str, Any] = {"REGISTRY_TOKEN": ODD_TOKEN, "LOG_FORMAT": kind}
    sidecar = Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, **settings)
    registry.token = ODD_TOKEN
    stage = Stage(sidecar)
    with sidecar:
        sidecar.wait_for("Heartbeat accepted")
        stage.set(networks=f"not {ODD_TOKEN}, {json.dumps(ODD_TOKEN)}, {quote(ODD_TOKEN)}")
        assert sidecar.wait() == 1
        assert sidecar.count("A bug in the sidecar") == 1
        assert sidecar.count("RuntimeError: not ") == 1
        assert not leaks(SECRET, sidecar.log)


# ---- where secrets go


def carried(peer: Peer) -> str:
    """Return all that was sent to a peer."""
    return "\n".join(
        f"{request.path}\n{request.headers}\n{request.body!r}" for request in peer.requests
    )


def test_a_redirect_is_a_failure_that_names_its_target_and_the_token_goes_to_the_registry_alone(
    service: ToyService,
) -> None:
    with (
        Peer() as elsewhere,
        Registry(token=TOKEN) as registry,
        Sidecar(
            registry,
            service,
            HEARTBEAT_INTERVAL=0.2,
            SERVICE_HEALTH_RETRIES=100,
            REGISTRY_TOKEN=TOKEN,
        ) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        for operation, code in REDIRECTS:
            target = f"{elsewhere.url}/{operation}"
            meet(
                sidecar,
                service if operation == "health" else registry,
                operation,
                ["redirect", target, code],
            )
            line = sidecar.wait_for(rf"{code}, a redirect to {target}, which is not followed")
            assert ("set REGISTRY_URL to" in line) == (operation != "health")
        assert elsewhere.connections == 0
        assert not leaks(SECRET, carried(service))
        assert {request.headers["X-Registry-Token"] for request in registry.requests} == {TOKEN}
        assert not leaks(
            SECRET, "".join(request.body.decode() + request.path for request in registry.requests)
        )


CREDENTIALS = [
    (f"ann:w%C3%B6rd{SECRET}", f"ann:wörd{SECRET}"),
    (f"%E2%82%AC:{SECRET}%e2%82%ac", f"€:{SECRET}€"),
    (f"user:p%40%3a{SECRET}", f"user:p@:{SECRET}"),
    (f"{SECRET}:", f"{SECRET}:"),  # a key as the user, as some do
]


@pytest.mark.parametrize(("written", "meant"), CREDENTIALS)
def test_url_credentials_go_to_the_registry_alone(
    service: ToyService, written: str, meant: str
) -> None:
    basic = base64.b64encode(meant.encode()).decode()
    with Registry() as registry:
        url = registry.url.replace("//", f"//{written}@")
        settings: dict[str, Any] = {
            "REGISTRY_URL": url,
            "LOG_LEVEL": "DEBUG",
            "HEARTBEAT_INTERVAL": 0.5,
        }
        with Sidecar(None, service, **settings) as sidecar:
            sidecar.wait_for("Heartbeat accepted")
            meet(sidecar, registry, "heartbeat", "echo_token")
            shown = sidecar.heartbeat_file.read_text() + sidecar.health()[1]
            meet(sidecar, registry, "register", reply(500, {"detail": f"{written} {meant}"}))
            moved = f"HTTP/1.1 307 Moved\r\nLocation: /{meant}/x\r\nContent-Length: 0\r\n\r\n"
            meet(sidecar, registry, "heartbeat", raw(moved))
            meet(sidecar, registry, "heartbeat", raw(f"{meant}\r\n\r\n"))
            meet(sidecar, registry, "deregister", "echo_token")
            assert {request.headers["Authorization"] for request in registry.requests} == {
                f"Basic {basic}"
            }
            assert not leaks(SECRET, sidecar.log + shown)
            assert not leaks(basic, sidecar.log + shown)
            assert not leaks(
                SECRET, "".join(request.body.decode() for request in registry.requests)
            )
            assert not leaks(SECRET, carried(service))
            assert "Authorization" not in carried(service)


@pytest.mark.parametrize(("written", "meant"), CREDENTIALS)
def test_url_credentials_of_the_health_endpoint_go_to_the_service_alone(
    registry: Registry, service: ToyService, written: str, meant: str
) -> None:
    basic = base64.b64encode(meant.encode()).decode()
    url = service.url.replace("//", f"//{written}@") + "/health"
    with Sidecar(registry, None, SERVICE_HEALTH_ENDPOINT=url, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        said = reply(503, {"detail": f"{written} {meant} {json.dumps(meant)} {basic}"})
        meet(sidecar, service, "health", said)
        shown = sidecar.log + sidecar.heartbeat_file.read_text()
        assert {request.headers["Authorization"] for request in service.requests} == {
            f"Basic {basic}"
        }
        assert not leaks(SECRET, shown)
        assert not leaks(basic, shown)
        assert not leaks(SECRET, carried(registry))
        assert "Authorization" not in carried(registry)


# ---- the token changes, or is refused


@pytest.mark.parametrize(
    ("variable", "dialect"),
    [
        ("REGISTRY_TOKEN", "documented"),
        ("VERTICE_REGISTRY_TOKEN", "deployed"),
        ("REGISTRY_AUTH_TOKEN", "documented"),
        ("REGISTRY_TOKEN_FILE", "deployed"),
        ("", "documented"),
    ],
)
def test_a_refused_token_is_explained_with_the_variable_to_set(
    tmp_path: Path, service: ToyService, variable: str, dialect: str
) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    settings: dict[str, Any] = (
        {variable: file if variable.endswith("FILE") else TOKEN} if variable else {}
    )
    refused = f"refuses the token .*Invalid registry token.*set {variable} to the registry's token"
    if variable == "REGISTRY_TOKEN_FILE":
        refused = "refuses the token .*: put the registry's token into the file that REGISTRY_TOKEN"
    if not variable:
        refused = "asks for a token, and none is set .*: set REGISTRY_TOKEN or REGISTRY_TOKEN_FILE"
    with (
        Registry(token=TOKEN if variable else None, dialect=dialect) as registry,
        Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5, **settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        registry.token = "another"
        sidecar.wait_for(f"Heartbeat failed .* {refused}")
        sidecar.wait_for(f"Registration failed .* {refused}")
        sidecar.stop()
        assert sidecar.count(f"Deregistration failed: .* {refused}") == 1
        assert not leaks(SECRET, sidecar.log)


# ---- proxies, netrc, redirects


def test_neither_proxies_nor_netrc_come_from_the_environment(
    tmp_path: Path, registry: Registry, service: ToyService
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    with Peer() as proxy:
        settings = dict.fromkeys([*names, *(name.lower() for name in names)], proxy.url)
        settings |= {"HOME": str(tmp_path), "NETRC": str(netrc)}
        with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.2, **settings) as sidecar:
            wait_until(lambda: registry.count("list"), 30)
            sidecar.stop()
        assert registry.count("deregister") == 1
        assert proxy.connections == 0
        assert "Authorization" not in carried(registry) + carried(service)

        # The same surroundings do tell requests to use them: first the netrc, then the proxy.
        plainly = [
            sys.executable,
            "-c",
            f"import requests; requests.get({service.url!r}, timeout=20)",
        ]
        subprocess.run(plainly, env=environment({"NETRC": netrc}), check=True, timeout=60)
        assert service.requests[-1].headers["Authorization"]
        subprocess.run(plainly, env=environment(settings), check=True, timeout=60)
        assert proxy.count() == 1


# ---- a peer writes into the log


def raw(text: str) -> Fault:
    """Return a fault that sends this, in UTF-8, and closes."""

    def play(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.raw(text.encode("utf-8", "surrogatepass"))

    return play


EVIL = (
    NASTY
    + "".join(map(chr, (*range(32), *range(0x7F, 0xA0))))
    + "\u202a\u202b\u202d\u2067\u2068\u2069\u200f\udc9b"
)
HEAD = "Content-Type: application/json\r\nContent-Length: 0\r\n"
FORGERIES: dict[str, Fault] = {
    "reason": raw(f"HTTP/1.1 500 {EVIL}\r\n{HEAD}\r\n"),
    "reason with CR": raw(f"HTTP/1.1 500 Oops\r{FORGED}\r\n{HEAD}\r\n"),
    "status": raw(f"HTTP/1.1 5\x1b[31m\u2028{FORGED}\r\n\r\n"),
    "version": raw(f"HTTP/9\x1b\u202e\r{FORGED} 500 Oops\r\n\r\n"),
    "no HTTP": raw(EVIL),
    "header": raw(f"HTTP/1.1 500 Oops\r\nX: {EVIL}\r\n{HEAD}\r\n"),
    "header's name": raw(f"HTTP/1.1 500 Oops\r\n\x1b{EVIL}: x\r\n{HEAD}\r\n"),
    "Retry-After": raw(f"HTTP/1.1 429 Slow\r\nRetry-After: \x1b\x9b\r{FORGED}\r\n{HEAD}\r\n"),
    "length": raw(f"HTTP/1.1 500 Oops\r\nContent-Length: 1\x1b\u2028, 2\r{FORGED}\r\n\r\n"),
    "encoding": raw(f"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n\x1b{FORGED}\r\n"),
    "Location": raw(
        f"HTTP/1.1 307 Moved\r\nLocation: http://x/\x1b[2J\x9b\u202e\u2028{FORGED}\r{FORGED}\r\n"
        f"{HEAD}\r\n"
    ),
    "detail": reply(500, {"detail": EVIL}),
    "nested detail": reply(422, {"detail": [{"msg": EVIL, EVIL: EVIL}]}),
    "text": reply(500, EVIL),
    "text that begins so": reply(500, f"\n{FORGED}\n{FORGED}"),
    "not UTF-8": reply(500, b"\x1b[31m\x9b\xff\xfe\n" + FORGED.encode()),
}
METADATA: list[object] = [
    {"version": EVIL, "status": EVIL},
    {"version": [EVIL], "status": {EVIL: EVIL}},
]


def check_log(sidecar: Sidecar, kind: str) -> None:
    """Check that every line is the agent's own and can be shown on any terminal."""
    if kind == "text":
        assert not odd_lines(sidecar.lines)
        return
    assert sidecar.log.replace("\n", "").isascii()
    assert all(line.isprintable() for line in [*sidecar.lines, *messages(sidecar)])
    assert not [message for message in messages(sidecar) if message.startswith(FORGED)]


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_registry_writes_nothing_of_its_own_into_the_log(service: ToyService, kind: str) -> None:
    with (
        Registry() as registry,
        Sidecar(
            registry, service, HEARTBEAT_INTERVAL=0.25, LOG_LEVEL="DEBUG", LOG_FORMAT=kind
        ) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        for fault in FORGERIES.values():
            meet(sidecar, registry, "heartbeat", fault)
            assert sidecar.heartbeat_file.read_text().rstrip("\n").isprintable()
        sidecar.stop()
        assert sidecar.count(r"\\x1b\[") >= 3  # what it says is not left out, either
        check_log(sidecar, kind)


@pytest.mark.parametrize("kind", ["text", "json"])
def test_a_service_writes_nothing_of_its_own_into_the_log(service: ToyService, kind: str) -> None:
    with (
        Registry() as registry,
        Sidecar(
            registry,
            service,
            HEARTBEAT_INTERVAL=0.5,
            SERVICE_HEALTH_RETRIES=100,
            LOG_LEVEL="DEBUG",
            LOG_FORMAT=kind,
        ) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        for fault in FORGERIES.values():
            meet(sidecar, service, "health", fault)
            assert sidecar.heartbeat_file.read_text().rstrip("\n").isprintable()
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 1)
        registrations = sidecar.count("Service registered successfully")
        for health in METADATA:
            changes = sidecar.count("Service has changed")
            service.body = health
            sidecar.wait_for("Service has changed", times=changes + 1)
        sidecar.wait_for("Service registered successfully", times=registrations + 2)
        sidecar.stop()
        check_log(sidecar, kind)


def test_no_character_of_unicode_controls_the_log() -> None:
    few = 19  # so many at once are not cut, at 10 characters for an escaped one
    for start in range(0, sys.maxunicode + 1, few):
        said = agent.say_plain(
            "".join(map(chr, range(start, min(start + few, sys.maxunicode + 1))))
        )
        assert said.isprintable()
        assert len(said) < 200


def test_a_service_that_says_the_token_before_it_was_ever_sent_brings_it_into_no_log(
    registry: Registry, service: ToyService
) -> None:
    token = "5f1e0c9ab7d2-before"
    service.play("health", ["status", 503, {"detail": f"my token is {token}"}], times=FOREVER)
    with Sidecar(registry, service, REGISTRY_TOKEN=token) as sidecar:
        sidecar.wait_for(r"Waiting for the service .*my token is \*\*\*$")
        assert token not in sidecar.log
