"""A loop's one wait, and the pipes that are written and read in it without waiting for anybody.

    PipeWriter ──▶ PipeReader   whole messages, and ends of pipes that are handed over with them

A writer keeps what does not fit into its pipe, and the wait of its loop writes it when there is
room. A reader keeps an incomplete message until the rest arrives. So a process that is stopped,
slow or busy makes no other one wait. In the pipe, messages look as `Connection.send_bytes` makes
them, so a process that may wait can read them with `recv_bytes`.

On POSIX a list of what to wait for is kept, too: `multiprocessing.connection.wait` makes a new one
each time, which takes ten times as long as the waiting itself. On Windows the system takes one
message at a time, in its own time, and an event tells when it has.

Knows nothing of what is said.
"""

from __future__ import annotations

import array
import contextlib
import errno
import math
import multiprocessing.connection
import os
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

from . import pipes

if sys.platform == "win32":
    import _winapi
else:
    import fcntl
    import termios

# The length in front of a message, as multiprocessing has it; a long one has a mark in front of it.
_LENGTH, _LONG_LENGTH, _LONG = struct.Struct("!i"), struct.Struct("!iQ"), -1
_MOST_LENGTH = 0x7FFFFFFF

# So much is read at a time, and so many ends may come with it.
_READ_BYTES, _READ_ENDS = 1 << 16, 16

# The system has no room just now, for this or because it has too much in hand.
_FULL = {errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, getattr(errno, "ETOOMANYREFS", errno.EAGAIN)}

# The system call that waits on Windows takes so many.
_MOST_HANDLES = 63

# macOS may lose an end that is closed here before it has been received there.
_ACKNOWLEDGED = sys.platform == "darwin"


class Waiter:
    """What one loop waits for: what it reads, and what it writes as long as that is full."""

    def __init__(self) -> None:
        self._ends: dict[int, Any] = {}
        self._full: dict[int, PipeWriter] = {}
        if sys.platform != "win32":
            self._poll = select.poll()

    def add(self, end: Any) -> None:
        """Wait for this end or handle, too."""
        self._ends[_number_of(end)] = end
        if sys.platform != "win32":
            self._poll.register(end, select.POLLIN)

    def remove(self, end: Connection) -> None:
        """Not any more; to be said before it is closed."""
        del self._ends[end.fileno()]
        if sys.platform != "win32":
            self._poll.unregister(end.fileno())

    def add_full(self, number: int, writer: PipeWriter) -> None:
        """Let this one, which has that number, go on when it can."""
        self._full[number] = writer
        if sys.platform != "win32":
            self._poll.register(number, writer.waits_for)

    def remove_full(self, number: int) -> None:
        """It has nothing left to write."""
        if self._full.pop(number, None) is not None and sys.platform != "win32":
            self._poll.unregister(number)

    @property
    def is_full(self) -> bool:
        """Whether anything is still to be written."""
        return bool(self._full)

    def wait(self, seconds: float | None, also: Iterable[Any] = ()) -> list[Any]:
        """Those of what was added, and `also` of these ends, sentinels and handles, that something
        has come from, or that have been closed at the other end; nothing after so many seconds
        (`None`: however long it takes)."""
        if sys.platform == "win32":
            ends = [*self._ends.values(), *also]
            writers = list(self._full.values())
            events = [writer.event for writer in writers][: _MOST_HANDLES - len(ends)]
            ready = pipes.wait([*ends, *events], seconds)
            for writer in writers:
                writer.go_on()
            return [end for end in ends if end in ready]
        numbered = {_number_of(end): end for end in also}
        others = {number: end for number, end in numbered.items() if number not in self._ends}
        for number in others:
            self._poll.register(number, select.POLLIN)
        try:
            polled = self._poll.poll(None if seconds is None else math.ceil(seconds * 1000))
        finally:
            for number in others:
                self._poll.unregister(number)
        ready = []
        for number, _ in polled:
            if (writer := self._full.get(number)) is not None:
                writer.go_on()
            else:
                ready.append(others[number] if number in others else self._ends[number])
        return ready


def _number_of(end: Any) -> int:
    number: int = end if isinstance(end, int) else end.fileno()
    return number


