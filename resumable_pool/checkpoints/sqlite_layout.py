"""The rows of `results.sqlite`: outcomes into them, and back. Knows no connection."""

from __future__ import annotations

from binascii import crc32
from typing import Any

from ..records import Entry, Failure, Fingerprint, Outcome

APPLICATION = int.from_bytes(b"RPL1", "big")
VERSION = 1
SCHEMA = f"""
BEGIN;
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE results (
    path TEXT PRIMARY KEY, value, checksum INTEGER, seconds REAL, attempts INTEGER,
    size INTEGER, mtime_ns INTEGER, finished_at REAL);
CREATE TABLE failures (
    path TEXT PRIMARY KEY, kind TEXT, message TEXT, traceback TEXT, seconds REAL, attempts INTEGER,
    size INTEGER, mtime_ns INTEGER, finished_at REAL);
COMMIT;
"""
SAVE_RESULT = "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
SAVE_FAILURE = "INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"

# A row has at most 1,000,000,000 bytes; what is not the value stays below a megabyte.
LARGEST_VALUE = 999_000_000


def stored(text: str) -> str | bytes:
    """`text` for the database: a blob if it is no Unicode."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def text_of(stored: str | bytes) -> str:
    """The text that was stored."""
    return stored if isinstance(stored, str) else stored.decode("utf-8", "surrogatepass")


# What `Entry` says, in its order, for those that have only a value; and all rows of failures.
RESULT_ENTRIES = """
SELECT path, NULL, seconds, attempts, length(value) FROM results
WHERE path NOT IN (SELECT path FROM failures)"""
FAILURES = "SELECT * FROM failures"


def value_of(value: object, checksum: int) -> bytes | None:
    """The worker's bytes; `None` if they are not what was saved."""
    data = value if isinstance(value, bytes) else str(value).encode("ascii", "replace")
    return data if crc32(data) == checksum else None


def row_of_result(outcome: Outcome[Any]) -> tuple[object, ...]:
    """The row of an outcome with a value, for `SAVE_RESULT`."""
    data = outcome.pickled or b""
    value = data if data.startswith(b"\x80") else data.decode("ascii")  # a pickle, or JSON
    return (stored(outcome.path), value, outcome.checksum, *_facts(outcome))


def row_of_failure(failure: Failure, outcome: Outcome[Any]) -> tuple[object, ...]:
    """The row of an outcome with a failure, for `SAVE_FAILURE`."""
    texts = (failure.path, failure.kind, failure.message, failure.traceback)
    return (*map(stored, texts), *_facts(outcome))


def _facts(outcome: Outcome[Any]) -> tuple[float, ...]:
    return outcome.seconds, outcome.attempts, *outcome.fingerprint, outcome.finished_at


def outcome_of_result(row: Any) -> Outcome[Any] | None:
    """What a row of results was made of; `None` if its value is not what was saved."""
    path, value, checksum, seconds, attempts, size, mtime_ns, finished_at = row
    data, found = value_of(value, checksum), Fingerprint(size, mtime_ns)
    if data is None:
        return None
    return Outcome(text_of(path), data, checksum, None, seconds, attempts, found, finished_at)


def outcome_of_failure(row: Any) -> Outcome[Any]:
    """What a row of failures was made of."""
    failure, (size, mtime_ns, finished_at) = failure_of(row), row[-3:]
    facts = (failure.seconds, failure.attempts, Fingerprint(size, mtime_ns), finished_at)
    return Outcome(failure.path, None, 0, failure, *facts)


def entry_of_result(row: Any) -> Entry:
    """The entry in a row of `RESULT_ENTRIES`."""
    return Entry(text_of(row[0]), *row[1:])


def entry_of_failure(row: Any) -> Entry:
    """The entry in a row of failures."""
    failure, size = failure_of(row), sum(map(len, row[1:4]))
    return Entry(failure.path, failure, failure.seconds, failure.attempts, size)


def failure_of(row: Any) -> Failure:
    """The failure in a row of failures."""
    path, kind, message, traceback, seconds, attempts, *_ = row
    return Failure(text_of(path), kind, text_of(message), text_of(traceback), attempts, seconds)
