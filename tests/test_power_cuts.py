"""Some states of tests/prove/power_cuts.py, where this machine can mount them."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from .prove.power_cuts import SYSTEMS, missing, states

ROOT = Path(__file__).parents[1]

LACKING = missing(SYSTEMS["ext4"])


@pytest.mark.alike
@pytest.mark.skipif(LACKING != "", reason=f"{LACKING} is missing")
def test_a_checkpoint_survives_power_cuts_at_some_moments() -> None:
    """Of its whole life, on a real file system that is recorded."""
    command = [sys.executable, "-m", "tests.prove.power_cuts", "--system", "ext4"]
    command += ["--format", ".pkl", "--states", "8"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


def test_a_state_has_what_was_flushed_and_any_of_what_was_written_since() -> None:
    """And what was promised before the next flush, but not what comes after it."""
    events = [
        ("write", 0, b"before"),
        ("mark", {"what": "begins"}),
        ("write", 1, b"one"),
        ("write", 2, b"two"),
        ("flush",),
        ("mark", {"what": "synced", "promised": {"a": 1}}),
        ("write", 3, b"three"),
        ("flush",),
        ("mark", {"what": "ends"}),
    ]
    certain: list[int] = []
    seen = []
    for state in states(events, random.Random(1), 80, lambda offset, data: certain.append(offset)):
        seen.append(([*certain], [offset for offset, _ in state.writes], state.promised))
    assert ([], [0, 2], {}) in seen
    assert ([], [0, 1], {}) in seen
    assert ([0, 1, 2], [], {"a": 1}) in seen
    assert all(bool(promised) == (1 in before) for before, _, promised in seen)
