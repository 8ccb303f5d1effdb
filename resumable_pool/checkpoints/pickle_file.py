"""`result.pkl`: saving by appending to a file that is a plain pickle of a dict at every instant.

Appending, while `.` is the STOP at which `pickle.load` ends and `C` the first byte of a record:

    header  record  record .                                     as it was
    header  record  record .new record  new record .             append: written behind the STOP
    header  record  record Cnew record  new record .             commit: that one byte is changed

The first step leaves the old pickle as it is, however much of it reaches the file, so a kill at any
point does no harm. Between the two the data are forced to the disk, so a power cut does none. One
byte is written by any system at once or not at all. (Writing over the STOP in the first step saves
a system call, and breaks the file in one of four kills in the middle of a large value.)

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from .. import forks
from ..errors import CheckpointError, CheckpointLocked
from ..records import Entry, Failure, Fingerprint, Outcome
from .base import Checkpoint
from .disk import BINARY, force, read_at, unlock, write_at
from .locked_file import is_at, open_locked
from .pickle_layout import (
    COMMITTED,
    FIRST_RECORD,
    STOP,
    Header,
    Record,
    Scan,
    decode_failure,
    encode,
    new_header,
    pid_field,
    read_header,
    read_payload,
    read_record,
)
from .standing import last_of_each_path


class PickleFile(Checkpoint):
    """The default checkpoint. See the module's text, and pickle_layout.py for the bytes.

    One object serves a reader in any process, or, after `open`, the saver as the only writer.
    """

    _scanned: int
    _seen: tuple[tuple[int, int], int, int]

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self._forget()

    def __reduce__(self) -> tuple[type[PickleFile], tuple[str]]:
        return type(self), (self.path,)

    # Writing. `_commit` is where the STOP of the plain pickle stands, `_end` where the next record
    # goes; between them is what was appended since the last commit.

    def open(self) -> list[str]:
        notes: list[str] = []
        self._file = open_locked(
            self.path, new_header(os.getpid()), lambda fd: _pid_of_writer(fd, self.path), notes
        )
        try:
            self._header = read_header(self._file.fileno(), self.path)
            self._recover(notes)
            write_at(self._file.fileno(), *pid_field(os.getpid()))
        except BaseException:
            self._release()
            raise
        return notes

    def _release(self) -> None:
        forks.close(self._file)
        unlock(self.path)

    def _recover(self, notes: list[str]) -> None:
        """Take in whole records behind the STOP, cut off a torn one."""
        fd = self._file.fileno()
        scan = Scan(fd, self._header, FIRST_RECORD)
        for _ in _whole(scan, self.path):
            pass
        self._end = scan.end
        self._commit = scan.stops[0] if scan.stops else scan.end
        torn = os.fstat(fd).st_size - (self._end + 1)
        if torn > 0:
            notes.append(f"{self.path!r}: cut off an unfinished end of {torn:,} bytes")
        if read_at(fd, 2, self._end) != STOP:  # it alone must stand behind the last record
            self._end_here()
        for stop in scan.stops[1:]:  # an earlier commit did not reach the disk, but this one's data
            if stop < self._end:
                write_at(fd, COMMITTED, stop)
        self.sync()

    def save(self, outcomes: Sequence[Outcome]) -> None:
        data = b"".join([*(encode(self._header, outcome) for outcome in outcomes), STOP])
        # The first record after a commit leaves the STOP standing that it will replace.
        skipped = 1 if self._end == self._commit else 0
        try:
            write_at(self._file.fileno(), memoryview(data)[skipped:], self._end + skipped)
        except BaseException:
            with contextlib.suppress(OSError):
                self._keep_whole_records()
            raise
        self._end += len(data) - 1

    def save_failures(self, outcomes: Sequence[Outcome]) -> None:
        self.save(outcomes)

    def sync(self) -> None:
        if not is_at(self._file, self.path):
            raise FileNotFoundError(
                errno.ENOENT, "it was removed, moved or replaced, with what was saved, meanwhile"
            )
        if self._end != self._commit:
            force(self._file.fileno())
            write_at(self._file.fileno(), COMMITTED, self._commit)
            self._commit = self._end

    def close(self) -> None:
        try:
            self.sync()
            force(self._file.fileno())
        finally:
            self._release()

    def _keep_whole_records(self) -> None:
        """After a write that was cut short. What is whole stays, since a reader may know of it."""
        scan = Scan(self._file.fileno(), self._header, self._end)
        for _ in scan:
            pass
        self._end = scan.end
        self._end_here()

    def settle(self) -> None:
        self.completed()
        if self._uncommitted:
            with contextlib.suppress(CheckpointLocked, OSError):
                self.open()
                self.close()

    def _end_here(self) -> None:
        write_at(self._file.fileno(), STOP, self._end)
        os.ftruncate(self._file.fileno(), self._end + 1)

    # Reading. The index holds where each path's last record starts; an access opens the file,
    # scans what has been added, and closes it again: nothing to close, nothing to inherit.

    def completed(self) -> Collection[str]:
        with self._reading():
            return self._results.keys()

    def failures(self) -> Mapping[str, Failure]:
        return _Failures(self)

    def outcome(self, path: str) -> Outcome:
        with self._reading() as fd:
            failed = path in self._failed
            record, payload = self._read(fd, path, self._failed if failed else self._results)
        failure = decode_failure(record, payload) if failed else None
        return Outcome(
            path, None if failed else payload, record.checksum, failure,
            record.seconds, record.attempts, record.fingerprint,
        )  # fmt: skip

    def entries(self) -> Iterator[Entry]:
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            fd = file.fileno()
            if os.fstat(fd).st_size > 0:  # else the saver will make a checkpoint of it
                header = read_header(fd, self.path)
                # Both scans are made now, so that they end at the same record.
                passes = [_whole(Scan(fd, header, FIRST_RECORD), self.path) for _ in range(2)]
                yield from filter(None, (_entry(fd, last) for last in last_of_each_path(*passes)))

    def read(self, path: str) -> Any:
        with self._reading() as fd:
            _, payload = self._read(fd, path, self._results)
        return pickle.loads(payload)

    def fingerprint(self, path: str) -> Fingerprint:
        with self._reading() as fd:
            record = read_record(fd, self._header, self._results[path])
        if record is None or record.path != path:
            raise KeyError(path)
        return record.fingerprint

    def failed(self) -> Mapping[str, int]:
        """Where the failures' records start."""
        with self._reading():
            return self._failed

    def read_failure(self, path: str) -> Failure:
        """The failure of `path`; raises `KeyError` if it does not stand as failed."""
        with self._reading() as fd:
            return decode_failure(*self._read(fd, path, self._failed))

    def _read(self, fd: int, path: str, index: dict[str, int]) -> tuple[Record, bytes]:
        record = read_record(fd, self._header, index[path])
        payload = read_payload(fd, record) if record is not None else None
        if record is None or payload is None or record.path != path:
            del index[path]  # damaged: as good as missing
            raise KeyError(path)
        return record, payload

    @contextlib.contextmanager
    def _reading(self) -> Iterator[int]:
        """The file's descriptor, with the index up to date; -1 if there is nothing to read."""
        try:
            fd = os.open(self.path, os.O_RDONLY | BINARY)
        except FileNotFoundError:
            self._forget()
            yield -1
            return
        try:
            self._update_index(fd)
            yield fd
        finally:
            os.close(fd)

    def _update_index(self, fd: int) -> None:
        status = os.fstat(fd)
        file, size = (status.st_dev, status.st_ino), status.st_size
        if (file, size, status.st_mtime_ns) == self._seen:
            return
        if size == 0:  # the saver will make a checkpoint of it
            self._forget()
            return
        header = read_header(fd, self.path)
        if file != self._seen[0] or header.salt != self._header.salt or size <= self._scanned:
            self._forget()  # this is another file, or an older copy
        self._header = header
        scan = Scan(fd, header, self._scanned)
        for record in _whole(scan, self.path):
            self._enter(record)
        self._scanned = scan.end
        self._uncommitted = bool(scan.stops) and scan.stops[0] < scan.end
        self._seen = (file, size, status.st_mtime_ns)

    def _enter(self, record: Record) -> None:
        # A failure does not hide the value from before the file changed: nothing saved is lost.
        if not record.failed:
            self._results.pop(record.path, None)
        self._failed.pop(record.path, None)
        if record.sound:
            (self._failed if record.failed else self._results)[record.path] = record.start

    def _forget(self) -> None:
        self._header = Header(b"", 0)
        self._results: dict[str, int] = {}
        self._failed: dict[str, int] = {}
        self._scanned = FIRST_RECORD
        self._uncommitted = False
        self._seen = ((0, 0), 0, 0)


