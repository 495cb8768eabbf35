"""The compose template as its users meet it, and projects made from the examples in its header."""

import itertools
import os
import re
import subprocess
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import pytest
import yaml

from containers.engine import SECOND, Lab, Node, remove_container, unique
from kit.sidecar import ROOT, environment

TEMPLATE = ROOT / "docker-compose.sidecar-template.yml"
TEMPLATE_SERVICE = "registry-sidecar"
TOOLS = {"v2": ("docker", "compose"), "v1": ("docker-compose",)}
REGISTRY = "vertice-register-lb"  # the host in the default REGISTRY_URL
HOST, NAME, PORT, SIDECAR = (
    "vertice-osint",
    "osint_service",
    8049,
    "vertice-osint-sidecar",
)  # the header's example
HEALTH_INTERVAL = "1s"  # the image's 30 s would make the tests slow
HEALTH_OFTEN = f"healthcheck: {{interval: {HEALTH_INTERVAL}}}"
SECONDS = 300.0  # for one command
MESSAGES = {  # where one of the two is not set
    "SERVICE_NAME": "set SERVICE_NAME to the name to register, such as osint_service",
    "SERVICE_HOST": "set SERVICE_HOST to the container or host name of the service",
}

Tool = tuple[str, ...]


class Header(NamedTuple):
    """The examples in the template's header, in their order there, without the comment signs."""

    values: str
    compose_file: str
    extends: str
    networks: str
    dotenv: str
    depends_on: str


def header() -> Header:
    """Return the examples.

    What is indented by six blanks or more in the comment at the top of the template.
    """
    lines = TEMPLATE.read_text().splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    groups = itertools.groupby(comment, key=lambda line: line.startswith("#      "))
    return Header(
        *(dedent(line[1:] for line in block) for is_example, block in groups if is_example)
    )


def dedent(lines: Iterable[str]) -> str:
    return textwrap.dedent("\n".join(lines)) + "\n"


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where REQUIRE_DOCKER=1 is set."""
    if os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, but {reason}")
    pytest.skip(reason)


def find_tool(which: str) -> Tool:
    """Return the command of compose "v1" or "v2".

    Skips the test where there is none (v2: see unavailable).
    """
    try:
        done = subprocess.run(
            [*TOOLS[which], "version", "--short"], capture_output=True, text=True, timeout=60
        )
        version = done.stdout.strip() if done.returncode == 0 else ""
    except FileNotFoundError:
        version = ""
    if which == "v1" and not version.startswith("1."):
        pytest.skip("docker-compose v1 is not installed")
    if not version:
        unavailable("docker compose v2 is not installed")
    return TOOLS[which]


def run(
    command: list[str], directory: Path, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run a command with these variables, and of the tests' own but what docker itself needs."""
    docker: dict[str, object] = {
        name: value
        for name, value in os.environ.items()
        if name == "HOME" or name.startswith("DOCKER_")
    }
    return subprocess.run(
        command,
        cwd=directory,
        env=environment(docker | variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )


def service(image: str, host: str = HOST, *arguments: str, healthcheck: bool = True) -> str:
    """Return the toy service for the `services` of a compose file.

    Args: the peer image; more for the service.
    """
    command = [
        "python",
        "-m",
        "kit.peers.service",
        "--host",
        "0.0.0.0",
        "--port",
        str(PORT),
        *arguments,
    ]
    test = ["CMD", "wget", "-qO-", f"http://127.0.0.1:{PORT}/health"]
    health = (
        f"    healthcheck: {{test: {test}, interval: 1s, retries: 60}}\n" if healthcheck else ""
    )
    return f"""\
  {host}:
    image: {image}
    command: {command}
    networks: [maximus-network]
{health}"""


def pasted() -> str:
    """Return the template's service and network, to be pasted below other services.

    With the header's values.
    """
    text = TEMPLATE.read_text().partition("\nservices:\n")[2]
    for line in header().values.splitlines():
        name = line.partition(":")[0]
        text, times = re.subn(rf"(?m)^( +){name}: .*$", rf"\g<1>{line}", text)
        assert times == 1, name
    return text


def override(network: str, *sidecars: str) -> str:
    """Return a docker-compose.override.yml.

    Another network for maximus-network, and more frequent health checks.
    """
    services = {sidecar: yaml.safe_load(HEALTH_OFTEN) for sidecar in sidecars}
    networks = {"maximus-network": {"external": True, "name": network}}
    return yaml.safe_dump({"services": services, "networks": networks})


class Project:
    """A compose project in a directory of its own, on the laboratory's network.

    A context manager: its containers are gone afterwards, whatever went wrong. Args: the
    compose command; the laboratory, whose registry has to have the alias REGISTRY; the directory;
    the files in it by their names, beside the template and what this class adds to .env.
    """

    def __init__(self, tool: Tool, lab: Lab, directory: Path, files: Mapping[str, str]) -> None:
        self.tool, self.lab, self.directory = tool, lab, directory
        self.name = unique("project")
        surroundings = {
            "COMPOSE_PROJECT_NAME": self.name,
            "SIDECAR_IMAGE": lab.sidecar_image,
            "REGISTRY_NETWORK": lab.network.name,
            "SIDECAR_HEALTH_INTERVAL": HEALTH_INTERVAL,
        }
        dotenv = "".join(f"{name}={value}\n" for name, value in surroundings.items())
        (directory / TEMPLATE.name).write_text(TEMPLATE.read_text())
        for name, text in {**files, ".env": files.get(".env", "") + dotenv}.items():
            (directory / name).write_text(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        nodes = self.nodes()
        if exception[0] is not None:
            print(*(node.describe() for node in nodes.values()), sep="\n")
        for node in nodes.values():
            remove_container(node.container)

    def run(self, *arguments: str) -> str:
        """Run the compose command; return all that it printed.

        Raises AssertionError where it fails.
        """
        done = run([*self.tool, *arguments], self.directory)
        assert done.returncode == 0, f"{done.args} failed:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def nodes(self) -> dict[str, Node]:
        """Return the project's containers by the names of their services."""
        mine: dict[str, Any] = {"label": f"com.docker.compose.project={self.name}"}
        found = self.lab.client.containers.list(all=True, filters=mine, ignore_removed=True)
        nodes = [
            Node(container, container.labels["com.docker.compose.service"]) for container in found
        ]
        return {node.alias: node for node in nodes}


def check_confinement(node: Node) -> None:
    """Check what compose and Swarm both put in force.

    In what the engine was told, and inside the container.
    """
    host, config = (node.inspect()[part] for part in ("HostConfig", "Config"))
    assert node.container.image is not None
    own = node.container.image.attrs["Config"]["Healthcheck"]
    assert config["Healthcheck"] == own | {
        "Interval": SECOND
    }  # HEALTH_INTERVAL, and the rest as it was
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] == 64 << 20
    assert host["NanoCpus"] == 10**8
    assert {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 1 << 20}} in host[
        "Mounts"
    ]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "3"}}
    status = process_status(node)
    assert status["Uid"].split() == ["1000"] * 4
    assert {
        int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    } == {0}
    code, said = node.execute("touch", "/app/file", user="0")
    assert code != 0
    assert "Read-only file system" in said
    code, said = node.execute("df", "-k", "/tmp")
    assert re.search(r"^tmpfs +1024 .* /tmp$", said, re.MULTILINE), said


def process_status(node: Node) -> dict[str, str]:
    """Return the fields of /proc/1/status of a container."""
    code, text = node.execute("cat", "/proc/1/status")
    assert code == 0, text
    return dict(re.findall(r"^(\w+):\t(.*)$", text, re.MULTILINE))
