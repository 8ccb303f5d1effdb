"""results.jsonl: the bytes of its lines, what other readers make of them, and damage."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, open_checkpoint
from resumable_pool.checkpoints.json_lines import JsonLines, LineScan, outcome_of, record_of
from resumable_pool.records import Outcome
from resumable_pool.values import json_value

from . import conftest
from .conftest import failed, write, writing


def result(path: str, value: Any) -> Outcome:
    return conftest.result(path, value, json_value)


def encode(outcome: Outcome) -> bytes:
    return b"".join(record_of(outcome))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def objects(path: Path) -> list[Any]:
    """What somebody without this library reads."""
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_the_lines_are_these(path: Path) -> None:
    """A value and a failure, byte by byte; the tab says that both were forced to the disk."""
    lines = [
        rb'{"path": "in/\ud83e\udd89.wav", "value": {"words": 7}, "seconds": 0.25, '
        rb'"attempts": 1, "size": 1234, "mtime_ns": 1700000000000000001, '
        rb'"finished_at": 1764259200.1234567',
        rb'{"path": "b", "failure": {"kind": "error", "message": "ValueError: no", '
        rb'"traceback": "Traceback: here"}, "seconds": 0.5, "attempts": 2, "size": 1234, '
        rb'"mtime_ns": 1700000000000000001, "finished_at": 1764259200.1234567',
    ]
    with writing(path) as checkpoint:
        checkpoint.save([result("in/\N{OWL}.wav", {"words": 7})])
        checkpoint.save_failures([failed("b")])
        checkpoint.sync()
        first, second = (b'"crc32": "%08x"}\n' % zlib.crc32(line) for line in lines)
        assert path.read_bytes() == lines[0] + b", " + first + lines[1] + b",\t" + second
        assert next(iter(checkpoint.entries())).size == len('{"words": 7}')


def test_every_line_is_json_of_ascii(path: Path) -> None:
    """Whatever is in values, paths and messages; each object has a value or a failure."""
    odd = "two\nlines \u2028 \udcff \0 \N{OWL} \\ \" '"
    write(path, result(odd, [odd, {odd: odd}]), failed(odd, odd))
    done, bad = objects(path)
    assert (done["path"], done["value"]) == (odd, [odd, {odd: odd}])
    assert bad["failure"]["message"] == odd
    assert "failure" not in done
    assert "value" not in bad


def test_tuples_become_lists(path: Path) -> None:
    """JSON knows one kind of sequence."""
    write(path, result("a", ("x", (1, 2), {"b": ()})))
    assert open_checkpoint(path)["a"] == ["x", [1, 2], {"b": []}]


def test_lines_are_decoded_to_what_they_were_made_of() -> None:
    """An outcome comes back with all its facts."""
    for outcome in (result("a", [1.5, "x"]), failed("b", "\ud800"), result("\udcff", None)):
        assert outcome_of(encode(outcome)) == outcome


@pytest.mark.parametrize("outcome", [result("key", ["value", 1]), failed("key")])
def test_any_changed_bit_of_a_line_is_noticed(outcome: Outcome) -> None:
    """Whatever bit changes, the line is none any more, or says exactly the same."""
    line = encode(outcome)
    for position in range(len(line)):
        for bit in range(8):
            changed = bytearray(line)
            changed[position] ^= 1 << bit
            assert outcome_of(bytes(changed)) is None, (position, bit)


# Other readers.


def test_pandas_reads_it(path: Path) -> None:
    """One row a line, also while it is written."""
    pandas = pytest.importorskip("pandas")
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1), result("b", {"x": 2.5})])
        checkpoint.save_failures([failed("c")])
        checkpoint.save([result("a", 2)])
        frame = pandas.read_json(path, lines=True).drop_duplicates("path", keep="last")
    assert sorted(frame["path"]) == ["a", "b", "c"]
    assert frame.set_index("path").value["a"] == 2
    assert frame.set_index("path").failure["c"]["kind"] == "error"


def test_jq_reads_it(path: Path) -> None:
    """Values and failures are told apart by their keys."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("jq is not installed")
    write(path, result("a", {"x": 1}), failed("b"), result("not-utf-8-\udcff", {"x": 2}))
    for query, expected in ((".value.x // empty", "1\n2\n"), ("select(.failure) | .path", '"b"\n')):
        done = subprocess.run([jq, query, path], capture_output=True, text=True, check=True)
        assert done.stdout == expected


