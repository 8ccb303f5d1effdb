"""The few things about files on disk that differ between systems: reads and writes at a place,
forcing data to the disk, putting a file in the place of another.

A place is given with each call. Where a descriptor stands afterwards is nobody's business, so it is
for one thread at a time. Knows nothing of records or formats.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from ..values import Bytes

if sys.platform == "darwin":
    import fcntl

Made = TypeVar("Made")

# Parts up to this length cost less to copy than to name to the system.
_JOINED = 1 << 12
# How many parts every system takes at once (IOV_MAX is 1,024 or more).
_VECTOR = 1_000
# How long to wait, on Windows, for who has a file open, or is removing it.
_ATTEMPTS, _PAUSE_SECONDS = 20, 0.1


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset`; fewer only at the end of the file."""
    os.lseek(fd, offset, os.SEEK_SET)
    chunks: list[bytes] = []
    while length > 0 and (chunk := os.read(fd, length)):
        chunks.append(chunk)
        length -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the bytes from `offset` on, as far as there are any."""
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(offset)
        while view and (length := file.readinto(view)):
            view = view[length:]


def write_at(fd: int, data: Bytes, offset: int) -> None:
    """Write all of `data` at `offset`; raises `OSError` if the system takes only part of it."""
    write_parts(fd, [data], offset)


def write_parts(fd: int, parts: Sequence[Bytes], offset: int) -> None:
    """The same for many parts, one behind the other: small ones joined, large ones not copied."""
    joined: list[Bytes] = []
    if max(map(len, parts), default=0) <= _JOINED:  # as nearly always
        joined, parts = [b"".join(parts)], ()
    for large, group in itertools.groupby(parts, lambda part: len(part) > _JOINED):
        some = [*group]
        joined += some if large else [b"".join(some)]
    while joined:
        if hasattr(os, "pwritev") and sys.platform != "darwin":  # which refuses 2 GiB at once
            written = os.pwritev(fd, joined[:_VECTOR], offset)
        else:
            os.lseek(fd, offset, os.SEEK_SET)
            written = os.write(fd, joined[0])
        offset += written
        while joined and written >= len(joined[0]):
            written -= len(joined.pop(0))
        if written:
            joined[0] = memoryview(joined[0])[written:]


def begin_to_force(fd: int, start: int, end: int) -> None:
    """Have the system write this part of the file to the disk, without waiting for it; `force` then
    finds less to do. Linux does so when it is told that nobody needs these pages in memory (see
    generic_fadvise in mm/fadvise.c), and drops those that are on the disk already."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)


def force(fd: int) -> None:
    """Return once everything written to `fd` is on the disk."""
    if sys.platform == "darwin":  # fsync there leaves data in the drive's own cache
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
    getattr(os, "fdatasync", os.fsync)(fd)


def make_like(path: str, new: str) -> None:
    """Make sure that there is a file `new`, with the permissions of the one at `path` and, as far
    as that is allowed, its group and its owner."""
    status = os.stat(path)
    os.close(os.open(new, os.O_RDWR | os.O_CREAT, 0o600))
    if sys.platform != "win32":
        for owner in (-1, status.st_uid):  # who may not give it away may still share it
            with contextlib.suppress(OSError):
                os.chown(new, owner, status.st_gid)
    with contextlib.suppress(OSError):  # of a file system that has none
        os.chmod(new, stat.S_IMODE(status.st_mode))


def force_folder(path: str) -> None:
    """Make a new name in `path`'s folder survive a power cut, where the system lets one ask."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # of network file systems, or of a folder not to be read
        fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


if sys.platform == "win32":

    def open_file(path: str, flags: int) -> int:
        """See below. What somebody is just removing or replacing cannot be opened for a moment."""
        return _patiently(path, os.open, path, flags | os.O_BINARY)

    def refuse_unreadable(path: str) -> None:
        """See below. `os.access` knows of no rights here, nor of who has the file open."""
        os.close(open_file(path, os.O_RDONLY))

    def replace(new: str, path: str) -> None:
        """See below. Who has one of the two open keeps it where it is: the caller has closed them,
        and a viewer or a virus scanner is waited for a little."""
        _patiently(path, os.replace, new, path)

    def _patiently(path: str, call: Callable[..., Made], *arguments: object) -> Made:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(PermissionError):
                return call(*arguments)
            time.sleep(_PAUSE_SECONDS)
        # Both are one error to the C library.
        what = "permission denied, or another program has this file open: close it there, and"
        raise PermissionError(errno.EACCES, f"{what} try again", path)

else:

    def open_file(path: str, flags: int) -> int:
        """A descriptor of the file, for bytes."""
        return os.open(path, flags, 0o666)

    def refuse_unreadable(path: str) -> None:
        """Raise `PermissionError` if the file may not be read. Does not open it: who closes it
        again would lose SQLite's locks."""
        if not os.access(path, os.R_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def replace(new: str, path: str) -> None:
        """Make `new` the file at `path`, in one step."""
        os.replace(new, path)
