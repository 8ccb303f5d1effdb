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

Of a damaged database all is told, and saved, that can still be read: row by row, since a row that
cannot be read takes no other one with it, and with a new first page where SQLite does not take the
file for a database.

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import shutil
import sqlite3
import time
from binascii import crc32
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any
from urllib.parse import quote

from ..between import forks
from ..between.clock import monotonic
from ..errors import CheckpointError
from ..files import as_key
from ..records import Entry, Failure, Fingerprint, Outcome, quoted
from ..values import UnstorableValue, json_or_pickle
from . import lock
from .base import REWRITTEN, Checkpoint, Through, damaged, foreign, of_another_version, refuse_odd
from .disk import force_folder, make_like, replace

# A row has at most 1,000,000,000 bytes; what is not the value stays below a megabyte.
LARGEST_VALUE = 999_000_000

# How long to wait for somebody else's transaction, in a shell say, before it is an error. And for
# readers to change the journal mode: ours take less than a millisecond, and somebody's who takes
# longer is not worth waiting for.
_BUSY_SECONDS, _MODE_SECONDS, _MODE_PAUSE = 60.0, 0.5, 0.002

# What of the file SQLite locks while somebody uses it: from which byte on, and how many. Who leaves
# as the last one, and so can lock it for himself alone, removes the log.
_SHARED = 0x40000002, 510

