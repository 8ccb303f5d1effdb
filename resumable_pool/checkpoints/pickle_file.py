"""`result.pkl`: saving by appending to a file that is a plain pickle of a dict at every instant.

Appending, while `.` is the STOP at which `pickle.load` ends and `C` the first byte of a record:

    header  record  record .                                     as it was
    header  record  record .new record  new record .             append: written behind the STOP
    header  record  record Cnew record  new record .             commit: that one byte is changed

The first step leaves the old pickle as it is, however much of it reaches the file, so a kill at any
point does no harm. Between the two the data are forced to the disk, so a power cut does none. One
byte is written by any system at once or not at all. (Writing over the STOP in the first step saves
a system call, and breaks the file in one of four kills in the middle of a large value.)

A dict `{path: value}` that another program has pickled is converted before it is opened for writing
(plain_pickle.py): written anew in our layout, and the original kept. Nothing else knows it.

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it,
or such a dict is converted.
"""

from __future__ import annotations

import functools
import os
from binascii import crc32
from collections.abc import Iterator
from typing import Any

from ..errors import CheckpointError
from ..records import Fingerprint, Outcome, quoted
from ..values import Encoded, Encoder
from .base import damaged
from .copying import rewrite
from .disk import read_at, write_at
from .log_file import LogFile
from .log_reader import Found, Scan
from .moving import Through
from .pickle_record import (
    CHECKED_FROM,
    COMMITTED,
    FIRST_RECORD,
    METADATA,
    PROTO_3_CHECKSUM,
    RESULT,
    SETITEM,
    STOP,
    Header,
    Metadata,
    begins_as_ours,
    header_of_records,
    new_header,
    outcome_in,
    outcome_of,
    pid_field,
    read_header,
    read_payload,
    record_of,
)
from .plain_pickle import PlainPickle, may_be_a_dict

# Reading: big steps while records are small, small ones to skip over large values unread.
_BIG_READ, _SMALL_READ = 1 << 20, 1 << 12
# Values up to this length are verified while their keys are scanned: they are in the buffer anyway,
# and crc32 of them costs a tenth of the rest. Larger ones are verified when they are read.
_VERIFIED_IN_PASSING = 1 << 12

_PROTO = b"\x80"  # what every pickle of today begins with


class PickleFile(LogFile):
    """The default checkpoint. See the module's text, and pickle_record.py for the bytes.

    `_commit` is where the STOP of the plain pickle stands.
    """

    _first = FIRST_RECORD
    _terminator = STOP
    _commits = (STOP, COMMITTED)
    _header = Header(b"", 0)

    def compact(self, through: Through | None = None) -> list[str]:
        if not self._is_plain():
            return super().compact(through)
        notes = self.open()  # which converts it; then there is nothing in it that does not count
        self.close()
        return notes

    def _is_settled(self) -> bool:
        return not self._is_plain() and super()._is_settled()

    def _is_plain(self) -> bool:
        with self._opened() as fd:
            return fd >= 0 and may_be_a_dict(fd) and not begins_as_ours(fd)

    def _convert(self, notes: list[str]) -> bool:
        if not self._is_plain():
            return False
        plain = PlainPickle(self._file.fileno(), self.path)
        rewrite(self, plain.outcomes(), plain.done, notes)
        return True

    def _new_file(self) -> bytes:
        return new_header(os.getpid())

    def _recognise(self, fd: int, damaged: list[str] | None = None) -> bool:
        before = self._header
        try:
            self._header = read_header(fd, self.path)
        except CheckpointError as error:
            found = None if damaged is None else header_of_records(fd)
            if damaged is None or found is None:
                raise
            self._header = found
            damaged.append(f"{quoted(self.path)} {error.reason}")
        return before.salt == self._header.salt

    def _scan(self, fd: int, start: int, committed: int) -> Scan:
        return PickleScan(fd, self.path, self._header, start, committed)

    def encoder(self) -> Encoder:
        return Encoder(self.encode, functools.partial(record_of, self._header))

    def outcome_in(self, record: Encoded) -> Outcome[Any]:
        return outcome_in(record)

    def _outcome_at(self, fd: int, start: int) -> Outcome[Any] | None:
        record = read_record(fd, self._header, start)
        if record is None:
            return None
        path, metadata = record
        payload = read_payload(fd, start + metadata.region, metadata)
        return outcome_of(path, metadata, payload) if payload is not None else None

    def _told(self, facts: tuple[Any, ...]) -> tuple[float, int, int]:
        metadata = Metadata._make(facts)
        return metadata.seconds, metadata.attempts, metadata.length

    def fingerprint(self, path: str) -> Fingerprint:
        with self._reading() as fd:  # without reading the value
            start = self._index.results[path]
            record = read_record(fd, self._header, start)
        if record is None or record[0] != path:
            raise KeyError(path)
        return record[1].fingerprint

    def _mark_committed(self, fd: int) -> None:
        write_at(fd, COMMITTED, self._commit)

    def _mend(self, fd: int, scan: Scan) -> None:
        assert isinstance(scan, PickleScan)
        for stop in scan.stops[1:]:  # an earlier commit did not reach the disk, but this one's data
            if stop < self._end:
                write_at(fd, COMMITTED, stop)

    def _sign(self, fd: int) -> None:
        write_at(fd, *pid_field(os.getpid()))

    def _signer(self, fd: int) -> int | None:
        try:
            return read_header(fd, self.path).pid or None
        except CheckpointError:
            return None


