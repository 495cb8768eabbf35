"""Nothing of a test run stays on the engine, also where it is interrupted."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import docker
import pytest

from containers.engine import RUN
from kit.sidecar import ROOT

pytestmark = pytest.mark.docker

MESSY_TEST = """
import os, signal
from containers.engine import RUN

def test_messy(client, images, lab, image):
    print("run", images.run)
    lab.registry()
    labels, name = {RUN: images.run}, f"stray-{images.run}"
    client.networks.create(name, labels=labels)
    client.volumes.create(name, labels=labels)
    client.containers.run(image, detach=True, labels=labels, name=name, network=name)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    os.kill(os.getpid(), signal.SIGINT)
"""


def test_the_sweep_leaves_nothing(client: docker.DockerClient, tmp_path: Path) -> None:
    (tmp_path / "test_messy.py").write_text(MESSY_TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ".pytest.ini", "-p", "containers.conftest",
         "-s", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stdout  # interrupted
    (run,) = re.findall(r"run (\w{12})$", done.stdout, re.MULTILINE)
    mine: dict[str, Any] = {"label": f"{RUN}={run}"}
    assert client.containers.list(all=True, filters=mine, ignore_removed=True) == []
    assert client.networks.list(filters=mine) == []
    assert client.volumes.list(filters=mine) == []
    assert client.images.list(all=True, filters=mine) == []
    assert run not in str([image.tags for image in client.images.list()])
