"""What the saver saves with, and when: the checkpoint, or a runner that saves elsewhere.

Knows no process and no pipe; the clock is an argument.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Protocol

from .checkpoints import Checkpoint
from .clock import NEVER
from .records import Outcome


class SaverHooks(Protocol):
    """What a runner that saves elsewhere brings along; hooks.py says what each is for."""

    def open_saver(self) -> None: ...  # noqa: D102
    def save(self, outcomes: Sequence[Outcome]) -> None: ...  # noqa: D102
    def save_failures(self, outcomes: Sequence[Outcome]) -> None: ...  # noqa: D102
    def close_saver(self) -> None: ...  # noqa: D102


class Saving:
    """Where outcomes go, and the values that wait until there are enough of them.

    Made in the runner's process, and used in the saver's.

    Args:
        checkpoint: opened in any case; its lock keeps other runs away.
        hooks: what saves in its place, if anything.
        every: so many values are saved together,
        interval: unless the oldest has waited for so many seconds. And data are forced to the disk
            at most so often: for every result it would cost a hundred times as much as writing it.
    """

    def __init__(
        self, checkpoint: Checkpoint, hooks: SaverHooks | None, every: int, interval: float
    ) -> None:
        self.checkpoint = checkpoint
        self.elsewhere = hooks is not None
        self._hooks = hooks
        self._every = every
        self._interval = interval
        self._waiting: deque[tuple[float, Outcome]] = deque()
        self._synced_at = 0.0
        self._sync_at = NEVER

    def open(self) -> list[str]:
        """Lock the checkpoint. Returns what a person may want to know about it."""
        notes = self.checkpoint.open()
        if self._hooks is not None:
            self._hooks.open_saver()
        return notes

    @property
    def due(self) -> float:
        """When there is something to do, if nothing comes."""
        return min(self._sync_at, self._waiting[0][0] if self._waiting else NEVER)

    def add(self, value: Outcome, now: float) -> None:
        """A value is to be saved."""
        self._waiting.append((now + self._interval, value))

    def save_due(self, now: float) -> list[Outcome]:
        """Save what has waited long enough, or for enough others. Returns what has been saved."""
        saved: list[Outcome] = []
        while self._waiting and (len(self._waiting) >= self._every or now >= self._waiting[0][0]):
            number = len(self._waiting)
            if self._every > 1:
                number = min(number, self._every)
            batch = [self._waiting.popleft()[1] for _ in range(number)]
            (self._hooks or self.checkpoint).save(batch)
            self._note_unsynced()
            saved += batch
        return saved

    def save_failure(self, outcome: Outcome) -> None:
        """Save a failure, at once."""
        (self._hooks or self.checkpoint).save_failures([outcome])
        self._note_unsynced()

    def sync_if_due(self, now: float) -> None:
        """Force to the disk what has been saved, unless that was just done."""
        if now >= self._sync_at:
            self.checkpoint.sync()
            self._synced_at, self._sync_at = now, NEVER

    def close(self) -> None:
        """Give up the lock. Everything is saved."""
        try:
            if self._hooks is not None:
                self._hooks.close_saver()
        finally:
            self.checkpoint.close()

    def _note_unsynced(self) -> None:
        self._sync_at = min(self._sync_at, self._synced_at + self._interval)
