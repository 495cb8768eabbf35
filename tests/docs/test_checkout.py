"""A checkout on Windows: its scripts and the files of the image have to keep their line ends."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kit.sidecar import ROOT

SCRIPT = "tests/demo.sh"
GIT = ("git", "-c", "core.autocrlf=true", "-c", "user.name=t", "-c", "user.email=t@example.com")


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_script_has_no_carriage_returns_where_git_would_put_them(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run([*GIT, *arguments], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / SCRIPT).parent.mkdir()
    shutil.copy(ROOT / SCRIPT, tmp_path / SCRIPT)
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    git("init")
    git("add", ".")
    git("commit", "-m", "all")
    (tmp_path / SCRIPT).unlink()
    git("checkout", SCRIPT)
    assert b"\r" not in (tmp_path / SCRIPT).read_bytes()
