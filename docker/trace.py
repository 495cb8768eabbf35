"""Imports the modules given as arguments and prints what came of it; rootfs.py runs it and reads the answer.

    python -I -S docker/trace.py DIRECTORY:DIRECTORY tls|plain MODULE[:NAME]...

A NAME is an attribute of the module or a submodule. The answer, line by line:

    missing<TAB>argument<TAB>why      it cannot be imported
    file<TAB>module<TAB>path          a file that was loaded on the way

Nothing but sys is imported here, since whatever this process loads counts as needed.
"""
import sys

# Refused, so that those who import them where they can do without. The image has none of them.
OPTIONAL = {
    "_datetime", "bz2", "lzma",  # shutil: archives nobody sends us, and the libraries to read them
    "chardet", "charset_normalizer",  # requests: guesses the encoding of a text
}
# OpenSSL and what is built on it, refused without TLS. urllib3 and requests then speak http only.
TLS_ONLY = {"ssl", "_ssl", "_hashlib"}


class Refuse:
    """A finder that says `not found` for the modules that the image leaves out."""

    def __init__(self, names: set[str]) -> None:
        self.names = names

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        """Raises ImportError for a refused module, and leaves every other to the next finder."""
        if name in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def load(argument: str) -> None:
    """Imports what one argument names; raises ImportError where it cannot be had."""
    name, _, attribute = argument.partition(":")
    __import__(name)
    if attribute and not hasattr(sys.modules[name], attribute):
        __import__(f"{name}.{attribute}")


def main(tls: bool, arguments: list[str]) -> None:
    """Prints the answer. `tls` says whether the image has OpenSSL."""
    sys.meta_path.insert(0, Refuse(OPTIONAL if tls else OPTIONAL | TLS_ONLY))
    for argument in arguments:
        try:
            load(argument)
        except ImportError as error:
            print("missing", argument, error, sep="\t")
    for module in list(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.has_location:  # built-in and frozen modules lie in libpython
            print("file", spec.name, spec.origin, sep="\t")


if __name__ == "__main__":
    sys.path[:0] = sys.argv[1].split(":")
    main(sys.argv[2] == "tls", sys.argv[3:])
