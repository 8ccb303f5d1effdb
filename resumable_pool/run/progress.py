"""What a person reads during a run: counts into a line of text.

Pure: the clock and the width of the terminal are arguments. Knows no process, file or stream.
"""

from __future__ import annotations

import sys
import unicodedata

from ..records import count_files, in_words, printable, tally

# A name that is gone again before you can read it is not worth showing.
LONG_SECONDS = 2.0

# Less of a path than this says nothing.
_SHORTEST_PATH = 12

# The file that has been in progress longest, and for how many seconds.
Longest = tuple[str, float] | None


class Counts:
    """Where a run stands. Those `skipped` were done before it, those `left` had failed before and
    are left alone: they say nothing about its speed, and nor does the time before a worker was
    ready: until then `starting` says how many are not. Those `waiting` will be tried again after a
    pause. While it is `stopping`, nobody knows how many more will be done. Where sizes are known,
    they say best how much is left: `size_done` of `size_to_do`."""

    def __init__(
        self, total: int, skipped: int, completed: int = 0, failed: int = 0, left: int = 0
    ) -> None:
        self.total = total
        self.skipped = skipped
        self.completed = completed
        self.failed = failed
        self.left = left
        self.waiting = 0
        self.stopping = False
        self.starting = 0
        self.ready_at = 0.0
        self.size_done = self.size_to_do = 0

    def note_workers(self, number: int, ready: bool, now: float) -> None:
        """There are so many workers at the time `now`, and one is ready, or none."""
        if ready:
            self.starting, self.ready_at = 0, now
        else:
            self.starting = number

    @property
    def part_done(self) -> float:
        """How much of what there was to do in this run is done, from 0 to 1."""
        if self.size_to_do:
            return self.size_done / self.size_to_do
        return (self.completed + self.failed) / (self.total - self.skipped - self.left)

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
    if counts.waiting:
        stand.append(f"{counts.waiting:,} waiting to be tried again")
    if counts.starting and seconds >= LONG_SECONDS:
        workers = "1 worker" if counts.starting == 1 else f"{counts.starting:,} workers"
        stand.append(f"starting {workers}, {in_words(seconds)}")
    speed, left = [], []
    done_now, worked = counts.completed + counts.failed, seconds - counts.ready_at
    if done_now and worked > 0:
        rate = done_now / worked
        speed = [f"{rate:,.1f} files/s" if rate >= 1 else f"{in_words(1 / rate)} a file"]
        if not counts.stopping and (part := counts.part_done):
            left = [f"{in_words(worked * (1 - part) / part)} left"]
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
