"""GNU parallel, which starts a program for every file and keeps a log of what is done."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

from . import Work, list_files


def run(function: Work, pattern: str, folder: str, workers: int) -> int:
    call = [sys.executable, "-m", __name__, function.__module__, function.__name__, folder]
    command = ["parallel", "--will-cite", "--joblog", f"{folder}/joblog", "--resume"]
    command += ["--jobs", str(workers), *call]
    paths = "\n".join(list_files(pattern))
    subprocess.run(command, input=paths, text=True, check=True)
    with open(f"{folder}/joblog") as log:
        return sum(1 for _ in log) - 1  # its heading


def _one_file(module: str, name: str, folder: str, path: str) -> None:
    function = getattr(__import__(module, fromlist=[name]), name)
    with open(os.path.join(folder, os.path.basename(path) + ".pkl"), "wb") as file:
        pickle.dump(function(path), file)


if __name__ == "__main__":
    _one_file(*sys.argv[1:])
