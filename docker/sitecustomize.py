"""Let Python import from modules.z: the byte code of the image, compressed in one piece.

Python loads this at each start, unless told not to by -S, as the health check does. Packed, the
image is 1.25 MB smaller and the agent starts with a fifth less CPU than from as many files. The
archive holds what every start of the agent loads (rootfs.py finds out), so that its memory is
given back soon: module -> (its directory where it is a package, its code from marshal).
"""

import _signal  # type: ignore[import-not-found]  # only what lies in the interpreter
import marshal
import posix
import sys
import zlib
from _frozen_importlib import ModuleSpec


class Archive:
    """A finder and loader of the modules in the archive at `path`."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.modules = marshal.loads(zlib.decompress(file.read()))

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        if name not in self.modules:
            return None  # which leaves it to the next finder
        directory, _ = self.modules[name]
        spec = ModuleSpec(name, self, is_package=bool(directory))  # type: ignore[arg-type]
        if directory:
            spec.submodule_search_locations = [directory]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leave it to Python."""

    def exec_module(self, module: object) -> None:
        """Run a module's code, which then is no longer kept here."""
        _, code = self.modules.pop(module.__name__)  # type: ignore[attr-defined]
        exec(marshal.loads(code), vars(module))


if posix.getpid() == 1:  # gets no signal that nobody handles, and the agent takes a while to load
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda _number, _frame: posix._exit(0))

# After built-in and frozen modules, before files.
sys.meta_path.insert(2, Archive(__file__.replace("sitecustomize.pyc", "modules.z")))
