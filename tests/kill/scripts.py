"""Whole scripts, as a user would start them, in a session of their own, and all their processes.

A script's processes are found by a mark in their environment, whoever their parent is by then; the
saver by the process id in the checkpoint's header.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resumable_pool import ResumableRunner
from resumable_pool.checkpoints.pickle_record import read_header
from tests.stage import PATIENCE, act

ROOT = Path(__file__).resolve().parents[2]

TEMPLATE = """
import sys
from resumable_pool import ResumableRunner
from tests.functions import *
from tests.stage import act
{definitions}
if __name__ == "__main__":
    runner = ResumableRunner(
        {function}, "in/*.txt", {checkpoint!r}, max_workers=3, mp_context={method!r}, {options}
    )
    print("running", file=sys.stderr, flush=True)
    print(runner.run())
"""


def rerun(function: Callable[[str], Any] = act, checkpoint: str = "result.pkl") -> str:
    """What a script prints that is run again. All that it takes over is the checkpoint, so it need
    not be a process of its own, and its workers may be forked, which is the cheapest."""
    again = ResumableRunner(function, "in/*.txt", checkpoint, max_workers=3, progress=False)
    return str(again.run())


class Script:
    """A script that runs `function` over the files of `folder`."""

    def __init__(
        self,
        folder: Path,
        method: str | None,
        function: str = "act",
        definitions: str = "",
        options: str = "",
        checkpoint: str = "result.pkl",
    ) -> None:
        self.folder = folder
        self.path = folder / "script.py"
        self.path.write_text(
            TEMPLATE.format(
                method=method,
                function=function,
                definitions=definitions,
                options=options,
                checkpoint=checkpoint,
            )
        )
        self._mark = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RESUMABLE_POOL_MARK": self._mark,
            "PYTHONWARNINGS": "ignore",
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = b""

    def start(self, command: Sequence[str] = (sys.executable,)) -> None:
        """Start it with `command`, and wait until it is about to run."""
        self._errors = b""
        self._process = subprocess.Popen(
            [*command, self.path.name],
            cwd=self.folder,
            env=self.environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.wait_for_words("running")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_for_words(self, words: str) -> None:
        """Until the script has written them to stderr."""
        assert self.has_said(words, PATIENCE), f"not {words!r}, but {self._errors.decode()}"

    def has_said(self, words: str, within_seconds: float) -> bool:
        """Whether it has, as soon as that is so; `False` if it says nothing for so long."""
        assert self._process is not None
        assert self._process.stderr is not None
        fd = self._process.stderr.fileno()
        while words.encode() not in self._errors:
            ready, _, _ = select.select([fd], [], [], within_seconds)
            chunk = os.read(fd, 4096) if ready else b""
            if not chunk:
                return False
            self._errors += chunk
        return True

    def wait(self, growing: Path | None = None) -> tuple[int, str, str]:
        """Until the script itself has ended: its status, stdout and stderr. It may take its time
        as long as a file is `growing`."""
        assert self._process is not None
        out, errors = b"", None
        while errors is None:
            before = growing.stat().st_size if growing and growing.exists() else 0
            try:
                out, errors = self._process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                if not growing or not growing.exists() or growing.stat().st_size == before:
                    self.kill_all()
                    raise
        return self._process.returncode, out.decode(), (self._errors + errors).decode()

    def kill(self) -> None:
        """SIGKILL the script, and nothing else."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def run(self, growing: Path | None = None) -> str:
        """From start to a good end; its stdout."""
        self.start()
        status, out, errors = self.wait(growing)
        assert status == 0, errors
        return out

    def kill_all(self) -> None:
        """Every process at once, as far as that is possible."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def saver(self) -> int:
        """The process that holds the checkpoint."""
        path = self.folder / "result.pkl"
        fd = os.open(path, os.O_RDONLY)
        try:
            return read_header(fd, str(path)).pid
        finally:
            os.close(fd)

    def processes(self) -> list[int]:
        """All that carry the script's mark and live."""
        mark = f"RESUMABLE_POOL_MARK={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def wait_gone(self) -> None:
        """Until no process of the script is left."""
        while pids := self.processes():
            for pid in pids:
                with contextlib.suppress(OSError):  # gone in between
                    fd = os.pidfd_open(pid)
                    ready, _, _ = select.select([fd], [], [], PATIENCE)
                    os.close(fd)
                    assert ready, f"process {pid} is left behind"
