"""Checkpoints that several machines have written, joined in one."""

from __future__ import annotations

import os
import pickle
import random
import subprocess
import time
from pathlib import Path

import pytest

from resumable_pool import CheckpointError, CheckpointLocked, open_checkpoint
from resumable_pool.checkpoints import PickleFile, checkpoint_at, merge
from resumable_pool.records import Outcome

from . import conftest
from .conftest import (
    FINGERPRINT,
    PATIENCE_SECONDS,
    SUFFIXES,
    failed,
    pickled_result,
    plain,
    result,
    start_python,
    write,
    writing,
)
from .test_pickle_file import PATHS, VALUES
from .test_pickle_file import TouchesAtUnpickling as Touches


def shards(folder: Path, *contents: list[Outcome]) -> list[Path]:
    """A checkpoint of each of these."""
    paths = [folder / f"shard-{number}.pkl" for number in range(len(contents))]
    for path, outcomes in zip(paths, contents, strict=True):
        write(path, *outcomes)
    return paths


def test_three_shards_are_one_checkpoint(path: Path, tmp_path: Path) -> None:
    """With all that they know of each file; it is a plain pickle and can be gone on with, and the
    shards are as they were."""
    values = [*VALUES.items()]
    inputs = shards(
        tmp_path,
        [result(*item) for item in values[::3]] + [failed("bad")],
        [result(*item) for item in values[1::3]],
        [result(*item) for item in values[2::3]] + [result(key, key) for key in PATHS],
    )
    before = [shard.read_bytes() for shard in inputs]
    assert merge(path, inputs) == [
        f"merged the results of {len(VALUES) + len(PATHS)} files and the failures of 1 file"
    ]
    assert [shard.read_bytes() for shard in inputs] == before
    assert {*os.listdir(tmp_path)} == {path.name, *(shard.name for shard in inputs)}
    expected = VALUES | {key: key for key in PATHS}
    reader = open_checkpoint(path)
    assert plain(path) == dict(reader) == expected
    assert dict(reader.failures()) == {"bad": failed("bad").failure}
    assert reader.outcome("none") == result("none", None)
    assert reader.fingerprint("none") == FINGERPRINT
    assert reader.check() == []
    write(path, result("bad", "good"))
    assert plain(path) == expected | {"bad": "good"}


def test_the_newest_counts_and_a_result_beats_a_failure(path: Path, tmp_path: Path) -> None:
    """Whatever the order of the checkpoints, and how many paths had different results is said; the
    same result twice is no matter. Of one moment what is named last counts."""
    inputs = shards(
        tmp_path,
        [result("a", 1, at=9), result("same", 0, at=1), failed("f", "first", at=7),
         result("v", 1, at=2), result("b", 1, at=4), result("unknown", 1, at=0)],
        [failed("late", at=9), result("b", 5, at=8), result("b", 2, at=3), result("same", 0, at=3),
         failed("v", at=5), failed("f", "of a clock", at=9), failed("f", "third", at=6)],
        [result("a", 3, at=8.5), failed("f", "second", at=6.5), result("late", 4, at=1),
         failed("a", at=10), result("unknown", 2, at=0)],
    )  # fmt: skip
    expected = {"a": 1, "b": 1, "same": 0, "v": 1, "late": 4}
    for order, unknown in ([0, 1, 2], 2), ([2, 1, 0], 1), ([1, 0, 2], 2):
        merged = tmp_path / f"{order}.pkl"
        (note,) = merge(merged, [inputs[number] for number in order])
        assert note.endswith(
            "the results of 6 files and the failures of 1 file; 3 had different results in them, "
            "of which the newest counts"
        )
        assert plain(merged) == {**expected, "unknown": unknown}
        reader = open_checkpoint(merged)
        assert reader.failures()["f"].message == "first"
        assert [reader.outcome(key).finished_at for key in ("a", "same", "b", "f")] == [9, 3, 4, 7]


def test_what_is_there_is_the_first(path: Path, tmp_path: Path) -> None:
    """What counts of the others is appended to it; merging again, with itself among the inputs,
    appends nothing."""
    write(path, result("old", 0), result("a", 0), failed("b"))
    inputs = shards(tmp_path, [result("a", 1), result("b", 2)])
    merge(path, inputs)
    merged = path.read_bytes()
    assert plain(path) == {"old": 0, "a": 1, "b": 2}
    merge(path, [path, *inputs, *inputs])
    assert path.read_bytes()[35:] == merged[35:]  # but for who has locked it
    assert not open_checkpoint(path).failures()
    assert {*os.listdir(tmp_path)} == {path.name, *(shard.name for shard in inputs)}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_all_formats_can_be_merged(tmp_path: Path, suffix: str) -> None:
    """By what is newer in them."""
    paths = [tmp_path / f"{number}{suffix}" for number in range(3)]
    encode = checkpoint_at(paths[0]).encode
    write(paths[0], conftest.result("a", [1], encode, 5), failed("b"), failed("c"))
    write(paths[1], conftest.result("a", [2], encode, 4), conftest.result("b", [2], encode, 0))
    write(paths[2], conftest.result("d", [3], encode, 1), failed("e"))
    (note,) = merge(paths[0], paths[1:])
    assert note.startswith("merged the results of 3 files and the failures of 2 files; 1 had diff")
    merged = open_checkpoint(paths[0])
    assert dict(merged) == {"a": [1], "b": [2], "d": [3]}
    assert sorted(merged.failures()) == ["c", "e"]
    assert merged.check() == []