class _Failures(Mapping[str, Failure]):
    """Path to `Failure`, read from the file at each access."""

    def __init__(self, checkpoint: PickleFile) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, path: str) -> Failure:
        return self._checkpoint.read_failure(path)

    def __contains__(self, path: object) -> bool:
        return path in self._checkpoint.failed()

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._checkpoint.failed()))

    def __len__(self) -> int:
        return len(self._checkpoint.failed())


def _whole(scan: Scan, path: str) -> Iterator[Record]:
    """The records of `scan`; raises `CheckpointError` if it ends at damage."""
    yield from scan
    if not scan.stops and scan.find_later_record() is not None:
        raise CheckpointError(
            path,
            f"is damaged: there is no record at byte {scan.end:,}, but sound ones after it",
            "Restore it from a copy, or move it away to start again.",
        )


def _entry(fd: int, record: Record) -> Entry | None:
    """What `record` says, if it is not damaged."""
    payload = read_payload(fd, record) if record.failed else b""
    if payload is None or not record.sound:
        return None
    failure = decode_failure(record, payload) if record.failed else None
    size = record.end - 1 - record.region
    return Entry(record.path, failure, record.seconds, record.attempts, size)


def _pid_of_writer(fd: int, path: str) -> int | None:
    try:
        return read_header(fd, path).pid or None
    except CheckpointError:
        return None
