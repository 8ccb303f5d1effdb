"""A file for one writer at a time: made in one step, opened, locked, and kept beside a new one.

The lock dies with its process.

Knows nothing of formats beyond the bytes of an empty file.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from io import FileIO

from ..between import forks
from ..between.system import lives, script_of
from ..errors import CheckpointLocked
from ..records import quoted
from .disk import force, force_folder, make_like, open_file, replace, write_at

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

# Files that a checkpoint may keep beside itself have its name and one of these (of old files there
# may be several, with a number); what is still being written has NEW_FILE and more behind the name
# that it will get.
LOCK_FILE, OLD_FILE, NEW_FILE = ".lock", ".bak", ".new-"

# How often to begin again where somebody has put another file in place, or looked at the lock.
_ATTEMPTS = 100

# The first byte of a lock file is what is locked on Windows, where nobody else can read it then.
_PID_OFFSET, _PID_LENGTH = 1, 20

# What a system says of a lock that somebody else has; what else it may say is that there are none.
_HELD = errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK

# On Windows a lock is mandatory, and would keep plain readers out: what is locked is a file beside.
_IS_BESIDE = sys.platform == "win32"


def _take(fd: int, alone: bool = True) -> bool:
    """Take the lock, without waiting; returns whether nobody else has it.

    Raises:
        OSError: this file system has no locks (`ENOLCK`, `ENOTSUP`), or one is not allowed.
    """
    try:
        if sys.platform == "win32":
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
        else:
            # Not lockf: POSIX record locks are dropped when *any* descriptor of the file is closed
            # in this process, by a user's `pickle.load(open(path))` for instance.
            fcntl.flock(fd, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _HELD:
            raise
        return False
    return True


class LockableFile(FileIO):
    """A file that can be locked, until it is closed or its process ends."""

    _lock = -1  # what is locked: another descriptor of the file, or that of the file beside it
    _path = ""

    def lock(self, path: str, notes: list[str]) -> bool:
        """Take the lock, without waiting; the file is the one at `path`. Returns whether nobody
        else has it; where there are no locks, nobody has, and a note says so."""
        self._path = path
        flags = os.O_RDWR | os.O_CREAT
        try:
            self._lock = open_file(lock_file(path), flags) if _IS_BESIDE else os.dup(self.fileno())
            return _take(self._lock)
        except OSError as error:
            notes.append(
                f"{quoted(path)} could not be locked ({error.strerror}), so a second run that "
                "writes to it would not be noticed: make sure only one run uses it"
            )
            return True

    def let_go(self) -> None:
        """Keep the lock, but not the file, which is to be moved or removed."""
        super().close()

    def close(self) -> None:
        """Close the file, and give up the lock."""
        super().close()
        lock, self._lock = self._lock, -1
        if lock >= 0:
            os.close(lock)
            if _IS_BESIDE:  # the system refuses that as long as somebody else has it open
                unsign(self._path)


def is_locked(path: str) -> bool:
    """Whether a process has the lock of the file at `path`, as far as that can be told. Who would
    take it at this moment has to ask again, see `open_locked`."""
    locked = lock_file(path) if _IS_BESIDE else path
    with contextlib.suppress(OSError), FileIO(open_file(locked, os.O_RDONLY)) as file:
        return not _take(file.fileno(), alone=False)
    return False


def keep_shared(path: str, first: int, length: int) -> tuple[FileIO, ...]:
    """Let nobody have these bytes of a file alone, by a POSIX record lock, until what is returned
    is closed by `forks.close`. SQLite's own locks are dropped when *any* descriptor of the file is
    closed in this process, by a hook that copies it, say; this one is a descriptor's (on Linux)."""
    if sys.platform == "linux":
        file = forks.enter(FileIO(open_file(path, os.O_RDONLY)))
        flock = struct.pack("hhqqi", fcntl.F_RDLCK, os.SEEK_SET, first, length, 0)
        with contextlib.suppress(OSError):  # this file system has none
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, flock)
        return (file,)
    return ()


def lock_file(path: str) -> str:
    """The file beside this one, with its writer's process id, and on Windows with the lock; that of
    such a file is itself. A file that is named by a link is the same file."""
    return path if path.endswith(LOCK_FILE) else os.path.realpath(path) + LOCK_FILE


