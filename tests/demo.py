"""The demo: the real agent, a toy service and the embedded registry, in all that it is made for.

Each step shows what a user would look at: the agent's log, the record in the registry, the health
line. It then checks the outcome in the registry itself. Exit code 0: everything worked; 1:
something did not, and the last line says what; 128 + n: ended by signal n. Nothing is left behind
in any case.

With --consul the registry is a real Consul, where a `consul` is on the PATH.

Needs an interpreter that has requests, for the agent; `sh tests/demo.sh` sees to that.
"""

import argparse
import contextlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import requests

from kit.consul import ConsulAgent
from kit.peers.service import ToyService
from kit.program import Program, ProgramError
from kit.sidecar import NAME, STOP_PROMISE, Sidecar, wait_until

TTL, INTERVAL = 4.0, 2.0  # seconds; they stand for 60 and 30
PATIENCE = 20.0  # seconds after which a step has failed; a quick machine needs a third of it
RED, GREEN, YELLOW, CYAN, BOLD, DIM = "31", "32", "33", "36", "1", "2"

T = TypeVar("T")


class Screen:
    """Prints what happens, in colour on a terminal unless NO_COLOR is set."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
        self.coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        self.width = shutil.get_terminal_size((100, 24)).columns
        self.lock = threading.Lock()

    def show(self, text: str, colour: str = "", start: str = "  ", indent: str = "  ") -> None:
        """Print a text, wrapped; its first line begins with start, further ones with indent."""
        shown = textwrap.fill(
            text, self.width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False
        )
        with self.lock:
            shown = shown or start
            print(f"\033[{colour}m{shown}\033[0m" if self.coloured and colour else shown)

    def heading(self, text: str) -> None:
        self.show("", start="")
        self.show(f"{text} ".ljust(min(self.width, 100), "─"), BOLD, start="")

    def agent(self, line: str) -> None:
        """Show a line of the agent's log."""
        level = re.search(r" (WARNING|ERROR|CRITICAL) ", line)
        colour = DIM if level is None else YELLOW if level[1] == "WARNING" else RED
        self.show(line, colour, start="  agent │ ", indent="        │   ")

    def command(self, command: str, output: str = "") -> None:
        """Show a command as a user would type it, and what it says, if anything."""
        self.show(command, CYAN, start="  $ ", indent="      ")
        for line in output.splitlines():
            text = line.lstrip()
            self.show(text, start="    " + line.removesuffix(text), indent="      ")

    def passed(self, text: str) -> None:
        self.show(text, GREEN, start="  ✓ ", indent="    ")

    def failed(self, text: str) -> None:
        self.show(text, RED, start="✗ ", indent="  ")


class Agent(Sidecar):
    """The agent, its log shown live."""

    def __init__(self, screen: Screen, **settings: object) -> None:
        super().__init__(None, None, **settings)
        self.screen = screen

    def heard(self, line: str) -> None:
        super().heard(line)
        with contextlib.suppress(OSError):  # whoever read the demo's output has gone
            self.screen.agent(line)


