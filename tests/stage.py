"""A stage on which a test directs the function: it knows what has begun, and says what may end.

Two named pipes in the folder of the run. No sleeps: everybody waits for bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path

from .functions import note

# Far beyond anything that a loaded machine needs: only a hang takes so long.
PATIENCE = 60.0

SUCCEED, FAIL = b".", b"!"


def act(path: str) -> str:
    """What the function does: say that it has begun, wait for its cue, and end as it says."""
    note(path)
    with open("begun", "wb", buffering=0) as begun:
        begun.write(f"{os.getpid()} {path}\n".encode())
    with open("cues", "rb", buffering=0) as cues:
        cue = cues.read(1)
    if cue == FAIL:
        raise ValueError("as directed")
    return f"done {path}"


@contextlib.contextmanager
def announcement(text: str) -> Iterator[threading.Event]:
    """Set once the run says something with this text in it: then it has done as it says."""
    said = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if text in record.getMessage():
                said.set()

    logger, listener = logging.getLogger("resumable_pool"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.INFO)
    try:
        yield said
    finally:
        logger.setLevel(level)
        logger.removeHandler(listener)


class Stage:
    """The test's side of `act`. Both ends of the pipes are held, so that opening never waits."""

    def __init__(self, folder: Path) -> None:
        for name in ("begun", "cues"):
            os.mkfifo(folder / name)
        self._begun = os.open(folder / "begun", os.O_RDWR)
        self._cues = os.open(folder / "cues", os.O_RDWR)
        self._unread = b""

    def wait_begun(self, number: int) -> dict[str, int]:
        """The paths of the next `number` calls, and the processes they are in."""
        while self._unread.count(b"\n") < number:
            ready, _, _ = select.select([self._begun], [], [], PATIENCE)
            assert ready, f"only {self._unread!r} has begun"
            self._unread += os.read(self._begun, 4096)
        *lines, self._unread = self._unread.split(b"\n", number)
        return {path: int(pid) for pid, path in (line.decode().split(" ", 1) for line in lines)}

    def cue(self, number: int = 1, how: bytes = SUCCEED) -> None:
        """Let so many calls end."""
        os.write(self._cues, how * number)

    def close(self) -> None:
        """The play is over."""
        os.close(self._begun)
        os.close(self._cues)
