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
import os
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from ..between import pipes
from ..records import Outcome, quoted
from ..values import Bytes, Encoded
from .copying import REWRITTEN, rewrite
from .disk import begin_to_force, force, write_at, write_parts
from .lock import open_locked, refuse_if_gone, remove_leftovers
from .log_reader import LogReader, Recovering, Scan
from .moving import Through

# So many bytes are left to the next `sync`; of more, the disk begins to write the first at once. (A
# run that saves a gigabyte in a second spends a quarter of a second less at its end.)
_FORCED_TOGETHER = 8 << 20


class LogFile(LogReader):
    """A checkpoint in one file that is appended to. Abstract: `PickleFile` and `JsonLines` are so.

    One object serves a reader in any process, or, after `open`, the saver as the only writer. When
    records are appended the terminator is left standing in front of them; a commit replaces it.
    """

    # What a format says of its bytes.

    @abstractmethod
    def _new_file(self) -> bytes:
        """What a new file consists of."""

    def _convert(self, notes: list[str]) -> bool:
        """Put a file of this format in the place of one that is none yet. Returns whether there was
        one."""
        return False

    @abstractmethod
    def _mark_committed(self, fd: int) -> None:
        """Change the byte that says that everything up to `_end` is on the disk."""

    def _mend(self, fd: int, scan: Scan) -> None:
        """What is to do for a file that is sound up to its end, before a torn end is cut off."""

    @abstractmethod
    def _sign(self, fd: int) -> None:
        """Write down that this process is the writer."""

    @abstractmethod
    def _signer(self, fd: int) -> int | None:
        """The process that has signed last."""

    # Writing. What was appended since the last commit stands between `_commit` and `_end`.

    def open(self) -> list[str]:
        notes: list[str] = []
        self._take(notes)
        try:
            if self._recover(notes):
                self._sign(self._file.fileno())
                return notes
            self._rewrite(notes)
        except BaseException:
            self._release()
            raise
        self._release()
        return [*notes, *self.open()]

    def _take(self, notes: list[str], damaged: list[str] | None = None) -> None:
        """Lock the file, and make it if it is new; refuse what is none of ours."""
        self._file = open_locked(self.file, self._new_file(), self._signer, notes)
        self._unforced: OSError | None = None
        try:
            remove_leftovers(self.file)
            converted = self._convert(notes)
            if not converted:
                self._recognise(self._file.fileno(), damaged)
        except BaseException:
            self._release()
            raise
        if converted:
            self._release()
            self._take(notes)

    def _release(self) -> None:
        pipes.close(self._file)

    def _recover(self, notes: list[str]) -> bool:
        """Take in whole records that were not committed, cut off a torn one. Returns whether that
        is all: what is not sound in the middle of the file has to be left out of a new one."""
        fd, reporter = self._file.fileno(), Recovering()
        scan = self._scan(fd, self._first, self._first)
        for _ in self._pass(fd, scan, reporter):
            pass
        self._end, self._commit = scan.end, scan.committed
        self._forcing = self._end  # up to where the disk has been set to work
        if reporter.lossy:
            return False
        self._mend(fd, scan)
        if not self._ends_well(fd, self._end):
            torn = scan.size - (self._end + len(self._terminator))
            what = (
                f"cut off an unfinished end of {torn:,} bytes" if torn > 0 else "repaired its end"
            )
            notes.append(f"{quoted(self.path)}: {what}")
            self._end_here(fd)
        self.sync()
        return True

    def _end_here(self, fd: int) -> None:
        write_at(fd, self._terminator, self._end)
        os.ftruncate(fd, self._end + len(self._terminator))

    def append(self, records: Sequence[Encoded]) -> None:
        self._append([*records])

    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        record = self.encoder().record
        self._append([part for outcome in outcomes for part in record(outcome)])

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

    def _keep_whole_records(self, fd: int) -> None:
        """After a write that was cut short. What is whole stays, since a reader may know of it."""
        scan = self._scan(fd, self._end, self._commit)
        for _ in scan:
            pass
        self._end = scan.end
        self._end_here(fd)

    def sync(self) -> None:
        refuse_if_gone(os.fstat(self._file.fileno()), self.file)
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

    def _rewrite(self, notes: list[str], through: Through | None = None) -> None:
        """Put what is sound, and counts, in the place of what is there."""
        fd = self._file.fileno()
        index, unfinished = self._look(fd, notes)
        notes += unfinished
        self._sign(fd)
        outcomes = self._outcomes_of(fd, index)
        rewrite(self, through(outcomes) if through else outcomes, REWRITTEN, notes)

    def make_way(self) -> None:
        self._file.let_go()
