"""The compose template by `docker stack deploy`.

On an engine of the tests' own that is a swarm of one node.

The peers are reached by the names of their tasks (`endpoint_mode: dnsrr`): virtual addresses need
IPVS, which not every kernel has, and the sidecar does not care.
"""

import contextlib
import re
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import docker
import pytest
from docker.errors import APIError, NotFound
from docker.models.services import Service

from containers.compose import (
    HEALTH_INTERVAL,
    HEALTH_OFTEN,
    HOST,
    NAME,
    PORT,
    REGISTRY,
    SIDECAR,
    TEMPLATE,
    TEMPLATE_SERVICE,
    check_confinement,
    find_tool,
    header,
    override,
    run,
    service,
    unavailable,
)
from containers.engine import INTERVAL, Lab, Node, PeerNode, unique, wait_until
from containers.own_engine import OwnEngine, obstacle
from kit.documents import blocks

pytestmark = [pytest.mark.docker, pytest.mark.slow]

GUIDE = "INTEGRATION_GUIDE.md"
TTL = 60.0  # seconds; no record expires during a test
PATIENCE = 120.0  # seconds for Swarm to do what it was told
# `docker stack deploy` knows no extends, and is stricter about types than what compose v2 prints.
CONFIG_FOR_A_STACK = r"""docker compose config | sed '1s/.*/version: "3.8"/
  s/\( cpus:\) \(.*\)/\1 "\2"/
  s/\( size:\) "\(.*\)"/\1 \2/'"""


# ---- the swarm, and a laboratory on it


@pytest.fixture(scope="module")
def swarm(client: docker.DockerClient, image: str, peer_image: str) -> Iterator[OwnEngine]:
    """An engine of the tests' own with the images, which is a swarm of one node."""
    if problem := obstacle():
        unavailable(problem)
    with OwnEngine() as engine:
        for tag in (image, peer_image):
            engine.copy(tag, client)
        engine.client.swarm.init(advertise_addr="127.0.0.1")
        yield engine


class SwarmLab(Lab):
    """A laboratory whose network is an overlay network. Network and all end with the engine."""

    def __init__(self, engine: OwnEngine, *arguments: str) -> None:
        super().__init__(engine.client, *arguments)
        self.engine = engine

    def __enter__(self) -> Self:
        name = unique("overlay")
        self.network = self.client.networks.create(
            name, driver="overlay", attachable=True, labels=self.labels
        )
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(APIError):  # Swarm holds on to the network a little longer
            super().__exit__(*exception)


@pytest.fixture
def lab(swarm: OwnEngine, run: str, image: str, peer_image: str) -> Iterator[SwarmLab]:
    """An overlay network of its own for the test, to start containers and stacks on."""
    with SwarmLab(swarm, run, image, peer_image) as lab:
        yield lab


@pytest.fixture
def registry(lab: SwarmLab) -> PeerNode:
    """The embedded registry, in a plain container, so that it can be stopped and asked."""
    return lab.registry(alias=REGISTRY, ttl=TTL, port=80)


