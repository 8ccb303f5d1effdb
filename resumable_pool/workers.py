"""Worker processes: what runs in one, and the runner's handle on it.

A worker reads batches of paths from its own pipe, calls the user's function for one after the
other, pickles what it returns and writes each outcome to its own pipe to the saver at once. When
its pipe of paths is closed it says `Done`, with the number of outcomes, and is gone.

Knows nothing of the checkpoint, of other workers, or of what is done about a failure.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import time
import traceback
from binascii import crc32
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any, NoReturn

from . import forks, processes
from .files import fingerprint
from .frames import FrameWriter
from .messages import Done, Finished, FromWorker, Hello, Ready, Setup, StartFailed
from .records import Failure, Outcome
from .values import UnstorableValue, name_script_main, pickle_value

# Exit statuses; they only word a message.
_LOST_SAVER, _LOST_PIPE, _NOT_STARTED, _BROKEN = 71, 72, 73, 74

_STATUS_IN_WORDS = {
    0: "exited with status 0 in the middle of it (os._exit, or exit in a library?)",
    _LOST_PIPE: "lost its pipes: the function closed descriptors that are not its own",
    _BROKEN: "was broken by an exception between two files (from a signal handler?)",
}

# Enough for any text that a person reads; an exception can carry megabytes.
_MESSAGE_LIMIT, _TRACEBACK_LIMIT = 2_000, 20_000


class Worker:
    """The runner's handle on one worker process. Lives in the runner's process.

    Attributes:
        serial: its number; no other worker of the run has it.
        process: the process.
        ready: whether its initializer has returned.
        dismissed: whether it has been told to leave.
        reported_dead: whether the saver has been told of its death.
        was_killed: once it is buried, whether it did not end by itself.
        busy_since: when it was dealt its batch, by `time.monotonic`.
        kill_at: when to kill it, by the same clock, if it has not ended by then.
    """

    def __init__(
        self,
        context: BaseContext,
        serial: int,
        results: Connection,
        inherited: Setup | None,
        folder: str,
    ) -> None:
        """Start the process. `results` is the write end of its pipe to the saver, `inherited` its
        setup if it is forked, `folder` where relative paths start.

        Raises:
            WorkerStartError: the system would not start it.
        """
        self.serial = serial
        self.ready = self.dismissed = self.reported_dead = self.was_killed = False
        self.busy_since = 0.0
        self.kill_at = float("inf")
        with forks.PipesForChild(context) as pipes:
            self._tasks, tasks = pipes.to_child()
            self._last_words, last_words = pipes.from_child()
            ends = (tasks, results, last_words)
            arguments = (*ends, inherited, folder)
            self.process = processes.Child(context, "worker", run_worker, arguments, ends)

    def set_up(self, pickled: bytes) -> None:
        """Answer its `Hello`, with its pickled `Setup`; it ignores that if it has inherited one."""
        self._send(pickled)

    def deal(self, batch: Sequence[str]) -> None:
        """Give it its next batch. It waits for one, so this never blocks."""
        self.busy_since = time.monotonic()
        self._send(pickle.dumps(batch))

    def dismiss(self) -> None:
        """Tell it to leave when it has finished its batch."""
        self.dismissed = True
        forks.close(self._tasks)

    def signal(self, name: str) -> None:
        """Send a signal to its process group."""
        self.process.signal_group(name)

    def bury(self, in_peace: bool) -> tuple[str, str]:
        """Wait until it is gone; kill what it has started, too, if it did not leave `in_peace`.

        Returns:
            How it ended, in words, and the traceback that it left if it crashed in native code.
        """
        forks.close(self._tasks)
        exitcode = self.process.reap(in_peace)
        self.was_killed = exitcode is None or exitcode < 0
        words = _STATUS_IN_WORDS.get(exitcode) if exitcode is not None else None
        last_words = self._read_last_words()
        forks.close(self._last_words)
        return words or processes.ending_in_words(exitcode), last_words

    def _send(self, message: bytes) -> None:
        with contextlib.suppress(OSError):  # it is dead; its stream will end, and tell so
            self._tasks.send_bytes(message)

    def _read_last_words(self) -> str:
        if sys.platform == "win32":
            return ""
        os.set_blocking(self._last_words.fileno(), False)
        with contextlib.suppress(OSError):
            words = os.read(self._last_words.fileno(), 1 << 16).decode("utf-8", "replace")
            return words.split(f'  File "{__file__}"')[0]  # below it is only how it was called
        return ""


def run_worker(
    tasks: Connection,
    results: Connection,
    last_words: Connection,
    inherited: Setup | None,
    folder: str,
) -> NoReturn:
    """The whole life of a worker process. Never returns: exit handlers and threads of the user's
    must not hold it."""
    processes.do_first_things(tasks, results, last_words)
    if sys.platform != "win32":
        # A crash in native code leaves its traceback in a pipe of its own, for the failure's text.
        # What does not fit is dropped.
        os.set_blocking(last_words.fileno(), False)
        faulthandler.enable(last_words.fileno(), all_threads=False)
    name_script_main()
    try:
        _InWorker(tasks, results, folder).run(inherited)
    finally:
        # Only what the function has set in motion can raise here: a signal handler, say. There is
        # no telling what is sound any more.
        os._exit(_BROKEN)


class _InWorker:
    """What runs in a worker process."""

    def __init__(self, tasks: Connection, results: Connection, folder: str) -> None:
        self._tasks = tasks
        self._ends = (tasks, results)
        self._writer = FrameWriter(results)
        self._folder = folder
        self._identity = self._what_pipes_are()
        self._pid = os.getpid()
        self._outcomes = 0

    def run(self, inherited: Setup | None) -> NoReturn:
        self._send(Hello(self._pid))
        function = self._set_up(inherited)
        self._send(Ready())
        while (message := self._receive()) is not None:
            for path in pickle.loads(message):
                self._send(Finished(self._process(function, path)))
                self._outcomes += 1
        _flush()
        self._send(Done(self._outcomes))
        os._exit(0)

    def _set_up(self, inherited: Setup | None) -> Callable[[str], Any]:
        message = self._receive()
        if message is None:  # the run has ended before it began here
            os._exit(_NOT_STARTED)
        what = "the function cannot be loaded in a new process, where it must be importable"
        try:
            setup: Setup = inherited or pickle.loads(message)
            if setup.initializer is not None:
                what = "the initializer failed"
                setup.initializer(*setup.initargs)
        except BaseException as error:
            text, where = _describe(error)
            self._send(StartFailed(f"{what}: {text}", where))
            _flush()
            os._exit(_NOT_STARTED)
        return setup.function

    def _process(self, function: Callable[[str], Any], path: str) -> Outcome:
        """Call the function for one file. What it raises becomes a value here, and only here."""
        with contextlib.suppress(OSError):  # gone; only relative paths need it
            os.chdir(self._folder)  # a function may have left it
        found = fingerprint(path)
        begun = time.perf_counter()
        try:
            pickled = _call(function, path)
        except BaseException as error:
            seconds = time.perf_counter() - begun
            failure = Failure(path, "error", *_describe(error), 1, seconds)
            return Outcome(path, None, 0, failure, seconds, 1, found)
        seconds = time.perf_counter() - begun
        return Outcome(path, pickled, crc32(pickled), None, seconds, 1, found)

    def _receive(self) -> bytes | None:
        """The runner's next message; `None` when it has closed the pipe, or is no more."""
        try:
            return self._tasks.recv_bytes()
        except EOFError:
            return None
        except OSError:
            os._exit(_LOST_PIPE)

    def _send(self, message: FromWorker) -> None:
        # The function may have forked, and this be the copy that returned as well.
        if os.getpid() != self._pid:
            os._exit(0)
        # Or it has closed our pipes, and their numbers may be files of its own by now.
        if self._what_pipes_are() != self._identity:
            os._exit(_LOST_PIPE)
        try:
            self._writer.send(message)
        except OSError:
            os._exit(_LOST_SAVER)

    def _what_pipes_are(self) -> object:
        if sys.platform == "win32":
            return None
        try:
            statuses = [os.fstat(end.fileno()) for end in self._ends]
        except OSError:
            return None
        return [(status.st_dev, status.st_ino) for status in statuses]


