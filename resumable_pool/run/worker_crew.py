"""All our own workers of a run: started, looked after, and ended.

Knows no outcome: whom to deal what is books.py's, what an end means the runner's.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Collection
from itertools import chain
from multiprocessing.connection import Connection
from typing import Any

from ..between import pipes
from ..between.children import cannot_start
from ..between.clock import NEVER, monotonic
from ..between.frames import PIPE_SIZE
from ..between.messages import BATCH_SECONDS, Died
from ..between.waiting import Waiter
from ..errors import WorkerStartError
from ..options import Options
from ..records import WorkerStatus
from ..values import Encoder
from ..worker.process import watchdog_works
from .books import Dealer
from .crew import Crew, State
from .saver_handle import Saver
from .workers import WorkerProcess

if sys.platform == "linux":
    import fcntl

# What the workers' pipes hold together. Linux lets a user have 64 MiB in all pipes; who has used
# that up gets tiny ones, in every program. And what one holds without being asked.
_ALL_PIPES = 16 << 20
_USUAL_PIPE_SIZE = 1 << 16

# How often to ask the processes themselves whether they live.
ASK_SECONDS = 1.0


class _Slot:
    """What the workers in one place have done before the present one, and how many there were."""

    def __init__(self) -> None:
        self.starts = self.finished = 0


class WorkerCrew(Crew[WorkerProcess]):
    """The living worker processes of one run, and those that are just dead."""

    def __init__(
        self, options: Options, saver: Saver, dealer: Dealer, waiter: Waiter, folder: str
    ) -> None:
        super().__init__(options, saver, dealer, waiter, folder)
        if self._setup.timeout is not None:
            self._setup = self._setup._replace(watched=watchdog_works(self._context))
        self._slots = [_Slot() for _ in range(options.max_workers)]
        self._pipe_size = min(PIPE_SIZE, _ALL_PIPES // options.max_workers)
        self._most_tasks = options.max_tasks_per_child or sys.maxsize
        self._ask_at = 0.0
        self._waiting: list[int] | None = []  # for `begin`

    @staticmethod
    def batch_seconds(options: Options) -> float:
        return BATCH_SECONDS

    def start(self) -> None:
        serial = self._started
        self._started += 1
        self._dealer.enter(serial)
        taken = {worker.slot for worker in self}
        slot = next(slot for slot in range(len(self._slots)) if slot not in taken)
        try:
            # In this order no child ever holds the read end, and a worker notices a dead saver.
            results, writer = pipes.pipe(self._context, duplex=False)
            _enlarge(writer, self._pipe_size)
            try:
                self._saver.watch(serial, results)
                worker = WorkerProcess(
                    self._context, serial, slot, writer, self._waiter, self._setup, self._folder
                )
            finally:
                pipes.close(writer)
        except (OSError, WorkerStartError) as error:
            self._dealer.lose(serial)
            if isinstance(error, WorkerStartError):
                raise
            raise cannot_start("worker", error) from None
        self._workers[serial] = worker
        self._slots[slot].starts += 1

    def note_hello(self, serial: int) -> None:
        if self._waiting is not None:  # its initializer may be costly
            self._waiting.append(serial)
        elif serial in self._workers:
            self._workers[serial].set_up(self._pickled_setup)

    def begin(self, encoder: Encoder) -> None:
        # A forked worker inherits the rest, so that need not be picklable.
        forked = self._context.get_start_method() == "fork"
        self._pickled_setup = pickle.dumps((None if forked else self._setup, encoder))
        waiting, self._waiting = self._waiting, None
        for serial in waiting or ():
            self.note_hello(serial)

    def is_still_there(self, serial: int, clean: bool, now: float) -> bool:
        worker = self._workers.get(serial)
        if worker is None or worker.process.has_ended():
            return False
        worker.note_end(clean, now)
        return True

    def remove(self, serial: int) -> WorkerProcess | None:
        worker = super().remove(serial)
        if worker is not None:
            self._slots[worker.slot].finished += worker.finished
        return worker

    def most(self, serial: int) -> int:
        most = self._most_tasks - self._workers[serial].finished
        # With a time limit it must be known when each file begins.
        return most if self._setup.timeout is None else min(most, 1)

    def statuses(self, now: float) -> list[WorkerStatus]:
        return sorted(self._status(worker, now) for worker in self)

    def longest(self, now: float) -> tuple[str, float] | None:
        files = [(self._dealer.path_of(worker.serial), now - worker.busy_since) for worker in self]
        in_work = [(path, seconds) for path, seconds in files if path is not None]
        return max(in_work, key=lambda file: file[1], default=None)

    def _status(self, worker: WorkerProcess, now: float) -> WorkerStatus:
        slot = self._slots[worker.slot]
        path = self._dealer.path_of(worker.serial)
        busy = path is not None
        return WorkerStatus(
            slot=worker.slot,
            pid=worker.process.pid,
            state="busy" if busy else "starting" if worker.state is State.STARTING else "idle",
            path=path,
            seconds=max(0.0, now - worker.busy_since) if busy else None,
            files_done=slot.finished + worker.finished,
            restarts=slot.starts - 1,
        )

    def events(self, now: float) -> list[Any]:
        living = [worker for worker in self if not worker.reported_dead]
        words = [worker.last_words for worker in living if now >= worker.late_at]
        return [*(worker.process.sentinel for worker in living), *words]

    def attend(self, ready: Collection[object], now: float) -> list[tuple[int, bool]]:
        """Tell the saver who is dead, so that it does not wait for the end of that stream, which
        something that the worker has forked may hold open.

        Args:
            ready: the sentinels that are. Something forked may keep a sentinel quiet, too, so now
                and then the processes themselves are asked.
        """
        gone: list[tuple[int, bool]] = []
        ask = monotonic() >= self._ask_at
        if ask:
            self._ask_at = monotonic() + ASK_SECONDS
        for worker in self:
            if worker.reported_dead:
                continue
            if worker.process.sentinel in ready or (ask and worker.process.has_ended()):
                worker.reported_dead = True
                if worker.was_clean is None:
                    self._saver.tell(Died(worker.serial))
                else:
                    gone.append((worker.serial, worker.was_clean))
        return gone

    def recall(self) -> None:
        for worker in self:
            if self._dealer.is_busy(worker.serial):
                worker.recall()

    def hurry(self, now: float) -> None:
        for worker in self.are(State.LEAVING):
            if not self._dealer.is_busy(worker.serial):
                worker.hurry(now)

    def terminate(self, now: float, *states: State) -> None:
        for worker in self.are(*states):
            worker.terminate(now)

    def due(self, now: float) -> float:
        moments = chain.from_iterable((w.late_at, w.end_at, w.kill_at) for w in self)
        return min((moment for moment in moments if moment > now), default=NEVER)

    def end_overdue(self, now: float) -> None:
        """Terminate those whose files take too long, kill those that have not ended when asked."""
        for worker in self:
            if not worker.reported_dead:
                worker.end_if_overdue(now)

    def kill(self) -> None:
        """Kill all, and what they have started. Nobody is left."""
        for worker in self:
            worker.kill()
        for worker in self:
            self._saver.tell(Died(worker.serial))
            del self._workers[worker.serial]
            worker.bury(in_peace=False)


def _enlarge(pipe: Connection, size: int) -> None:
    """Let a worker go on with its next file while the saver has not read the last result yet."""
    if sys.platform == "linux" and size > _USUAL_PIPE_SIZE:
        with contextlib.suppress(OSError):  # more than this user may have
            fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, size)
