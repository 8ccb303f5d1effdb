"""Results into bytes, and what cannot be stored."""

from __future__ import annotations

import pickle
import sys
import types
from typing import Any

import pytest

from resumable_pool import values
from resumable_pool.values import (
    UnstorableValue,
    json_or_pickle,
    json_value,
    keep_script_known,
    name_script_main,
    pickle_value,
    read_value,
)


class Array:
    """As those of numpy are."""

    def tolist(self) -> list[int]:
        return [1]


class RaisesAtPickling:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


class TwoArguments(Exception):
    """The classic: an exception that pickles, and cannot be made again of its one argument."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def _fail() -> None:
    raise RuntimeError("not here")


def _exit() -> None:
    raise SystemExit(3)


class RaisesAtUnpickling:
    def __init__(self, function: Any, lowest_protocol: int = 0) -> None:
        self.function = function
        self.lowest_protocol = lowest_protocol

    def __reduce_ex__(self, protocol: Any) -> Any:
        if protocol < self.lowest_protocol:
            raise TypeError(f"protocol {self.lowest_protocol} at least")
        return self.function, ()


@pytest.mark.parametrize("value", [None, False, 0, "", b"", [], {"a": [1.5, (2,)]}, "two\nlines"])
def test_values_are_pickled_in_protocol_3(value: Any) -> None:
    """The bytes are of protocol 3, whose memo slots are absolute, and give the value again."""
    data = pickle_value(value)
    assert data.startswith(b"\x80\x03")
    assert pickle.loads(data) == value


def test_what_protocol_3_refuses_is_pickled_in_a_later_one() -> None:
    """A type that insists on a later protocol gets one."""
    data = pickle_value(pickle.PickleBuffer(b"abc"))
    assert not data.startswith(b"\x80\x03")
    assert pickle.loads(data) == b"abc"


UNPICKLABLE = {
    "lambda": (lambda: 0, Exception),
    "local class": (type("Local", (), {})(), Exception),
    "generator": ((number for number in ()), TypeError),
    "module": (sys, TypeError),
    "raises": (RaisesAtPickling(ValueError("no")), ValueError),
    "exits": (RaisesAtPickling(SystemExit(1)), SystemExit),
    "interrupts": (RaisesAtPickling(KeyboardInterrupt()), KeyboardInterrupt),
}


@pytest.mark.parametrize(("value", "cause"), UNPICKLABLE.values(), ids=UNPICKLABLE.keys())
def test_what_cannot_be_pickled_is_said_to_be_so(value: Any, cause: type[BaseException]) -> None:
    """Whatever pickling raises becomes one error, with the reason as its cause."""
    with pytest.raises(UnstorableValue, match=r"^the result cannot be pickled$") as caught:
        pickle_value(value)
    assert isinstance(caught.value.__cause__, cause)


def test_the_reason_is_that_of_protocol_3() -> None:
    """Where both protocols refuse, the error of the first is told: the other's says no more."""

    class Refuses:
        def __reduce_ex__(self, protocol: Any) -> Any:
            raise TypeError(f"not in protocol {protocol}")

    with pytest.raises(UnstorableValue) as caught:
        pickle_value(Refuses())
    assert str(caught.value.__cause__) == "not in protocol 3"


UNREADABLE = {
    "raises": RaisesAtUnpickling(_fail),
    "exits": RaisesAtUnpickling(_exit),
    "deep inside": [{"a": (RaisesAtUnpickling(_fail),)}],
    "two arguments": TwoArguments("message", 2),
    "among newlines": ["0123456789", RaisesAtUnpickling(_fail), 10, "\n\0\n"],
    "in a large value": ["\0" * 100_000, RaisesAtUnpickling(_fail)],
    "in a later protocol": RaisesAtUnpickling(_fail, lowest_protocol=4),
}


@pytest.mark.parametrize("value", UNREADABLE.values(), ids=UNREADABLE.keys())
@pytest.mark.usefixtures("untaught")
def test_what_cannot_be_unpickled_is_said_to_be_so(value: Any) -> None:
    """A value whose pickle nobody could read is refused: it would make the whole file unreadable
    for plain pickle.load."""
    with pytest.raises(
        UnstorableValue, match=r"^the result can be pickled, but not unpickled again"
    ):
        pickle_value(value)


def test_plain_values_are_not_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trying costs time, so it is done only where code of the value's own would run."""

    def loads(data: bytes) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(values.pickle, "loads", loads)
    assert pickle_value({"a": [1, 2.5, None, "text"]})
    assert pickle_value(["x" * 10_000, "one line\n"])
    ten = "0123456789"  # so many characters are a newline
    assert pickle_value({ten: 1, "b": {ten: [ten, 10]}, "c": "c\n"})
    with pytest.raises(UnstorableValue):
        pickle_value(types.SimpleNamespace(a=1))


