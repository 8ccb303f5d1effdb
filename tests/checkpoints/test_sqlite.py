"""results.sqlite: what SQL sees of it, what a kill and a power cut leave, and damage."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, open_checkpoint
from resumable_pool.checkpoints import sqlite as sqlite_module
from resumable_pool.checkpoints.sqlite import SqliteFile
from resumable_pool.records import Outcome, quoted
from resumable_pool.values import UnstorableValue
from tests.conftest import not_on_windows, open_descriptors

from . import conftest
from .conftest import PATIENCE_SECONDS, failed, start_python, write, write_together, writing


def result(path: str, value: Any) -> Outcome:
    return conftest.result(path, value, SqliteFile.encode)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.sqlite"


def select(path: Path, query: str) -> list[Any]:
    """What somebody without this library reads."""
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_sql_finds_everything(path: Path) -> None:
    """JSON values are text that SQLite's own functions take apart; the rest is a pickle; also while
    it is written."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", {"words": 7}), result("b", {"words": 9}), result("c", (1,))])
        checkpoint.save_failures([failed("bad")])
        words = "SELECT path, json_extract(value, '$.words') FROM results"
        assert select(path, f"{words} WHERE typeof(value) = 'text'") == [("a", 7), ("b", 9)]
        (pickled,) = select(path, "SELECT value FROM results WHERE path = 'c'")
        assert isinstance(pickled[0], bytes)
        facts = "seconds, attempts, size, mtime_ns"
        expected = (0.25, 1, *conftest.FINGERPRINT)
        assert select(path, f"SELECT {facts} FROM results WHERE path = 'a'") == [expected]
        (row,) = select(path, "SELECT path, kind, message, traceback FROM failures")
        assert row == ("bad", "error", "ValueError: no", "Traceback: here")


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"a": [1, 2.5, None, True]}, "text"),
        (None, "text"),
        (7, "text"),
        ([[1], (2,)], "blob"),
        ({1: 2}, "blob"),
        (float("nan"), "blob"),
        (type("Text", (str,), {"__reduce__": lambda self: (str, ("x",))})("x"), "blob"),
    ],
)
def test_a_value_is_text_only_if_json_gives_it_back_as_it_was(
    path: Path, value: Any, kind: str
) -> None:
    """Not if it would come back as something else, were it only a list for a tuple."""
    write(path, result("a", value))
    assert select(path, "SELECT typeof(value) FROM results") == [(kind,)]


def test_what_sql_deletes_is_to_do_again(path: Path) -> None:
    """Rows are ours only as long as they are there."""
    write(path, result("a", 1), result("b", 2))
    reader = open_checkpoint(path)
    assert len(reader) == 2
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM results WHERE path = 'a'")
    assert dict(reader) == {"b": 2}
    assert reader.check() == []


def test_what_sql_has_changed_is_not_passed_off_as_the_result(path: Path) -> None:
    """The checksum is of what the worker sent."""
    write(path, result("a", {"x": 1}), result("b", {"x": 1}))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE results SET value = json_set(value, '$.x', 2) WHERE path = 'a'")
        db.execute("UPDATE results SET value = 5 WHERE path = 'b'")
    assert open_checkpoint(path).get("a") is None
    assert open_checkpoint(path).get("b") is None
    assert len(open_checkpoint(path).check()) == 2


@pytest.mark.parametrize("byte", [b"b", b"\xff"])
def test_a_value_with_a_flipped_bit_is_missing(path: Path, byte: bytes) -> None:
    """Whether that leaves text or not; all others are read."""
    write(path, result("a", "aaaaaaaa"), result("b", "x"))
    path.write_bytes(path.read_bytes().replace(b"aaaaaaaa", b"aaaa" + byte + b"aaa"))
    reader = open_checkpoint(path)
    assert (reader.get("a"), reader["b"]) == (None, "x")
    assert len(reader.check()) == 1


def test_a_database_that_was_cut_is_damaged(path: Path) -> None:
    """And not somebody else's. To put a copy in its place is not enough where a log is beside it,
    which SQLite would apply to the copy: the error says so."""
    write_together(path, *(result(f"{number}", "x" * 100) for number in range(1000)))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    malformed = "is damaged: database disk image is malformed"
    with pytest.raises(CheckpointError, match=f"{malformed}.*first remove the -wal or -journal"):
        open_checkpoint(path)


