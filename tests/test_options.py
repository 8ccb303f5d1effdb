"""The runner's arguments: good ones are completed, bad ones raise and are named."""

from __future__ import annotations

import functools
import inspect
import multiprocessing
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ResumableRunner
from resumable_pool.between.clock import NEVER
from resumable_pool.checkpoints import PickleFile
from resumable_pool.options import Options, usable_processors


def function(path: str) -> str:
    return path


async def coroutine_function(path: str) -> None:
    pass


def generator_function(path: str) -> Iterator[str]:
    yield path


class Callable:
    def __call__(self, path: str) -> str:
        return path

    def method(self, path: str, suffix: str = "") -> str:
        return path + suffix

    def of_two(self, path: str, other: str) -> None:
        pass


def of_none() -> None:
    pass


def of_two(path: str, other: str) -> None:
    pass


def of_a_name(path: str, *, language: str) -> None:
    pass


def of_any(*paths: str, language: str = "en", **options: str) -> None:
    pass


def given_all(path: str, /, other: str = "", *more: str, language: str = "en") -> None:
    pass


def unpicklable_callable() -> Any:
    return lambda path: path


forks = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks here"
)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pkl").mkdir()


def _options(**changed: Any) -> Options:
    """The options of a runner that is made with these arguments."""
    arguments = {"function": function, "pattern": "*.txt", "checkpoint": "result.pkl", **changed}
    return ResumableRunner(**arguments)._options


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"function": 5}, TypeError, "function must be callable, not 5"),
    ({"function": None}, TypeError, "function must be callable, not None"),
    ({"function": "name"}, TypeError, "function must be callable, not 'name'"),
    ({"function": coroutine_function}, TypeError, "must not be a coroutine or a generator "
                                                "function, which nothing would run to its end"),
    ({"function": generator_function}, TypeError, "must not be a coroutine or a generator "
                                                "function, which nothing would run to its end"),
    ({"function": of_none}, TypeError, "must take one argument, the path of a file"),
    ({"function": of_two}, TypeError, "must take one argument, the path of a file: give it the "
                                      "others beforehand, with functools.partial"),
    ({"function": of_a_name}, TypeError, "must take one argument"),
    ({"function": Callable().of_two}, TypeError, "must take one argument"),
    ({"pattern": 5}, TypeError, "pattern must be a glob or an iterable of paths, not 5"),
    ({"pattern": b"*"}, TypeError, "pattern must be a glob or an iterable of paths, not b'*'"),
    ({"pattern": ["a", 5]}, TypeError, "a path must be a str or an os.PathLike of str, not 5"),
    ({"checkpoint": 5}, TypeError, "checkpoint must be a path or a Checkpoint, not 5"),
    ({"checkpoint": None}, TypeError, "checkpoint must be a path or a Checkpoint, not None"),
    ({"checkpoint": b"r"}, TypeError, "checkpoint must be a path or a Checkpoint, not b'r'"),
    ({"checkpoint": "r.xyz"}, ValueError, "checkpoint 'r.xyz': its suffix names the format, and "
                                          "'.xyz' is not one of .pkl, .pickle"),
    ({"checkpoint": "no/r.pkl"}, FileNotFoundError, "there is no folder"),
    ({"checkpoint": PickleFile("no/r.pkl")}, FileNotFoundError, "there is no folder"),
    ({"checkpoint": "folder.pkl"}, IsADirectoryError, "is a folder; name a file"),
    ({"max_workers": 0}, ValueError, "max_workers must be at least 1, not 0"),
    ({"max_workers": -3}, ValueError, "max_workers must be at least 1, not -3"),
    ({"max_workers": 2.0}, TypeError, "max_workers must be an int, not 2.0"),
    ({"max_workers": True}, TypeError, "max_workers must be an int, not True"),
    ({"max_workers": "2"}, TypeError, "max_workers must be an int, not '2'"),
    ({"initializer": 5}, TypeError, "initializer must be callable, not 5"),
    ({"initializer": coroutine_function}, TypeError, "must not be a coroutine or a generator"),
    ({"initializer": generator_function}, TypeError, "wrap it in asyncio.run or list"),
    ({"initargs": 5}, TypeError, "initargs must be a tuple of arguments, not 5"),
    ({"initargs": "model"}, TypeError, "initargs must be a tuple of arguments, not 'model'"),
    ({"initargs": b"model"}, TypeError, "initargs must be a tuple of arguments, not b'model'"),
    ({"mp_context": "spoon"}, ValueError, "'spawn'"),
    ({"mp_context": "spoon"}, ValueError, "not 'spoon'"),
    ({"mp_context": 5}, TypeError, "mp_context must be a context, the name of a start method or "
                                   "None, not 5"),
    ({"max_tasks_per_child": 0}, ValueError, "max_tasks_per_child must be at least 1, not 0"),
    ({"max_tasks_per_child": 1.5}, TypeError, "max_tasks_per_child must be an int, not 1.5"),
    ({"timeout": "5"}, TypeError, "timeout must be a number of seconds, not '5'"),
    ({"timeout": True}, TypeError, "timeout must be a number of seconds, not True"),
    ({"timeout": 0}, ValueError, "timeout must be more than 0 seconds, and 2,678,400 at most, "
                                "not 0; None means no limit"),
    ({"stop_after": "3h"}, TypeError, "stop_after must be a number of seconds, not '3h'"),
    ({"stop_after": 0}, ValueError, "stop_after must be more than 0 seconds, and"),
    ({"timeout": -1}, ValueError, "and 2,678,400 at most, not -1; None"),
    ({"timeout": float("nan")}, ValueError, "and 2,678,400 at most, not nan; None"),
    ({"timeout": float("inf")}, ValueError, "and 2,678,400 at most, not inf; None"),
    ({"retries": -1}, ValueError, "retries must be at least 0, not -1"),
    ({"retry_delay": -1}, ValueError, "retry_delay must be 0 to"),
    ({"retry_delay": "10"}, TypeError, "retry_delay must be a number of seconds, not '10'"),
    ({"retries": None}, TypeError, "retries must be an int, not None"),
    ({"retry_failed": 1}, TypeError, "retry_failed must be True or False, not 1"),
    ({"max_failures": -1}, ValueError, "max_failures must be at least 0, not -1"),
    ({"max_failures": "3"}, TypeError, "max_failures must be an int, not '3'"),
    ({"largest_first": "yes"}, TypeError, "largest_first must be True or False, not 'yes'"),
    ({"rerun_changed": None}, TypeError, "rerun_changed must be True or False, not None"),
    ({"save_every": 0}, ValueError, "save_every must be at least 1, not 0"),
    ({"save_interval": "1"}, TypeError, "save_interval must be a number of seconds, not '1'"),
    ({"grace_period": None}, TypeError, "grace_period must be a number of seconds, not None"),
    ({"grace_period": -0.1}, ValueError, "grace_period must be 0 to 2,678,400 seconds, not -0.1"),
    ({"progress": 5}, TypeError, "progress must be True, False, None or a callable such as "
                                 "tqdm.tqdm, not 5"),
    ({"progress": "yes"}, TypeError, "tqdm.tqdm, not 'yes'"),
]  # fmt: skip


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_arguments_raise(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    """Each bad argument raises at once, with a text that names it and its value."""
    with pytest.raises(error, match=re.escape(message)):
        _options(**changed)


def test_every_option_is_checked() -> None:
    """Each argument of the runner is in the table under its name, or goes to a process whole."""
    given = {*inspect.signature(ResumableRunner.__init__).parameters} - {"self"}
    to_a_process = {"function", "initializer", "initargs", "mp_context"}
    assert given - to_a_process == {*Options._fields} - {"setup", "context"}


def test_checking_makes_no_file(tmp_path: Path) -> None:
    """Good arguments or bad, the checkpoint is not touched."""
    _options()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pkl"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Python has no such option")
