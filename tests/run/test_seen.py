"""What is seen of a run while it goes on: outcomes as they are saved, and what the workers do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Outcome, ResumableRunner, open_checkpoint, worker_slot
from tests.conftest import CHEAPEST

from .. import functions
from ..functions import KILL
from ..stage import FAIL, PATIENCE, Stage, act, announcement

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = [f"in/{number:02}.txt" for number in range(10)]


def runner(function: Any = functions.number_in, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 3, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", "result.pkl", **options)


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    yield stage
    stage.close()


# Outcomes as they are saved.


def test_each_outcome_comes_once_when_it_is_saved(folder: Path) -> None:
    """With its value or its failure, seconds and attempts; what was done before does not come."""
    runner().run()
    Path("in/10.txt").write_text("10")
    Path("in/11.txt").write_text("not a number")
    found = {}
    for outcome in runner(retries=1).as_completed():
        checkpoint = open_checkpoint("result.pkl")
        assert outcome.path in (checkpoint if outcome.ok else checkpoint.failures())
        found[outcome.path] = outcome
    assert found.keys() == {"in/10.txt", "in/11.txt"}
    good, bad = found["in/10.txt"], found["in/11.txt"]
    assert (good.ok, good.value, good.failure, good.attempts) == (True, 10, None, 1)
    assert (bad.ok, bad.attempts) == (False, 2)
    assert bad.failure is not None
    assert bad.failure.message.startswith("ValueError")
    assert min(good.seconds, bad.seconds) > 0
    with pytest.raises(ValueError, match="failed, there is no value"):
        bad.value  # noqa: B018


def test_crashes_and_time_outs_come_as_well(folder: Path) -> None:
    """Their failures are saved by then, too."""
    Path("in/03.txt").write_text("!die:SIGKILL")
    kinds = [
        outcome.failure.kind
        for outcome in runner(functions.sabotage).as_completed()
        if outcome.failure is not None
    ]
    assert kinds == ["crashed"]


def test_where_nothing_is_to_do_nothing_comes(folder: Path) -> None:
    """And no process is started."""
    runner().run()
    assert [*runner().as_completed()] == []


def test_while_the_loop_pauses_what_is_in_work_is_saved_and_nothing_is_dealt(
    folder: Path, stage: Stage
) -> None:
    """A slow loop slows the run down, and never the saving."""
    few = ALL[:4]  # which are dealt singly
    made = ResumableRunner(act, few, "result.pkl", max_workers=1, progress=False)
    outcomes = made.as_completed()
    stage.cue()
    first = next(outcomes)
    stage.wait_begun(2)
    stage.cue()
    checkpoint = open_checkpoint("result.pkl")
    while len(checkpoint) < 2:  # no event tells of it
        time.sleep(0.01)
    assert functions.calls() == ALL[:2]
    stage.cue(2)
    rest = [*outcomes]
    assert [first.path, *(outcome.path for outcome in rest)] == few


def test_leaving_the_loop_early_stops_the_run_cleanly(folder: Path, stage: Stage) -> None:
    """What is in work is finished and saved, and the runner can run again."""
    stopped = runner(act)
    stage.cue(10)
    for _ in stopped.as_completed():
        break
    done = len(functions.calls())
    assert len(open_checkpoint("result.pkl")) == done < 10
    with announcement("your code has left the loop, raised an exception") as heard:
        with pytest.raises(ZeroDivisionError):
            fail_in_loop(stopped)
        assert heard.is_set()  # nobody asked for it
    assert len(open_checkpoint("result.pkl")) == len(functions.calls()) > done
    stopped.run()
    assert functions.calls() == ALL


def fail_in_loop(stopped: ResumableRunner[Any]) -> None:
    for _ in stopped.as_completed():
        raise ZeroDivisionError


def test_a_loop_that_is_never_begun_does_nothing(folder: Path) -> None:
    """The run begins with the first step."""
    idle = runner()
    outcomes = idle.as_completed()
    assert not Path("result.pkl").exists()
    assert idle.run().completed == 10
    assert [*outcomes] == []


def test_only_one_run_at_a_time(folder: Path) -> None:
    """A loop that has begun is one."""
    busy = runner()
    outcomes = busy.as_completed()
    next(outcomes)
    with pytest.raises(RuntimeError, match="this runner is running already"):
        busy.run()
    assert len([*outcomes]) == 9


class Watching(ResumableRunner[int]):
    """Notes what is saved."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.seen: list[Outcome] = []

    def on_saved(self, outcome: Outcome) -> None:
        self.seen.append(outcome)
        if outcome.path == "in/05.txt" and len(self.seen) < 10:
            raise ZeroDivisionError


