"""The loop's rules: what costs a record nothing, what is believed, and what comes first."""

import json
import signal
import time
import urllib.request
from email.utils import formatdate
from typing import Any

import pytest

from kit.peers.faults import Fault
from kit.peers.registry import Registry
from kit.peers.server import Exchange, Peer
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, Sampler, Sidecar, wait_until

HTML = "<!DOCTYPE html><html><body>Welcome, everybody</body></html>"


def reply(status: int, body: object = None, kind: str = "", **headers: str) -> Fault:
    """Return an answer to play; a header's name is written with _ for -."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    named |= {"Content-Type": kind} if kind else {}
    return lambda exchange: exchange.reply(status, body, named)


def cut_off(body: str, framing: str = "Content-Length: 1000") -> Fault:
    """Return a 200 whose connection ends before its body does."""

    def play(exchange: Exchange) -> None:
        exchange.close_connection = True
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n{framing}\r\n\r\n"
        exchange.raw(f"{head}{body}".encode())

    return play


def cut_off_chunks(body: str) -> Fault:
    return cut_off(f"{len(body):x}\r\n{body}\r\n", "Transfer-Encoding: chunked")


PAGE = reply(200, HTML, "text/html; charset=utf-8")
BUSY = reply(503, {"detail": "busy"}, Retry_After="300")
LIMITED = reply(429, {"detail": "slow down"}, Retry_After="300")


def operations(registry: Registry, start: int = 0) -> list[str]:
    """Return what was asked of the registry, from this request on."""
    return [request.operation for request in registry.requests[start:]]


# ---- a look that tells nothing, and a registration that is not needed to keep a record alive

USELESS: dict[str, Any] = {
    "an error": "status_500",
    "an error that asks to wait": BUSY,
    "a page": PAGE,
    "an object": reply(200, {"services": []}),
    "a list that is cut off": cut_off('["another_service", "osi'),
    "a list of more than 64 KB": reply(200, ["another_service"] * 5000),
    "no answer": "hang",
}
REFUSALS: dict[str, Any] = {
    "an error": "status_500",
    "429": LIMITED,
    "no answer": "hang",
    "a page": PAGE,
}
LOOKS = [*((look, "an error") for look in USELESS), ("an error", "no answer")]


@pytest.mark.parametrize(("look", "refusal"), LOOKS)
def test_a_look_that_tells_nothing_stops_no_heartbeat(look: str, refusal: str) -> None:
    """No service to be probed: nothing but the look stands between one heartbeat and the next."""
    settings: dict[str, Any] = {"SERVICE_HEALTH_CHECK": "none", "HEARTBEAT_INTERVAL": 0.5}
    with Registry(ttl=2.0) as registry, Sidecar(registry, **settings) as sidecar:
        sidecar.wait_registered()
        registry.play("list", USELESS[look], times=FOREVER)
        registry.play("register", REFUSALS[refusal], times=FOREVER)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            wait_until(lambda: registry.count("list"), why="no look")
            beats = registry.count("heartbeat")
            wait_until(lambda: registry.count("heartbeat") >= beats + 6, 8, "heartbeats stopped")
    assert not sampler.absences
    assert registry.count("list") <= 2  # none after each heartbeat
    assert operations(registry).count("register") <= 1 + registry.count("list")


def test_a_list_without_the_name_is_followed_by_registrations_until_one_is_accepted(
    registry: Registry,
) -> None:
    registry.ttl = 600
    with Sidecar(registry, SERVICE_HEALTH_CHECK="none", HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_registered()
        registry.play("list", reply(200, ["another_service"]), times=2)
        registry.play("register", "status_500")
        sidecar.wait_registered(times=2)
    asked = operations(registry)
    look = asked.index("list")
    assert asked[look : look + 3] == ["list", "register", "register"]


def test_a_list_that_is_wrong_stops_no_heartbeat() -> None:
    """As that of one replica whose breaker is open, while the store holds the record."""
    with (
        Registry(ttl=2.0) as registry,
        Sidecar(registry, SERVICE_HEALTH_CHECK="none", HEARTBEAT_INTERVAL=0.5) as sidecar,
    ):
        sidecar.wait_registered()
        registry.play("list", reply(200, []), times=FOREVER)
        registry.play("register", "status_500", times=FOREVER)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("does not list it", times=4)
        assert not sampler.absences


@pytest.mark.parametrize("refusal", ["429", "no answer"])
def test_a_new_version_that_cannot_be_registered_stops_no_heartbeat(
    service: ToyService, refusal: str
) -> None:
    settings = {"HEARTBEAT_INTERVAL": 0.5, "SERVICE_HEALTH_RETRIES": 100}
    with Registry(ttl=2.0) as registry, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("register", REFUSALS[refusal], times=FOREVER)
        service.version = "2.0.0"
        with Sampler(lambda: registry.record(NAME)) as sampler:
            wait_until(lambda: registry.count("register") > 1, why="no registration")
            beats = registry.count("heartbeat")
            wait_until(lambda: registry.count("heartbeat") >= beats + 6, 8, "heartbeats stopped")
        assert not sampler.absences
        if refusal != "429":  # whose wait is honoured, for five minutes
            registry.sane("register")
            sidecar.wait_registered(times=2, timeout=30)
            record = registry.record(NAME)
            assert record is not None
            assert record["metadata"] == {"version": "2.0.0", "status": "healthy"}


@pytest.mark.parametrize("dialect", ["documented", "deployed"])
def test_one_heartbeat_whose_token_is_refused_stops_no_other(
    service: ToyService, dialect: str
) -> None:
    """A replica with another token: the record is fine, and no registration is to be had."""
    with (
        Registry(ttl=4.0, token="t0ken", dialect=dialect) as registry,
        Sidecar(registry, service, REGISTRY_TOKEN="t0ken") as sidecar,
    ):
        sidecar.wait_for("Heartbeat accepted")
        registry.play("register", "status_500", times=FOREVER)
        registry.token = "another"
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("Heartbeat refused|Heartbeat failed")
            registry.token = "t0ken"
            beats = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=beats + 2, timeout=8)
    assert not sampler.absences


# ---- Retry-After: what keeps the record alive wins


@pytest.mark.parametrize(("status", "form"), [(429, "seconds"), (503, "date")])
def test_a_heartbeat_that_is_asked_to_wait_does_not_cost_the_record(
    registry: Registry, service: ToyService, status: int, form: str
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        wait = "300" if form == "seconds" else formatdate(time.time() + 300, usegmt=True)
        registry.play("heartbeat", reply(status, {"detail": "slow down"}, Retry_After=wait))
        with Sampler(lambda: registry.record(NAME)) as sampler:
            failed = sidecar.wait_for(f"Heartbeat failed .*{status}: slow down")
            beats = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=beats + 2, timeout=8)
    assert not sampler.absences
    assert registry.count("register") == 1
    # As far as the record lives it is honoured: without it, the wait would be 0.13 s at the most.
    assert float(failed.split("next in ")[1].removesuffix(" s")) > 0.3


def test_once_the_record_is_gone_a_registration_waits_as_long_as_it_is_asked_to(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", BUSY, times=FOREVER)
        registry.play(
            "register", reply(429, {"detail": "slow down"}, Retry_After="3"), times=FOREVER
        )
        sidecar.wait_for("Registration failed .attempt .*429: slow down", timeout=10)
        registry.sane("register")
        sidecar.wait_registered(times=2)
    times = [request.at for request in registry.requests if request.operation == "register"]
    assert times[-1] - times[-2] >= 3.0


# ---- two intervals without an accepted heartbeat: the next request is a registration


def meet(peer: Peer, operation: str, fault: Any = None) -> None:
    """Wait for the next request of this operation, and play the fault on it where there is one."""
    before = peer.count(operation)
    if fault:
        peer.play(operation, fault)
    wait_until(lambda: peer.count(operation) > before, why=f"no further {operation}")


def between_heartbeats(sidecar: Sidecar, _registry: Registry, _service: ToyService) -> None:
    sidecar.wait_for("Heartbeat accepted", times=sidecar.count("Heartbeat accepted") + 1)
    time.sleep(0.1)  # for the look that comes after some


def in_a_probe(_sidecar: Sidecar, _registry: Registry, service: ToyService) -> None:
    meet(service, "health", ["slow", 0.25])  # the answer comes when the agent is frozen


def in_a_heartbeat(_sidecar: Sidecar, registry: Registry, _service: ToyService) -> None:
    meet(registry, "heartbeat", ["slow", 0.25])


@pytest.mark.parametrize("moment", [between_heartbeats, in_a_probe, in_a_heartbeat])
def test_after_a_freeze_of_more_than_two_intervals_a_registration_comes_first(
    service: ToyService, moment: Any
) -> None:
    """A paused container, a suspended machine. A heartbeat would be accepted: that is no proof."""
    settings = {"HEARTBEAT_INTERVAL": 1}
    with Registry(ttl=600.0) as registry, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        moment(sidecar, registry, service)
        sidecar.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5)
        asked = len(registry.requests)
        sidecar.process.send_signal(signal.SIGCONT)
        # The look that some heartbeats are followed by may still come; it changes nothing.
        wait_until(
            lambda: {*operations(registry, asked)} - {"list"}, why="no request after the freeze"
        )
    assert next(name for name in operations(registry, asked) if name != "list") == "register"


def test_after_a_freeze_of_one_interval_the_heartbeats_go_on(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        between_heartbeats(sidecar, registry, service)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.process.send_signal(signal.SIGSTOP)
            time.sleep(2.2)
            sidecar.process.send_signal(signal.SIGCONT)
            beats = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=beats + 1)
    assert not sampler.absences
    assert registry.count("register") == 1


def test_after_two_intervals_of_failed_probes_a_registration_comes_first(
    service: ToyService,
) -> None:
    settings = {"HEARTBEAT_INTERVAL": 1, "SERVICE_HEALTH_RETRIES": 100}
    with Registry(ttl=600.0) as registry, Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        service.healthy = False
        sidecar.wait_for("Health probe 1 of 100 failed")
        asked = len(registry.requests)
        time.sleep(2.5)
        service.healthy = True
        wait_until(lambda: len(registry.requests) > asked, why="no request after the probes")
        assert not sidecar.count("Service is DOWN")
    assert operations(registry, asked)[0] == "register"


# ---- what is known of the service stays known where a probe tells nothing

HEALTH = '{"status": "healthy", "version": "1.0.0"}'
BROKEN_OFF: dict[str, Any] = {
    "cut off": cut_off(HEALTH[:20]),
    "cut off behind an object": cut_off('{"status": "starting"}'),
    "cut off without a length": cut_off(HEALTH[:20], "Connection: close"),
    "chunks cut off": cut_off_chunks(HEALTH[:20]),
    "chunks cut off behind an object": cut_off_chunks('{"status": "starting"}'),
    "broken chunks": "broken_chunks",
}
NO_OBJECT: dict[str, Any] = {
    "empty": reply(200, ""),
    "no content": reply(204),
    "a page": PAGE,
    "text": reply(200, "OK"),
    "a list": "json_list",
    "null": "json_null",
    "a number too long": "huge_int_json",
    "not UTF-8": "not_utf8",
    "too deep": "deep_json",
    "too long": reply(200, {"status": "starting", "padding": "x" * 70_000}),
    "packed": ["gzip_bomb", 1],
}


@pytest.mark.parametrize("bodies", [BROKEN_OFF, NO_OBJECT], ids=["broken off", "no object"])
def test_a_probe_that_tells_nothing_leaves_what_is_known(
    registry: Registry, service: ToyService, bodies: dict[str, Any]
) -> None:
    registry.ttl = 600
    known = {"version": "1.0.0", "status": "healthy"}
    settings = {"HEARTBEAT_INTERVAL": 0.5, "SERVICE_HEALTH_RETRIES": 100}
    with Sidecar(registry, service, **settings) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        for kind, fault in bodies.items():
            meet(service, "health", fault)
            meet(registry, "heartbeat")
            record = registry.record(NAME)
            assert record is not None
            assert (kind, record["metadata"], registry.count("register")) == (kind, known, 1)
        assert not sidecar.count("Health probe|Service has changed")


def test_a_health_body_that_does_not_end_in_time_is_a_failed_probe(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        service.play("health", "drip_body", times=FOREVER)
        sidecar.wait_for("Health probe 1 of 3 failed: 200, but the body did not end in time")


# ---- only what was accepted is taken back

NEVER_ACCEPTED: dict[str, Any] = {
    **{str(status): f"status_{status}" for status in (401, 429)},
    "redirect": "redirect",
    "page": PAGE,
    "hang": "hang",
}


def register_another(registry: Registry) -> None:
    """Register as another sidecar of the same name does."""
    record = {"endpoint": "http://another", "health_endpoint": "/", "metadata": {}}
    body = json.dumps({"service_name": NAME} | record).encode()
    request = urllib.request.Request(f"{registry.url}/register", body)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201


@pytest.mark.parametrize("refusal", NEVER_ACCEPTED)
def test_a_sidecar_whose_registration_was_never_accepted_deletes_nothing(
    service: ToyService, refusal: str
) -> None:
    with Registry() as registry:
        register_another(registry)
        registry.play("register", NEVER_ACCEPTED[refusal], times=FOREVER)
        with Sidecar(registry, service, REGISTRY_TIMEOUT=0.5) as sidecar:
            sidecar.wait_for("Registration failed")
            assert sidecar.stop()[0] == 0
            assert registry.count("deregister") == 0
            assert registry.record(NAME)
            assert not sidecar.count("deregister|Deregistration")


def test_a_sidecar_stopped_in_its_first_registration_deletes_nothing(service: ToyService) -> None:
    with Registry() as registry:
        register_another(registry)
        registry.play("register", "hang", times=FOREVER)
        with Sidecar(registry, service, HEARTBEAT_INTERVAL=30) as sidecar:
            wait_until(lambda: registry.count("register") == 2)
            assert sidecar.stop()[0] == 0
        assert registry.count("deregister") == 0
        assert registry.record(NAME)


# ---- a web page is no registry's answer

PAGES: dict[str, Fault] = {
    "200": PAGE,
    "by its type alone": reply(201, "Welcome", "TEXT/HTML"),
    "by its body alone, in capitals": reply(200, HTML.upper(), "application/json"),
    "behind blanks": reply(200, f"\r\n\t {HTML}", "text/plain"),
    "behind a byte order mark": reply(200, f"\ufeff\n{HTML}", "text/plain"),
    "XHTML": reply(200, f'<?xml version="1.0"?>{HTML}', "application/xhtml+xml"),
    "longer than 64 KB": reply(200, HTML + "x" * 70_000, "text/html"),
}
NO_PAGES: dict[str, Fault] = {
    "empty": reply(201, ""),
    "no content": reply(204),
    "other JSON": reply(200, {"html": HTML}),
    "a JSON string": reply(200, json.dumps(HTML), "application/json"),
    "text": reply(200, "OK: 1 < 2"),
}


@pytest.mark.parametrize("page", PAGES)
def test_a_website_in_place_of_the_registry_is_never_taken_for_it(
    registry: Registry, service: ToyService, page: str
) -> None:
    registry.play("*", PAGES[page], times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("WARNING Registration failed .*REGISTRY_URL", times=2, timeout=8)
        assert sidecar.health()[0] == 0
        assert sidecar.health("--ready")[0] == 1
        sidecar.stop()
        assert not sidecar.count("registered successfully|heartbeat loop|Heartbeat")
        assert "Welcome" not in sidecar.log


@pytest.mark.parametrize("answer", NO_PAGES)
def test_any_other_2xx_is_an_acceptance(
    registry: Registry, service: ToyService, answer: str
) -> None:
    registry.play("*", NO_PAGES[answer], times=FOREVER)
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        sidecar.stop()
        assert sidecar.count("Service deregistered$") == 1
        assert not sidecar.count("WARNING .* failed")


def test_a_heartbeat_answered_by_a_page_is_repeated_within_its_slot(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", PAGE)
        with Sampler(lambda: registry.record(NAME)) as sampler:
            sidecar.wait_for("WARNING Heartbeat failed .*REGISTRY_URL", timeout=8)
            beats = sidecar.count("Heartbeat accepted")
            sidecar.wait_for("Heartbeat accepted", times=beats + 1)
    assert not sampler.absences
    assert registry.count("register") == 1


def test_where_pages_answer_every_heartbeat_a_registration_comes_after_two_intervals(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_for("Heartbeat accepted")
        registry.play("heartbeat", PAGE, times=FOREVER)
        sidecar.wait_registered(times=2, timeout=8)


def test_a_deregistration_answered_by_a_page_has_failed(
    registry: Registry, service: ToyService
) -> None:
    registry.play("deregister", PAGE)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        assert sidecar.stop()[0] == 0
        assert sidecar.count("WARNING Deregistration failed: .*REGISTRY_URL") == 1
        assert not sidecar.count("Service deregistered")
