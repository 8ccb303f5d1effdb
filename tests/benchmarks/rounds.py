"""Contenders take turns, A B C A B C, so that whatever happens to the machine happens to all.

The first round looks at memory and is not timed: it also warms caches and compiles modules.
"""

from __future__ import annotations

import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import inputs
from .measuring import Looks, Measured, RunFailed, measure
from .roster import OURS, Contender
from .workloads import Workload

LIMIT = 1200.0  # s for one run; the slowest that is meant to end takes a minute


@dataclass
class Entry:
    """A contender with so many files, and what its runs have cost."""

    contender: Contender
    size: int  # how many files the workload has
    files: int  # how many of these the contender gets
    memory: Measured | None = None  # the round in which that was looked at
    runs: list[Measured] = field(default_factory=list)  # the others, in order
    failure: str | None = None


@dataclass(frozen=True)
class Result:
    """All that was measured of one workload."""

    workload: Workload
    workers: int
    rounds: int
    entries: list[Entry]
    ideal: float | None  # seconds


@dataclass(frozen=True)
class Harness:
    """Where runs take place, and how many of them."""

    scratch: Path
    workers: int
    rounds: int
    say: Callable[[str], None]

    def compare(self, workload: Workload, contenders: Sequence[Contender]) -> Result:
        """Let those contenders take turns at a workload."""
        entries = [
            Entry(contender, size, files)
            for contender in contenders
            for size in workload.sizes
            if (files := _files_for(contender, workload, size)) is not None
        ]
        if workload.done_before:
            for size in workload.sizes:
                self._finish_before(workload, size)
        rounds = min(self.rounds, workload.most_rounds)
        for number in range(rounds + 1):
            for entry in entries:
                if entry.failure is None:
                    self._take_turn(workload, entry, number)
        return Result(workload, self.workers, rounds, entries, self._ideal(workload))

    def _take_turn(self, workload: Workload, entry: Entry, number: int) -> None:
        looks = Looks(idle_for=workload.idle_for) if number else Looks(memory=True)
        title = f"{workload.key}, {entry.files:,} files, {entry.contender.title}"
        try:
            if workload.done_before:
                measured = self._run(workload, entry, self._done(workload, entry.size), looks)
            else:
                folder = self.scratch / "run"
                folder.mkdir()
                try:
                    measured = self._run(workload, entry, folder, looks)
                finally:
                    shutil.rmtree(folder)
        except RunFailed as failure:
            entry.failure = str(failure)
            self.say(f"{title}: {failure}")
            return
        if number:
            entry.runs.append(measured)
        else:
            entry.memory = measured
        self.say(f"round {number}, {title}: {measured.seconds:.3f} s, {measured.cpu:.3f} s CPU")

    def _run(self, workload: Workload, entry: Entry, folder: Path, looks: Looks) -> Measured:
        options = []
        if entry.contender.tuned:
            options.append(f"chunk={workload.chunk}")
        if workload.method is not None:
            options.append(f"method={workload.method}")
        pattern = self._inputs(workload, entry.files)
        arguments = [entry.contender.module, workload.function, pattern, str(folder)]
        arguments += [str(self.workers), *options]
        return measure(arguments, folder, entry.files, looks, LIMIT)

    def _inputs(self, workload: Workload, files: int) -> str:
        """The same files for all workloads in which these say nothing."""
        name = workload.key if workload.contents(0, 1000) else "small"
        return inputs.make_files(self.scratch / f"{name}-{files}", files, workload.contents)

    def _done(self, workload: Workload, size: int) -> Path:
        return self.scratch / f"{workload.key}-{size}-done"

    def _finish_before(self, workload: Workload, size: int) -> None:
        """A folder with our checkpoint of all files, and the same dict pickled in one piece."""
        folder = self._done(workload, size)
        folder.mkdir()
        self._run(workload, Entry(OURS, size, size), folder, Looks())
        results = pickle.loads((folder / "ours.pkl").read_bytes())
        (folder / "template.pkl").write_bytes(pickle.dumps(results))

    def _ideal(self, workload: Workload) -> float | None:
        if not workload.ideal:
            return None
        (size,) = workload.sizes
        seconds = inputs.total_seconds(size, workload.contents)
        if workload.function == "sleeps":
            seconds += size * _oversleeping()
        return seconds / self.workers


def _files_for(contender: Contender, workload: Workload, size: int) -> int | None:
    """How many files, or None if this size is not for it."""
    cap = workload.caps.get(contender.key, size)
    if size <= cap:
        return size
    return None if workload.grows else cap


def _oversleeping() -> float:
    """Seconds by which a sleep of 1 ms is longer on this machine, whoever asks for it."""
    naps = 100
    begun = time.perf_counter()
    for _ in range(naps):
        time.sleep(0.001)
    return (time.perf_counter() - begun) / naps - 0.001
