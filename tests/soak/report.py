"""What the soak prints in the end.

A table of the faults, what the agents used, and every violation.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator

from soak.catalogue import anything, below
from soak.invariants import Back, growth
from soak.schedule import KINDS
from soak.world import World

Say = Callable[[str], object]


def report(world: World, seed: int, say: Say = print) -> None:
    """Say how it went."""
    backs = [back for unit in world.units for back in unit.watch.backs]
    for line in (*table(world.played, backs), *summary(world)):
        say(line)
    for violation in world.violations:
        say(
            f"\nVIOLATION (seed {seed}) at {violation.at:.1f} s,"
            f" {violation.agent}: {violation.what}"
        )
        say(f"  going on: {violation.fault}")
        for line in violation.tail:
            say(f"  | {line}")
    say(f"\nseed {seed}: {len(world.violations) or 'no'} violations")


def table(played: dict[str, int], backs: Iterable[Back]) -> Iterator[str]:
    """Yield a Markdown table.

    For each kind of fault how often it was played, and its slowest return.

    The slowest is the one that took the largest part of what was promised, the machine's lateness
    included.
    """
    worst: dict[str, Back] = {}
    for back in backs:
        for kind in back.causes:
            if (
                kind not in worst
                or back.took / back.promised > worst[kind].took / worst[kind].promised
            ):
                worst[kind] = back
    yield "| fault | played | slowest back | promised, slack included |"
    yield "|---|---:|---:|---:|"
    for kind in KINDS:
        if KINDS[kind].keeps:
            times = "never away | |"
        elif kind in worst:
            times = f"{worst[kind].took:.1f} s | {worst[kind].promised:.1f} s |"
        else:
            times = "| |"
        yield f"| {kind} | {played.get(kind, 0)} | {times}"


def summary(world: World) -> Iterator[str]:
    """Yield lines about the whole run."""
    units = world.units
    catalogue = {*anything(), *below()}
    missed = sorted(catalogue - {name for _, name in world.met})
    met = len(catalogue) - len(missed)
    yield ""
    exchanges = world.met.total()
    yield f"faults of the catalogue met: {met} of {len(catalogue)}, in {exchanges} exchanges"
    if missed:
        yield f"not met: {', '.join(missed)}"
    if unplayed := [kind for kind in KINDS if kind not in world.played]:
        yield f"not played: {', '.join(unplayed)}"
    requests = sum(
        front.count(operation)
        for front in world.fronts
        for operation in ("register", "heartbeat", "list", "deregister")
    )
    probes = sum(unit.service.count() for unit in units)
    yield f"requests: {requests} to the registry, {probes} probes"
    yield f"log: {sum(len(unit.sidecar.lines) for unit in units)} lines of {len(units)} agents"
    yield f"the record was looked at {world.looks * len(units)} times"
    samples = [sample for unit in units for life in unit.lives for sample in life]
    if samples:
        grown = [found for unit in units for life in unit.lives if (found := growth(life))]
        memory = sorted(sample.memory for sample in samples)
        usual = statistics.median(memory) / 1000
        yield f"memory: {usual:.1f} MB, at most {memory[-1] / 1000:.1f} MB"
        if grown:
            most = max(found.memory for found in grown)
            yield (
                f"growth in the second half of a life after warm-up: at most {most} kB,"
                f" {len(grown)} lives judged"
            )
        yield f"descriptors: at most {max(sample.descriptors for sample in samples)}"
    late = max(unit.watch.late.total for unit in units)
    excused = sum(unit.watch.excused for unit in units)
    yield (
        f"lateness of the machine: {late:.1f} s for the worst agent;"
        f" {excused} absences excused by it"
    )
