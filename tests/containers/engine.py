"""A laboratory on a real Docker engine: images, networks, containers, and how they are swept away.

Whatever is made here carries the label RUN with a value of this test run, so that one sweep by
label finds it, also after a test that failed. After a run that was killed:

    PYTHONPATH=tests python -m containers.engine      removes what any run has left behind
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import docker
import trustme
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container
from docker.types import EndpointConfig

from kit import sidecar
from kit.sidecar import NAME, TESTS

PEERS = TESTS / "kit" / "peers"
BASE = "python:3.11-alpine"
RUN = "registry-sidecar-test"  # the label; its value names the run
BUILDER = "vertice-registry-sidecar=builder"  # the label of the Dockerfile's first stage
SECOND = 10**9  # in nanoseconds, the engine's unit
TTL, INTERVAL = 4, 2  # seconds; scaled down together from 60 and 30
STOPS_WITHIN = 4  # seconds: the 3 that are promised, and 1 for a busy machine
WAIT = 60.0  # seconds to wait for what has no promised time
PEER_DOCKERFILE = f"""\
FROM {BASE}
COPY . /opt/kit/peers/
ENV PYTHONUNBUFFERED=1 PYTHONPATH=/opt
"""
# Engine 20.10 now and then loses the output of a command that ends at once.
LINGER = '"$@"; code=$?; sleep 0.1; exit $code'
# As the compose template has it.
HARDENED: Mapping[str, Any] = {
    "mem_limit": "64m",
    "nano_cpus": SECOND // 10,
    "read_only": True,
    "tmpfs": {"/tmp": "size=1m"},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "restart_policy": {"Name": "unless-stopped"},
}
TIGHT = {"mem_limit": "24m", "memswap_limit": "24m"}  # under which it still runs

T = TypeVar("T")


class MissingError(Exception):
    """There is no engine, or no base image; the message says which."""


class BuildError(Exception):
    """`docker build` has failed; the message is its output."""


def connect() -> docker.DockerClient:
    """Return a client of the engine. Raises MissingError."""
    try:
        client = docker.from_env(timeout=120)
        client.images.get(BASE)
    except ImageNotFound as error:
        raise MissingError(f"the engine has no image {BASE}") from error
    except DockerException as error:
        raise MissingError(f"no Docker engine answers: {error}") from error
    return client


def unique(name: str) -> str:
    """Return a name for a container or a network that nothing else on the engine has."""
    return f"{RUN}-{name}-{uuid.uuid4().hex[:12]}"


def wait_until(what: Callable[[], T], timeout: float, why: str) -> T:
    """Return what() once it is true. Raises AssertionError after timeout seconds."""
    return sidecar.wait_until(what, timeout, why, every=0.1)  # each look is a request to the engine


def sweep(client: docker.DockerClient, run: str | None = None) -> list[str]:
    """Remove all that has the label of a run, of all runs by default; return what it was."""
    filters: dict[str, Any] = {"label": RUN if run is None else f"{RUN}={run}"}
    found: list[Any] = client.containers.list(all=True, filters=filters, ignore_removed=True)
    for container in found:
        remove_container(container)
    found += client.networks.list(filters=filters) + client.volumes.list(filters=filters)
    for thing in found:
        insist(thing.remove)  # once more for the containers, which are gone
    with alone():
        for image in client.images.list(filters=filters):
            found.append(image)
            insist(client.images.remove, str(image.id), force=True)
    return [f"{type(thing).__name__} {thing.id}" for thing in found]


def insist(remove: Callable[..., object], *arguments: object, **options: object) -> None:
    """Remove something that may be gone; a busy engine sometimes takes more than one attempt."""
    for attempt in range(5):
        try:
            remove(*arguments, **options)
        except NotFound:
            return
        except APIError:
            if attempt == 4:
                raise
            time.sleep(1)
        else:
            return


def remove_container(container: Container) -> None:
    """Kill and remove a container with its anonymous volumes."""
    insist(container.remove, v=True, force=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one process of this user at a time build or remove images: builders share layers."""
    lock = Path(tempfile.gettempdir()) / f"registry-sidecar-images-{os.getuid()}.lock"
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Images:
    """The images of one run; `remove` takes them away, and what the classic builder leaves."""

    def __init__(self, client: docker.DockerClient, run: str) -> None:
        self.client, self.run = client, run
        self.tags: list[str] = []
        # Ids; the classic builder keeps the builder stage, BuildKit does not.
        self.stages: set[str] = set()

    def build(
        self,
        name: str,
        context: Path,
        *options: str,
        dockerfile: str | None = None,
        buildkit: bool | None = None,
    ) -> str:
        """Build an image and return its tag, unique to this run. Raises BuildError.

        Args: a word for the tag; the context; options of `docker build`; a Dockerfile's text,
        instead of the context's own; True or False insists on BuildKit or the classic builder.
        """
        tag = f"{RUN}-{name}:{self.run}"
        label = f"{RUN}={self.run}"
        command = ["docker", "build", "--force-rm", "--tag", tag, "--label", label, *options]
        command += [*([] if dockerfile is None else ["--file", "-"]), str(context)]
        choice = {} if buildkit is None else {"DOCKER_BUILDKIT": str(int(buildkit))}
        with alone():
            before = self._stages()
            done = subprocess.run(
                command, env=os.environ | {"BUILDKIT_PROGRESS": "plain"} | choice,
                input=dockerfile or "", text=True, timeout=600,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            self.stages |= self._stages() - before
        if done.returncode:
            raise BuildError(done.stdout)
        self.tags.append(tag)
        return tag

    def _stages(self) -> set[str]:
        stages = self.client.images.list(filters={"dangling": True, "label": BUILDER})
        return {str(stage.id) for stage in stages}

    def remove(self) -> None:
        """Remove the images; containers of them must be gone by then."""
        with alone():
            for image in (*self.tags, *self.stages):
                insist(self.client.images.remove, image, force=image in self.tags)
        self.tags.clear()
        self.stages.clear()


def certificate(directory: Path, *hosts: str) -> dict[str, Any]:
    """Return options of a container that has a certificate for these hosts in /tls.

    That is cert.pem and key.pem, ca.pem, and other.pem of another authority. Args: where they lie.
    """
    authority, other = trustme.CA(), trustme.CA()
    issued = authority.issue_cert(*hosts)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    other.cert_pem.write_to_path(str(directory / "other.pem"))
    issued.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    directory.chmod(0o755)  # the sidecar is another user
    return {"volumes": {str(directory): {"bind": "/tls", "mode": "ro"}}}


class Lab:
    """A network with a registry, services and sidecars on it, each in a container.

    A context manager.
    Names on the network are `registry`, `service` and `sidecar` unless `alias` gives another.
    """

    driver = "bridge"

    def __init__(self, images: Images, sidecar_image: str, peer_image: str) -> None:
        self.client, self.labels = images.client, {RUN: images.run}
        self.sidecar_image, self.peer_image = sidecar_image, peer_image
        self.nodes: list[Node] = []

    def __enter__(self) -> Self:
        self.network = self.client.networks.create(
            unique("net"), driver=self.driver, attachable=True, labels=self.labels
        )
        return self

    def __exit__(self, *exception: object) -> None:
        print(*map(describe, self.nodes), sep="\n")  # pytest shows it where the test has failed
        for node in self.nodes:
            remove_container(node.container)
        insist(self.network.remove)

    def run(self, image: str, command: list[str] | None, alias: str, **options: Any) -> Node:
        """Start a container on the network; options are those of the SDK's `containers.run`."""
        endpoint = EndpointConfig(self.client.api.api_version, aliases=[alias])
        defaults = {
            "labels": self.labels,
            "name": unique(alias),
            "network": self.network.name,
            "networking_config": {str(self.network.name): endpoint},
        }
        container = self.client.containers.create(image, command, **(defaults | options))
        node = Node(container, alias)
        self.nodes.append(node)
        container.start()
        return node

    def peer(self, module: str, *arguments: str, alias: str, port: int, **options: Any) -> PeerNode:
        """Start a peer, with its own arguments, and wait until it answers."""
        command = ["python", "-m", f"kit.peers.{module}", "--verbose", "--port", str(port)]
        where = [] if "--host" in arguments else ["--host", "0.0.0.0"]
        node = self.run(self.peer_image, [*command, *where, *arguments], alias, **options)
        node.wait_for("listening on")
        control = port + 1 if "--tls" in arguments else port
        return PeerNode(node.container, alias, f"http://127.0.0.1:{control}/_control")

    def registry(self, *arguments: str, ttl: float = TTL, **options: Any) -> PeerNode:
        """Start the embedded registry, by default as `registry` on port 8888."""
        where: dict[str, Any] = {"alias": "registry", "port": 8888}
        return self.peer("registry", "--ttl", str(ttl), *arguments, **(where | options))

    def service(self, *arguments: str, **options: Any) -> PeerNode:
        """Start the toy service, by default as `service` on port 8080."""
        where: dict[str, Any] = {"alias": "service", "port": 8080}
        return self.peer("service", *arguments, **(where | options))

    def sidecar(
        self, options: Mapping[str, Any] | None = None, alias: str = "sidecar", **settings: Any
    ) -> Node:
        """Start a sidecar as hardened as in the template, with a health check every second.

        Args: its settings, which by default point to `service` and `registry` and have the
        interval INTERVAL; `options` for `containers.run` that differ, `image` among them.
        """
        defaults = {
            "SERVICE_NAME": NAME,
            "SERVICE_HOST": "service",
            "REGISTRY_URL": "http://registry:8888",
            "HEARTBEAT_INTERVAL": INTERVAL,
        }
        health = {"timeout": 5, "interval": 1, "start_period": 5}
        usual = {
            **HARDENED,
            "image": self.sidecar_image,
            "command": None,
            "environment": {name: str(value) for name, value in (defaults | settings).items()},
            "healthcheck": {name: each * SECOND for name, each in health.items()} | {"retries": 3},
        }
        return self.run(alias=alias, **(usual | dict(options or {})))


class Node:
    """A container of the laboratory."""

    def __init__(self, container: Container, alias: str) -> None:
        self.container, self.alias = container, alias

    @property
    def log(self) -> str:
        return self.container.logs().decode("utf-8", "replace")

    def inspect(self) -> dict[str, Any]:
        """Return what `docker inspect` shows now."""
        self.container.reload()
        return dict(self.container.attrs)

    @property
    def state(self) -> dict[str, Any]:
        """The `State` of `docker inspect`: Status, Pid, ExitCode, OOMKilled, Health..."""
        return dict(self.inspect()["State"])

    @property
    def restarts(self) -> int:
        return int(self.inspect()["RestartCount"])

    @property
    def health(self) -> tuple[str, str]:
        """Docker's verdict, and what the last health check printed."""
        health = self.state["Health"]
        log = health["Log"] or [{"Output": ""}]
        return str(health["Status"]), str(log[-1]["Output"]).strip()

    @property
    def address(self) -> str:
        """The container's IP address on the laboratory's network, its only one."""
        (network,) = self.inspect()["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    @property
    def inside(self) -> dict[str, Any]:
        """Options of a container that shares the network of this one."""
        mode = f"container:{self.container.id}"
        return {"network": None, "networking_config": None, "network_mode": mode}

    def execute(self, *command: str, **options: Any) -> tuple[int, str]:
        """Run a command inside; return its exit code and all that it printed."""
        code, output = self.container.exec_run(["sh", "-c", LINGER, "sh", *command], **options)
        assert code is not None
        assert isinstance(output, bytes)
        return code, output.decode("utf-8", "replace")

    def status(self) -> dict[str, str]:
        """Return the fields of /proc/1/status."""
        code, text = self.execute("cat", "/proc/1/status")
        assert code == 0, text
        return dict(re.findall(r"^(\w+):\t *(.*)$", text, re.MULTILINE))

    def stop(self) -> int:
        """Stop the container as `docker stop` does; return 137 where it took over STOPS_WITHIN."""
        self.container.stop(timeout=STOPS_WITHIN)
        return int(self.state["ExitCode"])

    def count(self, pattern: str) -> int:
        """Return how many lines of the log match."""
        return sum(bool(re.search(pattern, line)) for line in self.log.splitlines())

    def wait_for(self, pattern: str, times: int = 1, timeout: float = WAIT) -> None:
        """Wait until so many lines of the log match. Raises AssertionError."""
        why = f"{times} lines {pattern!r} of {self.alias}"
        wait_until(lambda: self.count(pattern) >= times, timeout, why)

    def wait_health(self, verdict: str, sentence: str, timeout: float = WAIT) -> None:
        """Wait until `docker inspect` shows this verdict and a sentence that matches.

        Raises AssertionError.
        """

        def shown() -> bool:
            status, said = self.health
            return status == verdict and re.search(sentence, said) is not None

        wait_until(shown, timeout, f"health of {self.alias}: {verdict}, {sentence!r}")


def describe(node: Node) -> str:
    """Return state and log of a container, as far as the engine still tells them."""
    try:
        return f"--- {node.alias}: {node.state}\n{node.log[-10_000:]}"
    except DockerException as error:
        return f"--- {node.alias}: {error}"


class PeerNode(Node):
    """A container of the toy service or of the embedded registry.

    The test talks to it from inside it, so that the network can be cut without cutting off the
    test.
    """

    def __init__(self, container: Container, alias: str, url: str) -> None:
        super().__init__(container, alias)
        self.url = url

    def control(self, **commands: object) -> dict[str, Any]:
        """Send commands, if any (peers/registry.py says which), and return the peer's state.

        Raises AssertionError where it does not answer.
        """
        post = ["--post-data", json.dumps(commands)] if commands else []
        said = ""

        def answers() -> bool:
            nonlocal said
            code, said = self.execute("wget", "-qO-", *post, self.url)
            return code == 0 and bool(said)

        wait_until(answers, WAIT, f"an answer of {self.alias}")  # it may be starting
        return dict(json.loads(said))

    def record(self, name: str = NAME) -> dict[str, Any] | None:
        """Return the live record of this name; None where there is none."""
        return self.control()["records"].get(name)  # type: ignore[no-any-return]

    def wait_record(self, name: str = NAME, timeout: float = WAIT) -> dict[str, Any]:
        """Wait until the registry has a live record; return it. Raises AssertionError."""
        return wait_until(lambda: self.record(name), timeout, f"a record of {name}") or {}

    def wait_no_record(self, name: str = NAME, timeout: float = WAIT) -> None:
        """Wait until the registry has no live record. Raises AssertionError."""
        wait_until(lambda: self.record(name) is None, timeout, f"no record of {name}")


if __name__ == "__main__":
    try:
        print(*sweep(connect()), sep="\n")
    except MissingError as missing:
        sys.exit(str(missing))
