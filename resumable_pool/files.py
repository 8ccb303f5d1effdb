"""A glob, or any paths, into the files of a run.

Knows no process and no checkpoint.
"""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Callable, Iterable

from .records import Fingerprint

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def check_pattern(pattern: Paths) -> str | list[str]:
    """A glob as text, or a list of paths as text.

    Raises:
        TypeError: it is neither, or a path in it is none.
    """
    if isinstance(pattern, (str, os.PathLike)):
        return _as_text(pattern)
    if isinstance(pattern, bytes) or not isinstance(pattern, Iterable):
        raise TypeError(f"pattern must be a glob or an iterable of paths, not {pattern!r}")
    return [_as_text(path) for path in pattern]


def _as_text(path: str | os.PathLike[str]) -> str:
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise TypeError(f"a path must be a str or an os.PathLike of str, not {path!r}")
    return text


def list_files(pattern: str | list[str], excluded: Callable[[str], bool]) -> list[str]:
    """The files that `pattern` names, each once, sorted; without directories, sockets, dangling
    links and those that `excluded` says.

    Paths stay as they are given (relative ones relative), but normalised: `./a//b` is `a/b`.
    Listed paths that are no files are left out with a warning, since somebody meant them.
    """
    if isinstance(pattern, str):
        found = glob.glob(pattern, recursive=True)
    else:
        found = pattern
        missing = [path for path in pattern if not os.path.isfile(path)]
        if missing:
            warnings.warn(
                f"no such file, and so left out: {missing[0]!r} ({len(missing)} of the "
                f"{len(pattern)} paths listed; a glob in a list is not expanded)",
                stacklevel=5,  # where `run` is called
            )
    paths = sorted({os.path.normpath(path) for path in found if os.path.isfile(path)})
    return [path for path in paths if not excluded(path)]


def fingerprint(path: str) -> Fingerprint:
    """The file's size and time of change now."""
    try:
        status = os.stat(path)
    except OSError:
        return Fingerprint()
    return Fingerprint(status.st_size, status.st_mtime_ns)
