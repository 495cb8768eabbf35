#!/usr/bin/env python3
"""Registry sidecar: keeps the service beside it registered in a service registry.

One loop; each state is a method of `Agent` that blocks, and returns the state that follows:

    waiting -> registering -> registered <-> service_down
                    ^             |
                    +-- the record is lost, the registry unreachable

SIGTERM or SIGINT in any state leads to `stop`: deregister, drain, exit 0. `--check` only looks.

Nothing waits without a bound, and each bound stands where the waiting is done: `Signals` is the
only place that waits, and every byte from a peer passes through a `PatientSocket`. No signal
handler raises into a library.

From top to bottom, each part knowing only those above it: settings, rules, the log, waiting, an
exchange, the registry, the service, the sign of life, the agent, the look before it, main.
"""

import signal

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}

if __name__ == "__main__":
    # The imports below are slow, and PID 1 never gets a signal that it has no handler for, unless
    # the signal is blocked until there is one.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)

import base64
import contextlib
import email.utils
import errno
import functools
import http.client
import itertools
import json
import logging
import math
import os
import random
import re
import select
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

try:
    import ssl
except ImportError:  # the default image is built without TLS
    ssl = None  # type: ignore[assignment]

with warnings.catch_warnings():
    # requests remarks that the image has no charset_normalizer.
    warnings.simplefilter("ignore")
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
    from urllib3.connection import HTTPConnection

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # `python -I` leaves it out
import healthcheck

# ------------------------------------------------------------------------------------- settings

VERSION = "1.0.0"  # the Dockerfile's is held to it
REGISTRY_TTL = 60.0  # seconds without a heartbeat after which the registry drops a record
LONGEST_DURATION = 86400.0  # seconds
GRACE_PERIOD = 10.0  # seconds from SIGTERM to SIGKILL, by default, of Docker and Compose
STOP_TIMEOUT = 1.5  # seconds for the last exchange; the whole stop has 3, and DRAIN_SECONDS
MAX_METADATA = 256  # characters of a metadata value
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
NAME = "(?!index$)[A-Za-z0-9][A-Za-z0-9._-]{0,127}", (
    "the name to register: lowercase letters, digits, _ and -, not `index`, the registry's own"
)
FRAMING = "Connection|Content-Length|Transfer-Encoding"  # the agent's own
HEADER = rf"(?!(?i:{FRAMING}):)([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t -~]*)"
URL_FIX = "http://HOST:PORT of the registry, such as http://vertice-register-lb:80"
TOKEN = "[!-~]{0,4095}", "the registry's token: printable ASCII without blanks"
TOKEN_VARIABLES = ("REGISTRY_TOKEN", "VERTICE_REGISTRY_TOKEN", "REGISTRY_AUTH_TOKEN")
CONSUL = {"consul": "http", "consul-tls": "https"}  # schemes of REGISTRY_URL, how it is reached
CONSUL_KEY, CONSUL_FIX = "(?!consul-)[A-Za-z0-9_-]{1,128}", (
    "for Consul, set it to at most 64 pairs with values of up to 512 bytes, and keys of letters,"
    " digits, _ and - that do not begin with consul-"
)
RECORD_ID = "([A-Za-z0-9][A-Za-z0-9._:-]{0,254})?", "the record's ID: letters, digits, . _ : and -"


class SettingsError(ValueError):
    """Settings that the agent cannot work with; `args` has (name, text, what to do) for each."""


def is_host(text: str) -> bool:
    """Tell whether `text` is a name, an IPv4 address, or an IPv6 address without brackets."""
    if ":" in text:
        try:
            return bool(socket.inet_pton(socket.AF_INET6, text))
        except (OSError, ValueError):  # ValueError: a character that is no ASCII, a NUL
            return False
    labels = text.removesuffix(".").split(".")
    sound = all(re.fullmatch("[A-Za-z0-9_-]{1,63}", label) for label in labels)
    return len(text) <= 253 and sound


def is_quoted(text: str) -> bool:
    """Tell whether `text` stands in quotes, as `docker run --env-file` passes them on."""
    return len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]


def read_text(path: str) -> str:
    """Return the text of a short file. Raises OSError, or ValueError where it is no plain text."""
    content = healthcheck.read(path)
    if len(content) >= healthcheck.LONGEST_LINE:  # no more of a file is read
        raise ValueError("it is longer than 4 KB")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:2]:
        raise ValueError("the file is UTF-16; save it as plain text")
    return content.removeprefix(b"\xef\xbb\xbf").decode("ascii", "replace").strip()


def read_token(path: str) -> str:
    """Return the token in the file. Raises OSError, or ValueError where it holds none."""
    token = read_text(path)
    if not re.fullmatch("[!-~]+", token):
        raise ValueError("it must hold one token, printable ASCII without blanks")
    return token


def read_headers(path: str) -> dict[str, str]:
    """Return the headers in the file. Raises OSError, or ValueError where a line is none."""
    headers: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        header = re.fullmatch(HEADER, line.strip())
        if header and header[1].title() not in headers:
            headers[header[1].title()] = header[2]
        elif line.strip() or number == 1:
            words = f"in printable ASCII, each name once, no {FRAMING.replace('|', ', ')}"
            raise ValueError(f"line {number} must be `Name: value` {words}")
    return headers


def load_authorities(path: str) -> Any:
    """Return a TLS context that trusts these, if there is TLS. Raises OSError (ssl.SSLError)."""
    return None if ssl is None else ssl.create_default_context(cafile=path)


def is_consul(url: str) -> bool:
    """Tell whether the registry at this URL is Consul."""
    return url.partition("://")[0].lower() in CONSUL


def web_url(url: str) -> str:
    """Return a registry's URL as HTTP has it: consul://HOST is http://HOST:8500."""
    if not is_consul(url):
        return url
    scheme, _, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    port = "" if re.search(":[0-9]+$", place) else ":8500"
    return f"{CONSUL[scheme.lower()]}://{place.removesuffix(':')}{port}{slash}{path}"


