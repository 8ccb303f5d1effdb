"""The folders of files that runs work through: made once, and shared by all contenders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

PER_FOLDER = 1000  # files: more in one folder is as slow to list for everybody

Contents: TypeAlias = Callable[[int, int], str]


def make_files(folder: Path, count: int, contents: Contents) -> str:
    """Files `000/000000.txt` and so on, with `contents(number, count)` in each; their pattern."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(count):
            path = folder / f"{number // PER_FOLDER:03}" / f"{number:06}.txt"
            if number % PER_FOLDER == 0:
                path.parent.mkdir()
            path.write_text(contents(number, count))
    return f"{folder}/**/*.txt"


def total_seconds(count: int, contents: Contents) -> float:
    """How long one worker that costs nothing itself would take, if the files say seconds."""
    return sum(float(contents(number, count)) for number in range(count))
