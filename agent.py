#!/usr/bin/env python3
"""Registry sidecar: keeps the service beside it registered in a service registry.

One loop; each state is a method of `Agent` that blocks, and returns the state that follows:

    waiting -> registering -> registered <-> service_down
                    ^             |
                    +-- the record is lost, the registry unreachable

SIGTERM or SIGINT in any state leads to `stop`: deregister, exit 0. Nothing waits without a bound:
`Interrupt` ends every exchange at its deadline, and every wait at a signal.

From top to bottom: settings, backoff and schedule, the log, interruption, one HTTP exchange, what
the registry's answers mean, the agent. REGISTRY_URL's API and its quirks are in the README.
"""

import signal

early_signals: list[int] = []
if __name__ == "__main__":  # PID 1 gets no SIGTERM before it has a handler: so this comes before the slow imports
    for early in (signal.SIGTERM, signal.SIGINT):
        signal.signal(early, lambda number, _frame: early_signals.append(number))

import base64
import email.utils
import functools
import http.client
import io
import itertools
import json
import logging
import math
import os
import random
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

try:
    import ssl
except ImportError:  # the default image is built without TLS
    ssl = None  # type: ignore[assignment]

with warnings.catch_warnings():  # the image has no charset_normalizer, which requests remarks on
    warnings.simplefilter("ignore")
    import requests
    from requests.adapters import HTTPAdapter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -I` leaves it out
import healthcheck

log = logging.getLogger("sidecar")

REGISTRY_TTL = 60.0  # seconds without a heartbeat after which the registry drops a record
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds, the bounds of every backoff
LONGEST_RETRY_AFTER = 300.0  # seconds
CONFIRM_EVERY = 9  # heartbeats; with the 30 s that an expired name lingers, a loss shows within ten intervals
STOP_TIMEOUT = 1.5  # seconds for the last exchange; the whole stop has 3
GRACE = 5.0  # seconds that a promise in the heartbeat file allows for a slow machine
LOG_AGAIN = 30.0  # seconds between repeated lines about one lasting fault
MAX_BODY = 64 * 1024  # bytes read of any body
MAX_HEADER = 4096  # bytes of a header line; there are at most 100 lines
MAX_SAID = 200  # characters of a peer's words in the log
MAX_METADATA = 256  # characters of a metadata value
LONGEST_DURATION = 86400.0  # seconds
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TRUTHS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}

# ---------------------------------------------------------------------------- settings


class Settings(NamedTuple):
    """All that the environment says, validated. Durations are in seconds."""

    service_name: str
    service_host: str
    service_port: int
    service_health_check: str
    service_health_endpoint: str
    service_health_timeout: float
    service_health_retries: int
    service_metadata: dict[str, str]
    registry_url: str
    registry_timeout: float
    registry_token: str
    registry_token_name: str  # the variable that the token came from
    registry_token_file: str
    registry_ca_file: str
    heartbeat_interval: float
    initial_wait_timeout: float
    deregister_on_exit: bool
    heartbeat_file: str
    log_level: str
    log_format: str

    @property
    def endpoint(self) -> str:
        """The service's base URL, as it stands in the record."""
        host = f"[{self.service_host}]" if ":" in self.service_host else self.service_host
        return f"http://{host}:{self.service_port}"

    def describe(self) -> str:
        """Return the settings in force on one line, without secrets."""
        shown = self._asdict() | {"registry_token": "***" if self.registry_token else ""}
        del shown["registry_token_name"]
        return " ".join(f"{name.upper()}={show_value(value)}" for name, value in shown.items())


class SettingsError(ValueError):
    """The environment holds values that the agent cannot work with; `args` has a line for each."""


class Environment:
    """Reads variables and gathers every problem, so that all are told at once. Empty means unset."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = variables
        self.problems: list[str] = []

    def get(self, name: str, default: str = "") -> str:
        return self.variables.get(name, "").strip() or default

    def refuse(self, name: str, fix: str) -> None:
        value = self.get(name)
        self.problems.append(f"{name}={show_value(value)}: {fix}" if value else f"{name} is not set: {fix}")

    def text(self, name: str, default: str, pattern: str, fix: str) -> str:
        value = self.get(name, default)
        if not re.fullmatch(pattern, value):
            self.refuse(name, fix)
        return value

    def choice(self, name: str, default: str, choices: Mapping[str, Any]) -> Any:
        value = self.get(name, default)
        for choice, meaning in choices.items():
            if value.lower() == choice.lower():
                return meaning
        self.refuse(name, f"set it to one of {', '.join(choices)}")
        return choices[default]

    def integer(self, name: str, default: int, lowest: int, highest: int) -> int:
        value = self.get(name, str(default))
        if re.fullmatch("[0-9]{1,9}", value) and lowest <= int(value) <= highest:
            return int(value)
        self.refuse(name, f"set it to a whole number from {lowest} to {highest}, such as {default}")
        return default

    def seconds(self, name: str, default: float, lowest: float) -> float:
        value = self.get(name, str(default))
        number = r"[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9}"
        if re.fullmatch(number, value) and lowest <= float(value) <= LONGEST_DURATION:
            return float(value)
        self.refuse(name, f"set it to seconds from {lowest:g} to {LONGEST_DURATION:g}, such as {default:g}")
        return default

    def host(self, name: str) -> str:
        value = re.sub(r"^\[(.*)\]$", r"\1", self.get(name))
        if not is_host(value):
            self.refuse(name, "set it to the service's host name or address alone, such as vertice-osint")
        return value

    def pairs(self, name: str) -> dict[str, str]:
        pairs: dict[str, str] = {}
        for item in filter(str.strip, self.get(name).split(",")):
            key, equals, value = (part.strip() for part in item.partition("="))
            if not key or not equals or key in pairs or len(item) > MAX_METADATA or not item.isprintable():
                self.refuse(name, f"set it to k=v,k=v with each key once, at most {MAX_METADATA} characters a pair")
                break
            pairs[key] = value
        return pairs

    def base_url(self, name: str, default: str) -> str:
        value = self.get(name, default)
        try:
            parts = urlsplit(value)
            sound = parts.scheme in ("http", "https") and is_host(parts.hostname or "") and parts.port != 0
            requests.Request("GET", value).prepare()  # it takes fewer brackets than urlsplit
        except ValueError:
            sound = False
        if not sound or not re.fullmatch(r"[!-~]+", value) or re.search(r"[\\?#]", value):
            self.refuse(name, "set it to http://HOST:PORT of the registry, such as http://vertice-register-lb:80")
        elif parts.scheme == "https" and ssl is None:
            self.refuse(name, "this image has no TLS; build it with --build-arg TLS=1, or use http://")
        return value.rstrip("/")

    def token(self) -> tuple[str, str, str]:
        """Return the token, the variable that it came from, and its file, if it is in one."""
        file = self.get("REGISTRY_TOKEN_FILE")
        if file:
            try:
                return read_token(file), "REGISTRY_TOKEN_FILE", file
            except (OSError, ValueError) as error:
                self.refuse("REGISTRY_TOKEN_FILE", f"set it to a readable file that holds the token ({plain(error)})")
        names = ("REGISTRY_TOKEN", "VERTICE_REGISTRY_TOKEN", "REGISTRY_AUTH_TOKEN")
        name = next(filter(self.get, names), names[0])
        token = self.get(name)
        if token and not is_token(token):
            self.problems.append(f"{name}=***: set it to the registry's token: printable ASCII without blanks")
        return token, name, ""

    def ca_file(self, name: str) -> str:
        value = self.get(name)
        if value and ssl is not None:
            try:
                ssl.create_default_context(cafile=value)
            except OSError as error:  # ssl.SSLError is one
                self.refuse(name, f"set it to a readable file of CA certificates in PEM form ({plain(error)})")
        return value


def is_host(text: str) -> bool:
    """Tell whether `text` is a name, an IPv4 address, or an IPv6 address without brackets."""
    if ":" in text:
        try:
            return bool(socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):  # ValueError: a character that is no ASCII, a NUL
            return False
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(re.fullmatch("[A-Za-z0-9_-]{1,63}", label) for label in labels)


def is_token(text: str) -> bool:
    """Tell whether `text` can stand in a header: printable ASCII without blanks."""
    return re.fullmatch("[!-~]{1,4095}", text) is not None  # no file is read any further


def read_token(path: str) -> str:
    """Return the token in the file. Raises OSError, or ValueError where it holds none."""
    token = healthcheck.read(path).decode("ascii", "replace").strip()
    if not is_token(token):
        raise ValueError("it must hold one token, printable ASCII without blanks")
    return token


def read_settings(variables: Mapping[str, str]) -> Settings:
    """Turn the environment into settings. Raises SettingsError that names every problem."""
    env = Environment(variables)
    token, token_name, token_file = env.token()
    interval = env.seconds("HEARTBEAT_INTERVAL", 30.0, lowest=0.01)
    settings = Settings(
        service_name=env.text(
            "SERVICE_NAME",
            "",
            "(?!index$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}",
            "set it to the name to register: lowercase letters, digits, _ and -, and not `index`, the registry's own",
        ),
        service_host=env.host("SERVICE_HOST"),
        service_port=env.integer("SERVICE_PORT", 8080, 1, 65535),
        service_health_check=env.choice(
            "SERVICE_HEALTH_CHECK", "http", {"http": "http", "tcp": "tcp", "none": "none"}
        ),
        service_health_endpoint=env.text(
            "SERVICE_HEALTH_ENDPOINT", "/health", "/(?!/)[!\"$-~]*", "set it to a path, such as /health"
        ),
        # An exchange that took more than half a slot would leave no room to repeat it inside the slot.
        service_health_timeout=min(env.seconds("SERVICE_HEALTH_TIMEOUT", 5.0, lowest=0.01), interval / 2),
        service_health_retries=env.integer("SERVICE_HEALTH_RETRIES", 3, 1, 100),
        service_metadata=env.pairs("SERVICE_METADATA"),
        registry_url=env.base_url("REGISTRY_URL", "http://vertice-register-lb:8888"),
        registry_timeout=min(env.seconds("REGISTRY_TIMEOUT", 10.0, lowest=0.01), interval / 2),
        registry_token=token,
        registry_token_name=token_name,
        registry_token_file=token_file,
        registry_ca_file=env.ca_file("REGISTRY_CA_FILE"),
        heartbeat_interval=interval,
        initial_wait_timeout=env.seconds("INITIAL_WAIT_TIMEOUT", 60.0, lowest=0.0),
        deregister_on_exit=env.choice("DEREGISTER_ON_EXIT", "true", TRUTHS),
        heartbeat_file=env.get("HEARTBEAT_FILE", healthcheck.DEFAULT_PATH),
        log_level=env.choice("LOG_LEVEL", "INFO", {level: level for level in LOG_LEVELS}),
        log_format=env.choice("LOG_FORMAT", "text", {"text": "text", "json": "json"}),
    )
    if env.problems:
        raise SettingsError(*env.problems)
    return settings


def doubts(settings: Settings) -> list[str]:
    """Return a line for each setting that works, but hardly as its author meant."""
    lines = []
    if 2 * settings.heartbeat_interval > REGISTRY_TTL:
        lines.append(
            f"HEARTBEAT_INTERVAL={settings.heartbeat_interval:g}: the registry forgets a service after"
            f" {REGISTRY_TTL:g} s, so one lost heartbeat costs the record; set it to {REGISTRY_TTL / 2:g} or less"
        )
    if not re.fullmatch("[a-z0-9_-]{3,64}", settings.service_name):
        lines.append(
            f"SERVICE_NAME={settings.service_name}: names are by convention 3 to 64 lowercase letters, digits, _ and -"
        )
    if settings.registry_ca_file and not settings.registry_url.lower().startswith("https:"):
        lines.append("REGISTRY_CA_FILE: of no use while REGISTRY_URL begins with http://")
    return lines


# ---------------------------------------------------------------------------- backoff and schedule

Uniform = Callable[[float, float], float]  # random.uniform, or a test's


def backoff(attempt: int, uniform: Uniform) -> float:
    """Return the seconds to wait after failed attempt number `attempt`, counted from 1.

    The ceiling doubles from 2 s to 60 s. The wait is drawn from its upper half: so it grows, and
    agents that failed together do not come back together.
    """
    ceiling = min(2 * FIRST_WAIT * 2.0 ** min(attempt - 1, 16), LONGEST_WAIT)
    return uniform(ceiling / 2, ceiling)


def next_beat(phase: float, interval: float, now: float) -> float:
    """Return the first moment after `now` on the grid `phase + n * interval`: the schedule never drifts."""
    return phase + (math.floor((now - phase) / interval) + 1) * interval


def parse_retry_after(value: str, wall_clock: float) -> float:
    """Return the seconds that a Retry-After header asks for, 0 to 300, and 0 for nonsense.

    It holds seconds or a date (RFC 9110, section 10.2.3), compared with `wall_clock` in Unix time.
    """
    try:
        date = None if value.isdecimal() else email.utils.parsedate_to_datetime(value)
        seconds = float(value) if date is None else date.timestamp() - wall_clock
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


# ---------------------------------------------------------------------------- the log

secrets: dict[str, re.Pattern[str]] = {}  # blotted out of whatever a peer says: it may send the token back


def keep_secret(secret: str) -> None:
    """Keep `secret` out of the log from now on, also escaped as in JSON or a URL."""
    pattern = ""
    for part in re.findall(r"\\+|[^\\]", secret):  # backslashes in one go, and bounded: else the search takes for ever
        if part[0] == "\\":
            pattern += rf"(?:\\{{{len(part)},{5 * len(part)}}}|(?:%5c){{{len(part)}}})"
        else:
            pattern += rf"(?:\\{{0,4}}{re.escape(part)}|%{ord(part):02x})"
    secrets[secret] = re.compile(pattern, re.IGNORECASE)


def url_secrets(url: str) -> list[str]:
    """Return what stands in a URL's credentials, also in the form in which it is sent."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user and not password:
        return []
    basic = base64.b64encode(f"{user}:{password}".encode()).decode()
    return [basic, password, parts.password or ""] if password else [basic, user]  # a key may stand there alone


def plain(words: object) -> str:
    """Make a peer's words fit for one line of a log: no secret, no control character, 200 characters."""
    text = str(words)
    for secret in sorted(secrets, key=len, reverse=True):
        text = secrets[secret].sub("***", text)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: MAX_SAID + 1])
    return text if len(text) <= MAX_SAID else text[: MAX_SAID - 3] + "..."


def show_value(value: object) -> str:
    """Show a setting's value on one line; credentials and the query of a URL stay hidden."""
    text = re.sub(r"^([^:]*://)?[^?]*\?.*@.*", r"\1***", str(value), flags=re.DOTALL)  # a query, or a password with a ?
    text = re.sub(r"^([^:]*://)?.*@", r"\1***@", text, flags=re.DOTALL)
    text = plain(re.sub(r"\?.*", "?***", text, flags=re.DOTALL))
    return repr(text) if " " in text or not text else text


class OneLine(logging.Formatter):
    """Formats a record as one line, of text or of JSON; only a bug's traceback takes more."""

    converter = time.gmtime  # type: ignore[assignment]

    def __init__(self, as_json: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        if not self.as_json:
            return super().format(record)
        when = self.formatTime(record, self.datefmt)
        line = {"time": when, "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_log(level: str, as_json: bool) -> None:
    """Log to stdout, and let no library's words through: urllib3's warnings repeat what peers sent."""
    logging.raiseExceptions = False  # a log that cannot be written never stops the agent
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(OneLine(as_json))
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(level)


# ---------------------------------------------------------------------------- interruption


class Stop(BaseException):
    """SIGTERM or SIGINT has come. Not an Exception, so that no library swallows it."""


class Late(BaseException):
    """An exchange has used up its deadline. Not an Exception, for the same reason."""


class Interrupt:
    """Ends a blocking call at its deadline (SIGALRM) and at SIGTERM or SIGINT.

    The timeouts of requests bound neither headers nor bodies that drip, and a flag would not end a
    read; so the signal handler raises, but only while a call runs under `bounded`, never amid the
    agent's own steps. The timer fires again and again, lest the one raise land in a destructor,
    where Python drops it.
    """

    AGAIN = 0.05  # seconds

    def __init__(self) -> None:
        self.stopping = False
        self.armed = False
        self.end = math.inf  # of the call under way, on the monotonic clock

    def install(self) -> None:
        """Take over the signals, and one that came while Python was importing."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, self.on_signal)
        self.stopping = self.stopping or bool(early_signals)

    def ignore_stop(self) -> None:
        """From now on SIGTERM and SIGINT change nothing: the agent exits anyway."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        self.stopping = False

    def on_signal(self, number: int, _frame: object) -> None:
        if number != signal.SIGALRM:
            self.stopping = True
            signal.setitimer(signal.ITIMER_REAL, self.AGAIN, self.AGAIN)
        if self.armed and self.stopping:
            raise Stop
        if self.armed and time.monotonic() >= self.end:  # else it is no alarm of ours
            raise Late

    def bounded(self, seconds: float, call: Callable[[], None]) -> None:
        """Run `call` for at most `seconds` (0: as long as it takes). Raises Late, or Stop at a signal."""
        self.end = time.monotonic() + seconds if seconds else math.inf
        self.armed = True
        try:
            if self.stopping:
                raise Stop
            signal.setitimer(signal.ITIMER_REAL, seconds, self.AGAIN)
            call()
        finally:
            self.armed = False  # first of all, and by no call: CPython runs no handler before it
            signal.setitimer(signal.ITIMER_REAL, 0)


resolve = socket.getaddrinfo


class LookUp(threading.Thread):
    """One name look-up. It has a thread of its own, since getaddrinfo blocks in C, where no handler runs."""

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        super().__init__(daemon=True)
        self.arguments = arguments
        self.outcome: Any = None  # the addresses, or the exception
        self.finished = threading.Semaphore(0)

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are for the main thread
        try:
            self.outcome = resolve(*self.arguments)
        except Exception as error:
            self.outcome = error
        self.finished.release()


look_ups: dict[tuple[Any, ...], LookUp] = {}


def look_up(*arguments: Any) -> Any:
    """Do what socket.getaddrinfo does, in such a way that a signal ends the wait.

    A look-up still under way is joined, not repeated: a dead DNS holds one thread for a name.
    """
    thread = look_ups.get(arguments)
    if thread is None or isinstance(thread.outcome, Exception):  # none, or one whose failure nobody waited for
        thread = LookUp(arguments)
        thread.start()
        look_ups[arguments] = thread
    while thread.outcome is None:  # Thread.join takes a thread for ended when a signal handler raises (bpo-45274)
        thread.finished.acquire(timeout=0.1)  # in slices, for systems where no signal ends a lock's wait
    look_ups.pop(arguments, None)
    if isinstance(thread.outcome, Exception):
        raise thread.outcome
    return thread.outcome


def tame_libraries() -> None:
    """Bound what requests has no setting for."""
    socket.getaddrinfo = look_up  # type: ignore[assignment]  # urllib3 and socket.create_connection call it by this name
    http.client._MAXLINE = MAX_HEADER  # type: ignore[attr-defined]  # 100 headers of 64 KB each would take 30 MB


# ---------------------------------------------------------------------------- one HTTP exchange


class Answer(NamedTuple):
    """What an exchange brought. Status 0: no answer; `said`: the answer or the failure, fit for the log."""

    status: int
    said: str
    body: bytes = b""
    late: bool = False
    retry_after: float = 0.0

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


class Peer:
    """One HTTP server, with one kept connection to it.

    Requests go through requests' transport adapter alone: what a Session adds to it (redirects,
    cookies, proxies and netrc from the environment) must not happen here.
    """

    def __init__(self, url: str, timeout: float, interrupt: Interrupt, verify: bool | str = True) -> None:
        """Args: base URL without a slash at its end; seconds for a whole exchange; CA file, or True."""
        self.url, self.timeout, self.interrupt, self.verify = url, timeout, interrupt, verify
        self.adapter = HTTPAdapter(pool_connections=1, pool_maxsize=1)
        self.kept = False  # whether a connection is open from the exchange before

    def exchange(self, method: str, path: str, payload: object = None, token: str = "", timeout: float = 0) -> Answer:
        """Send one request and return the answer, within the deadline, whatever the peer does."""
        timeout = timeout or self.timeout
        body = b"" if payload is None else json.dumps(payload, separators=(",", ":")).encode()
        request = prepare(method, self.url + path, body, token)
        response: list[requests.Response] = []
        content, failure, late = b"", "", False

        def talk() -> None:
            nonlocal content
            response.append(self.send(request, timeout))
            content = response[0].raw.read(MAX_BODY + 1, decode_content=False)  # a gzip bomb stays packed

        try:
            self.interrupt.bounded(timeout, talk)
        except Late:
            failure, late = f"no answer within {timeout:g} s", True
        except Exception as error:  # whatever a hostile answer makes the libraries raise
            failure = reason(error, timeout)
        finally:
            self.kept = bool(response) and response[0].raw.closed and not failure and response[0].status_code >= 200
            if not self.kept:
                for head in response:
                    head.close()
                self.adapter.close()
        if not response:
            return Answer(0, failure, late=late)
        said = describe_answer(response[0], content) + (", then the body did not end in time" if late else "")
        retry_after = parse_retry_after(response[0].headers.get("Retry-After", ""), time.time())
        return Answer(response[0].status_code, said, content, late, retry_after)

    def send(self, request: requests.PreparedRequest, timeout: float) -> requests.Response:
        """Send, and once more on a new connection where the peer closed the kept one at this very moment."""
        try:
            return self.adapter.send(request, stream=True, timeout=timeout, verify=self.verify)
        except requests.ConnectionError:
            if not self.kept:
                raise
            self.adapter.close()
            return self.adapter.send(request, stream=True, timeout=timeout, verify=self.verify)


@functools.lru_cache(maxsize=4)
def prepare(method: str, url: str, body: bytes, token: str) -> requests.PreparedRequest:
    """Return the request ready to send; kept, since every heartbeat is the same."""
    headers = {"User-Agent": "sidecar", "Accept-Encoding": "identity"}
    if body:
        headers["Content-Type"] = "application/json"
    if token:
        headers["X-Registry-Token"] = token
    return requests.Request(method, url, headers, data=body or None).prepare()


def reason(error: BaseException, timeout: float) -> str:
    """Say in a few words why an exchange failed: the innermost cause, without the library's wrapping."""
    while True:
        inner = (error.__cause__, getattr(error, "reason", None), *error.args)
        causes = [cause for cause in inner if isinstance(cause, BaseException)]
        if not causes:
            break
        error = causes[0]
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:g} s"
    if isinstance(error, socket.gaierror):
        return plain(f"name look-up failed: {error.strerror}")
    if isinstance(error, http.client.RemoteDisconnected):
        return "connection closed without an answer"
    if hasattr(error, "verify_message"):  # ssl.SSLCertVerificationError
        return plain(f"certificate refused: {error.verify_message}")
    if isinstance(error, OSError) and error.strerror:
        return plain(error.strerror[0].lower() + error.strerror[1:])
    return plain(f"unusable answer: {type(error).__name__} {error}")


def describe_answer(response: requests.Response, content: bytes) -> str:
    """Say what a peer answered: the status and, where something is wrong, its message for people."""
    status = str(response.status_code)
    if 200 <= response.status_code < 300:
        return status
    if 300 <= response.status_code < 400 and "Location" in response.headers:
        return f"{status}, a redirect to {show_value(response.headers['Location'])}, which is not followed"
    text = content.decode("utf-8", "replace").strip()
    parsed = parse_json(content)
    if isinstance(parsed, dict):
        text = next((str(parsed[key]) for key in ("detail", "message", "error") if key in parsed), text)
    if not text or text.startswith("<"):  # an HTML error page has nothing to add
        return status
    return f"{status}: {plain(text)}"


def parse_json(body: bytes) -> Any:
    """Return what the JSON text holds; None where it is none, or was cut off at 64 KB."""
    try:
        return json.loads(body) if len(body) <= MAX_BODY else None
    except (ValueError, RecursionError):
        return None


# ---------------------------------------------------------------------------- what the registry's answers mean


def is_lost(answer: Answer) -> bool:
    """Tell whether a heartbeat's answer means that the record is gone.

    As documented 404; 410; and the deployed registry's 500 with "... not registered" (REGISTRY.md).
    """
    return answer.status in (404, 410) or (answer.status >= 500 and "not registered" in answer.said)


def is_refused(answer: Answer) -> bool:
    """Tell whether the token was refused: as documented 401; 403; and the deployed registry's 500."""
    wording = re.search("failed: 401:|[Ii]nvalid registry token", answer.said)
    return answer.status in (401, 403) or (answer.status >= 500 and wording is not None)


def health_metadata(body: bytes) -> dict[str, str]:
    """Return `version` and `status` of a JSON health body as strings; the registry takes nothing else."""
    health = parse_json(body)
    if not isinstance(health, dict):
        return {}
    found = {key: health[key] for key in ("version", "status") if health.get(key) is not None}
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in found.items()}
    # A lone surrogate is no text that the registry could store: it would refuse the record for ever.
    return {key: text[:MAX_METADATA].encode("utf-8", "replace").decode() for key, text in texts.items()}


# ---------------------------------------------------------------------------- the agent

State = Callable[[], Any]  # blocks, and returns the state that follows


class Agent:
    """Keeps one service registered. Clock (monotonic seconds), sleep and randomness are passed in."""

    def __init__(
        self,
        settings: Settings,
        interrupt: Interrupt,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.settings, self.interrupt = settings, interrupt
        self.clock, self.sleep, self.uniform = clock, sleep, uniform
        self.service = Peer(settings.endpoint, settings.service_health_timeout, interrupt)
        verify = settings.registry_ca_file or True
        self.registry = Peer(settings.registry_url, settings.registry_timeout, interrupt, verify)
        self.token = settings.registry_token
        self.interval = settings.heartbeat_interval
        self.phase = clock() + uniform(0, self.interval)  # a fleet started together does not beat together
        self.offset = int(uniform(0, CONFIRM_EVERY))  # nor does it look for its records together
        self.pace = min(1.0, self.interval / 30)  # shortens the waits inside a short slot, so that a retry fits
        self.was_healthy = False  # whether the service has ever been
        self.problem = ""  # what the last failed probe brought
        self.metadata = settings.service_metadata  # and what the last good probe told
        self.record: dict[str, str] | None = None  # metadata of the last registration sent
        self.accepted_at = -math.inf  # when the registry last took a registration or a heartbeat
        self.beats = 0
        self.failures = 0  # failed exchanges with the registry, in a row
        self.failing_since = 0.0
        self.said_at = -math.inf
        self.file_fails = False
        self.status = ("starting", "starting for {age}", clock())  # for the heartbeat file
        self.promised_until, self.promised_status = -math.inf, self.status  # what stands in it

    def run(self) -> int:
        """Go from state to state until a signal comes; return the exit code."""
        state: State = self.waiting
        try:
            while True:
                state = state()
        except Stop:
            return self.stop()

    # -- the states

    def waiting(self) -> State:
        """Wait until the service is healthy, or INITIAL_WAIT_TIMEOUT has passed: then register all the same."""
        since, patience = self.clock(), self.settings.initial_wait_timeout
        self.status = ("waiting", "waiting for the service for {age}", since)
        while not self.probe():
            self.status = ("waiting", f"waiting for the service for {{age}}: {self.problem}", since)
            left = since + patience - self.clock()
            if left <= 0:
                log.warning("Service not healthy after %g s: %s; registering it all the same", patience, self.problem)
                return self.registering
            self.log_now_and_then("Waiting for the service at %s: %s", self.settings.endpoint, self.problem)
            self.pause(min(left, self.probe_wait()))
        log.info("Service is READY")
        return self.registering

    def registering(self) -> State:
        """Repeat POST /register, with backoff, until a 2xx."""
        self.status = ("registering", "registering for {age}", self.clock())
        for attempt in itertools.count(1):
            answer = self.register()
            if answer.ok:
                self.accepted()
                name, endpoint = self.settings.service_name, self.settings.endpoint
                log.info("Service registered successfully: %s at %s %s", name, endpoint, plain(self.record))
                break
            self.pause(self.failed("Registration", "registering", answer, backoff(attempt, self.uniform)))
            if not self.was_healthy:
                self.probe()  # it is registered all the same; but perhaps it is healthy by now
            elif not self.is_healthy():
                return self.service_down
        return self.registered

    def registered(self) -> State:
        """Send a heartbeat in every slot while the service is healthy, and repeat a failed one inside the slot."""
        if not self.beats:
            log.info("Starting heartbeat loop: every %g s", self.interval)
        due, attempt = next_beat(self.phase, self.interval, self.clock()), 0
        while True:
            self.pause(due - self.clock())
            if not self.is_healthy():
                return self.service_down
            if self.metadata != self.record:
                log.info("Service has changed: %s", plain(self.metadata))
                return self.registering
            if attempt and self.left() <= 0:
                return self.registering  # by now the record may have expired: an upsert does both
            timeout = self.settings.registry_timeout
            if attempt:  # a retry takes a third of what is left, so that another one fits before the record expires
                timeout = min(timeout, max(self.left() / 3, self.pace * FIRST_WAIT))
            answer = self.ask("POST", "/heartbeat", {"service_name": self.settings.service_name}, timeout)
            if is_lost(answer):
                self.log_loss(answer.said)
                return self.registering
            if is_refused(answer):
                log.warning("Heartbeat refused: %s", self.explain(answer))
                return self.registering  # which reads the token again
            if answer.ok:
                self.accepted()
                self.beats += 1
                log.info("Heartbeat accepted")
                if (self.beats + self.offset) % CONFIRM_EVERY == 0 and not self.is_listed():
                    return self.registering
                due, attempt = next_beat(self.phase, self.interval, self.clock()), 0
            else:
                attempt += 1
                wait = min(self.pace * backoff(attempt, self.uniform), max(self.left(), 0.0))
                due = self.clock() + self.failed("Heartbeat", "registered", answer, wait)

    def service_down(self) -> State:
        """Send nothing, so that the registry's TTL takes the record away, until the service is healthy again."""
        self.said_at = since = self.clock()
        log.error("Service is DOWN: %s; no heartbeat until it is healthy again", self.problem)
        while True:
            self.status = ("service_down", f"service down for {{age}}: {self.problem}", since)
            self.pause(self.probe_wait())
            if self.probe():
                log.info("Service is READY again after %.0f s", self.clock() - since)
                return self.registering
            self.log_now_and_then("Service is DOWN for %.0f s: %s", self.clock() - since, self.problem)

    def stop(self) -> int:
        """Try once, shortly, to deregister; the exit code is 0 whatever comes of it."""
        self.interrupt.ignore_stop()
        log.info("Stopping")
        self.status = ("stopping", "stopping for {age}", self.clock())
        # Without a registration of its own there is nothing to take back: the record may be another replica's.
        if self.settings.deregister_on_exit and self.record is not None:
            answer = self.ask("DELETE", f"/deregister/{self.settings.service_name}", timeout=STOP_TIMEOUT)
            if answer.ok:
                log.info("Service deregistered")
            else:
                log.warning("Deregistration failed: %s; the record expires by itself", self.explain(answer))
        return 0

    # -- the service

    def probe(self) -> bool:
        """Look once whether the service is healthy; note what it tells of itself, or what is wrong."""
        if self.settings.service_health_check == "http":
            self.promise(self.settings.service_health_timeout)
            answer = self.service.exchange("GET", self.settings.service_health_endpoint)
            healthy = answer.ok and not answer.late
            if healthy:
                self.metadata = health_metadata(answer.body) | self.settings.service_metadata
            else:
                self.problem = answer.said
        else:
            healthy = self.settings.service_health_check == "none" or self.connects()
        self.was_healthy = self.was_healthy or healthy
        return healthy

    def connects(self) -> bool:
        """Tell whether the service's port takes a TCP connection."""
        address = (self.settings.service_host, self.settings.service_port)
        timeout = self.settings.service_health_timeout
        self.promise(timeout)
        try:
            self.interrupt.bounded(timeout, lambda: socket.create_connection(address, timeout).close())
        except (Late, OSError) as error:
            self.problem = reason(TimeoutError() if isinstance(error, Late) else error, timeout)
            return False
        return True

    def is_healthy(self) -> bool:
        """Probe until the service is healthy, or SERVICE_HEALTH_RETRIES probes in a row have failed."""
        retries = self.settings.service_health_retries
        for attempt in range(1, retries + 1):
            if self.probe():
                return True
            log.warning("Health probe %d of %d failed: %s", attempt, retries, self.problem)
            if attempt < retries:
                self.pause(self.pace * self.uniform(1.0, 2.0))
        return False

    def probe_wait(self) -> float:
        """Return the seconds until the next probe of a service that is not healthy."""
        return min(self.uniform(1.0, 2.0), self.interval)

    # -- the registry

    def left(self) -> float:
        """Return the seconds until the record expires: two intervals are one TTL."""
        return self.accepted_at + 2 * self.interval - self.clock()

    def ask(self, method: str, path: str, payload: object = None, timeout: float = 0) -> Answer:
        """Exchange one request with the registry; it alone gets the token. Timeout 0 means REGISTRY_TIMEOUT."""
        timeout = timeout or self.settings.registry_timeout
        self.promise(timeout)
        return self.registry.exchange(method, path, payload, self.token, timeout)

    def register(self) -> Answer:
        """Send the whole record once, with the token that is in the token file by now."""
        settings = self.settings
        if settings.registry_token_file:
            try:
                self.token = read_token(settings.registry_token_file)
                keep_secret(self.token)
            except (OSError, ValueError) as error:
                log.warning("REGISTRY_TOKEN_FILE cannot be read, the token stays as it was: %s", plain(error))
        self.record = self.metadata
        record = {
            "service_name": settings.service_name,
            "endpoint": settings.endpoint,
            "health_endpoint": settings.service_health_endpoint,
            "metadata": self.record,
        }
        return self.ask("POST", "/register", record)

    def is_listed(self) -> bool:
        """Look for the record: while the registry's store is down, a heartbeat's 200 proves nothing.

        By GET /services and never by GET /services/{name}, whose errors cut the registry off (REGISTRY.md).
        """
        answer = self.ask("GET", "/services")
        names = parse_json(answer.body) if answer.ok else None
        if not isinstance(names, list):
            log.warning("GET /services does not tell whether the record is there: %s; registering again", answer.said)
        elif self.settings.service_name not in names:
            self.log_loss("heartbeats are accepted, but GET /services does not list it")
        else:
            return True
        return False

    def accepted(self) -> None:
        """Note that the registry took a registration or a heartbeat, and with it the end of an outage."""
        now = self.accepted_at = self.clock()
        if self.failures:
            log.info("Registry is back after %.0f s (failures: %d)", now - self.failing_since, self.failures)
        self.failures = 0
        self.status = ("registered", "registered, last heartbeat {age} ago", now)

    def failed(self, what: str, state: str, answer: Answer, wait: float) -> float:
        """Note and log a failed exchange; return the seconds to wait, more where the registry asks for more."""
        if not self.failures:
            self.failing_since = self.clock()
        self.failures += 1
        wait += answer.retry_after
        log.warning("%s failed (attempt %d): %s; next in %.1f s", what, self.failures, self.explain(answer), wait)
        fault = f"registry {'failing' if answer.status else 'unreachable'} for {{age}} (attempt {self.failures})"
        self.status = (state, f"{fault}: {answer.said}", self.failing_since)
        return wait

    def log_loss(self, how: str) -> None:
        log.warning("Service not found (404): the registry has lost the record (%s); registering again", how)

    def explain(self, answer: Answer) -> str:
        """Say what went wrong and, where that is known, which variable to set."""
        where = f"registry at {show_value(self.settings.registry_url)}"
        if is_refused(answer):
            name = self.settings.registry_token_name
            variables = name if self.token else f"{name} or REGISTRY_TOKEN_FILE"
            return f"{where} refuses the token ({answer.said}): set {variables} to the registry's token"
        if 300 <= answer.status < 400:
            return f"{where} answered {answer.said}: set REGISTRY_URL to where the registry is"
        if answer.status:
            return f"{where} answered {answer.said}"
        published = self.accepted_at == -math.inf and urlsplit(self.settings.registry_url).port == 8888
        hint = " (8888 is its port on the host; inside its Docker network it is 80: check REGISTRY_URL)"
        return f"{where}: {answer.said}" + (hint if published else "")

    # -- waiting, and the sign of life

    def pause(self, seconds: float) -> None:
        """Sleep. Raises Stop at a signal."""
        seconds = max(seconds, 0.0)
        self.promise(seconds + self.settings.service_health_timeout + self.settings.registry_timeout)
        self.interrupt.bounded(0, lambda: self.sleep(seconds))

    def promise(self, seconds: float) -> None:
        """Promise in the heartbeat file the next write within `seconds` and some grace; often it stands there."""
        settings, until = self.settings, self.clock() + seconds + GRACE
        ready_until = self.accepted_at + 2 * self.interval
        if until <= self.promised_until and self.status == self.promised_status:
            return
        self.promised_until, self.promised_status = until, self.status
        state, sentence, since = self.status
        try:
            healthcheck.write(settings.heartbeat_file, until, ready_until, since, state, sentence)
            self.file_fails = False
        except OSError as error:
            if not self.file_fails:
                path = show_value(settings.heartbeat_file)
                log.warning("HEARTBEAT_FILE=%s cannot be written: %s", path, plain(error))
            self.file_fails = True

    def log_now_and_then(self, message: str, *words: object) -> None:
        """Log about a lasting fault, at most once in LOG_AGAIN seconds."""
        if self.clock() - self.said_at >= LOG_AGAIN:
            self.said_at = self.clock()
            log.warning(message, *words)


def main() -> int:
    """Read the settings and run the agent. Returns the exit code: 0 stopped, 1 a bug, 2 bad settings."""
    interrupt = Interrupt()
    interrupt.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
    set_up_log("INFO", os.environ.get("LOG_FORMAT", "").strip().lower() == "json")
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        for problem in error.args:
            log.error("Bad setting: %s", problem)
        return 2
    set_up_log(settings.log_level, settings.log_format == "json")
    for secret in filter(None, (settings.registry_token, *url_secrets(settings.registry_url))):
        keep_secret(secret)
    tame_libraries()
    log.info("Registry sidecar starts: %s", settings.describe())
    for line in doubts(settings):
        log.warning("%s", line)
    try:
        return Agent(settings, interrupt).run()
    except Exception:
        log.exception("A bug in the sidecar; exit 1, so that the restart policy brings it back")
        return 1


if __name__ == "__main__":
    exit_code = main()
    try:
        sys.stdout.flush()
    except OSError:  # nobody reads the log any more; Python would try again, and make the exit code 120
        sys.stdout = None
    raise SystemExit(exit_code)
