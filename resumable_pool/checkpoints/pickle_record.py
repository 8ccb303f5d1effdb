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
  pickle": `.` (STOP) or `C` (SHORT_BINBYTES). log_file.py commits by changing it.

A worker makes all of a record, which it can once it knows the file's salt.

Outcomes in, bytes out, and back; and `PickleScan`, which finds the records in a file. Never writes,
and knows nothing of locks and of values' classes.
"""

from __future__ import annotations

import itertools
import operator
import os
import re
import struct
from binascii import crc32
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import CheckpointError
from ..records import Fingerprint, Outcome
from ..values import Bytes, Encoded
from .base import damaged, foreign, of_another_version, outcome_with, texts_of
from .disk import read_at, read_into
from .log_reader import Found, Scan

STOP = b"."
COMMITTED = b"C"
_POP, _SETITEM = b"0", b"s"
_BINBYTES = b"B"

# PROTO 4, EMPTY_DICT, SHORT_BINBYTES of 22 bytes. The magic is PNG's trick: a transfer in text mode
# changes its line ends, and so is noticed.
_MAGIC = b"\x80\x04}C\x16\x89RPL\r\n\x1a\n"
_VERSION = 1
_HEADER = struct.Struct("<13s B x 8s I c 2s I c")  # ..., salt, checksum, POP, C 4, pid, POP
_HEADER_CHECKED = 23  # the checksum covers what stands before it
_PID_OFFSET = 30
FIRST_RECORD = _HEADER.size

# How other pickles begin that a dict may be in: PROTO; EMPTY_DICT in protocol 1, MARK DICT in 0.
_PICKLES = (b"\x80", b"}", b"(d")
# And what a reader says of them.
_PERHAPS_PLAIN = " yet: if it is a pickle of a dict {path: value}, a run or compact converts it"

# What stands before a record's key, as `Metadata` says: C 52 and the tag, 2 checksums, ..., POP X
# and the key's length. The header's checksum covers all that stands behind it, with the key.
METADATA = struct.Struct("<6s I IBxHQfqqd 2sI")
_START, _FACTS = struct.Struct("<6s I"), struct.Struct("<IBxHQfqqd 2sI")
# And what tells whether it is one of those that nearly all are: without what is only kept.
_PLAIN = struct.Struct("<6s I IB3xQ30xI")
_CHECKED_FROM = _START.size
_RECORD_OPCODES, _KEY_OPCODES = COMMITTED + b"\x34", _POP + b"X"
_ANY_RECORD = rb"(?s)4.{52}0X"  # behind its first byte, whatever the tag

_RESULT, _NESTED_RESULT, _FAILURE = 1, 2, 0x81

_PROTO = b"\x80"  # what every pickle of today begins with
_PROTO_3 = b"\x80\x03"
_PROTO_3_CHECKSUM = crc32(_PROTO_3)
_KEPT = slice(len(_PROTO_3), -len(STOP))  # what a record has of a value's pickle
# By which the checksum of a value with SETITEM behind it, as it stands in a record, differs from
# that of its pickle: a crc32 is linear, so this is the same for all values.
_ENDS_OTHERWISE = crc32(_SETITEM) ^ crc32(STOP)
_NESTED_START = b"\x8c\x06pickle\x8c\x05loads\x93\x8e"  # pickle.loads, BINBYTES8
_NESTED_END = b"\x85R"  # TUPLE1, REDUCE
_LENGTH8, _LENGTH4 = struct.Struct("<Q"), struct.Struct("<I")

# Reading: big steps while records are small, small ones to skip over large values unread.
_BIG_READ, _SMALL_READ = 1 << 20, 1 << 12
# Values up to this length are verified while their keys are scanned: they are in the buffer anyway,
# and crc32 of them costs a tenth of the rest. Larger ones are verified when they are read.
_VERIFIED_IN_PASSING = 1 << 12
# Up to this length a value is copied into the record; a larger one is a part of its own.
_COPIED = 1 << 12


class Header(NamedTuple):
    """What is the same in all of a file's records. It follows from the file's salt, so that neither
    another file's records nor stale disk blocks ever pass for ours.

    Attributes:
        record_start: what every record begins with, once it is committed: two opcodes, and the tag.
        seed: where the checksum of a record's header begins.
        pid: the process that has written to the file last, or 0.
    """

    record_start: bytes
    seed: int
    pid: int = 0


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


# What a scan tells of a record, by its metadata.
_KNOWN = operator.itemgetter(*map(Metadata._fields.index, ("seconds", "attempts", "length")))


def new_header(pid: int | None = None) -> bytes:
    """The header of a new file, of this process if no other, and the STOP behind it: a pickle of
    `{}`."""
    salt = os.urandom(8)
    start = _HEADER.pack(_MAGIC, _VERSION, salt, 0, _POP, b"C\x04", pid or os.getpid(), _POP)
    checksum = crc32(start[:_HEADER_CHECKED])
    return start[:_HEADER_CHECKED] + _LENGTH4.pack(checksum) + start[27:] + STOP


def pid_field(pid: int) -> tuple[bytes, int]:
    """The bytes that name the writing process in the header, and their offset."""
    return _LENGTH4.pack(pid), _PID_OFFSET


def _begins_as_ours(start: bytes) -> bool:
    """Whether a file with this start begins as ours do, be it a little damaged, or with a record of
    ours behind what is lost. Nothing else does: a program that pickles a dict never writes bytes in
    front of its first key."""
    return (
        _MAGIC.startswith(start[: len(_MAGIC)])
        or sum(map(operator.eq, start, _MAGIC)) > len(_MAGIC) // 2
        or re.match(_ANY_RECORD, start[FIRST_RECORD + 1 :]) is not None
    )


def may_be_plain(fd: int) -> bool:
    """Whether the file, open as `fd`, begins as a dict may that another program has pickled."""
    start = read_at(fd, FIRST_RECORD + METADATA.size, 0)
    ours = start.startswith(_MAGIC) or _begins_as_ours(start)
    return start.startswith(_PICKLES) and not ours


def read_header(fd: int, path: str) -> Header:
    """The header of the file at `path`, open as `fd`.

    Raises:
        CheckpointError: this is no checkpoint, or not one that this version can read.
    """
    start = read_at(fd, FIRST_RECORD + METADATA.size, 0)
    magic, version, salt, checksum, *opcodes, pid, pop = _HEADER.unpack(
        start[:FIRST_RECORD].ljust(FIRST_RECORD)
    )
    if magic == _MAGIC and checksum == crc32(start[:_HEADER_CHECKED]):
        if version != _VERSION:
            raise of_another_version(path, version, _VERSION)
        if [*opcodes, pop] == [_POP, b"C\x04", _POP]:
            return Header(_RECORD_OPCODES + salt[:4], crc32(salt), pid)
    if not _begins_as_ours(start):
        raise foreign(path, _PERHAPS_PLAIN if start.startswith(_PICKLES) else "")
    if len(start) < FIRST_RECORD and _MAGIC.startswith(start[: len(_MAGIC)]):
        raise CheckpointError(
            path, "ends inside its header, so it holds no result", "Move it away and run again."
        )
    raise damaged(path, "its header is not what was written")


def _places(fd: int, pattern: bytes, start: int) -> Iterator[int]:
    """Where in the file, from `start` on, a record may begin: this stands behind its first byte."""
    while block := read_at(fd, _BIG_READ, start):
        yield from (start + match.start() - 1 for match in re.finditer(pattern, block))
        # What one block ends in, the next one begins with.
        start += len(block) if len(block) < _BIG_READ else len(block) - METADATA.size


def header_of_records(fd: int) -> Header | None:
    """The header of the file, by its records, of which two agree if there are two; their values are
    what was saved. A checksum that is computed backwards ends at the seed."""
    found: Counter[Header] = Counter()
    end, size = -1, os.fstat(fd).st_size
    for start in _places(fd, _ANY_RECORD, 0):
        metadata = Metadata._make(METADATA.unpack(read_at(fd, METADATA.size, start).ljust(60)))
        inside = end < start and start + metadata.end < size
        if inside and read_payload(fd, start, metadata) is not None:
            checked = read_at(fd, metadata.region - _CHECKED_FROM, start + _CHECKED_FROM)
            tagged = _RECORD_OPCODES + metadata.start[len(_RECORD_OPCODES) :]
            found[Header(tagged, _seed_of(checked, metadata.header_checksum))] += 1
            end = start + metadata.end
    # One that stands alone may be damaged. Where others agree as well, the records of a whole other
    # file are in a value.
    agreed = [header for header in found if found[header] > 1] or [*found]
    return agreed[0] if len(agreed) == 1 else None


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


def record_of(header: Header, outcome: tuple[Any, ...]) -> Sequence[Bytes]:
    """The record of an outcome in the file of this header, in parts, once it is committed. A large
    value is a part that is not copied."""
    path, pickled, checksum, failure, seconds, attempts, (size, mtime_ns), finished_at = outcome
    kind, before, value, after = _RESULT, b"", pickled, _SETITEM
    if failure is not None:
        kind, value = _FAILURE, texts_of(failure)
        checksum = crc32(value)
    elif not value.startswith(_PROTO_3):
        kind = _NESTED_RESULT
    if large := len(value) > _COPIED:
        value = memoryview(value)
    if kind == _RESULT:
        value = value[_KEPT]
        length = len(value)
    else:
        before, after = _around(kind, len(value))
        length = len(before) + len(value) + len(after) - len(_SETITEM)
    key = path.encode("utf-8", "surrogatepass")
    checked = _FACTS.pack(
        checksum, kind, attempts if attempts < 0xFFFF else 0xFFFF, length, seconds, size, mtime_ns,
        finished_at, _KEY_OPCODES, len(key),
    ) + key  # fmt: skip
    start = _START.pack(header.record_start, crc32(checked, header.seed)) + checked + before
    return [start, value, after] if large else [start + value + after]


def _around(kind: int, length: int) -> tuple[bytes, bytes]:
    """What stands before and behind a payload of this length, up to the record's end."""
    if kind == _RESULT:
        return b"", _SETITEM
    if kind == _NESTED_RESULT:
        return _NESTED_START + _LENGTH8.pack(length), _NESTED_END + _SETITEM
    return _BINBYTES + _LENGTH4.pack(length), _POP + _POP


