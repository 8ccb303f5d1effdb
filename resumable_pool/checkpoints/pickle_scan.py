"""Finding the records of a `result.pkl`: reading what their metadata say, and skipping the values.

Knows the layout, but not what the records are found for.
"""

from __future__ import annotations

import os
from binascii import crc32
from collections.abc import Iterator

from ..errors import CheckpointError
from ..records import Fingerprint
from .base import DAMAGE_REMEDY
from .disk import read_at
from .pickle_layout import (
    BINUNICODE,
    METADATA_LENGTH,
    POP,
    RECORD,
    RECORD_CHECKED,
    SHORT_BINBYTES,
    STOP,
    Header,
    Record,
    verified,
)

# Reading: big steps while records are small, small ones to skip over large values unread.
_BIG_READ, _SMALL_READ = 1 << 20, 1 << 12
# Values up to this length are verified while their keys are scanned: they are in the buffer anyway,
# and crc32 of them costs a tenth of the rest. Larger ones are verified when they are read.
_VERIFIED_IN_PASSING = 1 << 12


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
            raise CheckpointError(
                path,
                f"is damaged: there is no record at byte {self.end:,}, but sound ones after it",
                DAMAGE_REMEDY,
            )

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
        fixed = self._bytes_at(start, RECORD.size)
        if fixed[:1] == STOP and not verify:
            self.stops.append(start)
        if len(fixed) < RECORD.size:
            return None
        (first, length, tag, header_checksum, checksum, kind, attempts, region_length, seconds,
         size, mtime_ns, pop, opcode, key_length) = RECORD.unpack(fixed)  # fmt: skip
        region = start + RECORD.size + key_length
        end = region + region_length + 1
        if (
            tag != self._tag
            or length != METADATA_LENGTH
            or (pop, opcode) != (POP, BINUNICODE)
            or first not in (SHORT_BINBYTES, STOP[0])
            or end > self._size
        ):
            return None
        key = self._bytes_at(start + RECORD.size, key_length)
        if crc32(key, crc32(fixed[RECORD_CHECKED:], self._seed)) != header_checksum:
            return None
        sound = True
        if verify or self.stops or region_length <= _VERIFIED_IN_PASSING:
            value = self._bytes_at(region, region_length)
            sound = verified(kind, value, checksum) is not None
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
