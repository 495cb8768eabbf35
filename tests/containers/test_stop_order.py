"""A caller that looks the service up and calls it all the time.

While Compose stops service and sidecar.
"""

import re
from pathlib import Path

import pytest

from containers.compose import HOST, NAME, PORT, REGISTRY, SIDECAR, Project, find_tool, service
from containers.engine import Lab, Node, PeerNode

pytestmark = pytest.mark.docker

POLL = 1  # seconds between two looks at the record
NEVER = 3600
# Calls wherever the last record said, as long as there is one; prints each call that fails, and how
# many did not.
CALLER = """
import functools, json, re, socket, sys, time, urllib.error, urllib.request
registry, every = sys.argv[1], float(sys.argv[2])
fetch = lambda url, timeout: json.load(urllib.request.urlopen(url, timeout=timeout))
resolve = functools.cache(socket.gethostbyname)
endpoint, looked, calls = None, 0, 0
while True:
    if time.monotonic() >= looked + every:
        looked = time.monotonic()
        try:
            found = fetch(registry, 5)["endpoint"]
            endpoint = re.sub("vertice-osint", lambda name: resolve(name[0]), found)
        except urllib.error.HTTPError as error:
            endpoint = None
            print(f"no record ({error.code}) after {calls} calls", flush=True)
    if endpoint:
        calls += 1
        try:
            fetch(endpoint + "/health", 0.25)
        except OSError as error:
            print("failed call:", error, flush=True)
    time.sleep(0.02)
"""


def project(lab: Lab, directory: Path, depends_on: bool, drain: float) -> Project:
    """Return a service and its sidecar."""
    sidecar = (
        f"""\
  {SIDECAR}:
    image: {lab.sidecar_image}
    environment:
      SERVICE_NAME: {NAME}
      SERVICE_HOST: {HOST}
      SERVICE_PORT: {PORT}
      REGISTRY_URL: http://{REGISTRY}:8888
      DRAIN_SECONDS: {drain}
    networks: [maximus-network]
"""
        + f"    depends_on: [{HOST}]\n" * depends_on
    )
    networks = f"networks:\n  maximus-network: {{external: true, name: {lab.network.name}}}\n"
    text = "services:\n" + service(lab.peer_image, healthcheck=False) + sidecar + networks
    return Project(find_tool("v2"), lab, directory, {"docker-compose.yml": text})


def failed_calls(
    lab: Lab, directory: Path, depends_on: bool, drain: float, poll: float = POLL
) -> tuple[int, Node]:
    """Return how many calls failed while Compose stopped both, and the caller."""
    registry: PeerNode = lab.registry(alias=REGISTRY, ttl=60)
    with project(lab, directory, depends_on, drain) as both:
        both.run("up", "-d")
        registry.wait_record(NAME)
        url = f"http://{REGISTRY}:8888/services/{NAME}"
        caller = lab.run(lab.peer_image, ["python", "-c", CALLER, url, str(poll)], "caller")
        code, said = caller.execute("sleep", "2.5")
        assert (code, caller.log) == (0, ""), said  # all goes well
        both.run("stop")
        assert {node.state["ExitCode"] for node in both.nodes().values()} == {0}
        caller.execute("sleep", "1.5")
        return caller.count("^failed call"), caller


def test_with_depends_on_and_a_drain_not_one_call_fails(lab: Lab, tmp_path: Path) -> None:
    failed, caller = failed_calls(lab, tmp_path, depends_on=True, drain=3)
    assert failed == 0
    (calls, *_) = map(
        int, re.findall(r"after (\d+) calls", caller.log)
    )  # it noticed that the record was gone
    assert calls > 10


def test_the_caller_would_see_failed_calls(lab: Lab, tmp_path: Path) -> None:
    failed, _caller = failed_calls(lab, tmp_path, depends_on=False, drain=0, poll=NEVER)
    assert failed > 0
