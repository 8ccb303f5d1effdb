"""What only Windows does otherwise, on Windows: pipes, waits, and what stops processes there."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_pool import ResumableRunner
from resumable_pool.between import pipes as forks

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="Windows")

CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture
def pipe() -> Iterator[tuple[forks.Connection, forks.Connection]]:
    ends = forks.pipe(CONTEXT, duplex=False)
    yield ends
    forks.close(*ends)


def count_words(path: str) -> int:
    return len(Path(path).read_text(encoding="utf-8").split())


def test_files_are_processed(tmp_path: Path) -> None:
    """A run ends with every result saved, and no error at its end."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("one two", encoding="utf-8")
    runner = ResumableRunner(count_words, f"{tmp_path}/*.txt", tmp_path / "r.pkl", max_workers=2)
    assert runner.run().completed == 2
    assert sorted(runner.results.values()) == [2, 2]


def test_a_pipe_closed_at_the_other_end_is_ready(
    pipe: tuple[forks.Connection, forks.Connection],
) -> None:
    """As on POSIX: that no more can come is found by reading."""
    reader, writer = pipe
    forks.close(writer)
    assert forks.poll(reader)
    with pytest.raises(EOFError):
        reader.recv_bytes()


def test_a_wait_survives_a_handler(pipe: tuple[forks.Connection, forks.Connection]) -> None:
    """A handler of SIGINT that returns ends the wait, and raises nothing out of it."""
    heard = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: heard.set())
    try:
        interrupter = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        interrupter.start()
        while not heard.is_set():
            assert forks.wait([pipe[0]], None) == []
        interrupter.join()
    finally:
        signal.signal(signal.SIGINT, before)
