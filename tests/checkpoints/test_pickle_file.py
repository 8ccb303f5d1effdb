"""result.pkl as its writer and its readers see it."""

from __future__ import annotations

import errno
import pickle
import tracemalloc
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from resumable_pool import CheckpointError, open_checkpoint
from resumable_pool.checkpoints import PickleFile, checkpoint_at, disk, pickle_file
from resumable_pool.checkpoints.pickle_layout import FIRST_RECORD, Record
from resumable_pool.checkpoints.standing import last_of_each_path

from .conftest import failed, pickled_result, plain, result, write, writing


class Nested:
    class Inner:
        def __init__(self, number: int) -> None:
            self.number = number

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Nested.Inner) and self.number == other.number

        def __hash__(self) -> int:
            return hash(self.number)


class NeedsProtocol4:
    """Refuses the protocol whose opcodes the file holds inline."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol < 4:
            raise TypeError("protocol 4 at least")
        return NeedsProtocol4, ()

    def __eq__(self, other: object) -> bool:
        return type(other) is NeedsProtocol4

    __hash__ = None  # type: ignore[assignment]


class TouchesAtUnpickling:
    """Unpickling one makes a file, so that nobody can do it unnoticed."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


VALUES = {
    "none": None,
    "false": False,
    "zero": 0,
    "empty text": "",
    "no bytes": b"",
    "big integer": -(10**400),
    "float": 1e-300,
    "infinity": float("inf"),
    "complex": 1 - 2j,
    "text": "grüße \N{OWL} \n\r\0",
    "lone surrogates": "\ud800 \udcff",
    "stop bytes": b"." * 300 + b"\n" + b"C" * 300,
    "bytearray": bytearray(b"abc"),
    "set": {1, 2, "three"},
    "frozenset": frozenset({(1, 2), None}),
    "containers": {"list": [1, [2, (3, {"four": {5}})]], (): ()},
    "nested class": [Nested.Inner(3), Nested.Inner],
    "above the limit of verifying": bytes(range(256)) * 300,
    "many memo slots": [[str(number)] for number in range(1000)],
    "refuses protocol 3": NeedsProtocol4(),
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
    "long/" * 20_000,
    "'quoted\"",
]


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_values_are_read_back_equal(path: Path, value: Any) -> None:
    """Whatever can be pickled comes back equal, from us and from plain pickle.load."""
    write(path, result("before", 1), result("it", value), result("after", [2]))
    expected = {"before": 1, "it": value, "after": [2]}
    assert dict(open_checkpoint(path)) == expected
    assert plain(path) == expected
    assert type(plain(path)["it"]) is type(value)


def test_all_values_fit_into_one_file(path: Path) -> None:
    """Values of all kinds stand behind each other without disturbing one another."""
    with writing(path) as checkpoint:
        checkpoint.save([result(name, value) for name, value in VALUES.items()])
    assert plain(path) == VALUES == dict(open_checkpoint(path))


def test_out_of_band_buffers_are_stored(path: Path) -> None:
    """A PickleBuffer, which only protocol 5 can hold, comes back as its bytes."""
    write(path, result("buffer", pickle.PickleBuffer(b"abc")), result("after", 1))
    assert plain(path) == {"buffer": b"abc", "after": 1} == dict(open_checkpoint(path))


def test_sharing_and_recursion_inside_a_value_are_kept(path: Path) -> None:
    """What is one object in a value, or contains itself, is so again."""
    shared: list[Any] = []
    recursive: list[Any] = [shared, shared]
    recursive.append(recursive)
    looped: dict[str, Any] = {}
    looped["self"] = looped
    write(path, result("other", [[], []]), result("list", recursive), result("dict", looped))
    for values in (plain(path), open_checkpoint(path)):
        read = values["list"]
        assert read[0] is read[1]
        assert read[2] is read
        assert (read := values["dict"])["self"] is read


@pytest.mark.parametrize("key", PATHS, ids=range(len(PATHS)))
def test_paths_are_kept_as_they_are(path: Path, key: str) -> None:
    """A path is the same key afterwards, whatever is in it, for a value and for a failure."""
    write(path, result(key, "value"), failed("not " + key))
    assert plain(path) == {key: "value"}
    assert dict(open_checkpoint(path)) == {key: "value"}
    assert list(open_checkpoint(path).failures()) == ["not " + key]


