"""The contract of a checkpoint: what the saver asks of one, and what its readers see.

A format says seven things of its own, and all else follows from them here, once: opening, settling,
compacting, moving, checking and looking up.

    _begin    make ready to write what is locked, or say that it has to be written anew
    save      append outcomes, values and failures
    sync      force them to the disk
    _paths    the index: which paths have a value, or stand as failed
    _find     the outcome of one of them
    entries   what is known of each without its value
    _sound    the outcomes of all of them, and in words what is not as it was saved

What else it may say has a default here. If a result is stored in one piece, workers prepare that:
`encoder` says how, `append` appends it, and `outcome_in` reads it. If the lock is not on a file
beside it: `_lock`, `_signer`, `_sign`. If a killed writer may leave something half-done:
`_is_settled`. If it has more open than what is locked: `make_way` and `_release`.

Knows no format, no process and no pipe, but for the registry that its lock is entered in.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from operator import contains
from typing import Any

from ..between import forks
from ..errors import CheckpointError, CheckpointLocked, ResumablePoolError
from ..files import as_key, is_rooted, normalised
from ..records import Entry, Failure, Fingerprint, Outcome, count_files, quoted
from ..values import Bytes, Encoded, Encoder, pickle_value
from . import lock
from .disk import force_folder, make_like, refuse_unreadable, replace
from .lock import LOCK_FILE, NEW_FILE, OLD_FILE, LockableFile

# What is said of a new file, if nothing else is.
REWRITTEN = "rewritten with the results of {results} and the failures of {failures}"


def foreign(path: str, why: str = "") -> CheckpointError:
    """What to raise for a file that is something else."""
    remedy = "Name another file, or move this one away."
    return CheckpointError(path, f"is not a checkpoint of this library{why}", remedy)


def refuse_odd(path: str) -> None:
    """Raise `CheckpointError` for what may not be read, and for a pipe or a device: who opens a
    pipe waits for its other end, and what is put in a device's place takes that from the whole
    system."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            refuse_unreadable(path)
    except FileNotFoundError:
        return
    except OSError as error:  # a circle of links, say
        remedy = "Make it readable, or name another checkpoint."
        what = f"cannot be opened for reading: {error.strerror}"
        raise CheckpointError(path, what, remedy) from None
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise foreign(path, ": it is not a regular file")


def of_another_version(path: str, version: int, known: int) -> CheckpointError:
    """The same for one of ours that was written by another version of this library."""
    what = f"has version {version} of the format, and this library reads version {known}"
    return CheckpointError(path, what, "Use the version of the library that wrote it.")


def _place(path: str) -> tuple[str, str]:
    r"""Folder and name of a file, to be compared: the folder without links, and as what it is
    called on Windows without the `\\?\` of a name that is taken letter by letter."""
    folder, name = os.path.split(os.path.normcase(path))
    real = os.path.normcase(os.path.realpath(folder))
    return re.sub(r"^\\\\\?\\(unc(?=\\))?", lambda m: "\\" if m[1] else "", real), name


def texts_of(failure: Failure) -> bytes:
    """What is saved of a failure beside its outcome's facts. JSON, because a failure is shown from
    files that one would not unpickle; ASCII, because the texts of exceptions may hold lone
    surrogates."""
    texts = {"kind": failure.kind, "message": failure.message, "traceback": failure.traceback}
    return json.dumps(texts).encode("ascii")


def outcome_with(
    path: str, content: Encoded, checksum: int, failed: bool, *facts: Any
) -> Outcome[Any] | None:
    """The outcome with these bytes of a value, or of a failure's texts; `facts` are the seconds,
    the attempts and what else an `Outcome` has. `None` if they are not such texts, though the
    checksum may be right: there are people who can make one."""
    if not failed:
        return Outcome(path, content, checksum, None, *facts)
    try:
        texts = json.loads(bytes(content))
        kind, message, traceback = (texts[name] for name in ("kind", "message", "traceback"))
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    if not all(isinstance(text, str) for text in (kind, message, traceback)):
        return None
    seconds, attempts, *_ = facts
    failure = Failure(path, kind, message, traceback, attempts, seconds)
    return Outcome(path, None, 0, failure, *facts)


def damaged(path: str, how: object) -> CheckpointError:
    """The same for one that is not as it was written."""
    copy = "Restore it from a copy (of a .sqlite, first remove the -wal or -journal beside it)"
    remedy = f"{copy}, or keep what is sound with python -m resumable_pool compact."
    return CheckpointError(path, f"is damaged: {how}", remedy)


