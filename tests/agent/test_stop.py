"""SIGTERM and SIGINT: exit 0 within 3 s in every state, deregistered where the registry answers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.peers.registry import Registry
from kit.peers.service import ToyService
from kit.sidecar import AGENT, FOREVER, NAME, ROOT, Sidecar, environment, odd_lines, wait_until
from kit.stage import Stage

PROMISE = 3.0  # seconds


def assert_stops(sidecar: Sidecar, number: int = signal.SIGTERM) -> None:
    code, seconds = sidecar.stop(number)
    assert code == 0, sidecar.log
    assert seconds < PROMISE, sidecar.log
    assert "Traceback" not in sidecar.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_between_heartbeats(registry: Registry, service: ToyService, number: int) -> None:
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30) as sidecar:
        sidecar.wait_for("Starting heartbeat loop")
        assert registry.record(NAME)
        assert_stops(sidecar, number)
        assert registry.record(NAME) is None
        assert sidecar.count("Service deregistered") == 1


def test_while_waiting_for_the_service(registry: Registry) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        assert_stops(sidecar)
    assert registry.count() == 0  # nothing was registered, so there is nothing to take back


def test_while_the_service_hangs(registry: Registry, service: ToyService) -> None:
    service.pause()
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30) as sidecar:
        wait_until(lambda: service.connections, why="no probe")
        assert_stops(sidecar)


def test_while_backing_off(service: ToyService) -> None:
    with Sidecar(Registry(), service) as sidecar:
        sidecar.wait_for("Registration failed .attempt 3")
        assert_stops(sidecar)
        assert not sidecar.count("deregister|Deregistration")  # nothing was ever accepted


def test_while_backing_off_from_a_registry_that_is_back(registry: Registry, service: ToyService) -> None:
    """What was once accepted is taken back, whatever became of the registrations since."""
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=0.5) as sidecar:
        sidecar.wait_registered()
        registry.play("register", "status_503", times=FOREVER)
        registry.forget()
        sidecar.wait_for("Registration failed .attempt 2")
        assert_stops(sidecar)
    assert registry.count("deregister") == 1


@pytest.mark.parametrize(
    ("operation", "fault"),
    [("register", "hang"), ("register", "drip_body"), ("heartbeat", "drip_headers"), ("heartbeat", "endless_body")],
)
def test_in_a_request_that_hangs(registry: Registry, service: ToyService, operation: str, fault: str) -> None:
    registry.play(operation, fault, times=FOREVER)
    with Sidecar(registry, service, HEARTBEAT_INTERVAL=30 if operation == "register" else 6) as sidecar:
        wait_until(lambda: registry.count(operation), why="the request never came")
        assert_stops(sidecar)
    assert registry.record(NAME) is None


@pytest.mark.parametrize("fault", ["hang", "drip_headers", "huge_body"])
def test_with_a_registry_that_fails_at_deregistration(registry: Registry, service: ToyService, fault: str) -> None:
    registry.play("deregister", fault, times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        assert_stops(sidecar)


@pytest.mark.parametrize("how", ["stopped", "paused"])
def test_with_the_registry_gone(registry: Registry, service: ToyService, how: str) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        registry.stop() if how == "stopped" else registry.pause()
        assert_stops(sidecar)
        assert sidecar.count("Deregistration failed")


def test_while_the_service_is_down(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        service.stop()
        sidecar.wait_for("Service is DOWN")
        assert_stops(sidecar)
    assert registry.record(NAME) is None


def test_more_signals_change_nothing(registry: Registry, service: ToyService) -> None:
    registry.play("deregister", "hang", times=FOREVER)
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        began = time.monotonic()
        for _ in range(20):
            with contextlib.suppress(ProcessLookupError):
                sidecar.process.send_signal(signal.SIGTERM)
                sidecar.process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        assert sidecar.wait() == 0
        assert time.monotonic() - began < PROMISE


@pytest.mark.parametrize("delay", [0.0, 0.08, 0.2, 0.4])
def test_a_signal_at_any_moment_of_the_start_never_gets_lost(
    registry: Registry, service: ToyService, delay: float
) -> None:
    """Before Python has run its first line the signal kills the process, which is as good outside a container."""
    with Sidecar(registry, service) as sidecar:
        time.sleep(delay)
        code, seconds = sidecar.stop()
        assert code in (0, -signal.SIGTERM)
        assert seconds < PROMISE


def test_deregistration_can_be_switched_off(registry: Registry, service: ToyService) -> None:
    with Sidecar(registry, service, DEREGISTER_ON_EXIT="false") as sidecar:
        sidecar.wait_registered()
        assert_stops(sidecar)
    assert registry.count("deregister") == 0
    assert registry.record(NAME)


# ---- the drain


def test_it_lives_on_after_the_deregistration_and_says_so(registry: Registry, service: ToyService) -> None:
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
        assert 1.9 < time.monotonic() - sidecar.times[-1] < 2 + PROMISE
        assert (registry.count("heartbeat"), registry.count("register")) == beats


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_another_signal_ends_the_drain(registry: Registry, service: ToyService, number: int) -> None:
    with Sidecar(registry, service, DRAIN_SECONDS=60) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Draining for 60 s")
        assert_stops(sidecar, number)


def test_a_signal_during_the_deregistration_ends_the_drain_but_not_that(
    registry: Registry, service: ToyService
) -> None:
    registry.play("deregister", ["slow", 0.7])
    with Sidecar(registry, service, DRAIN_SECONDS=60) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Stopping")
        assert_stops(sidecar)
        assert sidecar.count("Service deregistered") == 1
    assert registry.record(NAME) is None


@pytest.mark.parametrize("why", ["off", "failed", "never registered"])
def test_no_drain_where_nothing_was_deregistered(registry: Registry, service: ToyService, why: str) -> None:
    if why == "never registered":
        registry.play("register", "status_503", times=FOREVER)
    with Sidecar(registry, service, DRAIN_SECONDS=60, DEREGISTER_ON_EXIT=str(why != "off")) as sidecar:
        sidecar.wait_for("Registration failed" if why == "never registered" else "Starting heartbeat loop")
        if why == "failed":
            registry.stop()
        assert_stops(sidecar)
        assert not sidecar.count("Draining")


# ---- a lost network: a namespace whose only device is taken away (Linux, root); two minutes are skipped


@contextlib.contextmanager
def isolated(*devices: str) -> Iterator[Sidecar]:
    """Yield a sidecar that sees nothing but loopback and these devices, and waits for what never comes."""
    needed = [shutil.which(name) for name in ("unshare", "nsenter", "ip")]
    trial = ["unshare", "--net", "ip", "link", "add", "eth0", "type", "bridge"]
    if not all(needed) or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("needs unshare(1), nsenter(1) and ip(8) with network namespaces")
    sidecar = Sidecar(None, None, INITIAL_WAIT_TIMEOUT=86400, HEARTBEAT_INTERVAL=30)
    Stage(sidecar, jumping=True)
    script = f'for device in {" ".join(devices)}; do ip link add "$device" type bridge || exit; done; exec "$@"'
    sidecar.python = ["unshare", "--net", "sh", "-c", script, "sh", sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for("Waiting for the service")
        yield sidecar


def take_away(sidecar: Sidecar, device: str) -> None:
    command = ["nsenter", "--target", str(sidecar.pid), "--net", "ip", "link", "delete", device]
    subprocess.run(command, check=True)


def test_a_network_that_is_gone_for_two_minutes_ends_it_with_exit_code_1() -> None:
    with isolated("eth0", "tunl0") as sidecar:
        before = sidecar.count("Waiting")
        sidecar.wait_for("Waiting", times=before + 10)  # ten minutes
        take_away(sidecar, "eth0")
        assert sidecar.wait() == 1
        assert "ERROR Network lost: nothing but loopback for 12" in sidecar.lines[-1]
        assert odd_lines(sidecar.lines) == []


@pytest.mark.parametrize("devices", [[], ["tunl0", "sit0"], ["eth0", "eth1"]], ids=str)
def test_it_stays_where_there_never_was_a_network_or_another_is_left(devices: list[str]) -> None:
    with isolated(*devices) as sidecar:
        if "eth1" in devices:
            take_away(sidecar, "eth1")
        before = sidecar.count("Waiting")
        sidecar.wait_for("Waiting", times=before + 10)
        assert_stops(sidecar)


# ---- a name look-up that hangs: a DNS server of the test's own that never answers


@contextlib.contextmanager
def dead_dns() -> Iterator[list[str]]:
    """Yield the start of a command line that runs a program where every name look-up hangs (Linux).

    In a mount namespace of its own resolv.conf names a UDP port on loopback that is bound and never read.
    """
    unshare = shutil.which("unshare")
    trial = [unshare or "unshare", "--mount", "--map-root-user", "true"]
    if os.geteuid() == 0:
        trial.remove("--map-root-user")
    if not unshare or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("needs unshare(1) with mount namespaces to put a dead DNS in place")
    silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    address = f"127.53.{os.getpid() % 256}.{os.getpid() // 256 % 256}"
    try:
        silent.bind((address, 53))
    except OSError as error:
        silent.close()
        pytest.skip(f"needs UDP port 53 of loopback for a DNS that never answers: {error}")
    script = (
        'printf "nameserver $2\\n" >"$1/resolv.conf" && printf "hosts: files dns\\n" >"$1/nsswitch.conf" &&'
        ' mount --bind "$1/resolv.conf" "$(readlink -f /etc/resolv.conf)" &&'
        ' mount --bind "$1/nsswitch.conf" "$(readlink -f /etc/nsswitch.conf)" && shift 2 && exec "$@"'
    )
    with silent, tempfile.TemporaryDirectory() as directory:
        yield [*trial[:-1], "sh", "-c", script, "sh", directory, address]


def test_a_name_look_up_that_hangs_is_bounded_and_ends_at_a_signal(service: ToyService) -> None:
    with dead_dns() as prefix:
        sidecar = Sidecar(None, service, REGISTRY_URL="http://registry.invalid:8888", REGISTRY_TIMEOUT=0.5)
        sidecar.python = [*prefix, sys.executable, "-I"]
        with sidecar:
            sidecar.wait_for("Registration failed .attempt 2.*no answer within 0.5 s")
            tasks = len(list(Path(f"/proc/{sidecar.process.pid}/task").iterdir()))
            assert tasks == 2  # one look-up, joined by the second attempt
            assert sidecar.health()[0] == 0
            assert_stops(sidecar)


def test_a_hanging_look_up_of_the_service_is_bounded_too(registry: Registry) -> None:
    with dead_dns() as prefix:
        sidecar = Sidecar(registry, None, SERVICE_HOST="vertice-osint", INITIAL_WAIT_TIMEOUT=60)
        sidecar.python = [*prefix, sys.executable, "-I"]
        with sidecar:
            sidecar.wait_for("Waiting for the service .*no answer within 1 s")
            assert_stops(sidecar)


# ---- however Python is started


@pytest.mark.parametrize("flags", [[], ["-I", "-OO"]], ids=str)
def test_runs_from_any_directory_with_and_without_isolation(
    registry: Registry, service: ToyService, flags: list[str], tmp_path: Path
) -> None:
    sidecar = Sidecar(registry, service)
    sidecar.python = ["sh", "-c", f'cd "{tmp_path}" && exec "$@"', "sh", sys.executable, *flags]
    with sidecar:
        sidecar.wait_registered()
        assert_stops(sidecar)


# ---- what else may happen to the process


def test_a_bug_is_logged_with_its_traceback_and_exit_code_1(service: ToyService, tmp_path: Path) -> None:
    """The agent's own code is broken on purpose in a copy: no input is known that would do it."""
    broken = AGENT.read_text().replace("        return self.registering\n", "        return 1 / 0\n")
    (tmp_path / "agent.py").write_text(broken)
    (tmp_path / "healthcheck.py").write_text((ROOT / "healthcheck.py").read_text())
    settings = Sidecar(None, service).settings | {"HEARTBEAT_FILE": tmp_path / "heartbeat"}
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "agent.py")],
        env=environment(settings),
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 1
    assert "A bug in the sidecar" in done.stdout
    assert "ZeroDivisionError" in done.stdout


