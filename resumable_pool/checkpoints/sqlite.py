"""`results.sqlite`: a database, for queries and for millions of files.

    results   path, value, checksum, seconds, attempts, size, mtime_ns, finished_at
    failures  path, kind, message, traceback, seconds, attempts, size, mtime_ns, finished_at

    SELECT path, value ->> '$.words' FROM results WHERE size > 1000000
    DELETE FROM results WHERE path LIKE 'in/2023/%'        -- the next run does them again

A value is text if JSON gives it back exactly (dict, list, str, int, float, bool, None), otherwise
the bytes of its pickle. Text that is no Unicode (a path with other bytes in it, say) is a blob of
UTF-8, surrogates passed through.

Each batch is a transaction. The database is in WAL mode while a run writes, if the file system
allows it, so that nobody waits for the other, and a single file in between. In WAL mode SQLite
leaves the data of a commit to the system (`synchronous=NORMAL`), where they survive the death of
any process; `sync` commits once with `synchronous=FULL`, which forces everything to the disk.

Not for network file systems: there SQLite's log and its locks hold for one machine only, and nobody
is told.

SQLite locks only while it writes, and its locks are lost when a process closes any descriptor of
the file: so the run's own lock is on a file beside the database, and nobody here opens the database
but through SQLite. A connection lives in one process: the writer's is made in `open`, a reader's
for each access (sqlite_reader.py).

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from ..between import pipes
from ..errors import CheckpointError, CheckpointLocked
from ..records import Outcome, quoted
from ..values import UnstorableValue, json_or_pickle
from .copying import REWRITTEN, rewrite
from .disk import force_folder, lock_file, replace
from .lock import LOCK_FILE, new_name, open_locked, refuse_if_gone, sign, signer, unsign
from .sqlite_layout import (
    LARGEST_VALUE,
    SAVE_FAILURE,
    SAVE_RESULT,
    SCHEMA,
    VERSION,
    row_of_failure,
    row_of_result,
    stored,
)
from .sqlite_reader import BUSY_SECONDS, SqliteReader

# How long to wait for readers to change the journal mode. Ours take less than a millisecond, and
# somebody's who takes longer is not worth waiting for.
_MODE_MILLISECONDS = 500


class SqliteFile(SqliteReader):
    """A checkpoint that can be queried. See the module's text.

    One object serves a reader in any process, or, after `open`, the saver as the only writer.
    """

    @staticmethod
    def encode(value: Any) -> bytes:
        data = json_or_pickle(value)
        if len(data) > LARGEST_VALUE:
            reason = OverflowError(f"{len(data):,} bytes are too many for SQLite")
            raise UnstorableValue("the result cannot be stored") from reason
        return data

    # Writing.

    def open(self) -> list[str]:
        notes: list[str] = []
        db = self._take(notes)
        try:
            self._wal = self._set_mode(db, "wal")  # or this run does without
            with self._errors():
                db.execute("PRAGMA fullfsync=ON")  # of macOS; elsewhere it is ignored
                self._relax(db)
        except BaseException:
            self._release()
            raise
        return notes

    def _take(self, notes: list[str]) -> sqlite3.Connection:
        self._db: sqlite3.Connection | None = None
        self._wal = self._unsynced = False
        path = lock_file(self.file)
        try:
            self._lock = open_locked(path, b" ", lambda fd: signer(path), notes)
        except CheckpointLocked as error:
            raise CheckpointLocked(self.path, error.pid, error.script) from None
        try:
            sign(path)
            if not os.path.exists(self.path) or os.path.getsize(self.path) == 0:
                self._make(notes)
            with self._reading():  # refuses what is not ours, without changing it
                pass
            with self._errors():
                self._db = self._connect("mode=rw")
            self._status = os.stat(self.path)
        except BaseException:
            self._release()
            raise
        return self._db

    def _release(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._set_mode(self._db, "delete")
            self._db.close()
            self._db = None
        path = lock_file(self.file)
        unsign(path)
        pipes.close(self._lock)

    def _make(self, notes: list[str]) -> None:
        """Make an empty database in one step: whoever finds it finds it whole, and ours."""
        for side in (f"{self.file}-journal", f"{self.file}-wal"):
            if os.path.exists(side):  # SQLite would write what it says into the new one
                aside = new_name(side)
                replace(side, aside)
                kept = f"kept as {quoted(aside)}"
                notes.append(f"{quoted(side)} belongs to a database that is gone: {kept}")
        new = new_name(self.file)
        db = sqlite3.connect(new)
        try:
            db.executescript(f"PRAGMA journal_mode=memory; {SCHEMA}")
        finally:
            db.close()
        replace(new, self.file)
        force_folder(self.file)

    def _set_mode(self, db: sqlite3.Connection, mode: str) -> bool:
        """Change the journal mode. Returns whether it is changed: not while somebody is reading.

        The mode is two bytes of the first page, and to change them SQLite writes that page through
        a journal. Whoever was killed there would leave the journal, and to undo the change would be
        left to the next one. With the journal in memory there is nothing to undo: it is one write,
        and all that differs is in the page's first hundred bytes, which no disk tears.
        """
        db.execute(f"PRAGMA busy_timeout={_MODE_MILLISECONDS}")
        try:
            if db.execute("PRAGMA journal_mode").fetchone() != (mode,):
                db.execute("PRAGMA journal_mode=memory")
                db.execute(f"PRAGMA journal_mode={mode}")
        except sqlite3.OperationalError:
            pass
        finally:
            db.execute(f"PRAGMA busy_timeout={round(BUSY_SECONDS * 1000)}")
        is_mode: str
        (is_mode,) = db.execute("PRAGMA journal_mode").fetchone()
        if is_mode == "memory":  # which is not for saving in
            (is_mode,) = db.execute("PRAGMA journal_mode=delete").fetchone()
        return is_mode == mode

    def _relax(self, db: sqlite3.Connection) -> None:
        db.execute(f"PRAGMA synchronous={'NORMAL' if self._wal else 'FULL'}")

    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        with self._transaction() as db:
            for outcome in outcomes:
                db.execute(SAVE_RESULT, row_of_result(outcome))
                db.execute("DELETE FROM failures WHERE path = ?", (stored(outcome.path),))

    def save_failures(self, outcomes: Sequence[Outcome[Any]]) -> None:
        with self._transaction() as db:
            for outcome in outcomes:
                assert outcome.failure is not None
                db.execute(SAVE_FAILURE, row_of_failure(outcome.failure, outcome))

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        assert self._db is not None
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):  # SQLite has done so already
                    self._db.execute("ROLLBACK")
                raise
        self._unsynced = True

    def sync(self) -> None:
        refuse_if_gone(self._status, self.path)
        if self._unsynced and self._wal:
            assert self._db is not None
            with self._errors():
                self._db.execute("PRAGMA synchronous=FULL")
                self._db.execute(f"PRAGMA user_version={VERSION}")  # any write will do
                self._relax(self._db)
        self._unsynced = False

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._release()

    def settle(self) -> list[str]:
        notes: list[str] = []
        if any(os.path.exists(self.file + end) for end in (LOCK_FILE, "-wal", "-journal")):
            with contextlib.suppress(CheckpointLocked, CheckpointError, OSError):
                notes = self.open()
                self.close()
        return notes

    def compact(self) -> list[str]:
        if not os.path.exists(self.path):
            raise FileNotFoundError(errno.ENOENT, "there is no checkpoint", self.path)
        notes: list[str] = []
        db = self._take(notes)
        try:
            with self._errors():
                rewrite(self, self._sound(db, notes), REWRITTEN, notes)
        finally:
            self._release()
        return notes

    def make_way(self) -> None:
        assert self._db is not None
        # One file, without anything beside it that the new one would get.
        if not self._set_mode(self._db, "delete"):
            raise sqlite3.OperationalError("somebody is reading the database")
        self._db.close()
        self._db = None
