"""The README's and the guide's commands, typed in as they stand there: what follows them there is what they print."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
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
from containers.engine import Images, Lab, PeerNode, wait_until
from kit.documents import blocks, occurs
from kit.sidecar import NAME

pytestmark = [pytest.mark.docker, pytest.mark.slow]

README, GUIDE = "README.md", "INTEGRATION_GUIDE.md"
TTL, INTERVAL = 8, 4  # seconds; the drill's 60 and 30 scaled down
HOSTS = (HOST, "vertice-threat-intel")  # in the guide's compose files
NAMES = (REGISTRY, HOST, SIDECAR)  # the documents' containers: names of the whole engine
SERVICE_DOCKERFILE = """\
FROM {peers}
CMD ["python", "-m", "kit.peers.service", "--host", "0.0.0.0", "--port", "{port}"]
"""
JQ = f"""\
#!{sys.executable}
import json, sys
found = json.load(sys.stdin)
for name in sys.argv[1].split("."):  # a path such as .endpoint
    found = found[name] if name else found
print(json.dumps(found, indent=2))
"""


class Reader:
    """Somebody who types the documents' commands in, in a directory with the README's compose file.

    Differs from the text: the names of image and network, the registry's port on the host, the time scale.
    """

    def __init__(self, project: Project, port: int, image: str) -> None:
        self.project = project
        self.replacements = {"localhost:8888": f"localhost:{port}", "vertice-registry-sidecar:latest": image}
        tools = project.directory / "bin"
        tools.mkdir()
        (tools / "jq").write_text(JQ)
        (tools / "jq").chmod(stat.S_IRWXU)
        self.environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}

    def run(self, command: str) -> tuple[int, list[str]]:
        """Run a command; return its exit code and the lines that it printed."""
        for written, real in self.replacements.items():
            command = command.replace(written, real)
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.project.directory, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    def type_in(self, text: str) -> None:
        """Run the commands of a console block, each until it prints what is written below it."""
        for part in text.removeprefix("$ ").split("\n$ "):
            command, *expected = part.strip("\n").split("\n")
            if not expected:
                code, said = self.run(command)
                assert code == 0, f"{command}: exit code {code}\n" + "\n".join(said)
            for line in expected:
                self.wait_for(command, line)

    def wait_for(self, command: str, line: str) -> None:
        said: list[str] = []

        def printed() -> bool:
            said[:] = self.run(command)[1]
            words = line.strip()
            return occurs(words, said) if " " in words else words in map(str.strip, said)

        try:
            wait_until(printed, 90, line)
        except AssertionError as error:
            raise AssertionError(f"{command} never printed\n{line}\nbut at last\n" + "\n".join(said)) from error


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
    command = ["python", "-m", "kit.peers.registry", "--ttl", str(TTL), "--host", "0.0.0.0", "--port", "80"]
    ports = {"80/tcp": ("127.0.0.1", port)}
    return PeerNode(lab.run(lab.peer_image, command, REGISTRY, name=REGISTRY, ports=ports), 80)


@pytest.fixture
def service_image(images: Images, peer_image: str, tmp_path: Path) -> str:
    """An image of the toy service on the documents' port: its tag."""
    return images.build("osint", tmp_path, dockerfile=SERVICE_DOCKERFILE.format(peers=peer_image, port=PORT))


def pasted() -> str:
    """Return the README's compose file, which both documents begin with."""
    return next(block.text for block in blocks(README) if block.language == "yaml")


@pytest.fixture
def reader(lab: Lab, registry: PeerNode, port: int, service_image: str, tmp_path: Path) -> Iterator[Reader]:
    """A reader who has pasted the README's compose file; the interval is scaled down."""
    assert registry.control()
    service = {"container_name": HOST, "image": service_image, "networks": ["maximus-network"]}
    scaled = yaml.safe_load(HEALTH_OFTEN) | {"environment": {"HEARTBEAT_INTERVAL": INTERVAL}}
    override = {
        "services": {HOST: service, SIDECAR: scaled},
        "networks": {"maximus-network": {"external": True, "name": lab.network.name}},
    }
    files = {
        "docker-compose.yml": pasted().replace("vertice-registry-sidecar:latest", lab.sidecar_image),
        "docker-compose.override.yml": yaml.safe_dump(override),
    }
    with Project(find_tool("v2"), lab, tmp_path, files) as project:
        yield Reader(project, port, lab.sidecar_image)


def test_what_the_readme_tells_to_paste_and_to_type(reader: Reader, registry: PeerNode) -> None:
    reader.project.run("up", "-d")
    assert registry.wait_record(NAME)["endpoint"] == f"http://{HOST}:{PORT}"
    for block in blocks(README):
        if block.language == "console":
            reader.type_in(block.text)


def test_the_guide_from_the_first_start_through_the_drill(reader: Reader) -> None:
    for block in blocks(GUIDE):
        if block.language == "console":
            reader.type_in(block.text)
    upgrade = next(block for block in blocks(GUIDE) if block.heading == "Upgrading")
    code, said = reader.run(upgrade.text)
    assert code == 0, said
    reader.wait_for(f"docker logs {SIDECAR}", "Service registered successfully: osint_service at …")


@pytest.fixture
def tool(client: docker.DockerClient) -> Tool:
    """The compose command of today, where there is an engine."""
    assert client
    return find_tool("v2")


def test_every_compose_file_in_the_guide_is_valid(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / TEMPLATE.name).write_text(TEMPLATE.read_text())
    (tmp_path / "registry_token").write_text("secret\n")
    (tmp_path / ".env").write_text(next(b.text for b in blocks(GUIDE) if b.language == "ini"))
    (tmp_path / "first.yml").write_text(pasted())
    (tmp_path / "service.yml").write_text(yaml.safe_dump({"services": {host: {"image": "any"} for host in HOSTS}}))
    texts = [b.text for b in blocks(GUIDE) if b.language == "yaml" and "services" in next(yaml.safe_load_all(b.text))]
    assert len(texts) == 4
    for text in texts:
        (tmp_path / "more.yml").write_text(text)
        whole = "\nnetworks:" in text or "\nvolumes:" in text
        names = ["service.yml", "more.yml"] if whole else ["first.yml", "service.yml", "more.yml"]
        files = [word for name in names for word in ("-f", name)]
        done = run([*tool, *files, "config", "--quiet"], tmp_path)
        assert done.returncode == 0, done.stderr
        assert "obsolete" in done.stderr or done.stderr == ""  # Swarm wants the version that Compose does not
