"""What names, addresses, a lack of threads and peculiar servers do to a sidecar: nothing lasting.

The agent runs on a Stage (stage.py): its name service is a file, all that travels is real.
"""

import collections
import contextlib
import http.client
import json
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, Self

import pytest

import agent
from kit.peers.dead import dead_port
from kit.peers.registry import Registry
from kit.peers.server import Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sampler, Sidecar, wait_until
from kit.stage import Stage

SERVICE, REGISTRY = "service.test", "registry.test"  # the names on a stage
HERE, THERE, DEAD, DEAD_TOO = (f"127.0.0.{number}" for number in (11, 12, 13, 14))
PROMISE = 3.0  # seconds, for a stop
SLACK = 1.0  # seconds that a loaded machine may add


def staged(registry: Peer | None, service: Peer | None, **settings: object) -> Sidecar:
    """Return a sidecar whose peers have the names of a stage, wherever they are."""
    names: dict[str, object] = {}
    if service is not None:
        names |= {"SERVICE_HOST": SERVICE}
    if registry is not None:
        names |= {"REGISTRY_URL": f"http://{REGISTRY}:{registry.port}"}
    return Sidecar(registry, service, **(names | settings))


# ---- a name with several addresses: each gets its share of the deadline


@contextlib.contextmanager
def dead_addresses(addresses: list[str], port: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for address in addresses:
            if address in (DEAD, DEAD_TOO):
                stack.enter_context(dead_port(address, port))
        yield


SEVERAL = pytest.mark.parametrize(
    "addresses",
    [
        pytest.param([DEAD, "127.0.0.1"], id="first-dead"),
        pytest.param([DEAD, DEAD_TOO, "127.0.0.1"], id="two-dead"),
        pytest.param(["::1", THERE, DEAD, "127.0.0.1"], id="two-refuse-one-dead"),
    ],
)


@SEVERAL
def test_dead_addresses_of_the_registry_cost_no_attempt(
    registry: Registry, service: ToyService, addresses: list[str]
) -> None:
    sidecar = staged(registry, service, REGISTRY_TIMEOUT=2, HEARTBEAT_INTERVAL=4)
    Stage(sidecar, names={REGISTRY: addresses, SERVICE: ["127.0.0.1"]})
    with dead_addresses(addresses, registry.port), sidecar:
        sidecar.wait_registered()
        assert not sidecar.count(r"failed \(attempt")


@SEVERAL
@pytest.mark.parametrize("check", ["http", "tcp"])
def test_dead_addresses_of_the_service_cost_no_probe(
    registry: Registry, service: ToyService, addresses: list[str], check: str
) -> None:
    settings = {"SERVICE_HEALTH_CHECK": check, "SERVICE_HEALTH_TIMEOUT": 2, "HEARTBEAT_INTERVAL": 4}
    sidecar = staged(registry, service, **settings)
    Stage(sidecar, names={REGISTRY: ["127.0.0.1"], SERVICE: addresses})
    with dead_addresses(addresses, service.port), sidecar:
        sidecar.wait_registered()
        assert not sidecar.count("Waiting for the service")


def test_an_address_that_never_answers_costs_the_registration_one_attempt(
    service: ToyService,
) -> None:
    """It takes connections, which looks well until the deadline of the exchange has passed."""
    with Registry(HERE) as mute, Registry(THERE, mute.port, ttl=4.0) as registry:
        mute.pause()
        sidecar = staged(registry, service, REGISTRY_TIMEOUT=0.5)
        Stage(sidecar, names={REGISTRY: [HERE, THERE], SERVICE: ["127.0.0.1"]})
        with sidecar:
            sidecar.wait_registered(timeout=10)
            assert sidecar.count("Registration failed") == 1
            with Sampler(lambda: registry.record(NAME)) as sampler:
                sidecar.wait_for("Heartbeat accepted", times=3)
            assert not sampler.absences


def test_an_address_that_never_answers_costs_the_service_one_probe(registry: Registry) -> None:
    """Each probe has a connection of its own: it begins where the one before found an answer."""
    with ToyService(HERE) as mute, ToyService(THERE, mute.port) as service:
        mute.pause()
        sidecar = staged(registry, service, SERVICE_HEALTH_TIMEOUT=0.5, HEARTBEAT_INTERVAL=1)
        Stage(sidecar, names={REGISTRY: ["127.0.0.1"], SERVICE: [HERE, THERE]})
        with sidecar:
            sidecar.wait_registered(timeout=10)
            assert sidecar.count("Waiting for the service") == 1
            sidecar.wait_for("Heartbeat accepted", times=4)
            assert mute.connections == 1
            assert not sidecar.count("Health probe|DOWN")


def test_an_answer_that_stays_away_moves_a_registered_sidecar_on(service: ToyService) -> None:
    """One address of two goes mute while its connection is kept: no record is lost by it."""
    with Registry(HERE, ttl=4.0) as first, Registry(THERE, first.port, ttl=4.0) as second:
        sidecar = staged(first, service, REGISTRY_TIMEOUT=1)
        Stage(sidecar, names={REGISTRY: [HERE, THERE], SERVICE: ["127.0.0.1"]})
        with sidecar:
            sidecar.wait_for("Heartbeat accepted")
            second._records = first._records  # one store
            first.pause()
            with Sampler(lambda: second.record(NAME)) as sampler:
                sidecar.wait_for("Heartbeat failed")
                sidecar.wait_for("Registry is back")
            assert not sampler.absences
            assert second.count()


# ---- IPv4 is asked for first


@pytest.mark.parametrize(
    ("addresses", "families"),
    [
        pytest.param(["127.0.0.1"], ["AF_INET"], id="ipv4-alone"),
        pytest.param(["::1", "127.0.0.1"], ["AF_INET"], id="both"),
        pytest.param(["::1"], ["AF_INET", "AF_INET6"], id="ipv6-alone"),
        pytest.param([THERE, "::1"], ["AF_INET", "AF_INET6"], id="ipv4-refuses"),
        pytest.param([DEAD, "::1"], ["AF_INET", "AF_INET6"], id="ipv4-dead"),
    ],
)
@pytest.mark.parametrize("check", ["http", "tcp"])
def test_ipv6_is_asked_for_where_no_ipv4_address_connects(
    addresses: list[str], families: list[str], check: str
) -> None:
    """One question for a probe by name, where there is an IPv4 address."""
    host = "::1" if families[-1] == "AF_INET6" else "127.0.0.1"
    with Registry(host, ttl=8.0) as registry, ToyService(host) as service:
        settings = {"SERVICE_HEALTH_CHECK": check, "HEARTBEAT_INTERVAL": 4}
        sidecar = staged(registry, service, **settings, SERVICE_HEALTH_TIMEOUT=2)
        stage = Stage(sidecar, names={REGISTRY: addresses, SERVICE: addresses})
        with contextlib.ExitStack() as dead:
            for port in (registry.port, service.port):
                dead.enter_context(dead_addresses(addresses, port))
            with sidecar:
                sidecar.wait_registered()
                for name in (REGISTRY, SERVICE):  # which may have been probed twice by now
                    assert list(dict.fromkeys(stage.questions(name))) == families
                assert not sidecar.count("WARNING")


def test_a_dead_address_does_not_keep_the_record_in_place(
    registry: Registry, service: ToyService
) -> None:
    """The last exchange has a deadline of its own, and that is shared out, too."""
    registry.keep_alive = False
    sidecar = staged(registry, service)
    stage = Stage(sidecar, names={REGISTRY: ["127.0.0.1"], SERVICE: ["127.0.0.1"]})
    with dead_port(DEAD, registry.port), sidecar:
        sidecar.wait_registered()
        stage.set(names={REGISTRY: [DEAD, "127.0.0.1"], SERVICE: ["127.0.0.1"]})
        code, seconds = sidecar.stop()
        assert code == 0
        assert seconds < PROMISE
    assert registry.record(NAME) is None


def test_where_all_addresses_are_dead_the_deadline_holds(
    registry: Registry, service: ToyService
) -> None:
    sidecar = staged(registry, service, REGISTRY_TIMEOUT=1)
    addresses = [DEAD, DEAD_TOO]
    Stage(sidecar, names={REGISTRY: addresses, SERVICE: ["127.0.0.1"]})
    with dead_addresses(addresses, registry.port), sidecar:
        sidecar.wait_for("Service is READY")
        began = time.monotonic()
        sidecar.wait_for("Registration failed .attempt 1.*no answer within [0-9.]+ s")
        assert 0.3 < time.monotonic() - began < 1 + SLACK  # IPv6 would have had a share, too
        code, seconds = sidecar.stop()
        assert code == 0
        assert seconds < PROMISE


class SamePort(agent.PatientSocket):
    """A socket that gets the port it connects to, as an ephemeral one does now and then."""

    def connect_ex(self, place: Any, /) -> int:
        self.bind(place)
        return super().connect_ex(place)


def test_a_connection_that_meets_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    wire = agent.Wire(HERE, port, agent.Signals())
    wire.begin(5)
    monkeypatch.setattr(agent, "PatientSocket", SamePort)
    with pytest.raises(ConnectionRefusedError):
        wire.open()


# ---- ordinary answers that look unusual: long header lines, answers before the answer


def long_header(size: int) -> Callable[[Exchange], None]:
    """Return a fault that is none: the sane answer with a header line of this size."""

    def play(exchange: Exchange) -> None:
        answer = exchange.server.peer.answer(exchange.asked)
        exchange.reply(answer.status, answer.body, {**answer.headers, "X-Policy": "x" * size})

    return play


def after(*statuses: int, pause: float = 0.0) -> Callable[[Exchange], None]:
    """Return a fault that is none: interim answers of these statuses, then the sane answer."""

    def play(exchange: Exchange) -> None:
        for status in statuses:
            exchange.raw(f"HTTP/1.1 {status} Interim\r\nLink: </style.css>\r\n\r\n".encode())
            time.sleep(pause)
        exchange.sane()

    return play


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(long_header(20_000), id="header-20-KB"),
        pytest.param(after(103), id="103"),
        pytest.param(after(102, 103, 103, pause=0.1), id="102-103-103-slowly"),
    ],
)
def test_long_headers_and_early_hints_are_ordinary(
    registry: Registry, service: ToyService, answer: Callable[[Exchange], None]
) -> None:
    registry.play("*", answer, times=FOREVER)
    service.play("*", answer, times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        assert not sidecar.count("WARNING|ERROR")
        assert registry.connections == 1
        sidecar.stop()
        assert sidecar.count("Service deregistered")


# ---- the registry's name moves


def test_a_registry_that_has_moved_is_followed_within_an_hour(service: ToyService) -> None:
    """An hour is 120 heartbeats; the clock jumps over the pauses between them."""
    with Registry(HERE) as old, Registry(THERE, old.port) as new:
        sidecar = staged(old, service, HEARTBEAT_INTERVAL=30, SERVICE_HEALTH_CHECK="none")
        stage = Stage(sidecar, names={REGISTRY: [HERE]}, jumping=True)
        with sidecar:
            hours = 3
            wait_until(lambda: old.count("heartbeat") >= hours * 120, 60, every=0.001)
            assert old.connections <= 1 + hours + 1  # the last may have begun since
            stage.set(names={REGISTRY: [THERE]})
            before = old.count("heartbeat")
            much = before + 240
            wait_until(lambda: new.count() or old.count("heartbeat") > much, 60, every=0.001)
            beats = old.count("heartbeat")
            assert beats <= before + 121
            wait_until(lambda: new.count("heartbeat") > 240, 60, every=0.001)
            assert new.record(NAME)
            assert old.count("heartbeat") == beats
            asked = [request for request in old.requests if request.operation == "heartbeat"]
            connections = collections.Counter(request.connection for request in asked)
            assert max(connections.values()) <= 121
            assert not sidecar.count(r"failed \(attempt")


# ---- a look-up that answers after its deadline


@pytest.mark.parametrize("peer", ["registry", "http", "tcp"])
def test_a_late_answer_of_the_name_service_serves_nobody(
    registry: Registry, service: ToyService, peer: str
) -> None:
    """It comes in the pause after a failed attempt, a second or two. By then the name has moved."""
    kind: type[Peer] = Registry if peer == "registry" else ToyService
    with kind(HERE) as old, kind(THERE, old.port) as new:
        if peer == "registry":
            name, failure = REGISTRY, "Registration failed"
            sidecar = staged(old, service, REGISTRY_TIMEOUT=0.5)
        else:
            name, failure = SERVICE, "Waiting for the service"
            settings = {"SERVICE_HEALTH_CHECK": peer, "SERVICE_HEALTH_TIMEOUT": 0.5}
            sidecar = staged(registry, old, **settings)
        names = {REGISTRY: ["127.0.0.1"], SERVICE: ["127.0.0.1"]}
        stage = Stage(sidecar, names=names | {name: [HERE]}, held=[name])
        with sidecar:
            sidecar.wait_for(failure)
            stage.set(names=names | {name: [THERE]}, held=[])
            sidecar.wait_registered()
            assert new.connections
            assert not old.connections


# ---- no thread, no descriptor, and errors that are no OSError


@pytest.mark.parametrize("check", ["http", "tcp"])
def test_without_a_thread_to_be_had_a_probe_fails(
    registry: Registry, service: ToyService, check: str
) -> None:
    sidecar = staged(registry, service, SERVICE_HEALTH_CHECK=check, HEARTBEAT_INTERVAL=1)
    stage = Stage(sidecar, names={REGISTRY: ["127.0.0.1"], SERVICE: ["127.0.0.1"]}, threads=False)
    with sidecar:
        sidecar.wait_for("Waiting for the service .*: name look-up failed: .*thread")
        stage.set(threads=True)
        sidecar.wait_for("Heartbeat accepted")
        stage.set(threads=False)
        sidecar.wait_for("Service is DOWN")
        stage.set(threads=True)
        sidecar.wait_registered(times=2)
        assert "Traceback" not in sidecar.log


def test_without_a_thread_to_be_had_an_attempt_at_the_registry_fails(service: ToyService) -> None:
    with Registry(keep_alive=False, ttl=60) as registry:  # so that each exchange has a look-up
        sidecar = staged(registry, service, SERVICE_HEALTH_CHECK="none", HEARTBEAT_INTERVAL=1)
        stage = Stage(sidecar, names={REGISTRY: ["127.0.0.1"]}, threads=False)
        with sidecar:
            sidecar.wait_for("Registration failed .*: name look-up failed: .*thread")
            stage.set(threads=True)
            sidecar.wait_for("Heartbeat accepted")
            stage.set(threads=False)
            sidecar.wait_for("Heartbeat failed")
            sidecar.wait_for("Registration failed", times=2)
            stage.set(threads=True)
            sidecar.wait_for("Registry is back")
            assert "Traceback" not in sidecar.log


@pytest.mark.parametrize(("check", "error"), [("http", "UnicodeError"), ("tcp", "MemoryError")])
def test_whatever_a_look_up_raises_is_a_failed_attempt(
    registry: Registry, service: ToyService, check: str, error: str
) -> None:
    sidecar = staged(registry, service, SERVICE_HEALTH_CHECK=check)
    stage = Stage(sidecar, names={REGISTRY: ["127.0.0.1"], SERVICE: error})
    with sidecar:
        sidecar.wait_for("Waiting for the service")
        stage.set(names={REGISTRY: error, SERVICE: ["127.0.0.1"]})
        sidecar.wait_for("Registration failed")
        stage.set(names={REGISTRY: ["127.0.0.1"], SERVICE: ["127.0.0.1"]})
        sidecar.wait_registered()
        assert "Traceback" not in sidecar.log


@pytest.mark.parametrize("check", ["http", "tcp"])
def test_without_a_descriptor_to_be_had_a_probe_fails(
    registry: Registry, service: ToyService, check: str
) -> None:
    settings = {"SERVICE_HEALTH_CHECK": check, "HEARTBEAT_INTERVAL": 1}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        soft, hard = resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (3, hard))
        sidecar.wait_for("Service is DOWN")
        resource.prlimit(sidecar.pid, resource.RLIMIT_NOFILE, (soft, hard))
        sidecar.wait_registered(times=2)
        sidecar.wait_health("registered")
        assert "Traceback" not in sidecar.log


