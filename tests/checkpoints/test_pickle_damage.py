"""result.pkl cut, damaged, and left behind by a crash at every point of its writing."""

from __future__ import annotations

import itertools
import pickle
import random
from binascii import crc32
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, open_checkpoint
from resumable_pool.checkpoints import PickleFile, disk, pickle_file
from resumable_pool.checkpoints import log_file as append_file
from resumable_pool.checkpoints.pickle_record import (
    FIRST_RECORD,
    PickleScan,
    pid_field,
    read_header,
)

from .conftest import failed, metadata_at, pickled_result, plain, result, write, writing
from .test_pickle_file import NeedsProtocol4

OUTCOMES = [
    *(result(f"file {number}", number) for number in range(6)),
    failed("bad"),
    result("refuses protocol 3", NeedsProtocol4()),
    result("text", "line\n.C." * 8),
    failed("tried again"),
    result("nothing", None),
    result("tried again", [1, [2]]),
    result("not-utf-8-\udcff", {"a": (1.5,)}),
    *(result(f"more/{number}", [str(number)] * 2) for number in range(6)),
]
COMMITTED = 14  # of them; the rest is the uncommitted tail, where there is one
VALUES = {outcome.path: outcome.value for outcome in OUTCOMES if outcome.ok}


def _checkpoint_with_tail(path: Path, committed: int) -> bytes:
    """A file as SIGKILL would leave it: `committed` outcomes, and the others behind the STOP."""
    with writing(path) as checkpoint:
        checkpoint.save(OUTCOMES[:committed])
        checkpoint.sync()
        for outcome in OUTCOMES[committed:]:
            checkpoint.save([outcome])
        return path.read_bytes()


def _ends(path: Path) -> list[int]:
    """Where each record ends."""
    with open(path, "rb") as file:
        scan = PickleScan(
            file.fileno(), "", FIRST_RECORD, FIRST_RECORD, read_header(file.fileno(), "")
        )
        starts = [start for found in scan for start in found.starts]
        return [start + metadata_at(file.fileno(), start).end + 1 for start in starts]


def _after(count: int) -> tuple[dict[str, Any], set[str]]:
    """The values and the failed paths when so many outcomes have been saved."""
    values: dict[str, Any] = {}
    failures: set[str] = set()
    for outcome in OUTCOMES[:count]:
        failures.discard(outcome.path)
        if outcome.ok:
            values[outcome.path] = outcome.value
        else:
            failures.add(outcome.path)
    return values, failures


@pytest.mark.parametrize("committed", [len(OUTCOMES), COMMITTED, 0])
@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
def test_cut_at_every_byte(path: Path, committed: int) -> None:
    """Wherever the file ends, it opens again with every record before the cut, and is plain."""
    content = _checkpoint_with_tail(path, committed)
    ends = _ends(path)
    assert len(ends) == len(OUTCOMES)
    for length in range(FIRST_RECORD, len(content)):
        path.write_bytes(content[:length])
        values, failures = _after(sum(end <= length for end in ends))
        assert dict(PickleFile(path)) == values, f"cut at {length}, before it is opened"
        with writing(path) as checkpoint:
            assert plain(path) == values, f"cut at {length}, and opened"
            assert set(checkpoint.failures()) == failures
        assert plain(path) == dict(PickleFile(path)) == values, f"cut at {length}, and closed"


@pytest.mark.parametrize("committed", [len(OUTCOMES), COMMITTED])
@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
def test_saving_goes_on_after_any_cut(path: Path, committed: int) -> None:
    """What is saved after a torn end was cut off stands behind the whole records."""
    content = _checkpoint_with_tail(path, committed)
    ends = _ends(path)
    for length in range(FIRST_RECORD, len(content), 7):
        path.write_bytes(content[:length])
        with writing(path) as checkpoint:
            checkpoint.save([result("new", "after the cut")])
        values, _ = _after(sum(end <= length for end in ends))
        assert plain(path) == {**values, "new": "after the cut"}
        assert dict(PickleFile(path)) == {**values, "new": "after the cut"}


