"""A balancer before replicas of the registry: each request goes to the next one, as nginx does by default."""

import http.client
import itertools
from collections.abc import Sequence
from typing import Any

from kit.peers.faults import html_page
from kit.peers.server import Answer, Peer, Request

SECONDS = 10.0  # for a replica's answer
PASSED_ON = ("Content-Type", "Retry-After", "Location")  # the headers of an answer


class Balancer(Peer):
    """The balancer. Its only operation is "any".

    Args:
        replicas: the peers behind it, in the order of their turns.
        options: those of Peer.
    """

    def __init__(self, replicas: Sequence[Peer], **options: Any) -> None:
        super().__init__(**options)
        self.turns = itertools.cycle(replicas)

    def answer(self, request: Request) -> Answer:
        """Pass the request on to the replica whose turn it is; 502 where it does not answer."""
        with self.lock:
            replica = next(self.turns)
        connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=SECONDS)
        headers = {name: value for name, value in request.headers.items() if name != "Connection"}
        try:
            connection.request(request.method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException):
            return Answer(502, html_page(502, "Bad Gateway"), {"Content-Type": "text/html"})
        finally:
            connection.close()
        passed_on = {name: answer.headers[name] for name in PASSED_ON if name in answer.headers}
        return Answer(answer.status, body, passed_on)
