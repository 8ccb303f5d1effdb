"""A file of records, read by an index of where they start: the reading half of log_file.py.

Keys are found without reading values, as far as the format can; values are read one by one, when
somebody asks for them. Whoever goes over the file does it by `_pass`; what becomes of what is not
sound is said by one of three reporters:

    Reading     damage is refused; what was not committed yet ends the pass
    Recovering  damage is refused; what was never committed is passed over: the sound ones stay
    Checking    all is noted, and passed over, as `compact` leaves it out

Knows nothing of what a record looks like: the formats say that in the first methods below. Never
writes.
"""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from ..between import pipes
from ..errors import CheckpointError
from ..records import Entry, Outcome, quoted
from .base import Checkpoint, damaged
from .disk import open_file, read_at
from .lock import is_locked

# So many bytes on both sides of where the last record starts tell it, and those before it, from
# others. As long as they are the same, what was scanned is still there.
_EVIDENCE = 1 << 10

# So many bytes of large values, the newest, a run verifies before it begins: it takes a second. Of
# what is older it finds damage when it is read.
_VERIFIED_BY_A_RUN = 1 << 30


# What becomes of an end that is not as it has to be.
_SETTLED = "; the next run fixes that, even if it has nothing to do"


# A record, as a scan finds it: its path; where it starts; whether it is of a failure; whether it is
# what was saved, as far as that was looked at; and what else the format knows of it without reading
# the value. Plain tuples, since there may be a million: a class takes a quarter longer to scan.
Found = tuple[str, int, bool, bool, tuple[Any, ...]]


class Scan(ABC):
    """Finds the records of a file, one after the other.

    Args:
        fd: the file.
        path: its name.
        start: where a record starts.

    Attributes:
        end: behind the last sound record.
        size: of the file at the beginning: what is appended meanwhile is for the next scan.
        unverified: where the records start whose values were too large to be looked at.
    """

    def __init__(self, fd: int, path: str, start: int) -> None:
        self.end = start
        self.size = os.fstat(fd).st_size
        self.unverified: list[int] = []
        self._fd = fd
        self._path = path

    @abstractmethod
    def __iter__(self) -> Iterator[Found]:
        """The records from `end` on, up to what is none."""

    @property
    @abstractmethod
    def committed(self) -> int:
        """The end of what has been committed."""

    @abstractmethod
    def refuse_damage(self) -> None:
        """Raise `CheckpointError` if what stands behind `end` is no write that was cut short."""

    @abstractmethod
    def skip(self) -> tuple[list[str], bool]:
        """Move `end` to the next sound record, if there is one. Says what is between, in words, and
        whether there is one; raises `CheckpointError` if something else stands there."""


class Reading:
    """What a reader does about what is not sound."""

    def note(self, finding: str) -> None:
        """A record's value or failure is damaged: as good as missing."""

    def goes_on(self, scan: Scan) -> bool:
        """Behind `scan.end` there is no sound record. Whether to go on behind that."""
        scan.refuse_damage()
        return False


class Recovering(Reading):
    """What the saver does when it opens the file.

    Attributes:
        lossy: whether there is something that is not sound before the last sound record.
    """

    lossy = False

    def note(self, finding: str) -> None:
        self.lossy = True

    def goes_on(self, scan: Scan) -> bool:
        scan.refuse_damage()
        _, more = scan.skip()
        self.lossy = self.lossy or more
        return more


class Checking(Reading):
    """What `check` and `compact` do: find all, verify all."""

    def __init__(self, findings: list[str]) -> None:
        self.findings = findings

    def note(self, finding: str) -> None:
        self.findings.append(finding)

    def goes_on(self, scan: Scan) -> bool:
        between, more = scan.skip()
        self.findings += between
        return more


class Index:
    """Where each path's last record starts.

    Attributes:
        last: where the last record of all starts.
        sound: whether every record was, as far as that was looked at.
    """

    def __init__(self) -> None:
        self.results: dict[str, int] = {}
        self.failures: dict[str, int] = {}
        self.last = 0
        self.sound = True

    def enter(self, records: Iterable[Found]) -> None:
        """Take note of the next records."""
        results, failures = self.results, self.failures
        for path, start, failed, sound, _ in records:
            self.last = start
            if not sound:
                self._drop(path, failed)
            elif failed:
                failures[path] = start
            else:
                results[path] = start
                if failures:
                    failures.pop(path, None)

    def _drop(self, path: str, failed: bool) -> None:
        """The record is as good as none, but it does not bring back what it stood for instead
        of."""
        self.sound = False
        self.failures.pop(path, None)
        if not failed:
            self.results.pop(path, None)


