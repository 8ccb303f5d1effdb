"""What tests share: real files, the three start methods, and a look at what is left behind."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

METHODS = multiprocessing.get_all_start_methods()


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each start method that this system has."""
    return str(request.param)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: ten files `in/00.txt` to `in/09.txt`, each holding its number."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for number in range(10):
        (tmp_path / "in" / f"{number:02}.txt").write_text(str(number))
    return tmp_path


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """After the test there are as many descriptors and children as before it."""
    if sys.platform != "win32":  # helpers that multiprocessing starts once and keeps
        multiprocessing.resource_tracker.ensure_running()
        multiprocessing.forkserver.ensure_running()
    before = open_descriptors()
    yield
    assert multiprocessing.active_children() == []
    assert open_descriptors() == before


def open_descriptors() -> int:
    """How many descriptors this process has open, where one can tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