def test_a_schema_of_a_format_that_sqlite_does_not_know_is_damage(path: Path) -> None:
    """The number of its format is in the header."""
    write(path, result("a", 1))
    content = bytearray(path.read_bytes())
    content[47] = 5
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: unsupported file format"):
        open_checkpoint(path)


def test_a_value_that_sqlite_cannot_hold_is_its_files_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the worker, so that the run goes on."""
    monkeypatch.setattr(sqlite_module, "LARGEST_VALUE", 1_000)
    assert SqliteFile.encode(b"x" * 900)
    with pytest.raises(UnstorableValue, match="cannot be stored") as caught:
        SqliteFile.encode(b"x" * 1_000)
    assert "too many for SQLite" in str(caught.value.__cause__)


def test_a_run_writes_in_wal_mode_and_leaves_a_single_file(path: Path) -> None:
    """So that readers and the writer do not wait for each other, and a copy of the one file is a
    copy of everything."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
        assert select(path, "PRAGMA journal_mode") == [("wal",)]
        assert Path(f"{path}-wal").exists()
    assert select(path, "PRAGMA journal_mode") == [("delete",)]
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_that_stays_does_not_disturb_the_writer(path: Path) -> None:
    """Somebody's long transaction keeps nobody from saving, syncing and closing."""
    write(path, result("a", 1))
    with closing(sqlite3.connect(path)) as db:
        with writing(path) as checkpoint:
            db.execute("BEGIN")
            assert db.execute("SELECT path FROM results").fetchall() == [("a",)]
            checkpoint.save([result("b", 2)])
            checkpoint.sync()
        assert db.execute("SELECT path FROM results").fetchall() == [("a",)]
        assert dict(open_checkpoint(path)) == {"a": 1, "b": 2}
    write(path, result("c", 3))
    assert dict(open_checkpoint(path)) == {"a": 1, "b": 2, "c": 3}


def test_the_log_is_removed_when_a_reader_has_gone(path: Path) -> None:
    """One whose read ends moments after the run does: a hook's, say, or that of `show`."""
    checkpoint = SqliteFile(path)
    checkpoint.open()
    checkpoint.save([result("a", 1)])
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT path FROM results").fetchall() == [("a",)]
    tries = []

    def watch(statement: str) -> None:
        if "journal_mode=memory" in statement:
            tries.append(statement)
            if len(tries) == 2:
                reader.close()

    assert checkpoint._db is not None
    checkpoint._db.set_trace_callback(watch)
    checkpoint.close()
    assert len(tries) == 2
    assert os.listdir(path.parent) == [path.name]
    assert select(path, "PRAGMA journal_mode") == [("delete",)]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks of a descriptor")
def test_a_copy_that_the_writers_process_makes_costs_no_result(path: Path) -> None:
    """By that, a hook's backup, say, the process drops all of SQLite's locks, and the next reader
    who leaves takes himself for the last one, and would remove the log."""
    read = "import sqlite3, sys; print(len([*sqlite3.connect(sys.argv[1]).execute(sys.argv[2])]))"
    query = "SELECT path FROM results"
    with writing(path) as checkpoint:
        for number in range(1, 4):
            checkpoint.save([result(f"{number}", number)])
            shutil.copyfile(path, path.with_suffix(".backup"))
            assert start_python(read, path, query).communicate()[0] == f"{number}\n"
        assert Path(f"{path}-wal").exists()
    assert list(open_checkpoint(path)) == ["1", "2", "3"]
    path.with_suffix(".backup").unlink()
    assert os.listdir(path.parent) == [path.name]


def test_compacting_waits_for_no_reader_who_needs_the_log(path: Path) -> None:
    """While the log cannot be taken into the file, there is no replacing it: nothing is changed."""
    write(path, result("a", 1), result("a", 2))
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("BEGIN")
        db.execute("SELECT path FROM results").fetchall()
        with pytest.raises(OSError, match="another program is reading the database"):
            SqliteFile(path).compact()
    assert not Path(f"{path}.bak").exists()
    assert dict(open_checkpoint(path)) == {"a": 2}


def test_compacting_again_keeps_tables_of_somebodys_own(path: Path) -> None:
    """They are in the first old file, and the second one does not replace that."""
    write(path, result("a", 1))
    select(path, "CREATE TABLE notes (text)")
    for name in (".bak", ".bak-2"):
        assert f"{path}{name}" in SqliteFile(path).compact()[-1]
    assert select(Path(f"{path}.bak"), "SELECT * FROM notes") == []


