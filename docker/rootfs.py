"""Gather the image's root file system: what agent.py and healthcheck.py load, and a shell.

    python rootfs.py TLS     (0 or 1)

The builder stage of the Dockerfile throws its Python away afterwards. So what the image leaves out
is deleted from it, stand-ins are laid over it (stubs/), and plain Python imports the two scripts.
What it loads goes into the image; a script that imports what is left out stops the build. Libraries
are those that the loader names, so that no architecture is written down here.
"""

import marshal
import os
import re
import shutil
import subprocess
import sys
import zlib
from importlib.util import MAGIC_NUMBER
from pathlib import Path

HERE, APP = Path(__file__).parent, Path("/app")
STDLIB = Path(os.__file__).parent
SITE = STDLIB / "site-packages"

LEFT_OUT = (
    "lib-dynload/_datetime.*",  # datetime has the same in Python
    "lib-dynload/_hashlib.*",  # hmac would load it, and hash nothing
    "site-packages/charset_normalizer*",  # for texts that do not say how they are encoded
    "site-packages/idna*",  # with what scanners know it by
)
LEFT_OUT_WITHOUT_TLS = ("ssl.py", "lib-dynload/_ssl.*", "site-packages/certifi*")
# Loaded by name when they are needed, where no import at the top of a module leads to them.
LATE = (
    "encodings.ascii",  # header lines
    "encodings.latin_1",  # header values
    "encodings.unicode_escape",  # a peer's text in the log
    # What a JSON body may come in
    *("encodings.utf_8_sig", "encodings.utf_16", "encodings.utf_16_be", "encodings.utf_16_le"),
    *("encodings.utf_32", "encodings.utf_32_be", "encodings.utf_32_le"),
)
LOAD = """
import sys
for name in sys.argv[1:]:
    __import__(name)
for spec in [getattr(module, "__spec__", None) for module in sys.modules.values()]:
    if spec and spec.has_location:  # built-in and frozen modules lie in libpython
        print(spec.name, spec.origin)
"""


class Root:
    """The root file system under construction. Paths are those in the image and in the builder."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.taken: set[str] = set()  # real paths of the files that were copied as they are

    def at(self, path: str | Path) -> Path:
        """Return where a path of the image lies in the builder, its directory made."""
        place = self.directory / str(path).lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def write(self, path: str | Path, content: bytes) -> None:
        self.at(path).write_bytes(content)

    def write_module(self, source: Path, path: Path) -> None:
        """Write byte code in the place of `path`; its header says never to check (PEP 552)."""
        header = MAGIC_NUMBER + (1).to_bytes(4, "little") + bytes(8)
        self.write(path.with_suffix(".pyc"), header + byte_code(source, path))

    def take(self, path: str) -> None:
        """Copy one file and each symbolic link on the way to it, also of directories."""
        walked = Path("/")
        for name in Path(path).parts[1:]:
            walked /= name
            if walked.is_symlink():
                link, rest = os.readlink(walked), os.path.relpath(path, walked)
                if not self.at(walked).is_symlink():
                    self.at(walked).symlink_to(link)
                self.take(os.path.normpath(walked.parent / link / rest))
                return
        shutil.copy2(path, self.at(path))
        self.taken.add(path)

    def take_program(self, path: str) -> None:
        """Copy a program or a shared object, and every library that the loader finds for it."""
        for file in (path, *libraries(path)):
            self.take(file)


def byte_code(source: Path, path: Path) -> bytes:
    """Return the code of a module that the image has at `path`, without docstrings and asserts."""
    code = compile(source.read_bytes(), path, "exec", dont_inherit=True, optimize=2)
    return marshal.dumps(code)


def libraries(path: str) -> list[str]:
    """Return the shared libraries that the loader finds for the file at `path`."""
    ldd = shutil.which("ldd") or sys.exit("rootfs: the base image has no ldd")
    answer = subprocess.run([ldd, path], capture_output=True, text=True)
    # It calls python's own symbols in an extension module missing, too, which means nothing.
    if "Error loading shared library" in answer.stderr:
        sys.exit(f"rootfs: {path}: {answer.stderr.splitlines()[0]}")
    return [os.path.normpath(library) for library in re.findall(r"(/\S+) \(0x", answer.stdout)]


def leave_out(tls: bool) -> None:
    """Delete what the image does without from this very Python, and lay the stand-ins over it."""
    if not (APP / "agent.py").exists():
        sys.exit("rootfs: it destroys its own Python: run by the Dockerfile alone")
    for pattern in LEFT_OUT if tls else LEFT_OUT + LEFT_OUT_WITHOUT_TLS:
        for path in STDLIB.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(HERE / "stubs", STDLIB, dirs_exist_ok=True)


def loaded(*modules: str) -> dict[str, Path]:
    """Return what a fresh Python loads to import these modules: name -> file."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", LOAD, *modules],
        env={"PYTHONPATH": f"{SITE}:{APP}"}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit("rootfs: a script imports what the image leaves out, see above")
    return {name: Path(file) for name, file in map(str.split, done.stdout.splitlines())}


