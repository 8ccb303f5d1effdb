"""What became of a file, and of a run: plain values that users read and processes exchange.

Knows nothing of processes, pipes or the checkpoint's format.
"""
# Annotations are not put off here: NamedTuple would compile each of them at once.

import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, Literal, NamedTuple, TypeVar

from .values import Encoded, read_value

Result = TypeVar("Result")

WorkerState = Literal["starting", "idle", "busy"]
FailureKind = Literal["error", "crashed", "timeout"]

# A person reads the first few and then wants the list; ten lines leave the counts in sight.
SHOWN_FAILURES = 10
SHOWN_LENGTH = 200

# Of the files that somebody had when it went wrong.
SHOWN_PATHS = 5

# What a failure says whose worker the system has killed, most often because memory was short.
KILLED = "its worker was killed by SIGKILL"

# Numbers and addresses differ from file to file, where what is wrong does not.
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d+")
# What stands for the file's name, where that is only a part of a word.
_IN_A_WORD = re.compile(r"(?<=\w)\0|\0(?=\w)")


class Failure(NamedTuple):
    """Why one file has no result.

    Attributes:
        path: the file.
        kind: `"error"` (the function raised, or its result cannot be stored), `"crashed"` (its
            worker process died) or `"timeout"` (it took too long).
        message: the exception's type and text, or how the worker ended.
        traceback: the traceback as text; for a time-out, where it hung; or `""`.
        attempts: how often the file has been tried.
        seconds: how long the last attempt took.
    """

    path: str
    kind: FailureKind
    message: str
    traceback: str
    attempts: int
    seconds: float

    @property
    def was_killed(self) -> bool:
        """Whether the system has killed its worker (SIGKILL): memory was short, perhaps."""
        return self.kind == "crashed" and self.message.startswith(KILLED)

    def __str__(self) -> str:
        """One line, whatever is in the path and the message."""
        return self._line("")

    def _line(self, more: str) -> str:
        message = self.message.split("\n", 1)[0][:SHOWN_LENGTH]
        if len(message) < len(self.message.rstrip()):
            message = f"{message}..."
        return printable(f"{self.path}{more}: {message}")


class AlikeFailures(dict[str, tuple[Failure, int]]):
    """Failures, grouped by what went wrong: many files often fail for one reason. Messages are
    alike if they differ only in numbers and in the name of the file. Of each kind there is the
    first one, and how many there are."""

    def __init__(self, failures: Iterable[Failure] = ()) -> None:
        super().__init__()
        for failure in failures:
            self.add(failure)

    def add(self, failure: Failure) -> int:
        """How many of its kind there are now."""
        line = failure.message.split("\n", 1)[0]
        for name in (failure.path, os.path.basename(failure.path)):
            # A pattern of the name itself would have to be compiled for each file.
            line = _IN_A_WORD.sub(name.replace("\\", "\\\\"), line.replace(name, "\0"))
        kind = _NUMBERS.sub("0", line)
        first, number = self.get(kind, (failure, 0))
        self[kind] = first, number + 1
        return number + 1

    def lines(self, where: str) -> Iterator[str]:
        """For a person: a line for each kind, those with most files first. The last one says
        `where` all are, if not all are shown."""
        groups = sorted(self.values(), key=lambda group: -group[1])
        for first, number in groups[:SHOWN_FAILURES]:
            yield f"  {first._line(f' and {number - 1:,} more' if number > 1 else '')}"
        unshown = sum(number for _, number in groups[SHOWN_FAILURES:])
        if unshown:
            yield f"  ... and {unshown:,} more: {where}"
        elif len(groups) < sum(number for _, number in groups):
            yield f"  ({where})"


class Fingerprint(NamedTuple):
    """Size and time of change of an input when its processing began; -1 where it was not there. For
    a quick file, which is not asked: -1, and when its batch began."""

    size: int = -1
    mtime_ns: int = -1


NO_FINGERPRINT = Fingerprint()


class _Outcome(NamedTuple):  # up to Python 3.10 one that is Generic has to be made in two steps
    path: str
    pickled: Encoded | None
    checksum: int
    failure: Failure | None
    seconds: float
    attempts: int = 1
    fingerprint: Fingerprint = NO_FINGERPRINT
    finished_at: float = 0.0


class Outcome(_Outcome, Generic[Result]):
    """What became of one file: a value, or a failure.

    Attributes:
        path: the file.
        pickled: the bytes that the worker made of the value: its pickle, or JSON if that is what
            the checkpoint holds; `None` for a failure.
        checksum: crc32 of `pickled`, made by the worker.
        failure: the failure, or `None` for a value.
        seconds: how long the function took.
        attempts: how often the file has been tried.
        fingerprint: of the input, from before the function was called.
        finished_at: when the function returned, in seconds since the epoch; 0 if not known.
    """

    __slots__ = ()

    @property
    def ok(self) -> bool:
        """Whether there is a value."""
        return self.failure is None

    @property
    def value(self) -> Result:
        """The value, unpickled anew at each access.

        Raises:
            ValueError: the file has failed.
            LookupError: it is saved elsewhere, and the runner does not say how to read it.
        """
        if self.ok and self.pickled is None:
            remedy = "override read_result to read it"
            raise LookupError(f"{quoted(self.path)} is saved elsewhere: {remedy}")
        if self.pickled is None:
            raise ValueError(f"{quoted(self.path)} failed, there is no value: {self.failure}")
        value: Result = read_value(self.pickled)
        return value


