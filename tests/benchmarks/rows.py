"""What a table says about an entry: medians, and ratios of runs that took turns."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

from .roster import OURS
from .rounds import Entry, Result
from .workloads import IDEAL

# All the numbers there are; those of time are for one file, since not all have as many.
MEASURES = {
    "seconds": "time per file",
    "cpu": "CPU",
    "memory": "peak memory",
    "written_ratio": "written / kept",
    "idle_cpu": "idle CPU",
    "exponent": "exponent",
}


MATTERS = 1_000_000  # bytes kept: of less, the disk's blocks and the file system's own are most


@dataclass(frozen=True)
class Ratio:
    """How many times another's number one of ours is, or how large it is where `of` is empty."""

    value: float
    of: str


def values(result: Result, entry: Entry, measure: str) -> list[float]:
    """That number of each run, oldest first, or the only one there is."""
    files = max(entry.files, 1)
    if entry.memory is None or not entry.runs:
        return []
    if measure == "seconds":
        return [run.seconds / files for run in entry.runs]
    if measure == "cpu":
        return [run.cpu / files for run in entry.runs]
    if measure == "idle_cpu":
        return [run.idle_cpu for run in entry.runs if run.idle_cpu is not None]
    if measure == "written_ratio":
        runs = [] if result.workload.done_before else entry.runs
        return [run.written / run.kept for run in runs if run.kept > MATTERS and run.written]
    if measure == "memory":
        return [entry.memory.memory] if entry.memory.memory else []  # it was over too soon
    return _exponent(result, entry)


def ratio(result: Result, entry: Entry, other: Entry, measure: str) -> float | None:
    """The median of the ratios of runs that stood side by side."""
    own, others = values(result, entry, measure), values(result, other, measure)
    ratios = [one / two for one, two in zip(own, others, strict=False) if two]
    return median(ratios) if ratios else None


def best_peer(result: Result, size: int) -> Entry | None:
    """Who took the least time for a file, of those that are not us."""
    peers = [entry for entry in of_size(result, size) if entry.contender != OURS and entry.runs]
    return min(peers, key=lambda peer: median(values(result, peer, "seconds")), default=None)


def of_size(result: Result, size: int) -> list[Entry]:
    """The entries that can be compared."""
    return [entry for entry in result.entries if entry.size == size]


def compare(result: Result, ours: Entry, measure: str, of: str | None) -> Ratio | None:
    """A number of ours against that of `of`, as `Target` describes it."""
    own = values(result, ours, measure)
    if not own:
        return None
    if of is None:
        total = median(own) * (ours.files if measure == "cpu" else 1)
        return Ratio(total, "")
    if of == IDEAL:
        seconds = median(own) * ours.files
        return Ratio(seconds / result.ideal, "the ideal") if result.ideal else None
    if of == "best peer":
        other = best_peer(result, ours.size)
    else:
        same = of_size(result, ours.size)
        other = next((entry for entry in same if entry.contender.key == of), None)
    if other is None or (value := ratio(result, ours, other, measure)) is None:
        return None
    return Ratio(value, other.contender.title)


def _exponent(result: Result, entry: Entry) -> list[float]:
    """Between the two largest sizes of this contender; it stands with the largest."""
    if not result.workload.grows:
        return []
    row = [other for other in result.entries if other.contender == entry.contender and other.runs]
    if len(row) < 3 or entry is not row[-1]:
        return []
    start, fewer, more = (median(run.cpu for run in row[place].runs) for place in (0, -2, -1))
    if not start < fewer < more:
        return []
    return [math.log((more - start) / (fewer - start)) / math.log(row[-1].files / row[-2].files)]
