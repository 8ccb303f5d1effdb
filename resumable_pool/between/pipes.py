"""Pipes, and what each system does about them in its own way: one function, two bodies.

Their ends are entered in forks.py as soon as they are made. Knows nothing of runs, workers or
messages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import reduction
from typing import Any

from ..values import Bytes
from .forks import enter, keep_only, undivided

if sys.platform == "win32":
    import _winapi
    import multiprocessing.connection
else:
    import array
    import fcntl
    import resource
    import select
    import socket
    import termios

# Where a child has its own ends: the last so many numbers that it may use, or that few use.
_HIGH, _HIGHEST = 64, 4096

# What is so long is not copied to be written, or read, together with anything.
LARGE = 1 << 16


def pipe(duplex: bool) -> tuple[End, End]:
    """A new pipe, both ends entered: (reader, writer) unless it is a duplex one."""
    with undivided():
        one, other = _new_pipe(duplex)
        return enter(one), enter(other)


if sys.platform == "win32":
    # At a time, so that the system need not hold the whole of a large value.
    _CHUNK = 1 << 20

    # The system call that waits takes so many.
    _MOST_HANDLES = 63

    POLLIN, POLLOUT = 0, 1

    End = multiprocessing.connection.PipeConnection

    def _new_pipe(duplex: bool) -> tuple[End, End]:
        return multiprocessing.connection.Pipe(duplex)

    def never_wait(end: Any) -> None:
        """Reading takes what is there, and raises `BlockingIOError` if that is nothing."""
        end.never_waits = True

    def read_into(end: Any, view: memoryview, handed_over: deque[int] | None = None) -> int:
        """Read what there is, as far as there is room. Returns how many bytes.

        Pipes carry messages here, of which a reader may take a part; so they are as good as bytes.

        Raises:
            BlockingIOError: there is nothing.
            EOFError: nor will there be.
        """
        try:
            while not (there := int(_winapi.PeekNamedPipe(end.fileno())[0])):
                if hasattr(end, "never_waits"):
                    raise BlockingIOError
                wait([end], None)
            reading, _ = _winapi.ReadFile(end.fileno(), min(len(view), there, _CHUNK), True)
            count: int = reading.GetOverlappedResult(True)[0]
        except BrokenPipeError:
            raise EOFError from None
        view[:count] = reading.getbuffer() or b""
        return count

    def write(number: int, parts: Sequence[Bytes]) -> None:
        """Return once the pipe of this number has all of these; raises `OSError` when nobody reads
        it any more."""
        if len(parts) > 1 and sum(map(len, parts)) < LARGE:
            parts = [b"".join(parts)]
        for part in parts:
            for begin in range(0, len(part), _CHUNK):
                chunk = memoryview(part)[begin : begin + _CHUNK]
                writing, _ = _winapi.WriteFile(number, chunk, overlapped=True)
                writing.GetOverlappedResult(True)

    def enlarge(end: End, size: int) -> None:
        """A pipe holds what is asked of it here."""

    class Outlet:
        """Writes to an end what there is room for: here the system takes one piece at a time, in
        its own time."""

        def __init__(self, end: End) -> None:
            self._end = end
            self._writing: _winapi.Overlapped | None = None

        @property
        def number(self) -> int:
            """What to wait for, by `POLLOUT`, when not all could be written: an event."""
            assert self._writing is not None
            return self._writing.event

        def write(self, data: Bytes, with_end: End | None) -> int:
            """Returns how many bytes were taken. When that raises `BlockingIOError`, the next to
            be written are the same."""
            if self._writing is None:
                self._writing, _ = _winapi.WriteFile(self._end.fileno(), data, overlapped=True)
            if not wait([self._writing.event], 0):
                raise BlockingIOError
            writing, self._writing = self._writing, None
            return writing.GetOverlappedResult(True)[0]

        def unread(self) -> int:
            """How many bytes that were written nobody has read, as far as one can tell."""
            return 0

        def cancel(self) -> None:
            """Let go of what is being written."""
            if self._writing is not None:
                self._writing.cancel()
                with contextlib.suppress(OSError):  # the system still had it
                    self._writing.GetOverlappedResult(True)
                self._writing = None

    class Poll:
        """What `select.poll` is elsewhere."""

        def __init__(self) -> None:
            self._things: dict[int, tuple[int, Any]] = {}

        def register(self, thing: Any, mask: int) -> None:
            """Wait for this end or handle, too."""
            self._things[number_of(thing)] = mask, thing

        def unregister(self, number: int) -> None:
            """Not any more."""
            del self._things[number]

        def poll(self, milliseconds: int) -> list[tuple[int, int]]:
            """The numbers of those that are ready, and what for. What could not all be waited for
            are writers, which take their turns."""
            things = sorted(self._things.values(), key=lambda entry: entry[0])[:_MOST_HANDLES]
            ready = wait([thing for _, thing in things], milliseconds / 1000)
            return [(number_of(thing), mask) for mask, thing in things if thing in ready]

    def to_hand_over(end: End, pid: int) -> object:
        """What goes into the message with which the process `pid` is handed over `end`, which is
        for reading: there, and not in the end itself, is what it gets."""
        # Not `reduction.send_handle`, which names DUPLICATE_SAME_ACCESS in the place where the
        # access belongs: what arrives can only be written to (python/cpython#82369).
        return reduction.DupHandle(end.fileno(), _winapi.GENERIC_READ, pid)

    def take_end(sent: object, handed_over: deque[int] | None) -> End:
        """The next end that was handed over, entered: `sent` is what `to_hand_over` made of it.

        Raises:
            OSError: it could not be received.
        """
        assert isinstance(sent, reduction.DupHandle)
        return enter(End(sent.detach(), writable=False))

    def identities(numbers: Sequence[int]) -> object:
        """What these ends are. Nobody guesses the number of a handle, and closes it by mistake."""
        return None

    def open_folder(folder: str) -> int | str:
        """What `os.chdir` takes."""
        return folder

    def _made_own(end: End) -> End:
        os.set_handle_inheritable(end.fileno(), False)
        return end

    def wait(ends: Iterable[Any], seconds: float | None) -> list[Any]:
        """Those of the `ends`, sentinels and handles that are ready; none after so many seconds, or
        after a signal's handler has returned, which ends the wait of the main thread."""
        try:
            return multiprocessing.connection.wait(ends, seconds)
        except InterruptedError:
            return []

