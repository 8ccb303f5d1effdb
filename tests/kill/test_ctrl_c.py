"""Ctrl-C, once and twice, at any moment, and through a real terminal."""

from __future__ import annotations

import os
import pickle
import pty
import random
import re
import select
import signal
import sys
from pathlib import Path

import pytest

from resumable_pool import open_checkpoint
from tests import functions
from tests.stage import FAIL, PATIENCE, Stage

from .scripts import Script, rerun


def saved(folder: Path) -> set[str]:
    """The paths in the checkpoint, for a plain pickle reader."""
    return set(pickle.loads((folder / "result.pkl").read_bytes()))


def test_after_the_first_what_is_in_work_is_finished_and_saved(
    folder: Path, stage: Stage, method: str
) -> None:
    """Nothing new is started; then comes KeyboardInterrupt, and a rerun does the rest."""
    script = Script(folder, method)
    script.start()
    begun = stage.wait_begun(3)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("Ctrl-C: finishing 3 files; press it again to abandon them")
    stage.cue(3)
    status, _, errors = script.wait()
    assert status == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert re.findall(r"in (\w+)\n", errors)[-1:] == ["run"]  # one frame of ours
    assert errors.endswith("KeyboardInterrupt\n")
    assert "Stopped. 10 files: 3 done, 7 to do; run again to go on" in errors
    assert saved(folder) == set(begun)
    script.wait_gone()
    stage.cue(7)
    assert "10 files: 7 done, 3 done before" in rerun()
    assert functions.calls() == sorted(set(functions.calls()))


def test_after_the_second_what_is_in_work_is_abandoned(
    folder: Path, stage: Stage, method: str
) -> None:
    """What has been received is saved, and the abandoned files are still to do."""
    script = Script(folder, method)
    script.start()
    begun = stage.wait_begun(3)
    stage.cue()
    begun |= stage.wait_begun(1)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("press it again to abandon")
    os.killpg(script.pid, signal.SIGINT)
    status, _, errors = script.wait()
    assert status == -signal.SIGINT
    assert "abandoning 3 files" in errors
    assert errors.count("Traceback") == 1
    script.wait_gone()
    assert len(saved(folder)) == 1
    assert len(open_checkpoint(folder / "result.pkl").failures()) == 0
    stage.cue(9)
    assert "10 files: 9 done, 1 done before" in rerun()


def test_a_failure_after_it_is_not_recorded(folder: Path, stage: Stage, method: str) -> None:
    """What stops the run may have made the function fail; its file is still to do."""
    script = Script(folder, method)
    script.start()
    begun = stage.wait_begun(3)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("Ctrl-C: finishing 3 files")
    os.kill(next(iter(begun.values())), signal.SIGKILL)
    stage.cue(3, FAIL)  # one of them for the dying worker, which may still take it
    script.wait()
    script.wait_gone()
    checkpoint = open_checkpoint(folder / "result.pkl")
    assert (len(checkpoint), len(checkpoint.failures())) == (0, 0)


def test_at_any_moment_it_ends_clean(folder: Path, method: str) -> None:
    """Whatever is going on, there is no traceback but the script's own, and no process left. (One
    moment for each start method and Python; the soak tries as many as you like.)"""
    script = Script(folder, method, "number_in")
    script.start()
    # The one place where time is what is tested.
    select.select([], [], [], random.Random(f"{method}{sys.version_info[1]}").uniform(0, 0.5))
    os.killpg(script.pid, signal.SIGINT)
    status, _, errors = script.wait()
    assert status in (0, -signal.SIGINT)
    assert errors.count("Traceback") <= 1, errors  # none if the script was already ending
    script.wait_gone()
    assert "10 files:" in rerun(functions.number_in)
    assert saved(folder) == {f"in/{number:02}.txt" for number in range(10)}


IMPORTING = """
import os
if __name__ != "__main__":
    with open("begun", "wb", buffering=0) as begun:
        begun.write(f"{os.getpid()} importing\\n".encode())
    with open("cues", "rb", buffering=0) as cues:
        cues.read(1)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_while_a_child_is_importing_it_hits_nobody(folder: Path, stage: Stage, method: str) -> None:
    """The script is imported in every spawned child, and that may take long."""
    script = Script(folder, method, "number_in", IMPORTING)
    script.start()
    stage.wait_begun(1)
    os.killpg(script.pid, signal.SIGINT)
    stage.cue(10)
    status, _, errors = script.wait()
    assert status == -signal.SIGINT
    assert errors.count("Traceback") == 1, errors
    script.wait_gone()


STUBBORN = """
import signal
def stubborn(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return act(path)
"""


def test_the_second_ends_also_what_ignores_it(folder: Path, stage: Stage, method: str) -> None:
    """First it is asked, and then it is killed."""
    script = Script(folder, method, "stubborn", STUBBORN)
    script.start()
    stage.wait_begun(3)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("press it again")
    os.killpg(script.pid, signal.SIGINT)
    status, _, _ = script.wait()
    assert status == -signal.SIGINT
    script.wait_gone()


SUBPROCESS = """
import subprocess
def call_program(path):
    note(path)
    with open("begun", "wb", buffering=0) as begun:
        begun.write(f"{os.getpid()} {path}\\n".encode())
    subprocess.run(["head", "-c", "1", "cues"], check=True)
    return "well"
"""


def test_in_a_terminal_it_spares_the_subprocesses_of_a_function(
    folder: Path, stage: Stage, method: str
) -> None:
    """They are in no foreground group; their files are saved as successes."""
    script = Script(folder, method, "call_program", SUBPROCESS)
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.execve(sys.executable, [sys.executable, script.path.name], script.environment)
    stage.wait_begun(3)
    os.write(terminal, b"\x03")
    text = _read_terminal(terminal, until=b"abandon")
    stage.cue(3)
    text += _read_terminal(terminal, until=None)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT
    assert b"0/10 files" in text
    assert text.count(b"Traceback") == 1
    assert len(saved(folder)) == 3
    script.wait_gone()


def _read_terminal(terminal: int, until: bytes | None) -> bytes:
    text = b""
    while until is None or until not in text:
        ready, _, _ = select.select([terminal], [], [], PATIENCE)
        assert ready, text
        try:
            chunk = os.read(terminal, 4096)
        except OSError:  # the other side is closed
            break
        if not chunk:
            break
        text += chunk
    return text


LOOP = """
    for outcome in runner.as_completed():
        print(outcome.value, file=sys.stderr, flush=True)
"""


def test_in_a_loop_over_outcomes_it_does_the_same(folder: Path, stage: Stage, method: str) -> None:
    """What is in work is finished, saved and yielded; then comes KeyboardInterrupt."""
    script = Script(folder, method)
    text = script.path.read_text()
    script.path.write_text(text.replace("    print(runner.run())\n", LOOP))
    script.start()
    stage.wait_begun(3)
    stage.cue()
    script.wait_for_words("done in/")
    stage.wait_begun(1)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("Ctrl-C: finishing 3 files; press it again to abandon them")
    stage.cue(3)
    status, _, errors = script.wait()
    assert status == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert errors.count("done in/") == len(saved(folder)) == 4
    script.wait_gone()
