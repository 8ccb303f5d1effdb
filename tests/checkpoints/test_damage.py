"""Damage of all kinds: nothing that is sound is lost, and what can be put right is, by any run."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_pool import CheckpointError, ResumableRunner
from resumable_pool.checkpoints import PickleFile, checkpoint_at, json_lines, merge, pickle_record
from resumable_pool.checkpoints.json_lines import JsonLines
from tests.conftest import CHEAPEST

from . import conftest
from .conftest import PATIENCE_SECONDS, failed, plain, start_python, write, writing

NUMBER = 12
VALUES = {f"in/{number}.wav": f"text {number} of it" for number in range(NUMBER)}
COMMITTED = 8


@pytest.fixture(params=[".pkl", ".jsonl"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of each format that is appended to."""
    return tmp_path / f"result{request.param}"


def content(path: Path, committed: int = NUMBER) -> tuple[bytes, list[tuple[int, int]]]:
    """A file as SIGKILL would leave it, and where its records are."""
    encode = checkpoint_at(path).encode
    places: list[tuple[int, int]] = []
    with writing(path) as checkpoint:
        for number, (key, value) in enumerate(VALUES.items()):
            checkpoint.save([conftest.result(key, value, encode)])
            end = path.stat().st_size - (path.suffix == ".pkl")
            places.append((places[-1][1] if places else 35 * (path.suffix == ".pkl"), end))
            if number < committed:
                checkpoint.sync()
        return path.read_bytes(), places


def damages(first: int, length: int, seed: int) -> Iterator[tuple[int, int, bytes]]:
    """Where damage begins and ends, and what stands there then."""
    chance = random.Random(seed)
    for _ in range(80):
        start = chance.randrange(first, length)
        size = chance.choice([1, 1, 1, 5, 40, 300])
        yield start, min(start + size, length), chance.choice([bytes(size), chance.randbytes(size)])


def values_in(path: Path) -> dict[str, object]:
    return dict(checkpoint_at(path))


@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
@pytest.mark.parametrize("committed", [NUMBER, COMMITTED, 0])
def test_no_sound_record_is_lost(path: Path, committed: int) -> None:
    """Whatever is overwritten, every record that is not touched is there after the next run, or the
    file is refused, with not a byte changed, and there after compacting."""
    whole, places = content(path, committed)
    outcomes = {"healed": 0, "refused": 0}
    for start, end, patch in damages(places[0][0], len(whole), committed):
        damaged = whole[:start] + patch[: end - start] + whole[end:]
        path.write_bytes(damaged)
        sound = {
            key: VALUES[key]
            for key, (begin, behind) in zip(VALUES, places, strict=True)
            # The line end is no part of a line, and the first byte of a record may be a STOP.
            if damaged[begin + 1 : behind - 1] == whole[begin + 1 : behind - 1]
            and damaged[begin : begin + 1] in (whole[begin : begin + 1], b".")
            and damaged[behind - 1 : behind] in (whole[behind - 1 : behind], b"\n")
        }
        try:
            checkpoint_at(path).settle()
            outcomes["healed"] += 1
        except CheckpointError:
            assert path.read_bytes() == damaged
            assert checkpoint_at(path).check() != []
            outcomes["refused"] += 1
            checkpoint_at(path).compact()
        where = f"{end - start} bytes from {start}"
        assert sound.items() <= values_in(path).items() <= VALUES.items(), where
        assert checkpoint_at(path).check() == [], where
        if path.suffix == ".pkl":
            assert plain(path) == values_in(path), where
        for old in path.parent.glob("*.bak*"):
            old.unlink()
    assert all(outcomes.values()) or committed == 0


