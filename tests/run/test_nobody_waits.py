"""Who is stopped, slow or late keeps nobody else waiting: a saver, a worker, a program's loop."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Report, ResumableRunner, WorkerStartError
from resumable_pool.between import children
from resumable_pool.run import loop
from resumable_pool.run.loop import STARTING_SECONDS

from .. import functions
from ..conftest import IMPORTING
from ..stage import PATIENCE, announcement

pytestmark = [
    pytest.mark.usefixtures("nothing_left"),
    pytest.mark.skipif(sys.platform == "win32", reason="SIGSTOP, fork and named pipes"),
]

LARGE = 1 << 20  # more than any pipe holds


class InThread:
    """A run in a thread of its own."""

    def __init__(self, runner: ResumableRunner[Any]) -> None:
        self._thread = threading.Thread(target=self._run, args=(runner,))
        self._thread.start()

    def _run(self, runner: ResumableRunner[Any]) -> None:
        self._report = runner.run()

    def report(self) -> Report:
        """What it returns."""
        self._thread.join(PATIENCE)
        return self._report


def savers() -> list[int]:
    """The processes."""
    living = multiprocessing.active_children()
    return [child.pid for child in living if child.name.endswith("saver") and child.pid]


def saver_pid() -> int:
    (pid,) = savers()
    return pid


def kill_saver() -> None:
    """As soon as there is one."""
    wait_until(lambda: bool(savers()))
    os.kill(saver_pid(), signal.SIGKILL)


def test_a_stop_is_heard_while_the_saver_is_stopped(folder: Path) -> None:
    """Large results come back from an executor, and cannot be passed on. When the saver goes on,
    they are saved."""
    begun = threading.Barrier(5)
    go_on = threading.Event()

    def large(path: str) -> bytes:
        begun.wait(PATIENCE)
        go_on.wait(PATIENCE)
        return bytes(LARGE)

    with ThreadPoolExecutor(4) as pool:
        options: Any = {"executor": pool, "max_workers": 4, "progress": False}
        runner = ResumableRunner(large, "in/*.txt", "result.pkl", **options)
        run = InThread(runner)
        begun.wait(PATIENCE)
        saver = saver_pid()
        os.kill(saver, signal.SIGSTOP)
        try:
            go_on.set()
            time.sleep(0.2)  # for a runner that waits to have begun with it
            with announcement("asked to stop") as heard:
                runner.stop()
                assert heard.wait(PATIENCE)
        finally:
            os.kill(saver, signal.SIGCONT)
        report = run.report()
    assert (report.completed, report.remaining) == (4, 6)
    assert [*map(len, runner.results.values())] == [LARGE] * 4


class LateSaver(ResumableRunner[int]):
    """Its saver begins when it is told to."""

    def open_saver(self) -> None:
        Path("gate").read_bytes()


def ignore(load: bytes) -> None:
    """An initializer."""


@pytest.mark.skipif(sys.platform != "linux", reason="nobody tells what a process waits for")
@pytest.mark.parametrize("method", IMPORTING)  # what is forked inherits its setup
def test_a_stopped_worker_keeps_nobody_waiting(folder: Path, method: str) -> None:
    """It does not read what it needs for its start, which is large; others do all the files."""
    os.mkfifo("gate")
    options: Any = {"initializer": ignore, "initargs": (bytes(LARGE),), "mp_context": method}
    runner = LateSaver(
        functions.number_in, "in/*.txt", "result.pkl", max_workers=2, progress=False, **options
    )
    run = InThread(runner)
    wait_until(lambda: len(runner.workers()) == 2)
    stopped = runner.workers()[0].pid
    wait_until(lambda: "pipe_read" in Path(f"/proc/{stopped}/wchan").read_text())
    os.kill(stopped, signal.SIGSTOP)
    try:
        Path("gate").write_bytes(b"")
        wait_until(lambda: len(runner.results) == 10)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert run.report().completed == 10


def test_a_saver_that_is_killed_early_is_not_blamed_on_the_script(folder: Path) -> None:
    """Whoever has a guard in his script is not told to write one."""
    os.mkfifo("gate")
    runner = LateSaver(functions.number_in, "in/*.txt", "result.pkl", progress=False)
    killer = threading.Thread(target=kill_saver)
    killer.start()
    with pytest.raises(WorkerStartError, match=r"before it was ready.*SIGKILL") as caught:
        runner.run()
    killer.join()
    assert "__main__" not in str(caught.value)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


_at_forks: list[Callable[[], None]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=lambda: [at_fork() for at_fork in _at_forks])


@pytest.fixture
def slow_forks() -> Iterator[list[int]]:
    """Each fork takes as long as that of a program of gigabytes; how many there have been."""
    forks: list[int] = []

    def at_fork() -> None:
        forks.append(len(forks))
        time.sleep(STARTING_SECONDS)

    _at_forks.append(at_fork)
    yield forks
    _at_forks.clear()


def test_a_stop_is_heard_while_workers_are_started(folder: Path, slow_forks: list[int]) -> None:
    """The many that were still to come are not started any more."""
    for number in range(64):
        (folder / "in" / f"{number:02}.txt").write_text(str(number))
    options: Any = {"max_workers": 64, "mp_context": "fork", "progress": False}
    runner = ResumableRunner(functions.number_in, "in/*.txt", "result.pkl", **options)
    _at_forks.append(lambda: runner.stop() if len(slow_forks) == 4 else None)
    assert runner.run().stopped
    assert len(slow_forks) <= 5


def test_there_are_outcomes_while_workers_are_started(folder: Path, slow_forks: list[int]) -> None:
    """Those that are there have work before all the others have been started."""
    for number in range(64):
        (folder / "in" / f"{number:02}.txt").write_text(str(number))
    options: Any = {"max_workers": 64, "mp_context": "fork", "progress": False}
    runner = ResumableRunner(functions.number_in, "in/*.txt", "result.pkl", **options)
    for _ in runner.as_completed():
        break
    assert len(slow_forks) < 64


def close_all_and_go_on(path: str) -> int:
    """One file closes what is not its own, and waits for all others to be done."""
    number = functions.number_in(path)
    if number == 0:
        os.closerange(3, os.sysconf("SC_OPEN_MAX") if sys.platform == "darwin" else 1 << 16)
        wait_until(lambda: len(functions.calls()) == 10)
        Path("seen").touch()
    return number


def test_who_has_lost_its_pipes_holds_nobody_up(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its end is waited for beside all else."""
    monkeypatch.setattr(children, "DYING_SECONDS", PATIENCE)
    options: Any = {"max_workers": 2, "mp_context": method, "progress": False}
    report = ResumableRunner(close_all_and_go_on, "in/*.txt", "result.pkl", **options).run()
    (failure,) = report.failures
    assert report.completed == 9
    assert "closed descriptors that are not its own" in failure.message
    assert Path("seen").exists()


