"""Pebble, whose pool survives the death of a worker, as ours does."""

from __future__ import annotations

import pebble

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int, chunk: int = 1) -> int:
    paths = list_files(pattern)
    with pebble.ProcessPool(workers) as pool:
        future = pool.map(function, paths, chunksize=chunk)
        results = dict(zip(paths, future.result(), strict=True))
    return len(results)
