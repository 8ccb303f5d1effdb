"""How a run is stopped before everything is done.

Files in progress are finished first. If somebody insists, or it takes too long, they are abandoned:

    GOING ──any request──▶ FINISHING ──due──▶ ABANDONING ──a signal, after a while──▶ GIVEN_UP

That is `Stopping`: pure, the clock is an argument. Requests come from signals and from other
threads. They are noted during the run, and the signals are delivered afterwards, so that they
interrupt nothing.

A `KeyboardInterrupt` can strike between any two instructions, for instance while a process is being
started, and leave a child that nobody knows about. So the handler only notes the signal and wakes
the loop, and the signal has its usual effect once the run has ended.

Knows no worker. The loop does what is decided here.
"""

from __future__ import annotations

import _thread
import contextlib
import enum
import functools
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from types import FrameType
from typing import Any, NoReturn

from ..between import system
from ..between.clock import NEVER, boottime
from ..errors import ResumablePoolError
from ..records import in_words

# Those that ask a program to end: no system has all of them.
_NAMES = "SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK"
_SIGNALS = [signum for signum in signal.Signals if signum.name in _NAMES]

# What `take` names requests that are no signals.
BY_CALL, TIME_OVER = "asked to stop", "the time set by stop_after is over"
LEFT = "your code has left the loop, raised an exception or ended"
CONSOLE_CLOSED = "the console was closed"


# Of these, what never abandons anything, however often it is asked.
_ASKED = BY_CALL, TIME_OVER, LEFT

# What has come is saved within moments. If it is not, because the saver waits for a dead disk or
# hangs in a hook, somebody may insist; not earlier, since many press Ctrl-C more than twice.
SAVING_SECONDS = 3.0

# A console of Windows that is closed ends its programs after five seconds: time to abandon what is
# in work, and to save what has come.
CLOSING_SECONDS = 3.0


class Phase(enum.Enum):
    """What a run waits for before it ends."""

    GOING = enum.auto()  # all files
    FINISHING = enum.auto()  # those in progress; no others are dealt
    ABANDONING = enum.auto()  # that what has arrived from them is saved
    GIVEN_UP = enum.auto()  # nothing


class Stopping:
    """Whether and how one run is being stopped.

    Attributes:
        phase: what is still waited for.
        due: when the files in progress will be abandoned, or when it is time to say that what has
            arrived from them is not saved yet.
    """

    def __init__(self, grace_period: float) -> None:
        self.phase = Phase.GOING
        self.due = self._insist_at = NEVER
        self._grace_period = grace_period
        self._interrupted = False

    @property
    def stopped(self) -> bool:
        """Whether somebody, or something, has stopped the run."""
        return self.phase is not Phase.GOING

    def hear(self, request: str, now: float) -> str | None:
        """Somebody asks for a stop. Returns what to say of how files in progress are finished, or
        `None` if there is nothing new to be said."""
        if self.phase in (Phase.ABANDONING, Phase.GIVEN_UP):
            if now >= self._insist_at and request not in _ASKED:
                self.phase = Phase.GIVEN_UP
        elif request in _ASKED:
            return None if self.stopped else ""
        elif request != "SIGINT":
            closing = CLOSING_SECONDS if request == CONSOLE_CLOSED else NEVER
            seconds = min(closing, self._grace_period)
            self.due = min(self.due, now + seconds)
            return f", for {in_words(seconds)} at most"
        elif self._interrupted:
            self.due = now
        else:
            self._interrupted = True
            return "; press it again to abandon them"
        return None

    def stop(self) -> bool:
        """From now on files in progress are finished. Returns whether that is new."""
        new = not self.stopped
        if new:
            self.phase = Phase.FINISHING
        return new

    def abandon(self, now: float) -> bool:
        """It is `due`. Returns whether to abandon the files in progress; what has arrived from them
        is abandoned only if somebody insists, once that has been said."""
        if self.phase is not Phase.FINISHING:
            self.due = NEVER
            return False
        self.phase = Phase.ABANDONING
        self.due = self._insist_at = now + SAVING_SECONDS
        return True


