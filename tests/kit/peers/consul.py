"""The embedded Consul: the calls of its agent that matter here, in the words of its versions."""

import re
import time
from typing import Any
from urllib.parse import parse_qs

from kit.peers.server import Answer, Peer, Request

PREFIXES = {
    "/v1/agent/service/register": ("PUT", "register"),
    "/v1/agent/check/pass/service:": ("PUT", "heartbeat"),
    "/v1/agent/check/fail/service:": ("PUT", "fail"),
    "/v1/agent/service/deregister/": ("PUT", "deregister"),
    "/v1/agent/service/": ("GET", "get"),
    "/v1/agent/checks": ("GET", "checks"),
}
# What is said of a record that is not there: by today's agent, by one of before 2022, and by that
# one with ACLs.
UNKNOWN = {
    "new": (
        404,
        'Unknown check ID "service:{0}". Ensure that the check ID is passed, not the check name.',
    ),
    "old": (500, 'CheckID "service:{0}" does not have associated TTL'),
    "old with ACLs": (500, 'Unknown check "service:{0}"'),
}
FILTER = 'ServiceID *== *"([^"]*)"(?: +and +CheckID *!= *"([^"]*)")?'


class Consul(Peer):
    """Consul's agent. Its operations are those of PREFIXES, and other.

    Args beside those of Peer: wording, a key of UNKNOWN; token, None asks for none. `records` has
    what was registered by its ID, `passing` until when it passes (monotonic seconds), `others` the
    checks of a record that are somebody else's by their IDs, with their statuses.
    """

    def __init__(
        self, *arguments: Any, wording: str = "new", token: str | None = None, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.wording, self.token = wording, token
        self.records: dict[str, dict[str, Any]] = {}
        self.passing: dict[str, float] = {}
        self.others: dict[str, dict[str, str]] = {}

    @property
    def consul_url(self) -> str:
        """What REGISTRY_URL is set to."""
        return self.url.replace("http", "consul", 1)

    def route(self, method: str, path: str) -> str:
        """Return the operation, "other" for what it does not have."""
        found = (
            operation
            for prefix, (verb, operation) in PREFIXES.items()
            if path.startswith(prefix) and verb == method
        )
        return next(found, "other")

    def status(self, record: str) -> str:
        """Return the status of the record's own check."""
        return "passing" if self.passing[record] > time.monotonic() else "critical"

    def answer(self, request: Request) -> Answer:
        """Answer as Consul would."""
        path, _, query = request.path.partition("?")
        place = re.sub("^.*/(service:)?", "", path)
        with self.lock:
            if self.token is not None and request.headers.get("X-Consul-Token") != self.token:
                return Answer(403, "Permission denied")
            if request.operation == "register":
                return self._register(request.json())
            if request.operation == "checks":
                return self._checks(query)
            if request.operation == "other" or place not in self.records:
                return self._unknown(request.operation, place)
            if request.operation == "get":
                record = dict(self.records[place])
                return Answer(200, record | {"Service": record.pop("Name")})
            if request.operation == "deregister":
                del self.records[place]
                self.others.pop(place, None)
            else:
                self._pass(place, request.operation == "heartbeat")
            return Answer(200)

    def _register(self, record: dict[str, Any]) -> Answer:
        meta = record["Meta"].values()
        if not all(isinstance(value, str) and len(value.encode()) <= 512 for value in meta):
            return Answer(400, "Invalid Service Meta")
        place = record["ID"]
        passes = place not in self.records or self.status(place) == "passing"
        self.records[place] = record
        self._pass(place, passes)  # what was critical stays so, whatever the record says
        return Answer(200)

    def _pass(self, place: str, passes: bool) -> None:
        ttl = float(self.records[place]["Check"]["TTL"].removesuffix("s"))
        self.passing[place] = time.monotonic() + ttl if passes else 0.0

    def _checks(self, query: str) -> Answer:
        asked = re.fullmatch(FILTER, parse_qs(query).get("filter", [""])[0])
        if asked is None:
            return Answer(500, "Failed to create boolean expression evaluator: 1:1 (0)")
        record, left_out = asked[1], asked[2]
        checks = dict(self.others.get(record, {}))
        if record in self.records:
            checks[f"service:{record}"] = self.status(record)
        checks.pop(left_out, None)
        fields = {"Node": "embedded", "ServiceID": record}
        return Answer(
            200, {key: fields | {"CheckID": key, "Status": each} for key, each in checks.items()}
        )

    def _unknown(self, operation: str, place: str) -> Answer:
        if operation in ("heartbeat", "fail"):
            status, words = UNKNOWN[self.wording]
            return Answer(status, words.format(place))
        if operation == "deregister" and self.wording != "new":
            with_acls = "ACL" in self.wording
            return Answer(500, f'Unknown service {{"{place}" {{}}}}') if with_acls else Answer(200)
        return Answer(404, f"unknown service ID: {place}" if operation == "get" else "")
