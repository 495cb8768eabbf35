"""A caller that looks the service up and calls it all the time, while Compose stops both."""

import re
from pathlib import Path

import pytest

from containers.compose import HOST, PORT, REGISTRY, SIDECAR, Project, service
from containers.engine import Lab, Node
from kit.sidecar import NAME

pytestmark = [pytest.mark.docker, pytest.mark.usefixtures("compose")]

POLL, DRAIN = 1, 5  # seconds between two looks at the record; after the deregistration
NEVER = 3600
FAILED = "^failed call"
# Calls wherever the last record said, as long as there is one; prints each call that fails, and how
# many did not. It waits longer for an answer than a busy machine takes: a call fails that nobody
# answers.
CALLER = """
import functools, json, re, socket, sys, time, urllib.error, urllib.request
registry, every = sys.argv[1], float(sys.argv[2])
fetch = lambda url: json.load(urllib.request.urlopen(url, timeout=10))
resolve = functools.cache(socket.gethostbyname)
endpoint, looked, calls = None, float("-inf"), 0
while True:
    if time.monotonic() >= looked + every:
        looked = time.monotonic()
        try:
            found = fetch(registry)["endpoint"]
            endpoint = re.sub("vertice-osint", lambda name: resolve(name[0]), found)
        except urllib.error.HTTPError as error:
            endpoint = None
            print(f"no record ({error.code}) after {calls} calls", flush=True)
    if endpoint:
        try:
            fetch(endpoint + "/health")
        except OSError as error:
            print("failed call:", error, flush=True)
        calls += 1
        if calls == 20:
            print("it calls", flush=True)
    time.sleep(0.02)
"""


def stop_both(lab: Lab, directory: Path, drain: int, poll: int, more: str) -> Node:
    """Let Compose stop a service and its sidecar; return somebody who calls the service."""
    registry = lab.registry(alias=REGISTRY, ttl=60)
    sidecar = f"""\
  {SIDECAR}:
    image: {lab.sidecar_image}
    environment:
      SERVICE_NAME: {NAME}
      SERVICE_HOST: {HOST}
      SERVICE_PORT: {PORT}
      REGISTRY_URL: http://{REGISTRY}:8888
      DRAIN_SECONDS: {drain}
    networks: [maximus-network]
{more}
networks:
  maximus-network: {{external: true, name: {lab.network.name}}}
"""
    files = {"docker-compose.yml": "services:\n" + service(lab.peer_image) + sidecar}
    with Project(lab, directory, files) as both:
        both.run("up", "-d")
        registry.wait_record()
        url = f"http://{REGISTRY}:8888/services/{NAME}"
        caller = lab.run(lab.peer_image, ["python", "-c", CALLER, url, str(poll)], "caller")
        caller.wait_for("^it calls")
        assert caller.count(FAILED) == 0
        both.run("stop")
        assert {node.state["ExitCode"] for node in both.nodes().values()} == {0}
        return caller


def test_with_depends_on_and_a_drain_not_one_call_fails(lab: Lab, tmp_path: Path) -> None:
    caller = stop_both(lab, tmp_path, DRAIN, POLL, f"    depends_on: [{HOST}]")
    caller.wait_for("^no record")  # it has noticed, and calls no more
    assert caller.count(FAILED) == 0
    (calls,) = re.findall(r"^no record \(404\) after (\d+) calls", caller.log, re.MULTILINE)[:1]
    assert int(calls) > 20


def test_the_caller_would_see_failed_calls(lab: Lab, tmp_path: Path) -> None:
    stop_both(lab, tmp_path, 0, NEVER, "").wait_for(FAILED)
