"""Ctrl-C, when a run was started from the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from resumable_pool import open_checkpoint
from tests.stage import PATIENCE, Stage

from .scripts import ROOT


def test_ctrl_c_ends_it_with_130(folder: Path, stage: Stage, method: str) -> None:
    """What is in work is finished and saved; no traceback."""
    process = subprocess.Popen(
        [sys.executable, "-m", "resumable_pool", "run", "tests.stage:act", "in/*.txt",
         "result.pkl", "-j3", "--mp-context", method],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    begun = stage.wait_begun(3)
    os.killpg(process.pid, signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.readline() == (
        "Ctrl-C: finishing 3 files; press it again to abandon them\n"
    )
    stage.cue(3)
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, "")
    assert errors == "Stopped. 10 files: 3 done, 7 to do; run again to go on\n"
    assert set(open_checkpoint("result.pkl")) == set(begun)


def test_before_the_run_it_is_as_quiet(folder: Path, stage: Stage) -> None:
    """While the function's module is imported, say, which may take long."""
    (folder / "work.py").write_text("from tests.stage import act; act('importing')")
    process = subprocess.Popen(
        [sys.executable, "-m", "resumable_pool", "run", "work.py:f", "in/*.txt", "result.pkl"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    stage.wait_begun(1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (130, b"")
