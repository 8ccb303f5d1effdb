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

A worker makes all of a record, which it can once it knows the file's salt.

Pure: outcomes in, bytes out, and back. pickle_scan.py finds the records in a file. Knows nothing of
locks, commits or values' classes.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from binascii import crc32
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..errors import CheckpointError
from ..records import Fingerprint, Outcome
from ..values import Bytes, Encoded
from .base import damaged, failure_in, foreign, no_record, of_another_version, texts_of
from .disk import read_at, read_into

STOP = b"."
COMMITTED = b"C"
POP, SETITEM = b"0", b"s"
_BINBYTES = b"B"

# PROTO 4, EMPTY_DICT, SHORT_BINBYTES of 22 bytes. The magic is PNG's trick: a transfer in text mode
# changes its line ends, and so is noticed.
_MAGIC = b"\x80\x04}C\x16\x89RPL\r\n\x1a\n"
_VERSION = 1
_HEADER = struct.Struct("<13s B x 8s I c 2s I c")  # ..., salt, checksum, POP, C 4, pid, POP
_HEADER_CHECKED = 23  # the checksum covers what stands before it
_PID_OFFSET = 30
FIRST_RECORD = _HEADER.size

# How other pickles begin that a dict may be in, and what a reader says of them.
_PICKLES = (b"\x80", b"}", b"(")
_PERHAPS_PLAIN = " yet: if it is a pickle of a dict {path: value}, a run or compact converts it"

# What stands before a record's key, as `Metadata` says: C 52 and the tag, 2 checksums, ..., POP X
# and the key's length. The header's checksum covers all that stands behind it, with the key.
METADATA = struct.Struct("<6s I IBxHQfqqd 2sI")
_START, _FACTS = struct.Struct("<6s I"), struct.Struct("<IBxHQfqqd 2sI")
CHECKED_FROM = _START.size
_RECORD_OPCODES, _KEY_OPCODES = COMMITTED + b"\x34", POP + b"X"
_RECORD = re.compile(rb"[C.]4.{52}0X", re.DOTALL)  # where one may begin, whatever the tag

RESULT, _NESTED_RESULT, _FAILURE = 1, 2, 0x81  # 0x80: invisible to pickle.load
_INVISIBLE = 0x80

_PROTO_3 = b"\x80\x03"
PROTO_3_CHECKSUM = crc32(_PROTO_3)
_NESTED_START = b"\x8c\x06pickle\x8c\x05loads\x93\x8e"  # pickle.loads, BINBYTES8
_NESTED_END = b"\x85R"  # TUPLE1, REDUCE
_LENGTH8, _LENGTH4 = struct.Struct("<Q"), struct.Struct("<I")

# Up to this length a value is copied into the record; a larger one is a part of its own.
_COPIED = 1 << 12


class Header:
    """What is the same in all of a file's records.

    Attributes:
        salt: seeds their checksums, and its first bytes tag them, so that neither another file's
            records nor stale disk blocks ever pass for ours.
        pid: the process that has written to the file last.
        tag: what every record carries.
        record_start: what every record begins with, once it is committed.
        seed: where the checksum of a record's header begins.
    """

    def __init__(self, salt: bytes, pid: int, seed: int | None = None) -> None:
        self.salt = salt
        self.pid = pid
        self.tag = salt[:4]
        self.record_start = _RECORD_OPCODES + self.tag
        self.seed = crc32(salt) if seed is None else seed


class Metadata(NamedTuple):
    """What stands before a record's key."""

    start: bytes
    header_checksum: int
    checksum: int
    kind: int
    attempts: int
    length: int
    seconds: float
    input_size: int
    mtime_ns: int
    finished_at: float
    key_opcodes: bytes
    key_length: int

    @property
    def failed(self) -> bool:
        """Whether it is of a failure."""
        return self.kind == _FAILURE

    @property
    def fingerprint(self) -> Fingerprint:
        """Of the input."""
        return Fingerprint(self.input_size, self.mtime_ns)

    @property
    def region(self) -> int:
        """Where the value begins, from the start of the record."""
        return METADATA.size + self.key_length

    @property
    def end(self) -> int:
        """Where the record's last byte stands, from its start."""
        return self.region + self.length

    @property
    def last(self) -> bytes:
        """What that is."""
        return POP if self.kind & _INVISIBLE else SETITEM