def test_without_wal_mode_it_works_as_well(path: Path) -> None:
    """Where somebody is reading as the run begins, or the file system has no shared memory."""
    write(path, result("a", 1))
    checkpoint = SqliteFile(path)
    with closing(sqlite3.connect(path)) as db:
        db.execute("BEGIN")
        db.execute("SELECT path FROM results").fetchall()
        checkpoint.open()
        db.execute("COMMIT")
    assert select(path, "PRAGMA journal_mode") == [("delete",)]
    checkpoint.save([result("b", 2)])
    assert dict(open_checkpoint(path)) == {"a": 1, "b": 2}
    checkpoint.sync()
    checkpoint.close()
    assert dict(open_checkpoint(path)) == {"a": 1, "b": 2}


KILLED = """
import os, sys
from binascii import crc32
from resumable_pool.checkpoints.sqlite import SqliteFile
from resumable_pool.records import Outcome

def outcomes():
    for number in range(3000):
        data = SqliteFile.encode("x" * 1000)
        yield Outcome(f"torn {number}", data, crc32(data), None, 0.1)
    os.kill(os.getpid(), 9)

checkpoint = SqliteFile(sys.argv[1])
checkpoint.open()
checkpoint.save(outcomes())
"""


def test_a_kill_in_a_transaction_leaves_what_was_before(path: Path) -> None:
    """A batch is saved as a whole, or not at all; what it has written is in nobody's way."""
    write(path, result("a", 1))
    with start_python(KILLED, path) as process:
        process.wait(PATIENCE_SECONDS)
    assert Path(f"{path}-wal").stat().st_size > 1_000_000
    assert dict(open_checkpoint(path)) == {"a": 1}
    assert open_checkpoint(path).check() == []
    write(path, result("b", 2))
    assert dict(open_checkpoint(path)) == {"a": 1, "b": 2}
    assert list(path.parent.iterdir()) == [path]


def test_sync_forces_everything_to_the_disk(path: Path) -> None:
    """Nothing is forced when a batch is saved; sync forces the log of all batches since, once."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    code = f"""
import os, sys
sys.path.insert(0, {os.getcwd()!r})
from binascii import crc32
from resumable_pool.checkpoints.sqlite import SqliteFile
from resumable_pool.records import Outcome

data = SqliteFile.encode(1)
checkpoint = SqliteFile({str(path)!r})
checkpoint.open()
checkpoint.save([Outcome("first", data, crc32(data), None, 0.1)])
for number in range(3):
    os.write(1, b"save")
    checkpoint.save([Outcome(f"{{number}}", data, crc32(data), None, 0.1)])
os.write(1, b"sync")
checkpoint.sync()
os.write(1, b"nothing")
checkpoint.sync()
os.write(1, b"over")
"""
    trace = path.with_name("trace")
    command = ["strace", "-y", "-o", str(trace), "-e", "trace=write,fsync,fdatasync"]
    with start_python(
        f"import os, sys; os.execvp('strace', {command!r} + [sys.executable, '-c', {code!r}])"
    ) as process:
        process.communicate(timeout=PATIENCE_SECONDS)
    calls = trace.read_text()
    saving, _, syncing = calls[calls.index('"save"') :].partition('"sync"')
    syncing, _, nothing = syncing.partition('"nothing"')
    assert "sync(" not in saving
    assert "results.sqlite-wal>)" in syncing
    assert "sync(" not in nothing.partition('"over"')[0]


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows")
def test_a_database_may_be_called_by_a_name_that_begins_with_two_backslashes(path: Path) -> None:
    """As those of shared folders do, and those that are taken letter by letter."""
    write(Path(f"\\\\?\\{path}"), result("a", 1))
    assert dict(open_checkpoint(path)) == dict(open_checkpoint(f"\\\\?\\{path}")) == {"a": 1}


# A journal that somebody who was killed has left: without it nobody can read what is in the file.

LEAVES_A_JOURNAL = """
import os, sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("PRAGMA cache_size=1")  # so that the file is changed before the end
db.execute("BEGIN")
db.execute("CREATE TABLE IF NOT EXISTS results (path, value)")
db.execute("UPDATE results SET value = 'wrong' || value")
db.execute("INSERT INTO results (path, value) SELECT 'new ' || path, value FROM results")
os.kill(os.getpid(), 9)
"""

VALUES = {f"{number}": "x" * 500 for number in range(300)}


def leave_a_journal(path: Path) -> None:
    before = path.read_bytes()
    with start_python(LEAVES_A_JOURNAL, path) as process:
        process.wait(PATIENCE_SECONDS)
    assert Path(f"{path}-journal").stat().st_size
    assert path.read_bytes() != before


@functools.cache
def _with_journal() -> tuple[bytes, bytes]:
    """Both files, which need be made only once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.sqlite")
        write_together(path, *(result(key, value) for key, value in VALUES.items()))
        leave_a_journal(path)
        return path.read_bytes(), Path(f"{path}-journal").read_bytes()


