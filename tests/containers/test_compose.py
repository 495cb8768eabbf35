"""The compose template, by the examples in its own header, with compose v2 and v1.

What it says is what happens.
"""

import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent import SETTINGS, read_settings
from containers.compose import (
    HEALTH_OFTEN,
    HOST,
    MESSAGES,
    NAME,
    PORT,
    REGISTRY,
    SIDECAR,
    TEMPLATE,
    TEMPLATE_SERVICE,
    Project,
    Tool,
    check_confinement,
    find_tool,
    header,
    override,
    pasted,
    process_status,
    run,
    service,
)
from containers.engine import Lab, PeerNode, wait_until

pytestmark = pytest.mark.docker

TWO_NAMES = {"SERVICE_NAME": NAME, "SERVICE_HOST": HOST}
# The template has no use for the first, for /tmp is a tmpfs. The second is often set on a host, to
# a file there.
NOT_SERVED = {"HEARTBEAT_FILE", "SSL_CERT_FILE"}
TTL = 60  # seconds: the template's own intervals are tried here
MANY = 20


@pytest.fixture(params=["v2"])
def tool(request: pytest.FixtureRequest) -> Tool:
    """The compose command: that of today, and where a test asks for it that of before."""
    return find_tool(request.param)


of_both_generations = pytest.mark.parametrize("tool", ["v2", "v1"], indirect=True)


@pytest.fixture
def registry(lab: Lab) -> PeerNode:
    """The embedded registry where the template's header says that it is."""
    return lab.registry(alias=REGISTRY, ttl=TTL, port=80)


def config(tool: Tool, directory: Path, **variables: object) -> dict[str, Any]:
    """Return the template's service as `config` shows it.

    Raises AssertionError where the file is not valid.
    """
    done = run([*tool, "-f", str(TEMPLATE), "config"], directory, **variables)
    assert done.returncode == 0, done.stderr
    return dict(yaml.safe_load(done.stdout)["services"][TEMPLATE_SERVICE])


# ---- the file


@of_both_generations
def test_with_two_names_set_it_is_valid_and_its_defaults_are_the_agents_own(
    tool: Tool, tmp_path: Path
) -> None:
    environment = config(tool, tmp_path, **TWO_NAMES)["environment"]
    assert read_settings(environment).values == read_settings(TWO_NAMES).values


def test_it_passes_every_setting_on(tool: Tool, tmp_path: Path) -> None:
    served = set(SETTINGS) - NOT_SERVED
    values = {name: f"value-of-{name}" for name in served}
    assert config(tool, tmp_path, **values)["environment"] == values


