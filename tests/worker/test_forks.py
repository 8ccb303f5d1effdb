"""What forked children keep of this process's pipes, in real forks."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from resumable_pool.between import forks, pipes

from ..conftest import open_descriptors

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")

PATIENCE_SECONDS = 30  # for what must come at once


class Child:
    """A forked child that lives until it is released."""

    def __init__(self) -> None:
        waiting, self._release = os.pipe()
        ready, tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._release)
            os.write(tell, b"!")
            os.read(waiting, 1)
            os._exit(0)
        os.read(ready, 1)
        for end in (waiting, ready, tell):
            os.close(end)

    def release(self) -> None:
        """Let it go; raises if it has not lived until now."""
        assert os.waitpid(self.pid, os.WNOHANG) == (0, 0)
        os.close(self._release)
        os.waitpid(self.pid, 0)


@contextlib.contextmanager
def _child() -> Iterator[None]:
    child = Child()
    try:
        yield
    finally:
        child.release()


@pytest.fixture
def pipe() -> Iterator[tuple[pipes.End, pipes.End]]:
    reader, writer = pipes.pipe(duplex=False)
    yield reader, writer
    forks.close(reader, writer)


def _is_at_its_end(reader: pipes.End) -> bool:
    """Whether no process can write into the pipe any more."""
    if not pipes.wait([reader], 0):
        return False
    with pytest.raises(EOFError):
        pipes.read_into(reader, memoryview(bytearray(1)))
    return True


def test_a_forked_child_holds_no_ends(pipe: tuple[pipes.End, pipes.End]) -> None:
    """When this process closes its end, the reader sees it, although a child lives that was forked
    while the end was open."""
    reader, writer = pipe
    with _child():
        assert not _is_at_its_end(reader)
        forks.close(writer)
        assert _is_at_its_end(reader)


def test_ends_that_are_handed_over_are_kept(pipe: tuple[pipes.End, pipes.End]) -> None:
    """The child that an end is meant for holds it, and the pipe ends with that child."""
    reader, writer = pipe
    with _child_with(writer):
        forks.close(writer)
        assert not _is_at_its_end(reader)
    assert _is_at_its_end(reader)


@contextlib.contextmanager
def _child_with(*ends: pipes.End) -> Iterator[None]:
    with forks.handing_over(*ends):
        child = Child()
    try:
        yield
    finally:
        child.release()


def test_an_end_that_nobody_has_any_more_is_closed() -> None:
    """Whoever had it may have been interrupted before he could see to that."""
    before = open_descriptors()
    pipes.pipe(duplex=False)
    gc.collect()
    assert open_descriptors() == before


def test_handing_over_is_over_afterwards(pipe: tuple[pipes.End, pipes.End]) -> None:
    """A child forked after an end was handed over to another does not keep it."""
    reader, writer = pipe
    with forks.handing_over(writer):
        pass
    with _child():
        forks.close(writer)
        assert _is_at_its_end(reader)


def test_handing_over_ends_with_an_error(pipe: tuple[pipes.End, pipes.End]) -> None:
    """Where the start of a child failed, the next one does not get its ends."""
    reader, writer = pipe
    with pytest.raises(OSError, match="no child"), forks.handing_over(writer):
        raise OSError("no child")
    with _child():
        forks.close(writer)
        assert _is_at_its_end(reader)


def test_another_threads_child_gets_nothing(pipe: tuple[pipes.End, pipes.End]) -> None:
    """Ends are handed over to the children of one thread: what another forks does not keep them."""
    reader, writer = pipe
    children: list[Child] = []
    with forks.handing_over(writer):
        thread = threading.Thread(target=lambda: children.append(Child()))
        thread.start()
        thread.join(PATIENCE_SECONDS)
    forks.close(writer)
    assert _is_at_its_end(reader)
    children[0].release()


def test_only_the_other_ends_are_closed() -> None:
    """A child keeps the end that it was given of one pipe, and none of another."""
    (given, given_writer), (other, other_writer) = (pipes.pipe(duplex=False) for _ in range(2))
    with _child_with(given_writer):
        forks.close(given_writer, other_writer)
        assert not _is_at_its_end(given)
        assert _is_at_its_end(other)
    forks.close(given, other)


def test_files_can_be_entered(tmp_path: object) -> None:
    """Anything that can be closed is closed in the child: here an end that was not made by us."""
    reader, writer = os.pipe()
    file = forks.enter(os.fdopen(writer, "wb", buffering=0))
    with _child():
        forks.close(file)
        assert os.read(reader, 1) == b""
    os.close(reader)


def test_closing_twice_is_no_error(pipe: tuple[pipes.End, pipes.End]) -> None:
    """An end that is closed already is forgotten quietly, also in a child."""
    reader, writer = pipe
    writer.close()
    with _child():
        pass
    forks.close(writer, writer)
    forks.close(writer)
    assert _is_at_its_end(reader)


def test_a_claimed_end_is_not_inherited(pipe: tuple[pipes.End, pipes.End]) -> None:
    """In a new process that has claimed its ends, what it forks or starts does not get them, and
    the ends that it had of other processes' are forgotten."""
    reader, writer = pipe
    os.set_inheritable(writer.fileno(), True)
    waiting, release = os.pipe()
    with forks.handing_over(writer):
        pid = os.fork()
    if pid == 0:
        os.close(release)
        pipes.claim(writer)
        # Both outlive this child, until the test releases them.
        code = "import os; os.read(0, 1)"
        subprocess.Popen([sys.executable, "-c", code], stdin=waiting, close_fds=False)
        if os.fork() == 0:
            os.read(waiting, 1)
        os._exit(0)
    forks.close(writer)
    os.waitpid(pid, 0)
    assert pipes.wait([reader], PATIENCE_SECONDS)
    assert _is_at_its_end(reader)
    os.close(release)
    os.close(waiting)
