"""The clock of a run: it stands still while the run's process is stopped in the middle of a wait.

Knows nothing of what is timed by it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
from collections.abc import Iterator

NEVER = float("inf")

# Tests that freeze the time put something else in the place of `time.monotonic`, wherever they find
# it, and a run would wait for ever. (Not by `time.monotonic` on Windows, which is coarse there.)
if sys.platform == "win32":
    monotonic = boottime = functools.partial(time.perf_counter)
else:
    monotonic = functools.partial(time.clock_gettime, time.CLOCK_MONOTONIC)
    # That of Linux stands still while the machine is suspended; those of others, and this, do not.
    _BOOTTIME = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    boottime = functools.partial(time.clock_gettime, _BOOTTIME)

# Who waits for so much longer than he meant to was stopped (Ctrl-Z, SIGSTOP), and perhaps the whole
# machine with him. No file is charged for that. (What passes between two waits is a program's own
# loop, say, and the files go on meanwhile.)
STOPPED_SECONDS = 1.0


class Clock:
    """Seconds since it was made, without waits in which nobody could look at it.

    Attributes:
        now: the time at the last look.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._looked_at = monotonic()

    def look(self) -> float:
        """The time now."""
        looked_at, self._looked_at = self._looked_at, monotonic()
        self.now += self._looked_at - looked_at
        return self.now

    @contextlib.contextmanager
    def waiting(self, seconds: float) -> Iterator[float]:
        """Around a wait of so many seconds at the most."""
        began = self.look()
        yield seconds
        if self.look() > began + seconds + STOPPED_SECONDS:
            self.now = began

    def peek(self) -> float:
        """The time now, for another thread, which must not look."""
        return self.now + monotonic() - self._looked_at
