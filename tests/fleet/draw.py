"""Draws arrivals.png: what reaches the registry from 1,000 sidecars, with and without jitter.

`PYTHONPATH=tests python -m fleet.draw`, from the project's root; it takes tests/fleet/requirements.txt.
"""

from __future__ import annotations

import collections
from pathlib import Path

import matplotlib

from fleet.simulate import MINUTES
from fleet.simulation import Trouble, simulate

matplotlib.use("Agg")
from matplotlib import pyplot

SIZE, SEED = 1000, 1
OUTAGE = Trouble(5 * MINUTES, 10 * MINUTES)
LASTS = 20 * MINUTES
PICTURE = Path(__file__).with_name("arrivals.png")


def main() -> int:
    """Write the picture beside this file."""
    figure, panels = pyplot.subplots(2, sharex=True, sharey=True, figsize=(9, 5), layout="constrained")
    for panel, jitter in zip(panels, (False, True), strict=True):
        seen = simulate(SIZE, LASTS, OUTAGE, SEED, jitter)
        counts = collections.Counter(map(int, seen.arrivals))
        panel.vlines(list(counts), 0, list(counts.values()), linewidth=1.2, color="tab:blue" if jitter else "tab:red")
        panel.axvspan(OUTAGE.start, OUTAGE.end, color="0.85", zorder=0)
        panel.set_title(f"{SIZE:,} sidecars, {'as they are' if jitter else 'without jitter'}", loc="left")
        panel.set_ylabel("requests a second")
        panel.grid(axis="y", color="0.8")
        panel.set_axisbelow(True)
    panels[0].set(yscale="log", ylim=(1, 4 * SIZE), xlim=(-10, LASTS))
    panels[0].annotate("registry down", ((OUTAGE.start + OUTAGE.end) / 2, 2 * SIZE), ha="center", va="center")
    panels[1].set_xlabel("seconds since all were started in one instant")
    figure.savefig(PICTURE, dpi=110)
    print(f"Seed {SEED}: {PICTURE}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
