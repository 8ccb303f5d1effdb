r"""`results.jsonl`: one JSON object a line, in ASCII, for values that are JSON.

    {"path": "in/1.wav", "value": {"words": 7}, "seconds": 0.25, "attempts": 1, "size": 9201,
     "mtime_ns": 1700000000000000000, "finished_at": 1764259200.5, "crc32": "1c291ca3"}  (one line)
    {"path": "in/2.wav", "failure": {"kind": "error", "message": "ValueError: no speech",
     "traceback": "..."}, "seconds": 0.5, ...}

    pandas.read_json("results.jsonl", lines=True).drop_duplicates("path", keep="last")
    jq 'select(has("failure")) | .path' results.jsonl

The last line of a path counts. Lines may be removed with any tool, and files joined with `cat`; a
line that is changed is noticed, by its checksum of everything before it. There is no header, since
every reader would stumble over it; so the writer's process id is in a file beside it.

A value that is not JSON (a set, bytes, NaN, a dict with keys that are not text) is its file's
failure. Tuples become lists, as JSON knows only one kind.

A commit changes the space before `"crc32"` of the last line into a tab. To JSON both are the same;
to us a tab says that everything up to here was on the disk, so that what is not sound before one is
damage, and what is not sound after the last one is what a power cut has left of the last second.

Knows nothing of the runner and of workers, and never decodes a value unless a reader asks for it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from binascii import crc32
from collections.abc import Iterator, Sequence
from typing import Any

from ..records import Fingerprint, Outcome
from ..values import Bytes, Encoder, json_value
from .base import foreign, outcome_with, texts_of
from .disk import read_at, write_at
from .log_file import LogFile
from .log_reader import Found, Scan

_START = b'{"path": "'
_TEXT = rb'"[ !#-\[\]-~]*(?:\\(?:["\\/bfnrt]|u[0-9a-f]{4})[ !#-\[\]-~]*)*"'
_NUMBER = rb"-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[-+]?[0-9]{1,2})?"
_LINE = re.compile(
    rb'\{"path": (?P<path>%b), "(?P<kind>value|failure)": (?P<content>.*), '
    rb'"seconds": (?P<seconds>%b), "attempts": (?P<attempts>[0-9]{1,20}), '
    rb'"size": (?P<size>-?[0-9]{1,20}), "mtime_ns": (?P<mtime_ns>-?[0-9]{1,20}), '
    rb'"finished_at": (?P<finished_at>%b),(?P<mark>[ \t])"crc32": "(?P<crc32>[0-9a-f]{8})"\}\n?'
    % (_TEXT, _NUMBER, _NUMBER),
    re.DOTALL,
)
# What a line begins and ends with, also where its line end is lost, and something else around it;
# in its value the same may stand as well, so of the beginnings before an end a few are tried.
_BEGIN, _END = re.compile(rb'\{"path": "'), re.compile(rb'"crc32": "[0-9a-f]{8}"\}\n?')
_BEGINNINGS_TRIED = 8
_COMMITTED = b"\t"
_MARK_FROM_END = len(b' "crc32": "01234567"}\n')

# Where every second line was edited, so much is read for each.
_READ_SIZE = 1 << 16


class JsonLines(LogFile):
    """A checkpoint that other programs and people read. See the module's text."""

    _commits = (b" ", _COMMITTED)
    encode = staticmethod(json_value)
    _made_of = staticmethod(lambda record: outcome_of(bytes(record)))

    def encoder(self) -> Encoder:
        return Encoder(self.encode, record_of)

    def _scan(self, fd: int, start: int = 0, committed: int = 0) -> LineScan:
        return LineScan(fd, self.path, start, committed)

    def _ends_well(self, fd: int, end: int) -> bool:
        return read_at(fd, 3, max(0, end - 1)) in ((b"\n", b"}\n") if end else (b"",))

    def _end_here(self, fd: int) -> None:
        if self._end and read_at(fd, 1, self._end - 1) != b"\n":  # a text editor has removed it
            write_at(fd, b"\n", self._end)
            self._end += 1
        super()._end_here(fd)

    def _mark(self) -> int:
        return self._end - _MARK_FROM_END


def record_of(outcome: tuple[Any, ...]) -> Sequence[Bytes]:
    """The line of an outcome, in parts."""
    path, pickled, _, failure, seconds, attempts, found, finished_at = outcome
    kind, content = ("value", pickled or b"") if failure is None else ("failure", texts_of(failure))
    start = f'{{"path": {json.dumps(path)}, "{kind}": '.encode("ascii")
    end = (
        f', "seconds": {round(seconds, 6)}, "attempts": {attempts}, '
        f'"size": {found.size}, "mtime_ns": {found.mtime_ns}, "finished_at": {finished_at}'
    ).encode("ascii")
    checksum = crc32(end, crc32(content, crc32(start)))
    return [start, content, end, b', "crc32": "%08x"}\n' % checksum]


