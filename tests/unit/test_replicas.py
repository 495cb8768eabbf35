"""One sidecar and replicas with memories of their own, in simulated time and with many seeds.

In strict turns whoever sends a constant number of requests meets the same replicas for ever.
"""

import json
import random

import pytest

import agent
from kit.clock import Clock
from kit.simulated import simulated_agent

INTERVAL = 30.0  # seconds
SEEDS = range(25)
SETTINGS = agent.read_settings(
    {"SERVICE_NAME": "osint", "SERVICE_HOST": "localhost", "SERVICE_HEALTH_CHECK": "none"}
)


class Replicas:
    """Each request goes to the next replica, or to any; heartbeats are accepted by all.

    Attributes: `known`, which of them list the name; `asked`, the paths of all requests; `lost`,
    the moments at which replicas lose their memory, with their numbers; `honest`, whether they
    refuse the heartbeat of a name that they do not know, as with a store.
    """

    honest = False

    def __init__(self, number: int, turns: random.Random | None, clock: Clock) -> None:
        self.known, self.turns, self.clock = [False] * number, turns, clock
        self.asked: list[str] = []
        self.lost: list[tuple[float, list[int]]] = []
        self.end = 0.0

    def carry(self, method: str, path: str, _timeout: float) -> agent.Answer:
        """Answer one request, which takes its time."""
        self.clock.sleep(0.01)
        self.forget()
        if method == "DELETE":
            return agent.Answer(200, body=b"{}")
        if self.clock() >= self.end:
            raise agent.Stop
        self.asked.append(path)
        number = len(self.known)
        turn = self.turns.randrange(number) if self.turns else len(self.asked) % number
        if path == "/services":
            return agent.Answer(200, body=json.dumps(["osint"] * self.known[turn]).encode())
        if path == "/register":
            self.known[turn] = True
        if self.honest and not self.known[turn]:
            return agent.Answer(404, body=b'{"detail": "Service \'osint\' not registered"}')
        return agent.Answer(200, body=b"{}")

    def forget(self) -> None:
        """Lose what is to be lost by now."""
        while self.lost and self.clock() >= self.lost[0][0]:
            for replica in self.lost.pop(0)[1]:
                self.known[replica] = False


def play(replicas: Replicas, seed: int, intervals: float) -> None:
    """Let a sidecar run until so many intervals after the last loss."""
    clock, draw = replicas.clock, random.Random(seed).uniform
    last = replicas.lost[-1][0] if replicas.lost else 0.0
    replicas.end = last + intervals * INTERVAL
    subject = simulated_agent(SETTINGS, clock, draw, replicas.carry)
    assert subject.run() == 0


def turns_of(kind: str, seed: int) -> random.Random | None:
    return random.Random(-seed) if kind == "random" else None


@pytest.mark.parametrize("kind", ["strict", "random"])
@pytest.mark.parametrize("number", [2, 3, 5])
def test_all_lists_have_the_name_again(number: int, kind: str) -> None:
    """They are lost twice, the second time in the middle of what follows the first."""
    missing = {40: 0, 100: 0}
    for seed in SEEDS:
        for intervals in missing:
            replicas = Replicas(number, turns_of(kind, seed), Clock())
            moment = random.Random(seed).uniform
            first = moment(1, 30) * INTERVAL
            second = first + moment(8, 25) * INTERVAL
            replicas.lost = [(first, list(range(number))), (second, list(range(number)))]
            play(replicas, seed, intervals)
            missing[intervals] += replicas.known.count(False)
    assert missing[40] <= len(SEEDS) * number / 20
    assert missing[100] == 0


@pytest.mark.parametrize("lost", [0, 1])
def test_one_replica_of_two_that_has_lost_its_memory_is_found(lost: int) -> None:
    """Each look would meet the other one, if there were as many heartbeats between two looks."""
    for seed in SEEDS:
        replicas = Replicas(2, None, Clock())
        replicas.known = [True, True]
        replicas.lost = [(50.5 * INTERVAL, [lost])]
        play(replicas, seed, 150)
        assert all(replicas.known)


@pytest.mark.parametrize("number", [2, 3, 5])
def test_it_takes_three_requests_an_interval_at_the_most(number: int) -> None:
    for seed in SEEDS:
        replicas = Replicas(number, None, Clock())
        play(replicas, seed, 50)
        assert len(replicas.asked) <= 3 * 51
        before = len(replicas.asked)
        replicas = Replicas(number, None, Clock())
        replicas.known = [True] * number
        play(replicas, seed, 100)
        assert len(replicas.asked) <= 1.15 * 101 + 2 < 3 * before


def test_a_record_that_was_lost_once_costs_one_registration() -> None:
    """The look that follows it proves that it is there; then there are heartbeats again."""
    for seed in SEEDS:
        replicas = Replicas(1, None, Clock())
        replicas.honest = True
        replicas.lost = [(15.5 * INTERVAL, [0])]
        play(replicas, seed, 25)
        assert replicas.asked.count("/register") == 2
