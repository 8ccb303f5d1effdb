"""Messages through real pipes, cut, mixed up and whole."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from binascii import crc32
from collections.abc import Iterator
from multiprocessing import Pipe

import pytest

from resumable_pool.frames import FrameReader, FrameWriter
from resumable_pool.messages import BatchOver, Done, FromWorker, Hello, Ready, StartFailed
from resumable_pool.records import Failure, Fingerprint, Outcome

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="frames of our own are POSIX's")


def _value(path: str, pickled: bytes) -> Outcome[object]:
    return Outcome(path, pickled, crc32(pickled), None, 1.25, 3, Fingerprint(7, 2**60), 1.5e9)


def _failure(path: str, text: str) -> Outcome[object]:
    failure = Failure(path, "error", text, text * 2, 2, 0.1)
    return Outcome(path, None, 0, failure, 0.1, 2, Fingerprint(7, 2**60), 1.5e9)


MESSAGES: list[FromWorker] = [
    Hello(12345),
    Ready(),
    StartFailed("ImportError: no", "Traceback ...\nline\udcff"),
    _value("a", b"\x80\x03N."),
    _value("not-utf-8-\udcff\nline", b"\xa5\x5a\0" * 50),
    _value("", b""),
    Outcome("no fingerprint", b"x", 2**32 - 1, None, 0.0),
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


def _bytes_of(*messages: FromWorker) -> bytes:
    """What the writer puts into the pipe."""
    reader, writer = Pipe(duplex=False)

    def send() -> None:
        with writer:
            for message in messages:
                FrameWriter(writer).send(message)

    sender = threading.Thread(target=send)
    sender.start()
    with reader, open(reader.fileno(), "rb", closefd=False) as file:
        data = file.read()
    sender.join()
    return data


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_messages_arrive_as_they_were_sent(ends: Ends, message: FromWorker) -> None:
    """Every kind of message comes out of the pipe equal."""
    FrameWriter(ends.writer).send(message)
    assert ends.reader.messages() == [message]
    assert not ends.reader.at_end


def test_messages_keep_their_order(ends: Ends) -> None:
    """All messages that are there come out of one read, in the order of sending."""
    for message in MESSAGES:
        FrameWriter(ends.writer).send(message)
    assert ends.reader.messages() == MESSAGES


def test_the_end_of_a_batch_comes_with_its_last_outcome(ends: Ends) -> None:
    """One write has both, so that the runner is not woken twice for one file."""
    for message in (_value("a", b"x"), _failure("b", "no"), _value("c", b"y" * 70_000)):
        sender = threading.Thread(target=FrameWriter(ends.writer).send, args=(message, True))
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
    FrameWriter(ends.writer).send(Ready())
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
    messages = [Hello(1), _value("large", bytes(range(256)) * (size // 256)), Done(1)]

    def send() -> None:
        for message in messages:
            FrameWriter(ends.writer).send(message)
        ends.writer.close()

    sender = threading.Thread(target=send)
    sender.start()
    received: list[FromWorker] = []
    while not ends.reader.at_end:
        ends.reader.end.poll(None)
        received += ends.reader.messages()
    sender.join()
    assert received == messages


def test_a_large_value_that_breaks_off_is_dropped(ends: Ends) -> None:
    """Its writer has died in the middle of it; what came before it has arrived."""
    data = _bytes_of(Hello(1)) + _bytes_of(_value("large", bytes(100_000)))[:50_000]
    ends.write(data)
    ends.writer.close()
    assert ends.reader.remaining_messages() == [Hello(1)]
    assert ends.reader.at_end


def test_what_a_dead_writer_left_is_drained(ends: Ends) -> None:
    """Everything in the pipe comes out, also while somebody else holds it open for writing."""
    message = _value("a", b"x" * 500)
    for _ in range(10):
        FrameWriter(ends.writer).send(message)
    ends.write(_bytes_of(message)[:-1])
    assert ends.reader.remaining_messages() == [message] * 10
    assert not ends.reader.at_end


GARBAGE = {
    "text": b"printed by a library\n",
    "zeros": bytes(20),
    "no JSON": b"\x5a" + (4).to_bytes(8, "little") + b"oops",
    "no list": b"\x5a" + (1).to_bytes(8, "little") + b"5",
    "unknown class": b"\x5a" + (9).to_bytes(8, "little") + b'["Bogus"]',
    "too few fields": b"\x5a" + (9).to_bytes(8, "little") + b'["Hello"]',
    "too many fields": b"\x5a" + (11).to_bytes(8, "little") + b'["Ready",1]',
    "no UTF-8": b"\x5a" + (2).to_bytes(8, "little") + b"\xff\xff",
    "short value": b"\xa5" + (5).to_bytes(8, "little") + b"short",
    "a value that no memory holds": b"\xa5" + b"\xff" * 7 + b"\x7f" + bytes(200),
    "a message as long as no other": b"\x5a" + (1 << 40).to_bytes(8, "little") + bytes(2000),
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


def test_a_value_whose_path_is_longer_than_its_frame_ends_the_stream(ends: Ends) -> None:
    """A frame that says that its path goes on behind its end is none of ours."""
    data = bytearray(_bytes_of(_value("abc", b"")))
    data[data.index(b"\x03\0\0\0abc")] = 200
    ends.write(data)
    assert ends.reader.messages() == []
    assert ends.reader.at_end


def test_sending_to_nobody_raises(ends: Ends) -> None:
    """A writer whose reader is gone gets an OSError."""
    ends.reader.end.close()
    with pytest.raises(OSError, match="Broken pipe"):
        FrameWriter(ends.writer).send(Ready())


def test_a_reader_whose_pipe_was_closed_is_at_its_end(ends: Ends) -> None:
    """A descriptor that somebody has closed is an end like any other."""
    ends.reader.end.close()
    assert ends.reader.messages() == []
    assert ends.reader.at_end
