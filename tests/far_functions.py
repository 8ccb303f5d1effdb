"""What executors are given in tests: in a module without pytest, since each process that a pool
spawns imports it."""

from __future__ import annotations

import os
import signal
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from resumable_pool import ResumableRunner, worker_slot

from .functions import KILL, FailsToUnpickle, NeedsTwo, calls, note, number_in

TEN = [f"in/{number:02}.txt" for number in range(10)]


def misbehave(path: str) -> Any:
    """A different mischief for each of the first files."""
    note(path)
    match int(Path(path).read_text()):
        case 0:
            raise NeedsTwo("one", "two")
        case 1:
            return lambda: None
        case 2:
            return FailsToUnpickle()
        case 3:
            raise SystemExit("leaving")
    return path


def wander(path: str) -> int:
    number = number_in(path)
    os.chdir("/")
    return number


def blocked_signals(path: str) -> list[str]:
    return sorted(
        signal.Signals(number).name for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    )


def fail_at_first(path: str) -> int:
    note(path)
    if calls().count(path) < 3 and path == TEN[3]:
        raise ValueError("not yet")
    return 1


def load() -> None:
    with open("loaded", "ab", buffering=0) as file:
        file.write(f"{os.getpid()}\n".encode())


def cannot_load() -> None:
    raise OSError("no model")


class Labelled(ResumableRunner[str]):
    def __init__(self, label: str, executor: Executor) -> None:
        super().__init__(len, "in/*.txt", "result.pkl", executor=executor, progress=False)  # type: ignore[arg-type]
        self.label = label

    def process_file(self, path: str) -> str:
        return f"{self.label} {path}"


def large(path: str) -> bytes:
    return path.encode() * 100_000


def slot_of(path: str) -> int:
    return worker_slot()


def kill_pool_once(path: str) -> str:
    note(path)
    if path == TEN[5] and not os.path.exists("killed"):
        Path("killed").touch()
        os.kill(os.getpid(), KILL)
    return path


def kill_pool(path: str) -> str:
    note(path)
    if path == TEN[5]:
        os.kill(os.getpid(), KILL)
    return path


def quick(path: str) -> str:
    return path
