"""Somebody else's workers, behind a `concurrent.futures.Executor`, in place of our own.

            batch                  answer                 outcomes
   slot  ──────────▶  executor  ──────────▶  its slot  ──────────▶  saver
         (submit)                (a future)            (own pipe)

No process is started, and none ended: the executor is its owner's. A slot is a worker without a
process: it is told the same, writes what came of a batch into its own pipe to the saver, and leaves
or dies as workers do. So all the rest is the same: counting, saving, dealing, retries, verdicts.
(It is no thread: engines are given batches in the thread of the run, and programs fork.)

Whatever a future raises is the engine's own trouble (see worker/far_process.py), and its type does
not tell what has happened. Three rules decide whether a file is to blame:

1. A file that was alone in its batch is, and its failure says what the engine said. The files of a
   longer batch are dealt once more, each alone.
2. Until the first batch has come back nobody is. Perhaps nothing can be sent there at all; after
   `LOST_ATTEMPTS` batches the run ends, and says why.
3. If the executor is broken (BrokenExecutor, or `submit` raises), or cancels what it was given, the
   run ends. It may have lost all that it had, so a file is to blame only if it was the only one.

Knows nothing of the checkpoint, nor of any engine.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Collection
from concurrent.futures import BrokenExecutor, CancelledError, Future
from typing import Any

from ..between.describing import describe
from ..between.frames import plain_frame
from ..between.messages import FAR_BATCH_SECONDS, Batch, BatchOver, Done
from ..between.waiting import PipeWriter
from ..errors import ExecutorError
from ..options import Options
from ..records import WorkerStatus
from ..values import Encoder
from ..worker.far_process import Answer, process_far
from .books import Books
from .processes import Crew, Saver, State, Worker

# So many batches may be lost before anything has come back. One may be bad luck, or a bad file.
LOST_ATTEMPTS = 3

# No stream has had so many outcomes: it does not end in peace.
_LOST = -1


class FarCrew(Crew):
    """The batches that are in flight, each in a slot of its own. Lives in the runner's process."""

    def __init__(self, options: Options, saver: Saver, books: Books, *rest: Any) -> None:
        super().__init__(options, saver, books, *rest)
        # With one slot no file is ever in flight with others, so that it is known who breaks what.
        books.batch_seconds = FAR_BATCH_SECONDS if books.workers > 1 else 0.0
        books.tells_files = self.forked = False
        assert options.executor is not None
        self._executor = options.executor
        self.engine = type(self._executor).__name__
        self._run = os.urandom(16).hex()
        self._come_back: deque[tuple[Slot, Future[Answer]]] = deque()
        self._answered = False  # whether anything has come back
        self._lost = 0

    def _start(self, serial: int, place: int) -> Worker:
        results = PipeWriter(self._pipe_to_saver(serial), self._waiter)
        return Slot(self, f"slot {serial}", results)

    def begin(self, encoder: Encoder) -> None:
        self._setup = self._setup._replace(encoder=encoder)

    def submit(self, batch: Batch) -> Future[Answer]:
        # By position, since some engines take arguments with a name for themselves.
        return self._executor.submit(process_far, self._run, self._setup, self._folder, batch)

    def note_done(self, slot: Slot, future: Future[Answer]) -> None:
        """In any thread."""
        self._come_back.append((slot, future))
        self._wake()

    def attend(self, ready: Collection[object], now: float) -> list[Worker]:
        """Pass on what has come back."""
        while self._come_back:
            slot, future = self._come_back.popleft()
            if slot.future is not future:  # it was abandoned
                continue
            answer = _read(future, len(slot.batch))
            if isinstance(answer, BaseException):
                self._note_lost(slot, answer)
                continue
            self._answered = True
            number, seconds, frames = answer
            if number:
                self._books.note_begun(slot.serial, now - seconds)
            slot.pass_on(number, frames)
        return [worker for worker in self.values() if worker.was_clean is not None]

    def _note_lost(self, slot: Slot, error: BaseException) -> None:
        """Decide who is to blame, and whether the run has to end."""
        slots = [one for one in self.values() if isinstance(one, Slot)]
        in_flight = [path for one in slots for path in one.batch]
        ends = broken = slot.refused or isinstance(error, (BrokenExecutor, CancelledError))
        if broken:
            just_now = isinstance(error, BrokenExecutor) and not (slot.refused or self.error)
            slot.to_blame = just_now and len(in_flight) == 1
        elif self._answered:
            slot.to_blame = len(slot.batch) == 1
        else:
            self._lost += 1
            ends = self._lost >= LOST_ATTEMPTS
        text, traceback = describe(error)
        slot.how, slot.state = f"was lost: {text}", State.CONDEMNED
        slot.die()
        if ends and self.error is None:
            self.error = ExecutorError(self.engine, text, in_flight, broken, traceback)

    def statuses(self, now: float) -> list[WorkerStatus]:
        raise RuntimeError(
            "workers() only knows the runner's own worker processes: for an executor's, look at "
            "its dashboard or logs"
        )


