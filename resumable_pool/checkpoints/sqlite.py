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
import shutil
import sqlite3
from binascii import crc32
from collections.abc import Callable, Collection, Iterator, Sequence
from operator import itemgetter
from typing import Any, cast, get_args
from urllib.parse import quote

from ..between import pipes
from ..errors import CheckpointError, CheckpointLocked
from ..files import as_key
from ..records import Entry, Failure, FailureKind, Fingerprint, Outcome, quoted
from ..values import UnstorableValue, json_or_pickle, read_value
from .base import Checkpoint, damaged, foreign, of_another_version
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

# How long to wait for somebody else's transaction, in a shell say, before it is an error. And for
# readers to change the journal mode: ours take less than a millisecond, and somebody's who takes
# longer is not worth waiting for.
_BUSY_SECONDS, _MODE_SECONDS = 60.0, 0.5

# A row has at most 1,000,000,000 bytes; what is not the value stays below a megabyte.
LARGEST_VALUE = 999_000_000

_APPLICATION = b"RPL1"  # stands here in the file:
_APPLICATION_AT = slice(68, 72)
_VERSION = 1
_PAGE_SIZE = 4096
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {int.from_bytes(_APPLICATION, "big")};
PRAGMA user_version = {_VERSION};
CREATE TABLE results (
    path TEXT PRIMARY KEY, value, checksum INTEGER, seconds REAL, attempts INTEGER,
    size INTEGER, mtime_ns INTEGER, finished_at REAL);
CREATE TABLE failures (
    path TEXT PRIMARY KEY, kind TEXT, message TEXT, traceback TEXT, seconds REAL, attempts INTEGER,
    size INTEGER, mtime_ns INTEGER, finished_at REAL);
COMMIT;
"""
_FACTS = "seconds, attempts, size, mtime_ns, finished_at"
_TABLES = {
    "results": f"path, value, checksum, {_FACTS}",
    "failures": f"path, kind, message, traceback, {_FACTS}",
}

_SAVE = {
    table: f"INSERT OR REPLACE INTO {table} ({columns}) VALUES (?{', ?' * columns.count(',')})"
    for table, columns in _TABLES.items()
}

# What SQLite has beside a database, with what is not in it yet.
_JOURNALS = ("-journal", "-wal")


# Rows: outcomes into them, and back. All text is read as bytes, since damaged text is none.


def _stored(text: str) -> str | bytes:
    """`text` for the database: a blob if it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _text(stored: object) -> str:
    """The text that was stored. Like all below, it raises `DatabaseError` for what never was."""
    with contextlib.suppress(UnicodeDecodeError):
        if isinstance(stored, bytes):
            return stored.decode("utf-8", "surrogatepass")
    raise sqlite3.DatabaseError(f"{stored!r} stands where text must be")


def _numbers(row: Sequence[Any]) -> Sequence[Any]:
    if not all(isinstance(number, (int, float)) for number in row):
        raise sqlite3.DatabaseError(f"{row!r} stand where numbers must be")
    return row


def _value(value: object, checksum: object) -> bytes | None:
    """The worker's bytes; `None` if they are not what was saved."""
    return value if isinstance(value, bytes) and crc32(value) == checksum else None


def _row_of(outcome: Outcome[Any]) -> tuple[object, ...]:
    facts = outcome.seconds, outcome.attempts, *outcome.fingerprint, outcome.finished_at
    if outcome.failure is not None:
        _, kind, message, traceback, *_ = outcome.failure
        return (*map(_stored, (outcome.path, kind, message, traceback)), *facts)
    data = outcome.pickled or b""
    value = data if data.startswith(b"\x80") else data.decode("ascii")  # a pickle, or JSON
    return (_stored(outcome.path), value, outcome.checksum, *facts)


def _outcome_of(table: str, row: Sequence[Any]) -> Outcome[Any]:
    seconds, attempts, size, mtime_ns, at = _numbers(row[-5:])
    path, failure, data, checksum = _text(row[0]), None, None, 0
    if table == "results":
        data, checksum = _value(*row[1:3]), row[2]
        if data is None:
            raise sqlite3.DatabaseError("the value is not the one that was saved")
    else:
        kind, message, traceback = map(_text, row[1:4])
        if kind not in get_args(FailureKind):
            raise sqlite3.DatabaseError(f"there is no failure of the kind {kind!r}")
        failure = Failure(path, cast(FailureKind, kind), message, traceback, attempts, seconds)
    return Outcome(
        path, data, checksum, failure, seconds, attempts, Fingerprint(size, mtime_ns), at
    )


