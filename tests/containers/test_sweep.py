"""Nothing of a test run stays on the engine, whatever becomes of its tests."""

import subprocess
import sys
from pathlib import Path

import docker
import pytest

from containers.engine import RUN
from kit.sidecar import ROOT

pytestmark = pytest.mark.docker

MESSY_TEST = """
import os, signal
from containers.engine import RUN

def test_messy(client, run, lab, image):
    print("run", run)
    lab.registry()
    lab.volume({"file": b"content"})
    labels = {RUN: run}
    network = client.networks.create(f"stray-{run}", labels=labels)
    client.volumes.create(f"stray-{run}", labels=labels)
    name = f"stray-{run}"
    client.containers.run(image, detach=True, labels=labels, name=name, network=network.name)
    ENDING
"""


@pytest.mark.parametrize(
    ("ending", "code"),
    [("pass", 0), ("raise AssertionError", 1), ("os.kill(os.getpid(), signal.SIGINT)", 2)],
    ids=["passes", "fails", "is interrupted"],
)
def test_the_sweep_leaves_nothing(
    client: docker.DockerClient, tmp_path: Path, ending: str, code: int
) -> None:
    """Args: what the mini-test does at its end, and the exit code of its pytest."""
    (tmp_path / "test_messy.py").write_text(MESSY_TEST.replace("ENDING", ending))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", ".pytest.ini", "-p", "containers.conftest",
         "-s", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == code, done.stdout
    (run,) = [
        line.split()[-1]
        for line in done.stdout.splitlines()
        if "run " in line and line.split()[-2] == "run"
    ]
    label = f"{RUN}={run}"
    assert client.containers.list(all=True, filters={"label": label}, ignore_removed=True) == []
    assert client.networks.list(filters={"label": label}) == []
    assert client.volumes.list(filters={"label": label}) == []
    assert client.images.list(all=True, filters={"label": label}) == []
    assert not [tag for image in client.images.list() for tag in image.tags if run in tag]
