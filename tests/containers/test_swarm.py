"""What is particular to Swarm: the guide's stack, its rolling updates, and the template in a stack.

On an engine of the tests' own that is a swarm of one node. Leaving a swarm makes an engine forget
the names of all running containers, on every network: other tests, and whatever else runs on the
machine, would find nobody any more. So a second dockerd is started in namespaces of its own, on a
file system in memory. It ends with the process that started it, even where that is killed.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import docker
import pytest
from docker.errors import APIError, DockerException, NotFound

from containers.compose import (
    HEALTH_INTERVAL,
    HEALTH_OFTEN,
    HOST,
    PORT,
    REGISTRY,
    SIDECAR,
    TEMPLATE,
    TEMPLATE_SERVICE,
    check_confinement,
    run,
    service,
    unavailable,
)
from containers.engine import INTERVAL, SECOND, Images, Lab, Node, describe, unique, wait_until
from kit.documents import blocks
from kit.sidecar import NAME

pytestmark = [pytest.mark.docker, pytest.mark.slow]

GUIDE = "INTEGRATION_GUIDE.md"
TTL = 60.0  # seconds; no record expires during a test
PATIENCE = 120.0  # seconds for Swarm, or an engine, to do what it was told
NEEDED = ("dockerd", "setpriv", "unshare", "ip", "mount")
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
ALONE = (
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
)  # fmt: skip
START = """\
mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec dockerd \
    --config-file "$1/daemon.json" \
    --host "unix://$1/docker.sock" --data-root /run/data --exec-opt native.cgroupdriver=cgroupfs
"""
# Peers are reached by the names of their tasks: virtual addresses need IPVS, which not every kernel
# has, and the sidecar does not care.
BY_TASK = "    deploy: {endpoint_mode: dnsrr}\n"


@contextlib.contextmanager
def own_engine() -> Iterator[str]:
    """Start an engine that ends with the test; yield its URL."""
    if os.geteuid() != 0 or not all(shutil.which(name, path=PATH) for name in NEEDED):
        unavailable(f"an engine of the tests' own needs root and {', '.join(NEEDED)}")
    # A socket's path has to be short.
    with tempfile.TemporaryDirectory(prefix="engine-") as directory:
        (Path(directory) / "daemon.json").write_text("{}")  # instead of the machine's own
        log = Path(directory) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*ALONE, "sh", "-c", START, "sh", directory],
                env=os.environ | {"PATH": PATH}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            yield f"unix://{directory}/docker.sock"
        except BaseException:
            print(log.read_text(errors="replace")[-5000:])
            raise
        finally:
            process.kill()  # and with it all that runs in its namespaces
            process.wait()


def connect(url: str) -> docker.DockerClient:
    """Return a client of an engine that is starting."""
    clients: list[docker.DockerClient] = []

    def answers() -> bool:
        with contextlib.suppress(DockerException):
            clients.append(docker.DockerClient(base_url=url, version="auto", timeout=120))
        return bool(clients)

    wait_until(answers, PATIENCE, "the tests' own engine answers")
    return clients[0]


class SwarmLab(Lab):
    """A laboratory on an overlay network of the swarm. All of it ends with the engine."""

    driver = "overlay"

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(APIError):  # Swarm holds on to the network a little longer
            super().__exit__(*exception)


@pytest.fixture
def url() -> Iterator[str]:
    """The engine's URL."""
    with own_engine() as url:
        yield url


@pytest.fixture
def lab(url: str, images: Images, image: str, peer_image: str) -> Iterator[SwarmLab]:
    """A laboratory on an engine that has the images, and is a swarm of one node."""
    client = connect(url)
    for tag in (image, peer_image):
        client.images.load(b"".join(images.client.images.get(tag).save(named=tag)))
    client.swarm.init(advertise_addr="127.0.0.1")
    with SwarmLab(Images(client, images.run), image, peer_image) as lab:
        yield lab
    client.close()


class Stack:
    """A stack. A context manager: it removes it.

    Args: the laboratory; the engine's URL; a directory; variables for the files.
    """

    def __init__(self, lab: Lab, url: str, directory: Path, **variables: object) -> None:
        self.lab, self.directory, self.name = lab, directory, unique("s")
        self.variables = variables | {"DOCKER_HOST": url}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is not None:
            print(*map(describe, self.nodes()), sep="\n")
        self.type_in(f"docker stack rm {self.name}")
        wait_until(lambda: not self.nodes(all=True), PATIENCE, "the stack gone")

    def type_in(self, commands: str) -> None:
        """Run commands of a shell in the stack's directory."""
        done = run(["sh", "-ec", commands], self.directory, **self.variables)
        assert done.returncode == 0, done.stdout + done.stderr

    def service(self, name: str) -> dict[str, Any]:
        """Return what the engine tells of a service."""
        (found,) = self.lab.client.services.list(filters={"name": f"{self.name}_{name}"})
        return dict(found.attrs)

    def nodes(self, name: str = "", **options: Any) -> list[Node]:
        """Return the containers of one service, of all by default; running ones unless all=True."""
        label = f"com.docker.swarm.service.name={self.name}_{name}" if name else ""
        filters: dict[str, Any] = {"label": label or f"com.docker.stack.namespace={self.name}"}
        found = self.lab.client.containers.list(filters=filters, ignore_removed=True, **options)
        return [Node(container, str(container.name)) for container in found]

    def sidecar(self, name: str) -> Node:
        """Return the sidecar's container once there is exactly one and Docker finds it healthy."""

        def healthy() -> list[Node]:
            nodes = self.nodes(name)
            with contextlib.suppress(NotFound):  # a container that has gone since
                return nodes if [node.health[0] for node in nodes] == ["healthy"] else []
            return []

        return wait_until(healthy, PATIENCE, "a healthy sidecar")[0]


