"""What the contenders call for each file. The files themselves say how long it is to take.

Imports next to nothing, since every run and every worker imports it.
"""

from __future__ import annotations

import os
import time


def small_result(path: str) -> dict[str, object]:
    """Does nothing; a dict of a few fields, as most results are, and some 90 bytes when pickled.
    (100 bytes in one piece are read back five times as fast, but who has such results?)"""
    number = int(path[-10:-4])
    return {
        "name": path[-10:],
        "words": number,
        "mean": number / 7,
        "odd": [number % 2],
        "in": "en",
    }


def text_result(path: str) -> str:
    """100 characters."""
    return path[-10:] * 10


def counts_words(path: str) -> dict[str, int]:
    """How many words are in the file."""
    return {"words": len(_content(path).split())}


def medium_result(path: str) -> bytes:
    """50 kB that no two files have in common."""
    return os.path.basename(path).encode().ljust(50, b".") * 1000


def huge_result(path: str) -> bytes:
    """As many bytes as the file says."""
    return b"x" * int(_content(path))


def sleeps(path: str) -> str:
    """Waits for as many seconds as the file says, as for a disk or a network."""
    time.sleep(float(_content(path)))
    return path


def computes(path: str) -> str:
    """Burns as many seconds of CPU as the file says; a busy machine changes nothing about that."""
    end = time.thread_time() + float(_content(path))
    while time.thread_time() < end:
        pass
    return path


def _content(path: str) -> str:
    with open(path) as file:
        return file.read()
