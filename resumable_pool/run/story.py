"""What a run says: everything to the logger `resumable_pool`, and to the screen what a person must
see at once.

    DEBUG     workers that start and are ready
    INFO      start, plan, end and report; further attempts, replaced workers, stops
    WARNING   each failed file, with its kind and message
    ERROR     why a run ends early

This is the only place that knows what is said where. Knows no process and decides nothing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from ..between.clock import monotonic
from ..files import Told
from ..records import AlikeFailures, Failure, Report, count_files, from_here, in_words, quoted
from .plan import Plan
from .screen import Counts, ProgressLine

# The levels of `logging`, which is not imported here: it takes as long as a third of this package,
# and nobody listens in a program that has not imported it.
_DEBUG, _INFO, _WARNING, _ERROR = 10, 20, 30, 40

# Of so many kinds of failure a person sees the first one when it happens: a wrong function fails in
# one way, and who has seen ten waits for the report.
SHOWN_KINDS = 10

# When all of the first so many files fail alike, it is hardly the files' fault.
FIRST_FILES = 20

# Most folders are read at once; what takes longer needs a word.
SLOW_LISTING = 1.0


class Story:
    """Tells one run, on this `screen`. Lives in the runner's process."""

    def __init__(self, screen: ProgressLine) -> None:
        self.screen = screen
        self._kinds = AlikeFailures()

    # What others put into words.

    def announce(self, text: str) -> None:
        """A line that a person must see, also where no progress is drawn."""
        log(_INFO, text)
        self.screen.announce(text)

    def say(self, text: str) -> None:
        """A line for somebody who watches."""
        log(_INFO, text)
        self.screen.say(text)

    # The run, from its start to its end.

    def begins(self, function: str, checkpoint: str) -> None:
        """Nothing has been looked at yet."""
        log(_INFO, f"a run of {function!r} begins, with the checkpoint {quoted(checkpoint)}")

    @contextlib.contextmanager
    def looks_for_files(self) -> Iterator[Told]:
        """Meanwhile; what it yields is to be told how many there are. If that takes long it is
        shown."""
        begun = monotonic()

        def told(number: int) -> None:
            seconds = monotonic() - begun
            if seconds >= SLOW_LISTING:
                self.screen.draw_text(f"looking for files: {number:,}", seconds)

        yield told
        self.screen.start_over()

    def knows_the_plan(self, plan: Plan, notes: list[str]) -> None:
        """The checkpoint is locked; `notes` are what it says of itself."""
        for note in [*notes, *plan.advice]:
            self.announce(note)
        if plan.new < plan.total:
            self.say(str(plan))
        else:  # as anybody expects
            log(_INFO, str(plan))

    def has_nothing_to_do(self, plan: Plan, checkpoint: str) -> None:
        """All files have been done before, or are left alone."""
        log(_INFO, str(plan))
        self.say(
            "nothing to do: no file is new. To do all of them again, delete or rename "
            f"{from_here(checkpoint)}"
        )

    def ends(self, report: Report) -> None:
        """All is saved."""
        log(_INFO, f"the run has ended: {report}")

    def breaks(self, error: Exception, hidden: bool) -> None:
        """It ends for this reason; which may be `hidden`, from who catches only the Ctrl-C."""
        what = f"{type(error).__name__}: {error}"
        log(_ERROR, f"the run has ended early: {what}")
        if hidden:
            self.screen.announce(what.partition("\n")[0])

    def finishes_first(self, error: Exception, in_progress: int) -> None:
        """It will end for this reason, once so many files that are in progress are finished."""
        what = f"{type(error).__name__}: finishing {count_files(in_progress)} first"
        self.announce(f"{what}; press Ctrl-C twice to abandon them")

    # Files.

    def fails(self, failure: Failure, counts: Counts) -> None:
        """A file has failed for good. Of each kind of failure the first one is shown at once."""
        log(_WARNING, f"{quoted(failure.path)} has failed ({failure.kind}): {failure.message}")
        alike = self._kinds.add(failure)
        if alike == 1 and len(self._kinds) <= SHOWN_KINDS:
            self.screen.announce(f"failed: {failure}")
        if alike == FIRST_FILES and len(self._kinds) == 1 and not counts.completed:
            self.announce(
                f"the first {FIRST_FILES} files have all failed in this way: if the function is "
                "wrong, stop this run with Ctrl-C and fix it; failed files are tried again"
            )

    def drops(self, failure: Failure) -> None:
        """The file has failed while the run was being stopped, and nobody can know why."""
        what = "is still to do, it failed during the stop"
        log(_INFO, f"{quoted(failure.path)} {what}: {failure.message}")

    def will_retry(self, failure: Failure) -> None:
        """The file has failed, and gets another attempt."""
        attempt = f"attempt {failure.attempts}"
        log(_INFO, f"{quoted(failure.path)} will be tried again ({attempt}): {failure.message}")

    def suspects_fork(self, failure: Failure) -> None:
        """It may have failed only because its worker was forked."""
        self.announce(
            f"{quoted(failure.path)} may have failed because its worker is a forked copy of this "
            "program, which had other threads, or used a GPU, before the run: many libraries hang "
            'or refuse to work in one. mp_context="spawn" starts workers without them'
        )

    # Workers.

    def has_worker(self, name: str, seconds: float) -> None:
        """It is ready for files, so long after the start of the run."""
        log(_DEBUG, f"{name} is ready, {in_words(seconds)} after the start of the run")

    def loses_worker(self, name: str, how: str) -> None:
        """It has ended, as `how` says."""
        log(_INFO, f"{name} {how}; if there are files left for it, another one takes its place")


def log(level: int, text: str) -> None:
    """Tell the logger `resumable_pool`, in a program that listens."""
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return
    logger = logging.getLogger("resumable_pool")
    if not logger.handlers:
        logger.addHandler(logging.NullHandler())  # silent, until the program configures logging
    logger.log(level, "%s", text)
