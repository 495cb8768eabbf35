"""The catalogue of misbehaviours that a peer can play instead of an answer.

Each is a factory: `slow(3)` or `huge_body(megabytes=20)` gives a Fault, a callable that plays on
the connection of an Exchange. FAULTS holds one of each, made with its default parameters, by name;
`status_404` and its like are there too, and what the tables SENT, HEADLESS and BODIES hold. All are
bounded in bytes and in time and end as soon as the client goes away or the peer stops (which shuts
the connection down, so both look the same from here).
"""

from __future__ import annotations

import functools
import itertools
import json
import random
import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Concatenate, ParamSpec

if TYPE_CHECKING:
    from kit.peers.server import Exchange

Fault = Callable[["Exchange"], None]
P = ParamSpec("P")

FAULTS: dict[str, Fault] = {}
TLS_FAULTS: dict[str, Fault] = {}  # tls.py fills it
FACTORIES: dict[str, Callable[..., Fault]] = {}

SECONDS = 120.0  # no fault plays longer
MEGABYTE = 1 << 20
ENDLESS = 400 * MEGABYTE  # bytes that stand for "without an end"
FORGED = "2026-01-01 00:00:00 INFO Service registered successfully"
STATUSES = (
    101, 102, 103, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 409, 410, 418, 422, 429,
    500, 502, 503, 504, 599, 999,
)  # fmt: skip


def factory(play: Callable[Concatenate[Exchange, P], None]) -> Callable[P, Fault]:
    """Turn play(exchange, parameters...) into a factory of faults."""

    def made(*args: P.args, **kwargs: P.kwargs) -> Fault:
        def played(exchange: Exchange) -> None:
            play(exchange, *args, **kwargs)

        played.__name__ = name
        return played

    name: str = play.__name__
    made.__doc__ = play.__doc__
    FACTORIES[name] = made
    return made


def fault(play: Callable[Concatenate[Exchange, P], None]) -> Callable[P, Fault]:
    """Do the same, and put the fault with its default parameters into the catalogue."""
    made = factory(play)
    FAULTS[play.__name__] = made()  # type: ignore[call-arg]  # every parameter has a default
    return made


def resolve(what: object) -> Fault:
    """Return the fault for a name, a list [name, parameter...] or a callable.

    Raises KeyError, TypeError.
    """
    if callable(what):
        return what
    if isinstance(what, str):
        return (FAULTS | TLS_FAULTS)[what]
    if isinstance(what, list) and what:
        return FACTORIES[what[0]](*what[1:])
    raise TypeError(f"not a fault: {what!r}")


# Tools. Whatever goes out raw leaves the connection unfit for another request: close_connection.


def _send(exchange: Exchange, data: bytes) -> None:
    exchange.close_connection = True
    exchange.connection.settimeout(SECONDS)
    exchange.raw(data)


def _head(*lines: str, status: str = "200 OK") -> bytes:
    fields = ("Content-Type: application/json", *lines)
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode("latin-1")


def _client_waits(exchange: Exchange, seconds: float) -> bool:
    """Wait so many seconds; return False at once when the connection has ended."""
    exchange.close_connection = True
    exchange.connection.settimeout(max(seconds, 0.001))
    try:
        if not socket.socket.recv(exchange.connection, 1, socket.MSG_PEEK):  # below TLS
            return False
        time.sleep(seconds)  # the client sent more: then this tells nothing
    except TimeoutError:
        pass
    except OSError:
        return False
    return True


def _pour(exchange: Exchange, blocks: Iterable[bytes], pause: float = 0.0) -> None:
    """Send the blocks, with a pause in seconds before each, until they end or the time is over."""
    exchange.close_connection = True
    end = time.monotonic() + SECONDS
    for block in blocks:
        left = end - time.monotonic()
        if left <= 0 or (pause and not _client_waits(exchange, pause)):
            return
        exchange.connection.settimeout(left)
        exchange.raw(block)


