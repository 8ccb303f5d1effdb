"""What every system does in its own way about processes: a function for each such thing, with one
body for Windows and one for POSIX.

                                      POSIX                        Windows
    keep the terminal's keys away     a session                    a group, and a handler
    end what a process has started    its process group            a job that ends with it
    say how it ended                  a signal                     a status with a meaning
    hear that the console is closed   SIGHUP                       a handler, for five seconds
    take back what a file has set     timers                       (there are none)
    bound how long it takes to leave  an alarm                     a thread
    wake a loop                       a pipe                       an event

Pipes have their two bodies in pipes.py, files theirs in checkpoints/disk.py. Knows nothing of
workers or runs.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from io import FileIO
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import Any

from . import forks

if sys.platform == "win32":
    import _winapi
    import ctypes
    from ctypes import wintypes
    from multiprocessing import popen_spawn_win32

    MORE_PROCESSES = "more memory"

    # The system call that waits for processes takes 63 handles.
    MOST_WORKERS = 60

    # Whether the start method fork is there, and libraries survive it; and whether faulthandler can
    # write to a pipe.
    FORK_IS_SOUND = WRITES_TRACEBACKS = False

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _kernel32.CreateJobObjectW.restype = wintypes.HANDLE
    _kernel32.CreateEventW.restype = wintypes.HANDLE
    _kernel32.CreateEventW.argtypes = [
        wintypes.LPVOID, wintypes.BOOL, wintypes.BOOL, wintypes.LPCWSTR
    ]  # fmt: skip
    _kernel32.SetEvent.argtypes = _kernel32.ResetEvent.argtypes = [wintypes.HANDLE]

    _THIS_PROCESS = wintypes.HANDLE(-1)
    _CREATE_NEW_PROCESS_GROUP = 0x200
    # JOBOBJECT_EXTENDED_LIMIT_INFORMATION: its number, its length, and where its flags stand.
    _LIMITS, _LIMITS_LENGTH, _FLAGS_AT = 9, 144 if sys.maxsize > 1 << 32 else 112, 16
    _KILL_ON_JOB_CLOSE, _BREAKAWAY_OK = 0x2000, 0x800
    _SYNCHRONIZE = 0x100000
    _CTRL_C, _CTRL_BREAK = 0, 1

    # What an exit status of the system's own means. (NTSTATUS has two thousand.)
    _STATUSES = {
        0xC0000005: "an access violation",
        0xC0000006: "a page that could not be read",
        0xC0000017: "out of memory",
        0xC000001D: "an illegal instruction",
        0xC0000094: "an integer division by zero",
        0xC00000FD: "a stack overflow",
        0xC000012D: "out of memory",
        0xC0000135: "a DLL that was not found",
        0xC000013A: "a Ctrl-C, or the end of its console",
        0xC0000142: "a DLL that could not start",
        0xC0000374: "a damaged heap",
        0xC0000409: "native code gave up",
        0xE06D7363: "an uncaught C++ exception",
    }

    _starting = threading.Lock()

    @contextlib.contextmanager
    def interrupts_held_back(context: BaseContext) -> Iterator[None]:
        """No Ctrl-C reaches what is started meanwhile, nor what that starts, from the first
        instruction on: a child that is still importing would die of it with a traceback.

        So it is in a new process group. multiprocessing has no option for that, and to ignore
        Ctrl-C here for a moment, which is inherited, would lose one.
        """
        module: Any = popen_spawn_win32
        thread = threading.get_ident()

        def create(*given: Any) -> Any:
            *most, flags, environment, folder, startup = given
            if threading.get_ident() == thread:
                flags |= _CREATE_NEW_PROCESS_GROUP
            return vars(_winapi)["CreateProcess"](*most, flags, environment, folder, startup)

        with _starting:
            module._winapi = SimpleNamespace(**{**vars(_winapi), "CreateProcess": create})
            try:
                yield
            finally:
                module._winapi = _winapi

    def leave_terminal(ignored: frozenset[str]) -> frozenset[str]:
        """In a child: neither Ctrl-Break nor the end of the console is for it. Returns the names of
        the signals that it must ignore."""
        _kernel32.SetConsoleCtrlHandler(None, True)
        _kernel32.SetConsoleCtrlHandler(_heard_in_child, True)
        return ignored | {"SIGINT", "SIGBREAK"}

    _HANDLER = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)

    def _hear_in_child(event: int) -> bool:
        """Runs in a thread of the system's own. A console that is closed waits for this to return,
        five seconds for each process, the youngest first, and then ends the process: so the
        runner has to hear of it from whoever is asked first."""
        if event not in (_CTRL_C, _CTRL_BREAK):
            if (runner := multiprocessing.parent_process()) is not None and runner.pid is not None:
                _console_closed(runner.pid).ring()
            _kernel32.Sleep(_winapi.INFINITE)
        return True

    _heard_in_child = _HANDLER(_hear_in_child)

    _job = wintypes.HANDLE()

    def _limit_job(flags: int) -> None:
        limits = ctypes.create_string_buffer(_LIMITS_LENGTH)
        # Who asks for it may leave the job, as a session elsewhere; or he could not start at all.
        ctypes.c_uint32.from_buffer(limits, _FLAGS_AT).value = flags | _BREAKAWAY_OK
        _kernel32.SetInformationJobObject(_job, _LIMITS, limits, len(limits))

    def hold_what_it_starts() -> None:
        """In a child: what it starts ends with it, however it ends, until `let_go` says otherwise.

        It holds the only handle of the job that it is in. (The runner's would end it with the
        runner.)
        """
        global _job
        _job = wintypes.HANDLE(_kernel32.CreateJobObjectW(None, None))
        _limit_job(_KILL_ON_JOB_CLOSE)
        _kernel32.AssignProcessToJobObject(_job, _THIS_PROCESS)

    def let_go() -> None:
        """In a child that leaves in peace: what it has started may go on."""
        _limit_job(0)

    def signal_group(leader: int, name: str) -> bool:
        """End a process, and with it what it has started; there are no signals here. Returns
        whether it was there."""
        try:
            os.kill(leader, popen_spawn_win32.TERMINATE)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def broken_pipes_raise() -> Iterator[None]:
        """They do."""
        yield

    def unblock_signals() -> None:
        """None is blocked."""

    def lives(pid: int) -> bool:
        """Whether there is such a process. (`os.kill(pid, 0)` would end it here.)"""
        try:
            process = _winapi.OpenProcess(_SYNCHRONIZE, False, pid)
        except PermissionError:  # of another user
            return True
        except OSError:
            return False
        try:
            return _winapi.WaitForSingleObject(process, 0) == _winapi.WAIT_TIMEOUT
        finally:
            _winapi.CloseHandle(process)

    def _killed_in_words(exitcode: int) -> str:
        if exitcode < 0:
            return "was terminated"
        meaning = _STATUSES.get(exitcode)
        return f"crashed with status 0x{exitcode:08X}" + (f", {meaning}" if meaning else "")

    def stop_alarm() -> None:
        """There is none."""

    def stop_timers() -> None:
        """There are none."""

    # The exit code of what `end_after` has ended.
    LATE = 75

    def end_after(seconds: float) -> None:
        """In a child that leaves: it is ended then, whatever holds it."""
        timer = threading.Timer(seconds, os._exit, [LATE])
        timer.daemon = True  # or leaving would wait for it
        with contextlib.suppress(RuntimeError):  # there can be no more threads
            timer.start()

    class Bell:
        """What wakes who waits for it. An event here: a pipe might be full, and be written to in
        the middle of being written to, by a signal's handler. One with a `name` is shared.

        Attributes:
            handle: ready for `wait` when it has been rung.
        """

        def __init__(self, name: str | None = None) -> None:
            self.handle: Any = _kernel32.CreateEventW(None, True, False, name)

        def ring(self) -> None:
            """From any thread and any signal handler."""
            _kernel32.SetEvent(self.handle)

        def hush(self) -> None:
            """It has been heard."""
            _kernel32.ResetEvent(self.handle)

        def close(self) -> None:
            """Nobody waits any more, and nobody rings."""
            _winapi.CloseHandle(self.handle)

    class ConsoleEnd:
        """Calls `tell`, in a thread, when the console is closed, of this process or its children:
        the window, or by the end of a session. Then there are five seconds. Lives in the runner."""

        def __init__(self, tell: Callable[[], None]) -> None:
            self._closed, self._over = _console_closed(os.getpid()), Bell()
            self._handler = _HANDLER(self._hear)
            _kernel32.SetConsoleCtrlHandler(self._handler, True)
            self._thread = threading.Thread(target=self._wait, args=[tell], daemon=True)
            self._thread.start()

        def close(self) -> None:
            """The run has ended: whoever has closed the console need not wait any more."""
            self._over.ring()
            self._thread.join()
            _kernel32.SetConsoleCtrlHandler(self._handler, False)
            self._closed.close()
            self._over.close()

        def _wait(self, tell: Callable[[], None]) -> None:
            events = [self._closed.handle, self._over.handle]
            if _winapi.WaitForMultipleObjects(events, False, _winapi.INFINITE) == 0:
                tell()

        def _hear(self, event: int) -> bool:
            if event not in (_CTRL_C, _CTRL_BREAK):
                self._closed.ring()
                _winapi.WaitForSingleObject(self._over.handle, _winapi.INFINITE)
            return False

    def _console_closed(runner: int) -> Bell:
        """What the processes of a runner's share. Made by whoever asks first."""
        return Bell(f"Local\\resumable_pool.console_closed.{runner}")

