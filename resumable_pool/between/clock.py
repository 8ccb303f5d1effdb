"""The clock of a run: it stands still while the run's process does.

Knows nothing of what is timed by it.
"""

from __future__ import annotations

import time

NEVER = float("inf")

# Who means to look at the clock every second, and then does not for so long, was stopped (Ctrl-Z,
# SIGSTOP), and perhaps the whole machine with him. No file is charged for that.
STOPPED_SECONDS = 1.5


class Clock:
    """Seconds since it was made, without those in which nobody could look at it.

    Attributes:
        now: the time at the last look.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._looked_at = time.monotonic()

    def look(self) -> float:
        """The time now."""
        looked_at, self._looked_at = self._looked_at, time.monotonic()
        passed = self._looked_at - looked_at
        if passed < STOPPED_SECONDS:
            self.now += passed
        return self.now

    def peek(self) -> float:
        """The time now, for another thread, which must not look."""
        return self.now + time.monotonic() - self._looked_at
