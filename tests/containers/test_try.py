"""docker/try.yml, as the README tells to use it: what is typed in, what it prints, what is left."""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import docker
import pytest

from containers.compose import PATIENCE, Reader
from containers.engine import alone, unique, wait_until
from kit.documents import blocks, code, occurs, table
from kit.peers.service import ToyService
from kit.sidecar import ROOT

pytestmark = [
    pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900),
    pytest.mark.usefixtures("compose"),
]  # fmt: skip

README, HEADING = "README.md", "Try it"
BUILT = 300.0  # seconds until all of it is built and started
LIST = "curl -s http://localhost:8888/services"
REGISTERED, GONE = '["toy_service"]', "[]"
DOWN = "docker compose -f docker/try.yml down --rmi local"


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Somebody in a fresh clone; other than in the text are project's name and registry's port."""
    port = str(ToyService().port)
    variables = {"COMPOSE_PROJECT_NAME": unique("try"), "TRY_PORT": port}
    reader = Reader(ROOT, {"localhost:8888": f"localhost:{port}"}, variables)
    yield reader
    reader.run(DOWN)


def test_the_commands_do_what_the_readme_says(
    client: docker.DockerClient, reader: Reader, tmp_path: Path
) -> None:
    (console,) = [b.text for b in blocks(README) if (b.heading, b.language) == (HEADING, "console")]
    command, registered = console.removeprefix("$ ").splitlines()
    screen = tmp_path / "screen"  # of the first terminal, in which the stack runs

    def lines() -> list[str]:
        return screen.read_text(errors="replace").splitlines()

    def wait_for(quoted: str, since: int = 0, seconds: float = PATIENCE) -> None:
        """Wait until a line after so many shows what is quoted."""
        why = f"{quoted} in {screen.read_text()[-5000:]}"
        wait_until(lambda: occurs(quoted, lines()[since:]), seconds, why)

    began = time.monotonic()
    with screen.open("w") as output, alone():
        stack = subprocess.Popen(
            command.split(), cwd=ROOT, env=reader.environment,
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        wait_for("Attaching to", 0, BUILT)
    wait_for(registered)
    print(f"registered after {time.monotonic() - began:.1f} s")
    reader.environment["COMPOSE_FILE"] = "docker/try.yml"
    healthy = "all three are healthy"
    wait_until(
        lambda: "\n".join(reader.do("docker compose ps")).count("(healthy)") == 3, PATIENCE, healthy
    )
    reader.wait_for(LIST, REGISTERED)
    check_reach(client, reader)

    for commands, says, back in table(README, HEADING):
        # After a loss the next heartbeat is a registration, which would hide the next loss.
        wait_for("Heartbeat accepted", len(lines()))
        seen = len(lines())
        (typed,) = code(commands)
        print(f"$ {typed}", *reader.do(typed), sep="\n")
        for quoted in code(says):
            if quoted.startswith("docker compose ps"):
                assert re.search(r"sidecar-1 .*\(healthy\)", "\n".join(reader.do(quoted)))
            else:
                wait_for(quoted, seen)
        if "the record is gone" in says:
            reader.wait_for(LIST, GONE)
        undo, *then = code(back) or ["true"]
        reader.do(undo)
        for quoted in then:
            wait_for(quoted, seen)
        reader.wait_for(LIST, REGISTERED)
        print(*lines()[seen:], sep="\n")

    reader.do("docker compose down --rmi local")
    code_of_up = stack.wait(60)  # which after a `down` from elsewhere is Compose's affair
    print(f"up ended with exit code {code_of_up} and", *lines()[-10:], sep="\n")
    name = reader.environment["COMPOSE_PROJECT_NAME"]
    for kind in ("ps -a", "network ls", "volume ls", "images"):
        assert name not in "\n".join(reader.do(f"docker {kind}"))


def check_reach(client: docker.DockerClient, reader: Reader) -> None:
    """Check that one port is published, on this machine alone, and all are on one network."""
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