def consul_meta(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what Consul takes of it, the first pairs where there are too many."""
    keys = [key for key, value in metadata.items() if len(value.encode()) <= 512]
    return {key: metadata[key] for key in [k for k in keys if re.fullmatch(CONSUL_KEY, k)][:64]}


# Parsers: each takes a setting's text and returns its value, or raises ValueError(what to do).


def parse_choice(choices: tuple[str, ...], text: str) -> str:
    for choice in choices:
        if text.lower() == choice.lower():
            return choice
    raise ValueError(f"set it to one of {', '.join(choices)}")


def parse_truth(text: str) -> bool:
    true, false = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
    return parse_choice((*true, *false), text) in true


def parse_number(kind: type[int | float], lowest: float, highest: float, text: str) -> float:
    pattern = "[0-9]{1,9}" if kind is int else r"[0-9]{1,9}\.?[0-9]{0,9}|\.[0-9]{1,9}"
    if re.fullmatch(pattern, text) and lowest <= kind(text) <= highest:
        return kind(text)
    words = "a whole number" if kind is int else "seconds"
    raise ValueError(f"set it to {words} from {lowest:g} to {highest:g}")


def parse_pattern(pattern: str, fix: str, text: str) -> str:
    if re.fullmatch(pattern, text):
        return text
    raise ValueError(f"set it to {fix}")


def parse_host(text: str) -> str:
    host = re.sub(r"^\[(.*)\]$", r"\1", text)
    if is_host(host):
        return host
    raise ValueError("set it to the service's host name or address alone, such as vertice-osint")


def parse_scheme(text: str) -> str:
    scheme = parse_choice(("http", "https"), text)
    if scheme == "https" and ssl is None:
        raise ValueError("this image has no TLS; build it with --build-arg TLS=1, or use http://")
    return scheme


def parse_url(text: str, odd: str = r"\\?#", fix: str = URL_FIX) -> str:
    try:
        parts = urlsplit(text)
        sound = parts.scheme in ("http", "https") and is_host(parts.hostname or "")
        sound = sound and parts.port != 0 and not re.search(rf"[^!-~]|[{odd}]", text)
        requests.Request("GET", text).prepare()  # it takes fewer brackets than urlsplit
    except ValueError:
        sound = False
    if not sound:
        raise ValueError(f"set it to {fix}")
    parse_scheme(parts.scheme)
    return text.rstrip("/")


def parse_registry(text: str) -> str:
    parse_url(web_url(text))
    return text.rstrip("/")


def parse_health(text: str) -> str:
    if not re.fullmatch('/(?!/)[!"$-~]*', text):
        fix = "a path, such as /health, or a whole URL, such as http://vertice-osint:9000/health"
        parse_url(text, r"\\#", fix)
    return text


def parse_pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in filter(str.strip, text.split(",")):
        key, equals, value = (part.strip() for part in item.partition("="))
        sound = key and equals and key not in pairs
        if not sound or len(item) > MAX_METADATA or not item.isprintable():
            raise ValueError(
                f"set it to k=v,k=v with each key once, at most {MAX_METADATA} characters a pair"
            )
        pairs[key] = value
    return pairs


def parse_file(load: Callable[[str], object], what: str, text: str) -> str:
    try:
        if text:
            load(text)
        return text
    except (OSError, ValueError) as error:
        raise ValueError(f"set it to a readable file {what} ({error})") from error


def parse_heartbeat_file(text: str) -> str:
    if os.path.exists(text) and not os.path.isfile(text) and not os.path.isdir(text):
        raise ValueError("set it to a path for a file of its own, such as /tmp/heartbeat")
    return text


def setting(default: str, parse: Callable[..., Any], *bounds: object) -> Any:
    """Return what a setting is where nothing is set, as text, and its parser."""
    return default, functools.partial(parse, *bounds)


class Settings(NamedTuple):
    """All that the environment says, validated. Durations are in seconds."""

    service_name: str = setting("", parse_pattern, *NAME)
    service_host: str = setting("", parse_host)
    service_port: int = setting("8080", parse_number, int, 1, 65535)
    service_scheme: str = setting("http", parse_scheme)
    service_ca_file: str = setting("", parse_file, load_authorities, "of CA certificates")
    service_tls_verify: bool = setting("true", parse_truth)
    service_health_check: str = setting("http", parse_choice, ("http", "tcp", "none"))
    service_health_endpoint: str = setting("/health", parse_health)
    service_health_headers_file: str = setting("", parse_file, read_headers, "of headers")
    service_health_timeout: float = setting("5", parse_number, float, 0.01, LONGEST_DURATION)
    service_health_retries: int = setting("3", parse_number, int, 1, 100)
    service_metadata: Mapping[str, str] = setting("", parse_pairs)
    service_id: str = setting("", parse_pattern, *RECORD_ID)
    registry_url: str = setting("http://vertice-register-lb:8888", parse_registry)
    registry_timeout: float = setting("10", parse_number, float, 0.01, LONGEST_DURATION)
    registry_token: str = setting("", parse_pattern, *TOKEN)
    vertice_registry_token: str = setting("", parse_pattern, *TOKEN)
    registry_auth_token: str = setting("", parse_pattern, *TOKEN)
    registry_token_file: str = setting("", parse_file, read_token, "that holds the token")
    registry_ca_file: str = setting("", parse_file, load_authorities, "of CA certificates")
    heartbeat_interval: float = setting("30", parse_number, float, 0.01, LONGEST_DURATION)
    initial_wait_timeout: float = setting("60", parse_number, float, 0, LONGEST_DURATION)
    deregister_on_exit: bool = setting("true", parse_truth)
    drain_seconds: float = setting("0", parse_number, float, 0, LONGEST_DURATION)
    heartbeat_file: str = setting(healthcheck.DEFAULT_PATH, parse_heartbeat_file)
    log_level: str = setting("INFO", parse_choice, LOG_LEVELS)
    log_format: str = setting("text", parse_choice, ("text", "json"))

    @property
    def endpoint(self) -> str:
        """The service's base URL, as it stands in the record."""
        host = f"[{self.service_host}]" if ":" in self.service_host else self.service_host
        return f"{self.service_scheme}://{host}:{self.service_port}"

    @property
    def health_url(self) -> str:
        """Where the service is asked how it is."""
        where = self.service_health_endpoint
        return self.endpoint + where if where.startswith("/") else where

    @property
    def health_endpoint(self) -> str:
        """What the record shows of that: everybody may read it, so no credentials."""
        return re.sub("^([a-zA-Z]+://)[^/?]*@", r"\1", self.service_health_endpoint)

    @property
    def token_name(self) -> str:
        """The variable that the token comes from, or would come from."""
        names = ("REGISTRY_TOKEN_FILE", *TOKEN_VARIABLES)
        return next((name for name in names if getattr(self, name.lower())), "REGISTRY_TOKEN")

    @property
    def pace(self) -> float:
        """What shortens the waits inside a short slot, so that a retry fits in."""
        return min(1.0, self.heartbeat_interval / 30)

    def token(self) -> str:
        """Return the token by now. Raises OSError or ValueError where its file holds none."""
        if self.registry_token_file:
            return read_token(self.registry_token_file)
        return str(getattr(self, self.token_name.lower()))


def read_settings(variables: Mapping[str, str]) -> Settings:
    """Return the environment as settings, empty means unset. SettingsError names all problems."""
    values, problems = {}, []
    for field, (default, parse) in Settings._field_defaults.items():
        name = field.upper()
        text = variables.get(name, "").strip()
        try:
            values[field] = parse(text or default)
            if is_quoted(text) and name not in TOKEN_VARIABLES:
                raise ValueError("set it without the quotes")
        except ValueError as error:
            hint = "; the quotes are part of the value" if text.strip("'\"") != text else ""
            problems.append((name, text, f"{error}{hint}"))
    metadata = values.get("service_metadata", {})
    if is_consul(values.get("registry_url", "")) and consul_meta(metadata) != metadata:
        problems.append(("SERVICE_METADATA", variables["SERVICE_METADATA"], CONSUL_FIX))
    if problems:
        raise SettingsError(*problems)
    settings = Settings(**values)
    # An exchange that took more than half a slot would leave no room to repeat it inside the slot.
    half = settings.heartbeat_interval / 2
    return settings._replace(
        service_health_timeout=min(settings.service_health_timeout, half),
        registry_timeout=min(settings.registry_timeout, half),
    )


def doubts_of_time(settings: Settings) -> list[str]:
    """Return the doubts about durations."""
    lines = []
    interval, retries = settings.heartbeat_interval, settings.service_health_retries
    drain = settings.drain_seconds
    if 2 * interval > REGISTRY_TTL and not is_consul(settings.registry_url):
        lines.append(
            f"HEARTBEAT_INTERVAL={interval:g}: the registry forgets a service after"
            f" {REGISTRY_TTL:g} s, so one lost heartbeat costs the record;"
            f" set it to {REGISTRY_TTL / 2:g} or less"
        )
    longest = retries * (settings.service_health_timeout + 2 * settings.pace)
    if longest > 2 * interval:
        lines.append(
            f"SERVICE_HEALTH_RETRIES={retries}: that many probes can take {longest:.0f} s, and the"
            f" record expires after {2 * interval:g} s; set it lower, or SERVICE_HEALTH_TIMEOUT"
        )
    if drain and not settings.deregister_on_exit:
        lines.append(f"DRAIN_SECONDS={drain:g}: has no effect while DEREGISTER_ON_EXIT=false")
    elif drain + STOP_TIMEOUT > GRACE_PERIOD:
        lines.append(f"DRAIN_SECONDS={drain:g}: needs stop_grace_period: {drain + 3:g}s (else 10s)")
    return lines


def doubts(settings: Settings) -> list[str]:
    """Return a line for each setting that works, but hardly as its author meant."""
    lines = doubts_of_time(settings)
    if not re.fullmatch("[a-z0-9_-]{3,64}", settings.service_name):
        convention = "names are by convention 3 to 64 lowercase letters, digits, _ and -"
        lines.append(f"SERVICE_NAME={settings.service_name}: {convention}")
    scheme = urlsplit(settings.registry_url).scheme
    if settings.registry_ca_file and CONSUL.get(scheme, scheme) != "https":
        lines.append(f"REGISTRY_CA_FILE: has no effect while REGISTRY_URL begins with {scheme}://")
    secure = settings.service_health_check == "http" and settings.health_url[:6].lower() == "https:"
    if settings.service_ca_file and not secure:
        lines.append("SERVICE_CA_FILE: has no effect while no probe speaks https")
    if secure and not settings.service_tls_verify:
        lines.append("SERVICE_TLS_VERIFY=false: a probe believes whoever answers in its place")
    with contextlib.suppress(OSError, ValueError):
        if is_quoted(settings.token()):
            lines.append(f"{settings.token_name}: the token is in quotes, and they are part of it")
    return lines


# ---------------------------------------------------------------------------------------- rules

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds, the bounds of every backoff
LONGEST_RETRY_AFTER = 300.0  # seconds

Uniform = Callable[[float, float], float]  # random.uniform, or a test's


def backoff(attempt: int, uniform: Uniform) -> float:
    """Return the seconds to wait after failed attempt number `attempt`, counted from 1.

    The ceiling doubles from 2 s to 60 s. The wait is drawn from its upper half: so it grows, and
    agents that failed together do not come back together.
    """
    ceiling = min(2 * FIRST_WAIT * 2.0 ** min(attempt - 1, 16), LONGEST_WAIT)
    return uniform(ceiling / 2, ceiling)


def wait_in_slot(wait: float, left: float, shortest: float) -> float:
    """Return the seconds until a failed heartbeat is repeated, while the record lives.

    Args: what backoff and Retry-After ask for, how long the record lives without a heartbeat, the
    shortest wait. The record comes first: a wait takes half of what it has left, and no more.
    """
    return max(min(wait, left / 2), shortest)


def next_beat(phase: float, interval: float, now: float) -> float:
    """Return the first moment after `now` on the grid `phase + n * interval`: it never drifts."""
    return phase + (math.floor((now - phase) / interval) + 1) * interval


def parse_retry_after(value: str, wall_clock: float) -> float:
    """Return the seconds that a Retry-After header asks for, 0 to 300, and 0 for nonsense.

    It holds seconds or a date (RFC 9110, section 10.2.3), compared with `wall_clock` in Unix time.
    """
    try:
        date = None if value.isdecimal() else email.utils.parsedate_to_datetime(value)
        delay = float(value) if date is None else date.timestamp() - wall_clock
    except (ValueError, TypeError, OverflowError, OSError):
        return 0.0
    return min(max(delay, 0.0), LONGEST_RETRY_AFTER)


# -------------------------------------------------------------------------------------- the log

MAX_SAID = 200  # characters of a peer's words in the log
LOG_AGAIN = 30.0  # seconds between repeated lines about one lasting fault

log = logging.getLogger("sidecar")
# Kept out of whatever a peer says, since it may send the token back.
secrets: dict[str, re.Pattern[str]] = {}


def keep_secret(*new: str) -> None:
    """Keep these out of the log from now on, also escaped as in JSON or a URL."""
    for secret in filter(None, new):
        # How many backslashes stand before a character depends on how often it was escaped; their
        # number is bounded, or the search would take too long.
        characters = [rf"(?:{re.escape(c)}|%{ord(c):02x})" for c in secret.replace("\\", "")]
        pattern = "".join(rf"(?:\\|%5c){{0,40}}{character}" for character in characters)
        secrets[secret] = re.compile(pattern or re.escape(secret), re.IGNORECASE)


def url_secrets(url: str) -> list[str]:
    """Return what stands in a URL's credentials, also in the form in which it is sent."""
    parts = urlsplit(url)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not user and not password:
        return []
    basic = base64.b64encode(f"{user}:{password}".encode("latin-1")).decode()  # as requests does
    # Without a password, the user is a key.
    return [basic, password, parts.password or ""] if password else [basic, user]


def header_secrets(value: str) -> list[str]:
    """Return a header's value, what follows a scheme in it, and a password in that."""
    scheme, _, sent = value.partition(" ")
    clear = b""
    with contextlib.suppress(ValueError):
        clear = base64.b64decode(sent) if scheme.lower() == "basic" else b""
    return [value, sent.strip(), clear.decode("utf-8", "replace").partition(":")[2]]


def escape(text: str) -> str:
    """Return `text` on one line, what is not printable written as in Python."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say_plain(words: object) -> str:
    """Make a peer's words fit for one line of a log: escaped, no secret, 200 characters."""
    text = str(words)
    for secret in sorted(secrets, key=len, reverse=True):
        text = secrets[secret].sub("***", text)
    text = escape(text[: MAX_SAID + 1])
    return text if len(text) <= MAX_SAID else text[: MAX_SAID - 3] + "..."


def say_value(value: object) -> str:
    """Show a setting's value on one line; credentials and the query of a URL stay hidden."""
    text = str(value)
    # What looks like a query may be a password with a question mark.
    text = re.sub(r"^([^:]*://)?[^?]*\?.*@.*", r"\1***", text, flags=re.DOTALL)
    text = re.sub(r"^([^:]*://)?.*@", r"\1***@", text, flags=re.DOTALL)
    text = say_plain(re.sub(r"\?.*", "?***", text, flags=re.DOTALL))
    return repr(text) if " " in text or not text else text


def say_problem(name: str, text: str, fix: str) -> str:
    """Say which setting is wrong, its value, and what to do."""
    if not text:
        return f"{name} is not set: {escape(fix)}"
    return f"{name}={'***' if name in TOKEN_VARIABLES else say_value(text)}: {escape(fix)}"


def say_settings(settings: Settings) -> str:
    """Return the settings in force on one line, without secrets."""
    shown = {name.upper(): value for name, value in settings._asdict().items() if value != ""}
    shown |= dict.fromkeys(shown.keys() & set(TOKEN_VARIABLES), "***")
    return " ".join(f"{name}={say_value(value)}" for name, value in shown.items())


def say_seconds(duration: float) -> str:
    """Say a duration with two digits behind the point at the most."""
    return f"{round(duration, 2):g} s"


class Log(logging.Handler):
    """Writes lines to stdout while somebody reads there, and counts the others.

    It never waits. The file stays as it is, without O_NONBLOCK, since other processes may share
    it; but a pipe that poll calls writable takes PIPE_BUF bytes at once (pipe(7)). A terminal may
    take fewer, so that is opened anew.
    """

    def __init__(self) -> None:
        super().__init__()
        self.as_json = self.plain = False
        self.file = 1
        if os.isatty(1):
            with contextlib.suppress(OSError):
                self.file = os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        self.poller = select.poll()
        self.poller.register(self.file, select.POLLOUT)
        self.unwritten = b""  # the rest of a line that found no room
        self.dropped, self.told = 0, 0  # lines, and how many of them the rest tells of

    def set_up(self, level: str, as_json: bool) -> None:
        """Take over all lines but those of libraries: urllib3's repeat what peers sent."""
        warnings.simplefilter("ignore")
        self.as_json = as_json
        logging.raiseExceptions = False
        logging.getLogger().handlers[:] = [logging.NullHandler()]
        log.handlers[:] = [self]
        log.propagate = False
        log.setLevel(level)

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, of text or of JSON; only a bug's traceback takes more."""
        if self.plain and not record.exc_info:
            return record.getMessage() + "\n"
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        line = {"time": when, "level": record.levelname, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = "\n" + "".join(traceback.format_exception(record.exc_info[1]))
        return (json.dumps(line) if self.as_json else " ".join(line.values())) + "\n"

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        if self.unwritten:
            self.dropped += 1
            return
        text = self.format(record)
        if self.dropped:
            words = f"{self.dropped} lines of the log were dropped because nobody read them"
            loss = log.makeRecord(log.name, logging.WARNING, "", 0, words, (), None)
            text = self.format(loss) + text
        self.told, self.dropped = self.dropped, 0
        self.unwritten = text.encode("utf-8", "backslashreplace")
        self.flush()

    def flush(self) -> None:
        """Write as much as there is room for."""
        try:
            while self.unwritten and self.poller.poll(0):
                written = os.write(self.file, self.unwritten[: select.PIPE_BUF])
                self.unwritten = self.unwritten[written:]
        except BlockingIOError:
            return
        except OSError:  # a full disk, or a reader that is gone
            self.unwritten = b""
            self.dropped += self.told + 1


# -------------------------------------------------------------------------------------- waiting

MAX_BODY = 64 * 1024  # bytes kept of any body
MAX_READ = 2 * MAX_BODY  # bytes read of any exchange: status, headers, framing and body together
# A connection is renewed before it is an hour old, so that a name that has moved is followed.
LONGEST_CONNECTION = 3600.0 - 30.0  # seconds
SLICE = 1.0  # seconds of sleep in one go

# What TLS waits for may be the other direction.
WANT_READ = () if ssl is None else (ssl.SSLWantReadError,)
WANT_WRITE = () if ssl is None else (ssl.SSLWantWriteError,)


class Stop(BaseException):
    """SIGTERM or SIGINT has come. Not an Exception, so that no library swallows it."""


class LateError(TimeoutError):
    """An exchange has used up its deadline."""


class Signals:
    """Waits: for a file, the end of a deadline, a pause; and SIGTERM or SIGINT ends any of them.

    The handler notes the signal. Python tells the wake-up descriptor of it (signal.set_wakeup_fd)
    even while the wait is about to begin, so none is missed and no time-out is needed to look. The
    handler raises only during a pause, where nothing is half done.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self.sleep = sleep
        self.stopping = False
        self.asleep = False
        self.wakeup, self.alarm = socket.socketpair()
        self.wakeup.setblocking(False)
        self.alarm.setblocking(False)
        self.poller = select.poll()
        self.poller.register(self.wakeup, select.POLLIN)

    def install(self) -> None:
        """Take over the signals, and what came of them while Python was importing."""
        signal.set_wakeup_fd(self.alarm.fileno(), warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            signal.signal(number, self.note)
        # With SIGCHLD ignored, the kernel reaps what is left to PID 1. The others mean nothing.
        for name in ("SIGCHLD", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGUSR2"):
            signal.signal(signal.Signals[name], signal.SIG_IGN)
        with contextlib.suppress(ChildProcessError):  # of the process that this one was before
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def note(self, _number: int, _frame: object) -> None:
        """Handle a signal."""
        self.stopping = True
        if self.asleep:
            self.asleep = False
            raise Stop

    def ignore(self) -> None:
        """Until `heed`, SIGTERM and SIGINT change nothing: the agent exits anyway."""
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        with contextlib.suppress(BlockingIOError):
            self.wakeup.recv(4096)
        self.stopping = False

    def heed(self) -> None:
        """Take signals again, those too that have come since `ignore`."""
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def pause(self, duration: float) -> None:
        """Sleep so many seconds. Raises Stop.

        In slices: what comes after Python has looked for signals, and before the kernel sleeps,
        cuts no sleep short.
        """
        try:
            self.asleep = True
            while not self.stopping:
                self.sleep(min(duration, SLICE))
                duration -= SLICE
                if duration <= 0:
                    return
            raise Stop
        finally:
            self.asleep = False

    def wait(self, file: int, events: int, end: float) -> bool:
        """Tell whether the file is ready before `end` (monotonic seconds). Raises Stop."""
        self.poller.register(file, events)
        try:
            while not self.stopping:
                left = end - time.monotonic()
                if left <= 0:
                    return False
                if any(ready == file for ready, _ in self.poller.poll(math.ceil(left * 1000))):
                    return True
            raise Stop
        finally:
            self.poller.unregister(file)


class Wire:
    """The way to one host and port: look-up, connecting, and the bounds of what passes over it.

    Attributes: `duration` of the exchange under way, its `end` (monotonic seconds), the `budget` in
    bytes still to be read, when the last connection was `opened`, the `look_up` without an answer.
    """

    def __init__(self, host: str, port: int, signals: Signals) -> None:
        self.host, self.port, self.signals = host, port, signals
        self.duration = self.end = self.opened = 0.0
        self.budget = 0
        self.look_up: LookUp | None = None

    def begin(self, duration: float) -> None:
        """Give the next exchange so many seconds, and MAX_READ bytes."""
        self.duration, self.end, self.budget = duration, time.monotonic() + duration, MAX_READ

    def wait(self, file: int, events: int, end: float = math.inf) -> None:
        """Wait until the file is ready. Raises LateError at `end`, or that of all; and Stop."""
        if not self.signals.wait(file, events, min(end, self.end)):
            raise LateError(f"no answer within {say_seconds(self.duration)}")

    def open(self) -> "PatientSocket":
        """Connect to one address after the other, each with its share of the time that is left.

        Raises what came of the last one: an OSError, LateError among them.
        """
        addresses = self.addresses()
        for rest in range(len(addresses), 0, -1):
            now = time.monotonic()
            try:
                return self.connect(addresses[-rest], now + (self.end - now) / rest)
            except OSError as error:
                failure = error
        raise failure

    def connect(self, address: Any, end: float) -> "PatientSocket":
        """Connect to one of getaddrinfo's addresses until `end`. Raises OSError."""
        family, kind, protocol, _, place = address
        sock = PatientSocket(family, kind, protocol)
        try:
            sock.wire = self
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            problem = sock.connect_ex(place)
            if problem == errno.EINPROGRESS:
                self.wait(sock.fileno(), select.POLLOUT, end)
                problem = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not problem and sock.getsockname() == place:
                problem = errno.ECONNREFUSED  # nobody listens there, and it met itself
            if problem:
                raise OSError(problem, os.strerror(problem))
        except BaseException:
            sock.close()
            raise
        self.opened = time.monotonic()
        return sock

    def addresses(self) -> list[Any]:
        """Look the host up, or join the look-up under way: a dead DNS holds one thread, not many.

        Raises OSError, LateError among them. An answer that came when nobody waited serves nobody.
        """
        with contextlib.suppress(OSError):  # what is an address needs no look-up
            return socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
            )
        look_up = self.look_up
        if look_up is None or look_up.answer is not None:
            look_up = self.look_up = LookUp(self.host, self.port)
        self.wait(look_up.ended.fileno(), select.POLLIN)
        self.look_up = None
        look_up.ended.close()
        if isinstance(look_up.answer, Exception):
            raise look_up.answer
        return look_up.answer or []


class LookUp:
    """One name look-up, in a thread of its own since nothing ends a getaddrinfo.

    `answer` is None, then the addresses or the exception; `ended` is readable from then on.
    """

    def __init__(self, host: str, port: int) -> None:
        """Raises OSError where no thread is to be had."""
        self.host, self.port = host, port
        self.answer: list[Any] | Exception | None = None
        self.ended, self.end = socket.socketpair()
        try:
            threading.Thread(target=self.run, daemon=True).start()
        except RuntimeError as error:
            raise OSError(errno.EAGAIN, f"name look-up: {error}") from error

    def run(self) -> None:
        # Signals are for the main thread, which they wake from its sleep.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.answer = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except Exception as error:
            self.answer = error.with_traceback(None)  # which would hold the descriptors
        self.end.close()


class PatientSocket(socket.socket):
    """A socket that never blocks: its reads and writes wait as its wire does, within its bounds."""

    wire: Wire

    def settimeout(self, _value: float | None) -> None:
        """Stay non-blocking, whatever a library sets."""
        super().settimeout(0)

    def recv_into(self, *arguments: Any) -> int:
        """Receive. Raises LateError, Stop, and OSError where the peer has sent too much."""
        count: int = self.patiently(select.POLLIN, super().recv_into, *arguments)
        self.wire.budget -= count
        if self.wire.budget < 0:
            raise OSError(errno.EMSGSIZE, f"the answer is longer than {MAX_READ // 1024} KB")
        return count

    def sendall(self, data: Any, *arguments: Any) -> None:
        """Send all of it. Raises LateError, Stop."""
        view = memoryview(data).cast("B")
        while view:
            view = view[self.patiently(select.POLLOUT, super().send, view, *arguments) :]

    def patiently(self, events: int, call: Callable[..., Any], *arguments: Any) -> Any:
        """Repeat the call until it need not wait any more for what it usually waits for."""
        while True:
            try:
                return call(*arguments)
            except BlockingIOError:
                self.wire.wait(self.fileno(), events)
            except WANT_READ:
                self.wire.wait(self.fileno(), select.POLLIN)
            except WANT_WRITE:
                self.wire.wait(self.fileno(), select.POLLOUT)


if ssl is not None:

    class PatientTLSSocket(PatientSocket, ssl.SSLSocket):
        """The same inside TLS."""

        def do_handshake(self, block: bool = False) -> None:
            self.patiently(select.POLLIN, super().do_handshake, block)

    class PatientTLSContext(ssl.SSLContext):
        """Wraps a PatientSocket in TLS, verified as always."""

        sslsocket_class = PatientTLSSocket

        def wrap_socket(self, sock: Any, *arguments: Any, **options: Any) -> Any:
            options["do_handshake_on_connect"] = False
            wrapped: Any = super().wrap_socket(sock, *arguments, **options)
            wrapped.wire = sock.wire
            try:
                wrapped.do_handshake()
            except BaseException:
                wrapped.close()
                raise
            return wrapped


# ---------------------------------------------------------------------------------- an exchange


class Answer(NamedTuple):
    """What an exchange brought.

    Status 0: no answer came. `failure` says why none came, or why its body is not whole.
    """

    status: int = 0
    headers: Mapping[str, str] = {}
    body: bytes = b""
    failure: Exception | None = None

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    @property
    def late(self) -> bool:
        return isinstance(self.failure, LateError)

    @property
    def is_page(self) -> bool:
        """Tell whether it is made for a browser."""
        kind = self.headers.get("Content-Type", "").strip().lower()
        begins = self.body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
        return kind.startswith("text/html") or begins == b"<"

    @property
    def retry_after(self) -> float:
        return parse_retry_after(self.headers.get("Retry-After", ""), time.time())

    def json(self) -> Any:
        """Return what a JSON body holds; None where it is none, or not whole."""
        try:
            return None if self.failure or len(self.body) > MAX_BODY else json.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def message(self) -> str:
        """Return the peer's own words for people, as they came."""
        found = self.json()
        keys = ("detail", "message", "error") if isinstance(found, dict) else ()
        words = next((str(found[key]) for key in keys if key in found), None)
        return self.body.decode("utf-8", "replace").strip() if words is None else words

    def say(self) -> str:
        """Say what came, fit for the log: a status and, where something is wrong, why."""
        if not self.status:
            return say_failure(self.failure)
        said, location, message = str(self.status), self.headers.get("Location"), self.message()
        if 300 <= self.status < 400 and location:
            said += f", a redirect to {say_value(location)}, which is not followed"
        elif self.is_page:
            said += ", a web page" if self.ok else ""
        elif not self.ok and message:
            said += f": {say_plain(message)}"
        return said + (", but the body did not end in time" if self.late else "")


class FinalResponse(http.client.HTTPResponse):
    """The answer after any number of interim ones (RFC 9110, section 15.2)."""

    def _read_status(self) -> tuple[str, int, str]:
        while True:
            version, status, reason = super()._read_status()  # type: ignore[misc]
            if not 100 <= status < 200 or status == http.client.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)


