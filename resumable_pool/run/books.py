"""Who gets which paths, for which attempt, and who is to blame when a worker dies.

    to do ──deal──▶ in work ──finish──▶ (the saver has its outcome) ──retry──▶ to do, once more
      ▲                │                                                ▲
      ├───give_back────┤                                                │
      │                ├──fail──▶ (suspicion.py: it counts, or not) ────┤
      │                │                                                │
      └──────lose──────┴── its worker died: the first path without ─────┘
                           an outcome is the culprit, since a worker sends every outcome before it
                           begins the next file; the rest of its batch is to do again

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
since a batch is one path as soon as one has been slow, it seldom does so twice.

Pure: no process, no clock, no file. An illegal event raises, names what was asked for and what is,
and changes nothing.
"""

from __future__ import annotations

import enum
import heapq
import sys
from collections import deque
from collections.abc import Collection, Iterable

from ..between.clock import NEVER
from ..between.messages import BATCH_SECONDS, Task
from .suspicion import Suspicion

# With more paths than this the way round the ring is nothing beside the function, whatever that is.
MOST_PATHS = 8192

# No file takes less, nor does any clock show that it did.
_SHORTEST = 1e-7

# Of what is left to do, each worker gets a quarter of its share at the most: towards the end
# batches become small, so that nobody is left with a long one when the others have finished.
SHARES = 4


class Again(enum.Enum):
    """What a further attempt at a file needs."""

    ANY = enum.auto()  # nothing
    FRESH = enum.auto()  # a fresh worker
    ALONE = enum.auto()  # and that nothing else is in progress


class _Batch:
    """What a worker has not done of what it was dealt, how much it has, and since when; and the
    queue that it is from."""

    def __init__(self, paths: Iterable[str], since: float, source: deque[str]) -> None:
        self.paths = deque(paths)
        self.done = 0
        self.since = since
        self.source = source


