"""Runs with real processes, under every start method: what is done, saved, resumed and reported."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import (
    CheckpointError,
    CheckpointLocked,
    Report,
    ResumableRunner,
    SaverError,
    WorkerStartError,
    open_checkpoint,
)
from resumable_pool.worker import calling

from . import functions
from .conftest import METHODS, not_on_windows
from .stage import FAIL, PATIENCE, Stage, act

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = [f"in/{number:02}.txt" for number in range(10)]
NUMBERS = {path: number for number, path in enumerate(ALL)}


def runner(function: Any = functions.number_in, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 3, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", "result.pkl", **options)


def test_every_file_is_processed_once_and_saved(folder: Path, method: str) -> None:
    """A run calls the function once for every file, and the checkpoint is a pickle of them all."""
    report = runner(mp_context=method).run()
    assert functions.calls() == ALL
    assert pickle.loads(Path("result.pkl").read_bytes()) == NUMBERS
    assert (report.total, report.completed, report.skipped, report.failed) == (10, 10, 0, 0)
    assert (report.remaining, report.stopped, report.failures) == (0, False, [])


def test_a_rerun_calls_the_function_only_for_what_is_not_saved(folder: Path) -> None:
    """New files, sorted first, in between or last, change nothing for those that are done."""
    runner().run()
    functions.CALLS.unlink()
    Path("in/03.txt").unlink()
    for name in ("-1.txt", "05b.txt", "99.txt"):
        Path("in", name).write_text("42")
    again = runner()
    assert again.pending() == ["in/-1.txt", "in/05b.txt", "in/99.txt"]
    report = again.run()
    assert functions.calls() == ["in/-1.txt", "in/05b.txt", "in/99.txt"]
    assert (report.total, report.completed, report.skipped) == (12, 3, 9)
    assert again.results["in/04.txt"] == 4
    assert again.results["in/-1.txt"] == 42
    assert again.results["in/03.txt"] == 3  # its file is gone, what was computed is not


@pytest.mark.parametrize("again", [1, 2])
def test_falsy_results_count_as_saved(folder: Path, again: int) -> None:
    """None, False, 0 and empty things are results like any other."""
    for _ in range(again):
        runner(functions.falsy).run()
    assert functions.calls() == ALL
    assert list(runner().results.values()).count(None) == 1
    assert len(runner().results) == 10


class RefusesToStart(type(multiprocessing.get_context("spawn"))):  # type: ignore[misc]
    """A context in which no process can be started."""

    @property
    def Process(self) -> Any:  # noqa: N802 (its name in multiprocessing)
        raise AssertionError("a process was started")


def test_nothing_to_do_starts_no_process(folder: Path) -> None:
    """Where everything is saved, or nothing matches, no process is started and nothing touched."""
    assert runner(mp_context=RefusesToStart()).pending() == ALL
    runner().run()
    before = Path("result.pkl").stat()
    assert runner(mp_context=RefusesToStart()).run().skipped == 10
    after = Path("result.pkl").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino)
    none = ResumableRunner(functions.number_in, "no/*", "none.pkl", mp_context=RefusesToStart())
    assert none.run().total == 0
    assert not Path("none.pkl").exists()


def test_run_may_be_called_again(folder: Path, method: str) -> None:
    """One runner serves many runs, and sees files that come in between."""
    twice = runner(mp_context=method)
    twice.run()
    Path("in/10.txt").write_text("10")
    assert twice.run().completed == 1
    assert len(twice.results) == 11


def test_there_are_as_many_workers_as_asked_for_but_not_more_than_files(folder: Path) -> None:
    """`max_workers` is the number of processes, as long as there is something to do for them."""
    runner(functions.note, max_workers=1).run()
    assert len(functions.callers()) == 1
    functions.CALLS.unlink()
    Path("in/10.txt").write_text("10")
    runner(functions.note, max_workers=8).run()
    assert len(functions.callers()) == 1


def test_the_initializer_runs_once_in_each_worker(folder: Path, method: str) -> None:
    """It is called before the worker's first file, with its arguments."""
    done = runner(
        functions.what_is_loaded, initializer=functions.load, initargs=("model",), mp_context=method
    )
    done.run()
    assert set(map(tuple, done.results.values())) == {("model",)}


