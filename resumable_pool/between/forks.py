"""What a forked child must not get: this process's open pipe ends, and anything that is half done.

A pipe's reader learns that the writer has died only once *every* copy of its write end is closed,
and fork copies all of them into every child. So each end is entered here when it is made, in one
registry for the whole process, and a hook that runs in every forked child closes all ends but those
that the child was started for. A list of ends per run is not enough: two runs in two threads, or a
fork by the user's code, defeat it (the cure is that of python/cpython#146313). Where there is no
fork (Windows) there is no hook, and no need.

Knows nothing of what an end is, but that it can be closed.
"""

from __future__ import annotations

import contextlib
import multiprocessing.util  # noqa: F401 (so that its exit handler runs after the program's own)
import os
import threading
import weakref
from collections.abc import Iterator
from typing import Any, TypeVar

End = TypeVar("End")  # a pipe's, or an open file

# Another process is a forked copy of this one: of the program, or of the fork server, if that has
# loaded the script, or a module that it needs, beforehand.
IMPORTED_IN = os.getpid()

_ends = weakref.WeakSet[Any]()  # what nobody has any more closes itself, and gives up its lock
_kept = threading.local()
# Held from the making of a pipe until its ends are entered, and while forking: otherwise a fork in
# another thread could slip in between and copy an end that nobody knows yet. Within one process.
_guard = threading.RLock()


def undivided() -> threading.RLock:
    """In a `with`: no other thread is in here meanwhile, and none forks. What is half done would
    stay so in the child."""
    return _guard


def enter(end: End) -> End:
    """Close `end` in every child that is forked from now on. Returns it."""
    with _guard:
        _ends.add(end)
    return end


def close(*ends: Any) -> None:
    """Close `ends` and forget them. One that is closed already is no error."""
    with _guard:
        for end in ends:
            _ends.discard(end)
            with contextlib.suppress(OSError):
                end.close()


@contextlib.contextmanager
def handing_over(*ends: Any) -> Iterator[None]:
    """A child that this thread forks meanwhile keeps `ends`."""
    _kept.ends = ends
    try:
        yield
    finally:
        _kept.ends = ()


def keep_only(*ends: Any) -> None:
    """In a new child: these are all that it has."""
    with _guard:
        _ends.clear()
        _ends.update(ends)


class Owned(contextlib.ExitStack):
    """What is to be undone, or ended, by the process that entered it, and by no other.

    A program may fork during a run, in the body of a loop over it for instance, and the copy leaves
    the same blocks: by `sys.exit`, an exception, or garbage collection. In the copy nothing is
    done, since the pipes, the workers and the terminal belong to the original.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pid = os.getpid()

    def __exit__(self, *error: Any) -> bool:
        if os.getpid() != self.pid:
            self.pop_all()
        return bool(super().__exit__(*error))

    def check_process(self) -> None:
        """Raise `RuntimeError` in a copy."""
        if os.getpid() != self.pid:
            raise RuntimeError(
                f"this run belongs to process {self.pid}; process {os.getpid()} is a copy of it, "
                "and can neither continue the run, nor stop it, nor report on it"
            )


def _after_fork_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    kept = getattr(_kept, "ends", ())
    for end in _ends.difference(kept):
        with contextlib.suppress(OSError):
            end.close()
    _ends.intersection_update(kept)
    _kept.ends = ()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _guard.acquire(),
        after_in_parent=lambda: _guard.release(),
        after_in_child=_after_fork_in_child,
    )
