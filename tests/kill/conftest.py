"""Every test here drives whole scripts with real signals."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import METHODS
from tests.stage import Stage

if not sys.platform.startswith("linux"):
    collect_ignore_glob = ["test_*.py"]  # processes are found in /proc
elif len(METHODS) == 1:  # a Python in between: what is scarce or saved elsewhere is the same there
    collect_ignore = ["test_environment.py", "test_formats.py", "test_hooks.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kill/" in item.nodeid:
            item.add_marker(pytest.mark.kill)


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Where the tests are run with these ignored (in the background, under nohup), scripts have
    them all the same: what is handled here is at its default in a program that is started."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGHUP)}
    for signum in before:
        signal.signal(signum, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    """The stage for `act`, in the folder of the script."""
    stage = Stage(folder)
    yield stage
    stage.close()
