"""Which files are to do, and why: the files that there are, against what the checkpoint has.

Knows no process. Asks the disk only for what an option needs to know: sizes, times of change.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..checkpoints import Checkpoint
from ..files import fingerprint
from ..options import Choices
from ..records import NO_FINGERPRINT, count_files, quoted, tally


class Plan(NamedTuple):
    """What stands, and what is to do. `str` of it says why files are processed.

    Attributes:
        to_do: the paths to process, in the order in which to deal them.
        done: how many files have a result that stands.
        failed: the paths that stand as failed, in path order.
        left: how many of those are left alone.
        changed: how many have a result, and are to do again because they have changed since.
        new: how many the checkpoint has nothing of.
        sizes: of the paths to do, in bytes, where they were asked for.
        advice: what a person must know who expects to find results: that those of other paths are
            there, which seem to mean these files. Usually nothing.
    """

    to_do: Sequence[str]
    done: int
    failed: Sequence[str]
    left: int
    changed: int
    new: int
    sizes: Mapping[str, int] = {}
    advice: Sequence[str] = ()

    @property
    def total(self) -> int:
        """How many files there are."""
        return self.done + len(self.failed) + self.changed + self.new

    def __str__(self) -> str:
        return tally(
            self.total,
            (self.done, "done before"),
            (len(self.failed) - self.left, "failed before (tried again)"),
            (self.left, "failed before (left alone)"),
            (self.changed, "changed"),
            (self.new, "new"),
        )


def make_plan(
    files: list[str],
    checkpoint: Checkpoint,
    choices: Choices,
    saved_elsewhere: Collection[str] | None = None,
) -> Plan:
    """What is to do of `files`, which are sorted.

    A file that failed is not done, even if it has a result from before it changed; but it is done
    if it is `saved_elsewhere`, which takes the place of the checkpoint's results.

    Raises:
        CheckpointError: the checkpoint is something else, or damaged.
    """
    completed, standing = checkpoint.completed(), {*checkpoint.failures()}
    if saved_elsewhere is not None:
        completed = saved_elsewhere
        standing.difference_update(completed)
    failed = [path for path in files if path in standing] if standing else []
    new = [path for path in files if path not in completed and path not in standing]
    changed = []
    if choices.rerun_changed:
        changed = [
            path
            for path in files
            if path in completed and path not in standing and _has_changed(path, checkpoint)
        ]
    again = failed if choices.retry_failed else []
    to_do = sorted([*new, *changed, *again])
    sizes = {}
    if choices.largest_first:
        sizes = {path: max(fingerprint(path).size, 0) for path in to_do}
        to_do.sort(key=sizes.__getitem__, reverse=True)
    return Plan(
        to_do=to_do,
        done=len(files) - len(failed) - len(changed) - len(new),
        failed=failed,
        left=len(failed) - len(again),
        changed=len(changed),
        new=len(new),
        sizes=sizes,
        advice=[*_advice(files, completed)] if completed and len(new) == len(files) else (),
    )


def _advice(files: list[str], completed: Collection[str]) -> Iterator[str]:
    """The classic mistakes: results under base names alone, or under absolute paths and now
    relative ones."""
    by_name = {os.path.basename(path): path for path in completed}
    meant = [(path, by_name.get(os.path.basename(path))) for path in files]
    pairs = [(path, key) for path, key in meant if key is not None and _is_end(path, key)]
    if pairs:
        path, key = pairs[0]
        yield (
            f"none of the {count_files(len(files))} has a result under its path, but "
            f"{len(pairs):,} seem to have one under another, {quoted(path)} under {quoted(key)}: "
            "all are processed anew. To keep those results, stop, and give them these paths as "
            "keys, or run with a pattern that finds the files under the old ones"
        )


def _is_end(one: str, other: str) -> bool:
    """Whether one of two paths is the end of the other, from a folder on."""
    short, long = sorted((one, other), key=len)
    return long.endswith(f"/{short}")


def _has_changed(path: str, checkpoint: Checkpoint) -> bool:
    """Whether the file is not as it was when it was processed, as far as that is known."""
    try:
        before = checkpoint.fingerprint(path)
    except KeyError:  # it is damaged, or saved elsewhere
        return path in checkpoint.completed()
    return before not in (NO_FINGERPRINT, fingerprint(path))
