"""The toy service: something with a health endpoint that can fall ill, die and come back.

As a program: `python -m kit.peers.service --port 8080 --version 1.0.0 --not-ready-for 3`.
"""

import time
from typing import Any

from kit.peers.server import Answer, Peer, Request, arguments, run


class ToyService(Peer):
    """A service with a health endpoint (operation "health"; everything else is "other" and 404).

    Args beside those of Peer: version, shown in the health body; health_path; healthy, False
    answers 503; body, sent instead of the health body (as in Answer); not_ready_for, seconds from
    now in which it answers 503. All but this are attributes too.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        version: str = "1.0.0",
        health_path: str = "/health",
        healthy: bool = True,
        body: object = None,
        not_ready_for: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(host, port, **options)
        self.version, self.health_path = version, health_path
        self.healthy, self.body = healthy, body
        self.ready_at = time.monotonic() + not_ready_for

    def route(self, method: str, path: str) -> str:
        """Return "health" or "other"."""
        return "health" if (method, path) == ("GET", self.health_path) else "other"

    def answer(self, request: Request) -> Answer:
        """Return the health, 404 for anything else."""
        if request.operation != "health":
            return Answer(404, {"detail": "Not Found"})
        if time.monotonic() < self.ready_at:
            return Answer(503, {"status": "starting"})
        if not self.healthy:
            return Answer(503, {"status": "unhealthy"})
        if self.body is not None:
            return Answer(200, self.body)
        return Answer(200, {"status": "healthy", "version": self.version})


def main() -> int:
    """Run the service of the command line until SIGTERM or SIGINT."""
    parser = arguments("A toy service with a health endpoint.", 8080)
    parser.add_argument("--version", default="1.0.0", help="the version it shows (%(default)s)")
    parser.add_argument("--not-ready-for", type=float, default=0.0, metavar="SECONDS",
                        help="answer 503 for so long after the start")  # fmt: skip
    return run(ToyService(**vars(parser.parse_args())), "service")


if __name__ == "__main__":
    raise SystemExit(main())
