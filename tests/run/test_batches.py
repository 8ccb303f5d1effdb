"""Quick files in batches: nothing that holds for single files is lost. The rules: books.py."""

from __future__ import annotations

import faulthandler
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ResumableRunner, open_checkpoint
from resumable_pool.between.messages import Setup
from resumable_pool.run import loop
from resumable_pool.run.books import Books
from resumable_pool.values import Encoder
from resumable_pool.worker.calling import process_batch

from ..conftest import not_on_windows
from ..functions import CALLS, KILL, calls, note
from ..stage import FAIL, PATIENCE, Stage, act, announcement
from ..test_scripts import python

pytestmark = pytest.mark.alike

NUMBER = 600


@pytest.fixture
def many(folder: Path) -> list[str]:
    """Files enough for long batches."""
    (folder / "many").mkdir()
    paths = [f"many/{number:03}.txt" for number in range(NUMBER)]
    for path in paths:
        Path(path).touch()
    return paths


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    yield stage
    stage.close()


@pytest.fixture
def rests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long the rests of batches were that came back."""
    lengths: list[int] = []
    give_back = Books.give_back

    def note_and_give_back(books: Books, worker: int) -> None:
        lengths.append(len(books._batches[worker].left))
        give_back(books, worker)

    monkeypatch.setattr(Books, "give_back", note_and_give_back)
    return lengths


def runner(function: Any, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 2, "progress": False, **options}
    return ResumableRunner(function, "many/*.txt", "result.pkl", **options)


def quick(path: str) -> str:
    note(path)
    return path


def directed(path: str) -> str:
    """One in the middle does as it is told."""
    if path != "many/300.txt":
        return quick(path)
    done = act(path)
    time.sleep(0.002)  # so long that the worker looks around
    return done


def deadly(path: str) -> str:
    """One in a hundred takes its worker along."""
    note(path)
    if path.endswith("50.txt"):
        os.kill(os.getpid(), KILL)
    return path


def failing(path: str) -> str:
    note(path)
    if path.endswith("50.txt"):
        raise ValueError("fifty")
    return path


def leave_an_alarm(path: str) -> float:
    found, _ = signal.getitimer(signal.ITIMER_REAL)
    signal.setitimer(signal.ITIMER_REAL, 600)
    return found


def slow_from_300_on(path: str) -> str:
    note(path)
    if path >= "many/300.txt":
        time.sleep(0.02)
    return path


def brief(path: str) -> str:
    time.sleep(0.005)
    return Path(path).read_text()


def end_the_script(path: str) -> str:
    """One in the middle kills the script; each takes so long that the worker looks around."""
    note(path)
    if path == "many/300.txt":
        os.kill(os.getppid(), KILL)
    time.sleep(0.002)
    return path


def deadly_in_native_code(path: str) -> str:
    if path.endswith("50.txt"):
        faulthandler._sigsegv()  # type: ignore[attr-defined]
    return path


@not_on_windows("faulthandler writes to no pipe")
def test_a_crash_in_a_batch_has_its_traceback(many: list[str]) -> None:
    """Though outcomes of the files before it may be heard of later than its last words."""
    report = runner(deadly_in_native_code).run()
    assert len(report.failures) == NUMBER // 100
    for failure in report.failures:
        assert failure.kind == "crashed"
        assert "deadly_in_native_code" in failure.traceback, failure


@not_on_windows("timers")
def test_the_alarm_of_a_quick_file_is_not_the_next_ones(many: list[str]) -> None:
    """Though nobody looks around after each of them."""
    alarmed = runner(leave_an_alarm)
    assert alarmed.run().completed == NUMBER
    assert {*alarmed.results.values()} == {0.0}


def test_quick_files_are_dealt_in_few_batches(many: list[str], rests: list[int]) -> None:
    """Each is called once, and saved, with far fewer rounds than files."""
    assert runner(quick).run().completed == NUMBER
    assert calls() == many
    assert dict(open_checkpoint("result.pkl")) == {path: path for path in many}
    assert len(rests) < NUMBER / 4


def test_who_dies_in_the_middle_of_a_batch_is_known(many: list[str], method: str) -> None:
    """Exactly the files that kill have crashed, and every other one was called once."""
    report = runner(deadly, mp_context=method).run()
    fatal = [path for path in many if path.endswith("50.txt")]
    assert [failure.path for failure in report.failures] == fatal
    assert {failure.kind for failure in report.failures} == {"crashed"}
    assert report.completed == NUMBER - len(fatal)
    assert calls() == many


def test_a_failure_in_the_middle_of_a_batch_costs_nothing_else(many: list[str]) -> None:
    """It has its attempts, and every other file was called once."""
    report = runner(failing, retries=1).run()
    bad = [path for path in many if path.endswith("50.txt")]
    assert [failure.path for failure in report.failures] == bad
    assert Counter(calls()) == {path: 1 + (path in bad) for path in many}


def test_max_failures_holds_within_a_batch(many: list[str]) -> None:
    """No more files are recorded as failed than it takes to stop, in path order with one worker."""
    report = runner(failing, max_failures=1, max_workers=1).run()
    assert [failure.path for failure in report.failures] == ["many/050.txt", "many/150.txt"]
    assert report.remaining == NUMBER - report.completed - 2
    assert "many/250.txt" not in calls()


def test_slow_files_come_back_from_a_batch(
    many: list[str], rests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was taken for quick, and is not, is handed back after a moment."""
    # As where files are quick, however slow this machine is.
    monkeypatch.setattr(Books, "_batch_length", lambda books, source: 40)
    assert runner(slow_from_300_on).run().completed == NUMBER
    assert calls() == many
    assert max(rests) > 5