def _again(block: bytes, total: int) -> Iterable[bytes]:
    """Return the block as often as makes this many bytes."""
    return itertools.repeat(block, total // len(block))


def _byte_by_byte(blocks: Iterable[bytes]) -> Iterable[bytes]:
    return (bytes([byte]) for block in blocks for byte in block)


# The connection.


@fault
def garbage(exchange: Exchange, size: int = 4096) -> None:
    """Send bytes that are no HTTP, with control characters and a forged log line, then close."""
    start = f"\x1b[2J\x1b]0;x\x07\x00\r{FORGED}\n{FORGED}\r\n"
    _send(exchange, start.encode() + random.Random(size).randbytes(size))


@fault
def reset(exchange: Exchange) -> None:
    """RST instead of an answer."""
    exchange.close_connection = True
    exchange.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # The socket is closed, and the reset sent, only when its last file is closed too.
    exchange.rfile.close()
    exchange.connection.close()


@fault
def close(exchange: Exchange) -> None:
    """FIN instead of an answer."""
    exchange.close_connection = True


@fault
def hang(exchange: Exchange, seconds: float = SECONDS) -> None:
    """Never answer; close after so many seconds."""
    _client_waits(exchange, seconds)


@fault
def slow(exchange: Exchange, seconds: float = 3.0) -> None:
    """Send the sane answer, so many seconds late (and never where the client has gone by then)."""
    keep = not exchange.close_connection
    if _client_waits(exchange, seconds):
        exchange.connection.settimeout(SECONDS)
        exchange.close_connection = not keep
        exchange.sane()


@fault
def drip_headers(exchange: Exchange, pause: float = 1.0) -> None:
    """Send status line and headers a byte a second, for two minutes."""
    head = _head("Content-Length: 2", "X-Padding: " + "x" * 1000)
    _pour(exchange, _byte_by_byte([head, b"{}"]), pause)


@fault
def drip_body(exchange: Exchange, pause: float = 1.0, status: str = "200 OK") -> None:
    """Headers at once, the body a byte a second."""
    _send(exchange, _head("Content-Length: 1000", status=status))
    _pour(exchange, _again(b" ", 1000), pause)


# The status.


@fault
def status(
    exchange: Exchange,
    code: int = 500,
    body: object = None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Send a well-formed answer with this status; body as in Answer, by default a JSON detail."""
    moved = {"Location": "/elsewhere"} if code in (301, 302, 307, 308) else {}
    body = {"detail": f"status {code} played by the test peer"} if body is None else body
    exchange.reply(code, body, {**moved, **(headers or {})})


for _code in STATUSES:
    FAULTS[f"status_{_code}"] = status(_code)


@fault
def redirect(
    exchange: Exchange, url: str = "http://127.0.0.1:9/elsewhere", code: int = 307
) -> None:
    """Send a redirect to this URL."""
    exchange.reply(code, None, {"Location": url})


def html_page(code: int, phrase: str) -> str:
    """Return the error page of nginx."""
    return (
        f"<html>\r\n<head><title>{code} {phrase}</title></head>\r\n<body>\r\n"
        f"<center><h1>{code} {phrase}</h1>"
        "</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )


@fault
def html_502(exchange: Exchange) -> None:
    """Send the page of nginx when no replica is left."""
    exchange.reply(502, html_page(502, "Bad Gateway"), {"Content-Type": "text/html"})


@fault
def control_reason(exchange: Exchange) -> None:
    """Send a reason phrase and a Location full of control characters."""
    _send(exchange, _head("Location: http://x/\x1b[31m\r" + FORGED, "Content-Length: 0",
                          status=f"307 \x1b[2J\x07\x9b31m\r{FORGED}"))  # fmt: skip


# Framing.


@fault
def empty(exchange: Exchange) -> None:
    """200 with nothing in it."""
    exchange.reply(200)


@fault
def cut_headers(exchange: Exchange) -> None:
    """Close in the middle of the headers."""
    _send(exchange, _head("Content-Length: 2", "X-Cut: here")[:-8])


@fault
def long_length(exchange: Exchange) -> None:
    """Promise more of a body than comes before the close."""
    _send(exchange, _head("Content-Length: 1000") + b"{}")


@fault
def short_length(exchange: Exchange) -> None:
    """Promise less of a body than is sent; the rest would be the start of the next answer."""
    _send(exchange, _head("Content-Length: 2") + b'{}{"status":"healthy"}')


@fault
def bad_length(exchange: Exchange) -> None:
    """Send a length that is no number."""
    _send(exchange, _head("Content-Length: banana") + b"{}")


@fault
def two_lengths(exchange: Exchange) -> None:
    """Two lengths that differ."""
    _send(exchange, _head("Content-Length: 2", "Content-Length: 20") + b"{}")


@fault
def broken_chunks(exchange: Exchange) -> None:
    """Send a chunk with a size that is no number, after a good one."""
    _send(exchange, _head("Transfer-Encoding: chunked") + b"2\r\n{}\r\nzebra\r\n{}\r\n0\r\n\r\n")


@fault
def interim(exchange: Exchange, *codes: int, link: str = "</style.css>; rel=preload") -> None:
    """Send a good answer after these 1xx ones (by default 103), each with a header."""
    fields = f"Link: {link}\r\n\r\n"
    exchange.raw("".join(f"HTTP/1.1 {code} Wait\r\n{fields}" for code in codes or (103,)).encode())
    exchange.reply(200, {"status": "healthy"})


@fault
def long_header(exchange: Exchange, size: int = 5000) -> None:
    """Send a good answer with a header line of this size."""
    exchange.reply(200, {"status": "healthy"}, {"X-Long": "x" * size})


@fault
def answer_then_reset(exchange: Exchange) -> None:
    """Send a whole answer, and RST after it, as from a peer that never read the request."""
    exchange.reply(200, {"status": "healthy"})
    reset()(exchange)


@fault
def raw(exchange: Exchange, data: bytes = b"SSH-2.0-OpenSSH_9.9\r\n") -> None:
    """Send these bytes, then close."""
    _send(exchange, data)


_HTTP2 = b"\0\0\0\x04\0\0\0\0\0"  # an empty SETTINGS frame
_TLS_ALERT = b"\x15\x03\x01\0\x02\x02\x46"  # fatal, protocol version
SENT: dict[str, bytes] = {
    "tls_alert": _TLS_ALERT,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2,
    "http09": b"<html><body>healthy</body></html>\n",
    "body_after_204": b"HTTP/1.1 204 No Content\r\n\r\n{}",
    "body_after_304": b"HTTP/1.1 304 Not Modified\r\n\r\n{}",
    "two_answers": 2 * (_head("Content-Length: 2") + b"{}"),
    "length_cut": _head(f"Content-Length: {10**30}") + b"{}",
    "trailers_cut": _head("Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\nX-Trailer: ",
}
FAULTS |= {name: raw(data) for name, data in SENT.items()}


@fault
def many_headers(exchange: Exchange, number: int = 10_000) -> None:
    """Send a good answer with so many headers."""
    _send(
        exchange, _head(*(f"X-Header-{n}: {n}" for n in range(number)), "Content-Length: 2") + b"{}"
    )


# Without an end: each as fast as the client reads, and byte by byte.


@fault
def endless(
    exchange: Exchange, start: bytes = b"", block: bytes = b"\r\n", pause: float = 0.0
) -> None:
    """Send these bytes, then this block again and again; with a pause (in seconds) byte by byte."""
    exchange.connection.settimeout(SECONDS)
    exchange.raw(start)
    if pause:
        _pour(exchange, _byte_by_byte(_again(block, ENDLESS)), pause)
    else:
        _pour(exchange, _again(block * (65536 // len(block)), ENDLESS))


DRIP = 0.02  # seconds; never so long between two bytes that a socket's own time-out ends it
_OK = b"HTTP/1.1 200 OK\r\n"
_CHUNKED = _head("Transfer-Encoding: chunked")
_LAST = _CHUNKED + b"2\r\n{}\r\n0\r\n"
_SIXTEEN = b" " * 16 + b"\r\n"

# What comes first, and what without an end. These never get to the end of their headers...
HEADLESS: dict[str, tuple[bytes, bytes]] = {
    "status_100": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "interim_102": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "interim_103": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"),
    "interim_headers": (b"HTTP/1.1 103 Early Hints\r\n", b"Link: </style.css>; rel=preload\r\n"),
    "interim_header_line": (b"HTTP/1.1 103 Early Hints\r\nLink: ", b"x"),
    "endless_status_line": (b"HTTP/1.1 200 ", b"x"),
    "endless_header_line": (_OK + b"X-Long: ", b"x"),
    "endless_header_lines": (_OK, b"X-Short: x\r\n"),
    "endless_folded_line": (_OK + b"X-Folded:\r\n", b" x\r\n"),
    "endless_text": (b"", b"<html>"),
    "endless_tls_alerts": (b"", _TLS_ALERT),
    "endless_http2": (b"", _HTTP2),
}
# ... and these do.
BODIES: dict[str, tuple[bytes, bytes]] = {
    "chunk_negative": (_CHUNKED + b"-1\r\n", b" "),
    "chunk_minus_zero": (_CHUNKED, b"-0\r\n"),
    "chunk_huge": (_CHUNKED + b"f" * 30 + b"\r\n", b" "),
    "chunk_plus": (_CHUNKED, b"+10\r\n" + _SIXTEEN),
    "chunk_0x": (_CHUNKED, b"0x10\r\n" + _SIXTEEN),
    "chunk_underscore": (_CHUNKED, b"1_0\r\n" + _SIXTEEN),
    "chunk_blanks": (_CHUNKED, b" \t10 \r\n" + _SIXTEEN),
    "chunk_without_size": (_CHUNKED, b"\r\n"),
    "chunks_of_one_byte": (_CHUNKED, b"1\r\n \r\n"),
    "chunk_extensions": (_CHUNKED, b"1;x=" + b"x" * 1000 + b"\r\n \r\n"),
    "endless_chunk_line": (_CHUNKED, b"0"),
    "endless_chunk_extension": (_CHUNKED + b"2;x=", b"x"),
    "endless_trailers": (_LAST, b"X-Trailer: x\r\n"),
    "endless_trailer_line": (_LAST + b"X-Trailer: ", b"x"),
    "endless_after_last_chunk": (_LAST + b"\r\n", b" "),
    "endless_after_length": (_head("Content-Length: 2") + b"{}", b" "),
    "endless_after_204": (b"HTTP/1.1 204 No Content\r\n\r\n", b" "),
    "endless_after_304": (b"HTTP/1.1 304 Not Modified\r\n\r\n", b" "),
    "endless_body": (_head("Connection: close"), b"{"),
    "length_negative": (_head("Content-Length: -1"), b" "),
    "length_plus": (_head("Content-Length: +50"), b" "),
    "length_huge": (_head(f"Content-Length: {10**30}"), b" "),
    "length_underscore": (_head("Content-Length: 5_0"), b" "),
    "length_blank": (_head("Content-Length: 5 0"), b" "),
}
for _name, (_start, _block) in (HEADLESS | BODIES).items():
    FAULTS |= {_name: endless(_start, _block), f"{_name}_drip": endless(_start, _block, DRIP)}


# The body.


@fault
def gzip_not(exchange: Exchange) -> None:
    """Send a body that is said to be gzip and is not."""
    exchange.reply(200, {"status": "healthy"}, {"Content-Encoding": "gzip"})


@functools.lru_cache(maxsize=4)
def bomb(megabytes: int) -> bytes:
    """Return so much of nothing, packed. Takes a while the first time."""
    squeeze = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(MEGABYTE)
    return b"".join(squeeze.compress(block) for _ in range(megabytes)) + squeeze.flush()


@fault
def gzip_bomb(exchange: Exchange, megabytes: int = 128, chunked: bool = False) -> None:
    """Send a small body that inflates about a thousandfold."""
    packed = bomb(megabytes)
    if chunked:
        framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed)
        _send(exchange, _head("Content-Encoding: gzip", "Transfer-Encoding: chunked") + framed)
    else:
        exchange.reply(
            200, packed, {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        )


@fault
def huge_body(exchange: Exchange, megabytes: int = 300, status: str = "200 OK") -> None:
    """Send a body of this size, with its length."""
    _send(exchange, _head(f"Content-Length: {megabytes * MEGABYTE}", status=status))
    _pour(exchange, _again(b" " * 65536, megabytes * MEGABYTE))


@fault
def huge_chunked(exchange: Exchange, megabytes: int = 300) -> None:
    """Send a body of this size in chunks."""
    _send(exchange, _head("Transfer-Encoding: chunked"))
    _pour(exchange, [b"10000\r\n" + b" " * 65536 + b"\r\n"] * (megabytes * 16))
    exchange.raw(b"0\r\n\r\n")


NASTY = (
    f"\x1b[31mred\x1b[0m\x07\x00\r\n{FORGED}\n\u2028{FORGED}"
    "\u2029\u0085\x9b2J\u202eesrever\u2066\ufeff"
)


@fault
def control_characters(exchange: Exchange, code: int = 500) -> None:
    """Send a JSON detail with escape sequences, line ends, a forged log line, bidi overrides."""
    exchange.reply(code, {"detail": NASTY, "status": NASTY, "version": NASTY})


@fault
def control_text(exchange: Exchange, code: int = 500) -> None:
    """Send the same as plain text."""
    exchange.reply(code, NASTY)


@fault
def echo_token(exchange: Exchange, code: int = 500) -> None:
    """Send an error that repeats the secrets of the request."""
    token, login = (exchange.headers.get(name) for name in ("X-Registry-Token", "Authorization"))
    exchange.reply(code, {"detail": f"X-Registry-Token: {token}, Authorization: {login} refused"})


@fault
def deep_json(exchange: Exchange, depth: int = 100_000) -> None:
    """Brackets in brackets, more than a parser's stack holds."""
    exchange.reply(200, b"[" * depth, {"Content-Type": "application/json"})


@fault
def json_text(exchange: Exchange, text: str | bytes = b"{") -> None:
    """200 with these bytes, said to be JSON."""
    exchange.reply(200, text, {"Content-Type": "application/json"})


_HUGE = json.dumps({"status": "s" * 1000, "version": "9" * 60_000})
for _name, _text in {
    "not_utf8": b'{"status":"\xff\xfe","version":"\xc3("}',
    "nan_json": b'{"status":NaN,"version":-Infinity,"load":1e999}',
    "huge_int_json": b'{"version":' + b"9" * 10_000 + b"}",
    "surrogate_json": b'{"status":"\\ud800","version":"\\udfff"}',
    "json_list": b'["healthy"]',
    "json_null": b"null",
    "json_nested": b'{"status":{"a":[1]},"version":{"b":null}}',
    "json_huge_strings": _HUGE.encode(),
}.items():
    FAULTS[_name] = json_text(_text)

for _name, _fault in FAULTS.items():
    _fault.__name__ = _name  # for a verbose peer's lines
