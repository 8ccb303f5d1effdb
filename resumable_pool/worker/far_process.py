"""What runs in a process of an executor: one batch, from its paths to the bytes of its outcomes.

It never raises, and takes and returns only plain data: engines differ in what they do with an
exception, and one that cannot be unpickled breaks some of them. So any exception that does come out
of a future is the engine's own. Nothing is kept from one batch to the next, except that the
initializer has run.

Knows nothing of the engine, nor of what becomes of a failure.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading

from ..between.clock import monotonic
from ..between.frames import plain_frame
from ..between.messages import FAR_BATCH_SECONDS, Batch, Setup, StartFailed
from ..values import name_script_main
from .calling import initialize, process_batch

# How many outcomes, how many seconds the batch took here, and the outcomes as bytes (frames.py).
# A tuple, which every engine can carry.
Answer = tuple[int, float, bytes]

# A batch that takes so much longer than it was meant to ends early, since it cannot be recalled;
# and one whose results come to so many bytes, since they travel, and are held, together.
_LONGEST_BATCH = 2 * FAR_BATCH_SECONDS
_MOST_BYTES = 1 << 22

# The runs whose initializer has been called in this process, and what came of it. Some engines run
# several batches in threads of one process.
_set_up_runs: dict[str, StartFailed | None] = {}
_guard = threading.Lock()


def process_far(run: str, setup: Setup, folder: str, batch: Batch) -> Answer:
    """Process the batch, or the first part of it.

    Args:
        run: a name that no other run has.
        setup: its function, and what that needs.
        folder: where relative paths start, if it is there.
        batch: the paths, and which attempt at each this is. It makes each call unlike any other, as
            is needed with engines that remember calls.
    """
    with _guard:  # once in each process, while others wait
        if run not in _set_up_runs:
            name_script_main()
            _set_up_runs[run] = initialize(setup)
    if (failed := _set_up_runs[run]) is not None:
        return 0, 0.0, plain_frame(failed)
    begun = monotonic()
    before = functools.partial(_go_to, folder)
    frames: list[bytes] = []
    size = 0
    for frame, now, last in process_batch(setup, batch, before):
        frames.append(b"".join(frame))
        size += len(frames[-1])
        if last or size >= _MOST_BYTES or now - begun >= _LONGEST_BATCH:
            break
    return len(frames), monotonic() - begun, b"".join(frames)


def _go_to(folder: str) -> None:
    with contextlib.suppress(OSError):  # another machine may not have it
        os.chdir(folder)


def _renew_guard() -> None:
    """In a process that was forked while another thread held it."""
    global _guard
    _guard = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_guard)
