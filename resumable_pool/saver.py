"""The saver process: what runs in it, and the runner's handle on it.

It consumes the outcomes of all workers, saves them to the checkpoint, and reports to the runner
what is saved and whose stream has ended. It ignores Ctrl-C and SIGTERM. It leaves when the runner
has closed its pipe (or is dead), every stream has ended and nothing is unsaved; until then it holds
the checkpoint's lock.

Bytes in, bytes out: it never unpickles a value, and nothing that a worker or the runner does makes
it wait for one of them. Knows nothing of the function, of what is still to do, or of retrying.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import NoReturn

from . import forks, processes
from .checkpoints import Checkpoint
from .errors import CheckpointError, ResumablePoolError, SaverError
from .messages import (
    Died,
    DropFailure,
    Ended,
    Failed,
    Finished,
    FromSaver,
    FromWorker,
    Hello,
    KeepFailure,
    Opened,
    PassedOn,
    Ready,
    RecordCrash,
    Saved,
    StartFailed,
    ToSaver,
    Unable,
    Watch,
)
from .records import Outcome
from .streams import Streams

# Data are forced to disk at most this often. Every result at once would cost a hundred times as
# much as writing it; this bounds what a power cut can take.
SYNC_SECONDS = 1.0

# How often to look whether workers still live when the runner is no more there to tell.
ORPHAN_SECONDS = 1.0


class Saver:
    """The runner's handle on the saver process. Lives in the runner's process.

    Attributes:
        process: the process.
        reports: its pipe to the runner, for `multiprocessing.connection.wait`.
        gone: whether it has ended, and every report of it was read.
    """

    def __init__(self, context: BaseContext, checkpoint: Checkpoint) -> None:
        self.gone = False
        self._context = context
        self._checkpoint = checkpoint

    def start(self) -> None:
        """Start the process.

        Raises:
            WorkerStartError: the system would not start it.
        """
        # A pipe of its own for the reports: the other one also carries descriptors, whose receipt
        # is acknowledged on it where the system (macOS) needs that.
        try:
            with forks.PipesForChild(self._context) as pipes:
                self.reports, reports = pipes.from_child()
                self._orders, orders = pipes.both_ways()
                ends = (orders, reports)
                arguments = (*ends, self._checkpoint)
                self.process = processes.Child(self._context, "saver", run_saver, arguments, ends)
        except OSError as error:
            raise processes.cannot_start("saver", error) from None

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
            reduction.send_handle(self._orders, results.fileno(), self.process.pid)
        except (ConnectionError, RuntimeError):  # the saver is dead: its end of `reports` tells
            pass
        except OSError:
            self.no_more_workers()  # it must not wait for what was announced
            raise
        finally:
            forks.close(results)

    def read_reports(self) -> Iterator[FromSaver]:
        """The reports that have come since; sets `gone` when there will be no more."""
        heard = False
        try:
            while self.reports.poll():
                heard = True
                yield self.reports.recv()
            # A dead saver's last words are read before it counts as gone.
            if not heard and self.process.has_ended() and not self.reports.poll():
                self.gone = True
        except (EOFError, OSError):
            self.gone = True

    def no_more_workers(self) -> None:
        """Let it leave once the streams it knows have ended."""
        forks.close(self._orders)

    def bury(self) -> str:
        """Wait until it is gone. Returns how it ended, in words; `""` if as it should."""
        forks.close(self._orders, self.reports)
        exitcode = self.process.reap(in_peace=True)
        return processes.ending_in_words(exitcode) if exitcode else ""


def run_saver(orders: Connection, reports: Connection, checkpoint: Checkpoint) -> NoReturn:
    """The whole life of the saver process. Never returns: no exit handlers of the user's run."""
    processes.do_first_things(orders, reports, ignored=frozenset({"SIGINT", "SIGTERM", "SIGHUP"}))
    saver = _InSaver(orders, reports, checkpoint)
    try:
        notes = checkpoint.open()
    except ResumablePoolError as error:
        saver.report(Unable(error))
        os._exit(1)
    except Exception as error:
        saver.report(Unable(_cannot_open(checkpoint, error)))
        os._exit(1)
    try:
        saver.report(Opened(notes))
        saver.run()
        checkpoint.close()
    except Exception as error:
        with contextlib.suppress(Exception):  # the disk is full, say; what can be kept is kept
            checkpoint.close()
        saver.report(Unable(_cannot_save(checkpoint, error)))
        os._exit(1)
    os._exit(0)


