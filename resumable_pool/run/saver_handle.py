"""The runner's handle on the saver process: started, told what to do, and read.

Knows nothing of what becomes of a file; what runs in the process is in saver/process.py.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from ..between import children, pipes
from ..between.messages import FromSaver, ToSaver, Watch
from ..errors import ResumablePoolError, SaverError, WorkerStartError
from ..saver.process import run_saver
from ..saver.saving import Saving

# How often to ask whether it lives: something may keep its end quiet.
ASK_SECONDS = 1.0


class Saver:
    """The runner's handle on the saver process. Lives in the runner's process.

    Attributes:
        process: the process.
        reports: its pipe to the runner, for `multiprocessing.connection.wait`.
        gone: whether it has ended, and every report of it was read.
    """

    def __init__(self, context: BaseContext, saving: Saving, timeout: float | None) -> None:
        self.gone = False
        self._timeout = timeout
        self._context = context
        self._saving = saving

    def start(self) -> None:
        """Start the process.

        Raises:
            WorkerStartError: the system would not start it.
        """
        # A pipe of its own for the reports: the other one also carries descriptors, whose receipt
        # is acknowledged on it where the system (macOS) needs that.
        try:
            with pipes.PipesForChild(self._context) as made:
                self.reports, reports = made.from_child()
                self._orders, orders = made.both_ways()
                ends = (orders, reports)
                arguments = (*ends, self._saving, self._timeout)
                self.process = children.Child(self._context, "saver", run_saver, arguments, ends)
        except OSError as error:
            raise children.cannot_start("saver", error) from None

    def tell(self, message: ToSaver) -> None:
        """Send an order. If the saver is dead nothing happens: its end of `reports` tells."""
        with contextlib.suppress(OSError):
            self._orders.send(message)

    def watch(self, worker: int, results: Connection) -> None:
        """Hand over the read end of a worker's pipe, and close it here: only if nobody else holds
        it does a worker notice that the saver is dead.

        Raises:
            OSError: there is no descriptor left; the saver gets no more orders.
        """
        try:
            self._orders.send(Watch(worker))
            pipes.send_end(self._orders, results, self.process.pid)
        except (ConnectionError, RuntimeError):  # the saver is dead: its end of `reports` tells
            pass
        except OSError:
            self.no_more_workers()  # it must not wait for what was announced
            raise
        finally:
            pipes.close(results)

    def read_reports(self) -> Iterator[FromSaver]:
        """The reports that have come since; sets `gone` when there will be no more."""
        heard = False
        try:
            while pipes.poll(self.reports):
                heard = True
                yield from pickle.loads(self.reports.recv_bytes())
            # A dead saver's last words are read before it counts as gone.
            if not heard and self.process.has_ended() and not pipes.poll(self.reports):
                self.gone = True
        except (EOFError, OSError):
            self.gone = True

    def no_more_workers(self) -> None:
        """Let it leave once the streams it knows have ended."""
        pipes.close(self._orders)

    def last_reports(self, wakener: Connection, look: Callable[[], None]) -> Iterator[FromSaver]:
        """Let it leave, and read its reports until it has. Each time that something has come, from
        it or from `wakener`, or nothing for a while, `look` is called."""
        self.no_more_workers()
        while not self.gone:
            pipes.wait([self.reports, self.process.sentinel, wakener], ASK_SECONDS)
            look()
            yield from self.read_reports()

    def loss(self, how: str, opened: bool) -> ResumablePoolError:
        """What to raise when it has ended like this: its checkpoint is `opened`, or it is not."""
        if opened:
            return SaverError(self._saving.checkpoint.path, f"the saver process {how}")
        what = f"the saver process {how} before it was ready"
        return WorkerStartError(what, children.MAIN_GUARD_REMEDY)

    def kill(self) -> None:
        """Make it end at once: what it has not saved is still to do."""
        self.process.signal_group("SIGKILL")

    def bury(self) -> str:
        """Wait until it is gone. Returns how it ended, in words; `""` if as it should."""
        pipes.close(self._orders, self.reports)
        exitcode = self.process.reap(in_peace=True)
        return children.ending_in_words(exitcode) if exitcode else ""
