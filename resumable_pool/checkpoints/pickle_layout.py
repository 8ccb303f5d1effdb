r"""The bytes of `result.pkl`: one pickle of a dict, laid out so that it can be appended to.

A pickle is a program for a stack machine that ends at STOP, and a program can be continued:

    file    header record* STOP
    header  PROTO 4, EMPTY_DICT, SHORT_BINBYTES(magic, version, salt, checksum) POP,
            SHORT_BINBYTES(writer's pid) POP
    record  SHORT_BINBYTES(metadata) POP, BINUNICODE(path), value, SETITEM    a result
            SHORT_BINBYTES(metadata) POP, BINUNICODE(path), payload POP, POP  a failure

`pickle.load` pushes our metadata and pops them again; what is left is `{path: value}`. Three things
make it work:

- A value is its own pickle in protocol 3 without PROTO and STOP. Up to that protocol memo slots are
  absolute and simply written over by the next value; from 4 on they count up through the program.
  What protocol 3 cannot hold is a bytes constant that the program gives to `pickle.loads`.
- The metadata say how long key and value are, so that keys are found without running anything.
- The first byte of a record is the only one that differs between "in the file" and "part of the
  pickle": `.` (STOP) or `C` (SHORT_BINBYTES). pickle_file.py commits by changing it.

Pure: bytes in, records out. Knows nothing of locks, commits or values' classes.
"""

from __future__ import annotations

import json
import os
import struct
from binascii import crc32
from collections.abc import Iterator
from typing import NamedTuple

from ..errors import CheckpointError
from ..records import Failure, Fingerprint, Outcome
from .disk import read_at

STOP = b"."
_SHORT_BINBYTES, _POP, _BINUNICODE, _SETITEM = b"C0Xs"
_BINBYTES = b"B"
COMMITTED = bytes([_SHORT_BINBYTES])

# PROTO 4, EMPTY_DICT, SHORT_BINBYTES of 22 bytes. The magic is PNG's trick: a transfer in text mode
# changes its line ends, and so is noticed.
_MAGIC = b"\x80\x04}C\x16\x89RPL\r\n\x1a\n"
_VERSION = 1
_HEADER = struct.Struct("<13s B x 8s I c 2s I c")  # ..., salt, checksum, POP, C 4, pid, POP
_HEADER_CHECKED = 23  # the checksum covers what stands before it
_PID_OFFSET = 30
FIRST_RECORD = _HEADER.size

# C 44 | tag, 2 checksums, kind, attempts, length, seconds, size, mtime | POP | X, key's length
_RECORD = struct.Struct("<BB 4sIIBxHQfqq B BI")
_METADATA_LENGTH = 44
_RECORD_CHECKED = 10  # the header's checksum covers what stands from here on, with the key

_RESULT, _NESTED_RESULT, _FAILURE = 1, 2, 0x81  # 0x80: invisible to pickle.load

_PROTO_3 = b"\x80\x03"
_NESTED_START = b"\x8c\x06pickle\x8c\x05loads\x93\x8e"  # pickle.loads, BINBYTES8
_NESTED_END = b"\x85R"  # TUPLE1, REDUCE
_LENGTH8, _LENGTH4 = struct.Struct("<Q"), struct.Struct("<I")

# Reading: big steps while records are small, small ones to skip over large values unread.
_BIG_READ, _SMALL_READ = 1 << 20, 1 << 12
# Values up to this length are verified while their keys are scanned: they are in the buffer anyway,
# and crc32 of them costs a tenth of the rest. Larger ones are verified when they are read.
_VERIFIED_IN_PASSING = 1 << 12


class Header(NamedTuple):
    """What is the same in all of a file's records: `salt` seeds their checksums, its first bytes
    tag them, so that neither another file's records nor stale disk blocks ever pass for ours."""

    salt: bytes
    pid: int

    @property
    def tag(self) -> bytes:
        """What every record of the file carries."""
        return self.salt[:4]

    @property
    def seed(self) -> int:
        """Where the checksum of a record's header begins."""
        return crc32(self.salt)


class Record(NamedTuple):
    """Where one record is, and what its metadata say. Offsets are from the start of the file."""

    path: str
    kind: int
    start: int
    region: int
    end: int
    checksum: int
    sound: bool
    attempts: int
    seconds: float
    fingerprint: Fingerprint

    @property
    def failed(self) -> bool:
        """Whether it is of a failure."""
        return self.kind == _FAILURE


