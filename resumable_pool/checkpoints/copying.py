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
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import CheckpointError
from ..records import Outcome, count_files, quoted
from .disk import force, force_folder, replace
from .lock import OLD_FILE, new_name

if TYPE_CHECKING:
    from .base import Checkpoint

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
        results, failures = _fill(new, outcomes)
        counts = {"results": count_files(len(results)), "failures": count_files(len(failures))}
        checkpoint.make_way()
        # On Windows nobody may have it open. One asks before there is a link to it, which could not
        # be removed then.
        replace(checkpoint.file, checkpoint.file)
        notes += [done.format(**counts), _keep_old(checkpoint, results, failures)]
        shutil.copymode(checkpoint.file, new.file)
        replace(new.file, checkpoint.file)
        force_folder(checkpoint.file)
    except BaseException as error:
        for suffix in ("", *checkpoint.side_files):
            _remove(new.file + suffix)
        if isinstance(error, OSError) and error.errno is not None and error.strerror:
            what = f"could not be rewritten, and is as it was: {error.strerror}"
            raise OSError(error.errno, what, checkpoint.path) from error
        raise


def _fill(new: Checkpoint, outcomes: Iterable[Outcome[Any]]) -> tuple[dict[str, int], set[str]]:
    """Returns the checksums of the results by their paths, and the paths of the failures."""
    results: dict[str, int] = {}
    failures: set[str] = set()
    new.open()
    try:
        for outcome in outcomes:
            new.save([outcome])
            if outcome.ok:
                results[outcome.path] = outcome.checksum
            else:
                failures.add(outcome.path)
    finally:
        new.close()
    return results, failures


def _keep_old(checkpoint: Checkpoint, results: dict[str, int], failures: set[str]) -> str:
    """Keep the file, which is to be replaced by one with these, under another name as well. Says
    which, in words."""
    path = checkpoint.file
    old = path + OLD_FILE
    if os.path.lexists(old) and not _is_in(checkpoint, old, results, failures):
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


def _is_in(checkpoint: Checkpoint, old: str, results: dict[str, int], failures: set[str]) -> bool:
    """Whether the file `old` is the checkpoint itself, or all that it has is in these as well."""
    if not os.path.isfile(old):
        return False
    if filecmp.cmp(old, checkpoint.file, shallow=False):
        return True
    older = type(checkpoint)(old)
    try:
        return not older.check() and all(
            results.get(outcome.path) == outcome.checksum
            if outcome.ok
            else outcome.path in results or outcome.path in failures
            for outcome in older.outcomes()
        )
    except (CheckpointError, OSError):
        return False


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


class _Place(NamedTuple):
    """Where an outcome is; of two, the greater one counts."""

    finished_at: float
    source: int
    checksum: int


def merge(target: Checkpoint, *sources: Checkpoint) -> list[str]:
    """Append to `target` what counts of the `sources`, and is not in it.

    A value beats a failure, and what was finished later what was finished before it; of one moment,
    or where nobody knows, what is named later, and the target is named first.

    Returns:
        What was done, a sentence each.

    Raises:
        CheckpointError: one of them is something else, or damaged; nothing was changed.
    """
    results: dict[str, _Place] = {}
    failures: dict[str, _Place] = {}
    differing: set[str] = set()

    def enter(number: int, source: Checkpoint) -> None:
        for outcome in source.outcomes():
            place = _Place(outcome.finished_at, number, outcome.checksum)
            places = results if outcome.ok else failures
            other = places.setdefault(outcome.path, place)
            same = (place.finished_at, place.checksum) == (other.finished_at, other.checksum)
            places[outcome.path] = place if same else max(place, other)
            if place.checksum != other.checksum:
                differing.add(outcome.path)

    for number, source in enumerate(sources, 1):
        enter(number, source)
    notes = target.open()
    try:
        enter(0, target)
        for path in results:
            failures.pop(path, None)
        for number, source in enumerate(sources, 1):
            for outcome in source.outcomes():
                place = (results if outcome.ok else failures).get(outcome.path)
                if place is not None and place.source == number:
                    target.save([outcome])
    finally:
        target.close()
    done = f"merged the results of {count_files(len(results))} and the failures of "
    done += count_files(len(failures))
    if differing:
        done += f"; {len(differing):,} had different results in them, of which the newest counts"
    return [*notes, done]
