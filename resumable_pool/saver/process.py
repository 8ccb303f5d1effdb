"""What runs in the saver process.

It consumes the outcomes of all workers, saves them to the checkpoint, and reports to the runner
what is saved and whose stream has ended. It ignores Ctrl-C and SIGTERM. It exits when the runner
has closed its pipe (or is dead), every stream has ended and nothing is unsaved; until then it holds
the checkpoint's lock.

Bytes in, bytes out: it never unpickles a value, and nothing that a worker or the runner does makes
it wait for one of them. Knows nothing of the function, of what is still to do, or of retrying.
"""

from __future__ import annotations

import itertools
import pickle
import time
from multiprocessing.connection import Connection
from typing import NoReturn

from ..between import children
from ..between.clock import NEVER, monotonic
from ..between.describing import describe
from ..between.messages import (
    BatchOver,
    Died,
    Ended,
    Failed,
    FailureSaved,
    FromWorker,
    Hello,
    Idle,
    Opened,
    PassedOn,
    Ready,
    SaveFailure,
    StartFailed,
    ToSaver,
    Unable,
    Values,
    Watch,
)
from ..between.waiting import PipeReader, PipeWriter, Waiter
from ..checkpoints import Checkpoint
from ..errors import CheckpointError, ResumablePoolError, SaverError
from ..records import Outcome
from ..values import Encoded, name_script_main
from .reporting import Reports
from .saving import Saving
from .streams import Streams

# How often to look whether workers still live when the runner is no more there to tell.
ORPHAN_SECONDS = 1.0


def run_saver(
    orders: Connection, reports: Connection, saving: Saving, timeout: float | None
) -> NoReturn:
    """The whole life of the saver process."""
    ignored = frozenset({"SIGINT", "SIGTERM", "SIGHUP"})
    orders, reports = children.do_first_things(orders, reports, ignored=ignored)
    name_script_main()
    waiter = Waiter()
    told = Reports(PipeWriter(reports, waiter))
    saver = _InSaver(PipeReader(orders, with_ends=True), told, waiter, saving, timeout)
    error = _open_and_save(saver, saving, told)
    if error is not None:
        told.add(Unable(error))
    told.end()
    children.leave(0 if error is None else 1)


def _open_and_save(saver: _InSaver, saving: Saving, told: Reports) -> ResumablePoolError | None:
    """Returns why that could not be done. (A hook may raise anything, `SystemExit` too.)"""
    try:
        notes = saving.open()
    except BaseException as error:
        return _cannot_open(saving.checkpoint, error)
    failure: BaseException | None = None
    try:
        saving.begin()
        told.add(Opened(notes, saving.checkpoint.encoder()))
        saver.run()
    except BaseException as error:
        failure = error
    try:  # also if the disk is full, say: what can be kept is kept
        saving.close()
    except BaseException as error:
        failure = failure or error
    return None if failure is None else _cannot_save(saving, failure)


def _cannot_open(checkpoint: Checkpoint, error: BaseException) -> ResumablePoolError:
    if isinstance(error, ResumablePoolError):  # it is locked, or damaged
        return error
    what = f"cannot be opened for writing: {_describe(error)[0]}"
    return CheckpointError(checkpoint.path, what, "Make it writable, or name another checkpoint.")


# What was saved before is not kept where it was, if that is gone.
_WHERE_IT_WAS = (
    "What was saved is in the file that was there: put it back and run again to go on. Without it "
    "the next run starts from the beginning."
)


def _cannot_save(saving: Saving, error: BaseException) -> SaverError:
    words, where = _describe(error)
    if isinstance(error, OSError) and error.strerror and not saving.elsewhere:
        where = ""  # that says it all, and where in our own code that was helps nobody
    if isinstance(error, FileNotFoundError) and not saving.elsewhere:
        return SaverError(saving.checkpoint.path, words, where, _WHERE_IT_WAS)
    return SaverError(saving.checkpoint.path, words, where, by=saving.who())


def _describe(error: BaseException) -> tuple[str, str]:
    """A line, in the system's words where it has some, and a traceback."""
    words, where = describe(error)
    return (isinstance(error, OSError) and error.strerror) or words, where


class _InSaver:
    """What runs in the saver process."""

    def __init__(
        self,
        orders: PipeReader,
        reports: Reports,
        waiter: Waiter,
        saving: Saving,
        timeout: float | None,
    ) -> None:
        self._orders = orders
        self._reports = reports
        self._saving = saving
        self._timeout = timeout
        self._waiter = waiter
        self._waiter.add(orders.end)
        self._streams = Streams(self._waiter)
        self._alone_since = 0.0

    def run(self) -> None:
        """Until no order can come any more and every stream has ended."""
        while not self._orders.at_end or self._streams:
            ready = self._wait_for_something()
            self._streams.read(ready)
            self._follow_orders(ready)
            if self._orders.at_end:
                self._end_orphans()
            records = self._save_received(monotonic())
            self._save_due(monotonic())
            self._reports.send_if_due(monotonic())
            if nap := self._saving.nap(records, monotonic()):
                time.sleep(nap)
        self._save_due(NEVER)

    def _wait_for_something(self) -> list[Connection]:
        due = min(self._saving.due, self._reports.due)
        patience = None if due == NEVER else max(0.0, due - monotonic())
        if self._orders.at_end:
            patience = ORPHAN_SECONDS if patience is None else min(ORPHAN_SECONDS, patience)
        return self._waiter.wait(patience)

    # Orders.

    def _follow_orders(self, ready: list[Connection]) -> None:
        if self._orders.end in ready:
            for order in self._orders.messages():
                self._follow(pickle.loads(order))
            if self._orders.at_end:  # closed, or the runner is dead
                self._waiter.remove(self._orders.end)
                self._alone_since = monotonic()

    def _follow(self, order: ToSaver) -> None:
        match order:
            case Watch(worker, sent):
                self._streams.add(worker, self._orders.take_end(sent))
            case Died(worker):
                self._streams.end_dead(worker)
            case SaveFailure(outcome):
                self._saving.save_failure(outcome)
                self._reports.add(FailureSaved(outcome.path))
            case _:
                raise TypeError(f"the runner cannot order {order!r}")

    def _end_orphans(self) -> None:
        """Without a runner nobody else tells who is dead, or ends a file that takes too long; and
        nobody begins another."""
        self._streams.end_orphaned()
        if self._timeout is not None and monotonic() > self._alone_since + self._timeout:
            self._streams.kill_workers()

    # Saving.

    def _save_received(self, now: float) -> list[Encoded]:
        """Save the values that have come, then report on everything that has come, in order.
        Returns their records."""
        received = self._streams.take_received()
        values = [message.records for _, message in received if isinstance(message, Values)]
        records = [*itertools.chain.from_iterable(values)]
        saved = self._saving.save(records, now)
        for worker, message in received:
            self._report_on(worker, message, now)
        self._reports.add_saved(saved, now)
        return records

    def _save_due(self, now: float) -> None:
        self._reports.add_saved(self._saving.save_due(now), 0.0)
        self._saving.sync_if_due(now)

    def _report_on(self, worker: int, message: FromWorker | Ended, now: float) -> None:
        match message:
            case Values(records):
                self._reports.add_values(worker, len(records), now)
            case Outcome():
                self._reports.add(Failed(worker, message))
            case BatchOver():
                self._reports.add(Idle(worker))
            case Hello() | Ready() | StartFailed():
                self._reports.add(PassedOn(worker, message))
            case Ended():
                self._reports.add(message)
            case _:
                raise TypeError(f"worker {worker} cannot say {message!r}")
