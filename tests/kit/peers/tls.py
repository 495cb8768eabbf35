"""What a peer that speaks TLS can do wrong below HTTP: floods, tiny records, drips, cuts, alerts.

Each fault is played as soon as a connection is open (CONNECT), at a Peer with `tls`; it has the
bytes below the peer's own TLS. TLS_FAULTS holds them by name:

    peer.play(CONNECT, "tls_hello_requests", times=None)

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
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from kit.peers.faults import (
    DRIP,
    SECONDS,
    TLS_FAULTS,
    Fault,
    byte_by_byte,
    factory,
    pour,
    reset,
    send,
)

if TYPE_CHECKING:
    from kit.peers.server import Exchange

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
CIPHER_CHANGE, ALERT, HANDSHAKE, DATA = 20, 21, 22, 23  # what a record can hold
WARNING, FATAL = 1, 2
ALERTS = {
    "handshake_failure": 40, "bad_certificate": 42, "certificate_unknown": 46, "unknown_ca": 48,
    "access_denied": 49, "protocol_version": 70, "internal_error": 80, "unrecognized_name": 112,
    "certificate_required": 116,
}  # fmt: skip
TICKETS = 1000  # of about 250 bytes: more than an exchange has a budget for
TINY = 150_000  # records of a byte
CHAIN = 250  # certificates, more than 128 KB
HEAD = b"HTTP/1.1 200 OK\r\n"
ANSWER = HEAD + (
    b"Content-Length: 2\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n{}"
)
OPEN_BODY = HEAD + b"Connection: close\r\n\r\n"  # ends with the connection


def record(kind: int, content: bytes) -> bytes:
    """Return a record in clear."""
    return struct.pack(">BHH", kind, 0x0303, len(content)) + content


CANCELED = bytes([WARNING, 90])  # the user has
HELLO_REQUEST = record(HANDSHAKE, bytes(4))
# What a server may not send, or a client has to skip, before the handshake has begun: the block
# that comes without an end, and what comes before it.
FLOODS: dict[str, tuple[bytes, bytes]] = {
    "tls_hello_requests": (HELLO_REQUEST, b""),
    "tls_warnings": (record(ALERT, CANCELED), b""),
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


def without_end(block: bytes) -> Iterable[bytes]:
    return itertools.repeat(block * (65536 // len(block) or 1))


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
    records: list[bytes] = []
    for one in split_records(flight):
        clear = one[0] == HANDSHAKE
        records += [record(HANDSHAKE, byte) for byte in byte_by_byte(one[5:])] if clear else [one]
    return b"".join(records)


def receive(exchange: Exchange) -> bytes:
    """Return what comes next below TLS. Raises OSError where nothing does."""
    exchange.close_connection = True
    exchange.connection.settimeout(SECONDS)
    data = socket.socket.recv(exchange.connection, 65536)
    if not data:
        raise ConnectionResetError
    return data


def hear_hello(exchange: Exchange) -> bytes:
    """Return the ClientHello."""
    data = b""
    while len(data) < 5 or len(data) < 5 + int.from_bytes(data[3:5], "big"):
        data += receive(exchange)
    return data


def close(_exchange: Exchange) -> None:
    """End by FIN, as every fault does; nothing says that TLS ends there."""


def wait(exchange: Exchange) -> None:
    """Read what comes, and answer nothing, until the client goes."""
    while receive(exchange):
        pass


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
        self.exchange, self.version = exchange, version
        files = exchange.peer.tls
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
        self.incoming.write(hear_hello(self.exchange))
        with contextlib.suppress(ssl.SSLWantReadError):
            self.tls.do_handshake()
        flight = self.outgoing.read()
        self.random = flight[11:43]
        return flight

    def send(self, data: bytes) -> None:
        """Send these bytes below TLS."""
        send(self.exchange, data, below=True)

    def pour(self, blocks: Iterable[bytes], pause: float = 0.0) -> None:
        """Send these blocks below TLS."""
        pour(self.exchange, blocks, pause, below=True)

    def flush(self) -> None:
        if self.outgoing.pending:
            self.send(self.outgoing.read())

    def patiently(self, call: Callable[..., object], *arguments: object) -> object:
        """Repeat the call until the client has said what it needs. Raises OSError."""
        while True:
            try:
                return call(*arguments)
            except ssl.SSLWantReadError:
                self.flush()
                self.incoming.write(receive(self.exchange))
            finally:
                self.flush()

    def shake(self, cut: Callable[[bytes], bytes] = bytes) -> None:
        """Shake hands; `cut` makes what is sent of the server's first flight."""
        self.send(cut(self.flight()))
        self.patiently(self.tls.do_handshake)

    def hear_request(self) -> None:
        """Read until the headers of a request have ended."""
        request = b""
        while b"\r\n\r\n" not in request:
            data = self.patiently(self.tls.read, 65536)
            assert isinstance(data, bytes)
            request += data

    def sealed(self, *texts: bytes) -> bytes:
        """Return a record, or several, for each text."""
        for text in texts:
            self.tls.write(text)
        return self.outgoing.read()

    def say(self, *texts: bytes) -> None:
        """Send these, each in a record of its own."""
        self.send(self.sealed(*texts))


