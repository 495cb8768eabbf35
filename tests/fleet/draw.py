"""Draws arrivals.svg: what reaches the registry from 1,000 sidecars, with and without jitter.

`PYTHONPATH=tests python -m fleet.draw`, from the project's root.
"""

import collections
import math
from collections.abc import Iterator
from pathlib import Path

from fleet.simulate import MINUTES
from fleet.simulation import Trouble, simulate

SIZE, SEED = 1000, 1
OUTAGE, LASTS = Trouble(5 * MINUTES, 10 * MINUTES), 20 * MINUTES
PICTURE = Path(__file__).with_name("arrivals.svg")
LEFT, WIDTH, HEIGHT, GAP = 50, 800, 180, 40  # pixels
DECADES = 4  # of requests a second, from 1
FRAME = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {} {}" font-family="sans-serif"'
    ' font-size="12"><rect width="100%" height="100%" fill="white"/>'
)


def across(seconds: float) -> float:
    """Return where a moment lies, in pixels from the left."""
    return LEFT + WIDTH * seconds / LASTS


def panel(top: float, jitter: bool) -> Iterator[str]:
    """Yield one of the two diagrams, its upper edge at `top`."""

    def height(number: float) -> float:
        return top + HEIGHT * (1 - math.log10(number) / DECADES)

    start, end = across(OUTAGE.start), across(OUTAGE.end)
    yield f'<rect x="{start}" y="{top}" width="{end - start}" height="{HEIGHT}" fill="#ddd"/>'
    yield f'<text x="{start + 5}" y="{top + 15}">registry down</text>'
    title = f"{SIZE:,} sidecars, {'as they are' if jitter else 'without jitter'}: requests a second"
    yield f'<text x="{LEFT}" y="{top - 6}">{title}</text>'
    for number in (10**decade for decade in range(DECADES)):
        at = height(number)
        yield f'<path d="M{LEFT} {at}h{WIDTH}" stroke="#ccc"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4}" text-anchor="end">{number:,}</text>'
    seconds = collections.Counter(map(int, simulate(SIZE, LASTS, OUTAGE, SEED, jitter).arrivals))
    bars = "".join(
        f"M{across(at):.1f} {height(1):.0f}V{height(1.1 * number):.1f}"
        for at, number in sorted(seconds.items())
    )
    yield f'<path d="{bars}" stroke="{"steelblue" if jitter else "firebrick"}"/>'


if __name__ == "__main__":
    base = 2 * (GAP + HEIGHT)
    lines = [FRAME.format(LEFT + WIDTH + GAP, base + GAP)]
    for top, jitter in ((GAP, False), (2 * GAP + HEIGHT, True)):
        lines += panel(top, jitter)
    for minute in range(0, 21, 5):
        at = across(minute * MINUTES)
        lines.append(f'<text x="{at}" y="{base + 20}" text-anchor="middle">{minute} min</text>')
    PICTURE.write_text("\n".join([*lines, "</svg>", ""]))
    print(f"Seed {SEED}: {PICTURE}")
