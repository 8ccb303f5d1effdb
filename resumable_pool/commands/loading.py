"""`module:function` or `folder/file.py:function`: a function, by what a command line calls it.

It is imported as a module, so that spawned processes, which are given our `sys.path`, can import it
again, and so can whoever unpickles the objects of its classes. Knows nothing of runs and processes.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..records import quoted

# Of the names in a module, when none of them is the right one.
_SHOWN_NAMES = 8


class CannotLoad(ValueError):
    """What is named cannot be had; the text says why, and what to do."""


def load(name: str, beside: str = "") -> Callable[..., Any]:
    """What `name` names.

    Args:
        name: `module:function` or `file.py:function`.
        beside: names something in the module that is meant by a name without a colon.

    Raises:
        CannotLoad: there is no such thing, it cannot be imported, or it cannot be called.
    """
    where, colon, attribute = name.rpartition(":")
    if not colon:
        where = beside.rpartition(":")[0]
    if not (where and attribute) or {*attribute} & {*"/\\"}:  # C:\work.py has a colon, too
        how = "write module:function or file.py:function"
        raise CannotLoad(f"{quoted(name)} names no function: {how}")
    if where.lower().endswith(".py"):
        module = _import_file(where)
    else:
        module = _imported(where, where, "name a module as `import` does, or a file with its .py")
    try:
        function = functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        raise CannotLoad(f"{quoted(where)} has no {attribute!r}; {_defined_in(module)}") from None
    if not callable(function):
        raise CannotLoad(
            f"{quoted(name)} cannot be called, it is {function!r:.80}; {_defined_in(module)}"
        )
    return function


def look_here() -> None:
    """Let modules in the current folder be found, as `python -m` does and an installed script does
    not."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())


def _import_file(file: str) -> ModuleType:
    if not os.path.isfile(file):
        raise CannotLoad(f"there is no file {quoted(file)}")
    folder, name = os.path.split(os.path.abspath(file))
    if name not in (names := os.listdir(folder)):  # `import` takes no other case, Windows does
        name = next((each for each in names if each.lower() == name.lower()), name)
    stem = name.removesuffix(".py")
    if "." in stem:
        why = "because of the dot in its name: rename it"
        raise CannotLoad(f"{quoted(file)} cannot be imported, {why}")
    sys.path.insert(0, folder)  # first, where it would be if the file were run as a script
    module = _imported(stem, file, f"name it as a module, package.{stem}, if it is in a package")
    found = getattr(module, "__file__", None)
    if found is None or not os.path.samefile(found, file):
        raise CannotLoad(
            f"{quoted(file)} cannot be imported, because {stem!r} is also the name of another "
            f"module ({found or 'built into Python'}): rename it"
        )
    return module


def _imported(module: str, called: str, remedy: str) -> ModuleType:
    try:
        __import__(module)  # unlike import_module, it leaves its own frames out of tracebacks
    except (Exception, SystemExit) as error:  # code of the user's, which may do anything
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise CannotLoad(f"there is no module {called!r} here: {remedy}") from None
        first = error.__traceback__
        lines = traceback.format_exception(type(error), error, first and first.tb_next)
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, ModuleNotFoundError):
            remedy = f"install it for {sys.executable}, or {remedy}"
        remedy = remedy if isinstance(error, ImportError) else "fix that"
        text = "".join(lines).rstrip()
        why = f"{called!r} cannot be imported: {what} ({remedy})\n\n{text}"
        raise CannotLoad(why) from None
    return sys.modules[module]


def _defined_in(module: ModuleType) -> str:
    own = [
        name
        for name, thing in vars(module).items()
        if callable(thing) and getattr(thing, "__module__", None) == module.__name__
    ]
    shown = ", ".join([*own[:_SHOWN_NAMES], *["..."] * (len(own) > _SHOWN_NAMES)])
    return f"defined there: {shown}" if own else "no function is defined there"
