"""Results of files that were moved: outcomes under one folder come out under another.

Knows no format, and no file but by its path.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from ..files import as_key, is_rooted
from ..records import Outcome, quoted

# What outcomes may pass through while a checkpoint is rewritten.
Through = Callable[[Iterable[Outcome[Any]]], Iterator[Outcome[Any]]]


class Moving:
    """Outcomes pass through it, and those of one folder come out as those of another.

    Knows the paths that have results and failures already: two may become one.

    Attributes:
        notes: what was done, a sentence each.
    """

    def __init__(
        self, old_start: str, new_start: str, results: Collection[str], failures: Collection[str]
    ) -> None:
        self.notes: list[str] = []
        self._old, self._new = _as_start(old_start), _as_start(new_start)
        known = {*results, *failures}
        staying = {path for path in known if self._moved(path) is None}
        if self._old == self._new or staying == known:
            example = f" (one of them is {quoted(min(known))})" if known else ""
            raise ValueError(f"no path starts with {quoted(old_start)}{example}: nothing was moved")
        # What a result, and what a failure, must not be called then.
        self._taken = {True: staying.intersection(results), False: staying}

    def _moved(self, path: str) -> str | None:
        """Its new name, if it gets one."""
        if self._new and f"{path}/" == self._old:
            return self._new[:-1]
        there = path.startswith(self._old) and (self._old or not is_rooted(path))
        return self._new + path[len(self._old) :] if there else None

    def __call__(self, outcomes: Iterable[Outcome[Any]]) -> Iterator[Outcome[Any]]:
        """The outcomes, as they are to be saved: all results, then all failures."""
        number = left = 0
        for outcome in outcomes:
            path = self._moved(outcome.path)
            if path is None:
                yield outcome
            elif path in self._taken[outcome.ok]:
                left += 1
            else:
                number += 1
                failure = outcome.failure and outcome.failure._replace(path=path)
                yield outcome._replace(path=path, failure=failure)
        places = f"from {quoted(self._old)} to {quoted(self._new)}"
        self.notes.append(f"{number:,} results and failures moved {places}")
        if left:
            what = "were left out, because their new path has a result already"
            self.notes.append(f"{left:,} {what}")


def _as_start(folder: str) -> str:
    """How the paths in this folder start."""
    folder = as_key(os.path.normpath(folder)) if folder else ""
    return "" if folder in ("", os.curdir) else f"{folder.rstrip('/')}/"
