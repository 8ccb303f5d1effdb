"""Outcomes through a pipe: the worker's messages as bytes, and back.

Once multiprocessing's own `recv` has begun a message, it waits for all of it. If a worker is
stopped or swapped out in the middle of a large one, the saver could not read anybody else's. So the
messages have frames of our own, and the saver takes what is there.

    frame   kind (4 bytes, which nobody writes by chance), length of the body (8), body
    VALUE   a record, as the checkpoint will hold it
    PLAIN   JSON: the message's class and its fields

A large value is written from where it was pickled, and read to where it stays until it is saved: it
is not copied in between.

Knows the messages' classes, but not what is in a record, or what anybody does with them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

from ..records import Failure, Fingerprint, Outcome
from ..values import Bytes, Encoded
from . import pipes
from .messages import BatchOver, Done, FromWorker, Hello, Ready, StartFailed, Values

_FRAME = struct.Struct("<4s Q")
_VALUE, _PLAIN = b"\xa5rpv", b"\xa5rpp"

# A body of this length or more gets a buffer of its own.
_LARGE = 1 << 16

# What a pipe of ours holds at most, where the system lets us ask: more is never there at once.
PIPE_SIZE = 1 << 20

_PLAIN_MESSAGES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Hello, Ready, StartFailed, BatchOver, Done)
}


class FrameWriter:
    """The worker's end."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def send(self, parts: Sequence[Bytes], batch_over: bool = False) -> None:
        """Return once the pipe has all of a frame, or several, that consist of these parts, and a
        `BatchOver` if that follows; raises `OSError` when nobody reads it any more."""
        if batch_over:
            parts = [*parts, _BATCH_OVER]
        if len(parts) > 1 and sum(map(len, parts)) < _LARGE:
            parts = [b"".join(parts)]
        for part in parts:
            pipes.write(self._end, part)


class FrameReader:
    """The saver's end: whole messages out of whatever bytes have come, never waiting for more.

    Attributes:
        end: the pipe.
        at_end: whether no more messages can come: the pipe is closed, or what came is no message,
            because the user's function wrote into the pipe.
    """

    # One for all pipes, since they are read one after the other.
    _scratch = memoryview(bytearray(PIPE_SIZE))

    def __init__(self, end: Connection) -> None:
        self.end = end
        self.at_end = False
        self._rest = b""  # the beginning of a frame
        self._large = bytearray()  # a large record that is on its way, in the place where it stays
        self._unread = memoryview(self._large)  # where the rest of that goes
        pipes.never_wait(end)

    def messages(self) -> list[FromWorker]:
        """The messages that are whole after one read."""
        received: list[FromWorker] = []
        self._receive(received)
        return received

    def remaining_messages(self) -> list[FromWorker]:
        """All that are still in the pipe of a worker that is dead. Then it is at its end, or empty,
        though somebody else has it open for writing."""
        received: list[FromWorker] = []
        while not self.at_end and self._receive(received):
            pass
        return received

    def _receive(self, received: list[FromWorker]) -> int:
        """Read once. Returns how many bytes have come."""
        try:
            return self._read(received)
        except BlockingIOError:
            return 0
        except (OSError, EOFError):
            self.at_end = True
        except (ValueError, TypeError, KeyError, MemoryError, OverflowError):
            self.at_end = True  # we have not written that
        return 0

    def _read(self, received: list[FromWorker]) -> int:
        known = len(self._rest)
        count = pipes.read_into(self.end, self._unread or self._scratch[known:])
        if self._unread:
            self._unread = self._unread[count:]
            if not self._unread:
                received.append(Values([self._large]))
                self._begin_large(0, self._unread)  # or its memory could not be given back
        else:
            self._scratch[:known] = self._rest
            self._take_frames(self._scratch[: known + count], received)
        return count

    def _take_frames(self, data: memoryview, received: list[FromWorker]) -> None:
        """The messages in `data`; what it has of one more waits for the rest of that."""
        records: list[Encoded] = []  # that came in a row
        begin = 0
        while begin + _FRAME.size <= len(data):
            kind, length = _FRAME.unpack_from(data, begin)
            start = begin + _FRAME.size
            end = start + length
            if kind not in (_VALUE, _PLAIN):
                raise ValueError(f"no frame starts with {kind}")
            if end > len(data):
                if kind == _VALUE and length >= _LARGE:
                    self._begin_large(length, data[start:])
                    begin = len(data)
                break
            if kind == _VALUE:
                if not records:
                    received.append(Values(records))
                records.append(bytes(data[start:end]))
            else:
                records = []
                received.append(_decode(*json.loads(bytes(data[start:end]))))
            begin = end
        self._rest = bytes(data[begin:])

    def _begin_large(self, length: int, begun: memoryview) -> None:
        self._large = bytearray(length)
        view = memoryview(self._large)
        view[: len(begun)] = begun
        self._unread = view[len(begun) :]


def value_frame(record: Sequence[Bytes]) -> Sequence[Bytes]:
    """The frame of a result, in one part or several, as its record is."""
    length = sum(map(len, record))
    parts = (_FRAME.pack(_VALUE, length), *record)
    return (b"".join(parts),) if length < _LARGE else parts


def plain_frame(message: FromWorker) -> bytes:
    """The frame of a message that is no value."""
    if isinstance(message, Outcome):
        assert message.failure is not None
        facts = message.failure
        body = _json("Outcome", facts, message.fingerprint, message.finished_at)
    else:
        body = _json(type(message).__name__, *message)
    return _FRAME.pack(_PLAIN, len(body)) + body


def _json(*fields: object) -> bytes:
    return json.dumps(fields).encode("ascii")


_BATCH_OVER = plain_frame(BatchOver())


def _decode(name: str, *fields: Any) -> FromWorker:
    """What a plain frame was made of."""
    if name == "Outcome":
        facts, found, finished_at = fields
        failure = Failure(*facts)
        return Outcome(
            failure.path, None, 0, failure, failure.seconds, failure.attempts,
            Fingerprint(*found), finished_at,
        )  # fmt: skip
    message: FromWorker = _PLAIN_MESSAGES[name](*fields)
    return message
