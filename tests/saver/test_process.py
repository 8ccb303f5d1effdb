"""When the saver lets values gather: its own turns, on pipes of this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from resumable_pool.between import forks, pipes
from resumable_pool.between.frames import BATCH_OVER, plain_frame, value_frame
from resumable_pool.between.messages import Hello
from resumable_pool.checkpoints import checkpoint_at
from resumable_pool.records import Outcome
from resumable_pool.saver import process
from resumable_pool.saver.process import NAP_SECONDS, _InSaver
from resumable_pool.saver.saving import Saving

from ..conftest import not_on_windows

pytestmark = not_on_windows("the worker's and the saver's pipes are in one process here")

MUCH = 1000  # what is more than fits into the pipe would have to be read meanwhile


class Turns:
    """A saver with one worker: what that sends, and for how long a turn over it naps."""

    def __init__(self, path: Path) -> None:
        checkpoint = checkpoint_at(path)
        checkpoint.open()
        self._record = checkpoint.encoder().record
        orders, reports = pipes.pipe(True), pipes.pipe(False)
        results, self._writer = pipes.pipe(False)
        self.saving = Saving(checkpoint, None, 1, 60.0)
        self._saver = _InSaver(orders[0], reports[1], self.saving)
        self._saver._streams.add(0, results)
        self._ends = [*orders, *reports, results, self._writer]

    def value(self, content: bytes = b"\x80\x03N.") -> bytes:
        parts = self._record(Outcome("a.txt", content, 0, None, 1.0))
        return b"".join(value_frame(parts))

    def nap_after(self, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        naps: list[float] = []
        pipes.write(self._writer.fileno(), [sent])
        with monkeypatch.context() as patch:
            patch.setattr(time, "sleep", naps.append)
            patch.setattr(process, "MUCH", MUCH)
            self._saver._turn()
        return naps

    def close(self) -> None:
        self.saving.close()
        forks.close(*self._ends)


@pytest.fixture
def turns(tmp_path: Path) -> Iterator[Turns]:
    turns = Turns(tmp_path / "result.pkl")
    yield turns
    turns.close()


Sent = Callable[[Turns], bytes]


@pytest.mark.parametrize(
    ("sent", "naps"),
    [
        (lambda turns: turns.value(), [NAP_SECONDS]),
        (lambda turns: turns.value() * 5, [NAP_SECONDS]),
        (lambda turns: turns.value() + BATCH_OVER, []),
        (lambda turns: turns.value(b"x" * MUCH), []),
        (lambda turns: plain_frame(Hello(1)), []),
    ],
    ids=["a value", "many", "the last of a batch", "a large one", "no value"],
)
def test_more_values_may_come_where_nobody_waits(
    turns: Turns, sent: Sent, naps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values in the middle of a batch are saved at once, and then gathered; whoever waits for an
    answer has it at once, and of much there is enough."""
    assert turns.nap_after(sent(turns), monkeypatch) == naps