_APPLICATION = b"RPL1"
_VERSION = 1
_PAGE_SIZE = 4096
_FACTS = "seconds REAL, attempts INTEGER, size INTEGER, mtime_ns INTEGER, finished_at REAL"
_FACT_NAMES, _UNKNOWN = re.sub(" [A-Z]+", "", _FACTS), (0.0, 1, -1, -1, 0.0)
_TABLES = {
    "results": f"path TEXT PRIMARY KEY, value, checksum INTEGER, {_FACTS}",
    "failures": f"path TEXT PRIMARY KEY, kind TEXT, message TEXT, traceback TEXT, {_FACTS}",
}
_NAMES = "results", "failures"  # by whether it is of failures
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {int.from_bytes(_APPLICATION, "big")};
PRAGMA user_version = {_VERSION};
CREATE TABLE results ({_TABLES["results"]});
CREATE TABLE failures ({_TABLES["failures"]});
COMMIT;
"""
_COLUMNS = {table: re.sub(" [A-Z]+", "", declared) for table, declared in _TABLES.items()}
_SAVE = {
    table: f"INSERT OR REPLACE INTO {table} ({columns}) VALUES (?{', ?' * columns.count(',')})"
    for table, columns in _COLUMNS.items()
}

# What SQLite has beside a database, with what is not in it yet.
_JOURNALS = ("-journal", "-wal")

# What says that the file is not as it was written: SQLite does, or it is no text what it says,
# since names of the file are in there.
_ERRORS = sqlite3.DatabaseError, UnicodeDecodeError


class SqliteFile(Checkpoint):
    """A checkpoint that can be queried. See the module's text.

    One object serves a reader in any process, or, after `open`, the saver as the only writer.
    """

    side_files = (*Checkpoint.side_files, *_JOURNALS, "-shm")

    _db: sqlite3.Connection | None = None  # the writer's
    _in_use: tuple[Any, ...] = ()  # what says so

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
        except _ERRORS as error:
            if _is_damage(error):
                raise damaged(self.path, error) from None
            raise OSError(errno.EIO, f"SQLite says: {error}") from error

    # Reading.

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The database, as it is at this moment; where there is none, an empty one."""
        with self._errors(), contextlib.closing(_readable(self.path)) as db:
            db.execute("BEGIN")  # so that all queries see the same
            yield db

    @contextlib.contextmanager
    def _looking_up(self) -> Iterator[sqlite3.Connection]:
        """The same for one short query. SQLite has locks between threads, and one that is held when
        the saver is forked is held there for ever."""
        with forks.undivided(), self._reading() as db:
            yield db

    def _paths(self, failed: bool) -> Collection[str]:
        # Of the index, which has the rows' numbers as well. Closed, or a damaged path's traceback
        # would keep them, and so the file, open.
        query = f"SELECT path FROM {_NAMES[failed]} ORDER BY +rowid"
        with self._looking_up() as db, contextlib.closing(db.execute(query)) as rows:
            return dict.fromkeys(_text_of(path) for (path,) in rows)

    def _find(self, path: str, failed: bool) -> Outcome[Any]:
        with self._looking_up() as db:
            return _find(db, path, failed)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], Any]]:
        with self._errors(), contextlib.closing(_readable(self.path)) as db:

            def read(path: str) -> Any:
                with forks.undivided(), db:  # no lock in between: a run that begins takes them all
                    db.execute("BEGIN")
                    outcome = _find(db, path, failed=False)
                return outcome.value

            yield read

    def fingerprints(self, paths: Iterable[str]) -> dict[str, Fingerprint]:
        found: dict[str, Fingerprint] = {}
        with self._looking_up() as db:  # without reading the values
            for path in paths:
                with contextlib.suppress(KeyError):
                    row = _row_of(db, "results", path, f"path, {_FACT_NAMES}")
                    found[path] = _facts_of(row)[2]
        return found

    def entries(self) -> Iterator[Entry]:
        query = f"SELECT path, length(value), {_FACT_NAMES} FROM results WHERE path NOT IN"
        # All at once, since whoever reads them may take his time; closed, see `_paths`.
        with self._looking_up() as db, contextlib.closing(db.cursor()) as rows:
            rows.execute(f"{query} (SELECT path FROM failures)")
            entries = [
                Entry(_text_of(row[0]), None, *_facts_of(row)[:2], row[1] or 0) for row in rows
            ]
            for row in rows.execute(f"SELECT {_COLUMNS['failures']} FROM failures"):
                outcome, size = _outcome_of("failures", row), sum(map(len, row[1:4]))
                entries.append(Entry(outcome.path, outcome.failure, *_facts_of(row)[:2], size))
        yield from entries

    def _sound(self, findings: list[str]) -> Iterator[Outcome[Any]]:
        with self._reading() as db:
            yield from sound_outcomes(db, findings)

    def __contains__(self, path: object) -> bool:
        query = "SELECT 1 FROM results WHERE path = ?"
        with self._looking_up() as db:
            return isinstance(path, str) and any(db.execute(query, (_stored(as_key(path)),)))

    def __len__(self) -> int:
        with self._looking_up() as db:
            return sum(number for (number,) in db.execute("SELECT count(*) FROM results"))

    def _layout(self) -> object:
        with self._reading() as db:
            return db.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall()

    def _check(self, findings: list[str]) -> None:
        super()._check(findings)
        with self._reading() as db:
            db.text_factory = str
            rows = db.execute("PRAGMA integrity_check")
            findings += [finding for (finding,) in rows if finding != "ok"]

    # Writing.

    def _begin(self, notes: list[str]) -> bool:
        with self._errors():
            db = self._connect(notes)
            self._unsynced = False
            if self._status.st_nlink > 1:  # SQLite's log and our lock are beside one of the names
                what = "has several names (hard links): make sure only one run at a time uses it"
                notes.append(f"{quoted(self.path)} {what}")
            self._wal = False
            with contextlib.suppress(OSError):  # SQLite notices too late if memory is not shared
                mmap.mmap(self._file.fileno(), 1).close()
                self._wal = _set_mode(db, "wal")  # or this run does without
            if self._wal:
                self._in_use = lock.keep_shared(self.file, *_SHARED)
            db.execute("PRAGMA fullfsync=ON")  # of macOS; elsewhere it is ignored
            db.execute(f"PRAGMA synchronous={'NORMAL' if self._wal else 'FULL'}")
        return True

    def _connect(self, notes: list[str]) -> sqlite3.Connection:
        """The database, for writing, made if there is none."""
        self._notes = notes
        self._sign()
        if _is_new(self.file):
            self._set_journals_aside()
            with lock.new_beside(self.file) as new:
                _make(new).close()  # in one step: whoever finds it finds it whole, and ours
                if os.path.exists(self.file):
                    make_like(self.file, new)
                replace(new, self.file)
            force_folder(self.file)
        _readable(self.file).close()  # refuses what is not ours, without changing it
        self._status = os.stat(self.file)
        self._db = _recognised(self.file, "mode=rw")
        return self._db

    def _release(self) -> None:
        try:
            with contextlib.suppress(sqlite3.Error):
                self._leave()
        finally:  # somebody may press Ctrl-C meanwhile, and go on
            super()._release()

    def _leave(self) -> bool:
        """Close the database. Returns whether it is one file, without a log beside it."""
        db, self._db = self._db, None
        if db is None:
            return True
        with contextlib.closing(db):
            forks.close(*self._in_use)
            db.execute("PRAGMA wal_checkpoint")
            # If it was moved, the log that is beside its name now is another one's.
            return lock.is_at(self._status, self.file) and _set_mode(db, "delete")

    def _set_journals_aside(self) -> None:
        """They belong to a database that is here no more, and SQLite would write what they say into
        the new one."""
        for side in (self.file + end for end in _JOURNALS):
            with contextlib.suppress(FileNotFoundError):
                replace(side, aside := lock.new_name(side))
                kept = f"kept as {quoted(aside)}"
                self._notes.append(f"{quoted(side)} belongs to a database that is gone: {kept}")

    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        assert self._db is not None
        with self._errors(), self._db as db:  # commits, or rolls back
            db.execute("BEGIN IMMEDIATE")
            for outcome in outcomes:
                db.execute(_SAVE[_NAMES[not outcome.ok]], _as_row(outcome))
                if outcome.ok:
                    db.execute("DELETE FROM failures WHERE path = ?", (_stored(outcome.path),))
        self._unsynced = True

    def sync(self) -> None:
        lock.refuse_if_gone(self._status, self.file)
        if self._unsynced and self._wal:
            assert self._db is not None
            write = f"PRAGMA user_version={_VERSION}"  # any will do
            with self._errors():
                self._db.executescript(
                    f"PRAGMA synchronous=FULL; {write}; PRAGMA synchronous=NORMAL"
                )
        self._unsynced = False

    def _is_settled(self) -> bool:
        return not any(os.path.exists(self.file + end) for end in (lock.LOCK_FILE, *_JOURNALS))

    def _rewrite(self, notes: list[str], through: Through = iter) -> None:
        with self._errors():
            super()._rewrite(notes, through)

    def _content(self, notes: list[str]) -> tuple[str, Iterator[Outcome[Any]]]:
        try:
            db = self._connect(notes)
            for table, columns in _COLUMNS.items():
                db.execute(f"SELECT {columns} FROM {table} LIMIT 0")
        except _ERRORS as error:
            if not _is_damage(error):
                raise
            notes.append(f"{quoted(self.path)} is damaged: {error}")
            return REWRITTEN, _outcomes_under_a_new_head(self.file, notes)
        return REWRITTEN, sound_outcomes(db, notes)

    def make_way(self) -> None:
        # One file, without anything beside it that the new one would get.
        if not self._leave():
            raise sqlite3.OperationalError("another program is reading the database")
        self._set_journals_aside()


