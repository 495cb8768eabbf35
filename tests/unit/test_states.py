"""What an agent does in simulated time, where one look at one of its parts shows it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import agent
import healthcheck
from agent import Answer
from kit.clock import Clock
from kit.peers.faults import Fault
from kit.peers.registry import Registry
from kit.peers.server import Exchange
from kit.peers.service import ToyService
from kit.simulated import simulated_agent

BOTH = {"SERVICE_NAME": "osint", "SERVICE_HOST": "127.0.0.1"}
SETTINGS = agent.read_settings(BOTH)
DOWN = Answer(failure=ConnectionRefusedError(111, "Connection refused"))
GOOD = Answer(200, body=b'["osint"]')


def nobody(_method: str, _path: str, _timeout: float) -> Answer:
    """Answer as where nobody listens."""
    return DOWN


def longest(_low: float, high: float) -> float:
    """Draw the highest number each time."""
    return high


@pytest.mark.parametrize(
    ("interval", "times"), [("30", [0, 2, 2.5]), ("0.5", [0, 0.5, 1, 1.5, 2, 2.5])]
)
def test_the_first_wait_ends_on_time_and_probes_at_least_once_an_interval(
    interval: str, times: list[float]
) -> None:
    clock, probes = Clock(), []

    def probed(*_request: object) -> Answer:
        probes.append(clock())
        return DOWN

    more = {"HEARTBEAT_INTERVAL": interval, "INITIAL_WAIT_TIMEOUT": "2.5"}
    subject = simulated_agent(agent.read_settings(BOTH | more), clock, longest, nobody, probed)
    assert subject.waiting() == subject.registering
    assert probes == times


def test_a_slot_is_a_probe_and_a_heartbeat_and_a_repeated_one_waits_for_no_probe() -> None:
    """Hanging probes and failing heartbeats together would cost the record."""
    clock = Clock()
    asked: list[tuple[float, str]] = []
    busy = Answer(503, {"Retry-After": "300"})
    answers: Iterator[Answer] = iter([GOOD, GOOD, Answer(500), busy, GOOD, GOOD])

    def carry(_method: str, path: str, _timeout: float) -> Answer:
        asked.append((clock(), path))
        if path.startswith("/deregister"):
            return GOOD
        answer = next(answers, None)
        if answer is None:
            raise agent.Stop
        return answer

    def probed(*_request: object) -> Answer:
        asked.append((clock(), "probe"))
        return Answer(200)

    assert simulated_agent(SETTINGS, clock, longest, carry, probed).run() == 0
    assert asked == [
        (0, "probe"), (0, "/register"),
        (30, "probe"), (30, "/heartbeat"),
        (60, "probe"), (60, "/heartbeat"),
        (62, "/heartbeat"),
        (76, "/heartbeat"),  # as long as it was asked to wait, but for half of the record's life
        (90, "probe"), (90, "/heartbeat"),
        (120, "probe"), (120, "/heartbeat"), (120, "/deregister/osint"),
    ]  # fmt: skip


def test_a_fleet_started_together_neither_beats_nor_looks_for_its_records_together() -> None:
    """Nor does it repeat anything together: each has chance numbers of its own."""
    began = healthcheck.clock()
    fleet = [agent.new_agent(SETTINGS, agent.Signals()) for _ in range(200)]
    assert {each.record.look_in for each in fleet} == set(range(1, agent.LOOK_EVERY[1]))
    interval = SETTINGS.heartbeat_interval
    phases = {int((each.record.phase - began) % interval / interval * 6) for each in fleet}
    assert phases == set(range(6))
    assert len({agent.backoff(1, each.uniform) for each in fleet}) > 100


@pytest.mark.parametrize(
    ("left", "timeout"), [(60, 10), (21, 10), (10, 5), (2, 1), (1, 1), (-9, 1)]
)
def test_one_of_several_requests_gets_half_of_what_the_record_has_left(
    left: float, timeout: float
) -> None:
    record = simulated_agent(SETTINGS, Clock(), longest, nobody).record
    record.accepted_at = left - 2 * SETTINGS.heartbeat_interval
    assert record.next_timeout() == timeout


def test_the_heartbeat_file_is_written_where_it_must_say_more_and_not_for_nothing(
    tmp_path: Path,
) -> None:
    path, clock = str(tmp_path / "heartbeat"), Clock()

    def promise(seconds: float) -> tuple[bool, str]:
        life.promise(seconds)
        return healthcheck.judge(healthcheck.read(path), clock() + seconds + agent.GRACE)

    life = agent.SignOfLife(path, clock)
    life.show("waiting", clock())
    assert promise(60)[0]
    clock.sleep(50)
    assert promise(60)[0]  # the same sentence for longer
    life.show("down", clock())
    assert "service down" in promise(1)[1]  # another sentence, though the old one would hold
    os.remove(path)
    life.promise(1)
    assert not os.path.exists(path)  # nothing to be said


# ---- what real peers send that tells nothing


def reply(status: int, body: object = None, kind: str = "") -> Fault:
    """Return an answer to play."""
    return lambda exchange: exchange.reply(status, body, {"Content-Type": kind} if kind else {})


def sent(text: str) -> Fault:
    """Return an answer of which no more comes than this."""

    def play(exchange: Exchange) -> None:
        exchange.close_connection = True
        exchange.raw(text.encode())

    return play


def cut_off(body: str, framing: str = "Content-Length: 1000") -> Fault:
    """Return a 200 whose connection ends before its body does."""
    kind = "Content-Type: application/json"
    return sent(f"HTTP/1.1 200 OK\r\n{kind}\r\n{framing}\r\n\r\n{body}")


def cut_off_chunks(body: str) -> Fault:
    return cut_off(f"{len(body):x}\r\n{body}\r\n", "Transfer-Encoding: chunked")


HTML = "<!DOCTYPE html><html><body>Welcome, everybody</body></html>"
PAGE = reply(200, HTML, "text/html; charset=utf-8")
HEALTH = '{"status": "healthy", "version": "1.0.0"}'
STARTING = '{"status": "starting"}'
NO_OBJECTS: dict[str, Any] = {
    "cut off": cut_off(HEALTH[:20]),
    "cut off behind an object": cut_off(STARTING),
    "cut off without a length": cut_off(HEALTH[:20], "Connection: close"),
    "chunks cut off": cut_off_chunks(HEALTH[:20]),
    "chunks cut off behind an object": cut_off_chunks(STARTING),
    "broken chunks": "broken_chunks",
    "empty": reply(200, ""),
    "no content": reply(204),
    "a page": PAGE,
    "a list": "json_list",
    "null": "json_null",
    "a number too long": "huge_int_json",
    "not UTF-8": "not_utf8",
    "too deep": "deep_json",
    "too long": reply(200, {"status": "starting", "padding": "x" * 70_000}),
    "packed": ["gzip_bomb", 1],
}


def test_a_probe_that_brings_no_whole_object_leaves_what_is_known(service: ToyService) -> None:
    settings = agent.read_settings(BOTH | {"SERVICE_PORT": str(service.port)})
    subject = agent.Service(settings, agent.Signals())
    assert subject.probe()
    for kind, fault in NO_OBJECTS.items():
        service.play("health", fault)
        known = {"version": "1.0.0", "status": "healthy"}
        assert (kind, subject.probe(), subject.metadata) == (kind, True, known)


def test_a_health_body_that_does_not_end_in_time_is_a_failed_probe(service: ToyService) -> None:
    more = {"SERVICE_PORT": str(service.port), "SERVICE_HEALTH_TIMEOUT": "0.3"}
    subject = agent.Service(agent.read_settings(BOTH | more), agent.Signals())
    service.play("health", "drip_body")
    assert not subject.probe()
    assert subject.problem == "200, but the body did not end in time"


NO_LISTS: dict[str, Any] = {
    "an error": "status_500",
    "a page": PAGE,
    "an object": reply(200, {"services": []}),
    "a list that is cut off": cut_off('["another_service", "osi'),
    "a list of more than 64 KB": reply(200, ["another_service"] * 5000),
    "no answer": "hang",
}
NO_REGISTRY: dict[str, Any] = {
    "by its type alone": reply(201, "Welcome", "TEXT/HTML"),
    "behind a byte order mark": reply(200, f"\ufeff\n{HTML}", "text/plain"),
    "longer than 64 KB": reply(200, HTML + "x" * 70_000, "text/html"),
    "cut off in the status": sent("HTTP/1.1 2"),
}
ACCEPTS: dict[str, Any] = {
    "empty": reply(201, ""),
    "no content": reply(204),
    "a JSON string": reply(200, json.dumps(HTML), "application/json"),
    "text": reply(200, "OK: 1 < 2"),
}


@pytest.fixture
def client(registry: Registry) -> agent.Registry:
    """What speaks with a real registry, which has accepted one registration of its own."""
    subject = agent.Registry(
        agent.read_settings(BOTH | {"REGISTRY_URL": registry.url}), agent.Signals()
    )
    assert subject.register({}, 5).meaning == agent.ACCEPTED
    return subject


def test_what_is_no_list_does_not_tell_whether_the_record_is_there(
    registry: Registry, client: agent.Registry
) -> None:
    assert client.look(5).meaning == agent.ACCEPTED
    for kind, fault in NO_LISTS.items():
        registry.play("list", fault)
        answer = client.look(0.3 if fault == "hang" else 5)
        assert (kind, answer.meaning) == (kind, agent.FAILED)
        assert answer.advice.startswith("GET /services does not tell whether the record is there")
    registry.forget()
    assert client.look(5).meaning == agent.LOST


def test_a_page_and_half_an_answer_are_no_registry_s_and_any_other_2xx_is(
    registry: Registry, client: agent.Registry
) -> None:
    requests = client.heartbeat, client.deregister
    for faults, meaning in ((NO_REGISTRY, agent.FAILED), (ACCEPTS, agent.ACCEPTED)):
        for kind, fault in faults.items():
            before = registry.count()
            for request in requests:
                registry.play("*", fault)
                assert (kind, request(5).meaning) == (kind, meaning)
            assert registry.count() == before + len(requests)  # none was sent again


@pytest.mark.parametrize("fault", ["close", "reset"])
def test_only_a_kept_connection_that_is_closed_at_that_very_moment_is_opened_again(
    registry: Registry, client: agent.Registry, fault: str
) -> None:
    registry.play("heartbeat", fault)
    assert client.heartbeat(5).meaning == agent.ACCEPTED
    assert registry.count("heartbeat") == 2
    registry.play("heartbeat", fault, times=2)
    answer = client.heartbeat(5)
    assert answer.meaning == agent.FAILED
    assert fault == "reset" or "connection closed without an answer" in answer.advice