@pytest.fixture
def with_journal(path: Path) -> Path:
    """A database of ours that has to be put in order before it can be read."""
    for file, content in zip((path, Path(f"{path}-journal")), _with_journal(), strict=True):
        file.write_bytes(content)
    return path


def _run(path: Path) -> None:
    write(path)


@pytest.mark.parametrize(
    "first",
    [
        _run,
        lambda path: dict(open_checkpoint(path)),
        lambda path: list(SqliteFile(path).entries()),
        lambda path: SqliteFile(path).check(),
        lambda path: SqliteFile(path).settle(),
        lambda path: SqliteFile(path).compact(),
    ],
    ids=["run", "read", "show", "check", "settle", "compact"],
)
def test_whoever_comes_first_puts_in_order_what_a_killed_writer_left(
    with_journal: Path, first: Callable[[Path], Any]
) -> None:
    """Everything that was saved is there, for everybody, from then on."""
    first(with_journal)
    assert not Path(f"{with_journal}-journal").exists()
    assert len(select(with_journal, "SELECT path FROM results")) == len(VALUES)
    assert dict(open_checkpoint(with_journal)) == VALUES
    assert SqliteFile(with_journal).check() == []


def test_readers_that_come_at_once_put_it_in_order_together(with_journal: Path) -> None:
    """None of them is refused because of the others."""
    code = f"""
import sys
from resumable_pool import open_checkpoint
sys.stdin.readline()
print(len(open_checkpoint({str(with_journal)!r})))
"""
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(start_python(code)) for _ in range(6)]
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("\n")
            reader.stdin.flush()
        said = [reader.communicate(timeout=PATIENCE_SECONDS)[0] for reader in readers]
    assert said == [f"{len(VALUES)}\n"] * 6


def test_the_journal_of_a_foreign_database_is_not_touched(path: Path) -> None:
    """It is somebody else's to put in order."""
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE results (path, value)")
        db.executemany("INSERT INTO results VALUES (?, ?)", VALUES.items())
    leave_a_journal(path)
    before = [(file, file.read_bytes()) for file in sorted(path.parent.iterdir())]
    checkpoint = SqliteFile(path)
    for attempt in (checkpoint.open, checkpoint.compact, checkpoint.completed, checkpoint.settle):
        with pytest.raises(CheckpointError, match="not a checkpoint of this library"):
            attempt()
    assert "not a checkpoint of this library" in checkpoint.check()[0]
    assert [(file, file.read_bytes()) for file in sorted(path.parent.iterdir())] == before


MAY_NOT_WRITE = """
import os, sys
from resumable_pool.checkpoints import checkpoint_at
checkpoint = checkpoint_at(sys.argv[1])  # while the library can still be read
import urllib.parse
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for attempt in (checkpoint.completed, checkpoint.compact):
    try:
        attempt()
    except Exception as error:
        print(type(error).__name__, error)
print(checkpoint.check())
"""


@pytest.fixture
def open_to_others() -> Iterator[Path]:
    """A database in a folder of its own, which others may enter: pytest's are closed to them."""
    folder = Path(tempfile.mkdtemp(prefix="resumable_pool-"))
    path = folder / "results.sqlite"
    write_together(path, *(result(key, value) for key, value in VALUES.items()))
    yield path
    folder.chmod(0o755)
    shutil.rmtree(folder)


def who_may_not_write(path: Path) -> list[str]:
    """What he is told, a line for each attempt."""
    path.chmod(0o444)
    path.parent.chmod(0o555)
    with start_python(MAY_NOT_WRITE, path) as process:
        return process.communicate(timeout=PATIENCE_SECONDS)[0].splitlines()


@not_on_windows("modes")
def test_who_may_not_write_reads_what_was_left_in_wal_mode(open_to_others: Path) -> None:
    """As when somebody has looked at it while a run ended: it is whole, and has no log."""
    with closing(sqlite3.connect(open_to_others)) as db:
        db.execute("PRAGMA journal_mode=wal")
    compacted, checked = who_may_not_write(open_to_others)
    assert compacted.startswith("PermissionError ")
    assert checked == "[]"


