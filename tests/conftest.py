"""What tests share: real files, the three start methods, and a look at what is left behind."""

from __future__ import annotations

import copyreg
import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# The newest Pythons take all start methods. The others differ little from them, and share them, or
# the tests would take too long. (All of them everywhere: RESUMABLE_POOL_ALL_METHODS=1.)
METHODS = multiprocessing.get_all_start_methods()
_SHARES = {(3, 10): ["spawn"], (3, 11): ["forkserver"], (3, 12): ["fork"]}
if sys.platform != "win32" and "RESUMABLE_POOL_ALL_METHODS" not in os.environ:
    METHODS = _SHARES.get(sys.version_info[:2], METHODS)

# Those that import what they run, all of them everywhere.
IMPORTING = [method for method in multiprocessing.get_all_start_methods() if method != "fork"]

# Where it does not matter which, the one that takes the least time.
CHEAPEST = "spawn" if sys.platform == "win32" else "fork"

# As in a terminal, also where a shell has started us in the background: tests press Ctrl-C.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Where everything is said to be installed, a test that is skipped for want of a package fails.
NO_SKIPS = "RESUMABLE_POOL_NO_SKIPS" in os.environ


def not_on_windows(why: str) -> pytest.MarkDecorator:
    """What has no meaning there, or, where Wine is named, what only Wine gets wrong."""
    return pytest.mark.skipif(sys.platform == "win32", reason=f"on Windows: {why}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logreport(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Before anybody else has seen what became of a test."""
    if NO_SKIPS and report.skipped and "could not import" in str(report.longrepr):
        report.outcome = "failed"
        report.longrepr = str(report.longrepr)


pytest_collectreport = pytest_runtest_logreport  # as for a module that is skipped as a whole


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each start method that this system has: for what may depend on it, as starting, ending,
    signals, descriptors and what is sent do. Every other test takes the default."""
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
def unforced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forced to the disk: where that is not what is tested, and files are written by the
    hundred. (SQLite does as it likes.)"""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda fd: None, raising=False)


@pytest.fixture
def untaught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exceptions are pickled as Python does it. Dask, which another test may have imported, has
    taught all that there were by then a way that can be undone."""
    for taught in [*copyreg.dispatch_table]:
        if isinstance(taught, type) and issubclass(taught, BaseException):
            monkeypatch.delitem(copyreg.dispatch_table, taught)


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
    if sys.platform == "win32":  # files are handles there, and so are threads and much else
        return 0
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