def test_the_file_is_a_plain_pickle_at_every_step(path: Path) -> None:
    """Plain pickle.load works from the making of the file to after its end."""
    checkpoint = PickleFile(path)
    checkpoint.open()
    assert plain(path) == {}
    for number in range(5):
        checkpoint.save([result(f"{number}", number), result(f"{number}+", None)])
        assert len(plain(path)) == 2 * number
        checkpoint.sync()
        assert len(plain(path)) == 2 * number + 2
    checkpoint.close()
    assert plain(path) == dict(open_checkpoint(path))


def test_our_reader_sees_at_once_what_plain_load_sees_after_sync(path: Path) -> None:
    """A record that is not committed yet is there for us, and invisible to plain pickle.load."""
    reader = PickleFile(path)
    with writing(path) as checkpoint:
        for number in range(3):
            checkpoint.save([result(f"{number}", number)])
            assert plain(path) == {}
            assert reader[f"{number}"] == number
            assert len(reader) == number + 1
        checkpoint.save_failures([failed("bad")])
        assert list(reader.failures()) == ["bad"]
        checkpoint.sync()
        assert plain(path) == dict(reader) == {"0": 0, "1": 1, "2": 2}


def test_saving_nothing_changes_nothing(path: Path) -> None:
    """An empty batch, and a sync without anything new, leave the bytes as they are."""
    write(path, result("a", 1))
    with writing(path) as checkpoint:
        before = path.read_bytes()
        checkpoint.save([])
        checkpoint.sync()
        checkpoint.sync()
        assert path.read_bytes() == before


def test_closing_commits(path: Path) -> None:
    """What was saved is in the plain pickle after close, without a sync."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
    assert plain(path) == {"a": 1}


def test_keys_are_found_without_unpickling(path: Path, tmp_path: Path) -> None:
    """Opening, resuming and listing run nothing of a value's code; reading the value does."""
    witness = tmp_path / "witness"
    value = pickle.dumps(TouchesAtUnpickling(witness), 3)
    write(path, pickled_result("toucher", value), result("harmless", 1))
    with writing(path) as checkpoint:
        checkpoint.save([pickled_result("uncommitted", value)])
        reader = open_checkpoint(path)
        assert list(reader.completed()) == list(reader) == ["toucher", "harmless", "uncommitted"]
        assert len(reader) == 3
        assert "toucher" in reader
        assert reader["harmless"] == 1
        assert not reader.failures()
    assert not witness.exists()
    assert reader["toucher"] is None
    assert witness.exists()


def test_failures_are_invisible_to_plain_load(path: Path) -> None:
    """A failure is no key of the plain pickle or of the mapping; failures() has all of it."""
    outcome = failed("bad", "ValueError: \ud800 {path}\nsecond line")
    with writing(path) as checkpoint:
        checkpoint.save([result("good", 1)])
        checkpoint.save_failures([outcome])
        checkpoint.save([result("better", 2)])
    reader = open_checkpoint(path)
    assert plain(path) == dict(reader) == {"good": 1, "better": 2}
    assert "bad" not in reader
    assert dict(reader.failures()) == {"bad": outcome.failure}
    assert "good" not in reader.failures()


@pytest.mark.parametrize("synced", [False, True])
def test_a_later_result_ends_a_failure(path: Path, synced: bool) -> None:
    """A path that failed and then has a value is completed, and no failure any more."""
    reader = PickleFile(path)
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


def test_a_later_failure_takes_the_place_of_an_earlier(path: Path) -> None:
    """Of several failures of a path the last one stands."""
    write(path, failed("a", "first"), failed("a", "second"))
    failures = open_checkpoint(path).failures()
    assert len(failures) == 1
    assert failures["a"].message == "second"


def test_a_checkpoint_is_resumed(path: Path) -> None:
    """Opened again, a checkpoint keeps everything, and more is appended behind it."""
    expected: dict[str, int] = {}
    for run in range(4):
        with writing(path) as checkpoint:
            assert dict(checkpoint) == expected
            checkpoint.save([result(f"{run}", run)])
            checkpoint.save_failures([failed(f"bad {run}")])
        expected[f"{run}"] = run
        assert plain(path) == expected
    assert len(open_checkpoint(path).failures()) == 4


