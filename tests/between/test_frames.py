"""Messages through real pipes, cut, mixed up and whole."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from typing import Any

import pytest

from resumable_pool.between import pipes
from resumable_pool.between.frames import BATCH_OVER, FrameReader, plain_frame, value_frame
from resumable_pool.between.messages import (
    BatchOver,
    Done,
    FromWorker,
    Hello,
    Ready,
    StartFailed,
    Values,
)
from resumable_pool.records import Failure, Fingerprint, Outcome
from resumable_pool.values import Bytes

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="one read gets one write there")


def _value(record: bytes) -> Values:
    return Values([record])


def _failure(path: str, text: str) -> Outcome[object]:
    failure = Failure(path, "error", text, text * 2, 2, 0.1)
    return Outcome(path, None, 0, failure, 0.1, 2, Fingerprint(7, 2**60), 1.5e9)


MESSAGES: list[FromWorker] = [
    Hello(12345),
    Ready(),
    StartFailed("ImportError: no", "Traceback ...\nline\udcff"),
    _value(b"a record"),
    _value(b"\xa5rpv\n\0" * 50),
    _value(b""),
    _failure("b", "ValueError: \ud800 \N{OWL} \0"),
    BatchOver(),
    Done(0),
    Done(2**40),
]


class Ends:
    """A pipe; what is left open of it is closed at the end."""

    def __init__(self) -> None:
        reader, self.writer = Pipe(duplex=False)
        self.reader = FrameReader(reader)

    def write(self, data: bytes) -> None:
        assert os.write(self.writer.fileno(), data) == len(data)

    def close(self) -> None:
        for end in (self.reader.end, self.writer):
            with contextlib.suppress(OSError):
                end.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    ends = Ends()
    yield ends
    ends.close()


def _frame(message: FromWorker) -> Sequence[Bytes]:
    """As a worker makes it, if one record is all that its checkpoint makes of an outcome."""
    if not isinstance(message, Values):
        return [plain_frame(message)]
    (record,) = message.records
    return value_frame([record[:3], record[3:]])


def _singly(messages: Sequence[FromWorker]) -> list[FromWorker]:
    """The same messages, a value in each."""
    return [
        single
        for message in messages
        for single in (map(_value, message.records) if isinstance(message, Values) else [message])
    ]


def _bytes_of(*messages: FromWorker) -> bytes:
    """What the writer puts into the pipe."""
    reader, writer = Pipe(duplex=False)

    def send() -> None:
        with writer:
            for message in messages:
                pipes.write(writer.fileno(), _frame(message))

    sender = threading.Thread(target=send)
    sender.start()
    with reader, open(reader.fileno(), "rb", closefd=False) as file:
        data = file.read()
    sender.join()
    return data


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_arrive_as_they_were_sent(ends: Ends, message: FromWorker) -> None:
    """Every kind of message comes out of the pipe equal."""
    pipes.write(ends.writer.fileno(), _frame(message))
    received = ends.reader.messages()
    assert received == [message]
    assert type(received[0]) is type(message)  # as tuples some are equal
    assert not ends.reader.at_end


def test_messages_keep_their_order(ends: Ends) -> None:
    """All messages that are there come out of one read, in the order of sending."""
    for message in MESSAGES:
        pipes.write(ends.writer.fileno(), _frame(message))
    received = _singly(ends.reader.messages())
    assert received == MESSAGES
    assert [*map(type, received)] == [*map(type, MESSAGES)]


def test_values_in_a_row_are_one_message(ends: Ends) -> None:
    """What is read together, and nothing came in between, is told together."""
    sent = [_value(b"1"), _value(b"2"), Ready(), _value(b"3")]
    for message in sent:
        pipes.write(ends.writer.fileno(), _frame(message))
    assert ends.reader.messages() == [Values([b"1", b"2"]), Ready(), Values([b"3"])]


def test_the_end_of_a_batch_comes_with_its_last_outcome(ends: Ends) -> None:
    """One write has both, so that the runner is not woken twice for one file."""
    for message in (_value(b"x"), _failure("b", "no"), _value(b"y" * 70_000)):
        sender = threading.Thread(
            target=pipes.write, args=(ends.writer.fileno(), [*_frame(message), BATCH_OVER])
        )
        sender.start()
        received: list[FromWorker] = []
        while len(received) < 2:
            ends.reader.end.poll(None)
            received += ends.reader.messages()
        sender.join()
        assert received == [message, BatchOver()]


def test_reading_an_empty_pipe_returns_at_once(ends: Ends) -> None:
    """Where nothing has come, nothing is waited for."""
    assert ends.reader.messages() == []
    assert ends.reader.remaining_messages() == []
    assert not ends.reader.at_end


def test_closing_the_writer_is_the_end(ends: Ends) -> None:
    """After the last message the reader is told that no more can come."""
    pipes.write(ends.writer.fileno(), _frame(Ready()))
    ends.writer.close()
    assert ends.reader.messages() == [Ready()]
    assert ends.reader.messages() == []
    assert ends.reader.at_end


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_cut_at_any_byte_is_no_message(message: FromWorker) -> None:
    """Wherever a message breaks off, the one before it arrives and no part of it does; when the
    rest comes, it does as a whole."""
    data = _bytes_of(message)
    for length in range(len(data)):
        for rest in (b"", data[length:]):
            with contextlib.closing(Ends()) as ends:
                ends.write(_bytes_of(Hello(1)) + data[:length])
                assert ends.reader.messages() == [Hello(1)]
                assert ends.reader.remaining_messages() == []
                if rest:
                    ends.write(rest)
                ends.writer.close()
                assert ends.reader.remaining_messages() == ([message] if rest else [])
                assert ends.reader.at_end


def test_messages_arrive_byte_by_byte(ends: Ends) -> None:
    """A stream that trickles in is the same stream."""
    received: list[FromWorker] = []
    for byte in _bytes_of(*MESSAGES):
        ends.write(bytes([byte]))
        received += ends.reader.messages()
    assert received == MESSAGES


@pytest.mark.parametrize("size", [65_024, 65_536, 70_144, 5_000_192])
def test_large_values_arrive(ends: Ends, size: int) -> None:
    """A value larger than the pipe comes through it, with small ones before and behind."""
    messages = [Hello(1), _value(bytes(range(256)) * (size // 256)), Done(1)]

    def send() -> None:
        for message in messages:
            pipes.write(ends.writer.fileno(), _frame(message))
        ends.writer.close()

    sender = threading.Thread(target=send)
    sender.start()
    received: list[FromWorker] = []
    while not ends.reader.at_end:
        ends.reader.end.poll(None)
        received += ends.reader.messages()
    sender.join()
    assert received == messages


def test_what_a_system_refuses_at_once_goes_in_pieces(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    """macOS refuses a vector of 2 GiB: here one of more than 16 bytes."""

    def refusing(call: Any) -> Callable[[int, Sequence[Bytes]], int]:
        def call_it(number: int, parts: Sequence[Bytes]) -> int:
            if sum(map(len, parts)) > 16:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            count: int = call(number, parts)
            return count

        return call_it

    for name in ("readv", "writev"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    monkeypatch.setattr(pipes, "_MOST_BYTES", 16, raising=False)
    pipes.write(ends.writer.fileno(), [b"a" * 10, b"b" * 10])
    room = memoryview(bytearray(100))
    lengths = [pipes.read_into(ends.reader.end, room[begin:]) for begin in (0, 16)]
    assert lengths == [16, 4]
    assert bytes(room[:20]) == b"a" * 10 + b"b" * 10


def test_a_large_value_is_not_kept(ends: Ends) -> None:
    """Whoever has received it has the only reference, so that its memory is free afterwards."""
    frame = _frame(_value(bytes(100_000)))
    sender = threading.Thread(target=pipes.write, args=(ends.writer.fileno(), frame))
    sender.start()
    received: list[FromWorker] = []
    while not received:
        ends.reader.end.poll(None)
        received = ends.reader.messages()
    sender.join()
    (message,) = received
    assert isinstance(message, Values)
    assert sys.getrefcount(message.records[0]) == sys.getrefcount(bytes(100_000)) + 1


def test_a_large_value_that_breaks_off_is_dropped(ends: Ends) -> None:
    """Its writer has died in the middle of it; what came before it has arrived."""
    data = _bytes_of(Hello(1)) + _bytes_of(_value(bytes(100_000)))[:50_000]
    ends.write(data)
    ends.writer.close()
    assert ends.reader.remaining_messages() == [Hello(1)]
    assert ends.reader.at_end


def test_what_a_dead_writer_left_is_drained(ends: Ends) -> None:
    """Everything in the pipe comes out, also while somebody else holds it open for writing."""
    message = _value(b"x" * 500)
    for _ in range(10):
        pipes.write(ends.writer.fileno(), _frame(message))
    ends.write(_bytes_of(message)[:-1])
    assert _singly(ends.reader.remaining_messages()) == [message] * 10
    assert not ends.reader.at_end


# How frames begin.
_PLAIN, _VALUE = b"\xa5rpp", b"\xa5rpv"

GARBAGE = {
    "text": b"printed by a library\n",
    "zeros": bytes(20),
    "no JSON": _PLAIN + (4).to_bytes(8, "little") + b"oops",
    "no list": _PLAIN + (1).to_bytes(8, "little") + b"5",
    "unknown class": _PLAIN + (9).to_bytes(8, "little") + b'["Bogus"]',
    "too few fields": _PLAIN + (9).to_bytes(8, "little") + b'["Hello"]',
    "too many fields": _PLAIN + (11).to_bytes(8, "little") + b'["Ready",1]',
    "no UTF-8": _PLAIN + (2).to_bytes(8, "little") + b"\xff\xff",
    "another kind": b"\xa5rpq" + bytes(20),
    "a value that no memory holds": _VALUE + b"\xff" * 7 + b"\x7f" + bytes(200),
    "a message as long as no other": _PLAIN + (1 << 40).to_bytes(8, "little") + bytes(2000),
}


@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE.keys())
def test_what_is_no_message_ends_the_stream(ends: Ends, garbage: bytes) -> None:
    """Where bytes come that we did not write, nothing that comes later can be relied on. What came
    before them can."""
    ends.write(_bytes_of(Ready()) + garbage)
    assert ends.reader.messages() == [Ready()]
    while len(garbage) > 1000 and not ends.reader.at_end:  # until there is no room for it
        ends.write(bytes(1 << 15))
        assert ends.reader.messages() == []
    assert ends.reader.at_end


def test_sending_to_nobody_raises(ends: Ends) -> None:
    """A writer whose reader is gone gets an OSError."""
    ends.reader.end.close()
    with pytest.raises(OSError, match="Broken pipe"):
        pipes.write(ends.writer.fileno(), _frame(Ready()))


def test_a_reader_whose_pipe_was_closed_is_at_its_end(ends: Ends) -> None:
    """A descriptor that somebody has closed is an end like any other."""
    ends.reader.end.close()
    assert ends.reader.messages() == []
    assert ends.reader.at_end


def test_two_threads_read_at_once(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each for a run of its own: here one in the moment in which the other has read."""
    other = Ends()
    ends.write(plain_frame(Hello(1)))
    other.write(plain_frame(Hello(2)))
    there: list[object] = []
    read_into = pipes.read_into

    def read_and_let_read(*arguments: Any) -> int:
        monkeypatch.undo()
        count = read_into(*arguments)
        thread = threading.Thread(target=lambda: there.extend(other.reader.messages()))
        thread.start()
        thread.join()
        return count

    monkeypatch.setattr(pipes, "read_into", read_and_let_read)
    assert ends.reader.messages() == [Hello(1)]
    assert there == [Hello(2)]
    other.close()
