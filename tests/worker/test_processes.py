"""A child process as its parent sees it, with real ones."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.connection import wait

import pytest

from resumable_pool.between import children as processes
from resumable_pool.between import system
from resumable_pool.between.waiting import Waiter

from ..stage import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left")


def leave(told: object, said: object, status: int) -> None:
    os._exit(status)


@pytest.mark.parametrize("status", [0, 3])
def test_how_a_child_ended_is_told(method: str, status: int) -> None:
    """Whoever started it."""
    context = multiprocessing.get_context(method)
    child = processes.Child(context, "test", leave, (status,), Waiter())
    assert wait([child.sentinel], PATIENCE)  # to start one may take longer than to leave may
    assert child.reap(in_peace=True) == (status, b"")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork server here")
def test_an_end_that_the_fork_server_did_not_tell_is_unknown() -> None:
    """It was killed, or the start of a process in another thread has been told; that is no status
    of the child's."""
    child = processes.Child(
        multiprocessing.get_context("forkserver"), "test", leave, (0,), Waiter()
    )
    told = child._process.sentinel  # by the server
    wait([told])
    os.read(told, 100)
    assert child.reap(in_peace=True) == (None, b"")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of zombies")
def test_a_process_that_has_ended_does_not_live_though_nobody_has_asked() -> None:
    """Where the first process of a container does not, all stay whose parent was killed."""
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        os.read(reading, 1)
        os._exit(0)
    assert system.lives(pid)
    os.write(writing, b".")
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its status is still there
    assert not system.lives(pid)
    os.waitpid(pid, 0)
    assert not system.lives(pid)
    os.close(reading)
    os.close(writing)
