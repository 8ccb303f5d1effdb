"""What people write by hand: static slices, one queue that is polled, the whole dict saved anew."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
from typing import Any

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int) -> int:
    checkpoint = f"{folder}/template.pkl"
    results: dict[str, object] = {}
    if os.path.exists(checkpoint):
        with open(checkpoint, "rb") as file:
            results = pickle.load(file)
    paths = [path for path in list_files(pattern) if path not in results]
    channel: Any = multiprocessing.Queue()
    processes = [
        multiprocessing.Process(target=_work, args=(function, paths[slot::workers], channel))
        for slot in range(workers)
    ]
    for process in processes:
        process.start()
    for left in range(len(paths) - 1, -1, -1):
        path, value = _next(channel)
        results[path] = value
        if len(results) % 10 == 0 or not left:
            _save(results, checkpoint)
    for process in processes:
        process.join()
    return len(results)


def _work(function: Work, paths: list[str], channel: Any) -> None:
    for path in paths:
        channel.put((path, function(path)))


def _next(channel: Any) -> tuple[str, object]:
    while True:
        try:
            path, value = channel.get_nowait()
        except queue.Empty:
            continue
        return path, value


def _save(results: dict[str, object], checkpoint: str) -> None:
    with open(checkpoint + ".new", "wb") as file:
        pickle.dump(results, file)
    os.replace(checkpoint + ".new", checkpoint)
