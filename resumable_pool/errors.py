"""The errors this library raises, one class for each thing that a caller can do about it.

Every error carries its facts as attributes, hands all of them to `Exception.__init__` so that it
survives pickling (the saver's errors cross a pipe), and makes its text in `__str__`.
Knows nothing of processes or files.
"""

from __future__ import annotations

import sys

from .records import quoted, some_of

# How a person ends a run.
STOPS = "Ctrl-C" if sys.platform == "win32" else "Ctrl-C or SIGTERM"


class ResumablePoolError(Exception):
    """Base of all errors of this library: something about a run, not about one file of it."""

    traceback = ""

    def _text(self, text: str) -> str:
        """With the traceback of the other process, if there is one."""
        return f"{text}\n\n{self.traceback}" if self.traceback else text


class CheckpointLocked(ResumablePoolError):
    """Another run is writing this checkpoint.

    Attributes:
        path: the checkpoint.
        pid: the process that holds it (the other run's saver), or `None` where nobody can tell.
        script: the process of that run's script, or `None` if it is gone or nobody can tell.
    """

    def __init__(self, path: str, pid: int | None, script: int | None = None) -> None:
        super().__init__(path, pid, script)
        self.path, self.pid, self.script = path, pid, script

    def __str__(self) -> str:
        holder = "another process" if self.pid is None else f"process {self.pid}"
        text = f"{quoted(self.path)} is in use: {holder} is writing to it, "
        if self.script is not None:
            return (
                f"{text}the saver of another run, whose script is process {self.script}. Wait "
                "until that run has ended, or stop it with SIGTERM to the script (kill "
                f"{self.script}), not to the saver: it finishes its files in progress and saves "
                "them. Or give this run another checkpoint."
            )
        return (
            f"{text}usually another run's saver. Wait until that run has ended, stop it with "
            f"{STOPS} to its script, or give this run another checkpoint. If its script was "
            "killed, the saver finishes the files in progress and exits; only if you cannot wait "
            "for them, kill that process too."
        )


class CheckpointError(ResumablePoolError):
    """The file is not a checkpoint, or is damaged. Nothing in it was changed.

    Attributes:
        path: the checkpoint.
        reason: what is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, path: str, reason: str, remedy: str) -> None:
        super().__init__(path, reason, remedy)
        self.path, self.reason, self.remedy = path, reason, remedy

    def __str__(self) -> str:
        return f"{quoted(self.path)} {self.reason}. Nothing in it was changed. {self.remedy}"


class SaverError(ResumablePoolError):
    """Results could not be saved: the disk is full, say, or the saver process was killed.

    Everything that was saved before is in the checkpoint, and the next run continues from there.

    Attributes:
        path: the checkpoint.
        reason: what happened, in the system's words where it has some.
        traceback: where it happened in the saver process, or `""`.
        remedy: what to do about it.
        by: your class whose `save` raised, and what it was given; `""` if the checkpoint saves.
    """

    def __init__(
        self,
        path: str,
        reason: str,
        traceback: str = "",
        remedy: str = "What was saved before is kept. Fix this and run again to continue.",
        by: str = "",
    ) -> None:
        super().__init__(path, reason, traceback, remedy, by)
        self.path, self.reason, self.traceback = path, reason, traceback
        self.remedy, self.by = remedy, by

    def __str__(self) -> str:
        where = f"by {self.by}" if self.by else f"to {quoted(self.path)}"
        what = f"the run was stopped, because results could not be saved {where}"
        return self._text(f"{what}: {self.reason}. {self.remedy}")


class ExecutorError(ResumablePoolError):
    """The executor is broken, or has sent nothing back: the run was stopped.

    No file failed because of that, except one that was alone with the executor when it broke.

    Attributes:
        executor: the name of its class.
        reason: what it said.
        in_flight: the files that it had.
        broken: whether it can no longer be used; otherwise nothing has come back from it.
        traceback: where that happened, or `""`.
    """

    def __init__(
        self, executor: str, reason: str, in_flight: list[str], broken: bool, traceback: str = ""
    ) -> None:
        super().__init__(executor, reason, in_flight, broken, traceback)
        self.executor, self.reason, self.traceback = executor, reason, traceback
        self.in_flight, self.broken = in_flight, broken

    def __str__(self) -> str:
        if self.broken:
            what = "cannot continue"
            remedy = (
                "What was saved is kept: make a new executor and run again to continue. If it "
                "breaks again, one of these files may be the reason. With max_workers=1 it gets "
                "one file at a time: the one that breaks it is recorded as failed, and "
                "retry_failed=False leaves it alone"
            )
        else:
            what = "has sent nothing back yet"
            remedy = (
                "Can its workers import the function's module and resumable_pool? Can the function "
                "be pickled? Fix that and run again"
            )
        what = f"the {self.executor} {what}: {self.reason.rstrip('.')}"
        return self._text(f"{what}. It had {some_of(self.in_flight)}. {remedy}.")


class WorkerStartError(ResumablePoolError):
    """A process of the run could not start, and others would not either: the run was stopped.

    Attributes:
        reason: what happened.
        remedy: what to do about it.
        traceback: where it happened in the process that failed, or `""`.
    """

    def __init__(self, reason: str, remedy: str, traceback: str = "") -> None:
        super().__init__(reason, remedy, traceback)
        self.reason, self.remedy, self.traceback = reason, remedy, traceback

    def __str__(self) -> str:
        return self._text(f"{self.reason}. {self.remedy}")


# What signals may be the reason of that hit all of a program's processes, also those that start.
BY_SIGNALS = (ExecutorError, WorkerStartError)