def test_lines_may_be_removed_and_files_joined(path: Path) -> None:
    """With any tool: what is left is a checkpoint, and so are two of them, one behind the other."""
    write(path, *(result(f"{number}", number) for number in range(5)))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[3:]]))
    assert dict(open_checkpoint(path)) == {"0": 0, "3": 3, "4": 4}
    other = path.with_name("other.jsonl")
    write(other, result("3", "later"), failed("bad"))
    path.write_bytes(path.read_bytes() + other.read_bytes())
    write(path, result("new", 1))
    assert dict(open_checkpoint(path)) == {"0": 0, "4": 4, "3": "later", "new": 1}
    assert list(open_checkpoint(path).failures()) == ["bad"]


# Damage.

OUTCOMES = [
    *(result(f"file {number}", number) for number in range(4)),
    failed("tried again"),
    result("text", '", "crc32": "00000000"}\n' * 3),
    result("tried again", [1, [2]]),
    result("not-utf-8-\udcff", {"a": [1.5]}),
]
VALUES = {outcome.path: outcome.value for outcome in OUTCOMES if outcome.ok}


def _content(path: Path, synced: Callable[[int], bool]) -> bytes:
    """A file as SIGKILL would leave it, synced after these outcomes."""
    with writing(path) as checkpoint:
        for number, outcome in enumerate(OUTCOMES):
            checkpoint.save([outcome])
            if synced(number):
                checkpoint.sync()
        return path.read_bytes()


@pytest.mark.parametrize("every", [1, 3, 100])
@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
def test_cut_at_every_byte(path: Path, every: int) -> None:
    """Wherever the file ends, it opens again with every whole line before the cut."""
    content = _content(path, lambda number: number % every == 0)
    ends = [match.end() for match in re.finditer(b"\n", content)]
    for length in range(len(content)):
        path.write_bytes(content[:length])
        whole = OUTCOMES[: sum(end - 1 <= length for end in ends)]  # its end is no part of it
        values = {outcome.path: outcome.value for outcome in whole if outcome.ok}
        assert dict(JsonLines(path)) == values, f"cut at {length}, before it is opened"
        if length % 3 == every % 3:
            with writing(path) as checkpoint:
                assert len(objects(path)) == len(whole)
                checkpoint.save([result("new", "after the cut")])
            assert dict(JsonLines(path)) == {**values, "new": "after the cut"}
            assert len(objects(path)) == len(whole) + 1


def test_cutting_off_a_torn_end_is_told(path: Path) -> None:
    """Opening a file with a torn end says which file, and how many bytes were cut off."""
    write(path, result("a", 1), result("b", 2))
    path.write_bytes(path.read_bytes()[:-10])
    checkpoint = JsonLines(path)
    (finding,) = checkpoint.check()
    assert "unfinished end" in finding
    (note,) = checkpoint.open()
    checkpoint.close()
    assert str(path) in note
    assert "cut off" in note
    assert dict(checkpoint) == {"a": 1}


@pytest.mark.parametrize("number", [0, 3, 6])
def test_a_damaged_line_before_a_sound_one_is_refused(path: Path, number: int) -> None:
    """It is no torn end: reader and writer refuse, and not a byte is changed."""
    write(path, *OUTCOMES)
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"seconds": 0', b'"seconds": 1')
    path.write_bytes(b"".join(lines))
    for attempt in (JsonLines(path).completed, JsonLines(path).open):
        with pytest.raises(CheckpointError, match=f"is damaged: line {number + 1} is not") as error:
            attempt()
        assert str(path) in str(error.value)
    assert path.read_bytes() == b"".join(lines)
    (finding,) = JsonLines(path).check()
    assert OUTCOMES[number].path in finding or "udcff" in finding
    JsonLines(path).compact()
    left = {name: value for name, value in VALUES.items() if name != OUTCOMES[number].path}
    assert dict(open_checkpoint(path)) == left


