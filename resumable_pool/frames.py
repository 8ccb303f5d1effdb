"""Outcomes through a pipe: the worker's messages as bytes, and back.

multiprocessing's own `recv` waits for the whole of a message once it has begun. A worker that is
stopped or swapped out in the middle of a large one would keep the saver from everybody else's. So
on POSIX the messages have frames of our own and the saver takes what is there; on Windows pipes
carry whole messages, and the two differ only in `_write` and `_read`.

    frame   kind (1 byte), length of the body (8), body
    VALUE   checksum, seconds, size, mtime, length of the path; path; the pickled value, untouched
    PLAIN   JSON: the message's class and its fields

Knows the messages' classes, but not what anybody does with them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import struct
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from .messages import Done, Finished, FromWorker, Hello, Ready, StartFailed
from .records import Failure, Fingerprint, Outcome

_FRAME = struct.Struct("<BQ")
_VALUE, _PLAIN = 0xA5, 0x5A
_FACTS = struct.Struct("<IdqqI")

# What a pipe holds on Linux; more is never there at once.
_READ_SIZE = 1 << 16

_PLAIN_MESSAGES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in (Hello, Ready, StartFailed, Done)
}


class StreamBroken(Exception):
    """These bytes were not written by us: the user's function wrote into the pipe."""


class FrameWriter:
    """The worker's end."""

    def __init__(self, end: Connection) -> None:
        self._end = end

    def send(self, message: FromWorker) -> None:
        """Return once the pipe has all of it; raises `OSError` when nobody reads it any more."""
        kind, body = _encode(message)
        self._write([_FRAME.pack(kind, sum(map(len, body))), *body])

    def _write(self, parts: list[bytes]) -> None:
        if sys.platform == "win32":
            self._end.send_bytes(b"".join(parts))
            return
        # A large value is not copied once more just to stand behind its few bytes of frame.
        small = b"".join(parts[:-1])
        for part in [small + parts[-1]] if len(parts[-1]) < _READ_SIZE else [small, parts[-1]]:
            view = memoryview(part)
            while view:
                view = view[os.write(self._end.fileno(), view) :]


class FrameReader:
    """The saver's end: whole messages out of whatever bytes have come, never waiting for more."""

    def __init__(self, end: Connection) -> None:
        self.end = end
        self.at_end = False
        self._bytes = bytearray()
        if sys.platform != "win32":
            os.set_blocking(end.fileno(), False)

    def messages(self) -> Iterator[FromWorker]:
        """The messages that are whole after one read; sets `at_end` when no more can come.

        Raises:
            StreamBroken: what came is no message.
        """
        self._bytes += self._read()
        used = 0
        while len(self._bytes) - used >= _FRAME.size:
            kind, length = _FRAME.unpack_from(self._bytes, used)
            if kind not in (_VALUE, _PLAIN):
                raise StreamBroken(f"no frame starts with byte {kind}")
            end = used + _FRAME.size + length
            if end > len(self._bytes):
                break
            with memoryview(self._bytes) as view, view[used + _FRAME.size : end] as body:
                message = _decode(kind, body)
            yield message
            used = end
        del self._bytes[:used]

    def remaining_messages(self) -> Iterator[FromWorker]:
        """All that are still in the pipe of a worker that is dead."""
        while not self.at_end:
            before = len(self._bytes)
            count = 0
            for message in self.messages():
                count += 1
                yield message
            if not count and len(self._bytes) == before:
                return  # empty, though somebody still has it open for writing

    def _read(self) -> bytes:
        try:
            if sys.platform == "win32":
                return self.end.recv_bytes() if self.end.poll() else b""
            data = os.read(self.end.fileno(), _READ_SIZE)
            self.at_end = not data
            return data
        except BlockingIOError:
            return b""
        except (OSError, EOFError):
            self.at_end = True
            return b""


def _encode(message: FromWorker) -> tuple[int, list[bytes]]:
    match message:
        case Finished(Outcome(pickled=bytes(pickled)) as outcome):
            path = outcome.path.encode("utf-8", "surrogatepass")
            start = _FACTS.pack(outcome.checksum, outcome.seconds, *outcome.fingerprint, len(path))
            return _VALUE, [start, path, pickled]
        case Finished(Outcome(failure=Failure() as failure) as outcome):
            facts = dataclasses.astuple(failure) + outcome.fingerprint
            return _PLAIN, [_json("Failure", *facts)]
        case _:
            return _PLAIN, [_json(type(message).__name__, *dataclasses.astuple(message))]


def _json(*fields: object) -> bytes:
    return json.dumps(fields).encode("ascii")


def _decode(kind: int, body: memoryview) -> FromWorker:
    try:
        return _decode_value(body) if kind == _VALUE else _decode_plain(*json.loads(bytes(body)))
    except (ValueError, TypeError, KeyError, struct.error) as error:
        raise StreamBroken(f"a frame holds no message: {error}") from None


def _decode_value(body: memoryview) -> Finished:
    checksum, seconds, size, mtime_ns, path_length = _FACTS.unpack_from(body)
    start = _FACTS.size + path_length
    if start > len(body):
        raise ValueError("it is shorter than its path")
    path = str(body[_FACTS.size : start], "utf-8", "surrogatepass")
    pickled = bytes(body[start:])
    return Finished(Outcome(path, pickled, checksum, None, seconds, 1, Fingerprint(size, mtime_ns)))


def _decode_plain(name: str, *fields: Any) -> FromWorker:
    if name == "Failure":
        failure = Failure(*fields[:-2])
        return Finished(
            Outcome(failure.path, None, 0, failure, failure.seconds, failure.attempts,
                    Fingerprint(*fields[-2:]))
        )  # fmt: skip
    message: FromWorker = _PLAIN_MESSAGES[name](*fields)
    return message
