"""The embedded Consul: the five calls of its agent that matter here, with the wordings of its versions and its TTL."""

from __future__ import annotations

import time
from typing import Any

from kit.peers.server import Answer, Peer, Request, arguments, run

PREFIXES = {
    "/v1/agent/service/register": ("PUT", "register"),
    "/v1/agent/check/pass/service:": ("PUT", "heartbeat"),
    "/v1/agent/service/deregister/": ("PUT", "deregister"),
    "/v1/agent/service/": ("GET", "get"),
    "/v1/health/service/": ("GET", "health"),
}
# What is said of a record that is not there: by today's agent, by one of before 2022, and by that one with ACLs.
UNKNOWN = {
    "new": (404, 'Unknown check ID "service:{0}". Ensure that the check ID is passed, not the check name.'),
    "old": (500, 'CheckID "service:{0}" does not have associated TTL'),
    "old with ACLs": (500, 'Unknown check "service:{0}"'),
}


class Consul(Peer):
    """Consul's agent. Its operations are register, heartbeat, deregister, get, health and other.

    Arguments beside those of Peer: wording, a key of UNKNOWN; token, None asks for none. `records` has what was
    registered by its ID, `passing` until when it passes (monotonic seconds).
    """

    def __init__(self, *arguments: Any, wording: str = "new", token: str | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.wording, self.token = wording, token
        self.records: dict[str, dict[str, Any]] = {}
        self.passing: dict[str, float] = {}

    @property
    def consul_url(self) -> str:
        """What REGISTRY_URL is set to."""
        return self.url.replace("http", "consul", 1)

    def route(self, method: str, path: str) -> str:
        """Return the operation, "other" for what it does not have."""
        found = ((verb, operation) for prefix, (verb, operation) in PREFIXES.items() if path.startswith(prefix))
        return next((operation for verb, operation in found if verb == method), "other")

    def answer(self, request: Request) -> Answer:
        """Answer as Consul would."""
        place = request.path.partition("?")[0].removeprefix("/v1/agent/check/pass/service:").rpartition("/")[2]
        with self.lock:
            if self.token is not None and request.headers.get("X-Consul-Token") != self.token:
                return Answer(403, "Permission denied")
            if request.operation == "register":
                return self._register(request.json())
            if request.operation == "health":
                found = [each for each in self.records.values() if each["Name"] == place]
                live = [each for each in found if self.passing[each["ID"]] > time.monotonic()]
                return Answer(200, [{"Service": each} for each in live])
            if request.operation == "other" or place not in self.records:
                return self._unknown(request.operation, place)
            if request.operation == "get":
                return Answer(200, self.records[place])
            if request.operation == "heartbeat":
                self._pass(place)
            else:
                del self.records[place]
            return Answer(200)

    def _register(self, record: dict[str, Any]) -> Answer:
        if not all(isinstance(value, str) and len(value.encode()) <= 512 for value in record["Meta"].values()):
            return Answer(400, "Invalid Service Meta")
        self.records[record["ID"]] = record
        self._pass(record["ID"])
        return Answer(200)

    def _pass(self, place: str) -> None:
        self.passing[place] = time.monotonic() + float(self.records[place]["Check"]["TTL"].removesuffix("s"))

    def _unknown(self, operation: str, place: str) -> Answer:
        if operation == "heartbeat":
            status, words = UNKNOWN[self.wording]
            return Answer(status, words.format(place))
        if operation == "deregister" and self.wording != "new":
            return Answer(500, f'Unknown service {{"{place}" {{}}}}') if "ACL" in self.wording else Answer(200)
        return Answer(404, f"unknown service ID: {place}" if operation == "get" else "")


if __name__ == "__main__":
    raise SystemExit(run(Consul(**vars(arguments("The embedded Consul.", 8500).parse_args())), "consul"))
