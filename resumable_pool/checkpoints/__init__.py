"""Checkpoints by their suffix, the contract they fulfil, and several of them in one.

Knows no process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence

from ..files import as_text, check_paths
from ..records import count_files, quoted
from .base import Checkpoint
from .lock import OLD_FILE
from .pickle_file import PickleFile

__all__ = ["Checkpoint", "PickleFile", "checkpoint_at", "merge", "open_checkpoint"]


# Imported where they are needed: not every Python is built with SQLite.
def _sqlite_file(path: str) -> Checkpoint:
    from .sqlite import SqliteFile

    return SqliteFile(path)


def _json_lines(path: str) -> Checkpoint:
    from .json_lines import JsonLines

    return JsonLines(path)


_FORMATS: dict[str, Callable[[str], Checkpoint]] = {
    ".pkl": PickleFile,
    ".pickle": PickleFile,
    ".jsonl": _json_lines,
    ".sqlite": _sqlite_file,
    ".sqlite3": _sqlite_file,
    ".db": _sqlite_file,
}


def checkpoint_at(path: str | os.PathLike[str]) -> Checkpoint:
    """The checkpoint at `path`, whose suffix names its format; the file need not be there.

    Raises:
        TypeError: `path` is no path.
        ValueError: no format has this suffix.
    """
    name = as_text(path, "the checkpoint")
    stem, suffix = os.path.splitext(os.path.normpath(name).lower())
    if suffix.rstrip("-0123456789") == OLD_FILE:  # kept by compact, and as what is in its place
        suffix = os.path.splitext(stem)[1]
    if suffix not in _FORMATS:
        raise ValueError(
            f"checkpoint {quoted(name)}: its suffix names the format, and {suffix!r} is not one of "
            f"{', '.join(_FORMATS)}"
        )
    return _FORMATS[suffix](name)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """The values saved at `path`, for reading: a mapping of path to value, also during a run.

    `dict(open_checkpoint("result.pkl"))` is the same as loading the file with `pickle`, but
    `open_checkpoint` finds the keys without unpickling a value, reads a value only when it is
    asked for it, verifies its checksum, and knows the failures (`.failures()`). It reads all
    formats alike.

    Raises:
        FileNotFoundError: there is no such file; none is made.
        CheckpointError: it is not a checkpoint, or damaged.
        ValueError: no format has this suffix.
    """
    checkpoint = checkpoint_at(path)
    if not os.path.exists(checkpoint.path):
        raise FileNotFoundError(f"there is no checkpoint at {quoted(os.fspath(path))}")
    checkpoint.completed()
    return checkpoint


def merge(out: str | os.PathLike[str], inputs: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Join the checkpoints `inputs`, of the shards of a run for instance, in the one at `out`.

    `out` may be there: then it is the first of them, and what counts of the others is appended to
    it. A result beats a failure, and of several results of one path the newest counts; if they were
    finished at the same moment, the one in the checkpoint that is named last. All have one format;
    nothing is unpickled. If it is killed, some are appended, and merging again appends the rest.

    Returns:
        What was done, a sentence each.

    Raises:
        TypeError: `inputs` is one path, or something in it is none.
        FileNotFoundError: an input is not there.
        ValueError: they are not of one format.
        CheckpointLocked: a run is writing to `out`. Inputs may be in use: they are taken as they
            are now.
        CheckpointError: one of them is something else, or damaged; nothing was changed.
    """
    paths = check_paths(inputs, "inputs must be a list of checkpoints", "an input")
    target, *others = map(checkpoint_at, [out, *paths])
    sources = {target.file: target}
    for other in others:
        if type(other) is not type(target):
            both = f"{quoted(other.path)} and {quoted(target.path)}"
            raise ValueError(f"{both} have different formats: merge takes those of one format")
        if not os.path.exists(other.file):
            raise FileNotFoundError(f"there is no checkpoint at {quoted(other.path)}")
        sources.setdefault(other.file, other)  # merge("all.pkl", "*.pkl")
    return _merge(*sources.values())


def _merge(target: Checkpoint, *sources: Checkpoint) -> list[str]:
    """Append to `target` what counts of the `sources`, and is not in it."""
    # Where the result of a path is that counts, and the failure: when it was finished, its source's
    # number, and its checksum; of two, the greater one.
    places: dict[tuple[str, bool], tuple[float, int, int]] = {}
    differing: set[str] = set()

    def enter(number: int, source: Checkpoint) -> None:
        for outcome in source.outcomes():
            place = (outcome.finished_at, number, outcome.checksum)
            other = places.setdefault((outcome.path, outcome.ok), place)
            if place[2] != other[2]:
                differing.add(outcome.path)
            same = (place[0], place[2]) == (other[0], other[2])
            places[outcome.path, outcome.ok] = place if same else max(place, other)

    for number, source in enumerate(sources, 1):
        enter(number, source)
    notes = target.open()
    with contextlib.closing(target):
        enter(0, target)
        results = [path for path, ok in places if ok]
        for path in results:
            places.pop((path, False), None)
        for number, source in enumerate(sources, 1):
            for outcome in source.outcomes():
                place = places.get((outcome.path, outcome.ok))
                if place is not None and place[1] == number:
                    target.save([outcome])
    counts = count_files(len(results)), count_files(len(places) - len(results))
    done = "merged the results of {} and the failures of {}".format(*counts)
    if differing:
        done += f"; {len(differing):,} had different results in them, of which the newest counts"
    return [*notes, done]
