"""Fixtures: the engine, the images of this run, and a laboratory for each test.

Without an engine, the base image or Compose v2 the tests are skipped, or fail where
REQUIRE_DOCKER=1 is set.
"""

import subprocess
import uuid
from collections.abc import Iterator

import docker
import pytest

from containers import engine
from containers.compose import V2, unavailable
from containers.engine import Images, Lab
from kit.sidecar import ROOT


@pytest.fixture(scope="session")
def client() -> Iterator[docker.DockerClient]:
    """The engine."""
    try:
        client = engine.connect()
    except engine.MissingError as missing:
        unavailable(str(missing))
    yield client
    client.close()


@pytest.fixture(scope="session")
def images(client: docker.DockerClient) -> Iterator[Images]:
    """Builds images; at the end all that has the label of this session is swept away.

    With pytest-xdist each worker is a session.
    """
    images = Images(client, uuid.uuid4().hex[:12])
    yield images
    engine.sweep(client, images.run)
    images.remove()


@pytest.fixture(scope="session")
def image(images: Images) -> str:
    """The default image of the sidecar: its tag."""
    return images.build("default", ROOT)


@pytest.fixture(scope="session")
def tls_image(images: Images) -> str:
    """The image built with TLS=1: its tag."""
    return images.build("tls", ROOT, "--build-arg", "TLS=1")


@pytest.fixture(scope="session")
def peer_image(images: Images) -> str:
    """The embedded registry and the toy service, as kit.peers: its tag."""
    return images.build("peers", engine.PEERS, dockerfile=engine.PEER_DOCKERFILE)


@pytest.fixture
def lab(images: Images, image: str, peer_image: str) -> Iterator[Lab]:
    """A network of its own for the test, to start containers on."""
    with Lab(images, image, peer_image) as lab:
        yield lab


@pytest.fixture(scope="session")
def compose(client: docker.DockerClient) -> None:
    """Compose v2, and the engine for it."""
    assert client
    if subprocess.run([*V2, "version"], capture_output=True).returncode:
        unavailable("docker compose (v2) is not installed")
