"""A result into bytes that can be read again, in the process that made it, and back.

Knows nothing of processes, or of where the bytes go.
"""

from __future__ import annotations

import json
import pickle
import re
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

# Up to protocol 3 a pickle names its memo slots absolutely, so that the checkpoint can append it to
# another pickle without renumbering (see checkpoints/pickle_record.py).
PROTOCOL = 3

_NEWLINE = ord("\n")

# So many bytes are looked through faster than they are unpickled.
_SMALL = 1 << 12

# What multiprocessing calls the user's script in a spawned child.
_SCRIPT_IN_CHILD = "__mp_main__"


# The bytes of a value, or of a record with one; large ones are left in the buffer that they were
# received in.
Encoded = bytes | bytearray

# A part of these, or all.
Bytes = Encoded | memoryview

# What JSON gives back as it was.
_JSON_SCALARS = frozenset({str, int, float, bool, type(None)})

# What JSON, where both are escapes, takes for one character beyond the first 65,536.
_HALVES = "[\ud800-\udbff][\udc00-\udfff]"


class Encoder(NamedTuple):
    """Makes a checkpoint's bytes of results. It is sent to workers once the checkpoint is open,
    so that the saver only appends what they have made.

    Attributes:
        encode: the bytes of a result, or `UnstorableValue`.
        record: called with a tuple of what the `Outcome` has that has those bytes: what will stand
            in the checkpoint, in parts, so that a large value need not be copied.
    """

    encode: Callable[[Any], bytes]
    record: Callable[..., Sequence[Bytes]]


class UnstorableValue(Exception):
    """The value cannot be turned into bytes, or cannot be read from them again; says why."""


def pickle_value(value: Any) -> bytes:
    """The pickle of `value`, in protocol 3 where that can hold it.

    Raises:
        UnstorableValue: with the reason as text. Its cause may be any exception, since pickling
            runs the value's own code.
    """
    try:
        data = pickle.dumps(value, PROTOCOL)
    except BaseException as error:
        try:  # Over 4 GiB, or a type that insists on out-of-band buffers?
            data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        except BaseException:  # what protocol 3 said is the clearer of the two
            raise UnstorableValue("the result cannot be pickled") from error
    # That there is none is told in a sixth of the time in which they are counted.
    two_lines = _NEWLINE in data and data.count(_NEWLINE) > 1
    if data[1] != PROTOCOL or (two_lines and _may_name_a_global(data)):
        try:
            pickle.loads(data)
        except BaseException as error:
            raise UnstorableValue("the result can be pickled, but not unpickled again") from error
    return data


def _may_name_a_global(data: bytes) -> bool:
    """Whether anything of the value's own code can run, and so go wrong, when it is unpickled.

    In protocol 3 only one opcode names a global, and a newline ends the module and the name. No
    name has a NUL in it, as the lengths of all texts do, and those are often enough a newline.
    """
    # To look at all of a large value would take as long as unpickling it.
    return len(data) > _SMALL or any(part.count(b"\n") > 1 for part in data.split(b"\0"))


def json_value(value: Any) -> bytes:
    """`value` as JSON: one line of ASCII, as `json.dumps` makes it, so that tuples become arrays.

    Raises:
        UnstorableValue: it holds something that is not JSON. Such are also NaN and infinity, which
            other readers refuse, and keys that are no text, which would come back as text.
    """
    try:
        text = json.dumps(value, allow_nan=False, default=_refuse)
        _check_keys(value)
        if "\\ud" in text and re.search(_HALVES, json.dumps(value, ensure_ascii=False)):
            raise ValueError("text with a surrogate pair, which would come back as one character")
    except BaseException as error:
        raise UnstorableValue("the result is not JSON") from error
    return text.encode("ascii")


def _refuse(value: Any) -> NoReturn:
    """Say of a part that is not JSON what it is, and what to return in its place."""
    kind = type(value)
    remedy = "its .tolist()" if hasattr(value, "tolist") else "text, numbers, lists or dicts"
    raise TypeError(
        f"a {kind.__module__}.{kind.__qualname__} in it; return {remedy}, or save to a .pkl"
    )


def json_or_pickle(value: Any) -> bytes:
    """JSON if that gives back exactly `value`; otherwise, for a tuple say, its pickle.

    Raises:
        UnstorableValue: as `pickle_value` does.
    """
    try:
        if _comes_back_as_it_was(value):
            return json_value(value)
    except (UnstorableValue, RecursionError):  # NaN, or a list that contains itself
        pass
    return pickle_value(value)


def read_value(data: Encoded) -> Any:
    """The value that one of the above has made these bytes of."""
    # Every pickle since protocol 2 begins with this opcode, and no JSON does.
    return pickle.loads(data) if data.startswith(b"\x80") else json.loads(data)


def _check_keys(value: Any) -> None:
    """Raise `TypeError` for a key that `json.dumps` would turn into text without a word."""
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"keys must be str, not {type(key).__name__}")
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for item in value:
        _check_keys(item)


def _comes_back_as_it_was(value: Any) -> bool:
    if type(value) is list:
        return all(map(_comes_back_as_it_was, value))
    if type(value) is dict:
        keys_do = all(type(key) is str for key in value)
        return keys_do and all(map(_comes_back_as_it_was, value.values()))
    return type(value) in _JSON_SCALARS


def keep_script_known() -> None:
    """Python forgets the script's file as soon as its last line is done. But its threads may still
    start processes, which need to import it."""
    main = sys.modules["__main__"]
    path = getattr(getattr(main, "__loader__", None), "path", None)
    if path is not None and not hasattr(main, "__file__"):
        main.__file__ = path


def name_script_main() -> None:
    """In a spawned child: call the user's script `__main__`, as it is called everywhere else.

    A spawned child imports the script under another name, which would go into the pickles of its
    classes, and a plain `pickle.load` elsewhere would look for a module that is not there. In the
    child both names are the same module, so the classes can as well go by the right one.
    """
    script = sys.modules.get(_SCRIPT_IN_CHILD)
    if script is None:
        return
    script.__name__ = "__main__"
    unseen = list(vars(script).values())
    while unseen:
        thing = unseen.pop()
        kinds = type, types.FunctionType
        if isinstance(thing, kinds) and thing.__module__ == _SCRIPT_IN_CHILD:
            thing.__module__ = "__main__"
            if isinstance(thing, type):
                unseen += vars(thing).values()
