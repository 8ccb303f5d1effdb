"""joblib without its Memory: it finds its batches by itself, as we do."""

from __future__ import annotations

import joblib

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int) -> int:
    paths = list_files(pattern)
    calls = (joblib.delayed(function)(path) for path in paths)
    results = [*joblib.Parallel(workers, return_as="generator_unordered")(calls)]
    return len(results)
