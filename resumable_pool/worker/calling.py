"""One call of the user's function, and what came of it: whatever it does, an outcome, as bytes.

Runs in whatever process has the file: a worker of ours, or one of an executor's. Knows neither.
"""

from __future__ import annotations

import time
from binascii import crc32
from collections.abc import Callable, Sequence
from typing import Any

from ..between.clock import monotonic
from ..between.describing import describe
from ..between.frames import outcome_frame
from ..files import fingerprint
from ..records import Failure, Outcome
from ..values import Bytes, Encoded

# What the checkpoint holds of an outcome that has a value.
Record = Callable[[Outcome[Any]], Sequence[Bytes]]


def process(
    call: Callable[[str], Encoded], record: Record, path: str, attempt: int
) -> tuple[bool, list[Bytes]]:
    """What comes of `call`, which makes the bytes of a result: whether there is one, and the frame
    of the outcome, with the `record` that the checkpoint will hold. What raises on the way becomes
    a value here, and only here."""
    found = fingerprint(path)
    begun = monotonic()
    try:
        pickled = call(path)
        seconds, finished_at = monotonic() - begun, time.time()
        value = Outcome(path, pickled, crc32(pickled), None, seconds, attempt, found, finished_at)
        return True, outcome_frame(value, record)
    except BaseException as error:
        seconds = monotonic() - begun
        failure = Failure(path, "error", *describe(error), attempt, seconds)
    failed = Outcome[Any](path, None, 0, failure, seconds, attempt, found, time.time())
    return False, outcome_frame(failed, record)