class Demo:
    """The story. Each step is a method, and needs those before it."""

    REFRESHED = "last_heartbeat is later than registered_at"
    agent: Agent

    def __init__(self, screen: Screen) -> None:
        # On free ports, which do not change.
        self.screen, self.service = screen, Program("service", ToyService().port)
        # Signals that came; looked at in every wait, so that nothing is left half done.
        self.signals: list[int] = []
        self.started = contextlib.ExitStack()  # ends every process, and removes all files
        self.registry = self.new_registry()
        self.address = f"http://127.0.0.1:{self.registry.port}"
        self.started.callback(self.registry.kill)
        self.started.callback(self.service.kill)
        self.step = "set-up"

    def run(self) -> None:
        """Go through the steps. Raises AssertionError; KeyboardInterrupt after a signal."""
        steps = (
            ("The agent waits for the service, registers it and sends heartbeats", self.begins),
            ("The registry forgets the service", self.record_is_lost),
            ("The registry is gone for a while, and comes back empty", self.registry_is_gone),
            ("The service crashes, and returns with a new version", self.service_crashes),
            ("SIGTERM: the agent removes its record and exits", self.sigterm),
        )
        scale = f"A TTL of {TTL:g} s and an interval of {INTERVAL:g} s stand for 60 s and 30 s."
        self.screen.show(scale, start="")
        for number, (title, step) in enumerate(steps, 1):
            self.step = f"step {number} ({title})"
            self.screen.heading(f"{number}. {title}")
            step()
        self.screen.show("", start="")

    # -- the steps

    def begins(self) -> None:
        show = self.screen.show
        self.start_registry()
        show(f"The registry is at {self.address}, the service will be at {self.service.url}.")
        self.agent = Agent(
            self.screen,
            HEARTBEAT_INTERVAL=f"{INTERVAL:g}",
            REGISTRY_URL=self.registry.url,
            SERVICE_PORT=self.service.port,
        ).start()
        self.started.callback(self.agent.close)
        self.wait_health(r"waiting for the service .*connection refused")
        unregistered = self.count("register") == 0
        self.check(unregistered, "the service is not up: nothing has been registered")

        show("Now the service starts.")
        self.service.start("--version=1.0.0")
        record = self.wait("the record is in the registry", self.record)
        self.check(
            record["endpoint"] == self.service.url and record["metadata"].get("version") == "1.0.0",
            "the service is up and registered, with its address and its version",
        )
        alive = "heartbeats keep the record alive"
        self.wait(alive, lambda: self.count("heartbeat") > 1 and self.is_refreshed())
        self.show_record()
        self.wait_health(r"^registered, last heartbeat")
        self.screen.passed(f"{alive}: {self.REFRESHED}")

    def record_is_lost(self) -> None:
        before = self.wait("there is a record to lose", self.record)["registered_at"]
        refused = self.refused_heartbeats()
        began = time.monotonic()
        self.forget()
        seconds = self.until_back(began, lambda record: record["registered_at"] > before)
        self.show_record()
        # More than one and one for a slow look would mean that it came back for another reason.
        self.check(
            1 <= self.refused_heartbeats() - refused <= 2,
            f"the first refused heartbeat brought the record back, after {seconds:.1f} s",
        )

    def registry_is_gone(self) -> None:
        self.registry.kill()
        self.screen.show("The registry's process has been killed.")
        self.wait_health(r"registry unreachable .*attempt ([4-9]|\d\d)")
        self.screen.passed(
            "the sidecar itself stays healthy, so that nothing restarts it, and keeps trying"
        )

        began = time.monotonic()
        self.start_registry()
        self.screen.show("The registry is up again, without any record.")
        seconds = self.until_back(began)
        self.wait_health(r"^registered, last heartbeat")
        again = f"registered again, {seconds:.1f} s after the registry started"
        self.check(self.count("register") > 0, again)

    def service_crashes(self) -> None:
        self.service.kill()
        self.screen.show("The service's process has been killed.")
        self.wait_health(r"^service down")
        heartbeats = self.count("heartbeat")
        self.wait("the record has expired", lambda: not self.record())
        self.show_record()
        self.check(
            self.count("heartbeat") == heartbeats and self.count("deregister") == 0,
            f"no heartbeat for a dead service: its record has expired,"
            f" {TTL:g} s after the last one",
        )

        began = time.monotonic()
        self.service.start("--version=2.0.0")
        self.screen.show("The service is up again, as version 2.0.0.")
        seconds = self.until_back(began)
        self.show_record()
        self.check(
            self.record().get("metadata", {}).get("version") == "2.0.0",
            f"registered with its new version, {seconds:.1f} s after it started",
        )

    def sigterm(self) -> None:
        self.wait("there is a record to remove", self.record)
        self.screen.command(f"kill -TERM {self.agent.pid}")
        code, seconds = self.agent.stop()
        self.show_record()
        gone = not self.record() and self.count("deregister") == 1
        self.check(gone, "deregistered: the record is gone at once")
        ended = f"the agent exited with code {code} after {seconds:.1f} s"
        self.check(code == 0 and seconds < STOP_PROMISE, ended)

    # -- looking and judging

    def wait(self, what: str, is_so: Callable[[], T]) -> T:
        """Return is_so() once it is true. Raises AssertionError, KeyboardInterrupt at a signal."""

        def look() -> T:
            self.stop_at_signal()
            code = self.agent.process.poll()
            assert code is None, f"before {what}, the agent exited with code {code}"
            return is_so()

        result = wait_until(look, PATIENCE, what, every=0.1)
        time.sleep(0.1)  # so that the agent's line about it is shown first
        return result

    def until_back(self, began: float, is_so: Callable[[Any], bool] = bool) -> float:
        """Wait for such a record; return the seconds since it began."""
        self.wait("the record is back", lambda: is_so(found) if (found := self.record()) else False)
        return time.monotonic() - began

    def check(self, is_so: bool, what: str) -> None:
        """Show what is true. Raises AssertionError, KeyboardInterrupt after a signal."""
        self.stop_at_signal()
        assert is_so, f"this is not true: {what}"
        self.screen.passed(what)

    def stop_at_signal(self) -> None:
        if self.signals:
            raise KeyboardInterrupt

    def wait_health(self, pattern: str) -> None:
        """Wait until the health check says so, with exit code 0, and show it."""

        def line() -> str:
            code, said = self.agent.health()
            return said.strip() if code == 0 and re.search(pattern, said) else ""

        said = self.wait(f"the health check says '{pattern}' with exit code 0", line)
        self.screen.command("python healthcheck.py; echo $?", f"{said}\n0")

    # -- the registry

    def new_registry(self) -> Any:
        """Return it, not yet started."""
        return Program("registry", ToyService().port)

    def start_registry(self) -> None:
        """Start it, empty."""
        self.registry.start(f"--ttl={TTL:g}")

    def ask(self, path: str, method: str = "GET", payload: object = None) -> Any:
        """Send the registry a request; return the answer, decoded where it is JSON."""
        with requests.Session() as session:
            session.trust_env = False
            answer = session.request(method, self.address + path, json=payload, timeout=PATIENCE)
        return answer.json() if answer.text.startswith(("{", "[")) else answer.text

    def record(self) -> dict[str, Any]:
        """Return the service's record in the registry, nothing where there is none."""
        found = self.ask(f"/services/{NAME}")
        return found if "endpoint" in found else {}

    def forget(self) -> None:
        """Have the registry lose the record."""
        self.ask("/_control", "POST", {"forget": NAME})
        self.screen.command(f"""curl -d '{{"forget": "{NAME}"}}' {self.address}/_control""")

    def is_refreshed(self) -> bool:
        """Tell whether a heartbeat has come since the registration, by the times in the record."""
        record = self.record()
        return bool(record) and record["last_heartbeat"] > record["registered_at"]

    def show_record(self) -> None:
        """Show what the registry answers to those who ask for the service, one field a line."""
        found = self.ask(f"/services/{NAME}").items()
        fields = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in found)
        self.screen.command(f"curl {self.address}/services/{NAME}", f"{{\n{fields}\n}}")

    def count(self, operation: str) -> int:
        """Return how many requests of a kind the registry has got since its start."""
        return int(self.ask("/_control")["counts"].get(operation, 0))

    def refused_heartbeats(self) -> int:
        return self.agent.count("Service not found .404.")


