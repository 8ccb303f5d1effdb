"""A checkpoint in one file of records, each appended behind the last: what .pkl and .jsonl share.

    record  record  record  terminator                            committed
    record  record  record  terminator  record  rec               appended to, and killed

What is appended survives the death of any process. `sync` forces it to the disk and then commits
it: the format changes one byte to say that everything before is on the disk for sure. So a record
that is not sound is either damage, which is refused, or a write that was cut short, which is cut
off: it depends on whether anything committed comes after it.

Knows nothing of what a record looks like: the formats say that in the first methods below.
"""

from __future__ import annotations

import contextlib
import errno
import os
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ..between import pipes
from ..errors import CheckpointLocked
from ..records import Outcome, quoted
from ..values import Bytes, Encoded
from .copying import put_in_place, refuse_to_lose_old, results_and_failures, write_beside
from .disk import begin_to_force, force, read_at, write_at, write_parts
from .lock import open_locked, refuse_if_gone
from .log_reader import IndexedFile, RecordScan

# So many bytes are left to the next `sync`; of more, the disk begins to write the first at once. (A
# run that saves a gigabyte in a second spends a quarter of a second less at its end.)
_FORCED_TOGETHER = 8 << 20


class Chosen(NamedTuple):
    """What a checkpoint is to consist of, and what has been done then, in words."""

    done: str
    outcomes: Iterable[Outcome[Any]]


class AppendFile(IndexedFile):
    """A checkpoint in one file that is appended to. Abstract: `PickleFile` and `JsonLines` are so.

    One object serves a reader in any process, or, after `open`, the saver as the only writer. When
    records are appended the terminator is left standing in front of them; a commit replaces it.
    """

    # What a format says of its bytes.

    @abstractmethod
    def _new_file(self) -> bytes:
        """What a new file consists of."""

    def _complete(self, record: Sequence[Bytes]) -> Sequence[Bytes]:
        """The parts of a record, with what only this file can add to it, in front; raises
        `ValueError` if it is none."""
        return record

    @abstractmethod
    def _mark_committed(self, fd: int) -> None:
        """Change the byte that says that everything up to `_end` is on the disk."""

    def _mend(self, fd: int, scan: RecordScan) -> None:
        """What is left to do for a file whose torn end has been cut off."""

    @abstractmethod
    def _sign(self, fd: int) -> None:
        """Write down that this process is the writer."""

    @abstractmethod
    def _signer(self, fd: int) -> int | None:
        """The process that has signed last."""

    # Writing. What was appended since the last commit stands between `_commit` and `_end`.

    def open(self) -> list[str]:
        notes: list[str] = []
        fd = self._take(notes)
        try:
            self._recognise(fd)
            self._recover(fd, notes)
            self._sign(fd)
        except BaseException:
            self._release()
            raise
        return notes

    def _take(self, notes: list[str]) -> int:
        self._file = open_locked(self.path, self._new_file(), self._signer, notes)
        self._unforced: OSError | None = None
        return self._file.fileno()

    def _release(self) -> None:
        pipes.close(self._file)

    def _recover(self, fd: int, notes: list[str]) -> None:
        """Take in whole records that were not committed, cut off a torn one."""
        scan = self._scan(fd, self._first)
        for _ in self._whole(scan):
            pass
        self._end, self._commit = scan.end, scan.committed
        self._forcing = self._end  # up to where the disk has been set to work
        torn = os.fstat(fd).st_size - (self._end + len(self._terminator))
        if torn > 0:
            notes.append(f"{quoted(self.path)}: cut off an unfinished end of {torn:,} bytes")
        if read_at(fd, len(self._terminator) + 1, self._end) != self._terminator:
            self._end_here(fd)
        self._mend(fd, scan)
        self.sync()

    def _end_here(self, fd: int) -> None:
        write_at(fd, self._terminator, self._end)
        os.ftruncate(fd, self._end + len(self._terminator))

    def append(self, records: Sequence[Encoded]) -> None:
        if type(self).save is not AppendFile.save:  # a subclass does something else there
            super().append(records)
        else:
            self._append([part for record in records for part in self._complete([record])])

    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        records = map(self.record, outcomes)
        self._append([part for record in records for part in self._complete(record)])

    def _append(self, parts: list[Bytes]) -> None:
        length = sum(map(len, parts))
        parts.append(self._terminator)
        # Of what was committed the terminator stays, in place of the first record's first byte.
        kept = len(self._terminator) if self._end == self._commit else 0
        if kept:
            parts[0] = parts[0][kept:]
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

    def save_failures(self, outcomes: Sequence[Outcome[Any]]) -> None:
        self.save(outcomes)

    def _keep_whole_records(self, fd: int) -> None:
        """After a write that was cut short. What is whole stays, since a reader may know of it."""
        scan = self._scan(fd, self._end)
        for _ in scan:
            pass
        self._end = scan.end
        self._end_here(fd)

    def sync(self) -> None:
        refuse_if_gone(os.fstat(self._file.fileno()), self.path)
        if self._end != self._commit:
            self._force()
            self._mark_committed(self._file.fileno())
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

    def settle(self) -> None:
        self.completed()
        if self._unsettled:
            with contextlib.suppress(CheckpointLocked, OSError):
                self.open()
                self.close()

    def compact(self) -> list[str]:
        if not os.path.exists(self.path):
            raise FileNotFoundError(errno.ENOENT, "there is no checkpoint", self.path)
        return self.rewrite(self._sound)

    def rewrite(self, choose: Callable[[int, list[str]], Chosen | None]) -> list[str]:
        """Put other outcomes in the place of what is there, which is kept beside it.

        Args:
            choose: called under the lock, with the file's descriptor, and a list for what a person
                may want to know. Nothing is changed if it raises, or returns `None`.

        Returns:
            What was lost, if anything, and what was done, a sentence each.
        """
        notes: list[str] = []
        is_new = not os.path.exists(self.path)
        fd = self._take(notes)
        try:
            self._recognise(fd)
            if (chosen := choose(fd, notes)) is not None:
                if not is_new:
                    refuse_to_lose_old(self)
                self._sign(fd)
                new = write_beside(self, chosen.outcomes)
                self._file.let_go()
                notes += [chosen.done, *put_in_place(new, self.path, keeping_old=not is_new)]
        except BaseException:
            if is_new and len(self) == 0:
                self._file.let_go()
                os.unlink(self.path)
            raise
        finally:
            self._release()
        return notes

    def _sound(self, fd: int, notes: list[str]) -> Chosen:
        """The last outcome of each path, if it is sound."""
        index = self._verify(fd, notes)
        starts = [*index.results.values(), *index.failures.values()]
        outcomes = (self._outcome_at(fd, start) for start in starts)
        done = results_and_failures(len(index.results), len(index.failures))
        return Chosen(f"rewritten with {done}", filter(None, outcomes))
