"""Pebble, whose pool survives the death of a worker, as ours does."""

from __future__ import annotations

import pebble

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int, chunk: int = 1) -> int:
    paths = list_files(pattern)
    with pebble.ProcessPool(workers) as pool:
        results = dict(zip(paths, pool.map(function, paths, chunksize=chunk).result()))
    return len(results)