@pytest.mark.parametrize(
    ("in_thread", "method"), [*((True, method) for method in METHODS), (False, None)]
)
def test_runs_from_any_thread(folder: Path, method: str | None, in_thread: bool) -> None:
    """A thread other than the main one can run, and two of them two runs at the same time."""
    reports: list[Report] = []

    def run(name: str) -> None:
        one = ResumableRunner(
            functions.number_in, "in/*.txt", name, mp_context=method, max_workers=2, progress=False
        )
        reports.append(one.run())

    threads = [threading.Thread(target=run, args=(name,)) for name in ("a.pkl", "b.pkl")]
    for thread in threads[: 2 if in_thread else 1]:
        thread.start()
    if not in_thread:
        run("b.pkl")
    for thread in threads[: 2 if in_thread else 1]:
        thread.join()
    assert [report.completed for report in reports] == [10, 10]


def sabotaged(table: dict[str, Any], kind: str) -> dict[str, str]:
    """The tables' deeds, spread among files that are well: the path of each."""
    paths = {f"in/{2 * number:02}b.txt": name for number, name in enumerate(table)}
    for path, name in paths.items():
        Path(path).write_text(f"!{kind}:{name}")
    return paths


def test_whatever_a_function_raises_is_that_files_failure(folder: Path, method: str) -> None:
    """The failure has the exception's name and traceback; all other files are processed."""
    paths = sabotaged(functions.RAISING, "raise")
    report = runner(functions.sabotage, mp_context=method).run()
    assert [failure.path for failure in report.failures] == sorted(paths)
    for failure in report.failures:
        assert (failure.kind, failure.attempts) == ("error", 1)
        assert failure.message.startswith(paths[failure.path])
        assert "functions.py" in failure.traceback
        assert calling.__file__ not in failure.traceback
    assert (report.completed, report.failed, report.remaining) == (10, len(paths), 0)
    assert pickle.loads(Path("result.pkl").read_bytes()) == NUMBERS


@pytest.mark.usefixtures("untaught")
def test_a_result_that_cannot_be_stored_is_that_files_failure(folder: Path, method: str) -> None:
    """What cannot be pickled, or not be unpickled again, never reaches the checkpoint."""
    paths = sabotaged(functions.RETURNING, "return")
    report = runner(functions.sabotage, mp_context=method).run()
    assert [failure.path for failure in report.failures] == sorted(paths)
    for failure in report.failures:
        assert failure.kind == "error"
        assert failure.message.startswith("the result can")
    assert pickle.loads(Path("result.pkl").read_bytes()) == NUMBERS


WORDS = {
    "SIGKILL": "its worker was killed by SIGKILL, perhaps out of memory",
    "SIGTERM": "its worker was killed by SIGTERM",
    "SIGINT": "its worker was killed by SIGINT",
    "SIGSEGV": "its worker was killed by SIGSEGV, a crash in native code",
    "os._exit(0)": "its worker exited with status 0 in the middle of it",
    "os._exit(3)": "its worker exited with status 3",
    "exit in a library": "its worker exited with status 0 in the middle of it",
    "all descriptors closed": "its worker lost its pipes",
    "dies in a forked child's hands": "its worker was killed by SIGKILL",
}


if sys.platform == "win32":
    WORDS["SIGKILL"] = "its worker exited with status 9"


def test_a_worker_that_dies_costs_its_file_only(folder: Path, method: str) -> None:
    """It is replaced, and the file is named with the way its worker ended."""
    paths = sabotaged(functions.DYING, "die")
    report = runner(functions.sabotage, mp_context=method).run()
    assert [failure.path for failure in report.failures] == sorted(paths)
    for failure in report.failures:
        assert failure.kind == "crashed"
        assert failure.message.startswith(WORDS[paths[failure.path]])
    assert pickle.loads(Path("result.pkl").read_bytes()) == NUMBERS
    assert functions.calls() == sorted([*ALL, *paths])


