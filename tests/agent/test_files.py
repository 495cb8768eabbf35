"""Files that settings name: a renewed token or SSL_CERT_FILE counts, a bad one costs nothing."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.server import Answer, Request
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
    return "".join(f"{number:07d}-{position:03d}/" for position in range(75))


# ---- secrets that are renewed without end


class Renewing(ToyService):
    """Renews the file of headers and that of the token, and its version, at each probe."""

    def __init__(self, headers: Path, token: Path) -> None:
        super().__init__()
        self.headers, self.token = headers, token
        self.number, self.busy = 0, True
        self.renew()

    def renew(self) -> None:
        """Write the next secret into both files."""
        self.number += 1
        self.version = str(self.number)
        replace(self.token, bearer(10_000 + self.number))
        replace(self.headers, f"Authorization: Bearer {bearer(self.number)}\nAccept: */*\n")

    def answer(self, request: Request) -> Answer:
        """Say how it is."""
        with self.lock:
            if self.busy:
                self.renew()
        return super().answer(request)


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
        wait_until(lambda: service.number > FIRST, 60)
        before = process.memory_info().rss

        def renewed() -> bool:
            assert process.memory_info().rss - before < GROWTH
            return service.number > renewals

        wait_until(renewed, 60 + renewals)
        print(f"{renewals} renewals: RSS {before} B, then {process.memory_info().rss} B")
        with service.lock:
            service.busy = False
        registered = [each for each in registry.requests if each.operation == "register"]
        tokens = {request.headers["X-Registry-Token"] for request in registered}
        assert len(tokens) > 0.5 * renewals

        def met() -> bool:
            """Tell whether both have got the newest secret."""
            sent = registry.requests[-1].headers["X-Registry-Token"]
            shown = service.requests[-1].headers["Authorization"]
            number = service.number
            return (sent, shown) == (bearer(10_000 + number), f"Bearer {bearer(number)}")

        for _ in range(2):  # so that the newest and the one before have been in use
            service.renew()
            wait_until(met)
        new, old = (bearer(10_000 + service.number - ago) for ago in (0, 1))
        told = {"detail": f"{bearer(service.number)} and {bearer(service.number - 1)}"}
        service.play("health", ["status", 503, told], times=FOREVER)
        sidecar.wait_for(r" failed: 503: \*\*\* and \*\*\*")
        service.sane()
        registry.play("*", ["status", 500, {"detail": f"{new} and {old}"}], times=FOREVER)
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


def test_ssl_cert_file_that_is_gone_is_told_by_its_name(
    tmp_path: Path, service: ToyService
) -> None:
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 0.5, "SSL_CERT_FILE": ca_file}
    with (
        Registry(tls=tls, keep_alive=False) as registry,
        Sidecar(registry, service, **settings) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        Path(ca_file).unlink()
        sidecar.wait_for(" WARNING SSL_CERT_FILE cannot be read")
        sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 2)
        assert sidecar.count(" WARNING .* cannot be read") == 1


# ---- the token


def link(file: Path, text: str) -> None:
    """Let the file's folder be another one, as Kubernetes renews a secret that is mounted."""
    new = file.parent.with_name("second")
    new.mkdir()
    (new / file.name).write_text(text)
    draft = file.parent.with_name("draft")
    draft.symlink_to(new)
    draft.replace(file.parent)


@pytest.mark.parametrize("renew", [replace, link, Path.write_text])
def test_a_token_renewed_right_before_the_end_deregisters(
    tmp_path: Path, registry: Registry, service: ToyService, renew: Any
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "now").symlink_to(tmp_path / "first")
    file = tmp_path / "now" / "token"
    file.write_text("token-1")
    registry.token, registry.ttl = "token-1", 60
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 30, "REGISTRY_TOKEN_FILE": file}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_registered()
        renew(file, "token-2")
        registry.token = "token-2"
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
