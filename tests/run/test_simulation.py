"""Some universes of tests/prove/simulation.py in every test run."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..prove.simulation import Universe, simulate

pytestmark = pytest.mark.alike

# By hand: python -m tests.prove.simulation --seeds 100000
SEEDS = 500


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("first", range(0, SEEDS, 50))
def test_in_whatever_order_things_happen_the_promises_hold(first: int) -> None:
    """The runner's half of the ring, with simulated processes, pipes and clock."""
    for seed in range(first, first + 50):
        try:
            simulate(seed)
        except Exception as error:
            raise AssertionError(
                f"python -m tests.prove.simulation --first {seed} --seeds 1 --raise: {error}"
            ) from error


def test_a_seed_repeats_exactly() -> None:
    """Or it would be of no use to whoever looks for the reason."""

    def told(universe: Universe) -> object:
        return universe.now, universe.turns, universe.calls, universe.saved, universe.failed

    assert told(simulate(7)) == told(simulate(7)) != told(simulate(8))
