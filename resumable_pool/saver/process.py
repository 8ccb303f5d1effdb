"""What runs in the saver process.

It consumes the outcomes of all workers, saves them to the checkpoint, and reports to the runner
what is saved and whose stream has ended. It ignores Ctrl-C and SIGTERM. It exits when the runner
has closed its pipe (or is dead), every stream has ended and nothing is unsaved; until then it holds
the checkpoint's lock.

Each time that the saver wakes, or wakes the runner by a report, it takes a worker's processor for a
moment. So values that arrive in the middle of a batch are saved, and a millisecond later those that
have come meanwhile; and they are only counted, and reported together. Everything else is reported
at once, since somebody waits for it.

Bytes in, bytes out: it never unpickles a value, and nothing that a worker or the runner does makes
it wait for one of them. Knows nothing of the function, of what is still to do, or of retrying.
"""

from __future__ import annotations

import pickle
import time
from typing import NoReturn

from ..between import children, messages, pipes
from ..between.clock import NEVER, monotonic
from ..between.describing import describe
from ..between.frames import FrameReader, frame
from ..between.messages import OF_NONE, Report
from ..between.waiting import PipeWriter, Waiter
from ..errors import CheckpointError, ResumablePoolError, SaverError
from ..values import Encoded, name_script_main
from .saving import Saving
from .streams import Streams

# How often to look whether workers still live when the runner is no more there to tell.
ORPHAN_SECONDS = 1.0

# Values in the middle of a batch: the nap after they were saved, in which more may come, unless so
# many bytes have come that there is work enough; and when they are told at the latest, since the
# next file of the batch may take its time.
NAP_SECONDS = 0.001
MUCH = 1 << 16
REPORT_SECONDS = 0.05


def run_saver(orders: pipes.End, reports: pipes.End, saving: Saving) -> NoReturn:
    """The whole life of the saver process."""
    ignored = frozenset({"SIGINT", "SIGTERM", "SIGHUP"})
    orders, reports = children.do_first_things(orders, reports, ignored=ignored)
    name_script_main()
    status = _InSaver(orders, reports, saving).run()
    children.leave(status, torn_down=False)  # nobody needs that, and the run's end would wait


class _InSaver:
    """What runs in the saver process."""

    def __init__(self, orders: pipes.End, reports: pipes.End, saving: Saving) -> None:
        self._saving = saving
        self._waiter = Waiter()
        self._waiter.add(orders)
        self._orders = FrameReader(orders, pickle.loads)
        self._reports = PipeWriter(reports, self._waiter)
        self._streams = Streams(self._waiter)
        self._untold: list[Report] = []
        self._saved = 0  # and not told
        self._tell_at = NEVER
        self._alone_since = 0.0

    def run(self) -> int:
        """From the opening of the checkpoint to the last report. Returns the exit status."""
        error = self._open_and_save()
        if error is not None:
            self._untold.append((OF_NONE, messages.Unable(error)))
        self._tell()
        self._reports.drain()
        return 0 if error is None else 1

    def _open_and_save(self) -> ResumablePoolError | None:
        """Returns why that could not be done. (A hook may raise anything, `SystemExit` too.)"""
        checkpoint = self._saving.checkpoint
        try:
            notes = checkpoint.open()
        except BaseException as error:
            return _cannot_open(checkpoint.path, error)
        failure: BaseException | None = None
        try:
            self._saving.begin()
            self._untold.append((OF_NONE, messages.Opened(notes, checkpoint.encoder())))
            self._tell()
            self._turns()
            self._save(NEVER)
        except BaseException as error:
            failure = error
        try:  # also if the disk is full, say: what can be kept is kept
            self._saving.close()
        except BaseException as error:
            failure = failure or error
        return None if failure is None else _cannot_save(self._saving, failure)

    def _turns(self) -> None:  # no loop in a `try` block, see `Run.go`
        while not self._orders.at_end or self._streams:
            self._turn()

    def _turn(self) -> None:
        due = min(self._saving.due, self._tell_at)
        if self._orders.at_end:
            due = min(due, monotonic() + ORPHAN_SECONDS)
        ready = self._waiter.wait(max(0.0, due - monotonic()))
        self._streams.read(ready)
        if self._orders.end in ready:
            self._follow_orders()
        if self._orders.at_end:
            self._end_orphans()
        now = monotonic()
        size = self._save(now)
        if now >= self._tell_at:
            self._tell()
        elif 0 < size < MUCH:
            time.sleep(NAP_SECONDS)

    # Orders.

    def _follow_orders(self) -> None:
        for order in self._orders.messages():
            match order:
                case messages.Watch(worker, sent):
                    self._streams.add(worker, pipes.take_end(sent, self._orders.handed_over))
                case messages.Died(worker):
                    self._streams.end_dead(worker)
                case messages.SaveFailure(outcome):
                    self._saving.save_failure(outcome)
                    self._untold.append((OF_NONE, messages.FailureSaved(outcome.path)))
                    self._tell_at = 0.0
                case _:
                    raise TypeError(f"the runner cannot order {order!r}")
        if self._orders.at_end:  # closed, or the runner is dead
            self._waiter.remove(self._orders.end)
            self._alone_since = monotonic()

    def _end_orphans(self) -> None:
        """Without a runner nobody else tells who is dead, or ends a file that takes too long; and
        nobody begins another."""
        self._streams.end_orphaned()
        if monotonic() > self._alone_since + self._saving.patience:
            self._streams.kill_workers()

    # Saving, and telling of it.

    def _save(self, now: float) -> int:
        """Save the values that have come, of so many bytes, and note, in order, what the runner is
        to know of all that has."""
        received, self._streams.received = self._streams.received, []
        records: list[Encoded] = []
        for worker, message in received:
            if isinstance(message, messages.Values):
                records += message.records
                message = messages.Received(len(message.records))
            else:
                self._tell_at = 0.0
            self._untold.append((worker, message))
        saved = self._saving.save(records, now)
        self._saved += saved
        if records or saved:
            self._tell_at = min(self._tell_at, now + REPORT_SECONDS)
        return sum(map(len, records))

    def _tell(self) -> None:
        """Tell the runner, if there still is one; saving goes on without."""
        if self._saved:
            self._untold.append((OF_NONE, messages.Saved(self._saved)))
        if self._untold:
            self._reports.write(frame(pickle.dumps(self._untold)))
        self._untold, self._saved, self._tell_at = [], 0, NEVER


def _cannot_open(path: str, error: BaseException) -> ResumablePoolError:
    if isinstance(error, ResumablePoolError):  # it is locked, or damaged
        return error
    what = f"cannot be opened for writing: {_describe(error)[0]}"
    return CheckpointError(path, what, "Make it and its folder writable, or name another one.")


# What was saved before is not kept where it was, if that is gone.
_WHERE_IT_WAS = (
    "What was saved is in the file that was there: put it back and run again to go on. Without it "
    "the next run starts from the beginning."
)


def _cannot_save(saving: Saving, error: BaseException) -> SaverError:
    words, where = _describe(error)
    path, by = saving.checkpoint.path, saving.who()
    if isinstance(error, OSError) and error.strerror and not by:
        where = ""  # that says it all, and where in our own code that was helps nobody
    if isinstance(error, FileNotFoundError) and not by:
        return SaverError(path, words, where, _WHERE_IT_WAS)
    return SaverError(path, words, where, by=by)


def _describe(error: BaseException) -> tuple[str, str]:
    """A line, in the system's words where it has some, and a traceback."""
    words, where = describe(error)
    return (isinstance(error, OSError) and error.strerror) or words, where