def _break(whole: bytes, places: list[tuple[int, int]]) -> Iterator[tuple[str, bytes]]:
    start, end = places[-1]
    yield "the last byte is gone", whole[:-1]
    yield "two bytes are gone", whole[:-2]
    yield "the last byte is changed", whole[:-1] + b"/"
    yield "half of the last record is gone", whole[: (start + end) // 2]
    for length in (1, 2, 50, 500):
        yield f"{length} zeros at the end", whole[: len(whole) - length] + bytes(length)
    yield "zeros behind the end", whole + bytes(700)
    at = whole.index(b"text 5")
    for bit in range(8):
        flipped = bytes([whole[at] ^ 1 << bit])
        yield f"bit {bit} of a value", whole[:at] + flipped + whole[at + 1 :]


def test_any_run_heals_the_plain_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one with nothing to do, and one of a runner that has looked before; it says so, and what
    check() has found before it finds no more."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "result.pkl"
    whole, places = content(path)
    fresh = path.read_bytes()
    for name, damaged in _break(whole, places):
        runner = ResumableRunner(len, "none/*", "result.pkl", progress=False)
        path.write_bytes(fresh)
        assert len(runner.results) == NUMBER
        path.write_bytes(damaged)
        assert PickleFile(path).check() != [], name
        assert runner.run().total == 0
        assert plain(path) == values_in(path), name
        assert values_in(path).items() <= VALUES.items()
        assert len(values_in(path)) >= NUMBER - (6 if "500" in name else 1), name
        assert PickleFile(path).check() == [], name
        path.with_name("result.pkl.bak").unlink(missing_ok=True)


def test_a_damaged_value_is_named_and_its_file_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The damaged bytes are in no program any more, and in the old file."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("words " + name)
    runner = ResumableRunner(_read, "*.txt", "result.pkl", mp_context=CHEAPEST, max_workers=1)
    runner.run()
    whole = Path("result.pkl").read_bytes()
    damaged = whole.replace(b"words a", b"wordz a")
    Path("result.pkl").write_bytes(damaged)
    capfd.readouterr()
    assert runner.run().completed == 1
    error = capfd.readouterr().err
    assert "the value of 'a.txt' is damaged, at byte 35: the next run does that file again" in error
    assert "result.pkl.bak" in error
    expected = {name: "words " + name for name in ("a.txt", "b.txt")}
    assert plain(Path("result.pkl")) == dict(runner.results) == expected
    assert b"wordz" in Path("result.pkl.bak").read_bytes()


@pytest.mark.parametrize("size", [100, 10_000, 3_000_000])
def test_damage_far_from_the_end_is_seen_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], size: int
) -> None:
    """Whatever the size of the value, and also by a runner that has looked before."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "result.pkl"
    values = {f"in/{number}.wav": chr(65 + number) * size for number in range(4)}
    write(path, *(conftest.result(key, value) for key, value in values.items()))
    write(path, *(conftest.result(f"{number}", "x" * 100) for number in range(100)))
    whole = bytearray(path.read_bytes())
    runner = ResumableRunner(len, "none/*", "result.pkl")
    assert runner.results["in/1.wav"] == values.pop("in/1.wav")
    whole[whole.index(b"BBBB") + size // 2] ^= 8
    path.write_bytes(whole)
    capfd.readouterr()
    assert runner.run().total == 0
    error = capfd.readouterr().err
    assert "the value of 'in/1.wav' is damaged" in error
    assert "result.pkl.bak" in error
    assert values.items() <= plain(path).items()
    assert plain(path) == values_in(path)
    assert len(plain(path)) == 103
    assert PickleFile(path).check() == []


def _read(path: str) -> str:
    return Path(path).read_text()


def test_a_reader_that_has_looked_twice_settles(path: Path) -> None:
    """It does not forget between two looks what is not committed yet."""
    with writing(path) as checkpoint:
        encode = checkpoint.encode
        checkpoint.save([conftest.result("a", 1, encode)])
        checkpoint.sync()
        reader = checkpoint_at(path.with_stem("copy"))
        for key in ("b", "c"):
            checkpoint.save([conftest.result(key, 2, encode)])
            shutil.copyfile(path, reader.path)  # as if it were not locked
            assert key in reader
    reader.settle()
    assert dict(reader) == {"a": 1, "b": 2, "c": 2}
    assert checkpoint_at(reader.path).check() == []
    if path.suffix == ".pkl":
        assert plain(Path(reader.path)) == dict(reader)


HOLDER = """
import sys
from resumable_pool.checkpoints import checkpoint_at
checkpoint = checkpoint_at(sys.argv[1])
checkpoint.open()
with open(sys.argv[1], "ab") as file:
    file.write(b'{"path": "x", "val' * 1000)