class Dealer:
    """Deals the paths of one run to its workers, which it knows by number.

    Args:
        workers: how many there may be at a time.
        batch_seconds: what a batch of quick files is to take; 0 for one file at a time.

    Attributes:
        stopped: whether nothing is dealt any more.
    """

    def __init__(self, workers: int, batch_seconds: float = BATCH_SECONDS) -> None:
        self.stopped = False
        self._workers = workers
        self._batch_seconds = batch_seconds
        self._suspicion = Suspicion()
        self._doubtful = self._suspicion.doubtful
        self._to_do: deque[str] = deque()
        self._again: deque[str] = deque()
        self._dangerous: deque[str] = deque()
        self._killed: deque[str] = deque()
        self._queues = {Again.ANY: self._again, Again.FRESH: self._dangerous}
        self._queues[Again.ALONE] = self._killed
        # When, which one (for a heap, whose items are in order), and what for.
        self._waiting: list[tuple[float, int, str, Again]] = []
        self._ever_waited = 0
        self._batches: dict[int, _Batch] = {}
        self._attempts: dict[str, int] = {}
        self._seconds = float("inf")  # what a file has taken lately

    @property
    def to_do(self) -> int:
        """How many paths could be dealt now, to somebody."""
        if self.stopped:
            return 0
        return len(self._killed) + self._side_by_side

    @property
    def _side_by_side(self) -> int:
        queues = (self._doubtful, self._to_do, self._again, self._dangerous)
        return sum(map(len, queues))

    @property
    def wanted(self) -> int:
        """How many workers there is something to do for."""
        if self.stopped or self._has_one_alone:
            return self.busy
        return min(self._workers, self._side_by_side + self.busy or min(1, len(self._killed)))

    @property
    def waiting(self) -> int:
        """How many paths wait for their next attempt."""
        return 0 if self.stopped else len(self._waiting)

    @property
    def due(self) -> float:
        """When the next of those may be dealt."""
        return self._waiting[0][0] if self.waiting else NEVER

    @property
    def held(self) -> int:
        """How many files have failed, and it is not known yet whether that counts."""
        return self._suspicion.held

    @property
    def busy(self) -> int:
        """How many workers have a batch, and so how many files are in progress."""
        return len(self._batches)

    @property
    def over(self) -> bool:
        """Whether nothing is in progress, and nothing more will be dealt."""
        return not self.to_do and not self._batches and not self.waiting

    @property
    def _has_one_alone(self) -> bool:
        """Whether the file in progress must be the only one."""
        return any(batch.source is self._killed for batch in self._batches.values())

    def is_busy(self, worker: int) -> bool:
        """Whether the worker has a batch."""
        return worker in self._batches

    def path_of(self, worker: int) -> str | None:
        """The path that the worker is at, if it has one. From any thread."""
        try:
            return self._batches[worker].paths[0]
        except LookupError:
            return None

    def attempt(self, path: str) -> int:
        """Which attempt at the path is the latest, from 1: of those that count. One for which its
        worker was to blame is made once more."""
        return self._attempts.get(path, 1)

    def _is_first(self, path: str) -> bool:
        """Whether nobody has had this path before."""
        return path not in self._attempts and path not in self._suspicion.tried

    def holds(self, path: str) -> bool:
        """Whether it is not known yet if the path's last failure counts."""
        return self._suspicion.holds(path)

    def add(self, paths: Iterable[str], killed: Collection[str] = ()) -> None:
        """More to do, after what there is. Of some the worker was `killed` in an earlier run."""
        if killed:
            paths = [*paths]
            self._killed.extend(path for path in paths if path in killed)
            paths = (path for path in paths if path not in killed)
        self._to_do.extend(paths)

    def retry(self, path: str, again: Again, due: float = 0.0) -> None:
        """Once more, after all that there is: what made it fail may have passed by then.

        Args:
            again: what that attempt needs.
            due: when it may begin.
        """
        self._attempts[path] = self.attempt(path) + 1
        self._ever_waited += 1
        heapq.heappush(self._waiting, (due, self._ever_waited, path, again))

    def wake(self, now: float) -> None:
        """Those whose time has come wait no longer."""
        while self._waiting and self._waiting[0][0] <= now:
            _, _, path, again = heapq.heappop(self._waiting)
            self._queues[again].append(path)

    def deal(self, worker: int, now: float, most: int = sys.maxsize) -> list[Task]:
        """The next batch for an idle worker, of at `most` so many paths; empty if there is nothing
        to do, or nothing for this one."""
        if self.is_busy(worker):
            has = [*self._batches[worker].paths]
            raise ValueError(f"worker {worker} is to be dealt, but has {has}")
        if self.stopped or self._has_one_alone or self._suspicion.waits(worker) or not most:
            return []
        source = self._source_for(worker)
        if source is None:
            self._suspicion.rest(worker)
            return []
        together = source is self._to_do or source is self._again
        number = min(self._batch_length(source), most) if together else 1
        batch = [source.popleft() for _ in range(min(number, len(source)))]
        self._batches[worker] = _Batch(batch, now, source)
        self._suspicion.note_dealt(worker, batch[0], source is self._doubtful)
        attempts = self._attempts
        return [(path, attempts.get(path, 1)) for path in batch]

    def _source_for(self, worker: int) -> deque[str] | None:
        if self._doubtful and self._suspicion.may_try(worker):
            return self._doubtful
        if self._to_do:
            return self._to_do
        if self._again and self._suspicion.trusts(worker):
            return self._again
        if self._suspicion.is_fresh(worker):
            if self._dangerous:
                return self._dangerous
            if self._killed and not self._batches:
                return self._killed
        return None

    def _batch_length(self, source: deque[str]) -> int:
        quick = min(MOST_PATHS, self._batch_seconds / max(self._seconds, _SHORTEST))
        fair = len(source) / (SHARES * self._workers)
        return max(1, int(min(quick, fair)))

    def is_in_the_way(self, worker: int, most: int = sys.maxsize) -> bool:
        """Whether this idle worker had better go: it may be dealt no more than `most`, and that is
        none; what is left is for a fresh one in its place; or it is to have all the memory."""
        if self.stopped or self.is_busy(worker):
            return False
        if self._has_one_alone or (self.to_do and not most):
            return True
        if self._suspicion.waits(worker):
            return False
        if self._doubtful and not self._suspicion.some_are_clean():
            return True
        if self._again and self._suspicion.is_to_be_replaced(worker):
            return True
        if self._suspicion.is_fresh(worker):
            return False
        return bool(self._dangerous or (self._killed and not self._batches))

    # What is known of the workers.

    def enter(self, worker: int) -> None:
        """The worker is one process to the end, of which we hear everything."""
        self._suspicion.enter(worker)

    def press(self) -> bool:
        """Too many failures may count: decide which. Returns whether those may be dealt something
        meanwhile who `may_tell`."""
        return self._suspicion.press(self.wanted)

    def may_tell(self, worker: int) -> bool:
        """Whether the worker has not failed since its last success."""
        return self._suspicion.may_tell(worker)

    def review(self) -> tuple[list[int], list[str]]:
        """The workers to be dismissed, because they are broken; and the paths of which it has
        turned out that their failures count."""
        suspicion = self._suspicion
        suspicion.review(self.wanted, idle=not self._batches and not self.to_do)
        condemned, suspicion.condemned = suspicion.condemned, []
        cleared, suspicion.cleared = suspicion.cleared, []
        return condemned, cleared

    def note_begun(self, worker: int, moment: float) -> None:
        """The worker began its batch only then: before, that was on its way, or in a queue."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} has begun its batch, but has none")
        self._batches[worker].since = moment

    def finish(self, worker: int, number: int, now: float) -> list[str]:
        """The worker has sent the values of so many more of its paths: these."""
        paths = self._take(worker, number, now)
        self._suspicion.succeed(worker, paths)
        return paths

    def fail(self, worker: int, now: float) -> str:
        """The worker has failed with the next one of its paths: this."""
        (path,) = self._take(worker, 1, now)
        self._suspicion.fail(worker, path, self._is_first(path))
        return path

    def _take(self, worker: int, number: int, now: float) -> list[str]:
        batch = self._batches.get(worker)
        if batch is None or number > len(batch.paths):
            has = len(batch.paths) if batch is not None else "no"
            raise ValueError(f"worker {worker} sent {number} outcomes, but has {has} paths")
        # Of the whole batch: several reports come at once, and between them is no time at all.
        batch.done += number
        self._seconds = max(0.0, now - batch.since) / batch.done
        return [batch.paths.popleft() for _ in range(number)]

    def give_back(self, worker: int) -> None:
        """The worker is done with its batch. What it has left of that is the next to do."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} gives back its batch, but has none")
        batch = self._batches.pop(worker)
        batch.source.extendleft(reversed(batch.paths))
        if batch.source is self._doubtful and batch.paths:
            self._suspicion.note_returned(batch.paths[0])

    def lose(self, worker: int, certain: bool = True) -> str | None:
        """The worker is gone: the path that it died with, or `None` if it had none.

        Args:
            certain: whether that was the first one left. If not, nobody is to blame, and each of
                them is dealt alone.
        """
        culprit = None
        if self.is_busy(worker):
            paths = self._batches[worker].paths
            if not certain:
                self._dangerous.extend(self._batches.pop(worker).paths)
                return None
            culprit = paths.popleft() if paths else None
            self.give_back(worker)
        first = culprit is not None and self._is_first(culprit)
        self._suspicion.leave(worker, culprit, first)
        return culprit

    def stop(self) -> None:
        """Deal nothing from now on."""
        self.stopped = True
