"""Files that settings name: what renews one counts at once, and what spoils one costs nothing."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from agent import ACCEPTED
from kit.certificates import certificate
from kit.parts import client, prober
from kit.peers.registry import Registry
from kit.peers.server import Answer, Peer, Request
from kit.peers.service import ToyService
from kit.sidecar import Sidecar, odd_lines, wait_until

Happens = Callable[[Path], object]


def replace(file: Path, text: str, encoding: str = "ascii") -> None:
    """Replace the file in one step, as whoever renews a secret does."""
    draft = file.with_suffix(".draft")
    draft.write_text(text, encoding)
    draft.replace(file)


def link(file: Path, text: str) -> None:
    """Let the file's folder be another one, as Kubernetes renews a secret that is mounted."""
    new = file.parent.with_name("second")
    new.mkdir()
    (new / file.name).write_text(text)
    draft = file.parent.with_name("draft")
    draft.symlink_to(new)
    draft.replace(file.parent)


# ---- secrets that are renewed without end

FIRST = 20  # renewals until the memory is looked at
GROWTH = 3 << 20  # bytes of memory that any number of renewals may cost; each once cost 280 KB


def bearer(number: int) -> str:
    """Return a secret of 900 characters."""
    return f"{number:07d}-/" * 100


class Renewing(ToyService):
    """Renews the file of headers and that of the token, and its version, at each probe."""

    def __init__(self, headers: Path, token: Path) -> None:
        super().__init__()
        self.headers, self.token, self.number = headers, token, 0
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
            self.renew()
        return super().answer(request)


@pytest.mark.parametrize("renewals", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_secrets_that_are_renewed_all_the_time_cost_nothing(tmp_path: Path, renewals: int) -> None:
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

        def used(number: int) -> bool:
            """Tell whether both have got so many secrets, however many were written."""
            tokens = {request.headers["X-Registry-Token"] for request in list(registry.requests)}
            shown = {request.headers["Authorization"] for request in list(service.requests)}
            return len(tokens) > number < len(shown)

        wait_until(lambda: used(FIRST), 60)
        before = process.memory_info().rss
        wait_until(lambda: used(renewals), 60 + 2 * renewals, every=0.1)
        assert process.memory_info().rss - before < GROWTH


# ---- the token


@pytest.mark.parametrize("renew", [replace, link, Path.write_text])
def test_a_token_renewed_right_before_the_end_deregisters(
    tmp_path: Path, registry: Registry, renew: Callable[[Path, str], object]
) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "now").symlink_to(tmp_path / "first")
    file = tmp_path / "now" / "token"
    file.write_text("token-1")
    registry.token = "token-1"
    asked = client(registry, REGISTRY_TOKEN_FILE=file)
    assert asked.register({}, 5).meaning == ACCEPTED
    renew(file, "token-2")
    registry.token = "token-2"
    assert asked.deregister(5).meaning == ACCEPTED


SPOILS: tuple[Happens, ...] = (
    Path.unlink,
    lambda file: replace(file, ""),
    lambda file: replace(file, "two words"),
    lambda file: replace(file, "token", "utf-16"),
    lambda file: replace(file, "x" * 100_000),
)


def test_a_token_file_that_goes_bad_is_told_once_and_counts_again_when_it_is_back(
    tmp_path: Path, registry: Registry, service: ToyService
) -> None:
    file = tmp_path / "token"
    settings: dict[str, Any] = {"HEARTBEAT_INTERVAL": 0.5, "REGISTRY_TOKEN_FILE": file}

    def renew(number: int) -> None:
        replace(file, f"token-{number}")
        registry.token = f"token-{number}"

    renew(0)
    with Sidecar(registry, service, **settings) as sidecar:

        def register_again() -> None:
            for _ in range(2):  # the first may have been on its way
                registry.forget()
                sidecar.wait_registered(sidecar.count("Service registered successfully") + 1)

        sidecar.wait_registered()
        for number, spoil in enumerate(SPOILS, 1):
            spoil(file)
            register_again()
            assert sidecar.count(" WARNING REGISTRY_TOKEN_FILE cannot be read") == number
            renew(number)
            register_again()
        assert sidecar.count(" WARNING REGISTRY_TOKEN_FILE") == len(SPOILS)
        assert sidecar.stop()[0] == 0
        assert sidecar.count("Service deregistered") == 1


