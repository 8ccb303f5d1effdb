"""The books of a run: where each file is, who gets which paths, for which attempt, who is to blame
when a worker dies, and what becomes of a failure.

    to do ──deal──▶ in work ──finish──▶ received ──saved──▶ finished
      ▲                │
      ├───give_back────┤
      │                ├──fail──▶ held (suspicion.py: it counts, or not)
      │                │            │
      ├──────lose──────┼──blame──▶ to be judged ──saved──▶ finished
      │                │            │
      └────retry───────┴────────────┘

If a worker dies, the first path without an outcome is the culprit, since a worker sends every
outcome before it begins the next file; the rest of its batch is to do again.

What is to do stands in five queues, and is dealt in this order:

    doubtful     was perhaps not to blame: alone, to a worker that nothing can have broken yet
    to do        the first attempts
    again        further ones; where others may have them, to no worker that has just failed twice
    dangerous    took their worker along: alone, to a fresh worker
    killed       the system has killed their worker, since it was short of memory, and side by side
                 it would be again: alone in a fresh worker, when nothing else is in progress

A further attempt may have to wait before that.

A batch is one path, until files prove to be quick; then it is as many as fill BATCH_SECONDS, which
makes the way round the ring a small part of their time. Whether they were as quick as was thought
is for the worker to see: it gives back the rest of a batch that takes too long, as soon as the call
that it is in returns. So a file may wait behind a slow one that is before it in its batch; and
since batches are short as soon as one has been slow, it seldom does so twice.

Pure: no process, no clock, no file. An illegal event raises, names what was asked for and what is,
and changes nothing.
"""

from __future__ import annotations

import enum
import heapq
import sys
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import count, filterfalse, repeat
from operator import itemgetter
from typing import Any, NamedTuple

from ..between.clock import NEVER
from ..between.messages import BATCH_SECONDS, Batch
from ..options import Options
from ..records import Failure, FailureKind, Outcome, Report, count_files
from .plan import Plan
from .screen import Counts, Longest
from .suspicion import Suspicion

# With more paths than this the way round the ring is nothing beside the function, whatever that is.
MOST_PATHS = 8192

# No file takes less, nor does any clock show that it did.
_SHORTEST = 1e-7

# Of what is left to do, each worker gets a quarter of its share at the most: towards the end
# batches become small, so that nobody is left with a long one when the others have finished.
SHARES = 4

# So long after it came a failure is judged. A scheduler that ends a job sends SIGTERM to all its
# processes, in any order: what that did to a function, or to its worker, is not the file's fault.
JUDGING_SECONDS = 0.25

# No file waits longer than this for a further attempt.
LONGEST_RETRY_DELAY = 600.0


class Verdict(enum.Enum):
    """What becomes of a file, an attempt at which has failed; as the log says it."""

    SAVE = "has failed"
    RETRY = "will be tried again"
    DROP = "is still to do, it failed during the stop"  # and perhaps because of it


class _Batch:
    """What a worker was dealt, how much of it is done, since when, and since when it is at the next
    path; and the queue that all are from."""

    def __init__(self, paths: list[str], now: float, source: deque[str]) -> None:
        self.paths = paths
        self.done = 0
        self.since = self.next_since = now
        self.source = source

    @property
    def left(self) -> list[str]:
        """What is not done."""
        return self.paths[self.done :]


class _Setback(NamedTuple):
    """A failed attempt, to be judged at `due`, and the queue for a further one."""

    outcome: Outcome[Any]
    due: float
    again: deque[str]


def _taken(queue: deque[str], number: int) -> list[str]:
    """The first so many, which are not in it any more."""
    return [*map(deque.popleft, repeat(queue, number))]


