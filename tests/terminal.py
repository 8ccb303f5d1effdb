"""A real shell on a real terminal: what somebody types there, and what is then to be seen.

For the tutorial, which is typed by a test, and for the README's picture.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
from collections.abc import Mapping
from pathlib import Path

from .stage import PATIENCE

CTRL_C = "\x03"

# The prompt, and what follows it unseen, as a window's title, which no command prints.
_PROMPT = b"$ \x1b]0;ready\x07"
_SHELL = {"PS1": r"$ \e]0;ready\a", "TERM": "xterm"}


class Terminal:
    """An interactive bash on a pseudo-terminal of its own, `columns` wide."""

    def __init__(self, folder: Path, environment: Mapping[str, str], columns: int = 100) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            arguments = ["bash", "--norc", "--noprofile", "--noediting", "-i"]
            os.execvpe("bash", arguments, {**environment, **_SHELL})
        size = struct.pack("HHHH", 50, columns, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)
        self._unread = b""
        self._wait_for(re.escape(_PROMPT))

    def run(self, command: str, interrupt_at: str | None = None) -> str:
        """Type a command and wait for the next prompt; returns what has come on the screen since.

        Args:
            command: what to type.
            interrupt_at: a pattern: when this has come, press Ctrl-C.
        """
        os.write(self._terminal, f"{command}\n".encode())
        shown = b""
        if interrupt_at is not None:
            shown = self._wait_for(interrupt_at.encode())
            os.write(self._terminal, CTRL_C.encode())
        shown += self._wait_for(re.escape(_PROMPT))
        return screen(shown.decode().partition("\n")[2])

    def close(self) -> None:
        """Hang up, as closing the window does."""
        os.close(self._terminal)
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)

    def _wait_for(self, pattern: bytes) -> bytes:
        """What has come up to the end of `pattern`, the prompt not included."""
        while (match := re.search(pattern, self._unread)) is None:
            ready, _, _ = select.select([self._terminal], [], [], PATIENCE)
            assert ready, f"{pattern!r} has not come after {self._unread!r}"
            self._unread += os.read(self._terminal, 65536)
        come, self._unread = self._unread[: match.end()], self._unread[match.end() :]
        return come.removesuffix(_PROMPT)


def screen(shown: str) -> str:
    """What stays to be seen of these characters, where a carriage return goes back to the start of
    the line and what follows is written over it."""
    lines = []
    for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown).split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return "\n".join(lines).strip("\n")