def read_record(fd: int, header: Header, start: int) -> tuple[str, Metadata] | None:
    """The key and the metadata of the record at `start`, where a scan has found one before, if they
    are still sound."""
    return PickleScan(fd, "", header, start, start, _SMALL_READ).record_at(start)


class PickleScan(Scan):
    """Finds the records of a `result.pkl`. Values are not read, unless they are small or not
    committed yet.

    Attributes:
        stops: where a STOP stands in place of a record's first byte, or at the end. The first is
            the one that `pickle.load` ends at; records from there on are whole, but not part of the
            plain pickle yet.
    """

    def __init__(
        self, fd: int, path: str, header: Header, start: int, committed: int, step: int = _BIG_READ
    ) -> None:
        super().__init__(fd, path, start)
        uncommitted = committed < start and read_at(fd, 1, committed) == STOP
        self.stops = [committed] if uncommitted else []
        self._header = header
        self._buffer = b""
        self._buffer_start = 0
        self._step = self._usual_step = step

    def __iter__(self) -> Iterator[Found]:
        while True:
            yield from self._plain_records()
            if (record := self._next_record()) is None:
                return
            yield record

    def _plain_records(self) -> Iterator[Found]:
        """The next records, as long as they are what nearly all are: results with small values,
        sound, and whole in the buffer. Of any other `_next_record` can tell what it is."""
        buffer, buffer_start = self._buffer, self._buffer_start
        record_start, seed = self._header.record_start, self._header.seed
        start = self.end - buffer_start
        while 0 <= start <= len(buffer) - METADATA.size:
            metadata = METADATA.unpack_from(buffer, start)
            first, header_checksum, checksum, kind, _, length, _, _, _, _, _, key_length = metadata
            key = start + METADATA.size
            region = key + key_length
            end = region + length
            if (
                first != record_start
                or kind != RESULT
                or crc32(buffer[start + CHECKED_FROM : region], seed) != header_checksum
                or crc32(STOP, crc32(buffer[region:end], PROTO_3_CHECKSUM)) != checksum
                or buffer[end : end + 1] != SETITEM  # also where the buffer ends before
            ):
                return
            try:
                path = buffer[key:region].decode("utf-8", "surrogatepass")
            except UnicodeDecodeError:
                return
            place, start = buffer_start + start, end + 1
            self.end = buffer_start + start
            yield path, place, False, True, metadata

    def _next_record(self) -> Found | None:
        """The record at `end`, or `None` if there is no sound one."""
        start = self.end
        if self._bytes_at(start, 1) == STOP:
            self.stops.append(start)
        record = self.record_at(start)
        if record is None:
            return None
        path, metadata = record
        sound = True
        if self.stops or metadata.length <= _VERIFIED_IN_PASSING:
            sound = read_payload(self._fd, start + metadata.region, metadata) is not None
            if self.stops and not sound:
                return None  # never forced to disk, so what is missing is a write cut short
        else:
            self.unverified.append(start)
        self.end = start + metadata.end + 1
        return path, start, metadata.failed, sound, metadata

    def record_at(self, start: int) -> tuple[str, Metadata] | None:
        """The key and the metadata at `start`, if they are sound and the record ends as it has
        to; whether its value is, they do not tell."""
        fixed = self._bytes_at(start, METADATA.size)
        if len(fixed) < METADATA.size:
            return None
        metadata = Metadata._make(METADATA.unpack(fixed))
        first, rest = metadata.start[:1], metadata.start[1:]
        if first not in (COMMITTED, STOP) or rest != self._header.record_start[1:]:
            return None
        if start + metadata.end >= self.size:
            return None
        checked = self._bytes_at(start + CHECKED_FROM, metadata.region - CHECKED_FROM)
        if crc32(checked, self._header.seed) != metadata.header_checksum:
            return None
        if metadata.length > _VERIFIED_IN_PASSING:
            self._step = _SMALL_READ
        if self._bytes_at(start + metadata.end, 1) != metadata.last:
            return None
        key = checked[METADATA.size - CHECKED_FROM :]
        try:
            return key.decode("utf-8", "surrogatepass"), metadata
        except UnicodeDecodeError:  # somebody has made it who knows how to make the checksum
            return None

    @property
    def committed(self) -> int:
        """Where the STOP of the plain pickle stands, or has to."""
        return self.stops[0] if self.stops else self.end

    def refuse_damage(self) -> None:
        self._refuse_another_pickle()
        if not self.stops and self.find_later_record() is not None:
            where = f"at byte {self.end:,}"
            raise damaged(self._path, f"there is no record {where}, but sound ones after it")

    def skip(self) -> tuple[list[str], bool]:
        self._refuse_another_pickle()
        begin, later = self.end, self.find_later_record()
        if later is None:
            return [], False
        self.end = later
        return [f"there is no record in the {later - begin:,} bytes from byte {begin:,} on"], True

    def _refuse_another_pickle(self) -> None:
        """Behind the end, where nobody reads anything. What we write there never begins so."""
        start = self.end + len(STOP)
        if read_at(self._fd, len(STOP) + 1, self.end) == STOP + _PROTO:
            raise CheckpointError(
                self._path,
                f"has another pickle behind it, from byte {start:,} on, as after `cat`",
                "Cut it in two there, and join the parts with python -m resumable_pool merge.",
            )

    def find_later_record(self) -> int | None:
        """Where the next whole record behind `end` starts, if there is one.

        Then what stands between is damage, and not the torn end of a file that was cut or of a
        write that was cut short.
        """
        position, tag = self.end + 1, self._header.tag
        while position < self.size:
            block = read_at(self._fd, _BIG_READ, position)
            found = block.find(tag)
            while found >= 0:
                start = position + found - 2
                if start > self.end and self._is_whole(start):
                    return start
                found = block.find(tag, found + 1)
            if len(block) < _BIG_READ:
                break
            position += len(block) - len(tag) + 1
        return None

    def _is_whole(self, start: int) -> bool:
        """Whether there is a record, with its value."""
        record = self.record_at(start)
        if record is None:
            return False
        _, metadata = record
        return read_payload(self._fd, start + metadata.region, metadata) is not None

    def _bytes_at(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset`, through one buffer; fewer at the end of the file."""
        begin = offset - self._buffer_start
        if begin < 0 or begin + length > len(self._buffer):
            step = min(max(length, self._step), self.size - offset)
            self._buffer = read_at(self._fd, step, offset)
            self._buffer_start, begin = offset, 0
            self._step = self._usual_step
        return self._buffer[begin : begin + length]
