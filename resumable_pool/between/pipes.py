"""What a forked child must not get: this process's open pipe ends, and anything that is half done.

A pipe's reader learns that the writer has died only once *every* copy of its write end is closed,
and fork copies all of them into every child. So each end is entered here when it is made, in one
registry for the whole process, and a hook that runs in every forked child closes all ends but those
that the child was started for. A list of ends per run is not enough: two runs in two threads, or a
fork by the user's code, defeat it (the cure is that of python/cpython#146313). Where there is no
fork (Windows) there is no hook, and no need.

Knows nothing of runs, workers or messages.
"""

from __future__ import annotations

import contextlib
import multiprocessing.connection
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, Protocol, TypeVar

from ..values import Bytes
from . import system

if sys.platform != "win32":
    import fcntl
    import resource

# Where a child has its own ends: the last so many numbers that it may use, or that few use.
_HIGH, _HIGHEST = 64, 4096


class Closable(Protocol):
    """A pipe end or an open file."""

    def close(self) -> None:
        """Give up the descriptor."""


End = TypeVar("End", bound=Closable)

_ends: set[Closable] = set()
_kept = threading.local()
# Held from the making of a pipe until its ends are entered, and while forking: otherwise a fork in
# another thread could slip in between and copy an end that nobody knows yet. Within one process.
_guard = threading.RLock()


@contextlib.contextmanager
def undivided() -> Iterator[None]:
    """No other thread is in here meanwhile, and none forks: what is half done would stay so in the
    child."""
    with _guard:
        yield


def pipe(context: BaseContext, duplex: bool) -> tuple[Connection, Connection]:
    """`context.Pipe(duplex)`, both ends entered: (reader, writer) unless it is a duplex one."""
    with _guard:
        made: Any = context.Pipe(duplex)  # PipeConnections on Windows
        _ends.update(made)
    ends: tuple[Connection, Connection] = made
    return ends


def enter(end: End) -> End:
    """Close `end` in every child that is forked from now on. Returns it."""
    with _guard:
        _ends.add(end)
    return end


def close(*ends: Closable) -> None:
    """Close `ends` and forget them. One that is closed already is no error."""
    with _guard:
        for end in ends:
            _ends.discard(end)
            with contextlib.suppress(OSError):
                end.close()


if sys.platform == "win32":
    import _winapi

    # At a time, so that the system need not hold the whole of a large value.
    _CHUNK = 1 << 20

    def never_wait(*ends: Connection) -> None:
        """Reading and writing takes what is there, and what there is room for: see `read_into`, and
        waiting.py; here nothing needs to be said."""

    def read_into(end: Connection, view: memoryview) -> int:
        """Read what there is, as far as there is room. Returns how many bytes.

        Pipes carry messages here, of which a reader may take a part; so they are as good as bytes.

        Raises:
            BlockingIOError: there is nothing.
            EOFError: nor will there be.
        """
        try:
            there: Any = _winapi.PeekNamedPipe(end.fileno())[0]
            if not there:
                raise BlockingIOError
            reading, _ = _winapi.ReadFile(end.fileno(), min(len(view), there, _CHUNK), True)
            count: int = reading.GetOverlappedResult(True)[0]
        except BrokenPipeError:
            raise EOFError from None
        view[:count] = reading.getbuffer() or b""
        return count

    def write(end: Connection, data: Bytes) -> None:
        """Return once the pipe has all of it; raises `OSError` when nobody reads it any more."""
        view = memoryview(data)
        for begin in range(0, len(view), _CHUNK):
            end.send_bytes(view[begin : begin + _CHUNK])

    def identity(number: int) -> object:
        """What this end is. Nobody guesses the number of a handle, and closes it by mistake."""
        return None

    def open_folder(folder: str) -> int | str:
        """What `os.chdir` takes."""
        return folder

    class Bell:
        """What wakes who waits for it. An event here: a pipe might be full, and be written to in
        the middle of being written to, by a signal's handler.

        Attributes:
            handle: ready for `wait` when it has been rung.
        """

        def __init__(self, context: BaseContext) -> None:
            self._event = system.new_event()
            self.handle: Any = self._event

        def ring(self) -> None:
            """From any thread and any signal handler."""
            system.set_event(self._event)

        def hush(self) -> None:
            """It has been heard."""
            system.reset_event(self._event)

        def close(self) -> None:
            """Nobody waits any more, and nobody rings."""
            _winapi.CloseHandle(self._event)

    def poll(end: Connection) -> bool:
        """Whether `end` can be read without waiting: there is a message, or no more can come."""
        try:
            return end.poll()
        except BrokenPipeError:  # as poll() of POSIX says it by True
            return True

    def wait(ends: Iterable[Any], seconds: float | None) -> list[Any]:
        """Those of the `ends`, sentinels and handles that are ready; none after so many seconds,
        or after a signal's handler has returned, which ends the wait of the main thread."""
        try:
            return multiprocessing.connection.wait(ends, seconds)
        except InterruptedError:
            return []