def test_cutting_off_a_torn_end_is_told(path: Path) -> None:
    """Opening a file with a torn end says which file, and how many bytes were cut off."""
    write(path, result("a", 1), result("b", 2))
    path.write_bytes(path.read_bytes()[:-10])
    checkpoint = PickleFile(path)
    (note,) = checkpoint.open()
    checkpoint.close()
    assert str(path) in note
    assert "cut off" in note
    assert plain(path) == {"a": 1}


def test_cut_inside_the_header_is_refused(path: Path) -> None:
    """A file that ends inside its header is refused by all, with its bytes untouched."""
    write(path, result("a", 1))
    content = path.read_bytes()
    for length in range(1, FIRST_RECORD):
        path.write_bytes(content[:length])
        for attempt in (PickleFile(path).open, PickleFile(path).completed):
            with pytest.raises(CheckpointError, match="ends inside its header"):
                attempt()
        assert path.read_bytes() == content[:length]


def _damages(length: int, seed: int) -> list[tuple[int, bytes]]:
    """Where damage begins, and what is combined with the bytes there by exclusive or (bit flips),
    or put in their place (runs of zeros)."""
    chance = random.Random(seed)
    flips = [(chance.randrange(length), bytes([1 << chance.randrange(8)])) for _ in range(400)]
    runs = [(chance.randrange(length), bytes(chance.choice([1, 4, 40, 400]))) for _ in range(200)]
    return flips + runs


def _damaged(content: bytes, start: int, pattern: bytes) -> bytes:
    if any(pattern):
        changed = bytes(old ^ new for old, new in zip(content[start:], pattern, strict=False))
    else:
        changed = pattern[: len(content) - start]
    return content[:start] + changed + content[start + len(changed) :]


def _readable(checkpoint: PickleFile) -> dict[str, Any]:
    """All values that can be read; a key without one is a missing key."""
    values = {}
    for key in checkpoint:
        try:
            values[key] = checkpoint[key]
        except KeyError:
            continue
    return values


@pytest.mark.parametrize("committed", [len(OUTCOMES), COMMITTED])
@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
def test_damage_never_makes_a_wrong_value(path: Path, committed: int) -> None:
    """After flipped bits and zeroed runs a value is the one that was saved, or missing; the same
    after the saver has opened the file, unless it refused it and left every byte as it was."""
    content = _checkpoint_with_tail(path, committed)
    refused = 0
    for start, pattern in _damages(len(content), seed=committed):
        damaged = _damaged(content, start, pattern)
        path.write_bytes(damaged)
        where = f"{len(pattern)} bytes from {start}"
        try:
            assert _readable(PickleFile(path)).items() <= VALUES.items(), where
            with writing(path) as checkpoint:
                assert _readable(checkpoint).items() <= VALUES.items(), where
        except CheckpointError:
            refused += 1
            assert path.read_bytes() == damaged, where
    assert refused > 100  # otherwise nothing was damaged here


@pytest.mark.parametrize("of_record", [0, 1, 2, 6, 10, 14, 46, 47, 48, 52, 57])
def test_damage_before_a_sound_record_is_refused(path: Path, of_record: int) -> None:
    """A record that is damaged in its header or key, with a sound one behind it, is no torn end:
    reader and writer refuse, and not a byte is changed."""
    write(path, result("first", 1), result("second", 2), result("third", 3))
    start = _ends(path)[0]
    content = _damaged(path.read_bytes(), start + of_record, b"\x40")
    # As if another process had written it: opening must not leave its own pid behind, either.
    pid, offset = pid_field(4_000_000)
    content = content[:offset] + pid + content[offset + len(pid) :]
    path.write_bytes(content)
    for attempt in (PickleFile(path).completed, PickleFile(path).open):
        with pytest.raises(
            CheckpointError, match="is damaged: there is no record at byte"
        ) as error:
            attempt()
        assert str(path) in str(error.value)
        assert f"{start:,}" in error.value.reason
    assert path.read_bytes() == content


@pytest.mark.parametrize("of_record", [0, 2, 14, 48, 52])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_compacting_keeps_what_is_around_damage(path: Path, number: int, of_record: int) -> None:
    """A record that no run would read past costs itself: check() says where it was, compact() saves
    the others, and then runs go on."""
    write(path, *(result(f"file {number}", number) for number in range(4)), failed("bad"))
    start, end = [FIRST_RECORD, *_ends(path)][number : number + 2]
    damaged = _damaged(path.read_bytes(), start + of_record, b"\x40")
    path.write_bytes(damaged)
    (finding,) = PickleFile(path).check()
    assert f"the {end - start:,} bytes from byte {start:,} on" in finding
    assert path.read_bytes() == damaged
    first, *_ = PickleFile(path).compact()
    assert first == finding
    expected = {f"file {other}": other for other in range(4) if other != number}
    assert plain(path) == dict(open_checkpoint(path)) == expected
    assert list(open_checkpoint(path).failures()) == ["bad"]
    write(path, result("new", 1))
    assert plain(path) == {**expected, "new": 1}


def test_a_record_that_is_damaged_under_a_reader_is_missing(path: Path) -> None:
    """What the reader has found before is not taken for granted."""
    write(path, result("first", 1), result("between", "x" * 10_000), result("second", 2))
    reader = open_checkpoint(path)
    assert reader["first"] == 1
    path.write_bytes(path.read_bytes().replace(b"first", b"worst"))
    for attempt in (reader.fingerprint, reader.read):
        with pytest.raises(KeyError, match="first"):
            attempt("first")
    assert reader["second"] == 2


def test_the_lock_is_free_after_a_refusal(path: Path) -> None:
    """Who refused a damaged file does not hold it: it opens as soon as it is put right."""
    write(path, result("first", 1), result("second", 2))
    sound = path.read_bytes()
    path.write_bytes(_damaged(sound, FIRST_RECORD + 2, b"\xff"))
    with pytest.raises(CheckpointError):
        PickleFile(path).open()
    path.write_bytes(sound)
    write(path, result("third", 3))
    assert len(plain(path)) == 3


