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
from collections.abc import Iterable
from typing import Any

from ..between import forks
from ..errors import CheckpointError
from ..records import Outcome
from ..values import Encoder
from . import pickle_record as layout
from .disk import write_at
from .log_file import LogFile


class PickleFile(LogFile):
    """The default checkpoint. See the module's text, and pickle_record.py for the bytes.

    `_commit` is where the STOP of the plain pickle stands.
    """

    _first = layout.FIRST_RECORD
    _terminator = layout.STOP
    _commits = (layout.STOP, layout.COMMITTED)
    _header = layout.Header(b"", 0)
    _new_file = staticmethod(layout.new_header)
    _made_of = staticmethod(layout.outcome_in)

    # A dict that another program has pickled.

    def _is_settled(self) -> bool:
        with self._opened() as fd:
            plain = fd >= 0 and layout.may_be_plain(fd)
        return not plain and super()._is_settled()

    def _begin(self, notes: list[str]) -> bool:
        return not layout.may_be_plain(self._file.fileno()) and super()._begin(notes)

    def _content(self, notes: list[str]) -> tuple[str, Iterable[Outcome[Any]]]:
        fd = self._file.fileno()
        if not layout.may_be_plain(fd):
            return super()._content(notes)
        from .plain_pickle import read_plain  # few need it

        return read_plain(fd, self.path)

    # Our own bytes.

    def _recognise(self, fd: int, findings: list[str] | None = None) -> None:
        try:
            self._header = layout.read_header(fd, self.path)
        except CheckpointError:
            header = None if findings is None else layout.header_of_records(fd)
            if findings is None or header is None:
                raise
            self._header = header
            findings.append("its header is not what was written")

    def _scan(self, fd: int, start: int = _first, committed: int = _first) -> layout.PickleScan:
        return layout.PickleScan(fd, self.path, start, committed, self._header)

    def encoder(self) -> Encoder:
        return Encoder(self.encode, functools.partial(layout.record_of, self._header))

    def _release(self) -> None:
        forks.close(self._file)  # a lock file beside it, where it has none, is somebody else's

    def _sign(self) -> None:
        write_at(self._file.fileno(), *layout.pid_field(os.getpid()))

    def _signer(self, fd: int) -> int | None:
        try:
            return layout.read_header(fd, self.path).pid or None
        except CheckpointError:
            return None
