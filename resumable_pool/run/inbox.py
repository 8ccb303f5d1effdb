"""What other threads and signal handlers have for a loop that waits for pipes.

Knows nothing of what that is.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from typing import Generic, TypeVar

from ..between import pipes

Item = TypeVar("Item")


class Inbox(Generic[Item]):
    """Items in the order in which they came, and a pipe that wakes who waits for them.

    Attributes:
        wakener: ready for `multiprocessing.connection.wait` when there is something.
    """

    def __init__(self, context: BaseContext) -> None:
        self._items: deque[Item] = deque()
        self.wakener, self._writer = pipes.pipe(context, duplex=False)
        if sys.platform != "win32":
            os.set_blocking(self._writer.fileno(), False)  # full is as good as written
        # Or the pipe could be closed, and its number be another's, in the middle of `put`.
        self._guard = threading.RLock()

    def put(self, item: Item) -> None:
        """From any thread and any signal handler; after `close` it wakes nobody."""
        self._items.append(item)
        with self._guard, contextlib.suppress(OSError):  # full, or closed
            self._writer.send_bytes(b"!")

    def take(self) -> Iterator[Item]:
        """All that is there; `wakener` is ready again only after the next. Nothing is held here
        afterwards."""
        while self.wakener.poll():
            self.wakener.recv_bytes()
        while self._items:
            yield self._items.popleft()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._guard:
            pipes.close(self.wakener, self._writer)
