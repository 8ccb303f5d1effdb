"""A checkpoint written anew beside the old one, and put in its place in one step.

Knows no format: outcomes go in through the contract. The caller holds the old one's lock.
"""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Iterable
from typing import Any

from ..errors import CheckpointError
from ..records import Outcome, count_files, quoted
from .base import OLD_FILE, Checkpoint
from .disk import force_folder, replace
from .lock import new_name


def write_beside(checkpoint: Checkpoint, outcomes: Iterable[Outcome[Any]]) -> str:
    """A new checkpoint of the same class with these outcomes, forced to the disk: its name."""
    # Where the file itself is: what is put in place of a link would not be in place of the file.
    new = type(checkpoint)(new_name(os.path.realpath(checkpoint.path)))
    try:
        new.open()
        try:
            for outcome in outcomes:
                (new.save if outcome.ok else new.save_failures)([outcome])
        finally:
            new.close()
    except BaseException:
        for suffix in ("", *checkpoint.side_files):
            _remove(new.path + suffix)
        raise
    return new.path


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def results_and_failures(results: int, failures: int) -> str:
    """How many there are, in words."""
    return f"the results of {count_files(results)} and the failures of {count_files(failures)}"


def _keep_old(path: str) -> str:
    """Keep the file at `path`, which is to be replaced, also under another name. Says which, in
    words."""
    old = path + OLD_FILE
    copy = new_name(path)
    try:
        try:  # at every moment there is a whole file at `path`
            os.link(path, copy)
        except OSError:  # a file system without links
            shutil.copy2(path, copy)
        replace(copy, old)
    finally:
        _remove(copy)  # it is still there if both were one file, since somebody was killed
    return f"what was there before is kept as {quoted(old)}"


def refuse_to_lose_old(checkpoint: Checkpoint, may_be_sound: bool = True) -> None:
    """Raise `CheckpointError` if `keep_old` would take the place of a file that may be all that is
    left of something: a damaged checkpoint, a pickle that was adopted, or who knows what.

    Args:
        may_be_sound: a sound checkpoint may be replaced: what it had, its successor has.
    """
    path = os.path.realpath(checkpoint.path)
    old = path + OLD_FILE
    if not os.path.lexists(old):
        return
    if os.path.isfile(old):
        sound = may_be_sound and not type(checkpoint)(old).check()
        if sound or filecmp.cmp(old, path, shallow=False):
            return
    raise CheckpointError(
        path,
        f"would be kept as {quoted(old)}, but there is another file already, which may be worth "
        "keeping",
        "Move that one away, and try again.",
    )


def put_in_place(new: str, path: str, keeping_old: bool = True) -> list[str]:
    """Make `new` the file at `path`, or, if that cannot be, as if it had never been. Says what has
    become of the old one, in words, if that is to be kept."""
    path = os.path.realpath(path)
    try:
        replace(path, path)  # if anybody has it open, on Windows: before there is a link to it
        notes = [_keep_old(path)] if keeping_old else []
        shutil.copymode(path, new)
        replace(new, path)
    except BaseException:
        _remove(new)
        raise
    force_folder(path)
    return notes