class Peer(HTTPAdapter):
    """One HTTP server. Its connection is kept where that is wanted.

    Requests go through requests' transport adapter alone: what a Session adds to it (redirects,
    cookies, proxies and netrc from the environment) must not happen here.
    """

    def __init__(self, url: str, signals: Signals, keep: bool, ca_file: str | None) -> None:
        """Args: what paths follow; who waits; keep the connection; CA file (None: no check)."""
        super().__init__()
        parts = urlsplit(url)
        self.url, self.keep = url, keep
        self.kept = False  # whether the connection is open from the exchange before
        self.connection: HTTPConnection | None = None
        port = parts.port or (443 if parts.scheme == "https" else 80)
        self.wire = Wire(parts.hostname or "", port, signals)
        if parts.scheme == "https":
            context = PatientTLSContext(ssl.PROTOCOL_TLS_CLIENT)
            if ca_file is None:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.load_verify_locations(ca_file or requests.utils.DEFAULT_CA_BUNDLE_PATH)
            self.pool: Any = HTTPSConnectionPool(self.wire.host, port, ssl_context=context)
        else:
            self.pool = HTTPConnectionPool(self.wire.host, port)
        self.pool.ConnectionCls = functools.partial(self.new_connection, self.pool.ConnectionCls)

    def new_connection(self, kind: Callable[..., Any], **options: Any) -> Any:
        """Return a connection for the pool, on a PatientSocket."""
        connection = self.connection = kind(**options)
        connection.response_class = FinalResponse
        connection._new_conn = self.wire.open
        return connection

    def get_connection_with_tls_context(self, *_arguments: Any, **_options: Any) -> Any:
        """Return the pool, for HTTPAdapter.send."""
        return self.pool

    def cert_verify(self, *_arguments: Any) -> None:
        """Change nothing: the pool's context verifies."""

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self.connection:
            self.connection.close()
        self.kept = False

    def exchange(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout: float
    ) -> Answer:
        """Send one request and return the answer, within `timeout` seconds, whatever comes."""
        self.wire.begin(timeout)
        response, content, failure, reusable = None, b"", None, False
        try:
            if time.monotonic() - self.wire.opened > LONGEST_CONNECTION:
                self.close()
            request = prepare(method, self.url + path, tuple(headers.items()), body)
            response = self.send_again(request)
            content = response.raw.read(MAX_BODY + 1, decode_content=False)  # a bomb stays packed
            if len(content) <= MAX_BODY:
                response.raw.read(1)  # raises where the length has promised more
            is_open = self.connection is not None and self.connection.sock is not None
            reusable = is_open and self.keep and response.raw.closed and response.status_code >= 200
        except Exception as error:  # whatever a hostile answer makes the libraries raise
            failure = innermost(error)
        finally:
            if not reusable:
                self.close()
        self.kept = reusable
        if response is None:
            return Answer(failure=failure)
        return Answer(response.status_code, response.headers, content, failure)

    def send_again(self, request: requests.PreparedRequest) -> requests.Response:
        """Send, once more on a new connection where the peer has just closed the kept one."""
        try:
            return self.send(request, stream=True)
        except requests.ConnectionError:
            if not self.kept or self.wire.budget < MAX_READ:
                raise
            self.close()
            return self.send(request, stream=True)