def open_locked(
    path: str, empty: bytes, holder: Callable[[int], int | None], notes: list[str]
) -> LockableFile:
    """The file at `path`, for reading and writing, with its lock; made if it is not there.

    Args:
        path: the file.
        empty: what an empty one consists of.
        holder: the process that writes to a locked file, by the file's descriptor.
        notes: gets a sentence for what a person may want to know.

    Raises:
        CheckpointLocked: another process has the lock, of this file or of the one whose lock it is.
        OSError: the file cannot be opened or made.
    """
    named = path.removesuffix(LOCK_FILE)
    for _ in range(_ATTEMPTS):
        if not os.path.exists(path):
            _make(path, empty)
        # It may be a lock file that its owner has just removed, and there may be no links.
        fd = open_file(path, os.O_RDWR | os.O_CREAT)
        file = forks.enter(LockableFile(fd, "r+"))
        with contextlib.ExitStack() as stack:
            stack.callback(forks.close, file)
            if not file.lock(path, notes):
                if is_locked(path):  # and nobody was only looking whether it is
                    pid = holder(fd)
                    if pid is not None and not lives(pid):  # the next one has not signed yet
                        pid = None
                    raise CheckpointLocked(named, pid, script_of(pid))
            elif is_at(os.fstat(fd), path):  # nobody has put another in its place meanwhile
                if os.fstat(fd).st_size == 0:
                    write_at(fd, empty, 0)
                    force(fd)
                stack.pop_all()
                return file
    raise CheckpointLocked(named, None, None)


def is_at(status: os.stat_result, path: str) -> bool:
    """Whether this file is the one at `path`: nobody has removed, moved or replaced it."""
    try:
        return os.path.samestat(status, os.stat(path))
    except FileNotFoundError:
        return False


def refuse_if_gone(status: os.stat_result, path: str) -> None:
    """Raise `FileNotFoundError` if it is not."""
    if not is_at(status, path):
        what = "it was removed, moved or replaced during the run"
        raise FileNotFoundError(errno.ENOENT, what)


def new_name(path: str) -> str:
    """A name beside `path` that nobody has, for what will take its place."""
    return f"{path}{NEW_FILE}{os.getpid()}-{os.urandom(4).hex()}"


@contextlib.contextmanager
def new_beside(path: str, ends: Sequence[str] = ()) -> Iterator[str]:
    """Such a name. What has it in the end, since it has taken no other, is removed, and what is
    beside that: these ends of names."""
    new = new_name(path)
    try:
        yield new
    finally:
        for end in ("", *ends):
            remove(new + end)


def remove_leftovers(path: str) -> None:
    """Remove what was to take the place of `path`, and whoever wrote it was killed: it has nothing
    that is not in the file itself. Only who has the lock may."""
    folder, name = os.path.split(path)
    side = r"\.lock|-wal|-shm|-journal"
    new = rf"(?:{re.escape(NEW_FILE)}([0-9]{{1,9}})-[0-9a-f]{{8}}(?:{side})?)+"
    pattern = re.compile(rf"{re.escape(name)}(?:{re.escape(LOCK_FILE)})?{new}")
    with contextlib.suppress(OSError):
        for other in os.listdir(folder):
            match = pattern.fullmatch(other)
            if match is not None and not lives(int(match[1])):
                os.unlink(os.path.join(folder, other))


def keep_old(path: str, may_go: Callable[[str], bool]) -> str:
    """Keep the file at `path`, which is to be replaced, under another name as well: in place of an
    older one, if that `may_go`. Returns which."""
    old = path + OLD_FILE
    if os.path.lexists(old) and not may_go(old):
        numbered = (f"{old}-{number}" for number in itertools.count(2))
        old = next(name for name in numbered if not os.path.lexists(name))
    with new_beside(path) as copy:  # which stays if both are one file, since somebody was killed
        try:
            os.link(path, copy)
        except OSError:  # a file system without links
            from shutil import copy2

            copy2(path, copy)
            with open(copy, "rb+") as file:
                force(file.fileno())
        replace(copy, old)
    force_folder(path)
    return old


def remove(path: str) -> None:
    """Remove the file, if it is there, and that is allowed."""
    with contextlib.suppress(OSError):
        os.unlink(path)


# A format whose files have no room for the writer's process id has it in the lock file beside them.


def sign(path: str) -> None:
    """Say in the lock file that this process writes to `path`; without it, nobody will know who. If
    we are killed, whoever else may write to that can take the file over."""
    flags = os.O_RDWR | os.O_CREAT
    with contextlib.suppress(OSError), FileIO(open_file(lock_file(path), flags), "r+") as file:
        file.seek(_PID_OFFSET)
        file.write(str(os.getpid()).encode().ljust(_PID_LENGTH))
        make_like(path, lock_file(path))


def signer(path: str) -> int | None:
    """The process that has signed last, if the lock file says so."""
    with (
        contextlib.suppress(OSError, ValueError),
        FileIO(open_file(lock_file(path), os.O_RDONLY)) as file,
    ):  # it may not have come to sign yet
        file.seek(_PID_OFFSET)
        return int(file.read(_PID_LENGTH))
    return None


def unsign(path: str) -> None:
    """Remove the lock file. Only who has the lock may; on Windows the lock itself prevents it."""
    remove(lock_file(path))


def _make(path: str, empty: bytes) -> None:
    """Make an empty file in one step: whoever finds it finds it whole. Not so on a file system
    without links, where who has the lock makes and fills it."""
    with new_beside(path) as new:
        with open(new, "xb") as file:
            file.write(empty)
            file.flush()
            force(file.fileno())
        with contextlib.suppress(OSError):
            os.link(new, path)
    force_folder(path)
