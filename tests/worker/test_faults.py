"""Time-outs, further attempts, limits and stops, in real runs under every start method."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from binascii import crc32
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Failure, Report, ResumableRunner
from resumable_pool.between import children as processes
from resumable_pool.between import time_limit, waiting
from resumable_pool.checkpoints import PickleFile
from resumable_pool.records import Outcome
from resumable_pool.worker import calling

from .. import functions
from ..conftest import CHEAPEST, not_on_windows, open_descriptors
from ..functions import KILL, number_in
from ..stage import FAIL, PATIENCE, Stage, act, load_until_told_to_end

BOTH = sorted({CHEAPEST, "spawn"})  # forked here, a worker has no watchdog

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = [f"in/{number:02}.txt" for number in range(10)]


def runner(function: Any, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 3, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", "result.pkl", **options)


@pytest.fixture
def stage(folder: Path) -> Any:
    stage = Stage(folder)
    yield stage
    stage.close()


# Time-outs.


def test_whatever_a_function_hangs_in_it_is_ended(folder: Path, method: str) -> None:
    """The file has failed with the traceback of where it hung, and what it started is gone."""
    paths = {name: f"in/{name}.txt" for name in functions.HANGING}
    for name, path in paths.items():
        Path(path).write_text(name)
    report = ResumableRunner(
        functions.hang, paths.values(), "result.pkl", timeout=1.0, max_workers=len(paths),
        mp_context=method, progress=False,
    ).run()  # fmt: skip
    assert report.failed == len(paths)
    for failure in report.failures:
        assert (failure.kind, failure.attempts) == ("timeout", 1)
        assert failure.message == "took longer than 1.0 s, and was killed"
        assert failure.seconds >= 1.0
        if (
            method != "fork" and sys.platform != "win32"
        ):  # pytest has a watchdog running; forked from it, no other can be used
            assert "functions.py" in failure.traceback
            assert calling.__file__ not in failure.traceback
    assert functions.calls() == sorted(path.split()[0] for path in paths.values())


def test_others_go_on_while_one_hangs(folder: Path) -> None:
    """Its worker is replaced."""
    Path("in/03.txt").write_text("600")
    for path in set(ALL) - {"in/03.txt"}:
        Path(path).write_text("0")
    report = runner(functions.sleep_a_while, timeout=1.5, max_workers=1).run()
    assert (report.completed, [f.path for f in report.failures]) == (9, ["in/03.txt"])


@not_on_windows("SIGSTOP")
def test_a_time_out_has_no_traceback_of_another_file(folder: Path) -> None:
    """What a file left that was done at the last moment is not taken for that of the next one. That
    stops its process, and so its watchdog, for which nobody waits for ever."""
    files = ALL[:2]
    hanging = ResumableRunner(
        functions.hang_without_a_word, files, "result.pkl", timeout=0.5, max_workers=1,
        mp_context="spawn", progress=False,
    )  # fmt: skip
    (failure,) = hanging.run().failures
    assert (failure.path, failure.kind, failure.traceback) == ("in/01.txt", "timeout", "")


@not_on_windows("SIGTERM")
@pytest.mark.parametrize("method", BOTH)
def test_a_failure_right_before_a_time_out_is_recorded_as_well(folder: Path, method: str) -> None:
    """Each file with its own: what a function says when it is ended is nobody's failure."""
    files = ALL[:2]
    ending = ResumableRunner(
        functions.fail_or_fail_to_end, files, "result.pkl", timeout=1.0, max_workers=1,
        mp_context=method, progress=False,
    )  # fmt: skip
    failures = ending.run().failures
    assert [(failure.path, failure.kind) for failure in failures] == [
        ("in/00.txt", "error"), ("in/01.txt", "timeout"),
    ]  # fmt: skip


@not_on_windows("fork")
def test_a_function_with_a_time_out_may_fork(folder: Path, method: str) -> None:
    """A copy that leaves by an exception is gone at once: nobody waits for it until time is up."""
    report = runner(functions.wait_for_copy, timeout=30, mp_context=method).run()
    assert (report.completed, report.failures) == (10, [])


class SavesWhenTold(ResumableRunner[bytes]):
    def save(self, outcomes: Sequence[Outcome[bytes]]) -> None:
        Path("saving").touch()
        with open("cues", "rb", buffering=0) as cues:
            cues.read(1)
        super().save(outcomes)


def fill_the_pipe_or_crash(path: str) -> bytes:
    """Number 0 crashes while the saver is busy."""
    functions.note(path)
    while len(functions.calls()) < 3 or (number_in(path) == 0 and not os.path.exists("saving")):
        time.sleep(0.01)
    if number_in(path) == 0:
        os.kill(os.getpid(), signal.SIGSEGV)
    return bytes(3 << 20)


