"""What a person reads of a run while it goes on: counts into a line of text.

Pure: the clock and the width of the terminal are arguments. Knows no process, file or stream.
"""

from __future__ import annotations

import sys
import unicodedata

from ..records import count_files, in_words, printable, tally

# A file in work for less is not worth a name that is gone again before it is read.
LONG_SECONDS = 2.0

# Less of a path than this says nothing.
_SHORTEST_PATH = 12

# The file that has been in work longest, and for how many seconds.
Longest = tuple[str, float] | None


class Counts:
    """Where a run stands. Those `skipped` were done before it, those `left` had failed before and
    are left alone: they say nothing about its speed. While it is `stopping`, nobody knows how many
    more will be done."""

    def __init__(
        self, total: int, skipped: int, completed: int = 0, failed: int = 0, left: int = 0
    ) -> None:
        self.total = total
        self.skipped = skipped
        self.completed = completed
        self.failed = failed
        self.left = left
        self.stopping = False

    @property
    def finished(self) -> int:
        """Files that need nothing more in this run."""
        return self.skipped + self.left + self.completed + self.failed


def render(
    counts: Counts, seconds: float, longest: Longest = None, width: int = sys.maxsize
) -> str:
    """The line, `seconds` after the start of the run, with as much as fits into `width` columns."""
    stand = [f"{counts.finished:,}/{count_files(counts.total)}"[:width]]
    if counts.failed:
        stand.append(f"{counts.failed:,} failed")
    speed, left = [], []
    done_now = counts.completed + counts.failed
    if done_now and seconds > 0:
        rate = done_now / seconds
        speed = [f"{rate:,.1f} files/s" if rate >= 1 else f"{in_words(1 / rate)} a file"]
        if not counts.stopping:
            left = [f"{in_words((counts.total - counts.finished) / rate)} left"]
    if longest is not None and longest[1] >= LONG_SECONDS:
        for line in (_fit([*stand, *speed, *left], width), _fit([*stand, *left], width)):
            name = _name_longest(*longest, width - len(line))
            if name:  # where all of it hangs on one file, that tells more than the speed
                return line + name
    return _fit([*stand, *speed, *left], width)


def _fit(parts: list[str], width: int) -> str:
    """As many of the parts as fit, whole; always the first."""
    line = parts[0]
    for part in parts[1:]:
        if len(line) + len(", ") + len(part) > width:
            break
        line += f", {part}"
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
