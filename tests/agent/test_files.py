"""The files that settings name: a renewed token, headers or authorities count, a bad one costs nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.server import Answer, Exchange, Peer, Request
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


# ---- authorities


class Secure(NamedTuple):
    """A pair of peers of which one speaks https, and how the agent gets to know its authority."""

    registry: Registry
    service: ToyService
    peer: Peer
    settings: dict[str, Any]


@contextmanager
def secured(side: str, variable: str, directory: Path, ca_file: Path) -> Iterator[Secure]:
    """Run both peers, that of the side with a certificate whose authority the file holds."""
    tls, issued = certificate(directory, "127.0.0.1")
    replace(ca_file, Path(issued).read_text())
    registry = Registry(ttl=4.0, tls=tls if side == "REGISTRY" else None)
    service = ToyService(tls=tls if side == "SERVICE" else None)
    settings: dict[str, Any] = {variable: ca_file, "HEARTBEAT_INTERVAL": 0.5}
    if side == "SERVICE":
        settings |= {"SERVICE_SCHEME": "https", "SERVICE_HEALTH_RETRIES": 100}
    with registry, service:
        yield Secure(registry, service, registry if side == "REGISTRY" else service, settings)


SIDES = [("REGISTRY", "REGISTRY_CA_FILE"), ("SERVICE", "SERVICE_CA_FILE")]
ALL_SIDES = [*SIDES, ("REGISTRY", "SSL_CERT_FILE"), ("SERVICE", "SSL_CERT_FILE")]


@pytest.mark.parametrize(("side", "variable"), ALL_SIDES)
def test_a_renewed_authority_is_believed_at_the_next_connection(
    tmp_path: Path, side: str, variable: str
) -> None:
    ca_file = tmp_path / "ca.pem"
    with (
        secured(side, variable, tmp_path, ca_file) as place,
        Sidecar(place.registry, place.service, **place.settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        place.peer.stop()
        tls, issued = certificate(tmp_path, "127.0.0.1")
        replace(ca_file, Path(issued).read_text())
        place.peer.certify(tls)
        place.peer.start()
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 3)
        assert not sidecar.count("certificate")


@pytest.mark.parametrize(("side", "variable"), SIDES)
def test_while_the_file_of_authorities_is_bad_those_of_before_count(
    tmp_path: Path, side: str, variable: str
) -> None:
    ca_file = tmp_path / "ca.pem"
    with (
        secured(side, variable, tmp_path, ca_file) as place,
        Sidecar(place.registry, place.service, **place.settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        replace(ca_file, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        for _ in range(2):  # so that the registry's connection is a new one each time
            place.peer.stop()
            place.peer.start()
            accepted = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=accepted + 3)
        assert sidecar.count(f" WARNING {variable}.* cannot be read") == 1
        tls, issued = certificate(tmp_path, "127.0.0.1")
        place.peer.stop()
        replace(ca_file, Path(issued).read_text())
        place.peer.certify(tls)
        place.peer.start()
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 3)
        assert not sidecar.count("certificate refused")


# ---- SSL_CERT_FILE, which stands in where no CA file is set


def test_ssl_cert_file_counts_on_the_side_that_has_no_file_of_its_own(tmp_path: Path) -> None:
    places = [tmp_path / side for side in ("registry", "service")]
    for place in places:
        place.mkdir()
    (registry_tls, registry_ca), (service_tls, service_ca) = (
        certificate(place, "127.0.0.1") for place in places
    )
    settings = {"SERVICE_SCHEME": "https", "HEARTBEAT_INTERVAL": 0.5}
    sides = (
        {"REGISTRY_CA_FILE": registry_ca, "SSL_CERT_FILE": service_ca},
        {"SERVICE_CA_FILE": service_ca, "SSL_CERT_FILE": registry_ca},
    )
    for files in sides:
        with (
            Registry(tls=registry_tls) as registry,
            ToyService(tls=service_tls) as service,
            Sidecar(registry, service, **settings, **files) as sidecar,
        ):
            sidecar.wait_for("Heartbeat accepted")
            assert not sidecar.count("WARNING")


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


# ---- the headers of a probe


def test_headers_that_go_bad_are_told_once_and_count_again_when_they_are_back(
    tmp_path: Path, registry: Registry, service: ToyService
) -> None:
    file = tmp_path / "headers"
    file.write_text("X-Key: first-key")
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 0.3, "SERVICE_HEALTH_HEADERS_FILE": file}
    told = " WARNING SERVICE_HEALTH_HEADERS_FILE.* cannot be read"

    def sends(key: str) -> None:
        met = service.count("health")
        wait_until(lambda: service.count("health") >= met + 3)
        keys = {request.headers["X-Key"] for request in service.requests[met + 1 :]}
        assert keys == {key}

    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()
        file.unlink()
        sends("first-key")
        assert sidecar.count(told) == 1
        replace(file, "X-Key: second-key")
        sends("second-key")
        replace(file, "no header at all")
        sends("second-key")
        assert sidecar.count(told) == 2
