"""What becomes of an attempt that failed: another attempt, a failure that is saved, or nothing at
all, if what made it fail is what stops the run.

Knows no process and does no waiting; the clock is an argument.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from ..between import children
from ..between.clock import NEVER
from ..between.messages import DropFailure, KeepFailure, RecordCrash, ToSaver
from ..options import Options
from ..records import Failure, Outcome, count_files, in_words
from .books import Dealer
from .ledger import Ledger
from .saver_handle import Saver
from .story import Story

# So long after it came a failure is judged. A scheduler that ends a job sends SIGTERM to all its
# processes, in any order: what that did to a function, or to its worker, is not the file's fault.
JUDGING_SECONDS = 0.25


class _Setback(NamedTuple):
    """A failed attempt, to be judged at `due`; what tells the saver to keep the failure, or to drop
    it if it holds it; and whether a further attempt needs a fresh worker."""

    failure: Failure
    due: float
    keep: ToSaver
    drop: ToSaver | None
    fresh: bool


class Verdicts:
    """The failed attempts of one run that are not settled yet. Lives in the runner's process."""

    def __init__(
        self, options: Options, dealer: Dealer, saver: Saver, ledger: Ledger, story: Story
    ) -> None:
        self._options = options
        self._dealer = dealer
        self._saver = saver
        self._ledger = ledger
        self._counts = ledger.counts
        self._story = story
        self._forked = options.context.get_start_method() == "fork" and options.executor is None
        self._threads = self._forked and children.has_other_threads()
        self._setbacks: deque[_Setback] = deque()
        self._unsaved = 0

    def __len__(self) -> int:
        return len(self._setbacks)

    @property
    def pending(self) -> bool:
        """Whether one is still to be judged, or its verdict to be saved."""
        return bool(self._setbacks or self._unsaved)

    def note_saved(self) -> None:
        """A verdict has been saved."""
        self._unsaved -= 1

    @property
    def due(self) -> float:
        """When the next one is to be judged."""
        return self._setbacks[0].due if self._setbacks else NEVER

    @property
    def too_many(self) -> bool:
        """Whether more files have failed than may."""
        return self._exceeded_by(self._counts.failed + self._unsaved)

    @property
    def why(self) -> str:
        """What to say then."""
        limit = self._options.max_failures or 0
        return f"{count_files(limit + 1)} failed, more than max_failures={limit}"

    @property
    def perhaps_too_many(self) -> bool:
        """Whether it may turn out so."""
        return self._exceeded_by(self._counts.failed + self._unsaved + len(self._setbacks))

    def _exceeded_by(self, failed: int) -> bool:
        limit = self._options.max_failures
        return limit is not None and failed > limit

    def note_failure(self, failure: Failure, now: float) -> None:
        """The function failed; the saver holds the failure."""
        which = failure.path, failure.attempts
        keep, drop = KeepFailure(*which), DropFailure(*which)
        self._setbacks.append(_Setback(failure, now + JUDGING_SECONDS, keep, drop, fresh=False))

    def note_loss(
        self, path: str, timed_out: bool, how: str, traceback: str, seconds: float, now: float
    ) -> None:
        """The file has taken its worker along, which ended as `how` says, or has taken too long."""
        attempt = self._dealer.attempt(path)
        if timed_out:
            message = f"took longer than {in_words(self._options.timeout or 0)}, and was killed"
            failure = Failure(path, "timeout", message, traceback, attempt, seconds)
        else:
            message = f"its worker {how}"
            failure = Failure(path, "crashed", message, traceback, attempt, seconds)
        keep = RecordCrash(Outcome(path, None, 0, failure, seconds, attempt))
        self._setbacks.append(_Setback(failure, now + JUDGING_SECONDS, keep, None, fresh=True))

    def _suspect_fork(self, failure: Failure) -> None:
        """A library that had threads in the program, or a GPU, often hangs in a forked copy of it,
        or says that it cannot be used there. Told once."""
        hangs = failure.kind == "timeout" and self._threads and not self._counts.completed
        if hangs or "forked" in failure.message.lower():
            self._forked = False
            self._story.suspects_fork(failure)

    def judge(self, stopped: bool) -> None:
        """Decide about the next one. After a stop its file is still to do: nobody can know whether
        it would have failed without."""
        setback = self._setbacks.popleft()
        failure = setback.failure
        if self._forked and not stopped:
            self._suspect_fork(failure)
        if not stopped and self._dealer.attempt(failure.path) > self._options.retries:
            self._saver.tell(setback.keep)
            self._unsaved += 1
            self._ledger.note_failure(failure)
            self._story.fails(failure, self._counts)
            return
        if setback.drop is not None:
            self._saver.tell(setback.drop)
        if stopped:
            self._story.drops(failure)
        else:
            self._story.will_retry(failure)
            self._dealer.retry(failure.path, setback.fresh)