class Stack:
    """The toy service and its sidecar by the template, as a stack.

    A context manager: it removes the stack.
    Args: the laboratory; a directory; variables of the template beside those that it needs.
    """

    def __init__(self, lab: SwarmLab, directory: Path, **variables: object) -> None:
        self.lab, self.directory, self.name = lab, directory, unique("s")
        self.variables: dict[str, object] = {
            "SERVICE_NAME": NAME,
            "SERVICE_HOST": HOST,
            "SERVICE_PORT": PORT,
            "REGISTRY_URL": f"http://{REGISTRY}:80",
            "HEARTBEAT_INTERVAL": INTERVAL,
            "SIDECAR_IMAGE": lab.sidecar_image,
            "REGISTRY_NETWORK": lab.network.name,
            "SIDECAR_HEALTH_INTERVAL": HEALTH_INTERVAL,
            **variables,
        }
        self.own = directory / "stack.yml"
        by_task = "    deploy: {endpoint_mode: dnsrr}\n"
        own = f"{service(lab.peer_image)}{by_task}  {TEMPLATE_SERVICE}:\n    {HEALTH_OFTEN}\n"
        self.own.write_text(f'version: "3.8"\nservices:\n{own}{header().networks}')

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            print(*(node.describe() for node in self.nodes()), sep="\n")
            print(*self.tasks(), sep="\n")
        self.run("rm", self.name)
        wait_until(
            lambda: not self.services() and not self.nodes(all=True), PATIENCE, "the stack gone"
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a `docker stack` command."""
        command = ["docker", "stack", *arguments]
        return run(command, self.directory, **self.variables, DOCKER_HOST=self.lab.engine.url)

    def type_in(self, commands: str) -> None:
        """Run commands of a shell in the stack's directory."""
        engine = {"DOCKER_HOST": self.lab.engine.url}
        done = run(["sh", "-ec", commands], self.directory, **self.variables, **engine)
        assert done.returncode == 0, done.stdout + done.stderr

    def deploy(self, *files: Path, **variables: object) -> None:
        """Deploy the files, by default the service's and the template.

        Variables stay set for the next time.
        """
        self.variables |= variables
        options = [word for file in (files or (self.own, TEMPLATE)) for word in ("-c", str(file))]
        done = self.run("deploy", "--resolve-image", "never", *options, self.name)
        assert done.returncode == 0, done.stdout + done.stderr

    def services(self) -> list[Service]:
        return list(
            self.lab.client.services.list(
                filters={"label": f"com.docker.stack.namespace={self.name}"}
            )
        )

    def service(self, name: str = TEMPLATE_SERVICE) -> Service:
        """Return one of the stack's services, as it is now."""
        (found,) = [service for service in self.services() if service.name == f"{self.name}_{name}"]
        return found

    def nodes(self, name: str = "", **options: Any) -> list[Node]:
        """Return the containers of one service, of all by default; running ones unless all=True."""
        label = f"com.docker.swarm.service.name={self.name}_{name}" if name else ""
        filters: dict[str, Any] = {"label": label or f"com.docker.stack.namespace={self.name}"}
        found = self.lab.client.containers.list(filters=filters, ignore_removed=True, **options)
        return [Node(container, name or str(container.name)) for container in found]

    def sidecar(self, name: str = TEMPLATE_SERVICE) -> Node:
        """Return the sidecar's container once there is exactly one and Docker finds it healthy."""

        def healthy() -> list[Node]:
            nodes = self.nodes(name)
            with contextlib.suppress(NotFound):  # a container that has gone since
                return nodes if [node.health[0] for node in nodes] == ["healthy"] else []
            return []

        return wait_until(healthy, PATIENCE, "a healthy sidecar")[0]

    def tasks(self) -> list[dict[str, Any]]:
        """Return all tasks that there have been, as the engine shows them."""
        services: list[Any] = self.services()
        return [task for service in services for task in service.tasks()]


# ---- the tests


def test_a_stack_with_the_template_is_registered_and_confined(
    lab: SwarmLab, registry: PeerNode, tmp_path: Path
) -> None:
    """By the guide's own commands; the stack's name differs."""
    (commands,) = [b.text for b in blocks(GUIDE) if (b.heading, b.language) == ("Swarm", "sh")]
    (tmp_path / TEMPLATE.name).write_text(TEMPLATE.read_text())
    with Stack(lab, tmp_path) as stack:
        for name in re.findall(r"\b(\w+)=", commands):
            stack.variables.pop(name, None)
        stack.type_in(commands.replace(" osint\n", f" {stack.name}\n"))
        assert registry.wait_record(NAME, PATIENCE)["endpoint"] == f"http://{HOST}:{PORT}"
        sidecar = stack.sidecar()
        sidecar.wait_health("healthy", "^registered, last heartbeat")
        check_confinement(sidecar)
        # Swarm cannot forbid new privileges, so there is nothing that could give any.
        assert sidecar.execute("find", "/", "-xdev", "-perm", "/6000", user="0") == (0, "")
        template = stack.service().attrs["Spec"]["TaskTemplate"]
        assert template["RestartPolicy"]["Condition"] == "any"
        assert template["ContainerSpec"]["StopGracePeriod"] == 10 * 10**9


@pytest.mark.parametrize("deregister", ["true", "false"])
def test_after_a_rolling_update_the_service_is_registered(
    lab: SwarmLab, registry: PeerNode, tmp_path: Path, deregister: str
) -> None:
    """Where the new task starts before the old one stops.

    That may take the new one's record away.
    """
    with Stack(lab, tmp_path, SERVICE_METADATA="release=1", DEREGISTER_ON_EXIT=deregister) as stack:
        more = f"{HEALTH_OFTEN}\n    deploy: {{update_config: {{order: start-first, monitor: 1s}}}}"
        stack.own.write_text(stack.own.read_text().replace(HEALTH_OFTEN, more))
        stack.deploy()
        first = stack.sidecar()
        registry.wait_for(f"heartbeat {NAME} -> 200", timeout=PATIENCE)
        stack.deploy(SERVICE_METADATA="release=2")

        def updated() -> bool:
            return bool(stack.service().attrs.get("UpdateStatus", {}).get("State") == "completed")

        wait_until(updated, PATIENCE, "the update completed")
        second = stack.sidecar()
        assert second.container.id != first.container.id
        # The old task has had its say by now. Where it took away the new one's record, that is back
        # by the second heartbeat that is accepted.
        beats = registry.count(f"heartbeat {NAME} -> 200")
        registry.wait_for(f"heartbeat {NAME} -> 200", times=beats + 2)
        record = registry.record(NAME)
        assert record is not None
        assert record["metadata"]["release"] == "2"
        taken_away = registry.count(f"deregister {NAME} -> 200")
        lost = registry.count(f"heartbeat {NAME} -> 404")
        if (
            deregister == "false"
        ):  # the record was never absent: nobody took it away, and the TTL is long
            assert (taken_away, lost) == (0, 0)
        else:
            assert taken_away <= 1
            assert lost <= 1


def test_a_project_by_extends_becomes_a_stack_by_way_of_compose_config(
    lab: SwarmLab, registry: PeerNode, tmp_path: Path
) -> None:
    find_tool("v2")
    example = header()
    by_task = "    deploy: {endpoint_mode: dnsrr}\n"
    *lines, depends_on = example.extends.splitlines(keepends=True)
    assert "depends_on" in depends_on  # which is not for a stack, as the header says
    own = service(lab.peer_image) + by_task + textwrap.indent("".join(lines), "  ")
    files = {
        TEMPLATE.name: TEMPLATE.read_text(),
        "docker-compose.yml": f"services:\n{own}{example.networks}",
        "docker-compose.override.yml": override(str(lab.network.name), SIDECAR),
        ".env": f"{example.dotenv}SIDECAR_IMAGE={lab.sidecar_image}\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with Stack(lab, tmp_path) as stack:
        done = run(["sh", "-c", CONFIG_FOR_A_STACK + " >stack.yml"], tmp_path)
        assert done.returncode == 0, done.stderr
        stack.deploy(tmp_path / "stack.yml")
        registry.wait_record(NAME, PATIENCE)
        check_confinement(stack.sidecar(SIDECAR))


def test_the_guides_stack_is_registered(lab: SwarmLab, registry: PeerNode, tmp_path: Path) -> None:
    """What differs here is given beside it: the toy service's command, the network."""
    (text,) = [b.text for b in blocks(GUIDE) if (b.heading, b.language) == ("Swarm", "yaml")]
    (tmp_path / "guide.yml").write_text(text)
    by_task = "    deploy: {endpoint_mode: dnsrr}\n"
    network = f"networks: {{maximus-network: {{external: true, name: {lab.network.name}}}}}\n"
    own = f"{service(lab.peer_image)}{by_task}  {SIDECAR}:\n    {HEALTH_OFTEN}\n"
    (tmp_path / "own.yml").write_text(f'version: "3.8"\nservices:\n{own}{network}')
    with Stack(lab, tmp_path, OSINT_IMAGE=lab.peer_image) as stack:
        stack.deploy(tmp_path / "guide.yml", tmp_path / "own.yml")
        assert registry.wait_record(NAME, PATIENCE)["endpoint"] == f"http://{HOST}:{PORT}"
        stack.sidecar(SIDECAR).wait_health("healthy", "^registered, last heartbeat")
        wait_until(lambda: len(stack.nodes(HOST)) == 2, PATIENCE, "two replicas of the service")
