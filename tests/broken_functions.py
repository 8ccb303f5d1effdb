"""Functions that leave their process unable to do what the next file needs.

In a module, so that every start method can send them.
"""

from __future__ import annotations

import builtins
import os
import resource
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