def new_header(pid: int) -> bytes:
    """The header of a new file, and the STOP behind it: a pickle of `{}`."""
    salt = os.urandom(8)
    start = _HEADER.pack(_MAGIC, _VERSION, salt, 0, b"0", b"C\x04", pid, b"0")
    checksum = crc32(start[:_HEADER_CHECKED])
    return start[:_HEADER_CHECKED] + _LENGTH4.pack(checksum) + start[27:] + STOP


def pid_field(pid: int) -> tuple[bytes, int]:
    """The bytes that name the writing process in the header, and their offset."""
    return _LENGTH4.pack(pid), _PID_OFFSET


def begins_as_ours(fd: int) -> bool:
    """Whether the file, open as `fd`, begins as ours do, be it a little damaged, or with a record
    of ours behind what is lost. Nothing else does: a program that pickles a dict never writes bytes
    in front of its first key."""
    start = read_at(fd, FIRST_RECORD + METADATA.size, 0)
    same = sum(one == other for one, other in zip(start, _MAGIC, strict=False))
    return (
        _MAGIC.startswith(start[: len(_MAGIC)])
        or same > len(_MAGIC) // 2
        or _RECORD.match(start, FIRST_RECORD) is not None
    )


def read_header(fd: int, path: str) -> Header:
    """The header of the file at `path`, open as `fd`.

    Raises:
        CheckpointError: this is no checkpoint, or not one that this version can read.
    """
    start = read_at(fd, FIRST_RECORD, 0)
    if not begins_as_ours(fd):
        raise foreign(path, "" if start[:1] not in _PICKLES else _PERHAPS_PLAIN)
    if len(start) < FIRST_RECORD and _MAGIC.startswith(start[: len(_MAGIC)]):
        raise CheckpointError(
            path, "ends inside its header, so it holds no result", "Move it away and run again."
        )
    start = start.ljust(FIRST_RECORD)
    magic, version, salt, checksum, pop, pid_start, pid, pid_pop = _HEADER.unpack(start)
    sound = checksum == crc32(start[:_HEADER_CHECKED]) and magic == _MAGIC
    if sound and version != _VERSION:
        raise of_another_version(path, version, _VERSION)
    if not sound or pop + pid_start + pid_pop != b"0C\x040":
        raise damaged(path, "its header is not what was written")
    return Header(salt, pid)


