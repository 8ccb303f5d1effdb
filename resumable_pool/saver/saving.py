"""What the saver saves with, and when: the checkpoint, or a runner that saves elsewhere.

Knows no process and no pipe; the clock is an argument.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from ..between.clock import NEVER
from ..checkpoints import Checkpoint
from ..hooks import Hooks
from ..records import Outcome, some_of
from ..values import Encoded


class Saving:
    """Where outcomes go, and the values that wait until there are enough of them.

    Made in the runner's process, and used in the saver's.

    Args:
        checkpoint: opened in any case; its lock keeps other runs away.
        hooks: what saves in its place, if anything.
        every: this many values are saved together,
        interval: unless the oldest has waited for so many seconds. And data are forced to the disk
            at most so often: for every result it would cost a hundred times as much as writing it.
        patience: how many seconds workers may go on when the runner is no more there to end them.

    Attributes:
        due: when there is something to do, if nothing comes.
    """

    def __init__(
        self, checkpoint: Checkpoint, hooks: Hooks[Any] | None, every: int, interval: float,
        patience: float = NEVER,
    ) -> None:  # fmt: skip
        self.checkpoint, self.patience = checkpoint, patience
        self._hooks = hooks
        self._every = every
        self._interval = interval
        self._begun = False
        self._given: Sequence[Outcome[Any]] = ()
        self._waiting: list[Encoded] = []  # the records of values
        self._save_at = self._sync_at = self.due = NEVER
        self._synced_at = 0.0

    def begin(self) -> None:
        """The checkpoint is open: tell who saves elsewhere that it begins."""
        if self._hooks is not None:
            _call(self._hooks.open_saver)
        self._begun = True

    def save(self, records: list[Encoded], now: float) -> int:
        """Save these values after those that wait, as many together as was asked for, or all if
        they have waited long enough; the rest waits. And force to the disk what is due.

        Returns:
            How many have been saved, in the order of coming.
        """
        self._waiting += records
        number = len(self._waiting)
        if now < self._save_at:
            number -= number % self._every
        step = number if self._every == 1 else self._every
        for _ in range(0, number, step or 1):
            if self._hooks is None:
                self.checkpoint.append(self._waiting[:step])
            else:
                given = [*map(self.checkpoint.outcome_in, self._waiting[:step])]
                self._give(self._hooks.save, given)
            del self._waiting[:step]
        if number or self._save_at == NEVER:  # all that waits has just come
            self._save_at = now + self._interval if self._waiting else NEVER
        if number:
            self._sync_at = min(self._sync_at, self._synced_at + self._interval)
        if now >= self._sync_at:
            self.checkpoint.sync()
            self._synced_at, self._sync_at = now, NEVER
        self.due = min(self._save_at, self._sync_at)
        return number

    def save_failure(self, outcome: Outcome[Any]) -> None:
        """Save a failure, at once."""
        self._give((self._hooks or self.checkpoint).save_failures, [outcome])
        self._sync_at = min(self._sync_at, self._synced_at + self._interval)

    def _give(
        self, save: Callable[[Sequence[Outcome[Any]]], None], outcomes: list[Outcome[Any]]
    ) -> None:
        self._given = outcomes
        _call(save, outcomes)
        self._given = ()

    def who(self) -> str:
        """Who saves elsewhere, and what it was given when it raised; `""` if nobody does."""
        if self._hooks is None:
            return ""
        given = some_of([outcome.path for outcome in self._given])
        name = type(self._hooks).__qualname__
        return f"{name}, which was given {given}" if given else name

    def close(self) -> None:
        """Give up the lock. Everything is saved."""
        try:
            if self._hooks is not None and self._begun:
                _call(self._hooks.close_saver)
        finally:
            self.checkpoint.close()


def _call(hook: Callable[..., None], *given: Any) -> None:
    pid = os.getpid()
    try:
        hook(*given)
    finally:
        if os.getpid() != pid:
            os._exit(0)  # it has forked, and this is the copy that returned as well
