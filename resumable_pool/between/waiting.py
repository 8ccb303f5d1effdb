"""A loop's one wait, and pipes that are written in it without waiting for anybody.

A writer keeps what does not fit into its pipe, and the wait of its loop writes it when there is
room; the reader at the other end (`FrameReader`) keeps an incomplete message until the rest
arrives. So a process that is stopped, slow or busy makes no other one wait.

The list of what to wait for is kept, too: `multiprocessing.connection.wait` makes a new one each
time, which takes ten times as long as the waiting itself.

Knows nothing of what is said.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Iterable
from typing import Any

from .clock import NEVER
from .forks import close
from .pipes import POLLIN, POLLOUT, End, Outlet, Poll, number_of

# macOS may lose an end that is closed here before it has been received there: so who hands one over
# closes it when it is known to be there.
_KEPT = sys.platform == "darwin"

# Systems can wait for 2**31 milliseconds; whoever waits for longer has a look in between.
_MOST_SECONDS = 2e6


class Waiter:
    """What one loop waits for: what it reads, and what it writes as long as that is full."""

    def __init__(self) -> None:
        self._poll = Poll()
        self._things: dict[int, Any] = {}  # ends, handles and writers

    def add(self, end: Any) -> None:
        """Wait for this end or handle, too."""
        self._things[number_of(end)] = end
        self._poll.register(end, POLLIN)

    def remove(self, end: Any) -> None:
        """Not any more; to be said before it is closed."""
        self._poll.unregister(number_of(end))
        del self._things[number_of(end)]

    def add_full(self, number: int, writer: PipeWriter) -> None:
        """Let this one go on when that says that it can; `remove(number)` ends that."""
        self._things[number] = writer
        self._poll.register(number, POLLOUT)

    def wait(self, seconds: float, also: Iterable[Any] = ()) -> list[Any]:
        """Those of what was added, and `also` of these ends, sentinels and handles, that something
        has come from, or that have been closed at the other end; nothing after so many seconds,
        or some days."""
        others = [end for end in also if number_of(end) not in self._things]
        for end in others:
            self.add(end)
        try:
            polled = self._poll.poll(math.ceil(min(seconds, _MOST_SECONDS) * 1000))
            ready = [self._things[number] for number, _ in polled]
        finally:
            for end in others:
                self.remove(end)
        for writer in [thing for thing in ready if isinstance(thing, PipeWriter)]:
            ready.remove(writer)
            writer.go_on()
        return ready


class PipeWriter:
    """An end that a loop writes to, and that never makes it wait.

    Once nobody reads any more, everything written is dropped; a pipe that is read will notice the
    end.
    """

    def __init__(self, end: End, waiter: Waiter) -> None:
        self._end = end
        self._outlet = Outlet(end)
        self._waiter = waiter
        self._unwritten: deque[tuple[memoryview, End | None]] = deque()
        self._closing = self._unheard = False
        self._full: int | None = None  # what tells when there is room

    def write(self, data: bytes, with_end: End | None = None) -> None:
        """Write bytes, and hand over an end with the first of them. It is closed here once it is
        sent, since a program may have few descriptors; but for one that is `_KEPT`, or cannot be
        sent any more."""
        self._unwritten.append((memoryview(data), with_end))
        self.go_on()

    def finish(self) -> None:
        """Close it as soon as all is written."""
        self._closing = True
        self.go_on()

    def close(self) -> None:
        """Close it, whatever is still to be written. Closing it again is no error."""
        self._closing = True
        self._unwritten.clear()
        self._stop_waiting()
        self._outlet.cancel()
        close(self._end)

    def has_unread(self, length: int) -> bool:
        """Whether the last message, of this length, was not read, as far as one can tell: who reads
        was gone, or it is still in the pipe, which keeps it until both ends are closed."""
        if self._unheard or self._end.closed:
            return self._unheard
        return bool(self._unwritten) or self._outlet.unread() >= length

    def drain(self) -> None:
        """Wait until all is written, or nobody reads it any more."""
        self._stop_waiting()
        self._waiter = Waiter()  # for nothing else
        self.go_on()
        while self._unwritten:
            self._waiter.wait(NEVER)

    def go_on(self) -> None:
        """Write what there is room for."""
        self._stop_waiting()
        try:
            while self._unwritten and not self._end.closed:
                data, with_end = self._unwritten[0]
                written = self._outlet.write(data, with_end)
                if with_end is not None and not _KEPT:
                    close(with_end)
                if written < len(data):
                    self._unwritten[0] = data[written:], None
                else:
                    self._unwritten.popleft()
        except BlockingIOError:
            self._full = self._outlet.number
            self._waiter.add_full(self._full, self)
            return
        except OSError:  # nobody reads it
            self._unheard = self._closing = True
        if self._closing:
            self.close()

    def _stop_waiting(self) -> None:
        if self._full is not None:
            self._waiter.remove(self._full)
            self._full = None