def _call(function: Callable[[str], Any], path: str) -> bytes:
    try:
        return pickle_value(function(path))
    finally:
        if hasattr(signal, "setitimer"):  # one file's alarm must not go off in the next
            signal.setitimer(signal.ITIMER_REAL, 0)


def _describe(error: BaseException) -> tuple[str, str]:
    """A line and a traceback for `error`, whatever its own methods do."""
    prefix = ""
    if isinstance(error, UnstorableValue) and error.__cause__ is not None:
        prefix, error = f"{error}: ", error.__cause__
    try:
        text = str(error)
    except BaseException:
        text = "<its text cannot be printed>"
    name = type(error).__name__
    message = f"{prefix}{name}: {text}" if text else f"{prefix}{name}"
    entry = error.__traceback__
    while entry is not None and entry.tb_frame.f_code.co_filename == __file__:
        entry = entry.tb_next  # how the function came to be called helps nobody
    try:
        lines = traceback.format_exception(type(error), error, entry)
    except BaseException:
        lines = ["<the traceback cannot be printed>"]
    return _shortened(message, _MESSAGE_LIMIT), _shortened("".join(lines), _TRACEBACK_LIMIT)


def _shortened(text: str, limit: int) -> str:
    """`text`, without its middle if it is very long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... [{len(text) - limit:,} characters] ... {text[-limit // 2 :]}"


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # None, closed, or nobody reads it
            stream.flush()
