"""Counts the outcomes in pytest's XML reports, and names what passed only when it was tried once more.

python tests/tally.py REPORT...      a second try after the first
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from xml.etree import ElementTree


def outcome(case: ElementTree.Element) -> str:
    said = {child.tag for child in case}
    return "failed" if said & {"failure", "error"} else "skipped" if "skipped" in said else "passed"


def tally(reports: list[str]) -> str:
    """Return the closing lines: how many passed, failed and were skipped; what took a second try, if anything."""
    tries: dict[str, list[str]] = defaultdict(list)
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            module = case.get("classname", "").rpartition(".")[2]
            tries[f"{module}.py::{case.get('name')}"].append(outcome(case))
    counts = Counter(outcomes[-1] for outcomes in tries.values())
    lines = [", ".join(f"{counts[word]} {word}" for word in ("passed", "failed", "skipped"))]
    second = [name for name, outcomes in tries.items() if "failed" in outcomes and outcomes[-1] == "passed"]
    if second:
        lines.append(f"passed only when tried once more: {len(second)}: {', '.join(second)}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tally(sys.argv[1:]))