def new_header(pid: int) -> bytes:
    """The header of a new file, and the STOP behind it: a pickle of `{}`."""
    salt = os.urandom(8)
    start = _HEADER.pack(_MAGIC, _VERSION, salt, 0, b"0", b"C\x04", pid, b"0")
    checksum = crc32(start[:_HEADER_CHECKED])
    return start[:_HEADER_CHECKED] + _LENGTH4.pack(checksum) + start[27:] + STOP


def pid_field(pid: int) -> tuple[bytes, int]:
    """The bytes that name the writing process in the header, and their offset."""
    return _LENGTH4.pack(pid), _PID_OFFSET


def read_header(fd: int, path: str) -> Header:
    """The header of the file at `path`, open as `fd`.

    Raises:
        CheckpointError: this is no checkpoint, or not one that this version can read.
    """
    start = read_at(fd, FIRST_RECORD, 0)
    if not _MAGIC.startswith(start[: len(_MAGIC)]):
        raise CheckpointError(
            path, "is not a checkpoint of this library", "Name another file, or move this one away."
        )
    if len(start) < FIRST_RECORD:
        raise CheckpointError(
            path, "ends inside its header, so it holds no result", "Move it away and run again."
        )
    _, version, salt, checksum, pop, pid_start, pid, pid_pop = _HEADER.unpack(start)
    if version != _VERSION:
        what = f"has version {version} of the format, and this library reads version {_VERSION}"
        raise CheckpointError(path, what, "Use the version of the library that wrote it.")
    if checksum != crc32(start[:_HEADER_CHECKED]) or pop + pid_start + pid_pop != b"0C\x040":
        raise CheckpointError(path, "is damaged in its header", "Restore it from a copy.")
    return Header(salt, pid)


def encode(header: Header, outcome: Outcome) -> bytes:
    """The whole record of `outcome`, with the first byte of a committed one."""
    region: list[bytes | memoryview]
    if outcome.failure is not None:
        payload = _failure_payload(outcome.failure)
        kind, checksum, end = _FAILURE, crc32(payload), _POP
        region = [_BINBYTES, _LENGTH4.pack(len(payload)), payload, bytes([_POP])]
    else:
        pickled = outcome.pickled or b""
        checksum, end = outcome.checksum, _SETITEM
        if pickled.startswith(_PROTO_3):
            kind = _RESULT
            region = [memoryview(pickled)[len(_PROTO_3) : -len(STOP)]]
        else:
            kind = _NESTED_RESULT
            region = [_NESTED_START, _LENGTH8.pack(len(pickled)), pickled, _NESTED_END]
    key = outcome.path.encode("utf-8", "surrogatepass")
    metadata = _RECORD.pack(
        _SHORT_BINBYTES, _METADATA_LENGTH, header.tag, 0, checksum, kind,
        min(outcome.attempts, 0xFFFF), sum(map(len, region)), outcome.seconds,
        outcome.fingerprint.size, outcome.fingerprint.mtime_ns, _POP, _BINUNICODE, len(key),
    )  # fmt: skip
    header_checksum = crc32(key, crc32(metadata[_RECORD_CHECKED:], header.seed))
    sealed = metadata[:6] + _LENGTH4.pack(header_checksum) + metadata[_RECORD_CHECKED:]
    return b"".join([sealed, key, *region, bytes([end])])


def _failure_payload(failure: Failure) -> bytes:
    # JSON, because a failure is shown from files that one would not unpickle; ASCII, because the
    # texts of exceptions may hold lone surrogates.
    facts = {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}
    return json.dumps(facts).encode("ascii")


def decode_failure(record: Record, payload: bytes) -> Failure:
    """The failure that `record` holds; `payload` as `read_payload` gives it."""
    facts = json.loads(payload)
    return Failure(
        record.path, facts["kind"], facts["message"], facts["traceback"],
        record.attempts, record.seconds,
    )  # fmt: skip


def read_payload(fd: int, record: Record) -> bytes | None:
    """The value's pickle, or the failure's JSON; `None` if it does not match its checksum."""
    region = read_at(fd, record.end - 1 - record.region, record.region)
    return _verified(record.kind, region, record.checksum)


