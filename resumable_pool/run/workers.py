"""The runner's handle on a worker process: started, given its files, and ended.

Knows nothing of the checkpoint, of other workers, or of what becomes of a file; what runs in the
process is in worker/process.py.
"""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

from ..between import children, pipes, system
from ..between.clock import NEVER
from ..between.messages import Setup, Task
from ..between.waiting import PipeWriter, Waiter
from ..worker.process import BROKEN, CALL_OVER, LOST_PIPE, OWN_FILE, run_worker
from .crew import State

# A worker whose file takes too long leaves word of where it is, by a clock of its own, and has a
# moment to write that down. If for so long there is no word, it is stopped, say. And when the call
# is over it leaves word of that: its outcome may still have to wait for the saver.
WRITING_SECONDS = 0.1
WORDLESS_SECONDS = 3.0

# What a pipe holds at most, unless somebody has enlarged it.
_MOST_WORDS = 1 << 16

# Between asking a process group to end (SIGTERM) and making it (SIGKILL).
POLITE_SECONDS = 2.0

_STATUS_IN_WORDS = {
    0: "exited with status 0 in the middle of it (os._exit, or exit in a library?)",
    LOST_PIPE: "lost its pipes: the function closed descriptors that are not its own",
    BROKEN: "was broken by an exception between two files (from a signal handler?)",
}


