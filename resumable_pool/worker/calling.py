"""One call of the user's function, and what came of it: whatever it does, an outcome.

Runs in whatever process has the file: a worker of ours, or one of an executor's. Knows neither.
"""

from __future__ import annotations

import time
from binascii import crc32
from collections.abc import Callable
from typing import Any

from ..between.describing import describe
from ..files import fingerprint
from ..records import Failure, Outcome
from ..values import Encoded


def process(call: Callable[[str], Encoded], path: str, attempt: int) -> Outcome[Any]:
    """What comes of `call`, which makes the bytes of a result. What it raises becomes a value here,
    and only here."""
    found = fingerprint(path)
    begun = time.perf_counter()
    try:
        pickled = call(path)
    except BaseException as error:
        seconds = time.perf_counter() - begun
        failure = Failure(path, "error", *describe(error), attempt, seconds)
        return Outcome(path, None, 0, failure, seconds, attempt, found, time.time())
    seconds = time.perf_counter() - begun
    return Outcome(path, pickled, crc32(pickled), None, seconds, attempt, found, time.time())