# How many bytes of that are in the region.
_OVERHEAD = {
    kind: len(b"".join(_around(kind, 0))) - 1 for kind in (_RESULT, _NESTED_RESULT, _FAILURE)
}


def outcome_in(record: Encoded) -> Outcome[Any] | None:
    """What a whole record was made of; `None` if it is none."""
    metadata = Metadata._make(METADATA.unpack_from(record))
    path = record[METADATA.size : metadata.region].decode("utf-8", "surrogatepass")
    with memoryview(record) as view:
        around = bytearray(view[metadata.region - len(_PROTO_3) :])
    return outcome_of(path, metadata, _payload(metadata, around))


def outcome_of(path: str, metadata: Metadata, payload: Encoded | None) -> Outcome[Any] | None:
    """What the record was made of; `payload` as `read_payload` gives it. `None` if it is `None`, or
    only says that it is a failure."""
    if payload is None:
        return None
    facts = (metadata.seconds, metadata.attempts, metadata.fingerprint, metadata.finished_at)
    return outcome_with(path, payload, metadata.checksum, metadata.failed, *facts)


def read_payload(fd: int, start: int, metadata: Metadata) -> bytearray | None:
    """The value's pickle, or the failure's JSON, of the record that starts there; `None` if it is
    not what was saved. It is not copied, however large."""
    around = bytearray(len(_PROTO_3) + metadata.length + len(STOP))
    with memoryview(around) as view:
        read_into(fd, view, start + metadata.region - len(_PROTO_3))
    return _payload(metadata, around)


