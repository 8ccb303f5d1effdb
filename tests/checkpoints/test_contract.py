"""What every checkpoint format does for its writer, its readers and a person who looks after it."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, CheckpointLocked, ResumableRunner, open_checkpoint
from resumable_pool.checkpoints import PickleFile, checkpoint_at, disk
from resumable_pool.checkpoints.base import Checkpoint
from resumable_pool.checkpoints.json_lines import JsonLines
from resumable_pool.checkpoints.sqlite import SqliteFile
from resumable_pool.records import Outcome, quoted
from resumable_pool.run.plan import make_plan
from resumable_pool.values import UnstorableValue
from tests.conftest import not_on_windows, open_descriptors

from . import conftest
from .conftest import (
    FINGERPRINT,
    PATIENCE_SECONDS,
    SUFFIXES,
    failed,
    start_python,
    write,
    write_together,
    writing,
)

Result = Callable[[str, Any], Outcome]


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of each format."""
    return tmp_path / f"result{request.param}"


@pytest.fixture
def result(path: Path) -> Result:
    """Makes an outcome as a worker would for this checkpoint."""
    return functools.partial(conftest.result, encode=checkpoint_at(path).encode)


@pytest.fixture(autouse=True)
def nothing_open() -> Iterator[None]:
    """After each test there are as many descriptors as before it."""
    before = open_descriptors()
    yield
    assert open_descriptors() == before


JSON_VALUES = {
    "none": None,
    "false": False,
    "zero": 0,
    "empty text": "",
    "big integer": -(10**400),
    "float": 1e-300,
    "whole float": 2.0,
    "text": "grüße \N{OWL} \n\r\0\t\x7f\u2028",
    "lone surrogates": "\ud800 \udcff",
    "what looks like a line": '{"path": "b", "value": 1, "seconds": 0.5, "attempts": 1, "size": 1',
    "whole characters and halves": [
        "\U0001f600",
        "\ud83d",
        "\ude00",
        "\ude00\ud83d",
        "\ud83d \ude00",
    ],
    "containers": {"list": [1, [2, {"four": []}]], "": {}, "null": None},
    "100 kB": [{"number": number, "text": "x" * 80} for number in range(1000)],
}

OTHER_VALUES = {
    "bytes": b"\x80\x03.\n",
    "infinity": float("inf"),
    "set": {1, 2},
    "complex": 1 - 2j,
    "two halves of a character": "\ud83d\ude00",
    "the same in keys": {"\ud83d\ude00": 1, "\U0001f600": [2, {"\U0001f600": "\udbff\udfff"}]},
    "a key that is no text": {1: 2},
    "a tuple key": {(1, 2): 3},
    "deep inside": [{"a": [0, {"b": frozenset()}]}],
    "an exception": [Path("x")],
}

# Keys are whatever a path can be, and some things that it can hardly be.
PATHS = [
    "a",
    "a/b c.txt",
    "line\nbreak",
    "nul\0",
    "\N{OWL}",
    "not-utf-8-\udcff\udc80",
    "lone-\ud800",
    "",
    " ",
    ".",
    "x" * 255,
    "long/" * 20_000,
    "'quoted\"" if sys.platform == "win32" else "'quoted\"\\",
    "%41?#&",
]


@pytest.mark.parametrize("value", JSON_VALUES.values(), ids=JSON_VALUES.keys())
def test_values_are_read_back_equal(path: Path, result: Result, value: Any) -> None:
    """What is JSON comes back equal, and of the same type, from every format."""
    write(path, result("before", 1), result("it", value), result("after", [2]))
    checkpoint = open_checkpoint(path)
    assert dict(checkpoint) == {"before": 1, "it": value, "after": [2]}
    assert type(checkpoint["it"]) is type(value)
    assert checkpoint.check() == []


@pytest.mark.parametrize("value", OTHER_VALUES.values(), ids=OTHER_VALUES.keys())
def test_other_values_come_back_equal_or_are_refused_in_the_worker(
    path: Path, result: Result, value: Any
) -> None:
    """What is not JSON is stored as a pickle, or is its file's failure: never another value."""
    if path.suffix == ".jsonl":
        with pytest.raises(UnstorableValue, match=r"^the result is not JSON$"):
            result("it", value)
    else:
        write(path, result("before", 1), result("it", value), result("after", [2]))
        assert dict(open_checkpoint(path)) == {"before": 1, "it": value, "after": [2]}


@pytest.mark.parametrize("key", PATHS, ids=range(len(PATHS)))
def test_paths_are_kept_as_they_are(path: Path, result: Result, key: str) -> None:
    """A path is the same key afterwards, whatever is in it, for a value and for a failure."""
    write(path, result(key, "value"), failed("not " + key))
    checkpoint = open_checkpoint(path)
    assert dict(checkpoint) == {key: "value"}
    assert key in checkpoint
    assert list(checkpoint.failures()) == ["not " + key]
    assert checkpoint.failures()["not " + key].path == "not " + key
    checkpoint.compact()
    assert (dict(checkpoint), list(checkpoint.failures())) == ({key: "value"}, ["not " + key])


def test_what_is_saved_is_there_for_readers_at_once(path: Path, result: Result) -> None:
    """Before any sync, for one that was made before and for a new one."""
    reader = checkpoint_at(path)
    assert dict(reader) == {}
    with writing(path) as checkpoint:
        for number in range(3):
            checkpoint.save([result(f"{number}", number), result(f"{number}+", None)])
            for one in (reader, checkpoint, checkpoint_at(path)):
                assert one[f"{number}"] == number
                assert len(one) == 2 * number + 2
        checkpoint.save_failures([failed("bad")])
        assert list(reader.failures()) == ["bad"]


def record_of(checkpoint: Checkpoint, outcome: Outcome) -> bytes:
    """What a worker makes of it."""
    return b"".join(checkpoint.encoder().record(outcome))