class WorkerStatus(NamedTuple):
    """What one worker of a run is doing.

    Attributes:
        slot: its place, 0 to `max_workers` - 1; a worker that replaces another takes its place.
        pid: its process.
        state: `"starting"` (the initializer has not returned yet), `"idle"` or `"busy"`.
        path: the file that it is processing, or `None`.
        seconds: for how long, or `None`.
        files_done: how many files have been done in this place, in this run, failed ones included.
        restarts: how often the worker in this place has been replaced.
    """

    slot: int
    pid: int
    state: WorkerState
    path: str | None
    seconds: float | None
    files_done: int
    restarts: int


class Entry(NamedTuple):
    """What a checkpoint knows of one file besides its value, which is not read.

    Attributes:
        path: the file.
        failure: the failure, or `None` where there is a value.
        seconds: how long the function took.
        attempts: how often the file has been tried.
        size: how many bytes the value, or the failure, takes in the checkpoint.
    """

    path: str
    failure: Failure | None
    seconds: float
    attempts: int
    size: int


class Report(NamedTuple):
    """How a run ended. `print(report)` is made for people.

    `total` = `completed` + `skipped` + `failed` + `remaining`.

    Attributes:
        total: files that the pattern matches.
        completed: files whose results were saved by this run.
        skipped: files whose results had been saved before.
        failed: files that count as failed at the end.
        remaining: files still to do, because the run was stopped first.
        seconds: how long the run took.
        stopped: whether the run was stopped.
        failures: the failed files' failures, in path order.
        note: if there were no files, what was searched for and where; otherwise `""`.
    """

    total: int
    completed: int
    skipped: int
    failed: int
    remaining: int
    seconds: float
    stopped: bool
    failures: Sequence[Failure]
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether every file has a result: none has failed, and none is still to do."""
        return not (self.failed or self.remaining)

    def __str__(self) -> str:
        return "\n".join(self.lines("report.failures has them all"))

    def __repr__(self) -> str:
        """What a prompt or a notebook shows: one line, not the traceback of every failure."""
        return f"<Report: {self._summary()}>"

    def lines(self, where: str) -> Iterator[str]:
        """The text, line by line; `where` is what it says about where to see all failures."""
        yield self._summary()
        yield from AlikeFailures(self.failures).lines(where)

    def _summary(self) -> str:
        if self.total == 0:
            return f"nothing to do: {self.note}" if self.note else "no files: nothing to do"
        counts = [f"{self.completed:,} done"] if self.completed or not self.skipped else []
        if self.skipped:
            counts.append(f"{self.skipped:,} done before")
        if self.failed:
            counts.append(f"{self.failed:,} failed")
        if self.remaining:
            counts.append(f"{self.remaining:,} still to do (run again to go on)")
        return f"{count_files(self.total)}: {', '.join(counts)}, in {in_words(self.seconds)}"


def printable(text: str) -> str:
    """`text` in one line that does nothing to a terminal, whatever is in it, and that stdout can
    show: a Windows console, or a file that it is sent to, may have no more than 256 letters."""
    if not text.isprintable():
        text = text.encode("unicode_escape").decode("ascii")
    return spelt(text, sys.stdout)


def spelt(text: str, stream: object) -> str:
    """`text` with an escape for each letter that the stream has no bytes for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def quoted(path: str) -> str:
    """A path in quotes, as one would type it: `repr` doubles the backslashes of Windows."""
    return repr(path).replace("\\\\", "\\")


def typed(path: str) -> str:
    """The same in a command for any shell: cmd.exe knows only one kind of quotes, in which others
    look for variables."""
    return quoted(path) if {*path} & {*'"$`!'} else f'"{path}"'


def from_here(path: str) -> str:
    """A path that is absolute, as it is called in the current folder."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))


def some_of(paths: Sequence[str]) -> str:
    """The first few of them, in quotes, and how many more there are."""
    more = len(paths) - SHOWN_PATHS
    shown = ", ".join(map(quoted, paths[:SHOWN_PATHS]))
    return f"{shown} and {more:,} more" if more > 0 else shown


def explained(error: Exception) -> str:
    """What an error says, and if it is the system's, of which file."""
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return str(error)
    return f"{error.strerror}: {quoted(error.filename)}"


def count_files(number: int) -> str:
    """`"1 file"`, `"1,296 files"`."""
    return f"{number:,} file" if number == 1 else f"{number:,} files"


def tally(total: int, *parts: tuple[int, str]) -> str:
    """`"1,296 files: 1,203 done, 93 to do"`, without the parts that are none."""
    shown = ", ".join(f"{number:,} {what}" for number, what in parts if number)
    return f"{count_files(total)}: {shown}"


def in_words(seconds: float) -> str:
    """A duration for people: `"0.4 s"`, `"12 s"`, `"3 min 20 s"`, `"2 h 05 min"`, `"3 d 04 h"`."""
    if not seconds < float("inf"):  # in a file that somebody has made up
        return "? s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days or hours:
        return f"{days} d {hours:02} h" if days else f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
