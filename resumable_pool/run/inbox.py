"""What other threads and signal handlers have for a loop that waits for pipes.

Knows nothing of what that is.
"""

from __future__ import annotations

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
        self._bell: pipes.Bell | None = pipes.Bell(context)
        self.wakener = self._bell.handle
        # Or the bell could be closed, and its number be another's, in the middle of `put`.
        self._guard = threading.RLock()

    def put(self, item: Item) -> None:
        """From any thread and any signal handler; after `close` it wakes nobody."""
        self._items.append(item)
        with self._guard:
            if self._bell is not None:
                self._bell.ring()

    def take(self) -> Iterator[Item]:
        """All that is there; `wakener` is ready again only after the next. Nothing is held here
        afterwards."""
        if self._bell is not None:
            self._bell.hush()
        while self._items:
            yield self._items.popleft()

    def close(self) -> None:
        """Nobody waits any more."""
        with self._guard:
            bell, self._bell = self._bell, None
            if bell is not None:
                bell.close()
