"""What a person reads of a run while it goes on: counts into a line of text.

Pure: the clock and the width of the terminal are arguments. Knows no process, file or stream.
"""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass

from .records import count_files, in_words, printable, tally

# A file in work for less is not worth a name that is gone again before it is read.
LONG_SECONDS = 2.0

# Less of a path than this says nothing.
_SHORTEST_PATH = 12

# The file that has been in work longest, and for how many seconds.
Longest = tuple[str, float] | None


@dataclass
class Counts:
    """Where a run stands. Those `skipped` were done before it, those `left` had failed before and
    are left alone: they say nothing about its speed."""

    total: int
    skipped: int
    completed: int = 0
    failed: int = 0
    left: int = 0

    @property
    def finished(self) -> int:
        """Files that need nothing more in this run."""
        return self.skipped + self.left + self.completed + self.failed


def render(
    counts: Counts, seconds: float, longest: Longest = None, width: int = sys.maxsize
) -> str:
    """The line, `seconds` after the start of the run, with as much as fits into `width` columns."""
    line = f"{counts.finished:,}/{count_files(counts.total)}"[:width]
    parts = [f"{counts.failed:,} failed"] if counts.failed else []
    done_now = counts.completed + counts.failed
    if done_now and seconds > 0:
        speed = done_now / seconds
        parts.append(f"{speed:,.1f} files/s" if speed >= 1 else f"{in_words(1 / speed)} a file")
        parts.append(f"{in_words((counts.total - counts.finished) / speed)} left")
    for part in parts:
        if len(line) + len(", ") + len(part) > width:
            return line
        line += f", {part}"
    if longest is not None and longest[1] >= LONG_SECONDS:
        line += _name_longest(*longest, width - len(line))
    return line


def _name_longest(path: str, seconds: float, width: int) -> str:
    """The end of the line; of a long path the end, because that is where paths differ."""
    start = f", {in_words(seconds)} on "
    width -= len(start)
    path = printable(path)
    if columns_of(path) > width:
        if width < _SHORTEST_PATH:
            return ""
        width -= len("...")
        path = path[-width:]
        while columns_of(path) > width:
            path = path[1:]
        path = f"...{path}"
    return start + path


def columns_of(text: str) -> int:
    """How wide a terminal shows `text`; Chinese, Japanese and Korean take two columns each."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(sign) in "FW" else 1 for sign in text)


def describe_end(counts: Counts) -> str:
    """Where a run stands that was stopped."""
    return tally(
        counts.total,
        (counts.skipped + counts.completed, "done"),
        (counts.left + counts.failed, "failed"),
        (counts.total - counts.finished, "to do"),
    )
