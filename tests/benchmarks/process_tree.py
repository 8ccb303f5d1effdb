"""All processes below this one, and what they have used, as Linux tells it in /proc.

A process whose parent has died becomes a child of this one, so that nobody escapes by forking
twice. What vanishes while one looks has used nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on this process is the parent of all below it that lose theirs."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def descendants(pid: int | None = None) -> Iterator[int]:
    """The processes below `pid`, or below this one."""
    for task in _tasks(os.getpid() if pid is None else pid):
        for child in _read(task / "children").split():
            yield int(child)
            yield from descendants(int(child))


def memory() -> int:
    """Bytes of memory, pages that several processes share counted once (PSS)."""
    return sum(_proportional_set(pid) for pid in descendants())


def cpu_so_far() -> float:
    """Seconds of CPU that the threads that live now have used, to the nanosecond."""
    tasks = (task for pid in descendants() for task in _tasks(pid))
    return sum(int((_read(task / "schedstat") or "0").split()[0]) for task in tasks) / 1e9


def bytes_written() -> int:
    """Bytes that this process, and all it has waited for, have sent towards a disk. A page that is
    written twice before it gets there counts once, and pipes do not count."""
    for line in _read(Path("/proc/self/io")).splitlines():
        if line.startswith("write_bytes: "):
            return int(line.split()[1])
    return 0


def wait_for_orphans(patience: float) -> None:
    """Until nobody is left below this process; who takes longer than `patience` is killed."""
    deadline = time.monotonic() + patience
    with contextlib.suppress(ChildProcessError):
        while True:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    kill_all()
                time.sleep(0.005)


def kill_all() -> None:
    """Everybody below this process, whichever group or session it is in."""
    for pid in [*descendants()]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _proportional_set(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _tasks(pid: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return [*Path(f"/proc/{pid}/task").iterdir()]
    return []


def _read(file: Path) -> str:
    with contextlib.suppress(OSError):
        return file.read_text()
    return ""