def test_nothing_is_unpickled(path: Path, tmp_path: Path) -> None:
    """Values whose classes are not there can be merged."""
    witness = tmp_path / "witness"
    inputs = shards(tmp_path, [pickled_result("a", pickle.dumps(Touches(witness), 3))], [])
    merge(path, inputs)
    assert not witness.exists()
    plain(path)
    assert witness.exists()


def test_new_and_torn_shards_are_taken_as_far_as_they_go(path: Path, tmp_path: Path) -> None:
    """An empty file, a run that was killed, one that is still going on."""
    empty, torn, used = (tmp_path / f"{name}.pkl" for name in ("empty", "torn", "used"))
    empty.touch()
    write(torn, result("a", 1), result("b", "x" * 100))
    torn.write_bytes(torn.read_bytes()[:-50])
    before = torn.read_bytes()
    with writing(used) as checkpoint:
        checkpoint.save([result("c", 3)])
        merge(path, [empty, torn, used])
    assert plain(path) == {"a": 1, "c": 3}
    assert torn.read_bytes() == before


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize("exists", [False, True])
def test_damaged_shards_are_refused(path: Path, tmp_path: Path, size: int, exists: bool) -> None:
    """Whether in a value or around it, and nothing is changed; nor is anything left behind."""
    if exists:
        write(path, result("old", 0))
    inputs = shards(tmp_path, [result("a", 1)], [result("b", "x" * size), result("c", 3)])
    content = inputs[1].read_bytes()
    before = {*os.listdir(tmp_path)}
    for place in (content.index(b"xxx"), content.index(b"X\x01\0\0\0b")):
        inputs[1].write_bytes(content[:place] + b"?" + content[place + 1 :])
        with pytest.raises(CheckpointError, match=r"shard-1.pkl' is damaged: .* compact"):
            merge(path, inputs)
        assert {*os.listdir(tmp_path)} == before
        assert not exists or plain(path) == {"old": 0}


def test_what_cannot_be_merged_is_refused(path: Path, tmp_path: Path) -> None:
    """Files of other kinds, none at all, plain pickles; nothing is made."""
    inputs = shards(tmp_path, [result("a", 1)])
    (tmp_path / "plain.pkl").write_bytes(b"\x80\x03}X\x01\0\0\0aK\x01s.")
    (tmp_path / "foreign.pkl").write_bytes(b"a,b\n")
    (tmp_path / "other.jsonl").touch()
    for name, error, text in [
        ("plain.pkl", CheckpointError, "a run or compact converts it"),
        ("foreign.pkl", CheckpointError, "is not a checkpoint"),
        ("other.jsonl", ValueError, "have different formats"),
        ("none.pkl", FileNotFoundError, "there is no checkpoint"),
    ]:
        with pytest.raises(error, match=text):
            merge(path, [*inputs, tmp_path / name])
        assert not path.exists()
    with pytest.raises(TypeError, match="inputs must be a list of checkpoints"):
        merge(path, "shard.pkl")
    merge(tmp_path / "plain.pkl", inputs)
    assert plain(tmp_path / "plain.pkl") == {"a": 1}


def test_merging_into_one_that_a_run_writes_to_is_refused(path: Path, tmp_path: Path) -> None:
    """And whoever merges is the writer meanwhile."""
    inputs = shards(tmp_path, [result("a", 1)])
    with writing(path), pytest.raises(CheckpointLocked):
        merge(path, inputs)
    merge(path, inputs)
    assert plain(path) == {"a": 1}


MERGE = """
import sys
from resumable_pool.checkpoints import merge
print("ready", flush=True)
sys.stdin.readline()
merge(sys.argv[1], sys.argv[2:])
"""


def _kill_while_merging(path: Path, inputs: list[Path], after: float) -> float:
    with start_python(MERGE, path, *inputs) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        return time.monotonic() - begun


@pytest.mark.alike
def test_a_merge_that_is_killed_has_lost_nothing(path: Path, tmp_path: Path) -> None:
    """At whatever moment; and merging again gives all."""
    inputs = shards(tmp_path, [], [], [])
    for number, shard in enumerate(inputs):
        with writing(shard) as checkpoint:
            checkpoint.save([result(f"{number}-{n:04}", n) for n in range(2_000)])
    everything = {f"{number}-{n:04}": n for number in range(3) for n in range(2_000)}
    old = {"old": 0}
    write(path, result("old", 0))
    original = path.read_bytes()
    seconds = _kill_while_merging(path, inputs, PATIENCE_SECONDS)
    assert plain(path) == old | everything
    generator = random.Random(2)
    killed = 0
    for _ in range(5):
        path.write_bytes(original)
        _kill_while_merging(path, inputs, seconds * generator.random())
        assert old.items() <= plain(path).items() <= (old | everything).items()
        killed += plain(path) != old | everything
        merge(path, inputs)
        assert plain(path) == dict(PickleFile(path)) == old | everything
    assert killed, "no kill came while it was merged"