# Rows: outcomes into them, and back. All text is read as bytes, since damaged text is none. What
# reads it raises one of `_ERRORS` for what was never saved.


def _stored(text: str) -> str | bytes:
    """`text` for the database: a blob if it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def _text_of(stored: object) -> str:
    if not isinstance(stored, bytes):
        raise sqlite3.DatabaseError(f"{stored!r} stands where text must be")
    return stored.decode("utf-8", "surrogatepass")


def _as_row(outcome: Outcome[Any]) -> tuple[object, ...]:
    """An outcome as a row of its table."""
    facts = outcome.seconds, outcome.attempts, *outcome.fingerprint, outcome.finished_at
    if outcome.failure is not None:
        _, kind, message, traceback, *_ = outcome.failure
        return (*map(_stored, (outcome.path, kind, message, traceback)), *facts)
    data = outcome.pickled or b""
    value = data if data.startswith(b"\x80") else data.decode("ascii")  # a pickle, or JSON
    return (_stored(outcome.path), value, outcome.checksum, *facts)


def _facts_are_sound(row: Sequence[Any]) -> bool:
    return all(isinstance(number, (int, float)) for number in row[-len(_UNKNOWN) :])


def _facts_of(row: Sequence[Any]) -> tuple[float, int, Fingerprint, float]:
    """What stands beside a value or a failure, as an outcome has it. If these are damaged, it is as
    if nobody had known them: what they stand beside is worth more."""
    facts = row[-len(_UNKNOWN) :] if _facts_are_sound(row) else _UNKNOWN
    seconds, attempts, size, mtime_ns, finished_at = facts
    return seconds, attempts, Fingerprint(size, mtime_ns), finished_at


def _outcome_of(table: str, row: Sequence[Any]) -> Outcome[Any]:
    """The outcome of a row of this table; `KeyError` if its value is not the one that was saved."""
    path, facts = _text_of(row[0]), _facts_of(row)
    if table == "failures":
        kind: Any
        kind, message, traceback = map(_text_of, row[1:4])
        failure = Failure(path, kind, message, traceback, facts[1], facts[0])
        return Outcome(path, None, 0, failure, *facts)
    data, checksum = row[1:3]
    if not isinstance(data, bytes) or crc32(data) != checksum:
        raise KeyError(path)
    return Outcome(path, data, checksum, None, *facts)


def _find(db: sqlite3.Connection, path: str, failed: bool) -> Outcome[Any]:
    """The outcome of this path; `KeyError` if there is none, or it is not what was saved."""
    table = _NAMES[failed]
    return _outcome_of(table, _row_of(db, table, path, _COLUMNS[table]))


def _row_of(db: sqlite3.Connection, table: str, path: str, columns: str) -> Sequence[Any]:
    stored = _stored(path)
    found = db.execute(f"SELECT rowid FROM {table} WHERE path = ?", (stored,)).fetchone()
    if found is None:
        raise KeyError(path)
    return _row_at(db, table, found[0], path.encode("utf-8", "surrogatepass"), columns)


def _row_at(
    db: sqlite3.Connection, table: str, number: int, path: object, columns: str
) -> Sequence[Any]:
    """What the table itself has at this number: that the index leads there proves nothing."""
    query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE rowid = ?"
    row: Sequence[Any] | None = db.execute(query, (number,)).fetchone()
    if row is None or row[0] != path:
        what = f"what it has under {quoted(_shown(path))} is for another file"
        raise sqlite3.DatabaseError(what)
    return row


def _shown(path: object) -> str:
    return path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)


# Connections.


def _is_new(path: str) -> bool:
    """Whether there is nothing, or an empty file."""
    try:
        return os.path.getsize(path) == 0
    except FileNotFoundError:
        return True


def _make(path: str) -> sqlite3.Connection:
    """Make a new one, without results."""
    db = sqlite3.connect(path)
    db.executescript(f"PRAGMA page_size={_PAGE_SIZE}; PRAGMA journal_mode=memory; {_SCHEMA}")
    return db


def _connect(path: str, how: str) -> sqlite3.Connection:
    # Three slashes, whatever comes then: behind two, SQLite expects a machine's name, and knows
    # no other one than its own. (That of a shared folder, on Windows, begins with two more.)
    name = quote(os.fsencode(as_key(path)))
    uri = f"file://{name if name.startswith('/') else '/' + name}?{how}"
    db = sqlite3.connect(uri, timeout=_BUSY_SECONDS, isolation_level=None, uri=True)
    db.text_factory = bytes
    db.execute("PRAGMA temp_store=memory")  # what it sorts; another disk may be full, or read-only
    return db


def _recognised(path: str, how: str) -> sqlite3.Connection:
    """A connection to a database of ours; raises `CheckpointError` if it is somebody else's."""
    db = _connect(path, how)
    try:
        query = "SELECT * FROM pragma_application_id, pragma_user_version"  # reads the tables, too
        application, version = db.execute(query).fetchone()
        if application != int.from_bytes(_APPLICATION, "big"):
            raise foreign(path)
        if version != _VERSION:
            raise of_another_version(path, version, _VERSION)
    except BaseException as error:
        db.close()
        if isinstance(error, _ERRORS) and _is_damage(error) and not _looks_like_ours(path):
            raise foreign(path) from None  # it is not even a database
        raise
    return db


