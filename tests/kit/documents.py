"""Reads the README and the guide for the tests that hold them against what really happens."""

import re
from typing import NamedTuple

from kit.sidecar import ROOT

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced code block: the language after the fence, its text, the heading above it."""

    language: str
    text: str
    heading: str


def read(name: str) -> str:
    """Return the text of a document at the project's top."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str) -> list[Block]:
    """Return the fenced code blocks of a document, in order."""
    text = read(name)
    found = []
    for match in FENCE.finditer(text):
        headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text[: match.start()]), re.MULTILINE)
        found.append(Block(match["language"], match["text"], headings[-1] if headings else ""))
    return found


def table(name: str, heading: str, number: int = 1) -> list[list[str]]:
    """Return the rows below the head of a heading's first (or other) table.

    Each as its cells' text.
    """
    section = re.split(rf"^#+ {re.escape(heading)}$", read(name), flags=re.MULTILINE)[1]
    section = re.split(r"^#+ ", section, flags=re.MULTILINE)[0]
    lines = re.findall(r"(?:^\|.*\n?)+", section, re.MULTILINE)[number - 1].splitlines()
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines[2:]
    ]


def code(cell: str) -> list[str]:
    """Return what stands in backticks in a table's cell."""
    return re.findall(r"`([^`]+)`", cell)


def shape(line: str) -> str:
    """Return a line of output without what differs from run to run.

    Durations, addresses, attempts, a log's time.
    """
    line = re.sub(r"^\S+Z (DEBUG|INFO|WARNING|ERROR|CRITICAL) ", "", line)
    line = re.sub(r"http://[^\s;:\"]+(:\d+)?", "URL", line)
    line = re.sub(r"\d{4}-\d\d-\d\dT[\d:.+]+|(?<=ttl_remaining\": )[\d.]+", "TIME", line)
    return re.sub(
        r"\d+(\.\d+)? (?=s\b)|(?<=attempt )\d+|(?<=failures: )\d+|(?<=answered )\d+", "N ", line
    )


def occurs(quoted: str, lines: list[str]) -> bool:
    """Tell whether a quoted line, in which … stands for any text.

    Is (part of) one of these lines.
    """
    quoted = re.sub(r"(?<=registry at )…", "URL", quoted)
    pattern = ".*".join(re.escape(part) for part in shape(quoted).split("…"))
    return any(re.search(pattern, shape(line)) for line in lines)