def test_records_that_workers_make_are_saved_as_outcomes_are(
    path: Path, result: Result, tmp_path: Path
) -> None:
    """What a worker makes of an outcome, and the saver appends, is what saving the outcome itself
    gives; and for who saves elsewhere the outcome comes out of it again."""
    outcomes = [result(key, {"key": key}) for key in PATHS] + [result("large", "x" * 100_000)]
    with writing(path) as checkpoint, writing(tmp_path / f"other{path.suffix}") as other:
        records = [record_of(checkpoint, outcome) for outcome in outcomes]
        assert [checkpoint.outcome_in(bytearray(record)) for record in records] == outcomes
        checkpoint.append([*records[:-1], bytearray(records[-1])])
        other.save(outcomes)
        assert {key: checkpoint.outcome(key) for key in checkpoint} == {
            outcome.path: outcome for outcome in outcomes
        }
        assert sorted(checkpoint.entries()) == sorted(other.entries())
        checkpoint.append([])
    assert checkpoint_at(path).check() == []


def test_a_worker_is_sent_what_makes_records_of_this_very_file(path: Path, result: Result) -> None:
    """It is pickled, and the records that its copy makes are sound there."""
    with writing(path) as checkpoint:
        encoder = pickle.loads(pickle.dumps(checkpoint.encoder()))
        outcome = conftest.result("a", "value", encoder.encode)
        checkpoint.append([b"".join(encoder.record(outcome))])
    assert dict(checkpoint_at(path)) == {"a": "value"}
    assert checkpoint_at(path).check() == []


def test_saving_nothing_changes_nothing(path: Path, result: Result) -> None:
    """An empty batch, and a sync without anything new, are nothing special."""
    with writing(path) as checkpoint:
        for _ in range(2):
            checkpoint.save([])
            checkpoint.save_failures([])
            checkpoint.sync()
        assert dict(checkpoint) == {}
        checkpoint.save([result("a", 1)])
        checkpoint.save([])
    assert dict(checkpoint_at(path)) == {"a": 1}


class TouchesAtUnpickling:
    """Unpickling one makes a file, so that nobody can do it unnoticed."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


def test_only_reading_a_value_unpickles_it(tmp_path: Path) -> None:
    """Opening, listing, checking, compacting and asking for what is beside it run none of its code.
    (JSON has none to run.)"""
    witness = tmp_path / "witness"
    for path in (tmp_path / "result.pkl", tmp_path / "result.sqlite"):
        pickled = pickle.dumps(TouchesAtUnpickling(witness), 3)
        write(path, conftest.pickled_result("toucher", pickled))
        reader = open_checkpoint(path)
        assert list(reader) == ["toucher"]
        assert "toucher" in reader
        assert reader.fingerprint("toucher") == FINGERPRINT
        assert reader.check() == []
        reader.compact()
        with writing(path):
            pass
        assert not witness.exists()
        assert reader["toucher"] is None
        assert witness.exists()
        witness.unlink()


def test_a_failure_has_all_its_facts(path: Path, result: Result) -> None:
    """A failed path is no key of the mapping; failures() has what is known about it."""
    outcome = failed("bad", "ValueError: \ud800 {path}\nsecond line")
    write(path, result("good", 1), outcome)
    reader = open_checkpoint(path)
    assert dict(reader) == {"good": 1}
    assert "bad" not in reader
    assert dict(reader.failures()) == {"bad": outcome.failure}
    assert "good" not in reader.failures()


@pytest.mark.parametrize("synced", [False, True])
def test_a_later_result_ends_a_failure(path: Path, result: Result, synced: bool) -> None:
    """A path that failed and then has a value is completed, and no failure any more."""
    reader = checkpoint_at(path)
    with writing(path) as checkpoint:
        checkpoint.save_failures([failed("a"), failed("b")])
        assert sorted(reader.failures()) == ["a", "b"]
        if synced:
            checkpoint.sync()
        checkpoint.save([result("a", None)])
        assert dict(reader) == {"a": None}
        assert list(reader.failures()) == ["b"]
        with pytest.raises(KeyError):
            reader.failures()["a"]


@pytest.mark.parametrize("compacted", [False, True])
def test_a_later_failure_does_not_hide_a_result(
    path: Path, result: Result, compacted: bool
) -> None:
    """A path whose new attempt fails keeps the value it has; it has the failure as well."""
    write(path, result("a", "kept"), failed("a", "first"), failed("a", "second"))
    if compacted:
        checkpoint_at(path).compact()
    reader = open_checkpoint(path)
    assert dict(reader) == {"a": "kept"}
    assert list(reader.completed()) == ["a"]
    assert reader.fingerprint("a") == FINGERPRINT
    assert reader.failures()["a"].message == "second"
    write(path, result("a", "new"))
    assert dict(reader) == {"a": "new"}
    assert len(reader.failures()) == 0


def test_of_several_results_the_last_counts(path: Path, result: Result) -> None:
    """Within a batch, and in a later one; its place is the last one, too."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1), result("b", 1), result("a", 2)])
        checkpoint.save([result("b", 2), result("c", 1)])
    reader = open_checkpoint(path)
    assert list(reader.items()) == [("a", 2), ("b", 2), ("c", 1)]


def test_the_fingerprint_is_that_of_the_input(path: Path, result: Result) -> None:
    """It is what was stored with the result; a path without a result has none."""
    write(path, result("a", 1), failed("bad"))
    reader = open_checkpoint(path)
    assert reader.fingerprint("a") == FINGERPRINT
    for missing in ("bad", "unknown"):
        with pytest.raises(KeyError, match=missing):
            reader.fingerprint(missing)


_opened: list[str] | None = None


@functools.cache
def _watch_openings() -> None:
    def note(event: str, given: tuple[Any, ...]) -> None:
        if _opened is not None and event in ("open", "sqlite3.connect"):
            _opened.append(str(given[0]))

    sys.addaudithook(note)  # for ever


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """What is opened during the test."""
    global _opened
    _watch_openings()
    _opened = []
    yield _opened
    _opened = None