else:
    # At a time, of what is only to be forgotten.
    _READ_SIZE = 1 << 12

    def never_wait(*ends: Connection) -> None:
        """Reading and writing takes what is there, and what there is room for."""
        for end in ends:
            os.set_blocking(end.fileno(), False)

    def read_into(end: Connection, view: memoryview) -> int:
        """Read what there is, as far as there is room. Returns how many bytes.

        Raises:
            BlockingIOError: there is nothing.
            EOFError: nor will there be.
        """
        count = os.readv(end.fileno(), [view])
        if not count:
            raise EOFError
        return count

    def write(end: Connection, data: Bytes) -> None:
        """Return once the pipe has all of it; raises `OSError` when nobody reads it any more."""
        fd = end.fileno()
        written = os.write(fd, data)
        while written < len(data):
            written += os.write(fd, memoryview(data)[written:])

    def identity(number: int) -> object:
        """What this end or folder is, by its descriptor, which may be other than it was: a number
        is easily closed by mistake, and then given to another. `None` if it is closed."""
        try:
            status = os.fstat(number)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def open_folder(folder: str) -> int | str:
        """What `os.chdir` takes: a descriptor, for which that needs a third of the time."""
        try:
            opened = os.open(folder, os.O_RDONLY)
        except OSError:
            return folder
        moved = _to_high_number(opened)
        os.close(opened)
        return moved

    class Bell:
        """What wakes who waits for it.

        Attributes:
            handle: ready for `wait` when it has been rung.
        """

        def __init__(self, context: BaseContext) -> None:
            self.handle, self._writer = pipe(context, duplex=False)
            never_wait(self.handle, self._writer)

        def ring(self) -> None:
            """From any thread and any signal handler."""
            with contextlib.suppress(BlockingIOError):  # full is as good as written
                os.write(self._writer.fileno(), b"!")

        def hush(self) -> None:
            """It has been heard."""
            with contextlib.suppress(BlockingIOError):
                while len(os.read(self.handle.fileno(), _READ_SIZE)) == _READ_SIZE:
                    pass

        def close(self) -> None:
            """Nobody waits any more, and nobody rings."""
            close(self.handle, self._writer)

    def poll(end: Connection) -> bool:
        """Whether `end` can be read without waiting: there is a message, or no more can come."""
        return end.poll()

    def wait(ends: Iterable[Any], seconds: float | None) -> list[Any]:
        """Those of the `ends`, sentinels and handles that are ready; none after so many seconds."""
        return multiprocessing.connection.wait(ends, seconds)


@contextlib.contextmanager
def handing_over(*ends: Closable) -> Iterator[None]:
    """A child that this thread forks meanwhile keeps `ends`."""
    _kept.ends = ends
    try:
        yield
    finally:
        _kept.ends = ()


def claim(*ends: Connection) -> list[Connection]:
    """In a new child: these ends are its own now, and nothing it forks or starts gets them.

    Returns:
        The same ends, on high numbers. What is opened gets the lowest that is free: so if somebody
        closes ours, nothing of his has their numbers.
    """
    claimed = [*map(_made_own, ends)]
    with _guard:
        _ends.clear()
        _ends.update(claimed)
    return claimed


if sys.platform == "win32":

    def _made_own(end: Connection) -> Connection:
        os.set_handle_inheritable(end.fileno(), False)
        return end

else:

    def _made_own(end: Connection) -> Connection:
        moved = Connection(_to_high_number(end.fileno()), end.readable, end.writable)
        end.close()
        return moved

    def _to_high_number(descriptor: int) -> int:
        """A copy of it that nothing inherits, on a high number if there is one."""
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _HIGHEST)
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(0, limit - _HIGH))
        except OSError:
            return os.dup(descriptor)


class Owned(contextlib.ExitStack):
    """What is to be undone, or ended, by the process that entered it, and by no other.

    A program may fork during a run, in the body of a loop over it for instance, and the copy leaves
    the same blocks: by `sys.exit`, an exception, or garbage collection. In the copy nothing is
    done, since the pipes, the workers and the terminal belong to the original.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()

    def __exit__(self, *error: Any) -> bool:
        if os.getpid() != self.pid:
            self.pop_all()
        return bool(super().__exit__(*error))

    def check_process(self) -> None:
        """Raise `RuntimeError` in a copy."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"this run belongs to process {self.pid}; process {os.getpid()} is a copy of it, "
                "and can neither continue the run, nor stop it, nor report on it"
            )


def _before_fork() -> None:
    _guard.acquire()


def _after_fork_in_parent() -> None:
    _guard.release()


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    kept = getattr(_kept, "ends", ())
    for end in _ends.difference(kept):
        with contextlib.suppress(OSError):
            end.close()
    _ends.intersection_update(kept)
    _kept.ends = ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )
