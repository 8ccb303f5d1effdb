"""What the tests of checkpoints share: outcomes made here, and a plain reader."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from binascii import crc32
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import resumable_pool
from resumable_pool.checkpoints import Checkpoint, checkpoint_at
from resumable_pool.checkpoints.disk import read_at
from resumable_pool.checkpoints.pickle_record import METADATA, Metadata
from resumable_pool.records import Failure, Fingerprint, Outcome
from resumable_pool.values import pickle_value

FINGERPRINT = Fingerprint(size=1234, mtime_ns=1_700_000_000_000_000_001)
SUFFIXES = [".pkl", ".jsonl", ".sqlite"]  # one of each format
PATIENCE_SECONDS = 60  # for another process; no test waits for it to pass


FINISHED_AT = 1_764_259_200.123_456_7


def pickled_result(path: str, pickled: bytes, at: float = FINISHED_AT) -> Outcome[Any]:
    return Outcome(path, pickled, crc32(pickled), None, 0.25, 1, FINGERPRINT, at)


def result(
    path: str,
    value: Any,
    encode: Callable[[Any], bytes] = pickle_value,
    at: float = FINISHED_AT,
) -> Outcome[Any]:
    return pickled_result(path, encode(value), at)


def failed(path: str, message: str = "ValueError: no", at: float = FINISHED_AT) -> Outcome[Any]:
    failure = Failure(path, "error", message, "Traceback: here", 2, 0.5)
    return Outcome(path, None, 0, failure, 0.5, 2, FINGERPRINT, at)


def metadata_at(fd: int, start: int) -> Metadata:
    """Those of the record of a .pkl that starts there."""
    return Metadata._make(METADATA.unpack(read_at(fd, METADATA.size, start)))


def plain(path: Path) -> Any:
    """What somebody without this library reads."""
    with open(path, "rb") as file:
        return pickle.load(file)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    checkpoint: Checkpoint = checkpoint_at(path)
    checkpoint.open()
    try:
        yield checkpoint
    finally:
        checkpoint.close()


def write(path: Path, *outcomes: Outcome[Any]) -> None:
    """A closed checkpoint with these outcomes, each in a group of its own."""
    with writing(path) as checkpoint:
        for outcome in outcomes:
            (checkpoint.save if outcome.ok else checkpoint.save_failures)([outcome])
            checkpoint.sync()


def write_together(path: Path, *outcomes: Outcome[Any]) -> None:
    """The same in one group, or two, so that the disk is waited for once however many there are."""
    with writing(path) as checkpoint:
        checkpoint.save([outcome for outcome in outcomes if outcome.ok])
        checkpoint.save_failures([outcome for outcome in outcomes if not outcome.ok])


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Another Python that runs `code`, with pipes for stdin and stdout."""
    root = str(Path(resumable_pool.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "result.pkl"