# ---- a service with one worker, which belongs to others


class OneWorker(HTTPServer):
    """A service that serves one connection at a time, each for as long as its client wants."""

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), OneWorkerHandler)
        self.status = status
        self.seen: list[tuple[tuple[str, int], str, str]] = []  # client, path, Connection header

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server_close()  # the listener alone: a connection that is kept would never end

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def handle_error(self, *_: object) -> None:
        """Nothing: a client that hangs up is no news."""


class OneWorkerHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: OneWorker

    def do_GET(self) -> None:
        self.server.seen.append(
            (self.client_address, self.path, self.headers.get("Connection", ""))
        )
        body = json.dumps({"status": "healthy", "version": "1.0.0"}).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.mark.parametrize(("check", "status"), [("http", 200), ("http", 404), ("tcp", 200)])
def test_a_service_with_one_worker_has_it_for_others(
    registry: Registry, check: str, status: int
) -> None:
    with OneWorker(status) as service:
        settings = {"SERVICE_PORT": service.port, "SERVICE_HEALTH_CHECK": check}
        settings |= {"HEARTBEAT_INTERVAL": 0.5, "INITIAL_WAIT_TIMEOUT": 1}
        with Sidecar(registry, None, **settings) as sidecar:
            sidecar.wait_registered()
            for _ in range(10):
                time.sleep(0.25)
                caller = http.client.HTTPConnection("127.0.0.1", service.port, timeout=2)
                caller.request("GET", "/work", headers={"Connection": "close"})
                assert caller.getresponse().status == status
                caller.close()
            probes = [(who, header) for who, path, header in service.seen if path == "/health"]
        if check == "http":
            assert len(probes) > 1
            assert {header for _, header in probes} == {"close"}
            assert len({who for who, _ in probes}) == len(probes)