@of_both_generations
def test_limits_image_log_sizes_and_periods_come_from_the_environment(
    tool: Tool, tmp_path: Path
) -> None:
    values = {
        "SIDECAR_IMAGE": "some/image:1",
        "SIDECAR_CPUS": "0.25",
        "SIDECAR_MEMORY": "32M",
        "SIDECAR_LOG_SIZE": "2m",
        "SIDECAR_LOG_FILES": "5",
        "SIDECAR_STOP_GRACE": "20s",
        "SIDECAR_HEALTH_INTERVAL": "2m",
    }
    shown = config(tool, tmp_path, **TWO_NAMES, **values)
    assert shown["image"] == "some/image:1"
    assert shown["logging"]["options"] == {"max-size": "2m", "max-file": "5"}
    assert shown["stop_grace_period"] == "20s"
    assert shown["healthcheck"] in ({"interval": "2m"}, {"interval": "2m0s"})  # v1 and v2
    limits = shown["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) == 0.25
    assert limits["memory"] in ("32M", str(32 << 20))  # v1 and v2


@pytest.mark.parametrize("missing", MESSAGES)
def test_without_a_name_it_stops_and_says_what_to_set(
    tool: Tool, tmp_path: Path, missing: str
) -> None:
    rest = {name: value for name, value in TWO_NAMES.items() if name != missing}
    done = run([*tool, "-f", str(TEMPLATE), "config"], tmp_path, **rest)
    assert done.returncode != 0
    assert done.stdout.strip() == ""
    assert done.stderr.rstrip().endswith(MESSAGES[missing])


# ---- the three ways of use


def copied(tool: Tool, lab: Lab, directory: Path) -> Project:
    """Way 1: the template's service and network stand in the project's only file."""
    files = {
        "docker-compose.yml": "services:\n" + service(lab.peer_image) + pasted(),
        "docker-compose.override.yml": override(str(lab.network.name), TEMPLATE_SERVICE),
    }
    return Project(tool, lab, directory, files)


def second_file(tool: Tool, lab: Lab, directory: Path, more: str = HEALTH_OFTEN) -> Project:
    """Way 2: the template beside the project's file, which may say more about the sidecar."""
    own = f"  {TEMPLATE_SERVICE}:\n{textwrap.indent(more, '    ')}\n"
    files = {
        "docker-compose.yml": "services:\n" + service(lab.peer_image) + own + header().networks,
        ".env": header().values.replace(": ", "=") + header().compose_file,
    }
    return Project(tool, lab, directory, files)


def extended(tool: Tool, lab: Lab, directory: Path, more: str = "") -> Project:
    """Way 3: four lines in the project's file, of which the last may be replaced."""
    example = header()
    *lines, depends_on = example.extends.splitlines()
    sidecar = textwrap.indent(
        "\n".join([*lines, f"  {more}" if more.strip() else depends_on]) + "\n", "  "
    )
    files = {
        "docker-compose.yml": "services:\n" + service(lab.peer_image) + sidecar + example.networks,
        "docker-compose.override.yml": override(str(lab.network.name), SIDECAR),
        ".env": example.dotenv,
    }
    return Project(tool, lab, directory, files)


WAYS = {"copied": copied, "second_file": second_file, "extended": extended}


@pytest.mark.parametrize(
    ("tool", "way"), [*(("v2", way) for way in WAYS), ("v1", "second_file")], indirect=["tool"]
)
def test_each_way_of_use_ends_healthy_registered_and_hardened(
    tool: Tool, lab: Lab, registry: PeerNode, tmp_path: Path, way: str
) -> None:
    with WAYS[way](tool, lab, tmp_path) as project:
        project.run("up", "-d")
        assert registry.wait_record(NAME)["endpoint"] == f"http://{HOST}:{PORT}"
        (sidecar,) = [node for name, node in project.nodes().items() if name != HOST]
        sidecar.wait_health("healthy", "^registered, last heartbeat")
        check_confinement(sidecar)
        inspected = sidecar.inspect()
        assert inspected["HostConfig"]["SecurityOpt"] == ["no-new-privileges:true"]
        assert process_status(sidecar)["NoNewPrivs"] == "1"
        assert inspected["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
        assert inspected["Config"]["StopTimeout"] == 10
        assert inspected["RestartCount"] == 0
        key = sidecar.alias
        assert key in project.run("ps")
        assert "Service registered successfully" in project.run("logs", key)
        project.run("stop", key)
        assert registry.record(NAME) is None
        project.run("start", key)
        registry.wait_record(NAME)
        project.run("down")
        assert registry.record(NAME) is None
        assert not project.nodes()


@pytest.mark.parametrize("way", ["second_file", "extended"])
def test_with_depends_on_it_starts_when_the_service_is_healthy(
    tool: Tool, lab: Lab, registry: PeerNode, tmp_path: Path, way: str
) -> None:
    ways = {"second_file": second_file, "extended": extended}
    project = ways[way](tool, lab, tmp_path, header().depends_on)
    file = tmp_path / "docker-compose.yml"
    not_ready = 3  # seconds
    file.write_text(
        file.read_text().replace(f"'{PORT}'", f"'{PORT}', '--not-ready-for', '{not_ready}'")
    )
    with project:
        project.run("up", "-d")
        registry.wait_record(NAME)
        nodes = project.nodes()
        (sidecar,) = [node for name, node in nodes.items() if name != HOST]
        assert (started(sidecar.state) - started(nodes[HOST].state)).total_seconds() >= not_ready
        assert sidecar.count("Waiting for the service") == 0
        assert sidecar.count("Service is READY") == 1


def started(state: dict[str, Any]) -> datetime:
    """Return when a container was started, from the `State` of `docker inspect`."""
    return datetime.fromisoformat(state["StartedAt"])


@pytest.mark.slow
def test_twenty_services_each_with_its_sidecar_by_extends(
    tool: Tool, lab: Lab, registry: PeerNode, tmp_path: Path
) -> None:
    example = header()
    numbers = [f"{number:02}" for number in range(1, MANY + 1)]
    pairs = "".join(
        service(lab.peer_image, f"{HOST}-{number}", healthcheck=False)
        + textwrap.indent(example.extends, "  ")
        .replace(HOST, f"{HOST}-{number}")
        .replace(NAME, f"{NAME}_{number}")
        for number in numbers
    )
    sidecars = [f"{HOST}-{number}-sidecar" for number in numbers]
    files = {
        "docker-compose.yml": "services:\n" + pairs + example.networks,
        "docker-compose.override.yml": override(str(lab.network.name)),
        ".env": example.dotenv,
    }
    with Project(tool, lab, tmp_path, files) as project:
        project.run("up", "-d")
        expected = {f"{NAME}_{number}": f"http://{HOST}-{number}:{PORT}" for number in numbers}

        def endpoints() -> dict[str, str]:
            return {
                name: record["endpoint"] for name, record in registry.control()["records"].items()
            }

        wait_until(lambda: endpoints() == expected, 120, "all services in the registry")
        nodes = project.nodes()
        assert len(nodes) == 2 * MANY
        for sidecar in sidecars:
            nodes[sidecar].wait_health("healthy", "^registered, last heartbeat", timeout=120)
        assert {nodes[sidecar].restarts for sidecar in sidecars} == {0}
        project.run("down")
        wait_until(lambda: not endpoints(), 2 * TTL, "none in the registry")
