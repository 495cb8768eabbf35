"""Runs an agent for whom names lead where a file says: `python run_agent.py AGENT FILE`.

FILE holds {name: [address, ...]} as JSON, and is read again for each look-up. Nothing else is replaced.
"""

from __future__ import annotations

import json
import runpy
import socket
import sys
from pathlib import Path
from typing import Any

agent, file = sys.argv[1:]
getaddrinfo = socket.getaddrinfo


def look_up(host: str, port: int, *arguments: Any, **options: Any) -> list[Any]:
    """Do what socket.getaddrinfo does."""
    addresses = json.loads(Path(file).read_text())[host]
    return [one for address in addresses for one in getaddrinfo(address, port, *arguments, **options)]


socket.getaddrinfo = look_up  # type: ignore[assignment]
sys.argv[:] = [agent]
runpy.run_path(agent, run_name="__main__")
