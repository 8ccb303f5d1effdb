"""Scripts whose files are processed by an executor of theirs: Ctrl-C, and kills."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from resumable_pool import open_checkpoint
from tests import functions
from tests.stage import Stage

from .scripts import Script, rerun

POOL = """
import multiprocessing, signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

def threads():
    return ThreadPoolExecutor(3)

def processes():
    context = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(3, context, signal.signal, (signal.SIGINT, signal.SIG_IGN))
"""


@pytest.mark.parametrize("pool", ["threads", "processes"])
def test_after_a_ctrl_c_what_is_in_flight_is_finished_and_saved(
    folder: Path, stage: Stage, pool: str
) -> None:
    """As with workers of our own; the processes of a pool must ignore it to do so."""
    script = Script(folder, None, definitions=POOL, options=f"executor={pool}()")
    script.start()
    begun = stage.wait_begun(3)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("press it again to abandon them (they are with the ")
    stage.cue(3)
    status, _, errors = script.wait()
    assert status == -signal.SIGINT
    assert errors.count("Traceback") == 1
    assert {*open_checkpoint("result.pkl")} == {*begun}
    script.wait_gone()
    stage.cue(7)
    assert "10 files: 7 done, 3 done before" in rerun()
    assert functions.calls() == sorted(set(functions.calls()))


def test_after_a_second_one_what_is_in_flight_is_abandoned(folder: Path, stage: Stage) -> None:
    """The run ends at once. What the pool is at is its owner's to wait for."""
    script = Script(folder, None, definitions=POOL, options="executor=processes()")
    script.start()
    stage.wait_begun(3)
    stage.cue()
    stage.wait_begun(1)
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("press it again to abandon")
    os.killpg(script.pid, signal.SIGINT)
    script.wait_for_words("abandoning 3 files")
    script.wait_for_words("Stopped. 10 files: 1 done, 9 to do")
    stage.cue(3)
    status, _, _ = script.wait()
    assert status == -signal.SIGINT
    script.wait_gone()
    assert len(open_checkpoint("result.pkl")) == 1
    assert len(open_checkpoint("result.pkl").failures()) == 0


def test_when_the_script_is_killed_what_had_come_back_is_saved(folder: Path, stage: Stage) -> None:
    """The rest is still to do: an executor's results come back through the script."""
    script = Script(folder, None, definitions=POOL, options="executor=threads()")
    script.start()
    stage.wait_begun(3)
    stage.cue()
    stage.wait_begun(1)  # only a saved file makes room for another
    script.kill()
    script.wait()
    script.wait_gone()
    assert len(open_checkpoint("result.pkl")) == 1
    stage.cue(9)
    assert "10 files: 9 done, 1 done before" in rerun()
