"""The README's and the guide's commands, typed in as they stand there, beside a service."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from docker.errors import NotFound

from containers.compose import (
    HEALTH_OFTEN,
    HOST,
    PORT,
    REGISTRY,
    SIDECAR,
    TEMPLATE,
    V2,
    Project,
    Reader,
    run,
    unavailable,
)
from containers.engine import Images, Lab, PeerNode
from kit.documents import blocks
from kit.peers.service import ToyService
from kit.sidecar import NAME

pytestmark = [
    pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900),
    pytest.mark.usefixtures("compose"),
]  # fmt: skip

README, GUIDE = "README.md", "INTEGRATION_GUIDE.md"
IMAGE, NETWORK = "vertice-registry-sidecar:latest", "maximus-network"
HERE = "Put it next to your service"  # the README's part that is tried here
TTL, INTERVAL = 8, 4  # seconds; the drill's 60 and 30 scaled down
NAMES = (REGISTRY, HOST, SIDECAR)  # the documents' containers: names of the whole engine
SERVICE_DOCKERFILE = """\
FROM {peers}
CMD ["python", "-m", "kit.peers.service", "--host", "0.0.0.0", "--port", "{port}"]
"""
LOOK = f"docker compose run --rm --no-deps {SIDECAR} --check"


def block(document: str, heading: str, language: str) -> str:
    """Return the text of a document's first block of a language below a heading."""
    return next(b.text for b in blocks(document) if (b.heading, b.language) == (heading, language))


@pytest.fixture
def port() -> int:
    """A free port of the host for the registry."""
    return ToyService().port


@pytest.fixture
def registry(lab: Lab, port: int) -> PeerNode:
    """The embedded registry under the balancer's name, where nobody else has the names."""
    for name in NAMES:
        try:
            lab.client.containers.get(name)
        except NotFound:
            continue
        unavailable(f"there is a container {name} already")
    ports = {"80/tcp": ("127.0.0.1", port)}
    return lab.registry(alias=REGISTRY, ttl=TTL, port=80, name=REGISTRY, ports=ports)


@pytest.fixture
def reader(
    images: Images, lab: Lab, registry: PeerNode, port: int, tmp_path: Path
) -> Iterator[Reader]:
    """Somebody who has merged the README's compose file, and types in what a document says.

    The service is healthy. Differs from the documents: names of image and network, the registry's
    port, the interval.
    """
    assert registry.control()
    dockerfile = SERVICE_DOCKERFILE.format(peers=lab.peer_image, port=PORT)
    osint = images.build("osint", tmp_path, dockerfile=dockerfile)
    service = {"container_name": HOST, "image": osint, "networks": [NETWORK]}
    scaled = yaml.safe_load(HEALTH_OFTEN) | {"environment": {"HEARTBEAT_INTERVAL": INTERVAL}}
    override = {
        "services": {HOST: service, SIDECAR: scaled},
        "networks": {NETWORK: {"external": True, "name": lab.network.name}},
    }
    files = {
        "docker-compose.yml": block(README, HERE, "yaml").replace(IMAGE, lab.sidecar_image),
        "docker-compose.override.yml": yaml.safe_dump(override),
    }
    replacements = {
        "localhost:8888": f"localhost:{port}",
        IMAGE: lab.sidecar_image,
        NETWORK: str(lab.network.name),
    }
    with Project(lab, tmp_path, files) as project:
        reader = Reader(project.directory, replacements)
        reader.do(f"docker compose up -d {HOST}")
        reader.wait_for(LOOK, f"http probe of http://{HOST}:{PORT}/health: fine")
        yield reader


def test_the_readme_from_the_first_look_to_the_removal(reader: Reader, registry: PeerNode) -> None:
    reader.do(LOOK)
    reader.type_in(block(README, HERE, "console"))
    assert registry.wait_record(NAME)["endpoint"] == f"http://{HOST}:{PORT}"
    reader.do(f"docker compose rm -s -f {SIDECAR}")
    assert registry.record(NAME) is None
    assert HOST in reader.do("docker compose ps --services")
    assert "  SERVICE_PORT=8080" in reader.do(f"docker run --rm {IMAGE} --help")

    try:  # without a compose file
        reader.do(block(README, HERE, "sh"))
        registry.wait_record(NAME)
        reader.do(f"docker stop {SIDECAR}")
        assert registry.record(NAME) is None
    finally:
        reader.run(f"docker rm -f {SIDECAR}")


def test_the_guide_from_the_first_start_through_the_drill(reader: Reader) -> None:
    for each in blocks(GUIDE):
        if each.language == "console":
            reader.type_in(each.text)
    reader.do(block(GUIDE, "Upgrading", "sh"))
    registered = "Service registered successfully: osint_service at …"
    reader.wait_for(f"docker logs {SIDECAR}", registered)


def test_the_options_to_publish_the_image_are_buildxs() -> None:
    options = re.findall(r"--[a-z]+", block(GUIDE, "Before you start", "sh"))
    command = ["docker", "buildx", "build", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        unavailable("docker buildx is not installed")
    assert [option for option in options if f"{option} " not in done.stdout] == []


def test_every_compose_file_in_the_guide_is_valid(tmp_path: Path) -> None:
    (tmp_path / TEMPLATE.name).write_text(TEMPLATE.read_text())
    (tmp_path / "registry_token").write_text("secret\n")
    (tmp_path / "first.yml").write_text(block(README, HERE, "yaml"))
    (tmp_path / "service.yml").write_text(yaml.safe_dump({"services": {HOST: {"image": "any"}}}))
    documents = [b.text for b in blocks(GUIDE) if b.language == "yaml"]
    texts = [text for text in documents if "services" in next(yaml.safe_load_all(text))]
    assert len(texts) == 3
    for text in texts:
        (tmp_path / "more.yml").write_text(text)
        whole = "\nnetworks:" in text or "\nvolumes:" in text
        names = ["service.yml", "more.yml"] if whole else ["first.yml", "service.yml", "more.yml"]
        files = [word for name in names for word in ("-f", name)]
        done = run([*V2, *files, "config", "--quiet"], tmp_path)
        assert done.returncode == 0, done.stderr
        # Swarm wants the version that Compose does not.
        assert "obsolete" in done.stderr or done.stderr == ""
