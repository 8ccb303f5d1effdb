"""What a run tells, and where it is shown: counts as one line on a terminal, redrawn; or as lines,
or a bar; and everything to the logger `resumable_pool`.

    DEBUG     workers that start and are ready
    INFO      start, plan, end and report; further attempts, replaced workers, stops
    WARNING   each failed file, with its kind and message
    ERROR     why a run ends early

First the line, which is pure: the clock and the width of the terminal are arguments. Then how it is
shown, and what is told where. Knows no process and decides nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sized
from typing import Any, TextIO

from ..between.clock import NEVER, monotonic
from ..files import Told
from ..records import AlikeFailures, Failure, count_files, in_words, printable, quoted, spelt, tally
from .plan import Plan

# A name that is gone again before you can read it is not worth showing.
LONG_SECONDS = 2.0

# Less of a path than this says nothing.
_SHORTEST_PATH = 12

# More often nobody can read it, and every redraw takes the processor from a worker.
REDRAW_SECONDS = 0.2

# In a log lines stay, and this many tell enough.
LOG_SECONDS = 10.0

# The levels of `logging`, which is not imported here: it takes as long as a third of this package,
# and nobody listens in a program that has not imported it.
DEBUG, INFO, WARNING, ERROR = 10, 20, 30, 40

# Of so many kinds of failure a person sees the first one when it happens: a wrong function fails in
# one way, and who has seen ten waits for the report.
SHOWN_KINDS = 10

# When all of the first so many files fail alike, it is hardly the files' fault.
FIRST_FILES = 20

# Most folders are read at once; what takes longer needs a word.
SLOW_LISTING = 1.0

# The file that has been in progress longest, and for how many seconds.
Longest = tuple[str, float] | None


class Counts:
    """Where a run stands. Those `skipped` were done before it, those `left` had failed before and
    are left alone: they say nothing about its speed, and nor does the time before a worker was
    ready, at `ready_at`: until then `starting` says how many are not. Those `waiting` will be tried
    again after a pause. Once it is `stopped`, nobody knows how many more will be done. Where sizes
    are known, they say best how much is left: `size_done` of `size_to_do`."""

    total = skipped = left = completed = failed = starting = size_done = size_to_do = 0
    waiting: Sized = ()
    ready_at = 0.0
    stopped = False

    @property
    def part_done(self) -> float:
        """How much of what there was to do in this run is done, from 0 to 1."""
        if self.size_to_do:
            return self.size_done / self.size_to_do
        return (self.completed + self.failed) / (self.total - self.skipped - self.left)

    def longest(self, now: float) -> Longest:
        """The file that has been in progress longest, and for how many seconds, if one can tell."""
        return None

    @property
    def finished(self) -> int:
        """Files that need nothing more in this run."""
        return self.skipped + self.left + self.completed + self.failed


def render(counts: Counts | str, seconds: float, width: int = sys.maxsize) -> str:
    """The line, `seconds` after the start of the run, with as much as fits into `width` columns. A
    text is what stands there before there is anything to count."""
    if isinstance(counts, str):
        return counts[:width]
    stand = [f"{counts.finished:,}/{count_files(counts.total)}"[:width]]
    if counts.failed:
        stand.append(f"{counts.failed:,} failed")
    if counts.waiting:
        stand.append(f"{len(counts.waiting):,} waiting to be tried again")
    if counts.starting and seconds >= LONG_SECONDS:
        workers = "1 worker" if counts.starting == 1 else f"{counts.starting:,} workers"
        stand.append(f"starting {workers}, {in_words(seconds)}")
    speed, left = [], []
    done_now, worked = counts.completed + counts.failed, seconds - counts.ready_at
    if done_now and worked > 0:
        rate = done_now / worked
        speed = [f"{rate:,.1f} files/s" if rate >= 1 else f"{in_words(1 / rate)} a file"]
        if not counts.stopped and (part := counts.part_done):
            left = [f"{in_words(worked * (1 - part) / part)} left"]
    longest = counts.longest(seconds)
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
    start, path = f", {in_words(seconds)} on ", printable(path)
    room = width - len(start)
    if columns_of(path) <= room:
        return start + path
    if room < _SHORTEST_PATH:
        return ""
    path = path[-room:]
    while columns_of(f"...{path}") > room:
        path = path[1:]
    return f"{start}...{path}"


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


class Screen:
    """What a run tells, and where a person sees it: a line on `stream`, and what is said; or
    nothing where that is `None`. Lives in the runner's process.

    Args:
        stream: where to.
        redrawn: whether in one place, on a terminal.
        logged: whether, where it is not redrawn, a line of its own is written now and then.

    Attributes:
        error: what somebody else's bar has raised, for which the run ends.
    """

    error: Exception | None = None
    _line = ""  # what stands there now
    _draw_at = 0.0

    def __init__(self, stream: TextIO | None, redrawn: bool, logged: bool = False) -> None:
        self._stream = stream
        self._redrawn = redrawn
        self._pause = REDRAW_SECONDS if redrawn else LOG_SECONDS if logged else NEVER
        self._kinds = AlikeFailures()

    # The line.

    def draw(self, counts: Counts | str, seconds: float) -> None:
        """Show where the run stands, `seconds` after its start, unless that was just done: calling
        this for each of a million files costs nothing."""
        if seconds >= self._draw_at:
            self._draw_at = seconds + self._pause
            self._show(counts, seconds)

    def clear(self) -> None:
        """Make room for what is written next, perhaps by the program, and to the same terminal. The
        line comes back with the next drawing."""
        if self._line:
            self._write("\r" + " " * columns_of(self._line) + "\r")
            self._line, self._draw_at = "", 0.0

    def end(self, counts: Counts) -> None:
        """The run is over, and this is where it stands: the report says so."""
        self.clear()

    def _show(self, counts: Counts | str, seconds: float) -> None:
        if self._stream is None or self._pause == NEVER:
            return
        if not self._redrawn:
            self._write(render(counts, seconds) + "\n")
            return
        try:
            # Not shutil's: that asks about stdout, which may be redirected elsewhere.
            width = os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            width = 80
        before, self._line = self._line, render(counts, seconds, width - 1)
        self._write("\r" + self._line + " " * (columns_of(before) - columns_of(self._line)))

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(Exception):  # it is gone, or its disk is full for a while
            self._stream.write(spelt(text, self._stream))
            self._stream.flush()

    # What is said.

    def log(self, level: int, text: str) -> None:
        """Tell the logger `resumable_pool`, in a program that listens."""
        if (logging := sys.modules.get("logging")) is None:
            return
        logger = logging.getLogger("resumable_pool")
        if not logger.handlers:
            logger.addHandler(logging.NullHandler())  # silent, until the program configures logging
        if logging.root.handlers and logger.isEnabledFor(level):
            self.clear()  # one may write to the same terminal
        with contextlib.suppress(Exception):  # a handler's, whose server is away, say
            logger.log(level, "%s", text)

    def say(self, text: str) -> None:
        """A line that stays, for somebody who watches."""
        self.log(INFO, text)
        if self._pause < NEVER:
            self._say(text)

    def announce(self, text: str) -> None:
        """A line that stays, and that a person must see, also where no progress is drawn."""
        self.log(INFO, text)
        self._say(text)

    def _say(self, text: str) -> None:
        self.clear()
        self._write(text + "\n")

    @contextlib.contextmanager
    def looks_for_files(self) -> Iterator[Told]:
        """Meanwhile; what it yields is to be told how many there are. If that takes long it is
        shown."""
        begun, self._draw_at = monotonic(), SLOW_LISTING
        yield lambda number: self.draw(f"looking for files: {number:,}", monotonic() - begun)
        self.clear()
        self._draw_at = 0.0  # the clock starts anew

    def knows_the_plan(self, plan: Plan, notes: list[str]) -> None:
        """The checkpoint is locked; `notes` are what it says of itself."""
        for note in [*notes, *plan.advice]:
            self.announce(note)
        if plan.new < plan.total:
            self.say(str(plan))
        else:  # as anybody expects
            self.log(INFO, str(plan))

    def has_nothing_to_do(self, plan: Plan, checkpoint: str) -> None:
        """All files have been done before, or are left alone. The `checkpoint` is as one types it
        here."""
        self.log(INFO, str(plan))
        self.say(
            f"nothing to do: no file is new. To do all of them again, delete or rename {checkpoint}"
        )

    def fails(self, failure: Failure, counts: Counts) -> None:
        """A file has failed for good. Of each kind of failure the first one is shown at once."""
        self.log(WARNING, f"{quoted(failure.path)} has failed ({failure.kind}): {failure.message}")
        if len(self._kinds) > SHOWN_KINDS:
            return  # and a million kinds are not kept for it
        alike = self._kinds.add(failure._replace(traceback=""))
        if alike == 1 and len(self._kinds) <= SHOWN_KINDS:
            self._say(f"failed: {failure}")
        if alike == FIRST_FILES and len(self._kinds) == 1 and not counts.completed:
            self.announce(
                f"the first {FIRST_FILES} files have all failed in this way: if the function is "
                "wrong, stop this run with Ctrl-C and fix it; failed files are tried again"
            )

    def suspects_fork(self, failure: Failure) -> None:
        """It may have failed only because its worker was forked."""
        self.announce(
            f"{quoted(failure.path)} may have failed because its worker is a forked copy of this "
            "program, which had other threads, or used a GPU, before the run: many libraries hang "
            'or refuse to work in one. mp_context="spawn" starts workers without them'
        )

    def breaks(self, error: Exception, hidden: bool) -> None:
        """The run ends for this reason; which may be `hidden`, from who catches only the Ctrl-C."""
        what = f"{type(error).__name__}: {error}"
        self.log(ERROR, f"the run has ended early: {what}")
        if hidden:
            self._say(what.partition("\n")[0])


class ScreenWithBar(Screen):
    """Drives somebody else's bar, `tqdm.tqdm` for instance, in place of the line.

    `make` is called once, for the first drawing; then come `update(n)` and in the end `close()`. If
    the bar has a `write`, what is said goes through it, as `write(text, file=stream)`, so that the
    bar is not torn; if it has a `set_postfix`, that is told the failures. A bar that raises ends
    the run, and is left alone from then on.
    """

    _bar: Any = None
    _shown = 0

    def __init__(self, stream: TextIO | None, make: Callable[..., Any], name: str) -> None:
        super().__init__(stream, redrawn=True)
        self._make = make
        self._name = name

    def end(self, counts: Counts) -> None:
        """Bring the bar to where the run stands, and close it."""
        if (bar := self._bar) is not None:
            with self._trying():
                self._bring_to(counts)
                bar.close()
            self._bar = None

    def _show(self, counts: Counts | str, seconds: float) -> None:
        if isinstance(counts, str) or self.error is not None:
            return
        with self._trying():
            if self._bar is None:
                self._shown = counts.finished
                self._bar = self._make(
                    total=counts.total, initial=self._shown, desc=self._name, unit="file"
                )
            self._bring_to(counts)

    def _bring_to(self, counts: Counts) -> None:
        if (news := counts.finished - self._shown) > 0:
            if counts.failed and hasattr(self._bar, "set_postfix"):
                self._bar.set_postfix(failed=counts.failed, refresh=False)
            self._shown += news
            self._bar.update(news)

    def _write(self, text: str) -> None:
        with self._trying():
            if hasattr(self._bar, "write"):
                self._bar.write(spelt(text.rstrip("\n"), self._stream), file=self._stream)
                return
        super()._write(text)

    @contextlib.contextmanager
    def _trying(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.error, self._bar = error, None


def screen_for(
    progress: bool | Callable[..., Any] | None, stream: TextIO | None, name: str = "files"
) -> Screen:
    """What the runner's option `progress` asks for.

    `None` draws where somebody watches, though what must be said is said anywhere; `True` writes a
    line now and then where nobody does; `False` writes nothing at all; anything else makes a bar,
    which shows `name`.
    """
    if callable(progress):
        return ScreenWithBar(stream, progress, name)
    if progress is False or stream is None:
        return Screen(None, redrawn=False)
    return Screen(stream, _is_watched(stream), logged=progress is True)


def _is_watched(stream: TextIO) -> bool:
    """Whether `stream` is shown by something that knows what a carriage return is."""
    kind = type(stream).__module__.partition(".")[0]
    if kind in ("ipykernel", "idlelib"):  # a notebook's cell, no terminal, it says; IDLE says it is
        return kind == "ipykernel"
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False