def test_each_of_several_damaged_lines_is_named(path: Path) -> None:
    """By its number, also where one follows the other."""
    write(path, *OUTCOMES)
    content = path.read_bytes().replace(b'"file 1"', b'"file 7"').replace(b'"file 2"', b'"file 8"')
    path.write_bytes(content)
    findings = JsonLines(path).check()
    assert [finding.partition(" is ")[0] for finding in findings] == ["line 2", "line 3"]
    assert [finding.rpartition(" ")[2] for finding in findings] == ['7"', '8"']


def test_what_stands_before_a_line_in_its_place_costs_no_other(path: Path) -> None:
    """Compacting keeps the line, and those behind it."""
    write(path, *(result(name, name) for name in "abc"))
    first, *others = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"half a li" + b"".join(others))
    assert JsonLines(path).check() == ["line 2 is not what was written"]
    JsonLines(path).compact()
    assert dict(JsonLines(path)) == {"a": "a", "b": "b", "c": "c"}


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"a,b", b"5", b"\n\n", b"[]\n"])
def test_a_file_of_something_else_is_refused(path: Path, content: bytes) -> None:
    """Also if it ends without a line end, as a torn line would: not a byte of it is changed."""
    path.write_bytes(content)
    for attempt in (JsonLines(path).completed, JsonLines(path).open, JsonLines(path).compact):
        with pytest.raises(CheckpointError, match="is not a checkpoint"):
            attempt()
        assert path.read_bytes() == content


def test_where_every_line_was_edited_the_file_is_damaged_and_no_strange_one(path: Path) -> None:
    """A word was replaced everywhere: it is told which line is wrong, and compacting helps."""
    write(path, result("a", "wrod"), result("b", "wrod"))
    edited = path.read_bytes().replace(b"wrod", b"word")
    path.write_bytes(edited)
    with pytest.raises(CheckpointError, match="is damaged: line 1 is not what was written"):
        JsonLines(path).open()
    assert [finding[:6] for finding in JsonLines(path).check()] == ["line 1", "line 2"]
    JsonLines(path).compact()
    assert dict(JsonLines(path)) == {}
    assert Path(f"{path}.bak").read_bytes() == edited


