"""SIGKILL of every role, alone and together: nothing saved is lost, nobody is left behind."""

from __future__ import annotations

import os
import pickle
import select
import signal
import sys
from pathlib import Path

import pytest

from resumable_pool import CheckpointLocked, open_checkpoint
from tests import functions
from tests.conftest import METHODS
from tests.stage import PATIENCE, Stage

from .scripts import Script, rerun
from .soak import soak


@pytest.mark.parametrize(
    ("options", "method"), [*(("", method) for method in METHODS), ("timeout=600", None)]
)
def test_of_the_script_alone_lets_running_files_finish(
    folder: Path, stage: Stage, method: str | None, options: str
) -> None:
    """They are saved, then all leave; a rerun meanwhile says who still has the checkpoint. A
    time-out that has not passed changes nothing."""
    script = Script(folder, method, options=options)
    script.start()
    begun = stage.wait_begun(3)
    saver = script.saver()
    if sys.platform == "linux":
        with pytest.raises(CheckpointLocked, match=rf"kill {script.pid}\)") as caught:
            rerun()
        assert (caught.value.pid, caught.value.script) == (saver, script.pid)
    script.kill()
    with pytest.raises(CheckpointLocked, match=f"process {saver} is writing"):
        rerun()
    stage.cue(3)
    script.wait_gone()
    script.wait()
    assert pickle.loads(Path("result.pkl").read_bytes()) == {p: f"done {p}" for p in begun}
    assert functions.calls() == sorted(begun)
    stage.cue(7)
    assert "10 files: 7 done, 3 done before" in rerun()


def test_of_the_saver_is_an_error_that_the_next_run_goes_on_from(
    folder: Path, stage: Stage, method: str
) -> None:
    """Within moments, with the reason, and with everything that was saved."""
    script = Script(folder, method)
    script.start()
    stage.wait_begun(3)
    stage.cue()
    stage.wait_begun(1)
    os.kill(script.saver(), signal.SIGKILL)
    status, _, errors = script.wait()
    assert status == 1
    assert "SaverError" in errors
    assert "the saver process was killed by SIGKILL" in errors
    script.wait_gone()
    assert len(open_checkpoint("result.pkl")) == 1
    stage.cue(9)
    assert "10 files: 9 done, 1 done before" in rerun()


ORPHANING = """
import ctypes
def orphaning(path):
    if ctypes.CDLL(None).fork() == 0:
        signal.pause()
    return act(path)
"""


def test_of_script_and_workers_lets_the_saver_leave(
    folder: Path, stage: Stage, method: str
) -> None:
    """Also if something that a worker has forked holds its pipe, and nobody is there to tell."""
    script = Script(folder, method, "orphaning", ORPHANING)
    script.start()
    begun = stage.wait_begun(3)
    saver = os.pidfd_open(script.saver())
    script.kill()
    for pid in begun.values():
        os.kill(pid, signal.SIGKILL)
    ready, _, _ = select.select([saver], [], [], PATIENCE)
    os.close(saver)
    assert ready
    script.kill_all()
    script.wait()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_other_signals_do_not_move_the_saver(
    folder: Path, stage: Stage, signum: signal.Signals
) -> None:
    """Schedulers send them to every process; it leaves when its work is done."""
    script = Script(folder, None)
    script.start()
    stage.wait_begun(3)
    os.kill(script.saver(), signum)
    stage.cue(10)
    status, out, errors = script.wait()
    assert (status, errors) == (0, "running\n")
    assert "10 files: 10 done" in out


DEADLY_PIPES = """
import signal
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
"""


def test_of_all_workers_does_not_break_the_script(folder: Path, method: str) -> None:
    """Not even one that is set to die of a broken pipe, as is usual for command-line tools."""
    script = Script(folder, method, "die", DEADLY_PIPES)
    assert "10 files: 0 done, 10 failed" in script.run()


def test_of_a_worker_costs_its_file(folder: Path, stage: Stage, method: str) -> None:
    """It is replaced; the next run tries the file again."""
    script = Script(folder, method)
    script.start()
    path, pid = next(iter(stage.wait_begun(3).items()))
    os.kill(pid, signal.SIGKILL)
    stage.wait_begun(1)  # in the worker that replaces it
    stage.cue(9)
    status, out, _ = script.wait()
    assert status == 0
    assert "10 files: 9 done, 1 failed" in out
    assert f"{path}: its worker was killed by SIGKILL" in out
    script.wait_gone()
    stage.cue()
    assert "10 files: 1 done, 9 done before" in rerun()


def test_of_everything_loses_nothing_that_was_saved(
    folder: Path, stage: Stage, method: str
) -> None:
    """The checkpoint is a valid pickle at once, and a rerun does what is missing."""
    script = Script(folder, method)
    script.start()
    stage.wait_begun(3)
    stage.cue(4)
    stage.wait_begun(4)
    script.kill_all()
    script.wait()
    script.wait_gone()
    assert len(open_checkpoint("result.pkl")) == 4
    for path in set(Path("in").iterdir()) - {Path(path) for path in open_checkpoint("result.pkl")}:
        path.rename(path.name)  # now there is nothing to do, but to bring the saving to its end
    assert "4 files: 4 done before" in rerun()
    assert len(pickle.loads(Path("result.pkl").read_bytes())) == 4
    for path in Path().glob("0?.txt"):
        path.rename(Path("in", path.name))
    assert len(pickle.loads(Path("result.pkl").read_bytes())) <= 4
    stage.cue(6)
    assert "10 files: 6 done, 4 done before" in script.run()
    assert len(pickle.loads(Path("result.pkl").read_bytes())) == 10


def test_of_anything_at_random_moments(folder: Path, method: str) -> None:
    """Rerun until all is done: every result is right, and no file was called too often. (Here one
    short round; as many as you like: `python -m tests.kill.soak`.)"""
    assert soak(0, [method], seed=sys.version_info[1] + len(method), starts=3).rounds == 1