def test_how_many_processors_there_are_can_be_told_to_python() -> None:
    """As `concurrent.futures` heeds it: in a container, say, whose limits Python does not see."""
    code = "from resumable_pool.options import usable_processors; print(usable_processors())"
    command = sys.executable, "-X", "cpu_count=3", "-c", code
    assert subprocess.check_output(command, cwd=Path(__file__).parents[1]) == b"3\n"


def test_what_is_left_out_is_completed() -> None:
    """By default there are as many workers as processors, and everything else is as given."""
    options = _options()
    assert options.setup.function is function
    assert (options.setup.initializer, options.setup.initargs) == (None, ())
    assert options.pattern == "*.txt"
    assert options.checkpoint.path == str(Path("result.pkl").absolute())
    assert options.max_workers == usable_processors() >= 1
    assert options.context.get_start_method() == multiprocessing.get_start_method()
    assert options.progress is None
    assert (options.timeout, options.retries, options.max_failures) == (NEVER, 0, None)
    assert (options.max_tasks_per_child, options.grace_period) == (None, 10.0)
    assert (options.retry_failed, options.rerun_changed) == (True, False)
    assert options.largest_first is False


def test_good_arguments_are_taken() -> None:
    """Whatever is given is used, one-time iterables included."""
    checkpoint = PickleFile("other.pickle")
    options = _options(
        pattern=(name for name in ("b", "a")),
        checkpoint=checkpoint,
        max_workers=3,
        initializer=print,
        initargs=iter([1, 2]),
        progress=False,
        timeout=5,
        grace_period=0,
        retry_failed=False,
        rerun_changed=True,
        largest_first=True,
    )
    assert options.pattern == ["b", "a"]
    assert options.checkpoint is checkpoint
    assert options.max_workers == 3
    assert (options.setup.initializer, options.setup.initargs) == (print, (1, 2))
    assert options.progress is False
    assert options.timeout == 5.0
    assert options.grace_period == 0.0
    assert (options.retry_failed, options.rerun_changed) == (False, True)
    assert options.largest_first is True


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_contexts(method: str) -> None:
    """A start method may be given by its name or as a context."""
    for context in (method, multiprocessing.get_context(method)):
        options = _options(mp_context=context)
        assert options.context.get_start_method() == method