NOT_JSON = {
    "a set": ({1}, "set"),
    "bytes": ([b""], "bytes"),
    "an object": ({"a": object()}, "return text, numbers, lists or dicts, or save to a .pkl"),
    "an array": ([Array()], "return its .tolist(), or save to a .pkl"),
    "what comes back as one character": ({"a": "\ud83e\udd89"}, "surrogate pair"),
    "not a number": ([float("nan")], "float"),
    "infinity": (float("-inf"), "float"),
    "a number as key": ({"a": [{1: 2}]}, "keys must be str, not int"),
    "None as key": (({None: 2},), "keys must be str, not NoneType"),
    "a tuple as key": ({(1,): 2}, "tuple"),
    "raises": (RaisesAtPickling(SystemExit(1)), "RaisesAtPickling"),
}


@pytest.mark.parametrize(("value", "reason"), NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_said_to_be_so(value: Any, reason: str) -> None:
    """The cause names the type. Where a pickle would do as well, that is what is made of it."""
    with pytest.raises(UnstorableValue, match=r"^the result is not JSON$") as caught:
        json_value(value)
    assert reason in str(caught.value.__cause__)


def test_endless_values_are_not_json() -> None:
    """A list that contains itself, and one that is too deep, are refused like any other."""
    endless: list[Any] = []
    endless.append(endless)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    for value in (endless, deep):
        with pytest.raises(UnstorableValue, match="not JSON"):
            json_value(value)
    assert json_or_pickle(endless).startswith(b"\x80")


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, "\N{OWL}\n", "\udcff", [], {"a": [1, {"b": None}]}, -(10**400)],
)
def test_json_is_a_line_of_ascii_and_read_back(value: Any) -> None:
    """Both ways of making it give the same."""
    data = json_value(value)
    assert data.isascii()
    assert b"\n" not in data
    assert read_value(data) == value
    assert type(read_value(data)) is type(value)
    assert json_or_pickle(value) == data


class Text(str):
    pass


@pytest.mark.parametrize("value", [(), [(1,)], {"a": ()}, {1: 2}, Text("x"), {Text("x"): 1}, {1}])
def test_what_json_would_change_is_pickled(value: Any) -> None:
    """Were it only a list in place of a tuple, or text in place of a class of one's own."""
    data = json_or_pickle(value)
    assert data == pickle_value(value)
    assert read_value(data) == value
    assert type(read_value(data)) is type(value)


@pytest.mark.parametrize(
    ("known", "file"),
    [
        ({"__loader__": types.SimpleNamespace(path="script.py")}, "script.py"),
        ({"__loader__": types.SimpleNamespace(path="a"), "__file__": "script.py"}, "script.py"),
        ({"__loader__": types.SimpleNamespace()}, None),
    ],
    ids=["forgotten", "known", "never known"],
)
def test_the_script_stays_known(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], file: str | None
) -> None:
    """What is spawned after a script's last line finds its file; an interpreter has none."""
    main = types.ModuleType("__main__")
    vars(main).update(known)
    monkeypatch.setitem(sys.modules, "__main__", main)
    keep_script_known()
    assert getattr(main, "__file__", None) == file


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A user's script as a spawned child has it: imported under multiprocessing's name for it."""
    script = types.ModuleType("__mp_main__")
    source = """
import pathlib

class Result:
    class Part:
        pass

def helper():
    pass

Alias = Result
number = 3
"""
    exec(source, vars(script))
    monkeypatch.setitem(sys.modules, "__mp_main__", script)
    monkeypatch.setitem(sys.modules, "__main__", script)
    return script


def test_classes_of_a_spawned_script_go_by_main(script: Any) -> None:
    """In a spawned child the script's classes and functions, nested ones too, are pickled under
    the name that they have everywhere else; those that it imported keep theirs."""
    name_script_main()
    pickled = [
        pickle_value(thing) for thing in (script.Result(), script.Result.Part, script.helper)
    ]
    assert all(b"__main__" in data and b"__mp_main__" not in data for data in pickled)
    assert script.__name__ == script.Result.Part.__module__ == "__main__"
    assert script.pathlib.Path.__module__.startswith("pathlib")
    assert type(pickle.loads(pickled[0])) is script.Result


def test_where_no_script_was_spawned_nothing_is_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that was not spawned there is nothing to do."""
    monkeypatch.delitem(sys.modules, "__mp_main__", raising=False)
    name = sys.modules["__main__"].__name__
    name_script_main()
    assert sys.modules["__main__"].__name__ == name