class StopRequests(contextlib.ExitStack):
    """Notes SIGINT, SIGTERM, SIGHUP, Ctrl-Break and a closed console while it is entered, but not
    the signals that are ignored (by `nohup`, or in a script's background job), and not outside of
    the main thread, where signals do not arrive.

    Attributes:
        wakener: ready for `multiprocessing.connection.wait` when something has been asked for, or
            the loop is to be woken.
        signals: those that have come.
    """

    def __init__(self, seconds: float = NEVER) -> None:
        """`seconds`: after so many, a stop is requested by itself."""
        super().__init__()
        # Not by a clock that stands still with the machine: whoever has set this time does not.
        self._over_at = boottime() + seconds
        # A wait resumes after a handler, and finds what that has put there. (A signal that comes in
        # the moment before the wait begins is seen at the loop's next tick.)
        self._new: deque[str] = deque()
        self._bell: system.Bell | None = system.Bell()
        self.wakener = self._bell.handle
        # Or the bell could be closed, and its number be another's, in the middle of `wake`.
        self._guard = threading.RLock()
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}
        self.signals: list[int] = []
        self._ended = False
        self._over = threading.Event()

    def __enter__(self) -> StopRequests:
        if threading.current_thread() is threading.main_thread():
            for signum in _SIGNALS:
                before = signal.getsignal(signum)
                if before not in (signal.SIG_IGN, None):
                    self._before[signum] = before
                    self.callback(self._put_back, signum)
                    signal.signal(signum, self._note)
            self.callback(system.ConsoleEnd(self._note_console_closed).close)
        # First of all, since a signal may come right then, and its handler raise.
        self.callback(setattr, self, "_ended", True)
        return self

    def _put_back(self, signum: int) -> None:
        in_main = threading.current_thread() is threading.main_thread()
        # Another run, interleaved with this one, may have begun later and not ended yet.
        if in_main and signal.getsignal(signum) == self._note:
            signal.signal(signum, self._handler_before(signum))

    def _handler_before(self, signum: int) -> Any:
        """That of before, and not of a run that had begun earlier and has ended."""
        handler = self._before[signum]
        owner = getattr(handler, "__self__", None)
        if isinstance(owner, StopRequests) and owner._is_over:
            return owner._handler_before(signum)
        return handler

    @property
    def _is_over(self) -> bool:
        """Whether a signal is none of its business (any more)."""
        return self._ended or os.getpid() != self._pid

    def take(self) -> Iterator[str]:
        """What has been asked since the last time: names of signals, or one of `_ASKED`."""
        if self._bell is not None:
            self._bell.hush()
        while self._new:
            yield self._new.popleft()
        if boottime() >= self._over_at:
            self._over_at = NEVER
            yield TIME_OVER

    @property
    def seconds_left(self) -> float:
        """In how many seconds the time will be over."""
        return self._over_at - boottime()

    def ask(self, request: str = BY_CALL) -> None:
        """Ask for a stop, from any thread and any signal handler."""
        self._new.append(request)
        self.wake()

    def wake(self) -> None:
        """Let the loop look around, as `ask`; once all is over this wakes nobody."""
        with self._guard:
            if self._bell is not None:
                self._bell.ring()

    def finish(self, steps: Iterator[object]) -> None:
        """Ask for a stop, and take all further `steps`, so that everything is saved. Where a loop
        over them has ended of itself, there are none."""
        self.ask(LEFT)
        with contextlib.suppress(ValueError):
            for _ in steps:
                pass
            return
        self._over.wait()  # it goes on in another thread, where it needs all that is left here

    def deliver(self) -> None:
        """After the run: give it up, and let the signals that came have their normal effect.

        Raises:
            KeyboardInterrupt: that of SIGINT. Whatever a handler of the program's raises.
            SystemExit: the system spares this process the normal effect, which is to die of the
                signal, because it is the first of its container; so it leaves with a shell's status
                for that.
        """
        with self._guard:
            bell, self._bell = self._bell, None
            if bell is not None:
                bell.close()
        self._over.set()
        for signum in self._before:  # what a handler that raised has kept it from
            self._put_back(signum)
        _deliver(*dict.fromkeys(self.signals))

    def _note(self, signum: int, frame: FrameType | None) -> None:
        # When the run has ended in another thread than it began in, where handlers cannot be put
        # back:
        if self._is_over:
            signal.signal(signum, self._handler_before(signum))
            _take_effect(signum, frame)
            return
        self.signals.append(signum)
        self.ask(signal.Signals(signum).name)

    def _note_console_closed(self) -> None:
        """Windows only. It takes the effect of SIGBREAK, as in C."""
        self.signals.append(getattr(signal, "SIGBREAK", signal.SIGTERM))
        self.ask(CONSOLE_CLOSED)


def _after_fork_in_child() -> None:
    """No run is its own. Right away: in what another thread than the main one has forked, Python
    from 3.13 on runs handlers only where something waits."""
    for signum in _SIGNALS:
        owner = getattr(signal.getsignal(signum), "__self__", None)
        if isinstance(owner, StopRequests):
            signal.signal(signum, owner._handler_before(signum))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


