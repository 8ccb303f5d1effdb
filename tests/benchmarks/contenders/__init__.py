"""One file for each way to call a function for every file of a folder.

Each has one function, `run(function, pattern, folder, workers, ...)`, written as a user would who
knows the library: it lists the files, calls the function for each of them in processes, keeps what
it keeps in `folder`, and returns how many results it has. Who takes `chunk` is tuned by hand.
Who keeps nothing on disk holds the results, since nobody computes them to throw them away.
"""

from __future__ import annotations

import glob
from collections.abc import Callable
from typing import TypeAlias

Work: TypeAlias = Callable[[str], object]


def list_files(pattern: str) -> list[str]:
    """What everybody writes before the pool; part of the time that is measured."""
    return sorted(glob.glob(pattern, recursive=True))