def hang_or_not(path: str) -> int:
    if "00" in path:
        threading.Event().wait()
    return functions.number_in(path)


def test_time_passes_in_a_slow_loop(folder: Path, method: str) -> None:
    """What the body of the loop takes is time of a file that hangs, too."""
    options: Any = {"max_workers": 4, "timeout": 1.0, "mp_context": method, "progress": False}
    options |= {"initializer": functions.begin_together, "initargs": [4]}
    runner = ResumableRunner(hang_or_not, "in/*.txt", "result.pkl", **options)
    seconds = 2.0
    for outcome in runner.as_completed():
        if outcome.failure is not None:
            assert outcome.failure.kind == "timeout"
            assert outcome.failure.seconds > 2.0
        time.sleep(seconds)
        seconds = 0.0
    assert [*runner.failures] == ["in/00.txt"]


def test_after_a_slow_loop_the_next_files_are_handed_out_at_once(
    folder: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it was behind nothing was, and so nothing happens that could wake the run."""
    monkeypatch.setattr(loop, "TICK_SECONDS", PATIENCE)
    options: Any = {"max_workers": 2, "mp_context": method, "progress": False}
    runner = ResumableRunner(functions.number_in, "in/*.txt", "result.pkl", **options)
    begun = time.monotonic()
    for _ in runner.as_completed():
        time.sleep(0.1)  # meanwhile both workers are done with what they had
    assert time.monotonic() < begun + PATIENCE
