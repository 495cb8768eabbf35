"""The faults that the soak plays, by name, and which of them fail whoever meets them.

The names are those of kit/peers, whatever it holds, and some that only make sense between the
agent and its registry.
"""

import json
from collections.abc import Mapping

from kit.peers.faults import BODIES, FAULTS, JSON_TEXTS, TLS_FAULTS, Fault, html_page, resolve
from kit.peers.server import Exchange


def cut_list(exchange: Exchange) -> None:
    """Send a list that breaks off; what has come of it is a list, too."""
    exchange.close_connection = True
    exchange.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n["another_service"]')


SLOW: dict[str, Fault] = {  # late, but perhaps within the deadline
    f"slow {tenths / 10:g}": resolve(["slow", tenths / 10]) for tenths in range(1, 7)
}
LISTS: dict[str, Fault] = {
    "list in an object": resolve(["json_text", '{"services":["another_service"]}']),
    "list too long": resolve(["json_text", json.dumps([f"service_{n}" for n in range(10_000)])]),
    "cut list": cut_list,
}
PAGE = "web page"  # good for a probe, but no acceptance of the registry's
ANSWERS: Mapping[str, Fault] = {
    **FAULTS,
    **LISTS,
    PAGE: resolve(["status", 200, html_page(200, "OK"), {"Content-Type": "text/html"}]),
    **{
        f"{code}, Retry-After: {wait}": resolve(["status", code, None, {"Retry-After": str(wait)}])
        for code in (429, 503)
        for wait in (1, 2, 4)
    },
}
ALL: Mapping[str, Fault] = {**ANSWERS, **SLOW, **TLS_FAULTS}
# Those whose head says 2xx, whatever follows it: they may be taken for good. One that is missing
# here is told of as soon as it is played.
GOOD = {
    *JSON_TEXTS,
    *LISTS,
    PAGE,
    *(name + drip for name in BODIES if name != "endless_after_304" for drip in ("", "_drip")),
    "answer_then_reset", "bad_length", "body_after_204", "broken_chunks", "cut_headers",
    "drip_body", "empty", "gzip_bomb", "gzip_not", "huge_body", "huge_chunked", "interim",
    "json_text", "length_cut", "long_header", "long_length", "short_length", "status_204",
    "status_206", "trailers_cut", "two_answers", "two_lengths",
}  # fmt: skip


def below() -> list[str]:
    """Return what a connection meets below HTTP."""
    return sorted(TLS_FAULTS)


def anything() -> list[str]:
    """Return every fault of an answer."""
    return sorted((*ANSWERS, *SLOW))


def unhealthy() -> list[str]:
    """Return what no healthy service answers."""
    return sorted(ANSWERS.keys() - GOOD)


def failing() -> list[str]:
    """Return what is no acceptance of the registry's, however it is read."""
    return [PAGE, *unhealthy()]


def failing_or_slow() -> list[str]:
    return [*failing(), *SLOW]
