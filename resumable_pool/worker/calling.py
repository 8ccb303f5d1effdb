"""The user's code, called: the initializer once, and the function for each path of a batch.
Whatever it does, what comes of it is an outcome, as bytes.

Runs in whatever process has the files: a worker of ours, or one of an executor's. Knows neither.
"""

from __future__ import annotations

import os
import time
from binascii import crc32
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..between.clock import monotonic
from ..between.describing import describe
from ..between.frames import plain_frame, value_frame
from ..between.messages import Batch, Setup, StartFailed, attempts_in
from ..files import fingerprint, not_asked
from ..records import Failure, Outcome
from ..values import Bytes

OWN_FILE = __file__  # as tracebacks name it

# The files of so short a batch take milliseconds each, or are the last. Beside that it costs
# nothing to ask how large each is, and when it was changed.
_SHORT_BATCH = 100

# No fork of a Python takes less, in seconds, but many times as long; and to ask for its number
# takes a quarter of a microsecond.
_SHORTEST_FORK = 2e-5


def initialize(setup: Setup) -> StartFailed | None:
    """Before the first file."""
    if setup.initializer is not None:
        try:
            setup.initializer(*setup.initargs)
        except BaseException as error:
            return start_failed("the initializer failed", error)
    return None


def start_failed(what: str, error: BaseException) -> StartFailed:
    """Why there will be no files here."""
    text, where = describe(error)
    return StartFailed(f"{what}: {text}", where)


def process_batch(
    setup: Setup, batch: Batch, before: Callable[[], object]
) -> Iterator[tuple[Sequence[Bytes], float, bool]]:
    """What comes of one path after the other: the frame of its outcome, with the record that the
    checkpoint will hold, when it came, and whether it is the last: after a failure the batch ends,
    and the runner decides how to go on. What raises becomes a value here, and only here. By then
    the methods of an exception, and of all that it held, have run: they may take their time, too.

    Args:
        before: called before each call.
    """
    assert setup.encoder is not None
    function, (encode, record) = setup.function, setup.encoder
    look, found = setup.compared or len(batch) <= _SHORT_BATCH, not_asked()
    last, pid = len(batch), os.getpid()
    for number, (path, attempt) in enumerate(attempts_in(batch), 1):
        before()
        if look:
            found = fingerprint(path)
        begun = monotonic()
        try:
            pickled = encode(function(path))
            ended = monotonic()
            seconds, checksum = ended - begun, crc32(pickled)
            outcome = path, pickled, checksum, None, seconds, attempt, found, time.time()
            frame = value_frame(record(outcome))
        except BaseException as error:
            ended = monotonic()
            seconds = ended - begun
            failure = Failure(path, "error", *describe(error), attempt, seconds)
            failed = Outcome[Any](path, None, 0, failure, seconds, attempt, found, time.time())
            frame, last = [plain_frame(failed)], number
        if seconds > _SHORTEST_FORK and os.getpid() != pid:
            os._exit(0)  # it has forked, and this is the copy that returned as well
        yield frame, ended, number == last
