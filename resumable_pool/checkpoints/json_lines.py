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

import json
import os
import re
from binascii import crc32
from collections.abc import Iterator, Sequence
from typing import Any

from ..records import Failure, Fingerprint, Outcome
from ..values import Bytes, Encoded, json_value
from .base import damaged, foreign, no_record
from .disk import read_at, write_at
from .lock import sign, signer, unsign
from .log_file import AppendFile
from .log_reader import Found, Index

_START = b'{"path": "'
_LINE = re.compile(
    rb'\{"path": ("[^"\\]*(?:\\.[^"\\]*)*"), "(value|failure)": (.*), "seconds": ([-+.0-9e]+), '
    rb'"attempts": ([0-9]+), "size": (-?[0-9]+), "mtime_ns": (-?[0-9]+), '
    rb'"finished_at": ([-+.0-9e]+),([ \t])"crc32": "([0-9a-f]{8})"\}\n',
    re.DOTALL,
)
_PATH, _KIND, _CONTENT, _SECONDS, _ATTEMPTS, _SIZE, _MTIME, _FINISHED, _MARK, _CHECKSUM = range(
    1, 11
)
_COMMITTED = b"\t"
_MARK_FROM_END = len(b' "crc32": "01234567"}\n')

_BLOCK_SIZE = 1 << 20


class JsonLines(AppendFile):
    """A checkpoint that other programs and people read. See the module's text."""

    @staticmethod
    def encode(value: Any) -> bytes:
        return json_value(value)

    @staticmethod
    def record(outcome: Outcome[Any]) -> Sequence[Bytes]:
        return record_of(outcome)

    def outcome_in(self, record: Encoded) -> Outcome[Any]:
        outcome = outcome_of(bytes(record))
        if outcome is None:
            raise no_record()
        return outcome

    def _new_file(self) -> bytes:
        return b""

    def _complete(self, record: Sequence[Bytes]) -> Sequence[Bytes]:
        if record[0][: len(_START)] != _START or record[-1][-1:] != b"\n":
            raise no_record()
        return record

    def _recognise(self, fd: int) -> bool:
        return True  # there is no header, so it is for the scan to say

    def _scan(self, fd: int, start: int) -> LineScan:
        return LineScan(fd, start)

    def _outcome_at(self, fd: int, start: int) -> Outcome[Any] | None:
        with open(fd, "rb", closefd=False) as file:
            file.seek(start)
            return outcome_of(file.readline())

    def _verify(self, fd: int, findings: list[str]) -> Index:
        LineScan(fd, 0).refuse_foreign(self.path)
        return super()._verify(fd, findings)

    def _mark_committed(self, fd: int) -> None:
        write_at(fd, _COMMITTED, self._end - _MARK_FROM_END)

    def _sign(self, fd: int) -> None:
        sign(self.path)

    def _signer(self, fd: int) -> int | None:
        return signer(self.path)

    def _release(self) -> None:
        unsign(self.path)
        super()._release()


def record_of(outcome: Outcome[Any]) -> Sequence[Bytes]:
    """The line of `outcome`, in parts."""
    kind, content = "value", outcome.pickled
    if outcome.failure is not None:
        failure = outcome.failure
        facts = {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}
        kind, content = "failure", json.dumps(facts).encode("ascii")
    start = f'{{"path": {json.dumps(outcome.path)}, "{kind}": '.encode("ascii")
    end = (
        f', "seconds": {round(outcome.seconds, 6)}, "attempts": {outcome.attempts}, '
        f'"size": {outcome.fingerprint.size}, "mtime_ns": {outcome.fingerprint.mtime_ns}, '
        f'"finished_at": {outcome.finished_at}'
    ).encode("ascii")
    checksum = crc32(end, crc32(content or b"", crc32(start)))
    return [start, content or b"", end, b', "crc32": "%08x"}\n' % checksum]