# Connections.


class _Connection(sqlite3.Connection):
    """One whose errors are all SQLite's: names of the file are in their texts, and where those are
    damaged the module fails to decode them."""

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """As in the base class."""
        try:
            return super().execute(*arguments)
        except UnicodeDecodeError as error:
            what = bytes(error.object).decode("utf-8", "replace")
            raise sqlite3.DatabaseError(what) from None


def _connect(path: str, how: str) -> sqlite3.Connection:
    # Three slashes, whatever comes then: behind two, SQLite expects a machine's name, and knows
    # no other one than its own. (That of a shared folder, on Windows, begins with two more.)
    name = quote(os.fsencode(as_key(path)))
    uri = f"file://{name if name.startswith('/') else '/' + name}?{how}"
    db = sqlite3.connect(
        uri, timeout=_BUSY_SECONDS, isolation_level=None, uri=True, factory=_Connection
    )
    db.text_factory = bytes
    return db


def _make(path: str, page_size: int = _PAGE_SIZE) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA page_size={page_size}; PRAGMA journal_mode=memory; {_SCHEMA}")


def _set_mode(db: sqlite3.Connection, mode: str) -> bool:
    """Change the journal mode. Returns whether it is changed: not while somebody is reading.

    The mode is two bytes of the first page, and to change them SQLite writes that page through a
    journal. Whoever was killed there would leave the journal, and to undo the change would be left
    to the next one. With the journal in memory there is nothing to undo: it is one write, and all
    that differs is in the page's first hundred bytes, which no disk tears.
    """
    db.execute(f"PRAGMA busy_timeout={round(_MODE_SECONDS * 1000)}")
    with contextlib.suppress(sqlite3.OperationalError):
        if _mode(db) != mode:
            _mode(db, "=memory")
            _mode(db, f"={mode}")
    db.execute(f"PRAGMA busy_timeout={round(_BUSY_SECONDS * 1000)}")
    is_mode = _mode(db)
    if is_mode == "memory":  # which is not for saving in
        is_mode = _mode(db, "=delete")
    return is_mode == mode


def _mode(db: sqlite3.Connection, to: str = "") -> str:
    (mode,) = db.execute(f"PRAGMA journal_mode{to}").fetchone()
    return str(mode, "ascii")


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    """Whether the file is to blame, and not a full disk, say, or somebody who is writing."""
    its = any(words in str(error) for words in ("no such", "no column"))
    return type(error) is not sqlite3.OperationalError or its


def _looks_like_ours(path: str) -> bool:
    """Whether a file that is no database has been one of ours: by our mark or, where the first page
    is lost, by the kinds of the next ones, in which results and their index begin."""
    with open(path, "rb") as file:
        start = file.read(2 * _PAGE_SIZE + 1)
    kinds = start[_PAGE_SIZE : _PAGE_SIZE + 1], start[2 * _PAGE_SIZE :]
    in_pages = os.path.getsize(path) % _PAGE_SIZE == 0
    behind_it = in_pages and kinds[0] in (b"\x05", b"\x0d") and kinds[1] in (b"\x02", b"\x0a")
    return start[_APPLICATION_AT] == _APPLICATION or behind_it


def _rows(db: sqlite3.Connection, table: str, findings: list[str]) -> dict[int, Any]:
    """The rows' numbers and paths: of the index, so that damaged rows have a name, and of the table
    itself, where rows may be that the index has not; each as far as it can be read."""
    rows: dict[int, Any] = {}
    for where, column in (("index", ""), ("table", "NOT INDEXED")):
        try:
            for rowid, path in db.execute(f"SELECT rowid, path FROM {table} {column}"):
                rows.setdefault(rowid, path)
        except sqlite3.DatabaseError as error:
            findings.append(f"the {where} of {table} cannot be read: {error}")
    return rows


