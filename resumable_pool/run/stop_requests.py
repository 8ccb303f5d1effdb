"""Requests to stop a run, from signals and from other threads: noted while it goes on, and the
signals delivered afterwards, so that they interrupt nothing.

A `KeyboardInterrupt` can strike between any two instructions, in the middle of the start of a
process for instance, and leave a child that nobody knows. So the handler only notes the signal and
wakes the loop, and it takes its normal effect once the run has been brought to an end.

Knows nothing of what a stop means to a run.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any

from ..between import system
from ..between.clock import NEVER
from .inbox import Inbox

# Those that ask a program to end: no system has all of them.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    if hasattr(signal, name)
]

# What `take` names requests that are no signals.
BY_CALL, TIME_OVER = "asked to stop", "the time of stop_after is over"
CONSOLE_CLOSED = "the console was closed"


class StopRequests:
    """Notes SIGINT, SIGTERM, SIGHUP, Ctrl-Break and a closed console while it is entered, but not
    the signals that are ignored (by `nohup`, or in a script's background job), and not outside of
    the main thread, where signals do not arrive.

    Attributes:
        wakener: ready for `multiprocessing.connection.wait` when something has been asked for.
    """

    def __init__(self, context: BaseContext, seconds: float = NEVER) -> None:
        """`seconds`: after so many, a stop is requested by itself."""
        # Not by a clock that stands still with the machine: whoever has set this time does not.
        self._over_at = time.monotonic() + seconds
        # A wait resumes after a handler, and finds what that has put there. (A signal that comes in
        # the moment before the wait begins is seen at the loop's next tick.)
        self._new: Inbox[str] = Inbox(context)
        self.wakener = self._new.wakener
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self._signals: list[int] = []
        self._ended = False
        self._console: system.ConsoleEnd | None = None

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                before = signal.getsignal(signum)
                if before not in (signal.SIG_IGN, None):
                    self._before[signum] = before
                    signal.signal(signum, self._note)
            self._console = system.ConsoleEnd(self._note_console_closed)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Put the handlers back."""
        self._ended = True
        if self._console is not None:
            self._console.close()
        if threading.current_thread() is not threading.main_thread():
            return
        with contextlib.ExitStack() as stack:  # a signal may come right now, and its handler raise
            for signum in self._before:
                # Another run, interleaved with this one, may have begun later and not ended yet.
                if signal.getsignal(signum) == self._note:
                    stack.callback(signal.signal, signum, self._handler_before(signum))

    def _handler_before(self, signum: int) -> Any:
        """That of before, and not of a run that had begun earlier and has ended."""
        handler = self._before[signum]
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, StopRequests) and owner._ended:
            return owner._handler_before(signum)
        return handler

    @property
    def signals(self) -> bool:
        """Whether a signal has come."""
        return bool(self._signals)

    def take(self) -> Iterator[str]:
        """What has been asked since the last time: names of signals, `BY_CALL` or `TIME_OVER`."""
        yield from self._new.take()
        if time.monotonic() >= self._over_at:
            self._over_at = NEVER
            yield TIME_OVER

    @property
    def seconds_left(self) -> float:
        """In how many seconds the time will be over."""
        return self._over_at - time.monotonic()

    def ask(self) -> None:
        """Ask for a stop, from any thread."""
        self._new.put(BY_CALL)

    @contextlib.contextmanager
    def finishing(self, steps: Iterator[object]) -> Iterator[None]:
        """Around a loop over `steps`. When that ends early, by an exception or because it is left,
        this asks for a stop and takes all further ones, so that everything is saved. Also at the
        end of a program that still holds such a loop, and whose processes never end otherwise."""
        finish = functools.partial(self._finish, steps)
        atexit.register(finish)
        try:
            yield
        except BaseException:
            finish()
            raise
        finally:
            atexit.unregister(finish)

    def _finish(self, steps: Iterator[object]) -> None:
        self.ask()
        with contextlib.suppress(ValueError):  # it goes on in another thread
            for _ in steps:
                pass

    def deliver(self) -> None:
        """After the run: give it up, and let the signals that came have their normal effect.

        Raises:
            KeyboardInterrupt: that of SIGINT.
            SystemExit: the system spares this process the normal effect, which is to die of the
                signal, because it is the first of its container; so it leaves with a shell's status
                for that.
        """
        self._new.close()
        _deliver(*dict.fromkeys(self._signals))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # In a child that another thread of the program has forked, or when the run has ended in
        # another thread than it began in, where handlers cannot be put back:
        if os.getpid() != self._pid or self._ended:
            signal.signal(signum, self._handler_before(signum))
            signal.raise_signal(signum)
            return
        self._signals.append(signum)
        self._new.put(signal.Signals(signum).name)

    def _note_console_closed(self) -> None:
        """Windows only. It takes the effect of SIGBREAK, as in C."""
        self._signals.append(getattr(signal, "SIGBREAK", signal.SIGTERM))
        self._new.put(CONSOLE_CLOSED)


def _deliver(*signums: int) -> None:
    """One after the other, the last one first, whatever their handlers raise."""
    if signums:
        *earlier, last = signums
        try:
            signal.raise_signal(last)
            if signal.getsignal(last) is signal.SIG_DFL:
                raise SystemExit(128 + last)
        finally:
            _deliver(*earlier)


@contextlib.contextmanager
def broken_pipes_raise() -> Iterator[None]:
    """Writing to a process that has died raises `BrokenPipeError` in this thread, also where the
    program has set SIGPIPE to kill it (the usual idiom of command-line tools)."""
    # Python ignores it unless told otherwise. Then nothing is held back: what an executor starts
    # meanwhile would inherit that, and pass it on to its `yes | head`.
    if sys.platform == "win32" or signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        # What came meanwhile would be delivered with the old mask, so it is taken out first.
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
