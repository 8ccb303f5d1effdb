"""All the workers of a run: started, looked after, and ended.

Knows no path and no outcome: whom to deal what is dealing.py's, what an end means the runner's.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Collection, Iterable, Iterator
from multiprocessing.context import BaseContext

from . import forks
from .messages import Died, Setup
from .processes import cannot_start
from .saver import Saver
from .workers import Worker

# Between asking a process group to end (SIGTERM) and making it (SIGKILL).
POLITE_SECONDS = 2.0

# How often to ask the processes themselves whether they live.
ASK_SECONDS = 1.0


class Crew:
    """The living workers of one run, by their serial numbers. Lives in the runner's process."""

    def __init__(self, context: BaseContext, saver: Saver, setup: Setup, folder: str) -> None:
        self._context = context
        self._saver = saver
        # Who is forked inherits it, and so it may be what cannot be pickled.
        forked = context.get_start_method() == "fork"
        self._inherited = setup if forked else None
        self._pickled_setup = pickle.dumps(None if forked else setup)
        self._folder = folder
        self._workers: dict[int, Worker] = {}
        self._started = 0
        self._ask_at = 0.0

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._workers.values()))

    def __getitem__(self, serial: int) -> Worker:
        return self._workers[serial]

    def start(self) -> None:
        """Start one more worker, whose outcomes the saver reads.

        Raises:
            WorkerStartError: the system would not start it.
        """
        serial = self._started
        self._started += 1
        try:
            # In this order no child ever holds the read end, and a worker notices a dead saver.
            results, writer = forks.pipe(self._context, duplex=False)
            try:
                self._saver.watch(serial, results)
                worker = Worker(self._context, serial, writer, self._inherited, self._folder)
            finally:
                forks.close(writer)
        except OSError as error:
            raise cannot_start("worker", error) from None
        self._workers[serial] = worker

    def set_up(self, serial: int) -> None:
        """The worker reads its pipe now: tell it what to do with its files."""
        self._workers[serial].set_up(self._pickled_setup)

    def remove(self, serial: int) -> Worker | None:
        """The worker's stream has ended: it is no more of the crew, if it ever was."""
        return self._workers.pop(serial, None)

    def ready_workers(self) -> list[Worker]:
        """Those that may be dealt to, now or when they have finished what they have."""
        return [worker for worker in self if worker.ready and not worker.dismissed]

    def sentinels(self) -> list[int]:
        """What to wait for, to hear of deaths."""
        return [worker.process.sentinel for worker in self if not worker.reported_dead]

    def report_deaths(self, ready: Collection[object]) -> None:
        """Tell the saver who is dead, so that it does not wait for the end of that stream, which
        something that the worker has forked may hold open.

        Args:
            ready: the sentinels that are. Something forked may keep a sentinel quiet, too, so now
                and then the processes themselves are asked.
        """
        ask = time.monotonic() >= self._ask_at
        if ask:
            self._ask_at = time.monotonic() + ASK_SECONDS
        for worker in self:
            if worker.reported_dead:
                continue
            if worker.process.sentinel in ready or (ask and worker.process.has_ended()):
                worker.reported_dead = True
                self._saver.tell(Died(worker.serial))

    def dismiss(self) -> None:
        """Tell all to leave when they have finished what they have."""
        for worker in self:
            if not worker.dismissed:
                worker.dismiss()

    def terminate(self, workers: Iterable[Worker]) -> None:
        """Make these, and what they have started, end at once: first ask, then `kill_overdue`."""
        for worker in workers:
            worker.signal("SIGTERM")
            worker.kill_at = time.monotonic() + POLITE_SECONDS

    def kill_overdue(self) -> None:
        """Kill those that were asked to end at once, and have not."""
        for worker in self:
            if time.monotonic() >= worker.kill_at:
                worker.signal("SIGKILL")

    def kill(self) -> None:
        """Kill all, and what they have started. Nobody is left."""
        for worker in self:
            worker.signal("SIGKILL")
        for worker in self:
            self._saver.tell(Died(worker.serial))
            del self._workers[worker.serial]
            worker.bury(in_peace=False)
