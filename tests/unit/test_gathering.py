"""How docker/ finds what goes into the image: imports, links, packages. No engine is needed for that."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

import pytest

from kit.sidecar import ROOT

sys.path.append(str(ROOT / "docker"))
import modules
import rootfs


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a, b.c", [(1, "a", True), (1, "b.c", True)]),
        ("from a.b import c as d, e", [(1, "a.b:c", True), (1, "a.b:e", True)]),
        ("def late():\n    import a", [(2, "a", True)]),
        ("try:\n    import a\nexcept ImportError:\n    import b", [(2, "a", False), (4, "b", True)]),
        ("try:\n    import a\nexcept (OSError, ModuleNotFoundError):\n    pass\nelse:\n    import b",
         [(2, "a", False), (6, "b", True)]),
        ("try:\n    import a\nexcept ValueError:\n    pass", [(2, "a", True)]),
    ],
    ids=["modules", "names", "inside a function", "optional", "optional, among others", "a try about other things"],
)  # fmt: skip
def test_imports_of_a_script(source: str, found: list[tuple[int, str, bool]]) -> None:
    assert list(modules.imports(ast.parse(source))) == found


def test_what_is_lacking_is_told_all_at_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    optional = "try:\n    import nor_this\nexcept ImportError:\n    pass\n"
    script.write_text(f"import no_such_module\nfrom os import no_such_name\n{optional}")
    wanted = modules.wanted_by([script])
    with pytest.raises(modules.MissingError) as caught:
        modules.reached({name: where for name, where in wanted.items() if name != "script"}, [tmp_path], tls=True)
    lines = [line.partition(" (")[0] for line in str(caught.value).splitlines() if "script.py" in line]
    assert lines == [
        "script.py, line 1: the image would lack no_such_module",
        "script.py, line 2: the image would lack os.no_such_name",
    ]


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


def test_package_records_name_their_files() -> None:
    record = "C:Q1x=\nP:musl\nF:nowhere\nF:nowhere/lib\nR:ld.so\na:0:0:755\nZ:Q1y=\nR:libc.so\n\n"
    (musl, files), (empty, none) = rootfs.installed(f"{record}P:empty\nV:1\n\n")
    assert musl == record
    assert files == {"/nowhere/lib/ld.so", "/nowhere/lib/libc.so"}
    assert (empty, none) == ("P:empty\nV:1\n\n", set())


def test_byte_code_needs_no_source_and_has_no_docstring(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text('"""Words."""\nassert False\nvalue = 42\n')
    rootfs.Root(tmp_path / "image").write_module(source, Path("/app/module.py"))
    source.unlink()
    module = runpy.run_path(str(tmp_path / "image" / "app" / "module.pyc"))
    assert (module["value"], module["__doc__"]) == (42, None)
