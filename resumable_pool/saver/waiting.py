"""Waiting for the same pipes again and again.

`multiprocessing.connection.wait` makes a list for the system of what to wait for each time, which
takes ten times as long as the waiting itself. On POSIX a list is kept here. Knows nothing of what
comes through the pipes.
"""

from __future__ import annotations

import math
import select
import sys
from multiprocessing.connection import Connection

from ..between import pipes


class Waiter:
    """Pipes to wait for."""

    def __init__(self) -> None:
        self._ends: dict[int, Connection] = {}
        if sys.platform != "win32":
            self._poll = select.poll()

    def add(self, end: Connection) -> None:
        """Wait for this one, too."""
        self._ends[end.fileno()] = end
        if sys.platform != "win32":
            self._poll.register(end.fileno(), select.POLLIN)

    def remove(self, end: Connection) -> None:
        """Not any more; to be said before it is closed."""
        del self._ends[end.fileno()]
        if sys.platform != "win32":
            self._poll.unregister(end.fileno())

    def wait(self, seconds: float | None) -> list[Connection]:
        """Those that something has come from, or that have been closed at the other end; nothing
        after so many seconds (`None`: however long it takes)."""
        if sys.platform == "win32":
            ready = pipes.wait(self._ends.values(), seconds)
            return [end for end in self._ends.values() if end in ready]
        milliseconds = None if seconds is None else math.ceil(seconds * 1000)
        return [self._ends[fd] for fd, _ in self._poll.poll(milliseconds)]
