"""docker/try.yml, as the README tells to use it.

What is typed in, what it prints, and that nothing is left.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from containers.compose import find_tool
from containers.engine import alone, unique, wait_until
from containers.reader import Reader
from kit.documents import blocks, code, occurs, table
from kit.peers.service import ToyService
from kit.sidecar import ROOT

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]

README, HEADING = "README.md", "Try it"
BUILT = 300.0  # seconds until all of it is built and started
PATIENCE = 90.0  # seconds for what a command brings about
LIST = "curl -s http://localhost:8888/services"
REGISTERED, GONE = '["toy_service"]', "[]"


class Terminal:
    """The first terminal, in which the stack runs. Its screen is a file."""

    def __init__(self, screen: Path) -> None:
        self.screen = screen

    def lines(self) -> list[str]:
        """Return what stands there."""
        return self.screen.read_text(errors="replace").splitlines()

    def wait_for(self, quoted: str, since: int, seconds: float = PATIENCE) -> None:
        """Wait until a line after so many shows what is quoted."""
        shown = self.screen.read_text
        wait_until(
            lambda: occurs(quoted, self.lines()[since:]), seconds, f"{quoted} in {shown()[-5000:]}"
        )


@pytest.fixture
def reader(client: docker.DockerClient) -> Iterator[Reader]:
    """Somebody in a fresh clone.

    Differs from the text: the project's name and the registry's port.
    """
    assert client
    find_tool("v2")
    name, port = unique("try"), str(ToyService().port)
    reader = Reader(
        ROOT,
        {"localhost:8888": f"localhost:{port}"},
        {"COMPOSE_PROJECT_NAME": name, "TRY_PORT": port},
    )
    try:
        yield reader
    finally:
        reader.run("docker compose -f docker/try.yml down --rmi local")


def test_the_commands_do_what_the_readme_says(
    client: docker.DockerClient, reader: Reader, tmp_path: Path
) -> None:
    (console,) = [b.text for b in blocks(README) if (b.heading, b.language) == (HEADING, "console")]
    command, registered = console.removeprefix("$ ").splitlines()
    terminal = Terminal(tmp_path / "screen")
    began = time.monotonic()
    with terminal.screen.open("w") as screen, alone():
        stack = subprocess.Popen(
            command.split(),
            cwd=ROOT,
            env=reader.environment,
            stdin=subprocess.DEVNULL,
            stdout=screen,
            stderr=screen,
        )
        terminal.wait_for("Attaching to", 0, BUILT)
    terminal.wait_for(registered, 0)
    print(f"registered after {time.monotonic() - began:.1f} s")
    reader.environment["COMPOSE_FILE"] = "docker/try.yml"
    wait_until(
        lambda: "\n".join(reader.do("docker compose ps")).count("(healthy)") == 3,
        PATIENCE,
        "healthy",
    )
    reader.wait_for(LIST, REGISTERED)
    check_reach(client, reader)

    for commands, says, back in table(README, HEADING):
        # After a loss the next heartbeat is a registration, which would hide the next loss.
        terminal.wait_for("Heartbeat accepted", len(terminal.lines()))
        seen = len(terminal.lines())
        (typed,) = code(commands)
        print(f"$ {typed}", *reader.do(typed), sep="\n")
        for quoted in code(says):
            if quoted.startswith("docker compose ps"):
                assert re.search(r"sidecar-1 .*\(healthy\)", "\n".join(reader.do(quoted)))
            else:
                terminal.wait_for(quoted, seen)
        if "the record is gone" in says:
            reader.wait_for(LIST, GONE)
        undo, *then = code(back) or ["true"]
        reader.do(undo)
        for quoted in then:
            terminal.wait_for(quoted, seen)
        reader.wait_for(LIST, REGISTERED)
        print(*terminal.lines()[seen:], sep="\n")

    reader.do("docker compose down --rmi local")
    assert stack.wait(60) in (0, 130)
    name = reader.environment["COMPOSE_PROJECT_NAME"]
    for kind in ("ps -a", "network ls", "volume ls", "images"):
        assert name not in "\n".join(reader.do(f"docker {kind}"))


def check_reach(client: docker.DockerClient, reader: Reader) -> None:
    """Check that one port is published, on this machine alone.

    That each is on one network of their own.
    """
    label = f"com.docker.compose.project={reader.environment['COMPOSE_PROJECT_NAME']}"
    containers = client.containers.list(filters={"label": label})
    assert len(containers) == 3
    settings = [container.attrs["NetworkSettings"] for container in containers]
    published = [
        bound for each in settings for bounds in each["Ports"].values() for bound in bounds or []
    ]
    assert [bound["HostIp"] for bound in published] == ["127.0.0.1"]
    assert len({tuple(each["Networks"]) for each in settings}) == 1
    assert all(len(each["Networks"]) == 1 for each in settings)
