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
from ..between.frames import plain_frame, value_frame
from ..records import Failure, Fingerprint, Outcome
from ..values import Bytes, Encoder


def process(
    call: Callable[[str], bytes], encoder: Encoder, path: str, attempt: int, found: Fingerprint
) -> tuple[bool, Sequence[Bytes]]:
    """What comes of `call`, which makes the bytes of a result: whether there is one, and the frame
    of the outcome, with the record that the checkpoint will hold. What raises on the way becomes a
    value here, and only here.

    Args:
        found: the input's fingerprint: see `not_asked` for files that are too quick to ask.
    """
    begun = monotonic()
    try:
        pickled = call(path)
        facts = (crc32(pickled), None, monotonic() - begun, attempt, found, time.time())
        return True, value_frame(encoder.record(Outcome(path, pickled, *facts)))
    except BaseException as error:
        seconds = monotonic() - begun
        failure = Failure(path, "error", *describe(error), attempt, seconds)
    outcome = Outcome[Any](path, None, 0, failure, seconds, attempt, found, time.time())
    return False, [plain_frame(outcome)]
