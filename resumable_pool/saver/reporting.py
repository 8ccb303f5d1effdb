"""What the saver reports to the runner, and when.

Each report wakes the runner, and takes a worker's processor for a moment. So values that arrive in
the middle of a batch are only counted, and reported together. Everything else is reported at once,
since somebody waits for it.

A report never waits for the runner, which may be stopped, or busy in the program's own loop. The
files in progress bound how much there is. Knows nothing of the checkpoint.
"""

from __future__ import annotations

import pickle

from ..between.clock import NEVER
from ..between.messages import FromSaver, Received, Saved
from ..between.waiting import PipeWriter

# Values in the middle of a batch are told at the latest after so long: the next file of the batch
# may take its time.
REPORT_SECONDS = 0.05


class Reports:
    """What has not been told yet. Lives in the saver process.

    Attributes:
        due: when it is to be told.
    """

    def __init__(self, pipe: PipeWriter) -> None:
        self.due = NEVER
        self._pipe = pipe
        self._messages: list[FromSaver] = []
        self._worker, self._number = -1, 0  # the last values in a row, and whose they are
        self._saved = 0

    def add(self, message: FromSaver) -> None:
        """To be told at once, after all that came before."""
        self._end_row()
        self._messages.append(message)
        self.due = 0.0

    def add_values(self, worker: int, number: int, now: float) -> None:
        """So many more values of this worker have come."""
        if worker != self._worker:
            self._end_row()
            self._worker = worker
        self._number += number
        if self.due == NEVER:
            self.due = now + REPORT_SECONDS

    def add_saved(self, number: int, now: float) -> None:
        """So many more of those that have come are saved."""
        self._saved += number
        if number and self.due == NEVER:
            self.due = now + REPORT_SECONDS

    def send_if_due(self, now: float) -> None:
        """Tell the runner, if there still is one; saving goes on without."""
        if now < self.due:
            return
        self._end_row()
        if self._saved:
            self._messages.append(Saved(self._saved))
        if self._messages:
            self._pipe.send(pickle.dumps(self._messages))
        self._messages, self._saved, self.due = [], 0, NEVER

    def end(self) -> None:
        """Tell the runner the rest, and wait until it has heard it, or is no more."""
        self.send_if_due(NEVER)
        self._pipe.drain()

    def _end_row(self) -> None:
        if self._number:
            self._messages.append(Received(self._worker, self._number))
        self._worker, self._number = -1, 0
