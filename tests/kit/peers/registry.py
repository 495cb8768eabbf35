"""The embedded registry: the whole API, its TTL, each of its oddities by a switch.

As a program: `python -m kit.peers.registry --port 8888 --ttl 60 --verbose`. While it runs, tests
can script it: `curl -d '{"store":"open"}' localhost:8888/_control`,
`{"play":["heartbeat","hang",null]}` (null: until `{"sane":"*"}`), `{"forget":null}` loses all
records; `GET /_control` shows counts and records.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from kit.peers.faults import html_page
from kit.peers.server import Answer, Peer, Request, arguments, reason, run

LINGER = {"documented": 0.0, "deployed": 30.0}  # seconds for which the list shows an expired name
DIALECTS = tuple(LINGER)
STORES = ("up", "failing", "open", "half_open", "hangs", "gone")
ROUTES = {
    "/register": ("POST", "register"),
    "/heartbeat": ("POST", "heartbeat"),
    "/services": ("GET", "list"),
    "/health": ("GET", "health"),
    "/metrics": ("GET", "metrics"),
}
NAMED_ROUTES = (("/deregister/", "DELETE", "deregister"), ("/services/", "GET", "get"))
FAILURES = {
    "register": "Registration failed",
    "heartbeat": "Heartbeat failed",
    "deregister": "Deregistration failed",
    "list": "Failed to list services",
    "get": "Failed to get service",
}
FIELDS = {
    "register": ("service_name", "endpoint", "health_endpoint", "metadata"),
    "heartbeat": ("service_name",),
}
# The `status` label of registry_operations_total for a success while the store is not up.
LABELS = {
    ("open", "register"): "cache_fallback",
    ("open", "heartbeat"): "cache_mode",
    ("open", "list"): "cache_fallback",
    ("half_open", "register"): "circuit_breaker_open",
}


@dataclass
class _Record:
    service_name: str
    endpoint: str
    health_endpoint: str
    metadata: dict[str, str]
    registered_at: float  # these two in Unix seconds
    last_heartbeat: float
    expires: float  # by the registry's clock


class Registry(Peer):
    """The registry.

    Its operations are register, heartbeat, deregister, list, get, health, metrics and other.
    Args beside those of Peer (durations in seconds; all are attributes too and may be changed
    any time): ttl; token, None asks for none; dialect, "documented" or "deployed" wording of
    errors; store, the state of the store behind it, one of STORES ("gone": no replica is left
    behind nginx); failing_delay and hang_delay, how long a failing and a hanging store takes to
    give its 500 and 504; replica_of, another registry with which it shares the store; clock,
    monotonic seconds.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        ttl: float = 60.0,
        token: str | None = None,
        dialect: str = "documented",
        store: str = "up",
        failing_delay: float = 3.0,
        hang_delay: float = 5.0,
        replica_of: Registry | None = None,
        clock: Callable[[], float] = time.monotonic,
        **options: Any,
    ) -> None:
        super().__init__(host, port, **options)
        self.ttl, self.token, self.dialect = ttl, token, dialect
        self.failing_delay, self.hang_delay = failing_delay, hang_delay
        self.clock = clock
        self._records: dict[str, _Record] = {}  # the store
        if replica_of is not None:
            self.lock, self._records = replica_of.lock, replica_of._records
        self._memory: dict[str, _Record] = {}  # what one replica holds while the store is down
        self._own: set[str] = set()  # the names that were registered through this replica
        self._operations: collections.Counter[tuple[str, str]] = collections.Counter()
        self._trials = 0  # heartbeats while half open
        self.store = store

    # Switches and views.

    @property
    def store(self) -> str:
        """The state of the store; back to "up" forgets what was only in a replica's memory."""
        return self._store

    @store.setter
    def store(self, value: str) -> None:
        if value not in STORES:
            raise ValueError(f"store is one of {', '.join(STORES)}, not {value!r}")
        with self.lock:
            self._store, self._trials = value, 0
            if value == "up":
                self._memory.clear()

    def record(self, name: str) -> dict[str, object] | None:
        """Return the live record of this name from the store: no replica's memory counts."""
        with self.lock:
            return self._shown(self._live(name))

    def names(self) -> list[str]:
        """Return the names that have a live record, sorted."""
        with self.lock:
            return sorted(name for name in self._records if self._live(name))

    def listed(self) -> list[str]:
        """Return the names that GET /services shows."""
        with self.lock:
            if self.store != "up":
                return sorted(self._memory)
            since = self.clock() - LINGER[self.dialect]
            return sorted(name for name, each in self._records.items() if each.expires > since)

    def forget(self, name: str | None = None) -> None:
        """Lose the record of this name, of all names by default, and nobody is told."""
        with self.lock:
            for records in (self._records, self._memory):
                records.clear() if name is None else records.pop(name, None)

    def expire(self, name: str | None = None) -> None:
        """Let the TTL of this name, of all by default, run out now: the name lingers."""
        with self.lock:
            for record in self._records.values():
                if name in (None, record.service_name):
                    record.expires = min(record.expires, self.clock())

    def state(self) -> dict[str, object]:
        """Return counts and the live records."""
        with self.lock:
            return super().state() | {"records": {name: self.record(name) for name in self.names()}}

    # The API.

    def route(self, method: str, path: str) -> str:
        """Return the operation, "other" for what the API does not have."""
        path = unquote(path.partition("?")[0])
        if path in ROUTES and ROUTES[path][0] == method:
            return ROUTES[path][1]
        for prefix, verb, operation in NAMED_ROUTES:
            name = path.removeprefix(prefix)
            if verb == method and path.startswith(prefix) and name and "/" not in name:
                return operation
        return "other"

    def label(self, request: Request) -> str:
        """Return the service's name where the request has one, else its path."""
        name = _name_in(request)
        return name if isinstance(name, str) else request.path

    def answer(self, request: Request) -> Answer:
        """Answer as the registry would in its present state."""
        operation = request.operation
        with self.lock:
            if self.store == "gone":
                return _nginx(502)
            if operation == "other":
                return Answer(404, {"detail": "Not Found"})
            answer: Answer = getattr(self, f"_{operation}")(request)
            if operation in FAILURES:
                success = LABELS.get((self.store, operation), "success")
                self._operations[operation, success if answer.status < 400 else "error"] += 1
            return answer

    def _register(self, request: Request) -> Answer:
        if refused := self._refused(request):
            return refused
        name, endpoint, health_endpoint, metadata = (
            request.json()[key] for key in FIELDS["register"]
        )
        now = time.time()
        record = _Record(
            name, endpoint, health_endpoint, metadata, now, now, self.clock() + self.ttl
        )
        (self._records if self.store == "up" else self._memory)[name] = record
        self._own.add(name)
        message = "Service registered successfully"
        if self.store == "half_open":
            message = "Service registered (circuit breaker open, local cache)"
        return Answer(201, {"message": message, "service_name": name})

    def _heartbeat(self, request: Request) -> Answer:
        name = str(_name_in(request))
        if refused := self._refused(request):
            return refused
        if self.store == "half_open":
            self._trials += 1
            if self._trials % 10:
                return self._error("heartbeat", 500, "Circuit breaker HALF_OPEN (test phase)")
        if self.store != "open":
            record = self._live(name)
            if record is None:
                return self._error("heartbeat", 404, f"Service '{name}' not registered")
            record.last_heartbeat, record.expires = time.time(), self.clock() + self.ttl
        return Answer(200, {"message": "Heartbeat received", "service_name": name})

    def _deregister(self, request: Request) -> Answer:
        if refused := self._token(request) or self._store_down("deregister"):
            return refused
        name = _name_in(request)
        (self._records if self.store == "up" else self._memory).pop(str(name), None)
        return Answer(200, {"message": "Service deregistered successfully", "service_name": name})

    def _list(self, _request: Request) -> Answer:
        if refused := self._store_down("list"):
            return refused
        return Answer(200, self.listed())

    def _get(self, request: Request) -> Answer:
        if refused := self._store_down("get"):
            return refused
        name = str(_name_in(request))
        record = self._shown(self._live(name) if self.store == "up" else self._memory.get(name))
        return (
            Answer(200, record)
            if record
            else Answer(404, {"detail": f"Service '{name}' not found"})
        )

    def _health(self, _request: Request) -> Answer:
        status = "healthy" if self.store == "up" else "degraded"
        state = self.store.upper() if self.store in ("open", "half_open") else "CLOSED"
        redis = {"status": status, "circuit_breaker": {"state": state}}
        active = self._active_services()
        return Answer(
            200, {"status": status, "components": {"redis": redis}, "active_services": active}
        )

    def _metrics(self, _request: Request) -> Answer:
        samples = [
            f'registry_operations_total{{operation="{operation}",status="{status}"}} {number}'
            for (operation, status), number in sorted(self._operations.items())
        ]
        lines = [
            "# HELP registry_active_services Services that were registered through this replica",
            "# TYPE registry_active_services gauge",
            f"registry_active_services {self._active_services()}",
            "# HELP registry_circuit_breaker_open Whether this replica answers from its own memory",
            "# TYPE registry_circuit_breaker_open gauge",
            f"registry_circuit_breaker_open {int(self.store == 'open')}",
            "# HELP registry_operations_total Operations by outcome",
            "# TYPE registry_operations_total counter",
            *samples,
        ]
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Answer(200, "\n".join(lines) + "\n", {"Content-Type": kind})

    def _active_services(self) -> int:
        """Return how many services were registered through this replica and are still known."""
        self._own = {name for name in self._own if name in self._memory or self._live(name)}
        return len(self._own)

    # Refusals: each returns None where there is nothing to refuse.

    def _refused(self, request: Request) -> Answer | None:
        return _invalid(request) or self._token(request) or self._store_down(request.operation)

    def _token(self, request: Request) -> Answer | None:
        if self.token is None or request.headers.get("X-Registry-Token") == self.token:
            return None
        return self._error(request.operation, 401, "Invalid registry token")

    def _store_down(self, operation: str) -> Answer | None:
        if self.store == "failing":
            return self._error(operation, 500, "Error connecting to the store", self.failing_delay)
        if self.store == "hangs":
            return _nginx(504, self.hang_delay)
        return None

    def _error(self, operation: str, status: int, why: str, delay: float = 0.0) -> Answer:
        """Word an error in the dialect: the deployed registry turns each into a 500."""
        if self.dialect == "documented" and status != 500:
            return Answer(status, {"detail": why}, delay=delay)
        why = f"401: {why}" if status == 401 else why
        return Answer(500, {"detail": f"{FAILURES[operation]}: {why}"}, delay=delay)

    def _live(self, name: str) -> _Record | None:
        record = self._records.get(name)
        return record if record and record.expires > self.clock() else None

    def _shown(self, record: _Record | None) -> dict[str, object] | None:
        if record is None:
            return None
        shown = {key: value for key, value in vars(record).items() if key != "expires"}
        return shown | {"ttl_remaining": round(record.expires - self.clock(), 1)}