else:
    # The system has no room just now, for this or because it has too much in hand.
    _FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS}

    # macOS refuses a vector of 2 GiB.
    _MOST_BYTES = 1 << 30

    # So much is read at a time where ends may come with it, and so many of them.
    _READ_BYTES, _READ_ENDS = 1 << 16, 16

    # What a pipe holds without being asked.
    _USUAL_SIZE = 1 << 16

    Poll, POLLIN, POLLOUT = select.poll, select.POLLIN, select.POLLOUT

    class End:
        """One end of a pipe: what `multiprocessing.connection.Connection` is, whose module takes as
        long to import as two processes to start.

        Attributes:
            writable: whether it can be written to; if the other end is as well, both can be read.
            closed: whether it is not open any more.
        """

        _close = staticmethod(os.close)  # which may be gone when the interpreter ends

        def __init__(self, number: int, writable: bool) -> None:
            self._number, self.writable, self.closed = number, writable, False

        def __del__(self) -> None:
            self.close()

        def __reduce__(self) -> Any:  # on its way to a new process
            return _arrived, (reduction.DupFd(self.fileno()), self.writable)

        def fileno(self) -> int:
            """Its descriptor; raises `OSError` when it is closed."""
            if self.closed:
                raise OSError(errno.EBADF, "this end of a pipe is closed")
            return self._number

        def close(self) -> None:
            """Closing it again is no error."""
            if not self.closed:
                self.closed = True
                self._close(self._number)

    def _arrived(duplicate: Any, writable: bool) -> End:
        return End(duplicate.detach(), writable)

    def _new_pipe(duplex: bool) -> tuple[End, End]:
        if duplex:
            one, other = socket.socketpair()
            return End(one.detach(), writable=True), End(other.detach(), writable=True)
        reader, writer = os.pipe()
        return End(reader, writable=False), End(writer, writable=True)

    def never_wait(end: End) -> None:
        """Reading and writing takes what is there, and what there is room for."""
        os.set_blocking(end.fileno(), False)

    def read_into(end: End, view: memoryview, handed_over: deque[int] | None = None) -> int:
        """Read what there is, as far as there is room. Returns how many bytes. If ends may have
        been `handed_over` with them, these go there.

        Raises:
            BlockingIOError: there is nothing.
            EOFError: nor will there be.
        """
        if handed_over is None:
            count = os.readv(end.fileno(), [view[:_MOST_BYTES]])
        else:
            with _as_socket(end) as it:
                data, numbers, _, _ = socket.recv_fds(it, min(len(view), _READ_BYTES), _READ_ENDS)
            for number in numbers:
                os.set_inheritable(number, False)
            handed_over.extend(numbers)
            count = len(data)
            view[:count] = data
        if not count:
            raise EOFError
        return count

    def write(number: int, parts: Sequence[Bytes]) -> None:
        """Return once the pipe of this number has all of these; raises `OSError` when nobody reads
        it any more."""
        # A single part would take half as long again as a vector.
        together = len(parts) > 1 and sum(map(len, parts)) <= _MOST_BYTES
        written = os.writev(number, parts) if together else os.write(number, parts[0])
        for part in parts:  # large ones are not taken at once
            while written < len(part):
                written += os.write(number, memoryview(part)[written:])
            written -= len(part)

    def enlarge(end: End, size: int) -> None:
        """Let a pipe hold so much, unless it holds more; Linux alone does that."""
        if size > _USUAL_SIZE and hasattr(fcntl, "F_SETPIPE_SZ"):
            with contextlib.suppress(OSError):  # more than this user may have
                fcntl.fcntl(end.fileno(), fcntl.F_SETPIPE_SZ, size)

    class Outlet:
        """Writes to an end what there is room for.

        Attributes:
            number: what to wait for, by `POLLOUT`, when not all could be written.
        """

        def __init__(self, end: End) -> None:
            never_wait(end)
            self._end = end
            self.number = end.fileno()

        def write(self, data: Bytes, with_end: End | None) -> int:
            """Returns how many bytes were written; `with_end` goes with the first of them. Raises
            `BlockingIOError` if there is no room."""
            try:
                if with_end is None:
                    return os.write(self.number, data)
                with _as_socket(self._end) as it:
                    return socket.send_fds(it, [data], [with_end.fileno()])
            except OSError as error:
                raise BlockingIOError if error.errno in _FULL else error from None

        def unread(self) -> int:
            """How many bytes that were written nobody has read."""
            unread = array.array("i", [0])
            fcntl.ioctl(self.number, termios.FIONREAD, unread)
            return unread[0]

        def cancel(self) -> None:
            """Nothing is being written meanwhile."""

    def to_hand_over(end: End, pid: int) -> object:
        """What goes into the message with which the process `pid` is handed over `end`: nothing,
        since that goes beside it."""
        return None

    def take_end(sent: object, handed_over: deque[int] | None) -> End:
        """The next end that was handed over, entered: `sent` is what `to_hand_over` made of it.

        Raises:
            OSError: it could not be received.
        """
        if not handed_over:
            raise OSError(errno.EMFILE, "too many open files (ulimit -n)")
        return enter(End(handed_over.popleft(), writable=False))

    @contextlib.contextmanager
    def _as_socket(end: End) -> Iterator[socket.socket]:
        """The same descriptor, as what can send and receive others."""
        result = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=end.fileno())
        try:
            result.setblocking(False)  # whatever socket.setdefaulttimeout has been told
            yield result
        finally:
            result.detach()

    def identities(numbers: Sequence[int]) -> object:
        """What these ends and folders are, by their descriptors, which may be other than they were:
        a number is easily closed by mistake, and then given to another. `None` if one is closed."""
        try:
            return [(status.st_dev, status.st_ino) for status in map(os.fstat, numbers)]
        except OSError:
            return None

    def open_folder(folder: str) -> int | str:
        """What `os.chdir` takes: a descriptor, for which that needs a third of the time."""
        try:
            opened = os.open(folder, os.O_RDONLY)
        except OSError:
            return folder
        moved = _to_high_number(opened)
        os.close(opened)
        return moved

    def _made_own(end: End) -> End:
        moved = End(_to_high_number(end.fileno()), end.writable)
        end.close()
        return moved

    def _to_high_number(descriptor: int) -> int:
        """A copy of it that nothing inherits, on a high number if there is one."""
        limit = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _HIGHEST)
        try:
            return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, max(0, limit - _HIGH))
        except OSError:
            return os.dup(descriptor)

    def wait(ends: Iterable[Any], seconds: float | None) -> list[Any]:
        """Those of the `ends`, sentinels and handles that are ready; none after so many seconds."""
        poll, given = Poll(), [*ends]
        for end in given:
            poll.register(end, POLLIN)
        ready = dict(poll.poll(None if seconds is None else 1000 * seconds))
        return [end for end in given if number_of(end) in ready]


def number_of(thing: Any) -> int:
    """Of an end, or of a handle, which is one."""
    number: int = thing if isinstance(thing, int) else thing.fileno()
    return number


def claim(*ends: End) -> list[End]:
    """In a new child: these ends are its own now, and nothing it forks or starts gets them.

    Returns:
        The same ends, on high numbers. What is opened gets the lowest that is free: so if somebody
        closes ours, nothing of his has their numbers.
    """
    claimed = [*map(_made_own, ends)]
    keep_only(*claimed)
    return claimed
