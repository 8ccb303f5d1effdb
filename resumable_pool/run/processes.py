"""The processes of a run, as its runner sees them: started, told what to do, looked after, ended.

    Saver    the saver; what runs in it is in saver/process.py
    Worker   one worker: what is wanted of it, what is known of it, and when it is overdue
    Crew     all of them

What runs in a worker's process is in worker/process.py. Or it has none, and only behaves like one:
executors.py puts somebody else's `Executor` in its place, and nothing else differs.

Knows no outcome: whom to deal what is books.py's, what an end means the loop's.
"""

from __future__ import annotations

import enum
import pickle
import sys
from collections.abc import Callable, Collection, Iterator
from itertools import chain
from multiprocessing.context import BaseContext
from typing import Any

from ..between import children, forks, pipes, system
from ..between.clock import NEVER
from ..between.frames import PIPE_SIZE, FrameReader
from ..between.messages import Batch, Died, Report, StartFailed, ToSaver, Watch
from ..between.time_limit import Deadline, limit_of
from ..between.waiting import Waiter
from ..errors import ResumablePoolError, SaverError, WorkerStartError
from ..files import here
from ..options import Options
from ..records import WorkerStatus
from ..saver.process import run_saver
from ..saver.saving import Saving
from ..values import Encoder
from ..worker import calling
from ..worker import process as in_worker
from .books import Books
from .stopping import handlers_held_back

# What the workers' pipes hold together. Linux lets a user have 64 MiB in all pipes; who has used
# that up gets tiny ones, in every program.
_ALL_PIPES = 16 << 20

# How often to ask the processes themselves whether they live: something may keep an end quiet.
ASK_SECONDS = 1.0

# Between asking a process group to end (SIGTERM) and making it (SIGKILL).
POLITE_SECONDS = 2.0

_STATUS_IN_WORDS = {
    0: "exited with status 0 in the middle of it (os._exit, or exit in a library?)",
    in_worker.LOST_PIPE: "lost its pipes: the function closed descriptors that are not its own",
    in_worker.BROKEN: "was broken by an exception between two files (from a signal handler?)",
}


class Saver:
    """The runner's handle on the saver process. Lives in the runner's process.

    Attributes:
        process: the process.
        gone: whether it has not started, or has ended, and every report of it was read.
    """

    def __init__(self, context: BaseContext, saving: Saving, waiter: Waiter) -> None:
        """`waiter` waits for its reports, and sends what it could not be told at once."""
        self.gone = True
        self._handed_over: dict[int, pipes.End] = {}  # the ends, by worker
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
        self.gone = False

    def tell(self, message: ToSaver) -> None:
        """Give an order. If the saver is dead nothing happens: its reports end, and tell so."""
        self.process.tell(pickle.dumps(message))

    def watch(self, worker: int, results: pipes.End) -> None:
        """Hand over the read end of a worker's pipe, and close it here, at the latest when
        something has come through it: only if nobody else holds it does a worker notice that the
        saver is dead."""
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
                forks.close(self._handed_over.pop(worker))
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
        forks.close(*self._handed_over.values())
        exitcode, _ = self.process.reap(in_peace=True)
        in_peace = exitcode in (None, 0, system.LATE)
        return "" if in_peace else system.ending_in_words(exitcode)


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