class ConsulDemo(Demo):
    """The same story with Consul. It counts no requests, so the agent's log does."""

    REFRESHED = "it has passed for longer than its TTL"

    def new_registry(self) -> ConsulAgent:
        directory = self.started.enter_context(tempfile.TemporaryDirectory(prefix="consul-"))
        return ConsulAgent(Path(directory))

    def start_registry(self) -> None:
        self.registry.start(empty=True).wait_leader()

    def found(self) -> dict[str, Any]:
        """Return what those who look for the service get, nothing where it does not pass."""
        records = self.ask(f"/v1/health/service/{NAME}?passing")
        return dict(records[0]["Service"]) if isinstance(records, list) and records else {}

    def record(self) -> dict[str, Any]:
        record = self.found()
        if not record:
            return {}
        endpoint, index = f"http://{record['Address']}:{record['Port']}", record["CreateIndex"]
        return {"endpoint": endpoint, "metadata": record["Meta"], "registered_at": index}

    def forget(self) -> None:
        path = f"/v1/agent/service/deregister/{self.found()['ID']}"
        self.ask(path, "PUT")
        self.screen.command(f"curl -X PUT {self.address}{path}")

    def is_refreshed(self) -> bool:
        return self.count("heartbeat") > TTL / INTERVAL + 1 and bool(self.record())

    def show_record(self) -> None:
        keys = ("ID", "Address", "Port", "Meta")
        shown = {key: value for key, value in self.found().items() if key in keys}
        lines = json.dumps([shown] if shown else [], indent=2)
        self.screen.command(f"curl '{self.address}/v1/health/service/{NAME}?passing'", lines)

    def count(self, operation: str) -> int:
        words = {"register": "registered succ", "heartbeat": "Heartbeat acc"}
        return self.agent.count(words.get(operation, "deregistered$"))


def main() -> int:
    """Run the demo; return its exit code."""
    parser = argparse.ArgumentParser(description="The demo of the registry sidecar.")
    parser.add_argument("--consul", action="store_true", help="with a real Consul as the registry")
    with_consul = parser.parse_args().consul
    began = time.monotonic()
    screen = Screen()
    if with_consul and shutil.which("consul") is None:
        screen.failed("there is no consul on the PATH")
        return 1
    demo = (ConsulDemo if with_consul else Demo)(screen)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _frame: demo.signals.append(number))
    try:
        with demo.started:
            demo.run()
    except KeyboardInterrupt:
        return 128 + demo.signals[0]
    except BrokenPipeError:  # the output's reader has gone; Python's last flush must not complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except (
        AssertionError,
        ProgramError,
        requests.RequestException,
        subprocess.SubprocessError,
    ) as error:
        screen.failed(f"{demo.step}: {error}")
        return 1
    screen.passed(f"Everything worked, in {time.monotonic() - began:.0f} s.")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