@functools.lru_cache(maxsize=8)
def prepare(
    method: str, url: str, headers: tuple[tuple[str, str], ...], body: bytes
) -> requests.PreparedRequest:
    """Return the request ready to send; kept, since every heartbeat is the same."""
    base = {"User-Agent": "sidecar", "Accept-Encoding": "identity"}
    return requests.Request(method, url, base | dict(headers), data=body or None).prepare()


def innermost(error: Exception) -> Exception:
    """Return the cause of the libraries' exception, without their wrapping."""
    while True:
        inner = (error.__cause__, getattr(error, "reason", None), *error.args)
        cause = next((cause for cause in inner if isinstance(cause, Exception)), None)
        if cause is None:
            return error
        error = cause


def say_failure(error: Exception | None) -> str:
    """Say in a few words why an exchange failed."""
    if isinstance(error, LateError):
        return str(error)
    if isinstance(error, socket.gaierror):
        return say_plain(f"name look-up failed: {error.strerror}")
    if isinstance(error, http.client.RemoteDisconnected):
        return "connection closed without an answer"
    if ssl is not None and isinstance(error, ssl.SSLCertVerificationError):
        return say_plain(f"certificate refused: {error.verify_message}")
    if isinstance(error, OSError) and error.strerror:
        return say_plain(error.strerror[0].lower() + error.strerror[1:])
    return say_plain(f"unusable answer: {type(error).__name__} {error}")