# Instead of a handshake, or of the end of one.


@factory
def unshaken(
    exchange: Exchange,
    start: bytes | Callable[[bytes], bytes] = b"",
    block: bytes = b"",
    pause: float = 0.0,
    end: Fault = close,
    version: ssl.TLSVersion = V13,
) -> None:
    """After the ClientHello these bytes, or so much of the server's first flight, then the block.

    The block comes without an end. With a pause, all this comes slowly.
    """
    if isinstance(start, bytes):
        hear_hello(exchange)
    else:
        start = start(Session(exchange, version).flight())
    pour(exchange, byte_by_byte(start) if pause else [start], pause, below=True)
    if block:
        pour(exchange, itertools.repeat(block) if pause else without_end(block), pause, below=True)
    end(exchange)


# After the request.


@factory
def shaken(
    exchange: Exchange,
    *texts: bytes,
    version: ssl.TLSVersion = V13,
    cut: Callable[[bytes], bytes] = bytes,
    then: Callable[[Session], None] | None = None,
    end: Fault = close,
    tickets: int = 0,
    chain: int = 1,
) -> None:
    """Shake hands, hear the request, say these texts, and what else there is."""
    session = Session(exchange, version, tickets=tickets, chain=chain)
    session.shake(cut)
    session.hear_request()
    session.say(*texts)
    if then:
        then(session)
    end(exchange)


@factory
def wants_certificate(exchange: Exchange, version: ssl.TLSVersion) -> None:
    """Refuse a client without a certificate, in the server's own words."""
    session = Session(exchange, version, wants_certificate=True)
    with contextlib.suppress(ssl.SSLError):
        session.shake()
        session.hear_request()
    wait(exchange)  # for a reset would overtake the alert


