"""A straightforward sidecar to compare with: asyncio, httpx with a new client for each call, tenacity.

It does what such scripts usually do and no more: waits for the service, registers, sends heartbeats. It reads
the seven settings of the public contract; its log has the agent's words where the benchmark looks for them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys

import httpx
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_exponential

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(asctime)s %(levelname)s %(message)s")
logging.getLogger("httpx").setLevel(logging.WARNING)
log = logging.getLogger("reference")

SERVICE_NAME = os.environ["SERVICE_NAME"]
ENDPOINT = f"http://{os.environ['SERVICE_HOST']}:{os.environ.get('SERVICE_PORT', '8080')}"
HEALTH_ENDPOINT = os.environ.get("SERVICE_HEALTH_ENDPOINT", "/health")
REGISTRY_URL = os.environ.get("REGISTRY_URL", "http://vertice-register-lb:8888")
HEARTBEAT_INTERVAL = float(os.environ.get("HEARTBEAT_INTERVAL", "30"))
INITIAL_WAIT_TIMEOUT = float(os.environ.get("INITIAL_WAIT_TIMEOUT", "60"))


@retry(
    retry=retry_if_exception_type(httpx.HTTPError),
    wait=wait_exponential(max=10),
    stop=stop_after_delay(INITIAL_WAIT_TIMEOUT),
)
async def wait_for_service() -> None:
    """Wait until the service is healthy."""
    await check_health()


async def check_health() -> None:
    """Probe the service. Raises httpx.HTTPError where it is not healthy."""
    async with httpx.AsyncClient(timeout=5) as client:
        response = await client.get(ENDPOINT + HEALTH_ENDPOINT)
        response.raise_for_status()


@retry(retry=retry_if_exception_type(httpx.HTTPError), wait=wait_exponential(max=60))
async def register() -> None:
    """Register until it is done."""
    record = {
        "service_name": SERVICE_NAME,
        "endpoint": ENDPOINT,
        "health_endpoint": HEALTH_ENDPOINT,
        "metadata": {},
    }
    async with httpx.AsyncClient(timeout=10) as client:
        response = await client.post(f"{REGISTRY_URL}/register", json=record)
        response.raise_for_status()
    log.info("Service registered successfully")


async def heartbeat() -> None:
    """Send one heartbeat; register again where the registry does not know the service."""
    async with httpx.AsyncClient(timeout=10) as client:
        response = await client.post(f"{REGISTRY_URL}/heartbeat", json={"service_name": SERVICE_NAME})
    if response.status_code == httpx.codes.NOT_FOUND:
        await register()
    else:
        response.raise_for_status()
        log.info("Heartbeat accepted")


async def main() -> None:
    """Wait, register, and send heartbeats for ever."""
    await wait_for_service()
    await register()
    while True:
        await asyncio.sleep(HEARTBEAT_INTERVAL)
        try:
            await check_health()
            await heartbeat()
        except httpx.HTTPError as error:
            log.warning("Heartbeat failed: %s", error)


if __name__ == "__main__":
    asyncio.run(main())
