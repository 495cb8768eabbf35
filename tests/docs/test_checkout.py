"""A checkout on Windows: its scripts and the files of the image have to keep their line ends."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kit.sidecar import ROOT


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_script_has_no_carriage_returns_where_git_would_put_them(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    script = tmp_path / "a.sh"
    script.write_bytes(b"#!/bin/sh\n")

    def git(command: str) -> None:
        whole = ["git", "-c", "core.autocrlf=true", *command.split()]
        subprocess.run(whole, cwd=tmp_path, check=True, capture_output=True)

    git("init")
    git("add a.sh")
    script.unlink()
    git("checkout-index a.sh")
    assert script.read_bytes() == b"#!/bin/sh\n"
