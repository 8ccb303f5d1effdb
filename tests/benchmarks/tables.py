"""A result as a Markdown table that can be read on a terminal, and below it what became of our
targets."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from . import units
from .roster import OURS
from .rounds import Entry, Result
from .rows import MEASURES, best_peer, compare, ratio, values
from .workloads import Target

MISSING = ""

FORMATS: dict[str, Callable[[float], str]] = {
    "seconds": units.seconds,
    "cpu": units.seconds,
    "memory": units.megabytes,
    "written_ratio": units.plain,
    "idle_cpu": units.seconds,
    "exponent": units.plain,
}


def section(result: Result, absent: list[str]) -> str:
    """All there is to say about a workload: what it shows, the table, the targets."""
    lines = [result.workload.shows, "", *_table(result), ""]
    if result.ideal is not None:
        lines += [f"The ideal, for {result.workers} workers: {units.seconds(result.ideal)}.", ""]
    lines += [f"- {verdict}" for verdict in _verdicts(result)]
    lines += [
        f"- {entry.contender.title}, {entry.files:,} files, failed: {entry.failure}"
        for entry in result.entries
        if entry.failure is not None
    ]
    if absent:
        lines.append(f"- not installed, so skipped: {', '.join(absent)}")
    return "\n".join(lines).rstrip() + "\n"


def _table(result: Result) -> list[str]:
    heading = ["", "after a kill, keeps", "files", "seconds", *MEASURES.values(), "x best peer"]
    rows = [_cells(result, entry) for entry in result.entries if entry.runs]
    used = [number for number in range(len(heading)) if any(row[number] for row in rows)]
    lines = [[row[number] for number in used] for row in [heading, *rows]]
    widths = [max(len(line[place]) for line in lines) for place in range(len(used))]
    rule = [
        "-" * width if place < 2 else "-" * (width - 1) + ":" for place, width in enumerate(widths)
    ]
    return [_line(cells, widths) for cells in [lines[0], rule, *lines[1:]]]


def _line(cells: list[str], widths: list[int]) -> str:
    sides = [str.ljust, str.ljust, *[str.rjust] * (len(cells) - 2)]
    padded = [side(cell, width) for side, cell, width in zip(sides, cells, widths, strict=True)]
    return f"| {' | '.join(padded)} |"


def _cells(result: Result, entry: Entry) -> list[str]:
    contender = entry.contender
    title = f"**{contender.title}**" if contender == OURS else contender.title
    peer = best_peer(result, entry.size)
    against = None if peer is None else ratio(result, entry, peer, "seconds")
    seconds = median(run.seconds for run in entry.runs)
    numbers = [_cell(result, entry, measure) for measure in MEASURES]
    shown = MISSING if against is None else units.plain(against)
    return [title, contender.keeps, f"{entry.files:,}", units.seconds(seconds), *numbers, shown]


def _cell(result: Result, entry: Entry, measure: str) -> str:
    found = values(result, entry, measure)
    if not found or (measure == "seconds" and entry.files < 100):
        return MISSING
    if measure == "written_ratio" and entry.contender.keeps == "nothing":
        return MISSING
    value = median(found) * (entry.files or 1 if measure == "cpu" else 1)
    return FORMATS[measure](value)


def _verdicts(result: Result) -> list[str]:
    ours = [entry for entry in result.entries if entry.contender == OURS and entry.runs]
    return [
        line
        for target in result.workload.targets
        for entry in ours
        if (line := _verdict(result, entry, target)) is not None
    ]


def _verdict(result: Result, entry: Entry, target: Target) -> str | None:
    """What was aimed for, what was reached; nothing if there was nobody to compare with."""
    if target.files not in (None, entry.files):
        return None
    found = compare(result, entry, target.measure, target.of)
    if found is None:
        return None
    measure = "time" if target.measure == "seconds" else MEASURES[target.measure]
    if len(result.workload.sizes) > 1:
        measure += f" with {entry.files:,} files"
    outcome = "reached" if found.value <= target.at_most else "missed"
    if target.of is None:
        form = FORMATS[target.measure]
        return f"{measure}: at most {form(target.at_most)}; is {form(found.value)}, {outcome}"
    aim = f"{target.at_most} x that of {found.of}"
    return f"{measure}: at most {aim}; is {units.plain(found.value)} x, {outcome}"