@pytest.mark.parametrize("method", BOTH)
@not_on_windows("named pipes")
def test_who_waits_for_the_saver_is_not_late(
    folder: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """Only the call itself may take too long. And what was killed meanwhile has crashed."""
    monkeypatch.setattr(time_limit, "WORDLESS_SECONDS", 0.0)
    saving = SavesWhenTold(
        fill_the_pipe_or_crash, ALL[:3], "result.pkl", timeout=2.0, max_workers=3,
        mp_context=method, initializer=functions.begin_together, initargs=[3], progress=False,
    )  # fmt: skip
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(saving.run()), daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while sum((worker.seconds or 0) > 2.5 for worker in saving.workers()) < 3:
        assert time.monotonic() < deadline
        thread.join(0.05)
    restarts = [worker.restarts for worker in saving.workers()]
    stage.cue(10)
    thread.join(PATIENCE)
    assert restarts == [0, 0, 0]
    assert reports[0].completed == 2
    failures = reports[0].failures
    assert [(failure.path, failure.kind) for failure in failures] == [(ALL[0], "crashed")]


def test_time_before_the_call_does_not_count(folder: Path) -> None:
    """Neither that of the initializer nor that in which other files were done."""
    for path in ALL[:5]:
        Path(path).write_text("0.3")
    report = ResumableRunner(
        functions.sleep_a_while,
        ALL[:5],
        "result.pkl",
        timeout=1.2,
        max_workers=1,
        initializer=functions.take_longer,
        progress=False,
    ).run()
    assert report.completed == 5


# Further attempts.


def test_a_file_that_fails_at_first_may_succeed_later(folder: Path) -> None:
    """Whatever it failed of; and one that failed of its worker's end gets a fresh worker."""
    report = runner(functions.fail_twice, retries=2, timeout=1).run()
    assert (report.completed, report.failed) == (10, 0)
    assert Counter(functions.calls()) == Counter(ALL + 2 * ALL[1::2])
    seen: set[str] = set()
    attempts: Counter[str] = Counter()
    for line in functions.CALLS.read_text().splitlines():
        pid, path = line.split()
        attempts[path] += 1
        if path in ("in/03.txt", "in/07.txt") and attempts[path] > 1:
            assert pid not in seen
        seen.add(pid)


def test_a_file_that_fails_for_good_counts_its_attempts(folder: Path) -> None:
    """They come after everybody's first one."""
    # By one worker: of several, one might fail three times in a row, and be suspected.
    report = runner(functions.fail_twice, retries=1, timeout=2, max_workers=1).run()
    assert (report.completed, report.failed) == (5, 5)
    kinds = {failure.path: (failure.kind, failure.attempts) for failure in report.failures}
    assert kinds == {
        "in/01.txt": ("error", 2), "in/03.txt": ("crashed", 2), "in/05.txt": ("error", 2),
        "in/07.txt": ("timeout", 2), "in/09.txt": ("error", 2),
    }  # fmt: skip
    order = [line.split()[1] for line in functions.CALLS.read_text().splitlines()]
    assert sorted(order[:10]) == ALL


def test_a_file_that_only_failed_needs_no_fresh_worker(folder: Path) -> None:
    """What loads a model in each would pay for it."""
    report = runner(functions.fail, retries=2, max_workers=1).run()
    assert (report.failed, len(functions.calls())) == (10, 30)
    assert len(functions.callers()) == 1


def test_what_failed_in_an_earlier_run_may_be_left_alone(folder: Path) -> None:
    """It still counts as failed, and is not called."""
    Path("in/07.txt").write_text("not a number")
    runner(functions.number_in).run()
    functions.CALLS.unlink()
    Path("in/10.txt").write_text("10")
    again = runner(functions.number_in, retry_failed=False)
    assert again.pending() == ["in/10.txt"]
    report = again.run()
    assert functions.calls() == ["in/10.txt"]
    assert (report.completed, report.skipped, report.failed, report.remaining) == (1, 9, 1, 0)
    assert again.run().failed == 1
    assert runner(functions.number_in).pending() == ["in/07.txt"]


def test_files_that_have_changed_may_be_done_again(folder: Path) -> None:
    """They keep their values until there are new ones."""
    first = runner(functions.number_in)
    first.run()
    Path("in/03.txt").write_text("42, not a number")
    Path("in/04.txt").write_text("44")
    assert first.run().skipped == 10
    functions.CALLS.unlink()
    again = runner(functions.number_in, rerun_changed=True)
    report = again.run()
    assert functions.calls() == ["in/03.txt", "in/04.txt"]
    assert (report.completed, report.skipped, report.failed, report.remaining) == (1, 8, 1, 0)
    assert (again.results["in/03.txt"], again.results["in/04.txt"]) == (3, 44)
    Path("in/03.txt").write_text("42")
    assert (again.run().completed, again.results["in/03.txt"]) == (1, 42)
    assert again.pending() == []


def test_quick_files_that_have_changed_may_be_done_again(folder: Path) -> None:
    """Also where the first run did not look at them; then by their time of change."""
    for number in range(200):
        Path(f"in/{number:02}.txt").write_text(f"{number}")
    runner(functions.number_in, max_workers=1).run()
    later = time.time() + 10
    os.utime("in/150.txt", (later, later))
    again = runner(functions.number_in, rerun_changed=True)
    assert again.pending() == ["in/150.txt"]
    assert again.run().completed == 1
    assert again.pending() == []


class FinishedMeanwhile(PickleFile):
    """Another run has been quicker: when the saver has the lock, number 0 is done."""

    def open(self) -> list[str]:
        notes = super().open()
        pickled = b"\x80\x03K\x00."
        self.save([Outcome("in/00.txt", pickled, crc32(pickled), None, 1.0)])
        return notes


def test_what_another_run_has_done_meanwhile_is_left_to_it(folder: Path) -> None:
    """What is to do is decided when the checkpoint is locked, and counted so."""
    checkpoint = FinishedMeanwhile("result.pkl")
    report = ResumableRunner(functions.number_in, "in/*.txt", checkpoint, progress=False).run()
    assert functions.calls() == ALL[1:]
    assert (report.completed, report.skipped, report.remaining) == (9, 1, 0)


@pytest.mark.parametrize("function", [functions.append, functions.remove])
def test_files_that_change_during_a_run_were_done_in_it(folder: Path, function: Any) -> None:
    """The report counts what the run did, whatever became of its inputs."""
    report = runner(function, rerun_changed=True).run()
    assert (report.total, report.completed, report.skipped, report.remaining) == (10, 10, 0, 0)
    Path("in/10.txt").write_text("10")
    report = runner(function, rerun_changed=True).run()
    assert (report.completed, report.skipped, report.remaining) == (report.total, 0, 0)


def test_big_files_may_come_first(folder: Path) -> None:
    """Whatever their names are."""
    for number, path in enumerate(ALL):
        Path(path).write_text(f"{number:0{number + 1}}")
    runner(functions.number_in, largest_first=True, max_workers=1).run()
    order = [line.split()[1] for line in functions.CALLS.read_text().splitlines()]
    assert order == ALL[::-1]


# Limits.


def test_too_many_failures_stop_the_run(folder: Path) -> None:
    """One more than may fail is recorded; the rest is still to do."""
    report = runner(functions.fail, max_failures=2).run()
    assert (report.failed, report.remaining, report.stopped) == (3, 7, True)
    assert len(functions.calls()) <= 3 + 2  # what other workers had begun by then
    assert runner(functions.fail, max_failures=9).run().failed == 10


def test_it_is_said_once_that_too_many_have_failed(
    folder: Path, stage: Stage, capfd: pytest.CaptureFixture[str]
) -> None:
    """However many more were about to; those are still to do."""
    running = runner(act, max_failures=0, progress=None)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    stage.wait_begun(3)
    stage.cue(3, FAIL)
    thread.join()
    assert (reports[0].failed, reports[0].remaining, reports[0].stopped) == (1, 9, True)
    assert capfd.readouterr().err.count("1 file failed, more than max_failures") == 1


def test_workers_that_are_killed_now_and_then_before_they_are_ready_are_replaced(
    folder: Path, method: str
) -> None:
    """However often that happens, as long as files are done in between."""
    report = ResumableRunner(
        functions.number_in, ALL[:4], "result.pkl", initializer=functions.die_every_other_time,
        max_workers=1, max_tasks_per_child=1, mp_context=method, progress=False,
    ).run()  # fmt: skip
    assert report.completed == 4


def test_a_worker_makes_room_for_a_fresh_one(folder: Path) -> None:
    """After so many files; also if it has failed with some."""
    Path("in/07.txt").write_text("not a number")
    report = runner(functions.number_in, max_tasks_per_child=3).run()
    assert (report.completed, report.failed) == (9, 1)
    files = Counter(line.split()[0] for line in functions.CALLS.read_text().splitlines())
    assert max(files.values()) <= 3
    assert sum(files.values()) == 10


def test_every_file_may_have_a_worker_of_its_own(folder: Path) -> None:
    """As many processes as files, one after the other."""
    assert runner(functions.number_in, max_tasks_per_child=1, max_workers=1).run().completed == 10
    assert len(functions.callers()) == 10


class CountsOpen(ResumableRunner[int]):
    """How many descriptors are open here, each time that something has been saved."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.open: list[int] = []

    def on_saved(self, outcome: Outcome[int]) -> None:
        self.open.append(open_descriptors())


@not_on_windows("descriptors")
@pytest.mark.parametrize("kept", [False, True])
def test_of_workers_that_have_gone_nothing_stays_open(
    folder: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an end that is handed over must be kept until it has arrived (macOS)."""
    monkeypatch.setattr(waiting, "_KEPT", kept)
    options: dict[str, Any] = {"max_tasks_per_child": 1, "max_workers": 1, "progress": False}
    one = CountsOpen(functions.number_in, "in/*.txt", "result.pkl", **options)
    assert one.run().completed == len(one.open) == 10
    assert max(one.open) <= one.open[0] + 4


def test_a_worker_on_its_last_file_has_time_for_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is to leave, but not to hurry, until that is done."""
    monkeypatch.setattr(processes, "LEAVING_SECONDS", 0.2)
    for path in ALL[:3]:
        Path(path).write_text("1")
    report = ResumableRunner(
        functions.sleep_a_while, ALL[:3], "result.pkl", max_tasks_per_child=1, max_workers=3,
        progress=False,
    ).run()  # fmt: skip
    assert (report.completed, report.failures) == (3, [])


@not_on_windows("SIGSTOP")
def test_a_worker_that_does_not_leave_is_ended(
    folder: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for one that is stopped, or held by what its function has left running."""
    monkeypatch.setattr(processes, "LEAVING_SECONDS", 0.5)
    running = runner(act, max_workers=2)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    begun = stage.wait_begun(2)
    stage.cue(8)
    begun |= stage.wait_begun(8)
    stage.cue()
    while len(running.results) < 9:  # no event tells of it
        time.sleep(0.01)
    (last,) = set(begun) - set(running.results)
    (idle,) = set(begun.values()) - {begun[last]}
    os.kill(idle, signal.SIGSTOP)
    stage.cue()
    thread.join(PATIENCE)
    if waited_for := thread.is_alive():
        os.kill(idle, KILL)
        thread.join()
    assert (reports[0].completed, reports[0].stopped, waited_for) == (10, False, False)


# Stops.


def test_a_stop_from_another_thread_ends_the_run_cleanly(folder: Path, stage: Stage) -> None:
    """What is in work is finished, and `run` returns; failures after it are not recorded."""
    running = runner(act)
    running.stop()  # without effect
    reports = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    stage.wait_begun(3)
    running.stop()
    running.stop()
    stage.cue(2)
    stage.cue(1, FAIL)
    thread.join()
    (report,) = reports
    assert (report.completed, report.failed, report.remaining) == (2, 0, 8)
    assert report.stopped
    stage.cue(8)
    assert running.run().completed == 8


def test_a_stop_while_an_attempt_waits_leaves_the_file_to_do(folder: Path, stage: Stage) -> None:
    """It has not failed for good."""
    Path("in/09.txt").unlink()
    # With a time limit they are dealt singly, or one that is over in a moment might not hear of it.
    running = runner(act, retries=1, max_workers=1, timeout=600, mp_context=CHEAPEST)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    stage.wait_begun(1)
    stage.cue(1, FAIL)
    stage.wait_begun(1)
    running.stop()
    stage.cue()
    thread.join()
    assert (reports[0].completed, reports[0].failed, reports[0].remaining) == (1, 0, 8)


def test_a_run_can_be_stopped_before_a_worker_is_ready(folder: Path, method: str) -> None:
    """From the main thread's own signal handlers, or an initializer's thread, say."""
    running = runner(functions.number_in, mp_context=method, initializer=functions.take_a_second)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    while not os.path.exists("result.pkl"):  # no event tells of it
        time.sleep(0.01)
    running.stop()
    thread.join()
    assert reports[0].remaining == 10


def test_a_stop_is_not_taken_for_an_initializer_that_failed(
    folder: Path, stage: Stage, method: str
) -> None:
    """Whatever that does when it is told to end; and the run returns as after any stop."""
    running = runner(functions.number_in, mp_context=method, initializer=load_until_told_to_end)
    reports = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    stage.wait_begun(3)
    running.stop()
    thread.join()
    assert (reports[0].stopped, reports[0].remaining) == (True, 10)


def test_the_seconds_of_a_lost_file_are_its_own(folder: Path) -> None:
    """Not those of the files before it."""
    report = runner(functions.die, max_workers=1).run()
    assert report.failed == 10
    assert sum(failure.seconds for failure in report.failures) <= report.seconds


def test_failures_are_what_they_were(folder: Path) -> None:
    """A failure read from the checkpoint has its kind, attempts, seconds and traceback."""
    running = runner(functions.fail, retries=1)
    report = running.run()
    assert dict(running.failures) == {failure.path: failure for failure in report.failures}
    failure = running.failures["in/07.txt"]
    assert isinstance(failure, Failure)
    assert (failure.message, failure.attempts) == ("ValueError: 7 is bad", 2)
