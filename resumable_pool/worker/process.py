"""What runs in a worker process.

It reads batches of paths from its own pipe, calls the user's function for one after the other,
turns what it returns into bytes, as the checkpoint's format says, and writes each outcome to its
own pipe to the saver at once. It hands back the rest of a batch if that takes longer than planned,
if it is told to, or if the runner is no more. When its pipe of paths is closed, it says `Done`,
with the number of outcomes, and exits.

Knows nothing of the checkpoint, of other workers, or of what is done about a failure.
"""

from __future__ import annotations

import faulthandler
import functools
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from ..between import children, messages, pipes, system
from ..between.clock import monotonic
from ..between.frames import BATCH_OVER, FrameReader, plain_frame
from ..between.messages import BATCH_SECONDS, Batch, Setup
from ..values import Bytes, name_script_main
from .calling import initialize, process_batch, start_failed
from .slot import take_slot

# Exit statuses; they only word a message.
LOST_SAVER, LOST_PIPE, NOT_STARTED, BROKEN = 71, 72, 73, 74

# A batch that takes so much longer than it was meant to ends early.
_LONGEST_BATCH = 2 * BATCH_SECONDS

# Between quick files there is a look around, for what the last of them may have left behind (apart
# from an alarm, and from another directory if there are relative paths) and for word from the
# runner, only so often: each time it costs as much as several such files.
_LOOK_SECONDS = 0.001


def run_worker(
    tasks: pipes.End,
    last_words: pipes.End,
    results: pipes.End,
    inherited: Setup | None,
    slot: int,
    folder: str,
) -> NoReturn:
    """The whole life of a worker process."""
    take_slot(slot)
    tasks, last_words, results = children.do_first_things(tasks, last_words, results)
    if system.WRITES_TRACEBACKS:
        # A crash in native code leaves its traceback in a pipe of its own, for the failure's text.
        # What does not fit is dropped.
        pipes.never_wait(last_words)
        faulthandler.enable(last_words.fileno(), all_threads=False)
    name_script_main()
    try:
        status = _InWorker(tasks, results, last_words, folder).run(inherited)
    except BaseException:
        # Only what the function has set in motion can raise here: a signal handler, say. There is
        # no telling what is sound any more.
        os._exit(BROKEN)
    children.leave(status)


class _InWorker:
    """What runs in a worker process."""

    def __init__(
        self, tasks: pipes.End, results: pipes.End, last_words: pipes.End, folder: str
    ) -> None:
        self._tasks = FrameReader(tasks, bytes, waits=True)
        self._received: list[bytes] = []
        self._last_words = last_words.fileno()
        self._results = results.fileno()
        self._here = pipes.open_folder(folder)
        self._ours = [tasks.fileno(), self._results, self._last_words]
        if isinstance(self._here, int):
            self._ours.append(self._here)
        self._identities = pipes.identities(self._ours)
        self._told = pipes.Poll()
        self._told.register(tasks, pipes.POLLIN)
        self._pid = os.getpid()
        self._outcomes = 0
        self._look_at = 0.0

    def run(self, inherited: Setup | None) -> int:
        """Until there is nothing more to do. Returns the exit status."""
        self._send(messages.Hello(self._pid))
        if (message := self._receive()) is not None:  # or nobody needs it any more
            setup = self._set_up(inherited, message)
            if isinstance(setup, messages.StartFailed):
                self._send(setup)
                return NOT_STARTED
            self._send(messages.Ready())
            while (message := self._receive()) is not None:
                self._process_batch(setup, pickle.loads(message))
        self._send(messages.Done(self._outcomes))
        self._go_back()
        return 0

    def _set_up(self, inherited: Setup | None, message: bytes) -> Setup | messages.StartFailed:
        try:
            sent, encoder = pickle.loads(message)
        except BaseException as error:
            what = "the function cannot be loaded in a new process; it must be importable there"
            return start_failed(what, error)
        setup: Setup = (inherited or sent)._replace(encoder=encoder)
        return initialize(setup) or setup

    def _process_batch(self, setup: Setup, batch: Batch) -> None:
        before: Callable[[], object] = system.stop_alarm
        if setup.around is not None or not all(path.startswith("/") for path in batch):
            before = functools.partial(self._make_ready, setup.around)
        due = monotonic() + _LONGEST_BATCH
        for frame, now, last in process_batch(setup, batch, before):
            try:
                if last or now >= self._look_at:
                    last = self._look_around(now, setup.around) or last or now >= due
            except BaseException:  # of what an earlier file has done, perhaps: not this one's fault
                self._write([*frame, BATCH_OVER])
                raise
            self._write([*frame, BATCH_OVER] if last else frame)
            self._outcomes += 1
            if last:
                return

    def _look_around(self, now: float, around: Any) -> bool:
        """Make sure that nothing but its outcome is left of the last file. Returns whether to begin
        no further one: the runner has told us so, or is no more, and who comes after it waits."""
        self._look_at = now + _LOOK_SECONDS
        self._check()
        if around is not None:
            around.end(self._last_words)
        self._go_back()
        system.stop_timers()
        if told := bool(self._received or self._told.poll(0)):
            self._receive()
        return told

    def _go_back(self) -> None:
        """To the folder where relative paths start: a function may have left it."""
        try:  # noqa: SIM105 (which takes longer than all else here)
            os.chdir(self._here)
        except OSError:  # it is gone, and only relative paths need it
            pass

    # Before each call.

    def _make_ready(self, around: Any) -> None:
        self._go_back()
        system.stop_alarm()
        if around is not None:
            around.begin(self._last_words)

    # What it hears and says.

    def _receive(self) -> bytes | None:
        """The runner's next message; `None` when it has closed the pipe, or is no more."""
        while not (self._received or self._tasks.at_end):
            self._received += self._tasks.messages()
        self._check()
        return self._received.pop(0) if self._received else None

    def _send(self, message: messages.FromWorker) -> None:
        if os.getpid() != self._pid:
            os._exit(0)  # the initializer has forked, and this is the copy
        self._check()
        self._write([plain_frame(message)])

    def _write(self, parts: Sequence[Bytes]) -> None:
        # Not looked at each time: its number is so high that what is closed stays closed, and to
        # write there fails.
        try:
            pipes.write(self._results, parts)
        except OSError:
            self._check()  # or it is we who have closed it
            os._exit(LOST_SAVER)

    def _check(self) -> None:
        """The function may have closed our descriptors, and their numbers be files of its own."""
        if pipes.identities(self._ours) != self._identities:
            os._exit(LOST_PIPE)
