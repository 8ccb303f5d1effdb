"""When the saver saves: pure, with the clock as an argument."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_pool.checkpoints import checkpoint_at
from resumable_pool.saver.saving import NAP_SECONDS, Saving

NOW = 1000.0
RECORD = b"x" * 150


@pytest.fixture
def saving(tmp_path: Path) -> Iterator[Saving]:
    saving = Saving(checkpoint_at(tmp_path / "result.pkl"), None, 1, 1.0)
    saving.checkpoint.open()
    yield saving
    saving.close()


def nap(saving: Saving, records: list[bytes], now: float) -> float:
    """For how long more is waited for when these are saved."""
    assert saving.save([*records], now) == len(records)
    return saving.nap


@pytest.mark.parametrize(
    ("number", "seconds", "fast"),
    [(1, 0.001, False), (1, 0.0001, True), (2, 0.001, True), (20, 0.001, True), (99, 1.0, False)],
)
def test_more_is_waited_for_where_values_come_fast(
    saving: Saving, number: int, seconds: float, fast: bool
) -> None:
    """So many values, so long after the ones before: whether several would come in a nap."""
    assert nap(saving, [RECORD] * 5, NOW) == 0.0
    assert nap(saving, [RECORD] * number, NOW + seconds) == (NAP_SECONDS if fast else 0.0)


def test_what_is_no_value_changes_nothing(saving: Saving) -> None:
    """Orders and other messages come in between; nobody waits after them."""
    nap(saving, [RECORD], NOW)
    assert nap(saving, [], NOW + 0.0001) == 0.0
    assert nap(saving, [RECORD], NOW + 0.0001) == NAP_SECONDS


def test_much_is_saved_at_once(saving: Saving) -> None:
    """Where large values come fast the saver has no time to lose."""
    nap(saving, [RECORD], NOW)
    assert nap(saving, [RECORD, b"x" * 100_000], NOW + 0.0001) == 0.0
