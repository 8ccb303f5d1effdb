"""Who gets which paths, for which attempt, and who is to blame when a worker dies.

    to do ──deal──▶ in work ──finish──▶ (the saver has its outcome) ──retry──▶ to do, once more
      ▲                │                                                ▲
      ├───give_back────┤                                                │
      │                │                                                │
      └──────lose──────┴── its worker died: the first path without ─────┘
                           an outcome is the culprit, since a worker sends every outcome before it
                           begins the next file; the rest of its batch is to do again

A batch is one path, until files prove to be quick; then it is as many as fill BATCH_SECONDS, which
makes the way round the ring a small part of their time. Whether they were as quick as was thought
is for the worker to see: it gives back the rest of a batch that takes too long, as soon as the call
that it is in returns. So a file may wait behind a slow one that is before it in its batch; and
since a batch is one path as soon as one has been slow, it seldom does so twice.

Pure: no process, no clock, no file. An illegal event raises, names what was asked for and what is,
and changes nothing.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable

from ..between.messages import BATCH_SECONDS, Task

# With more paths than this the way round the ring is nothing beside the function, whatever that is.
MOST_PATHS = 1024

# Nor may their text fill a pipe, or its rest would wait until a program's slow loop asks for more:
# so many bytes, of the 64 KiB that a pipe holds by default.
MOST_TEXT = 20_000

# No file takes less, nor does any clock show that it did.
_SHORTEST = 1e-7

# Of what is left to do, each worker gets a quarter of its share at the most: towards the end
# batches become small, so that nobody is left with a long one when the others have finished.
SHARES = 4


class _Batch:
    """What a worker has not done of what it was dealt, and since when it is at the first of it."""

    def __init__(self, paths: Iterable[str], since: float) -> None:
        self.paths = deque(paths)
        self.since = since


def _most_bytes(path: str) -> int:
    return len(path) if path.isascii() else 4 * len(path)


class Dealer:
    """Deals the paths of one run to its workers, which it knows by number.

    Args:
        workers: how many there may be at a time.
        batch_seconds: what a batch of quick files is to take; 0 for one file at a time.
    """

    def __init__(self, workers: int, batch_seconds: float = BATCH_SECONDS) -> None:
        self._workers = workers
        self._batch_seconds = batch_seconds
        self._to_do: deque[str] = deque()
        # Those that took their worker along, and so may be dealt to a fresh one only.
        self._dangerous: deque[str] = deque()
        self._batches: dict[int, _Batch] = {}
        self._attempts: dict[str, int] = {}
        self._seconds = float("inf")  # what a file has taken lately
        self._stopped = False

    @property
    def to_do(self) -> int:
        """How many paths could be dealt now."""
        return 0 if self._stopped else len(self._to_do) + len(self._dangerous)

    @property
    def busy(self) -> int:
        """How many workers have a batch, and so how many files are in work."""
        return len(self._batches)

    @property
    def over(self) -> bool:
        """Whether nothing is in work, and nothing more will be dealt."""
        return not self.to_do and not self._batches

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
        """Which attempt at the path is the latest, from 1."""
        return self._attempts.get(path, 1)

    def add(self, paths: Iterable[str]) -> None:
        """More to do, after what there is."""
        self._to_do.extend(paths)

    def retry(self, path: str, fresh: bool) -> None:
        """Once more, after all that there is: what made it fail may have passed by then.

        Args:
            fresh: in a fresh worker, that is.
        """
        self._attempts[path] = self.attempt(path) + 1
        (self._dangerous if fresh else self._to_do).append(path)

    def deal(
        self, worker: int, now: float, most: int = sys.maxsize, fresh: bool = True
    ) -> list[Task]:
        """The next batch for an idle worker, of at `most` so many paths; empty if there is nothing
        to do, or only what a `fresh` worker may be dealt, and this is none."""
        if self.is_busy(worker):
            has = [*self._batches[worker].paths]
            raise ValueError(f"worker {worker} is to be dealt, but has {has}")
        if self._stopped:
            return []
        batch: list[str] = []
        number, length = min(self._batch_length(), most, len(self._to_do)), 0
        while len(batch) < number and length < MOST_TEXT:
            batch.append(self._to_do.popleft())
            length += _most_bytes(batch[-1])
        if not batch and fresh and self._dangerous:
            batch = [self._dangerous.popleft()]
        if batch:
            self._batches[worker] = _Batch(batch, now)
        attempts = self._attempts
        return [(path, attempts.get(path, 1)) for path in batch]

    def _batch_length(self) -> int:
        quick = min(MOST_PATHS, self._batch_seconds / max(self._seconds, _SHORTEST))
        fair = len(self._to_do) / (SHARES * self._workers)
        return max(1, int(min(quick, fair)))

    def note_begun(self, worker: int, moment: float) -> None:
        """The worker began its batch only then: before, that was on its way, or in a queue."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} has begun its batch, but has none")
        self._batches[worker].since = moment

    def finish(self, worker: int, number: int, now: float) -> list[str]:
        """The worker has sent the outcomes of so many more of its paths: these."""
        batch = self._batches.get(worker)
        if batch is None or number > len(batch.paths):
            has = len(batch.paths) if batch is not None else "no"
            raise ValueError(f"worker {worker} sent {number} outcomes, but has {has} paths")
        self._seconds = max(0.0, now - batch.since) / number
        batch.since = now
        return [batch.paths.popleft() for _ in range(number)]

    def give_back(self, worker: int) -> None:
        """The worker is done with its batch. What it has left of that is the next to do."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} gives back its batch, but has none")
        self._to_do.extendleft(reversed(self._batches.pop(worker).paths))

    def lose(self, worker: int, certain: bool = True) -> str | None:
        """The worker is gone: the path that it died with, or `None` if it had none.

        Args:
            certain: whether that was the first one left. If not, nobody is to blame, and each of
                them is dealt alone.
        """
        if not self.is_busy(worker):
            return None
        paths = self._batches[worker].paths
        if not certain:
            self._dangerous.extend(self._batches.pop(worker).paths)
            return None
        culprit = paths.popleft() if paths else None
        self.give_back(worker)
        return culprit

    def stop(self) -> None:
        """Deal nothing from now on."""
        self._stopped = True
