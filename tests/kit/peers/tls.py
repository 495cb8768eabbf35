"""What a peer that speaks TLS can do wrong below HTTP: floods, tiny records, drips, cuts, alerts.

Each fault is played as soon as a connection is open (CONNECT), at a Peer with `tls`; it has the
bytes below the peer's own TLS. TLS_FAULTS holds one of each by name, FACTORIES how to make others:

    peer.play(CONNECT, "tls_hello_requests", times=None)
    peer.play(CONNECT, ["tls_fatal", 48])

All are bounded in time, and end as soon as the client goes away or the peer stops.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import socket
import ssl
import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kit.peers.faults import TLS_FAULTS, Fault, factory, reset

if TYPE_CHECKING:
    from kit.peers.server import Exchange

SECONDS = 120.0  # no fault plays longer
DRIP = 0.02  # seconds between two bytes
V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CIPHER_CHANGE, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23  # what a record can hold
WARNING, FATAL = 1, 2
USER_CANCELED = 90
ALERTS = {
    "handshake_failure": 40,
    "bad_certificate": 42,
    "certificate_unknown": 46,
    "unknown_ca": 48,
    "access_denied": 49,
    "protocol_version": 70,
    "internal_error": 80,
    "unrecognized_name": 112,
    "certificate_required": 116,
}
TICKETS = 1000  # of about 250 bytes: more than an exchange has a budget for
TINY = 150_000  # records of a byte
CHAIN = 250  # certificates, more than 128 KB


def record(kind: int, content: bytes) -> bytes:
    """Return a record in clear."""
    return struct.pack(">BHH", kind, 0x0303, len(content)) + content


HELLO_REQUEST = record(HANDSHAKE, bytes(4))
# What a server may not send, or a client has to skip, before the handshake has begun: the block
# that comes without an end, and what comes before it.
FLOODS: dict[str, tuple[bytes, bytes]] = {
    "tls_hello_requests": (HELLO_REQUEST, b""),
    "tls_warnings": (record(ALERT, bytes([WARNING, USER_CANCELED])), b""),
    "tls_cipher_changes": (record(CIPHER_CHANGE, b"\1"), b""),
    "tls_empty_handshakes": (record(HANDSHAKE, b""), b""),
    "tls_empty_data": (record(DATA, b""), b""),
    "tls_data": (record(DATA, bytes(64)), b""),
    "tls_unknown_records": (record(99, b"?"), b""),
    "tls_zeros": (bytes(64), b""),
    # A ServerHello of 16 MB, a status request's answer of the same size.
    "tls_long_hello": (record(HANDSHAKE, bytes(16_000)), record(HANDSHAKE, b"\2\xff\xff\xff")),
    "tls_long_message": (record(HANDSHAKE, b" "), record(HANDSHAKE, b"\x16\xff\xff\xff")),
}


class Below:
    """A connection's bytes below the TLS of its peer."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.socket = exchange, exchange.connection
        exchange.close_connection = True
        self.end = time.monotonic() + SECONDS

    def send(self, data: bytes) -> None:
        """Send these bytes. Raises OSError where the client has gone, or the time is over."""
        self.socket.settimeout(max(self.end - time.monotonic(), 0.001))
        socket.socket.sendall(self.socket, data)

    def receive(self) -> bytes:
        """Return what comes next. Raises OSError where nothing does."""
        self.socket.settimeout(max(self.end - time.monotonic(), 0.001))
        data = socket.socket.recv(self.socket, 65536)
        if not data:
            raise ConnectionResetError
        return data

    def pour(self, blocks: Iterable[bytes], pause: float = 0.0) -> None:
        """Send the blocks, with a pause in seconds before each, until they or the time end."""
        for block in blocks:
            if pause and self.server_stops(pause):
                return
            self.send(block)

    def server_stops(self, seconds: float) -> bool:
        """Wait so many seconds, at most until the end; tell whether the peer has been stopped."""
        left = max(self.end - time.monotonic(), 0.0)
        return self.exchange.server.stopping.wait(min(seconds, left)) or not left

    def wait(self) -> None:
        """Read what comes, and answer nothing, until the client goes."""
        with contextlib.suppress(OSError):
            while True:
                self.receive()

    def hear_hello(self) -> bytes:
        """Return the ClientHello."""
        data = b""
        while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
            data += self.receive()
        return data


