"""Several checkpoints into one: which record of which of them counts.

Records are joined as they are, and nothing is unpickled. Knows nothing of locks, and where the
result goes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from ..errors import CheckpointError
from ..records import Outcome, count_files
from .base import DAMAGE_REMEDY
from .indexed_file import Found
from .pickle_layout import Metadata


class Source(Protocol):
    """A checkpoint whose records are taken."""

    path: str

    def records(self) -> Iterator[Found]:
        """Every record, in order; raises `CheckpointError` if there is damage between them."""

    def outcomes_at(self, starts: Sequence[int]) -> Iterator[Outcome | None]:
        """What the records there were made of; `None` for one that is not sound."""


class _Place(NamedTuple):
    source: int
    start: int
    checksum: int  # of the value


class Merger:
    """Chooses from the records of these sources. A value beats a failure, and what comes later what
    comes before it: a record has no time, so the order of the sources decides."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._results: dict[str, _Place] = {}
        self._failures: dict[str, _Place] = {}
        self._differing: set[str] = set()
        for number, source in enumerate(sources):
            for path, start, failed, _, facts in source.records():
                place = _Place(number, start, Metadata._make(facts).checksum)
                self._enter(path, failed, place)
        for path in self._results:
            self._failures.pop(path, None)

    def _enter(self, path: str, failed: bool, place: _Place) -> None:
        places = self._failures if failed else self._results
        before = places.pop(path, None)
        if (
            before is not None
            and before.source != place.source  # in one checkpoint it was done again: no matter
            and before.checksum != place.checksum
            and not failed
        ):
            self._differing.add(path)
        places[path] = place

    def outcomes(self) -> Iterator[Outcome]:
        """What was chosen, one source after the other.

        Raises:
            CheckpointError: a value is damaged, or a source has been rewritten meanwhile.
        """
        chosen: list[list[tuple[int, str]]] = [[] for _ in self._sources]
        for places in (self._results, self._failures):
            for path, place in places.items():
                chosen[place.source].append((place.start, path))
        for source, wanted in zip(self._sources, chosen, strict=True):
            wanted.sort()
            found = source.outcomes_at([start for start, _ in wanted])
            for (_, path), outcome in zip(wanted, found, strict=True):
                if outcome is None or outcome.path != path:
                    what = f"is damaged: the record of {path!r} is not sound"
                    raise CheckpointError(source.path, what, DAMAGE_REMEDY)
                yield outcome

    def __str__(self) -> str:
        text = (
            f"merged the results of {count_files(len(self._results))} and the failures of "
            f"{count_files(len(self._failures))}"
        )
        if self._differing:
            text += (
                f"; {len(self._differing):,} had different results in them, of which the one in "
                "the checkpoint that was named last counts"
            )
        return text
