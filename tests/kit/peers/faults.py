"""The catalogue of misbehaviours that a peer can play instead of an answer.

A Fault plays on the connection of an Exchange. FAULTS has them by name, TLS_FAULTS those below HTTP
(tls.py), FACTORIES what makes others: `["slow", 3]`, `["huge_body", 20]`. All are bounded in bytes
and in time and end as soon as the client goes away or the peer stops (which shuts the connection
down, so both look the same from here).
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
DRIP = 0.02  # seconds; never so long between two bytes that a socket's own time-out ends it
FORGED = "2026-01-01 00:00:00 INFO Service registered successfully"
NASTY = (
    f"\x1b[31mred\x1b[0m\x07\x00\r\n{FORGED}\n\u2028{FORGED}"
    "\u2029\u0085\x9b2J\u202eesrever\u2066\ufeff"
)


def factory(play: Callable[Concatenate[Exchange, P], None]) -> Callable[P, Fault]:
    """Turn play(exchange, parameters...) into a factory of faults."""

    def made(*args: P.args, **kwargs: P.kwargs) -> Fault:
        return lambda exchange: play(exchange, *args, **kwargs)

    return made


def fault(play: Callable[Concatenate[Exchange, P], None]) -> Callable[P, Fault]:
    """Do the same, and put the fault with its default parameters into the catalogue."""
    FACTORIES[play.__name__] = made = factory(play)
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


def send(exchange: Exchange, data: bytes, *, below: bool = False) -> None:
    """Send these bytes, below TLS where asked. Raises OSError where the client has gone."""
    exchange.close_connection = True
    exchange.connection.settimeout(SECONDS)
    if below:
        socket.socket.sendall(exchange.connection, data)
    else:
        exchange.raw(data)


def _head(*lines: str, status: str = "200 OK") -> bytes:
    fields = ("Content-Type: application/json", *lines)
    return "\r\n".join((f"HTTP/1.1 {status}", *fields, "", "")).encode("latin-1")


def client_waits(exchange: Exchange, seconds: float) -> bool:
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


def pour(
    exchange: Exchange, blocks: Iterable[bytes], pause: float = 0.0, *, below: bool = False
) -> None:
    """Send the blocks, with a pause in seconds before each, until they end or the time is over."""
    end = time.monotonic() + SECONDS
    for block in blocks:
        if time.monotonic() > end or (pause and not client_waits(exchange, pause)):
            return
        send(exchange, block, below=below)


def byte_by_byte(*blocks: bytes) -> Iterable[bytes]:
    return (bytes([byte]) for block in blocks for byte in block)


# The connection.


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
    client_waits(exchange, seconds)


@fault
def slow(exchange: Exchange, seconds: float = 3.0) -> None:
    """Send the sane answer, so many seconds late (and never where the client has gone by then)."""
    closes = exchange.close_connection
    if client_waits(exchange, seconds):
        exchange.connection.settimeout(SECONDS)
        exchange.close_connection = closes
        exchange.sane()


@fault
def drip_headers(exchange: Exchange, pause: float = 1.0) -> None:
    """Send status line and headers a byte a second."""
    head = _head("Content-Length: 2", "X-Padding: " + "x" * 1000)
    pour(exchange, byte_by_byte(head, b"{}"), pause)


@fault
def drip_body(exchange: Exchange, pause: float = 1.0, status: str = "200 OK") -> None:
    """Headers at once, the body a byte a second."""
    send(exchange, _head("Content-Length: 1000", status=status))
    pour(exchange, itertools.repeat(b" ", 1000), pause)


# Well-formed answers.


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


@fault
def redirect(
    exchange: Exchange, url: str = "http://127.0.0.1:9/elsewhere", code: int = 307
) -> None:
    """Send a redirect to this URL."""
    exchange.reply(code, None, {"Location": url})


@fault
def json_text(exchange: Exchange, text: str | bytes = b"{") -> None:
    """200 with these bytes, said to be JSON."""
    exchange.reply(200, text, {"Content-Type": "application/json"})


@fault
def interim(exchange: Exchange, *codes: int) -> None:
    """Send a good answer after these 1xx ones (by default 103), each with a header."""
    for code in codes or (103,):
        exchange.raw(b"HTTP/1.1 %d Wait\r\nLink: </style.css>; rel=preload\r\n\r\n" % code)
    exchange.reply(200, GOOD)


@fault
def answer_then_reset(exchange: Exchange) -> None:
    """Send a whole answer, and RST after it, as from a peer that never read the request."""
    exchange.reply(200, GOOD)
    reset()(exchange)


@fault
def echo_token(exchange: Exchange) -> None:
    """Send an error that repeats the secrets of the request."""
    token, login = (exchange.headers.get(name) for name in ("X-Registry-Token", "Authorization"))
    exchange.reply(500, {"detail": f"X-Registry-Token: {token}, Authorization: {login} refused"})


def html_page(code: int, phrase: str) -> str:
    """Return the error page of nginx."""
    return (
        f"<html>\r\n<head><title>{code} {phrase}</title></head>\r\n<body>\r\n"
        f"<center><h1>{code} {phrase}</h1>"
        "</center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    )


GOOD = {"status": "healthy"}
CONTROLS = dict.fromkeys(("detail", "status", "version"), NASTY)
STATUSES = (
    101, 102, 103, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 409, 410, 418, 422, 429,
    500, 502, 503, 504, 599, 999,
)  # fmt: skip
JSON_TEXTS: dict[str, str | bytes] = {
    "not_utf8": b'{"status":"\xff\xfe","version":"\xc3("}',
    "nan_json": b'{"status":NaN,"version":-Infinity,"load":1e999}',
    "huge_int_json": b'{"version":' + b"9" * 10_000 + b"}",
    "surrogate_json": b'{"status":"\\ud800","version":"\\udfff"}',
    "json_list": b'["healthy"]',
    "json_null": b"null",
    "json_nested": b'{"status":{"a":[1]},"version":{"b":null}}',
    "json_huge_strings": json.dumps({"status": "s" * 1000, "version": "9" * 60_000}),
    "deep_json": b"[" * 100_000,  # more than a parser's stack holds
}
FAULTS |= {
    **{f"status_{code}": status(code) for code in STATUSES},
    **{name: json_text(text) for name, text in JSON_TEXTS.items()},
    "empty": status(200, ""),
    "html_502": status(502, html_page(502, "Bad Gateway"), {"Content-Type": "text/html"}),
    "long_header": status(200, GOOD, {"X-Long": "x" * 5000}),
    "gzip_not": status(200, GOOD, {"Content-Encoding": "gzip"}),
    "control_characters": status(500, CONTROLS),
    "control_text": status(500, NASTY),
}


# Bytes as they are, then the connection is closed.


@factory
def raw(exchange: Exchange, data: bytes) -> None:
    """Send these bytes, then close."""
    send(exchange, data)


_LENGTH_2 = _head("Content-Length: 2") + b"{}"
_CHUNKED = _head("Transfer-Encoding: chunked")
_HTTP2 = b"\0\0\0\x04\0\0\0\0\0"  # an empty SETTINGS frame
_TLS_ALERT = b"\x15\x03\x01\0\x02\x02\x46"  # fatal, protocol version
_LINES = f"\x1b[2J\x1b]0;x\x07\x00\r{FORGED}\n{FORGED}\r\n".encode()
SENT: dict[str, bytes] = {
    "raw": b"SSH-2.0-OpenSSH_9.9\r\n",
    "garbage": _LINES + random.Random(4096).randbytes(4096),
    "control_reason": _head(
        f"Location: http://x/\x1b[31m\r{FORGED}",
        "Content-Length: 0",
        status=f"307 \x1b[2J\x07\x9b31m\r{FORGED}",
    ),
    "cut_headers": _head("Content-Length: 2", "X-Cut: here")[:-8],
    "long_length": _head("Content-Length: 1000") + b"{}",
    "short_length": _LENGTH_2 + b'{"status":"healthy"}',
    "bad_length": _head("Content-Length: banana") + b"{}",
    "two_lengths": _head("Content-Length: 2", "Content-Length: 20") + b"{}",
    "broken_chunks": _CHUNKED + b"2\r\n{}\r\nzebra\r\n{}\r\n0\r\n\r\n",
    "many_headers": _head(*(f"X-Header-{n}: {n}" for n in range(10_000)), "Content-Length: 2")
    + b"{}",
    "tls_alert": _TLS_ALERT,
    "http2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _HTTP2,
    "http09": b"<html><body>healthy</body></html>\n",
    "body_after_204": b"HTTP/1.1 204 No Content\r\n\r\n{}",
    "body_after_304": b"HTTP/1.1 304 Not Modified\r\n\r\n{}",
    "two_answers": 2 * _LENGTH_2,
    "length_cut": _head(f"Content-Length: {10**30}") + b"{}",
    "trailers_cut": _CHUNKED + b"2\r\n{}\r\n0\r\nX-Trailer: ",
}
FAULTS |= {name: raw(data) for name, data in SENT.items()}


# Without an end: each as fast as the client reads, and byte by byte.


@fault
def endless(
    exchange: Exchange, start: bytes = b"", block: bytes = b"\r\n", pause: float = 0.0
) -> None:
    """Send these bytes, then this block again and again; with a pause (in seconds) byte by byte."""
    send(exchange, start)
    if pause:
        pour(exchange, byte_by_byte(*itertools.repeat(block, 10_000)), pause)
    else:
        much = block * (65536 // len(block))
        pour(exchange, itertools.repeat(much, ENDLESS // len(much)))


_OK = b"HTTP/1.1 200 OK\r\n"
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
    "endless_after_length": (_LENGTH_2, b" "),
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


# Large bodies.


@functools.lru_cache(maxsize=4)
def bomb(megabytes: int) -> bytes:
    """Return so much of nothing, packed: the same block again and again."""
    squeeze, nothing, check = zlib.compressobj(9, wbits=-15), bytes(MEGABYTE), 0
    block = squeeze.compress(nothing) + squeeze.flush(zlib.Z_FULL_FLUSH)
    for _ in range(megabytes):
        check = zlib.crc32(nothing, check)
    end = b"\3\0" + struct.pack("<II", check, megabytes * MEGABYTE)
    return b"\x1f\x8b\x08" + bytes(7) + block * megabytes + end


@fault
def gzip_bomb(exchange: Exchange, megabytes: int = 128, chunked: bool = False) -> None:
    """Send a small body that inflates about a thousandfold."""
    packed = bomb(megabytes)
    length = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(packed)}"
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(packed), packed) if chunked else packed
    send(exchange, _head("Content-Encoding: gzip", length) + framed)


@fault
def huge_body(exchange: Exchange, megabytes: int = 300, status: str = "200 OK") -> None:
    """Send a body of this size, with its length."""
    send(exchange, _head(f"Content-Length: {megabytes * MEGABYTE}", status=status))
    pour(exchange, itertools.repeat(b" " * 65536, megabytes * 16))


@fault
def huge_chunked(exchange: Exchange, megabytes: int = 300) -> None:
    """Send a body of this size in chunks."""
    send(exchange, _CHUNKED)
    pour(exchange, itertools.repeat(b"10000\r\n" + b" " * 65536 + b"\r\n", megabytes * 16))
    send(exchange, b"0\r\n\r\n")


for _name, _fault in FAULTS.items():
    _fault.__name__ = _name  # for a verbose peer's lines
