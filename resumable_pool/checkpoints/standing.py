"""Which records count, in a file that is only appended to: of each path the last.

Knows no format: a record is any tuple that begins with a path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

# A byte for each hash: a million paths share one in 3 of 100 cases, and only those are remembered.
_HASHES = 1 << 24


Recorded = TypeVar("Recorded", bound=tuple[Any, ...])


def last_of_each_path(
    first_pass: Iterable[Recorded], second_pass: Iterable[Recorded]
) -> Iterator[Recorded]:
    """The records that no later one of the same path replaces, in any order.

    Both passes are over the same records: one finds which paths may come again, so that the other
    can yield the rest as they come, and need not remember them. (A set of all paths would take a
    hundred bytes for each.)
    """
    seen = bytearray(_HASHES)
    again: set[str] = set()
    for path, *_ in first_pass:
        place = hash(path) % _HASHES
        if seen[place]:
            again.add(path)
        seen[place] = 1
    last: dict[str, Recorded] = {}
    for record in second_pass:
        path = record[0]
        if path in again:
            last[path] = record
        else:
            yield record
    yield from last.values()