class Worker(children.Child):
    """One worker, as the runner sees it: its process, what is wanted of it, and what is known. It
    has one batch at a time, and a stream of its own to the saver. In the pipe from it, it leaves a
    traceback if its file takes too long, or crashes it. Lives in the runner's process.

    Attributes:
        serial: its number; no other worker of the run has it.
        slot: its place among the workers; the one that replaces it gets the same place.
        state: what is wanted of it.
        finished: how many outcomes its process is known to have sent,
        done_before: and those before it in its slot, of which there were `restarts`.
        deadline: that of the call which it is at.
        kill_at: when to kill it, if it has not ended by then.
        reported_dead: whether the saver has been told of its death.
        was_clean: whether its stream has ended well, and what is left is for it to leave; `None`
            while it has not ended.
        lost: whether its stream has broken off, and it is only waited for until it is dead.
        to_blame: whether it is certain, if it dies, that the file that it was at is to blame.
        was_killed: once it is buried, whether it did not end by itself.
        unread: once it is buried, whether it has never taken the batch that it was dealt last.
        said: why it cannot start, in its own words.
    """

    serial: int
    slot: int
    deadline: Deadline
    state = State.STARTING
    finished = done_before = restarts = 0
    kill_at = NEVER
    reported_dead = lost = was_killed = unread = False
    was_clean: bool | None = None
    to_blame = True  # it sends every outcome before it begins the next file
    said: StartFailed | None = None
    _sent = 0  # bytes of the last batch, if there was one, and no word after it

    def note_ready(self) -> None:
        """Its initializer has returned."""
        if self.state is State.STARTING:
            self.state = State.READY

    def deal(self, batch: Batch, now: float) -> None:
        """Give it its next batch. Never blocks."""
        self.deadline.begin(now)
        message = pickle.dumps(batch)
        self._sent = len(message)
        self.tell(message)

    def recall(self) -> None:
        """Tell it to begin no further file of its batch."""
        self._sent = 0
        self.tell(pickle.dumps([]))

    def note_outcomes(self, number: int) -> None:
        """So many more of its files are done, in time."""
        self.finished += number
        self.deadline.note_over()

    def dismiss(self) -> None:
        """Tell it to exit when it has finished its batch."""
        if self.state is not State.CONDEMNED:
            self.state = State.LEAVING
        self.tell_no_more()

    def note_end(self, clean: bool, now: float) -> None:
        """Its stream has ended. If it lives, and has lost that, it is about to be dead, or does not
        know of it yet."""
        self.was_clean = clean
        if not clean and not self.has_ended():
            self.lost = True
            self.deadline.stop()
            self.kill_at = now + children.DYING_SECONDS

    def terminate(self, now: float) -> None:
        """Ask it, and what it has started, to end at once; at `kill_at` nobody asks any more."""
        self.state = State.CONDEMNED
        self.deadline.stop()
        self.kill_at = now + POLITE_SECONDS
        self.signal_group("SIGTERM")

    def kill(self) -> None:
        """Make it, and what it has started, end at once."""
        self.state = State.CONDEMNED
        self.kill_at = NEVER
        self.signal_group("SIGKILL")

    def bury(self) -> tuple[str, str]:
        """It is gone, or was killed just now; kill what it has started, too, if it did not leave in
        peace.

        Returns:
            How it ended, in words, and the traceback that it left if it crashed in native code, or
            took too long.
        """
        self.unread = self._sent > 0 and self.has_unread(self._sent)
        exitcode, left = self.reap(in_peace=bool(self.was_clean))
        if self.lost and self.state is State.CONDEMNED:
            exitcode = None  # by us
        self.was_killed = system.was_killed(exitcode)
        words = exitcode is not None and _STATUS_IN_WORDS.get(exitcode)
        return words or system.ending_in_words(exitcode), _traceback(self.deadline.words + left)


def _traceback(last_words: bytes) -> str:
    """What a worker has left of a crash, or of where a file was that took too long."""
    words = last_words.decode("utf-8", "replace")
    begin = max(words.rfind("Timeout ("), words.rfind("Fatal Python error"))
    # Below it is only how the function was called.
    return words[begin:].split(f'  File "{calling.OWN_FILE}"')[0] if begin >= 0 else ""


