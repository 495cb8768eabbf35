"""Gathers the image's root file system: what agent.py and healthcheck.py reach, and a shell to look around.

The builder stage of the Dockerfile runs it where the two scripts lie, after pip:

    python -X no_debug_ranges docker/rootfs.py --site site --root /rootfs [--tls 1]

How it knows what to take:
- modules: those that were loaded when all imports of the two scripts were tried (modules.py);
- libraries: the loader is asked (ldd), so that no path and no architecture is written down here;
- packages: Alpine's database tells where the files came from, and its entries go along for scanners to find.

What the image would lack stops the build with a message that names it.
"""
from __future__ import annotations

import argparse
import ast
import marshal
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType

import modules

HERE = Path(__file__).resolve().parent
AGENT, HEALTHCHECK = Path("agent.py").resolve(), Path("healthcheck.py").resolve()
STDLIB = Path(os.__file__).parent
SITE_PACKAGES = STDLIB / "site-packages"
CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"  # where docker/stubs/certifi says it is
UID = 1000


class Root:
    """The root file system under construction. Paths are those in the image, which the builder has alike."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.taken: set[str] = set()  # real paths of the files that were copied as they are

    def at(self, path: str | Path) -> Path:
        """Returns where a path of the image lies in the builder, its directory made."""
        place = self.directory / str(path).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, path: str | Path, content: bytes | str) -> None:
        """Writes a file."""
        self.at(path).write_bytes(content.encode() if isinstance(content, str) else content)

    def write_module(self, source: Path, path: Path) -> None:
        """Writes a script as byte code in the place of `path`; its header says never to check (PEP 552)."""
        header = MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
        self.write(path.with_suffix(".pyc"), header + marshal.dumps(byte_code(source, path)))

    def take(self, path: str) -> None:
        """Copies one file and each symbolic link on the way to it, also of directories (/lib -> usr/lib)."""
        walked = Path("/")
        for name in Path(path).parts[1:]:
            walked /= name
            if walked.is_symlink():
                link = os.readlink(walked)
                if not self.at(walked).is_symlink():
                    self.at(walked).symlink_to(link)
                self.take(os.path.normpath(walked.parent / link / os.path.relpath(path, walked)))
                return
        if path not in self.taken:
            shutil.copy2(path, self.at(path))
            self.taken.add(path)

    def take_program(self, path: str) -> None:
        """Copies a program or a shared object, and every library that the loader finds for it."""
        for file in (path, *libraries(path)):
            self.take(file)


def byte_code(source: Path, path: Path) -> CodeType:
    """Returns the code of a script that the image has at `path`, without docstrings, asserts and functions' types.

    With `python -X no_debug_ranges` it lacks the column numbers too, a fifth of it, which tracebacks only use
    where they can show the source.
    """
    tree = ast.parse(source.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.Module | ast.ClassDef):
            node.body = [part for part in node.body if not is_overload(part)]
    code: CodeType = compile(tree, str(path), "exec", dont_inherit=True, optimize=2)
    return code


def is_overload(statement: ast.stmt) -> bool:
    """Tells whether it only gives types to the function of the same name that follows."""
    decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef) else []
    return any(ast.unparse(decorator) in ("overload", "typing.overload") for decorator in decorators)


def libraries(path: str) -> list[str]:
    """Returns the shared libraries that the loader finds for the file at `path`.

    For an extension module it reports python's own symbols as missing and lists the libraries all the same,
    so only a library that is not found counts.
    """
    answer = subprocess.run(["ldd", path], capture_output=True, text=True)
    if "Error loading shared library" in answer.stderr:
        raise modules.MissingError(f"{path}: {answer.stderr.splitlines()[0]}")
    return [os.path.normpath(library) for library in re.findall(r"(/\S+) \(0x", answer.stdout)]


def take_python(root: Root) -> None:
    """Takes the interpreter under its usual names, and the file by which it knows its prefix."""
    root.take_program(os.path.realpath(sys.executable))
    for name in ("python", "python3"):
        root.take(os.path.join(os.path.dirname(sys.executable), name))
    root.write_module(STDLIB / "os.py", STDLIB / "os.py")


def image_path(file: Path, site: Path) -> Path:
    """Returns a module's path in the image: ours in /app, packages in site-packages, others as they are."""
    if file in (AGENT, HEALTHCHECK):
        return Path("/app", file.name)
    return SITE_PACKAGES / file.relative_to(site) if file.is_relative_to(site) else file


def write_archive(root: Root, scripts: dict[Path, Path]) -> None:
    """Writes the byte code of scripts (where each lies -> its path in the image) for sitecustomize.py."""
    index, codes = {}, b""
    for source, path in scripts.items():
        code = marshal.dumps(byte_code(source, path))
        top = SITE_PACKAGES if path.is_relative_to(SITE_PACKAGES) else STDLIB
        name = ".".join(path.relative_to(top).with_suffix("").parts)
        directory = str(path.parent) if path.name == "__init__.py" else None
        index[name.removesuffix(".__init__")] = (len(codes), len(codes) + len(code), directory)
        codes += code
    head = marshal.dumps(index)
    packed = zlib.compress(len(head).to_bytes(4, "little") + head + codes, 9)
    root.write(SITE_PACKAGES / "modules.z", packed)


