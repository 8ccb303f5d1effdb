"""Several checkpoints into one: which record of which of them counts.

Records are joined as they are, and nothing is unpickled. Knows nothing of locks, and of where the
result goes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..records import Outcome, quoted
from .base import damaged
from .copying import results_and_failures
from .log_file import Chosen
from .pickle_file import PickleFile
from .pickle_record import Metadata


class _Place(NamedTuple):
    source: int
    start: int
    checksum: int  # of the value
    finished_at: float


_Places = dict[str, _Place]


def choose(sources: Sequence[PickleFile]) -> Chosen:
    """What counts of these checkpoints. A value beats a failure, and what was finished later what
    was finished before it; of one moment, or where nobody knows, what is named later.

    Raises:
        CheckpointError: one of them is something else, damaged, or a plain pickle; also later, from
            the outcomes.
    """
    results: _Places = {}
    failures: _Places = {}
    differing: set[str] = set()
    for number, source in enumerate(sources):
        more_results, more_failures = _last_of_each_path(number, source)
        for path, place in more_results.items():
            if results.get(path, place).checksum != place.checksum:
                differing.add(path)
        _take_newer(results, more_results)
        _take_newer(failures, more_failures)
    for path in results:
        failures.pop(path, None)
    done = f"merged {results_and_failures(len(results), len(failures))}"
    if differing:
        done += f"; {len(differing):,} had different results in them, of which the newest counts"
    return Chosen(done, _outcomes(sources, {**results, **failures}))


def _last_of_each_path(number: int, source: PickleFile) -> tuple[_Places, _Places]:
    """Results and failures. In one checkpoint the last counts, whatever its clock said."""
    results: _Places = {}
    failures: _Places = {}
    for path, start, failed, _, facts in source.records():
        metadata = Metadata._make(facts)
        place = _Place(number, start, metadata.checksum, metadata.finished_at)
        (failures if failed else results)[path] = place
    return results, failures


def _take_newer(places: _Places, more: _Places) -> None:
    for path, place in more.items():
        if place.finished_at >= places.get(path, place).finished_at:
            places[path] = place


def _outcomes(sources: Sequence[PickleFile], chosen: _Places) -> Iterator[Outcome[Any]]:
    """One source after the other, in the order in which they stand there."""
    places = sorted((place.source, place.start, path) for path, place in chosen.items())
    for number, group in itertools.groupby(places, key=lambda place: place[0]):
        source, wanted = sources[number], [*group]
        found = source.outcomes_at([start for _, start, _ in wanted])
        for (_, _, path), outcome in zip(wanted, found, strict=True):
            if outcome is None or outcome.path != path:  # or it has been rewritten meanwhile
                raise damaged(source.path, f"the record of {quoted(path)} is not sound")
            yield outcome
