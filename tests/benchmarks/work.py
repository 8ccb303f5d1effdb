"""What the contenders call for each file. The files themselves say how long it is to take.

Imports next to nothing, since every run and every worker imports it.
"""

from __future__ import annotations

import os
import time


def small_result(path: str) -> bytes:
    """Nothing at all, and 100 bytes of result: what is left is the cost of the pool."""
    return path.encode()[-100:].rjust(100)


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