@pytest.mark.parametrize("size", [10, 100_000], ids=["small", "large"])
def test_a_value_that_fails_its_checksum_is_missing(path: Path, size: int) -> None:
    """A damaged value is a missing key when it is read; the values around it are as they were."""
    value = b"\xaa" * size
    write(path, result("before", 1), result("damaged", value), result("after", 2))
    content = path.read_bytes()
    path.write_bytes(_damaged(content, content.index(value) + size // 2, b"\x01"))
    reader = open_checkpoint(path)
    with pytest.raises(KeyError, match="damaged"):
        reader["damaged"]
    assert reader.get("damaged") is None
    assert _readable(PickleFile(path)) == {"before": 1, "after": 2}
    write(path, result("damaged", value))
    assert open_checkpoint(path)["damaged"] == value


def test_a_path_whose_value_is_damaged_is_to_do_again(path: Path) -> None:
    """A damaged value's path is not completed, so that the next run processes it again."""
    write(path, result("damaged", "text"), result("after", 2))
    content = path.read_bytes()
    path.write_bytes(_damaged(content, content.index(b"text"), b"\x01"))
    reader = open_checkpoint(path)
    assert list(reader.completed()) == ["after"]
    assert "damaged" not in reader
    assert len(reader) == 1


def test_a_damaged_value_does_not_bring_an_earlier_one_back(path: Path) -> None:
    """Where the last value of a path is damaged, the one before it is not passed off as it."""
    write(path, result("a", b"old old old"), result("a", b"new new new"))
    content = path.read_bytes()
    path.write_bytes(_damaged(content, content.index(b"new new"), b"\x01"))
    assert dict(open_checkpoint(path)) == {}


def test_a_damaged_value_still_ends_a_failure(path: Path) -> None:
    """The file is to do, and neither done nor failed."""
    write(path, failed("a"), result("a", b"new new new"))
    content = path.read_bytes()
    path.write_bytes(_damaged(content, content.index(b"new new"), b"\x01"))
    assert dict(open_checkpoint(path)) == dict(open_checkpoint(path).failures()) == {}


def test_a_wrong_checksum_from_a_worker_is_a_missing_key(path: Path) -> None:
    """Bytes that changed on their way to the saver are not taken for the value."""
    outcome = pickled_result("a", pickle.dumps(1, 3))
    changed = pickle.dumps(2, 3)
    assert crc32(changed) != outcome.checksum
    write(path, type(outcome)("a", changed, outcome.checksum, None, 0.0), result("b", 2))
    assert dict(open_checkpoint(path)) == {"b": 2}


class _Recorder:
    """Writes as the real functions do, and keeps what was written since each force."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forced = path.read_bytes()
        self.writes: list[tuple[int, bytes]] = []
        self.crashes: list[tuple[bytes, list[tuple[int, bytes]]]] = []
        monkeypatch.setattr(append_file, "write_at", self._write_at)
        monkeypatch.setattr(append_file, "write_parts", self._write_parts)
        monkeypatch.setattr(pickle_file, "write_at", self._write_at)
        monkeypatch.setattr(append_file, "force", self._force)

    def _write_at(self, fd: int, data: bytes | memoryview, offset: int) -> None:
        disk.write_at(fd, data, offset)
        self.writes.append((offset, bytes(data)))
        self.crashes.append((self.forced, list(self.writes)))

    def _write_parts(self, fd: int, parts: list[bytes], offset: int) -> None:
        self._write_at(fd, b"".join(parts), offset)

    def _force(self, fd: int) -> None:
        disk.force(fd)
        self.forced = _image(self.forced, self.writes)
        self.writes = []


def _image(content: bytes, writes: list[tuple[int, bytes]]) -> bytes:
    """A file after these writes; what no write reached is zeros."""
    for offset, data in writes:
        content = content.ljust(offset, b"\0")
        content = content[:offset] + data + content[offset + len(data) :]
    return content


@pytest.fixture
def crashes(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What was on the disk for sure, and the writes since then, at every write of two runs."""
    write(path)
    recorder = _Recorder(path, monkeypatch)
    for outcomes in (OUTCOMES[:10], OUTCOMES[10:]):
        with writing(path) as checkpoint:
            for number, outcome in enumerate(outcomes):
                checkpoint.save([outcome])
                if number % 3 == 2:
                    checkpoint.sync()
    monkeypatch.undo()
    return recorder.crashes


def _check_crash_image(path: Path, image: bytes) -> None:
    path.write_bytes(image)
    assert plain(path).items() <= VALUES.items()
    with writing(path) as checkpoint:
        assert dict(checkpoint) == plain(path)
        assert dict(checkpoint).items() <= VALUES.items()


@pytest.mark.alike
def test_a_kill_in_the_middle_of_any_write_leaves_a_plain_pickle(path: Path, crashes: Any) -> None:
    """However much of any write has reached the file, plain pickle.load works, and our own reader
    has everything that was saved before."""
    for forced, writes in crashes:
        *before, (offset, data) = writes
        written = _image(forced, before)
        path.write_bytes(written)
        saved = dict(PickleFile(path))
        for length in {*range(0, len(data), 5), 1, len(data)}:
            image = _image(written, [(offset, data[:length])])
            path.write_bytes(image)
            assert plain(path).items() <= VALUES.items()
            assert saved.items() <= dict(PickleFile(path)).items() <= VALUES.items()


@pytest.mark.alike
def test_a_power_cut_leaves_a_plain_pickle(path: Path, crashes: Any) -> None:
    """Whichever of the writes since the last force have reached the disk, in whatever order, plain
    pickle.load works, and opening the file makes no wrong value of it."""
    for forced, writes in crashes:
        assert len(writes) < 8
        for count in range(len(writes) + 1):
            for reached in itertools.combinations(writes, count):
                _check_crash_image(path, _image(forced, list(reached)))


@pytest.mark.alike
def test_what_was_forced_survives_a_power_cut(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When sync returns, the disk has the records for sure; when close returns, all of it."""
    write(path)
    recorder = _Recorder(path, monkeypatch)
    copy = path.with_name("copy.pkl")
    with writing(path) as checkpoint:
        for outcome in OUTCOMES:
            checkpoint.save([outcome])
            checkpoint.sync()
            copy.write_bytes(recorder.forced)
            assert dict(PickleFile(copy)) == dict(checkpoint)
    assert recorder.forced == path.read_bytes()
