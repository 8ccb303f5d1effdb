"""The runner's handle on the saver process: started, told what to do, and read.

Knows nothing of what becomes of a file; what runs in the process is in saver/process.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from itertools import chain
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from ..between import children, pipes, system
from ..between.frames import FrameReader
from ..between.messages import Report, ToSaver, Watch
from ..between.waiting import Waiter
from ..errors import ResumablePoolError, SaverError, WorkerStartError
from ..saver.process import run_saver
from ..saver.saving import Saving

# How often to ask whether it lives: something may keep its end quiet.
ASK_SECONDS = 1.0


class Saver:
    """The runner's handle on the saver process. Lives in the runner's process.

    Attributes:
        process: the process.
        gone: whether it has ended, and every report of it was read.
    """

    def __init__(self, context: BaseContext, saving: Saving, waiter: Waiter) -> None:
        """`waiter` waits for its reports, and sends what it could not be told at once."""
        self.gone = False
        self._handed_over: dict[int, Connection] = {}  # the ends, by worker
        self._waiter = waiter
        self._context = context
        self._saving = saving

    def start(self) -> None:
        """Start the process.

        Raises:
            WorkerStartError: the system would not start it.
        """
        started = (self._context, "saver", run_saver, (self._saving,))
        self.process = children.Child(*started, self._waiter, duplex=True)
        self._reports = FrameReader(self.process.heard, pickle.loads)
        self._waiter.add(self.process.heard)

    def tell(self, message: ToSaver) -> None:
        """Give an order. If the saver is dead nothing happens: its reports end, and tell so."""
        self.process.tell(pickle.dumps(message))

    def watch(self, worker: int, results: Connection) -> None:
        """Hand over the read end of a worker's pipe, and close it here when something has come
        through it: only if nobody else holds it does a worker notice that the saver is dead."""
        sent = pipes.to_hand_over(results, self.process.pid)
        self._handed_over[worker] = results
        self.process.tell(pickle.dumps(Watch(worker, sent)), results)

    def read_reports(self) -> Iterator[Report]:
        """The reports that have come since; sets `gone` when there will be no more."""
        messages = self._reports.messages()
        if not messages and not self._reports.at_end and self.process.has_ended():
            messages = self._reports.remaining_messages()  # a dead saver's last words
            self.gone = not messages
        for worker, message in chain.from_iterable(messages):
            if worker in self._handed_over:
                pipes.close(self._handed_over.pop(worker))
            yield worker, message
        self.gone = self.gone or self._reports.at_end

    def last_reports(self, look: Callable[[], None]) -> Iterator[Report]:
        """Let it leave, and read its reports until it has. Each time that something has come, or
        nothing for a while, `look` is called."""
        self.process.tell_no_more()
        while not self.gone:
            self._waiter.wait(ASK_SECONDS, [self.process.sentinel])
            look()
            yield from self.read_reports()

    def loss(self, how: str, opened: bool) -> ResumablePoolError:
        """What to raise when it has ended like this: its checkpoint is `opened`, or it is not."""
        if opened:
            return SaverError(self._saving.checkpoint.path, f"the saver process {how}")
        what = f"before it was ready, the saver process {how}"
        killed = how.startswith("was killed")  # then it is no guard that is missing
        return WorkerStartError(what, "Run again." if killed else children.MAIN_GUARD_REMEDY)

    def kill(self) -> None:
        """Make it end at once: what it has not saved is still to do."""
        self.process.signal_group("SIGKILL")

    def bury(self) -> str:
        """Wait until it is gone. Returns how it ended, in words; `""` if as it should."""
        self._waiter.remove(self.process.heard)
        pipes.close(*self._handed_over.values())
        exitcode, _ = self.process.reap(in_peace=True)
        in_peace = exitcode in (None, 0, system.LATE)
        return "" if in_peace else system.ending_in_words(exitcode)
