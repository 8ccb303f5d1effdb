"""A stage on which a test directs the function: it knows what has begun, and says what may end.

Two named pipes in the folder of the run, or on Windows, which has none there, a socket. No sleeps:
everybody waits for bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import sys
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
    if _enter_and_wait(f"{os.getpid()} {path}\n".encode()) == FAIL:
        raise ValueError("as directed")
    return f"done {path}"


def load_until_told_to_end() -> None:
    """An initializer that makes an exception of that, as frameworks do; and says when it is ready
    for it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to"))
    _enter_and_wait(f"{os.getpid()} loading\n".encode())


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


if sys.platform == "win32":
    import queue
    import socket

    def _enter_and_wait(line: bytes) -> bytes:
        port = int(Path("port").read_text())
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(line)
            return connection.recv(1)

    class Stage:
        """The test's side of `act`: a thread takes in who enters, and hands out the cues."""

        def __init__(self, folder: Path) -> None:
            self._server = socket.create_server(("127.0.0.1", 0))
            (folder / "port").write_text(str(self._server.getsockname()[1]))
            self._begun: queue.SimpleQueue[bytes] = queue.SimpleQueue()
            self._lock = threading.Lock()
            self._waiting: list[socket.socket] = []
            self._cues: list[bytes] = []
            threading.Thread(target=self._let_in, daemon=True).start()

        def _let_in(self) -> None:
            with contextlib.suppress(OSError):  # closed
                while True:
                    connection, _ = self._server.accept()
                    with contextlib.suppress(OSError), connection.makefile("rb") as lines:
                        if line := lines.readline():
                            with self._lock:
                                self._waiting.append(connection)
                            self._begun.put(line)
                            self._hand_out()

        def _hand_out(self) -> None:
            with self._lock:
                while self._cues and self._waiting:
                    connection = self._waiting.pop(0)
                    gone, _, _ = select.select([connection], [], [], 0)
                    if not gone:  # who was killed takes no cue
                        connection.sendall(self._cues.pop(0))
                    connection.close()

        def wait_begun(self, number: int) -> dict[str, int]:
            """The paths of the next `number` calls, and the processes they are in."""
            lines = [self._begun.get(timeout=PATIENCE) for _ in range(number)]
            return _paths_and_pids(lines)

        def cue(self, number: int = 1, how: bytes = SUCCEED) -> None:
            """Let so many calls end."""
            with self._lock:
                self._cues += [how] * number
            self._hand_out()

        def close(self) -> None:
            """The play is over."""
            self._server.close()
            for connection in self._waiting:
                connection.close()

else:

    def _enter_and_wait(line: bytes) -> bytes:
        with open("begun", "wb", buffering=0) as begun:
            begun.write(line)
        with open("cues", "rb", buffering=0) as cues:
            return cues.read(1)

    class Stage:
        """The test's side of `act`. Both ends are held, so that opening never waits."""

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
            return _paths_and_pids(lines)

        def cue(self, number: int = 1, how: bytes = SUCCEED) -> None:
            """Let so many calls end."""
            os.write(self._cues, how * number)

        def close(self) -> None:
            """The play is over."""
            os.close(self._begun)
            os.close(self._cues)


def _paths_and_pids(lines: list[bytes]) -> dict[str, int]:
    pairs = (line.decode().rstrip().split(" ", 1) for line in lines)
    return {path: int(pid) for pid, path in pairs}
