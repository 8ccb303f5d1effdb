"""Pipes that nobody waits for: what does not fit is written later, and arrives whole."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from resumable_pool.between import forks, pipes, waiting
from resumable_pool.between.clock import NEVER
from resumable_pool.between.frames import FrameReader, frame
from resumable_pool.between.waiting import PipeWriter, Waiter

LARGE = os.urandom(1 << 20)  # more than any pipe holds

Ends = tuple[pipes.End, pipes.End]


@pytest.fixture(params=[False, True], ids=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """One to read from and one to write to."""
    reader, writer = pipes.pipe(duplex=request.param)
    yield reader, writer
    forks.close(reader, writer)


@pytest.fixture
def waiter() -> Waiter:
    return Waiter()


def receive(reader: FrameReader, waiter: Waiter, number: int) -> list[bytes]:
    """So many messages, while the writer's loop goes on waiting."""
    received: list[bytes] = []
    while len(received) < number and not reader.at_end:
        received += reader.messages()
        waiter.wait(0.01)
    return received


def test_what_does_not_fit_arrives_whole(ends: Ends, waiter: Waiter) -> None:
    """Nobody reads while it is sent; later everything comes, in order."""
    reader, writer = FrameReader(ends[0], bytes), PipeWriter(ends[1], waiter)
    messages = [b"first", LARGE, b"", LARGE[::-1], b"last"]
    for message in messages:
        writer.write(frame(message))
    assert receive(reader, waiter, 5) == messages
    writer.close()


def test_who_may_wait_does(ends: Ends, waiter: Waiter) -> None:
    """A process that has nothing else to do waits for the whole of a message."""
    reader, writer = FrameReader(ends[0], bytes, waits=True), PipeWriter(ends[1], waiter)
    received: list[bytes] = []

    def read() -> None:
        while len(received) < 2:
            received.extend(reader.messages())

    thread = threading.Thread(target=read)
    thread.start()
    writer.write(frame(LARGE))
    writer.write(frame(b"small"))
    while thread.is_alive():
        waiter.wait(0.01)
    assert received == [LARGE, b"small"]
    writer.close()


def test_the_beginning_of_a_message_is_not_waited_for(ends: Ends, waiter: Waiter) -> None:
    """Its rest may never come: the writer is stopped, or dead."""
    reader, writer = FrameReader(ends[0], bytes), PipeWriter(ends[1], waiter)
    writer.write(frame(LARGE))
    assert reader.messages() == []
    assert not reader.at_end
    writer.close()
    came: list[bytes] = []
    while not reader.at_end:
        came += reader.messages()
    assert not came or sys.platform == "win32"  # where the system may have had all of it


def test_an_idle_loop_waits(ends: Ends, waiter: Waiter) -> None:
    """What has been written is not waited for, and an end that is ready is told."""
    reader, writer = FrameReader(ends[0], bytes), PipeWriter(ends[1], waiter)
    waiter.add(reader.end)
    assert waiter.wait(0) == []
    writer.write(frame(b"here"))
    assert waiter.wait(NEVER) == [reader.end]
    assert reader.messages() == [b"here"]
    assert waiter.wait(0) == []
    assert waiter.wait(0, [reader.end]) == []
    waiter.remove(reader.end)
    assert waiter.wait(0, [reader.end]) == []
    writer.close()
    assert waiter.wait(NEVER, [reader.end]) == [reader.end]


def test_a_wait_goes_on_although_something_was_half_removed(ends: Ends, waiter: Waiter) -> None:
    """The handler of a signal may raise there, and the end of a run waits once more."""

    class Things(dict[int, Any]):
        def __delitem__(self, number: int) -> None:
            super().__delitem__(number)
            raise TimeoutError

    reader, writer = ends
    waiter._things = Things()
    waiter.add(reader)
    with pytest.raises(TimeoutError):
        waiter.remove(reader)
    pipes.write(writer.fileno(), [b"!"])
    assert waiter.wait(0.0) == []


def test_it_is_closed_when_all_is_written(ends: Ends, waiter: Waiter) -> None:
    """Then the reader is at the end, and not before."""
    reader, writer = FrameReader(ends[0], bytes), PipeWriter(ends[1], waiter)
    writer.write(frame(LARGE))
    writer.finish()
    assert not ends[1].closed
    assert receive(reader, waiter, 1) == [LARGE]
    waiter.wait(0)
    assert ends[1].closed
    reader.messages()
    assert reader.at_end
    writer.write(frame(b"too late"))
    writer.close()


def test_nobody_reads_any_more(ends: Ends, waiter: Waiter) -> None:
    """What was to be written is forgotten; an end that was to be handed over is still ours."""
    other, other_writer = pipes.pipe(duplex=False)
    writer = PipeWriter(ends[1], waiter)
    writer.write(frame(LARGE))
    writer.write(frame(pickle.dumps(pipes.to_hand_over(other, os.getpid()))), other)
    forks.close(ends[0])
    while not ends[1].closed:
        waiter.wait(0.01)
    assert not other.closed
    writer.write(frame(b"nobody hears that"))
    assert waiter.wait(0) == []
    forks.close(other, other_writer)


def test_the_rest_is_waited_for_at_the_end(ends: Ends, waiter: Waiter) -> None:
    """Who has nothing else to do waits until all is written, or nobody reads it."""
    reader, writer = FrameReader(ends[0], bytes), PipeWriter(ends[1], waiter)
    writer.write(frame(LARGE))
    writer.write(frame(LARGE))
    thread = threading.Thread(target=writer.drain)
    thread.start()
    received: list[bytes] = []
    while len(received) < 2:
        received += reader.messages()
    thread.join()
    assert received == [LARGE, LARGE]
    writer.write(frame(LARGE))
    thread = threading.Thread(target=writer.drain)
    thread.start()
    forks.close(ends[0])
    thread.join()
    writer.close()


@pytest.fixture
def impatient_sockets() -> Iterator[None]:
    socket.setdefaulttimeout(60)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.usefixtures("impatient_sockets")
def test_ends_are_handed_over(kept: bool, waiter: Waiter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with its message, though that waits behind others; the sender has it no more, unless it
    has to be kept until it is known to be there. Also where a time limit is set for all sockets."""
    monkeypatch.setattr(waiting, "_KEPT", kept)
    ours, theirs = pipes.pipe(duplex=True)
    writer, reader = PipeWriter(ours, waiter), FrameReader(theirs, bytes)
    made = [pipes.pipe(duplex=False) for _ in range(40)]
    for end, _ in made:
        writer.write(frame(LARGE[:20_000]))
        writer.write(frame(pickle.dumps(pipes.to_hand_over(end, os.getpid()))), end)
    received = receive(reader, waiter, 80)
    assert received[::2] == [LARGE[:20_000]] * 40
    assert all(end.closed is not kept for end, _ in made)
    forks.close(*(end for end, _ in made))
    for number, (message, (_, other)) in enumerate(zip(received[1::2], made, strict=True)):
        end = pipes.take_end(pickle.loads(message), reader.handed_over)
        pipes.write(other.fileno(), [bytes([number])])
        assert pipes.read_into(end, memoryview(come := bytearray(2))) == 1
        assert come[0] == number
        forks.close(end, other)
    writer.close()
    forks.close(theirs)