def test_a_log_that_nobody_reads_any_more_does_not_stop_the_agent(registry: Registry, service: ToyService) -> None:
    sidecar = Sidecar(registry, service, HEARTBEAT_INTERVAL=0.2)
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", str(AGENT)], env=environment(sidecar.settings), stdout=write_end, stderr=write_end
    )
    os.close(write_end)
    try:
        wait_until(lambda: registry.count("heartbeat") > 1)
        os.close(read_end)
        before = registry.count("heartbeat")
        wait_until(lambda: registry.count("heartbeat") > before + 5)
        process.terminate()
        assert process.wait(PROMISE) == 0
    finally:
        process.kill()
        process.wait()
        sidecar.directory.cleanup()


# ---- signals twice, and signals that mean nothing


@pytest.mark.parametrize("distance", [0.0, 0.005, 0.05])
def test_two_signals_where_nothing_is_to_be_deregistered(
    registry: Registry, distance: float
) -> None:
    with ToyService(healthy=False) as service, Sidecar(registry, service) as sidecar:
        sidecar.wait_for("Waiting for the service")
        sidecar.process.terminate()
        time.sleep(distance)
        assert_stops(sidecar)


@pytest.mark.parametrize("deregister", ["true", "false"])
def test_a_second_signal_at_the_worst_moment(
    registry: Registry, service: ToyService, deregister: str
) -> None:
    """Just before the agent changes how it takes signals; and Python's own end takes its time."""
    sidecar = Sidecar(registry, service, DEREGISTER_ON_EXIT=deregister)
    stage = Stage(sidecar, again=False)
    with sidecar:
        sidecar.wait_registered()
        stage.set(again=True)
        assert_stops(sidecar)
        assert (registry.record(NAME) is None) == (deregister == "true")


