"""SIGTERM and SIGHUP, to the script and to everybody; and being stopped, and going on."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resumable_pool import open_checkpoint
from resumable_pool.worker import calling
from tests import functions
from tests.conftest import METHODS
from tests.stage import FAIL, PATIENCE, Stage

from .scripts import Script, rerun

# How the workers start makes a difference to none but the first.
EACH = [(signal.SIGTERM, method) for method in METHODS] + [(signal.SIGHUP, None)]


def saved(folder: Path) -> set[str]:
    """The paths in the checkpoint, for a plain pickle reader."""
    return set(pickle.loads((folder / "result.pkl").read_bytes()))


@pytest.mark.parametrize(("signum", "method"), EACH)
def test_what_is_in_work_is_finished_and_saved(
    folder: Path, stage: Stage, method: str | None, signum: signal.Signals
) -> None:
    """Nothing new is started; then the script ends by the signal."""
    script = Script(folder, method)
    script.start()
    begun = stage.wait_begun(3)
    os.kill(script.pid, signum)
    script.wait_for_words(f"{signum.name}: finishing 3 files, for 10 s at most")
    stage.cue(2)
    stage.cue(1, FAIL)
    status, _, errors = script.wait()
    assert status == -signum
    assert "Traceback" not in errors
    script.wait_gone()
    assert saved(folder) < set(begun)
    checkpoint = open_checkpoint("result.pkl")
    assert (len(checkpoint), len(checkpoint.failures())) == (2, 0)
    stage.cue(8)
    assert "10 files: 8 done, 2 done before" in rerun()


@pytest.mark.parametrize(("signum", "method"), [*EACH, (signal.SIGHUP, "forkserver")])
def test_so_it_is_when_the_whole_group_gets_it(
    folder: Path, stage: Stage, method: str | None, signum: signal.Signals
) -> None:
    """As from `timeout`, or a terminal that is closed: of a fork server, too."""
    script = Script(folder, method)
    script.start()
    stage.wait_begun(3)
    os.killpg(script.pid, signum)
    script.wait_for_words(f"{signum.name}: finishing 3 files, for 10 s at most")
    stage.cue(3)
    status, _, errors = script.wait()
    assert status == -signum
    assert "Error" not in errors
    script.wait_gone()
    assert len(saved(folder)) == 3
    stage.cue(7)
    assert "10 files: 7 done, 3 done before" in rerun()


@pytest.mark.parametrize(
    ("also", "method"), [*(("", method) for method in METHODS), ("max_tasks_per_child=1", None)]
)
def test_what_takes_longer_than_the_grace_period_is_abandoned(
    folder: Path, stage: Stage, method: str | None, also: str
) -> None:
    """It is still to do, and has not failed; also if its worker was to leave after it anyway."""
    script = Script(folder, method, options=f"grace_period=0.3, {also}")
    script.start()
    stage.wait_begun(3)
    os.kill(script.pid, signal.SIGTERM)
    status, _, errors = script.wait()
    assert status == -signal.SIGTERM
    assert "SIGTERM: finishing 3 files, for 0.3 s at most\nabandoning 3 files\n" in errors
    script.wait_gone()
    checkpoint = open_checkpoint("result.pkl")
    assert (len(checkpoint), len(checkpoint.failures())) == (0, 0)
    stage.cue(10)
    assert "10 files: 10 done" in rerun()


def test_a_further_signal_does_not_prolong_the_grace_period(folder: Path, stage: Stage) -> None:
    """What sends them again and again will not wait for ever."""
    script = Script(folder, None, options="grace_period=1")
    script.start()
    stage.wait_begun(3)
    sent = 0
    while sent < 50 and not script.has_said("abandoning 3 files", within_seconds=0.2):
        os.kill(script.pid, signal.SIGTERM)
        sent += 1
    assert sent < 50
    assert script.wait()[0] == -signal.SIGTERM


@pytest.mark.parametrize(("signum", "method"), [*EACH, (signal.SIGINT, None)])
def test_to_everybody_it_loses_nothing_and_blames_no_file(
    folder: Path, stage: Stage, method: str | None, signum: signal.Signals
) -> None:
    """As schedulers send it, in any order; the subprocesses of a function get it, too."""
    script = Script(folder, method, "call_program", CALL_PROGRAM)
    script.start()
    stage.wait_begun(3)
    stage.cue(2)
    stage.wait_begun(2)
    victims = script.processes()
    random.shuffle(victims)
    for pid in sorted(victims, key=lambda pid: pid == script.pid):  # the script as the last
        with contextlib.suppress(ProcessLookupError):  # it died of another's death
            os.kill(pid, signum)
    if signum == signal.SIGINT:  # no grace period ends what was dealt between two of them
        script.has_said("Ctrl-C: ", within_seconds=PATIENCE)
        os.kill(script.pid, signum)
    status, _, errors = script.wait()
    assert status == -signum, errors
    script.wait_gone()
    checkpoint = open_checkpoint("result.pkl")
    assert (len(checkpoint), len(checkpoint.failures())) == (2, 0)
    stage.cue(8)
    assert "10 files: 8 done, 2 done before" in rerun()


CALL_PROGRAM = """
import subprocess
def call_program(path):
    note(path)
    with open("begun", "wb", buffering=0) as begun:
        begun.write(f"{os.getpid()} {path}\\n".encode())
    subprocess.run(["head", "-c", "1", "cues"], check=True)
