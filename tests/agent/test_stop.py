"""SIGTERM and SIGINT: exit 0 within 3 s in every state, deregistered where the registry answers.

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

SERVICE, REGISTRY = "service.test", "registry.test"  # the names on a stage

# ---- in every state


class State(NamedTuple):
    """How a state is reached, and what is left of it.

    Args: what is awaited, one of `counts` below or a line of the log; what the peers do before the
    start, and once it is registered, each a method and its arguments; whether a record is taken
    back; the interval; the name whose look-up hangs; the signal.
    """

    until: str
    before: Sequence[Sequence[object]] = ()
    after: Sequence[Sequence[object]] = ()
    taken_back: bool = False
    interval: float = 30
    held: str = ""
    number: int = signal.SIGTERM


ILL = ("service.play", "health", "status_503", FOREVER)
REFUSING = ("registry.play", "register", "status_503", FOREVER)
STATES = {
    "waiting": State("Waiting for the service", [ILL], number=signal.SIGINT),
    "in a probe": State("probe", [("service.pause",)]),
    "looking the service up": State("question", held=SERVICE),
    "looking the registry up": State("question", held=REGISTRY),
    "in a TLS handshake": State("connection", [("registry.pause",)]),
    "in a registration": State("register", [("registry.play", "register", "hang", FOREVER)]),
    "backing off": State("Registration failed .attempt 2", [("registry.stop",)]),
    "registered": State("heartbeat loop", taken_back=True, number=signal.SIGINT),
    "in a heartbeat": State(
        "heartbeat",
        [("registry.play", "heartbeat", "drip_body", FOREVER)],
        taken_back=True,
        interval=6,
    ),
    "registering again": State(  # what was once accepted is taken back, whatever came of it since
        "failed .attempt 2", after=[REFUSING, ("registry.forget",)], taken_back=True, interval=0.5
    ),
    "service down": State(
        "Service is DOWN", after=[("service.stop",)], taken_back=True, interval=2
    ),
    "registry gone": State("heartbeat loop", after=[("registry.stop",)]),
}


@pytest.mark.parametrize("name", STATES)
def test_it_stops(service: ToyService, tmp_path: Path, name: str) -> None:
    """Where nothing is taken back, nobody drains."""
    state = STATES[name]
    tls = certificate(tmp_path, "127.0.0.1")[0] if "TLS" in name else None
    with Registry(ttl=4.0, tls=tls) as registry:
        peers = {"registry": registry, "service": service}

        def do(deeds: Sequence[Sequence[object]]) -> None:
            for deed, *arguments in deeds:
                peer, _, method = str(deed).partition(".")
                getattr(peers[peer], method)(*arguments)

        sidecar = Sidecar(registry, service, HEARTBEAT_INTERVAL=state.interval)
        sidecar.settings["DRAIN_SECONDS"] = 0 if state.taken_back else 60
        counts = {
            "probe": lambda: service.connections,
            "connection": lambda: registry.connections,
            "register": lambda: registry.count("register"),
            "heartbeat": lambda: registry.count("heartbeat"),
        }
        if state.held:
            place = "SERVICE_HOST" if state.held == SERVICE else "REGISTRY_URL"
            url = f"http://{REGISTRY}:{registry.port}"
            sidecar.settings[place] = SERVICE if state.held == SERVICE else url
            stage = Stage(sidecar, names={state.held: ["127.0.0.1"]}, held=[state.held])
            counts["question"] = lambda: len(stage.questions(state.held))
        do(state.before)
        with sidecar:
            if state.after:
                sidecar.wait_registered()
                do(state.after)
            wait_until(counts.get(state.until, lambda: sidecar.count(state.until)))
            time.sleep(0.3)  # so that it waits for an answer, where it is to wait
            sidecar.assert_stops(state.number)
            assert registry.count("deregister") == state.taken_back
            assert sidecar.count("Service deregistered") == state.taken_back
            assert not sidecar.count("Draining")
            assert sidecar.count("Deregistration failed") == (name == "registry gone")
            assert not state.taken_back or registry.record(NAME) is None


@pytest.mark.parametrize("delay", [0.08, 0.3])
def test_a_signal_at_any_moment_of_the_start_never_gets_lost(
    registry: Registry, service: ToyService, delay: float
) -> None:
    """Before Python has run its first line the signal kills it, as good outside a container."""
    with Sidecar(registry, service) as sidecar:
        time.sleep(delay)
        code, seconds = sidecar.stop()
        assert code in (0, -signal.SIGTERM)
        assert seconds < STOP_PROMISE


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
