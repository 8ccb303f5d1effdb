"""What a run asks of those who process its files: the one contract that both of them keep.

    worker_crew.py  our own worker processes
    executors.py    somebody else's, behind an `Executor`: Dask, MPI, a pool of threads

Knows no process and no future.
"""

from __future__ import annotations

import enum
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Generic, Protocol, TypeVar

from ..between.clock import NEVER
from ..between.messages import Task
from ..between.waiting import Waiter
from ..options import Options
from ..records import WorkerStatus
from ..values import Encoder
from .books import Dealer
from .saver_handle import Saver


class State(enum.Enum):
    """What the runner wants of a worker.

    STARTING ──Ready──▶ READY ──dismiss──▶ LEAVING
        │                 │                   │
        └─────────────────┴──terminate────────┴──▶ CONDEMNED
    """

    STARTING = enum.auto()
    READY = enum.auto()  # files may be dealt to it
    LEAVING = enum.auto()  # it is told to go when it has finished what it has
    CONDEMNED = enum.auto()  # it is told to end at once, and killed if it does not


class Worker(Protocol):
    """Who has one batch at a time, and a stream of its own to the saver.

    Attributes:
        serial: its number; no other worker of the run has it.
        name: what a person calls it.
        state: what is wanted of it.
        finished: how many outcomes its process is known to have sent.
        busy_since: when it was given the file that it is at, by the clock of the run.
        timed_out: whether it is condemned because that took too long.
        was_killed: once it is buried, whether it did not end by itself.
        to_blame: whether it is certain, if it dies, that the file that it was at is to blame.
        unread: once it is buried, whether it has never taken the batch that it was dealt last.
        lost: whether its stream has broken off, and it is only waited for until it is dead.
    """

    serial: int
    name: str
    state: State
    finished: int
    busy_since: float
    timed_out: bool
    was_killed: bool
    to_blame: bool
    unread: bool
    lost: bool

    def note_ready(self) -> None:
        """Its initializer has returned."""

    def deal(self, batch: Sequence[Task], now: float) -> None:
        """Give it its next batch. Never blocks."""

    def note_outcomes(self, number: int, now: float) -> None:
        """So many more of its files are done, in time."""

    def dismiss(self) -> None:
        """Let it exit when it has finished its batch."""

    def bury(self, in_peace: bool) -> tuple[str, str]:
        """Its stream has ended: forget it. Returns how it ended, in words, and the traceback that
        it has left, or `""`."""


AnyWorker = TypeVar("AnyWorker", bound=Worker, covariant=True)


class Crew(ABC, Generic[AnyWorker]):
    """The workers of one run, by their serial numbers. Lives in the runner's process. The `dealer`
    knows what they have in work; the `waiter` sends them what they cannot take at once; relative
    paths start in `folder`."""

    def __init__(
        self, options: Options, saver: Saver, dealer: Dealer, waiter: Waiter, folder: str
    ) -> None:
        self._setup = options.setup
        self._context = options.context
        self._saver = saver
        self._dealer = dealer
        self._waiter = waiter
        self._folder = folder
        self._workers: dict[int, AnyWorker] = {}
        self._started = 0

    @staticmethod
    @abstractmethod
    def batch_seconds(options: Options) -> float:
        """How long a batch of quick files is to take; 0 for one file at a time."""

    engine = ""  # what somebody else's is called, who alone can end what it has

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[AnyWorker]:
        return iter(list(self._workers.values()))

    def __getitem__(self, serial: int) -> AnyWorker:
        return self._workers[serial]

    def get(self, serial: int) -> AnyWorker | None:
        """The same, if it is still of the crew."""
        return self._workers.get(serial)

    def are(self, *states: State) -> list[AnyWorker]:
        """The workers in one of these states, that are not lost."""
        return [w for w in self._workers.values() if w.state in states and not w.lost]

    @abstractmethod
    def start(self) -> None:
        """One more worker, whose outcomes the saver reads.

        Raises:
            WorkerStartError: the system would not start it.
        """

    def note_hello(self, serial: int) -> None:
        """A worker is there, and waits to be told what to do with its files."""

    @abstractmethod
    def begin(self, encoder: Encoder) -> None:
        """The checkpoint is locked: the files are ours, and records are made by `encoder`."""

    def is_still_there(self, serial: int, clean: bool, now: float) -> bool:
        """A worker's stream has ended. Whether it is not gone yet: `attend` tells when it is."""
        return False

    def remove(self, serial: int) -> AnyWorker | None:
        """The worker is gone, and no more of the crew, if it ever was."""
        return self._workers.pop(serial, None)

    def most(self, serial: int) -> int:
        """How many files the worker may be dealt at a time."""
        return sys.maxsize

    def dismiss(self) -> None:
        """Tell all to exit when they have finished what they have."""
        for worker in self.are(State.STARTING, State.READY):
            worker.dismiss()

    # What happens, and what is due.

    @abstractmethod
    def events(self, now: float) -> list[Any]:
        """What to wait for, to hear of what `attend` is for."""

    @abstractmethod
    def attend(self, ready: Collection[object], now: float) -> list[tuple[int, bool]]:
        """See to those of `events` that are `ready`, so that every stream comes to its end.

        Returns:
            Who is gone since, of those whose streams had ended before, and whether that was clean.

        Raises:
            ResumablePoolError: the run cannot go on.
        """

    def due(self, now: float) -> float:
        """When `end_overdue` will have something to do, if nothing else happens."""
        return NEVER

    def end_overdue(self, now: float) -> None:
        """End those whose files take too long, or who do not leave."""

    # How it is stopped.

    def recall(self) -> None:
        """Tell those who have a batch to begin no further file of it, if they can be told."""

    def hurry(self, now: float) -> None:
        """Do not wait for ever for those that have nothing more to do, and should leave."""

    @abstractmethod
    def terminate(self, now: float, *states: State) -> None:
        """Ask those in these states to end at once; do not wait for what they have."""

    @abstractmethod
    def kill(self) -> None:
        """Nobody is left, and nothing of theirs is open."""

    # What a person sees.

    @abstractmethod
    def statuses(self, now: float) -> list[WorkerStatus]:
        """What each does now, by slots. From any thread.

        Raises:
            RuntimeError: nobody can tell.
        """

    def longest(self, now: float) -> tuple[str, float] | None:
        """The file that has been in progress longest, and for how many seconds; `None` if there is
        none, or nobody can tell."""
        return None