# ---- authorities; SSL_CERT_FILE stands in where no CA file is set


class Place:
    """A peer with an authority of its own, in the file that a setting names; and what follows it.

    Each request has a connection of its own, so the next one meets what was renewed.
    """

    def __init__(self, home: Path, side: str) -> None:
        (home / "old").mkdir(parents=True)
        (home / "new").mkdir()
        tls, ca_file = certificate(home / "old", "127.0.0.1")
        self.new_tls, self.new_ca_file = certificate(home / "new", "127.0.0.1")
        self.file = Path(ca_file)
        kind = {"registry": Registry, "service": ToyService}[side]
        self.peer: Peer = kind(tls=tls, keep_alive=False)

    def renew(self) -> None:
        replace(self.file, Path(self.new_ca_file).read_text())


@pytest.mark.parametrize("variable", ["", "SSL_CERT_FILE"])
@pytest.mark.parametrize("side", ["registry", "service"])
def test_a_ca_file_counts_as_it_is_by_now_and_what_it_held_stays_where_it_goes_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, side: str, variable: str
) -> None:
    place, own = Place(tmp_path, side), f"{side.upper()}_CA_FILE"
    named = {variable or own: place.file}
    with place.peer:
        if side == "registry":
            registry = client(place.peer, **named)
        else:
            service = prober(place.peer, SERVICE_SCHEME="https", **named)

        def ask() -> str:
            """Exchange something; return what is said of it where it fails."""
            if side == "registry":
                return registry.register({}, 5).advice
            return "" if service.probe() else service.problem

        assert ask() == ""
        for text in (None, "", "no certificate"):
            place.file.unlink() if text is None else place.file.write_text(text)
            caplog.clear()
            assert (ask(), ask()) == ("", "")
            (line,) = caplog.messages
            assert line.startswith(f"{variable or own} cannot be read, what it held stays in force")
        caplog.clear()
        place.renew()
        said = ask()  # whom it names no more is not trusted
        assert "certificate refused: " in said
        assert own in said
        place.peer.certify(place.new_tls)
        assert ask() == ""
        assert caplog.messages == []


def test_renewed_authorities_cost_a_sidecar_nothing(tmp_path: Path) -> None:
    places = [Place(tmp_path / side, side) for side in ("registry", "service")]
    registry, service = (place.peer for place in places)
    files = {"REGISTRY_CA_FILE": places[0].file, "SSL_CERT_FILE": places[1].file}
    with (
        registry,
        service,
        Sidecar(registry, service, SERVICE_SCHEME="https", **files) as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        for place in places:
            place.renew()
            place.peer.certify(place.new_tls)
        sidecar.wait_for("Heartbeat accepted", times=3)
        places[1].file.unlink()
        sidecar.wait_for("Heartbeat accepted", times=5)
        assert sidecar.count(" WARNING ") == sidecar.count("SSL_CERT_FILE cannot be read") == 1
        assert sidecar.stop()[0] == 0
        assert sidecar.count("Service deregistered") == 1
        assert not odd_lines(sidecar.lines)


# ---- the heartbeat file


def test_a_heartbeat_file_that_could_not_be_written_is_tried_again_within_seconds(
    tmp_path: Path, registry: Registry, service: ToyService
) -> None:
    """The next step of the loop is up to 30 s away."""
    file = tmp_path / "later" / "heartbeat"
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30, HEARTBEAT_FILE=file) as sidecar:
        sidecar.wait_registered()
        sidecar.wait_for("WARNING HEARTBEAT_FILE=.* cannot be written")
        time.sleep(1)  # it pauses by now
        file.parent.mkdir()
        wait_until(file.exists, 7, "not written again")
        assert sidecar.health()[0] == 0
        assert sidecar.count("HEARTBEAT_FILE=.* cannot be written") == 1