def block(language: str) -> str:
    """Return the guide's block of a language about Swarm."""
    (text,) = [b.text for b in blocks(GUIDE) if (b.heading, b.language) == ("Swarm", language)]
    return text


@pytest.mark.timeout(600)
def test_the_guides_stacks_are_registered_also_after_updates(
    lab: SwarmLab, url: str, tmp_path: Path
) -> None:
    """What differs here is given beside it: the toy service's command, the network."""
    registry = lab.registry(alias=REGISTRY, ttl=TTL, port=80)
    top = 'version: "3.8"\nservices:\n'
    network = f"networks: {{maximus-network: {{external: true, name: {lab.network.name}}}}}\n"
    peer = service(lab.peer_image) + BY_TASK
    endpoint = f"http://{HOST}:{PORT}"

    (tmp_path / "guide.yml").write_text(block("yaml"))
    changed = (
        'environment: {DEREGISTER_ON_EXIT: "$DEREGISTER", SERVICE_METADATA: "release=$RELEASE"}'
    )
    sidecar = f"  {SIDECAR}:\n    {HEALTH_OFTEN}\n    {changed}\n"
    (tmp_path / "own.yml").write_text(top + peer + sidecar + network)
    images = {"OSINT_IMAGE": lab.peer_image, "SIDECAR_IMAGE": lab.sidecar_image}
    with Stack(lab, url, tmp_path, **images, HEARTBEAT_INTERVAL=INTERVAL) as stack:
        deploy = f"docker stack deploy --resolve-image never -c guide.yml -c own.yml {stack.name}"
        stack.type_in(f"export DEREGISTER=false RELEASE=1; {deploy}")
        assert registry.wait_record(NAME, PATIENCE)["endpoint"] == endpoint
        wait_until(lambda: len(stack.nodes(HOST)) == 2, PATIENCE, "two replicas of the service")
        # The new task starts before the old one stops. That may take the new one's record away,
        # which is what DEREGISTER_ON_EXIT=false is for: it is the old one's that counts.
        for release, deregister, taken_away in ((2, "true", 0), (3, "true", 1)):
            old = stack.sidecar(SIDECAR)
            stack.type_in(f"export DEREGISTER={deregister} RELEASE={release}; {deploy}")
            wait_until(
                lambda: stack.service(SIDECAR).get("UpdateStatus", {}).get("State") == "completed"
                and stack.sidecar(SIDECAR).container.id != old.container.id,  # noqa: B023
                PATIENCE, "the update completed",
            )  # fmt: skip
            # The old task has had its say by now. Where it took away the new one's record, that is
            # back by the second heartbeat that is accepted.
            beats = registry.count(f"heartbeat {NAME} -> 200")
            registry.wait_for(f"heartbeat {NAME} -> 200", times=beats + 2)
            record = registry.record()
            assert record is not None
            assert record["metadata"]["release"] == str(release)
            assert registry.count(f"deregister {NAME} -> 200") <= taken_away
            assert registry.count(f"heartbeat {NAME} -> 404") <= taken_away

    registry.control(forget=NAME)
    (tmp_path / "stack.yml").write_text(top + peer + network)
    (tmp_path / TEMPLATE.name).write_text(TEMPLATE.read_text())
    scaled = {"HEARTBEAT_INTERVAL": INTERVAL, "SIDECAR_HEALTH_INTERVAL": HEALTH_INTERVAL}
    given = {"SIDECAR_IMAGE": lab.sidecar_image, "REGISTRY_NETWORK": lab.network.name}
    with Stack(lab, url, tmp_path, **scaled, **given) as stack:
        stack.type_in(re.sub(r" osint\n", f" {stack.name}\n", block("sh")))
        assert registry.wait_record(NAME, PATIENCE)["endpoint"] == endpoint
        node = stack.sidecar(TEMPLATE_SERVICE)
        node.wait_health("healthy", "^registered, last heartbeat")
        check_confinement(node)
        # Swarm cannot forbid new privileges, so there is nothing that could give any.
        assert node.execute("find", "/", "-xdev", "-perm", "/6000", user="0") == (0, "")
        template = stack.service(TEMPLATE_SERVICE)["Spec"]["TaskTemplate"]
        assert template["RestartPolicy"]["Condition"] == "any"
        assert template["ContainerSpec"]["StopGracePeriod"] == 10 * SECOND
