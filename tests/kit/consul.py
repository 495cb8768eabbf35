"""Runs a real Consul on loopback, one server with its data in a directory.

Without a `consul` on the PATH the tests that need one are skipped, or fail where REQUIRE_CONSUL=1
is set.
"""

import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

import requests

from kit.peers.server import Peer
from kit.sidecar import NAME, wait_until

# The token that may do anything, where there are ACLs.
MASTER = "6f1c3b1e-0000-4000-8000-5a5a5a5a5a5a"


def find_consul() -> str:
    """Return the program. Skips the test, or fails it, where there is none."""
    import pytest  # which the demo does without

    program = shutil.which("consul")
    if program is None and os.environ.get("REQUIRE_CONSUL") == "1":
        pytest.fail("REQUIRE_CONSUL=1, but there is no consul on the PATH")
    return program or pytest.skip("there is no consul on the PATH")


class ConsulAgent:
    """One agent of Consul. Use it as a context manager, or call start and kill.

    Args: a directory for its data; acl, deny what no token allows; how many servers the cluster
    has, and one that this one is to join.
    """

    def __init__(
        self, directory: Path, acl: bool = False, servers: int = 1, join: Self | None = None
    ) -> None:
        self.program = find_consul()
        self.port, dns, self.serf, rpc = (Peer().port for _ in range(4))
        self.directory = directory / f"consul-{self.port}"
        self.headers = {"X-Consul-Token": MASTER} if acl else {}
        self.process: subprocess.Popen[bytes] | None = None
        ports = {"http": self.port, "dns": dns, "serf_lan": self.serf, "server": rpc}
        self.configuration: dict[str, Any] = {
            "node_name": self.directory.name,
            "data_dir": str(self.directory),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": ports | {"serf_wan": -1, "grpc": -1},
            "performance": {"raft_multiplier": 1},
            "disable_update_check": True,
            "leave_on_terminate": False,
            "server": True,
            "bootstrap_expect": servers,
            "retry_join": [f"127.0.0.1:{join.serf}"] if join else [],
        }
        if acl:
            tokens = {"master": MASTER, "agent": MASTER}
            acls = {"enabled": True, "default_policy": "deny", "tokens": tokens}
            self.configuration["acl"] = acls

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
        file.write_text(json.dumps(self.configuration))
        with self.directory.with_suffix(".log").open("ab") as log:
            command = [self.program, "agent", f"-config-file={file}"]
            null = subprocess.DEVNULL
            self.process = subprocess.Popen(command, stdin=null, stdout=log, stderr=log)
        return self

    def kill(self) -> None:
        """End it like a crash."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def __enter__(self) -> Self:
        return self.start()

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

    def wait_leader(self) -> Self:
        """Wait until this agent can read the catalog, and its own node stands there."""
        path = f"/v1/health/node/{self.directory.name}"
        wait_until(lambda: (self.get(path) or [{}])[0].get("Status") == "passing", 60, every=0.1)
        return self

    def passing(self) -> list[dict[str, Any]]:
        """Return the records that those who look for the service get, sorted by ID."""
        found = self.get(f"/v1/health/service/{NAME}?passing") or []
        return sorted((each["Service"] for each in found), key=lambda service: str(service["ID"]))

    def statuses(self) -> dict[str, str]:
        """Return the statuses of all checks on the agent's records, by their IDs."""
        checks = (self.get("/v1/agent/checks") or {}).values()
        return {check["CheckID"]: check["Status"] for check in checks}

    def wait_passing(self, number: int = 1) -> list[dict[str, Any]]:
        """Wait until so many records pass, none included; return them."""
        wait_until(lambda: len(self.passing()) == number, 30, f"{number} passing", every=0.05)
        return self.passing()

    def forget(self, record: str) -> None:
        """Remove a record, by its ID, as somebody would by hand."""
        self.ask("PUT", f"/v1/agent/service/deregister/{record}").raise_for_status()
