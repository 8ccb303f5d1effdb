"""The few things about files on disk that differ between systems: positioned reads and writes,
forcing data to the disk, putting a file in the place of another, and a lock that dies with its
process.

Knows nothing of records or formats.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Callable, Sequence
from io import FileIO
from typing import TypeVar

from ..values import Bytes

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Made = TypeVar("Made")

# Parts up to this length cost less to copy than to name to the system.
_JOINED = 1 << 12
# How many parts every system takes at once (IOV_MAX is 1,024 or more).
_VECTOR = 1_000
# What is read at once where it has to be copied.
_CHUNK = 1 << 20

# How long to wait, on Windows, for who has a file open, or is removing it.
_ATTEMPTS, _PAUSE_SECONDS = 20, 0.1


def read_at(fd: int, length: int, offset: int) -> bytes:
    """Up to `length` bytes from `offset`; fewer only at the end of the file."""
    chunks: list[bytes] = []
    while length > 0:
        if sys.platform == "win32":
            os.lseek(fd, offset, os.SEEK_SET)
            chunk = os.read(fd, length)
        else:
            chunk = os.pread(fd, length, offset)
        if not chunk:
            break
        chunks.append(chunk)
        offset += len(chunk)
        length -= len(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the bytes from `offset` on, as far as there are any."""
    while view:
        if hasattr(os, "preadv"):
            length = os.preadv(fd, [view], offset)
        else:
            chunk = read_at(fd, min(len(view), _CHUNK), offset)
            length = len(chunk)
            view[:length] = chunk
        if length == 0:
            return
        view = view[length:]
        offset += length


def write_at(fd: int, data: Bytes, offset: int) -> None:
    """Write all of `data` at `offset`; raises `OSError` if the system takes only part of it."""
    view = memoryview(data)
    while view:
        if sys.platform == "win32":
            os.lseek(fd, offset, os.SEEK_SET)
            written = os.write(fd, view)
        else:
            written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def write_parts(fd: int, parts: Sequence[Bytes], offset: int) -> None:
    """The same for many parts, one behind the other: small ones joined, large ones not copied."""
    small: list[Bytes] = []
    joined: list[Bytes] = []
    for part in parts:
        if len(part) <= _JOINED:
            small.append(part)
        else:
            joined += [b"".join(small), part]
            small = []
    joined.append(b"".join(small))
    while len(joined) > 1 and hasattr(os, "pwritev"):
        written = os.pwritev(fd, joined[:_VECTOR], offset)
        offset += written
        while joined and written >= len(joined[0]):
            written -= len(joined.pop(0))
        if written:
            joined[0] = memoryview(joined[0])[written:]
    for part in joined:
        write_at(fd, part, offset)
        offset += len(part)


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
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def force_folder(path: str) -> None:
    """Make a new name in `path`'s folder survive a power cut, where the system lets one ask."""
    if sys.platform == "win32":
        return
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse to sync a folder
            os.fsync(fd)
    finally:
        os.close(fd)


if sys.platform == "win32":

    class LockableFile(FileIO):
        """See below. A lock is mandatory here and would keep plain readers out, so a byte of a side
        file is locked, which is removed with the lock: the system refuses that as long as somebody
        else has it open."""

        _side_file = -1
        _side_path = ""

        def lock(self, path: str) -> bool:
            """See below."""
            self._side_path = lock_file(path)
            side_file = open_file(self._side_path, os.O_RDWR | os.O_CREAT)
            try:
                msvcrt.locking(side_file, msvcrt.LK_NBLCK, 1)
            except OSError as error:
                os.close(side_file)
                if _is_held(error):
                    return False
                raise
            self._side_file = side_file
            return True

        def let_go(self) -> None:
            """See below: nobody may move or remove here what somebody has open."""
            super().close()

        def close(self) -> None:
            """Close the file, and give up the lock."""
            super().close()
            side_file, self._side_file = self._side_file, -1
            if side_file >= 0:
                os.close(side_file)
                with contextlib.suppress(OSError):
                    os.unlink(self._side_path)

    def open_file(path: str, flags: int) -> int:
        """See below. What somebody is just removing or replacing cannot be opened for a moment."""
        return _patiently(os.open, path, flags | os.O_BINARY)

    def _is_held(error: OSError) -> bool:
        # What else the C runtime says where a lock fails is that the file system has none.
        return error.errno not in (errno.EINVAL, errno.EBADF)

    def replace(new: str, path: str) -> None:
        """See below. Who has one of the two open keeps it where it is: the caller has closed them,
        and a viewer or a virus scanner is waited for a little."""
        try:
            _patiently(os.replace, new, path)
        except PermissionError:
            what = "another program has this file open: close it there, and try again"
            raise PermissionError(errno.EACCES, what, path) from None

    def _patiently(call: Callable[..., Made], *arguments: object) -> Made:
        for _ in range(_ATTEMPTS):
            with contextlib.suppress(PermissionError):
                return call(*arguments)
            time.sleep(_PAUSE_SECONDS)
        return call(*arguments)

else:

    class LockableFile(FileIO):
        """A file that can be locked, until it is closed or its process ends.

        flock, not lockf: POSIX record locks are dropped when *any* descriptor of the file is closed
        in this process, by a user's `pickle.load(open(path))` for instance.
        """

        def lock(self, path: str) -> bool:
            """Take the lock, without waiting; the file is the one at `path`.

            Returns:
                Whether the lock was taken; False: somebody else has it.

            Raises:
                OSError: this file system has no locks (`ENOLCK`, `ENOTSUP`), or one is not allowed.
            """
            try:
                fcntl.flock(self.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if _is_held(error):
                    return False
                raise
            return True

        def let_go(self) -> None:
            """Keep the lock, but not the file, which is to be moved or removed."""

    def open_file(path: str, flags: int) -> int:
        """A descriptor of the file, for bytes."""
        return os.open(path, flags, 0o666)

    def _is_held(error: OSError) -> bool:
        return error.errno in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)

    def replace(new: str, path: str) -> None:
        """Make `new` the file at `path`, in one step."""
        os.replace(new, path)


def is_locked(path: str) -> bool:
    """Whether a process has the lock of the file at `path`, as far as that can be told. Who would
    take it at this moment has to ask again, see `open_locked`."""
    try:
        fd = open_file(lock_file(path) if sys.platform == "win32" else path, os.O_RDONLY)
    except OSError:
        return False
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return _is_held(error)
    finally:
        os.close(fd)
    return False


def lock_file(path: str) -> str:
    """The side file that carries the lock on Windows; that of a side file is itself. A file that is
    named by a link is the same file."""
    return path if path.endswith(".lock") else os.path.realpath(path) + ".lock"
