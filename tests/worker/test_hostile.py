"""Functions and programs that treat a run badly: what it costs them, and what it costs nobody."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest

if sys.platform == "win32":
    pytest.skip("on Windows: fork, signals, descriptors", allow_module_level=True)

from resumable_pool import (
    CheckpointError,
    CheckpointLocked,
    ResumableRunner,
    SaverError,
    WorkerStartError,
)
from resumable_pool.checkpoints import PickleFile

from .. import functions
from .. import hostile_functions as hostile
from ..functions import number_in
from ..stage import PATIENCE, Stage, act

pytestmark = pytest.mark.usefixtures("nothing_left")


def runner(function: Any = number_in, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 2, "progress": False, **options}
    checkpoint = options.pop("checkpoint", "result.pkl")
    return ResumableRunner(function, "in/*.txt", checkpoint, **options)


# Functions that misbehave.


@pytest.fixture
def left_running(folder: Path) -> Iterator[None]:
    """What functions have left running: ended after the test, which must have let it live."""
    yield
    for pid in hostile.LEFT.read_text().split() if hostile.LEFT.exists() else ():
        state = Path(f"/proc/{pid}/stat")
        dead = state.exists() and ") Z " in state.read_text()  # and nobody has noticed
        os.kill(int(pid), signal.SIGKILL)  # raises if it is gone
        assert not dead


def _do(deeds: list[str], method: str) -> None:
    """A run in which each deed is followed by an innocent file, in the same worker."""
    values: dict[str, Any] = {}
    failures: dict[str, str] = {}
    for number, deed in enumerate(deeds):
        guilty, innocent = f"in/{number:02}a.txt", f"in/{number:02}b.txt"
        Path(guilty).write_text(deed)
        Path(innocent).write_text(str(number))
        values[innocent] = number
        if deed in hostile.REFUSED:
            failures[guilty] = hostile.REFUSED[deed]
        else:
            values[guilty] = ANY
    paths = sorted({*values, *failures})
    options: Any = {"max_workers": 1, "mp_context": method, "progress": False}
    done = ResumableRunner(hostile.do_deed, paths, "result.pkl", **options)
    done.run()
    assert {failure.path: failure.message for failure in done.failures.values()} == failures
    assert dict(done.results) == values
    assert functions.calls() == paths
    assert len(functions.callers()) == 1


@pytest.mark.alike  # elsewhere all of it is done in one worker, see below
@pytest.mark.parametrize("deed", hostile.DEEDS)
@pytest.mark.usefixtures("left_running")
def test_what_a_function_does_to_its_process_costs_at_most_its_own_file(
    folder: Path, deed: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same worker goes on with the next file, without a word on the terminal; an exit handler
    that hangs, and what is left running, do not hold it for long, nor is that ended."""
    _do([deed], "fork")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("left_running")
def test_all_of_it_in_one_worker(folder: Path, method: str) -> None:
    """Under every start method, one deed after the other."""
    _do(list(hostile.DEEDS), method)


def nothing_written() -> bool:
    return not any(victim.read_bytes() for victim in hostile.VICTIMS if victim.exists())


@pytest.mark.parametrize("timeout", [None, 30.0])
def test_files_in_the_place_of_what_was_closed_are_left_alone(
    folder: Path, method: str, timeout: float | None
) -> None:
    """A function that closes what it does not know opens files, which get the numbers."""
    done = runner(hostile.open_in_their_place, max_workers=1, mp_context=method, timeout=timeout)
    assert done.run().completed == 10
    assert nothing_written()


def test_so_they_are_when_it_takes_too_long(folder: Path, method: str) -> None:
    """Where it was is still told, and not in a file of its own."""
    done = runner(hostile.open_and_hang, max_workers=1, mp_context=method, timeout=1.5)
    (failure,) = done.run().failures
    assert failure.kind == "timeout"
    if method != "fork":  # where pytest has a watchdog of its own
        assert "open_and_hang" in failure.traceback
    assert nothing_written()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nobody tells what is open")
@pytest.mark.parametrize("timeout", [None, 30.0])
def test_files_that_are_written_over_everything_are_left_alone(
    folder: Path, method: str, timeout: float | None
) -> None:
    """The numbers are looked at before they are used, also in the middle of a batch."""
    done = runner(hostile.write_over, max_workers=1, mp_context=method, timeout=timeout)
    (failure,) = done.run().failures
    assert "lost its pipes: the function closed descriptors" in failure.message
    assert nothing_written()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="nobody tells what is open")
def test_so_they_are_by_an_initializer(folder: Path, method: str) -> None:
    """No file has been given to that worker yet."""
    with pytest.raises(WorkerStartError, match="lost its pipes"):
        runner(initializer=hostile.write_over_at_start, mp_context=method).run()
    assert nothing_written()


# A process that has something of its own.


def _state() -> dict[str, Any]:
    """Of this process, everything that a run could leave changed."""
    descriptors = {}
    for name in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ():
        with contextlib.suppress(OSError):  # what listed them
            descriptors[name] = os.readlink(f"/proc/self/fd/{name}")
    wakeup = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(wakeup)
    umask = os.umask(0)
    os.umask(umask)
    return {
        "descriptors": descriptors,
        "threads": threading.enumerate(),
        "children": multiprocessing.active_children(),
        "handlers": {signum: signal.getsignal(signum) for signum in signal.valid_signals()},
        "wakeup": wakeup,
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "pending": signal.sigpending(),
        "alarm": signal.getitimer(signal.ITIMER_REAL),
        "directory": os.getcwd(),
        "umask": umask,
        "environment": dict(os.environ),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.stdout, sys.stderr),
    }


