"""A child process, from its start to its end, whatever it is for: quiet starts, the first things a
child does, and how one is stopped, politely and then firmly.

Knows nothing of files, checkpoints or what the processes say to each other.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io
import multiprocessing.process
import multiprocessing.util
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, NoReturn

from ..errors import WorkerStartError
from ..values import keep_script_known
from . import forks, pipes, system
from .frames import frame
from .waiting import PipeWriter, Waiter

# How long a process that has nothing more to do may take to leave, and one that has lost its pipes
# to be dead, before it is killed. Both are much longer than any needs: they bound waits for events.
LEAVING_SECONDS = 5.0
DYING_SECONDS = 1.0

# How long what the user's code has registered, started and opened in a child may hold it when it
# leaves. Shorter than its parent's patience, so that it is the child that gives up.
EXIT_SECONDS = 3.0

MAIN_GUARD_REMEDY = (
    "Does the script start its run under `if __name__ == '__main__':`? Spawned processes need "
    "this, because each of them imports the script. They must also be able to import whatever the "
    "script imports."
    if not hasattr(sys, "frozen")
    else "Does the program call multiprocessing.freeze_support() first, under "
    "`if __name__ == '__main__':`? A program that was frozen into an executable must."
)

# What the names of all our children begin with.
_NAME = "resumable_pool "

# What waits for pools when a program ends, and where it finds them.
_POOLS = {
    "concurrent.futures.thread": "_threads_queues",
    "concurrent.futures.process": "_threads_wakeups",
}

# What a pipe holds at most, unless somebody has enlarged it.
_MOST_HEARD = 1 << 16

# What multiprocessing makes of an exit status that the fork server did not tell.
FORGOTTEN = 255


class Child:
    """A child process, as its parent sees it, with a pipe to it and one from it.

    Attributes:
        name: what a person calls it.
        pid: its process id.
        sentinel: ready for `multiprocessing.connection.wait` when the process has ended.
        heard: our end of the pipe from it.
    """

    def __init__(
        self,
        context: BaseContext,
        name: str,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        waiter: Waiter,
        *ends: pipes.End,
        duplex: bool = False,
    ) -> None:
        """Start a child that runs `target(told, said, *ends, *arguments)` and keeps these `ends` of
        pipes. The `waiter` writes what it cannot be told at once; `duplex`: ends of pipes may
        be handed over with that.

        Raises:
            WorkerStartError: the system would not start one.
        """
        if _is_frozen_again():
            sys.exit(1)  # as below
        keep_script_known()
        made: list[pipes.End] = []
        try:
            made += pipes.pipe(duplex)
            made += pipes.pipe(duplex=False)
            theirs, ours, self.heard, said = made
            kept = (theirs, said, *ends)
            # Every concrete context has a Process, though not its base. Never daemonic, because a
            # function may want children of its own.
            self._process: BaseProcess = context.Process(  # type: ignore[attr-defined]
                target=target, args=(*kept, *arguments), name=_NAME + name, daemon=False
            )
            with _somewhere(), system.interrupts_held_back(context), forks.handing_over(*kept):
                self._process.start()
        except BaseException as error:
            forks.close(*made)
            if "bootstrapping" in str(error):
                # This is a spawned child that runs the unguarded script again. It leaves without a
                # word; the runner sees it die and says what is missing.
                sys.exit(1)
            if isinstance(error, (OSError, EOFError)):
                raise cannot_start(name, error) from None
            raise
        forks.close(theirs, said)
        pipes.never_wait(self.heard)
        self.name = name
        self._told = PipeWriter(ours, waiter)
        self._watch_its_end(context)

    def _watch_its_end(self, context: BaseContext) -> None:
        assert self._process.pid is not None
        self.pid = self._process.pid
        # What the child forks inherits multiprocessing's sentinel and keeps it quiet; and the fork
        # server's own end, of a SIGTERM to the script's group, say, looks like that of all its
        # children. Not so a pidfd (Linux).
        self._by_server = context.get_start_method() == "forkserver"
        self._pidfd = -1
        if hasattr(os, "pidfd_open"):
            with contextlib.suppress(OSError):
                self._pidfd = os.pidfd_open(self.pid)
        self.sentinel = self._process.sentinel if self._pidfd < 0 else self._pidfd

    def tell(self, message: bytes, handed_over: pipes.End | None = None) -> None:
        """Never blocks. If it is dead nothing happens."""
        self._told.write(frame(message), handed_over)

    def tell_no_more(self) -> None:
        """The pipe to it is closed as soon as all is written."""
        self._told.finish()

    def has_unread(self, length: int) -> bool:
        """Whether it has not read the last message, of this length, as far as one can tell."""
        return self._told.has_unread(length)

    def hear(self) -> bytes:
        """What there is in the pipe from it, unless that is read otherwise."""
        said = bytearray(_MOST_HEARD)
        try:
            return bytes(said[: pipes.read_into(self.heard, memoryview(said))])
        except (OSError, EOFError):
            return b""

    def has_ended(self) -> bool:
        """Whether the process is dead; its exit code may be unknown (SIGCHLD is ignored, say)."""
        if self._pidfd < 0 and self._process.exitcode is not None:
            return True
        return bool(pipes.wait([self.sentinel], 0))

    def signal_group(self, name: str) -> None:
        """Send a signal, by name, to the process and whatever it has started in its session."""
        if not system.signal_group(self.pid, name) and not self.has_ended():
            with contextlib.suppress(OSError):  # it has not come to make a session yet
                os.kill(self.pid, getattr(signal, name, signal.SIGTERM))

    def reap(self, in_peace: bool) -> tuple[int | None, bytes]:
        """Wait for a process that is leaving, kill it if it does not leave, and forget it.

        What it has started and left in its session is killed as well, unless it leaves `in_peace`.

        Returns:
            Its exit code, negative for a signal; `None` if it had to be killed, or nobody can tell.
            And what was left in the pipe from it.
        """
        self._told.close()
        if not self.has_ended():
            pipes.wait([self.sentinel], LEAVING_SECONDS if in_peace else DYING_SECONDS)
        if (self._pidfd < 0 or self._by_server) and self.has_ended():
            # multiprocessing's sentinel is a moment early, and the fork server's word a moment late
            self._process.join(DYING_SECONDS)
        exitcode = self._process.exitcode
        if not self.has_ended() or not in_peace:
            self.signal_group("SIGKILL")
            pipes.wait([self.sentinel], DYING_SECONDS)
        self._forget()
        left = self.hear()
        forks.close(self.heard)
        # The fork server is no more, or the start of a process in another thread has been told.
        return None if self._by_server and exitcode == FORGOTTEN else exitcode, left

    def _forget(self) -> None:
        # Unless not even that has ended it, or its end was never told:
        if self._process.exitcode is not None:
            self._process.join()  # now multiprocessing forgets it as well
        elif self._pidfd >= 0 and self.has_ended():
            # Where SIGCHLD is ignored multiprocessing does not get to know it.
            multiprocessing.process._children.discard(self._process)  # type: ignore[attr-defined]
        if self._pidfd >= 0:
            os.close(self._pidfd)
        # Not closed: another thread may have it from multiprocessing's list, to join it when the
        # program ends, for instance. What nobody has is closed.
        del self._process


def _is_frozen_again() -> bool:
    """Whether this is what a frozen program that does not call `freeze_support` makes of a child,
    or of multiprocessing's resource tracker: itself, from the beginning."""
    if not hasattr(sys, "frozen") or multiprocessing.parent_process() is not None:
        return False
    asked = "--multiprocessing-fork", "from multiprocessing."
    return any(argument.startswith(asked) for argument in sys.argv)


