"""A file of records, read by an index of where they start: the reading half of log_file.py.

Keys are found without reading values, as far as the format can; values are read one by one, when
somebody asks for them. Knows nothing of what a record looks like: the formats say that in the first
methods below. Never writes.
"""

from __future__ import annotations

import contextlib
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Protocol

from ..between import pipes
from ..errors import CheckpointError
from ..records import Entry, Failure, Fingerprint, Outcome, quoted
from .base import Checkpoint, Failures
from .disk import open_file, read_at

# A record's last bytes tell it from others. As long as they are the same where the scan has ended,
# what was scanned is still there.
_TAIL_LENGTH = 11


# A record, as a scan finds it: its path; where it starts; whether it is of a failure; whether it is
# what was saved, as far as that was looked at; and what else the format knows of it without reading
# the value. Plain tuples, since there may be a million: a class takes a quarter longer to scan.
Found = tuple[str, int, bool, bool, tuple[Any, ...]]


class RecordScan(Protocol):
    """One pass over the records of a file, as far as they are sound.

    Attributes:
        end: behind the last sound record.
    """

    end: int

    def __iter__(self) -> Iterator[Found]:
        """The records up to the first that is not sound; again after `skip_damage`."""

    @property
    def committed(self) -> int:
        """The end of what has been committed."""

    @property
    def unsettled(self) -> bool:
        """Whether plain readers miss what was found, or stumble over what stands behind."""

    def refuse_damage(self, path: str) -> None:
        """Raise `CheckpointError` if what stands behind `end` is no write that was cut short."""

    def skip_damage(self) -> str | None:
        """Move `end` behind what is not sound. Says what that is; `None` if it is the torn end."""


class Index:
    """Where each path's last record starts."""

    def __init__(self) -> None:
        self.results: dict[str, int] = {}
        self.failures: dict[str, int] = {}

    def enter(self, records: Iterable[Found]) -> None:
        """Take note of the next records."""
        results, failures = self.results, self.failures
        for path, start, failed, sound, _ in records:
            if not sound:
                self.drop(path, failed)
            elif failed:
                failures[path] = start
            else:
                results[path] = start
                if failures:
                    failures.pop(path, None)

    def drop(self, path: str, failed: bool) -> None:
        """The next record is not sound: as good as none, but it does not bring back what it stood
        for instead of."""
        self.failures.pop(path, None)
        if not failed:
            self.results.pop(path, None)


