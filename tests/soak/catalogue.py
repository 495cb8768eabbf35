"""The faults that the soak plays, by name, and which of them fail whoever meets them.

The names are those of kit/peers, whatever it holds, and some that only make sense between the
agent and its registry. Nobody keeps a list of what is a failure: each fault is played once, and
looked at.
"""

import contextlib
import functools
import http.client
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import NamedTuple
from urllib.parse import quote

from kit.peers.faults import FAULTS, TLS_FAULTS, Fault, bomb, html_page, resolve
from kit.peers.server import Exchange, Peer

PATIENCE = 1.5  # seconds in which no head comes any more: then the others never do
INTERIM = 10  # answers with 102 or 103 before the one


def cut_list(exchange: Exchange) -> None:
    """Send a list that breaks off; what has come of it is a list, too."""
    exchange.close_connection = True
    exchange.raw(b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n["another_service"]')


SLOW: dict[str, Fault] = {  # late, but perhaps within the deadline
    f"slow {tenths / 10:g}": resolve(["slow", tenths / 10]) for tenths in range(1, 7)
}
ASK_TO_WAIT: dict[str, Fault] = {
    f"{code}, Retry-After: {wait}": resolve(["status", code, None, {"Retry-After": str(wait)}])
    for code in (429, 503)
    for wait in (1, 2, 4)
}
ANSWERS: Mapping[str, Fault] = {
    **FAULTS,
    **ASK_TO_WAIT,
    "web page": resolve(["status", 200, html_page(200, "OK"), {"Content-Type": "text/html"}]),
    "list in an object": resolve(["json_text", '{"services":["another_service"]}']),
    "list too long": resolve(["json_text", json.dumps([f"service_{n}" for n in range(10_000)])]),
    "cut list": cut_list,
}
ALL: Mapping[str, Fault] = {**ANSWERS, **SLOW, **TLS_FAULTS}


def below() -> list[str]:
    """Return what a connection meets below HTTP."""
    return sorted(TLS_FAULTS)


def anything() -> list[str]:
    """Return every fault of an answer."""
    return sorted((*ANSWERS, *SLOW))


def failing() -> list[str]:
    """Return what is no acceptance of the registry's, however it is read."""
    return [name for name, look in looks().items() if look.page or not look.good]


def failing_or_slow() -> list[str]:
    return [*failing(), *SLOW]


def unhealthy() -> list[str]:
    """Return what no healthy service answers."""
    return [name for name, look in looks().items() if not look.good]


class Gallery(Peer):
    """Shows one fault at each path."""

    def route(self, _method: str, path: str) -> str:
        return path


class Look(NamedTuple):
    """How an answer begins: whether its head says 2xx, and whether it announces a web page."""

    good: bool
    page: bool


@functools.cache
def looks() -> Mapping[str, Look]:
    """Ask for every fault once, for all of them at the same time."""
    bomb(128)  # takes its time, which is none of the fault's
    names = sorted(ANSWERS)
    with Gallery() as gallery, ThreadPoolExecutor(len(names)) as pool:
        for name in names:
            gallery.play(f"/{quote(name)}", ANSWERS[name], times=None)
        jobs = {name: pool.submit(look, gallery, f"/{quote(name)}") for name in names}
        done = wait(jobs.values(), PATIENCE).done
        while more := wait(jobs.values(), PATIENCE).done - done:
            done |= more
        seen = {
            name: job.result() if job in done else Look(False, False) for name, job in jobs.items()
        }
        gallery.stop()  # which ends the others
    return seen


def look(gallery: Gallery, path: str) -> Look:
    """Read a head. One that breaks off is a whole one: Python does not tell them apart."""
    connection = http.client.HTTPConnection(gallery.host, gallery.port)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        answer = connection.getresponse()
        for _ in range(INTERIM):  # as Python does with 100
            if answer.status in (102, 103):
                answer.headers = None  # type: ignore[assignment]
                answer.begin()
        return Look(200 <= answer.status < 300, "html" in answer.headers.get_content_type())
    return Look(False, False)
