"""Runs a real Consul on loopback: one server, or a cluster of three with one client agent, data in a directory.

Without a `consul` on the PATH the tests that need one are skipped, or fail where REQUIRE_CONSUL=1 is set.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import requests

from kit.peers.server import Peer
from kit.sidecar import NAME, wait_until

MASTER = "6f1c3b1e-0000-4000-8000-5a5a5a5a5a5a"  # the token that may do anything, where there are ACLs
# A leader is missed and chosen, and a dead agent noticed, in seconds rather than in half a minute.
QUICK = {"probe_interval": "200ms", "probe_timeout": "100ms", "gossip_interval": "50ms", "suspicion_mult": 2}


def find_consul() -> str:
    """Return the program. Skips the test, or fails it, where there is none."""
    import pytest  # which the demo does without

    program = shutil.which("consul")
    if program is None and os.environ.get("REQUIRE_CONSUL") == "1":
        pytest.fail("REQUIRE_CONSUL=1, but there is no consul on the PATH")
    return program or pytest.skip("there is no consul on the PATH")


class ConsulAgent:
    """One agent of Consul. Use it as a context manager, or call start and kill.

    Arguments: a directory for its data; number, which names it; servers, how many the cluster has, 0 for a client
    agent; acl, deny what no token allows. `friends` are the addresses that it joins.
    """

    def __init__(self, directory: Path, number: int = 1, servers: int = 1, acl: bool = False) -> None:
        self.program, self.directory, self.servers = find_consul(), directory / f"agent{number}", servers
        self.port, self.dns, self.serf, rpc = (Peer().port for _ in range(4))
        self.friends: list[str] = []
        self.headers = {"X-Consul-Token": MASTER} if acl else {}
        self.process: subprocess.Popen[bytes] | None = None
        ports = {"http": self.port, "dns": self.dns, "serf_lan": self.serf, "serf_wan": -1, "server": rpc, "grpc": -1}
        self.configuration: dict[str, Any] = {
            "node_name": f"agent{number}",
            "data_dir": str(self.directory),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": ports,
            "performance": {"raft_multiplier": 1},
            "gossip_lan": QUICK,
            "disable_update_check": True,
            "leave_on_terminate": False,
            "server": servers > 0,
        }
        if servers:
            self.configuration |= {"bootstrap_expect": servers}
        if acl:
            tokens = {"master": MASTER, "agent": MASTER}
            self.configuration["acl"] = {"enabled": True, "default_policy": "deny", "tokens": tokens}

    @property
    def url(self) -> str:
        """What REGISTRY_URL is set to."""
        return f"consul://127.0.0.1:{self.port}"

    def start(self, empty: bool = False) -> Self:
        """Start it, with its data unless `empty`; it is not waited for."""
        if empty:
            shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(exist_ok=True)
        file = self.directory.with_suffix(".json")
        file.write_text(json.dumps(self.configuration | {"retry_join": self.friends}))
        with self.directory.with_suffix(".log").open("ab") as log:
            command = [self.program, "agent", f"-config-file={file}"]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        """End it like a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        self.start().wait_leader()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send one request, not by a proxy of the surroundings."""
        url = f"http://127.0.0.1:{self.port}{path}"
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, url, headers=self.headers, timeout=10, **options)

    def get(self, path: str) -> Any:
        """Return what JSON it answers, None where it answers none."""
        with contextlib.suppress(requests.RequestException, ValueError):
            return self.ask("GET", path).json()
        return None

    def wait_leader(self) -> None:
        """Wait until this agent can read the catalog, and its own node stands there."""
        node = self.configuration["node_name"]
        wait_until(lambda: (self.get(f"/v1/health/node/{node}") or [{}])[0].get("Status") == "passing", 60, every=0.1)

    def passing(self, name: str = NAME) -> list[dict[str, Any]]:
        """Return the records that those who look for the service get, sorted by ID."""
        found = self.get(f"/v1/health/service/{name}?passing") or []
        return sorted((each["Service"] for each in found), key=lambda service: str(service["ID"]))

    def known(self, name: str = NAME) -> list[str]:
        """Return the status of every record of the name, passing or not."""
        found = self.get(f"/v1/health/service/{name}") or []
        return [c["Status"] for each in found for c in each["Checks"] if c["CheckID"].startswith("service:")]

    def wait_passing(self, number: int = 1, timeout: float = 30.0) -> list[dict[str, Any]]:
        """Wait until so many records pass, none included; return them."""
        wait_until(lambda: len(self.passing()) == number, timeout, f"{number} records passing", every=0.05)
        return self.passing()

    def forget(self, record: str) -> None:
        """Remove a record, by its ID, as somebody would by hand."""
        self.ask("PUT", f"/v1/agent/service/deregister/{record}").raise_for_status()


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[tuple[list[ConsulAgent], ConsulAgent]]:
    """Yield three servers and a client agent, all started."""
    agents = [ConsulAgent(directory, number, servers) for number, servers in ((1, 3), (2, 3), (3, 3), (4, 0))]
    try:
        for each in agents:
            each.friends = [f"127.0.0.1:{other.serf}" for other in agents if other is not each and other.servers]
            each.start()
        agents[3].wait_leader()
        yield agents[:3], agents[3]
    finally:
        for each in agents:
            each.kill()
