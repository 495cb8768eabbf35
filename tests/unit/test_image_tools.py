"""How docker/ gathers what goes into the image. No engine is needed for that."""

import ast
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from kit.sidecar import ROOT

sys.path.append(str(ROOT / "docker"))
import rootfs

STUBS = ROOT / "docker" / "stubs"


def stand_in(path: str) -> dict[str, Any]:
    """Run a stand-in; return what it defines."""
    return runpy.run_path(str(STUBS / path))


def test_links_go_along_with_the_file_they_lead_to(tmp_path: Path) -> None:
    """As on an Alpine whose /lib is a link to usr/lib."""
    base, image = tmp_path / "base", tmp_path / "image"
    (base / "usr" / "lib").mkdir(parents=True)
    (base / "usr" / "lib" / "libx.so.1.2").write_text("content")
    (base / "usr" / "lib" / "libx.so.1").symlink_to("libx.so.1.2")
    (base / "lib").symlink_to("usr/lib")
    root = rootfs.Root(image)
    root.take(str(base / "lib" / "libx.so.1"))
    root.take(str(base / "lib" / "libx.so.1"))
    copy = image / base.relative_to("/")
    assert (copy / "lib").readlink() == Path("usr/lib")
    assert (copy / "lib" / "libx.so.1").readlink() == Path("libx.so.1.2")
    assert (copy / "lib" / "libx.so.1").read_text() == "content"
    assert root.taken == {str(base / "usr" / "lib" / "libx.so.1.2")}


def test_a_package_record_names_its_files() -> None:
    record = "C:Q1x=\nP:musl\nF:nowhere\nF:nowhere/lib\nR:ld.so\na:0:0:755\nZ:Q1y=\nR:libc.so"
    assert rootfs.files_of(record) == {"/nowhere/lib/ld.so", "/nowhere/lib/libc.so"}
    assert rootfs.files_of("P:empty\nV:1") == set()


def test_byte_code_needs_no_source_and_has_no_docstring(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text('"""Words."""\nassert False\nvalue = 42\n')
    rootfs.Root(tmp_path / "image").write_module(source, Path("/app/module.py"))
    source.unlink()
    module = runpy.run_path(str(tmp_path / "image" / "app" / "module.pyc"))
    assert (module["value"], module["__doc__"]) == (42, None)


def test_a_base_without_ldd_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="the base image has no ldd"):
        rootfs.libraries(sys.executable)


def test_it_destroys_no_python_but_the_builders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ssl.py").touch()
    monkeypatch.setattr(rootfs, "STDLIB", tmp_path)
    monkeypatch.setattr(rootfs, "APP", tmp_path / "app")
    with pytest.raises(SystemExit, match="run by the Dockerfile alone"):
        rootfs.leave_out(tls=False)
    assert (tmp_path / "ssl.py").exists()


def test_scripts_import_at_their_top_and_no_stand_in() -> None:
    """What is imported later the build would not see; and a stand-in does what libraries need."""
    files = (file.relative_to(STUBS).with_suffix("") for file in STUBS.rglob("*.py"))
    names = (".".join(part for part in file.parts if part != "__init__") for file in files)
    replaced = {name.removeprefix("site-packages.") for name in names}
    for script in (ROOT / "agent.py", ROOT / "healthcheck.py"):
        nodes = list(ast.walk(ast.parse(script.read_text())))
        inside = {
            each for node in nodes if isinstance(node, ast.FunctionDef) for each in ast.walk(node)
        }
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", "")
                parts = {f"{module}.{alias.name}".strip(".") for alias in node.names}
                assert node not in inside, (script.name, node.lineno)
                assert not replaced & {module, *parts}, (script.name, node.lineno)


def test_no_host_name_is_made_ascii() -> None:
    codec = stand_in("encodings/idna.py")["getregentry"]()
    assert codec.encode("vertice-osint", "strict") == (b"vertice-osint", 13)
    assert codec.decode(b"vertice-osint", "strict") == ("vertice-osint", 13)
    with pytest.raises(UnicodeError):
        codec.encode("b\xfccher", "strict")
    idna = stand_in("site-packages/idna/__init__.py")
    with pytest.raises(idna["IDNAError"]):
        idna["encode"]("b\xfccher", uts46=True)


def test_calendar_tells_unix_time() -> None:
    timegm = stand_in("calendar.py")["timegm"]
    for moment in (0, 951782399, 1709164800, 4102444799, -1):
        assert timegm(time.gmtime(moment)) == moment


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_a_checkout_on_windows_leaves_the_line_ends_of_the_images_files(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    git = "git -c core.autocrlf=true"
    make = f"{git} init -q && echo '#!/bin/sh' >a.sh && {git} add a.sh"
    again = f"rm a.sh && {git} checkout-index a.sh"
    subprocess.run(f"{make} && {again}", shell=True, cwd=tmp_path, check=True)
    assert (tmp_path / "a.sh").read_bytes() == b"#!/bin/sh\n"
