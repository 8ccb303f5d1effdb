"""Ctrl-C, while a run goes on: counted and delivered afterwards, so that it interrupts nothing.

A `KeyboardInterrupt` can strike between any two instructions, in the middle of the start of a
process for instance, and leave a child that nobody knows. So the handler only counts and wakes the
loop, and the signal takes its normal effect once the run has been brought to an end.

Knows nothing of what a stop means to a run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from types import FrameType
from typing import Any

from . import forks


class StopRequests:
    """Counts SIGINT while it is entered; does nothing outside of the main thread, where signals do
    not arrive, or where Ctrl-C is ignored (`nohup`, a script's background job).

    Attributes:
        count: how often Ctrl-C was pressed.
        wakener: ready for `multiprocessing.connection.wait` when it was.
    """

    def __init__(self, context: BaseContext) -> None:
        self.count = 0
        self._context = context
        self._pid = os.getpid()
        self._before: Any = None

    def __enter__(self) -> StopRequests:
        self.wakener, self._writer = forks.pipe(self._context, duplex=False)
        if threading.current_thread() is threading.main_thread():
            before = signal.getsignal(signal.SIGINT)
            if before not in (signal.SIG_IGN, None):
                self._before = before
                signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Put the handler back."""
        try:
            if self._before is not None:
                signal.signal(signal.SIGINT, self._before)
        finally:  # a signal may come right now
            forks.close(self.wakener, self._writer)

    def clear(self) -> None:
        """Take notice: `wakener` is ready again only after another signal."""
        while self.wakener.poll():
            self.wakener.recv_bytes()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that another thread of the program has forked
            signal.signal(signal.SIGINT, self._before)
            signal.raise_signal(signal.SIGINT)
            return
        self.count += 1
        # wait() resumes after a handler, and finds this. (A signal that comes in the moment before
        # it begins to wait is seen at its next tick.)
        self._writer.send_bytes(b"!")


@contextlib.contextmanager
def broken_pipes_raise() -> Iterator[None]:
    """Writing to a process that has died raises `BrokenPipeError` in this thread, also where the
    program has set SIGPIPE to kill it (the usual idiom of command-line tools)."""
    if not hasattr(signal, "pthread_sigmask"):
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