# --------------------------------------------------------------------------------- the registry

ACCEPTED = "accepted"  # or, of the list: the name stands there
LOST = "lost"  # the registry has no record of the name
REFUSED = "refused"  # because of the token
FAILED = "failed"  # in any other way


class Reply(NamedTuple):
    """What the registry's answer to a request means: one of the four above."""

    meaning: str
    reached: bool  # whether an answer came at all
    said: str  # the answer, or why none came
    advice: str = ""  # the same for the log: where, and which setting may help
    retry_after: float = 0.0  # seconds


class Registry:
    """Vértice's registry: what is sent there, and what its answers mean.

    No other part knows a path, a header or a wording of it. The deployed one answers otherwise
    than it is documented: 500 for a name that it does not know, and 500 for a wrong token.
    """

    TOKEN_HEADER = "X-Registry-Token"
    REFUSAL = "failed: 401:|[Ii]nvalid registry token"
    truthful = False  # whether an accepted heartbeat proves that the record is there
    PORT_HINT = (
        " (8888 is its port on the host; inside its Docker network it is 80: check REGISTRY_URL)"
    )

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self.settings = settings
        self.peer = Peer(web_url(settings.registry_url), signals, True, settings.registry_ca_file)
        self.token = ""
        self.accepted = False  # whether it has ever taken a request

    def register(self, metadata: Mapping[str, str], timeout: float) -> Reply:
        """Put the record there, or renew it. Whatever it holds is replaced."""
        self.take_token()
        settings = self.settings
        record = {
            "service_name": settings.service_name,
            "endpoint": settings.endpoint,
            "health_endpoint": settings.health_endpoint,
            "metadata": metadata,
        }
        return self.judge(self.ask("POST", "/register", timeout, record))

    def heartbeat(self, timeout: float) -> Reply:
        """Keep the record for another TTL."""
        name = {"service_name": self.settings.service_name}
        answer = self.ask("POST", "/heartbeat", timeout, name)
        unknown = answer.status >= 500 and "not registered" in answer.message()
        if answer.status in (404, 410) or unknown:
            return Reply(LOST, True, answer.say())
        return self.judge(answer)

    def deregister(self, timeout: float) -> Reply:
        """Remove the record."""
        return self.judge(self.ask("DELETE", f"/deregister/{self.settings.service_name}", timeout))

    def look(self, timeout: float) -> Reply:
        """Look for the record, since a heartbeat is accepted whatever happens to the store.

        In the list: errors of GET /services/{name} make the balancer cut the registry off.
        """
        answer = self.ask("GET", "/services", timeout)
        names = answer.json() if answer.ok else None
        if not isinstance(names, list):
            odd = answer.ok and not answer.is_page  # such as a list of more than 64 KB
            why = answer.say() if odd else self.say_advice(answer, FAILED)
            advice = f"GET /services does not tell whether the record is there: {why}"
            return Reply(FAILED, answer.status > 0, answer.say(), advice)
        if self.settings.service_name not in names:
            said = "heartbeats are accepted, but GET /services does not list it"
            return Reply(LOST, True, said)
        return Reply(ACCEPTED, True, answer.say())

    def take_token(self) -> None:
        """Read the token, which may have changed in its file."""
        try:
            self.token = self.settings.token()
        except (OSError, ValueError) as error:
            name = self.settings.token_name
            log.warning("%s cannot be read, keeping the one before: %s", name, say_plain(error))
        keep_secret(self.token)

    def ask(self, method: str, path: str, timeout: float, content: object = None) -> Answer:
        """Exchange one request."""
        headers = {self.TOKEN_HEADER: self.token} if self.token else {}
        body = b""
        if content is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(content, separators=(",", ":")).encode()
        return self.peer.exchange(method, path, headers, body, timeout)

    def judge(self, answer: Answer) -> Reply:
        """Return what an answer means. A web page is no registry's, whatever its status."""
        if answer.ok and not answer.is_page:
            self.accepted = True
            return Reply(ACCEPTED, True, str(answer.status))
        meaning = FAILED
        if answer.status in (401, 403) or (
            answer.status >= 500 and re.search(self.REFUSAL, answer.message())
        ):
            meaning = REFUSED
        advice = self.say_advice(answer, meaning)
        return Reply(meaning, answer.status > 0, answer.say(), advice, answer.retry_after)

    def say_advice(self, answer: Answer, meaning: str) -> str:
        """Say what went wrong and, where that is known, which variable to set."""
        where = f"registry at {say_value(self.settings.registry_url)}"
        if meaning == REFUSED:
            name = self.settings.token_name
            variables = name if self.token else f"{name} or REGISTRY_TOKEN_FILE"
            return (
                f"{where} refuses the token ({answer.say()}):"
                f" set {variables} to the registry's token"
            )
        if answer.ok or 300 <= answer.status < 400:
            return f"{where} answered {answer.say()}: set REGISTRY_URL to where the registry is"
        if answer.status:
            return f"{where} answered {answer.say()}"
        refused = isinstance(answer.failure, ConnectionRefusedError) and not self.accepted
        hint = self.PORT_HINT if refused and self.peer.wire.port == 8888 else ""
        return f"{where}: {answer.say()}{hint}"


