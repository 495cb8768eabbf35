"""A name server that answers each type of question in a way of its own.

As a program: `python -m kit.peers.names --host 127.0.0.53`, on port 53 for UDP; it prints each
question as `names A ok.refused.example.test`.

How it answers stands in the name: the first label is for A, the second for AAAA, and whatever
follows makes names differ. `ok` brings an address of this machine, 127.0.0.1 or ::1; `nodata` an
answer without any; `nothing` no answer at all; the others are errors.
"""

import argparse
import ipaddress
import signal
import socketserver
import struct
import threading

ERRORS = {"ok": 0, "nodata": 0, "servfail": 2, "nxdomain": 3, "notimp": 4, "refused": 5}
TYPES = {1: "A", 28: "AAAA"}
ADDRESSES = {1: "127.0.0.1", 28: "::1"}
ANSWER, RECURSION = 0x8000, 0x0180  # flags: this is an answer; asked for and available
HEADER = struct.Struct("!6H")  # number, flags, questions, answers, authorities, additions
TTL = 0  # seconds: nobody remembers an answer


def read_question(message: bytes) -> tuple[str, int, bytes]:
    """Return the name and the type asked for, and the bytes of the question."""
    labels, place = [], HEADER.size
    while length := message[place]:
        labels.append(message[place + 1 : place + 1 + length].decode())
        place += 1 + length
    end = place + 5  # the empty label, the type, the class
    return ".".join(labels).lower(), int.from_bytes(message[place + 1 : place + 3]), message[:end]


def answer(message: bytes) -> bytes | None:
    """Return the answer to a message, None where it gets none."""
    name, kind, question = read_question(message)
    print("names", TYPES.get(kind, kind), name, flush=True)
    way = dict(zip(TYPES, name.split("."), strict=False)).get(kind, "nodata")
    if way == "nothing":
        return None
    records = b""
    if way == "ok":
        address = ipaddress.ip_address(ADDRESSES[kind]).packed
        pointer = ANSWER | 0x4000 | HEADER.size  # to the name in the question
        records = struct.pack("!HHHIH", pointer, kind, 1, TTL, len(address)) + address
    flags = ANSWER | RECURSION | ERRORS[way]
    number = int.from_bytes(message[:2])
    header = HEADER.pack(number, flags, 1, int(bool(records)), 0, 0)
    return header + question[HEADER.size :] + records


class Question(socketserver.BaseRequestHandler):
    """One datagram."""

    def handle(self) -> None:
        message, socket = self.request
        if reply := answer(message):
            socket.sendto(reply, self.client_address)


def main() -> int:
    """Answer until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="A name server of the tests' own.")
    parser.add_argument("--host", default="127.0.0.53", help="(%(default)s)")
    parser.add_argument("--port", type=int, default=53, help="(%(default)s)")
    options = parser.parse_args()
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    with socketserver.ThreadingUDPServer((options.host, options.port), Question) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        print(f"names listening on {options.host}:{options.port}", flush=True)
        signal.sigwait(ends)
        server.shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