class SqliteFile(Checkpoint):
    """A checkpoint that can be queried. See the module's text.

    One object serves a reader in any process, or, after `open`, the saver as the only writer.
    """

    side_files = (*Checkpoint.side_files, *_JOURNALS, "-shm")

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
            if _is_damage(error):
                raise damaged(self.path, error) from error
            raise OSError(errno.EIO, f"SQLite says: {error}") from error

    def _recognised(self, how: str) -> sqlite3.Connection:
        """A connection to a database of ours; raises `CheckpointError` if it is somebody else's."""
        db = _connect(self.path, how)
        try:
            query = "SELECT * FROM pragma_application_id, pragma_user_version"
            application, version = db.execute(query).fetchone()
            if application != int.from_bytes(_APPLICATION, "big"):
                raise foreign(self.path)
            if version != _VERSION:
                raise of_another_version(self.path, version, _VERSION)
        except BaseException as error:
            db.close()
            damage = isinstance(error, sqlite3.DatabaseError) and _is_damage(error)
            if damage and not _looks_like_ours(self.path):
                raise foreign(self.path) from error  # it is not even a database
            raise
        return db

    def _readable(self) -> sqlite3.Connection:
        """A connection for reading. It changes nothing, unless a writer was killed and has left a
        journal, without which nobody can read: to apply that one has to write, as SQLite does for
        whoever may, under its own locks."""
        try:
            return self._recognised("mode=ro")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise
        self._recognised("immutable=1").close()  # is it ours? This looks at no journal
        try:
            return self._recognised("mode=rw")
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise
            raise CheckpointError(
                self.path,
                f"was left half written by a killed writer, and cannot be repaired: {error}",
                "Open it once where you may write to it and to its folder. Or copy it to such a "
                "place, together with the files beside it whose names start with its name.",
            ) from error

    def _writable(self) -> sqlite3.Connection:
        self._readable().close()  # refuses what is not ours, without changing it
        return self._recognised("mode=rw")

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
                db = None if is_empty else stack.enter_context(contextlib.closing(self._readable()))
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
        key = (_stored(path),)
        rows = db.execute(query, key).fetchall() if db is not None else self._select(query, *key)
        for found, *row in rows:
            if found != path.encode("utf-8", "surrogatepass"):
                raise damaged(self.path, f"what it has under {quoted(path)} is for another file")
            return row
        raise KeyError(path)

    def _paths(self, table: str) -> Collection[str]:
        rows = self._select(f"SELECT rowid, path FROM {table}")  # of the index, as those of `_row`
        with self._errors():
            return dict.fromkeys(_text(path) for _, path in sorted(rows, key=itemgetter(0)))

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
            row = self._row(table, _TABLES[table], path)
            if not failed and _value(*row[1:3]) is None:
                raise KeyError(path)
            return _outcome_of(table, row)

    def read(self, path: str, db: sqlite3.Connection | None = None) -> Any:
        with self._errors():
            data = _value(*self._row("results", "value, checksum", path, db))
        if data is None:
            raise KeyError(path)
        return read_value(data)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], Any]]:
        with self._reading() as db:
            yield functools.partial(self.read, db=db)

    def fingerprint(self, path: str) -> Fingerprint:
        with self._errors():
            return Fingerprint(*_numbers(self._row("results", "size, mtime_ns", path)))

    def entries(self) -> Iterator[Entry]:
        with self._reading() as db, self._errors():
            if db is None:
                return
            db.execute("BEGIN")  # both queries see the same moment
            query = "SELECT path, seconds, attempts, length(value) FROM results WHERE path NOT IN"
            for path, *facts in db.execute(f"{query} (SELECT path FROM failures)"):
                yield Entry(_text(path), None, *_numbers(facts))
            for row in db.execute(f"SELECT {_TABLES['failures']} FROM failures"):
                path, _, _, failure, seconds, attempts, *_ = _outcome_of("failures", row)
                yield Entry(path, failure, seconds, attempts, sum(map(len, row[1:4])))

    def outcomes(self) -> Iterator[Outcome[Any]]:
        findings: list[str] = []
        with self._reading() as db, self._errors():
            if db is not None:
                db.execute("BEGIN")
                yield from self._sound(db, findings)
        if findings:
            raise damaged(self.path, findings[0])

    def __contains__(self, path: object) -> bool:
        query = "SELECT 1 FROM results WHERE path = ?"
        return isinstance(path, str) and self._select(query, _stored(as_key(path))) != []

    def __len__(self) -> int:
        return sum(count for (count,) in self._select("SELECT count(*) FROM results"))

    # Checking.

    def check(self) -> list[str]:
        findings: list[str] = []
        try:
            with self._reading() as db, self._errors():
                if db is not None:
                    db.execute("BEGIN")  # while a run goes on, too, all is of one moment
                    for _ in self._sound(db, findings):
                        pass
                    db.text_factory = str
                    findings += [text for (text,) in db.execute("PRAGMA integrity_check")]
        except CheckpointError as error:
            findings.append(f"{quoted(self.path)} {error.reason}")
        return [finding for finding in findings if finding != "ok"]

    def _sound(self, db: sqlite3.Connection, findings: list[str]) -> Iterator[Outcome[Any]]:
        """All results and failures; notes which of them are damaged."""
        for table, columns in _TABLES.items():
            for number, path in sorted(_rows(db, table, findings).items()):
                name = path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)
                damage = f"what is saved of {quoted(name)} in {table} is damaged"
                try:
                    query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE rowid = ?"
                    row = db.execute(query, (number,)).fetchone()
                    if row is None or row[0] != path:
                        raise sqlite3.DatabaseError
                    with contextlib.suppress(sqlite3.DatabaseError):
                        yield _outcome_of(table, row)
                        continue
                    # A value is worth more than what stands beside it.
                    yield _outcome_of(table, (*row[:-5], 0.0, 1, *Fingerprint(), 0.0))
                    findings.append(f"{damage}, but for the {table.removesuffix('s')} itself")
                except sqlite3.DatabaseError:
                    findings.append(damage)

    # Writing.

    def open(self) -> list[str]:
        notes: list[str] = []
        self._take(notes)
        try:
            with self._errors():
                self._db = db = self._writable()
                self._status = os.stat(self.path)
                self._wal = _set_mode(db, "wal")  # or this run does without
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
                _make(new)  # in one step: whoever finds it finds it whole, and ours
                replace(new, self.file)
                force_folder(self.file)
        except BaseException:
            self._release()
            raise

    def _release(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                _set_mode(self._db, "delete")
            self._db.close()
            self._db = None
        path = lock_file(self.file)
        unsign(path)
        pipes.close(self._lock)

    def _set_journals_aside(self) -> None:
        """They belong to a database that is here no more, and SQLite would write what they say into
        the new one."""
        for side in (self.file + end for end in _JOURNALS):
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
                db.execute(_SAVE["results"], _row_of(outcome))
                db.execute("DELETE FROM failures WHERE path = ?", (_stored(outcome.path),))

    def save_failures(self, outcomes: Sequence[Outcome[Any]]) -> None:
        with self._transaction() as db:
            db.executemany(_SAVE["failures"], map(_row_of, outcomes))

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
                self._db.execute(f"PRAGMA user_version={_VERSION}")  # any write will do
                self._relax(self._db)
        self._unsynced = False

    def close(self) -> None:
        try:
            self.sync()
        finally:
            self._release()

    def _is_settled(self) -> bool:
        return not any(os.path.exists(self.file + end) for end in (LOCK_FILE, *_JOURNALS))

    def _rewrite(self, notes: list[str], through: Through | None = None) -> None:
        with contextlib.ExitStack() as stack, self._errors():
            try:
                self._db = db = self._writable()
                for table, columns in _TABLES.items():
                    db.execute(f"SELECT {columns} FROM {table} LIMIT 0")
            except sqlite3.DatabaseError as error:
                if not _is_damage(error):
                    raise
                notes.append(f"{quoted(self.path)} is damaged: {error}")
                db = stack.enter_context(self._with_a_new_head())
            outcomes = self._sound(db, notes)
            rewrite(self, through(outcomes) if through else outcomes, REWRITTEN, notes)

    def make_way(self) -> None:
        # One file, without anything beside it that the new one would get.
        if self._db is not None:
            if not _set_mode(self._db, "delete"):
                raise sqlite3.OperationalError("another program is reading the database")
            self._db.close()
            self._db = None
        self._set_journals_aside()

    @contextlib.contextmanager
    def _with_a_new_head(self) -> Iterator[sqlite3.Connection]:
        """A copy of a database that SQLite does not take for one, with the first page of an empty
        one, in which its length and its tables stand. In all of ours they begin at the same pages;
        what else there may be is told by checksums."""
        copy, head = new_name(self.file), new_name(self.file)
        try:
            for end in ("", *_JOURNALS):
                if os.path.exists(self.file + end):
                    shutil.copyfile(self.file + end, copy + end)
            with open(copy, "r+b") as file:
                size = int.from_bytes(file.read(18)[16:], "big")
                _make(head, size)
                with open(head, "rb") as first:
                    page = bytearray(first.read(_PAGE_SIZE))
                size = int.from_bytes(page[16:18], "big")
                pages = max(os.path.getsize(copy) // size, os.path.getsize(head) // size)
                page[28:32] = pages.to_bytes(4, "big")
                file.truncate(pages * size)
                file.seek(0)
                file.write(page[:size])
            with contextlib.closing(_connect(copy, "mode=rw")) as db:
                yield db
        finally:
            for name in (head, *(copy + end for end in ("", *self.side_files))):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
