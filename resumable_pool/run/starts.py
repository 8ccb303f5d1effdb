"""Workers that end before they have a file: bad luck, or a reason that will not go away.

Knows no process: what it is told of a worker is what the runner knows of it.
"""

from __future__ import annotations

from ..errors import WorkerStartError
from .crew import State, Worker

# A worker that is killed before it has a file may have had bad luck, when memory is short; so many
# in a row, with no file done in between, have a reason that will not go away.
START_ATTEMPTS = 3

_REMEDY = "Put that right and run again; what was saved is kept."


class Starts:
    """The starts of one run that have failed since a file was last done."""

    def __init__(self) -> None:
        self._failed = 0

    def note_file(self) -> None:
        """A file has been done."""
        self._failed = 0

    def note_failed(self, worker: Worker, how: str, last_words: str) -> WorkerStartError | None:
        """This worker has ended, as `how` says, before it had a file. Returns why the run has to
        end, if it has to."""
        self._failed += 1
        by_itself = worker.state is State.STARTING and not worker.was_killed
        if by_itself or self._failed >= START_ATTEMPTS:
            return start_error(f"before its first file, a worker {how}", last_words)
        return None


def start_error(message: str, traceback: str) -> WorkerStartError:
    """What ends the run when a worker cannot start, for this reason."""
    return WorkerStartError(f"a worker cannot start: {message}", _REMEDY, traceback)