class Slot(Worker):
    """Room for one batch in flight, in the place of a process. Lives in the runner's process.

    Attributes:
        batch: what is in flight, with `future`; empty while nothing is.
        future: what the executor has promised, or `None`.
        refused: whether it has not even taken the batch.
        how: how it ends, in words, unless in peace.
    """

    state = State.READY  # it needs no initializer
    reported_dead = True  # nobody waits for its end: the loop is woken by what comes back
    to_blame = False
    how = "was abandoned"

    def __init__(self, crew: FarCrew, name: str, results: PipeWriter) -> None:
        """`results` is the write end of its pipe to the saver."""
        self.name = name
        self.batch: Batch = []
        self.future: Future[Answer] | None = None
        self.refused = False
        self._crew = crew
        self._results = results
        self._outcomes = 0

    def deal(self, batch: Batch, now: float) -> None:
        self.batch = batch
        note_done = functools.partial(self._crew.note_done, self)
        try:
            self.future = self._crew.submit(batch)
            self.future.add_done_callback(note_done)
        except BaseException as error:  # an engine may raise anything; it is told like all the rest
            self.refused = True
            self.future = Future()
            self.future.set_exception(error)
            note_done(self.future)

    def recall(self) -> None:
        """No executor can."""

    def pass_on(self, number: int, frames: bytes) -> None:
        """Write what has come back to the saver; what has not is to do again."""
        self.batch, self.future = [], None
        self._outcomes += number
        self._results.write(frames + plain_frame(BatchOver()))

    def tell_no_more(self) -> None:
        """It may leave: nobody dismisses one that has a batch in flight."""
        self._end_stream(self._outcomes)

    def _end_stream(self, outcomes: int) -> None:
        self._results.write(plain_frame(Done(outcomes)))
        self._results.finish()

    def die(self) -> None:
        """Nothing will come of its batch. Its stream ends as a dead worker's: with what came of
        earlier ones, and without a `Done` that is right."""
        self.batch, self.future = [], None
        self._end_stream(_LOST)

    def signal_group(self, name: str) -> None:
        """Do not wait for its batch, and ignore what still comes of it."""
        future = self.future
        self.die()
        if future is not None:
            with contextlib.suppress(BaseException):  # some engines cannot, and raise something
                future.cancel()

    def has_ended(self) -> bool:
        """There is nothing to wait for after its stream."""
        return True

    def bury(self) -> tuple[str, str]:
        self._results.close()
        return self.how, ""


def _read(future: Future[Answer], most: int) -> Answer | BaseException:
    """What has come of a batch of `most` files, or why nothing has."""
    try:
        answer: object = future.result(0)
    except BaseException as error:
        return error
    match answer:
        case (int(number), float(seconds), bytes(frames)) if 0 <= number <= most:
            return number, seconds, frames
    return TypeError(f"the executor made {answer!r:.200} of what was returned")