else:
    MORE_PROCESSES = "a higher limit (ulimit -u, ulimit -n)"
    MOST_WORKERS = sys.maxsize
    FORK_IS_SOUND = sys.platform == "linux"
    WRITES_TRACEBACKS = True

    _HINTS = dict.fromkeys(("SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"), "a crash in native code")
    _HINTS |= {"SIGKILL": "perhaps out of memory", "SIGABRT": "native code gave up"}

    @contextlib.contextmanager
    def interrupts_held_back(context: BaseContext) -> Iterator[None]:
        """What is started meanwhile has SIGINT blocked until it has done its first things.

        A Ctrl-C reaches the whole foreground group, and a child that is still importing would die
        of it with a traceback. So would the fork server, if this is what starts it. It ignores
        SIGINT later anyway, and what it forks for us unblocks it; what it forks for others keeps it
        blocked, which is the smaller evil.
        """
        method = context.get_start_method()
        # What another thread forked in the middle of this could never start a process: it would
        # wait for an import, or a lock, of a thread that is not there.
        with forks.undivided():
            from multiprocessing import popen_fork  # noqa: F401 (as each start does)
        with contextlib.ExitStack() as held:
            if method != "fork":
                held.enter_context(forks.undivided())
                from multiprocessing import resource_tracker

                resource_tracker.ensure_running()  # up to 3.13, that unblocks SIGINT by the way
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            held.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            if method == "forkserver":
                # Without SIGCHLD, which the program may have blocked, it would tell of no child's
                # end; and for others it had better not inherit what `broken_pipes_raise` blocks.
                from multiprocessing import forkserver

                needed = {signal.SIGCHLD, signal.SIGPIPE}
                mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, needed)
                forkserver.ensure_running()
                signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            yield

    def leave_terminal(ignored: frozenset[str]) -> frozenset[str]:
        """In a child: a session of its own. Returns the names of the signals that it must ignore,
        which are no more than those."""
        with contextlib.suppress(PermissionError):  # already a session's leader
            os.setsid()
        return ignored

    def hold_what_it_starts() -> None:
        """In a child: what it starts is in its session, and the runner ends that."""

    def let_go() -> None:
        """In a child that leaves in peace: the runner leaves its session alone."""

    def signal_group(leader: int, name: str) -> bool:
        """Send a signal, by name, to a process group. Returns whether there is one."""
        try:
            os.killpg(leader, getattr(signal, name))
        except (ProcessLookupError, PermissionError):
            return False
        return True

    @contextlib.contextmanager
    def broken_pipes_raise() -> Iterator[None]:
        """Writing to a process that has died raises `BrokenPipeError` in this thread, also where
        the program has set SIGPIPE to kill it (the usual idiom of command-line tools)."""
        # Python ignores it unless told otherwise. Then nothing is held back: what an executor
        # starts meanwhile would inherit that, and pass it on to its `yes | head`.
        if signal.getsignal(signal.SIGPIPE) == signal.SIG_IGN:
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

    unblock_signals = functools.partial(signal.pthread_sigmask, signal.SIG_SETMASK, ())

    def lives(pid: int) -> bool:
        """Whether there is such a process, and not just a zombie: where the first process of a
        container asks about nobody's end, one whose parent was killed stays that for ever."""
        try:
            with contextlib.suppress(PermissionError):  # under another user
                os.kill(pid, 0)
            with open(f"/proc/{pid}/stat", "rb") as status:
                return status.read().rpartition(b") ")[2][:1] != b"Z"
        except ProcessLookupError:
            return False
        except OSError:  # not Linux, or just gone
            return True

    def _killed_in_words(exitcode: int) -> str:
        try:
            name = signal.Signals(-exitcode).name
        except ValueError:
            name = f"signal {-exitcode}"
        hint = _HINTS.get(name)
        return f"was killed by {name}" + (f", {hint}" if hint else "")

    # In a worker: one file's must not go off in the next.
    stop_alarm = functools.partial(signal.alarm, 0)

    def stop_timers() -> None:
        """In a worker: all that a file may have started."""
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)

    # The exit code of what `end_after` has ended.
    LATE = -signal.SIGALRM

    def end_after(seconds: float) -> None:
        """In a child that leaves: it is ended then, whatever holds it."""
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
        signal.setitimer(signal.ITIMER_REAL, seconds)

    # So much is read at a time of what is only to be forgotten.
    _READ_RINGS = 1 << 12

    class Bell:
        """What wakes who waits for it.

        Attributes:
            handle: ready for `wait` when it has been rung.
        """

        def __init__(self) -> None:
            with forks.undivided():
                reader, writer = os.pipe()
                self.handle: Any = forks.enter(FileIO(reader, "r"))
                self._writer = forks.enter(FileIO(writer, "w"))
            os.set_blocking(reader, False)
            os.set_blocking(writer, False)

        def ring(self) -> None:
            """From any thread and any signal handler."""
            self._writer.write(b"!")  # nothing if it is full, which is as good

        def hush(self) -> None:
            """It has been heard. Handlers of signals that have come before run now: in what another
            thread has forked, Python from 3.13 on lets them wait for a call like this."""
            signal.pthread_sigmask(signal.SIG_BLOCK, ())
            while len(self.handle.read(_READ_RINGS) or b"") == _READ_RINGS:
                pass

        def close(self) -> None:
            """Nobody waits any more, and nobody rings."""
            forks.close(self.handle, self._writer)

    class ConsoleEnd:
        """Nothing: SIGHUP tells of it here."""

        def __init__(self, tell: Callable[[], None]) -> None:
            pass

        def close(self) -> None:
            """Nothing to do."""


# Exit codes from here on are Windows's own.
_SYSTEMS_OWN = 0x80000000


def was_killed(exitcode: int | None) -> bool:
    """Whether a process has not ended by itself."""
    return exitcode is None or not 0 <= exitcode < _SYSTEMS_OWN


def ending_in_words(exitcode: int | None) -> str:
    """How a process ended, as the end of a sentence that starts with its name."""
    if exitcode is None:
        return "died or lost its pipes"
    killed = was_killed(exitcode)
    return _killed_in_words(exitcode) if killed else f"exited with status {exitcode}"


def script_of(saver: int | None) -> int | None:
    """The process whose run this saver belongs to; `None` if that is gone, or nobody can tell (only
    Linux shows it).

    A saver whose script has died is the child of whoever takes in orphans, which runs no Python.
    """
    pid, command = saver, ""
    while pid is not None and (pid == saver or "multiprocessing.forkserver" in command):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                pid = int(stat.read().rpartition(")")[2].split()[1])
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                command = file.read()
        except (OSError, ValueError, LookupError):
            return None
    return pid if "python" in os.path.basename(command.partition("\0")[0]) else None