SENDABLE = {
    "a function": function,
    "a class's instance": Callable(),
    "a method": Callable().method,
    "a partial": functools.partial(of_two, other=""),
    "a function with arguments that may be left out": given_all,
    "a function of any arguments": of_any,
    "a class": Path,
    "a built-in": len,
    "one of which nobody knows what it takes": max,
}


@pytest.mark.parametrize("good", SENDABLE.values(), ids=SENDABLE.keys())
def test_functions_that_can_be_sent(good: Any) -> None:
    """What can be pickled by name goes to a spawned process."""
    assert _options(function=good, mp_context="spawn").setup.function is good


UNSENDABLE: dict[str, dict[str, Any]] = {
    "lambda": {"function": unpicklable_callable()},
    "partial of one": {"function": functools.partial(unpicklable_callable())},
    "initializer": {"initializer": unpicklable_callable()},
    "argument": {"initializer": print, "initargs": (unpicklable_callable(),)},
}


@pytest.mark.parametrize("changed", UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_what_cannot_be_sent_is_refused(changed: dict[str, Any]) -> None:
    """A lambda cannot go to a spawned process; the text says why, and what to do."""
    with pytest.raises(ValueError, match="cannot be sent to a new process") as caught:
        _options(**changed, mp_context="spawn")
    assert "the start method 'spawn' needs" in str(caught.value)
    assert "<lambda>" in str(caught.value)
    assert "move it to the top level of a module" in str(caught.value)
    assert str(caught.value).startswith(next(reversed(changed)))  # and not always the function


@forks
@pytest.mark.parametrize("changed", UNSENDABLE.values(), ids=UNSENDABLE.keys())
def test_forked_workers_inherit_anything(changed: dict[str, Any]) -> None:
    """Under fork nothing needs to be sent, and where that would help the text says so."""
    assert _options(**changed, mp_context="fork").context.get_start_method() == "fork"
    with pytest.raises(ValueError, match='or pass mp_context="fork"'):
        _options(**changed, mp_context="spawn")


@pytest.mark.skipif("sys.platform != 'linux'", reason="the choice is Linux's")
def test_lambdas_are_forked_where_nobody_chose() -> None:
    """Without a choice of the user's, what cannot be sent is inherited."""
    assert _options(function=unpicklable_callable()).context.get_start_method() == "fork"


def test_unpicklable_for_any_reason_is_refused() -> None:
    """Whatever pickling raises is told in its own words."""

    class Stubborn(Callable):
        def __reduce__(self) -> Any:
            raise pickle.PicklingError("over my dead body")

    with pytest.raises(ValueError, match="PicklingError: over my dead body"):
        _options(function=Stubborn(), mp_context="spawn")
