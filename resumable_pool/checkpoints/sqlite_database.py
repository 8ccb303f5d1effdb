"""A database with results and failures, as a file: its tables and rows; how it is made, recognised
and opened; and what can still be read of a damaged one.

Nobody here opens it but through SQLite, see sqlite.py. Knows nothing of locks and of checkpoints.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from binascii import crc32
from collections.abc import Iterator, Sequence
from typing import Any, cast, get_args
from urllib.parse import quote

from ..errors import CheckpointError
from ..files import as_key
from ..records import Failure, FailureKind, Fingerprint, Outcome, quoted
from .base import foreign, of_another_version
from .lock import LOCK_FILE, new_name

# How long to wait for somebody else's transaction, in a shell say, before it is an error. And for
# readers to change the journal mode: ours take less than a millisecond, and somebody's who takes
# longer is not worth waiting for.
_BUSY_SECONDS, _MODE_SECONDS = 60.0, 0.5

_APPLICATION = b"RPL1"  # stands here in the file:
_APPLICATION_AT = slice(68, 72)
VERSION = 1
_PAGE_SIZE = 4096
_SCHEMA = f"""
BEGIN;
PRAGMA application_id = {int.from_bytes(_APPLICATION, "big")};
PRAGMA user_version = {VERSION};
CREATE TABLE results (
    path TEXT PRIMARY KEY, value, checksum INTEGER, seconds REAL, attempts INTEGER,
    size INTEGER, mtime_ns INTEGER, finished_at REAL);
CREATE TABLE failures (
    path TEXT PRIMARY KEY, kind TEXT, message TEXT, traceback TEXT, seconds REAL, attempts INTEGER,
    size INTEGER, mtime_ns INTEGER, finished_at REAL);
COMMIT;
"""
_FACTS = "seconds, attempts, size, mtime_ns, finished_at"
TABLES = {
    "results": f"path, value, checksum, {_FACTS}",
    "failures": f"path, kind, message, traceback, {_FACTS}",
}

SAVE = {
    table: f"INSERT OR REPLACE INTO {table} ({columns}) VALUES (?{', ?' * columns.count(',')})"
    for table, columns in TABLES.items()
}

# What SQLite has beside a database, with what is not in it yet.
JOURNALS = ("-journal", "-wal")
SIDE_FILES = (*JOURNALS, "-shm", LOCK_FILE)


# Rows: outcomes into them, and back. All text is read as bytes, since damaged text is none.


def stored(text: str) -> str | bytes:
    """`text` for the database: a blob if it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def text_of(stored: object) -> str:
    """The text that was stored. Like all below, it raises `DatabaseError` for what never was."""
    with contextlib.suppress(UnicodeDecodeError):
        if isinstance(stored, bytes):
            return stored.decode("utf-8", "surrogatepass")
    raise sqlite3.DatabaseError(f"{stored!r} stands where text must be")


def numbers_of(row: Sequence[Any]) -> Sequence[Any]:
    """The numbers that were stored."""
    if not all(isinstance(number, (int, float)) for number in row):
        raise sqlite3.DatabaseError(f"{row!r} stand where numbers must be")
    return row


def value_of(value: object, checksum: object) -> bytes | None:
    """The worker's bytes; `None` if they are not what was saved."""
    return value if isinstance(value, bytes) and crc32(value) == checksum else None


def row_of(outcome: Outcome[Any]) -> tuple[object, ...]:
    """An outcome as a row of its table."""
    facts = outcome.seconds, outcome.attempts, *outcome.fingerprint, outcome.finished_at
    if outcome.failure is not None:
        _, kind, message, traceback, *_ = outcome.failure
        return (*map(stored, (outcome.path, kind, message, traceback)), *facts)
    data = outcome.pickled or b""
    value = data if data.startswith(b"\x80") else data.decode("ascii")  # a pickle, or JSON
    return (stored(outcome.path), value, outcome.checksum, *facts)