def take_modules(root: Root) -> None:
    """Take the modules: shared objects, and byte code, packed where that does no harm.

    Not packed is what the health check loads, a new process every 30 s, and what is loaded late.
    Of packages the METADATA come along, for scanners to find.
    """
    modules = loaded("agent", *LATE)
    packed = loaded("agent").keys() - loaded("healthcheck").keys() - {"agent"}
    archive = {}
    for name, file in modules.items():
        if file.suffix != ".py":
            root.take_program(str(file))
        elif name in packed:
            directory = str(file.parent) if file.name == "__init__.py" else None
            archive[name] = directory, byte_code(file, file)
        else:
            root.write_module(file, file)
    root.write(SITE / "modules.z", zlib.compress(marshal.dumps(archive), 9))
    root.write_module(HERE / "sitecustomize.py", SITE / "sitecustomize.py")
    root.write_module(STDLIB / "os.py", STDLIB / "os.py")  # by it Python knows its home
    packages = {name.partition(".")[0] for name in modules}
    for info in SITE.glob("*.dist-info"):
        if info.name.split("-")[0] in packages:
            root.take(str(info / "METADATA"))


def take_programs(root: Root) -> None:
    """Take python and busybox under all their names."""
    busybox = shutil.which("busybox") or sys.exit("rootfs: the base image has no busybox")
    programs = {os.path.realpath(sys.executable), os.path.realpath(busybox)}
    for program in programs:
        root.take_program(program)
    for directory in filter(os.path.isdir, os.get_exec_path()):
        for path in Path(directory).iterdir():
            if path.is_symlink() and os.path.realpath(path) in programs:
                root.take(str(path))


def files_of(record: str) -> set[str]:
    """Return the real paths of a package's files, by its record in Alpine's database."""
    directory, files = "", set()
    for line in record.splitlines():
        if line.startswith("F:"):
            directory = line[2:]
        elif line.startswith("R:"):
            files.add(os.path.realpath(f"/{directory}/{line[2:]}"))
    return files


def take_packages(root: Root) -> None:
    """Take the entries of the Alpine packages that files came from, and the release's name."""
    for release in filter(os.path.exists, ("/etc/os-release", "/etc/alpine-release")):
        root.take(release)
    for database in filter(os.path.exists, ("/lib/apk/db/installed", "/usr/lib/apk/db/installed")):
        records = Path(database).read_text(encoding="utf-8").split("\n\n")
        kept = [record.strip("\n") + "\n\n" for record in records if files_of(record) & root.taken]
        root.take(database)  # with the links on the way to it
        root.write(os.path.realpath(database), "".join(kept).encode())


def main(tls: str) -> None:
    """Fill /rootfs from the builder's own file system."""
    if tls not in ("0", "1"):
        sys.exit("rootfs: set the build argument TLS to 0 or 1")
    root = Root(Path("/rootfs"))
    leave_out(tls == "1")
    take_programs(root)
    take_modules(root)
    if tls == "1":
        bundle = "/etc/ssl/certs/ca-certificates.crt"  # where the stand-in of certifi says it is
        root.write(bundle, (SITE / "certifi" / "cacert.pem").read_bytes())
    take_packages(root)
    root.write("/etc/passwd", b"root:x:0:0::/:/bin/sh\nsidecar:x:1000:1000::/app:/bin/sh\n")
    root.write("/etc/group", b"root:x:0:\nsidecar:x:1000:\n")
    root.at("/tmp").mkdir()
    root.at("/tmp").chmod(0o1777)


if __name__ == "__main__":
    main(*sys.argv[1:])
