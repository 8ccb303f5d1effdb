"""A dict `{path: value}` that somebody else has pickled: what is in it, for its conversion.

It is unpickled, which runs code that is in it. So it is only asked for by who opens it for writing;
who reads finds that it is no checkpoint yet. Knows nothing of our own layout, and never writes.
"""

from __future__ import annotations

import os
import pickle
import pickletools
from binascii import crc32
from collections.abc import Iterator
from typing import Any, BinaryIO

from ..errors import CheckpointError
from ..files import normalised
from ..records import Outcome, quoted
from ..values import UnstorableValue, pickle_value
from .base import foreign

# The first opcode of a pickle that makes something: of a dict, or of a class of dicts.
_MAKE_A_DICT = (
    ("EMPTY_DICT", None),
    ("MARK", None),
    ("SHORT_BINUNICODE", "collections"),
    ("GLOBAL", "collections OrderedDict"),
    ("GLOBAL", "collections defaultdict"),
)
# What writes to a place of the memo, by its number.
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_NO_DICT = ": it is a pickle, but not of a dict {path: value}"


def read_plain(fd: int, path: str) -> tuple[str, Iterator[Outcome[Any]]]:
    """What has been done when the plain pickle at `path`, open as `fd`, is converted, in words; and
    its results, which raise `CheckpointError` where one cannot be pickled again.

    Raises:
        CheckpointError: it is something else, or it cannot be unpickled.
    """
    with open(fd, "rb", closefd=False) as data:  # mapped, it would kill us if it were cut short
        _refuse_others(data, path)
        try:
            data.seek(0)
            loaded = pickle.load(data)
        except Exception as error:  # code of the values' own
            raise _refusal(path, "it cannot be unpickled", error) from error
    if not isinstance(loaded, dict):
        raise foreign(path, _NO_DICT)
    if not all(type(key) is str for key in loaded):
        what = "it is a pickle of a dict whose keys are not all strings, as paths are"
        raise foreign(path, f": {what}")
    # A key is the path that the function would receive; of two that name one file the later.
    values = {normalised(key): value for key, value in loaded.items()}
    done = "adopted the results of {results} from a plain pickle"
    if dropped := len(loaded) - len(values):
        done += f"; {dropped:,} more were for the same files under other names"
    return done, _outcomes_of(values, path)


def _outcomes_of(values: dict[str, Any], path: str) -> Iterator[Outcome[Any]]:
    for key, value in values.items():
        try:
            pickled = pickle_value(value)
        except UnstorableValue as error:
            raise _refusal(path, f"{error}, of {quoted(key)}", error.__cause__) from error
        yield Outcome(key, pickled, crc32(pickled), None, 0.0)


def _refuse_others(data: BinaryIO, path: str) -> None:
    """Raise `CheckpointError` for what cannot be such a dict, without running any of it."""
    first, size = None, data.seek(0, os.SEEK_END)
    data.seek(0)
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if first is None and opcode.name not in ("PROTO", "FRAME"):
                first = (opcode.name, argument)
                if first not in _MAKE_A_DICT:
                    raise foreign(path, _NO_DICT)
            if opcode.name in _PUTS and int(argument or 0) > size:
                raise foreign(path)  # and that much memory would be taken
    except (ValueError, OverflowError, MemoryError, UnicodeError):  # whatever other bytes are
        raise foreign(path) from None
    if data.read(1):
        raise foreign(path, ": it is a pickle with something behind it, perhaps another one")


def _refusal(path: str, what: str, error: BaseException | None) -> CheckpointError:
    return CheckpointError(
        path,
        f"is a plain pickle, but {what}: {type(error).__name__}: {error}",
        "Its classes must be importable where it is read. If the script that wrote it defined "
        "them, define them in the script that reads it, too.",
    )
