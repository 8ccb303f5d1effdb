"""What a person sees of a run while it goes on: one line on a terminal, redrawn.

Counts go in, text comes out. Knows no process and no file; the clock is an argument.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TextIO

from .records import count_files, in_words, tally

# More often nobody can read it, and every redraw takes the processor from a worker.
REDRAW_SECONDS = 0.2

logger = logging.getLogger("resumable_pool")
logger.addHandler(logging.NullHandler())  # silent, until the program configures logging


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


def render(counts: Counts, seconds: float) -> str:
    """The line, `seconds` after the start of the run."""
    parts = [f"{counts.finished:,}/{count_files(counts.total)}"]
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    done_now = counts.completed + counts.failed
    if done_now and seconds > 0:
        speed = done_now / seconds
        parts.append(f"{speed:,.1f} files/s" if speed >= 1 else f"{in_words(1 / speed)} a file")
        parts.append(f"{in_words((counts.total - counts.finished) / speed)} left")
    return ", ".join(parts)


def describe_end(counts: Counts) -> str:
    """Where a run stands that was stopped."""
    return tally(
        counts.total,
        (counts.skipped + counts.completed, "done"),
        (counts.left + counts.failed, "failed"),
        (counts.total - counts.finished, "to do"),
    )


class ProgressLine:
    """Draws the line on `stream`, or nothing where that is `None`.

    What is said goes there too, and to the logger `resumable_pool` in any case.
    """

    def __init__(self, stream: TextIO | None, redrawn: bool) -> None:
        self._stream = stream
        self._redrawn = redrawn
        self._drawn_at = float("-inf")
        self._length = 0

    def draw(self, counts: Counts, seconds: float) -> None:
        """Show where the run stands, `seconds` after its start, unless that was just done."""
        if not self._redrawn or seconds < self._drawn_at + REDRAW_SECONDS:
            return
        self._drawn_at = seconds
        text = render(counts, seconds)[: self._columns() - 1]
        self._write("\r" + text.ljust(self._length))
        self._length = len(text)

    def say(self, text: str) -> None:
        """A line that stays, for somebody who watches."""
        if self._redrawn:
            self.announce(text)
        else:
            logger.info("%s", text)

    def announce(self, text: str) -> None:
        """A line that stays, and that a person must see, also where no progress is drawn."""
        logger.info("%s", text)
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Leave an empty line behind."""
        if self._length:
            self._write("\r" + " " * self._length + "\r")
            self._length = 0

    def _columns(self) -> int:
        try:
            assert self._stream is not None
            # Not shutil's: that asks about stdout, which may be redirected elsewhere.
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal is gone; the run goes on
            self._stream = None


def progress_line(progress: bool | None, stream: TextIO | None) -> ProgressLine:
    """The line for the runner's option `progress`: `None` draws on terminals only, though what must
    be said is said anywhere; `False` writes nothing at all."""
    if progress is False or stream is None:
        return ProgressLine(None, redrawn=False)
    return ProgressLine(stream, redrawn=progress is True or _is_terminal(stream))


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False