@pytest.mark.parametrize("status", [200, 503])
def test_a_probe_closes_its_connection_where_the_service_does_not(
    registry: Registry, service: ToyService, status: int
) -> None:
    ends: list[bytes] = []

    def stay_open(exchange: Exchange) -> None:
        exchange.close_connection = False
        exchange.reply(status, {"version": "1.0.0"}, {"Connection": "keep-alive"})
        exchange.connection.settimeout(0.5)
        ends.append(exchange.connection.recv(1))  # b"" is its end; a timeout adds nothing
        exchange.close_connection = True

    service.play("health", stay_open, times=FOREVER)
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=1.5, INITIAL_WAIT_TIMEOUT=1):
        wait_until(lambda: service.count("health") >= 4)
    assert len(ends) >= 3
    assert set(ends) == {b""}


# ---- a service that lives on for those who know it already


def test_a_service_that_takes_no_new_connections_is_down(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.stop_listening()
        sidecar.wait_for("Service is DOWN: connection refused")
        wait_until(lambda: registry.record(NAME) is None)
        service.stop()
        service.start()
        sidecar.wait_registered(times=2)


def test_a_service_whose_name_moves_is_registered_with_its_new_version(registry: Registry) -> None:
    with ToyService(HERE) as old, ToyService(THERE, old.port, version="2.0.0") as new:
        sidecar = staged(registry, old)
        stage = Stage(sidecar, names={SERVICE: [HERE], REGISTRY: ["127.0.0.1"]})
        with sidecar:
            sidecar.wait_for("Heartbeat accepted")
            with Sampler(lambda: registry.record(NAME)) as sampler:
                stage.set(names={SERVICE: [THERE], REGISTRY: ["127.0.0.1"]})
                probes = old.count()
                sidecar.wait_registered(times=2)
            record = registry.record(NAME)
            assert record is not None
            assert record["metadata"] == {"version": "2.0.0", "status": "healthy"}
            assert old.count() <= probes + 1
            assert new.count()
        assert not sampler.absences


def test_a_service_whose_name_moves_to_where_nothing_runs_is_down(registry: Registry) -> None:
    with ToyService(HERE) as service:
        sidecar = staged(registry, service)
        stage = Stage(sidecar, names={SERVICE: [HERE], REGISTRY: ["127.0.0.1"]})
        with sidecar:
            sidecar.wait_for("Heartbeat accepted")
            stage.set(names={SERVICE: [THERE], REGISTRY: ["127.0.0.1"]})
            sidecar.wait_for("Service is DOWN: connection refused")
            assert re.search("service down", sidecar.health()[1])