def _cannot_open(checkpoint: Checkpoint, error: Exception) -> CheckpointError:
    return CheckpointError(
        checkpoint.path,
        f"cannot be opened for writing: {_in_words(error)}",
        "Make that possible, or name another checkpoint.",
    )


def _cannot_save(checkpoint: Checkpoint, error: Exception) -> SaverError:
    known = isinstance(error, OSError) and error.strerror
    where = "" if known else traceback.format_exc()
    return SaverError(checkpoint.path, _in_words(error), where)


def _in_words(error: Exception) -> str:
    """The system's words where it has some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    name, text = type(error).__name__, str(error)
    return f"{name}: {text}" if text else name


class _InSaver:
    """What runs in the saver process."""

    def __init__(self, orders: Connection, reports: Connection, checkpoint: Checkpoint) -> None:
        self._orders: Connection | None = orders
        self._reports: Connection | None = reports
        self._checkpoint = checkpoint
        self._streams = Streams()
        self._held: dict[int, deque[Outcome]] = {}
        self._unsynced = False
        self._synced_at = 0.0

    def run(self) -> None:
        """Until no order can come any more and every stream has ended."""
        while self._orders is not None or self._streams:
            ready = self._wait_for_something()
            self._streams.read(ready)
            self._follow_orders(ready)
            if self._orders is None:
                self._streams.end_orphaned()
            self._save_and_report()
            self._sync_if_due()

    def report(self, message: FromSaver) -> None:
        """Tell the runner, if there still is one; saving goes on without."""
        if self._reports is None:
            return
        try:
            self._reports.send(message)
        except OSError:
            self._reports = None

    def _wait_for_something(self) -> set[object]:
        patience = None
        if self._orders is None:
            patience = ORPHAN_SECONDS
        elif self._unsynced:
            patience = max(0.0, self._synced_at + SYNC_SECONDS - time.monotonic())
        orders = [] if self._orders is None else [self._orders]
        return set(wait([*orders, *self._streams.ends()], patience))

    # Orders.

    def _follow_orders(self, ready: set[object]) -> None:
        if self._orders in ready:
            while self._orders is not None and self._orders.poll():
                try:
                    order = self._orders.recv()
                except (EOFError, OSError):  # closed, or the runner is dead
                    self._orders = None
                else:
                    self._follow(order)

    def _follow(self, order: ToSaver) -> None:
        match order:
            case Watch(worker):
                self._watch(worker)
            case Died(worker):
                self._streams.end_dead(worker)
            case KeepFailure(worker):
                self._save_failure(self._held[worker].popleft())
            case DropFailure(worker):
                self._held[worker].popleft()
            case RecordCrash(outcome):
                self._save_failure(outcome)
            case _:
                raise TypeError(f"the runner cannot order {order!r}")

    def _watch(self, worker: int) -> None:
        assert self._orders is not None
        try:
            handle = reduction.recv_handle(self._orders)
        except EOFError:  # the runner died in between
            return
        except RuntimeError:
            raise OSError(errno.EMFILE, "too many open files (ulimit -n)") from None
        if sys.platform == "win32":
            end = multiprocessing.connection.PipeConnection(handle, writable=False)
        else:
            os.set_inheritable(handle, False)
            end = Connection(handle, writable=False)
        self._streams.add(worker, forks.enter(end))

    # Saving.

    def _save_and_report(self) -> None:
        """Save all the values that have come, then report on everything that has come, in order."""
        received = self._streams.take_received()
        values = [
            message.outcome
            for _, message in received
            if isinstance(message, Finished) and message.outcome.ok
        ]
        if values:
            self._checkpoint.save(values)
            self._unsynced = True
        for worker, message in received:
            self._report_on(worker, message)

    def _report_on(self, worker: int, message: FromWorker | Ended) -> None:
        match message:
            case Finished(outcome) if outcome.ok:
                self.report(Saved(worker))
            case Finished(outcome):
                self._held.setdefault(worker, deque()).append(outcome)
                self.report(Failed(worker))
            case Hello() | Ready() | StartFailed():
                self.report(PassedOn(worker, message))
            case Ended():
                self.report(message)
            case _:
                raise TypeError(f"worker {worker} cannot say {message!r}")

    def _save_failure(self, outcome: Outcome) -> None:
        self._checkpoint.save_failures([outcome])
        self._unsynced = True

    def _sync_if_due(self) -> None:
        now = time.monotonic()
        if self._unsynced and now >= self._synced_at + SYNC_SECONDS:
            self._checkpoint.sync()
            self._unsynced = False
            self._synced_at = now
