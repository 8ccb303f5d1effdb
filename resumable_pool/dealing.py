"""Who gets which paths, for which attempt, and who is to blame when a worker dies.

    to do ──deal──▶ in work ──finish──▶ (the saver has its outcome) ──retry──▶ to do, once more
      ▲                │                                                ▲
      └──────lose──────┴── its worker died: the first path without ─────┘
                           an outcome is the culprit, since a worker sends every outcome before it
                           begins the next file; the rest of its batch is to do again

Pure: no process, no clock, no file. An illegal event raises, names what was asked for and what is,
and changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

# A path, and which attempt at it this is, from 1.
Task = tuple[str, int]

# One path at a time: nothing waits behind a slow file, and a stop is as short as it can be. Passing
# one round the ring costs a fraction of a millisecond.
BATCH_LENGTH = 1


class Dealer:
    """Deals the paths of one run to its workers, which it knows by number."""

    def __init__(self) -> None:
        self._to_do: deque[str] = deque()
        # Those that took their worker along, and so may be dealt to a fresh one only.
        self._dangerous: deque[str] = deque()
        self._in_work: dict[int, deque[str]] = {}
        self._attempts: dict[str, int] = {}
        self._stopped = False

    @property
    def to_do(self) -> int:
        """How many paths could be dealt now."""
        return 0 if self._stopped else len(self._to_do) + len(self._dangerous)

    @property
    def in_work(self) -> int:
        """How many paths have been dealt and have no outcome yet."""
        return sum(map(len, self._in_work.values()))

    @property
    def over(self) -> bool:
        """Whether nothing is in work, and nothing more will be dealt."""
        return not self.to_do and not self._in_work

    def is_busy(self, worker: int) -> bool:
        """Whether the worker has paths without an outcome."""
        return worker in self._in_work

    def path_of(self, worker: int) -> str | None:
        """The path that the worker is at, if it has one."""
        return self._in_work[worker][0] if worker in self._in_work else None

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

    def deal(self, worker: int, fresh: bool = True) -> list[Task]:
        """The next batch for an idle worker; empty if there is nothing to do, or only what a
        `fresh` worker may be dealt, and this is none."""
        if self.is_busy(worker):
            raise ValueError(f"worker {worker} is to be dealt, but has {self._in_work[worker]}")
        if self._stopped:
            return []
        batch = [self._to_do.popleft() for _ in range(min(BATCH_LENGTH, len(self._to_do)))]
        if not batch and fresh and self._dangerous:
            batch = [self._dangerous.popleft()]
        if batch:
            self._in_work[worker] = deque(batch)
        return [(path, self.attempt(path)) for path in batch]

    def finish(self, worker: int) -> str:
        """The worker sent an outcome: the path it belongs to."""
        if not self.is_busy(worker):
            raise ValueError(f"worker {worker} sent an outcome, but has no path")
        batch = self._in_work[worker]
        path = batch.popleft()
        if not batch:
            del self._in_work[worker]
        return path

    def lose(self, worker: int) -> str | None:
        """The worker is gone: the path that it died with, or `None` if it had none."""
        batch = self._in_work.pop(worker, None)
        if batch is None:
            return None
        culprit = batch.popleft()
        self._to_do.extendleft(reversed(batch))
        return culprit

    def stop(self) -> None:
        """Deal nothing from now on."""
        self._stopped = True