class Books(Counts):
    """What the runner knows of the files of one run. Workers have numbers.

    Args:
        options: how many workers there may be, how often a file is tried, and how many may fail.
        plan: what there is to do, as it seems before the checkpoint is locked.
        keep_failures: whether the checkpoint will not have the failures.

    Attributes:
        workers: how many there may be.
        batch_seconds: what a batch of quick files is to take; 0 for one file at a time.
        tells_files: whether it is known which file of its batch a worker is at.
        stopped: whether nothing is dealt any more.
        again, dangerous, killed: the queues of these names.
        untaken: the paths of which something was saved, and nobody was told of that yet.
    """

    def __init__(self, options: Options, plan: Plan, keep_failures: bool = False) -> None:
        self.batch_seconds = BATCH_SECONDS
        self.tells_files = True
        self.untaken: list[str] = []
        self._options = options
        self.workers = min(options.max_workers, plan.total)  # more than files are of no use
        self._suspicion = Suspicion()
        self._doubtful = self._suspicion.doubtful
        self._to_do: deque[str] = deque()
        self.again: deque[str] = deque()
        self.dangerous: deque[str] = deque()
        self.killed: deque[str] = deque()
        # When, which one (for a heap, whose items are in order), and where it stands then.
        self.waiting: list[tuple[float, int, str, deque[str]]] = []
        self._order = count()
        self._batches: dict[int, _Batch] = {}
        self._attempts: dict[str, int] = {}
        self._seconds = float("inf")  # what a file has taken lately
        self._pressed = False  # too many failures may count
        self._setbacks: deque[_Setback] = deque()  # to be judged
        self._held: dict[str, _Setback] = {}  # by path, those that perhaps do not count
        self._unsaved = 0  # failures that count
        self._received: deque[str] = deque()  # values, in the order of coming
        self._standing: set[str] = set()  # as failed, whether in this run or in an earlier one
        self._kept: dict[str, Failure] | None = {} if keep_failures else None
        self.begin(plan)

    def begin(self, plan: Plan, killed: Collection[str] = ()) -> None:
        """How things stand, and once more when the checkpoint is locked, and that is certain.

        Args:
            killed: paths to do whose workers the system has killed in an earlier run.
        """
        for queue in (self._to_do, self.killed):
            queue.clear()
        self.killed.extend(filter(killed.__contains__, plan.to_do if killed else ()))
        self.add(filterfalse(killed.__contains__, plan.to_do) if killed else plan.to_do)
        self.total, self.skipped, self.left = plan.total, plan.done, plan.left
        self._sizes, self.size_to_do = plan.sizes, sum(plan.sizes.values())
        self._standing = {*plan.failed}

    # What there is to do.

    @property
    def to_do(self) -> int:
        """How many paths could be dealt now, to somebody."""
        return 0 if self.stopped else len(self.killed) + self._side_by_side

    @property
    def _side_by_side(self) -> int:
        queues = (self._doubtful, self._to_do, self.again, self.dangerous)
        return sum(map(len, queues))

    @property
    def wanted(self) -> int:
        """How many workers there is something to do for."""
        if self.stopped or self._has_one_of(self.killed):
            return self.busy
        return min(self.workers, self._side_by_side + self.busy or min(1, len(self.killed)))

    @property
    def due(self) -> float:
        """When the next of those may be dealt, or the next failure is to be judged."""
        retried = self.waiting[0][0] if self.waiting else NEVER
        return min(retried, self._setbacks[0].due) if self._setbacks else retried

    @property
    def busy(self) -> int:
        """How many workers have a batch, and so how many files are in progress."""
        return len(self._batches)

    @property
    def over(self) -> bool:
        """Whether nothing is in progress, nothing more will be dealt, and no failure is still to be
        judged or to be saved."""
        pending = self._setbacks or self._unsaved or (self._held and not self.stopped)
        return not (self.to_do or self._batches or self.waiting or pending)

    def _has_one_of(self, queue: deque[str]) -> bool:
        """Whether anybody has a file of this queue."""
        return any(batch.source is queue for batch in self._batches.values())

    def is_busy(self, worker: int) -> bool:
        """Whether the worker has a batch."""
        return worker in self._batches

    def in_work(self, worker: int) -> tuple[str, float] | None:
        """The path that the worker is at, if it has one, and since when. From any thread."""
        try:
            batch = self._batches[worker]
            return batch.paths[batch.done], batch.next_since
        except LookupError:
            return None

    def longest(self, now: float) -> Longest:
        """The file that has been in progress longest, as far as one can tell."""
        if not self.tells_files:
            return None
        begun = filter(None, map(self.in_work, self._batches))
        path, since = min(begun, key=itemgetter(1), default=("", now))
        return path, now - since

    def attempt(self, path: str) -> int:
        """Which attempt at the path is the latest, from 1: of those that count. One for which its
        worker was to blame is made once more."""
        return self._attempts.get(path, 1)

    def add(self, paths: Iterable[str]) -> None:
        """More to do, after what there is."""
        self._to_do.extend(paths)

    def retry(self, path: str, again: deque[str], due: float = 0.0) -> None:
        """Once more, after all that there is: what made it fail may have passed by then.

        Args:
            again: where it stands when it is `due`.
        """
        self._attempts[path] = self.attempt(path) + 1
        if not self.stopped:
            heapq.heappush(self.waiting, (due, next(self._order), path, again))

    def wake(self, now: float) -> None:
        """Those whose time has come wait no longer."""
        while self.waiting and self.waiting[0][0] <= now:
            _, _, path, again = heapq.heappop(self.waiting)
            again.append(path)

    def stop(self) -> None:
        """Deal nothing from now on."""
        self.stopped = True
        self.waiting.clear()

    # Dealing.

    def enter(self, worker: int) -> None:
        """The worker is one process to the end, of which we hear everything."""
        self._suspicion.enter(worker)

    def review(self) -> None:
        """Decide about what is suspicious."""
        cleared = self._suspicion.review(self.wanted, not self._batches and not self.to_do)
        self._setbacks.extend(self._held.pop(path) for path in cleared)

    def may_deal(self) -> bool:
        """Whether anybody may be dealt anything. If it may turn out that too many files have
        failed, that comes first, and only who can tell something of it goes on. A file that will
        be tried again has not failed."""
        held = self._suspicion.held
        self._pressed = self._too_many(len(self._setbacks) + len(held))
        if self._pressed and self._options.retries:  # there may be very many
            undecided = [*(each.outcome.path for each in self._setbacks), *held]
            last = sum(self.attempt(path) > self._options.retries for path in undecided)
            self._pressed = self._too_many(last)
        return not self._pressed or self._suspicion.press(self.wanted)

    def deal(self, worker: int, now: float, most: int = sys.maxsize) -> Batch | None:
        """The next batch for an idle worker, of at `most` so many paths; empty if there is nothing
        for it yet. `None` if it had better go: it is broken, what is left is for a fresh one in its
        place, or one that is at work is to have all the memory."""
        if self.is_busy(worker):
            has = self._batches[worker].left
            raise ValueError(f"worker {worker} is to be dealt, but has {has}")
        history = self._suspicion.of(worker)
        if self.stopped or (self._pressed and history.failed and not history.dismissed):
            return []
        if history.dismissed or self._has_one_of(self.killed) or (self.to_do and not most):
            return None
        if self._suspicion.waits(worker):
            return []
        source = self._source_for(worker)
        if source is None:
            self._suspicion.rest(worker)
            return None if self._is_in_the_way(worker) else []
        together = source is self._to_do or source is self.again
        number = min(self._batch_length(source), most) if together else 1
        batch = _taken(source, min(number, len(source)))
        self._batches[worker] = _Batch(batch, now, source)
        self._suspicion.note_dealt(worker, source is self._doubtful)
        return {path: self.attempt(path) for path in batch} if self._attempts else [*batch]

    def _source_for(self, worker: int) -> deque[str] | None:
        history = self._suspicion.of(worker)
        # As long as no doubtful one has succeeded, one at a time is enough.
        one_more = self._suspicion.confirmed or not self._has_one_of(self._doubtful)
        if self._doubtful and history.clean and one_more:
            return self._doubtful
        if self._to_do:
            return self._to_do
        if self.again and self._suspicion.trusts(worker):
            return self.again
        return self._for_a_fresh_one() if history.fresh else None

    def _for_a_fresh_one(self) -> deque[str] | None:
        if self.dangerous:
            return self.dangerous
        return self.killed if self.killed and not self._batches else None

    def _is_in_the_way(self, worker: int) -> bool:
        """Whether there is nothing for this worker, but for one in its place."""
        if self._doubtful and not self._suspicion.some_are_clean():
            return True
        if self.again and self._suspicion.is_to_be_replaced(worker):
            return True
        return not self._suspicion.of(worker).fresh and self._for_a_fresh_one() is not None

    def _batch_length(self, source: deque[str]) -> int:
        quick = min(MOST_PATHS, self.batch_seconds / max(self._seconds, _SHORTEST))
        fair = len(source) / (SHARES * self.workers)
        return max(1, int(min(quick, fair)))

    def note_begun(self, worker: int, moment: float) -> None:
        """The worker began its batch only then: before, that was on its way, or in a queue."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} has begun its batch, but has none")
        self._batches[worker].since = moment

    # What comes of it.

    def finish(self, worker: int, number: int, now: float) -> list[str]:
        """The saver has the values of so many more of the worker's paths: these."""
        paths = self._take(worker, number, now)
        self._suspicion.succeed(worker, self._batches[worker].source is self._doubtful)
        self._received.extend(paths)
        for path in paths if self._held else ():
            self._held.pop(path, None)  # it was tried once more: what was before does not count
        return paths

    def fail(self, worker: int, outcome: Outcome[Any], now: float) -> None:
        """The worker has failed with the next one of its paths."""
        (path,) = self._take(worker, 1, now)
        self._held.pop(path, None)
        setback = _Setback(outcome, now + JUDGING_SECONDS, self.again)
        doubtful = self._batches[worker].source is self._doubtful
        first = not doubtful and path not in self._attempts
        if self._suspicion.fail(worker, path, first, doubtful):
            self._held[path] = setback
        else:
            self._setbacks.append(setback)

    def _take(self, worker: int, number: int, now: float) -> list[str]:
        batch = self._batches.get(worker)
        paths = batch.paths[batch.done : batch.done + number] if batch is not None else []
        if batch is None or len(paths) < number:
            has = len(batch.left) if batch is not None else "no"
            raise ValueError(f"worker {worker} sent {number} outcomes, but has {has} paths")
        # Of the whole batch: several reports come at once, and between them is no time at all.
        batch.done += number
        self._seconds = max(0.0, now - batch.since) / batch.done
        batch.next_since = now
        return paths

    def give_back(self, worker: int) -> None:
        """The worker is done with its batch. What it has left of that is the next to do."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} gives back its batch, but has none")
        batch = self._batches.pop(worker)
        batch.source.extendleft(reversed(batch.left))

    def lose(self, worker: int, certain: bool = True) -> str | None:
        """The worker is gone: the path that it died with, or `None` if it had none.

        Args:
            certain: whether that was the first one left. If not, nobody is to blame, and each of
                them is dealt alone.
        """
        culprit, doubtful = None, False
        if (batch := self._batches.get(worker)) is not None:
            if not certain:
                self.dangerous.extend(self._batches.pop(worker).left)
                return None
            doubtful = batch.source is self._doubtful
            culprit = next(iter(batch.left), None)
            batch.done += culprit is not None
            self.give_back(worker)
        first = not doubtful and culprit not in self._attempts
        self._suspicion.leave(worker, culprit is not None, first, doubtful)
        return culprit

    def blame(
        self, path: str, kind: FailureKind, message: str, traceback: str, seconds: float, now: float
    ) -> None:
        """The file has taken its worker along, or has taken too long."""
        self._held.pop(path, None)
        attempt = self.attempt(path)
        failure = Failure(path, kind, message, traceback, attempt, seconds)
        outcome: Outcome[Any] = Outcome(path, None, 0, failure, seconds, attempt)
        again = self.killed if failure.was_killed else self.dangerous
        self._setbacks.append(_Setback(outcome, now + JUDGING_SECONDS, again))

    # Failures.

    @property
    def too_many(self) -> str:
        """That more files have failed than may, if so."""
        limit = self._options.max_failures or 0
        what = f"{count_files(limit + 1)} failed, more than max_failures={limit}"
        return what if self._too_many(0) else ""

    def _too_many(self, more: int) -> bool:
        limit = self._options.max_failures
        return limit is not None and self.failed + self._unsaved + more > limit

    def judge(self, now: float, stopped: bool) -> tuple[Verdict, Outcome[Any], Failure] | None:
        """Decide about the next failure, if there is one whose time has come. After a stop its file
        is still to do: nobody can know whether it would have failed without."""
        if not self._setbacks or (now < self._setbacks[0].due and not stopped):
            return None
        outcome, _, again = self._setbacks.popleft()
        path, failure = outcome.path, outcome.failure
        assert failure is not None
        if stopped:
            return Verdict.DROP, outcome, failure
        if (attempt := self.attempt(path)) <= self._options.retries:
            # Doubled each time; the exponent is bounded, or it would be too large for a float.
            pause = self._options.retry_delay * 2.0 ** min(attempt - 1, 64)
            self.retry(path, again, now + min(pause, LONGEST_RETRY_DELAY))
            return Verdict.RETRY, outcome, failure
        self._unsaved += 1
        if self._kept is not None:
            self._kept[path] = failure
        return Verdict.SAVE, outcome, failure

    # What is saved.

    def note_saved(self, number: int) -> None:
        """The next so many of the values that have come are saved."""
        paths = _taken(self._received, number)
        self.untaken += paths
        self.completed += number
        self._note_sizes(paths)
        if self._standing:
            self._standing.difference_update(paths)

    def note_failure_saved(self, path: str) -> None:
        """The failure of this one is saved."""
        self._unsaved -= 1
        self.untaken.append(path)
        self.failed += 1
        self._note_sizes([path])
        self._standing.add(path)

    def _note_sizes(self, paths: Sequence[str]) -> None:
        if self._sizes:
            self.size_done += sum(self._sizes.get(path, 0) for path in paths)

    def has_failed(self, path: str) -> bool:
        """Whether it stands as failed; what was saved of it otherwise is a value."""
        return path in self._standing

    def take_finished(self, most: int | None = None) -> list[str]:
        """Those whose outcomes have been saved since the last time, or the first of them."""
        finished = self.untaken[:most]
        del self.untaken[: len(finished)]
        return finished

    def report(self, saved: Mapping[str, Failure], seconds: float, note: str) -> Report:
        """How the run has ended; `saved` are the failures that the checkpoint has."""
        kept, failed = self._kept or {}, len(self._standing)
        known = [kept.get(path) or saved.get(path) for path in sorted(self._standing)]
        return Report(
            total=self.total,
            completed=self.completed,
            skipped=self.skipped,
            failed=failed,
            # Not what another run would do, since inputs may have changed meanwhile.
            remaining=self.total - self.completed - self.skipped - failed,
            seconds=seconds,
            stopped=self.stopped,
            failures=[failure for failure in known if failure is not None],  # not damaged
            note=note,
        )
