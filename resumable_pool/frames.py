"""Outcomes through a pipe: the worker's messages as bytes, and back.

multiprocessing's own `recv` waits for the whole of a message once it has begun. A worker that is
stopped or swapped out in the middle of a large one would keep the saver from everybody else's. So
on POSIX the messages have frames of our own and the saver takes what is there; on Windows pipes
carry whole messages, and the two differ only in `FrameWriter.send` and `FrameReader._read`.

    frame   kind (1 byte), length of the body (8), body
    VALUE   checksum, seconds, time, attempt, size, mtime, length of the path; path; the pickled
            value, untouched
    PLAIN   JSON: the message's class and its fields

A large value is written from where it was pickled, and read into the place where it stays until it
is saved: no copy of it is ever made.

Knows the messages' classes, but not what anybody does with them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
from multiprocessing.connection import Connection
from typing import Any

from .messages import BatchOver, Done, FromWorker, Hello, Ready, StartFailed
from .records import Failure, Fingerprint, Outcome
from .values import Encoded

_FRAME = struct.Struct("<BQ")
_VALUE_START = struct.Struct("<BQ IddHqqI")  # a frame's start, and the facts of a VALUE
_FACTS_SIZE = _VALUE_START.size - _FRAME.size
_VALUE, _PLAIN = 0xA5, 0x5A

# A value of this length or more gets a buffer of its own.
_LARGE = 1 << 16

# What a pipe of ours holds where the system lets us ask for it; more is never there at once.
PIPE_SIZE = 1 << 20

_PLAIN_MESSAGES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Hello, Ready, StartFailed, BatchOver, Done)
}


class FrameWriter:
    """The worker's end."""

    def __init__(self, end: Connection) -> None:
        self._end = end
        self._fd = end.fileno()

    def send(self, message: FromWorker, batch_over: bool = False) -> None:
        """Return once the pipe has all of it, and a `BatchOver` if that follows; raises `OSError`
        when nobody reads it any more."""
        parts = _encode(message)
        if batch_over:
            parts += _BATCH_OVER
        if max(map(len, parts)) < _LARGE:
            parts = [b"".join(parts)]
        if sys.platform == "win32":
            self._end.send_bytes(b"".join(parts))
            return
        for part in parts:
            self._write(part)

    def forward(self, frames: bytes, batch_over: bool = False) -> None:
        """The same with messages that `encode` has made bytes of, in another process perhaps."""
        parts = [frames, *(_BATCH_OVER if batch_over else ())]
        if sys.platform == "win32":
            self._end.send_bytes(b"".join(parts))
            return
        for part in parts:
            self._write(part)

    def _write(self, part: Encoded) -> None:
        written = os.write(self._fd, part)
        while written < len(part):
            written += os.write(self._fd, memoryview(part)[written:])


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
        self._large: _LargeValue | None = None
        if sys.platform != "win32":
            os.set_blocking(end.fileno(), False)

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
        except (ValueError, TypeError, KeyError, MemoryError, OverflowError, struct.error):
            self.at_end = True  # we have not written that
        return 0

    def _read(self, received: list[FromWorker]) -> int:
        if sys.platform == "win32":
            message = self.end.recv_bytes() if self.end.poll() else b""
            self._take_frames(memoryview(message), received)
            return len(message)
        known = len(self._rest)
        count = os.readv(
            self.end.fileno(), [self._large.unread if self._large else self._scratch[known:]]
        )
        if not count:
            raise EOFError
        if self._large is None:
            self._scratch[:known] = self._rest
            self._take_frames(self._scratch[: known + count], received)
        elif self._large.is_whole_with(count):
            received.append(self._large.outcome)
            self._large = None
        return count

    def _take_frames(self, data: memoryview, received: list[FromWorker]) -> None:
        used = 0
        while len(data) - used >= _FRAME.size:
            kind, length = _FRAME.unpack_from(data, used)
            end = used + _FRAME.size + length
            if kind not in (_VALUE, _PLAIN):
                raise ValueError(f"no frame starts with byte {kind}")
            if end > len(data):
                if kind == _VALUE and length >= _LARGE:
                    self._large = _LargeValue.begun_in(data[used:])
                break
            if kind == _VALUE:
                outcome, start = _decode_value(data[used:end])
                outcome.pickled = bytes(data[used + start : end])
                received.append(outcome)
            else:
                received.append(_decode_plain(*json.loads(bytes(data[used + _FRAME.size : end]))))
            used = end
        self._rest = bytes(data[used:]) if self._large is None else b""


class _LargeValue:
    """A value that is on its way, in the buffer that it will stay in.

    Attributes:
        outcome: whose it is.
        unread: where the rest of it goes.
    """

    def __init__(self, outcome: Outcome[Any], length: int, begun: memoryview) -> None:
        outcome.pickled = bytearray(length)
        self.outcome = outcome
        view = memoryview(outcome.pickled)
        view[: len(begun)] = begun
        self.unread = view[len(begun) :]

    @classmethod
    def begun_in(cls, frame: memoryview) -> _LargeValue | None:
        """That of a frame that begins so; `None` if not even all of its path is there."""
        try:
            outcome, start = _decode_value(frame)
        except (ValueError, struct.error):
            return None
        _, length = _FRAME.unpack_from(frame)
        return cls(outcome, _FRAME.size + length - start, frame[start:])

    def is_whole_with(self, count: int) -> bool:
        """Whether it is, with so many bytes more."""
        self.unread = self.unread[count:]
        return not self.unread


def encode(message: FromWorker) -> bytes:
    """The bytes that `send` would write."""
    return b"".join(_encode(message))


def _encode(message: FromWorker) -> list[Encoded]:
    if isinstance(message, Outcome):
        if message.pickled is not None:
            path = message.path.encode("utf-8", "surrogatepass")
            length = _FACTS_SIZE + len(path) + len(message.pickled)
            start = _VALUE_START.pack(
                _VALUE, length, message.checksum, message.seconds, message.finished_at,
                message.attempts, *message.fingerprint, len(path),
            )  # fmt: skip
            return [start, path, message.pickled]
        assert message.failure is not None
        facts = dataclasses.astuple(message.failure)
        body = _json("Outcome", facts, message.fingerprint, message.finished_at)
    else:
        body = _json(type(message).__name__, *dataclasses.astuple(message))
    return [_FRAME.pack(_PLAIN, len(body)), body]


def _json(*fields: object) -> bytes:
    return json.dumps(fields).encode("ascii")


_BATCH_OVER = _encode(BatchOver())


def _decode_value(frame: memoryview) -> tuple[Outcome[Any], int]:
    """The outcome in a frame, still without its value, and where that begins.

    Raises:
        ValueError, struct.error: the frame does not have all of the path.
    """
    (_, _, checksum, seconds, finished_at, attempts, size, mtime_ns,
     path_length) = _VALUE_START.unpack_from(frame)  # fmt: skip
    start = _VALUE_START.size + path_length
    if start > len(frame):
        raise ValueError("it is shorter than its path")
    path = str(frame[_VALUE_START.size : start], "utf-8", "surrogatepass")
    found = Fingerprint(size, mtime_ns)
    return Outcome(path, None, checksum, None, seconds, attempts, found, finished_at), start


def _decode_plain(name: str, *fields: Any) -> FromWorker:
    if name == "Outcome":
        facts, found, finished_at = fields
        failure = Failure(*facts)
        return Outcome(
            failure.path, None, 0, failure, failure.seconds, failure.attempts,
            Fingerprint(*found), finished_at,
        )  # fmt: skip
    message: FromWorker = _PLAIN_MESSAGES[name](*fields)
    return message
