"""joblib with its Memory, which keeps a folder for each result."""

from __future__ import annotations

import joblib

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int) -> int:
    paths = list_files(pattern)
    remembered = joblib.Memory(folder, verbose=0).cache(function)
    calls = (joblib.delayed(remembered)(path) for path in paths)
    results = [*joblib.Parallel(workers, return_as="generator_unordered")(calls)]
    return len(results)