@not_on_windows("fork")
def test_so_it_does_where_the_system_has_no_pidfd(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a quiet sentinel and an early one are made up for by asking the process."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    test_a_worker_that_dies_costs_its_file_only(folder, "fork")


@not_on_windows("faulthandler writes to no pipe")
def test_a_crash_in_native_code_leaves_its_traceback(folder: Path, method: str) -> None:
    """Where it happened is in the failure, and not on the terminal."""
    Path("in/07.txt").write_text("!die:SIGSEGV")
    (failure,) = runner(functions.sabotage, mp_context=method).run().failures
    assert "Segmentation fault" in failure.traceback
    assert "in sabotage" in failure.traceback
    assert calling.__file__ not in failure.traceback


def test_failed_files_are_tried_again(folder: Path) -> None:
    """A failure is remembered until the file succeeds, in the run or in a later one."""
    Path("in/07.txt").write_text("!die:SIGKILL")
    Path("in/08.txt").write_text("!raise:ValueError")
    first = runner(functions.sabotage)
    assert first.run().failed == 2
    assert sorted(first.failures) == ["in/07.txt", "in/08.txt"]
    assert first.pending() == ["in/07.txt", "in/08.txt"]
    Path("in/07.txt").write_text("7")
    functions.CALLS.unlink()
    report = first.run()
    assert functions.calls() == ["in/07.txt", "in/08.txt"]
    assert (report.completed, report.skipped, report.failed) == (1, 8, 1)
    assert list(first.failures) == ["in/08.txt"]


def test_a_function_that_kills_every_worker_ends_with_so_many_failures(folder: Path) -> None:
    """Each death costs one file, and nothing is tried for ever."""
    report = runner(functions.die).run()
    assert (report.failed, report.completed) == (10, 0)
    assert functions.calls() == ALL


@not_on_windows("fork")
def test_what_a_successful_function_leaves_behind_harms_nobody(folder: Path, method: str) -> None:
    """Forks that return twice, children, threads, handlers, directories, closed streams: no file
    fails, none is processed twice, and nobody waits for what was left running."""
    report = runner(functions.misbehave, mp_context=method).run()
    assert report.completed == 10
    assert functions.calls() == ALL
    assert set(pickle.loads(Path("result.pkl").read_bytes()).values()) == {"well"}


@not_on_windows("fork")
def test_the_copy_of_a_worker_that_returns_as_well_says_nothing(folder: Path, method: str) -> None:
    """Whoever forked it, and however: one file, one result."""
    report = runner(functions.return_twice_from_c, mp_context=method, max_workers=1).run()
    assert (report.completed, report.failures) == (10, [])
    assert set(open_checkpoint("result.pkl").values()) == {f"from {functions.callers().pop()}"}


def test_workers_do_not_read_the_terminal(folder: Path, method: str) -> None:
    """Nor does what they start: there is nothing on their standard input."""
    done = runner(functions.read_terminal, mp_context=method)
    done.run()
    assert list(done.results.values()) == [b""] * 10


def size_of_pipe(path: str) -> int:
    import fcntl

    (worker,) = (o for o in gc.get_objects() if type(o).__name__ == "_InWorker")
    size: int = fcntl.fcntl(worker._results, fcntl.F_GETPIPE_SZ)
    return size


@pytest.mark.skipif(sys.platform != "linux", reason="pipes are as they are")
@pytest.mark.parametrize(
    ("files", "max_workers", "size"),
    [(2, 2, 1 << 20), (2, 10**9, 1 << 20), (64, 64, 1 << 18), (64, 10**9, 1 << 18)],
)
def test_many_workers_have_smaller_pipes(
    folder: Path, files: int, max_workers: int, size: int
) -> None:
    """Together they leave this user room for others; and there are never more than files."""
    for number in range(files):
        (folder / f"{number:02}.txt").touch()
    runner = ResumableRunner(size_of_pipe, "*.txt", "result.pkl", max_workers=max_workers)
    runner.run()
    assert {*runner.results.values()} == {size}


@not_on_windows("timers")
def test_an_alarm_that_a_function_leaves_ticking_never_goes_off(folder: Path, method: str) -> None:
    """It would strike in another file, or in the worker's own code."""
    one = runner(functions.set_alarm, mp_context=method, max_workers=1)
    assert one.run().completed == 10
    assert [*one.results.values()] == [0.0] * 10


def test_an_exception_in_the_workers_own_code_ends_it_at_once(
    folder: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a function has set in motion costs its own file, without a word on the terminal, and
    without waiting for the function's threads."""
    report = runner(functions.break_worker, mp_context=method, max_workers=1).run()
    (failure,) = report.failures
    assert failure.path == "in/07.txt"
    assert failure.message.startswith("its worker was broken by an exception")
    assert report.completed == 9
    assert capfd.readouterr().err == ""


def test_relative_paths_hold_when_a_function_changes_directory(folder: Path, method: str) -> None:
    """Every call finds itself in the directory in which the run was started."""
    done = runner(functions.wander, mp_context=method, max_workers=1)
    assert done.run().completed == 10
    assert done.results["in/09.txt"] == "9"


@pytest.mark.parametrize(
    ("initializer", "reason"),
    [
        (functions.fail_to_load, "the initializer failed: RuntimeError: the model is not there"),
        (functions.die_loading, WORDS["SIGKILL"].removeprefix("its ")),
        (functions.exit_loading, "a worker exited with status 0"),
    ],
)
def test_workers_that_die_before_they_are_ready_end_the_run(
    folder: Path, method: str, initializer: Any, reason: str
) -> None:
    """The error has the reason, no file is blamed, and no worker is started for ever."""
    failing = runner(initializer=initializer, mp_context=method)
    with pytest.raises(WorkerStartError, match=reason):
        failing.run()
    assert not functions.CALLS.exists()
    assert (len(failing.results), len(failing.failures)) == (0, 0)
    assert runner().run().completed == 10


def test_workers_that_die_as_soon_as_they_are_ready_end_the_run(folder: Path, method: str) -> None:
    """With an error, or with a failure for every file that was dealt to one; not in a storm."""
    dying = runner(initializer=functions.die_soon, mp_context=method)
    with contextlib.suppress(WorkerStartError):
        assert dying.run().failed == 10
    assert not functions.CALLS.exists()


def test_a_second_run_on_the_same_checkpoint_is_refused(folder: Path, method: str) -> None:
    """It says who has it, and the first one is not disturbed; nor is one runner run twice."""
    stage = Stage(folder)
    first = runner(act, mp_context=method)
    thread = threading.Thread(target=first.run)
    thread.start()
    stage.wait_begun(3)
    with pytest.raises(CheckpointLocked) as refused:
        runner(mp_context=method).run()
    assert refused.value.pid in [child.pid for child in multiprocessing.active_children()]
    with pytest.raises(RuntimeError, match="running already"):
        first.run()
    stage.cue(10)
    thread.join()
    stage.close()
    assert len(first.results) == 10


def test_results_can_be_read_while_the_run_goes_on(folder: Path) -> None:
    """By the runner and by any other reader; a plain `pickle.load` lags by a second at most."""
    stage = Stage(folder)
    running = runner(act, max_workers=1)
    thread = threading.Thread(target=running.run)
    thread.start()
    stage.wait_begun(1)
    assert len(running.results) == 0
    assert pickle.loads(Path("result.pkl").read_bytes()) == {}
    stage.cue()
    stage.wait_begun(1)  # the second begins only when the first is saved
    while pickle.loads(Path("result.pkl").read_bytes()) == {}:
        assert thread.is_alive()  # it is for the saver to commit while the run goes on
    assert dict(running.results) == {"in/00.txt": "done in/00.txt"}
    assert dict(open_checkpoint("result.pkl")) == {"in/00.txt": "done in/00.txt"}
    stage.cue(how=FAIL)
    stage.wait_begun(1)
    stage.cue(9)
    thread.join()
    stage.close()
    assert running.failures["in/01.txt"].message == "ValueError: as directed"
    assert len(pickle.loads(Path("result.pkl").read_bytes())) == 9


def test_a_foreign_file_is_refused_untouched(folder: Path) -> None:
    """Before any process is started; the error names the file and what to do."""
    Path("result.pkl").write_bytes(pickle.dumps(["somebody's work"]))
    before = Path("result.pkl").read_bytes()
    with pytest.raises(CheckpointError, match=r"result\.pkl' is not a checkpoint.*another file"):
        runner().run()
    assert Path("result.pkl").read_bytes() == before
    assert not functions.CALLS.exists()


@not_on_windows("nobody may remove what is open")
def test_a_checkpoint_that_disappears_is_an_error(folder: Path) -> None:
    """Results in a file that nobody can find are not saved, and the run does not say they were."""
    with pytest.raises(SaverError, match="removed, moved or replaced"):
        runner(functions.remove_checkpoint, max_workers=1).run()
    assert runner().run().completed == 10


@pytest.mark.alike
@not_on_windows("limits of a process")
def test_too_few_descriptors_are_an_error_at_any_number(folder: Path) -> None:
    """Wherever they run out, there is an error or a good end, and nobody is left waiting; with
    enough of them the same runner does the rest."""
    program = """
import resource, sys
from resumable_pool import ResumableRunner, WorkerStartError, SaverError
from tests.functions import number_in
limit = int(sys.argv[1])
runner = ResumableRunner(
    number_in, "in/*.txt", "result.pkl", max_workers=4, mp_context="fork", progress=False
)
before = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
try:
    runner.run()
except (WorkerStartError, SaverError, OSError) as error:
    assert "Too many open files" in str(error) or "too many open files" in str(error), error
resource.setrlimit(resource.RLIMIT_NOFILE, before)
runner.run()
assert len(runner.results) == 10
"""
    for limit in range(4, 40, 3):
        command = [sys.executable, "-c", program, str(limit)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        subprocess.run(command, check=True, timeout=PATIENCE, env=environment)


def test_a_torn_checkpoint_is_mended_and_the_lost_file_processed_again(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file cut off in its last record costs that record, and nothing else; not a word either,
    where none was asked for."""
    runner().run()
    whole = Path("result.pkl").read_bytes()
    Path("result.pkl").write_bytes(whole[:-5])
    functions.CALLS.unlink()
    assert runner().run().completed == 1
    assert len(functions.calls()) == 1
    assert pickle.loads(Path("result.pkl").read_bytes()) == NUMBERS
    assert capfd.readouterr().err == ""


@not_on_windows("Wine makes no links")
def test_a_checkpoint_that_cannot_be_written_is_an_error(folder: Path) -> None:
    """The system's reason is in it, no worker is started, and no process is left."""
    Path("loop").symlink_to("loop")  # root may write anything, but not through a loop
    one = ResumableRunner(functions.number_in, "in/*.txt", "result.pkl")
    Path("result.pkl").symlink_to("loop")
    with pytest.raises((CheckpointError, OSError), match="symbolic links"):
        one.run()
    assert not functions.CALLS.exists()


@not_on_windows("fork")
def test_lambdas_run_where_they_can_be_inherited(folder: Path) -> None:
    """Without an explicit start method, Linux forks for a function that cannot be sent."""
    odd = [1, 2]
    assert runner(lambda path: odd).run().completed == 10
    with pytest.raises(ValueError, match=r"lambda.*cannot be sent.*'spawn'"):
        runner(lambda path: odd, mp_context="spawn")


@not_on_windows("fork")
def test_inside_a_daemonic_process_the_error_says_so(folder: Path) -> None:
    """Such a process may not have children."""
    process = multiprocessing.get_context("fork").Process(target=_run_as_daemon, daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
    process.close()


def _run_as_daemon() -> None:
    with pytest.raises(WorkerStartError, match="daemonic process"):
        runner().run()


def test_a_function_may_run_a_runner_of_its_own(folder: Path, method: str) -> None:
    """A worker is a process like any other."""
    outer = ResumableRunner(
        _run_nested, ALL[:2], "result.pkl", mp_context=method, max_workers=2, progress=False
    )
    assert outer.run().completed == 2
    assert len(open_checkpoint("in/01.txt.pkl")) == 10


def _run_nested(path: str) -> int:
    nested = ResumableRunner(
        functions.number_in, "in/0?.txt", f"{path}.pkl", max_workers=1, progress=False
    )
    return nested.run().completed