def test_a_stop_is_heard_in_the_middle_of_a_batch(many: list[str], stage: Stage) -> None:
    """The file in work is finished, and no further one of its batch is begun."""
    stopped = runner(directed, max_workers=1)
    reports: list[Any] = []
    thread = threading.Thread(target=lambda: reports.append(stopped.run()))
    with announcement("asked to stop") as heard:
        thread.start()
        stage.wait_begun(1)
        stopped.stop()
        assert heard.wait(PATIENCE)
        stage.cue()
        thread.join()
    assert calls() == many[:301]
    assert reports[0].completed == 301
    assert reports[0].remaining == NUMBER - 301


def test_what_is_done_is_seen_behind_a_slow_file(many: list[str], stage: Stage) -> None:
    """The results before it in its batch are saved and reported while it takes its time."""
    outcomes = runner(directed, max_workers=1).as_completed()
    before = [next(outcomes).path for _ in range(300)]
    assert before == many[:300]
    assert [*open_checkpoint("result.pkl")] == many[:300]
    stage.cue(1, FAIL)
    after = [*outcomes]
    assert [outcome.path for outcome in after if not outcome.ok] == ["many/300.txt"]
    assert len(after) == NUMBER - 300


def test_a_fresh_worker_comes_after_so_many_files(many: list[str]) -> None:
    """However many files make a batch."""
    assert runner(quick, max_tasks_per_child=40).run().completed == NUMBER
    assert calls() == many
    by_worker = Counter(line.split()[0] for line in CALLS.read_text().splitlines())
    assert max(by_worker.values()) == 40
    assert len(by_worker) <= NUMBER / 40 + 1  # the last two share what is left


def test_with_a_slow_loop_files_are_dealt_singly(
    many: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop need not wait until it has gone through hundreds of outcomes."""
    monkeypatch.setattr(loop, "SLOW_SECONDS", 0.0)
    slow = runner(quick)
    for number, _ in enumerate(slow.as_completed(), 1):
        if number == 10:
            slow.stop()
    assert number < 20


def test_with_a_time_limit_files_are_dealt_singly(many: list[str], rests: list[int]) -> None:
    """So that it is known when each one begins."""
    assert runner(quick, timeout=600).run().completed == NUMBER
    assert len(rests) == NUMBER
    assert max(rests) == 0


def test_a_batch_that_does_not_fit_into_a_pipe_is_dealt_all_the_same(folder: Path) -> None:
    """What is left of it is sent as the worker reads."""
    paths = [f"in/{'long' * 50} {number:04}.txt" for number in range(4000)]
    for path in paths:
        Path(path).write_text("")
    names = ResumableRunner(os.path.basename, paths, "names.pkl", max_workers=1, progress=False)
    assert names.run().completed == 4000


@pytest.mark.parametrize(("number", "size"), [(1, 0), (100, 0), (101, -1)])
def test_only_files_of_a_long_batch_are_not_asked_for_their_size(
    many: list[str], number: int, size: int
) -> None:
    """Those of a short one take much longer than that."""
    sizes: list[int] = []

    def record(outcome: Any) -> list[bytes]:
        sizes.append(outcome[6].size)
        return [b""]

    setup = Setup(str, None, (), encoder=Encoder(pickle.dumps, record))
    for _ in process_batch(setup, dict.fromkeys(many[:number], 1), lambda: None):
        pass
    assert sizes == [size] * number


def test_a_file_of_milliseconds_that_is_replaced_by_an_older_one_is_done_again(
    folder: Path, many: list[str]
) -> None:
    """Also if the run that did it first was not asked to look at that."""
    hundred: dict[str, Any] = {"max_workers": 1, "progress": False}
    assert ResumableRunner(brief, many[:100], "result.pkl", **hundred).run().completed == 100
    Path("older").write_text("longer")
    os.utime("older", (1e9, 1e9))
    os.replace("older", many[10])
    again = ResumableRunner(brief, many[:100], "result.pkl", rerun_changed=True, **hundred)
    assert again.run().completed == 1
    assert again.results[many[10]] == "longer"


@not_on_windows("fork")
def test_without_a_runner_no_further_file_of_a_batch_is_begun(many: list[str]) -> None:
    """Whoever starts the script again at once has to wait for those in progress, not for more."""
    script = (
        "from resumable_pool import ResumableRunner\n"
        "from tests.run.test_batches import end_the_script\n"
        "ResumableRunner(end_the_script, 'many/*.txt', 'result.pkl', max_workers=1,"
        " mp_context='fork').run()"
    )
    assert python("-c", script).returncode == -KILL
    assert calls() == [*open_checkpoint("result.pkl")]
    assert len(calls()) < 310
