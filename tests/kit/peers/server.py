"""A small threaded HTTP/1.1 server that remembers what it was asked and can be told to misbehave.

A subclass says which operation a request is (`route`) and what the sane answer is (`answer`). Tests
then script it: `peer.play("heartbeat", "reset", times=1)` breaks the next heartbeat, `peer.sane()`
ends all that. The same can be sent to a peer in another process or container as JSON to
`/_control`: `{"play": ["heartbeat", "reset", 1]}`, `{"sane": "*"}`, any attribute with its value.
"""

import argparse
import collections
import contextlib
import errno
import json
import random
import signal
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple, Self

import kit.peers.tls  # noqa: F401  # its faults are in the catalogue
from kit.peers.faults import Fault, resolve

CONNECT = "connect"  # the operation of a connection that has not asked for anything yet
REMEMBERED = 20_000  # requests; older ones are dropped, the counts stay
# Below the ports that the kernel hands out to clients (Linux from 32768, macOS from 49152).
# Otherwise, while a peer is stopped, a client that tries its port may get that very port and
# connect to itself.
PORTS = (20_000, 32_000)


class Request(NamedTuple):
    """One request as it arrived."""

    at: float  # time.monotonic()
    operation: str
    method: str
    path: str
    headers: Message
    body: bytes
    connection: int  # numbers the TCP connections from 1
    size: int  # all its bytes on the wire (inside TLS)

    def json(self) -> Any:
        """Return the decoded body. Raises ValueError where it is not JSON."""
        return json.loads(self.body)


class Answer(NamedTuple):
    """One sane answer: bytes and text as they are, None as no body, anything else as JSON."""

    status: int
    body: object = None
    headers: Mapping[str, str] = {}
    delay: float = 0.0  # seconds to wait before it is sent


@dataclass
class _Play:
    operation: str
    fault: Fault
    times: int | None
    after: int


