"""The compose template, by the examples in its own header: what it says is what happens."""

import re
import shutil
import textwrap
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import SETTINGS, read_settings
from containers.compose import (
    HOST,
    PORT,
    REGISTRY,
    TEMPLATE,
    TEMPLATE_SERVICE,
    V1,
    V2,
    Project,
    check_confinement,
    header,
    run,
    service,
)
from containers.engine import Lab, Node, PeerNode, wait_until
from kit.sidecar import NAME

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("compose")]

TWO_NAMES = {"SERVICE_NAME": NAME, "SERVICE_HOST": HOST}
# The template has no use for the first, for /tmp is a tmpfs. The second is often set on a host, to
# a file there.
NOT_SERVED = {"HEARTBEAT_FILE", "SSL_CERT_FILE"}
MESSAGES = {  # where one of the two is not set
    "SERVICE_NAME": "set SERVICE_NAME to the name to register, such as osint_service",
    "SERVICE_HOST": "set SERVICE_HOST to the container or host name of the service",
}
SHOW = [*V2, "-f", str(TEMPLATE), "config"]
TTL = 60  # seconds: the template's own intervals are tried here
NOT_READY = 3  # seconds that a service needs
MANY, SELDOM = 20, "10s"


@pytest.fixture
def registry(lab: Lab) -> PeerNode:
    """The embedded registry where the template's header says that it is."""
    return lab.registry(alias=REGISTRY, ttl=TTL, port=80)


# ---- the file


def config(directory: Path, **variables: object) -> dict[str, Any]:
    """Return the template's service as `config` shows it, where the file is valid."""
    done = run(SHOW, directory, **variables)
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout)["services"][TEMPLATE_SERVICE])


def test_its_defaults_are_the_agents_own_and_it_passes_every_setting_on(tmp_path: Path) -> None:
    environment = config(tmp_path, **TWO_NAMES)["environment"]
    assert read_settings(environment).values == read_settings(TWO_NAMES).values
    values = {name: f"value-of-{name}" for name in set(SETTINGS) - NOT_SERVED}
    assert config(tmp_path, **values)["environment"] == values


def test_limits_image_log_sizes_and_periods_come_from_the_environment(tmp_path: Path) -> None:
    values = {
        "SIDECAR_IMAGE": "some/image:1",
        "SIDECAR_CPUS": "0.25",
        "SIDECAR_MEMORY": "32M",
        "SIDECAR_LOG_SIZE": "2m",
        "SIDECAR_LOG_FILES": "5",
        "SIDECAR_STOP_GRACE": "20s",
        "SIDECAR_HEALTH_INTERVAL": "2m",
    }
    shown = config(tmp_path, **TWO_NAMES, **values)
    assert shown["image"] == "some/image:1"
    assert shown["logging"]["options"] == {"max-size": "2m", "max-file": "5"}
    assert shown["stop_grace_period"] == "20s"
    assert shown["healthcheck"] == {"interval": "2m0s"}
    limits = shown["deploy"]["resources"]["limits"]
    assert (float(limits["cpus"]), limits["memory"]) == (0.25, str(32 << 20))


def test_without_a_name_it_stops_and_says_what_to_set(tmp_path: Path) -> None:
    for missing, message in MESSAGES.items():
        rest = {name: value for name, value in TWO_NAMES.items() if name != missing}
        done = run(SHOW, tmp_path, **rest)
        assert done.returncode != 0
        assert done.stdout.strip() == ""
        assert done.stderr.rstrip().endswith(message)


# ---- the three ways of use: the files of a project


Files = dict[str, str]


def files(lab: Lab, services: str, dotenv: str = "") -> Files:
    """Return a project of these services whose network is the laboratory's."""
    network = {"external": True, "name": lab.network.name}
    return {
        "docker-compose.yml": "services:\n" + services,
        "docker-compose.override.yml": yaml.safe_dump({"networks": {"maximus-network": network}}),
        ".env": dotenv,
    }


def copied(lab: Lab, service: str, _more: str) -> Files:
    """Way 1: the template's service and network stand in the project's only file."""
    template = TEMPLATE.read_text().partition("\nservices:\n")[2]
    for line in header().values.splitlines():
        name = line.partition(":")[0]
        template, times = re.subn(rf"(?m)^( +){name}: .*$", rf"\g<1>{line}", template)
        assert times == 1, name
    return files(lab, service + template)


