"""`result.pkl`: saving by appending to a file that is a plain pickle of a dict at every instant.

Appending, while `.` is the STOP at which `pickle.load` ends and `C` the first byte of a record:

    header  record  record .                                     as it was
    header  record  record .new record  new record .             append: written behind the STOP
    header  record  record Cnew record  new record .             commit: that one byte is changed

The first step leaves the old pickle as it is, however much of it reaches the file, so a kill at any
point does no harm. Between the two the data are forced to the disk, so a power cut does none. One
byte is written by any system at once or not at all. (Writing over the STOP in the first step saves
a system call, and breaks the file in one of four kills in the middle of a large value.)

Knows nothing of the runner and of workers, and never unpickles a value unless a reader asks for it.
"""

from __future__ import annotations

import os

from ..errors import CheckpointError
from ..records import Fingerprint, Outcome
from .append_file import AppendFile
from .disk import write_at
from .indexed_file import RecordScan
from .pickle_layout import (
    COMMITTED,
    FIRST_RECORD,
    STOP,
    Header,
    decode_failure,
    encode,
    new_header,
    pid_field,
    read_header,
    read_payload,
)
from .pickle_scan import Scan, read_record


class PickleFile(AppendFile):
    """The default checkpoint. See the module's text, and pickle_layout.py for the bytes.

    `_commit` is where the STOP of the plain pickle stands.
    """

    _first = FIRST_RECORD
    _terminator = STOP
    _header = Header(b"", 0)

    def _new_file(self) -> bytes:
        return new_header(os.getpid())

    def _recognise(self, fd: int) -> bool:
        before, self._header = self._header, read_header(fd, self.path)
        return before.salt == self._header.salt

    def _scan(self, fd: int, start: int) -> Scan:
        return Scan(fd, self._header, start)

    def _encode(self, outcome: Outcome) -> bytes:
        return encode(self._header, outcome)

    def _outcome_at(self, fd: int, start: int) -> Outcome | None:
        record = read_record(fd, self._header, start)
        payload = read_payload(fd, record) if record is not None else None
        if record is None or payload is None:
            return None
        facts = (record.seconds, record.attempts, record.fingerprint)
        if record.failed:
            return Outcome(record.path, None, 0, decode_failure(record, payload), *facts)
        return Outcome(record.path, payload, record.checksum, None, *facts)

    def fingerprint(self, path: str) -> Fingerprint:
        with self._reading() as fd:  # without reading the value
            record = read_record(fd, self._header, self._index.results[path])
        if record is None or record.path != path:
            raise KeyError(path)
        return record.fingerprint

    def _mark_committed(self, fd: int) -> None:
        write_at(fd, COMMITTED, self._commit)

    def _mend(self, fd: int, scan: RecordScan) -> None:
        assert isinstance(scan, Scan)
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