def _record(outcome: tuple[Any, ...]) -> Sequence[Bytes]:
    path, pickled, checksum, _, *facts = outcome
    return [json.dumps([path, checksum, *facts]).encode("ascii") + b"\n", pickled or b""]


class Checkpoint(Mapping[str, Any]):
    """Finished files and their values, on disk: a read-only mapping of path to value.

    Reading needs no lock and works at any time, in any process, also during a run; each
    access looks for what has been added since. A checkpoint that is not there yet is empty. A path
    is looked up as it is kept (`as_key`), so that on Windows both kinds of slashes find it.

    Writing is the saver's alone: `open`, then `save` and `save_failures` with `sync` in between,
    then `close`, in one process.

    A path has a value, or a failure, or both: a value that is saved ends a failure, but a failure
    does not take the value away that is there.

    Attributes:
        path: where it is.
        file: the same, without links: resolved once, when it is named.
        side_files: what it may keep beside itself: these ends of names behind its own.
    """

    side_files: tuple[str, ...] = (LOCK_FILE, OLD_FILE)

    _file: LockableFile  # the writer's: what is locked

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)
        # Where it is, by this name and, if that is a link, by its own.
        self.file = os.path.realpath(self.path)
        self._places = {_place(self.path), _place(self.file)}

    def __repr__(self) -> str:
        try:
            what = f"{len(self):,} results, {len(self.failures()):,} failures"
        except (ResumablePoolError, OSError) as error:
            what = f"cannot be read: {type(error).__name__}"
        return f"<{type(self).__name__} {quoted(self.path)}: {what}>"

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[str]]:
        return type(self), (self.path,)

    def owns(self, path: str) -> bool:
        """Whether `path` is this checkpoint or a file that it keeps beside itself."""
        name = os.path.basename(os.path.normcase(path))
        places = [place for place, own in self._places if self._is_own(name, own)]
        return bool(places) and _place(path)[0] in places

    def others(self, paths: list[str]) -> list[str]:
        """Those of very many paths that it does not own."""
        names = paths if os.path.normcase("A") == "A" else [*map(os.path.normcase, paths)]
        perhaps = any(any(map(contains, names, repeat(own))) for _, own in self._places)
        return [path for path in paths if not self.owns(path)] if perhaps else paths

    def _is_own(self, name: str, own: str) -> bool:
        end, _, number = name.removeprefix(own).partition(NEW_FILE)
        named = not end or end in self.side_files or end.startswith(f"{OLD_FILE}-")
        return name.startswith(own) and named and (not number or number[0].isdecimal())

    # What workers are given.

    # What is saved of a result: called with it in a worker, and returns the bytes that an outcome
    # then has of it. Raises `UnstorableValue` if this format cannot hold it: the file has failed.
    encode: Callable[[Any], bytes] = staticmethod(pickle_value)

    def encoder(self) -> Encoder:
        """What makes, in a worker, the records that `append` is given. Asked for once it is open;
        it is pickled, so it names functions of a module. By default a record is what `outcome_in`
        reads."""
        return Encoder(self.encode, _record)

    # What the saver asks.

    def open(self) -> list[str]:
        """Lock the checkpoint for this process, create it if it is new, repair an incomplete end.

        Returns:
            What a person may want to know about it, a sentence each.

        Raises:
            CheckpointLocked: another process writes to it.
            CheckpointError: it is something else, or damaged; nothing was changed.
            OSError: it cannot be opened or made.
        """
        notes: list[str] = []
        with self._locked(notes) as kept:
            if self._begin(notes):
                kept.pop_all()
                return notes
            self._rewrite(notes)
        return [*notes, *self.open()]

    @contextlib.contextmanager
    def _locked(self, notes: list[str]) -> Iterator[contextlib.ExitStack]:
        """With the lock, which is given up behind it, unless that is taken off this stack."""
        refuse_odd(self.path)
        with contextlib.ExitStack() as stack:
            self._file = self._lock(notes)
            stack.callback(self._release)
            lock.remove_leftovers(self.file)
            yield stack

    def _lock(self, notes: list[str]) -> LockableFile:
        """Lock it: the file itself, made if it is new, or as here the one beside it."""
        return lock.open_locked(lock.lock_file(self.file), b" ", self._signer, notes)

    def _signer(self, fd: int) -> int | None:
        """The process that has signed last in what is locked, open as `fd`."""
        return lock.signer(self.file)

    def _sign(self) -> None:
        """Write down that this process is the writer."""
        lock.sign(self.file)

    @abstractmethod
    def _begin(self, notes: list[str]) -> bool:
        """Make ready to write. Returns whether that can be done to the file that is there, or first
        a new one has to take its place."""

    def _rewrite(self, notes: list[str], through: Through = iter) -> None:
        """Put a new one with what is sound, and counts, in the place of what is there, and keep
        that beside it. At every moment there is a whole file at its path.

        Raises:
            OSError: the disk is full, say. Nothing was changed.
        """
        done, outcomes = self._content(notes)
        try:
            # Where the file itself is: what is put in a link's place would not be in the file's.
            with lock.new_beside(self.file, self.side_files) as name:
                make_like(self.file, name)  # or others might read meanwhile what is private
                new = type(self)(name)
                _fill(new, through(outcomes))
                self.make_way()
                # On Windows nobody may have it open. One asks before there is a link to it, which
                # could not be removed then.
                replace(self.file, self.file)
                results, failures = count_files(len(new)), count_files(len(new.failures()))
                notes.append(done.format(results=results, failures=failures))
                old = lock.keep_old(self.file, lambda old: _is_in(self, old, new))
                notes.append(f"what was there before is kept as {quoted(old)}")
                replace(new.file, self.file)
                force_folder(self.file)
        except OSError as error:
            if error.errno is not None and error.strerror:
                what = f"could not be rewritten, and is as it was: {error.strerror}"
                raise OSError(error.errno, what, self.path) from error
            raise

    def _layout(self) -> object:
        """What differs if somebody has added something that is neither value nor failure."""

    def _content(self, notes: list[str]) -> tuple[str, Iterable[Outcome[Any]]]:
        """What is said when it is in a new file, with `{results}` and `{failures}` in it; and what
        is sound, and counts. Signs, if this is a checkpoint."""
        self._sign()
        return REWRITTEN, self._sound(notes)

    def _release(self) -> None:
        """Give up the lock."""
        if lock.signer(self.file) == os.getpid():  # or we were moved, and another one is here now
            lock.unsign(self.file)
        forks.close(self._file)

    def append(self, records: Sequence[Encoded]) -> None:
        """`save`, for results that workers have made records of."""
        self.save([*map(self.outcome_in, records)])

    def outcome_in(self, record: Encoded) -> Outcome[Any]:
        """What a worker has made this record of."""
        end = record.index(b"\n")
        path, checksum, seconds, attempts, found, finished_at = json.loads(record[:end])
        facts = (seconds, attempts, Fingerprint(*found), finished_at)
        return Outcome(path, record[end + 1 :], checksum, None, *facts)

    @abstractmethod
    def save(self, outcomes: Sequence[Outcome[Any]]) -> None:
        """Append values, and failures. When it returns, they survive the death of any process.

        Raises:
            OSError: not all of `outcomes` are saved; everything before is.
        """

    def save_failures(self, outcomes: Sequence[Outcome[Any]]) -> None:
        """The same, as a hook calls it for files that failed."""
        self.save(outcomes)

    @abstractmethod
    def sync(self) -> None:
        """When it returns, everything saved survives a power cut."""

    def close(self) -> None:
        """`sync`, and give up the lock."""
        try:
            self.sync()
        finally:
            self._release()

    def settle(self) -> list[str]:
        """Bring to its end what a saver that was killed has left half-done, so that readers without
        this library see it, too; and put right, or into its own format, what `open` would. Nothing
        if another process is writing. In any process.

        Returns, and raises:
            What `open` does; but where it cannot be written to, that is returned.
        """
        if self._is_settled():
            return []
        notes: list[str] = []
        try:
            notes = self.open()
            self.close()
        except CheckpointLocked:  # whoever writes sees to that
            pass
        except OSError as error:
            what = "what a killed writer, or another program, has left is still as it was"
            notes = [f"{quoted(self.path)}: {what} ({error.strerror})"]
        return notes

    def _is_settled(self) -> bool:
        """Whether there is nothing for `settle` to do."""
        return True

    # What readers see.

    @abstractmethod
    def _paths(self, failed: bool) -> Collection[str]:
        """The paths that have a value now, or that stand as failed."""

    @abstractmethod
    def _find(self, path: str, failed: bool) -> Outcome[Any]:
        """The value of `path`, or the failure as which it stands, with all that is known of it.

        Raises:
            KeyError: it has none, or a damaged one.
        """

    def completed(self) -> Collection[str]:
        """The paths that have a value now. A live view, where a copy would cost: to go through them
        while more is saved, go through the checkpoint itself."""
        return self._paths(failed=False)

    def failures(self) -> Mapping[str, Failure]:
        """The files that stand as failed now: those that have not succeeded since. One that was
        done before, has changed and then failed keeps the value that it had."""
        return ByPath(lambda: self._paths(True), self._failure, "failures")

    def _failure(self, path: str) -> Failure | None:
        return self._find(path, True).failure

    def fingerprint(self, path: str) -> Fingerprint:
        """Size and time of change that the input of `path` had when its value was made.

        Raises:
            KeyError: it has no value.
        """
        return self.fingerprints([path])[path]

    @abstractmethod
    def fingerprints(self, paths: Iterable[str]) -> dict[str, Fingerprint]:
        """The same of very many at once: of those of `paths` that have a value."""

    def outcome(self, path: str, failed: bool | None = None) -> Outcome[Any]:
        """What became of `path`: its value, in bytes, or the failure as which it stands; the
        failure, if it has both and you do not say which.

        Raises:
            KeyError: it has no outcome, or only a damaged one.
        """
        if failed is None:
            with contextlib.suppress(KeyError):
                return self._find(path, True)
        return self._find(path, bool(failed))

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """Each file that has a value or stands as failed now, once, in any order; the failure if
        it has both. No value is unpickled."""

    @abstractmethod
    def _sound(self, findings: list[str]) -> Iterable[Outcome[Any]]:
        """Each value that there is now, and each failure that stands, as far as they are sound: of
        a file that has both, the value first. Adds to the findings what is not as it was saved, a
        sentence each, at the latest when the last has been taken."""

    def outcomes(self) -> Iterator[Outcome[Any]]:
        """Each value that there is now, and each failure that stands, with all that is known of
        them: of a file that has both, the value first.

        Raises:
            CheckpointError: one is damaged, or the checkpoint is.
        """
        findings: list[str] = []
        for outcome in self._sound(findings):
            if findings:
                break
            yield outcome
        if findings:
            raise damaged(self.path, findings[0])

    def read(self, path: str) -> Any:
        """The value of `path`, unpickled anew.

        Raises:
            KeyError: it has none, or one that is damaged.
        """
        return self._find(path, False).value

    @contextlib.contextmanager
    def reading(self) -> Iterator[Callable[[str], Any]]:
        """`read`, for very many values in a row, by one thread: what opening the file costs is
        shared between them."""
        yield self.read

    def __getitem__(self, path: str) -> Any:
        return self.read(as_key(path))

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and as_key(path) in self.completed()

    def __iter__(self) -> Iterator[str]:
        # A copy: more may be saved, and another thread may look at it, while somebody iterates.
        return iter(list(self.completed()))

    def __len__(self) -> int:
        return len(self.completed())

    # What a person asks.

    def check(self) -> list[str]:
        """Read all of it, with every checksum, and say what is wrong, a sentence each; nothing if
        all is well. Unpickles nothing. At any time, in any process."""
        findings: list[str] = []
        try:
            self._check(findings)
        except CheckpointError as error:
            findings.append(f"{quoted(self.path)} {error.reason}")
        return findings

    def _check(self, findings: list[str]) -> None:
        """Add to the findings."""
        for _ in self._sound(findings):
            pass

    def compact(self, through: Through = iter) -> list[str]:
        """Rewrite it with the last value or failure of each path, if sound, and nothing else. The
        old file is kept beside it, in place of an older one if all of that is in the new one.

        Args:
            through: what all outcomes pass through on their way, results first.

        Returns:
            What was lost, if anything, and what was done, a sentence each.

        Raises:
            CheckpointLocked: a run is writing to it.
            CheckpointError: it is something else; nothing was changed.
            FileNotFoundError: it is not there.
            OSError: the disk is full, say; nothing was changed.
        """
        if not os.path.exists(self.file):
            raise FileNotFoundError(errno.ENOENT, "there is no checkpoint", self.path)
        notes: list[str] = []
        with self._locked(notes):
            self._rewrite(notes, through)
        return notes

    def move(self, old_start: str, new_start: str) -> list[str]:
        """Give files that were moved or renamed their results back: all paths that start with the
        folder, or are the file, `old_start` start with `new_start` instead; `""` is for the current
        folder, in which relative paths start. A result that a new path has already stays.

        Rewrites the checkpoint as `compact` does, and keeps the old file beside it.

        Returns:
            What was done, a sentence each.

        Raises:
            ValueError: no path starts so; nothing was changed.
            And what `compact` raises.
        """
        notes = self.settle() or []
        moving = Moving(old_start, new_start, self.completed(), self.failures())
        return [*notes, *self.compact(moving), *moving.notes]

    def make_way(self) -> None:
        """Close the file, as far as that is needed to put another in its place; the lock stays."""
        self._file.let_go()