def second_file(lab: Lab, service: str, more: str) -> Files:
    """Way 2: the template beside the project's file, which may say more about the sidecar."""
    own = f"  {TEMPLATE_SERVICE}:\n    {more}\n" if more else ""
    dotenv = header().values.replace(": ", "=") + header().compose_file
    return files(lab, service + own + header().networks, dotenv)


def extended(lab: Lab, service: str, more: str) -> Files:
    """Way 3: four lines in the project's file, of which the last may be replaced."""
    *lines, depends_on = header().extends.splitlines()
    sidecar = "\n".join([*lines, f"  {more}" if more else depends_on])
    networks = "\n" + header().networks
    return files(lab, service + textwrap.indent(sidecar, "  ") + networks, header().dotenv)


def started(node: Node) -> datetime:
    """Return when a container was started."""
    return datetime.fromisoformat(node.state["StartedAt"])


@pytest.mark.parametrize(
    ("way", "tool"), [(copied, V2), (second_file, V2), (extended, V2), (second_file, V1)]
)
def test_each_way_of_use_ends_healthy_registered_and_hardened(
    lab: Lab,
    registry: PeerNode,
    tmp_path: Path,
    way: Callable[[Lab, str, str], Files],
    tool: tuple[str, ...],
) -> None:
    """Where the ways allow it, the sidecar starts when Docker finds the service healthy."""
    if tool == V1 and not shutil.which(*V1):
        pytest.skip("there is no Compose v1")
    waits = tool == V2 and way != copied
    own = service(lab.peer_image, HOST, "--not-ready-for", str(NOT_READY))
    more = header().depends_on.strip() if waits else ""
    with Project(lab, tmp_path, way(lab, own, more), tool) as project:
        project.run("up", "-d")
        assert registry.wait_record()["endpoint"] == f"http://{HOST}:{PORT}"
        nodes = project.nodes()
        (sidecar,) = [node for name, node in nodes.items() if name != HOST]
        if waits:
            assert (started(sidecar) - started(nodes[HOST])).total_seconds() >= NOT_READY
            assert sidecar.count("Waiting for the service") == 0
            assert sidecar.count("Service is READY") == 1
        sidecar.wait_health("healthy", "^registered, last heartbeat")
        check_confinement(sidecar)
        inspected = sidecar.inspect()
        assert inspected["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
        assert sidecar.status()["NoNewPrivs"] == "1"
        assert inspected["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert inspected["Config"]["StopTimeout"] == 10
        assert inspected["RestartCount"] == 0
        key = sidecar.alias
        assert key in project.run("ps")
        assert "Service registered successfully" in project.run("logs", key)
        project.run("stop", key)
        assert registry.record() is None
        project.run("start", key)
        registry.wait_record()
        project.run("down")
        assert registry.record() is None
        assert not project.nodes()


@pytest.mark.slow
def test_twenty_services_each_with_its_sidecar_by_extends(
    lab: Lab, registry: PeerNode, tmp_path: Path
) -> None:
    pairs, expected = "", {}
    for number in range(1, MANY + 1):
        host, name = f"{HOST}-{number}", f"{NAME}_{number}"
        extends = textwrap.indent(header().extends, "  ").replace(HOST, host).replace(NAME, name)
        pairs += service(lab.peer_image, host, interval=SELDOM) + extends
        expected[name] = f"http://{host}:{PORT}"
    # Forty health checks each second would take all of two CPUs.
    dotenv = f"{header().dotenv}SIDECAR_HEALTH_INTERVAL={SELDOM}\n"

    def endpoints() -> dict[str, str]:
        records = registry.control()["records"].items()
        return {name: record["endpoint"] for name, record in records}

    with Project(lab, tmp_path, files(lab, pairs + header().networks, dotenv)) as project:
        project.run("up", "-d")
        wait_until(lambda: endpoints() == expected, 120, "all services in the registry")
        nodes = project.nodes()
        assert len(nodes) == 2 * MANY
        for name, node in nodes.items():
            if name.endswith("-sidecar"):
                node.wait_health("healthy", "^registered, last heartbeat", timeout=120)
                assert node.restarts == 0
        project.run("down")
        wait_until(lambda: not endpoints(), 2 * TTL, "none in the registry")
