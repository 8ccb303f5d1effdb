"""The clock of a run, with the time as an argument."""

from __future__ import annotations

import pytest

from resumable_pool.between import clock
from resumable_pool.between.clock import STOPPED_SECONDS, Clock


def test_it_stands_still_while_nobody_can_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """What passes between two looks counts, unless it is more than a running process lets pass."""
    time = 1000.0
    monkeypatch.setattr(clock.time, "monotonic", lambda: time)
    running = Clock()
    time += 1.0
    assert running.look() == running.now == 1.0
    time += STOPPED_SECONDS
    assert running.look() == 1.0
    time += 0.5
    assert running.look() == 1.5