def outcome_of(line: bytes) -> Outcome[Any] | None:
    """What a line was made of; `None` if it is none of ours, or not as it was written."""
    match = _sound(line)
    if match is None:
        return None
    facts = (
        float(match["seconds"]),
        int(match["attempts"]),
        Fingerprint(int(match["size"]), int(match["mtime_ns"])),
        float(match["finished_at"]),
    )
    content, failed = match["content"], match["kind"] == b"failure"
    return outcome_with(json.loads(match["path"]), content, crc32(content), failed, *facts)


def _sound(line: bytes) -> re.Match[bytes] | None:
    if (match := _LINE.fullmatch(line)) is not None:
        with memoryview(line) as view:
            checksum = crc32(view[: match.start("mark") - 1])
        return match if checksum == int(match["crc32"], 16) else None
    return None


class LineScan(Scan):
    """Finds the lines of a `.jsonl`."""

    _counted = 0, 1  # where a line starts, and its number, of the last one that was told

    def __iter__(self) -> Iterator[Found]:
        for end, line, match in self._lines(self.end):
            if match is not None:
                self.end = end
                if match["mark"] == _COMMITTED:
                    self._committed = end
                size = match.end("content") - match.start("content")
                facts = (float(match["seconds"]), int(match["attempts"]), size)
                failed = match["kind"] == b"failure"
                yield Found([json.loads(match["path"])], [end - len(line)], [facts], failed)
            elif line != b"\n":  # an empty one harms nobody
                return

    def outcome_at(self, start: int) -> Outcome[Any] | None:
        with open(self._fd, "rb", closefd=False) as file:
            file.seek(start)
            line = file.readline()
        # It may have lost its end, see `_parts`.
        return outcome_of(line) or outcome_of(next(_parts(line), (b"", None))[0])

    def skip(self) -> tuple[list[str], bool]:
        between: list[str] = []
        torn = ours = False
        for end, line, match in self._lines(self.end):
            start = end - len(line)
            if match is not None:
                self.end = start
                return between, True
            whole = _is_whole(line)
            if whole:  # what is left of a line of ours is not: somebody else has written it
                self._committed = end
            torn = not whole and not line.endswith(b"\n")
            ours |= bool(_LINE.fullmatch(line)) or (torn and line.startswith(_START[: len(line)]))
            if line != b"\n":
                counted, number = self._counted
                number += sum(each.count(b"\n") for each in self._raw(counted, start))
                self._counted = start, number
                path = re.match(rb'\{"path": (%b)' % _TEXT, line)
                whose = f", perhaps of {path[1].decode('ascii')}" if path else ""
                between.append(f"line {number:,} is not what was written{whose}")
        if self.end == 0 and self.size and not ours:  # not a line, and no beginning of one
            raise foreign(self._path)
        return between[:-1] if torn else between, False

    def _lines(self, start: int) -> Iterator[tuple[int, bytes, re.Match[bytes] | None]]:
        """The lines: where each ends, and what is in it, if it is sound. One that has lost its end
        is told apart from what was written behind it."""
        for line in self._raw(start, self.size):
            match = _sound(line)
            for part, found in [(line, match)] if match else _parts(line):
                start += len(part)
                yield start, part, found

    def _raw(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            # Opened anew, since others read through the same descriptor in between.
            with open(self._fd, "rb", closefd=False) as file:
                file.seek(start)
                lines = file.readlines(min(_READ_SIZE, end - start))
            if not lines:  # it was cut meanwhile
                return
            for line in lines:
                if start < end:
                    yield line[: end - start]
                start += len(line)


def _parts(line: bytes) -> Iterator[tuple[bytes, re.Match[bytes] | None]]:
    """The sound lines that are in one that is not, and what stands around them."""
    taken = 0
    for end in _END.finditer(line):
        begins = itertools.islice(_BEGIN.finditer(line, taken, end.start()), _BEGINNINGS_TRIED)
        for begin in begins:
            part = line[begin.start() : end.end()]
            if (match := _sound(part)) is not None:
                if taken < begin.start():
                    yield line[taken : begin.start()], None
                yield part, match
                taken = end.end()
                break
    if taken < len(line):
        yield line[taken:], None


def _is_whole(line: bytes) -> bool:
    """Whether it is JSON."""
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(line)
        return True
    return False
