"""How the streams of workers end, through real pipes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from typing import Any

import pytest

from resumable_pool.between import forks, pipes
from resumable_pool.between.frames import plain_frame, value_frame
from resumable_pool.between.messages import Done, Ended, FromWorker, Hello, Ready, Values
from resumable_pool.between.waiting import Waiter
from resumable_pool.records import Failure, Outcome
from resumable_pool.saver.streams import Streams

from ..conftest import not_on_windows

pytestmark = not_on_windows("one read gets one write, and not several")

Read = Callable[[], list[tuple[int, Any]]]

VALUE: Outcome[object] = Outcome("a", b"", 0, None, 0.5)
OUTCOME: Outcome[object] = Outcome("b", None, 0, Failure("b", "error", "no", "", 1, 0.5), 0.5)


class Worker:
    """The writing end of a stream that the saver reads."""

    def __init__(self, streams: Streams, serial: int) -> None:
        self.read_end, self.end = Pipe(duplex=False)
        forks.enter(self.read_end)
        streams.add(serial, self.read_end)

    def send(self, *messages: FromWorker) -> None:
        for message in messages:
            if isinstance(message, Outcome):
                record = value_frame([b"a record"])
                pipes.write(self.end.fileno(), record if message.ok else [plain_frame(message)])
            else:
                pipes.write(self.end.fileno(), [plain_frame(message)])


@pytest.fixture
def waiter() -> Waiter:
    return Waiter()


@pytest.fixture
def streams(waiter: Waiter) -> Iterator[Streams]:
    streams = Streams(waiter)
    yield streams
    for serial in range(5):
        streams.end_dead(serial)
    assert len(streams) == 0


@pytest.fixture
def worker(streams: Streams) -> Iterator[Worker]:
    worker = Worker(streams, 3)
    yield worker
    worker.end.close()


def taken(streams: Streams) -> list[tuple[int, Any]]:
    received, streams.received = streams.received, []
    return [*received]


@pytest.fixture
def read(streams: Streams, waiter: Waiter) -> Read:
    """Reads what has come."""

    def read() -> list[tuple[int, Any]]:
        streams.read(waiter.wait(0))
        return taken(streams)

    return read


def test_messages_come_with_their_worker(streams: Streams, worker: Worker, read: Read) -> None:
    """What a worker sends is received under its number, in order, and once."""
    worker.send(Hello(1), Ready(), OUTCOME)
    assert read() == [(3, Ready()), (3, OUTCOME)]
    assert read() == []
    assert len(streams) == 1


def test_only_ready_pipes_are_read(streams: Streams, worker: Worker) -> None:
    """A pipe that is not ready is left alone."""
    worker.send(Ready())
    streams.read([])
    assert taken(streams) == []


def test_done_with_the_right_count_is_a_clean_end(
    streams: Streams, worker: Worker, read: Read
) -> None:
    """The sentinel ends the stream at once, though the pipe is still open; it is no message."""
    worker.send(OUTCOME, OUTCOME, Done(2))
    assert read() == [(3, OUTCOME), (3, OUTCOME), (3, Ended(clean=True))]
    assert len(streams) == 0


def test_every_value_counts(streams: Streams, worker: Worker, read: Read) -> None:
    """Values that are received together are as many outcomes."""
    worker.send(VALUE, VALUE, OUTCOME, VALUE, Done(4))
    assert read() == [
        (3, Values([b"a record"] * 2)),
        (3, OUTCOME),
        (3, Values([b"a record"])),
        (3, Ended(clean=True)),
    ]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_done_with_a_wrong_count_is_no_clean_end(
    streams: Streams, worker: Worker, count: int, read: Read
) -> None:
    """A sentinel that does not count what has come ends the stream, but not cleanly."""
    worker.send(OUTCOME, OUTCOME, Done(count))
    assert read()[-1] == (3, Ended(clean=False))


def test_the_count_goes_over_several_reads(streams: Streams, worker: Worker, read: Read) -> None:
    """Outcomes are counted from the beginning of the stream; other messages are not."""
    worker.send(Hello(1), Ready(), OUTCOME)
    read()
    worker.send(OUTCOME)
    read()
    worker.send(Done(2))
    assert read() == [(3, Ended(clean=True))]


def test_the_end_of_the_file_is_no_clean_end(streams: Streams, worker: Worker, read: Read) -> None:
    """A worker that closes its pipe without the sentinel has died; what it sent is received."""
    worker.send(OUTCOME)
    worker.end.close()
    assert read() == [(3, OUTCOME)]
    assert read() == [(3, Ended(clean=False))]


def test_what_follows_the_sentinel_is_not_received(
    streams: Streams, worker: Worker, read: Read
) -> None:
    """A stream ends once, and nothing comes after its end."""
    worker.send(Done(0), OUTCOME, Done(1))
    worker.end.close()
    assert read() == [(3, Ended(clean=True))]
    streams.end_dead(3)
    assert read() == []


def test_garbage_ends_the_stream(streams: Streams, worker: Worker, read: Read) -> None:
    """Bytes that are no message end it, not cleanly, after what came before."""
    worker.send(OUTCOME)
    os.write(worker.end.fileno(), b"printed into the wrong descriptor")
    assert read() == [(3, OUTCOME), (3, Ended(clean=False))]
    assert len(streams) == 0


def test_a_death_ends_a_stream_that_somebody_holds_open(streams: Streams, worker: Worker) -> None:
    """When a worker is known to be dead its stream ends, with all whole messages and without the
    torn one, although the pipe is still open for writing in another process."""
    worker.send(Hello(1), *[OUTCOME] * 50)
    os.write(worker.end.fileno(), b"\xa5rpv\x10\0\0\0\0\0\0\0torn")
    streams.end_dead(3)
    received = taken(streams)
    assert received == [*[(3, OUTCOME)] * 50, (3, Ended(clean=False))]
    assert len(streams) == 0


def test_a_death_after_the_sentinel_is_a_clean_end(streams: Streams, worker: Worker) -> None:
    """A worker that had said all it had to say before it was seen dead has ended cleanly, once."""
    worker.send(OUTCOME, Done(1))
    worker.end.close()
    streams.end_dead(3)
    assert taken(streams) == [(3, OUTCOME), (3, Ended(clean=True))]


def test_a_death_ends_no_other_stream(streams: Streams, worker: Worker, read: Read) -> None:
    """The other workers' streams go on."""
    other = Worker(streams, 4)
    streams.end_dead(3)
    other.send(OUTCOME)
    other.end.close()
    assert read() == [(3, Ended(clean=False)), (4, OUTCOME)]


def test_an_unknown_death_is_no_matter(streams: Streams, worker: Worker) -> None:
    """A death note for a stream that has ended already, or never was, does nothing."""
    streams.end_dead(77)
    assert taken(streams) == []
    assert len(streams) == 1


def test_an_ended_pipe_is_closed(streams: Streams, worker: Worker, read: Read) -> None:
    """The saver gives up its end, so a worker that lives on notices at its next message."""
    worker.send(Done(0))
    read()
    assert worker.read_end.closed
    with pytest.raises(BrokenPipeError):
        worker.send(Ready())


def test_orphaned_streams_end_with_their_processes(
    streams: Streams, worker: Worker, read: Read
) -> None:
    """Without a runner to tell who is dead, the streams of processes that are no more end; those
    of living ones, and of ones that have not said who they are, do not."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    living, silent = Worker(streams, 1), Worker(streams, 2)
    worker.send(Hello(gone.pid), OUTCOME)
    living.send(Hello(os.getpid()))
    read()
    worker.send(OUTCOME)
    streams.end_orphaned()
    assert taken(streams) == [(3, OUTCOME), (3, Ended(clean=False))]
    assert len(streams) == 2
    living.end.close()
    silent.end.close()