def test_where_every_second_line_was_edited_each_is_read_a_few_times(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And told by its number, however many there are."""
    number, read = 500, 0
    write(path, *(result(f"{n}", "wrod" if n % 2 else n) for n in range(number)))
    path.write_bytes(path.read_bytes().replace(b"wrod", b"word"))
    raw = LineScan._raw

    def counted(scan: LineScan, start: int, end: int) -> Iterator[bytes]:
        nonlocal read
        for line in raw(scan, start, end):
            read += 1
            yield line

    monkeypatch.setattr(LineScan, "_raw", counted)
    findings = JsonLines(path).check()
    what = "is not what was written, perhaps of"
    assert findings == [f'line {n + 1} {what} "{n}"' for n in range(1, number, 2)]
    assert read < 5 * number


def test_a_file_that_is_cut_while_it_is_read_ends_there(path: Path) -> None:
    """Who reads has seen a longer one."""
    write(path, *OUTCOMES)
    with open(path, "rb+") as file:
        scan = LineScan(file.fileno(), "", 0, 0)
        file.truncate(0)
        assert list(scan) == []


def test_what_is_appended_meanwhile_is_for_the_next_scan(path: Path) -> None:
    """A scan ends where the file ended when it began."""
    lines = [encode(result(name, name)) for name in "abc"]
    with open(path, "wb+", buffering=0) as file:
        file.write(lines[0] + lines[1][:50])
        scan = LineScan(file.fileno(), "", 0, 0)
        file.seek(len(lines[0]))
        file.write(lines[1] + lines[2])
        assert [found.paths for found in scan] == [["a"]]
        assert scan.end == len(lines[0])


def test_damage_before_a_torn_end_is_named(path: Path) -> None:
    """It is not part of that."""
    write(path, result("a", 1), result("b", 2))
    path.write_bytes(path.read_bytes().replace(b'"b"', b'"c"') + b'{"path": "d')
    first, second = JsonLines(path).check()
    assert first.startswith("line 2 is not what was written")
    assert "unfinished end" in second


@pytest.mark.parametrize("line", [b'{"path": "mine", "value": 1}\n', b"5", b"[]\n"])
def test_a_line_that_somebody_has_added_is_refused(path: Path, line: bytes) -> None:
    """It is whole, so it is no torn end; nothing is cut off."""
    write(path, *OUTCOMES)
    content = path.read_bytes() + line
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"line {len(OUTCOMES) + 1} is not what was written"):
        JsonLines(path).open()
    assert path.read_bytes() == content


def test_holes_that_a_power_cut_has_left_cost_only_what_was_there(path: Path) -> None:
    """What was written since the last sync may reach the disk in any order: every line that did is
    kept, and so is the file with the hole."""
    with writing(path) as checkpoint:
        checkpoint.save(OUTCOMES[:3])
        checkpoint.sync()
        synced = path.stat().st_size
        checkpoint.save(OUTCOMES[3:])
        content = path.read_bytes()
    ends = [match.end() for match in re.finditer(b"\n", content)]
    for start in range(synced, len(content), 29):
        hole = content[:start] + bytes(40) + content[start + 40 :]
        path.write_bytes(hole)
        sound = [
            outcome
            for outcome, begin, end in zip(OUTCOMES, [0, *ends], ends, strict=False)
            if end - 1 <= start or begin >= start + 40
        ]
        notes = JsonLines(path).settle()
        assert dict(JsonLines(path)) == {each.path: each.value for each in sound if each.ok}
        assert JsonLines(path).check() == JsonLines(path).settle() == []
        if sound[-1] is OUTCOMES[-1]:
            assert Path(f"{path}.bak").read_bytes() == hole
            assert "is not what was written" in notes[0]
            Path(f"{path}.bak").unlink()


def test_holes_before_the_last_sync_are_damage(path: Path) -> None:
    """What was forced to the disk is not dropped without a word."""
    with writing(path) as checkpoint:
        for outcome in OUTCOMES:
            checkpoint.save([outcome])
            checkpoint.sync()
    content = path.read_bytes()
    path.write_bytes(bytes(40) + content[40:])
    for start in range(0, content.rindex(b'{"path"') - 40, 29):
        path.write_bytes(content[:start] + bytes(40) + content[start + 40 :])
        with pytest.raises(CheckpointError, match="is damaged"):
            JsonLines(path).open()


@pytest.mark.parametrize("length", [1, 10, 11, 20, 60])
def test_a_torn_first_line_is_cut_off(path: Path, length: int) -> None:
    """A file with nothing but the beginning of a line of ours is ours."""
    path.write_bytes(encode(result("in/a", [1, 2, 3]))[:length])
    assert dict(JsonLines(path)) == {}
    assert "unfinished end" in JsonLines(path).check()[0]
    write(path, result("b", 2))
    assert dict(JsonLines(path)) == {"b": 2}


def test_readers_are_not_confused_by_a_line_that_is_being_written(path: Path) -> None:
    """A reader that has met half a line reads on when it is whole, and committed."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
        line = encode(result("b", "x" * 3_000_000))
        reader = JsonLines(path)
        with open(path, "ab") as file:
            for part in (line[:100], line[100:-1], line[-1:], encode(result("c", 3))):
                file.write(part)
                file.flush()
                assert set(reader) >= {"a"}
        assert set(reader) == {"a", "b", "c"}


def test_a_reader_goes_on_where_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at what has been added costs what that is long, and not what the file is."""
    raw, starts = LineScan._raw, []

    def noted(scan: LineScan, start: int, end: int) -> Any:
        starts.append(start)
        return raw(scan, start, end)

    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1)])
        reader = JsonLines(path)
        assert dict(reader) == {"a": 1}
        monkeypatch.setattr(LineScan, "_raw", noted)
        size = path.stat().st_size
        checkpoint.save([result("b", 2)])
        assert reader["b"] == 2
    assert starts[:1] == [size]
    assert min(starts) == size


@pytest.mark.skipif(sys.platform == "win32", reason="modes")
def test_what_may_not_be_read_is_not_called_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows whether a writer was killed."""
    monkeypatch.chdir(tmp_path)
    write(Path("results.jsonl"), *OUTCOMES)
    Path("results.jsonl").chmod(0o000)
    tmp_path.chmod(0o777)
    checkpoint = JsonLines("results.jsonl")
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.raises(CheckpointError, match="for reading: Permission denied"):
            checkpoint.settle()
    finally:
        os.seteuid(user)