def test_what_many_files_were_is_read_at_once(
    path: Path, result: Result, opened: list[str]
) -> None:
    """Each run with `rerun_changed` asks that of all files that are done."""
    names = [f"{number}" for number in range(50)]
    write(path, *(result(name, 1) for name in names))
    opened.clear()
    options = ResumableRunner(len, [], path, rerun_changed=True)._options
    plan = make_plan(names, open_checkpoint(path), options)
    assert (plan.changed, plan.to_do) == (50, names)
    assert 0 < (times := len([name for name in opened if path.name in name])) < 10
    opened.clear()
    make_plan(names, open_checkpoint(path), options._replace(rerun_changed=False))
    assert len([name for name in opened if path.name in name]) < times


def test_a_checkpoint_is_resumed(path: Path, result: Result) -> None:
    """Opened again, a checkpoint keeps everything, and more is added to it."""
    expected: dict[str, int] = {}
    for run in range(4):
        with writing(path) as checkpoint:
            assert dict(checkpoint) == expected
            checkpoint.save([result(f"{run}", run)])
            checkpoint.save_failures([failed(f"bad {run}")])
        expected[f"{run}"] = run
        assert dict(open_checkpoint(path)) == expected
    assert len(open_checkpoint(path).failures()) == 4


def test_opening_says_nothing_about_a_sound_file(path: Path, result: Result) -> None:
    """The notes of open() are for what a person should know, and here is nothing."""
    write(path, result("a", 1))
    checkpoint = checkpoint_at(path)
    assert checkpoint.open() == []
    checkpoint.close()


def test_an_empty_file_is_a_new_checkpoint(path: Path, result: Result) -> None:
    """A file of no bytes reads as empty and becomes a checkpoint when it is opened."""
    path.touch()
    assert dict(open_checkpoint(path)) == {}
    assert open_checkpoint(path).check() == []
    write(path, result("a", 1))
    assert dict(open_checkpoint(path)) == {"a": 1}


def test_nothing_is_left_beside_the_checkpoint(path: Path, result: Result) -> None:
    """Making, saving, reading and closing leave one file in the folder."""
    write(path, result("a", 1))
    assert dict(open_checkpoint(path)) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


