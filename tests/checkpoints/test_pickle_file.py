"""result.pkl as its writer and its readers see it."""

from __future__ import annotations

import errno
import pickle
import tracemalloc
from binascii import crc32
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, open_checkpoint
from resumable_pool.checkpoints import PickleFile, disk
from resumable_pool.checkpoints import log_file as append_file
from resumable_pool.checkpoints.pickle_record import FIRST_RECORD
from resumable_pool.records import quoted
from resumable_pool.values import pickle_value

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


def test_a_large_record_is_not_copied_to_be_saved(path: Path) -> None:
    """Also not behind what was committed, whose last byte stays in place of its first one."""
    megabyte = 1 << 20
    with writing(path) as checkpoint:
        large = pickled_result("large", pickle_value(b"x" * (20 * megabyte)))
        record = bytearray().join(checkpoint.encoder().record(large))
        tracemalloc.start()
        checkpoint.append([record])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert len(record) > 20 * megabyte > 20 * peak
    assert plain(path) == {"large": b"x" * (20 * megabyte)}


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


def test_what_could_not_be_forced_to_the_disk_is_not_committed_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system tells once that it could not write, may forget the data, and has no complaint the
    next time. Whatever is left of them, the pickle ends before."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
        checkpoint.sync()
    checkpoint = PickleFile(path)
    checkpoint.open()
    checkpoint.save([result("b", 2)])

    def fail_once(fd: int) -> None:
        monkeypatch.undo()
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(append_file, "force", fail_once)
    for end in (checkpoint.sync, checkpoint.close):
        with pytest.raises(OSError, match="Disk quota exceeded"):
            end()
    assert plain(path) == {"a": 1}
    assert dict(PickleFile(path)) == {"a": 1, "b": 2}


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


def test_resuming_only_appends(path: Path) -> None:
    """Opening and saving leave what is in the file where it is, to the byte."""
    write(path, result("a", 1), result("b", 2))
    before = path.read_bytes()
    write(path, result("c", 3))
    assert path.read_bytes().startswith(before[:-1] + b"C")


def _other_version() -> bytes:
    header = bytearray(b"\x80\x04}C\x16\x89RPL\r\n\x1a\n" + bytes(FIRST_RECORD - 13))
    header[13] = 2
    header[23:27] = crc32(header[:23]).to_bytes(4, "little")
    return bytes(header)


FOREIGN = {
    "text": (b"a,b\n1,2\n", "not a checkpoint of this library"),
    "one byte": (b"x", "not a checkpoint of this library"),
    "pickle of a list": (pickle.dumps(["a"]), "a pickle, but not of a dict"),
    "pickle of an object": (pickle.dumps(Path("a")), "a pickle, but not of a dict"),
    "keys that are not all text": (pickle.dumps({"a": 1, 2: 2}), "a pickle of a dict whose keys"),
    "keys that are paths": (pickle.dumps({Path("a"): 1}), "a pickle of a dict whose keys"),
    "two pickles": (pickle.dumps({"a": 1}) + pickle.dumps({"b": 2}), "a pickle with something"),
    "half a pickle": (pickle.dumps({"a": 1})[:-1], "not a checkpoint of this library"),
    "zeros": (bytes(500), "not a checkpoint of this library"),
    "other version": (_other_version(), "version 2 of the format"),
    "line ends changed": (
        b"\x80\x04}C\x16\x89RPL\n\x1a\n" + bytes(30),
        "is damaged: its header is not what was written",
    ),
}


@pytest.mark.parametrize(("content", "reason"), FOREIGN.values(), ids=FOREIGN.keys())
def test_foreign_files_are_refused(path: Path, content: bytes, reason: str) -> None:
    """A file that is something else is named in the error, and not a byte of it is changed."""
    path.write_bytes(content)
    readers_reason = reason if "a pickle" not in reason else "not a checkpoint of this library"
    for attempt, why in (
        (PickleFile(path).open, reason),
        (PickleFile(path).settle, reason),
        (PickleFile(path).compact, reason),
        (lambda: open_checkpoint(path), readers_reason),
    ):
        with pytest.raises(CheckpointError) as caught:
            attempt()
        assert quoted(str(path)) in str(caught.value)
        assert why in str(caught.value)
        assert path.read_bytes() == content
    path.rename(path.with_suffix(".txt"))  # and nobody holds it


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

    def write_in_part(fd: int, parts: list[bytes], offset: int) -> None:
        data = b"".join(parts)
        disk.write_at(fd, data[: len(data) * 3 // 4], offset)
        assert dict(reader) == {"before": 0, "seen": 1}
        monkeypatch.undo()
        raise OSError(errno.ENOSPC, "No space left on device")

    with writing(path) as checkpoint:
        checkpoint.save([result("before", 0)])
        if synced:
            checkpoint.sync()
        monkeypatch.setattr(append_file, "write_parts", write_in_part)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.save([result("seen", 1), result("torn", 2)])
        assert plain(path) == ({"before": 0} if synced else {})
        checkpoint.save([result("next", 3), result("and", 4), result("more", 5)])
        assert dict(reader) == {"before": 0, "seen": 1, "next": 3, "and": 4, "more": 5}
    assert plain(path) == dict(reader) == dict(open_checkpoint(path))
