"""When the saver saves: pure, with the clock as an argument."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_pool.checkpoints import checkpoint_at
from resumable_pool.saver.saving import NAP_SECONDS, Saving

NOW = 1000.0
RECORD = b"x" * 150


@pytest.fixture
def saving(tmp_path: Path) -> Saving:
    return Saving(checkpoint_at(tmp_path / "result.pkl"), None, 1, 1.0)


@pytest.mark.parametrize(
    ("number", "seconds", "fast"),
    [(1, 0.001, False), (1, 0.0001, True), (2, 0.001, True), (20, 0.001, True), (99, 1.0, False)],
)
def test_more_is_waited_for_where_values_come_fast(
    saving: Saving, number: int, seconds: float, fast: bool
) -> None:
    """So many values, so long after the ones before: whether several would come in a nap."""
    assert saving.nap([RECORD] * 5, NOW) == 0.0
    assert saving.nap([RECORD] * number, NOW + seconds) == (NAP_SECONDS if fast else 0.0)


def test_what_is_no_value_changes_nothing(saving: Saving) -> None:
    """Orders and other messages come in between; nobody waits after them."""
    saving.nap([RECORD], NOW)
    assert saving.nap([], NOW + 0.0001) == 0.0
    assert saving.nap([RECORD], NOW + 0.0001) == NAP_SECONDS


def test_much_is_saved_at_once(saving: Saving) -> None:
    """Where large values come fast the saver has no time to lose."""
    saving.nap([RECORD], NOW)
    assert saving.nap([RECORD, b"x" * 100_000], NOW + 0.0001) == 0.0