def _name_in(request: Request) -> object:
    """Return the service's name from the path or the body, None where there is none."""
    if request.operation in ("get", "deregister"):
        return unquote(request.path.partition("?")[0]).rpartition("/")[2]
    try:
        body = request.json()
    except (ValueError, RecursionError):
        return None
    return body.get("service_name") if isinstance(body, dict) else None


def _invalid(request: Request) -> Answer | None:
    """Check the body as FastAPI does: 422 with what is wrong in it."""
    problems: list[dict[str, object]] = []

    def wrong(kind: str, message: str, value: object, *place: str | int) -> None:
        problems.append({"type": kind, "loc": ["body", *place], "msg": message, "input": value})

    def expect_text(value: object, *place: str) -> None:
        if not isinstance(value, str):
            wrong("string_type", "Input should be a valid string", value, *place)

    try:
        body = request.json()
    except (ValueError, RecursionError) as error:
        wrong("json_invalid", "JSON decode error", {}, getattr(error, "pos", 0))
        return Answer(422, {"detail": problems})
    fields = FIELDS[request.operation]
    if not isinstance(body, dict):
        message = "Input should be a valid dictionary or object to extract fields from"
        wrong("model_attributes_type", message, body)
        fields = ()
    for field in fields:
        if field not in body:
            wrong("missing", "Field required", body, field)
        elif field != "metadata":
            expect_text(body[field], field)
        elif not isinstance(body[field], dict):
            wrong("dict_type", "Input should be a valid dictionary", body[field], field)
        else:
            for key, value in body[field].items():
                expect_text(value, field, key)
    return Answer(422, {"detail": problems}) if problems else None


def _nginx(status: int, delay: float = 0.0) -> Answer:
    return Answer(status, html_page(status, reason(status)), {"Content-Type": "text/html"}, delay)


def main() -> int:
    """Run the registry of the command line until SIGTERM or SIGINT."""
    parser = arguments("The embedded registry, for the demo and for tests.", 8888)
    parser.add_argument("--ttl", type=float, default=60.0, help="life of a record (%(default)s s)")
    return run(Registry(**vars(parser.parse_args())), "registry")


if __name__ == "__main__":
    raise SystemExit(main())
