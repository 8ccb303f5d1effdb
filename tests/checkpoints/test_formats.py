"""Whole runs with every checkpoint format, under every start method."""

from __future__ import annotations

import json
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import (
    Checkpoint,
    CheckpointError,
    CheckpointLocked,
    ResumableRunner,
    SaverError,
    open_checkpoint,
)
from resumable_pool.checkpoints import PickleFile
from resumable_pool.checkpoints.json_lines import JsonLines

from .. import functions
from ..conftest import CHEAPEST, not_on_windows
from ..stage import Stage, act

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = [f"in/{number:02}.txt" for number in range(10)]
NAMES = ["result.pkl", "result.jsonl", "result.sqlite"]


def runner(function: Any, name: Any, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 3, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", name, **options)


@pytest.mark.parametrize("name", NAMES[1:])
def test_a_run_is_saved_and_goes_on(folder: Path, method: str, name: str) -> None:
    """Every file once; what failed is tried again; what is new is done; nothing else."""
    Path("in/07.txt").write_text("!raise:ValueError")
    first = runner(functions.sabotage, name, mp_context=method)
    report = first.run()
    assert (report.completed, report.failed) == (9, 1)
    assert first.failures["in/07.txt"].message == "ValueError: seven is bad"
    Path("in/07.txt").write_text("7")
    Path("in/10.txt").write_text("10")
    functions.CALLS.unlink()
    again = runner(functions.sabotage, name)
    assert again.pending() == ["in/07.txt", "in/10.txt"]
    report = again.run()
    assert functions.calls() == ["in/07.txt", "in/10.txt"]
    assert (report.completed, report.skipped, report.failed) == (2, 9, 0)
    assert dict(again.results) == {f"in/{number:02}.txt": number for number in range(11)}
    assert open_checkpoint(name).fingerprint("in/10.txt").size == 2
    assert sorted(path.name for path in folder.iterdir()) == ["calls", "in", name]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_has_changed_and_then_fails_keeps_its_result(folder: Path, name: str) -> None:
    """Fingerprints come from the checkpoint, whatever its format; nothing saved is lost."""
    runner(functions.sabotage, name, rerun_changed=True).run()
    Path("in/03.txt").write_text("!raise:ValueError")
    Path("in/04.txt").write_text("44")
    functions.CALLS.unlink()
    changed = runner(functions.sabotage, name, rerun_changed=True)
    assert changed.pending() == ["in/03.txt", "in/04.txt"]
    changed.run()
    assert functions.calls() == ["in/03.txt", "in/04.txt"]
    assert (changed.results["in/03.txt"], changed.results["in/04.txt"]) == (3, 44)
    assert list(changed.failures) == ["in/03.txt"]


def returns_by_number(path: str) -> Any:
    values = [{1, 2}, b"x", float("nan"), {"a": {1: 2}}, object, (1, [2]), None, {}, "x", 1.5]
    return values[int(Path(path).read_text())]


def test_in_json_lines_what_is_not_json_is_its_files_failure(folder: Path) -> None:
    """It names the type; all other files are processed."""
    report = runner(returns_by_number, "result.jsonl").run()
    assert (report.completed, report.failed) == (5, 5)
    messages = [failure.message for failure in report.failures]
    assert all(message.startswith("the result is not JSON: ") for message in messages)
    for message, word in zip(messages, ["set", "bytes", "float", "int", "type"], strict=True):
        assert word in message
    assert (
        "a builtins.set in it; return text, numbers, lists or dicts, or save to a .pkl"
        in (messages[0])
    )
    lines = [json.loads(line) for line in Path("result.jsonl").read_text("ascii").splitlines()]
    values = {line["path"]: line["value"] for line in lines if "value" in line}
    assert list(map(values.get, ALL[5:])) == [[1, [2]], None, {}, "x", 1.5]


def test_in_a_database_what_is_not_json_is_pickled(folder: Path) -> None:
    """So any value may be returned."""
    done = runner(returns_by_number, "result.db")
    assert done.run().completed == 10
    assert done.results["in/00.txt"] == {1, 2}
    assert done.results["in/05.txt"] == (1, [2])


@pytest.mark.parametrize("name", NAMES[1:])
def test_it_is_read_and_locked_while_the_run_goes_on(folder: Path, name: str) -> None:
    """Readers see what is saved; a second run is refused, and told by whom."""
    stage = Stage(folder)
    running = runner(act, name, max_workers=1)
    thread = threading.Thread(target=running.run)
    thread.start()
    stage.wait_begun(1)
    stage.cue()
    stage.wait_begun(1)  # the second begins only when the first is saved
    assert dict(running.results) == {"in/00.txt": "done in/00.txt"} == dict(open_checkpoint(name))
    with pytest.raises(CheckpointLocked, match=r"process \d+ is writing"):
        runner(functions.number_in, name).run()
    if name.endswith(".sqlite"):
        with closing(sqlite3.connect(name)) as db:
            assert db.execute("SELECT value FROM results").fetchall() == [('"done in/00.txt"',)]
    else:
        assert json.loads(Path(name).read_text())["value"] == "done in/00.txt"
    stage.cue(9)
    thread.join()
    stage.close()
    assert len(running.results) == 10


@not_on_windows("nobody can take away a file that is open without sharing deletion")
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_checkpoint_that_disappears_is_an_error(folder: Path, name: str) -> None:
    """Results in a file that nobody can find are not saved, and the run does not say they were."""
    removing = runner(RemoveAtThree(name), name, max_workers=1)
    with pytest.raises(SaverError, match="removed, moved or replaced"):
        removing.run()
    assert runner(functions.number_in, name).run().completed == 10


class RemoveAtThree:
    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, path: str) -> str:
        if Path(path).read_text() == "3":
            Path(self.name).unlink()
        return path


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_replaced_by_another_is_refused_untouched(folder: Path, name: str) -> None:
    """Also by a runner that has read the checkpoint that was there before."""
    twice = runner(functions.number_in, name, mp_context=CHEAPEST)
    twice.run()
    Path("in/10.txt").write_text("10")
    Path(name).write_bytes(b"somebody's work, and quite a lot of it\n" * 1000)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        twice.run()
    assert Path(name).read_bytes() == b"somebody's work, and quite a lot of it\n" * 1000


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoint_and_its_side_files_are_no_inputs(folder: Path, name: str) -> None:
    """Even where the pattern matches them."""
    everything = ResumableRunner(functions.note, "**", name, max_workers=2, progress=False)
    assert everything.run().completed == 10
    open_checkpoint(name).compact()
    functions.CALLS.rename("in/calls")
    assert everything.pending() == ["in/calls"]


def test_a_format_of_ones_own_says_how_results_are_encoded(folder: Path, method: str) -> None:
    """A subclass of a checkpoint decides in the worker what is saved of a value."""
    report = runner(functions.number_in, Doubling("result.pkl"), mp_context=method).run()
    assert report.completed == 10
    assert open_checkpoint("result.pkl")["in/04.txt"] == [4, 4]


class Doubling(PickleFile):
    @staticmethod
    def encode(value: Any) -> bytes:
        return PickleFile.encode([value, value])


def test_formats_are_checkpoints() -> None:
    """They can be given to the runner as objects, too."""
    assert isinstance(JsonLines("result.jsonl"), Checkpoint)