def test_a_stop_is_heard_where_the_parent_has_blocked_it(
    registry: Registry, service: ToyService
) -> None:
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())"
    start = f"import os, signal, sys; {block}; os.execv(sys.argv[1], sys.argv[1:])"
    sidecar = Sidecar(registry, service)
    sidecar.python = [sys.executable, "-c", start, sys.executable, "-I"]
    with sidecar:
        sidecar.wait_registered()
        assert_stops(sidecar)


MEANINGLESS = (
    signal.SIGHUP, signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD, signal.SIGPIPE,
)  # fmt: skip
REACHED = {
    "waiting": "Waiting for the service",
    "registering": "Service is READY",
    "looking-up": "Service is READY",
    "backing-off": "Registration failed .attempt 2",
    "registered": "Starting heartbeat loop",
    "service-down": "Service is DOWN",
}


@pytest.mark.parametrize("state", REACHED)
def test_signals_that_mean_nothing_change_nothing(
    registry: Registry, service: ToyService, state: str
) -> None:
    in_an_exchange = state in ("registering", "looking-up")
    sidecar = Sidecar(registry, service, REGISTRY_TIMEOUT=1.5, HEARTBEAT_INTERVAL=4)
    if state == "looking-up":
        sidecar.settings["REGISTRY_URL"] = f"http://registry.test:{registry.port}"
    stage = Stage(sidecar, names={"registry.test": ["127.0.0.1"]}, held=["registry.test"])
    if state == "waiting":
        service.healthy = False
    elif state == "registering":
        registry.play("register", "hang")
    elif state == "backing-off":
        registry.play("register", "status_500", times=2)
    with sidecar:
        if state == "service-down":
            sidecar.wait_registered()
            service.healthy = False
        sidecar.wait_for(REACHED[state])
        began = time.monotonic()
        time.sleep(0.1)
        for number in MEANINGLESS * 3:
            sidecar.process.send_signal(number)
            time.sleep(0.02)
        assert sidecar.process.poll() is None
        if in_an_exchange:  # the deadline is neither forgotten nor brought forward
            sidecar.wait_for("Registration failed .attempt 1.*no answer within 1.5 s")
            assert 1.2 < time.monotonic() - began < 1.5 + 1
        service.healthy = True
        stage.set(held=[])
        sidecar.wait_for("Heartbeat accepted")
        if not in_an_exchange:
            assert not sidecar.count("no answer|attempt 3")
        assert_stops(sidecar)