def _payload(metadata: Metadata, around: bytearray) -> bytearray | None:
    """The same of a region, in place: with so many bytes around it as a pickle has that a record
    leaves out."""
    head = len(_PROTO_3)
    whole = len(around) == head + metadata.length + len(STOP)
    if not whole or metadata.kind not in _OVERHEAD:
        return None
    before, after = _around(metadata.kind, max(metadata.length - _OVERHEAD[metadata.kind], 0))
    if not (around.startswith(before, head) and around.endswith(after)):
        return None
    if metadata.kind == _RESULT:
        around[:head], around[-len(STOP) :] = _PROTO_3, STOP
    else:
        del around[: head + len(before)], around[len(around) - len(after) :]
    return around if crc32(around) == metadata.checksum else None


class PickleScan(Scan):
    """Finds the records of a `result.pkl`. Values are not read, unless they are small or not
    committed yet.

    Its `marks` are the STOPs, in place of a record's first byte or at the end. The first is the one
    that `pickle.load` ends at; records from there on are whole, but not part of the plain pickle
    yet.
    """

    def __init__(self, fd: int, path: str, start: int, committed: int, header: Header) -> None:
        super().__init__(fd, path, start, committed)
        if committed < start and read_at(fd, 1, committed) == STOP:
            self.marks = [committed]
        self._header = header
        self._buffer = b""
        self._buffer_start = 0
        self._step = _SMALL_READ

    def __iter__(self) -> Iterator[Found]:
        while True:
            self._bytes_at(self.end, 1)
            if (found := self._plain_records()).paths:
                yield found
            if (record := self._next_record()) is None:
                return
            yield record

    def _plain_records(self) -> Found:
        """The next records, as long as they are what nearly all are: results with small values,
        sound, and whole in the buffer. Of any other `_next_record` can tell what it is."""
        paths: list[str] = []
        starts: list[int] = []  # in the buffer
        buffer, unpack = self._buffer, _PLAIN.unpack_from
        record_start, seed, size = self._header.record_start, self._header.seed, METADATA.size
        start, last = self.end - self._buffer_start, len(buffer) - size
        while start <= last:
            first, header_checksum, checksum, kind, length, key_length = unpack(buffer, start)
            key = start + size
            region = key + key_length
            end = region + length + 1
            if (
                first != record_start
                or kind != _RESULT
                or crc32(buffer[start + _CHECKED_FROM : region], seed) != header_checksum
                or crc32(buffer[region:end], _PROTO_3_CHECKSUM) != checksum ^ _ENDS_OTHERWISE
            ):
                break
            try:
                paths.append(buffer[key:region].decode())
            except UnicodeDecodeError:
                break
            starts.append(start)
            start = end
        begin, self.end = self._buffer_start, self._buffer_start + start
        facts = map(_KNOWN, map(METADATA.unpack_from, itertools.repeat(buffer), starts))
        return Found(paths, [begin + start for start in starts], facts)

    def _next_record(self) -> Found | None:
        """The record at `end`, or `None` if there is no sound one."""
        start = self.end
        if self._bytes_at(start, 1) == STOP:
            self.marks.append(start)
            if start + len(STOP) == self.size:
                return None
        record = self.record_at(start)
        if record is None:
            return None
        path, metadata = record
        sound = True
        if self.marks or self.thorough or metadata.length <= _VERIFIED_IN_PASSING:
            sound = read_payload(self._fd, start, metadata) is not None
            if self.marks and not sound:
                return None  # never forced to disk, so what is missing is a write cut short
        else:
            self.unverified.append(start)
        self.end = start + metadata.end + 1
        return Found([path], [start], [_KNOWN(metadata)], metadata.failed, sound)

    def record_at(self, start: int) -> tuple[str, Metadata] | None:
        """The key and the metadata at `start`, if they are sound and the record ends as it has
        to; whether its value is, they do not tell."""
        fixed = self._bytes_at(start, METADATA.size)
        if len(fixed) < METADATA.size:
            return None
        metadata = Metadata._make(METADATA.unpack(fixed))
        end = start + metadata.end
        tagged = fixed[1 : len(metadata.start)] == self._header.record_start[1:]
        if fixed[:1] not in (COMMITTED, STOP) or not tagged or end >= self.size:
            return None
        checked = self._bytes_at(start + _CHECKED_FROM, metadata.region - _CHECKED_FROM)
        if crc32(checked, self._header.seed) != metadata.header_checksum:
            return None
        if metadata.length > _VERIFIED_IN_PASSING:
            self._step = _SMALL_READ
        if self._bytes_at(end, 1) != (_POP if metadata.failed else _SETITEM):
            return None
        key = checked[METADATA.size - _CHECKED_FROM :]
        try:
            return key.decode("utf-8", "surrogatepass"), metadata
        except UnicodeDecodeError:  # somebody has made it who knows how to make the checksum
            return None

    def input_at(self, start: int) -> tuple[str, Fingerprint] | None:
        record = self.record_at(start)  # without reading the value
        return record and (record[0], record[1].fingerprint)

    def outcome_at(self, start: int) -> Outcome[Any] | None:
        self._step = _SMALL_READ  # the next one that is asked for may be anywhere
        record = self.record_at(start)
        return record and outcome_of(*record, read_payload(self._fd, start, record[1]))

    @property
    def committed(self) -> int:
        """Where the STOP of the plain pickle stands, or has to."""
        return self.marks[0] if self.marks else self.end

    def skip(self) -> tuple[list[str], bool]:
        begin = self.end
        behind = begin + len(STOP)  # nobody reads that, and what we write there begins otherwise
        if read_at(self._fd, len(STOP) + 1, begin) == STOP + _PROTO:
            raise CheckpointError(
                self._path,
                f"has another pickle behind it, from byte {behind:,} on, as after `cat`",
                "Cut it in two there, and join the parts with python -m resumable_pool merge.",
            )
        if behind >= self.size:
            return [], False
        # If a whole record comes later, what stands between is damage, and not the torn end of a
        # file that was cut or of a write that was cut short.
        pattern = re.escape(self._header.record_start[1:])
        for start in _places(self._fd, pattern, behind):
            if start > begin and self.outcome_at(start) is not None:
                self.end = start
                lost = f"the {start - begin:,} bytes from byte {begin:,} on"
                what = f"there is no record at byte {begin:,}: {lost} are not what was written"
                return [what], True
        return [], False

    def _bytes_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, through one buffer; fewer at the end of the file."""
        begin = offset - self._buffer_start
        if begin < 0 or begin + length > len(self._buffer):
            step = min(max(length, self._step), self.size - offset)
            self._buffer = read_at(self._fd, step, offset)
            self._buffer_start, begin = offset, 0
            self._step = _BIG_READ
        return self._buffer[begin : begin + length]
