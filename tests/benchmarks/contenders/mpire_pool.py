"""mpire, whose pool cuts the paths into chunks by itself."""

from __future__ import annotations

import mpire

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int) -> int:
    paths = list_files(pattern)
    with mpire.WorkerPool(workers) as pool:
        results = [*pool.imap_unordered(function, paths)]
    return len(results)