def _fill(new: Checkpoint, outcomes: Iterable[Outcome[Any]]) -> None:
    new.open()
    with contextlib.closing(new):
        for outcome in outcomes:
            new.save([outcome])


def _is_in(checkpoint: Checkpoint, old: str, new: Checkpoint) -> bool:
    """Whether the file `old` is the checkpoint itself, or all that it has is in the `new` one."""
    from filecmp import cmp  # few need it

    older = type(checkpoint)(old)
    try:
        if cmp(old, checkpoint.file, shallow=False):
            return True
        written = {(outcome.path, outcome.ok): outcome.checksum for outcome in new.outcomes()}
        return (
            older._layout() == new._layout()
            and not older.check()
            and all(
                written.get((outcome.path, outcome.ok)) == outcome.checksum
                or (not outcome.ok and (outcome.path, True) in written)
                for outcome in older.outcomes()
            )
        )
    except (CheckpointError, OSError):
        return False


class ByPath(Mapping[str, Any]):
    """Path to something: which there are, and each of them, is asked anew at each access."""

    def __init__(
        self, paths: Callable[[], Collection[str]], find: Callable[[str], Any], what: str
    ) -> None:
        self._paths, self._find, self._what = paths, find, what

    def __getitem__(self, path: str) -> Any:
        return self._find(as_key(path))

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._paths()))

    def __len__(self) -> int:
        return len(self._paths())

    def __repr__(self) -> str:
        return f"<{len(self):,} {self._what}>"


