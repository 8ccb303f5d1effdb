"""A file for one writer at a time: made in one step, opened, and locked.

Knows nothing of formats beyond the bytes of an empty file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from io import FileIO

from .. import forks
from ..errors import CheckpointLocked
from .base import NEW_FILE
from .disk import BINARY, force, force_folder, lock, write_at


def open_locked(
    path: str, empty: bytes, holder: Callable[[int], int | None], notes: list[str]
) -> FileIO:
    """The file at `path`, for reading and writing, with its lock; made if it is not there.

    Args:
        path: the file.
        empty: what an empty one consists of.
        holder: the process that writes to a locked file, by the file's descriptor.
        notes: gets a sentence for what a person may want to know.

    Raises:
        CheckpointLocked: another process has the lock.
        OSError: the file cannot be opened or made.
    """
    while True:
        if not os.path.exists(path):
            _make(path, empty)
        file = forks.enter(FileIO(os.open(path, os.O_RDWR | BINARY), "r+"))
        try:
            if not _lock(file, path, notes):
                raise CheckpointLocked(path, holder(file.fileno()))
            if is_at(file, path):
                if os.fstat(file.fileno()).st_size == 0:
                    write_at(file.fileno(), empty, 0)
                    force(file.fileno())
                return file
        except BaseException:
            forks.close(file)
            raise
        forks.close(file)  # somebody put another file in its place between open and lock


def _lock(file: FileIO, path: str, notes: list[str]) -> bool:
    try:
        return lock(file.fileno(), path)
    except OSError as error:
        notes.append(
            f"{path!r} could not be locked ({error.strerror}): nothing would notice a second run "
            "that writes to it at the same time"
        )
        return True


def is_at(file: FileIO, path: str) -> bool:
    """Whether this open file is the one at `path`: nobody has removed, moved or replaced it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _make(path: str, empty: bytes) -> None:
    """Make an empty file in one step: whoever finds it finds it whole."""
    new = f"{path}{NEW_FILE}{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with open(new, "xb") as file:
            file.write(empty)
            file.flush()
            force(file.fileno())
        _link(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    force_folder(path)


def _link(new: str, path: str) -> None:
    try:
        os.link(new, path)
    except FileExistsError:
        pass  # another run was faster
    except OSError:  # a file system without links: an empty file is filled under the lock
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o666))