class IndexedFile(Checkpoint):
    """The reading half of a checkpoint in one file of records. Abstract."""

    # Where the first record starts, and what stands behind the last.
    _first = 0
    _terminator = b""

    _scanned: int
    _tail: bytes
    _seen: tuple[tuple[int, int], int, int]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._forget()

    def __reduce__(self) -> tuple[type[IndexedFile], tuple[str]]:
        return type(self), (self.path,)

    # What a format says of its bytes.

    @abstractmethod
    def _recognise(self, fd: int) -> bool:
        """Read what stands before the first record. Returns whether it is as it was the last time;
        raises `CheckpointError` if this is no such file."""

    @abstractmethod
    def _scan(self, fd: int, start: int) -> RecordScan:
        """A scan of the records from `start` on."""

    def _told(self, facts: tuple[Any, ...]) -> tuple[float, int, int]:
        """Seconds, attempts and size of a record that was found."""
        seconds, attempts, size = facts
        return seconds, attempts, size

    @abstractmethod
    def _outcome_at(self, fd: int, start: int) -> Outcome[Any] | None:
        """What the record at `start` was made of; `None` if it is not sound."""

    # Reading. An access opens the file, scans what has been added, and closes it again: nothing to
    # close, nothing to inherit.

    def completed(self) -> Collection[str]:
        with self._reading():
            return self._index.results.keys()

    def failures(self) -> Mapping[str, Failure]:
        return Failures(self._failed, self._read_failure)

    def read(self, path: str) -> Any:
        with self._reading() as fd:
            outcome = self._outcome(fd, path, self._index.results)
        return outcome.value

    def fingerprint(self, path: str) -> Fingerprint:
        with self._reading() as fd:
            return self._outcome(fd, path, self._index.results).fingerprint

    def outcome(self, path: str) -> Outcome[Any]:
        with self._reading() as fd:
            index = self._index
            return self._outcome(
                fd, path, index.failures if path in index.failures else index.results
            )

    def entries(self) -> Iterator[Entry]:
        with self._opened() as fd:
            if fd >= 0:
                self._recognise(fd)
                # Both scans are made now, so that they end at the same record.
                first, second = (self._whole(self._scan(fd, self._first)) for _ in range(2))
                index = Index()
                index.enter(first)
                for path, start, failed, _, facts in second:
                    if start == index.failures.get(path, index.results.get(path)):
                        outcome = self._outcome_at(fd, start) if failed else None
                        failure = outcome.failure if outcome is not None else None
                        if failed == (failure is not None):  # or it is damaged
                            yield Entry(path, failure, *self._told(facts))

    def _failed(self) -> Collection[str]:
        with self._reading():
            return self._index.failures.keys()

    def _read_failure(self, path: str) -> Failure:
        with self._reading() as fd:
            failure = self._outcome(fd, path, self._index.failures).failure
        assert failure is not None
        return failure

    def _outcome(self, fd: int, path: str, index: dict[str, int]) -> Outcome[Any]:
        outcome = self._outcome_at(fd, index[path])
        if outcome is None or outcome.path != path or outcome.ok != (index is self._index.results):
            del index[path]  # damaged: as good as missing
            raise KeyError(path)
        return outcome

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The file's descriptor; -1 if there is nothing to read."""
        try:
            fd = open_file(self.path, os.O_RDONLY)
        except FileNotFoundError:
            yield -1
            return
        try:  # of an empty file, the saver will make a checkpoint
            yield fd if os.fstat(fd).st_size else -1
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[int]:
        """The same, with the index up to date."""
        with pipes.undivided(), self._opened() as fd:
            if fd < 0:
                self._forget()
            else:
                self._update_index(fd)
            yield fd

    def _update_index(self, fd: int) -> None:
        status = os.fstat(fd)
        file, size = (status.st_dev, status.st_ino), status.st_size
        if (file, size, status.st_mtime_ns) == self._seen:
            return
        known = self._recognise(fd) and file == self._seen[0]
        if not known or self._tail != self._read_tail(fd):
            self._forget()  # this is another file, or an older copy
        scan = self._scan(fd, self._scanned)
        self._index.enter(scan)
        scan.refuse_damage(self.path)
        self._scanned = scan.end
        self._unsettled = scan.unsettled
        self._tail = self._read_tail(fd)
        self._seen = (file, size, status.st_mtime_ns)

    def _read_tail(self, fd: int) -> bytes:
        length = min(_TAIL_LENGTH, self._scanned - self._first)
        return read_at(fd, length, self._scanned - length)

    def _forget(self) -> None:
        self._index = Index()
        self._scanned = self._first
        self._tail = b""
        self._unsettled = False
        self._seen = ((0, 0), 0, 0)

    def _whole(self, scan: RecordScan) -> Iterator[Found]:
        """The records of `scan`; raises `CheckpointError` if it ends at damage."""
        yield from scan
        scan.refuse_damage(self.path)

    # Checking.

    def check(self) -> list[str]:
        findings: list[str] = []
        with self._opened() as fd:
            if fd >= 0:
                try:
                    self._recognise(fd)
                    self._verify(fd, findings)
                except CheckpointError as error:
                    findings.append(f"{quoted(self.path)} {error.reason}")
        return findings

    def _verify(self, fd: int, findings: list[str]) -> Index:
        """Read every record, past all damage. Returns where the last of each path is, if sound."""
        index = Index()
        scan = self._scan(fd, self._first)
        damage: str | None = ""
        while damage is not None:
            for record in scan:
                path, start, failed, _, _ = record
                if self._outcome_at(fd, start) is not None:
                    index.enter([record])
                else:
                    index.drop(path, failed)
                    what = "failure" if failed else "value"
                    findings.append(f"the {what} of {quoted(path)} is damaged, at byte {start:,}")
            damage = scan.skip_damage()
            if damage is not None:
                findings.append(damage)
        torn = os.fstat(fd).st_size - (scan.end + len(self._terminator))
        if torn > 0:
            findings.append(f"there is an unfinished end of {torn:,} bytes")
        return index