def test_resuming_only_appends(path: Path) -> None:
    """Opening and saving leave what is in the file where it is, to the byte."""
    write(path, result("a", 1), result("b", 2))
    before = path.read_bytes()
    write(path, result("c", 3))
    assert path.read_bytes().startswith(before[:-1] + b"C")


def test_opening_says_nothing_about_a_sound_file(path: Path) -> None:
    """The notes of open() are for what a person should know, and here is nothing."""
    write(path, result("a", 1))
    checkpoint = PickleFile(path)
    assert checkpoint.open() == []
    checkpoint.close()


def test_an_empty_file_is_a_new_checkpoint(path: Path) -> None:
    """A file of no bytes reads as empty and becomes a checkpoint when it is opened."""
    path.touch()
    assert dict(open_checkpoint(path)) == {}
    write(path, result("a", 1))
    assert plain(path) == {"a": 1}


def test_nothing_is_left_beside_the_checkpoint(path: Path) -> None:
    """Making, saving and closing leave one file in the folder."""
    write(path, result("a", 1))
    assert list(path.parent.iterdir()) == [path]


def _other_version() -> bytes:
    header = bytearray(b"\x80\x04}C\x16\x89RPL\r\n\x1a\n" + bytes(FIRST_RECORD - 13))
    header[13] = 2
    return bytes(header)


FOREIGN = {
    "text": (b"a,b\n1,2\n", "not a checkpoint of this library"),
    "one byte": (b"x", "not a checkpoint of this library"),
    **{
        f"plain pickle, protocol {protocol}": (
            pickle.dumps({"a": 1}, protocol),
            "not a checkpoint of this library",
        )
        for protocol in range(6)
    },
    "zeros": (bytes(500), "not a checkpoint of this library"),
    "other version": (_other_version(), "version 2 of the format"),
    "line ends changed": (
        b"\x80\x04}C\x16\x89RPL\n\x1a\n" + bytes(30),
        "not a checkpoint of this library",
    ),
}


