"""What an agent does in simulated time, where one look at one of its parts shows it."""

import os
import random
from pathlib import Path

import pytest

import agent
import healthcheck
from kit.clock import Clock
from kit.simulated import simulated_agent

BOTH = {"SERVICE_NAME": "osint", "SERVICE_HOST": "localhost"}
SETTINGS = agent.read_settings(BOTH)
DOWN = agent.Answer(failure=ConnectionRefusedError(111, "Connection refused"))


def nobody(_method: str, _path: str, _timeout: float) -> agent.Answer:
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

    def probed(*_request: object) -> agent.Answer:
        probes.append(clock())
        return DOWN

    more = {"HEARTBEAT_INTERVAL": interval, "INITIAL_WAIT_TIMEOUT": "2.5"}
    subject = simulated_agent(agent.read_settings(BOTH | more), clock, longest, nobody, probed)
    assert subject.waiting() == subject.registering
    assert probes == times


def test_a_fleet_started_together_neither_beats_nor_looks_for_its_records_together() -> None:
    clock, uniform = Clock(), random.Random(7).uniform
    fleet = [simulated_agent(SETTINGS, clock, uniform, nobody).record for _ in range(200)]
    assert {record.look_in for record in fleet} == set(range(1, agent.LOOK_EVERY[1]))
    assert {record.phase // 5 for record in fleet} == set(range(6))  # of an interval of 30 s


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
