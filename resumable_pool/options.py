"""The runner's arguments, checked: a bad one raises at once, names itself and says what to do.

The table is `Options`: each option's type, and the rule that it keeps. Knows nothing of what a run
does with them, and starts no process.
"""
# Annotations are not put off here: the table's rules are read from them.

import functools
import multiprocessing
import os
import pickle
import sys
import types
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from .between.clock import NEVER
from .between.messages import Setup
from .between.system import FORK_IS_SOUND, MOST_WORKERS
from .checkpoints import Checkpoint, checkpoint_at
from .files import check_pattern
from .records import quoted
from .values import keep_script_known

if TYPE_CHECKING:
    from concurrent.futures import Executor

# A month: more than any file needs, and less than the systems' clocks can wait for.
_MOST_SECONDS = 31 * 24 * 3600

# Some of the flags that `inspect` knows of a function: CO_VARARGS; and CO_GENERATOR, CO_COROUTINE
# and CO_ASYNC_GENERATOR. To import it takes a tenth of the time in which a run starts.
_TAKES_MORE = 0x04
_MAKES_A_GENERATOR = 0x20 | 0x80 | 0x200

# Called with an option's name and its value: returns the value as a run takes it, or raises.
Rule = Callable[[str, Any], Any]


def _or(otherwise: object, rule: Rule) -> Rule:
    """The rule, for an option that may be `None`, which means `otherwise`."""
    return lambda name, value: otherwise if value is None else rule(name, value)


def _bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _at_least(least: int, most: int = sys.maxsize) -> Rule:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least}, not {value}")
        if value > most:
            raise ValueError(f"{name} can be at most {most} here, not {value}")
        return value

    return check


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value <= _MOST_SECONDS:  # nor nan
        raise ValueError(f"{name} must be 0 to {_MOST_SECONDS:,} seconds, not {value!r}")
    return float(value)


def _time_limit(name: str, value: Any) -> float:
    try:
        if (seconds := _seconds(name, value)) > 0:
            return seconds
    except ValueError:
        pass
    what = f"more than 0 seconds, and {_MOST_SECONDS:,} at most, not {value!r}"
    raise ValueError(f"{name} must be {what}; None means no limit")


def _checkpoint(name: str, value: Any) -> Checkpoint:
    if not isinstance(value, (str, os.PathLike, Checkpoint)):
        raise TypeError(f"{name} must be a path or a Checkpoint, not {value!r}")
    checkpoint = value if isinstance(value, Checkpoint) else checkpoint_at(value)
    path, folder = checkpoint.path, os.path.dirname(checkpoint.path)
    what = f"{name} {quoted(path)}"
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{what}: there is no folder {quoted(folder)}")
    if os.path.isdir(path):
        raise IsADirectoryError(f"{what} is a folder; name a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{what} is not a regular file")
    return checkpoint


def _progress(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool) or callable(value):
        return value
    allowed = "True, False, None or a callable such as tqdm.tqdm"
    raise TypeError(f"{name} must be {allowed}, not {value!r}")


def _executor(name: str, value: Any) -> Any:
    if isinstance(value, type) or not callable(getattr(value, "submit", None)):
        raise TypeError(f"{name} must be a concurrent.futures.Executor, not {value!r}")
    return value


def _shard(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name} must be a tuple (k, n), for part k of n, not {value!r}")
    if any(isinstance(number, bool) or not isinstance(number, int) for number in value):
        hint = "what comes from the environment is text: use int()"
        raise TypeError(f"{name} must be two ints, not {value!r}; {hint}")
    number, count = value
    if not 0 <= number < count:
        hint = "an array job may count from 1: then subtract that"
        raise ValueError(f"{name} must be (k, n) with k from 0 to n - 1, not {value!r}; {hint}")
    return number, count


