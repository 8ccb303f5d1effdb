"""What a user's type checker makes of the public API. Checked by test_typing.py; never run.

A line is right as it stands, or it must be an error, of the kind that its comment names.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from typing_extensions import assert_type

from resumable_pool import (
    Checkpoint,
    CheckpointError,
    CheckpointLocked,
    Failure,
    Outcome,
    Report,
    ResumableRunner,
    WorkerStatus,
    open_checkpoint,
    worker_slot,
)


def transcribe(path: str) -> str:
    return path.upper()


def size(path: str) -> int:
    return os.path.getsize(path)


def no_path(number: int) -> int:
    return number


def load(name: str, slots: int) -> None:
    pass


runner = ResumableRunner(
    transcribe, "audio/**/*.wav", "result.pkl", initializer=load, initargs=("small", 4)
)
assert_type(runner, ResumableRunner[str])
assert_type(runner.run(), Report)
assert_type(runner.results, Mapping[str, str])
assert_type(runner.results["one.wav"], str)
assert_type(runner.failures, Mapping[str, Failure])
assert_type(runner.pending(), list[str])
assert_type(runner.workers(), list[WorkerStatus])
assert_type(runner.as_completed(), Iterator[Outcome[str]])

for outcome in runner.as_completed():
    assert_type(outcome.path, str)
    assert_type(outcome.value, str)
    assert_type(outcome.failure, Failure | None)
    outcome.value.no_such_method()  # error: attr-defined

report: Report = runner.run()
assert_type(report.failures, Sequence[Failure])
assert_type(report.stopped, bool)

sizes = ResumableRunner(size, ["a.wav", "b.wav"], "sizes.jsonl", max_workers=4)
assert_type(sizes.results["a.wav"], int)
sizes.results["a.wav"] = 3  # error: index
wrong: str = sizes.results["a.wav"]  # error: assignment

ResumableRunner(no_path, "*.wav", "result.pkl")  # error: arg-type
ResumableRunner(size, "*.wav", "result.pkl", 4)  # error: call-arg
ResumableRunner(size, "*.wav", "result.pkl", timeout="60")  # error: arg-type
ResumableRunner(size, "*.wav", "result.pkl", workers=4)  # error: call-arg


class Elsewhere(ResumableRunner[int]):
    """Saves elsewhere, with the types that the hooks have."""

    def save(self, outcomes: Sequence[Outcome[int]]) -> None:
        self.total = sum(outcome.value for outcome in outcomes)
        super().save(outcomes)

    def load_completed(self) -> set[str]:
        return set()

    def read_result(self, path: str) -> int:
        return len(path)

    def on_saved(self, outcome: Outcome[int]) -> None:
        assert_type(outcome.value, int)


class WithPaths(ResumableRunner[int]):
    """Says which files there are, and which are done, in `Path`s."""

    def collect_files(self) -> list[Path]:
        return [*Path("audio").glob("*.wav")]

    def load_completed(self) -> list[Path]:
        return [*Path("texts").glob("*.txt")]


class Wrong(ResumableRunner[int]):
    """With another one."""

    def read_result(self, path: str) -> str:  # error: override
        return path


assert_type(Elsewhere(size, "*.wav", "result.pkl").results, Mapping[str, int])
Elsewhere(transcribe, "*.wav", "result.pkl")  # error: arg-type

assert_type(open_checkpoint("result.pkl"), Checkpoint)
assert_type(worker_slot(), int)
try:
    runner.run()
except CheckpointLocked as locked:
    assert_type(locked.pid, int | None)
except CheckpointError as error:
    assert_type(error.remedy, str)