def take_modules(root: Root, site: Path, files: set[Path], tls: bool) -> None:
    """Takes modules: shared objects as they are, byte code in an archive where that does no harm.

    Not in the archive is what the health check loads, a new process every 30 s, and what is loaded late.
    """
    at_start = modules.reached({AGENT.stem: AGENT.name}, [site, AGENT.parent], tls)
    health = modules.reached({HEALTHCHECK.stem: HEALTHCHECK.name}, [site, HEALTHCHECK.parent], tls)
    archived = {}
    for file in sorted(files):
        path = image_path(file, site)
        if file.suffix != ".py":
            root.take_program(str(file))
        elif file == AGENT or file in health or file not in at_start:
            root.write_module(file, path)
        else:
            archived[file] = path
    write_archive(root, archived)
    root.write_module(HERE / "sitecustomize.py", SITE_PACKAGES / "sitecustomize.py")


def take_distributions(root: Root, site: Path, files: set[Path]) -> None:
    """Takes the METADATA of every package that modules came from, for scanners to find."""
    packages = {file.relative_to(site).parts[0] for file in files if file.is_relative_to(site)}
    for info in site.glob("*.dist-info"):
        if info.name.split("-")[0] in packages:
            root.write(SITE_PACKAGES / info.name / "METADATA", (info / "METADATA").read_bytes())


def take_busybox(root: Root) -> None:
    """Takes busybox and every applet that the base has: people debug with sh, ps, wget, nslookup, ping."""
    busybox = shutil.which("busybox")
    if busybox is None:
        raise modules.MissingError("the base image has no busybox")
    root.take_program(busybox)
    for directory in filter(os.path.isdir, os.get_exec_path()):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_symlink() and os.path.realpath(entry.path) == os.path.realpath(busybox):
                root.take(entry.path)


def installed(database: str) -> Iterator[tuple[str, set[str]]]:
    """Yields the records of Alpine's package database, each with the real paths of the package's files."""
    for record in filter(str.strip, database.split("\n\n")):
        directory, files = "", set()
        for field, _, value in (line.partition(":") for line in record.splitlines()):
            if field == "F":
                directory = value
            elif field == "R":
                files.add(os.path.realpath(os.path.join("/", directory, value)))
        yield record.strip("\n") + "\n\n", files


def take_packages(root: Root) -> None:
    """Takes the entries of the Alpine packages that files came from, and the release's name, if any."""
    for release in filter(os.path.exists, ("/etc/os-release", "/etc/alpine-release")):
        root.take(release)
    for database in filter(os.path.exists, ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")):
        records = installed(Path(database).read_text(encoding="utf-8"))
        kept = "".join(record for record, files in records if files & root.taken)
        root.write(os.path.realpath(database), kept)


def add_account(root: Root) -> None:
    """Writes the account `sidecar`, and makes /tmp for everybody."""
    root.write("/etc/passwd", f"root:x:0:0:root:/:/bin/sh\nsidecar:x:{UID}:{UID}:sidecar:/app:/bin/sh\n")
    root.write("/etc/group", f"root:x:0:\nsidecar:x:{UID}:\n")
    root.at("/tmp").mkdir()
    root.at("/tmp").chmod(0o1777)


def set_times(root: Root) -> None:
    """Gives everything one time stamp, so that the same input makes the same layer."""
    for directory, directories, files in os.walk(root.directory, topdown=False):
        for name in (*directories, *files):
            os.utime(os.path.join(directory, name), (0, 0), follow_symlinks=False)


def gather(root: Root, site: Path, tls: bool) -> None:
    """Fills the root file system from the builder's own, the scripts, and the packages in `site`."""
    shutil.copytree(HERE / "stubs", site, dirs_exist_ok=True)  # each says whom it replaces, and why
    files = modules.reached(modules.wanted_by([AGENT, HEALTHCHECK]), [site, AGENT.parent], tls)
    take_python(root)
    take_modules(root, site, files, tls)
    take_distributions(root, site, files)
    if tls:
        root.write(CA_BUNDLE, (site / "certifi" / "cacert.pem").read_bytes())
    take_busybox(root)
    take_packages(root)
    add_account(root)
    set_times(root)


def main() -> int:
    """Returns the exit code: 0, or 1 with a message where the image would lack something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--site", type=Path, required=True, help="directory with what pip installed")
    parser.add_argument("--root", type=Path, required=True, help="directory to fill")
    parser.add_argument("--tls", default="0", choices=("0", "1"), help="1: with OpenSSL and certificates")
    options = parser.parse_args()
    try:
        gather(Root(options.root), options.site.resolve(), options.tls == "1")
    except modules.MissingError as missing:
        print(f"rootfs: {missing}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