print("torn", flush=True)
sys.stdin.read()
"""


def test_what_is_being_written_is_no_finding(path: Path) -> None:
    """Only when nobody is there to write the rest it is one."""
    write(path, conftest.result("a", 1, checkpoint_at(path).encode))
    with start_python(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "torn\n"
        assert checkpoint_at(path).check() == []
        process.kill()
        process.wait(PATIENCE_SECONDS)
    (finding,) = checkpoint_at(path).check()
    assert "an unfinished end of 18,000 bytes; the next run" in finding


# Of one format.


@pytest.mark.parametrize("second", ["ours", "a copy", "plain"])
def test_a_second_pickle_behind_the_first_is_refused(tmp_path: Path, second: str) -> None:
    """`cat a.pkl b.pkl > result.pkl` is not what `merge` does: nobody would find the second."""
    path, other = tmp_path / "result.pkl", tmp_path / "other.pkl"
    write(path, conftest.result("a", 1))
    first = path.read_bytes()
    write(other, conftest.result("b", 2))
    behind = {"ours": other.read_bytes(), "a copy": first, "plain": pickle.dumps({"b": 2})}[second]
    path.write_bytes(first + behind)
    for attempt in (PickleFile(path).completed, PickleFile(path).settle, PickleFile(path).compact):
        with pytest.raises(CheckpointError, match=rf"another pickle .* byte {len(first):,} on"):
            attempt()
        assert path.read_bytes() == first + behind
    assert "another pickle" in PickleFile(path).check()[0]
    if second == "ours":  # the remedy
        path.write_bytes(first)
        merge(path, [other])
        assert plain(path) == {"a": 1, "b": 2}


def _with_inner_file(path: Path, values: dict[str, object]) -> bytes:
    """A checkpoint with a failure as well, and one value that has another file's records in it."""
    inner = path.with_name("inner.pkl")
    write(inner, *(conftest.result(f"inner {key}", key) for key in range(5)))
    values["in/a.wav"] = inner.read_bytes()
    write(path, *(conftest.result(key, value) for key, value in values.items()), failed("x"))
    return path.read_bytes()


@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
@pytest.mark.parametrize("others", [{}, {"in/b.wav": "text", "in/c.wav": [1] * 5000}])
def test_a_damaged_header_costs_no_result(tmp_path: Path, others: dict[str, object]) -> None:
    """It is refused, and told as damage; compact, which the error names, saves every record."""
    path, values = tmp_path / "result.pkl", {"in/a.wav": b"", **others}
    whole = _with_inner_file(path, values)
    patches = [(at, bytes([whole[at] ^ bit])) for at in range(30) for bit in (1, 128)]
    patches += [(0, bytes(35)), (0, b"\xff" * 35), (13, bytes(22)), (14, bytes(8))]
    for at, patch in patches:
        damaged = whole[:at] + patch + whole[at + len(patch) :]
        path.write_bytes(damaged)
        for attempt in (PickleFile(path).completed, PickleFile(path).settle):
            with pytest.raises(CheckpointError, match=r"is damaged: its header .* compact"):
                attempt()
        assert path.read_bytes() == damaged
        assert PickleFile(path).check() != []
        assert "its header" in PickleFile(path).compact()[0]
        assert values_in(path) == plain(path) == values, at
        assert [*PickleFile(path).failures()] == ["x"]
        assert Path(f"{path}.bak").read_bytes()[35:] == damaged[35:]
        Path(f"{path}.bak").unlink()


@pytest.mark.parametrize("names", ["a", "ab", "abc"])
def test_records_tell_a_lost_header(tmp_path: Path, names: str) -> None:
    """One that stands alone does; of several, those that agree, and not one whose path is damaged:
    that one is as lost as the header."""
    path = tmp_path / "result.pkl"
    write(path, *(conftest.result(f"in/{name}.wav", name) for name in names))
    whole = bytes(35) + path.read_bytes()[35:]
    path.write_bytes(whole.replace(b"in/c.wav", b"in/d.wav"))
    PickleFile(path).compact()
    assert values_in(path) == plain(path) == {f"in/{name}.wav": name for name in names[:2]}


@pytest.mark.parametrize("nested", [True, False])
def test_a_lost_header_and_first_record_leave_the_others(tmp_path: Path, nested: bool) -> None:
    """But records that may be of another file, in a lost value, are not taken for this one's."""
    path, values = tmp_path / "result.pkl", {"in/a.wav": b"", "in/b.wav": "text", "in/c.wav": 3}
    whole = _with_inner_file(path, values)
    length = 80 if nested else whole.index(b"in/b.wav") - 70
    path.write_bytes(bytes(length) + whole[length:])
    if nested:
        with pytest.raises(CheckpointError):
            PickleFile(path).compact()
        assert path.read_bytes() == bytes(length) + whole[length:]
    else:
        PickleFile(path).compact()
        assert values_in(path) == plain(path) == {"in/b.wav": "text", "in/c.wav": 3}


