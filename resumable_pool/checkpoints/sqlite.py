"""`results.sqlite`: a database, for queries and for millions of files.

    results   path, value, checksum, seconds, attempts, size, mtime_ns, finished_at
    failures  path, kind, message, traceback, seconds, attempts, size, mtime_ns, finished_at

    SELECT path, value ->> '$.words' FROM results WHERE size > 1000000
    DELETE FROM results WHERE path LIKE 'in/2023/%'        -- the next run does them again

A value is text if JSON gives it back exactly (dict, list, str, int, float, bool, None), otherwise
the bytes of its pickle. Text that is no Unicode (a path with other bytes in it, say) is a blob of
UTF-8, surrogates passed through. Tables, columns and indexes of somebody's own are in nobody's way.

Each batch is a transaction. The database is in WAL mode while a run writes, if the file system
allows it, so that nobody waits for the other, and a single file in between. In WAL mode SQLite
leaves the data of a commit to the system (`synchronous=NORMAL`), where they survive the death of
any process; `sync` commits once with `synchronous=FULL`, which forces everything to the disk.

Not for network file systems: there SQLite's log and its locks hold for one machine only, and nobody
is told.

SQLite locks only while it writes, and its locks are lost when a process closes any descriptor of
the file: so the run's own lock is on a file beside the database, and nobody here opens the database
but through SQLite. A connection lives in one process: the writer's is made in `open`. A reader has
one for each access, which takes a tenth of a millisecond: nothing to close, nothing to inherit.

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter
from typing import Any

from ..between import pipes
from ..errors import CheckpointError, CheckpointLocked
from ..files import as_key
from ..records import Entry, Fingerprint, Outcome, quoted
from ..values import UnstorableValue, json_or_pickle, read_value
from .base import Checkpoint, damaged
from .copying import REWRITTEN, rewrite
from .disk import force_folder, lock_file, replace
from .lock import (
    LOCK_FILE,
    new_name,
    open_locked,
    refuse_if_gone,
    remove_leftovers,
    sign,
    signer,
    unsign,
)
from .moving import Through
from .sqlite_database import (
    JOURNALS,
    SAVE,
    TABLES,
    VERSION,
    is_damage,
    make,
    numbers_of,
    outcome_of,
    readable,
    row_of,
    set_mode,
    sound_outcomes,
    stored,
    text_of,
    value_of,
    with_a_new_head,
    writable,
)  # fmt: skip

# A row has at most 1,000,000,000 bytes; what is not the value stays below a megabyte.
LARGEST_VALUE = 999_000_000


class SqliteFile(Checkpoint):
    """A checkpoint that can be queried. See the module's text.

    One object serves a reader in any process, or, after `open`, the saver as the only writer.
    """

    side_files = (*Checkpoint.side_files, *JOURNALS, "-shm")

    _db: sqlite3.Connection | None = None  # the writer's

    def __reduce__(self) -> tuple[type[SqliteFile], tuple[str]]:
        return type(self), (self.path,)

    @staticmethod
    def encode(value: Any) -> bytes:
        data = json_or_pickle(value)
        if len(data) > LARGEST_VALUE:
            reason = OverflowError(f"{len(data):,} bytes are too many for SQLite")
            raise UnstorableValue("the result cannot be stored") from reason
        return data

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as those of the contract."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if is_damage(error):
                raise damaged(self.path, error) from error
            raise OSError(errno.EIO, f"SQLite says: {error}") from error

    # Reading.

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection for some accesses; `None` if there is nothing to read."""
        with contextlib.ExitStack() as stack:
            try:
                is_empty = os.path.getsize(self.path) == 0
            except FileNotFoundError:
                is_empty = True
            with self._errors():
                db = (
                    None
                    if is_empty
                    else stack.enter_context(contextlib.closing(readable(self.path)))
                )
            yield db

    def _select(self, query: str, *arguments: object) -> list[Any]:
        # SQLite has locks between threads. One that is held when the saver is forked is held there
        # for ever.
        with pipes.undivided(), self._reading() as db, self._errors():
            return [] if db is None else db.execute(query, arguments).fetchall()

    def _row(
        self, table: str, columns: str, path: str, db: sqlite3.Connection | None = None
    ) -> Any:
        """What the table has of a path: that the index leads there proves nothing."""
        number = f"(SELECT rowid AS number FROM {table} WHERE path = ?)"
        row = f"{table} NOT INDEXED ON {table}.rowid = number"
        query = f"SELECT path, {columns} FROM {number} LEFT JOIN {row}"
        key = (stored(path),)
        rows = db.execute(query, key).fetchall() if db is not None else self._select(query, *key)
        for found, *row in rows:
            if found != path.encode("utf-8", "surrogatepass"):
                raise damaged(self.path, f"what it has under {quoted(path)} is for another file")
            return row
        raise KeyError(path)

    def _paths(self, table: str) -> Collection[str]:
        rows = self._select(f"SELECT rowid, path FROM {table}")  # of the index, as those of `_row`
        with self._errors():
            return dict.fromkeys(text_of(path) for _, path in sorted(rows, key=itemgetter(0)))

    def completed(self) -> Collection[str]:
        return self._paths("results")

    def _failed(self) -> Collection[str]:
        return self._paths("failures")

    def _find(self, path: str, failed: bool | None) -> Outcome[Any]:
        if failed is None:
            with contextlib.suppress(KeyError):
                return self._find(path, True)
        table = "failures" if failed else "results"
        with self._errors():
            row = self._row(table, TABLES[table], path)
            if not failed and value_of(*row[1:3]) is None:
                raise KeyError(path)
            return outcome_of(table, row)

    def read(self, path: str, db: sqlite3.Connection | None = None) -> Any:
        with self._errors():
            data = value_of(*self._row("results", "value, checksum", path, db))
        if data is None:
            raise KeyError(path)
        return read_value(data)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], Any]]:
        with self._reading() as db:
            yield functools.partial(self.read, db=db)

    def fingerprint(self, path: str) -> Fingerprint:
        with self._errors():
            return Fingerprint(*numbers_of(self._row("results", "size, mtime_ns", path)))

    def entries(self) -> Iterator[Entry]:
        with self._reading() as db, self._errors():
            if db is None:
                return
            db.execute("BEGIN")  # both queries see the same moment
            query = "SELECT path, seconds, attempts, length(value) FROM results WHERE path NOT IN"
            for path, *facts in db.execute(f"{query} (SELECT path FROM failures)"):
                yield Entry(text_of(path), None, *numbers_of(facts))
            for row in db.execute(f"SELECT {TABLES['failures']} FROM failures"):
                path, _, _, failure, seconds, attempts, *_ = outcome_of("failures", row)
                yield Entry(path, failure, seconds, attempts, sum(map(len, row[1:4])))

    def outcomes(self) -> Iterator[Outcome[Any]]:
        findings: list[str] = []
        with self._reading() as db, self._errors():
            if db is not None:
                db.execute("BEGIN")
                yield from sound_outcomes(db, findings)
        if findings:
            raise damaged(self.path, findings[0])

    def __contains__(self, path: object) -> bool:
        query = "SELECT 1 FROM results WHERE path = ?"
        return isinstance(path, str) and self._select(query, stored(as_key(path))) != []

    def __len__(self) -> int:
        return sum(count for (count,) in self._select("SELECT count(*) FROM results"))

    # Checking.

    def check(self) -> list[str]:
        findings: list[str] = []
        try:
            with self._reading() as db, self._errors():
                if db is not None:
                    db.execute("BEGIN")  # while a run goes on, too, all is of one moment
                    for _ in sound_outcomes(db, findings):
                        pass
                    db.text_factory = str
                    findings += [text for (text,) in db.execute("PRAGMA integrity_check")]
        except CheckpointError as error:
            findings.append(f"{quoted(self.path)} {error.reason}")
        return [finding for finding in findings if finding != "ok"]

    # Writing.

    def open(self) -> list[str]:
        notes: list[str] = []
        self._take(notes)
        try:
            with self._errors():
                self._db = db = writable(self.path)
                self._status = os.stat(self.path)
                self._wal = set_mode(db, "wal")  # or this run does without
                db.execute("PRAGMA fullfsync=ON")  # of macOS; elsewhere it is ignored
                self._relax(db)
        except BaseException:
            self._release()
            raise
        return notes

    def _take(self, notes: list[str], damaged: list[str] | None = None) -> None:
        """Take the lock, and make a database if there is none."""
        self._notes = notes
        self._db = None
        self._wal = self._unsynced = False
        path = lock_file(self.file)
        try:
            self._lock = open_locked(path, b" ", lambda fd: signer(path), notes)
        except CheckpointLocked as error:
            raise CheckpointLocked(self.path, error.pid, error.script) from None
        try:
            sign(path)
            remove_leftovers(self.file)
            if not os.path.exists(self.path) or os.path.getsize(self.path) == 0:
                self._set_journals_aside()
                new = new_name(self.file)
                make(new)  # in one step: whoever finds it finds it whole, and ours
                replace(new, self.file)
                force_folder(self.file)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                set_mode(self._db, "delete")
            self._db.close()
            self._db = None
        path = lock_file(self.file)
        unsign(path)
        pipes.close(self._lock)

    def _set_journals_aside(self) -> None:
        """They belong to a database that is here no more, and SQLite would write what they say into
        the new one."""
        for side in (self.file + end for end in JOURNALS):
            if os.path.exists(side):
                aside = new_name(side)
                replace(side, aside)
                kept = f"kept as {quoted(aside)}"
                self._notes.append(f"{quoted(side)} belongs to a database that is gone: {kept}")

    def _relax(self, db: sqlite3.Connection) -> None:
        db.execute(f"PRAGMA synchronous={'NORMAL' if self._wal else 'FULL'}")

    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        with self._transaction() as db:
            for outcome in outcomes:
                db.execute(SAVE["results" if outcome.ok else "failures"], row_of(outcome))
                if outcome.ok:
                    db.execute("DELETE FROM failures WHERE path = ?", (stored(outcome.path),))

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

    def _is_settled(self) -> bool:
        return not any(os.path.exists(self.file + end) for end in (LOCK_FILE, *JOURNALS))

    def _rewrite(self, notes: list[str], through: Through | None = None) -> None:
        with contextlib.ExitStack() as stack, self._errors():
            try:
                self._db = db = writable(self.path)
                for table, columns in TABLES.items():
                    db.execute(f"SELECT {columns} FROM {table} LIMIT 0")
            except sqlite3.DatabaseError as error:
                if not is_damage(error):
                    raise
                notes.append(f"{quoted(self.path)} is damaged: {error}")
                db = stack.enter_context(with_a_new_head(self.file))
            outcomes = sound_outcomes(db, notes)
            rewrite(self, through(outcomes) if through else outcomes, REWRITTEN, notes)

    def make_way(self) -> None:
        # One file, without anything beside it that the new one would get.
        if self._db is not None:
            if not set_mode(self._db, "delete"):
                raise sqlite3.OperationalError("another program is reading the database")
            self._db.close()
            self._db = None
        self._set_journals_aside()