def test_a_hook_sees_each_outcome(folder: Path) -> None:
    """In this process; what it raises stops the run cleanly, and goes on from there."""
    watching = Watching(functions.number_in, ALL[:5], "result.pkl")
    watching.run()
    assert sorted((outcome.path, outcome.value) for outcome in watching.seen) == [
        (path, number) for number, path in enumerate(ALL[:5])
    ]
    raising = Watching(functions.number_in, ALL, "result.pkl", max_workers=1)
    with pytest.raises(ZeroDivisionError):
        raising.run()
    assert len(raising.results) == len(functions.calls()) < 10


class Stopping(ResumableRunner[int]):
    """Has enough after one."""

    def on_saved(self, outcome: Outcome) -> None:
        self.stop()


def test_a_callback_may_stop_the_run(folder: Path) -> None:
    """Like `stop` from anywhere."""
    few = ALL[:4]  # which are dealt singly
    report = Stopping(functions.number_in, few, "result.pkl", max_workers=1).run()
    assert report.stopped
    assert (report.completed, report.remaining) == (2, 2)


# What the workers do.


def test_workers_are_seen_at_work(folder: Path, stage: Stage, method: str) -> None:
    """Each with its slot, process, file and time, from another thread; none before and after."""
    watched = runner(act, mp_context=method)
    assert watched.workers() == []
    thread = threading.Thread(target=watched.run)
    thread.start()
    begun = stage.wait_begun(3)
    seen = watched.workers()
    assert [worker.slot for worker in seen] == [0, 1, 2]
    assert {worker.path: worker.pid for worker in seen} == begun
    assert {worker.state for worker in seen} == {"busy"}
    assert {(worker.files_done, worker.restarts) for worker in seen} == {(0, 0)}
    assert all(worker.seconds is not None and 0 <= worker.seconds < PATIENCE for worker in seen)
    stage.cue()
    begun.update(stage.wait_begun(1))
    assert sorted(worker.files_done for worker in watched.workers()) == [0, 0, 1]
    stage.cue(1, FAIL)
    stage.wait_begun(1)
    assert sum(worker.files_done for worker in watched.workers()) == 2
    stage.cue(8)
    thread.join()
    assert watched.workers() == []


def test_a_file_that_takes_its_worker_along_is_counted_there(folder: Path, stage: Stage) -> None:
    """As every one that fails."""
    watched = runner(act, max_workers=1, mp_context=CHEAPEST)
    thread = threading.Thread(target=watched.run)
    thread.start()
    (pid,) = stage.wait_begun(1).values()
    os.kill(pid, KILL)
    stage.wait_begun(1)
    seen = [(one.files_done, one.restarts) for one in watched.workers()]
    stage.cue(9)
    thread.join()
    assert seen == [(1, 1)]


def test_a_worker_that_replaces_another_takes_its_slot(folder: Path, method: str) -> None:
    """So a GPU, say, is not used twice; and the slot's files and workers are counted."""
    found: list[tuple[int, ...]] = []
    slots = runner(slot_of, max_tasks_per_child=2, max_workers=2, mp_context=method)
    for _ in slots.as_completed():
        found += [(worker.slot, worker.restarts) for worker in slots.workers()]
    assert set(slots.results.values()) <= {0, 1}
    assert max(restarts for _, restarts in found) >= 2
    assert {slot for slot, _ in found} <= {0, 1}
    with pytest.raises(RuntimeError, match="in a worker"):
        worker_slot()


def slot_of(path: str) -> int:
    return worker_slot()


def test_workers_are_seen_before_their_first_file(folder: Path) -> None:
    """As starting, until the initializer has returned."""
    slow = runner(initializer=functions.take_a_second, max_workers=1)
    thread = threading.Thread(target=slow.run)
    thread.start()
    while not (seen := slow.workers()):  # no event tells of it
        time.sleep(0.01)
    assert (seen[0].state, seen[0].path, seen[0].seconds) == ("starting", None, None)
    thread.join()
