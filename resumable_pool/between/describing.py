"""An exception as text: a line and a traceback, whatever its own methods do.

Knows no process, and not what becomes of the text.
"""

from __future__ import annotations

from ..values import UnstorableValue

# How code of the user's came to be called helps nobody: what calls it is left out of tracebacks.
_PACKAGE = f"{__package__.partition('.')[0]}."
_CALLERS = (f"{_PACKAGE}worker.", f"{_PACKAGE}saver.", f"{_PACKAGE}run.")

# Enough for any text that a person reads; an exception can carry megabytes.
_MESSAGE_LIMIT, _TRACEBACK_LIMIT = 2_000, 20_000


def describe(error: BaseException) -> tuple[str, str]:
    """A line and a traceback for `error`, whatever its own methods do."""
    prefix = ""
    if isinstance(error, UnstorableValue) and error.__cause__ is not None:
        prefix, error = f"{error}: ", error.__cause__
    try:
        text = str(error)
    except BaseException:
        text = "<its text cannot be printed>"
    name = type(error).__name__
    message = f"{prefix}{name}: {text}" if text else f"{prefix}{name}"
    entry = error.__traceback__
    while entry is not None and str(entry.tb_frame.f_globals.get("__name__")).startswith(_CALLERS):
        entry = entry.tb_next
    import traceback  # slow to import, and nobody needs it as long as all goes well

    try:
        lines = traceback.format_exception(type(error), error, entry)
    except BaseException:
        lines = ["<the traceback cannot be printed>"]
    return _shortened(message, _MESSAGE_LIMIT), _shortened("".join(lines), _TRACEBACK_LIMIT)


def _shortened(text: str, limit: int) -> str:
    """`text`, without its middle if it is very long."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} ... [{len(text) - limit:,} characters] ... {text[-limit // 2 :]}"