def _verified(kind: int, region: bytes, checksum: int) -> bytes | None:
    if kind == _RESULT:
        payload = b"".join([_PROTO_3, region, STOP])
    elif kind == _NESTED_RESULT:
        payload = region[len(_NESTED_START) + _LENGTH8.size : -len(_NESTED_END)]
    else:
        payload = region[len(_BINBYTES) + _LENGTH4.size : -1]
    return payload if crc32(payload) == checksum else None


def read_record(fd: int, header: Header, start: int) -> Record | None:
    """The record at `start`, where a scan has found one before, if it is still sound."""
    return next(iter(Scan(fd, header, start, _SMALL_READ)), None)


class Scan:
    """One pass over the records of a file, from `start` on, as far as they are sound.

    Values are not read, unless they are small or not committed yet.

    Attributes:
        end: where the pass stopped: behind the last sound record.
        stops: where a STOP stands in place of a record's first byte, or at the end. The first is
            the one that `pickle.load` ends at; records from there on are whole, but not part of the
            plain pickle yet.
    """

    def __init__(self, fd: int, header: Header, start: int, step: int = _BIG_READ) -> None:
        self.end = start
        self.stops: list[int] = []
        self._fd = fd
        self._tag, self._seed = header.tag, header.seed
        self._size = os.fstat(fd).st_size
        self._buffer = b""
        self._buffer_start = 0
        self._step = step

    def __iter__(self) -> Iterator[Record]:
        while (record := self._record_at(self.end)) is not None:
            self.end = record.end
            yield record

    def find_later_record(self) -> int | None:
        """Where the next whole record behind `end` starts, if there is one.

        Then what stands between is damage, and not the torn end of a file that was cut or of a
        write that was cut short.
        """
        position = self.end + 1
        while position < self._size:
            block = read_at(self._fd, _BIG_READ, position)
            found = block.find(self._tag)
            while found >= 0:
                start = position + found - 2
                if start > self.end and self._record_at(start, verify=True) is not None:
                    return start
                found = block.find(self._tag, found + 1)
            if len(block) < _BIG_READ:
                break
            position += len(block) - len(self._tag) + 1
        return None

    def _record_at(self, start: int, verify: bool = False) -> Record | None:
        """The record at `start`, or `None` if there is no sound one."""
        fixed = self._bytes_at(start, _RECORD.size)
        if fixed[:1] == STOP and not verify:
            self.stops.append(start)
        if len(fixed) < _RECORD.size:
            return None
        (first, length, tag, header_checksum, checksum, kind, attempts, region_length, seconds,
         size, mtime_ns, pop, opcode, key_length) = _RECORD.unpack(fixed)  # fmt: skip
        region = start + _RECORD.size + key_length
        end = region + region_length + 1
        if (
            tag != self._tag
            or length != _METADATA_LENGTH
            or (pop, opcode) != (_POP, _BINUNICODE)
            or first not in (_SHORT_BINBYTES, STOP[0])
            or end > self._size
        ):
            return None
        key = self._bytes_at(start + _RECORD.size, key_length)
        if crc32(key, crc32(fixed[_RECORD_CHECKED:], self._seed)) != header_checksum:
            return None
        sound = True
        if verify or self.stops or region_length <= _VERIFIED_IN_PASSING:
            sound = _verified(kind, self._bytes_at(region, region_length), checksum) is not None
            if not sound and (verify or self.stops):
                return None  # never forced to disk, so what is missing is a write cut short
        else:
            self._step = _SMALL_READ
        last = self._bytes_at(end - 1, 1)
        if last != (b"0" if kind & 0x80 else b"s"):
            return None
        return Record(
            key.decode("utf-8", "surrogatepass"), kind, start, region, end, checksum, sound,
            attempts, seconds, Fingerprint(size, mtime_ns),
        )  # fmt: skip

    def _bytes_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, through one buffer; fewer at the end of the file."""
        begin = offset - self._buffer_start
        if begin < 0 or begin + length > len(self._buffer):
            self._buffer = read_at(self._fd, max(length, self._step), offset)
            self._buffer_start, begin = offset, 0
            self._step = _BIG_READ
        return self._buffer[begin : begin + length]