@contextlib.contextmanager
def handlers_held_back() -> Iterator[None]:
    """Handlers of signals run afterwards, once each, but for those that only note a request: what
    one raises (SIGALRM's, say) would strike between any two instructions, and leave a process that
    nobody knows about."""
    pid, came, before = os.getpid(), list[int](), dict[int, Any]()
    held = True

    def note(signum: int, frame: FrameType | None) -> None:
        if held and os.getpid() == pid:
            came.append(signum)
        else:  # it is not put back yet, or this is a child that another thread has forked
            before[signum](signum, frame)

    try:
        if threading.current_thread() is threading.main_thread():
            for signum in map(int, signal.valid_signals()):
                old = signal.getsignal(signum)
                if callable(old) and getattr(old, "__func__", None) is not StopRequests._note:
                    before[signum] = old
                    signal.signal(signum, note)
        yield
    finally:
        try:
            _restore(before)
        finally:
            held = False
            _deliver(*dict.fromkeys(came))


def _restore(handlers: dict[int, Any]) -> None:  # no loop in a `try` block, see `Run.go`
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def _deliver(*signums: int) -> None:
    """One after the other, the last one first, whatever their handlers raise. (An `ExitStack` would
    take away the context of that: what the run has ended with.)"""
    if signums:
        *earlier, last = signums
        try:
            _take_effect(last, sys._getframe())
        finally:
            _deliver(*earlier)


def _take_effect(signum: int, frame: FrameType | None) -> None:
    """Do as the signal would have done, had it not been noted."""
    handler = signal.getsignal(signum)
    if callable(handler) and threading.current_thread() is threading.main_thread():
        # Not raised anew: who waits for it at the wake-up descriptor (asyncio) has heard it.
        handler(signum, frame)
        return
    signal.raise_signal(signum)
    if handler is signal.SIG_DFL:
        raise SystemExit(128 + signum)


# What says all that there is to say, so that our part of its traceback would only hide it.
SHORT = (KeyboardInterrupt, ResumablePoolError)


def shorten(error: BaseException) -> None:
    """Before it is raised once more. The context of a Ctrl-C is what had gone wrong by then."""
    for one in (error, error.__context__):
        if isinstance(one, SHORT):
            one.__traceback__ = None


class Loop(Iterator[Any]):
    """What a `for` loop goes through: the items of a generator, which is closed when the loop is
    left, whatever that raises.

    Left by `break` or `return`, it is the garbage collector that closes it, and what that raises
    would reach nobody. So when that is over, a signal's handler raises it in the main thread, in
    the frame that left the loop: from the moment when this object is gone nothing written in Python
    runs until Python looks for signals. (A thread that raises it later, or the trace function of
    the frame, were refused: the one comes at any time, the other belongs to debuggers.) In another
    thread nothing can raise it.
    """

    def __init__(self, items: Generator[Any, None, None]) -> None:
        self._items = items
        self._interrupt: _Interrupt | None = None

    def __next__(self) -> Any:
        try:
            return next(self._items)
        except SHORT as error:
            shorten(error)
            raise error

    def close(self) -> None:
        """Leave the loop here."""
        self._items.close()

    def __del__(self) -> None:
        try:
            self._items.close()
        except BaseException as error:
            if threading.current_thread() is threading.main_thread():
                self._interrupt = _raise_at_interrupt(error)
        del self  # or the error's traceback would hold it, as it holds this frame


# Not SIGINT, where there is another that nobody uses: it is also told to whoever waits for signals
# at the wake-up descriptor (asyncio), and that would be a Ctrl-C that nobody has pressed.
_QUIET: signal.Signals = getattr(signal, "SIGURG", signal.SIGINT)


class _Interrupt:
    """Makes Python call the handler of that signal, soon after it is dropped."""

    __del__ = staticmethod(functools.partial(_thread.interrupt_main, _QUIET))


def _raise_at_interrupt(error: BaseException) -> _Interrupt:
    """In the main thread."""
    shown = getattr(sys, "last_value", None)

    def raise_it(signum: int, frame: FrameType | None) -> None:
        signal.signal(_QUIET, before)
        if getattr(sys, "last_value", None) is not shown:
            return  # the loop has raised, too, and Python is writing that down: let it be read
        if frame is not None and frame.f_code is _AFTER_THE_PROGRAM:
            _end_program(error)
        raise error

    shorten(error)
    before = signal.signal(_QUIET, raise_it)
    one: BaseException | None = error
    while one is not None:  # that it came of closing a generator is of no interest
        if isinstance(one.__context__, GeneratorExit):
            one.__context__ = None
        one = one.__context__
    return _Interrupt()


# The first that runs when the main thread has nothing more to run: nobody could catch anything.
_AFTER_THE_PROGRAM = threading._shutdown.__code__  # type: ignore[attr-defined]


def _end_program(error: BaseException) -> NoReturn:
    """As if the program had raised it in its last line."""
    if not isinstance(error, SystemExit):
        sys.excepthook(type(error), error, error.__traceback__)
    from ..between import children  # few end so

    children.leave_as_a_program()
    if isinstance(error, KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    status = error.code if isinstance(error, SystemExit) else 1
    os._exit(status if isinstance(status, int) else 0 if status is None else 1)