def test_signals_that_mean_nothing_do_not_end_a_stop_early(
    registry: Registry, service: ToyService
) -> None:
    registry.play("deregister", ["slow", 0.7])
    with Sidecar(registry, service) as sidecar:
        sidecar.wait_registered()
        sidecar.process.terminate()
        sidecar.wait_for("Stopping")
        for number in MEANINGLESS * 3:
            sidecar.process.send_signal(number)
            time.sleep(0.02)
        assert sidecar.wait() == 0
        assert sidecar.count("Service deregistered")


# ---- what others leave behind


def children(pid: int) -> dict[int, str]:
    """Return the children of a process and the state of each, Z for a zombie (Linux)."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError):
            found[int(child)] = Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0]
    return found


@pytest.mark.parametrize("state", ["registered", "backing-off"])
def test_what_is_left_to_pid_1_is_reaped(
    registry: Registry, service: ToyService, state: str
) -> None:
    unshare, nsenter = shutil.which("unshare"), shutil.which("nsenter")
    trial = [unshare or "unshare", "--pid", "--fork", "true"]
    if not unshare or not nsenter or subprocess.run(trial, capture_output=True).returncode != 0:
        pytest.skip("needs unshare(1) and nsenter(1) with PID namespaces")
    if state == "backing-off":
        registry.play("register", "status_500", times=FOREVER)
    sidecar = Sidecar(registry, service)
    sidecar.python = [unshare, "--pid", "--fork", "--kill-child", sys.executable, "-I"]
    with sidecar:
        sidecar.wait_for(REACHED[state])
        (agent,) = children(sidecar.pid)
        left: set[int] = set()
        for _ in range(3):
            leave = [nsenter, "--target", str(agent), "--pid", "sh", "-c", "(sleep 1 &)"]
            subprocess.run(leave, check=True)
            left |= children(agent).keys()
        assert len(left) == 3
        wait_until(lambda: not children(agent), 1 + 2 * 2, "nobody left")  # two intervals
        os.kill(agent, signal.SIGTERM)
        assert sidecar.wait() == 0


def test_what_ended_before_the_agent_began_is_reaped(
    registry: Registry, service: ToyService
) -> None:
    """A wrapper that starts something, then becomes the agent."""
    sidecar = Sidecar(registry, service)
    sidecar.python = ["sh", "-c", 'true & exec "$@"', "sh", sys.executable, "-I"]
    with sidecar:
        sidecar.wait_registered()
        assert not children(sidecar.pid)
        assert_stops(sidecar)
