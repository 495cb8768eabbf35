"""The two calls of a heartbeat on a plain requests.Session, as anybody would write them.

    python -I plain_session.py SERVICE_URL REGISTRY_URL ROUNDS

Prints the CPU seconds of a round: a probe and a heartbeat, on connections that are kept, without
deadlines of the whole, health file or log.
"""

import sys
import time

import requests

WARM_UP = 20  # rounds
NAME = {"service_name": "plain_session"}


def beat(session: requests.Session, service: str, registry: str) -> None:
    session.get(f"{service}/health", timeout=5).raise_for_status()
    session.post(f"{registry}/heartbeat", json=NAME, timeout=10).raise_for_status()


if __name__ == "__main__":
    service, registry, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
    session = requests.Session()
    record = NAME | {"endpoint": service, "health_endpoint": "/health", "metadata": {}}
    session.post(f"{registry}/register", json=record, timeout=10).raise_for_status()
    for number in range(WARM_UP + rounds):
        if number == WARM_UP:
            before = time.process_time()
        beat(session, service, registry)
    print((time.process_time() - before) / rounds)
