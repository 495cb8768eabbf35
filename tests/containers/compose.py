"""Compose: the template by the examples in its header, projects, and a reader of the documents."""

import itertools
import os
import re
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Self

import pytest

from containers.engine import SECOND, Lab, Node, describe, remove_container, unique, wait_until
from kit.documents import occurs
from kit.sidecar import ROOT, environment

TEMPLATE = ROOT / "docker-compose.sidecar-template.yml"
TEMPLATE_SERVICE = "registry-sidecar"
V1, V2 = ("docker-compose",), ("docker", "compose")
REGISTRY = "vertice-register-lb"  # the host in the default REGISTRY_URL
HOST, PORT, SIDECAR = "vertice-osint", 8049, "vertice-osint-sidecar"  # as in the header
HEALTH_INTERVAL = "1s"  # the image's 30 s would make the tests slow
HEALTH_OFTEN = f"healthcheck: {{interval: {HEALTH_INTERVAL}}}"
SECONDS = 300.0  # for one command
PATIENCE = 90.0  # seconds until a command prints what it should


class Header(NamedTuple):
    """The examples in the template's header, in their order there, without the comment signs."""

    values: str
    compose_file: str
    extends: str
    networks: str
    dotenv: str
    depends_on: str


def header() -> Header:
    """Return the examples: what is indented by six blanks or more."""
    comment = TEMPLATE.read_text().partition("\nversion:")[0].splitlines()
    groups = itertools.groupby(comment, key=lambda line: line.startswith("#      "))
    examples = ("\n".join(line[1:] for line in lines) for is_one, lines in groups if is_one)
    return Header(*(textwrap.dedent(example) + "\n" for example in examples))


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where REQUIRE_DOCKER=1 is set."""
    if os.environ.get("REQUIRE_DOCKER") == "1":
        pytest.fail(f"REQUIRE_DOCKER=1, but {reason}")
    pytest.skip(reason)


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
        command, cwd=directory, env=environment(docker | variables), stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip


def service(image: str, host: str = HOST, *arguments: str, interval: str = "1s") -> str:
    """Return the toy service for the `services` of a compose file.

    Args: the interval of its health check.
    """
    where = ["--host", "0.0.0.0", "--port", str(PORT)]
    test = ["CMD", "wget", "-qO-", f"http://127.0.0.1:{PORT}/health"]
    return f"""\
  {host}:
    image: {image}
    command: {["python", "-m", "kit.peers.service", *where, *arguments]}
    networks: [maximus-network]
    healthcheck: {{test: {test}, interval: {interval}, retries: 60}}
"""


class Project:
    """A compose project in a directory of its own, on the laboratory's network.

    A context manager: its containers are gone afterwards, whatever went wrong. Args: the
    laboratory, whose registry has to have the alias REGISTRY; the directory; the files in it by
    their names, beside the template and what this class puts into .env; the compose command.
    """

    def __init__(
        self, lab: Lab, directory: Path, files: Mapping[str, str], tool: tuple[str, ...] = V2
    ) -> None:
        self.tool, self.lab, self.directory = tool, lab, directory
        self.name = unique("project")
        dotenv = f"""\
COMPOSE_PROJECT_NAME={self.name}
SIDECAR_IMAGE={lab.sidecar_image}
REGISTRY_NETWORK={lab.network.name}
SIDECAR_HEALTH_INTERVAL={HEALTH_INTERVAL}
"""
        (directory / TEMPLATE.name).write_text(TEMPLATE.read_text())
        for name, text in {**files, ".env": dotenv + files.get(".env", "")}.items():
            (directory / name).write_text(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        nodes = self.nodes().values()
        if exception[0] is not None:
            print(*map(describe, nodes), sep="\n")
        for node in nodes:
            remove_container(node.container)

    def run(self, *arguments: str) -> str:
        """Run the compose command, which has to work; return all that it printed."""
        done = run([*self.tool, *arguments], self.directory)
        assert done.returncode == 0, f"{done.args} failed:\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def nodes(self) -> dict[str, Node]:
        """Return the project's containers by the names of their services."""
        mine: dict[str, Any] = {"label": f"com.docker.compose.project={self.name}"}
        found = self.lab.client.containers.list(all=True, filters=mine, ignore_removed=True)
        names = [container.labels["com.docker.compose.service"] for container in found]
        return {name: Node(each, name) for name, each in zip(names, found, strict=True)}


def check_confinement(node: Node) -> None:
    """Check what Compose and Swarm both put in force, as the engine was told and from inside."""
    host, config = (node.inspect()[part] for part in ("HostConfig", "Config"))
    assert node.container.image is not None
    own = node.container.image.attrs["Config"]["Healthcheck"]
    # HEALTH_INTERVAL, and the rest as it was.
    assert config["Healthcheck"] == own | {"Interval": SECOND}
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["Memory"] == 64 << 20
    assert host["NanoCpus"] == 10**8
    tmpfs = {"Type": "tmpfs", "Target": "/tmp", "TmpfsOptions": {"SizeBytes": 1 << 20}}
    assert tmpfs in host["Mounts"]
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "3"}}
    status = node.status()
    assert status["Uid"].split() == ["1000"] * 4
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status[name], 16) == 0
    code, said = node.execute("touch", "/app/file", user="0")
    assert code != 0
    assert "Read-only file system" in said
    code, said = node.execute("df", "-k", "/tmp")
    assert re.search(r"^tmpfs +1024 .* /tmp$", said, re.MULTILINE), said


class Reader:
    """Somebody who types a document's commands in: what follows them there is what they print.

    Args: where they are typed in; what of the text is called otherwise here, such as an image's
    name; environment variables beside those of the tests.
    """

    def __init__(
        self,
        directory: Path,
        replacements: Mapping[str, str],
        variables: Mapping[str, str] | None = None,
    ) -> None:
        self.directory, self.replacements = directory, replacements
        self.environment = os.environ | dict(variables or {})

    def run(self, command: str) -> tuple[int, list[str]]:
        """Run a command; return its exit code and the lines that it printed."""
        for written, real in self.replacements.items():
            command = command.replace(written, real)
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.directory, env=self.environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, timeout=SECONDS,
        )  # fmt: skip
        return done.returncode, done.stdout.splitlines()

    def do(self, command: str) -> list[str]:
        """Run a command that has to work; return the lines that it printed."""
        code, said = self.run(command)
        assert code == 0, f"{command}: exit code {code}\n" + "\n".join(said)
        return said

    def type_in(self, text: str) -> None:
        """Run the commands of a console block, each until it prints what is written below it."""
        for part in text.removeprefix("$ ").split("\n$ "):
            command, *expected = part.strip("\n").split("\n")
            if not expected:
                self.do(command)
            for line in expected:
                self.wait_for(command, line)

    def wait_for(self, command: str, line: str) -> None:
        """Run a command until it prints this line, in which … stands for any text."""
        said: list[str] = []
        words = line.strip()

        def printed() -> bool:
            said[:] = self.run(command)[1]
            return occurs(words, said) if " " in words else words in map(str.strip, said)

        try:
            wait_until(printed, PATIENCE, f"{command} prints\n{line}")
        except AssertionError as error:
            error.add_note("At last it printed\n" + "\n".join(said))
            raise