def _readable(path: str) -> sqlite3.Connection:
    """A connection for reading. It changes nothing, unless a writer was killed and has left a
    journal, without which nobody can read: to apply that one has to write, as SQLite does for
    whoever may, under its own locks."""
    refuse_odd(path)
    if _is_new(path):
        return _make(":memory:")
    for how in ("mode=ro", "mode=rw"):
        try:
            return _recognised(path, how)
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                raise
            why = error
        db = _recognised(path, "immutable=1")  # is it ours? This looks at no journal
        if SqliteFile(path)._is_settled():  # it is whole, but in WAL mode: SQLite would begin a log
            return db
        db.close()
    raise CheckpointError(
        path,
        f"was left half written by a killed writer, and cannot be repaired: {why}",
        "Open it once where you may write to it and to its folder. Or copy it to such a "
        "place, together with the files beside it whose names start with its name.",
    ) from why


def _set_mode(db: sqlite3.Connection, mode: str) -> bool:
    """Change the journal mode. Returns whether it is changed: not while somebody is reading.

    The mode is two bytes of the first page, and to change them SQLite writes that page through a
    journal. Whoever was killed there would leave the journal, and to undo the change would be left
    to the next one. With the journal in memory there is nothing to undo: it is one write, and all
    that differs is in the page's first hundred bytes, which no disk tears.
    """
    until = monotonic() + _MODE_SECONDS
    db.execute(f"PRAGMA busy_timeout={round(_MODE_SECONDS * 1000)}")
    while not _try_mode(db, mode) and monotonic() < until:
        time.sleep(_MODE_PAUSE)  # SQLite waits for nobody where a log is to be removed
    db.execute(f"PRAGMA busy_timeout={round(_BUSY_SECONDS * 1000)}")
    if _mode(db) == "memory":  # which is not for saving in
        _mode(db, "=delete")
    return _mode(db) == mode


