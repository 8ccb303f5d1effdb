"""Where a person sees a run: one line on a terminal, redrawn; lines in a log; or a bar.

What the line says is made in progress.py; here is when, where and how it is shown. Knows no process
and no file; the clock is an argument.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from .progress import Counts, Longest, columns_of, render

# More often nobody can read it, and every redraw takes the processor from a worker.
REDRAW_SECONDS = 0.2

# In a log lines stay, and this many tell enough.
LOG_SECONDS = 10.0


class ProgressLine:
    """Draws the line on `stream`, or nothing where that is `None`.

    What is said goes there too.

    Args:
        stream: where to.
        redrawn: whether in one place, on a terminal.
        logged: whether, where it is not redrawn, a line of its own is written now and then.
        shared: whether the program may write to the same terminal, where it is left `aside`.

    Attributes:
        error: what somebody else's bar has raised, for which the run ends.
    """

    error: Exception | None = None

    def __init__(
        self, stream: TextIO | None, redrawn: bool, logged: bool = False, shared: bool = False
    ) -> None:
        self._stream = stream
        self._shared = shared
        self._redrawn = redrawn
        self._pause = REDRAW_SECONDS if redrawn else LOG_SECONDS if logged else float("inf")
        self._draw_at = 0.0 if redrawn or logged else float("inf")
        self._line = ""  # what stands there now

    def draw(
        self, counts: Counts, seconds: float, longest: Callable[[], Longest] = lambda: None
    ) -> None:
        """Show where the run stands, `seconds` after its start, unless that was just done.

        Only then `longest` is asked, so that calling this for each of a million files costs
        nothing.
        """
        if seconds < self._draw_at:
            return
        self._draw_at = seconds + self._pause
        self._show(counts, seconds, longest())

    def draw_text(self, text: str, seconds: float) -> None:
        """The same before there is anything to count: show this in its place."""
        if seconds >= self._draw_at:
            self._draw_at = seconds + self._pause
            self._show_text(lambda width: text[:width])

    def start_over(self) -> None:
        """The clock starts anew."""
        self.clear()
        self._draw_at = min(self._draw_at, 0.0) if self._pause < float("inf") else self._draw_at

    def say(self, text: str) -> None:
        """A line that stays, for somebody who watches."""
        if self._draw_at < float("inf"):
            self.announce(text)

    def announce(self, text: str) -> None:
        """A line that stays, and that a person must see, also where no progress is drawn."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Leave an empty line behind."""
        if self._line:
            self._write("\r" + " " * columns_of(self._line) + "\r")
            self._line = ""

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Make room for what the program writes meanwhile, if the terminal is shared."""
        line = self._line if self._shared else ""
        if line:
            self.clear()
        yield
        if line and not self._line:
            self._write(line)
            self._line = line

    def end(self, counts: Counts) -> None:
        """The run is over, and this is where it stands: the report says so."""
        self.clear()

    def _show(self, counts: Counts, seconds: float, longest: Longest) -> None:
        self._show_text(lambda width: render(counts, seconds, longest, width))

    def _show_text(self, text: Callable[[int], str]) -> None:
        """What `text` makes for the columns that there are."""
        if self._stream is None:
            return
        if not self._redrawn:
            self._write(text(sys.maxsize) + "\n")
            return
        before, self._line = self._line, text(self._width() - 1)
        self._write("\r" + self._line + " " * (columns_of(before) - columns_of(self._line)))

    def _width(self) -> int:
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
        except Exception:  # the terminal is gone, or no real one; the run goes on
            self._stream = None


class ProgressBar(ProgressLine):
    """Drives somebody else's bar, `tqdm.tqdm` for instance, in place of the line.

    `make` is called once, for the first drawing; then come `update(n)` and in the end `close()`. If
    the bar has a `write`, what is said goes through it, as `write(text, file=stream)`, so that the
    bar is not torn; if it has a `set_postfix`, that is told the failures. A bar that raises ends
    the run, and is left alone from then on.
    """

    def __init__(self, stream: TextIO | None, make: Callable[..., Any], name: str) -> None:
        super().__init__(stream, redrawn=True)
        self._make = make
        self._name = name
        self._bar: Any = None
        self._shown = self._failed = 0

    def end(self, counts: Counts) -> None:
        """Bring the bar to where the run stands, and close it."""
        if self._bar is not None:
            self._bring_to(counts)
        if self._bar is not None:
            with self._using() as bar:
                bar.close()
            self._bar = None

    def _show_text(self, text: Callable[[int], str]) -> None:
        """A bar has nothing but counts."""

    def _show(self, counts: Counts, seconds: float, longest: Longest) -> None:
        if self.error is not None:
            return
        if self._bar is None:
            with self._using():
                self._bar = self._make(
                    total=counts.total, initial=counts.finished, desc=self._name, unit="file"
                )
            self._shown = counts.finished
        self._bring_to(counts)

    def _bring_to(self, counts: Counts) -> None:
        if self._bar is None:  # it could not be made
            return
        news, self._shown = counts.finished - self._shown, max(counts.finished, self._shown)
        with self._using() as bar:
            if counts.failed > self._failed and hasattr(bar, "set_postfix"):
                self._failed = counts.failed
                bar.set_postfix(failed=counts.failed, refresh=False)
            if news > 0:
                bar.update(news)

    def _write(self, text: str) -> None:
        if hasattr(self._bar, "write"):
            with self._using() as bar:
                bar.write(text.rstrip("\n"), file=self._stream)
                return
        super()._write(text)

    @contextlib.contextmanager
    def _using(self) -> Iterator[Any]:
        bar, self._bar = self._bar, None
        try:
            yield bar
        except Exception as error:
            self.error = error
        else:
            self._bar = self._bar or bar  # it may have been made just now


def progress_line(
    progress: bool | Callable[..., Any] | None,
    stream: TextIO | None,
    name: str = "files",
    shared: bool = False,
) -> ProgressLine:
    """What the runner's option `progress` asks for.

    `None` draws where somebody watches, though what must be said is said anywhere; `True` writes a
    line now and then where nobody does; `False` writes nothing at all; anything else makes a bar,
    which shows `name`.
    """
    if callable(progress):
        return ProgressBar(stream, progress, name)
    if progress is False or stream is None:
        return ProgressLine(None, redrawn=False)
    return ProgressLine(stream, _is_watched(stream), logged=progress is True, shared=shared)


def _is_watched(stream: TextIO) -> bool:
    """Whether `stream` is shown by something that knows what a carriage return is."""
    if type(stream).__module__.startswith("ipykernel."):  # a notebook's cell; no terminal, it says
        return True
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False
