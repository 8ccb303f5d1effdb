"""Workers that end before they have done a file: bad luck, or a reason that stays.

Knows no process; the clock is an argument.
"""

from __future__ import annotations

from ..between.clock import NEVER
from ..errors import WorkerStartError

# A worker that is killed before it has a file may have had bad luck, when memory is short, and a
# server that it loads a model from may be away; so many attempts in a row, if there is nobody else
# who could work, have a reason that will not go away.
START_ATTEMPTS = 3

# Between two attempts, doubled each time. (All that fail in the meantime are one attempt.)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0

_REMEDY = "Fix that and run again; what was saved is kept."


class Starts:
    """The starts of one run that have failed since one has last led to a file that was done.

    Attributes:
        allowed_at: when the next one may be tried.
    """

    def __init__(self) -> None:
        self.allowed_at = 0.0
        self._failed = 0
        self._ever_ready = False

    def note_ready(self) -> None:
        """A worker is ready: that it starts here is possible."""
        self._ever_ready = True

    def note_proven(self) -> None:
        """A worker has done its first file."""
        self.allowed_at, self._failed = 0.0, 0

    def due(self, now: float) -> float:
        """When the next start may be tried, if that is not yet."""
        return self.allowed_at if self.allowed_at > now else NEVER

    def note_failed(self, now: float, by_itself: bool, others: bool) -> bool:
        """A worker could not be started, or ended before it had done a file. Returns whether the
        run has to end.

        Args:
            by_itself: whether it was not killed.
            others: whether somebody is left who could work.
        """
        if now >= self.allowed_at:
            self._failed += 1
            pause = FIRST_PAUSE * 2.0 ** min(self._failed - 1, 16)
            self.allowed_at = now + min(pause, LONGEST_PAUSE)
        if not self._ever_ready:
            return by_itself or self._failed >= START_ATTEMPTS
        return self._failed >= START_ATTEMPTS and not others


def start_error(message: str, traceback: str) -> WorkerStartError:
    """What ends the run when a worker cannot start, for this reason."""
    return WorkerStartError(f"a worker cannot start: {message}", _REMEDY, traceback)