def tiny_records(session: Session) -> None:
    """Go on in records of one byte at full speed."""
    session.pour(session.sealed(*[b" "] * 1000) for _ in range(TINY // 1000))


def drip_body(session: Session) -> None:
    """Go on in records of one byte, slowly; then send the records themselves byte by byte."""
    session.pour((session.sealed(b" ") for _ in range(20)), DRIP)
    session.pour(byte_by_byte(session.sealed(*itertools.repeat(b" ", 1000))), DRIP)


def huge_body(session: Session) -> None:
    """Go on in records as large as they can be."""
    session.pour(session.sealed(bytes(1 << 20)) for _ in range(100))


def pours_after_its_end(session: Session) -> None:
    """End TLS, and send more without an end."""
    with contextlib.suppress(ssl.SSLError):
        session.tls.unwrap()  # it waits for the other side's
    session.flush()
    session.pour(without_end(FLOODS["tls_data"][0]))


# After the handshake, in records that no library would send.


class Forger(Session):
    """A session whose keys are known: it seals whatever is to be sent.

    Nothing may be said by the session itself before: the records are counted.
    """

    def __init__(self, exchange: Exchange, version: ssl.TLSVersion = V13) -> None:
        super().__init__(exchange, version)
        with tempfile.NamedTemporaryFile() as log:
            self.context.keylog_filename = log.name
            self.shake()
            self.hear_request()
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
def forged(
    exchange: Exchange,
    kind: int = DATA,
    content: bytes = b"",
    version: ssl.TLSVersion = V13,
    update: bool | None = None,
) -> None:
    """After the headers of an answer, sealed records with this in them, without an end.

    With update, new keys; True asks for an answer, which is never read.
    """
    forger = Forger(exchange, version)
    forger.send(forger.seal(DATA, OPEN_BODY))
    forger.pour(
        b"".join(
            forger.seal(kind, content) if update is None else forger.update(update)
            for _ in range(100)
        )
        for _ in itertools.count()
    )


def first(size: int) -> Callable[[bytes], bytes]:
    return lambda flight: flight[:size]


def first_record(flight: bytes) -> bytes:
    return split_records(flight)[0]


TLS_FAULTS |= {
    # What comes instead of a handshake or in it, ...
    **{name: unshaken(start, block) for name, (block, start) in FLOODS.items()},
    **{
        f"tls_alert_{name}": unshaken(record(ALERT, bytes([FATAL, code])))
        for name, code in ALERTS.items()
    },
    "tls_drip": unshaken(block=HELLO_REQUEST, pause=DRIP),
    "tls_silence": unshaken(end=wait),
    "tls_close": unshaken(),
    "tls_reset": unshaken(end=reset()),
    "tls_plain": unshaken(
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    ),
    "tls_cut_record_header": unshaken(first(3)),
    "tls_cut_record": unshaken(first(40)),
    "tls_cut_flight": unshaken(first(500), version=V12),
    "tls_cut_after_hello": unshaken(first(127)),  # the ServerHello of 1.3 is whole
    "tls_stops_shaking": unshaken(bytes, end=wait, version=V12),
    "tls_drip_handshake": unshaken(bytes, pause=DRIP, end=wait, version=V12),
    "tls_cipher_changes_later": unshaken(first_record, FLOODS["tls_cipher_changes"][0]),
    "tls_hello_requests_later": unshaken(first_record, HELLO_REQUEST, version=V12),
    "tls_warnings_later": unshaken(first_record, FLOODS["tls_warnings"][0], version=V12),
    "tls_tiny_handshake": shaken(ANSWER, version=V12, cut=in_tiny_records),
    "tls_long_chain": shaken(ANSWER, version=V12, chain=CHAIN),
    "tls_wants_certificate": wants_certificate(V13),
    "tls_wants_certificate_12": wants_certificate(V12),
    # ... what comes after it, ...
    "tls_cut_headers": shaken(ANSWER[:30]),
    "tls_cut_body": shaken(HEAD + b"Content-Length: 1000\r\n\r\n{}"),
    "tls_cut_open_body": shaken(OPEN_BODY + b'{"status":"hea'),
    "tls_cut_open_body_12": shaken(OPEN_BODY + b'{"status":"hea', version=V12),
    "tls_no_answer": shaken(),
    "tls_resets_later": shaken(end=reset()),
    "tls_garbage": shaken(then=lambda session: session.send(ANSWER), end=wait),
    "tls_tickets": shaken(ANSWER, tickets=TICKETS),
    "tls_tiny_records": shaken(OPEN_BODY, then=tiny_records, end=wait),
    "tls_tiny_records_12": shaken(OPEN_BODY, version=V12, then=tiny_records, end=wait),
    "tls_drip_body": shaken(OPEN_BODY, then=drip_body),
    "tls_huge_body": shaken(OPEN_BODY, then=huge_body),
    "tls_pours_after_its_end": shaken(OPEN_BODY + b"{}", then=pours_after_its_end),
    # ... and what comes then in records that no library would send.
    "tls_empty_records": forged(),
    "tls_empty_records_12": forged(version=V12),
    "tls_sealed_warnings": forged(ALERT, CANCELED),
    "tls_sealed_warnings_12": forged(ALERT, CANCELED, V12),
    "tls_sealed_hello_requests_12": forged(HANDSHAKE, bytes(4), V12),
    "tls_sealed_cipher_changes": forged(CIPHER_CHANGE, b"\1"),
    "tls_key_updates": forged(update=False),
    "tls_key_updates_asked": forged(update=True),
}
for _name, _fault in TLS_FAULTS.items():
    _fault.__name__ = _name  # for a verbose peer's lines