def heard(exchange: Exchange) -> Below:
    """Return the bytes below, once the ClientHello has come."""
    below = Below(exchange)
    below.hear_hello()
    return below


def without_end(block: bytes) -> Iterable[bytes]:
    return itertools.repeat(block * (65536 // len(block) or 1))


def byte_by_byte(data: bytes) -> Iterable[bytes]:
    return (bytes([byte]) for byte in data)


def split_records(data: bytes) -> list[bytes]:
    """Return the records in these bytes, each with its header."""
    found = []
    while data:
        size = 5 + int.from_bytes(data[3:5], "big")
        found.append(data[:size])
        data = data[size:]
    return found


def in_tiny_records(flight: bytes) -> bytes:
    """Return the same handshake in records of one byte, what is encrypted as it was."""
    records = []
    for one in split_records(flight):
        clear = one[0] == HANDSHAKE
        records += [record(HANDSHAKE, byte) for byte in byte_by_byte(one[5:])] if clear else [one]
    return b"".join(records)


class Session:
    """The server's side of TLS, over the bytes below; what it says is in hand before it goes out.

    Args: the only version; how many tickets follow a handshake of 1.3; how often the certificate
    stands in its own chain; whether the client has to have one.
    """

    def __init__(
        self,
        exchange: Exchange,
        version: ssl.TLSVersion = V13,
        *,
        tickets: int = 0,
        chain: int = 1,
        wants_certificate: bool = False,
    ) -> None:
        self.below = Below(exchange)
        files = exchange.server.peer.tls
        assert files, "the peer speaks no TLS"
        self.context = context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as chained:
            Path(chained.name).write_bytes(Path(files[0]).read_bytes() * chain)
            context.load_cert_chain(chained.name, files[1])
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ECDHE+AES128+AESGCM")  # of 1.2
        context.num_tickets = tickets
        if wants_certificate:
            context.load_verify_locations(files[0])
            context.verify_mode = ssl.CERT_REQUIRED
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_side=True)
        self.random = b""  # the server's, in clear in its first flight

    def flight(self) -> bytes:
        """Hear the ClientHello; return what the server answers."""
        self.incoming.write(self.below.hear_hello())
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        flight = self.outgoing.read()
        self.random = flight[11:43]
        return flight

    def flush(self) -> None:
        if self.outgoing.pending:
            self.below.send(self.outgoing.read())

    def patiently(self, call: Callable[..., object], *arguments: object) -> object:
        """Repeat the call until the client has said what it needs. Raises OSError."""
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(self.below.receive())
            finally:
                self.flush()

    def shake(self, cut: Callable[[bytes], bytes] = bytes) -> None:
        """Shake hands; `cut` makes what is sent of the server's first flight."""
        self.below.send(cut(self.flight()))
        self.patiently(self.tls.do_handshake)

    def hear_request(self) -> None:
        """Read until the headers of a request have ended."""
        request = b""
        while b"\r\n\r\n" not in request:
            data = self.patiently(self.tls.read, 65536)
            assert isinstance(data, bytes)
            request += data

    def begin(self, cut: Callable[[bytes], bytes] = bytes) -> None:
        """Shake hands and read the request."""
        self.shake(cut)
        self.hear_request()

    def sealed(self, *texts: bytes) -> bytes:
        """Return a record, or several, for each text."""
        for text in texts:
            self.tls.write(text)
        return self.outgoing.read()

    def say(self, *texts: bytes) -> None:
        """Send these, each in a record of its own."""
        self.below.send(self.sealed(*texts))


def head(*lines: str) -> bytes:
    """Return a good status and these header lines."""
    return "\r\n".join(("HTTP/1.1 200 OK", *lines, "", "")).encode()


ANSWER = head("Content-Length: 2", "Content-Type: application/json", "Connection: close") + b"{}"
OPEN_BODY = head("Connection: close")  # ends with the connection


# Instead of a handshake.


@factory
def tls_flood(exchange: Exchange, block: bytes = HELLO_REQUEST, start: bytes = b"") -> None:
    """After the ClientHello this block without an end."""
    below = heard(exchange)
    below.send(start)
    below.pour(without_end(block))


@factory
def tls_drip(exchange: Exchange, pause: float = DRIP) -> None:
    """Send a record that a client skips, now and then, without an end."""
    heard(exchange).pour(itertools.repeat(HELLO_REQUEST), pause)


@factory
def tls_silence(exchange: Exchange) -> None:
    """Nothing after the ClientHello."""
    heard(exchange).wait()


@factory
def tls_close(exchange: Exchange) -> None:
    """FIN after the ClientHello."""
    heard(exchange)


@factory
def tls_reset(exchange: Exchange) -> None:
    """RST after the ClientHello."""
    heard(exchange)
    reset()(exchange)


@factory
def tls_fatal(exchange: Exchange, code: int = ALERTS["handshake_failure"]) -> None:
    """Send this fatal alert after the ClientHello."""
    heard(exchange).send(record(ALERT, bytes([FATAL, code])))


@factory
def tls_plain(exchange: Exchange) -> None:
    """Send what a plain HTTP server says to a ClientHello."""
    below = heard(exchange)
    below.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


@factory
def tls_cut(exchange: Exchange, size: int = 3, version: int = V13) -> None:
    """So many bytes of the server's first flight, then FIN; by default not even a header."""
    session = Session(exchange, ssl.TLSVersion(version))
    session.below.send(session.flight()[:size])


# In the handshake.


@factory
def tls_stops_shaking(exchange: Exchange, version: int = V12) -> None:
    """Send the server's first flight, and nothing more."""
    session = Session(exchange, ssl.TLSVersion(version))
    session.below.send(session.flight())
    session.below.wait()


@factory
def tls_drip_handshake(exchange: Exchange, version: int = V12) -> None:
    """Send the first flight byte by byte."""
    session = Session(exchange, ssl.TLSVersion(version))
    session.below.pour(byte_by_byte(session.flight()), DRIP)
    session.below.wait()


@factory
def tls_tiny_handshake(exchange: Exchange, version: int = V12) -> None:
    """Send the first flight in records of one byte; what follows is good."""
    session = Session(exchange, ssl.TLSVersion(version))
    session.begin(in_tiny_records)
    session.say(ANSWER)


@factory
def tls_long_chain(exchange: Exchange, number: int = CHAIN) -> None:
    """Send a chain of so many certificates."""
    session = Session(exchange, V12, chain=number)
    session.begin()
    session.say(ANSWER)


@factory
def tls_flood_later(exchange: Exchange, version: int = V13, block: bytes = HELLO_REQUEST) -> None:
    """Send the first record of a handshake, the ServerHello in it.

    Then this block without an end.
    """
    session = Session(exchange, ssl.TLSVersion(version))
    session.below.send(split_records(session.flight())[0])
    session.below.pour(without_end(block))


@factory
def tls_wants_certificate(exchange: Exchange, version: int = V13) -> None:
    """Send a server that refuses a client without a certificate, in its own words."""
    session = Session(exchange, ssl.TLSVersion(version), wants_certificate=True)
    with contextlib.suppress(ssl.SSLError):
        session.begin()
    session.below.wait()  # for a reset would overtake the alert


# After the handshake.


@factory
def tls_says(exchange: Exchange, text: bytes = ANSWER, version: int = V13) -> None:
    """Send this answer, then FIN: nothing says that TLS ends there."""
    session = Session(exchange, ssl.TLSVersion(version))
    session.begin()
    session.say(text)


@factory
def tls_resets_later(exchange: Exchange) -> None:
    """RST after the request."""
    Session(exchange).begin()
    reset()(exchange)


@factory
def tls_garbage(exchange: Exchange) -> None:
    """After the request something that is no record of TLS."""
    session = Session(exchange)
    session.begin()
    session.below.send(ANSWER)
    session.below.wait()


@factory
def tls_tickets(exchange: Exchange, number: int = TICKETS) -> None:
    """So many session tickets after the handshake, then the answer."""
    session = Session(exchange, V13, tickets=number)
    session.begin()
    session.say(ANSWER)


@factory
def tls_tiny_records(exchange: Exchange, version: int = V13, number: int = TINY) -> None:
    """Send a body without an end in records of one byte, so many of them at full speed."""
    session = Session(exchange, ssl.TLSVersion(version))
    session.begin()
    session.say(OPEN_BODY)
    session.below.pour(session.sealed(*[b" "] * 1000) for _ in range(number // 1000))
    session.below.wait()


@factory
def tls_drip_body(exchange: Exchange, pause: float = DRIP) -> None:
    """Send a body in records of one byte, slowly; then the records themselves byte by byte."""
    session = Session(exchange)
    session.begin()
    session.say(OPEN_BODY)
    session.below.pour((session.sealed(b" ") for _ in range(20)), pause)
    session.below.pour(byte_by_byte(session.sealed(*itertools.repeat(b" ", 1000))), pause)


@factory
def tls_huge_body(exchange: Exchange, megabytes: int = 100) -> None:
    """Send a body in records as large as they can be."""
    session = Session(exchange)
    session.begin()
    session.say(OPEN_BODY)
    session.below.pour(session.sealed(bytes(1 << 20)) for _ in range(megabytes))


@factory
def tls_pours_after_its_end(exchange: Exchange) -> None:
    """Send an answer, the end of TLS, and then more without an end."""
    session = Session(exchange)
    session.begin()
    session.say(OPEN_BODY + b"{}")
    with contextlib.suppress(ssl.SSLError):
        session.tls.unwrap()  # it waits for the other side's
    session.flush()
    session.below.pour(without_end(record(DATA, bytes(64))))


# After the handshake, in records that no library would send.


class Forger(Session):
    """A session whose keys are known: it seals whatever is to be sent.

    Nothing may be said by the session itself before: the records are counted.
    """

    def __init__(self, exchange: Exchange, version: ssl.TLSVersion = V13) -> None:
        super().__init__(exchange, version)
        self.version = version
        with tempfile.NamedTemporaryFile() as log:
            self.context.keylog_filename = log.name
            self.begin()
            lines = [line.split() for line in Path(log.name).read_text().splitlines()]
        secrets = {what: (bytes.fromhex(one), bytes.fromhex(two)) for what, one, two in lines[1:]}
        self.hash = "sha384" if "SHA384" in str(self.tls.cipher()) else "sha256"
        if version == V13:
            self.secret = secrets["SERVER_TRAFFIC_SECRET_0"][1]
            self.take_keys()
        else:
            self.count = 1  # the end of the handshake was the first
            self.key, self.iv = self.old_keys(*secrets["CLIENT_RANDOM"])

    def take_keys(self) -> None:
        """Derive the keys of 1.3 from the secret (RFC 8446, section 7.3)."""
        self.count = 0
        self.key = self.expand(b"key", 32 if self.hash == "sha384" else 16)
        self.iv = self.expand(b"iv", 12)

    def expand(self, label: bytes, length: int) -> bytes:
        """Return HKDF-Expand-Label of the secret (RFC 8446, section 7.1)."""
        name = b"tls13 " + label
        info = struct.pack(">HB", length, len(name)) + name + b"\0\1"
        return hmac.digest(self.secret, info, self.hash)[:length]

    def old_keys(self, random: bytes, master: bytes) -> tuple[bytes, bytes]:
        """Return the server's key and IV of 1.2 with AES-128-GCM (RFC 5246, section 6.3)."""
        seed = b"key expansion" + self.random + random
        block, link = b"", seed
        while len(block) < 40:
            link = hmac.digest(master, link, self.hash)
            block += hmac.digest(master, link + seed, self.hash)
        return block[16:32], block[36:40]

    def seal(self, kind: int, content: bytes) -> bytes:
        """Return one record of that kind."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # not every image has it

        count = self.count.to_bytes(8, "big")
        self.count += 1
        if self.version == V13:
            header = struct.pack(">BHH", DATA, 0x0303, len(content) + 17)
            nonce = bytes(a ^ b for a, b in zip(self.iv, bytes(4) + count, strict=True))
            return header + AESGCM(self.key).encrypt(nonce, content + bytes([kind]), header)
        bound = count + struct.pack(">BHH", kind, 0x0303, len(content))
        return record(kind, count + AESGCM(self.key).encrypt(self.iv + count, content, bound))

    def update(self, answer: bool) -> bytes:
        """Return a KeyUpdate that asks for an answer, or not; the next record has the new key."""
        sealed = self.seal(HANDSHAKE, bytes([24, 0, 0, 1, answer]))
        self.secret = self.expand(b"traffic upd", hashlib.new(self.hash).digest_size)
        self.take_keys()
        return sealed


@factory
def tls_forged(
    exchange: Exchange, kind: int = DATA, content: bytes = b"", version: int = V13
) -> None:
    """After the headers of an answer, sealed records with this in them, without an end."""
    forger = Forger(exchange, ssl.TLSVersion(version))
    forger.below.send(forger.seal(DATA, OPEN_BODY))
    while True:
        forger.below.send(b"".join(forger.seal(kind, content) for _ in range(500)))


@factory
def tls_key_updates(exchange: Exchange, answer: bool = False) -> None:
    """After the headers of an answer, new keys without an end; their answers are never read."""
    forger = Forger(exchange)
    forger.below.send(forger.seal(DATA, OPEN_BODY))
    while True:
        forger.below.send(b"".join(forger.update(answer) for _ in range(100)))


# The catalogue: what comes instead of a handshake or in it, ...
SHAKING: dict[str, Fault] = {
    **{name: tls_flood(block, start) for name, (block, start) in FLOODS.items()},
    **{f"tls_alert_{name}": tls_fatal(code) for name, code in ALERTS.items()},
    "tls_drip": tls_drip(),
    "tls_silence": tls_silence(),
    "tls_close": tls_close(),
    "tls_reset": tls_reset(),
    "tls_plain": tls_plain(),
    "tls_cut_record_header": tls_cut(3),
    "tls_cut_record": tls_cut(40),
    "tls_cut_flight": tls_cut(500, V12),
    "tls_cut_after_hello": tls_cut(127),  # the ServerHello of 1.3 is whole
    "tls_stops_shaking": tls_stops_shaking(),
    "tls_drip_handshake": tls_drip_handshake(),
    "tls_tiny_handshake": tls_tiny_handshake(),
    "tls_long_chain": tls_long_chain(),
    "tls_cipher_changes_later": tls_flood_later(V13, FLOODS["tls_cipher_changes"][0]),
    "tls_hello_requests_later": tls_flood_later(V12, HELLO_REQUEST),
    "tls_warnings_later": tls_flood_later(V12, FLOODS["tls_warnings"][0]),
    "tls_wants_certificate": tls_wants_certificate(),
    "tls_wants_certificate_12": tls_wants_certificate(V12),
}
# ... what comes after it, ...
SHAKEN: dict[str, Fault] = {
    "tls_cut_headers": tls_says(ANSWER[:30]),
    "tls_cut_body": tls_says(head("Content-Length: 1000") + b"{}"),
    "tls_cut_open_body": tls_says(OPEN_BODY + b'{"status":"hea'),
    "tls_cut_open_body_12": tls_says(OPEN_BODY + b'{"status":"hea', V12),
    "tls_no_answer": tls_says(b""),
    "tls_resets_later": tls_resets_later(),
    "tls_garbage": tls_garbage(),
    "tls_tickets": tls_tickets(),
    "tls_tiny_records": tls_tiny_records(),
    "tls_tiny_records_12": tls_tiny_records(V12),
    "tls_drip_body": tls_drip_body(),
    "tls_huge_body": tls_huge_body(),
    "tls_pours_after_its_end": tls_pours_after_its_end(),
}
# ... and what comes then in records that no library would send.
FORGED: dict[str, Fault] = {
    "tls_empty_records": tls_forged(DATA, b""),
    "tls_empty_records_12": tls_forged(DATA, b"", V12),
    "tls_sealed_warnings": tls_forged(ALERT, bytes([WARNING, USER_CANCELED])),
    "tls_sealed_warnings_12": tls_forged(ALERT, bytes([WARNING, USER_CANCELED]), V12),
    "tls_sealed_hello_requests_12": tls_forged(HANDSHAKE, bytes(4), V12),
    "tls_sealed_cipher_changes": tls_forged(CIPHER_CHANGE, b"\1"),
    "tls_key_updates": tls_key_updates(),
    "tls_key_updates_asked": tls_key_updates(answer=True),
}
TLS_FAULTS |= SHAKING | SHAKEN | FORGED
for _name, _fault in TLS_FAULTS.items():
    _fault.__name__ = _name  # for a verbose peer's lines