@not_on_windows("modes")
def test_who_may_not_write_is_told_what_to_do_about_a_journal(open_to_others: Path) -> None:
    """Reading would need writing, once."""
    leave_a_journal(open_to_others)
    read, compacted, checked = who_may_not_write(open_to_others)
    assert read.startswith("CheckpointError ")
    for said in (read, checked):
        assert "was left half written by a killed writer" in said
    assert "copy it to such a place" in read
    assert "Error" in compacted
    open_to_others.parent.chmod(0o755)
    open_to_others.chmod(0o644)
    assert dict(open_checkpoint(open_to_others)) == VALUES


@pytest.mark.parametrize("end", ["-journal", "-wal"])
def test_what_belongs_to_a_database_that_is_gone_is_kept_out_of_a_new_one(
    path: Path, end: str
) -> None:
    """Somebody has removed the file alone, and begins anew."""
    write_together(path, *(result(key, value) for key, value in VALUES.items()))
    if end == "-journal":
        leave_a_journal(path)
    else:
        with start_python(KILLED, path) as process:
            process.wait(PATIENCE_SECONDS)
    path.unlink()
    left = Path(f"{path}{end}").read_bytes()
    checkpoint = SqliteFile(path)
    (note,) = checkpoint.open()
    checkpoint.close()
    (kept,) = path.parent.glob("*.new-*")
    assert quoted(str(kept)) in note
    assert kept.read_bytes() == left
    assert checkpoint.owns(str(kept))
    assert dict(open_checkpoint(path)) == {}
    assert checkpoint.check() == []


def test_a_database_with_two_names_is_told_of(path: Path) -> None:
    """Its lock is beside one of them, and so is SQLite's log: under the other one it is free."""
    write(path, result("a", 1))
    os.link(path, path.with_name("other.sqlite"))
    checkpoint = SqliteFile(path)
    (note,) = checkpoint.open()
    checkpoint.close()
    assert "has several names (hard links)" in note


def test_nothing_is_left_of_a_run_that_was_only_read(path: Path) -> None:
    """The reader has made the log, and the writer, which has saved nothing, removes it."""
    write(path, result("a", 1))
    checkpoint = SqliteFile(path)
    checkpoint.open()
    assert len(open_checkpoint(path)) == 1
    checkpoint.close()
    assert os.listdir(path.parent) == [path.name]


