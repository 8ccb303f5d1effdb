"""Messages through a pipe: bytes of our own, and back.

Once multiprocessing's own `recv` has begun a message, it waits for all of it. If a worker is
stopped or swapped out in the middle of a large one, the saver could not read anybody else's. So the
messages have frames of our own, and a reader takes what is there.

    frame     kind (4 bytes, which nobody writes by chance), length of the body (8), body
    VALUE     a record, as the checkpoint will hold it
    MESSAGE   anything else: from a worker JSON, the message's class and its fields; from runner
              and saver a pickle

A large value is written from where it was pickled, and read to where it stays until it is saved: it
is not copied in between.

Knows the messages' classes, but not what is in a record, or what anybody does with them.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from ..records import Failure, Fingerprint, Outcome
from ..values import Bytes, Encoded
from . import pipes
from .messages import BatchOver, Done, FromWorker, Hello, Ready, StartFailed, Values

_FRAME = struct.Struct("<4s Q")
_VALUE, _MESSAGE = b"\xa5rpv", b"\xa5rpp"

# What a pipe of ours holds at most, where the system lets us ask: more is never there at once.
PIPE_SIZE = 1 << 20

_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Hello, Ready, StartFailed, Outcome, BatchOver, Done)
}


def frame(body: bytes) -> bytes:
    """Of what is no value."""
    return _FRAME.pack(_MESSAGE, len(body)) + body


def plain_frame(message: FromWorker) -> bytes:
    """Of a worker's message that is no value."""
    return frame(json.dumps([type(message).__name__, *message]).encode("ascii"))


def value_frame(record: Sequence[Bytes]) -> Sequence[Bytes]:
    """Of a result's record; in parts, as that is."""
    if len(record) == 1:
        return [_FRAME.pack(_VALUE, len(record[0])) + record[0]]
    return [_FRAME.pack(_VALUE, sum(map(len, record))), *record]


BATCH_OVER = plain_frame(BatchOver())


def _decode(body: bytes) -> FromWorker:
    """What `plain_frame` was made of."""
    name, *fields = json.loads(body)
    message: FromWorker = _CLASSES[name](*fields)
    if isinstance(message, Outcome):
        failure, found = Failure(*fields[3]), Fingerprint(*fields[6])
        return message._replace(failure=failure, fingerprint=found)
    return message


class _Scratch(threading.local):
    def __init__(self) -> None:
        self.view = memoryview(bytearray(PIPE_SIZE))


class FrameReader:
    """An end that is read: whole messages out of whatever bytes have come.

    Attributes:
        end: the pipe.
        at_end: whether no more messages can come: the pipe is closed, or what came is no message,
            because the user's function wrote into the pipe.
        handed_over: the ends that have come through it.
    """

    # One for all pipes that are read in a thread, since there it is one after the other.
    _scratches = _Scratch()

    def __init__(
        self, end: pipes.End, decode: Callable[[bytes], Any] = _decode, waits: bool = False
    ) -> None:
        """`decode` makes the messages that are no values, which are those of a worker if it is not
        given; `waits` says whether a read waits for something to come. Through a pipe for both ways
        ends may be handed over."""
        self.end = end
        self.at_end = False
        self.handed_over: deque[int] | None = deque() if end.writable else None
        self._decode = decode
        self._rest = b""  # the beginning of a frame
        self._kind, self._large, self._unread = _VALUE, bytearray(), memoryview(b"")
        if not waits:
            pipes.never_wait(end)

    def messages(self) -> list[Any]:
        """The messages that are whole after one read."""
        received: list[Any] = []
        self._read(received)
        return received

    def remaining_messages(self) -> list[Any]:
        """All that are still in the pipe of a process that is dead. Then it is at its end, or
        empty, though somebody else has it open for writing."""
        received: list[Any] = []
        while not self.at_end and self._read(received):
            pass
        return received

    def _read(self, received: list[Any]) -> int:
        """Read once. Returns how many bytes have come."""
        known = len(self._rest)
        count = 0
        try:
            scratch = self._scratches.view
            room = self._unread or scratch[known:]
            count = pipes.read_into(self.end, room, self.handed_over)
            if self._unread:
                self._unread = self._unread[count:]
                if not self._unread:
                    whole = self._large
                    is_value = self._kind == _VALUE
                    received.append(Values([whole]) if is_value else self._decode(bytes(whole)))
                    self._begin_large(_VALUE, 0, b"")  # or its memory could not be freed
            else:
                scratch[:known] = self._rest
                self._take_frames(scratch[: known + count], received)
        except BlockingIOError:
            pass
        except (OSError, EOFError, ValueError, TypeError, KeyError, MemoryError, OverflowError):
            self.at_end = True  # or we have not written that
        return count

    def _take_frames(self, view: memoryview, received: list[Any]) -> None:
        """The messages in it; what it has of one more waits for the rest of that."""
        # Out of bytes many small ones are cut in half the time; few large ones are copied once.
        small = len(view) < pipes.LARGE
        data: Any = bytes(view) if small else view
        begin, head, size, unpack = 0, _FRAME.size, len(data), _FRAME.unpack_from
        values: list[Encoded] = []  # those in a row are one message
        while begin + head <= size:
            kind, length = unpack(data, begin)
            start = begin + head
            end = start + length
            if kind == _VALUE and end <= size:  # by far the most
                if not values:
                    received.append(Values(values))
                values.append(data[start:end] if small else bytes(data[start:end]))
                begin = end
                continue
            if kind not in (_VALUE, _MESSAGE):
                raise ValueError(f"no frame starts with {kind}")
            if end > size:
                if length >= pipes.LARGE:  # a buffer of its own
                    self._begin_large(kind, length, data[start:])
                    begin = size
                break
            received.append(self._decode(bytes(data[start:end])))
            values = []
            begin = end
        self._rest = bytes(data[begin:])

    def _begin_large(self, kind: bytes, length: int, begun: Bytes) -> None:
        """The body is on its way to the place where it stays; `begun` is there, the rest unread."""
        self._kind, self._large = kind, bytearray(length)
        self._large[: len(begun)] = begun
        self._unread = memoryview(self._large)[len(begun) :]
