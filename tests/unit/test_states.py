"""What an agent does in simulated time, where one look at one of its parts shows it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import agent
import healthcheck
from agent import Answer
from kit.clock import Clock
from kit.parts import client, prober, problem_of, read
from kit.peers.faults import Fault, raw, status
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import NAME
from kit.simulated import simulated_agent

SETTINGS = read(None, None)
DOWN = Answer(failure=ConnectionRefusedError(111, "Connection refused"))
GOOD = Answer(200, body=json.dumps([NAME]).encode())


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

    settings = read(None, None, HEARTBEAT_INTERVAL=interval, INITIAL_WAIT_TIMEOUT=2.5)
    subject = simulated_agent(settings, clock, longest, nobody, probed)
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
        (120, "probe"), (120, "/heartbeat"), (120, "/deregister/osint_service"),
    ]  # fmt: skip


def test_an_outage_is_over_where_the_service_is_down_too() -> None:
    """Nothing is sent then that could end it, and nothing may tell of its end later."""
    subject = simulated_agent(SETTINGS, Clock(), longest, nobody, lambda *_request: Answer(200))
    subject.record.outage = (0.0, 3)
    assert subject.service_down() == subject.registering
    assert subject.record.outage is None


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
    ("left", "timeout"), [(60, 10), (25, 10), (21, 8.5), (10, 5), (2, 1), (1, 1), (-9, 1)]
)
def test_one_of_several_requests_leaves_time_for_the_others(left: float, timeout: float) -> None:
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


def test_a_heartbeat_file_that_could_not_be_written_is_tried_again_within_seconds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next step of the loop is 30 s away."""
    path, seen = tmp_path / "later" / "heartbeat", list[tuple[float, bool]]()

    class Meanwhile(Clock):
        def sleep(self, seconds: float, /) -> None:
            super().sleep(seconds)
            seen.append((self(), path.exists()))
            if self() == 10:
                path.parent.mkdir()

    clock = Meanwhile()
    life = agent.SignOfLife(str(path), clock)
    simulated_agent(SETTINGS, clock, longest, nobody, life=life).pause(30)
    assert seen == [(2.5, False), (5, False), (7.5, False), (10, False), (30, True)]
    (line,) = caplog.messages
    assert line.startswith(f"HEARTBEAT_FILE={path} cannot be written")


# ---- what real peers send that tells nothing


def cut_off(body: str, framing: str = "Content-Length: 1000") -> Fault:
    """Return a 200 whose connection ends before its body does."""
    kind = "Content-Type: application/json"
    return raw(f"HTTP/1.1 200 OK\r\n{kind}\r\n{framing}\r\n\r\n{body}".encode())


HTML = "<!DOCTYPE html><html><body>Welcome, everybody</body></html>"
PAGE = status(200, HTML, {"Content-Type": "text/html; charset=utf-8"})
STARTING = '{"status": "starting"}'
NO_OBJECTS: dict[str, object] = {
    "cut off": cut_off(STARTING[:20]),
    "cut off behind an object": cut_off(STARTING),
    "cut off without a length": cut_off(STARTING[:20], "Connection: close"),
    "chunks cut off": cut_off(f"16\r\n{STARTING}\r\n", "Transfer-Encoding: chunked"),
    "broken chunks": "broken_chunks",
    "no content": "status_204",
    "a page": PAGE,
    "a list": "json_list",
    "too long": status(200, {"status": "starting", "padding": "x" * 70_000}),
    "packed": ["gzip_bomb", 1],
}


def test_a_probe_that_brings_no_whole_object_leaves_what_is_known(service: ToyService) -> None:
    subject = prober(service)
    assert subject.probe()
    for kind, fault in NO_OBJECTS.items():
        service.play("health", fault)
        known = {"version": "1.0.0", "status": "healthy"}
        assert (kind, subject.probe(), subject.metadata) == (kind, True, known)


def test_a_health_body_that_does_not_end_in_time_is_a_failed_probe(service: ToyService) -> None:
    service.play("health", "drip_body")
    said = problem_of(service, SERVICE_HEALTH_TIMEOUT=0.3)
    assert said == "200, but the body did not end in time"


NO_LISTS: dict[str, object] = {
    "an error": "status_500",
    "a page": PAGE,
    "an object": status(200, {"services": []}),
    "a list that is cut off": cut_off('["another_service", "osi'),
    "a list of more than 64 KB": status(200, ["another_service"] * 5000),
    "no answer": "hang",
    "objects": ["status", 200, [{"service_name": NAME}]],
}
NO_REGISTRY = {
    "by its type alone": status(201, "Welcome", {"Content-Type": "TEXT/HTML"}),
    "longer than 64 KB": status(200, HTML + "x" * 70_000),
    "cut off in the status": raw(b"HTTP/1.1 2"),
}
ACCEPTS = {
    "empty": status(201, ""),
    "no content": status(204),
    "a JSON string": status(200, json.dumps(HTML), {"Content-Type": "application/json"}),
    "text": status(200, "OK: 1 < 2"),
}


@pytest.fixture
def asker(registry: Registry) -> agent.Registry:
    """What speaks with a real registry, which has accepted one registration of its own."""
    subject = client(registry)
    assert subject.register({}, 5).meaning == agent.ACCEPTED
    return subject


def test_what_is_no_list_does_not_tell_whether_the_record_is_there(
    registry: Registry, asker: agent.Registry
) -> None:
    assert asker.look(5).meaning == agent.ACCEPTED
    for kind, fault in NO_LISTS.items():
        registry.play("list", fault)
        answer = asker.look(0.3 if fault == "hang" else 5)
        assert (kind, answer.meaning) == (kind, agent.FAILED)
        assert answer.advice.startswith("GET /services does not tell whether the record is there")
    registry.forget()
    assert asker.look(5).meaning == agent.LOST


def test_what_is_not_there_is_deregistered(registry: Registry, asker: agent.Registry) -> None:
    for body, meaning in (({"detail": "Not Found"}, agent.ACCEPTED), (HTML, agent.FAILED)):
        registry.play("deregister", ["status", 404, body])
        assert asker.deregister(5).meaning == meaning


def test_a_page_and_half_an_answer_are_no_registry_s_and_any_other_2xx_is(
    registry: Registry, asker: agent.Registry
) -> None:
    for faults, meaning in ((NO_REGISTRY, agent.FAILED), (ACCEPTS, agent.ACCEPTED)):
        for kind, fault in faults.items():
            before = registry.count()
            for request in (asker.heartbeat, asker.deregister):
                registry.play("*", fault)
                assert (kind, request(5).meaning) == (kind, meaning)
            assert registry.count() == before + 2  # none was sent again


@pytest.mark.parametrize("fault", ["close", "reset"])
def test_only_a_kept_connection_that_is_closed_at_that_very_moment_is_opened_again(
    registry: Registry, asker: agent.Registry, fault: str
) -> None:
    registry.play("heartbeat", fault)
    assert asker.heartbeat(5).meaning == agent.ACCEPTED
    assert registry.count("heartbeat") == 2
    registry.play("heartbeat", fault, times=2)
    answer = asker.heartbeat(5)
    assert answer.meaning == agent.FAILED
    assert fault == "reset" or "connection closed without an answer" in answer.advice