class Peer:
    """An HTTP server on loopback that can be scripted, as a context manager or by start and stop.

    Args: host to listen on; port (0 takes a free one); idle_timeout in seconds after which the peer
    closes an idle connection (nginx 65, a bare replica 5, None never); keep_alive False closes
    after each answer; tls is (certificate file, key file); verbose prints a line for each request.
    The attribute farewell says whether TLS is ended (close_notify) before a connection is: many
    servers do not.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        idle_timeout: float | None = 65.0,
        keep_alive: bool = True,
        tls: tuple[str, str] | None = None,
        verbose: bool = False,
    ) -> None:
        self.host, self._port = host, port
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.idle_timeout, self.keep_alive, self.farewell = idle_timeout, keep_alive, True
        self.verbose = verbose
        self.lock = threading.RLock()
        self.requests: list[Request] = []
        self.connections = 0  # TCP connections accepted
        self._counts: collections.Counter[str] = collections.Counter()
        self._plays: list[_Play] = []
        self._going = threading.Event()  # clear while paused
        self._going.set()
        self._server: _Server | None = None
        self.tls = tls
        self._context: ssl.SSLContext | None = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(*tls)

    # What a subclass provides.

    def route(self, _method: str, _path: str, /) -> str:
        """Return the name of the operation that this request asks for."""
        return "any"

    def answer(self, _request: Request, /) -> Answer:
        """Return the sane answer. Called in the thread of the connection."""
        return Answer(200, {})

    def label(self, request: Request) -> str:
        """Return what a verbose line shows of the request beside its operation."""
        return request.path

    def state(self) -> dict[str, object]:
        """Return what `GET /_control` shows."""
        with self.lock:
            return {"counts": dict(self._counts)}

    def control(self, command: str, value: Any) -> None:
        """Do one command of `POST /_control`: call a method, or set an attribute.

        Raises AttributeError, KeyError, TypeError or ValueError on a bad one.
        """
        if not callable(method := getattr(self, command)):
            setattr(self, command, value)
        elif isinstance(value, list):
            method(*value)
        else:
            method(value)

    # Life.

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port; where it was 0, chosen at the first look: it is known before the start."""
        if self._port:
            return self._port
        for port in random.SystemRandom().sample(range(*PORTS), 100):
            with socket.socket(self.family) as probe, contextlib.suppress(OSError):
                # A process that another thread starts holds this socket, too, for a moment: let it
                # hinder nobody.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((self.host, port))
                self._port = port
                return port
        raise OSError(errno.EADDRINUSE, f"no free port found at {self.host}")

    @property
    def url(self) -> str:
        """The base URL, without a trailing slash."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.host, self.host)
        host = f"[{host}]" if ":" in host else host
        return f"http{'s' if self._context else ''}://{host}:{self.port}"

    def start(self) -> Self:
        """Listen, again on the same port after a stop. Raises OSError where the port is taken."""
        if self._server is None:
            self._server = _Server(self, self._context)
            threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def stop(self) -> None:
        """Close the listening socket and all connections, and end a pause: from now on refuse."""
        server, self._server = self._server, None
        if server:
            server.stop()

    def certify(self, tls: tuple[str, str]) -> None:
        """Show another certificate to whoever connects from now on."""
        assert self._context is not None, "only a peer that speaks TLS"
        self.tls = tls
        self._context.load_cert_chain(*tls)

    def pause(self) -> None:
        """Accept connections but answer nothing, like a stopped process (/_control works on)."""
        self._going.clear()

    def resume(self) -> None:
        """End a pause; what was asked meanwhile is now answered."""
        self._going.set()

    # The script.

    def play(self, operation: str, fault: object, times: int | None = 1, after: int = 0) -> None:
        """Answer the next requests of an operation with a fault.

        Args: operation, "*" for all, or CONNECT for what is played as soon as a connection is
        open, before any request; fault, a name of FAULTS, [name, parameter...] or a callable;
        times, None for "until sane()"; after, how many requests are answered sanely first. Plays
        queue up: the second one for an operation begins when the first has ended. Raises KeyError
        for an unknown name.
        """
        with self.lock:
            self._plays.append(_Play(operation, resolve(fault), times, after))

    def sane(self, operation: str = "*") -> None:
        """End the plays of this operation ("*": all plays)."""
        with self.lock:
            self._plays = [play for play in self._plays if operation not in ("*", play.operation)]

    def count(self, operation: str = "*") -> int:
        """Return how many requests of this operation ("*": of any) came so far."""
        with self.lock:
            return self._counts.total() if operation == "*" else self._counts[operation]

    def say(self, text: str) -> None:
        """Print a line where the peer is verbose."""
        if self.verbose:
            print(time.strftime("%H:%M:%S"), ascii(text)[1:-1], flush=True)

    # For the handler.

    def _take(self, request: Request) -> Fault | None:
        """Remember the request; return the fault to play, None for a sane answer."""
        with self.lock:
            self._counts[request.operation] += 1
            self.requests.append(request)
            if len(self.requests) > REMEMBERED:
                del self.requests[: REMEMBERED // 2]
            return self._due(request.operation, "*")

    def _due(self, *operations: str) -> Fault | None:
        """Return the fault that is due for one of these operations, None where there is none."""
        with self.lock:
            play = next((play for play in self._plays if play.operation in operations), None)
            if play is None:
                return None
            if play.after > 0:
                play.after -= 1
                return None
            if play.times is not None:
                play.times -= 1
                if play.times <= 0:
                    self._plays.remove(play)
            return play.fault


class _Server(socketserver.ThreadingTCPServer):
    """The listening socket and the open connections of one start."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024  # the listen backlog

    def __init__(self, peer: Peer, context: ssl.SSLContext | None) -> None:
        self.peer, self.context, self.address_family = peer, context, peer.family
        self.stopping = threading.Event()
        self.open: dict[socket.socket, int] = {}  # connection: its number
        super().__init__((peer.host, peer.port), Exchange)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self.context:  # the handshake comes with the first read, in the connection's own thread
            connection = self.context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.peer.lock:
            self.peer.connections += 1
            self.open[request] = self.peer.connections
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        if isinstance(request, ssl.SSLSocket) and self.peer.farewell:
            with contextlib.suppress(OSError, ValueError):
                request.settimeout(0)
                request.unwrap()  # say good-bye, do not wait for the answer
        super().shutdown_request(request)
        self.open.pop(request, None)

    def stop_listening(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes serve_forever (Linux), which polls else
        self.shutdown()
        self.server_close()

    def stop(self) -> None:
        self.stopping.set()
        self.peer.resume()
        self.stop_listening()
        for connection in list(self.open):
            with contextlib.suppress(OSError):  # below TLS, which may be in use
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        end = time.monotonic() + 1.0
        while self.open and time.monotonic() < end:
            time.sleep(0.002)


class Exchange(BaseHTTPRequestHandler):
    """One connection and the request that is being answered on it: what a fault plays on."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    raw_requestline: bytes
    asked: Request

    def setup(self) -> None:
        super().setup()
        self.peer = self.server.peer
        if self.server.context:
            self.peer._going.wait()  # a stopped process shakes no hands

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client went away, or the peer stops
            self.close_connection = False
            if fault := self.peer._due(CONNECT):
                self._play(CONNECT, fault)
            if not self.close_connection:
                super().handle()

    def handle_one_request(self) -> None:
        self.connection.settimeout(self.peer.idle_timeout)
        super().handle_one_request()

    def log_message(self, *_: object) -> None:
        """Nothing: Peer.say does it."""

    def do_GET(self) -> None:
        """Answer any request: sanely, with the fault that is due, or as the control endpoint."""
        target = self.requestline.split()[1]  # self.path has no leading // any more
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if target == "/_control":
            self._control(body)
            return
        self.peer._going.wait()
        if self.server.stopping.is_set():
            self.close_connection = True
            return
        operation = self.peer.route(self.command, target)
        lines = (self.raw_requestline, *(f"{k}: {v}\r\n" for k, v in self.headers.items()))
        size = sum(map(len, lines)) + len(b"\r\n") + len(body)
        self.asked = Request(
            time.monotonic(), operation, self.command, target, self.headers, body,
            self.server.open.get(self.request, 0), size,
        )  # fmt: skip
        if fault := self.peer._take(self.asked):
            self._play(f"{operation} {self.peer.label(self.asked)}", fault)
        else:
            self.sane()

    do_POST = do_DELETE = do_PUT = do_PATCH = do_GET  # noqa: N815

    def _play(self, at: str, fault: Fault) -> None:
        self.peer.say(f"{at} -> fault {getattr(fault, '__name__', fault)}")
        fault(self)

    def sane(self) -> None:
        """Give the sane answer to the request."""
        answer = self.peer.answer(self.asked)
        self.peer.say(f"{self.asked.operation} {self.peer.label(self.asked)} -> {answer.status}")
        if answer.delay and self.server.stopping.wait(answer.delay):
            self.close_connection = True
            return
        self.reply(answer.status, answer.body, answer.headers)

    def reply(
        self, status: int, body: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a well-formed answer in one piece, without a body that the status cannot have."""
        kind = "text/plain; charset=utf-8"
        if not isinstance(body, bytes | str | None):
            kind = "application/json"
            body = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
        payload = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body or b""
        fields = {"Server": "nginx", "Date": self.date_time_string()}
        if status >= 200 and status not in (204, 304):
            fields |= {"Content-Type": kind, "Content-Length": str(len(payload))}
        else:
            payload = b""
        if not self.peer.keep_alive or status < 200:
            self.close_connection = True
        if self.close_connection:
            fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {status} {reason(status)}"]
        lines += [f"{name}: {value}" for name, value in (fields | dict(headers or {})).items()]
        self.raw("\r\n".join((*lines, "", "")).encode("latin-1") + payload)

    def raw(self, data: bytes) -> None:
        """Send these bytes as they are."""
        self.connection.sendall(data)

    def _control(self, body: bytes) -> None:
        try:
            for command, value in json.loads(body).items() if self.command == "POST" else ():
                self.peer.control(command, value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            self.reply(400, {"detail": f"{type(error).__name__}: {error}"})
        else:
            self.reply(200, self.peer.state())


def reason(status: int) -> str:
    """Return the phrase for a status, "Unknown" where it has none."""
    return next((known.phrase for known in HTTPStatus if known == status), "Unknown")


def arguments(description: str, port: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every peer has on its command line."""
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=port, help="port, 0 takes a free one (%(default)s)")
    add("--no-keep-alive", dest="keep_alive", action="store_false", help="one answer a connection")
    add("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"), help="speak https")
    add("--verbose", action="store_true", help="print a line for each request")
    return parser


class _Control(Peer):
    """A way to script a peer that no fault of TLS closes: its `/_control` on a plain port."""

    def __init__(self, peer: Peer) -> None:
        super().__init__(port=peer.port + 1)
        self.state, self.control = peer.state, peer.control  # type: ignore[method-assign]


def run(peer: Peer, name: str) -> int:
    """Serve until SIGTERM or SIGINT. The first line printed ends with the URL.

    A peer that speaks TLS is scripted at the next port, on loopback and in clear.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # taken below, never in the middle of something
    try:
        peer.start()
        if peer.tls:
            _Control(peer).start()
    except OSError as error:
        print(f"{name}: cannot listen on {peer.host}:{peer.port}: {error.strerror}", flush=True)
        return 1
    print(f"{name} listening on {peer.url}", flush=True)
    signal.sigwait(ends)
    return 0