class Consul(Registry):
    """Consul's agent: the same by other requests, with one record for each replica.

    Not known: 500 in versions of before 2022, worded otherwise with ACLs, and 404 since.
    """

    TOKEN_HEADER = "X-Consul-Token"
    REFUSAL = "Permission denied|ACL not found"
    UNKNOWN = "does not have associated TTL|Unknown check|Unknown service"
    truthful = True

    def __init__(self, settings: Settings, signals: Signals) -> None:
        super().__init__(settings, signals)
        names = settings.service_name, settings.service_host, settings.service_port
        self.id = settings.service_id or "-".join(map(str, names))

    def register(self, metadata: Mapping[str, str], timeout: float) -> Reply:
        self.take_token()
        settings = self.settings
        meta = consul_meta({**settings.service_metadata, **metadata})  # what a user set comes first
        for key in metadata.keys() - meta.keys():
            log.warning("%s is left out of the record: Consul takes no such metadata", key)
        record = {
            "ID": self.id,
            "Name": settings.service_name,
            "Address": settings.service_host,
            "Port": settings.service_port,
            "Meta": meta,
            "Check": {
                "TTL": f"{max(2 * settings.heartbeat_interval, 2):g}s",
                "Status": "passing",  # or it would be critical until the first heartbeat
                "DeregisterCriticalServiceAfter": "1m",  # Consul takes no less
            },
        }
        path = "/v1/agent/service/register?replace-existing-checks=true"
        return self.judge(self.ask("PUT", path, timeout, record))

    def heartbeat(self, timeout: float) -> Reply:
        return self.find(LOST, self.ask("PUT", f"/v1/agent/check/pass/service:{self.id}", timeout))

    def deregister(self, timeout: float) -> Reply:
        answer = self.ask("PUT", f"/v1/agent/service/deregister/{self.id}", timeout)
        return self.find(ACCEPTED, answer)

    def look(self, timeout: float) -> Reply:
        self.take_token()  # for Consul may keep its records from others
        return self.find(LOST, self.ask("GET", f"/v1/agent/service/{self.id}", timeout))

    def find(self, unknown: str, answer: Answer) -> Reply:
        """Return what an answer means; `unknown`, where Consul does not know the record."""
        old = answer.status == 500 and re.search(self.UNKNOWN, answer.message())
        if answer.status == 404 or old:
            return Reply(unknown, True, answer.say())
        return self.judge(answer)


def choose_registry(settings: Settings, signals: Signals) -> Registry:
    """Return what speaks with the registry at REGISTRY_URL."""
    return (Consul if is_consul(settings.registry_url) else Registry)(settings, signals)


# ---------------------------------------------------------------------------------- the service


class Service:
    """The service beside the sidecar, as its probes show it.

    Attributes: `problem`, what the last failed probe brought; `seen`, whether it has ever been
    healthy; `told`, what it says of itself.
    """

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self.settings = settings
        # Each probe has a connection of its own: a kept one would occupy a server with one worker,
        # hold up its shutdown, and go on looking healthy when it takes no new ones.
        ca_file = settings.service_ca_file if settings.service_tls_verify else None
        self.peer = Peer(settings.health_url, signals, False, ca_file)
        self.wire = Wire(settings.service_host, settings.service_port, signals)  # of a tcp check
        self.headers = {"Connection": "close"}
        self.headers_mark: tuple[int, ...] = ()  # of their file, when it was last read
        self.problem = "no answer yet"
        self.seen = False
        self.told: dict[str, str] = {}

    @property
    def metadata(self) -> dict[str, str]:
        """What belongs into the record."""
        return self.told | dict(self.settings.service_metadata)

    def probe(self) -> bool:
        """Look once whether the service is healthy, within SERVICE_HEALTH_TIMEOUT."""
        kind = self.settings.service_health_check
        healthy = kind == "none" or (self.connects() if kind == "tcp" else self.answers())
        self.seen = self.seen or healthy
        return healthy

    def answers(self) -> bool:
        """Tell whether the health endpoint answers 2xx; note what it tells, if it is all there."""
        self.take_headers()
        timeout = self.settings.service_health_timeout
        answer = self.peer.exchange("GET", "", self.headers, b"", timeout)
        if not answer.ok or answer.late:
            self.problem = answer.say() + self.say_hint(answer)
            return False
        health = answer.json()
        if isinstance(health, dict):
            self.told = health_metadata(health)
        return True

    def connects(self) -> bool:
        """Tell whether the service's port takes a TCP connection."""
        self.wire.begin(self.settings.service_health_timeout)
        try:
            self.wire.open().close()
        except Exception as error:
            self.problem = say_failure(error)
            return False
        return True

    def take_headers(self) -> None:
        """Read the headers of a probe again where their file has changed."""
        path, mark = self.settings.service_health_headers_file, (0, 0, 0)
        if not path:
            return
        with contextlib.suppress(OSError):
            stat = os.stat(path)
            mark = stat.st_mtime_ns, stat.st_size, stat.st_ino
        if mark == self.headers_mark:
            return
        self.headers_mark = mark
        try:
            self.headers = {"Connection": "close"} | read_headers(path)
        except (OSError, ValueError) as error:
            name = "SERVICE_HEALTH_HEADERS_FILE"
            log.warning("%s cannot be read, keeping those before: %s", name, say_plain(error))
        for value in itertools.islice(self.headers.values(), 1, None):
            keep_secret(*header_secrets(value))

    def say_hint(self, answer: Answer) -> str:
        """Say so where something that never answered http looks as if it spoke TLS."""
        odd = isinstance(answer.failure, ConnectionResetError | http.client.BadStatusLine)
        told = answer.status == 400 and b"HTTPS" in answer.body
        if self.seen or isinstance(self.peer.pool, HTTPSConnectionPool) or not (odd or told):
            return ""
        own = self.settings.service_health_endpoint.startswith("/")
        fix = "SCHEME to https" if own else "HEALTH_ENDPOINT to an https URL"
        return f" (this looks like a TLS port: set SERVICE_{fix})"


def health_metadata(health: Mapping[str, Any]) -> dict[str, str]:
    """Return `version` and `status` as strings; the registry takes nothing else."""
    found = {key: health[key] for key in ("version", "status") if health.get(key) is not None}
    texts = {key: v if isinstance(v, str) else json.dumps(v) for key, v in found.items()}
    # A lone surrogate is no text that the registry could store: it would refuse it each time.
    return {key: v[:MAX_METADATA].encode("utf-8", "replace").decode() for key, v in texts.items()}


# ----------------------------------------------------------------------------- the sign of life

GRACE = 5.0  # seconds that a promise in the heartbeat file allows for a slow machine


class SignOfLife:
    """What stands in the heartbeat file, and until when: healthcheck.py judges it.

    `shown` is the state with what its sentence needs, see healthcheck.write.
    """

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self.path, self.clock = path, clock
        self.shown: tuple[str, float, float, int, str] = ("starting", 0.0, clock(), 0, "")
        self.written: tuple[Any, ...] = ()
        self.promised = -math.inf
        self.fails = False  # whether the file could not be written

    def show(
        self, state: str, since: float, reason: str = "", attempt: int = 0, ready: float = 0.0
    ) -> None:
        """Set what the next write shows. `ready` is the moment until which the service is ready."""
        self.shown = (state, ready, since, attempt, reason)

    def promise(self, duration: float) -> None:
        """Promise the next write within so many seconds and some grace; often it stands there."""
        until = self.clock() + duration + GRACE
        if until <= self.promised and self.shown == self.written:
            return
        try:
            healthcheck.write(self.path, until, *self.shown)
        except OSError as error:
            if not self.fails:
                path = say_value(self.path)
                log.warning("HEARTBEAT_FILE=%s cannot be written: %s", path, say_plain(error))
            self.fails = True
        else:
            self.promised, self.written = until, self.shown
            self.fails = False


# ----------------------------------------------------------------------------------- the record

# Heartbeats between two looks at the list: with the 30 s that an expired name lingers there, a
# loss shows within ten intervals.
LOOK_EVERY = 9