def _foreign_database(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE results (path, value)")
        db.execute("INSERT INTO results VALUES ('a', 1)")
    db.close()


def _database_in_wal_mode(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE results (path, value)")
    db.close()


def _later_version(path: Path) -> None:
    write(path.with_name("mine.sqlite"))
    path.with_name("mine.sqlite").rename(path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=2")
    db.close()


FOREIGN: dict[str, bytes | Callable[[Path], None]] = {
    "text": b"a,b\n1,2\n",
    "one byte": b"x",
    "a pickle": pickle.dumps(["a"]),
    "zeros": bytes(500),
    "a number": b"5\n",
    "JSON": b'{"a": 1}\n',
    "JSON without a line end": b'{"a": 1}',
    "somebody's lines": b'{"path": "a", "value": 1}\n{"path": "b", "value": 2}\n',
    "somebody's line without its end": b'{"path": "a", "value": 1}',
    "a database": _foreign_database,
    "a database in WAL mode": _database_in_wal_mode,
    "a database of a later version": _later_version,
}


@pytest.mark.parametrize("foreign", FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files_are_refused(path: Path, foreign: Any) -> None:
    """A file that is something else is named in the error, and not a byte of it is changed; check()
    says so."""
    if callable(foreign):
        foreign(path)
    else:
        path.write_bytes(foreign)
    content = path.read_bytes()
    checkpoint = checkpoint_at(path)
    for attempt in (checkpoint.open, lambda: open_checkpoint(path), checkpoint.compact):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert quoted(str(path)) in str(caught.value)
        reason = "is not a checkpoint of this library|has version 2 of the format"
        assert caught.match(reason)
        assert path.read_bytes() == content
    assert len(checkpoint.check()) == 1
    # Its own side files, if it has any, are SQLite's; there is none of ours.
    assert not [name for name in os.listdir(path.parent) if name.endswith((".lock", ".bak"))]


def test_a_checkpoint_is_a_read_only_mapping(path: Path, result: Result) -> None:
    """It has what a Mapping has, in the order of saving, and nothing to change it."""
    write(path, result("b", 2), result("a", 1))
    checkpoint = open_checkpoint(path)
    assert isinstance(checkpoint, Mapping)
    assert len(checkpoint) == 2
    assert list(checkpoint) == list(checkpoint.keys()) == ["b", "a"]
    assert list(checkpoint.values()) == [2, 1]
    assert list(checkpoint.items()) == [("b", 2), ("a", 1)]
    assert checkpoint == {"a": 1, "b": 2}
    assert checkpoint.get("c", 3) == 3
    assert 5 not in checkpoint
    assert not hasattr(checkpoint, "__setitem__")


def test_an_unknown_path_is_a_key_error(path: Path, result: Result) -> None:
    """A path that was never saved raises KeyError naming it, in values and in failures."""
    write(path, result("a", 1))
    checkpoint = open_checkpoint(path)
    for mapping in (checkpoint, checkpoint.failures()):
        assert "b" not in mapping
        with pytest.raises(KeyError, match="b"):
            mapping["b"]
        for other in (Path("a"), None, 1):  # what is no text is no path that is kept
            assert other not in mapping
            assert mapping.get(other) is None  # type: ignore[call-overload]


def test_values_are_made_anew(path: Path, result: Result) -> None:
    """Changing a value that was read does not change what the next reader gets."""
    write(path, result("a", [1]))
    checkpoint = open_checkpoint(path)
    checkpoint["a"].append(2)
    assert checkpoint["a"] == [1]


def test_iterating_survives_what_is_saved_meanwhile(path: Path, result: Result) -> None:
    """Somebody who iterates sees what was there when he began, and is not interrupted."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1), result("b", 2)])
        seen = []
        for key in checkpoint:
            checkpoint.save([result(f"more {key}", 0)])
            assert len(checkpoint) == len(seen) + 3
            seen.append(key)
        assert seen == ["a", "b"]


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns in the middle of everything."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.alike
@pytest.mark.usefixtures("restless")
def test_threads_that_read_at_once_find_everything(path: Path, result: Result) -> None:
    """They share one object: a runner's results are its own checkpoint."""
    names = [f"{number}" for number in range(2_000)]
    write_together(path, *[result(name, name) for name in names])
    for _ in range(10):
        checkpoint = checkpoint_at(path)
        with ThreadPoolExecutor(3) as threads:
            found = threads.map(lambda name, of=checkpoint: (len(of), of[name]), names[:30])
            assert [*found] == [(len(names), name) for name in names[:30]]


@pytest.mark.alike
@not_on_windows("fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking beside a thread
@pytest.mark.usefixtures("restless")
def test_a_child_that_is_forked_while_a_thread_reads_can_read(path: Path, result: Result) -> None:
    """It begins anew, whatever the other one was at."""
    write_together(path, *[result(f"{number}", number) for number in range(2_000)])
    checkpoint = checkpoint_at(path)
    ended = threading.Event()

    def read_on() -> None:
        while not ended.is_set():
            len(checkpoint)
            getattr(checkpoint, "_forget", int)()  # or there would be nothing to read

    thread = threading.Thread(target=read_on)
    thread.start()
    try:
        for _ in range(10):
            if (pid := os.fork()) == 0:
                signal.alarm(PATIENCE_SECONDS)
                os._exit(len(checkpoint) != 2_000)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        ended.set()
        thread.join()


def test_a_missing_file_reads_as_empty(path: Path) -> None:
    """A checkpoint that is not there yet has nothing, and reading does not make it."""
    checkpoint = checkpoint_at(path)
    assert len(checkpoint) == len(checkpoint.failures()) == 0
    assert dict(checkpoint) == {}
    assert checkpoint.check() == []
    checkpoint.settle()
    with pytest.raises(KeyError) as caught:
        checkpoint["a"]
    assert caught.value.__context__ is None
    with pytest.raises(FileNotFoundError, match="there is no checkpoint"):
        checkpoint.compact()
    assert list(path.parent.iterdir()) == []


def test_open_checkpoint_wants_a_file(path: Path) -> None:
    """open_checkpoint of a file that is not there raises, naming it, and makes none."""
    with pytest.raises(FileNotFoundError, match=rf"there is no checkpoint at '.*{path.name}'"):
        open_checkpoint(path)
    assert not path.exists()


def test_a_reader_notices_that_the_file_is_gone(path: Path, result: Result) -> None:
    """After the file was deleted a reader that knew it has nothing."""
    write(path, result("a", 1))
    reader = open_checkpoint(path)
    path.unlink()
    assert dict(reader) == {}
    assert "a" not in reader


@not_on_windows("nobody may remove what is open")
def test_the_writer_notices_that_the_file_is_gone(path: Path, result: Result) -> None:
    """What is saved in a file that nobody finds is not saved: sync and close say so."""
    checkpoint = checkpoint_at(path)
    checkpoint.open()
    checkpoint.save([result("a", 1)])
    path.unlink()
    for attempt in (checkpoint.sync, checkpoint.close):
        with pytest.raises(OSError, match="removed, moved or replaced"):
            attempt()
    write(path, result("b", 2))  # and it is not locked
    assert dict(open_checkpoint(path)) == {"b": 2}


def _open_log(path: Path, outcome: Outcome[Any]) -> Checkpoint:
    """For writing, with this in it; of the formats that are appended to."""
    if path.suffix == ".sqlite":
        pytest.skip("SQLite writes where there is room, and notices by itself what is gone")
    checkpoint = checkpoint_at(path)
    checkpoint.open()
    checkpoint.save([outcome])
    return checkpoint


def test_the_writer_notices_that_the_file_is_cut_short(path: Path, result: Result) -> None:
    """What was saved is not there any more; and what comes behind a gap would not be found."""
    checkpoint = _open_log(path, result("a", 1))
    checkpoint.sync()
    os.truncate(path, 0)
    again = functools.partial(checkpoint.save, [result("b", 2)])
    for attempt in (again, checkpoint.sync, checkpoint.close):
        with pytest.raises(OSError, match="cut short"):
            attempt()
    write(path, result("b", 2))  # and it is not locked
    assert dict(open_checkpoint(path)) == {"b": 2}


def test_the_writer_overwrites_nothing_that_others_have_added(path: Path, result: Result) -> None:
    """Be it a shell's `>>`, or another run, where the file system has no locks."""
    checkpoint = _open_log(path, result("a", 1))
    with open(path, "ab") as file:
        file.write(b"mine")
    with pytest.raises(OSError, match="another program has written to it"):
        checkpoint.save([result("b", 2)])
    assert path.read_bytes().endswith(b"mine")
    checkpoint.close()
    assert checkpoint.outcome("a").value == 1


@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize("extra", [0, 1, 5], ids=["same size", "longer", "much longer"])
def test_a_reader_notices_another_content(
    path: Path, result: Result, extra: int, in_place: bool
) -> None:
    """When another checkpoint is moved there or copied over it (or a deleted one's inode is used
    again), a reader has that one's values and no others."""
    write(path, result("a", 1), failed("bad"))
    reader = open_checkpoint(path)
    assert len(reader.failures()) == 1
    other = path.with_stem("other")
    more = [result(f"more {number}", number) for number in range(extra)]
    write(other, result("b", 2), failed("sad"), *more)
    expected = dict(open_checkpoint(other))
    if in_place:
        path.write_bytes(other.read_bytes())
    else:
        other.replace(path)
    assert reader.get("a") is None
    assert dict(reader) == expected
    assert list(reader.failures()) == ["sad"]


@pytest.mark.parametrize("new", ["a", "x"])
def test_a_reader_notices_an_older_copy_whatever_comes_last(
    path: Path, result: Result, new: str
) -> None:
    """It is put in the place of the file, in the same inode, and gone on from; its last record is
    the same, at the same place, as in what the reader knows."""
    write(path, result("first", 1))
    older = path.read_bytes()
    write(path, result("a", 1), result("last", [None] * 1_000))
    reader = open_checkpoint(path)
    assert dict(reader) == {"first": 1, "a": 1, "last": [None] * 1_000}
    if path.suffix == ".sqlite":  # whose file is SQLite's
        path.unlink()
    path.write_bytes(older)
    write(path, result(new, 2), result("last", [None] * 1_000))
    assert dict(reader) == {"first": 1, new[0]: 2, "last": [None] * 1_000}


@not_on_windows("Wine makes no links")
def test_a_checkpoint_stays_where_a_link_has_led_to(path: Path, result: Result) -> None:
    """Its lock is there, and nowhere else."""
    for name in ("old", "new"):
        write(path.with_stem(name), result(name, 0))
    path.symlink_to(path.with_stem("old"))
    checkpoint = checkpoint_at(path)
    path.unlink()
    path.symlink_to(path.with_stem("new"))
    checkpoint.open()
    checkpoint.save([result("a", 1)])
    checkpoint.close()
    assert dict(checkpoint_at(path.with_stem("old"))) == {"old": 0, "a": 1}
    assert dict(checkpoint_at(path.with_stem("new"))) == {"new": 0}


@not_on_windows("Wine makes no links")
def test_a_checkpoint_may_be_a_link_to_a_file_that_is_not_there_yet(
    path: Path, result: Result
) -> None:
    """It is made where the link leads to; and so is what is put in its place."""
    (path.parent / "disk").mkdir()
    real = path.parent / "disk" / path.name
    path.symlink_to(real)
    assert dict(checkpoint_at(path)) == {}
    write(path, result("a", 1))
    checkpoint_at(path).compact()
    assert path.is_symlink()
    assert dict(checkpoint_at(real)) == dict(checkpoint_at(path)) == {"a": 1}
    assert sorted(real.parent.iterdir()) == [real, Path(f"{real}.bak")]


@not_on_windows("Wine makes no links")
def test_a_link_that_leads_nowhere_is_an_error(path: Path) -> None:
    """And no reason to try for ever."""
    path.symlink_to(path.parent / "no folder" / path.name)
    with pytest.raises(OSError, match="No such file"):
        checkpoint_at(path).open()
    path.unlink()
    path.symlink_to(path)
    for attempt in (checkpoint_at(path).open, checkpoint_at(path).completed):
        with pytest.raises(CheckpointError, match="for reading: Too many levels of symbolic links"):
            attempt()


def test_pickling_a_checkpoint_sends_its_path(path: Path, result: Result) -> None:
    """The saver process gets an equal checkpoint: the same file, nothing of the index."""
    write(path, result("a", 1))
    checkpoint = open_checkpoint(path)
    assert checkpoint["a"] == 1
    again = pickle.loads(pickle.dumps(checkpoint))
    assert type(again) is type(checkpoint)
    assert again.path == checkpoint.path == str(path)
    assert dict(again) == {"a": 1}


def test_what_a_worker_asks_of_a_checkpoint_is_sent_by_name(path: Path) -> None:
    """The function that turns a result into bytes travels without the checkpoint."""
    sent = pickle.dumps(checkpoint_at(path).encode)
    assert path.name.encode() not in sent
    assert pickle.loads(sent) is checkpoint_at(path).encode


def test_a_checkpoint_stays_where_it_was_named(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is resolved once, so that changing the directory changes nothing."""
    monkeypatch.chdir(tmp_path)
    checkpoint = checkpoint_at(path.name)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoint.path == str(path)
    name = f"{type(checkpoint).__name__} {quoted(checkpoint.path)}"
    assert repr(checkpoint) == f"<{name}: 0 results, 0 failures>"
    assert repr(checkpoint.failures()) == "<0 failures>"


@not_on_windows("Wine makes no links")
def test_a_checkpoint_behind_a_link_is_the_file_itself(path: Path, result: Result) -> None:
    """Who writes through a link keeps out who writes without, and compacting keeps the link."""
    write(path, result("a", 1))
    link = path.with_stem("link")
    link.symlink_to(path)
    with writing(link) as checkpoint:
        checkpoint.save([result("a", 2)])
        with pytest.raises(CheckpointLocked):
            checkpoint_at(path).open()
    checkpoint_at(link).compact()
    assert link.is_symlink()
    assert dict(checkpoint_at(path)) == {"a": 2}


@pytest.mark.parametrize(
    "name",
    [
        "x.with#%41",
        "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n",
        pytest.param("?\n", marks=not_on_windows("no such names")),
    ],
)
def test_a_checkpoint_may_be_in_any_folder(path: Path, result: Result, name: str) -> None:
    """Whatever its folder is called."""
    (path.parent / name).mkdir()
    path = path.parent / name / path.name
    write(path, result("a", 1))
    assert dict(open_checkpoint(path)) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]


# The suffix.


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("r.pkl", PickleFile),
        ("r.pickle", PickleFile),
        ("R.PKL", PickleFile),
        ("a.b.pkl", PickleFile),
        ("r.jsonl", JsonLines),
        ("r.sqlite", SqliteFile),
        ("r.sqlite3", SqliteFile),
        ("r.db", SqliteFile),
    ],
)
def test_the_suffix_names_the_format(tmp_path: Path, name: str, format_: type[Checkpoint]) -> None:
    """In any case, as text or as a path."""
    assert type(checkpoint_at(tmp_path / name)) is format_
    assert type(checkpoint_at(str(tmp_path / name))) is format_


@pytest.mark.parametrize("name", ["r.txt", "r", "r.pkl.gz", "r.json", ".pkl", ""])
@pytest.mark.parametrize("function", [checkpoint_at, open_checkpoint])
def test_unknown_suffixes_are_refused(function: Any, name: str) -> None:
    """Any other suffix raises ValueError, which names the file and the suffixes that are known."""
    known = r"\.pkl, \.pickle, \.jsonl, \.sqlite, \.sqlite3, \.db"
    with pytest.raises(ValueError, match=rf"its suffix names the format.*{known}") as caught:
        function(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [b"r.pkl", 5, None])
def test_what_is_no_path_is_refused(name: Any) -> None:
    """Neither bytes nor anything else that is no path of text names a checkpoint."""
    with pytest.raises(TypeError):
        checkpoint_at(name)


def test_a_checkpoint_owns_its_side_files(path: Path, result: Result) -> None:
    """It knows its own file and those beside it, so that they are never taken for inputs."""
    checkpoint = checkpoint_at(path)
    own = ["", ".lock", ".bak", ".new-1234-abcd", ".lock.new-1234-abcd", ".new-1234-abcd.lock"]
    if path.suffix == ".sqlite":
        own += ["-wal", "-shm", "-journal", ".new-1234-abcd-wal"]
    assert all(checkpoint.owns(f"{path}{suffix}") for suffix in own)
    assert checkpoint.owns(str(path.parent / "." / path.name))
    if sys.platform != "win32":
        (path.parent / "link").symlink_to(path.parent)
        assert checkpoint.owns(str(path.parent / "link" / path.name))
        (path.parent / "link").unlink()
    else:
        assert checkpoint.owns(str(path).upper())
        assert checkpoint.others([str(path).upper()]) == []
        literal = f"\\\\?\\{path}"
        assert checkpoint.owns(literal)
        assert checkpoint_at(literal).owns(str(path))
    others = [*map(str, (f"{path}x", f"{path}.txt", path.parent / "a.pkl", path.parent))]
    assert not any(map(checkpoint.owns, others))
    assert checkpoint.others([*(f"{path}{suffix}" for suffix in own), *others]) == others
    with writing(path):
        assert all(checkpoint.owns(str(found)) for found in path.parent.iterdir())


# check() and compact().


def test_a_sound_checkpoint_has_no_findings(path: Path, result: Result) -> None:
    """While it is written, and afterwards."""
    with writing(path) as checkpoint:
        assert checkpoint_at(path).check() == []
        checkpoint.save([result("a", 1), result("a", 2)])
        checkpoint.save_failures([failed("bad")])
        assert checkpoint_at(path).check() == []
        checkpoint.sync()
        assert checkpoint_at(path).check() == []
    assert checkpoint_at(path).check() == []


def test_compacting_keeps_what_counts_and_nothing_else(path: Path, result: Result) -> None:
    """The last value of each path and the failures that stand, with all their facts; the old file
    is kept beside."""
    with writing(path) as checkpoint:
        for number in range(50):
            checkpoint.save([result("a", [number] * 100), result("b", number)])
            checkpoint.save_failures([failed("bad", f"attempt {number}")])
        checkpoint.save_failures([failed("well")])
        checkpoint.save([result("well", 1)])
    reader = open_checkpoint(path)
    before, failures = dict(reader), dict(reader.failures())
    size = path.stat().st_size
    notes = checkpoint_at(path).compact()
    assert any("3 files and the failures of 1 file" in note for note in notes), notes
    old = Path(f"{path}.bak")
    assert str(old) in notes[-1]
    assert old.stat().st_size == size
    assert sorted(path.parent.iterdir()) == [path, old]
    for one in (reader, open_checkpoint(path)):
        assert dict(one) == before == {"a": [49] * 100, "b": 49, "well": 1}
        assert dict(one.failures()) == failures
        assert one.fingerprint("a") == FINGERPRINT
        assert one.check() == []
    if path.suffix != ".sqlite":  # which uses its pages again by itself
        assert path.stat().st_size < size / 10
    write(path, result("c", 3))
    assert dict(reader) == {**before, "c": 3}
    copy = path.with_stem("copy")
    old.rename(copy)
    assert dict(open_checkpoint(copy)) == before


def test_compacting_again_keeps_the_newest_old_file(path: Path, result: Result) -> None:
    """There is one old file, not a growing number of them."""
    write(path, result("a", 1))
    checkpoint_at(path).compact()
    write(path, result("b", 2))
    checkpoint_at(path).compact()
    assert len(list(path.parent.iterdir())) == 2
    copy = path.with_stem("copy")
    shutil.move(f"{path}.bak", copy)
    assert dict(open_checkpoint(copy)) == {"a": 1, "b": 2} == dict(open_checkpoint(path))


def test_compacting_replaces_no_old_file_with_anything_of_its_own(
    path: Path, result: Result
) -> None:
    """Whatever it is that the new one does not have; then that one keeps its name, and the next old
    one has a number, and both can be opened by their names."""
    write(path, result("a", 1), result("b", 2), failed("bad"))
    more = path.read_bytes()
    path.unlink()
    write(path, result("a", 3))
    other = path.read_bytes()
    path.unlink()
    write(path, result("a", 1))
    old = Path(f"{path}.bak")
    kept = {}
    for number, content in enumerate((more, other, b"something else", more[: len(more) // 2]), 2):
        old.write_bytes(content)
        notes = checkpoint_at(path).compact()
        assert f"{old}-{number}" in notes[-1]
        assert old.read_bytes() == content
        kept[f"{old}-{number}"] = {"a": 1}
    assert {str(name): dict(open_checkpoint(name)) for name in old.parent.glob("*.bak-*")} == kept
    old.write_bytes(more)
    assert dict(open_checkpoint(old)) == {"a": 1, "b": 2}
    assert list(open_checkpoint(old).failures()) == ["bad"]


def test_compacting_replaces_an_old_file_whose_results_live_on(path: Path, result: Result) -> None:
    """With failures that have succeeded since, or still stand."""
    write(path, result("a", 1), failed("bad"), failed("late"))
    checkpoint_at(path).compact()
    write(path, result("late", 2))
    checkpoint_at(path).compact()
    assert {*path.parent.iterdir()} == {path, Path(f"{path}.bak")}
    assert dict(open_checkpoint(f"{path}.bak")) == {"a": 1, "late": 2}


@not_on_windows("modes")
def test_compacting_keeps_who_may_read_it(path: Path, result: Result) -> None:
    """The new file has the mode of the old one."""
    write(path, result("a", 1))
    path.chmod(0o640)
    checkpoint_at(path).compact()
    assert path.stat().st_mode & 0o777 == 0o640


@not_on_windows("modes")
def test_who_may_write_to_it_may_take_over_what_a_killed_writer_has_left(
    path: Path, result: Result
) -> None:
    """The file that has a writer's number, and perhaps the lock, is as the checkpoint is."""
    write(path, result("a", 1))
    path.chmod(0o660)
    if os.getuid() == 0:
        os.chown(path, 1234, 1235)
    with writing(path):
        looked_at = [path, *path.parent.glob("*.lock")]
        facts = {(file.stat().st_uid, file.stat().st_mode & 0o777) for file in looked_at}
    assert len(looked_at) == 1 + (path.suffix != ".pkl")
    assert facts == {(path.stat().st_uid, 0o660)}


@not_on_windows("modes")
def test_nobody_else_may_read_the_new_file_while_it_is_written(path: Path, result: Result) -> None:
    """And it is still its owner's, if an administrator has compacted it."""
    write(path, result("a", 1))
    path.chmod(0o600)
    if os.getuid() == 0:
        os.chown(path, 1234, 1235)
    owner = path.stat().st_uid, path.stat().st_gid
    modes = set()

    def look(outcomes: Iterable[Outcome[Any]]) -> Iterator[Outcome[Any]]:
        for outcome in outcomes:
            modes.update(new.stat().st_mode & 0o777 for new in path.parent.glob("*.new-*[!k]"))
            yield outcome

    checkpoint_at(path).compact(look)
    assert modes == {0o600}
    assert (path.stat().st_uid, path.stat().st_gid) == owner


@pytest.mark.parametrize("key", [5, None, Path("a"), b"a"])
def test_a_key_that_is_no_text_is_not_there(path: Path, result: Result, key: Any) -> None:
    write(path, result("a", 1), failed("b"))
    for mapping in (open_checkpoint(path), open_checkpoint(path).failures()):
        assert key not in mapping
        assert mapping.get(key) is None


def test_compacting_waits_for_who_has_the_file_open_for_a_moment(
    path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On Windows nobody may replace it then: a viewer, say, or what looks for viruses."""
    write(path, result("a", 1))
    with open(path, "rb") as viewer:
        monkeypatch.setattr(disk.time, "sleep", lambda _: viewer.close())
        checkpoint_at(path).compact()
    assert sorted(path.parent.iterdir()) == [path, Path(f"{path}.bak")]


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows")
def test_compacting_in_vain_leaves_nothing_behind(
    path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who keeps the file open is named as the reason, and afterwards it can be compacted."""
    write(path, result("a", 1))
    monkeypatch.setattr(disk, "_PAUSE_SECONDS", 0.0)
    with open(path, "rb"), pytest.raises(PermissionError, match="another program has this file"):
        checkpoint_at(path).compact()
    assert list(path.parent.iterdir()) == [path]
    checkpoint_at(path).compact()
    assert dict(open_checkpoint(path)) == {"a": 1}


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows")
def test_a_lock_file_that_nobody_may_open_is_no_second_run(path: Path) -> None:
    """Nothing locks a checkpoint whose lock file is a folder, or belongs to somebody else."""
    Path(f"{path}.lock").mkdir()
    checkpoint = checkpoint_at(path)
    if path.suffix == ".sqlite":
        with pytest.raises(PermissionError):
            checkpoint.open()
    else:
        assert "could not be locked" in checkpoint.open()[0]
        checkpoint.close()


def test_compacting_is_refused_while_a_run_writes(path: Path, result: Result) -> None:
    """Nothing is changed, and the error says who is writing."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
        with pytest.raises(CheckpointLocked) as caught:
            checkpoint_at(path).compact()
        assert caught.value.pid == os.getpid()
        assert caught.value.path == str(path)
        checkpoint.save([result("b", 2)])
    assert dict(open_checkpoint(path)) == {"a": 1, "b": 2}
    assert list(path.parent.iterdir()) == [path]


@not_on_windows("limits of a process")
def test_a_full_disk_while_compacting_changes_nothing(path: Path, result: Result) -> None:
    """The error is the system's, what was begun is removed, the checkpoint is as it was."""
    write(path, *(result(f"{number}", "x" * 20_000) for number in range(20)))
    before = path.read_bytes()
    code = f"""
import resource
from resumable_pool.checkpoints import checkpoint_at
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoint_at({str(path)!r}).compact()
except OSError as error:
    print(error.filename, error.strerror)
"""
    with start_python(code) as process:
        output, _ = process.communicate(timeout=conftest.PATIENCE_SECONDS)
    name, words = output.split(" ", 1)
    assert name == str(path)
    assert words.startswith("could not be rewritten, and is as it was: ")
    if path.suffix == ".pkl":  # all but the writer's process id
        assert len(path.read_bytes()) == len(before)
        assert path.read_bytes()[35:] == before[35:]
    else:
        assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("size", [1, 1_000], ids=["small", "large"])
def test_a_damaged_value_is_found_and_left_behind(path: Path, result: Result, size: int) -> None:
    """It is never read as another value. check() names its path; compact() keeps all the others and
    says what was lost; then the next run does that file again."""
    outcomes = [result("before", 1), result("hit", "precious" * size), result("after", [3])]
    write(path, *outcomes, failed("bad"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"precious", b"preciouz", 1))
    damaged = path.read_bytes()
    (finding,) = checkpoint_at(path).check()
    assert "hit" in finding
    assert path.read_bytes() == damaged
    if path.suffix != ".jsonl":  # there a run refuses the whole file
        with pytest.raises(KeyError, match="hit"):
            open_checkpoint(path)["hit"]
    first, *_ = checkpoint_at(path).compact()
    assert first == finding
    assert Path(f"{path}.bak").read_bytes()[35:] == damaged[35:]
    reader = open_checkpoint(path)
    assert dict(reader) == {"before": 1, "after": [3]}
    assert list(reader.failures()) == ["bad"]
    assert reader.check() == []
    write(path, outcomes[1])
    assert reader["hit"] == "precious" * size


def test_sqlite_is_loaded_only_where_it_is_asked_for() -> None:
    """Not every Python is built with it, and every worker would wait for its import."""
    code = """
import sys, resumable_pool
from resumable_pool.checkpoints import checkpoint_at
checkpoint_at("r.jsonl")
print("sqlite3" in sys.modules)
checkpoint_at("r.db")
print("sqlite3" in sys.modules)
"""
    with start_python(code) as process:
        assert process.communicate(timeout=conftest.PATIENCE_SECONDS)[0] == "False\nTrue\n"


def test_json_in_a_database_is_text() -> None:
    """What is no tuple, and so on, can be queried."""
    assert json.loads(SqliteFile.encode({"a": [1, 2.5, None]})) == {"a": [1, 2.5, None]}
    assert SqliteFile.encode((1,)).startswith(b"\x80")


# move().


@pytest.mark.parametrize(
    ("old", "new", "keys"),
    [
        ("a/", "b", ["/data/4", "ab/3", "b/1", "b/x/2"]),
        ("./a", "b/./", ["/data/4", "ab/3", "b/1", "b/x/2"]),
        ("a/x", "y/z", ["/data/4", "a/1", "ab/3", "y/z/2"]),
        ("a/x/2", "two", ["/data/4", "a/1", "ab/3", "two"]),
        ("", "in", ["/data/4", "in/a/1", "in/a/x/2", "in/ab/3"]),
        ("/data/", "", ["4", "a/1", "a/x/2", "ab/3"]),
        ("/", "/mnt/", ["/mnt/data/4", "a/1", "a/x/2", "ab/3"]),
    ],
)
def test_moved_files_have_their_results_again(
    path: Path, result: Result, old: str, new: str, keys: list[str]
) -> None:
    """Under the new folder, with all that is known of them; what was there before is kept."""
    for number, key in enumerate(["a/1", "a/x/2", "ab/3", "/data/4"], 1):
        write(path, result(key, number))
    notes = checkpoint_at(path).move(old, new)
    checkpoint = open_checkpoint(path)
    assert sorted(checkpoint) == keys
    assert sorted(checkpoint.values()) == [1, 2, 3, 4]
    assert {checkpoint.fingerprint(key) for key in keys} == {FINGERPRINT}
    assert "results and failures moved from" in notes[-1]
    assert sorted(_backup(path)) == [
        "/data/4", "a/1", "a/x/2", "ab/3",
    ]  # fmt: skip
    assert checkpoint.check() == []


def _backup(path: Path) -> list[str]:
    """The paths in what is kept of a checkpoint."""
    copy = path.with_name(f"copy{path.suffix}")
    shutil.copy(f"{path}.bak", copy)
    return list(open_checkpoint(copy))


def test_failures_move_with_their_files(path: Path, result: Result) -> None:
    """They name the new path, too."""
    write(path, result("a/1", 1), failed("a/1"), failed("a/2"), failed("c"))
    checkpoint_at(path).move("a", "b")
    checkpoint = open_checkpoint(path)
    assert dict(checkpoint) == {"b/1": 1}
    assert {key: failure.path for key, failure in checkpoint.failures().items()} == {
        "b/1": "b/1", "b/2": "b/2", "c": "c",
    }  # fmt: skip


def test_moved_paths_are_as_a_run_calls_them(path: Path, result: Result) -> None:
    """From the folder above, `../in/1` of the folder `sub` is `in/1`."""
    write(path, result("../in/1", 1), result("2", 2))
    checkpoint_at(path).move("", "sub")
    assert dict(open_checkpoint(path)) == {"in/1": 1, "sub/2": 2}


@pytest.mark.skipif(sys.platform != "win32", reason="Windows")
def test_a_drive_that_was_not_a_capital_letter_can_be_moved(path: Path, result: Result) -> None:
    """So it was kept before, when a script had been started in `c:`."""
    write(path, result("c:/a/1", 1), result("C:/a/2", 2))
    checkpoint_at(path).move("c:/", "C:/")
    assert dict(open_checkpoint(path)) == {"C:/a/1": 1, "C:/a/2": 2}


def test_a_result_that_is_there_already_stays(path: Path, result: Result) -> None:
    """A file that was processed under its new path is not given the old result."""
    write(path, result("a/1", "old"), result("a/2", "moved"), failed("a/3"))
    write(path, result("b/1", "new"), failed("b/2"), result("b/3", "new"))
    *_, moved, left = checkpoint_at(path).move("a", "b")
    assert dict(open_checkpoint(path)) == {"b/1": "new", "b/2": "moved", "b/3": "new"}
    assert list(open_checkpoint(path).failures()) == ["b/2"]
    assert moved == "1 results and failures moved from 'a/' to 'b/'"
    assert left == "2 were left out, because their new path has a result already"
    assert len(_backup(path)) == 4


@pytest.mark.parametrize(("old", "new"), [("no", "b"), ("a", "a/"), ("a/1/x", "b"), ("/", "b")])
def test_a_start_that_no_path_has_is_refused(
    path: Path, result: Result, old: str, new: str
) -> None:
    """Nothing is changed."""
    write(path, result("a/1", 1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"no path starts with .*'a/1'.*: nothing was moved"):
        checkpoint_at(path).move(old, new)
    assert path.read_bytes() == before


def test_a_plain_pickle_is_adopted_and_moved(tmp_path: Path) -> None:
    """The usual case: base names, of a script that came before."""
    path = tmp_path / "result.pkl"
    path.write_bytes(pickle.dumps({"1": 1, "2": 2}))
    assert "adopted the results of 2 files" in checkpoint_at(path).move("", "in")[0]
    assert pickle.loads(path.read_bytes()) == {"in/1": 1, "in/2": 2}


@not_on_windows("has no named pipes in folders")
@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_is_refused_at_once_and_stays_what_it_is(path: Path, link: bool) -> None:
    # So is a device, which `compact` must not put a file in the place of.
    pipe = path.with_name("pipe") if link else path
    os.mkfifo(pipe)
    if link:
        path.symlink_to(pipe)
    checkpoint = checkpoint_at(path)
    calls: list[Callable[[], Any]] = [
        functools.partial(open_checkpoint, path),
        checkpoint.failures().__len__,
        checkpoint.open,
        checkpoint.compact,
    ]
    for call in calls:
        with pytest.raises(CheckpointError, match="it is not a regular file"):
            call()
    assert "it is not a regular file" in checkpoint.check()[0]
    assert pipe.is_fifo()
    assert {*os.listdir(path.parent)} <= {path.name, pipe.name}