def header_of_records(fd: int) -> Header | None:
    """The header of the file, by its records, of which two agree if there are two; their values are
    what was saved. A checksum that is computed backwards ends at the seed."""
    found: Counter[tuple[bytes, int]] = Counter()
    with mmap.mmap(fd, 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while (match := _RECORD.search(data, at)) is not None:
            start = at = match.start()
            at += 1
            metadata = Metadata._make(
                METADATA.unpack(data[start : start + METADATA.size].ljust(60))
            )
            region, end = start + metadata.region, start + metadata.end
            if data[end : end + 1] != metadata.last or read_payload(fd, region, metadata) is None:
                continue
            seed = _seed_of(data[start + CHECKED_FROM : region], metadata.header_checksum)
            found[metadata.start[2:], seed] += 1
            at = end + 1
    # One that stands alone may be damaged. Where others agree as well, the records of a whole other
    # file are in a value.
    agreed = [header for header in found if found[header] > 1] or [*found]
    return Header(agreed[0][0], 0, agreed[0][1]) if len(agreed) == 1 else None


def _seed_of(checked: bytes, checksum: int) -> int:
    """Where a crc32 of these bytes began that has come to this."""
    ones = 0xFFFFFFFF
    table = [crc32(bytes([byte]), ones) ^ ones for byte in range(256)]
    by_first = {entry >> 24: byte for byte, entry in enumerate(table)}
    register = checksum ^ ones
    for byte in reversed(checked):
        index = by_first[register >> 24]
        register = (register ^ table[index]) << 8 & ones | index ^ byte
    return register ^ ones


def record_of(header: Header, outcome: Outcome[Any]) -> Sequence[Bytes]:
    """The record of an outcome in the file of this header, in parts, once it is committed. A large
    value is a part that is not copied."""
    value: Bytes
    if outcome.failure is not None:
        kind, value = _FAILURE, texts_of(outcome.failure)
        checksum = crc32(value)
    else:
        pickled, checksum = outcome.pickled or b"", outcome.checksum
        value = pickled if len(pickled) <= _COPIED else memoryview(pickled)
        kind = _NESTED_RESULT
        if pickled.startswith(_PROTO_3):
            kind, value = RESULT, value[len(_PROTO_3) : -len(STOP)]
    before, after = _around(kind, len(value))
    key = outcome.path.encode("utf-8", "surrogatepass")
    checked = _FACTS.pack(
        checksum, kind, min(outcome.attempts, 0xFFFF), len(value) + _OVERHEAD[kind],
        outcome.seconds, *outcome.fingerprint, outcome.finished_at, _KEY_OPCODES, len(key),
    ) + key  # fmt: skip
    start = _START.pack(header.record_start, crc32(checked, header.seed))
    return [start + checked + before, value, after + (POP if kind & _INVISIBLE else SETITEM)]


def outcome_in(record: Encoded) -> Outcome[Any]:
    """What such a record was made of.

    Raises:
        ValueError: it is no such record.
    """
    metadata = Metadata._make(METADATA.unpack_from(record))
    region = metadata.region

    def fill(value: memoryview) -> None:
        value[:] = record[region : region + len(value)]

    payload = _payload(metadata, fill) if len(record) == metadata.end + 1 else None
    path = record[METADATA.size : region].decode("utf-8", "surrogatepass")
    outcome = outcome_of(path, metadata, payload) if payload is not None else None
    if outcome is None:
        raise no_record()
    return outcome


def _around(kind: int, length: int) -> tuple[bytes, bytes]:
    """What stands before and behind a payload of this length."""
    if kind == RESULT:
        return b"", b""
    if kind == _NESTED_RESULT:
        return _NESTED_START + _LENGTH8.pack(length), _NESTED_END
    return _BINBYTES + _LENGTH4.pack(length), POP


# How many bytes that is.
_OVERHEAD = {kind: len(b"".join(_around(kind, 0))) for kind in (RESULT, _NESTED_RESULT, _FAILURE)}


def outcome_of(path: str, metadata: Metadata, payload: bytes | bytearray) -> Outcome[Any] | None:
    """What the record was made of; `payload` as `read_payload` gives it. `None` if it only says
    that it is a failure."""
    facts = (metadata.seconds, metadata.attempts, metadata.fingerprint, metadata.finished_at)
    if not metadata.failed:
        return Outcome(path, payload, metadata.checksum, None, *facts)
    failure = failure_in(payload, path, metadata.attempts, metadata.seconds)
    return None if failure is None else Outcome(path, None, 0, failure, *facts)


def read_payload(fd: int, region: int, metadata: Metadata) -> bytearray | None:
    """The value's pickle, or the failure's JSON, whose region begins at that byte; `None` if it is
    not what was saved. It is not copied, however large."""
    return _payload(metadata, lambda value: read_into(fd, value, region))


def _payload(metadata: Metadata, fill: Callable[[memoryview], None]) -> bytearray | None:
    """The same of a region that `fill` puts in its place."""
    if metadata.kind not in _OVERHEAD:
        return None
    # A value has lost these ends of its pickle; of the others there is too much, see below.
    head, tail = (_PROTO_3, STOP) if metadata.kind == RESULT else (b"", b"")
    payload = bytearray(len(head) + metadata.length + len(tail))
    payload[: len(head)], payload[len(payload) - len(tail) :] = head, tail
    with memoryview(payload) as view:
        fill(view[len(head) : len(view) - len(tail)])
    before, after = _around(metadata.kind, max(metadata.length - _OVERHEAD[metadata.kind], 0))
    if not (payload.startswith(before or head) and payload.endswith(after or tail)):
        return None
    del payload[: len(before)], payload[len(payload) - len(after) :]
    return payload if crc32(payload) == metadata.checksum else None