@pytest.fixture
def program_of_its_own() -> Iterator[None]:
    """A program with signal handlers, a wake-up descriptor (as asyncio has) and blocked signals."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: hostile.wait_for_ever}
    before = {signum: signal.signal(signum, action) for signum, action in handlers.items()}
    wakeup = signal.set_wakeup_fd(writer.fileno())
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    signal.set_wakeup_fd(wakeup)
    for signum, action in before.items():
        signal.signal(signum, action)
    reader.close()
    writer.close()


ENDS: dict[str, tuple[Any, Any, dict[str, Any], type[BaseException] | None]] = {
    "well": (number_in, PickleFile, {}, None),
    "with crashes": (functions.die, PickleFile, {}, None),
    "by Ctrl-C": (hostile.interrupt, PickleFile, {"max_workers": 1}, KeyboardInterrupt),
    "in an initializer": (
        number_in,
        PickleFile,
        {"initializer": functions.fail_to_load},
        WorkerStartError,
    ),
    "before saving": (number_in, hostile.Sealed, {}, CheckpointError),
    "while saving": (number_in, hostile.TooLarge, {}, SaverError),
    "at a lock": (number_in, hostile.Locked, {}, CheckpointLocked),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.usefixtures("program_of_its_own")
def test_afterwards_the_process_is_as_it_was(folder: Path, method: str, end: str) -> None:
    """However a run ends: descriptors, threads, children, signals and settings."""
    function, checkpoint, options, error = ENDS[end]
    Path("caller").write_text(str(os.getpid()))
    one = runner(function, checkpoint=checkpoint("result.pkl"), mp_context=method, **options)
    before = _state()
    with pytest.raises(error) if error else contextlib.nullcontext():
        one.run()
    after = _state()
    assert {*after.pop("threads")} <= {*before.pop("threads")}  # somebody else's may have ended
    assert after == before


def test_an_error_without_words_is_called_by_its_name(folder: Path) -> None:
    """What went wrong in the saver, and where, also if the system has nothing to say about it."""
    with pytest.raises(SaverError) as failed:
        runner(checkpoint=hostile.TooLarge("result.pkl")).run()
    assert failed.value.reason == "MemoryError"
    assert "in append" in failed.value.traceback


def test_who_holds_a_process_of_a_run_can_still_join_it(folder: Path, method: str) -> None:
    """multiprocessing lists them, and joins them when the program ends while a thread runs."""
    stage = Stage(folder)
    thread = threading.Thread(target=runner(act, mp_context=method).run)
    thread.start()
    stage.wait_begun(2)
    children = multiprocessing.active_children()
    stage.cue(10)
    thread.join()
    stage.close()
    assert len(children) == 3
    for child in children:
        child.join()
        assert child.exitcode == 0


# Runs in places that are not meant for them.


def test_a_function_cannot_run_on_the_checkpoint_that_it_is_saved_to(folder: Path) -> None:
    """Its file fails and says why; one with a checkpoint of its own is well."""
    Path("in/00.txt").write_text("other.pkl")
    Path("in/01.txt").write_text("result.pkl")
    options: Any = {"max_workers": 2, "progress": False}
    outer = ResumableRunner(hostile.run_on, ["in/00.txt", "in/01.txt"], "result.pkl", **options)
    (failure,) = outer.run().failures
    assert failure.path == "in/01.txt"
    assert failure.message.startswith("CheckpointLocked: ")
    assert dict(outer.results) == {"in/00.txt": 8}


def test_a_forked_function_cannot_run_its_own_runner(folder: Path) -> None:
    """What it has inherited is running already; it says so, and hangs nobody."""
    runners: list[ResumableRunner[Any]] = []
    runners.append(runner(lambda path: runners[0].run(), mp_context="fork"))
    report = runners[0].run()
    assert report.failed == 10
    assert all("RuntimeError: this run belongs to process" in f.message for f in report.failures)


def test_in_a_worker_of_another_pool(folder: Path, method: str) -> None:
    """One that is not daemonic is a process like any other."""
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as executor:
        assert executor.submit(hostile.run_here, method).result(PATIENCE) == 10


def test_output_that_nobody_reads_does_not_hold_a_worker(folder: Path) -> None:
    """It has said that it is done before it writes what is left."""
    options: dict[str, Any] = {"max_workers": 1, "progress": False}
    report = ResumableRunner(hostile.fill_stdout, ["in/01.txt"], "result.pkl", **options).run()
    assert report.completed == 1


def test_no_timer_that_a_function_leaves_goes_off_in_the_next_file(folder: Path) -> None:
    """Of none of the three kinds."""
    options: dict[str, Any] = {"max_workers": 1, "mp_context": "fork", "progress": False}
    report = ResumableRunner(hostile.leave_timers, "in/0[0-2].txt", "r.pkl", **options).run()
    assert (report.completed, report.failed) == (3, 0)


@pytest.mark.parametrize("absolute", [False, True])
def test_no_alarm_goes_off_in_the_next_file_of_a_batch(folder: Path, absolute: bool) -> None:
    """However quick that was which has left it, and whether or not paths start in a folder."""
    for number in range(100, 140):
        (folder / "in" / f"{number}.txt").touch()
    pattern = f"{folder}/in/1??.txt" if absolute else "in/1??.txt"
    options: dict[str, Any] = {"max_workers": 1, "mp_context": "fork", "progress": False}
    report = ResumableRunner(hostile.leave_an_alarm, pattern, "r.pkl", **options).run()
    assert (report.completed, report.failed) == (40, 0)
