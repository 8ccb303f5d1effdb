"""Pipes that nobody waits for: what does not fit is written later, and arrives whole."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from resumable_pool.between import pipes, waiting
from resumable_pool.between.waiting import PipeReader, PipeWriter, Waiter, to_hand_over

CONTEXT = multiprocessing.get_context("spawn")
LARGE = os.urandom(1 << 20)  # more than any pipe holds

Ends = tuple[Connection, Connection]


@pytest.fixture(params=[False, True], ids=["pipe", "socket"])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """One to read from and one to write to."""
    reader, writer = pipes.pipe(CONTEXT, duplex=request.param)
    yield reader, writer
    pipes.close(reader, writer)


@pytest.fixture
def waiter() -> Waiter:
    return Waiter()


def receive(reader: PipeReader, waiter: Waiter, number: int) -> list[bytes]:
    """So many messages, while the writer's loop goes on waiting."""
    received: list[bytes] = []
    while len(received) < number and not reader.at_end:
        received += reader.messages()
        waiter.wait(0.01)
    return received


def test_what_does_not_fit_arrives_whole(ends: Ends, waiter: Waiter) -> None:
    """Nobody reads while it is sent; later everything comes, in order."""
    reader, writer = PipeReader(ends[0]), PipeWriter(ends[1], waiter)
    messages = [b"first", LARGE, b"", LARGE[::-1], b"last"]
    for message in messages:
        writer.send(message)
    assert receive(reader, waiter, 5) == messages
    writer.close()


def test_it_is_what_recv_bytes_reads(ends: Ends, waiter: Waiter) -> None:
    """A process that may wait for the whole of a message does."""
    writer = PipeWriter(ends[1], waiter)
    received: list[bytes] = []
    thread = threading.Thread(
        target=lambda: received.extend(ends[0].recv_bytes() for _ in range(2))
    )
    writer.send(LARGE)
    writer.send(b"small")
    thread.start()
    while thread.is_alive():
        waiter.wait(0.01)
    assert received == [LARGE, b"small"]
    writer.close()


def test_the_beginning_of_a_message_is_not_waited_for(ends: Ends, waiter: Waiter) -> None:
    """Its rest may never come: the writer is stopped, or dead."""
    reader, writer = PipeReader(ends[0]), PipeWriter(ends[1], waiter)
    writer.send(LARGE)
    if sys.platform != "win32":  # where a message comes as a whole
        assert reader.messages() == []
        assert not reader.at_end
    writer.close()
    while not reader.at_end:
        assert LARGE not in reader.messages()


def test_an_idle_loop_waits(ends: Ends, waiter: Waiter) -> None:
    """What has been written is not waited for, and an end that is ready is told."""
    reader, writer = PipeReader(ends[0]), PipeWriter(ends[1], waiter)
    waiter.add(reader.end)
    assert waiter.wait(0) == []
    writer.send(b"here")
    assert waiter.wait(None) == [reader.end]
    assert reader.messages() == [b"here"]
    assert waiter.wait(0) == []
    assert waiter.wait(0, [reader.end]) == []
    waiter.remove(reader.end)
    assert waiter.wait(0, [reader.end]) == []
    writer.close()
    assert waiter.wait(None, [reader.end]) == [reader.end]


def test_it_is_closed_when_all_is_written(ends: Ends, waiter: Waiter) -> None:
    """Then the reader is at the end, and not before."""
    reader, writer = PipeReader(ends[0]), PipeWriter(ends[1], waiter)
    writer.send(LARGE)
    writer.finish()
    assert not ends[1].closed
    assert receive(reader, waiter, 1) == [LARGE]
    waiter.wait(0)
    assert ends[1].closed
    reader.messages()
    assert reader.at_end
    writer.send(b"too late")
    writer.close()


def test_nobody_reads_any_more(ends: Ends, waiter: Waiter) -> None:
    """What was to be written is forgotten, with the ends that were to be handed over."""
    other, other_writer = pipes.pipe(CONTEXT, duplex=False)
    writer = PipeWriter(ends[1], waiter)
    writer.send(LARGE)
    writer.send(pickle.dumps(to_hand_over(other, os.getpid())), other)
    pipes.close(ends[0])
    while not ends[1].closed:
        waiter.wait(0.01)
    assert other.closed
    writer.send(b"nobody hears that")
    assert waiter.wait(0) == []
    pipes.close(other_writer)


def test_the_rest_is_waited_for_at_the_end(ends: Ends, waiter: Waiter) -> None:
    """Who has nothing else to do waits until all is written, or nobody reads it."""
    reader, writer = PipeReader(ends[0]), PipeWriter(ends[1], waiter)
    writer.send(LARGE)
    writer.send(LARGE)
    thread = threading.Thread(target=writer.drain)
    thread.start()
    received: list[bytes] = []
    while len(received) < 2:
        received += reader.messages()
    thread.join()
    assert received == [LARGE, LARGE]
    writer.send(LARGE)
    thread = threading.Thread(target=writer.drain)
    thread.start()
    pipes.close(ends[0])
    thread.join()
    writer.close()


@pytest.fixture
def impatient_sockets() -> Iterator[None]:
    socket.setdefaulttimeout(60)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.parametrize("acknowledged", [False, True])
@pytest.mark.usefixtures("impatient_sockets")
def test_ends_are_handed_over(
    acknowledged: bool, waiter: Waiter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its message, though that waits behind others; the sender has it no more. Also where
    receipt is acknowledged, and where a time limit is set for all sockets."""
    monkeypatch.setattr(waiting, "_ACKNOWLEDGED", acknowledged)
    ours, theirs = pipes.pipe(CONTEXT, duplex=True)
    writer, reader = PipeWriter(ours, waiter), PipeReader(theirs, with_ends=True)
    made = [pipes.pipe(CONTEXT, duplex=False) for _ in range(40)]
    for end, _ in made:
        writer.send(LARGE[:20_000])
        writer.send(pickle.dumps(to_hand_over(end, os.getpid())), end)
    received = receive(reader, waiter, 80)
    assert received[::2] == [LARGE[:20_000]] * 40
    while acknowledged and sys.platform != "win32" and not all(end.closed for end, _ in made):
        waiter.wait(0.01)
    assert all(end.closed for end, _ in made)
    for number, (message, (_, other)) in enumerate(zip(received[1::2], made, strict=True)):
        end = reader.take_end(pickle.loads(message))
        other.send_bytes(b"%d" % number)
        assert end.recv_bytes() == b"%d" % number
        pipes.close(end, other)
    writer.close()
    pipes.close(theirs)
