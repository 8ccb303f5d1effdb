"""An exception as text: a line and a traceback, whatever its own methods do.

Knows no process, nor what happens to the text.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import TracebackType

from ..values import UnstorableValue

# How code of the user's came to be called helps nobody: what calls it is left out of tracebacks.
_PACKAGE = f"{__package__.partition('.')[0]}."
_CALLERS = (f"{_PACKAGE}worker.", f"{_PACKAGE}saver.", f"{_PACKAGE}run.")

# Enough for any text that a person reads; an exception can carry megabytes.
_MESSAGE_LIMIT, _TRACEBACK_LIMIT = 2_000, 20_000


def describe(error: BaseException) -> tuple[str, str]:
    """A line and a traceback for `error`, whatever its own methods do, and also where nothing can
    be opened, imported or allocated any more."""
    for _ in range(2):
        try:
            return _describe(error)
        except BaseException:  # MemoryError: what the call had made is held by its frames
            _let_go_of_locals(error)
    return type(error).__name__, ""


def _describe(error: BaseException) -> tuple[str, str]:
    prefix = ""
    if isinstance(error, UnstorableValue) and error.__cause__ is not None:
        prefix, error = f"{error}: ", error.__cause__
    try:
        text = str(error)
    except MemoryError:
        raise
    except BaseException:
        text = "<its text cannot be printed>"
    name = type(error).__name__
    message = f"{prefix}{name}: {text}" if text else f"{prefix}{name}"
    entry = error.__traceback__
    while entry is not None and str(entry.tb_frame.f_globals.get("__name__")).startswith(_CALLERS):
        entry = entry.tb_next
    try:
        # Slow to import, and nobody needs it as long as all goes well.
        from traceback import format_exception

        lines = format_exception(type(error), error, entry)
    except MemoryError:
        raise
    except BaseException:  # of the error's own methods; or nothing can be opened, not even that
        lines = [*_plain_traceback(entry), f"{message}\n"]
    return _shortened(message, _MESSAGE_LIMIT), _shortened("".join(lines), _TRACEBACK_LIMIT)


def _plain_traceback(entry: TracebackType | None) -> Iterator[str]:
    """Without the lines of source: what can be told of it without opening a file."""
    while entry is not None:
        code = entry.tb_frame.f_code
        yield f'  File "{code.co_filename}", line {entry.tb_lineno}, in {code.co_name}\n'
        entry = entry.tb_next


def _let_go_of_locals(error: BaseException) -> None:
    for each in (error, error.__cause__, error.__context__):
        entry = each.__traceback__ if each is not None else None
        while entry is not None:
            with contextlib.suppress(RuntimeError):  # it is running: one of ours
                entry.tb_frame.clear()
            entry = entry.tb_next


def _shortened(text: str, limit: int) -> str:
    """`text`, without its middle if it is very long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... [{len(text) - limit:,} characters] ... {text[-limit // 2 :]}"
