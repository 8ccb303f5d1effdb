"""How far a small value walks through our code, from the function that returns it to the disk."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import resumable_pool
from resumable_pool.between import forks, pipes
from resumable_pool.between.messages import Setup
from resumable_pool.checkpoints import checkpoint_at
from resumable_pool.saver.process import _InSaver
from resumable_pool.saver.saving import Saving
from resumable_pool.worker.calling import process_batch
from resumable_pool.worker.process import _InWorker

from .conftest import not_on_windows

pytestmark = not_on_windows("the worker's and the saver's pipes are in one process here")

PACKAGE = os.path.dirname(resumable_pool.__file__) + os.sep
FILES = 120  # quick ones: their sizes are not asked for

# A value in the middle of a batch: calls of our own functions, and how often one of another file
# goes on. Each step that is added costs every value; and nobody can follow it through more.
MOST_CALLS, MOST_CHANGES = 23, 23


class Trace:
    """What of our code runs: the functions that are called, and the files that are gone through."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.files: list[str] = []

    def clear(self) -> None:
        self.calls.clear()
        self.files.clear()

    @property
    def length(self) -> tuple[int, int]:
        return len(self.calls), max(0, len(self.files) - 1)

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE):
            return
        if event == "call":
            self.calls.append(f"{file.removeprefix(PACKAGE)}: {frame.f_code.co_name}")
            self._enter(file)
        elif event == "return" and frame.f_back is not None:
            self._enter(frame.f_back.f_code.co_filename)

    def _enter(self, file: str) -> None:
        if file.startswith(PACKAGE) and self.files[-1:] != [file]:
            self.files.append(file)


@pytest.fixture
def trace() -> Iterator[Callable[[], Trace]]:
    def begin() -> Trace:
        trace = Trace()
        sys.setprofile(trace)
        return trace

    yield begin
    sys.setprofile(None)


@pytest.fixture
def make_pipe() -> Iterator[Callable[[], Any]]:
    made = []

    def make() -> Any:
        made.append(pipes.pipe(duplex=False))
        return made[-1]

    yield make
    for ends in made:
        forks.close(*ends)


def test_a_value_has_a_short_way(
    tmp_path: Path,
    trace: Callable[[], Trace],
    make_pipe: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Through the worker, from one call of the function to the next, and through the saver, from
    one wait to the next."""
    monkeypatch.chdir(tmp_path)  # where the worker goes back to
    checkpoint = checkpoint_at(tmp_path / "result.pkl")
    checkpoint.open()
    (tasks, _), (results, to_saver), (_, words) = make_pipe(), make_pipe(), make_pipe()
    ways: list[tuple[tuple[int, int], list[str]]] = []
    traced = Trace()

    def function(path: str) -> int:
        ways.append((traced.length, [*traced.calls]))
        traced.clear()
        return len(path)

    worker = _InWorker(tasks, to_saver, words, str(tmp_path))
    setup = Setup(function, None, (), encoder=checkpoint.encoder())
    batch = {str(tmp_path / f"{number}"): 1 for number in range(FILES)}
    sys.setprofile(traced)
    worker._process_batch(setup, batch)
    sys.setprofile(None)
    in_worker, worker_calls = min(ways[1:])

    orders, reports = make_pipe(), make_pipe()
    saver = _InSaver(orders[0], reports[1], Saving(checkpoint, None, 1, 60.0))
    saver._streams.add(0, results)
    saver._turn()  # the first has more to do
    frame, *_ = next(process_batch(setup, batch, lambda: None))
    pipes.write(to_saver.fileno(), frame)
    traced = trace()
    saver._turn()
    sys.setprofile(None)
    in_saver, saver_calls = traced.length, traced.calls
    checkpoint.close()
    way = [*worker_calls, *saver_calls]
    assert any("append" in call for call in saver_calls)
    assert in_worker[0] + in_saver[0] <= MOST_CALLS, way
    assert in_worker[1] + in_saver[1] <= MOST_CHANGES, way
