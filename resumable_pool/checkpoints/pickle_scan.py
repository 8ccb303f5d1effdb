"""Finding the records of a `result.pkl`: reading what their metadata say, and skipping the values.

Knows the layout, but not what the records are found for.
"""

from __future__ import annotations

import os
from binascii import crc32
from collections.abc import Iterator

from .base import damaged
from .disk import read_at
from .log_reader import Found
from .pickle_record import (
    CHECKED_FROM,
    COMMITTED,
    METADATA,
    PROTO_3_CHECKSUM,
    RESULT,
    SETITEM,
    STOP,
    Header,
    Metadata,
    read_payload,
)

# Reading: big steps while records are small, small ones to skip over large values unread.
_BIG_READ, _SMALL_READ = 1 << 20, 1 << 12
# Values up to this length are verified while their keys are scanned: they are in the buffer anyway,
# and crc32 of them costs a tenth of the rest. Larger ones are verified when they are read.
_VERIFIED_IN_PASSING = 1 << 12


def read_record(fd: int, header: Header, start: int) -> tuple[str, Metadata] | None:
    """The key and the metadata of the record at `start`, where a scan has found one before, if they
    are still sound."""
    return Scan(fd, header, start, _SMALL_READ).record_at(start)


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
        self._header = header
        self._size = os.fstat(fd).st_size  # what is appended meanwhile is for the next scan
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
            place, start = buffer_start + start, end + 1
            self.end = buffer_start + start
            path = buffer[key:region].decode("utf-8", "surrogatepass")
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
        if start + metadata.end >= self._size:
            return None
        checked = self._bytes_at(start + CHECKED_FROM, metadata.region - CHECKED_FROM)
        if crc32(checked, self._header.seed) != metadata.header_checksum:
            return None
        if metadata.length > _VERIFIED_IN_PASSING:
            self._step = _SMALL_READ
        if self._bytes_at(start + metadata.end, 1) != metadata.last:
            return None
        key = checked[METADATA.size - CHECKED_FROM :]
        return key.decode("utf-8", "surrogatepass"), metadata

    @property
    def committed(self) -> int:
        """Where the STOP of the plain pickle stands, or has to."""
        return self.stops[0] if self.stops else self.end

    @property
    def unsettled(self) -> bool:
        """Whether there are records that are not part of the plain pickle yet."""
        return self.committed < self.end

    def refuse_damage(self, path: str) -> None:
        """Raise `CheckpointError` if what was committed is damaged: there is no STOP at `end`."""
        if not self.stops and self.find_later_record() is not None:
            where = f"at byte {self.end:,}"
            raise damaged(path, f"there is no record {where}, but sound ones after it")

    def skip_damage(self) -> str | None:
        """Go on at the next sound record. Says what is between; `None` if there is none."""
        begin, later = self.end, self.find_later_record()
        if later is None:
            return None
        self.end = later
        return f"there is no record in the {later - begin:,} bytes from byte {begin:,} on"

    def find_later_record(self) -> int | None:
        """Where the next whole record behind `end` starts, if there is one.

        Then what stands between is damage, and not the torn end of a file that was cut or of a
        write that was cut short.
        """
        position, tag = self.end + 1, self._header.tag
        while position < self._size:
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
            step = min(max(length, self._step), self._size - offset)
            self._buffer = read_at(self._fd, step, offset)
            self._buffer_start, begin = offset, 0
            self._step = self._usual_step
        return self._buffer[begin : begin + length]