"""


def test_a_handler_of_the_scripts_own_comes_afterwards(folder: Path, stage: Stage) -> None:
    """When everything is saved; also one that raises."""
    handler = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
    script = Script(folder, None, definitions=handler)
    script.start()
    stage.wait_begun(3)
    os.kill(script.pid, signal.SIGTERM)
    script.wait_for_words("SIGTERM: finishing 3 files")
    stage.cue(3)
    assert script.wait()[0] == 5
    assert len(saved(folder)) == 3


def test_where_it_is_ignored_the_run_goes_on(folder: Path, stage: Stage) -> None:
    """As under nohup."""
    ignoring = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    script = Script(folder, None, definitions=ignoring)
    script.start()
    stage.wait_begun(3)
    os.kill(script.pid, signal.SIGHUP)
    stage.cue(10)
    status, out, _ = script.wait()
    assert (status, out.splitlines()[0][:18]) == (0, "10 files: 10 done,")


FORKING = """
import signal
import threading
def fork():
    os.read(os.open("fork", os.O_RDONLY), 1)
    if (pid := os.fork()) == 0:
        with open("child", "w") as file:
            file.write(str(os.getpid()))
        print("forked", file=sys.stderr, flush=True)
        for _ in range(10**9):  # Python 3.13 runs no handler here
            pass
        os._exit(0)
    print("status", os.waitpid(pid, 0)[1], file=sys.stderr, flush=True)
if __name__ == "__main__":
    threading.Thread(target=fork).start()
"""


def test_what_another_thread_of_the_script_forks_ends_as_ever(folder: Path, stage: Stage) -> None:
    """Also what waits for nothing. It has inherited handlers that only note a signal, for a run
    which is not its own."""
    os.mkfifo("fork")
    script = Script(folder, None, definitions=FORKING)
    script.start()
    stage.wait_begun(3)
    Path("fork").write_bytes(b"!")
    script.wait_for_words("forked\n")
    os.kill(int(Path("child").read_text()), signal.SIGTERM)
    script.wait_for_words(f"status {signal.SIGTERM.value}\n")
    stage.cue(10)
    assert "10 files: 10 done" in script.wait()[1]


FORKED = """
import threading
from pathlib import Path
class Computing(ResumableRunner):
    def on_saved(self, outcome):
        if not Path("child").exists():
            Path("child").write_text(str(os.getpid()))
            print("saved", file=sys.stderr, flush=True)
        for _ in range(10**7):  # Python 3.13 runs no handler here
            pass
def begin():
    if (pid := os.fork()) == 0:
        print("running", file=sys.stderr, flush=True)
        Computing(len, "in/*.txt", "result.pkl", max_workers=1, mp_context="fork").run()
    print("status", os.waitpid(pid, 0)[1])
