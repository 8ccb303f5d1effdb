"""Which files are to do, and why: the files that there are, against what the checkpoint has.

Knows no process. Asks the disk only for what an option needs to know: sizes, times of change.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import takewhile
from typing import NamedTuple

from ..checkpoints import Checkpoint
from ..files import fingerprint
from ..options import Options
from ..records import Failure, Fingerprint, count_files, from_here, quoted, tally, typed


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
        failures: what is known of those that failed, and more.
    """

    to_do: Sequence[str]
    done: int
    failed: Sequence[str]
    left: int
    changed: int
    new: int
    sizes: Mapping[str, int] = {}
    advice: Sequence[str] = ()
    failures: Mapping[str, Failure] = {}

    def killed(self) -> set[str]:
        """The paths to do again whose workers the system has killed: those that failed are read."""
        failures = ((path, self.failures.get(path)) for path in self.failed if not self.left)
        return {path for path, failure in failures if failure is not None and failure.was_killed}

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
    options: Options,
    saved_elsewhere: Collection[str] | None = None,
) -> Plan:
    """What is to do of `files`, in their order.

    A file that failed is not done, even if it has a result from before it changed; but it is done
    if it is `saved_elsewhere`, which takes the place of the checkpoint's results.

    Raises:
        CheckpointError: the checkpoint is something else, or damaged.
    """
    completed, failures = checkpoint.completed(), checkpoint.failures()
    standing = {*failures}
    if saved_elsewhere is not None:
        completed = saved_elsewhere
        standing.difference_update(completed)
    failed = [path for path in files if path in standing] if standing else []
    new = files
    if completed or standing:
        new = [path for path in files if path not in completed and path not in standing]
    looked_at = files if options.rerun_changed else ()
    old = [path for path in looked_at if path in completed and path not in standing]
    changed = _changed(old, checkpoint) if old else []
    again = failed if options.retry_failed else []
    to_do = new
    if changed or again:
        wanted = {*new, *changed, *again}
        to_do = [path for path in files if path in wanted]
    sizes = {}
    if options.largest_first:
        sizes = {path: max(fingerprint(path).size, 0) for path in to_do}
        to_do = sorted(to_do, key=sizes.__getitem__, reverse=True)
    done = len(files) - len(failed) - len(changed) - len(new)
    more = len(completed) > done + len(changed)  # results than files that have one
    return Plan(
        to_do=to_do,
        done=done,
        failed=failed,
        left=len(failed) - len(again),
        changed=len(changed),
        new=len(new),
        sizes=sizes,
        advice=[*_advice(files, new, completed, checkpoint)] if new and more else (),
        failures=failures,
    )


# So many files tell where a folder has gone, and so many tell whether they are the same ones.
_TELLING, _COMPARED = 100, 20


def _advice(
    files: list[str], new: list[str], completed: Collection[str], checkpoint: Checkpoint
) -> Iterator[str]:
    """Folders that were renamed, moved, or named in another way: files without a result that are
    called like those of results whose files are not there."""
    gone = {*completed}.difference(files)
    named: dict[str, list[str]] = {}
    for key in gone:
        named.setdefault(os.path.basename(key), []).append(key)
    moves = Counter(
        _starts(key, path)
        for path in new[:_TELLING]
        for key in named.get(os.path.basename(path), ())[:_TELLING]
    ).most_common(2)
    if not moves or (len(moves) == 2 and moves[0][1] == moves[1][1]):
        return  # nobody can tell which folder has become which
    before, now = moves[0][0]
    starting = [path for path in new if path.startswith(now)]
    pairs = [(key, path) for path in starting if (key := before + path[len(now) :]) in gone]
    same = [_seem_the_same(key, path, checkpoint) for key, path in pairs[:_COMPARED]]
    if 2 * len(pairs) < min(len(new), len(gone)) or 2 * sum(same) < len(same):
        return
    key, path = pairs[0]
    yield (
        f"{len(pairs):,} of the {count_files(len(new))} without a result have the same names as "
        f"files that have one, {quoted(path)} and {quoted(key)}. If they are the same files, in a "
        "folder that was moved or renamed, stop now and keep their results with: python -m "
        f"resumable_pool move {typed(from_here(checkpoint.path))} {typed(before)} {typed(now)}. "
        "Otherwise they are all processed"
    )


def _starts(key: str, path: str) -> tuple[str, str]:
    """What differs of two paths that end alike: the folders with which they start."""
    ends = zip(reversed(key.split("/")), reversed(path.split("/")), strict=False)
    same = "/".join(name for name, other in takewhile(lambda names: names[0] == names[1], ends))
    return key[: len(key) - len(same)], path[: len(path) - len(same)]


def _seem_the_same(key: str, path: str, checkpoint: Checkpoint) -> bool:
    """Whether the file has the size of the one that the result was made of, as far as is known."""
    now = fingerprint(path)
    before = checkpoint.fingerprints([key]).get(key, now)
    return before.size < 0 or before.size == now.size


def _changed(done: list[str], checkpoint: Checkpoint) -> list[str]:
    """Those that are to be done again. Of what has no fingerprint nobody knows anything: it is
    damaged, or saved elsewhere."""
    before = checkpoint.fingerprints(done)
    lost = checkpoint.completed() if len(before) < len(done) else ()
    return [
        path for path in done
        if (_has_changed(path, before[path]) if path in before else path in lost)
    ]  # fmt: skip


def _has_changed(path: str, before: Fingerprint) -> bool:
    """Whether the file is not as it was when it was processed, as far as that is known."""
    now = fingerprint(path)
    if before.size < 0:  # nobody asked; or nobody knows anything, and that is as good as ever
        return 0 <= before.mtime_ns < now.mtime_ns
    # Times have steps of 100 ns on Windows: what has only lost the rest of them has not changed.
    return before.size != now.size or before.mtime_ns // 100 != now.mtime_ns // 100