@contextlib.contextmanager
def _somewhere() -> Iterator[None]:
    """multiprocessing asks for the current directory. Where that is gone we are elsewhere
    meanwhile, since only relative paths need it."""
    with contextlib.ExitStack() as back:
        try:
            os.getcwd()
        except OSError:
            gone = os.open(os.curdir, os.O_RDONLY)
            back.callback(os.close, gone)
            back.callback(os.chdir, gone)
            os.chdir(os.sep)
        yield


def has_other_threads() -> bool:
    """Whether this process has threads besides this one: native ones, too, where one can tell."""
    try:
        return len(os.listdir("/proc/self/task")) > 1
    except OSError:
        return threading.active_count() > 1


def refuse_in_daemonic_process() -> None:
    """Raise `WorkerStartError` where no process may be started."""
    if multiprocessing.process.current_process().daemon:
        raise WorkerStartError(
            "a daemonic process (a worker of multiprocessing.Pool, say) may not start others",
            "Run in a process that is not daemonic: ProcessPoolExecutor's workers are not.",
        )


def cannot_start(name: str, error: Exception) -> WorkerStartError:
    """What to raise when the system would not start a process, or make a pipe for one."""
    what = f"the {name} process could not be started: {error}"
    remedy = f"Fewer workers (max_workers) may fit, or {system.MORE_PROCESSES}."
    if "AF_UNIX path too long" in str(error):
        remedy = "The fork server's socket is in TMPDIR, whose path is too long: set a shorter one."
    elif isinstance(error, FileNotFoundError):
        remedy = "Is TMPDIR writable, and does nothing clean it? The fork server's socket is there."
    elif isinstance(error, (EOFError, ConnectionError)):
        remedy = f"{MAIN_GUARD_REMEDY} Or the system may have no room for more processes."
    return WorkerStartError(what, remedy)