class PipeWriter:
    """An end that a loop writes to, and that never makes it wait.

    Once nobody reads any more, everything written is dropped; a pipe that is read will notice the
    end.
    """

    def __init__(self, end: Connection, waiter: Waiter) -> None:
        self._end = end
        self._waiter = waiter
        self._unwritten: deque[tuple[memoryview, Connection | None]] = deque()
        self._closing = self._unheard = False
        pipes.never_wait(end)
        if sys.platform == "win32":
            self._writing: _winapi.Overlapped | None = None
        else:
            self._unacknowledged: Connection | None = None

    def send(self, message: bytes, handed_over: Connection | None = None) -> None:
        """Write a message. An end that is handed over with it is closed here once it is sent. (On
        Windows that is in the message, and only closed here: see `to_hand_over`.)"""
        if sys.platform == "win32":
            if handed_over is not None:
                pipes.close(handed_over)
            self.write(message)
            return
        long = len(message) > _MOST_LENGTH
        header = _LONG_LENGTH.pack(_LONG, len(message)) if long else _LENGTH.pack(len(message))
        self.write(header + message, handed_over)

    def write(self, data: bytes, handed_over: Connection | None = None) -> None:
        """Write bytes as they are. (On Windows they come as one message.)"""
        self._unwritten.append((memoryview(data), handed_over))
        self.go_on()

    def finish(self) -> None:
        """Close it as soon as all is written."""
        self._closing = True
        self.go_on()

    def close(self) -> None:
        """Close it, whatever is still to be written. Closing it again is no error."""
        for _, handed_over in self._unwritten:
            if handed_over is not None:
                pipes.close(handed_over)
        self._unwritten.clear()
        if self._end.closed:
            return
        self._waiter.remove_full(self._end.fileno())
        if sys.platform == "win32":
            if self._writing is not None:
                self._writing.cancel()
                with contextlib.suppress(OSError):  # the system still had what is written
                    self._writing.GetOverlappedResult(True)
                self._writing = None
        elif self._unacknowledged is not None:
            pipes.close(self._unacknowledged)
        pipes.close(self._end)

    def has_unread(self, length: int) -> bool:
        """Whether the last message, of this length, was not read, as far as one can tell: who reads
        was gone, or it is still in the pipe, which keeps it until both ends are closed."""
        if self._unheard or self._end.closed:
            return self._unheard
        if sys.platform != "win32":
            unread = array.array("i", [0])
            fcntl.ioctl(self._end.fileno(), termios.FIONREAD, unread)
            return bool(self._unwritten) or unread[0] >= length
        return False

    def drain(self) -> None:
        """Wait until all is written, or nobody reads it any more."""
        if not self._end.closed:
            self._waiter.remove_full(self._end.fileno())
            self._waiter = Waiter()  # for nothing else
            self.go_on()
        while self._waiter.is_full:
            self._waiter.wait(None)

    def go_on(self) -> None:
        """Write what there is room for."""
        if self._end.closed:
            self.close()
            return
        number = self._end.fileno()
        try:
            full = not self._write_all()
        except OSError:  # nobody reads it
            self._unheard = True
            self.close()
            return
        self._waiter.remove_full(number)
        if full:
            self._waiter.add_full(number, self)
        elif self._closing:
            self.close()

    if sys.platform == "win32":

        @property
        def event(self) -> int:
            """What the system tells by that it has taken the last message."""
            assert self._writing is not None
            return self._writing.event

        def _write_all(self) -> bool:
            """Returns whether all is written."""
            while True:
                if self._writing is not None:
                    if not pipes.wait([self.event], 0):
                        return False
                    writing, self._writing = self._writing, None
                    writing.GetOverlappedResult(True)
                if not self._unwritten:
                    return True
                data, _ = self._unwritten.popleft()
                self._writing, _ = _winapi.WriteFile(self._end.fileno(), data, overlapped=True)

    else:

        @property
        def waits_for(self) -> int:
            """What for, if it cannot go on."""
            return select.POLLOUT if self._unacknowledged is None else select.POLLIN

        def _write_all(self) -> bool:
            """Returns whether all is written."""
            try:
                while self._unwritten or self._unacknowledged is not None:
                    self._write()
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                return False
            return True

        def _write(self) -> None:
            """One step further."""
            if self._unacknowledged is not None:
                if not os.read(self._end.fileno(), 1):
                    raise BrokenPipeError
                pipes.close(self._unacknowledged)
                self._unacknowledged = None
                return
            data, handed_over = self._unwritten[0]
            if handed_over is None:
                written = os.write(self._end.fileno(), data)
            else:  # it goes with the first byte
                numbers = array.array("i", [handed_over.fileno()])
                with _as_socket(self._end) as end:
                    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, numbers)
                    written = end.sendmsg([data], [rights])
                if _ACKNOWLEDGED:
                    self._unacknowledged = handed_over
                else:
                    pipes.close(handed_over)
            if written < len(data):
                self._unwritten[0] = data[written:], None
            else:
                self._unwritten.popleft()


