"""SIGTERM and SIGINT: exit 0 within 3 s in any wait, deregistered where the registry answers.

Then DRAIN_SECONDS: it lives on while callers notice that the record is gone.
"""

import contextlib
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from kit.certificates import certificate
from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import FOREVER, NAME, STOP_PROMISE, Sidecar, wait_until
from kit.stage import Stage

HOST = "registry.test"  # on a stage

# ---- whatever it waits for; in every state, with a clock that jumps: unit/test_loop.py


class Wait(NamedTuple):
    """Where a signal meets the agent.

    Args: what is awaited, one of `counts` below or a line of the log; what a peer does before the
    start, a method and its arguments; whether there is a record, which is taken back; the signal.
    """

    until: str
    before: Sequence[object] = ()
    taken_back: bool = False
    number: int = signal.SIGTERM


WAITS = {
    "a pause": Wait("Waiting for the service", ("service.play", "health", "status_503", FOREVER)),
    "a look-up": Wait("question"),
    "a probe": Wait("probe", ("service.pause",), number=signal.SIGINT),
    "a TLS handshake": Wait("connection", ("registry.pause",)),
    "a registration": Wait("register", ("registry.play", "register", "hang", FOREVER)),
    "a backoff": Wait("Registration failed .attempt 2", ("registry.stop",)),
    "a heartbeat": Wait(
        "heartbeat", ("registry.play", "heartbeat", "drip_body", FOREVER), taken_back=True
    ),
    "the next slot": Wait("heartbeat loop", taken_back=True, number=signal.SIGINT),
}


@pytest.mark.parametrize("name", WAITS)
def test_it_stops(service: ToyService, tmp_path: Path, name: str) -> None:
    """Where nothing is taken back, nobody drains."""
    until, before, taken_back, number = WAITS[name]
    tls = certificate(tmp_path, "127.0.0.1")[0] if "TLS" in name else None
    with Registry(ttl=4.0, tls=tls) as registry:
        sidecar = Sidecar(registry, service, HEARTBEAT_INTERVAL=6 if taken_back else 30)
        sidecar.settings["DRAIN_SECONDS"] = 0 if taken_back else 60
        counts = {
            "probe": lambda: service.connections,
            "connection": lambda: registry.connections,
            "register": lambda: registry.count("register"),
            "heartbeat": lambda: registry.count("heartbeat"),
        }
        if until == "question":
            sidecar.settings["REGISTRY_URL"] = f"http://{HOST}:{registry.port}"
            stage = Stage(sidecar, names={HOST: ["127.0.0.1"]}, held=[HOST])
            counts["question"] = lambda: len(stage.questions(HOST))
        if before:
            peer, _, method = str(before[0]).partition(".")
            getattr({"registry": registry, "service": service}[peer], method)(*before[1:])
        with sidecar:
            wait_until(counts.get(until, lambda: sidecar.count(until)))
            time.sleep(0.3)  # so that it waits for an answer, where it is to wait
            sidecar.assert_stops(number)
            assert registry.count("deregister") == taken_back
            assert sidecar.count("Service deregistered") == taken_back
            assert not sidecar.count("Draining|Deregistration failed")
            assert not taken_back or registry.record(NAME) is None


# ---- signals that mean nothing, and more signals than one


def test_other_signals_mean_nothing_and_more_of_these_change_nothing(
    registry: Registry, service: ToyService
) -> None:
    """What is ignored the kernel throws away, so that it cuts no wait short."""
    registry.play("deregister", "hang", times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        status = Path(f"/proc/{sidecar.pid}/status").read_text()
        ignored = int(re.findall(r"SigIgn:\s+([0-9a-f]+)", status)[0], 16)
        for name in ("HUP", "ALRM", "USR1", "USR2", "CHLD", "PIPE"):
            assert ignored >> (signal.Signals[f"SIG{name}"] - 1) & 1, name
        began = time.monotonic()
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                sidecar.process.send_signal(signal.SIGTERM)
                sidecar.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        assert sidecar.wait() == 0
        assert time.monotonic() - began < STOP_PROMISE


@pytest.mark.parametrize("deregister", [True, False])
def test_a_second_signal_at_the_worst_moment(
    registry: Registry, service: ToyService, deregister: bool
) -> None:
    """Just before the agent changes how it takes signals; and Python's own end takes its time."""
    sidecar = Sidecar(registry, service, DEREGISTER_ON_EXIT=deregister)
    sidecar.settings["DRAIN_SECONDS"] = 0 if deregister else 60
    stage = Stage(sidecar, again=False)
    with sidecar:
        sidecar.wait_registered()
        stage.set(again=True)
        sidecar.assert_stops()
        assert registry.count("deregister") == deregister
        assert (registry.record(NAME) is None) == deregister


# ---- the drain


def test_it_lives_on_after_the_deregistration_and_says_so(
    registry: Registry, service: ToyService
) -> None:
    with Sidecar(registry, service, DRAIN_SECONDS=2) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Draining for 2 s; another signal ends it")
        assert registry.record(NAME) is None
        assert sidecar.count("Service deregistered") == 1
        sidecar.wait_health("^deregistered, draining for [0-2] s")
        assert sidecar.health("--ready")[0] == 1
        beats = registry.count("heartbeat"), registry.count("register")
        assert sidecar.wait() == 0
        assert 1.9 < time.monotonic() - sidecar.times[-1] < 2 + STOP_PROMISE
        assert (registry.count("heartbeat"), registry.count("register")) == beats


@pytest.mark.parametrize("moment", ["Draining for 60 s", "Stopping"])
def test_another_signal_ends_the_drain_but_not_the_deregistration(
    registry: Registry, service: ToyService, moment: str
) -> None:
    registry.play("deregister", ["slow", 0.7])
    with Sidecar(registry, service, DRAIN_SECONDS=60) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for(moment)
        sidecar.assert_stops(signal.SIGINT)
        assert sidecar.count("Service deregistered") == 1
    assert registry.record(NAME) is None
