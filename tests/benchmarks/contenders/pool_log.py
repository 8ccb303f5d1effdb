"""A Pool tuned by hand, and a file to which every result is appended, as many write it by hand.

It survives the death of the script; a power cut, or a damaged byte, it does not notice.
"""

from __future__ import annotations

import functools
import multiprocessing
import pickle

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int, chunk: int = 1) -> int:
    paths = list_files(pattern)
    call = functools.partial(_named, function)
    count = 0
    with open(f"{folder}/results.log", "ab", 0) as log, multiprocessing.Pool(workers) as pool:
        for named in pool.imap_unordered(call, paths, chunk):
            log.write(pickle.dumps(named))
            count += 1
    return count


def _named(function: Work, path: str) -> tuple[str, object]:
    return path, function(path)
