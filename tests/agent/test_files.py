"""Files that settings name: a renewed token or SSL_CERT_FILE counts, a bad one costs nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.server import Answer, Exchange, Request
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sidecar, wait_until

FIRST = 20  # renewals until the memory is looked at
GROWTH = 3 << 20  # bytes of memory that any number of renewals may cost; each once cost 280 KB


def replace(file: Path, text: str) -> None:
    """Replace the file in one step, as whoever renews a secret does."""
    draft = file.with_suffix(".draft")
    draft.write_text(text)
    draft.replace(file)


def bearer(number: int) -> str:
    """Return a secret of 900 characters that no other number shares a piece with."""
    return "".join(f"{number:07d}-{position:03d}." for position in range(75))


# ---- secrets that are renewed without end


class Renewing(ToyService):
    """Renews the file of headers and that of the token, and its version, at each probe."""

    def __init__(self, headers: Path, token: Path) -> None:
        super().__init__()
        self.headers, self.token = headers, token
        self.seen: list[str] = []  # the secrets that came, in their order
        self.renew()

    def renew(self) -> None:
        """Write the next secret into both files."""
        number = len(self.seen)
        self.version = str(number)
        replace(self.token, bearer(10_000 + number))
        replace(self.headers, f"Authorization: Bearer {bearer(number)}\nAccept: */*\n")

    def answer(self, request: Request) -> Answer:
        """Say how it is, or echo what it was sent last, and before."""
        secret = request.headers["Authorization"].removeprefix("Bearer ")
        if secret not in self.seen[-1:]:
            self.seen.append(secret)
        if self.healthy:
            self.renew()
            return super().answer(request)
        return Answer(503, {"detail": " and ".join(reversed(self.seen[-2:]))})


@pytest.mark.parametrize("renewals", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_secrets_that_are_renewed_all_the_time_cost_nothing_and_stay_hidden(
    tmp_path: Path, renewals: int
) -> None:
    headers, token = tmp_path / "headers", tmp_path / "token"
    settings: dict[str, Any] = {
        "SERVICE_HEALTH_HEADERS_FILE": headers,
        "REGISTRY_TOKEN_FILE": token,
        "HEARTBEAT_INTERVAL": 0.15,
        "SERVICE_HEALTH_RETRIES": 100,
    }
    with (
        Registry(ttl=60.0) as registry,
        Renewing(headers, token) as service,
        Sidecar(registry, service, **settings) as sidecar,
    ):
        process = psutil.Process(sidecar.pid)
        wait_until(lambda: len(service.seen) >= FIRST, 60)
        before = process.memory_info().rss

        def renewed() -> bool:
            assert process.memory_info().rss - before < GROWTH
            return len(service.seen) >= renewals

        wait_until(renewed, 60 + renewals)
        print(f"{renewals} renewals: RSS {before} B, then {process.memory_info().rss} B")
        registered = [each for each in registry.requests if each.operation == "register"]
        tokens = {request.headers["X-Registry-Token"] for request in registered}
        assert len(tokens) > 0.8 * renewals
        service.healthy = False  # and it echoes
        sidecar.wait_for(r"Health probe .* failed: 503: \*\*\* and \*\*\*$")
        sent: list[str] = []

        def echo(exchange: Exchange) -> None:
            secret = exchange.asked.headers["X-Registry-Token"]
            if secret not in sent[-1:]:
                sent.append(secret)
            exchange.reply(500, {"detail": " and ".join(sent[-2:])})

        registry.play("*", echo, times=FOREVER)
        service.healthy = True
        sidecar.wait_for(r" failed .* 500: \*\*\* and \*\*\*")
        sidecar.stop()
        assert not re.search(r"\d{7}-\d{3}", sidecar.log)


# ---- SSL_CERT_FILE, which stands in where no CA file is set


class Side(NamedTuple):
    """A certificate, its authority's file, and those that follow them."""

    tls: tuple[str, str]
    ca_file: str
    new_tls: tuple[str, str]
    new_ca_file: str


def side(directory: Path) -> Side:
    """Make the certificates of one side."""
    for each in ("old", "new"):
        (directory / each).mkdir(parents=True)
    old, new = (certificate(directory / each, "127.0.0.1") for each in ("old", "new"))
    return Side(*old, *new)


@pytest.mark.parametrize("own", ["REGISTRY_CA_FILE", "SERVICE_CA_FILE"])
def test_ssl_cert_file_counts_where_there_is_no_file_of_its_own_and_when_it_is_renewed(
    tmp_path: Path, own: str
) -> None:
    sides = {name: side(tmp_path / name) for name in ("REGISTRY_CA_FILE", "SERVICE_CA_FILE")}
    registry_side, service_side = sides.values()
    (other,) = (each for name, each in sides.items() if name != own)
    settings: dict[str, Any] = {
        "SERVICE_SCHEME": "https",
        "HEARTBEAT_INTERVAL": 0.5,
        own: sides[own].ca_file,
        "SSL_CERT_FILE": other.ca_file,
    }
    with (
        Registry(tls=registry_side.tls, keep_alive=False) as registry,
        ToyService(tls=service_side.tls) as service,
        Sidecar(registry, service, **settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        replace(Path(other.ca_file), Path(other.new_ca_file).read_text())
        peer = service if other is service_side else registry
        peer.certify(other.new_tls)
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 3)
        assert not sidecar.count(" WARNING (REGISTRY_|SERVICE_|SSL_)")


# ---- the token


def test_a_token_renewed_right_before_the_end_deregisters(
    tmp_path: Path, registry: Registry, service: ToyService
) -> None:
    file = tmp_path / "token"
    file.write_text("first-token")
    registry.token, registry.ttl = "first-token", 60
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 30, "REGISTRY_TOKEN_FILE": file}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()
        replace(file, "second-token")
        registry.token = "second-token"
        assert sidecar.stop()[0] == 0
        assert sidecar.count("Service deregistered") == 1
        assert registry.record(NAME) is None


BAD_TOKENS: dict[str, Any] = {
    "gone": Path.unlink,
    "empty": lambda file: replace(file, ""),
    "two words": lambda file: replace(file, "two words"),
    "UTF-16": lambda file: file.write_bytes("token".encode("utf-16")),
    "huge": lambda file: replace(file, "x" * 100_000),
}


@pytest.mark.parametrize("happen", BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_a_token_file_that_goes_bad_is_told_once_and_counts_again_when_it_is_back(
    tmp_path: Path, registry: Registry, service: ToyService, happen: Any
) -> None:
    file = tmp_path / "token"
    file.write_text("first-token")
    registry.token = "first-token"
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 0.5, "REGISTRY_TOKEN_FILE": file}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()
        happen(file)
        for times in (2, 3):
            registry.forget()
            sidecar.wait_registered(times)
        assert sidecar.count(" WARNING REGISTRY_TOKEN_FILE.* cannot be read") == 1
        replace(file, "second-token")
        registry.token = "second-token"
        registry.forget()
        sidecar.wait_registered(times=4, timeout=30)
        file.unlink()
        registry.forget()
        sidecar.wait_registered(times=5)
        assert sidecar.count(" WARNING REGISTRY_TOKEN_FILE.* cannot be read") == 2
        assert sidecar.stop()[0] == 0
        assert sidecar.count("Service deregistered") == 1
