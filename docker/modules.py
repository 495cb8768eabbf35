"""Finds the module files that scripts reach: what their imports load when they are run, and a few by name."""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

# Loaded by name or inside functions, where no import statement at the top of a module leads to them.
LATE = (
    "_strptime",  # time.strptime() loads it from C
    "encodings.ascii",  # codecs are looked up by name; these are for header lines,
    "encodings.latin_1",  # header values,
    "encodings.idna",  # host names in socket and http.client,
    "encodings.punycode",  # the labels of such host names,
    "encodings.unicode_escape",  # and a peer's text in the log
    "encodings.utf_8",  # json.loads() takes bytes in any of these
    "encodings.utf_8_sig",
    "encodings.utf_16", "encodings.utf_16_be", "encodings.utf_16_le",
    "encodings.utf_32", "encodings.utf_32_be", "encodings.utf_32_le",
    "idna.uts46data",  # requests, for host names that are not ASCII
)


class MissingError(Exception):
    """Scripts import what the image would lack; the message has a line for each: script, line and module."""


def catches_import_error(statement: ast.Try) -> bool:
    """Tells whether a try statement goes on without the module that its body fails to import."""
    caught = {leaf.id for handler in statement.handlers if handler.type
              for leaf in ast.walk(handler.type) if isinstance(leaf, ast.Name)}
    return bool(caught & {"ImportError", "ModuleNotFoundError"})


def imports(tree: ast.AST, needed: bool = True) -> Iterator[tuple[int, str, bool]]:
    """Yields every import under `tree`, also inside functions: its line, what it names, whether it is needed.

    What it names is `module` or `module:name`. Not needed is what stands in a `try` that catches ImportError.
    """
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import):
            yield from ((child.lineno, alias.name, needed) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((child.lineno, f"{child.module}:{alias.name}", needed) for alias in child.names)
        elif isinstance(child, ast.Try) and catches_import_error(child):
            yield from imports(ast.Module(child.body, []), False)
            yield from imports(ast.Module([*child.orelse, *child.finalbody], []), needed)
            for handler in child.handlers:
                yield from imports(handler, needed)
        else:
            yield from imports(child, needed)


def wanted_by(scripts: list[Path]) -> dict[str, str | None]:
    """Returns what scripts import, what comes late, and the scripts: `module[:name]` -> where it is needed.

    Not needed is None.
    """
    wanted: dict[str, str | None] = dict.fromkeys(LATE, "docker/modules.py")
    for script in scripts:
        for line, name, needed in imports(ast.parse(script.read_text(encoding="utf-8"))):
            if needed:
                wanted[name] = f"{script.name}, line {line}"
            else:
                wanted.setdefault(name, None)
    return wanted | {script.stem: script.name for script in scripts}


def reached(wanted: Mapping[str, str | None], path: list[Path], tls: bool) -> set[Path]:
    """Returns the files of all modules that are loaded when those in `wanted` are imported.

    Modules inside the interpreter have none. `path` names the directories with the scripts and the packages;
    `tls` says whether the image has OpenSSL. Raises MissingError where something needed is not there.
    """
    trace = str(Path(__file__).with_name("trace.py"))
    arguments = [":".join(map(str, path)), "tls" if tls else "plain", *wanted]
    command = [sys.executable, "-I", "-S", trace, *arguments]
    answer = subprocess.run(command, capture_output=True, text=True)  # requests remarks on what we leave out
    if answer.returncode:
        raise MissingError(f"importing the scripts failed:\n{answer.stderr}")
    files, lacks = set(), []
    for line in answer.stdout.splitlines():
        kind, name, detail = line.split("\t")
        if kind == "file":
            files.add(Path(detail))
        elif wanted[name] is not None:
            lacks.append(f"{wanted[name]}: the image would lack {name.replace(':', '.')} ({detail})")
    if lacks:
        raise MissingError("\n".join(lacks))
    return files
