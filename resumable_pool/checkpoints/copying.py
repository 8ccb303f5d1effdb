"""Outcomes from one checkpoint into another: written anew and put in its place, or appended.

Whatever rewrites a checkpoint does it by `rewrite`: compacting, leaving out what is damaged, and
converting a plain pickle. Knows no format: outcomes go in and out through the contract.
"""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import shutil
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..records import Outcome, count_files, quoted
from .disk import force, force_folder, replace
from .lock import OLD_FILE, new_name

if TYPE_CHECKING:
    from .base import Checkpoint

# What is in a new checkpoint: checksums, by path and whether it is a result.
Written = dict[tuple[str, bool], int]

REWRITTEN = "rewritten with the results of {results} and the failures of {failures}"


def rewrite(
    checkpoint: Checkpoint, outcomes: Iterable[Outcome[Any]], done: str, notes: list[str]
) -> None:
    """Put a new checkpoint with these outcomes in the place of one, which is kept beside it.

    At every moment there is a whole file at its path. The caller holds its lock.

    Args:
        checkpoint: the old one, of the same class as the new one.
        outcomes: of one path its result before its failure.
        done: a sentence for `notes`, with `{results}` and `{failures}` in it.
        notes: gets what was done, and where the old one is.

    Raises:
        OSError: the disk is full, say. Nothing was changed.
    """
    # Where the file itself is: what is put in place of a link would not be in place of the file.
    new = type(checkpoint)(new_name(checkpoint.file))
    try:
        written = _fill(new, outcomes)
        results = sum(ok for _, ok in written)
        checkpoint.make_way()
        # On Windows nobody may have it open. One asks before there is a link to it, which could not
        # be removed then.
        replace(checkpoint.file, checkpoint.file)
        counts = count_files(results), count_files(len(written) - results)
        notes.append(done.format(results=counts[0], failures=counts[1]))
        notes.append(_keep_old(checkpoint, written))
        shutil.copymode(checkpoint.file, new.file)
        replace(new.file, checkpoint.file)
        force_folder(checkpoint.file)
    except BaseException as error:
        discard(new)
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            what = f"could not be rewritten, and is as it was: {error.strerror}"
            raise OSError(error.errno, what, checkpoint.path) from error
        raise


def _fill(new: Checkpoint, outcomes: Iterable[Outcome[Any]]) -> Written:
    """Save them in it. Returns what they are."""
    written: Written = {}
    new.open()
    with contextlib.closing(new):
        for outcome in outcomes:
            new.save([outcome])
            written[outcome.path, outcome.ok] = outcome.checksum
    return written


def _keep_old(checkpoint: Checkpoint, written: Written) -> str:
    """Keep the file, which is to be replaced by one with these, under another name as well. Says
    which, in words."""
    path = checkpoint.file
    old = path + OLD_FILE
    if os.path.lexists(old) and not _is_in(checkpoint, old, written):
        numbered = (f"{old}-{number}" for number in itertools.count(2))
        old = next(name for name in numbered if not os.path.lexists(name))
    copy = new_name(path)
    try:
        try:
            os.link(path, copy)
        except OSError:  # a file system without links
            shutil.copy2(path, copy)
            with open(copy, "rb+") as file:
                force(file.fileno())
        replace(copy, old)
    finally:
        _remove(copy)  # it is still there if both were one file, since somebody was killed
    force_folder(path)
    return f"what was there before is kept as {quoted(old)}"


def _is_in(checkpoint: Checkpoint, old: str, written: Written) -> bool:
    """Whether the file `old` is the checkpoint itself, or all that it has is in these as well."""
    older = type(checkpoint)(old)
    try:
        if filecmp.cmp(old, checkpoint.file, shallow=False):
            return True
        return not older.check() and all(
            written.get((outcome.path, outcome.ok)) == outcome.checksum
            or (not outcome.ok and (outcome.path, True) in written)
            for outcome in older.outcomes()
        )
    except (CheckpointError, OSError):
        return False


def discard(checkpoint: Checkpoint) -> None:
    """Remove it, and what it has beside it."""
    for suffix in ("", *checkpoint.side_files):
        _remove(checkpoint.file + suffix)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def merge(target: Checkpoint, *sources: Checkpoint) -> list[str]:
    """Append to `target` what counts of the `sources`, and is not in it.

    A value beats a failure, and what was finished later what was finished before it; of one moment,
    or where nobody knows, what is named later, and the target is named first.

    Returns:
        What was done, a sentence each.

    Raises:
        CheckpointError: one of them is something else, or damaged; nothing was changed.
    """
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
