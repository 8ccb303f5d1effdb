"""The clock of a run, with the time as an argument."""

from __future__ import annotations

import pytest

from resumable_pool.between import clock
from resumable_pool.between.clock import STOPPED_SECONDS, Clock


def test_it_stands_still_while_a_wait_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that passes counts, however long it is, except a wait that took longer than a running
    process lets it take."""
    time = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: time)
    running = Clock()
    time += 100.0
    assert running.look() == running.now == 100.0
    with running.waiting(2.0):
        time += 2.0 + STOPPED_SECONDS / 2
    assert running.now == 102.0 + STOPPED_SECONDS / 2
    with running.waiting(2.0):
        time += 2.1 + STOPPED_SECONDS
    assert running.look() == 102.0 + STOPPED_SECONDS / 2
