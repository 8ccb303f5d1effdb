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
    finished_at: float


class Merger:
    """Chooses from the records of these sources. A value beats a failure, and what was finished
    later what was finished before it; of one moment, or where nobody knows, what is named later."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._results: dict[str, _Place] = {}
        self._failures: dict[str, _Place] = {}
        self._differing: set[str] = set()
        for number, source in enumerate(sources):
            self._enter(number, source)
        for path in self._results:
            self._failures.pop(path, None)

    def _enter(self, number: int, source: Source) -> None:
        # In one checkpoint the last record counts, whatever its clock said.
        last: tuple[dict[str, _Place], dict[str, _Place]] = ({}, {})
        for path, start, failed, _, facts in source.records():
            metadata = Metadata._make(facts)
            last[failed][path] = _Place(number, start, metadata.checksum, metadata.finished_at)
        results, failures = last
        for path, place in results.items():
            before = self._results.get(path, place)
            if before.checksum != place.checksum:
                self._differing.add(path)
        for chosen, places in ((self._results, results), (self._failures, failures)):
            for path, place in places.items():
                if place.finished_at >= chosen.get(path, place).finished_at:
                    chosen[path] = place

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
                f"; {len(self._differing):,} had different results in them, of which the newest "
                "counts"
            )
        return text
