"""A checkout on Windows: its scripts and the files of the image have to keep their line ends."""

import shutil
import subprocess
from pathlib import Path

import pytest

from kit.sidecar import ROOT


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_script_has_no_carriage_returns_where_git_would_put_them(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    git = "git -c core.autocrlf=true"
    make = f"{git} init -q && echo '#!/bin/sh' >a.sh && {git} add a.sh"
    again = f"rm a.sh && {git} checkout-index a.sh"
    subprocess.run(f"{make} && {again}", shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "a.sh").read_bytes() == b"#!/bin/sh\n"
