"""What becomes of an attempt that failed: another attempt, a failure that is saved, or nothing at
all, if what made it fail is what stops the run.

Knows no process and does no waiting; the clock is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..between import children
from ..between.clock import NEVER
from ..between.messages import SaveFailure
from ..options import Options
from ..records import Failure, Outcome, count_files, in_words
from .books import Again, Dealer
from .ledger import Ledger
from .saver_handle import Saver
from .screen import Story

# So long after it came a failure is judged. A scheduler that ends a job sends SIGTERM to all its
# processes, in any order: what that did to a function, or to its worker, is not the file's fault.
JUDGING_SECONDS = 0.25

# No file waits longer than this for a further attempt.
LONGEST_RETRY_DELAY = 600.0


class _Setback(NamedTuple):
    """A failed attempt, to be judged at `due`, and what a further attempt needs."""

    outcome: Outcome[Any]
    due: float
    again: Again


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
        # By their paths, those that perhaps do not count (suspicion.py).
        self._held: dict[str, _Setback] = {}
        self._unsaved = 0

    def __len__(self) -> int:
        return len(self._setbacks)

    @property
    def pending(self) -> bool:
        """Whether one is still to be judged, or its verdict to be saved."""
        held = self._held and not self._dealer.stopped
        return bool(self._setbacks or self._unsaved or held)

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
        perhaps = len(self._setbacks) + self._dealer.held
        return self._exceeded_by(self._counts.failed + self._unsaved + perhaps)

    def _exceeded_by(self, failed: int) -> bool:
        limit = self._options.max_failures
        return limit is not None and failed > limit

    def note_failure(self, outcome: Outcome[Any], now: float) -> None:
        """The function failed; this takes the place of a failure that does not count."""
        self._held.pop(outcome.path, None)
        setback = _Setback(outcome, now + JUDGING_SECONDS, Again.ANY)
        if self._dealer.holds(outcome.path):
            self._held[outcome.path] = setback
        else:
            self._setbacks.append(setback)

    def release(self, paths: Iterable[str]) -> None:
        """Of these it is known by now that their failures count."""
        self._setbacks.extend(self._held.pop(path) for path in paths)

    def forget(self, paths: Iterable[str]) -> None:
        """These have been tried once more, and what they failed of before does not count."""
        for path in paths if self._held else ():
            self._held.pop(path, None)

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
        outcome: Outcome[Any] = Outcome(path, None, 0, failure, seconds, attempt)
        again = Again.ALONE if failure.was_killed else Again.FRESH
        self._setbacks.append(_Setback(outcome, now + JUDGING_SECONDS, again))

    def _suspect_fork(self, failure: Failure) -> None:
        """A library that had threads in the program, or a GPU, often hangs in a forked copy of it,
        or says that it cannot be used there. Told once."""
        hangs = failure.kind == "timeout" and self._threads and not self._counts.completed
        if hangs or "forked" in failure.message.lower():
            self._forked = False
            self._story.suspects_fork(failure)

    def judge(self, now: float, stopped: bool) -> None:
        """Decide about the next one. After a stop its file is still to do: nobody can know whether
        it would have failed without."""
        setback = self._setbacks.popleft()
        failure = setback.outcome.failure
        assert failure is not None
        if self._forked and not stopped:
            self._suspect_fork(failure)
        attempt = self._dealer.attempt(failure.path)
        if not stopped and attempt > self._options.retries:
            self._saver.tell(SaveFailure(setback.outcome))
            self._unsaved += 1
            self._ledger.note_failure(failure)
            self._story.fails(failure, self._counts)
            return
        if stopped:
            self._story.drops(failure)
        else:
            self._story.will_retry(failure)
            # Doubled each time; the exponent is bounded, or it would be too large for a float.
            pause = self._options.retry_delay * 2.0 ** min(attempt - 1, 64)
            due = now + min(pause, LONGEST_RETRY_DELAY)
            self._dealer.retry(failure.path, setback.again, due)
