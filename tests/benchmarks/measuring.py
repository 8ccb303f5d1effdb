"""Starts one run and reads what it costs, from outside and without slowing it down.

CPU is what the system says of children that were waited for: exact, and free. Memory has to be
looked at again and again while the run goes on, which costs it some, so that the rounds in which
memory is read have no say in the seconds.
"""

from __future__ import annotations

import itertools
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import process_tree

ROOT = Path(__file__).parents[2]

LOOK_EVERY = 0.05  # s between two looks at memory: a look at a large process takes about 1 ms
SETTLED = 1.0  # s after which every contender has started all its processes
PATIENCE = 30.0  # s for processes that are left behind; nobody needs it who stops properly


class RunFailed(Exception):
    """A run that did not end, or not with as many results as there are files."""


@dataclass(frozen=True)
class Measured:
    """What one run has cost, with all its processes."""

    seconds: float
    cpu: float
    memory: float | None  # bytes at the peak, where that was looked at
    written: int  # bytes sent towards a disk
    kept: int  # bytes in the run's folder, at its end
    idle_cpu: float | None  # seconds of CPU in the middle of a run that only waits


@dataclass(frozen=True)
class Looks:
    """When to look at a run while it goes on, and at what."""

    memory: bool = False
    idle_for: float | None = None  # the run only waits, so many seconds long

    def pauses(self) -> Iterable[float]:
        """Seconds to wait before each look; afterwards the run is left alone."""
        if self.memory:
            return itertools.repeat(LOOK_EVERY)
        if self.idle_for is not None:
            return (SETTLED, idle_window(self.idle_for))
        return ()

    def look(self) -> float:
        """What is looked at: bytes of memory, or seconds of CPU."""
        return process_tree.memory() if self.memory else process_tree.cpu_so_far()


def idle_window(seconds: float) -> float:
    """How much of a call that waits so long is certainly neither beginning nor end of the run."""
    return seconds - SETTLED - 0.4


def measure(arguments: list[str], folder: Path, files: int, looks: Looks, limit: float) -> Measured:
    """One run of `one_run.py` in a session of its own, with what it leaves in `folder`.

    Raises:
        RunFailed: it took longer than `limit` seconds, failed, or has not a result for each file.
    """
    os.sync()  # nobody pays for what another has written
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # Or every process of ours would compile what it imports, unlike those of an installed package.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    log = folder.with_suffix(".log")
    cpu, written = _cpu_of_children(), process_tree.bytes_written()
    begun = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.one_run", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    ended = False
    try:
        seen, ended = _watch(process, looks, limit)
    finally:
        seconds = time.perf_counter() - begun
        if not ended:
            process_tree.kill_all()
    status = process.wait()
    process_tree.wait_for_orphans(PATIENCE)
    last = [f"exit status {status}", *log.read_text().rstrip().split("\n")][-1]
    if not ended or status or last != str(files):
        raise RunFailed(last if ended else f"not done after {limit:.0f} s")
    return Measured(
        seconds=seconds,
        cpu=_cpu_of_children() - cpu,
        memory=max(seen, default=0.0) if looks.memory else None,
        written=process_tree.bytes_written() - written,
        kept=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        idle_cpu=seen[1] - seen[0] if len(seen) == 2 and not looks.memory else None,
    )


def _watch(
    process: subprocess.Popen[bytes], looks: Looks, limit: float
) -> tuple[list[float], bool]:
    """What the looks have seen, and whether the process has ended by itself."""
    seen: list[float] = []
    deadline = time.monotonic() + limit
    descriptor = os.pidfd_open(process.pid)  # Popen.wait with a time-out polls, up to 50 ms late
    try:
        for pause in looks.pauses():
            if _ends_within(descriptor, min(pause, deadline - time.monotonic())):
                return seen, True
            if time.monotonic() >= deadline:
                return seen, False
            seen.append(looks.look())
        return seen, _ends_within(descriptor, deadline - time.monotonic())
    finally:
        os.close(descriptor)


def _ends_within(descriptor: int, seconds: float) -> bool:
    ready, _, _ = select.select([descriptor], [], [], max(seconds, 0.0))
    return bool(ready)


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
