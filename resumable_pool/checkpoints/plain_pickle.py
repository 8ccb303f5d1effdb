"""A dict `{path: value}` that somebody else has pickled: what is in it, before it is adopted.

Its keys are found without running anything that the pickle names, so that a file can be looked at
that one does not trust; its values are unpickled, all at once, when the first one is asked for.

Knows nothing of our own layout, and never writes.
"""

from __future__ import annotations

import os
import pickle
from binascii import crc32
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..errors import CheckpointError
from ..files import as_key
from ..records import Outcome, quoted
from ..values import UnstorableValue, name_script_main, pickle_value
from .base import foreign
from .disk import read_at
from .log_reader import Found

# How a pickle of a dict begins: PROTO; EMPTY_DICT in protocol 1, MARK DICT in protocol 0. Other
# files are not given to pickle at all, which would take their bytes for whatever they happen to be.
_STARTS = (b"\x80", b"}", b"(d")

_DICTS = {"OrderedDict": OrderedDict, "defaultdict": defaultdict}


class PlainScan:
    """One pass over the results, as a scan of our own records is one."""

    committed = 0
    unsettled = False

    def __init__(self, records: list[Found], end: int) -> None:
        self._records = records
        self.end = end

    def __iter__(self) -> Iterator[Found]:
        return iter(self._records)

    def refuse_damage(self, path: str) -> None:
        """There is none: what cannot be read has not been recognised."""

    def skip_damage(self) -> str | None:
        """None either."""
        return None


class PlainPickle:
    """What is in the plain pickle at `path`, open as `fd`.

    Raises:
        CheckpointError: it is something else.
    """

    def __init__(self, fd: int, path: str) -> None:
        self.path = path
        self._size = os.fstat(fd).st_size
        self._values: list[Any] | None = None
        # A key is the path that the function would receive; of two that name one file the later.
        self.keys = [as_key(os.path.normpath(key)) for key in _read_keys(fd, path)]

    def scan(self) -> PlainScan:
        """A scan of it. Nobody can tell how long a single value is: each has an equal share."""
        share = self._size // max(1, len(self.keys))
        places = {key: place for place, key in enumerate(self.keys)}
        records: list[Found] = [
            (key, place, False, True, (0.0, 1, share)) for key, place in places.items()
        ]
        return PlainScan(records, self._size - 1)

    def outcome(self, fd: int, place: int) -> Outcome[Any]:
        """The result at this place of the dict.

        Raises:
            CheckpointError: the dict cannot be unpickled, or this value not be pickled again.
        """
        if self._values is None:
            self._values = self._unpickle(fd)
        try:
            pickled = pickle_value(self._values[place])
        except UnstorableValue as error:
            what = f"{error}, of {quoted(self.keys[place])}"
            raise self._refusal(what, error.__cause__) from error
        return Outcome(self.keys[place], pickled, crc32(pickled), None, 0.0)

    def _unpickle(self, fd: int) -> list[Any]:
        name_script_main()  # or what is pickled again here names its classes as only we can
        try:
            loaded: dict[str, Any] = pickle.Unpickler(_file(fd)).load()
        except Exception as error:  # code of the values' own
            raise self._refusal("it cannot be unpickled", error) from error
        return [*loaded.values()]

    def _refusal(self, what: str, error: BaseException | None) -> CheckpointError:
        return CheckpointError(
            self.path,
            f"is a plain pickle, but {what}: {type(error).__name__}: {error}",
            "Its classes must be importable where it is read: those of the script that wrote it "
            "are found by a script that defines them, too.",
        )


def _file(fd: int) -> BinaryIO:
    os.lseek(fd, 0, os.SEEK_SET)
    return open(fd, "rb", closefd=False)


def _read_keys(fd: int, path: str) -> list[str]:
    if not read_at(fd, 2, 0).startswith(_STARTS):
        raise foreign(path)
    file = _file(fd)
    try:
        loaded = _NothingIsRun(file).load()
    except Exception:  # whatever pickle makes of other bytes
        raise foreign(path) from None
    if not isinstance(loaded, dict):
        raise foreign(path, ": it is a pickle, but not of a dict {path: value}")
    if not all(type(key) is str for key in loaded):
        raise foreign(path, ": it is a pickle of a dict whose keys are not all text, as paths are")
    if file.read(1):
        raise foreign(path, ": it is a pickle with something behind it, another one perhaps")
    return [*loaded]


class _NothingIsRun(pickle.Unpickler):
    """Reads a pickle as far as it is containers, text and numbers, with something harmless in place
    of all that it would import."""

    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        if module == "collections" and name in _DICTS:  # what a dict of results may also be
            return _DICTS[name]
        return _Harmless


class _TakesItems(type):
    def __setitem__(cls, key: object, value: object) -> None:
        pass


class _Harmless(metaclass=_TakesItems):
    """Stands for every class, function and object: whatever a pickle does with it gives the class
    itself. An instance would not do, because a pickle may get a class by calling something."""

    def __new__(cls, *_: object, **__: object) -> type[_Harmless]:  # type: ignore[misc]
        return cls

    @staticmethod
    def _ignore(*_: object) -> None:
        pass

    __setstate__ = append = extend = add = _ignore
