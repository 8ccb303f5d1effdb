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

Pure: outcomes in, bytes out, and back. pickle_scan.py finds the records in a file. Knows nothing of
locks, commits or values' classes.
"""

from __future__ import annotations

import json
import os
import struct
from binascii import crc32
from typing import NamedTuple

from ..errors import CheckpointError
from ..records import Failure, Fingerprint, Outcome
from .base import FOREIGN_REMEDY
from .disk import read_at

STOP = b"."
SHORT_BINBYTES, POP, BINUNICODE, _SETITEM = b"C0Xs"
_BINBYTES = b"B"
COMMITTED = bytes([SHORT_BINBYTES])

# PROTO 4, EMPTY_DICT, SHORT_BINBYTES of 22 bytes. The magic is PNG's trick: a transfer in text mode
# changes its line ends, and so is noticed.
_MAGIC = b"\x80\x04}C\x16\x89RPL\r\n\x1a\n"
_VERSION = 1
_HEADER = struct.Struct("<13s B x 8s I c 2s I c")  # ..., salt, checksum, POP, C 4, pid, POP
_HEADER_CHECKED = 23  # the checksum covers what stands before it
_PID_OFFSET = 30
FIRST_RECORD = _HEADER.size

# C 44 | tag, 2 checksums, kind, attempts, length, seconds, size, mtime | POP | X, key's length
RECORD = struct.Struct("<BB 4sIIBxHQfqq B BI")
METADATA_LENGTH = 44
RECORD_CHECKED = 10  # the header's checksum covers what stands from here on, with the key

_RESULT, _NESTED_RESULT, _FAILURE = 1, 2, 0x81  # 0x80: invisible to pickle.load

_PROTO_3 = b"\x80\x03"
_NESTED_START = b"\x8c\x06pickle\x8c\x05loads\x93\x8e"  # pickle.loads, BINBYTES8
_NESTED_END = b"\x85R"  # TUPLE1, REDUCE
_LENGTH8, _LENGTH4 = struct.Struct("<Q"), struct.Struct("<I")


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

    @property
    def size(self) -> int:
        """How many bytes its value or failure takes."""
        return self.end - 1 - self.region


def new_header(pid: int) -> bytes:
    """The header of a new file, and the STOP behind it: a pickle of `{}`."""
    salt = os.urandom(8)
    start = _HEADER.pack(_MAGIC, _VERSION, salt, 0, b"0", b"C\x04", pid, b"0")
    checksum = crc32(start[:_HEADER_CHECKED])
    return start[:_HEADER_CHECKED] + _LENGTH4.pack(checksum) + start[27:] + STOP


def pid_field(pid: int) -> tuple[bytes, int]:
    """The bytes that name the writing process in the header, and their offset."""
    return _LENGTH4.pack(pid), _PID_OFFSET


def is_ours(fd: int) -> bool:
    """Whether the file, open as `fd`, begins as ours do, as far as it goes."""
    start = read_at(fd, len(_MAGIC), 0)
    return _MAGIC.startswith(start)


def read_header(fd: int, path: str) -> Header:
    """The header of the file at `path`, open as `fd`.

    Raises:
        CheckpointError: this is no checkpoint, or not one that this version can read.
    """
    start = read_at(fd, FIRST_RECORD, 0)
    if not _MAGIC.startswith(start[: len(_MAGIC)]):
        raise CheckpointError(path, "is not a checkpoint of this library", FOREIGN_REMEDY)
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
        kind, checksum, end = _FAILURE, crc32(payload), POP
        region = [_BINBYTES, _LENGTH4.pack(len(payload)), payload, bytes([POP])]
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
    metadata = RECORD.pack(
        SHORT_BINBYTES, METADATA_LENGTH, header.tag, 0, checksum, kind,
        min(outcome.attempts, 0xFFFF), sum(map(len, region)), outcome.seconds,
        outcome.fingerprint.size, outcome.fingerprint.mtime_ns, POP, BINUNICODE, len(key),
    )  # fmt: skip
    header_checksum = crc32(key, crc32(metadata[RECORD_CHECKED:], header.seed))
    sealed = metadata[:6] + _LENGTH4.pack(header_checksum) + metadata[RECORD_CHECKED:]
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
    return verified(record.kind, region, record.checksum)


def verified(kind: int, region: bytes, checksum: int) -> bytes | None:
    """What a record of this kind holds in this region; `None` if it is not what was saved."""
    if kind == _RESULT:
        payload = b"".join([_PROTO_3, region, STOP])
    elif kind == _NESTED_RESULT:
        payload = region[len(_NESTED_START) + _LENGTH8.size : -len(_NESTED_END)]
    else:
        payload = region[len(_BINBYTES) + _LENGTH4.size : -1]
    return payload if crc32(payload) == checksum else None