def do_first_things(*ends: pipes.End, ignored: frozenset[str] = frozenset()) -> list[pipes.End]:
    """What a child does before anything else: be nobody's accomplice.

    Only the pipe `ends` of its own; a session of its own, so that neither it nor what it starts is
    hit by the terminal's signals; every signal at its default, as a new program has it, except the
    `ignored` ones (by name); and no hold on the terminal's input.

    Returns:
        The ends, in the place of those that are given.
    """
    claimed = pipes.claim(*ends)
    if os.getpid() != forks.IMPORTED_IN or _is_of_server_with_script():
        _forget_what_is_inherited()
    system.hold_what_it_starts()
    _reset_signals(system.leave_terminal(ignored))
    _open_standard_streams()
    return claimed


def _is_of_server_with_script() -> bool:
    """Whether this was forked by a fork server that has loaded the script: which may import this
    package later, or lazily, and so here for the first time. Only the server's own frame, which is
    below ours, knows it: a child that has loaded the script itself looks the same otherwise."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and "main_path" not in frame.f_locals:
        frame = frame.f_back
    known = frame.f_locals if frame is not None else {}
    return known.get("main_path") is not None and "__main__" in known.get("preload", ())


def _forget_what_is_inherited() -> None:
    """What the program that this one was forked from has registered for its end is not for ours:
    its temporary folders would be gone. And what it has not yet written of its files it will write
    itself."""
    atexit._clear()
    atexit.register(multiprocessing.util._exit_function)  # type: ignore[attr-defined]
    for finalizer in weakref.finalize._registry.values():  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    # Nor are its pools, whose threads would be joined; the one that has forked this, by itself.
    at_exit = threading._threading_atexits  # type: ignore[attr-defined]
    at_exit.clear()
    for name, pools in _POOLS.items():
        if (module := sys.modules.get(name)) is not None:
            getattr(module, pools).clear()
            at_exit.append(module._python_exit)
    if (logging := sys.modules.get("logging")) is not None:
        logging._handlerList.clear()
        atexit.register(logging.shutdown)
    gc.freeze()  # what `gc.get_objects` tells is our own from now on


def leave(status: int, torn_down: bool = True) -> NoReturn:
    """Leave as a program does, but within `EXIT_SECONDS`. For the end of a child's main function:
    what multiprocessing, and whoever measures its processes, do at their end comes after it.

    Args:
        torn_down: whether a spawned child takes all modules apart at the end, as programs do, and
            forked ones do not. Only libraries in C may need it.
    """
    if status == 0:
        system.let_go()
    system.end_after(EXIT_SECONDS)
    leave_as_a_program()
    if not torn_down:
        atexit.register(os._exit, status)
    raise SystemExit(status)  # not by `sys.exit`, which may be something else by now


def leave_as_a_program() -> None:
    """Wait for threads, run exit handlers (multiprocessing's ends daemonic children), and write
    what is in the buffers of open files. Where a process is forked nobody else does."""
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
    threading._threading_atexits.clear()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    kind = io.IOBase.__base__  # a plain class, and quick to ask
    files: list[Any] = [one for one in gc.get_objects() if kind in type(one).__mro__]
    _call_each(files, "flush")
    # Those written in Python, which compress, say, write more when they are closed.
    _call_each([one for one in files if type(one).__module__ != "_io"], "close")
    _call_each(files, "flush")
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except Exception:  # nobody reads it; and multiprocessing, which flushes it once more,
            setattr(sys, name, None)  # would make that the exit status


def _call_each(files: Iterable[Any], method: str) -> None:
    for file in files:
        with contextlib.suppress(Exception):  # None, closed, or nobody reads it
            getattr(file, method)()


def _forget_siblings() -> None:
    """In a copy of the program that something has forked: our children are not its own, and
    multiprocessing, which would join them when it ends, says so with a traceback."""
    children = multiprocessing.process._children  # type: ignore[attr-defined]
    children.difference_update([child for child in children if child.name.startswith(_NAME)])


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_siblings)


def _open_standard_streams() -> None:
    """Nothing to read; and if the program runs with its output closed, what is printed must not go
    into the next file that is opened, which might be the checkpoint."""
    with contextlib.suppress(OSError):  # it is closed already
        os.close(0)
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:  # the lowest number that is free
        os.set_inheritable(null, True)
    os.close(null)


def _reset_signals(ignored: frozenset[str]) -> None:
    signal.set_wakeup_fd(-1)
    # Python ignores these two, to raise BrokenPipeError and "file too large" instead.
    ignored |= {"SIGPIPE", "SIGXFSZ"}
    for signum in signal.valid_signals():
        name = signum.name if isinstance(signum, signal.Signals) else ""
        if name in ignored:
            signal.signal(signum, signal.SIG_IGN)
        elif name == "SIGINT":
            # Ignored for a moment, which discards one that came while it was held back.
            signal.signal(signum, signal.SIG_IGN)
            signal.signal(signum, signal.SIG_DFL)
        elif signal.getsignal(signum) not in (signal.SIG_DFL, None):
            signal.signal(signum, signal.SIG_DFL)
    system.unblock_signals()
