"""Whether the user's function can be called in a worker: what it is, and how it gets there.

Knows nothing of the other options, and starts no process.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import pickle
import sys
import types
from multiprocessing.context import BaseContext
from typing import Any

from .between.messages import Setup
from .values import keep_script_known

# Some of the flags that `inspect` knows of a function, and that is slow to import: CO_VARARGS; and
# CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR.
_TAKES_MORE = 0x04
_MAKES_A_GENERATOR = 0x20 | 0x80 | 0x200


def check_function(function: Any) -> None:
    """Raise `TypeError` for what would fail with every file."""
    _check_callable("function", function)
    if not _takes_a_path(function):
        raise TypeError(
            f"function {function!r} must take one argument, the path of a file: give it the others "
            "beforehand, with functools.partial"
        )


def check_initializer(initializer: Any) -> None:
    """Raise `TypeError` for what would do nothing in a worker."""
    if initializer is not None:
        _check_callable("initializer", initializer)


def _check_callable(name: str, given: Any) -> None:
    if not callable(given):
        raise TypeError(f"{name} must be callable, not {given!r}")
    if _returns_at_once(given):
        raise TypeError(
            f"{name} {given!r} must not be a coroutine or a generator function, which nothing "
            "would run to its end: wrap it in asyncio.run or list"
        )


def _returns_at_once(function: Any) -> bool:
    """Whether calling it only makes a coroutine or a generator, without a result."""
    while isinstance(function, functools.partial):
        function = function.func
    code = getattr(function, "__code__", None)
    return code is not None and bool(code.co_flags & _MAKES_A_GENERATOR)


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
    if context.get_start_method() == "fork":
        return context  # what is inherited need not be sent
    obstacle = _obstacle(setup)
    if obstacle is None:
        return context
    if mp_context is None and sys.platform == "linux":
        return multiprocessing.get_context("fork")
    remedy = "move it to the top level of a module that a new process can import"
    if sys.platform != "win32":
        remedy += ', or pass mp_context="fork"'
    raise ValueError(
        f"function {setup.function!r} cannot be sent to a new process, as the start method "
        f"{context.get_start_method()!r} needs: {obstacle}; {remedy}"
    )


def check_sent(runner: Any, context: BaseContext) -> None:
    """Raise `TypeError` if the processes of `context` cannot be given a copy of the runner, which
    overrides what runs there."""
    method = context.get_start_method()
    if method == "fork" or (obstacle := _obstacle(runner)) is None:
        return
    name = type(runner).__name__
    culprits = [key for key, value in runner.__getstate__().items() if _cannot_be_pickled(value)]
    what = f"its attribute {culprits[0]!r}: " if culprits else ""
    raise TypeError(
        f"{name} overrides hooks that run in other processes, and cannot be sent there, as the "
        f"start method {method!r} needs: {what}{obstacle}; open connections and the like in "
        "open_saver or in the initializer, or leave them out in __getstate__"
    )


def _cannot_be_pickled(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return True
    return False


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
    # A frozen program starts itself again, and finds in itself what it defines.
    as_module = getattr(main, "__spec__", None) is not None or hasattr(sys, "frozen")
    if script is not None and not as_module and not os.path.isfile(script):
        return f"the program was not read from a file that a new process could import ({script})"
    try:
        pickled = pickle.dumps(sent)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if b"__main__" in pickled and script is None and not as_module:
        return "it is defined in a notebook, a shell or python -c, which others cannot import"
    return None
