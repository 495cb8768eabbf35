"""Fixtures: the engine, the images of this run, and a laboratory for each test.

Without an engine or the base image the tests are skipped, or fail where REQUIRE_DOCKER=1 is set.
"""

import uuid
from collections.abc import Iterator

import docker
import pytest
from docker.models.networks import Network

from containers import engine
from containers.compose import unavailable
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
def run(client: docker.DockerClient) -> Iterator[str]:
    """The value of the label engine.RUN for all that this session makes.

    Which is swept away at its end.

    With pytest-xdist each worker is a session.
    """
    run = uuid.uuid4().hex[:12]
    yield run
    engine.sweep(client, run)


@pytest.fixture(scope="session")
def images(client: docker.DockerClient, run: str) -> Iterator[Images]:
    """Builds images, and removes them at the end of the session."""
    images = Images(client, run)
    yield images
    engine.sweep(client, run)  # containers first
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
def lab(client: docker.DockerClient, run: str, image: str, peer_image: str) -> Iterator[Lab]:
    """A network of its own for the test, to start containers on."""
    with Lab(client, run, image, peer_image) as lab:
        yield lab


@pytest.fixture
def network(lab: Lab) -> Network:
    """The laboratory's network."""
    return lab.network
