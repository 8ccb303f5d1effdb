"""`result.pkl`: saving by appending to a file that is a plain pickle of a dict at every instant.

Appending, while `.` is the STOP at which `pickle.load` ends and `C` the first byte of a record:

    header  record  record .                                     as it was
    header  record  record .new record  new record .             append: written behind the STOP
    header  record  record Cnew record  new record .             commit: that one byte is changed

The first step leaves the old pickle as it is, however much of it reaches the file, so a kill at any
point does no harm. Between the two the data are forced to the disk, so a power cut does none. One
byte is written by any system at once or not at all. (Writing over the STOP in the first step saves
a system call, and breaks the file in one of four kills in the middle of a large value.)

A dict `{path: value}` that another program has pickled can be read as it is (plain_pickle.py), and
is adopted when it is opened for writing: written anew in our layout, and the original kept.

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it,
or the dict is adopted.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..errors import CheckpointError
from ..records import NO_FINGERPRINT, Fingerprint, Outcome, count_files
from ..values import Bytes, Encoded
from .copying import refuse_to_lose_old
from .disk import write_at
from .log_file import AppendFile, Chosen
from .log_reader import Found, Index, RecordScan
from .pickle_record import (
    COMMITTED,
    FIRST_RECORD,
    STOP,
    Header,
    Metadata,
    is_ours,
    new_header,
    outcome_in,
    outcome_of,
    pid_field,
    read_header,
    read_payload,
    record_of,
    start_of,
)
from .pickle_scan import Scan, read_record
from .plain_pickle import PlainPickle


class PickleFile(AppendFile):
    """The default checkpoint. See the module's text, and pickle_record.py for the bytes.

    `_commit` is where the STOP of the plain pickle stands.
    """

    _first = FIRST_RECORD
    _terminator = STOP
    _header = Header(b"", 0)
    _plain: PlainPickle | None = None  # what there is before it is adopted

    def open(self) -> list[str]:
        notes = self.rewrite(self._adopted) if self._is_plain() else []
        return [*dict.fromkeys(notes + super().open())]  # that there are no locks is told once

    def _is_plain(self) -> bool:
        with self._opened() as fd:
            if fd >= 0:
                self._recognise(fd)
            return fd >= 0 and self._plain is not None

    def _adopted(self, fd: int, notes: list[str]) -> Chosen | None:
        """What is in the plain pickle; `None` if another run has adopted it meanwhile."""
        if self._plain is None:
            return None
        refuse_to_lose_old(self, may_be_sound=False)
        known = [start for _, start, *_ in self._plain.scan()]
        done = f"adopted the results of {count_files(len(known))} from a plain pickle"
        return Chosen(done, map(functools.partial(self._plain.outcome, fd), known))

    def _sound(self, fd: int, notes: list[str]) -> Chosen:
        return self._adopted(fd, notes) or super()._sound(fd, notes)

    def records(self) -> Iterator[Found]:
        """Every record, in order; raises `CheckpointError` if there is damage between them."""
        with self._opened() as fd:
            if fd < 0:
                return
            self._recognise(fd)
            if self._plain is not None:
                what = "is a plain pickle, which would have to be unpickled"
                raise CheckpointError(self.path, what, "Adopt it first: compact() does that.")
            yield from self._whole(self._scan(fd, self._first))

    def outcomes_at(self, starts: Iterable[int]) -> Iterator[Outcome[Any] | None]:
        """What the records at these places were made of; `None` for one that is not sound."""
        with self._opened() as fd:
            for start in starts:
                yield self._outcome_at(fd, start) if fd >= 0 else None

    def _verify(self, fd: int, findings: list[str]) -> Index:
        if self._plain is None:
            return super()._verify(fd, findings)
        findings.append(
            f"it is a plain pickle with the results of {count_files(len(self._plain.keys))}, and "
            "has no checksums; the next run that has anything to do, or compact(), adopts it"
        )
        return Index()

    def _new_file(self) -> bytes:
        return new_header(os.getpid())

    def _recognise(self, fd: int) -> bool:
        if not is_ours(fd):
            self._plain, self._header = PlainPickle(fd, self.path), type(self)._header
            return False
        self._plain = None
        before, self._header = self._header, read_header(fd, self.path)
        return before.salt == self._header.salt

    def _scan(self, fd: int, start: int) -> RecordScan:
        return Scan(fd, self._header, start) if self._plain is None else self._plain.scan()

    record = staticmethod(record_of)

    def outcome_in(self, record: Encoded) -> Outcome[Any]:
        return outcome_in(record)

    def _complete(self, record: Sequence[Bytes]) -> Sequence[Bytes]:
        return [start_of(self._header, record), *record]

    def _outcome_at(self, fd: int, start: int) -> Outcome[Any] | None:
        if self._plain is not None:
            return self._plain.outcome(fd, start)
        record = read_record(fd, self._header, start)
        if record is None:
            return None
        path, metadata = record
        payload = read_payload(fd, start + metadata.region, metadata)
        return outcome_of(path, metadata, payload) if payload is not None else None

    def _told(self, facts: tuple[Any, ...]) -> tuple[float, int, int]:
        if self._plain is not None:
            return super()._told(facts)
        metadata = Metadata._make(facts)
        return metadata.seconds, metadata.attempts, metadata.length

    def fingerprint(self, path: str) -> Fingerprint:
        with self._reading() as fd:  # without reading the value
            start = self._index.results[path]
            if self._plain is not None:
                return NO_FINGERPRINT
            record = read_record(fd, self._header, start)
        if record is None or record[0] != path:
            raise KeyError(path)
        return record[1].fingerprint

    def _mark_committed(self, fd: int) -> None:
        write_at(fd, COMMITTED, self._commit)

    def _mend(self, fd: int, scan: RecordScan) -> None:
        assert isinstance(scan, Scan)
        for stop in scan.stops[1:]:  # an earlier commit did not reach the disk, but this one's data
            if stop < self._end:
                write_at(fd, COMMITTED, stop)

    def _sign(self, fd: int) -> None:
        if self._plain is None:
            write_at(fd, *pid_field(os.getpid()))

    def _signer(self, fd: int) -> int | None:
        try:
            return read_header(fd, self.path).pid or None
        except CheckpointError:
            return None
