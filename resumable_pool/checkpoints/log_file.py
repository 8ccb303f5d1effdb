"""A checkpoint in one file of records, each appended behind the last: what .pkl and .jsonl share.

    record  record  record  terminator                            committed
    record  record  record  terminator  record  rec               appended to, and killed

What is appended survives the death of any process. `sync` forces it to the disk and then commits
it: the format changes one byte to say that everything before is on the disk for sure. So a record
that is not sound is either damage, which is refused, or a write that was cut short, which is cut
off: it depends on whether anything committed comes after it.

It is read by an index of where the records start, which log_reader.py makes. Keys are found without
reading values, as far as the format can; values are read one by one, when somebody asks for them.

Knows nothing of what a record looks like: the formats say that in the first methods below.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

from ..between import forks
from ..records import Entry, Fingerprint, Outcome, quoted
from ..values import Bytes, Encoded
from .base import REWRITTEN, Checkpoint, refuse_odd
from .disk import begin_to_force, force, open_file, read_at, write_at, write_parts
from .lock import LockableFile, is_locked, open_locked, refuse_if_gone
from .log_reader import Index, Scan, Seen

# So many bytes are left to the next `sync`; of more, the disk begins to write the first at once. (A
# run that saves a gigabyte in a second spends a quarter of a second less at its end.)
_FORCED_TOGETHER = 8 << 20

# So many bytes on both sides of where the last record starts tell it, and those before it, from
# others. As long as they are the same, what was scanned is still there.
_EVIDENCE = 1 << 10

# So many bytes of large values, the newest, a run verifies before it begins: it takes a second. Of
# what is older it finds damage when it is read.
_VERIFIED_BY_A_RUN = 1 << 30


def _seen(fd: int) -> Seen:
    status = os.fstat(fd)
    return (status.st_dev, status.st_ino), status.st_size, status.st_mtime_ns


class LogFile(Checkpoint):
    """A checkpoint in one file that is appended to. Abstract: `PickleFile` and `JsonLines` are so.

    One object serves a reader in any process, or, after `open`, the saver as the only writer. When
    records are appended the terminator is left standing in front of them; a commit replaces it.
    """

    # Where the first record starts, what stands behind the last, and what a commit changes to what.
    _first = 0
    _terminator = b""
    _commits: tuple[bytes, bytes]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._forget()

    def _forget(self) -> None:
        self._index = Index(self._first)

    # What a format says of its bytes.

    @staticmethod
    def _new_file() -> bytes:
        """What a new file consists of."""
        return b""

    def _recognise(self, fd: int, findings: list[str] | None = None) -> None:
        """Read what stands before the first record; raises `CheckpointError` if this is no such
        file. With a list it does without, if that is damaged and can be told from the records, and
        says so there."""

    @abstractmethod
    def _scan(self, fd: int, start: int = 0, committed: int = 0) -> Scan:
        """A scan of the records, all if not from `start` on; `committed` is what is known to be,
        before it."""

    @staticmethod
    @abstractmethod
    def _made_of(record: Encoded) -> Outcome[Any] | None:
        """What a whole record was made of; `None` if it is none."""

    def _ends_well(self, fd: int, end: int) -> bool:
        """Whether what stands behind the last record, which ends there, is what has to."""
        return read_at(fd, len(self._terminator) + 1, end) == self._terminator

    def _mark(self) -> int:
        """Where the byte is that is changed to say that everything up to `_end` is on the disk."""
        return self._commit

    # Reading. An access opens the file, scans what has been added, and closes it again: nothing to
    # close, nothing to inherit.

    def _paths(self, failed: bool) -> Collection[str]:
        with self._reading():
            return self._index.starts[failed].keys()

    def _find(self, path: str, failed: bool) -> Outcome[Any]:
        with self._reading() as fd:
            starts = self._index.starts[failed]
            outcome = self._scan(fd, starts[path], starts[path]).outcome_at(starts[path])
            if outcome is None or outcome.path != path or outcome.ok == failed:
                del starts[path]  # damaged: as good as missing
                raise KeyError(path)
            return outcome

    def fingerprints(self, paths: Iterable[str]) -> dict[str, Fingerprint]:
        with self._reading() as fd:
            starts = self._index.starts[False]
            known = {path: starts[path] for path in paths if path in starts}
            if not known:  # there may be no file
                return {}
            found = dict(filter(None, map(self._scan(fd).input_at, sorted(known.values()))))
        return {path: found[path] for path in known if path in found}

    def entries(self) -> Iterator[Entry]:
        with self._opened() as fd:
            if fd < 0:
                return
            with forks.undivided():
                self._update_index(fd)
                results, failures = self._index.starts
                standing = {**results, **failures}
            scan = self._scan(fd)
            for paths, starts, facts, failed, _ in scan.records():
                for path, start, known in zip(paths, starts, facts, strict=True):
                    if standing.get(path) == start:
                        outcome = scan.outcome_at(start) if failed else None
                        failure = outcome.failure if outcome is not None else None
                        if failed == (failure is not None):  # or it is damaged
                            yield Entry(path, failure, *known)

    def _sound(self, findings: list[str]) -> Iterator[Outcome[Any]]:
        with self._opened() as fd:
            yield from self._look(fd, findings)[0] if fd >= 0 else ()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """The file's descriptor; -1 if there is nothing to read."""
        refuse_odd(self.path)
        fd = -1
        with contextlib.suppress(FileNotFoundError):  # nothing raised later is to come of it
            fd = open_file(self.file, os.O_RDONLY)
        try:  # of an empty file, the saver will make a checkpoint
            yield fd if fd >= 0 and os.fstat(fd).st_size else -1
        finally:
            if fd >= 0:
                os.close(fd)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[int]:
        """The same, with the index up to date."""
        with forks.undivided(), self._opened() as fd:
            if fd < 0:
                self._forget()
            else:
                self._update_index(fd)
            yield fd

    def _update_index(self, fd: int) -> None:
        seen = _seen(fd)
        if seen == self._index.seen:
            return
        self._recognise(fd)
        if seen[0] != self._index.seen[0] or self._index.evidence != self._read_evidence(fd):
            self._forget()  # this is another file, or an older copy
        self._index.go_on(self._scan(fd, self._index.end, self._index.committed))
        self._index.evidence = self._read_evidence(fd)
        self._index.seen = seen

    def _read_evidence(self, fd: int) -> bytes:
        start = max(self._first, self._index.last - _EVIDENCE)
        end = max(self._index.last, min(self._index.end, self._index.last + _EVIDENCE))
        return read_at(fd, max(0, end - start), start).replace(*self._commits)

    def _is_settled(self) -> bool:
        """Whether plain readers see all that we do: everything is sound, and committed."""
        with forks.undivided(), self._opened() as fd:
            if fd < 0:
                return True
            if self._index.seen != _seen(fd):
                self._forget()  # what was looked at before may be damaged since
            self._update_index(fd)
            self._verify(fd)
            index = self._index
            whole = index.committed == index.end and self._ends_well(fd, index.end)
            return whole and not index.lossy

    def _verify(self, fd: int) -> None:
        """Read the large values that were not looked at, the newest first."""
        index, scan, left = self._index, self._scan(fd), _VERIFIED_BY_A_RUN
        while index.unverified and left > 0:
            outcome = scan.outcome_at(index.unverified.pop())
            left -= len(outcome.pickled or b"") if outcome is not None else 0
            index.lossy = index.lossy or outcome is None

    # Checking.

    def _check(self, findings: list[str]) -> None:
        with self._opened() as fd:
            if fd < 0:
                return
            before = _seen(fd)
            _, unfinished = self._look(fd, findings)
            # What is unfinished may be being written, or have been until a moment ago.
            if unfinished and not is_locked(self.file):
                if before == _seen(fd):
                    findings += unfinished
                else:
                    findings.clear()
                    self._check(findings)

    def _look(self, fd: int, findings: list[str]) -> tuple[Iterable[Outcome[Any]], list[str]]:
        """Read every record, past all damage. Returns the last of each path, if sound, and what is
        unfinished behind the last, in words."""
        self._recognise(fd, findings)
        index, scan = Index(self._first), self._scan(fd)
        index.enter(scan.records(findings=findings))
        starts = [start for kind in index.starts for start in kind.values()]
        outcomes = filter(None, map(scan.outcome_at, starts))
        if scan.committed >= scan.end and self._ends_well(fd, scan.committed):
            return outcomes, []
        length = max(0, scan.size - scan.committed - len(self._terminator))
        what = f"there is an unfinished end of {length:,} bytes"
        return outcomes, [f"{what}; the next run fixes that, even if it has nothing to do"]

    # Writing. What was appended since the last commit stands between `_commit` and `_end`.

    _unforced: OSError | None = None

    def _lock(self, notes: list[str]) -> LockableFile:
        return open_locked(self.file, self._new_file(), self._signer, notes)

    def _begin(self, notes: list[str]) -> bool:
        """Take in whole records that were not committed, cut off a torn one. What is not sound in
        the middle of the file has to be left out of a new one."""
        fd, self._unforced = self._file.fileno(), None
        self._recognise(fd)
        scan = self._scan(fd)
        for _ in scan.records():
            pass
        self._end, self._commit = scan.end, scan.committed
        self._forcing = self._end  # up to where the disk has been set to work
        if scan.lossy or (self._index.lossy and self._index.seen == _seen(fd)):
            return False
        for mark in scan.marks[1:]:  # an earlier commit did not reach the disk, but its data did
            if mark < self._end:
                write_at(fd, self._commits[1], mark)
        if not self._ends_well(fd, self._end):
            torn = scan.size - (self._end + len(self._terminator))
            cut_off = f"cut off an unfinished end of {torn:,} bytes"
            notes.append(f"{quoted(self.path)}: {cut_off if torn > 0 else 'repaired its end'}")
            self._end_here(fd)
        if self._end != self._commit:
            self.sync()
        self._sign()
        return True

    def _end_here(self, fd: int) -> None:
        write_at(fd, self._terminator, self._end)
        os.ftruncate(fd, self._end + len(self._terminator))

    def outcome_in(self, record: Encoded) -> Outcome[Any]:
        if (outcome := self._made_of(record)) is None:
            what = "a worker sent what is not a record"
            raise ValueError(f"{what}: did the function write into its pipe?")
        return outcome

    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        record = self.encoder().record
        self.append([part for outcome in outcomes for part in record(outcome)])

    def append(self, records: Sequence[Bytes]) -> None:
        """They may be in parts, too."""
        if self._refuse_if_cut().st_size > self._end + len(self._terminator):
            raise FileExistsError(errno.EEXIST, "another program has written to it during the run")
        length = sum(map(len, records))
        parts = [*records, self._terminator]
        # Of what was committed the terminator stays, in place of the first record's first byte.
        kept = len(self._terminator) if self._end == self._commit else 0
        if kept:
            parts[0] = memoryview(parts[0])[kept:]
        fd = self._file.fileno()
        try:
            write_parts(fd, parts, self._end + kept)
        except BaseException:
            with contextlib.suppress(OSError):
                self._keep_whole_records(fd)
            raise
        self._end += length
        if self._end - self._forcing > _FORCED_TOGETHER:
            begin_to_force(fd, self._forcing, self._end)
            self._forcing = self._end

    def _keep_whole_records(self, fd: int) -> None:
        """After a write that was cut short. What is whole stays, since a reader may know of it."""
        scan = self._scan(fd, self._end, self._commit)
        for _ in scan:
            pass
        self._end = scan.end
        self._end_here(fd)

    def _refuse_if_cut(self) -> os.stat_result:
        """Raise `FileNotFoundError` if what was saved is not there any more."""
        status = os.fstat(self._file.fileno())
        if status.st_size < self._end:
            raise FileNotFoundError(errno.ENOENT, "it was cut short during the run")
        return status

    def sync(self) -> None:
        refuse_if_gone(self._refuse_if_cut(), self.file)
        if self._end != self._commit:
            self._force()
            write_at(self._file.fileno(), self._commits[1], self._mark())
            self._commit = self._end

    def _force(self) -> None:
        """Raises again what it has raised once: the system may have forgotten by then what it could
        not write, and say that all is well (https://wiki.postgresql.org/wiki/Fsync_Errors)."""
        if self._unforced is not None:
            raise self._unforced
        try:
            force(self._file.fileno())
        except OSError as error:
            self._unforced = error
            raise

    def close(self) -> None:
        try:
            self.sync()
            self._force()
        finally:
            self._release()

    def _content(self, notes: list[str]) -> tuple[str, Iterable[Outcome[Any]]]:
        outcomes, _ = self._look(self._file.fileno(), notes)
        self._sign()  # now that it is known to be ours
        return REWRITTEN, outcomes
