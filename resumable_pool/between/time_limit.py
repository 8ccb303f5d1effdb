"""The time limit of a call: what its worker does about it, and what the runner does.

    worker  TimeLimit   around each call: leaves a traceback when the time is over, by a watchdog,
                        or word that the call was over before
    runner  Deadline    listens to that, and says when the worker is to be ended

Nobody else knows what a time limit is: a worker has something to do around each call, the runner
something that falls due, and the saver patience with those whose runner is gone.

Knows nothing of files, nor of how a worker is ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
from multiprocessing.context import BaseContext
from typing import NamedTuple, NoReturn

from ..records import FailureKind, in_words
from . import children, pipes, system
from .clock import NEVER
from .waiting import Waiter

# A worker whose file takes too long leaves word of where it is, by a clock of its own, and has a
# moment to write that down. If for so long there is no word, it is stopped, say. And when the call
# is over it leaves word of that: its outcome may still have to wait for the saver.
WRITING_SECONDS = 0.1
WORDLESS_SECONDS = 3.0
_CALL_OVER = b"\0"


class TimeLimit(NamedTuple):
    """How long each call may take. What a worker's `Setup` has `around` each call.

    Attributes:
        seconds: from the start of the call.
        watched: whether the worker leaves word of where it is then.
    """

    seconds: float
    watched: bool

    def begin(self, last_words: int) -> None:
        """Right before the call; `last_words` is that pipe."""
        # The watchdog is a thread in C: whatever the function loops in, swallows or blocks does not
        # hinder it, and unlike a signal it interrupts nothing that may still succeed.
        if self.watched:
            with contextlib.suppress(RuntimeError):  # there can be no more threads
                faulthandler.dump_traceback_later(self.seconds, file=last_words)

    def end(self, last_words: int) -> None:
        """When it has returned or raised, and what comes of that is made."""
        if self.watched:
            faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):  # nobody hears it
            pipes.write(last_words, [_CALL_OVER])


class Deadline:
    """Of the call that one worker is at. Lives in the runner's process.

    Attributes:
        late_at: when the call will have taken too long; then its worker is listened to,
        end_at: until it is ended.
        passed: whether it was.
        words: what the worker has said of the call.
    """

    late_at = end_at = NEVER
    passed = False
    words = b""

    def __init__(self, worker: children.Child, limit: TimeLimit | None) -> None:
        self.seconds, self._watched = limit or (NEVER, False)
        self._worker = worker

    def begin(self, now: float) -> None:
        """The worker has been told to call."""
        self.late_at = now + self.seconds
        self.end_at = self.late_at + (WORDLESS_SECONDS if self._watched else 0)

    def note_over(self) -> None:
        """The call is over, in time; whatever was said was said of that."""
        if self.seconds < NEVER:
            self._worker.hear()
        self.words = b""
        self.stop()

    def stop(self) -> None:
        """Nothing is due any more."""
        self.late_at = self.end_at = NEVER

    def look(self, now: float) -> bool:
        """Whether the worker is to be ended now."""
        if now >= min(self.late_at, self.end_at):
            self.words += self._worker.hear()
            if self.words.endswith(_CALL_OVER):
                self.stop()
            elif self.words and now >= self.late_at:
                self.late_at, self.end_at = NEVER, now + WRITING_SECONDS
        self.passed = self.passed or now >= self.end_at
        return now >= self.end_at

    def failure(self, how: str) -> tuple[FailureKind, str]:
        """What to say of the file, if it is to blame for how its worker ended."""
        if not self.passed:
            return "crashed", f"its worker {how}"
        return "timeout", f"took longer than {in_words(self.seconds)}, and was killed"


def limit_of(seconds: float, context: BaseContext) -> TimeLimit:
    """That of so many seconds, where `context` starts the workers. What is forked while a watchdog
    is running here, as under pytest, or in a fork server that has loaded the script, would hang in
    another one; and only trying tells."""
    if context.get_start_method() == "spawn":
        return TimeLimit(seconds, system.WRITES_TRACEBACKS)
    probe = children.Child(context, "probe", _try_watchdog, (), Waiter())
    return TimeLimit(seconds, probe.reap(in_peace=False)[0] == 0)


def _try_watchdog(*ends: pipes.End) -> NoReturn:
    children.do_first_things(*ends)
    faulthandler.cancel_dump_traceback_later()
    os._exit(0)
