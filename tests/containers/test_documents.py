"""The README's and the guide's commands, typed in as they stand there.

Beside a service that knows no registry.
"""

import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import docker
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
    Project,
    Tool,
    find_tool,
    run,
    unavailable,
)
from containers.engine import Images, Lab, PeerNode
from containers.reader import Reader
from kit.documents import Block, blocks
from kit.sidecar import NAME

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

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
REMOVE = f"docker compose rm -s -f {SIDECAR}"


@pytest.fixture
def lab(lab: Lab) -> Lab:
    """The laboratory, on an engine where nobody else has the documents' container names."""
    for name in NAMES:
        try:
            lab.client.containers.get(name)
        except NotFound:
            continue
        unavailable(f"there is a container {name} already")
    return lab


@pytest.fixture
def port() -> int:
    """A free port of the host for the registry."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def registry(lab: Lab, port: int) -> PeerNode:
    """The embedded registry under the balancer's name, on port 80."""
    ports = {"80/tcp": ("127.0.0.1", port)}
    return lab.registry(alias=REGISTRY, ttl=TTL, port=80, name=REGISTRY, ports=ports)


@pytest.fixture
def service_image(images: Images, peer_image: str, tmp_path: Path) -> str:
    """An image of the toy service on the documents' port: its tag."""
    return images.build(
        "osint", tmp_path, dockerfile=SERVICE_DOCKERFILE.format(peers=peer_image, port=PORT)
    )


def block(document: str, heading: str, language: str) -> Block:
    """Return a document's first block of a language below a heading."""
    return next(b for b in blocks(document) if (b.heading, b.language) == (heading, language))


def merged() -> str:
    """Return the README's compose file, which both documents begin with."""
    return block(README, HERE, "yaml").text


@pytest.fixture
def project(lab: Lab, service_image: str, tmp_path: Path) -> Iterator[Project]:
    """A project into which the README's compose file has been merged.

    The interval is scaled down.
    """
    service = {"container_name": HOST, "image": service_image, "networks": [NETWORK]}
    scaled = yaml.safe_load(HEALTH_OFTEN) | {"environment": {"HEARTBEAT_INTERVAL": INTERVAL}}
    override = {
        "services": {HOST: service, SIDECAR: scaled},
        "networks": {NETWORK: {"external": True, "name": lab.network.name}},
    }
    files = {
        "docker-compose.yml": merged().replace(IMAGE, lab.sidecar_image),
        "docker-compose.override.yml": yaml.safe_dump(override),
    }
    with Project(find_tool("v2"), lab, tmp_path, files) as project:
        yield project


@pytest.fixture
def reader(project: Project, registry: PeerNode, port: int) -> Reader:
    """Somebody who types in what a document says.

    Differs from it: names of image and network, the registry's port.
    """
    assert registry.control()
    lab = project.lab
    replacements = {
        "localhost:8888": f"localhost:{port}",
        IMAGE: lab.sidecar_image,
        NETWORK: str(lab.network.name),
    }
    return Reader(project.directory, replacements)


def start_the_service(reader: Reader) -> None:
    """Start the service alone, and wait until it is healthy."""
    reader.do(f"docker compose up -d {HOST}")
    reader.wait_for(LOOK, f"http probe of http://{HOST}:{PORT}/health: fine")


def test_the_readme_from_the_first_look_to_the_removal(reader: Reader, registry: PeerNode) -> None:
    start_the_service(reader)
    reader.do(LOOK)
    reader.type_in(block(README, HERE, "console").text)
    assert registry.wait_record(NAME)["endpoint"] == f"http://{HOST}:{PORT}"
    reader.do(REMOVE)
    assert registry.record(NAME) is None
    assert HOST in reader.do("docker compose ps --services")
    assert "  SERVICE_PORT=8080" in reader.do(f"docker run --rm {IMAGE} --help")


def test_the_readmes_container_without_a_compose_file(reader: Reader, registry: PeerNode) -> None:
    start_the_service(reader)
    try:
        reader.do(block(README, HERE, "sh").text)
        registry.wait_record(NAME)
        reader.do(f"docker stop {SIDECAR}")
        assert registry.record(NAME) is None
    finally:
        reader.run(f"docker rm -f {SIDECAR}")


def test_the_guide_from_the_first_start_through_the_drill(reader: Reader) -> None:
    for each in blocks(GUIDE):
        if each.language == "console":
            reader.type_in(each.text)
    reader.do(block(GUIDE, "Upgrading", "sh").text)
    registered = "Service registered successfully: osint_service at …"
    reader.wait_for(f"docker logs {SIDECAR}", registered)


def test_a_look_finds_a_bad_health_file_and_a_refused_token(
    reader: Reader, registry: PeerNode
) -> None:
    start_the_service(reader)
    no_file = LOOK.replace("--rm", "--rm -e HEARTBEAT_FILE=/heartbeat")
    code, said = reader.run(no_file)
    print(*said, sep="\n")
    assert code == 1
    assert any(line.startswith("HEARTBEAT_FILE, /heartbeat: not fine: ") for line in said)
    registry.tell(token="secret", dialect="deployed")
    for variables, words in (
        ("", "asks for a token, and none is set"),
        ("-e REGISTRY_TOKEN=other", "refuses the token"),
    ):
        code, said = reader.run(LOOK.replace("--rm", f"--rm {variables}"))
        print(*said, sep="\n")
        assert code == 1
        assert any(line.startswith("token: not fine: ") and words in line for line in said)


def test_the_options_to_publish_the_image_are_buildxs() -> None:
    options = re.findall(r"--[a-z]+", block(GUIDE, "Before you start", "sh").text)
    command = ["docker", "buildx", "build", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if done.returncode:
        unavailable("docker buildx is not installed")
    assert [option for option in options if f"{option} " not in done.stdout] == []


@pytest.fixture
def tool(client: docker.DockerClient) -> Tool:
    """The compose command of today, where there is an engine."""
    assert client
    return find_tool("v2")


def test_every_compose_file_in_the_guide_is_valid(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / TEMPLATE.name).write_text(TEMPLATE.read_text())
    (tmp_path / "registry_token").write_text("secret\n")
    (tmp_path / "first.yml").write_text(merged())
    (tmp_path / "service.yml").write_text(yaml.safe_dump({"services": {HOST: {"image": "any"}}}))
    documents = [b.text for b in blocks(GUIDE) if b.language == "yaml"]
    texts = [text for text in documents if "services" in next(yaml.safe_load_all(text))]
    assert len(texts) == 3
    for text in texts:
        (tmp_path / "more.yml").write_text(text)
        whole = "\nnetworks:" in text or "\nvolumes:" in text
        names = ["service.yml", "more.yml"] if whole else ["first.yml", "service.yml", "more.yml"]
        files = [word for name in names for word in ("-f", name)]
        done = run([*tool, *files, "config", "--quiet"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert (
            "obsolete" in done.stderr or done.stderr == ""
        )  # Swarm wants the version that Compose does not