def test_who_is_interrupted_as_he_closes_it_gives_up_the_lock(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a Ctrl-C in a notebook, say, where the next cell would be refused."""

    def interrupted(*_: Any) -> bool:
        raise KeyboardInterrupt

    checkpoint = SqliteFile(str(path))
    checkpoint.open()
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_module, "_set_mode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.close()
    other = SqliteFile(str(path))
    other.open()
    other.close()


def test_changing_the_mode_leaves_nothing_to_undo(path: Path) -> None:
    """A run's start and end change the database's mode; neither makes a journal, so that there is
    no moment in which a kill could leave one."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    write(path, result("a", 1))
    trace = path.with_name("trace")
    code = f"""
import sys
sys.path.insert(0, {os.getcwd()!r})
from resumable_pool.checkpoints.sqlite import SqliteFile
checkpoint = SqliteFile({str(path)!r})
checkpoint.open()
checkpoint.save([])
checkpoint.close()
"""
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=openat", sys.executable, "-c", code]
    subprocess.run(command, check=True)
    opened = trace.read_text()
    assert f"{path}-wal" in opened
    assert f'{path}-journal", O_RDWR|O_CREAT' not in opened
    assert select(path, "PRAGMA journal_mode") == [("delete",)]


# Damage.


def _zero_page_with(path: Path, text: bytes) -> None:
    content = path.read_bytes()
    start = content.index(text) // 4096 * 4096
    path.write_bytes(content[:start] + bytes(4096) + content[start + 4096 :])


def test_a_damaged_page_costs_what_is_on_it(path: Path) -> None:
    """check() names what is lost, and compact() saves the rest."""
    values = {f"file {number:03}": f"value {number:03} " * 50 for number in range(100)}
    write_together(path, *(result(key, value) for key, value in values.items()), failed("bad"))
    _zero_page_with(path, b"value 050")
    damaged = path.read_bytes()
    findings = SqliteFile(path).check()
    lost = [key for key in values if any(repr(key) in finding for finding in findings)]
    assert "file 050" in lost
    assert len(lost) < 10
    notes = SqliteFile(path).compact()
    assert set(notes[: len(lost)]) <= set(findings)
    reader = open_checkpoint(path)
    assert dict(reader) == {key: value for key, value in values.items() if key not in lost}
    assert list(reader.failures()) == ["bad"]
    assert reader.check() == []
    assert Path(f"{path}.bak").read_bytes() == damaged


def test_a_damaged_index_costs_nothing(path: Path) -> None:
    """The rows are found without it."""
    values = {f"file {number:03}": "x" * 500 for number in range(100)}
    write_together(path, *(result(key, value) for key, value in values.items()))
    (page,) = select(
        path, "SELECT rootpage FROM sqlite_schema WHERE name LIKE '%autoindex_results%'"
    )
    content = path.read_bytes()
    start = (page[0] - 1) * 4096
    path.write_bytes(content[:start] + b"\xff" * 4096 + content[start + 4096 :])
    assert any("index of results cannot be read" in text for text in SqliteFile(path).check())
    SqliteFile(path).compact()
    assert dict(open_checkpoint(path)) == values


def test_damage_that_a_run_meets_is_an_error(path: Path) -> None:
    """Not a guess, and not an exception of SQLite's."""
    write_together(path, *(result(f"{number}", "x" * 500) for number in range(100)))
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    with pytest.raises(CheckpointError, match="is damaged: database disk image is malformed"):
        dict(SqliteFile(path))


VALUES_WITH_FACTS = {f"in/{number:03}": {"number": number, "x": "x" * 900} for number in range(40)}


def _sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with closing(sqlite3.connect(path)) as db:
            db.executescript(f"PRAGMA writable_schema=ON; {statement}")

    return change


def _bytes(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def change_file(path: Path) -> None:
        content = bytearray(path.read_bytes())
        change(content)
        path.write_bytes(content)

    return change_file


def _fill(page: int, byte: int) -> Callable[[Path], None]:
    def fill(content: bytearray) -> None:
        content[page * 4096 : (page + 1) * 4096] = bytes([byte]) * 4096

    return _bytes(fill)


SCHEMA = "UPDATE sqlite_schema SET"
THE_TABLE = "WHERE name = 'results'"

# How much of the results may be lost, at most, to compact().
DAMAGES: dict[str, tuple[Callable[[Path], None], int]] = {
    "a first page of zeros": (_fill(0, 0), 0),
    "a first page of ones": (_fill(0, 255), 0),
    "names that are no text": (
        _bytes(lambda content: content.__setitem__(content.index(b"results"), 0xA4)),
        0,
    ),
    "a root page of zeros": (_fill(1, 0), 40),
    "an index of zeros": (_fill(2, 0), 0),
    "a page of zeros": (_fill(7, 0), 4),
    "a page of ones": (_fill(7, 255), 4),
    "a page short": (_bytes(lambda content: content.__delitem__(slice(-4096, None))), 4),
    "half a page short": (_bytes(lambda content: content.__delitem__(slice(-2048, None))), 4),
    "three pages left": (_bytes(lambda content: content.__delitem__(slice(3 * 4096, None))), 40),
    "a wrong length": (_bytes(lambda content: content.__setitem__(28, 77)), 0),
    "a wrong page size": (_bytes(lambda content: content.__setitem__(17, 1)), 0),
    "no name in front": (_bytes(lambda content: content.__setitem__(slice(0, 16), bytes(16))), 0),
    "no schema": (_bytes(lambda content: content.__setitem__(slice(100, 4096), bytes(3996))), 0),
    "a schema of garbage": (_sql(f"{SCHEMA} sql = 'garbage' {THE_TABLE}"), 0),
    "NULL for a schema": (_sql(f"{SCHEMA} sql = NULL {THE_TABLE}"), 0),
    "a table that begins nowhere": (_sql(f"{SCHEMA} rootpage = 9999 {THE_TABLE}"), 0),
    "no tables": (_sql("DELETE FROM sqlite_schema"), 0),
    "a table of another name": (_sql("ALTER TABLE results RENAME TO mine"), 0),
    "a column of another name": (_sql("ALTER TABLE results RENAME checksum TO mine"), 0),
    "a table less": (_sql("DROP TABLE failures"), 0),
}
IN_COLUMNS: dict[str, tuple[Callable[[Path], None], int]] = {}
for column in ("path", "seconds", "attempts", "size", "finished_at"):
    for value in ("NULL", "x'ff'", "CAST(x'ff41' AS TEXT)"):
        change = _sql(f"UPDATE results SET {column} = {value} WHERE rowid = 5")
        IN_COLUMNS[f"{value} for {column}"] = change, column == "path"
for column in ("path", "kind", "message", "traceback", "seconds"):
    for value in ("NULL", "x'ff'", "CAST(x'ff41' AS TEXT)"):
        change = _sql(f"UPDATE failures SET {column} = {value}")
        IN_COLUMNS[f"{value} for {column} of a failure"] = change, 0


@functools.cache
def _with_facts() -> bytes:
    """A closed database is one file, and so it need be made only once."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "result.sqlite")
        with writing(path) as checkpoint:
            for key, value in VALUES_WITH_FACTS.items():
                checkpoint.save([result(key, value)])
            checkpoint.save_failures([failed("bad")])
        return path.read_bytes()


def write_with_facts(path: Path) -> None:
    path.write_bytes(_with_facts())


@pytest.mark.parametrize("read", [SqliteFile.completed, lambda file: [*file.entries()]])
def test_who_refuses_a_damaged_path_lets_go_of_the_file(
    path: Path, read: Callable[[SqliteFile], object]
) -> None:
    """While somebody still has the error, and with it all that was going on: on Windows the file
    could not be rewritten."""
    write_with_facts(path)
    IN_COLUMNS["x'ff' for path"][0](path)
    before = open_descriptors()
    with pytest.raises(CheckpointError) as caught:
        read(SqliteFile(path))
    assert open_descriptors() == before
    SqliteFile(path).compact()
    assert "damaged" in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        *(pytest.param(*damage, id=name) for name, damage in DAMAGES.items()),
        *(
            pytest.param(*damage, id=name, marks=pytest.mark.alike)
            for name, damage in IN_COLUMNS.items()
        ),
    ],
)
def test_damage_is_told_as_damage_and_compact_saves_the_rest(
    path: Path, damage: Callable[[Path], None], lost: int
) -> None:
    """Whoever reads gets right values or a `CheckpointError`, check() has findings, and compact()
    leaves a sound checkpoint, with all values that are still in the file."""
    write_with_facts(path)
    damage(path)
    before = path.read_bytes()
    checkpoint = SqliteFile(path)
    for read in (
        lambda: [checkpoint.fingerprint(key) for key in checkpoint.completed()],
        lambda: list(checkpoint.entries()),
        lambda: dict(checkpoint.failures()),
        lambda: [checkpoint.outcome(key) for key in checkpoint],
    ):
        with contextlib.suppress(CheckpointError):
            assert read() is not None
    for key, value in VALUES_WITH_FACTS.items():
        with contextlib.suppress(CheckpointError):
            assert checkpoint.get(key) in (value, None)
    assert checkpoint.check() != []
    assert path.read_bytes() == before
    notes = checkpoint.compact()
    assert checkpoint.check() == []
    kept = dict(checkpoint)
    assert kept.items() <= VALUES_WITH_FACTS.items()
    assert len(kept) >= len(VALUES_WITH_FACTS) - lost, notes
    assert Path(f"{path}.bak").read_bytes() == before


@pytest.mark.parametrize("what", ["results", "failures"])
def test_a_table_less_stops_a_run(path: Path, what: str) -> None:
    """As damage: nothing is made anew in its place."""
    write_with_facts(path)
    _sql(f"ALTER TABLE {what} RENAME TO mine")(path)
    checkpoint = SqliteFile(path)
    with pytest.raises(CheckpointError, match=f"is damaged: no such table: {what}"):
        list(checkpoint.entries())
    checkpoint.open()
    save, saved = {
        "results": (checkpoint.save, result("new", 1)),
        "failures": (checkpoint.save_failures, failed("new")),
    }[what]
    with pytest.raises(CheckpointError, match="is damaged: no such table"):
        save([saved])
    checkpoint.close()


def test_an_index_that_leads_to_another_file_is_damage(path: Path) -> None:
    """One bit of it, and a file would have its neighbour's result."""
    write(path, *(result(f"in/{number}", number) for number in range(8)))
    content = path.read_bytes()
    before, index = content[: 2 * 4096], bytearray(content[2 * 4096 : 3 * 4096])
    four, five = (index.index(name) + len(name) for name in (b"in/4", b"in/5"))
    index[four], index[five] = index[five], index[four]  # the numbers of their rows
    path.write_bytes(before + index + content[3 * 4096 :])
    checkpoint = SqliteFile(path)
    for key in ("in/4", "in/5"):
        with pytest.raises(CheckpointError, match="is for another file"):
            checkpoint[key]
    assert checkpoint["in/3"] == 3
    assert any("'in/4'" in finding for finding in checkpoint.check())


def test_what_somebody_adds_to_the_tables_is_in_nobodys_way(path: Path) -> None:
    """A column, an index, a table: ours are written and read as before."""
    write(path, result("a", 1), failed("bad"))
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            "ALTER TABLE results ADD COLUMN mine DEFAULT 5; CREATE TABLE mine (a);"
            "ALTER TABLE failures ADD COLUMN mine; CREATE INDEX sizes ON results (size)"
        )
    write(path, result("b", 2), failed("sad"))
    checkpoint = SqliteFile(path)
    assert dict(checkpoint) == {"a": 1, "b": 2}
    assert sorted(checkpoint.failures()) == ["bad", "sad"]
    assert checkpoint.check() == []
    assert checkpoint.outcome("b") == result("b", 2)


def test_very_many_values_are_read_through_one_connection(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export of a million would open a million."""
    write(path, *(result(f"{number}", number) for number in range(50)))
    opened: list[Any] = []
    connect = sqlite3.connect

    def counted(*arguments: Any, **options: Any) -> Any:
        opened.append(arguments)
        return connect(*arguments, **options)

    monkeypatch.setattr(sqlite3, "connect", counted)
    checkpoint = open_checkpoint(path)
    keys = list(checkpoint)
    opened.clear()
    with checkpoint.reading() as read:
        assert [read(key) for key in keys] == [*range(50)]
        with pytest.raises(KeyError, match="unknown"):
            read("unknown")
    assert len(opened) == 1


def test_who_takes_his_time_between_two_values_is_in_no_runs_way(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that began then waited for him, and ended with an error after a minute. If he was a
    thread of the script's own, so it did though he had finished: the saver, a forked process, had
    SQLite's note of his lock, which nobody could take back there."""
    monkeypatch.setattr(sqlite_module, "_BUSY_SECONDS", 0.2)
    write(path, result("a", 1), result("b", 2), failed("bad"))
    entries = SqliteFile(path).entries()
    assert next(entries).path == "a"
    with SqliteFile(path).reading() as read:
        assert read("a") == 1
        with writing(path) as checkpoint:
            checkpoint.save([result("b", 3)])
            assert select(path, "PRAGMA journal_mode") == [("wal",)]
            assert read("b") == 3
    assert [entry.path for entry in entries] == ["b", "bad"]
    assert dict(SqliteFile(path)) == {"a": 1, "b": 3}


def test_where_no_memory_is_shared_it_is_saved_without_a_log(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on 9p, and on many file systems of FUSE. SQLite enters WAL mode there, and then can
    neither go on nor go back."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(sqlite_module.mmap, "mmap", refuse)
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
        checkpoint.sync()
        assert select(path, "PRAGMA journal_mode") == [("delete",)]
    assert dict(SqliteFile(path)) == {"a": 1}


@not_on_windows("limits of a process")
def test_a_reader_writes_nothing_anywhere(path: Path) -> None:
    """SQLite sorts many paths in a file of its own in /var/tmp, whose disk may be full."""
    with writing(path) as checkpoint:
        checkpoint.save([result(f"in/{number:0100}", 1) for number in range(50_000)])
    code = """
import resource, sys
from resumable_pool import open_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
print(len(open_checkpoint(sys.argv[1]).completed()))
"""
    said, _ = start_python(code, path).communicate(timeout=PATIENCE_SECONDS)
    assert said == "50000\n"


def test_check_finds_nothing_in_what_is_being_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Results that are replaced meanwhile are no damage: all that it sees is of one moment."""
    look = sqlite_module.sound_outcomes
    with writing(path) as checkpoint:
        checkpoint.save([result(f"{number}", number) for number in range(300)])

        def look_while_all_is_written_anew(db: Any, findings: list[str]) -> Iterator[Outcome]:
            for number, outcome in enumerate(look(db, findings)):
                if number == 0:
                    checkpoint.save([result(f"{each}", "new") for each in range(300)])
                yield outcome

        monkeypatch.setattr(sqlite_module, "sound_outcomes", look_while_all_is_written_anew)
        assert SqliteFile(path).check() == []
        assert checkpoint["0"] == "new"