class PipeReader:
    """An end that a loop reads: whole messages out of what has come, never waiting for more.

    Attributes:
        end: the pipe.
        at_end: whether no more can come.
    """

    def __init__(self, end: Connection, with_ends: bool = False) -> None:
        """`with_ends`: whether ends of pipes are handed over through it."""
        self.end = end
        self.at_end = False
        self._with_ends = with_ends
        self._unread = bytearray()
        self._handed_over: deque[int] = deque()
        pipes.never_wait(end)

    def messages(self) -> list[bytes]:
        """All that have come."""
        received: list[bytes] = []
        try:
            while not self.at_end and self._receive(received):
                pass
        except BlockingIOError:
            pass
        except (EOFError, OSError):
            self.at_end = True
        return received

    def take_end(self, sent: object) -> Connection:
        """The next end that was handed over, entered: `sent` is what `to_hand_over` made of it.

        Raises:
            OSError: it could not be received.
        """
        if sys.platform == "win32":
            assert isinstance(sent, reduction.DupHandle)
            end: Any = multiprocessing.connection.PipeConnection(sent.detach(), writable=False)
            return pipes.enter(end)
        if not self._handed_over:
            raise OSError(errno.EMFILE, "too many open files (ulimit -n)")
        return pipes.enter(Connection(self._handed_over.popleft(), writable=False))

    if sys.platform == "win32":

        def _receive(self, received: list[bytes]) -> bool:
            """Read once. Returns whether there may be more."""
            if not pipes.poll(self.end):
                return False
            received.append(self.end.recv_bytes())
            return True

    else:

        def _receive(self, received: list[bytes]) -> bool:
            """Read once. Returns whether there may be more."""
            data = self._read() if self._with_ends else os.read(self.end.fileno(), _READ_BYTES)
            self._unread += data
            while (message := self._take_message()) is not None:
                received.append(message)
            if not data:
                raise EOFError
            return True

        def _read(self) -> bytes:
            """Take the ends that come with it, too."""
            numbers = array.array("i")
            with _as_socket(self.end) as end:
                space = socket.CMSG_SPACE(_READ_ENDS * numbers.itemsize)
                data, ancillary, _, _ = end.recvmsg(_READ_BYTES, space)
            for _, _, sent in ancillary:
                numbers.frombytes(sent[: len(sent) - len(sent) % numbers.itemsize])
            for number in numbers:
                os.set_inheritable(number, False)
                self._handed_over.append(number)
                if _ACKNOWLEDGED:
                    os.write(self.end.fileno(), b"!")
            return data

    def _take_message(self) -> bytes | None:
        unread, start = self._unread, _LENGTH.size
        if len(unread) < start:
            return None
        (length,) = _LENGTH.unpack_from(unread)
        if length == _LONG:
            start = _LONG_LENGTH.size
            if len(unread) < start:
                return None
            _, length = _LONG_LENGTH.unpack_from(unread)
        if len(unread) < start + length:
            return None
        message = bytes(unread[start : start + length])
        del unread[: start + length]
        return message


if sys.platform == "win32":

    def to_hand_over(end: Connection, pid: int) -> object:
        """What goes into the message with which the process `pid` is handed over `end`, which is
        for reading: there, and not in the end itself, is what it gets."""
        # Not `reduction.send_handle`, which names DUPLICATE_SAME_ACCESS in the place where the
        # access belongs: what arrives can only be written to (python/cpython#82369).
        return reduction.DupHandle(end.fileno(), _winapi.GENERIC_READ, pid)

else:

    def to_hand_over(end: Connection, pid: int) -> object:
        """What goes into the message with which the process `pid` is handed over `end`: nothing,
        since that goes beside it."""
        return None

    @contextlib.contextmanager
    def _as_socket(end: Connection) -> Iterator[socket.socket]:
        """The same descriptor, as what can send and receive others."""
        result = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, fileno=end.fileno())
        try:
            result.setblocking(False)  # whatever socket.setdefaulttimeout has been told
            yield result
        finally:
            result.detach()