def _seen(fd: int) -> tuple[tuple[int, int], int, int]:
    """Which file it is, how long, and when it was changed."""
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns


class LogReader(Checkpoint):
    """The reading half of a checkpoint in one file of records. Abstract."""

    # Where the first record starts, what stands behind the last, and what a commit changes.
    _first = 0
    _terminator = b""
    _commits: tuple[bytes, bytes]

    _scanned: int
    _committed: int
    _evidence: bytes
    _seen: tuple[tuple[int, int], int, int]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._forget()

    def __reduce__(self) -> tuple[type[LogReader], tuple[str]]:
        return type(self), (self.path,)

    # What a format says of its bytes.

    @abstractmethod
    def _recognise(self, fd: int, damaged: list[str] | None = None) -> bool:
        """Read what stands before the first record. Returns whether it is as it was the last time;
        raises `CheckpointError` if this is no such file. With a list it does without, if that is
        damaged and can be told from the records, and says so there."""

    @abstractmethod
    def _scan(self, fd: int, start: int, committed: int) -> Scan:
        """A scan of the records from `start` on; `committed` is what is known to be, before it."""

    def _told(self, facts: tuple[Any, ...]) -> tuple[float, int, int]:
        """Seconds, attempts and size of a record that was found."""
        seconds, attempts, size = facts
        return seconds, attempts, size

    @abstractmethod
    def _outcome_at(self, fd: int, start: int) -> Outcome[Any] | None:
        """What the record at `start` was made of; `None` if it is not sound."""

    def _ends_well(self, fd: int, end: int) -> bool:
        """Whether what stands behind the last record, which ends there, is what has to."""
        return read_at(fd, len(self._terminator) + 1, end) == self._terminator

    # One pass over the file.

    def _pass(self, fd: int, scan: Scan, reporter: Reading) -> Iterator[Found]:
        """The records that `scan` finds, damaged ones among them."""
        thorough = isinstance(reporter, Checking)
        while True:
            for record in scan:
                path, start, failed, sound, facts = record
                doubtful = thorough or start in self._doubtful
                if not sound or (doubtful and self._outcome_at(fd, start) is None):
                    what = "failure" if failed else "value"
                    reporter.note(
                        f"the {what} of {quoted(path)} is damaged, at byte {start:,}: "
                        "the next run does that file again"
                    )
                    record = (path, start, failed, False, facts)
                yield record
            if not reporter.goes_on(scan):
                return

    # Reading. An access opens the file, scans what has been added, and closes it again: nothing to
    # close, nothing to inherit.

    def completed(self) -> Collection[str]:
        with self._reading():
            return self._index.results.keys()

    def _failed(self) -> Collection[str]:
        with self._reading():
            return self._index.failures.keys()

    def _find(self, path: str, failed: bool | None) -> Outcome[Any]:
        with self._reading() as fd:
            failed = path in self._index.failures if failed is None else failed
            index = self._index.failures if failed else self._index.results
            outcome = self._outcome_at(fd, index[path])
            if outcome is None or outcome.path != path or outcome.ok == failed:
                del index[path]  # damaged: as good as missing
                raise KeyError(path)
            return outcome

    def entries(self) -> Iterator[Entry]:
        with self._opened() as fd:
            if fd < 0:
                return
            self._recognise(fd)
            # Both are made now, so that they end at the same record.
            scans = [self._scan(fd, self._first, self._first) for _ in range(2)]
            first, second = (self._pass(fd, scan, Reading()) for scan in scans)
            index = Index()
            index.enter(first)
            for path, start, failed, _, facts in second:
                if start == index.failures.get(path, index.results.get(path)):
                    outcome = self._outcome_at(fd, start) if failed else None
                    failure = outcome.failure if outcome is not None else None
                    if failed == (failure is not None):  # or it is damaged
                        yield Entry(path, failure, *self._told(facts))

    def outcomes(self) -> Iterator[Outcome[Any]]:
        with self._opened() as fd:
            if fd >= 0:
                self._recognise(fd)
                findings: list[str] = []
                index, _ = self._look(fd, findings)
                if findings:
                    raise damaged(self.path, findings[0])
                yield from self._outcomes_of(fd, index)

    def _outcomes_of(self, fd: int, index: Index) -> Iterator[Outcome[Any]]:
        for start in [*index.results.values(), *index.failures.values()]:
            if (outcome := self._outcome_at(fd, start)) is not None:
                yield outcome

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The file's descriptor; -1 if there is nothing to read."""
        try:
            fd = open_file(self.file, os.O_RDONLY)
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
        seen = _seen(fd)
        if seen == self._seen:
            return
        known = self._recognise(fd) and seen[0] == self._seen[0]
        if not known or self._evidence != self._read_evidence(fd):
            self._forget()  # this is another file, or an older copy
        scan = self._scan(fd, self._scanned, self._committed)
        self._index.enter(self._pass(fd, scan, Reading()))
        self._scanned, self._committed = scan.end, scan.committed
        self._unverified += scan.unverified
        self._evidence = self._read_evidence(fd)
        self._seen = seen

    def _read_evidence(self, fd: int) -> bytes:
        start = max(self._first, self._index.last - _EVIDENCE)
        end = min(self._scanned, self._index.last + _EVIDENCE)
        return read_at(fd, max(0, end - start), start).replace(*self._commits)

    def _forget(self) -> None:
        # In this order, so that half of it does no harm to who is forked meanwhile.
        self._seen = ((0, 0), 0, 0)
        self._evidence = b""
        self._scanned = self._committed = self._first
        self._index = Index()
        self._unverified: list[int] = []
        self._doubtful: set[int] = set()  # where damage was found: every pass looks there again

    def _is_settled(self) -> bool:
        """Whether plain readers see all that we do: everything is sound, and committed."""
        with pipes.undivided(), self._opened() as fd:
            if fd >= 0 and self._seen != _seen(fd):
                self._forget()  # what was looked at before may be damaged since
        with self._reading() as fd:
            self._verify(fd)
            whole = self._index.sound and self._committed == self._scanned
            return fd < 0 or (whole and self._ends_well(fd, self._scanned))

    def _verify(self, fd: int) -> None:
        """Read the large values that were not looked at, the newest first."""
        left = _VERIFIED_BY_A_RUN
        while self._unverified and left > 0:
            start = self._unverified.pop()
            outcome = self._outcome_at(fd, start)
            if outcome is None:
                self._doubtful.add(start)
                self._index.sound = False
            else:
                left -= len(outcome.pickled or b"")

    # Checking.

    def check(self) -> list[str]:
        while True:
            findings: list[str] = []
            with self._opened() as fd:
                if fd < 0:
                    return []
                before = os.fstat(fd)
                try:
                    self._recognise(fd)
                    _, unfinished = self._look(fd, findings)
                except CheckpointError as error:
                    return [*findings, f"{quoted(self.path)} {error.reason}"]
                # What is unfinished may be being written, or have been until a moment ago.
                if not unfinished or is_locked(self.file):
                    return findings
                after = os.fstat(fd)
                if (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns):
                    return findings + unfinished

    def _look(self, fd: int, findings: list[str]) -> tuple[Index, list[str]]:
        """Read every record, past all damage. Returns where the last of each path is, if sound, and
        what is unfinished behind the last, in words."""
        index = Index()
        scan = self._scan(fd, self._first, self._first)
        index.enter(self._pass(fd, scan, Checking(findings)))
        unfinished = []
        rest, uncommitted = (
            scan.size - (scan.end + len(self._terminator)),
            scan.end - scan.committed,
        )
        if rest > 0:
            unfinished.append(f"there is an unfinished end of {rest:,} bytes{_SETTLED}")
        elif not self._ends_well(fd, scan.end):
            unfinished.append(f"its end is missing{_SETTLED}")
        elif uncommitted:
            unfinished.append(f"its last {uncommitted:,} bytes are not committed{_SETTLED}")
        return index, unfinished