def _try_mode(db: sqlite3.Connection, mode: str) -> bool:
    """Returns whether nobody is in the way."""
    try:
        db.execute("PRAGMA schema_version")  # who has read nothing does not remove a reader's log
        if _mode(db) != mode:
            _mode(db, "=memory")
            _mode(db, f"={mode}")
    except sqlite3.OperationalError:
        return False
    return True


def _mode(db: sqlite3.Connection, to: str = "") -> str:
    (mode,) = db.execute(f"PRAGMA journal_mode{to}").fetchone()
    return str(mode, "ascii")


# What is damaged.


def _is_damage(error: Exception) -> bool:
    """Whether the file is to blame, and not a full disk, say, or somebody who is writing."""
    its = any(words in str(error) for words in ("no such", "no column", "unsupported file format"))
    return type(error) is not sqlite3.OperationalError or its


def _looks_like_ours(path: str) -> bool:
    """Whether a file that is no database has been one of ours: by our mark or, where the first page
    is lost, by the kinds of the next ones, in which results and their index begin."""
    with open(path, "rb") as file:
        start = file.read(2 * _PAGE_SIZE + 1)
    kinds = start[_PAGE_SIZE : _PAGE_SIZE + 1], start[2 * _PAGE_SIZE :]
    in_pages = os.path.getsize(path) % _PAGE_SIZE == 0
    behind_it = in_pages and kinds[0] in (b"\x05", b"\x0d") and kinds[1] in (b"\x02", b"\x0a")
    return start[68:72] == _APPLICATION or behind_it


def sound_outcomes(db: sqlite3.Connection, findings: list[str]) -> Iterator[Outcome[Any]]:
    """All results and failures; notes which of them are damaged."""
    for table, columns in _COLUMNS.items():
        for number, path in sorted(_rows(db, table, findings).items()):
            damage = f"what is saved of {quoted(_shown(path))} in {table} is damaged"
            try:
                row = _row_at(db, table, number, path, columns)
                yield _outcome_of(table, row)
                if not _facts_are_sound(row):
                    findings.append(f"{damage}, but for the {table.removesuffix('s')} itself")
            except (*_ERRORS, KeyError):
                findings.append(damage)


def _rows(db: sqlite3.Connection, table: str, findings: list[str]) -> dict[int, Any]:
    """The rows' numbers and paths: of the index, so that damaged rows have a name, and of the table
    itself, where rows may be that the index has not; each as far as it can be read."""
    rows: dict[int, Any] = {}
    for where, column in (("index", ""), ("table", "NOT INDEXED")):
        try:
            for rowid, path in db.execute(f"SELECT rowid, path FROM {table} {column}"):
                rows.setdefault(rowid, path)
        except _ERRORS as error:
            findings.append(f"the {where} of {table} cannot be read: {error}")
    return rows


def _outcomes_under_a_new_head(path: str, findings: list[str]) -> Iterator[Outcome[Any]]:
    """The same of a database that SQLite does not take for one: of a copy with the first page of an
    empty one, in which its length and its tables stand. In all of ours they begin at the same
    pages; what else there may be is told by checksums."""
    with lock.new_beside(path, SqliteFile.side_files) as copy:
        _make(copy).close()
        with open(path, "rb") as old, open(copy, "r+b") as new:
            new.seek(old.seek(_PAGE_SIZE))
            shutil.copyfileobj(old, new)
            pages = new.seek(0, os.SEEK_END) // _PAGE_SIZE
            new.truncate(pages * _PAGE_SIZE)
            new.seek(28)
            new.write(pages.to_bytes(4, "big"))
        for end in _JOURNALS:
            if os.path.exists(path + end):
                shutil.copyfile(path + end, copy + end)
        with contextlib.closing(_connect(copy, "mode=rw")) as db:
            yield from sound_outcomes(db, findings)