class Options(NamedTuple):
    """What a run needs to know: the runner's options, each with its type and its rule. Made by
    `check_options` alone."""

    setup: Setup
    context: BaseContext
    max_workers: Annotated[int, _or(None, _at_least(1, MOST_WORKERS))]
    pattern: Annotated[str | list[str], lambda name, value: check_pattern(value)]
    checkpoint: Annotated[Checkpoint, _checkpoint]
    max_tasks_per_child: Annotated[int | None, _or(None, _at_least(1))]
    timeout: Annotated[float, _or(NEVER, _time_limit)]
    retries: Annotated[int, _at_least(0)]
    retry_delay: Annotated[float, _seconds]
    retry_failed: Annotated[bool, _bool]
    max_failures: Annotated[int | None, _or(None, _at_least(0))]
    largest_first: Annotated[bool, _bool]
    rerun_changed: Annotated[bool, _bool]
    save_every: Annotated[int, _at_least(1)]
    save_interval: Annotated[float, _seconds]
    grace_period: Annotated[float, _seconds]
    stop_after: Annotated[float, _or(NEVER, _time_limit)]
    progress: Annotated[bool | Callable[..., Any] | None, _progress]
    executor: Annotated["Executor | None", _or(None, _executor)]
    shard: Annotated[tuple[int, int] | None, _or(None, _shard)]


_RULES: dict[str, Rule] = {
    name: kind.__metadata__[0]
    for name, kind in Options.__annotations__.items()
    if hasattr(kind, "__metadata__")
}

# What only processes of our own can be made to do.
_NOT_WITH_EXECUTOR = {
    "timeout": "a call in one of its processes cannot be ended",
    "max_tasks_per_child": "only it can replace its processes",
    "mp_context": "it starts its processes itself",
}


def check_options(given: SimpleNamespace) -> Options:
    """The arguments of `ResumableRunner`, by their names; see there for what is raised."""
    checked = {name: rule(name, getattr(given, name)) for name, rule in _RULES.items()}
    for name, reason in _NOT_WITH_EXECUTOR.items():
        if given.executor is not None and (value := getattr(given, name)) is not None:
            raise ValueError(f"{name}={value!r} cannot be combined with an executor: {reason}")
    checked["max_workers"] = checked["max_workers"] or _usual_workers(given.executor)
    setup = _setup(given, checked["rerun_changed"])
    # With an executor only the saver is a process of ours, and it is not given the function.
    sent = setup if given.executor is None else Setup(len, None, ())
    return Options(setup, context_for(given.mp_context, sent), **checked)


def _usual_workers(executor: Any) -> int:
    usual = usable_processors()
    if executor is not None:
        size = getattr(executor, "_max_workers", None)  # the standard library's own do have it
        usual = size if isinstance(size, int) and size > 0 else 2 * usual
    return min(usual, MOST_WORKERS)


def usable_processors() -> int:
    """How many processors this process may use, or its user says that it may (`-X cpu_count`),
    which Python from 3.13 on asks for itself."""
    if hasattr(os, "sched_getaffinity") and not hasattr(os, "process_cpu_count"):
        return len(os.sched_getaffinity(0))
    return getattr(os, "process_cpu_count", os.cpu_count)() or 1


# The user's function: whether it can be called in a worker, and how it gets there.


def _setup(given: SimpleNamespace, rerun_changed: bool) -> Setup:
    function, initializer, initargs = given.function, given.initializer, given.initargs
    check_callable("function", function)
    if not _takes_a_path(function):
        raise TypeError(
            f"function {function!r} must take one argument, the path of a file: give it the others "
            "beforehand, with functools.partial"
        )
    if initializer is not None:
        check_callable("initializer", initializer)
    if isinstance(initargs, (str, bytes)) or not isinstance(initargs, Iterable):
        raise TypeError(f"initargs must be a tuple of arguments, not {initargs!r}")
    return Setup(function, initializer, tuple(initargs), rerun_changed)


def check_callable(name: str, given: Any) -> None:
    """Raise `TypeError` if nothing would come of a call."""
    if not callable(given):
        raise TypeError(f"{name} must be callable, not {given!r}")
    function = given
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    if code is not None and code.co_flags & _MAKES_A_GENERATOR:
        raise TypeError(
            f"{name} {given!r} must not be a coroutine or a generator function, which nothing "
            "would run to its end: wrap it in asyncio.run or list"
        )


def _takes_a_path(function: Any) -> bool:
    """Whether it can be called with one argument, as far as that can be seen."""
    given = 1
    if isinstance(function, types.MethodType):
        function, given = function.__func__, 2
    if not isinstance(function, types.FunctionType):
        return True
    code = function.__code__
    least = code.co_argcount - len(function.__defaults__ or ())
    most = sys.maxsize if code.co_flags & _TAKES_MORE else code.co_argcount
    by_name = code.co_kwonlyargcount - len(function.__kwdefaults__ or ())
    return least <= given <= most and by_name == 0


