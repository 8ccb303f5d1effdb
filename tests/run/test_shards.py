"""Parts of a run for jobs that each have their own: disjoint, complete, and joined again."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ResumableRunner, open_checkpoint
from resumable_pool.checkpoints import merge
from resumable_pool.files import is_in_shard

from .. import functions
from ..stage import Stage, act

PATHS = [f"audio/{number // 100:03}/{number:05}.wav" for number in range(10_000)]


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    yield stage
    stage.close()


def runner(function: Any, shard: int | None, checkpoint: str = "", **options: Any) -> Any:
    part = None if shard is None else (shard, 3)
    name = checkpoint or f"shard-{shard}.pkl"
    options = {"max_workers": 2, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", name, shard=part, **options)


@pytest.mark.parametrize("count", [1, 2, 3, 16, 100])
def test_each_file_is_in_one_shard(count: int) -> None:
    """The shards are disjoint, have all files, and about as many each."""
    for path in PATHS[::20]:
        assert sum(is_in_shard(path, (number, count)) for number in range(count)) == 1
    mean = len(PATHS) / count
    for number in {*range(0, count, 1 + count // 20), count - 1}:  # of a hundred, every sixth
        size = sum(is_in_shard(path, (number, count)) for path in PATHS)
        assert abs(size - mean) < 6 * mean**0.5


@pytest.mark.parametrize(("path", "shard"), [
    ("a.wav", 1), ("audio/a.wav", 9), ("/data/audio/a.wav", 6),
    ("audio/\N{OWL}.wav", 15), ("audio/not-utf-8-\udcff.wav", 8),
])  # fmt: skip
def test_a_file_stays_in_its_shard(path: str, shard: int) -> None:
    """On every machine, in every process and version, or jobs would do files twice and never."""
    assert [number for number in range(16) if is_in_shard(path, (number, 16))] == [shard]


def test_other_processes_agree() -> None:
    """Python's own hash of a text is another in each process."""
    code = (
        "import sys; from resumable_pool.files import is_in_shard; "
        "print(*[path for path in sys.argv[1:] if is_in_shard(path, (1, 3))])"
    )
    paths = PATHS[:50]
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-c", code, *paths]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [path for path in paths if is_in_shard(path, (1, 3))]


BAD: list[tuple[Any, type[Exception], str]] = [
    (3, TypeError, "shard must be a tuple (k, n), for part k of n, not 3"),
    ("0/3", TypeError, "not '0/3'"),
    ((1, 2, 3), TypeError, "not (1, 2, 3)"),
    (("0", "3"), TypeError, "not ('0', '3'); what comes from the environment is text: use"),
    ((0.0, 3), TypeError, "two ints, not (0.0, 3)"),
    ((True, 3), TypeError, "two ints, not (True, 3)"),
    ((3, 3), ValueError, "with k from 0 to n - 1, not (3, 3); an array job may count from 1"),
    ((-1, 3), ValueError, "not (-1, 3)"),
    ((0, 0), ValueError, "not (0, 0)"),
]


@pytest.mark.parametrize(("shard", "error", "message"), BAD)
def test_bad_shards_raise(tmp_path: Path, shard: Any, error: type[Exception], message: str) -> None:
    """At once, with the value and what to do."""
    with pytest.raises(error, match=re.escape(message)):
        ResumableRunner(functions.number_in, "*.txt", tmp_path / "result.pkl", shard=shard)


def test_shards_are_joined_again(folder: Path) -> None:
    """Each run does its part, and reports on that; together they are all, and a run with the merged
    checkpoint has nothing to do."""
    reports = [runner(functions.number_in, number).run() for number in range(3)]
    assert sum(report.total for report in reports) == 10
    assert all(0 < report.total == report.completed for report in reports)
    assert functions.calls() == [f"in/{number:02}.txt" for number in range(10)]
    merge("result.pkl", [f"shard-{number}.pkl" for number in range(3)])
    assert runner(functions.number_in, None, "result.pkl").run().skipped == 10
    assert dict(open_checkpoint("result.pkl")) == {f"in/{n:02}.txt": n for n in range(10)}


def test_a_new_file_changes_nothing_for_the_others(folder: Path) -> None:
    """It is in one shard; every other has nothing more to do."""
    for number in range(3):
        runner(functions.number_in, number).run()
    Path("in/!first.txt").write_text("77")
    again = [runner(functions.number_in, number).run() for number in range(3)]
    assert sorted(report.completed for report in again) == [0, 0, 1]


def test_lists_and_hooks_have_shards_too(folder: Path) -> None:
    """Wherever the paths come from."""

    class Collecting(ResumableRunner[int]):
        def collect_files(self) -> list[str]:
            return [f"in/{number:02}.txt" for number in range(10)]

    listed = [f"in/{number:02}.txt" for number in range(10)]
    for made in (ResumableRunner, Collecting):
        parts = [
            made(functions.number_in, listed, "new.pkl", shard=(number, 3)).pending()
            for number in range(3)
        ]
        assert sorted(path for part in parts for path in part) == listed
        assert all(parts)


def test_a_shard_in_work_is_merged_as_it_is(folder: Path, stage: Stage) -> None:
    """What is saved of it counts; and runs of other shards go on beside it, in the same folder."""
    running = runner(act, 0, max_workers=1)
    thread = threading.Thread(target=running.run)
    thread.start()
    stage.wait_begun(1)
    stage.cue()
    stage.wait_begun(1)  # the second begins when the first is saved
    runner(functions.number_in, 1).run()
    merge("result.pkl", ["shard-0.pkl", "shard-1.pkl"])
    assert len(open_checkpoint("result.pkl")) == 1 + len(open_checkpoint("shard-1.pkl"))
    stage.cue(9)
    thread.join()
    merge("result.pkl", ["shard-0.pkl"])
    done = {**open_checkpoint("shard-0.pkl"), **open_checkpoint("shard-1.pkl")}
    assert dict(open_checkpoint("result.pkl")) == done
    rest = runner(functions.number_in, None, "result.pkl").run()
    assert (rest.skipped, rest.completed) == (len(done), 10 - len(done))
