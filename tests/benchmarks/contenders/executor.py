"""`concurrent.futures.ProcessPoolExecutor.map`."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int, chunk: int = 1) -> int:
    paths = list_files(pattern)
    with ProcessPoolExecutor(workers) as pool:
        results = dict(zip(paths, pool.map(function, paths, chunksize=chunk), strict=True))
    return len(results)
