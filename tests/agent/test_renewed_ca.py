"""A CA file that is replaced on disk is in force at the next connection."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.server import Peer
from kit.peers.service import ToyService
from kit.sidecar import Sidecar, odd_lines

HOST = "127.0.0.1"
SIDES = pytest.mark.parametrize("side", ["registry", "service"])
FAILED = "Heartbeat failed|Registration failed|Health probe|refused|DOWN"


class Place:
    """A peer with an authority of its own, the file that names it, and one that follows it."""

    def __init__(self, home: Path, side: str) -> None:
        (home / "old").mkdir()
        (home / "new").mkdir()
        tls, old_ca = certificate(home / "old", HOST)
        self.new_tls, self.new_ca = certificate(home / "new", HOST)
        self.ca_file = home / "ca.pem"
        self.ca_file.write_text(Path(old_ca).read_text())
        # Each request has a connection of its own, so the next one meets what was renewed.
        self.registry = Registry(tls=tls if side == "registry" else None, keep_alive=False)
        self.service = ToyService(tls=tls if side == "service" else None)
        self.peer: Peer = self.registry if side == "registry" else self.service
        self.settings = {f"{side.upper()}_CA_FILE": str(self.ca_file)}
        if side == "service":
            self.settings["SERVICE_SCHEME"] = "https"

    def renew_ca(self) -> None:
        """Put a new file in the place of the old one, as a mounted secret is renewed."""
        new = self.ca_file.with_suffix(".new")
        new.write_text(Path(self.new_ca).read_text())
        new.replace(self.ca_file)


@pytest.fixture
def place(tmp_path: Path, side: str) -> Iterator[Place]:
    place = Place(tmp_path, side)
    with place.registry, place.service:
        yield place


def wait_for_more(sidecar: Sidecar, beats: int = 2) -> None:
    sidecar.wait_for("Heartbeat accepted", sidecar.count("Heartbeat accepted") + beats)


@SIDES
def test_a_renewed_authority_costs_nothing(place: Place) -> None:
    with Sidecar(place.registry, place.service, **place.settings) as sidecar:
        wait_for_more(sidecar)
        place.renew_ca()
        place.peer.certify(place.new_tls)
        wait_for_more(sidecar)
        assert not sidecar.count(FAILED)
        assert sidecar.stop()[0] == 0
        assert sidecar.count("Service deregistered") == 1
        assert odd_lines(sidecar.lines) == []


@SIDES
def test_an_authority_that_is_trusted_no_more_is_refused(place: Place, side: str) -> None:
    with Sidecar(place.registry, place.service, **place.settings) as sidecar:
        wait_for_more(sidecar, 1)
        place.renew_ca()
        sidecar.wait_for(f"certificate refused: .*{side.upper()}_CA_FILE")
        place.peer.certify(place.new_tls)
        wait_for_more(sidecar, 1)


@SIDES
@pytest.mark.parametrize("content", [None, "", "no certificate"], ids=["gone", "empty", "broken"])
def test_a_file_that_cannot_be_read_any_more_is_told_once_and_the_old_one_stays(
    place: Place, side: str, content: str | None
) -> None:
    with Sidecar(
        place.registry, place.service, HEARTBEAT_INTERVAL=0.5, **place.settings
    ) as sidecar:
        wait_for_more(sidecar)
        if content is None:
            place.ca_file.unlink()
        else:
            place.ca_file.write_text(content)
        wait_for_more(sidecar, 4)
        assert not sidecar.count(FAILED)
        assert sidecar.count(f" WARNING .*{side.upper()}_CA_FILE") == 1
        place.renew_ca()
        place.peer.certify(place.new_tls)
        wait_for_more(sidecar)
        assert odd_lines(sidecar.lines) == []
