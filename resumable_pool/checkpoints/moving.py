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
    """

    def __init__(
        self, old_start: str, new_start: str, results: Collection[str], failures: Collection[str]
    ) -> None:
        self._old, self._new = _as_start(old_start), _as_start(new_start)
        known = {*results, *failures}
        if self._old == self._new or not any(map(self._moved, known)):
            example = f" (one of them is {quoted(min(known))})" if known else ""
            raise ValueError(f"no path starts with {quoted(old_start)}{example}: nothing was moved")
        there = [*((path, True) for path in results), *((path, False) for path in failures)]
        self._stay = {(path, ok) for path, ok in there if self._moved(path) is None}
        self._number = self._left = 0

    def _moved(self, path: str) -> str | None:
        """Its new name, if it gets one."""
        if self._new and f"{path}/" == self._old:
            return self._new[:-1]
        there = path.startswith(self._old) and (self._old or not is_rooted(path))
        return self._new + path[len(self._old) :] if there else None

    def __call__(self, outcomes: Iterable[Outcome[Any]]) -> Iterator[Outcome[Any]]:
        """The outcomes, as they are to be saved: all results, then all failures."""
        for outcome in outcomes:
            path = self._moved(outcome.path)
            if path is None:
                yield outcome
            elif (path, True) in self._stay or (path, outcome.ok) in self._stay:
                self._left += 1
            else:
                self._number += 1
                failure = outcome.failure and outcome.failure._replace(path=path)
                yield outcome._replace(path=path, failure=failure)

    def notes(self) -> Iterator[str]:
        """What was done, a sentence each."""
        yield (
            f"{self._number:,} results and failures moved from {quoted(self._old)} to "
            f"{quoted(self._new)}"
        )
        if self._left:
            yield f"{self._left:,} were left out, because their new path has a result already"


def _as_start(folder: str) -> str:
    """How the paths in this folder start."""
    folder = as_key(os.path.normpath(folder)) if folder else ""
    return "" if folder in ("", os.curdir) else f"{folder.rstrip('/')}/"