# What outcomes may pass through while a checkpoint is rewritten.
Through = Callable[[Iterable[Outcome[Any]]], Iterator[Outcome[Any]]]


class Moving:
    """Outcomes pass through it, and those of one folder come out as those of another.

    Knows the paths that have results and failures already: two may become one.

    Attributes:
        notes: what was done, a sentence each.
    """

    def __init__(
        self, old_start: str, new_start: str, results: Collection[str], failures: Collection[str]
    ) -> None:
        self.notes: list[str] = []
        self._old, self._new = _as_start(old_start), _as_start(new_start)
        known = {*results, *failures}
        staying = {path for path in known if self._moved(path) is None}
        if staying == known:
            example = f" (one of them is {quoted(min(known))})" if known else ""
            raise ValueError(f"no path starts with {quoted(old_start)}{example}: nothing was moved")
        # What a result, and what a failure, must not be called then.
        self._taken = {True: staying.intersection(results), False: staying}

    def _moved(self, path: str) -> str | None:
        """Its new name, if it gets one."""
        key = as_key(path)
        there = f"{key}/".startswith(self._old) and (self._old or not is_rooted(key))
        new = normalised(self._new + key[len(self._old) :]) if there else path
        return new if new not in (path, os.curdir) else None

    def __call__(self, outcomes: Iterable[Outcome[Any]]) -> Iterator[Outcome[Any]]:
        """The outcomes, as they are to be saved: all results, then all failures."""
        number = left = 0
        for outcome in outcomes:
            path = self._moved(outcome.path)
            if path is None:
                yield outcome
            elif path in self._taken[outcome.ok]:
                left += 1
            else:
                number += 1
                failure = outcome.failure and outcome.failure._replace(path=path)
                yield outcome._replace(path=path, failure=failure)
        places = f"from {quoted(self._old)} to {quoted(self._new)}"
        self.notes.append(f"{number:,} results and failures moved {places}")
        if left:
            what = "were left out, because their new path has a result already"
            self.notes.append(f"{left:,} {what}")


def _as_start(folder: str) -> str:
    """How the paths in this folder start."""
    folder = normalised(folder) if folder else ""
    return "" if folder in ("", os.curdir) else f"{folder.rstrip('/')}/"