class Record:
    """The service's record in the registry: how long it lives, and what keeps it alive and true.

    Attributes: the `metadata` that the registry last took, when it last accepted a registration or
    a heartbeat, the `outage` under way. Two intervals are one TTL.
    """

    def __init__(
        self,
        registry: Registry,
        service: Service,
        life: SignOfLife,
        clock: Callable[[], float],
        uniform: Uniform,
    ) -> None:
        self.registry, self.service, self.life, self.clock = registry, service, life, clock
        self.settings, self.uniform = registry.settings, uniform
        # A fleet started together neither beats together nor looks for its records together.
        self.phase = clock() + uniform(0, self.settings.heartbeat_interval)
        self.beats = int(uniform(0, LOOK_EVERY))
        self.metadata: Mapping[str, str] | None = None
        self.accepted_at = -math.inf
        # Since when requests have failed in a row (monotonic seconds), and how many.
        self.outage: tuple[float, int] | None = None

    def due(self) -> float:
        """Return the moment of the next heartbeat."""
        return next_beat(self.phase, self.settings.heartbeat_interval, self.accepted_at)

    def expiry(self) -> float:
        """Return the moment until which the record lives."""
        return self.accepted_at + 2 * self.settings.heartbeat_interval

    def left(self) -> float:
        """Return the seconds until then."""
        return self.expiry() - self.clock()

    def short_timeout(self) -> float:
        """Return the deadline of one of several requests that have to fit into what is left."""
        share = max(self.left() / 3, self.settings.pace * FIRST_WAIT)
        return min(self.settings.registry_timeout, share)

    def ask(self, request: Callable[[float], Reply], timeout: float) -> Reply:
        """Send a registration or a heartbeat; note that it was accepted, if it was."""
        self.life.promise(timeout)
        now = self.clock()  # the TTL may have begun at any moment since
        reply = request(timeout)
        if reply.meaning == ACCEPTED:
            self.accepted_at = now
            if self.outage:
                since, failures = self.outage
                log.info("Registry is back after %.0f s (failures: %d)", now - since, failures)
            self.outage = None
            self.life.show("registered", now, ready=self.expiry())
        return reply

    def register(self, timeout: float) -> Reply:
        """Send the whole record once."""
        settings, metadata, first = self.settings, self.service.metadata, self.metadata is None
        reply = self.ask(functools.partial(self.registry.register, metadata), timeout)
        if reply.meaning == ACCEPTED:
            self.metadata = metadata
            words = (settings.service_name, settings.endpoint, say_plain(metadata))
            log.info("Service registered successfully: %s at %s %s", *words)
            if first:
                interval = say_seconds(settings.heartbeat_interval)
                log.info("Starting heartbeat loop: every %s", interval)
        return reply

    def renew(self) -> Reply:
        """Register once, without leaving the heartbeats of a record that is fine."""
        reply = self.register(self.short_timeout())
        if reply.meaning != ACCEPTED:
            log.warning("Registration failed: %s; heartbeats continue", reply.advice)
        return reply

    def refresh(self, attempt: int) -> Reply:
        """Keep the record for another TTL, and true. `attempt` counts from 0 in each slot."""
        if self.service.metadata != self.metadata:
            log.info("Service has changed: %s", say_plain(self.service.metadata))
            reply = self.renew()
            if reply.meaning == ACCEPTED:
                return reply
        timeout = self.short_timeout() if attempt else self.settings.registry_timeout
        reply = self.ask(self.registry.heartbeat, timeout)
        if reply.meaning == ACCEPTED:
            log.info("Heartbeat accepted")
        elif reply.meaning == LOST:
            self.log_loss(reply)
        elif reply.meaning == REFUSED:
            log.warning("Heartbeat refused: %s", reply.advice)
            return self.renew()  # which reads the token again
        return reply

    def look(self) -> None:
        """Look now and then whether the record is there, and register once where it may not be.

        The heartbeats go on whatever comes of it, for the look may be wrong; where the name is
        missing and cannot be registered, the next heartbeat is followed by another look.
        """
        if self.registry.truthful:
            return
        self.beats += 1
        if self.beats % LOOK_EVERY:
            return
        self.life.promise(self.settings.registry_timeout)
        reply = self.registry.look(self.settings.registry_timeout)
        if reply.meaning == ACCEPTED:
            return
        if reply.meaning == LOST:
            self.log_loss(reply)
        else:
            log.warning("%s; registering again", reply.advice)
        if self.renew().meaning != ACCEPTED and reply.meaning == LOST:
            self.beats -= 1

    def withdraw(self) -> bool:
        """Try once, shortly, to deregister what was registered; tell whether it is gone."""
        # Where no registration was accepted, the record there is somebody else's.
        if not self.settings.deregister_on_exit or self.metadata is None:
            return False
        self.life.promise(STOP_TIMEOUT)
        reply = self.registry.deregister(STOP_TIMEOUT)
        if reply.meaning == ACCEPTED:
            log.info("Service deregistered")
        else:
            log.warning("Deregistration failed: %s; the record expires by itself", reply.advice)
        return reply.meaning == ACCEPTED

    def log_loss(self, reply: Reply) -> None:
        lost = "Service not found (404): the registry has lost the record (%s); registering again"
        log.warning(lost, reply.said)

    def retry_wait(self, attempt: int, reply: Reply) -> float:
        """Note that heartbeat `attempt` of a slot has failed; return the seconds until the next."""
        pace = self.settings.pace
        wait = pace * backoff(attempt, self.uniform) + reply.retry_after
        wait = wait_in_slot(wait, self.left(), pace * FIRST_WAIT)
        self.note_failure("Heartbeat", reply, wait, ready=self.expiry())
        return wait

    def note_failure(self, what: str, reply: Reply, wait: float, ready: float = 0.0) -> None:
        """Note and log a failed request; the next one follows after `wait` seconds."""
        since, failures = self.outage or (self.clock(), 0)
        self.outage = since, failures + 1
        words = (what, failures + 1, reply.advice, wait)
        log.warning("%s failed (attempt %d): %s; next in %.1f s", *words)
        state = "failing" if reply.reached else "unreachable"
        self.life.show(state, since, reply.said, failures + 1, ready)


# ------------------------------------------------------------------------------------ the agent

CUT_OFF = 120.0  # seconds with nothing but loopback, after which the network will not come back
# What every network namespace has: loopback, and the tunnels of some kernels.
BARE = "lo|(tunl|gre|gretap|erspan|ip_vti|ip6_vti|sit|ip6tnl|ip6gre)0"

State = Callable[[], Any]  # blocks, and returns the state that follows