if __name__ == "__main__":
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    sys.exit()
"""


def test_a_run_in_what_another_thread_has_forked_hears_it_too(folder: Path) -> None:
    """Though it comes while that computes, and Python runs no handler."""
    script = Script(folder, None, definitions=FORKED)
    script.start()
    script.wait_for_words("saved\n")
    os.kill(int(Path("child").read_text()), signal.SIGTERM)
    status, out, _ = script.wait()
    assert (status, out) == (0, f"status {signal.SIGTERM.value}\n")
    assert len(saved(folder)) < 10


def test_both_of_two_signals_count(folder: Path, stage: Stage) -> None:
    """A Ctrl-C before SIGTERM does not keep the script alive."""
    script = Script(folder, None)
    script.start()
    stage.wait_begun(3)
    os.kill(script.pid, signal.SIGINT)
    script.wait_for_words("Ctrl-C: finishing 3 files")
    os.kill(script.pid, signal.SIGTERM)
    script.wait_for_words("SIGTERM: finishing 3 files")
    stage.cue(3)
    assert script.wait()[0] == -signal.SIGTERM
    assert len(saved(folder)) == 3


def test_the_first_process_of_a_container_ends_as_well(folder: Path, stage: Stage) -> None:
    """The system would discard the signal there; the status is what a shell makes of it."""
    contain = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child"]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*contain, "true"], check=False).returncode
    ):
        pytest.skip("containers cannot be made here")
    script = Script(folder, "fork")
    script.start([*contain, sys.executable])
    stage.wait_begun(3)
    inside = next(pid for pid in script.processes() if _name(pid) == 1)
    os.kill(inside, signal.SIGTERM)
    script.wait_for_words("SIGTERM: finishing 3 files")
    stage.cue(3)
    assert script.wait()[0] == 128 + signal.SIGTERM
    assert len(saved(folder)) == 3


def _name(pid: int) -> int:
    """The process's id inside its container."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


@pytest.mark.parametrize("who", ["everybody", "the script"])
def test_time_in_which_it_is_stopped_does_not_count(folder: Path, stage: Stage, who: str) -> None:
    """By SIGSTOP or Ctrl-Z: the files in work have their time-out for themselves."""
    script = Script(folder, None, options="timeout=2")
    script.start()
    stage.wait_begun(3)
    pids = script.processes() if who == "everybody" else [script.pid]
    select.select([], [], [], 0.3)  # by now the script waits, as it mostly does
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    select.select([], [], [], 2.5)  # time is what is tested
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    select.select([], [], [], 0.2)  # enough for a script that would charge it
    stage.cue(10)
    status, out, _ = script.wait()
    assert (status, "10 files: 10 done" in out) == (0, True)


HANGING = """
import time
def hang(path):
    note(path)
    if functions.number_of(path) == 7:
        time.sleep(600)
from tests import functions
"""


def test_a_time_out_says_where_it_hung(folder: Path, method: str) -> None:
    """The failure has the traceback, from the function on."""
    script = Script(folder, method, "hang", HANGING, options="timeout=1.5")
    assert "10 files: 9 done, 1 failed" in script.run()
    failure = open_checkpoint("result.pkl").failures()["in/07.txt"]
    assert (failure.kind, failure.message) == ("timeout", "took longer than 1.5 s, and was killed")
    assert "script.py" in failure.traceback
    assert "in hang" in failure.traceback
    assert calling.__file__ not in failure.traceback


WATCHING = """
import multiprocessing
multiprocessing.set_forkserver_preload(["watching"])
"""


def test_a_time_limit_holds_where_the_fork_server_has_a_watchdog(folder: Path) -> None:
    """As it has from Python 3.14 on, which loads the script there, if that sets one at its top."""
    Path("watching.py").write_text("import faulthandler\nfaulthandler.dump_traceback_later(600)\n")
    script = Script(folder, "forkserver", "hang", HANGING + WATCHING, options="timeout=1.5")
    assert "10 files: 9 done, 1 failed" in script.run()


def test_of_the_script_alone_the_time_out_still_holds(folder: Path, method: str) -> None:
    """Without it the saver ends what takes too long, with all that it has started."""
    script = Script(folder, method, "hang_on", HANG_ON, options="timeout=1")
    os.mkfifo("begun")
    begun = os.open("begun", os.O_RDWR)
    script.start()
    for _ in range(3):
        ready, _, _ = select.select([begun], [], [], PATIENCE)
        assert ready
        os.read(begun, 1)
    script.kill()
    script.wait()
    script.wait_gone()
    os.close(begun)
    assert len(functions.calls()) == 3
    assert len(open_checkpoint("result.pkl").failures()) == 0


HANG_ON = """
import subprocess
def hang_on(path):
    note(path)
    with open("begun", "wb", buffering=0) as begun:
        begun.write(b".")
    subprocess.run(["sleep", "600"])
"""