class Crew(dict[int, Worker]):
    """The workers of one run, by their serial numbers: those that live, and those that are just
    dead. Lives in the runner's process. The `books` know what they have in work; the `waiter`
    sends them what they cannot take at once; `wake` makes the loop look around."""

    engine = ""  # what somebody else's is called, who alone can end what it has
    error: ResumablePoolError | None = None  # why the run cannot go on

    def __init__(
        self, options: Options, saver: Saver, books: Books, waiter: Waiter, wake: Callable[[], None]
    ) -> None:
        super().__init__()
        self._wake = wake
        self._context = options.context
        self._setup = options.setup
        if options.timeout < NEVER:
            with handlers_held_back():
                limit = limit_of(options.timeout, self._context)
            self._setup = self._setup._replace(around=limit)
            books.batch_seconds = 0.0  # it must be known when each call begins
        self.forked = self._context.get_start_method() == "fork"
        # What is forked inherits it, so that it need not be picklable.
        self._inherited = self._setup if self.forked else None
        self._saver = saver
        self._books = books
        self._waiter = waiter
        self._folder = here()  # where relative paths start
        self._started = 0
        self._latest: list[Worker | None] = [None] * books.workers  # by slots
        self._most_tasks = options.max_tasks_per_child or sys.maxsize
        self._ask_at = 0.0
        self._pickled_setup = b""  # once the checkpoint is locked

    def are(self, *states: State) -> list[Worker]:
        """The workers in one of these states, that are not lost."""
        return [w for w in self.values() if w.state in states and not w.lost]

    # How they come and go.

    def start(self) -> None:
        """One more worker, whose outcomes the saver reads.

        Raises:
            WorkerStartError: the system would not start it.
        """
        serial, self._started = self._started, self._started + 1
        slot = min({*range(len(self._latest))} - {worker.slot for worker in self.values()})
        try:
            worker = self._start(serial, slot)
        except (OSError, WorkerStartError) as error:
            self._books.lose(serial)
            # The fork server may have made it, and it waits for its first words, with its pipe.
            self._saver.tell(Died(serial))
            known = isinstance(error, WorkerStartError)
            raise error if known else children.cannot_start("worker", error) from None
        worker.serial, worker.slot = serial, slot
        worker.deadline = Deadline(worker, self._setup.around)
        if (before := self._latest[slot]) is not None:
            worker.restarts = before.restarts + 1
            worker.done_before = before.done_before + before.finished
        self[serial] = self._latest[slot] = worker
        if self._pickled_setup:
            worker.tell(self._pickled_setup)

    def _start(self, serial: int, slot: int) -> Worker:
        self._books.enter(serial)
        results = self._pipe_to_saver(serial)
        try:
            # It goes on with its next file while the saver has not read the last result yet.
            pipes.enlarge(results, min(PIPE_SIZE, _ALL_PIPES // len(self._latest)))
            arguments = (self._inherited, slot, self._folder)
            started = (self._context, f"worker {slot}", in_worker.run_worker, arguments)
            return Worker(*started, self._waiter, results)
        finally:
            forks.close(results)

    def _pipe_to_saver(self, serial: int) -> pipes.End:
        """Its write end. No child ever holds the read end, and so a worker notices a dead saver."""
        results, writer = pipes.pipe(duplex=False)
        self._saver.watch(serial, results)
        return writer

    def begin(self, encoder: Encoder) -> None:
        """The checkpoint is locked: the files are ours, and records are made by `encoder`. Until
        now no initializer was called, since that may be costly."""
        self._pickled_setup = pickle.dumps((None if self._inherited else self._setup, encoder))
        for worker in self.values():
            worker.tell(self._pickled_setup)

    def most(self, serial: int) -> int:
        """How many files the worker may be dealt at a time."""
        return self._most_tasks - self[serial].finished

    # What happens, and what is due.

    def events(self, now: float) -> list[Any]:
        """What to wait for, to hear of what `attend` and `end_overdue` are for."""
        living = [worker for worker in self.values() if not worker.reported_dead]
        words = [worker.heard for worker in living if now >= worker.deadline.late_at]
        return [*(worker.sentinel for worker in living), *words]

    def attend(self, ready: Collection[object], now: float) -> list[Worker]:
        """Tell the saver who is dead, so that it does not wait for the end of that stream, which
        something that the worker has forked may hold open.

        Args:
            ready: the sentinels that are. Something forked may keep a sentinel quiet, too, so now
                and then the processes themselves are asked.

        Returns:
            Who is gone since, of those whose streams had ended before.
        """
        gone: list[Worker] = []
        ask = now >= self._ask_at
        if ask:
            self._ask_at = now + ASK_SECONDS
        for serial, worker in self.items():
            ended = worker.sentinel in ready
            if not ended and (ask or worker.was_clean is not None):
                ended = worker.has_ended()
            if ended and worker.was_clean is not None:
                gone.append(worker)
            elif ended and not worker.reported_dead:
                worker.reported_dead = True
                self._saver.tell(Died(serial))
        return gone

    def moments(self) -> list[float]:
        """When `end_overdue` will have something to do, if nothing else happens."""
        return [
            at for w in self.values() for at in (w.deadline.late_at, w.deadline.end_at, w.kill_at)
        ]

    def end_overdue(self, now: float) -> None:
        """Terminate those whose files take too long, kill those who do not end, or do not leave."""
        for worker in [worker for worker in self.values() if not worker.reported_dead]:
            if worker.state is State.LEAVING and not self._books.is_busy(worker.serial):
                # An initializer may keep it, a lock that it has inherited from a thread that was
                # not forked, a thread that does not let go of the interpreter, a stop.
                worker.kill_at = min(worker.kill_at, now + children.LEAVING_SECONDS)
            if worker.deadline.look(now):
                worker.terminate(now)
            if now >= worker.kill_at:
                worker.kill()

    # How all are stopped.

    def recall(self) -> None:
        """Tell those who have a batch to begin no further file of it."""
        for worker in self.values():
            if self._books.is_busy(worker.serial):
                worker.recall()

    def dismiss(self) -> None:
        """Tell all to exit when they have finished what they have."""
        for worker in self.are(State.STARTING, State.READY):
            worker.dismiss()

    def terminate(self, now: float, *states: State) -> None:
        """Ask those in these states to end at once; do not wait for what they have."""
        for worker in self.are(*states):
            worker.terminate(now)

    def kill(self) -> None:
        """Kill all, and what they have started. Nobody is left, and nothing of theirs is open."""
        for worker in self.values():
            worker.kill()
        while self:
            serial, worker = self.popitem()
            self._saver.tell(Died(serial))
            worker.bury()

    # What a person sees.

    def statuses(self, now: float) -> list[WorkerStatus]:
        """What each does now, by slots. From any thread.

        Raises:
            RuntimeError: nobody can tell.
        """
        return sorted(self._status(worker, now) for worker in [*self.values()])

    def _status(self, worker: Worker, now: float) -> WorkerStatus:
        slot = worker.slot
        path, since = self._books.in_work(worker.serial) or (None, now)
        busy = path is not None
        return WorkerStatus(
            slot=slot,
            pid=worker.pid,
            state="busy" if busy else "starting" if worker.state is State.STARTING else "idle",
            path=path,
            seconds=max(0.0, now - since) if busy else None,
            files_done=worker.done_before + worker.finished,
            restarts=worker.restarts,
        )
