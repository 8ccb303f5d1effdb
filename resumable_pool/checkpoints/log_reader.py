"""A pass over a file of records, and the index that comes of it: how log_file.py reads.

A format says, in a `Scan`, how the next sound record is found, and what there is where there is
none. What becomes of that is the same for all formats. Who reads, or opens the file to write to it,
passes over what was never committed, and refuses damage; who checks notes all, and passes over it,
as `compact` leaves it out.

Damage is what is not sound before something that was committed, since all of that was on the disk.

Knows nothing of what a record looks like, and never writes.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..records import Fingerprint, Outcome, quoted
from .base import damaged

# Which file it is, how long, and when it was changed.
Seen = tuple[tuple[int, int], int, int]


class Found(NamedTuple):
    """Records in a row that are alike. There may be a million: to make a tuple for each takes as
    long as to read it.

    Attributes:
        paths: of each,
        starts: where it starts,
        facts: the seconds, the attempts, and how many bytes it takes; made when they are looked at,
            once, before the next ones are found.
        failed: whether they are of failures.
        sound: whether they are what was saved, as far as that was looked at; what is not stands
            alone.
    """

    paths: Sequence[str]
    starts: Sequence[int]
    facts: Iterable[tuple[float, int, int]]
    failed: bool = False
    sound: bool = True


class Scan(ABC):
    """One pass over the records of a file.

    Args:
        fd: the file.
        path: its name.
        start: where a record starts.
        committed: what is known to be, before it.

    Attributes:
        end: behind the last sound record.
        size: of the file at the beginning: what is appended meanwhile is for the next scan.
        unverified: where the records start whose values were too large to be looked at.
        lossy: whether there is something that is not sound before the last sound record.
        thorough: whether all values are looked at, however large.
        marks: where a byte is still to be changed to commit what may be on the disk already.
    """

    def __init__(self, fd: int, path: str, start: int, committed: int) -> None:
        self.end = start
        self.size = os.fstat(fd).st_size
        self.unverified: list[int] = []
        self.lossy = self.thorough = False
        self.marks: list[int] = []
        self._committed = committed
        self._fd = fd
        self._path = path

    @abstractmethod
    def __iter__(self) -> Iterator[Found]:
        """The records from `end` on, some at a time, up to what is none."""

    @property
    def committed(self) -> int:
        """The end of what has been committed."""
        return self._committed

    @abstractmethod
    def skip(self) -> tuple[list[str], bool]:
        """Move `end` to the next sound record, if there is one. Says what is between, in words, and
        whether there is one; raises `CheckpointError` if something else stands there."""

    @abstractmethod
    def outcome_at(self, start: int) -> Outcome[Any] | None:
        """What the record at `start` was made of; `None` if it is not sound."""

    def input_at(self, start: int) -> tuple[str, Fingerprint] | None:
        """The path and its fingerprint of the record at `start`; `None` if it is not sound. Asked
        for in the order in which they stand."""
        outcome = self.outcome_at(start)
        return outcome and (outcome.path, outcome.fingerprint)

    def records(self, findings: list[str] | None = None) -> Iterator[Found]:
        """The pass: all records that are there, damaged ones among them. If something between them
        is none, but may still become one, `end` is there afterwards.

        Args:
            findings: for checking: gets a sentence for all that is not sound. All values are read.

        Raises:
            CheckpointError: something is damaged, and this is no checking.
        """
        gap, what = None, ""
        self.thorough = findings is not None
        while True:
            for found in self:
                if findings is not None and found.failed:  # its texts are not looked at otherwise
                    found = found._replace(sound=self.outcome_at(found.starts[0]) is not None)
                if not found.sound:
                    self.lossy = True
                    if findings is not None:
                        findings.append(_of_damage(found))
                yield found
            begin = self.end
            between, more = self.skip()
            if findings is not None:
                findings += between
            elif between and gap is None:
                gap, what = begin, between[0]
            if not more:
                break
            self.lossy = True
        if gap is not None:
            if gap < self.committed:
                raise damaged(self._path, what)
            self.end = gap


def _of_damage(found: Found) -> str:
    what = f"the {'failure' if found.failed else 'value'} of {quoted(found.paths[0])} is damaged"
    return f"{what}, at byte {found.starts[0]:,}: the next run does that file again"


class Index:
    """Where each path's last record starts, as far as a file was read.

    Attributes:
        starts: of results, and of failures.
        last: where the last record of all starts.
        evidence: what stands around that.
        seen: the file as it was then.
        end: where the next one will.
        committed: what is known to be, before it.
        unverified: where the records start whose values were too large to be looked at.
        lossy: whether there was something that is not sound before the last sound record.
    """

    def __init__(self, first: int) -> None:
        self.starts: tuple[dict[str, int], dict[str, int]] = {}, {}
        self.last = 0
        self.evidence = b""
        self.seen: Seen = ((0, 0), 0, 0)
        self.end = self.committed = first
        self.unverified: list[int] = []
        self.lossy = False

    def go_on(self, scan: Scan) -> None:
        """Take note of the records that this scan, from the end on, finds."""
        self.enter(scan.records())
        self.end, self.committed = scan.end, scan.committed
        self.unverified += scan.unverified
        self.lossy = self.lossy or scan.lossy

    def enter(self, records: Iterable[Found]) -> None:
        """Take note of the next records."""
        results, failures = self.starts
        for paths, starts, _, failed, sound in records:
            self.last = starts[-1]
            if sound:
                self.starts[failed].update(zip(paths, starts, strict=True))
            # What is damaged is as good as none, but what it stood instead of does not come back.
            if failures and not (sound and failed):
                for path in paths:
                    failures.pop(path, None)
            if not (sound or failed):
                for path in paths:
                    results.pop(path, None)
