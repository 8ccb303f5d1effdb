"""Reading `results.sqlite`: what its reader and its writer share.

A connection is made for each access and closed again, which takes a tenth of a millisecond: nothing
to close, nothing to inherit. Writes only to put in order what a killed writer has left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import quote

from ..between import pipes
from ..errors import CheckpointError
from ..files import as_key
from ..records import Entry, Failure, Fingerprint, Outcome, quoted
from ..values import read_value
from .base import Checkpoint, Failures, damaged, foreign, of_another_version
from .sqlite_layout import (
    APPLICATION,
    FAILURES,
    RESULT_ENTRIES,
    VERSION,
    entry_of_failure,
    entry_of_result,
    failure_of,
    outcome_of_failure,
    outcome_of_result,
    stored,
    text_of,
    value_of,
)

# How long to wait for somebody else's transaction, in a shell say, before it is an error.
BUSY_SECONDS = 60.0


def half_done(path: str, error: object) -> CheckpointError:
    """What to raise for a database with a journal that has to be applied, by whom may not do so."""
    return CheckpointError(
        path,
        f"was left half-written by a writer that was killed, and cannot be mended here: {error}",
        "Read it once where you may write to it and to its folder; or copy it to such a place, "
        "together with the files beside it that begin with its name.",
    )


class SqliteReader(Checkpoint):
    """The reading half of a checkpoint in a database. Abstract."""

    side_files = (*Checkpoint.side_files, "-wal", "-shm", "-journal")

    def __reduce__(self) -> tuple[type[SqliteReader], tuple[str]]:
        return type(self), (self.path,)

    # Reading.

    def completed(self) -> Collection[str]:
        return self._paths("results")

    def failures(self) -> Mapping[str, Failure]:
        return Failures(lambda: self._paths("failures"), self._read_failure)

    def read(self, path: str) -> Any:
        data = value_of(*self._row("value, checksum", "results", path))
        if data is None:
            raise KeyError(path)
        return read_value(data)

    def fingerprint(self, path: str) -> Fingerprint:
        return Fingerprint(*self._row("size, mtime_ns", "results", path))

    def outcome(self, path: str) -> Outcome[Any]:
        with contextlib.suppress(KeyError):
            return outcome_of_failure(self._row("*", "failures", path))
        outcome = outcome_of_result(self._row("*", "results", path))
        if outcome is None:
            raise KeyError(path)
        return outcome

    def entries(self) -> Iterator[Entry]:
        with self._reading() as db:
            if db is not None:
                db.execute("BEGIN")  # both queries see the same moment
                yield from map(entry_of_result, db.execute(RESULT_ENTRIES))
                yield from map(entry_of_failure, db.execute(FAILURES))

    def outcomes(self) -> Iterator[Outcome[Any]]:
        findings: list[str] = []
        with self._reading() as db:
            if db is not None:
                db.execute("BEGIN")
                yield from self._sound(db, findings)
        if findings:
            raise damaged(self.path, findings[0])

    def __contains__(self, path: object) -> bool:
        query = "SELECT 1 FROM results WHERE path = ?"
        return isinstance(path, str) and self._select(query, stored(as_key(path))) != []

    def __len__(self) -> int:
        return sum(count for (count,) in self._select("SELECT count(*) FROM results"))

    def _read_failure(self, path: str) -> Failure:
        return failure_of(self._row("*", "failures", path))

    def _paths(self, table: str) -> Collection[str]:
        rows = self._select(f"SELECT path FROM {table} ORDER BY rowid")
        return dict.fromkeys(text_of(path) for (path,) in rows)

    def _row(self, columns: str, table: str, path: str) -> Any:
        query = f"SELECT {columns} FROM {table} WHERE path = ?"
        rows = self._select(query, stored(path), text=_whatever_it_is)
        if not rows:
            raise KeyError(path)
        return rows[0]

    def _select(self, query: str, *arguments: object, text: Any = str) -> list[Any]:
        # SQLite has locks between threads. One that is held when the saver is forked is held there
        # for ever.
        with pipes.undivided(), self._reading() as db:
            if db is None:
                return []
            db.text_factory = text
            return db.execute(query, arguments).fetchall()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection of its own for one access; `None` if there is nothing to read."""
        try:
            empty = os.path.getsize(self.path) == 0
        except FileNotFoundError:
            empty = True
        if empty:
            yield None
            return
        with self._errors(), contextlib.closing(self._connected()) as db:
            yield db

    def _connected(self) -> sqlite3.Connection:
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
            raise half_done(self.path, error) from error

    def _recognised(self, how: str) -> sqlite3.Connection:
        db = self._connect(how)
        try:
            self._recognise(db)
        except BaseException:
            db.close()
            raise
        return db

    def _connect(self, how: str) -> sqlite3.Connection:
        # Three slashes, whatever comes then: behind two, SQLite expects a machine's name, and knows
        # no other one than its own. (That of a shared folder, on Windows, begins with two more.)
        path = quote(os.fsencode(as_key(self.path)))
        uri = f"file://{path if path.startswith('/') else '/' + path}?{how}"
        return sqlite3.connect(uri, timeout=BUSY_SECONDS, isolation_level=None, uri=True)

    def _recognise(self, db: sqlite3.Connection) -> None:
        """Raise `CheckpointError` if this database is not one of ours."""
        try:
            query = "SELECT * FROM pragma_application_id, pragma_user_version"
            application, version = db.execute(query).fetchone()
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            if self._begins_as_ours():
                raise damaged(self.path, error) from error
            application = version = 0  # it is not even a database
        if application != APPLICATION:
            raise foreign(self.path)
        if version != VERSION:
            raise of_another_version(self.path, version, VERSION)

    def _begins_as_ours(self) -> bool:
        with open(self.path, "rb") as file:
            return file.read(72)[68:] == APPLICATION.to_bytes(4, "big")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as those of the contract."""
        try:
            yield
        except sqlite3.OperationalError as error:  # the disk is full, say, or somebody is writing
            raise OSError(errno.EIO, f"SQLite says: {error}") from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise
            raise damaged(self.path, error) from error

    # Checking.

    def check(self) -> list[str]:
        findings: list[str] = []
        try:
            with self._reading() as db:
                if db is not None:
                    for _ in self._sound(db, findings):
                        pass
                    findings += [text for (text,) in db.execute("PRAGMA integrity_check")]
        except CheckpointError as error:
            findings.append(f"{quoted(self.path)} {error.reason}")
        return [finding for finding in findings if finding != "ok"]

    def _sound(self, db: sqlite3.Connection, findings: list[str]) -> Iterator[Outcome[Any]]:
        """All results and failures; notes which of them are damaged."""
        db.text_factory = _whatever_it_is
        for table, outcome_of in (("results", outcome_of_result), ("failures", outcome_of_failure)):
            for rowid, path in _paths_by_row(db, table, findings):
                try:
                    row = db.execute(f"SELECT * FROM {table} WHERE rowid = ?", (rowid,)).fetchone()
                except sqlite3.DatabaseError:
                    row = None
                outcome = outcome_of(row) if row is not None and row[0] == path else None
                if outcome is None:
                    name = quoted(text_of(path))
                    findings.append(f"what is saved of {name} in {table} is damaged")
                else:
                    yield outcome


def _whatever_it_is(data: bytes) -> str:
    """Text that may be damaged: its checksum tells."""
    return data.decode("utf-8", "backslashreplace")


def _paths_by_row(
    db: sqlite3.Connection, table: str, findings: list[str]
) -> list[tuple[int, str | bytes]]:
    """The rows' numbers and paths: from the index, so that damaged rows have a name, or else from
    the table itself, as far as it can be read."""
    try:
        return sorted(db.execute(f"SELECT rowid, path FROM {table}"))
    except sqlite3.DatabaseError as error:
        findings.append(f"the index of {table} cannot be read: {error}")
    rows = []
    with contextlib.suppress(sqlite3.DatabaseError):
        for row in db.execute(f"SELECT rowid, path FROM {table} NOT INDEXED"):
            rows.append(row)
    return rows