@pytest.mark.parametrize(("content", "reason"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files_are_refused(path: Path, content: bytes, reason: str) -> None:
    """A file that is something else is named in the error, and not a byte of it is changed."""
    path.write_bytes(content)
    for attempt in (PickleFile(path).open, lambda: open_checkpoint(path)):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert repr(str(path)) in str(caught.value)
        assert reason in str(caught.value)
        assert path.read_bytes() == content
    path.rename(path.with_suffix(".txt"))  # and nobody holds it


def test_a_checkpoint_is_a_read_only_mapping(path: Path) -> None:
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


def test_an_unknown_path_is_a_key_error(path: Path) -> None:
    """A path that was never saved raises KeyError naming it, in values and in failures."""
    write(path, result("a", 1))
    checkpoint = open_checkpoint(path)
    for mapping in (checkpoint, checkpoint.failures()):
        assert "b" not in mapping
        with pytest.raises(KeyError, match="b"):
            mapping["b"]


def test_values_are_unpickled_anew(path: Path) -> None:
    """Changing a value that was read does not change what the next reader gets."""
    write(path, result("a", [1]))
    checkpoint = open_checkpoint(path)
    checkpoint["a"].append(2)
    assert checkpoint["a"] == [1]


def test_iterating_survives_what_is_saved_meanwhile(path: Path) -> None:
    """Somebody who iterates sees what was there when he began, and is not interrupted."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1), result("b", 2)])
        seen = []
        for key in checkpoint:
            checkpoint.save([result(f"more {key}", 0)])
            assert len(checkpoint) == len(seen) + 3
            seen.append(key)
        assert seen == ["a", "b"]


def test_a_missing_file_reads_as_empty(path: Path) -> None:
    """A checkpoint that is not there yet has nothing, and reading does not make it."""
    checkpoint = PickleFile(path)
    assert len(checkpoint) == len(checkpoint.failures()) == 0
    assert dict(checkpoint) == {}
    with pytest.raises(KeyError):
        checkpoint["a"]
    assert not path.exists()


def test_open_checkpoint_wants_a_file(path: Path) -> None:
    """open_checkpoint of a file that is not there raises, naming it, and makes none."""
    with pytest.raises(FileNotFoundError, match=r"there is no checkpoint at '.*result\.pkl'"):
        open_checkpoint(path)
    assert not path.exists()


def test_a_reader_notices_that_the_file_is_gone(path: Path) -> None:
    """After the file was deleted a reader that knew it has nothing."""
    write(path, result("a", 1))
    reader = open_checkpoint(path)
    path.unlink()
    assert dict(reader) == {}
    assert "a" not in reader


@pytest.mark.parametrize("extra", [0, 1, 5], ids=["same size", "longer", "much longer"])
def test_a_reader_notices_another_file_in_its_place(path: Path, extra: int) -> None:
    """When another checkpoint is moved there, a reader has that one's values and no others."""
    write(path, result("a", 1), failed("bad"))
    reader = open_checkpoint(path)
    assert len(reader.failures()) == 1
    other = path.with_name("other.pkl")
    more = [result(f"more {number}", number) for number in range(extra)]
    write(other, result("b", 2), failed("sad"), *more)
    other.replace(path)
    assert "a" not in reader
    assert dict(reader) == plain(path)
    assert list(reader.failures()) == ["sad"]


@pytest.mark.parametrize("extra", [0, 1, 5], ids=["same size", "longer", "much longer"])
def test_a_reader_notices_another_content_of_the_file(path: Path, extra: int) -> None:
    """When another checkpoint is copied over it (or a deleted one's inode is used again), a reader
    has that one's values: never one under a path that it does not belong to."""
    write(path, result("a", 1))
    reader = open_checkpoint(path)
    other = path.with_name("other.pkl")
    write(other, result("b", 2), *(result(f"more {number}", number) for number in range(extra)))
    path.write_bytes(other.read_bytes())
    assert reader.get("a") is None
    assert dict(reader) == plain(path)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_reader_survives_the_return_of_an_older_copy(path: Path, in_place: bool) -> None:
    """When a backup was put back and the run went on from there, no path has another one's value;
    a reader sees exactly what is there if the backup was moved into place."""
    write(path, result("kept", 0))
    backup = path.read_bytes()
    write(path, result("x", 1))
    reader = open_checkpoint(path)
    assert reader["x"] == 1
    copy = path if in_place else path.with_name("copy.pkl")
    copy.write_bytes(backup)
    write(copy, result("y", 2), result("z", 3))
    copy.replace(path)
    assert reader.get("x") is None
    assert (reader["kept"], reader["z"]) == (0, 3)
    if not in_place:
        assert dict(reader) == {"kept": 0, "y": 2, "z": 3}


@pytest.mark.parametrize("synced", [True, False])
def test_what_a_reader_saw_of_a_batch_that_did_not_fit_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch, synced: bool
) -> None:
    """A whole record that a reader has seen is never taken back when the rest of its batch cannot
    be written, so that nothing else is taken for it; what is saved next stands behind it."""
    reader = PickleFile(path)

    def write_in_part(fd: int, data: memoryview, offset: int) -> None:
        disk.write_at(fd, data[: len(data) * 3 // 4], offset)
        assert dict(reader) == {"before": 0, "seen": 1}
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, "No space left on device")

    with writing(path) as checkpoint:
        checkpoint.save([result("before", 0)])
        if synced:
            checkpoint.sync()
        monkeypatch.setattr(pickle_file, "write_at", write_in_part)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save([result("seen", 1), result("torn", 2)])
        assert plain(path) == ({"before": 0} if synced else {})
        checkpoint.save([result("next", 3), result("and", 4), result("more", 5)])
        assert dict(reader) == {"before": 0, "seen": 1, "next": 3, "and": 4, "more": 5}
    assert plain(path) == dict(reader) == dict(open_checkpoint(path))


def test_pickling_a_checkpoint_sends_its_path(path: Path) -> None:
    """The saver process gets an equal checkpoint: the same file, nothing of the index."""
    write(path, result("a", 1))
    checkpoint = open_checkpoint(path)
    assert checkpoint["a"] == 1
    again = pickle.loads(pickle.dumps(checkpoint))
    assert type(again) is PickleFile
    assert again.path == checkpoint.path == str(path)
    assert dict(again) == {"a": 1}


def test_a_checkpoint_stays_where_it_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path is resolved once, so that changing the directory changes nothing."""
    monkeypatch.chdir(tmp_path)
    checkpoint = PickleFile("result.pkl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert checkpoint.path == str(tmp_path / "result.pkl")
    assert repr(checkpoint) == f"PickleFile({checkpoint.path!r})"


@pytest.mark.parametrize("name", ["r.pkl", "r.pickle", "R.PKL", "a.b.pkl"])
def test_the_suffix_names_the_format(tmp_path: Path, name: str) -> None:
    """.pkl and .pickle, in any case, are pickle files."""
    assert isinstance(checkpoint_at(tmp_path / name), PickleFile)
    assert isinstance(checkpoint_at(str(tmp_path / name)), PickleFile)


@pytest.mark.parametrize("name", ["r.txt", "r", "r.pkl.gz", ".pkl", ""])
@pytest.mark.parametrize("function", [checkpoint_at, open_checkpoint])
def test_unknown_suffixes_are_refused(function: Any, name: str) -> None:
    """Any other suffix raises ValueError, which names the file and the suffixes that are known."""
    with pytest.raises(ValueError, match=r"its suffix names the format.*\.pkl, \.pickle") as caught:
        function(name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("name", [b"r.pkl", 5, None])
def test_what_is_no_path_is_refused(name: Any) -> None:
    """Neither bytes nor anything else that is no path of text names a checkpoint."""
    with pytest.raises(TypeError):
        checkpoint_at(name)


def test_a_checkpoint_owns_its_side_files(path: Path) -> None:
    """It knows its own file and those beside it, so that they are never taken for inputs."""
    checkpoint = PickleFile(path)
    own = ["", ".lock", ".bak", ".new-1234-abcd"]
    assert all(checkpoint.owns(f"{path}{suffix}") for suffix in own)
    assert checkpoint.owns(str(path.parent / "." / path.name))
    (path.parent / "link").symlink_to(path.parent)
    assert checkpoint.owns(str(path.parent / "link" / path.name))
    others = [f"{path}x", f"{path}.txt", path.parent / "a.pkl", path.parent]
    assert not any(checkpoint.owns(str(other)) for other in others)


def test_entries_tell_what_stands(path: Path) -> None:
    """Each path once, with the last that was saved of it, values unread."""
    assert list(PickleFile(path).entries()) == []
    path.touch()
    assert list(PickleFile(path).entries()) == []
    write(path, result("a", 1), failed("a"), failed("b", "ValueError: old"), failed("b"),
          result("c", TouchesAtUnpickling(path.with_name("witness"))), failed("d"), result("d", 2),
          result("e", "x" * 100), result("e", ""))  # fmt: skip
    (path.parent / "witness").unlink()  # the worker looked whether it can be unpickled
    checkpoint = PickleFile(path)
    entries = {entry.path: entry for entry in checkpoint.entries()}
    assert len(entries) == len(list(checkpoint.entries()))
    assert {path for path, entry in entries.items() if entry.failure is None} == {*"cde"}
    assert {name: entries[name].failure for name in "ab"} == dict(checkpoint.failures())
    assert (entries["a"].seconds, entries["a"].attempts) == (0.5, 2)
    assert (entries["e"].seconds, entries["e"].attempts) == (0.25, 1)
    assert entries["e"].size < 100  # not that of the one before
    assert not (path.parent / "witness").exists()


def test_entries_of_paths_that_share_a_hash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told apart."""
    monkeypatch.setattr("resumable_pool.checkpoints.standing._HASHES", 1)
    write(path, result("a", 1), result("b", 1), result("c", 1), failed("b"))
    failed_paths = {entry.path: entry.failure is not None for entry in PickleFile(path).entries()}
    assert failed_paths == {"a": False, "b": True, "c": False}


def test_entries_end_where_the_file_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is saved meanwhile does not make an entry come twice."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1), result("b", 1)])

        def interrupted(first: Iterable[Record], second: Iterable[Record]) -> Iterator[Record]:
            records = [*first]
            checkpoint.save([result("a", 2), result("b", 2)])
            return last_of_each_path(records, second)

        monkeypatch.setattr(pickle_file, "last_of_each_path", interrupted)
        assert [entry.path for entry in checkpoint.entries()] == ["a", "b"]


def test_the_last_of_each_path_takes_little_memory() -> None:
    """Less than a set of the paths would."""

    def records() -> Iterator[Named]:
        return (Named(f"folder/of/recordings/{number:06}.wav") for number in range(50_000))

    tracemalloc.start()
    assert sum(1 for _ in last_of_each_path(records(), records())) == 50_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (1 << 24) + 500_000


class Named(NamedTuple):
    path: str
