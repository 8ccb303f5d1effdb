"""A worker may be broken by a file, or not start: what that costs the others, under every start
method where it makes a difference."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Report, ResumableRunner, WorkerStartError
from resumable_pool.run.suspicion import STREAK

if sys.platform == "win32":
    pytest.skip("limits of a process", allow_module_level=True)

from .. import broken_functions as broken
from ..functions import callers, calls, number_in
from ..stage import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left")


ALL = [f"in/{number:02}.txt" for number in range(10)]


def runner(function: Any, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 2, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", "result.pkl", **options)


# What is said of an error.


@pytest.mark.parametrize("reason", broken.DESPERATE)
def test_where_nothing_more_can_be_had_the_reason_is_still_told(
    folder: Path, method: str, reason: str
) -> None:
    """No file can be opened, no module imported, nothing allocated: the failure says so."""
    Path("in/00.txt").write_text(reason)
    despairing = ResumableRunner(
        broken.despair, ["in/00.txt"], "result.pkl", mp_context=method, progress=False
    )
    (failure,) = despairing.run().failures
    assert (failure.kind, failure.message.startswith(reason)) == ("error", True), failure


# Files that break their worker.


@pytest.fixture
def many(folder: Path) -> list[str]:
    """A hundred and twenty files that are well."""
    paths = [f"in/{number:03}.txt" for number in range(120)]
    for path in [*folder.glob("in/*"), *map(Path, paths)]:
        path.unlink(missing_ok=True)
    for path in paths:
        Path(path).write_text("well")
    return paths


def failed(report: Report) -> list[str]:
    return [failure.path for failure in report.failures]


@pytest.mark.parametrize("most", [1, 2])
def test_a_worker_that_cannot_go_on_loses_nothing(many: list[str], method: str, most: int) -> None:
    """What was returned is saved, of the file that did it and of those behind it in its batch."""
    options: dict[str, Any] = {"max_workers": most, "mp_context": method}
    report = runner(broken.forbid_descriptors, **options).run()
    assert (report.completed, failed(report)) == (120, [])


def test_one_that_has_lost_its_pipes_says_so_in_the_middle_of_a_batch(
    many: list[str], method: str
) -> None:
    """Also where it is the writing that fails."""
    report = runner(broken.close_descriptors, max_workers=1, mp_context=method).run()
    (failure,) = report.failures
    assert failure.path == "in/060.txt"
    assert failure.message.startswith("its worker lost its pipes: the function closed descriptors")


@pytest.mark.parametrize("number", [0, 30])
@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"timeout": 60.0}, marks=pytest.mark.alike),
        pytest.param({"retries": 2}, marks=pytest.mark.alike),
        pytest.param({"max_failures": 1}, marks=pytest.mark.alike),
    ],
)
def test_a_file_that_breaks_its_worker_costs_only_itself(
    many: list[str], method: str, number: int, options: Any
) -> None:
    """Whatever else fails there is tried once more in a fresh one, and has not failed."""
    Path(many[number]).write_text("breaks")
    report = runner(broken.live_on, max_workers=3, mp_context=method, **options).run()
    assert (failed(report), report.completed) == ([many[number]], 119)
    assert max(Counter(calls()).values()) <= 2 + options.get("retries", 0)
    assert len(calls()) < 120 + 40


def test_a_file_may_break_its_worker_and_succeed(many: list[str], method: str) -> None:
    """Then nothing fails."""
    Path(many[30]).write_text("breaks later")
    assert runner(broken.live_on, max_workers=3, mp_context=method).run().completed == 120


def test_several_may_break_their_workers(many: list[str]) -> None:
    """At different times, with one worker as with several."""
    for workers in (1, 4):
        for number in (10, 50, 51, 90):
            Path(many[number]).write_text("breaks")
        report = ResumableRunner(
            broken.live_on, many, f"{workers}.pkl", max_workers=workers, progress=False
        ).run()
        assert failed(report) == [many[number] for number in (10, 50, 51, 90)]


@pytest.mark.parametrize("workers", [1, 3])
def test_near_the_end_a_further_attempt_goes_to_a_sound_worker(
    many: list[str], workers: int
) -> None:
    """Though there are no three failures in a row any more."""
    Path(many[118]).write_text("breaks")
    report = runner(broken.live_on, max_workers=workers, retries=1).run()
    assert failed(report) == [many[118]]


def test_who_has_left_does_not_do_what_has_failed(many: list[str], method: str) -> None:
    """However long it takes to leave: a worker that has had its share is no longer there to try
    what has failed elsewhere, nor to tell whether others are broken."""
    for path in many[100:]:
        Path(path).write_text("bad")
    report = runner(
        broken.live_on,
        max_workers=1,
        max_tasks_per_child=100,
        retries=1,
        initializer=broken.leave_late,
        mp_context=method,
        stop_after=PATIENCE,
    ).run()
    assert (report.stopped, report.completed, failed(report)) == (False, 100, many[100:])


def test_if_every_file_fails_it_is_the_function(many: list[str], method: str) -> None:
    """No worker is replaced, and none is called twice."""
    for path in many:
        Path(path).write_text("bad")
    report = runner(broken.live_on, max_workers=3, mp_context=method).run()
    assert (report.failed, calls()) == (120, many)
    assert len(callers()) <= 3


def test_files_that_fail_for_their_own_reasons_start_few_workers(many: list[str]) -> None:
    """Every second one, or all of the second half: some suspicion, but no storm."""
    for number, path in enumerate(many):
        Path(path).write_text("bad" if number % 2 or number > 60 else "well")
    report = runner(broken.live_on, max_workers=3).run()
    assert (report.completed, report.failed) == (31, 89)
    assert max(Counter(calls()).values()) <= 2
    assert len(calls()) < 120 + 15
    assert len(callers()) < 3 + 20


@pytest.mark.parametrize("function", [broken.leak_descriptors, broken.leak_memory])
def test_what_runs_out_in_a_worker_is_there_in_a_fresh_one(
    many: list[str], method: str, function: Any
) -> None:
    """A library that leaks costs no file; but where nothing is left to do that could succeed, fewer
    failures in a row than are suspicious count."""
    report = runner(function, mp_context=method).run()
    assert report.failed <= 2 * (STREAK - 1)
    assert report.completed == 120 - report.failed


def test_a_failure_that_may_not_count_is_no_other_outcome(many: list[str]) -> None:
    """Each file comes once, when it is known what has become of it; a call that does not count is
    no attempt."""
    Path(many[30]).write_text("breaks")
    outcomes = [*runner(broken.live_on, max_workers=1).as_completed()]
    assert sorted(outcome.path for outcome in outcomes) == many
    assert {outcome.attempts for outcome in outcomes} == {1}
    assert len(calls()) > 120


# Workers that do not start.


@pytest.mark.parametrize(("workers", "times"), [(1, 1), (2, 1), (2, 4)])
def test_a_start_that_fails_in_passing_is_tried_again(
    many: list[str], method: str, workers: int, times: int
) -> None:
    """Once a worker has been ready, while the others go on."""
    if workers == 1:
        Path("started").write_bytes(b".")
    report = runner(
        broken.die_at_20, max_workers=workers, mp_context=method,
        initializer=broken.load_but_not_the_third_time, initargs=[times],
    ).run()  # fmt: skip
    assert (failed(report), report.completed) == (["in/020.txt"], 119)
    assert os.path.getsize("started") >= 4


def test_the_others_do_without_a_worker_that_never_starts_again(many: list[str]) -> None:
    """That is no reason to end the run."""
    report = runner(
        broken.die_at_20, max_workers=2,
        initializer=broken.load_but_not_the_third_time, initargs=[1000],
    ).run()  # fmt: skip
    assert (failed(report), report.completed) == (["in/020.txt"], 119)


def test_when_nobody_is_left_and_no_start_succeeds_the_run_ends(many: list[str]) -> None:
    """It says why; what was done is saved."""
    Path("started").write_bytes(b".")
    running = runner(
        broken.die_at_20, max_workers=1,
        initializer=broken.load_but_not_the_third_time, initargs=[1000],
    )  # fmt: skip
    with pytest.raises(WorkerStartError, match="the model server is away"):
        running.run()
    assert len(running.results) == 20
    assert os.path.getsize("started") == 2 + 3


# Workers that are killed.


@pytest.mark.parametrize("again", ["by retries", "by the next run"])
def test_what_was_killed_is_tried_last_and_alone(many: list[str], method: str, again: str) -> None:
    """When nothing else is in work: side by side memory would be short again."""
    killed = [many[0], many[60], many[118]]
    for path in killed:
        Path(path).write_text("killed")
    options = {"max_workers": 3, "mp_context": method}
    report = runner(broken.be_killed_at_first, retries=int(again == "by retries"), **options).run()
    if again == "by the next run":
        assert failed(report) == killed
        Path("calls").unlink()
        Path("in/200.txt").write_text("well")
        report = runner(broken.be_killed_at_first, **options).run()
    assert report.failed == report.remaining == 0
    events = [line.split()[1:] for line in Path("calls").read_text().splitlines()]
    assert sorted(events[-6:]) == sorted([what, path] for path in killed for what in _BOTH)
    assert [what for what, _ in events[-6:]] == 3 * _BOTH
    assert [path for _, path in events[-6::2]] == [path for _, path in events[-5::2]]


_BOTH = ["begins", "ends"]


def test_who_dies_idle_was_not_killed_by_the_next_file(many: list[str], method: str) -> None:
    """Though that was dealt to it before anybody could know."""
    some = many[:40]
    options: Any = {"max_workers": 2, "mp_context": method, "progress": False}
    report = ResumableRunner(broken.die_idle, some, "result.pkl", **options).run()
    assert (report.completed, failed(report), calls()) == (40, [], some)


# Pauses.


def test_a_further_attempt_comes_after_a_pause(folder: Path) -> None:
    """Which is doubled each time; the others go on meanwhile."""
    Path(ALL[3]).write_text("bad")
    running = ResumableRunner(
        broken.fail_at_first, ALL, "result.pkl", retries=2, retry_delay=1.0, max_workers=1,
        progress=False,
    )  # fmt: skip
    assert running.run().completed == 10
    first, second, third = broken.when(ALL[3])
    assert second - first >= 1.0
    assert third - second >= 2.0
    assert broken.when(ALL[9])[0] < second


def test_a_stop_does_not_wait_for_a_pause(folder: Path) -> None:
    """What waits is still to do."""
    Path(ALL[3]).write_text("bad")
    running = ResumableRunner(
        broken.fail_at_first, ALL, "result.pkl", retries=2, retry_delay=600, progress=False
    )
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(running.run()))
    thread.start()
    while len(running.results) < 9:  # no event tells of it
        time.sleep(0.01)
    running.stop()
    thread.join(PATIENCE)
    (report,) = reports
    assert (report.completed, report.failed, report.remaining, report.stopped) == (9, 0, 1, True)


# How they are forgotten.


def test_where_dead_children_are_not_told_of_nothing_is_kept(folder: Path, method: str) -> None:
    """As where SIGCHLD is ignored."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        report = runner(number_in, max_tasks_per_child=2, mp_context=method).run()
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert report.completed == 10