def context_for(mp_context: Any, setup: Setup) -> BaseContext:
    """The context whose processes can be given `setup`.

    Args:
        mp_context: a context, the name of a start method, or `None` for one that suits.

    Raises:
        TypeError, ValueError: it is none, or its processes cannot be given the function.
    """
    context = _named_context(mp_context)
    method = context.get_start_method()
    sent = {} if method == "fork" else setup._asdict()  # what is inherited is not sent
    obstacles = {name: found for name in sent if (found := _obstacle(sent[name]))}
    if mp_context is None and FORK_IS_SOUND and (obstacles or _has_an_older_script(method)):
        return multiprocessing.get_context("fork")
    if not obstacles:
        return context
    remedy = "move it to the top level of a module that a new process can import"
    if "fork" in multiprocessing.get_all_start_methods():
        remedy += ', or pass mp_context="fork"'
    name, obstacle = next(iter(obstacles.items()))
    raise ValueError(
        f"{name} {sent[name]!r:.200} cannot be sent to a new process, as the start method "
        f"{method!r} needs: {obstacle}; {remedy}"
    )


def check_sent(runner: Any, context: BaseContext) -> None:
    """Raise `TypeError` if the processes of `context` cannot be given a copy of the runner, which
    overrides what runs there."""
    method = context.get_start_method()
    if method == "fork" or (obstacle := _obstacle(runner)) is None:
        return
    made = runner.__reduce_ex__(pickle.DEFAULT_PROTOCOL)
    attributes = [entry for one in made if isinstance(one, dict) for entry in one.items()]
    culprits = [name for name, value in attributes if isinstance(_pickled(value), Exception)]
    what = f"its attribute {culprits[0]!r}: " if culprits else ""
    raise TypeError(
        f"{type(runner).__name__} overrides hooks that run in other processes, and cannot be sent "
        f"there, as the start method {method!r} needs: {what}{obstacle}; open connections and the "
        "like in open_saver or in the initializer, or leave them out in __getstate__"
    )


def _named_context(mp_context: Any) -> BaseContext:
    if isinstance(mp_context, BaseContext):
        return mp_context.get_context()  # itself, or the one that the default stands for
    if mp_context is not None and not isinstance(mp_context, str):
        raise TypeError(
            f"mp_context must be a context, the name of a start method or None, not {mp_context!r}"
        )
    try:
        return multiprocessing.get_context(mp_context)
    except ValueError:
        known = ", ".join(map(repr, multiprocessing.get_all_start_methods()))
        raise ValueError(f"mp_context must be one of {known}, not {mp_context!r}") from None


def _obstacle(sent: Any) -> str | None:
    """Why a process that is not forked could not load what is sent, or `None` if it could."""
    keep_script_known()
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    spec, frozen = getattr(main, "__spec__", None), hasattr(sys, "frozen")
    # A frozen program starts itself again, and finds in itself what it defines.
    as_module = spec is not None or frozen
    if script is not None and not as_module and not os.path.isfile(script):
        return f"the program was not read from a file that a new process could import ({script})"
    pickled = _pickled(sent)
    if isinstance(pickled, Exception):
        return f"{type(pickled).__name__}: {pickled}"
    if b"__main__" in pickled and script is None and not as_module:
        return "it is defined in a notebook, a shell or python -c, which others cannot import"
    # By this name alone, and not as that of a package's module.
    if b"\x08__main__" in pickled and not frozen and spec and spec.name.endswith("__main__"):
        return "it is defined in a __main__.py, which multiprocessing does not import"
    return None


def _has_an_older_script(method: str) -> bool:
    """Whether a new process may have another version of the script than this one: somebody works
    with it at a prompt (IPython's `%run`, Spyder, `python -i`), edits it and runs it again, or
    defines a function anew, and the fork server has loaded it once, as it was then."""
    at_a_prompt = hasattr(sys, "ps1") and hasattr(sys.modules["__main__"], "__file__")
    return method == "forkserver" and at_a_prompt


def _pickled(value: Any) -> bytes | Exception:
    try:
        return pickle.dumps(value)
    except Exception as error:
        return error