@pytest.mark.parametrize("suffix", conftest.SUFFIXES)
def test_what_a_killed_compact_has_left_is_removed(tmp_path: Path, suffix: str) -> None:
    """By whoever opens it next. What somebody is writing stays, and so does what is not ours."""
    path = tmp_path / f"result{suffix}"
    write(path, conftest.result("a", 1, checkpoint_at(path).encode))
    with start_python("print(1)") as process:
        process.wait(PATIENCE_SECONDS)
    dead, alive = (f"{path}.new-{pid}-0123abcd" for pid in (process.pid, os.getpid()))
    left = {f"{dead}{end}" for end in ("", ".lock", "-wal", "-shm", "-journal")}
    left |= {f"{path}.lock.new-{process.pid}-0123abcd", f"{dead}.lock.new-{process.pid}-89abcdef"}
    kept = {alive, f"{path}.new-notes.txt", f"{path}-wal.new-{process.pid}-0123abcd", f"{dead}.txt"}
    kept.add(f"{path}.new-{10**19}-0123abcd")  # no process has such a number
    for name in left | kept:
        Path(name).write_bytes(b"x")
    checkpoint_at(path).compact()
    assert {str(name) for name in tmp_path.glob("*.new-*")} == kept
    assert values_in(path) == {"a": 1}


@pytest.mark.parametrize("end", [b"", b"\0", b"\0" * 300, b'{"path": "c', b"\n\n", b"\x1a"])
def test_a_last_line_without_its_end_is_kept(tmp_path: Path, end: bytes) -> None:
    """Its checksum says that it is whole. What stands behind it is cut off, the end put back."""
    path = tmp_path / "result.jsonl"
    encode = JsonLines.encode
    write(path, conftest.result("a", 1, encode), conftest.result("b", 2, encode), failed("c"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + end)
    assert dict(JsonLines(path)) == {"a": 1, "b": 2}
    assert JsonLines(path).check() != []
    (note,) = JsonLines(path).settle()
    assert "its end" in note or "cut off" in note
    assert path.read_bytes() == whole
    assert list(JsonLines(path).failures()) == ["c"]
    write(path, conftest.result("c", 3, encode))
    assert dict(JsonLines(path)) == {"a": 1, "b": 2, "c": 3}
    assert JsonLines(path).check() == []


def test_lines_that_were_joined_without_an_end_are_two(tmp_path: Path) -> None:
    """As `cat` joins files when an editor has removed the last line end of the first."""
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for number, path in enumerate(paths):
        write(path, conftest.result(path.stem, [{"path": "}{"}, number], JsonLines.encode))
    joined = tmp_path / "result.jsonl"
    joined.write_bytes(paths[0].read_bytes()[:-1] + b"".join(p.read_bytes() for p in paths[1:]))
    assert JsonLines(joined).check() == JsonLines(joined).settle() == []
    joined.write_bytes(b"".join(path.read_bytes()[:-1] for path in paths))
    values = {path.stem: [{"path": "}{"}, number] for number, path in enumerate(paths)}
    assert dict(JsonLines(joined)) == values
    write(joined, conftest.result("d", 4, JsonLines.encode))
    assert dict(JsonLines(joined)) == {**values, "d": 4}
    assert JsonLines(joined).check() == []


def test_removed_lines_do_not_make_damage_a_torn_end(tmp_path: Path) -> None:
    """Also where the last mark of what was committed is gone with one of them."""
    path = tmp_path / "result.jsonl"
    whole, _ = content(path, 0)
    lines = whole.splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"path":', b'"path";')
    path.write_bytes(b"".join(lines[:-1]))
    before = path.read_bytes()
    notes = JsonLines(path).settle()
    assert notes[0] == "line 4 is not what was written"
    kept = dict(JsonLines(path))
    assert kept == {key: VALUES[key] for number, key in enumerate(VALUES) if number not in (3, 11)}
    assert Path(f"{path}.bak").read_bytes() == before
    assert [json.loads(line)["path"] for line in path.read_bytes().splitlines()] == [*kept]


def test_a_failure_without_its_texts_is_found(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if its checksum is right: somebody can make one."""
    for layout in (pickle_record, json_lines):
        monkeypatch.setattr(layout, "texts_of", lambda failure: b'{"kind": 1}')
    write(path, conftest.result("a", 1, checkpoint_at(path).encode), failed("b"))
    (finding,) = checkpoint_at(path).check()
    assert finding.startswith("the failure of 'b' is damaged, at byte ")
    assert checkpoint_at(path).compact()
    assert checkpoint_at(path).check() == []
    assert dict(checkpoint_at(path)) == {"a": 1}