class WorkerProcess:
    """The runner's handle on one worker process. Lives in the runner's process.

    Attributes:
        process: the process.
        slot: its place among the workers; the one that replaces it gets the same place.
        last_words: where it leaves a traceback if its file takes too long, or crashes it, and word
            that a call with a time limit is over.
        late_at: when its file will have taken too long, or has just begun late.
        end_at: when to end it for that, or because it does not leave.
        kill_at: when to kill it, if it has not ended by then.
        reported_dead: whether the saver has been told of its death.
        was_clean: whether its stream has ended well, and what is left is for it to leave; `None`
            while it has not ended.
        And those of every `Worker` (crew.py).
    """

    to_blame = True  # it sends every outcome before it begins the next file

    def __init__(
        self,
        context: BaseContext,
        serial: int,
        slot: int,
        results: Connection,
        waiter: Waiter,
        setup: Setup,
        folder: str,
    ) -> None:
        """Start the process. `results` is the write end of its pipe to the saver, `setup` what it
        inherits if it is forked, and `folder` where relative paths start.

        Raises:
            WorkerStartError: the system would not start it.
        """
        self.serial = serial
        self.name = f"worker {slot}"
        self._setup = setup
        self.state = State.STARTING
        self.slot = slot
        self.finished = 0
        self.busy_since = 0.0
        self.timed_out = self.reported_dead = self.was_killed = self.unread = self.lost = False
        self.was_clean: bool | None = None
        self._sent = 0  # bytes of the last batch, if there was one, and no word after it
        self.late_at = self.end_at = self.kill_at = NEVER
        self._words = b""  # of the file that it is at
        with pipes.PipesForChild(context) as made:
            ours, tasks = made.to_child()
            self.last_words, last_words = made.from_child()
            pipes.never_wait(self.last_words)
            ends = (tasks, results, last_words)
            forked = context.get_start_method() == "fork"
            arguments = (*ends, setup if forked else None, slot, folder)
            self.process = children.Child(context, self.name, run_worker, arguments, ends)
        self._tasks = PipeWriter(ours, waiter)

    def set_up(self, pickled: bytes) -> None:
        """Answer its `Hello`, with its pickled `Setup`; it ignores that if it has inherited one."""
        self._tasks.send(pickled)

    def note_ready(self) -> None:
        """Its initializer has returned."""
        if self.state is State.STARTING:
            self.state = State.READY

    def deal(self, batch: Sequence[Task], now: float) -> None:
        """Give it its next batch."""
        self.busy_since = now
        if self._setup.timeout is not None:
            self.late_at = now + self._setup.timeout
            self.end_at = self.late_at + (WORDLESS_SECONDS if self._setup.watched else 0)
        message = pickle.dumps(batch)
        self._sent = len(message)
        self._tasks.send(message)

    def recall(self) -> None:
        """Tell it to begin no further file of its batch."""
        self._sent = 0
        self._tasks.send(pickle.dumps([]))

    def note_outcomes(self, number: int, now: float) -> None:
        """So many more of its files are done, in time."""
        self.busy_since = now  # with the next one of its batch, if there is one
        self.finished += number
        self.late_at = self.end_at = NEVER
        if self._setup.timeout is not None:  # or they may be those of the next one of its batch
            self._hear()
            self._words = b""

    def end_if_overdue(self, now: float) -> None:
        """Terminate it if its file takes too long, kill it if it has not ended when asked."""
        if now >= min(self.late_at, self.end_at):
            self._hear()
            if self._words.endswith(CALL_OVER):
                self.late_at = self.end_at = NEVER
            elif self._words and now >= self.late_at:
                self.late_at, self.end_at = NEVER, now + WRITING_SECONDS
        if now >= self.end_at:
            self.timed_out = True
            self.terminate(now)
        if now >= self.kill_at:
            self.kill()

    def dismiss(self) -> None:
        """Tell it to exit when it has finished its batch."""
        if self.state is not State.CONDEMNED:
            self.state = State.LEAVING
        self._tasks.finish()

    def hurry(self, now: float) -> None:
        """It has nothing more to do. What may keep it from leaving: an initializer, a lock that it
        has inherited from a thread that was not forked, a thread that does not let go of the
        interpreter, a stop."""
        self.end_at = min(self.end_at, now + children.LEAVING_SECONDS)

    def note_end(self, clean: bool, now: float) -> None:
        """Its stream has ended, and it lives: who has lost that is about to be dead, or does not
        know of it yet."""
        self.was_clean, self.lost = clean, not clean
        if not clean:
            self.late_at, self.end_at, self.kill_at = NEVER, NEVER, now + children.DYING_SECONDS

    def terminate(self, now: float) -> None:
        """Ask it, and what it has started, to end at once; at `kill_at` nobody asks any more."""
        self.state = State.CONDEMNED
        self.late_at, self.end_at, self.kill_at = NEVER, NEVER, now + POLITE_SECONDS
        self.process.signal_group("SIGTERM")

    def kill(self) -> None:
        """Make it, and what it has started, end at once."""
        self.state = State.CONDEMNED
        self.kill_at = NEVER
        self.process.signal_group("SIGKILL")

    def bury(self, in_peace: bool) -> tuple[str, str]:
        """It is gone, or was killed just now; kill what it has started, too, if it did not leave
        `in_peace`.

        Returns:
            How it ended, in words, and the traceback that it left if it crashed in native code, or
            took too long.
        """
        self.unread = self._sent > 0 and self._tasks.has_unread(self._sent)
        self._tasks.close()
        exitcode = self.process.reap(in_peace)
        if self.lost and self.state is State.CONDEMNED:
            exitcode = None  # by us
        self.was_killed = system.was_killed(exitcode)
        words = _STATUS_IN_WORDS.get(exitcode) if exitcode is not None else None
        self._hear()
        pipes.close(self.last_words)
        return words or system.ending_in_words(exitcode), self._traceback()

    def _hear(self) -> None:
        """Take what there is of its last words."""
        with contextlib.suppress(OSError, EOFError):
            words = bytearray(_MOST_WORDS)
            count = pipes.read_into(self.last_words, memoryview(words))
            self._words += words[:count]

    def _traceback(self) -> str:
        """What they tell of a crash, or of where a file was that took too long."""
        words = self._words.decode("utf-8", "replace")
        begin = words.find("Timeout (" if self.timed_out else "Fatal Python error")
        # Below it is only how the function was called.
        return words[begin:].split(f'  File "{OWN_FILE}"')[0] if begin >= 0 else ""
