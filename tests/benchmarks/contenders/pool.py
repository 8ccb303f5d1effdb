"""`multiprocessing.Pool.imap_unordered`."""

from __future__ import annotations

import multiprocessing

from . import Work, list_files


def run(
    function: Work,
    pattern: str,
    folder: str,
    workers: int,
    chunk: int = 1,
    method: str | None = None,
) -> int:
    paths = list_files(pattern)
    with multiprocessing.get_context(method).Pool(workers) as pool:
        results = [*pool.imap_unordered(function, paths, chunk)]
    return len(results)
