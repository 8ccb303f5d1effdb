"""Checkpoints by their suffix, and the contract they fulfil. Knows no process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePath

from .base import Checkpoint
from .json_lines import JsonLines
from .pickle_file import PickleFile

__all__ = ["Checkpoint", "JsonLines", "PickleFile", "checkpoint_at", "open_checkpoint"]


def _sqlite_file(path: str) -> Checkpoint:
    from .sqlite import SqliteFile  # not every Python is built with SQLite

    return SqliteFile(path)


_FORMATS: dict[str, Callable[[str], Checkpoint]] = {
    ".pkl": PickleFile,
    ".pickle": PickleFile,
    ".jsonl": JsonLines,
    ".sqlite": _sqlite_file,
    ".sqlite3": _sqlite_file,
    ".db": _sqlite_file,
}


def checkpoint_at(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at `path`, whose suffix names its format; the file need not be there.

    Raises:
        TypeError: `path` is no path.
        ValueError: no format has this suffix.
    """
    name = os.fspath(path)
    if not isinstance(name, str):
        raise TypeError(f"the checkpoint must be a str or a path of str, not {name!r}")
    suffix = PurePath(name).suffix.lower()
    if suffix not in _FORMATS:
        raise ValueError(
            f"checkpoint {name!r}: its suffix names the format, and {suffix!r} is not one of "
            f"{', '.join(_FORMATS)}"
        )
    return _FORMATS[suffix](name)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The values saved at `path`, for reading: a mapping of path to value, also during a run.

    `dict(open_checkpoint("result.pkl"))` is the same as loading the file with `pickle`, but
    `open_checkpoint` finds the keys without unpickling a value, reads a value only when it is
    asked for it, verifies its checksum, and knows the failures (`.failures()`). It reads all
    formats alike.

    Raises:
        FileNotFoundError: there is no such file; none is made.
        CheckpointError: it is not a checkpoint, or damaged.
        ValueError: no format has this suffix.
    """
    checkpoint = checkpoint_at(path)
    if not os.path.exists(checkpoint.path):
        raise FileNotFoundError(f"there is no checkpoint at {os.fspath(path)!r}")
    checkpoint.completed()
    return checkpoint
