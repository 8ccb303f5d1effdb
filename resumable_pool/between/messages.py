"""What the processes of a run say to each other: one class for each thing that can be said.

    runner -> worker   a `Setup`, then batches; an empty one: begin no further file of yours
    worker -> saver    Hello, Ready, StartFailed, records of values and Outcomes of failures,
                       BatchOver, Done (as bytes that frames.py makes)
    saver -> runner    lists of Opened, Unable, Saved, FailureSaved; and with its worker's number
                       what that has said, but for values, which are Received, and an end: Ended
    runner -> saver    Watch, Died, SaveFailure

A worker is named by a serial number that no other worker of the run has. Knows nothing of how they
travel.
"""
# Annotations are not put off here: NamedTuple would compile each of them at once.

from collections.abc import Callable, Iterable
from itertools import repeat
from typing import Any, NamedTuple

from ..errors import ResumablePoolError
from ..records import Outcome
from ..values import Encoded, Encoder

# Paths, in order, each for the first time; or with which attempt at it this is. (A list is made,
# sent and read in half the time that a dict takes.)
Batch = list[str] | dict[str, int]


def attempts_in(batch: Batch) -> Iterable[tuple[str, int]]:
    """Its paths, in order, and which attempt at each this is, from 1."""
    return batch.items() if isinstance(batch, dict) else zip(batch, repeat(1))


# What a batch of quick files is to take. Between two a worker waits for a millisecond or two where
# all processors are busy. No stop waits for its end, and what comes of it is told before.
BATCH_SECONDS = 0.2

# And what one that is given to an executor is to take. The way there takes some milliseconds; and
# since it cannot be recalled, a stop waits for it.
FAR_BATCH_SECONDS = 0.5


class Setup(NamedTuple):
    """What a worker needs before its first file."""

    function: Callable[[str], Any]
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    compared: bool = False  # whether inputs are compared later with what they are now
    around: Any = None  # what the worker has to `begin` and `end` with each call (time_limit.py)
    encoder: Encoder | None = None  # known once the checkpoint is open


# A worker to the saver.


class Hello(NamedTuple):
    """This process writes here. (For the saver alone, which may outlive the runner.)"""

    pid: int


class Ready(NamedTuple):
    """The initializer has returned: files may come."""


class StartFailed(NamedTuple):
    """The function could not be loaded here, or the initializer raised."""

    message: str
    traceback: str


class Values(NamedTuple):
    """The next paths of the worker's batch have values: the records of these, each sent at once.
    (What is read together is received as one message.)"""

    records: list[Encoded]


class BatchOver(NamedTuple):
    """The worker begins no further path of its batch, and waits for the next one. It has none left,
    or has handed the rest back: because one has failed, or the batch takes longer than planned, or
    it was told to."""


class Done(NamedTuple):
    """The sentinel: nothing comes after it, and so many outcomes came before."""

    outcomes: int


# An `Outcome` is the failure of the next path of the worker's batch.
FromWorker = Hello | Ready | StartFailed | Values | Outcome[Any] | BatchOver | Done


# The saver to the runner.


class Opened(NamedTuple):
    """The checkpoint is open and locked; `notes` say what a person may want to know about it, and
    workers make records by its `encoder`."""

    notes: list[str]
    encoder: Encoder


class Unable(NamedTuple):
    """The saver's last word: it could not open the checkpoint, or not save to it."""

    error: ResumablePoolError


class Received(NamedTuple):
    """The values of the next `number` paths of the worker's batch have come."""

    number: int


class Saved(NamedTuple):
    """Of the values that have come, the next `number` are saved, in the order of coming."""

    number: int


class FailureSaved(NamedTuple):
    """The failure of this path, which the runner has judged, is in the checkpoint."""

    path: str


class Ended(NamedTuple):
    """The worker's stream has ended, and everything whole in it was dealt with. `clean`: by `Done`
    with the right count; otherwise the worker is dead, or as good as dead."""

    clean: bool


# Of an `Outcome` this is all there is: the runner, which alone knows whether a stop was asked for,
# says whether to save it.
FromSaver = (
    Opened | Unable | Saved | FailureSaved
    | Ready | StartFailed | Received | Outcome[Any] | BatchOver | Ended
)  # fmt: skip

# With the worker that it is about, or `OF_NONE`.
Report = tuple[int, FromSaver]
OF_NONE = -1


# The runner to the saver.


class Watch(NamedTuple):
    """Read this worker's outcomes, too: the read end of its pipe is handed over, `sent` says how
    (waiting.py)."""

    worker: int
    sent: object


class Died(NamedTuple):
    """The worker's process is dead: take what is left in its pipe, and do not wait for its end."""

    worker: int


class SaveFailure(NamedTuple):
    """Save this failure: the function's own, or that its worker died with it, or was killed."""

    outcome: Outcome[Any]


ToSaver = Watch | Died | SaveFailure
