"""A kill at every system call that changes a file, and an error at some: see sweep.py. And calls of
all kinds that fail, wherever they are made: see tests/prove/failing_calls.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import METHODS
from tests.prove.failing_calls import CannotAttach, Point, Trial, try_all

from .sweep import ACTS, KILL, Sweep

# All points take half an hour on two processors, so here are some of each act's beginning, middle
# and end. RESUMABLE_POOL_EVERY_CALL=1 asks for all, and so does `python -m tests.kill.sweep`.
MOST = None if "RESUMABLE_POOL_EVERY_CALL" in os.environ else 3

pytestmark = [
    pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed"),
    pytest.mark.skipif(len(METHODS) < 3, reason="the newest Python does it for all"),
]

STRUCK = [
    (act, suffix, what)
    for act in ACTS
    for suffix in ACTS[act].suffixes
    for what in (KILL, "error=ENOSPC")
    if what == KILL or MOST is None or act in ("run", "compact")
]


@pytest.mark.parametrize(("act", "suffix", "what"), STRUCK)
def test_nothing_is_lost_wherever_it_is_struck(
    tmp_path: Path, act: str, suffix: str, what: str
) -> None:
    """What was saved is there for all readers, and the next run does the rest and leaves one sound
    file."""
    sweep = Sweep(act, suffix, tmp_path, what)
    points = sweep.points()
    assert points
    stride = 1 if MOST is None else max(1, len(points) // MOST)
    first = len(f"{act}{suffix}{what}") % stride  # not the same calls in each act
    struck = 0
    for point in points[first::stride]:
        try:
            struck += sweep.strike(point)
        except AssertionError as error:
            raise AssertionError(f"{what} at {point}: {error}") from error
    assert struck


FAILING = {
    (".pkl", "fork", "runner"): [
        Point("getdents64", 1, "error=EIO"),
        Point("pipe2", 3, "error=EMFILE"),
        Point("clone", 2, "error=EAGAIN"),
    ],
    (".pkl", "forkserver", "runner"): [
        Point("fcntl", 5, "error=EMFILE"),
    ],
    (".jsonl", "spawn", "saver"): [
        Point("pwrite64", 2, "error=ENOSPC"),
        Point("fdatasync", 1, "error=EIO"),
    ],
    (".sqlite", "fork", "worker"): [
        Point("write", 2, "error=EIO"),
        Point("close", 3, KILL),
    ],
}


@pytest.mark.parametrize(("suffix", "method", "role"), FAILING)
def test_the_run_tells_the_truth_wherever_a_call_fails(
    tmp_path: Path, suffix: str, method: str, role: str
) -> None:
    """It ends, nothing that it called saved is lost, and the next run completes it: a sample of
    `python -m tests.prove.failing_calls`."""
    points = FAILING[suffix, method, role]
    try:
        struck, faults = try_all(Trial(suffix, method, role, tmp_path), points)
    except CannotAttach as error:
        pytest.skip(str(error))
    assert faults == []
    assert struck > 0