def outcome_of(line: bytes) -> Outcome[Any] | None:
    """What a line was made of; `None` if it is none of ours, or not as it was written."""
    match = _sound(line)
    if match is None:
        return None
    path, content = json.loads(match[_PATH]), match[_CONTENT]
    seconds, attempts = float(match[_SECONDS]), int(match[_ATTEMPTS])
    fingerprint = Fingerprint(int(match[_SIZE]), int(match[_MTIME]))
    told = (seconds, attempts, fingerprint, float(match[_FINISHED]))
    if match[_KIND] == b"value":
        return Outcome(path, content, crc32(content), None, *told)
    facts = json.loads(content)
    failure = Failure(path, facts["kind"], facts["message"], facts["traceback"], attempts, seconds)
    return Outcome(path, None, 0, failure, *told)


def _sound(line: bytes) -> re.Match[bytes] | None:
    match = _LINE.fullmatch(line)
    if match is not None:
        with memoryview(line) as view:
            checksum = crc32(view[: match.start(_MARK) - 1])
        if checksum == int(match[_CHECKSUM], 16):
            return match
    return None


class LineScan:
    """One pass over the lines of a file, from `start` on, as far as they are sound."""

    def __init__(self, fd: int, start: int) -> None:
        self.end = self.committed = start
        self._fd = fd
        self._size = os.fstat(fd).st_size  # what is appended meanwhile is for the next scan

    def __iter__(self) -> Iterator[Found]:
        for line in self._lines_from(self.end):
            match = _sound(line)
            if match is None:
                return
            start, self.end = self.end, self.end + len(line)
            if match[_MARK] == _COMMITTED:
                self.committed = self.end
            path, failed = json.loads(match[_PATH]), match[_KIND] == b"failure"
            size = match.end(_CONTENT) - match.start(_CONTENT)
            yield path, start, failed, True, (float(match[_SECONDS]), int(match[_ATTEMPTS]), size)

    @property
    def unsettled(self) -> bool:
        """Whether something stands behind the last sound line."""
        return self._size > self.end

    def refuse_foreign(self, path: str) -> None:
        """Raise `CheckpointError` if there are lines, but none of ours, whole or torn."""
        ours = self._size == 0
        for line in self._lines_from(0):
            torn = not line.endswith(b"\n") and _START.startswith(line[: len(_START)])
            ours = _sound(line) is not None or (torn and not _is_whole(line))
            if ours or not line.endswith(b"\n"):
                break
        if not ours:
            raise foreign(path)

    def refuse_damage(self, path: str) -> None:
        """Raise `CheckpointError` unless all that stands behind `end` was never committed."""
        if self.end == 0:
            self.refuse_foreign(path)
        for line in self._lines_from(self.end):
            match = _sound(line)
            # What is left of a line of ours is not whole; a whole one somebody else has written.
            if _is_whole(line) if match is None else match[_MARK] == _COMMITTED:
                raise damaged(path, f"line {self._line_number():,} is not what was written")

    def skip_damage(self) -> str | None:
        """Go on behind the next line. Says which; `None` if there is no whole one."""
        line = next(self._lines_from(self.end), b"")
        if not line.endswith(b"\n"):
            return None
        number = self._line_number()
        self.end += len(line)
        path = re.match(rb'\{"path": ("[^"\\]*(?:\\.[^"\\]*)*")', line)
        whose = f", perhaps of {path[1].decode('ascii', 'replace')}" if path else ""
        return f"line {number:,} is not what was written{whose}"

    def _lines_from(self, start: int) -> Iterator[bytes]:
        """The lines, the last one perhaps without its end. Whatever else is read from the file in
        between, through the same descriptor, changes nothing."""
        parts: list[bytes] = []  # of a line that is longer than a block
        for block in self._blocks(start, self._size):
            *whole, rest = block.split(b"\n")
            for line in whole:
                yield b"".join([*parts, line, b"\n"])
                parts.clear()
            parts.append(rest)
        if any(parts):
            yield b"".join(parts)

    def _blocks(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            block = read_at(self._fd, min(_BLOCK_SIZE, end - start), start)
            if not block:  # it was cut meanwhile
                return
            yield block
            start += len(block)

    def _line_number(self) -> int:
        return 1 + sum(block.count(b"\n") for block in self._blocks(0, self.end))


def _is_whole(line: bytes) -> bool:
    """Whether it is JSON, and not one of our lines without its end."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return _sound(line.removesuffix(b"\n") + b"\n") is None
