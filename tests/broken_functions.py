"""Functions that leave their process unable to do what the next file needs.

In a module, so that every start method can send them.
"""

from __future__ import annotations

import atexit
import builtins
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from .functions import note

# What a process has left open, or never gives back.
kept: list[Any] = []


def open_too_many(path: str) -> None:
    """Never closes what it opens."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    while True:
        kept.append(os.open(path, os.O_RDONLY))


def fill_memory(path: str) -> None:
    """Takes all that there is, the last of it in small pieces."""
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (limit + (64 << 20), limit + (64 << 20)))
    pieces: list[Any] = []
    for size in (1 << 20, 1 << 12, 64, 1):
        try:
            while True:
                pieces.append(bytearray(size))
        except MemoryError:
            pass
    raise MemoryError("no more")


def forbid_imports(path: str) -> None:
    def refuse(name: str, *arguments: object) -> None:
        raise ImportError(f"no {name} here")

    builtins.__import__ = refuse  # type: ignore[assignment]
    raise ValueError("the reason")


DESPERATE = {
    "OSError: [Errno 24] Too many open files: 'in/00.txt'": open_too_many,
    "MemoryError": fill_memory,
    "ValueError: the reason": forbid_imports,
}


def despair(path: str) -> Any:
    """As the file says."""
    note(path)
    return DESPERATE[Path(path).read_text()](path)


# What one file does to those after it.

broken = False


def leave_late() -> None:
    """An initializer: its process is still there for a moment when it has told all."""
    atexit.register(time.sleep, 0.3)


def live_on(path: str) -> int:
    """As the file says: it breaks its process, and fails or succeeds; it is bad; or it is well, in
    a process that is."""
    global broken
    note(path)
    what = Path(path).read_text()
    if what == "breaks":
        broken = True
    if broken or what == "bad":
        raise RuntimeError("the context is lost" if broken else "bad")
    broken = what == "breaks later"
    time.sleep(0.002)
    return os.getpid()


def leak_descriptors(path: str) -> int:
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept.extend(os.open(path, os.O_RDONLY) for _ in range(2))
    return len(kept)


def leak_memory(path: str) -> int:
    """Until its process has a gigabyte more than it had."""
    if not kept:
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (limit + (1 << 28), limit + (1 << 28)))
    kept.append(bytearray(1 << 24))
    return len(kept)


def forbid_descriptors(path: str) -> int:
    """One of many quick files leaves its process unable even to ask what there is to read."""
    if path.endswith("060.txt"):
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return 1


def close_descriptors(path: str) -> int:
    """One of many quick files closes all that it does not know."""
    note(path)
    if path.endswith("060.txt"):
        os.closerange(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    return 1


# Workers that do not start.


def die_at_20(path: str) -> int:
    """Number 20 takes its worker along; 60 goes on until four starts have been tried."""
    note(path)
    if path.endswith("020.txt"):
        os.kill(os.getpid(), signal.SIGKILL)
    while path.endswith("060.txt") and os.path.getsize("started") < 4:
        time.sleep(0.01)
    return os.getpid()


def load_but_not_the_third_time(times: int) -> None:
    """So many starts fail after the first two."""
    with open("started", "ab", buffering=0) as started:
        started.write(b".")
    if 2 < os.path.getsize("started") <= 2 + times:
        raise ConnectionError("the model server is away")


# Workers that die.


def be_killed_at_first(path: str) -> None:
    """Says when it begins and ends; one with `killed` in its file is killed in between, the first
    time that the folder sees it."""
    note(f"begins {path}")
    seen = Path(f"seen-{Path(path).name}")
    if Path(path).read_text() == "killed" and not seen.exists():
        seen.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05 if seen.exists() or path > "in/110" else 0.002)  # so that others would be seen
    note(f"ends {path}")


def die_idle(path: str) -> int:
    """Its process dies when it is about to wait for the next file."""
    note(path)
    sys.setprofile(_die_in_receive)
    return 1


def _die_in_receive(frame: Any, event: str, argument: object) -> None:
    if frame.f_code.co_name == "_receive" and event == "call":
        os.kill(os.getpid(), signal.SIGKILL)


def fail_at_first(path: str) -> int:
    """Twice, if the file is bad; notes when."""
    with open(f"{path}.times", "a") as times:
        times.write(f"{time.monotonic()}\n")
    if Path(path).read_text() == "bad" and len(when(path)) < 3:
        raise ConnectionError("429 Too Many Requests")
    return 1


def when(path: str) -> list[float]:
    """The moments at which it was called."""
    return [*map(float, Path(f"{path}.times").read_text().split())]