class Network:
    """The network, which may be another container's: that has a new one when it has restarted."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        # When it was found to be lost: infinite while there is one, NaN if there never was.
        self.lost_at = math.nan
        self.check()

    def check(self) -> None:
        """Exit with code 1 once it has been lost for CUT_OFF seconds."""
        with contextlib.suppress(OSError):
            bare = all(re.fullmatch(BARE, name) for _, name in socket.if_nameindex())
            self.lost_at = min(self.lost_at, self.clock()) if bare else math.inf
        lost = self.clock() - self.lost_at
        if lost >= CUT_OFF:
            fix = "exit 1, so that the restart policy brings the sidecar into the new network"
            log.error("Network lost: nothing but loopback for %.0f s; %s", lost, fix)
            raise SystemExit(1)


class Agent:
    """Keeps one service registered. Clock (monotonic seconds) and randomness are passed in."""

    def __init__(
        self,
        settings: Settings,
        signals: Signals,
        clock: Callable[[], float] = time.monotonic,
        uniform: Uniform = random.uniform,
    ) -> None:
        self.settings, self.signals, self.clock, self.uniform = settings, signals, clock, uniform
        self.life = SignOfLife(settings.heartbeat_file, clock)
        self.service = Service(settings, signals)
        self.registry = choose_registry(settings, signals)
        self.record = Record(self.registry, self.service, self.life, clock, uniform)
        self.network = Network(clock)

    def run(self) -> int:
        """Go from state to state until a signal comes; return the exit code."""
        state: State = self.waiting
        try:
            while True:
                state = state()
        except Stop:
            return self.stop()

    # The states

    def waiting(self) -> State:
        """Wait until the service is healthy, or INITIAL_WAIT_TIMEOUT has passed."""
        since, patience, said = self.clock(), self.settings.initial_wait_timeout, -math.inf
        self.life.show("waiting", since, self.service.problem)
        while not self.probe():
            now, problem = self.clock(), self.service.problem
            self.life.show("waiting", since, problem)
            if now >= since + patience:
                waited = f"Service not healthy after {say_seconds(patience)}: {problem}"
                log.warning("%s; registering it anyway", waited)
                return self.registering
            if now >= said + LOG_AGAIN:
                log.warning("Waiting for the service at %s: %s", self.settings.endpoint, problem)
                said = now
            self.pause(min(since + patience - now, self.probe_wait()))
        log.info("Service is READY")
        return self.registering

    def registering(self) -> State:
        """Repeat the registration, with backoff, until the registry takes it."""
        self.life.show("registering", self.clock())
        for attempt in itertools.count(1):
            reply = self.record.register(self.settings.registry_timeout)
            if reply.meaning == ACCEPTED:
                return self.registered
            wait = backoff(attempt, self.uniform) + reply.retry_after
            self.record.note_failure("Registration", reply, wait)
            self.pause(wait)
            if not self.service.seen:
                self.probe()  # it is registered anyway, and perhaps healthy by now
            elif not self.is_healthy():
                break
        return self.service_down

    def registered(self) -> State:
        """Send a heartbeat in every slot; repeat a failed one inside the slot."""
        due, attempt = self.record.due(), 0
        while True:
            self.pause(due - self.clock())
            # A retry probes no more: hanging probes and heartbeats together would cost the record.
            if not attempt and not self.is_healthy():
                return self.service_down
            if self.record.left() <= 0:
                # Heartbeats have failed for two intervals, or the process was frozen: the record
                # may have expired, and a 200 proves nothing. A registration does both.
                log.warning("No heartbeat accepted for two intervals; registering again")
                return self.registering
            reply = self.record.refresh(attempt)
            if reply.meaning == LOST:
                return self.registering
            if reply.meaning == ACCEPTED:
                self.record.look()
                due, attempt = self.record.due(), 0
            else:
                attempt += 1
                due = self.clock() + self.record.retry_wait(attempt, reply)

    def service_down(self) -> State:
        """Send nothing, so that the record expires, until the service is healthy again."""
        since = said = self.clock()
        down = "Service is DOWN: %s; no heartbeat until it is healthy again"
        log.error(down, self.service.problem)
        while True:
            self.life.show("down", since, self.service.problem)
            self.pause(self.probe_wait())
            now, healthy, problem = self.clock(), self.probe(), self.service.problem
            if healthy:
                log.info("Service is READY again after %.0f s", now - since)
                return self.registering
            if now >= said + LOG_AGAIN:
                log.warning("Service has been DOWN for %.0f s: %s", now - since, problem)
                said = now

    def stop(self) -> int:
        """Try once, shortly, to deregister; the exit code is 0 whatever comes of it."""
        self.signals.ignore()
        log.info("Stopping")
        self.life.show("stopping", self.clock())
        if self.record.withdraw() and self.settings.drain_seconds:
            self.drain(self.settings.drain_seconds)
        return 0

    def drain(self, duration: float) -> None:
        """Live on, so that callers notice before the service goes. Another signal ends it."""
        log.info("Draining for %s; another signal ends it", say_seconds(duration))
        self.life.show("draining", self.clock())
        self.life.promise(duration)
        with contextlib.suppress(Stop):
            self.signals.heed()
            self.signals.pause(duration)
        self.signals.ignore()

    # What the states do

    def probe(self) -> bool:
        """Look once whether the service is healthy."""
        self.life.promise(self.settings.service_health_timeout)
        return self.service.probe()

    def is_healthy(self) -> bool:
        """Probe until it is healthy, or SERVICE_HEALTH_RETRIES probes in a row have failed."""
        retries = self.settings.service_health_retries
        for attempt in range(1, retries + 1):
            if self.probe():
                return True
            log.warning("Health probe %d of %d failed: %s", attempt, retries, self.service.problem)
            if attempt < retries:
                self.pause(self.settings.pace * self.uniform(1.0, 2.0))
        return False

    def probe_wait(self) -> float:
        """Return the seconds until the next probe of a service that is not healthy."""
        return min(self.uniform(1.0, 2.0), self.settings.heartbeat_interval)

    def pause(self, duration: float) -> None:
        """Sleep; try again to write a heartbeat file that cannot be written. Raises Stop."""
        if not self.signals.stopping:
            self.network.check()
        end = self.clock() + max(duration, 0.0)
        exchanges = self.settings.service_health_timeout + self.settings.registry_timeout
        while True:
            left = max(end - self.clock(), 0.0)
            self.life.promise(left + exchanges)
            if not self.life.fails or left <= GRACE / 2:
                return self.signals.pause(left)
            self.signals.pause(GRACE / 2)


# -------------------------------------------------------------------------------- before the start

FIXES = {  # what may help where a probe's problem begins like this
    "connection refused": "is it up, not on 127.0.0.1 alone, and the port right? Check {}",
    "no answer within": "is it slow, or the address wrong? Set SERVICE_HEALTH_TIMEOUT or {}",
    "404|405|3..": "set SERVICE_HEALTH_ENDPOINT to its health check",
    "401|403": "set SERVICE_HEALTH_HEADERS_FILE to a file with the headers that it wants",
    "certificate refused": "set SERVICE_CA_FILE to a file with its authority",
    "[0-9]{3}": "it answers, but says that it is not healthy: see its own log",
}


class Check:
    """A look at all that a start would need: one probe, one GET. It changes nothing anywhere."""

    def __init__(self, settings: Settings, signals: Signals) -> None:
        self.settings, self.fine = settings, True
        self.service, self.registry = Service(settings, signals), choose_registry(settings, signals)

    def run(self) -> int:
        """Print what is fine and what is not. Returns the exit code: 0 or 1. Raises Stop."""
        settings, service, registry = self.settings, self.service, self.registry
        for doubt in doubts(settings) or [""]:
            self.tell("settings", "", doubt and f"but {doubt}")
        known = self.look_up("SERVICE_HOST", service.wire, settings.service_health_timeout)
        if known or service.peer.wire.host != service.wire.host:
            self.probe()
        if self.look_up("REGISTRY_URL", registry.peer.wire, settings.registry_timeout):
            reply = registry.look(settings.registry_timeout)
            listed = "already" if reply.meaning == ACCEPTED else "not yet"
            found = f"{settings.service_name} is {listed} listed"
            fix = "" if "REGISTRY_URL" in reply.advice else "; is it up, and REGISTRY_URL right?"
            problem = reply.advice + fix if reply.meaning in (FAILED, REFUSED) else ""
            self.tell(f"list of {say_value(settings.registry_url)}", problem, found)
        token = "none is set, and none will be sent"
        if settings.registry_token_file or settings.token():
            token = f"{settings.token_name} will be sent; a look cannot prove that it is right"
        log.info("token: %s", token)
        return 0 if self.fine else 1

    def tell(self, what: str, problem: str, detail: str = "") -> None:
        """Print a line about one thing: that it is fine, or what is wrong."""
        detail = f"fine, {detail}" if detail else "fine"
        log.info("%s: %s", what, f"not fine: {problem}" if problem else detail)
        self.fine = self.fine and not problem

    def look_up(self, variable: str, wire: Wire, timeout: float) -> bool:
        """Look a name up, and tell whether it is known."""
        wire.begin(timeout)
        found = problem = ""
        try:
            found = f"at {wire.addresses()[0][4][0]}"
        except Exception as error:
            problem = f"{say_failure(error)}; share its network, or check {variable}"
        self.tell(f"{variable}, {wire.host}", problem, found)
        return not problem

    def probe(self) -> None:
        """Probe the service once."""
        settings, kind = self.settings, self.settings.service_health_check
        problem = "" if self.service.probe() else self.service.problem
        own = kind != "http" or settings.service_health_endpoint.startswith("/")
        fix = next((fix for start, fix in FIXES.items() if re.match(start, problem)), "")
        if fix and "looks like" not in problem:
            problem += "; " + fix.format("SERVICE_PORT" if own else "SERVICE_HEALTH_ENDPOINT")
        where = settings.health_url if kind == "http" else settings.endpoint
        self.tell(f"{kind} probe of {say_value(where)}", problem)


# ----------------------------------------------------------------------------------------- main

USAGE = """usage: agent.py [--check | --version | --help]
Keeps the service beside it registered in a registry. All settings are environment variables.
--check looks at them, at the service and at the registry, changes nothing, and says what is wrong;
its exit code is 0 where all is fine, 1 where something is not, 2 where a setting is bad."""


def main(arguments: Sequence[str] = ()) -> int:
    """Do what the arguments ask for; without any, run the agent.

    Returns the exit code: 0 stopped, or all is fine; 1 a bug, no network, or something is not
    fine; 2 bad settings or arguments; 130 a check was interrupted.
    """
    # What is closed of stdin, stdout and stderr is opened, or a socket would get the log's number.
    while os.open("/", os.O_RDONLY) <= 2:
        pass
    checks = list(arguments) == ["--check"]
    if arguments and not checks:
        text = {"--version": VERSION, "--help": USAGE}.get(" ".join(arguments))
        print(text or USAGE, file=sys.stdout if text else sys.stderr)
        return 0 if text else 2
    signals = Signals()
    signals.install()
    handler = Log()
    handler.plain = checks
    handler.set_up("INFO", os.environ.get("LOG_FORMAT", "").strip().lower() == "json")
    try:
        settings = read_settings(os.environ)
    except SettingsError as error:
        for problem in error.args:
            log.error("Bad setting: %s", say_problem(*problem))
        return 2
    if not checks:
        handler.set_up(settings.log_level, settings.log_format == "json")
    return work(Check if checks else Agent, settings, signals)


def work(kind: type[Agent | Check], settings: Settings, signals: Signals) -> int:
    """Run the agent, or a check. Returns the exit code."""
    keep_secret(*(getattr(settings, name.lower()) for name in TOKEN_VARIABLES))
    keep_secret(*url_secrets(settings.registry_url), *url_secrets(settings.service_health_endpoint))
    if kind is Agent:
        log.info("Registry sidecar starts: version %s, %s", VERSION, say_settings(settings))
        for line in doubts(settings):
            log.warning("%s", line)
    try:
        return kind(settings, signals).run()
    except Stop:  # of a check
        return 130
    except Exception:
        log.exception("A bug in the sidecar; exit 1, so that the restart policy starts it again")
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
