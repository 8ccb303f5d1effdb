"""A file for one writer at a time: made in one step, opened, and locked.

Knows nothing of formats beyond the bytes of an empty file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable

from ..between import pipes
from ..between.children import script_of
from ..between.system import lives
from ..errors import CheckpointLocked
from ..records import quoted
from .disk import (
    LockableFile,
    force,
    force_folder,
    is_locked,
    lock_file,
    open_file,
    read_at,
    write_at,
)

# Files that a checkpoint may keep beside itself have its name and one of these (of old files there
# may be several, with a number); what is still being written has NEW_FILE and more behind the name
# that it will get.
LOCK_FILE, OLD_FILE, NEW_FILE = ".lock", ".bak", ".new-"

# How often to begin again where somebody has put another file in place, or looked at the lock.
_ATTEMPTS = 100

# The first byte of a lock file is what is locked on Windows, where nobody else can read it then.
_PID_OFFSET, _PID_LENGTH = 1, 20


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
    for _ in range(_ATTEMPTS):
        if not os.path.exists(path):
            _make(path, empty)
        try:
            fd = open_file(path, os.O_RDWR)
        except FileNotFoundError:
            continue  # a lock file that its owner has just removed
        file = pipes.enter(LockableFile(fd, "r+"))
        try:
            locked = _lock(file, path, notes)
            if not locked and is_locked(path):  # and nobody was only looking whether it is
                pid = holder(file.fileno())
                raise CheckpointLocked(path.removesuffix(LOCK_FILE), pid, script_of(pid))
            if locked and is_at(os.fstat(file.fileno()), path):
                if os.fstat(file.fileno()).st_size == 0:
                    write_at(file.fileno(), empty, 0)
                    force(file.fileno())
                return file
        except BaseException:
            pipes.close(file)
            raise
        pipes.close(file)  # somebody put another file in its place between open and lock
    raise CheckpointLocked(path.removesuffix(LOCK_FILE), None, None)


def _lock(file: LockableFile, path: str, notes: list[str]) -> bool:
    try:
        return file.lock(path)
    except OSError as error:
        notes.append(
            f"{quoted(path)} could not be locked ({error.strerror}), so a second run that writes "
            "to it would not be noticed: make sure only one run uses it"
        )
        return True


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


def remove_leftovers(path: str) -> None:
    """Remove what was to take the place of `path`, and whoever wrote it was killed: it has nothing
    that is not in the file itself. Only who has the lock may."""
    folder, name = os.path.split(path)
    side = r"\.lock|-wal|-shm|-journal"
    new = rf"(?:{re.escape(NEW_FILE)}([0-9]+)-[0-9a-f]{{8}}(?:{side})?)+"
    pattern = re.compile(rf"{re.escape(name)}(?:{re.escape(LOCK_FILE)})?{new}")
    with contextlib.suppress(OSError):
        for other in os.listdir(folder):
            match = pattern.fullmatch(other)
            if match is not None and not lives(int(match[1])):
                os.unlink(os.path.join(folder, other))


# A format whose files have no room for the writer's process id has it in the lock file beside them.


def sign(path: str) -> None:
    """Say in the lock file that this process writes to `path`. Without it, nobody will know who."""
    with contextlib.suppress(OSError):
        fd = open_file(lock_file(path), os.O_RDWR | os.O_CREAT)
        try:
            write_at(fd, str(os.getpid()).encode().ljust(_PID_LENGTH), _PID_OFFSET)
        finally:
            os.close(fd)


def signer(path: str) -> int | None:
    """The process that has signed last, if the lock file says so."""
    try:
        fd = open_file(lock_file(path), os.O_RDONLY)
    except OSError:
        return None
    try:
        return int(read_at(fd, _PID_LENGTH, _PID_OFFSET))
    except (OSError, ValueError):  # it has not come to sign yet
        return None
    finally:
        os.close(fd)


def unsign(path: str) -> None:
    """Remove the lock file. Only who has the lock may; on Windows the lock itself prevents it."""
    with contextlib.suppress(OSError):
        os.unlink(lock_file(path))


def _make(path: str, empty: bytes) -> None:
    """Make an empty file in one step: whoever finds it finds it whole."""
    new = new_name(path)
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