def outcome_of(table: str, row: Sequence[Any]) -> Outcome[Any]:
    """The outcome of a row of this table."""
    seconds, attempts, size, mtime_ns, at = numbers_of(row[-5:])
    path, failure, data, checksum = text_of(row[0]), None, None, 0
    if table == "results":
        data, checksum = value_of(*row[1:3]), row[2]
        if data is None:
            raise sqlite3.DatabaseError("the value is not the one that was saved")
    else:
        kind, message, traceback = map(text_of, row[1:4])
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


def make(path: str, page_size: int = _PAGE_SIZE) -> None:
    """Make a new one, without results."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"PRAGMA page_size={page_size}; PRAGMA journal_mode=memory; {_SCHEMA}")


def set_mode(db: sqlite3.Connection, mode: str) -> bool:
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


def is_damage(error: sqlite3.DatabaseError) -> bool:
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


def recognised(path: str, how: str) -> sqlite3.Connection:
    """A connection to a database of ours; raises `CheckpointError` if it is somebody else's."""
    db = _connect(path, how)
    try:
        query = "SELECT * FROM pragma_application_id, pragma_user_version"
        application, version = db.execute(query).fetchone()
        if application != int.from_bytes(_APPLICATION, "big"):
            raise foreign(path)
        if version != VERSION:
            raise of_another_version(path, version, VERSION)
    except BaseException as error:
        db.close()
        damage = isinstance(error, sqlite3.DatabaseError) and is_damage(error)
        if damage and not _looks_like_ours(path):
            raise foreign(path) from error  # it is not even a database
        raise
    return db


def readable(path: str) -> sqlite3.Connection:
    """A connection for reading. It changes nothing, unless a writer was killed and has left a
    journal, without which nobody can read: to apply that one has to write, as SQLite does for
    whoever may, under its own locks."""
    try:
        return recognised(path, "mode=ro")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise
    recognised(path, "immutable=1").close()  # is it ours? This looks at no journal
    try:
        return recognised(path, "mode=rw")
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise
        raise CheckpointError(
            path,
            f"was left half written by a killed writer, and cannot be repaired: {error}",
            "Open it once where you may write to it and to its folder. Or copy it to such a "
            "place, together with the files beside it whose names start with its name.",
        ) from error


def writable(path: str) -> sqlite3.Connection:
    """A connection for writing."""
    readable(path).close()  # refuses what is not ours, without changing it
    return recognised(path, "mode=rw")


# What is damaged.


def sound_outcomes(db: sqlite3.Connection, findings: list[str]) -> Iterator[Outcome[Any]]:
    """All results and failures; notes which of them are damaged."""
    for table, columns in TABLES.items():
        for number, path in sorted(_rows(db, table, findings).items()):
            name = path.decode("utf-8", "replace") if isinstance(path, bytes) else str(path)
            damage = f"what is saved of {quoted(name)} in {table} is damaged"
            try:
                query = f"SELECT {columns} FROM {table} NOT INDEXED WHERE rowid = ?"
                row = db.execute(query, (number,)).fetchone()
                if row is None or row[0] != path:
                    raise sqlite3.DatabaseError
                with contextlib.suppress(sqlite3.DatabaseError):
                    yield outcome_of(table, row)
                    continue
                # A value is worth more than what stands beside it.
                yield outcome_of(table, (*row[:-5], 0.0, 1, *Fingerprint(), 0.0))
                findings.append(f"{damage}, but for the {table.removesuffix('s')} itself")
            except sqlite3.DatabaseError:
                findings.append(damage)


@contextlib.contextmanager
def with_a_new_head(path: str) -> Iterator[sqlite3.Connection]:
    """A copy of a database that SQLite does not take for one, with the first page of an empty
    one, in which its length and its tables stand. In all of ours they begin at the same pages;
    what else there may be is told by checksums."""
    copy, head = new_name(path), new_name(path)
    try:
        for end in ("", *JOURNALS):
            if os.path.exists(path + end):
                shutil.copyfile(path + end, copy + end)
        with open(copy, "r+b") as file:
            size = int.from_bytes(file.read(18)[16:], "big")
            make(head, size)
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
        for name in (head, *(copy + end for end in ("", *SIDE_FILES))):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
