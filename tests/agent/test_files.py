"""Files that settings name: what renews one counts at once, and what spoils one costs nothing."""

import os
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
from kit.sidecar import Sidecar, wait_until


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


SPOILS: tuple[Callable[[Path], object], ...] = (
    Path.unlink,
    Path.unlink,  # once more
    lambda file: replace(file, ""),
    lambda file: replace(file, "two words"),
    lambda file: replace(file, "token", "utf-16"),
    lambda file: replace(file, "x" * 100_000),
)


def test_a_token_file_that_goes_bad_is_told_once_and_counts_again_when_it_is_back(
    tmp_path: Path, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "token"
    file.write_text("token-0")
    registry.token = "token-0"
    asked = client(registry, REGISTRY_TOKEN_FILE=file)  # it may go bad before its first use
    for number, spoil in enumerate(SPOILS, 1):
        spoil(file)
        assert [asked.register({}, 5).meaning for _ in range(3)] == [ACCEPTED] * 3
        assert len(caplog.messages) == number
        replace(file, f"token-{number}")
        registry.token = f"token-{number}"
        assert asked.register({}, 5).meaning == ACCEPTED
    told = "REGISTRY_TOKEN_FILE cannot be read, what it held stays in force: "
    assert all(line.startswith(told) for line in caplog.messages)
    assert len(caplog.messages) == len(SPOILS)


# ---- authorities; SSL_CERT_FILE stands in where no CA file is set


@pytest.mark.parametrize("variable", ["", "SSL_CERT_FILE"])
@pytest.mark.parametrize("kind", [Registry, ToyService])
def test_a_ca_file_counts_as_it_is_by_now_and_what_it_held_stays_where_it_goes_bad(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: type[Peer], variable: str
) -> None:
    """Each request has a connection of its own, so the next one meets what was renewed."""
    (tmp_path / "new").mkdir()
    tls, ca_file = certificate(tmp_path, "127.0.0.1")
    new_tls, new_ca_file = certificate(tmp_path / "new", "127.0.0.1")
    file, own = Path(ca_file), f"{'REGISTRY' if kind is Registry else 'SERVICE'}_CA_FILE"
    with kind(tls=tls, keep_alive=False) as peer:
        registry = client(peer, **{variable or own: file})
        service = prober(peer, SERVICE_SCHEME="https", **{variable or own: file})

        def ask() -> str:
            """Exchange something; return what is said of it where it fails."""
            if kind is Registry:
                return registry.register({}, 5).advice
            return "" if service.probe() else service.problem

        for text in (None, "", "no certificate", "a pipe"):
            file.unlink(missing_ok=True)
            if text == "a pipe":
                os.mkfifo(file)
            elif text is not None:
                file.write_text(text)
            caplog.clear()
            assert (ask(), ask()) == ("", "")
            (line,) = caplog.messages
            assert line.startswith(f"{variable or own} cannot be read, what it held stays in force")
        caplog.clear()
        replace(file, Path(new_ca_file).read_text())
        said = ask()  # whom it names no more is not trusted
        assert "certificate refused: " in said
        assert own in said
        peer.certify(new_tls)
        assert ask() == ""
        assert caplog.messages == []
