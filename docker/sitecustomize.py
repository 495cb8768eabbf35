"""Lets Python import from modules.z, the byte code of the image in one compressed piece. Site loads this at
each start; `-S` leaves it out, as the health check does.

Compression takes 2 MB off the image. In one piece, because that costs the agent hardly more CPU than plain
files do, where a zip archive costs 35 ms more at each start.

The archive holds what is loaded whenever the agent starts (docker/rootfs.py finds out), and gives its memory
back with the last of them. What may be loaded later lies in files. Unpacked it is 4 bytes, the length of the
index; the index, `module -> (start, end, directory if it is a package)`; and each module's code from marshal.
"""
import _signal  # type: ignore[import-not-found]
import marshal
import posix
import sys
import zlib
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False  # nothing but what lies in the interpreter can be imported here
if TYPE_CHECKING:
    from types import ModuleType


class Archive:
    """A finder and loader of the modules in the archive file at `path`."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            unpacked = memoryview(zlib.decompress(file.read()))
        start = 4 + int.from_bytes(unpacked[:4], "little")
        self.index: dict[str, tuple[int, int, str | None]] = marshal.loads(unpacked[4:start])
        self.code: memoryview | None = unpacked[start:]

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> ModuleSpec | None:
        """Returns the spec of a module in the archive; None leaves it to the next finder."""
        if name not in self.index:
            return None
        directory = self.index[name][2]
        spec = ModuleSpec(name, self, is_package=directory is not None)  # type: ignore[arg-type]
        if directory is not None:
            spec.submodule_search_locations = [directory]
        return spec

    def create_module(self, _spec: ModuleSpec) -> None:
        """Leaves it to Python to make the module object."""

    def exec_module(self, module: "ModuleType") -> None:
        """Runs a module's code, which then is no longer kept here."""
        start, end, _ = self.index.pop(module.__name__)
        code = marshal.loads(self.code[start:end])  # type: ignore[index]
        if not self.index:
            self.code = None
        exec(code, module.__dict__)


if posix.getpid() == 1:  # gets no signal that nobody handles, and the agent takes a while to load
    for number in (_signal.SIGTERM, _signal.SIGINT):
        _signal.signal(number, lambda _number, _frame: posix._exit(0))

# After built-in and frozen modules, before files.
sys.meta_path.insert(2, Archive(__file__.replace("sitecustomize.pyc", "modules.z")))
