"""What functions do to the process that they share with other files, and return.

In a module, so that every start method can send them.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import faulthandler
import gc
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from resumable_pool import CheckpointLocked, ResumableRunner
from resumable_pool.checkpoints import PickleFile

from .functions import note, number_in

# In the folder of the run: the processes that were left running, and whether one ended as usual.
LEFT, EXITED = Path("left"), Path("exited")


def do_deed(path: str) -> Any:
    """A file that names a deed has it done; the others are numbers."""
    note(path)
    text = Path(path).read_text()
    return int(text) if text.isdigit() else bool(DEEDS[text]())


def wait_for_ever() -> None:
    threading.Event().wait()


def _leave(pid: int) -> None:
    """Tell the test of a process, for it to see that this lives, and to end it."""
    with open(LEFT, "ab", buffering=0) as file:
        file.write(f"{pid}\n".encode())


def _fork_and_raise() -> None:
    if os.fork() == 0:
        raise ValueError("from the copy")


def _fork_and_live_on() -> None:
    pid = os.fork()
    if pid == 0:
        wait_for_ever()
    _leave(pid)


def _leave_process(method: str) -> None:
    process = multiprocessing.get_context(method).Process(target=wait_for_ever)
    process.start()
    assert process.pid is not None
    _leave(process.pid)


def _leave_pools() -> None:
    ThreadPoolExecutor(1).submit(wait_for_ever)
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    _leave(pool.submit(os.getpid).result())
    pool.submit(wait_for_ever)


def _wait_at_exit() -> None:
    EXITED.touch()
    wait_for_ever()


def _set_all_signals(action: Any) -> None:
    for signum in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):  # SIGKILL, SIGSTOP
            signal.signal(signum, action)


def _exit(*arguments: object) -> None:
    os._exit(9)


def _set_hooks() -> None:
    sys.excepthook = sys.unraisablehook = threading.excepthook = sys.exit = _exit  # type: ignore
    os.register_at_fork(after_in_child=wait_for_ever)


class _Broken:
    """A stream on which nothing works."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("it is broken")


def _set_streams(stream: Any) -> None:
    sys.stdin = sys.stdout = sys.stderr = stream


def _close_streams() -> None:
    sys.stdout.close()
    os.closerange(0, 3)


def _leave_directory() -> None:
    os.mkdir("elsewhere")
    os.chdir("elsewhere")
    os.rmdir("../elsewhere")


def _change_settings() -> None:
    os.environ.clear()
    os.umask(0o777)
    os.nice(1)
    gc.disable()
    faulthandler.disable()
    sys.setrecursionlimit(10_000)
    socket.setdefaulttimeout(0.001)
    warnings.simplefilter("error")


DEEDS: dict[str, Callable[[], object]] = {
    "returns twice, the second time with an exception": _fork_and_raise,
    "forks, and both live on": _fork_and_live_on,
    "leaves a forked process": lambda: _leave_process("fork"),
    "leaves a spawned process": lambda: _leave_process("spawn"),
    "leaves a command of the shell": lambda: os.system(f"sleep 600 & echo $! >> {LEFT}"),
    "leaves pools": _leave_pools,
    "leaves an exit handler": lambda: atexit.register(_wait_at_exit),
    "leaves a directory that is gone": _leave_directory,
    "handles all signals": lambda: _set_all_signals(_exit),
    "ignores all signals": lambda: _set_all_signals(signal.SIG_IGN),
    "blocks all signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
    "changes settings": _change_settings,
    "closes its streams": _close_streams,
    "has streams that do not work": lambda: _set_streams(_Broken()),
    "has no streams": lambda: _set_streams(None),
    "sets hooks": _set_hooks,
    "leaves the session": lambda: os.setsid(),  # looked up when called: not on Windows
    "leaves the group": lambda: os.setpgid(0, 0),
}

# What the system does not allow.
REFUSED = {
    "leaves the session": "PermissionError: [Errno 1] Operation not permitted",
    "leaves the group": "PermissionError: [Errno 1] Operation not permitted",
}


# Descriptors of others.

# Files that a function has opened, and what it has done to the numbers that are not its own.
VICTIMS = [Path(f"victim{number}") for number in range(24)]
_FLAGS = os.O_RDWR | os.O_CREAT


def open_in_their_place(path: str) -> str:
    """One file closes whatever is open, and opens others."""
    if "01" in path:
        os.closerange(3, 3 + len(VICTIMS))
        for victim in VICTIMS:
            os.open(victim, _FLAGS)
    return path


def open_and_hang(path: str) -> str:
    """The same, and it takes too long."""
    if open_in_their_place(path) and "01" in path:
        wait_for_ever()
    return path


def write_over(path: str) -> str:
    """One file gives every number that is open to one of its own."""
    if "01" in path:
        numbers = [int(name) for name in os.listdir("/proc/self/fd")]
        opened = os.open(VICTIMS[0], _FLAGS)
        for number in numbers:
            if number > 2 and number != opened:
                os.dup2(opened, number)
        time.sleep(0.002)  # quicker files share one look at what they have left
    return path


def write_over_at_start() -> None:
    """An initializer that does so."""
    write_over("01")


# A run inside of a function.


def run_on(path: str) -> int:
    """On the checkpoint that the file names."""
    return _run("in/0[2-9].txt", Path(path).read_text(), None)


def run_here(method: str) -> int:
    """For a worker of somebody else's pool."""
    return _run("in/*.txt", "result.pkl", method)


def _run(pattern: str, checkpoint: str, method: str | None) -> int:
    inner = ResumableRunner(
        number_in, pattern, checkpoint, max_workers=1, mp_context=method, progress=False
    )
    return inner.run().completed


# What can happen to the caller.


def interrupt(path: str) -> int:
    """The first call presses Ctrl-C in the process that the file `caller` names."""
    note(path)
    os.kill(int(Path("caller").read_text()), signal.SIGINT)
    return 0


class Sealed(PickleFile):
    """A checkpoint that can be read only, also by root."""

    def open(self) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


class Locked(PickleFile):
    """A checkpoint that somebody else has."""

    def open(self) -> list[str]:
        raise CheckpointLocked(self.path, None)


class TooLarge(PickleFile):
    """A checkpoint whose saving takes too much."""

    def append(self, records: object) -> None:
        raise MemoryError


def fill_stdout(path: str) -> str:
    """Leaves a stdout that takes no more, with something still to be written."""
    _, writer = os.pipe()
    os.dup2(writer, 1)
    os.set_blocking(1, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(1, b"x" * 4096)
    os.set_blocking(1, True)
    sys.stdout = os.fdopen(1, "w")  # which keeps in its buffer
    sys.stdout.write("and one more")
    return path


def leave_timers(path: str) -> None:
    """Works for longer than the timers of the file before would take to go off."""
    begun = os.times().user
    while os.times().user < begun + 0.1:
        pass
    time.sleep(0.4)
    for timer in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        signal.setitimer(timer, 0.05)  # of work
    signal.setitimer(signal.ITIMER_REAL, 0.3)  # a busy machine may keep us from returning


def leave_an_alarm(path: str) -> None:
    """Quick, but for every tenth file, which works for longer than the alarm of the one before."""
    if not path.endswith("9.txt"):
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        return
    time.sleep(0.4)
