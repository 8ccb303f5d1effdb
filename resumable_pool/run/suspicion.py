"""Which workers are broken, so that it is not the files that fail there: a lost CUDA context, a
library that was closed, descriptors or memory that have run out.

    a failure ──▶ held ──the next file succeeds, or there is none──▶ counts
                   │
                   └──third in a row──▶ its worker is dismissed ──▶ doubtful
                                                                      │
    counts, as every later one of that file ◀──fails there as well──  tried once more, in a fresh
                          its worker was broken ◀────────succeeds──── worker: what came last first

Only first attempts count: a file that has failed before fails again anywhere. And they mean
something only if success is possible: the worker has had one itself, or another has had one since
the last dismissal. If nobody has, the function is at fault, and a fresh worker would change
nothing. As long as another worker may still show which of the two it is, failures are held, and a
worker that has failed three times in a row is dealt nothing.

A doubtful file is the experiment. The last one of a row is the least likely to have broken the
worker, so it comes first. If it succeeds, the same fresh worker takes the next; if not, that worker
is dismissed as well. If three in a row fail again, the files were to blame: the others count
without a further call, and from then on a row must be four times as long, since bad files may come
in rows.

Pure: no process, no clock, no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

# So many failures in a row are suspicious. Two are not rare: bad files have bad neighbours.
STREAK = 3

# After so many a worker is not trusted with what has failed before, if there is another.
UNSOUND = 2

# So many doubtful files that fail again, with none that succeeds, refute the suspicion; and then it
# takes so many times as many failures in a row.
REFUTED, HARDER = 3, 4


class _Record:
    """What one worker has done so far.

    Attributes:
        failed: how many files have failed since its last success,
        streak: and how many of them at their first attempt: only that says something of the worker.
        held: those of them that do not count yet.
        succeeded: whether it has had a success.
        fresh: whether it was dealt nothing yet.
        clean: whether it was dealt doubtful files at the most, and has succeeded with all of them.
        dismissed: whether it is to go.
    """

    def __init__(self) -> None:
        self.failed = self.streak = 0
        self.held: list[str] = []
        self.succeeded = self.dismissed = False
        self.fresh = self.clean = True


class Suspicion:
    """What is known of the workers of one run, by their numbers. Of one who never entered nothing
    is known: an executor may give any batch to any of its processes.

    Attributes:
        doubtful: the files to be tried once more, in a fresh worker.
        tried: those that have been, or will be.
        cleared: those of which it has turned out that their failures count.
        condemned: the workers to be dismissed.
    """

    def __init__(self) -> None:
        self.doubtful: deque[str] = deque()
        self.tried: set[str] = set()
        self.cleared: list[str] = []
        self.condemned: list[int] = []
        self._records: dict[int, _Record] = {}
        self._entered = self._dismissals = 0
        self._open: set[int] = set()  # who has a streak
        self._held: set[str] = set()
        self._on_trial: set[str] = set()
        self._streak = STREAK
        self._refuted = 0
        self._confirmed = False  # that it was the worker, the last time
        self._success_since = False  # the last dismissal
        self._settled = False  # since then: it is the function

    @property
    def held(self) -> int:
        """How many failures do not count yet, but may."""
        return len(self._held)

    def holds(self, path: str) -> bool:
        """Whether the failure of this file does not count yet."""
        return path in self._held

    def is_fresh(self, worker: int) -> bool:
        """Whether the worker was dealt nothing yet, as far as anybody knows."""
        record = self._records.get(worker)
        return record is None or record.fresh

    def may_try(self, worker: int) -> bool:
        """Whether the worker may be dealt a doubtful file: nothing that it was dealt before can
        have broken it. And as long as none of them has succeeded, one at a time is enough."""
        record = self._records.get(worker)
        one_is = bool(self._on_trial) and not self._confirmed
        return record is not None and record.clean and not one_is

    def some_are_clean(self) -> bool:
        """Whether there is such a worker, or will be when it has started."""
        return any(record.clean and not record.dismissed for record in self._records.values())

    def waits(self, worker: int) -> bool:
        """Whether others must show first whether this worker is broken."""
        record = self._records.get(worker)
        return record is not None and record.streak >= self._streak and not self._settled

    def trusts(self, worker: int) -> bool:
        """Whether the worker may try what has failed before: it has not just failed more than once,
        or all others have as well."""
        record = self._records.get(worker)
        if record is None or record.failed < UNSOUND:
            return True
        return not (self._some_are_sound() or self.is_to_be_replaced(worker))

    def is_to_be_replaced(self, worker: int) -> bool:
        """Whether nobody is left to try what has failed before, and this worker is perhaps broken:
        a fresh one is to do that."""
        record = self._records.get(worker)
        if record is None or record.streak < UNSOUND:
            return False
        return self._is_suspect(record) and not self._some_are_sound()

    def _some_are_sound(self) -> bool:
        records = self._records.values()
        return any(each.failed < UNSOUND and not each.dismissed for each in records)

    # What happens.

    def enter(self, worker: int) -> None:
        """One more worker, of which everything will be told."""
        self._records[worker] = _Record()
        self._entered += 1

    def note_dealt(self, worker: int, path: str, doubtful: bool) -> None:
        """The worker was dealt files that begin with this one."""
        if (record := self._records.get(worker)) is not None:
            record.fresh = False
            record.clean = record.clean and doubtful
        if doubtful:
            self._on_trial.add(path)

    def note_returned(self, path: str) -> None:
        """A doubtful file was dealt, and not begun."""
        self._on_trial.discard(path)

    def succeed(self, worker: int, paths: Collection[str]) -> None:
        """The worker has succeeded with these files."""
        record = self._records.get(worker)
        if record is None:
            return
        record.succeeded = self._success_since = True
        self._settled = False
        if record.failed:
            record.failed = record.streak = 0
            self._open.discard(worker)
            self._clear(record)
        if self._on_trial and not self._on_trial.isdisjoint(paths):  # it was the worker, then
            self._on_trial.difference_update(paths)
            self._refuted, self._streak, self._confirmed = 0, STREAK, True

    def fail(self, worker: int, path: str, first: bool) -> None:
        """The worker has failed with this file, of which it was the `first` attempt."""
        record = self._records.get(worker)
        if record is None:
            return
        self._note_failed(worker, record, path, first)
        if first:
            record.held.append(path)
            self._held.add(path)

    def leave(self, worker: int, path: str | None, first: bool = False) -> None:
        """The worker is gone, and this is the file that it died with, if it did."""
        record = self._records.pop(worker, None)
        if record is None:
            return
        if path is not None:
            self._note_failed(worker, record, path, first)
        self._open.discard(worker)
        if record.held and record.streak >= self._streak and self._is_suspect(record):
            self._doubt(record)
        else:
            self._clear(record)

    def _note_failed(self, worker: int, record: _Record, path: str, first: bool) -> None:
        record.failed += 1
        if path in self._on_trial and worker in self._records and not record.dismissed:
            self._condemn(worker)  # this file may have broken it as well
        record.clean = False
        if first:
            record.streak += 1
            if not record.dismissed:
                self._open.add(worker)
        if path in self._on_trial:
            self._on_trial.discard(path)
            self._refuted += 1
            if self._refuted >= REFUTED:
                self._refuted = 0
                self._streak *= HARDER
                self.tried.difference_update(self.doubtful)
                self.cleared += self.doubtful
                self.doubtful.clear()

    # What is decided.

    def review(self, wanted: int, idle: bool) -> None:
        """Decide what can be decided.

        Args:
            wanted: how many workers there are to be.
            idle: whether nobody has anything to do.
        """
        suspects = [worker for worker in self._open if self._is_suspect(self._records[worker])]
        undecided = len(suspects) < len(self._open)
        for worker in suspects:
            if self._records[worker].streak >= self._streak:
                self._dismiss(worker)
        if undecided:
            self._settled = self._settled or not self._others_may_tell(wanted)
        if self._settled or idle:
            for worker in self._open:
                self._clear(self._records[worker])

    def rest(self, worker: int) -> None:
        """There is nothing more for this worker to show what it is worth with."""
        record = self._records.get(worker)
        if record is not None and record.held and self._is_suspect(record):
            self._clear(record)

    def press(self, wanted: int) -> bool:
        """Too many failures may count: decide now. Returns whether those may go on who can tell
        what only they can."""
        others_may_tell = self._others_may_tell(wanted)
        undecided = False
        for worker in [*self._open]:
            record = self._records[worker]
            if self._is_suspect(record) and record.streak >= UNSOUND:
                self._dismiss(worker)
            elif self._is_suspect(record) or not others_may_tell:
                self._clear(record)
            else:
                undecided = True
        return undecided

    def may_tell(self, worker: int) -> bool:
        """Whether the worker has not failed since its last success."""
        record = self._records.get(worker)
        return record is None or not record.failed

    def _is_suspect(self, record: _Record) -> bool:
        return record.succeeded or self._success_since

    def _others_may_tell(self, wanted: int) -> bool:
        if self._entered < wanted + self._dismissals:  # they are being started
            return True
        return any(not (each.failed or each.dismissed) for each in self._records.values())

    def _dismiss(self, worker: int) -> None:
        self._condemn(worker)
        self._doubt(self._records[worker])

    def _condemn(self, worker: int) -> None:
        self._records[worker].dismissed = True
        self._dismissals += 1
        self._open.discard(worker)
        self.condemned.append(worker)

    def _doubt(self, record: _Record) -> None:
        self.doubtful.extend(reversed(record.held))
        self.tried.update(record.held)
        self._held.difference_update(record.held)
        record.held = []
        self._success_since = self._settled = self._confirmed = False

    def _clear(self, record: _Record) -> None:
        # What came last is the least likely to have broken the worker: it is tried again first.
        self.cleared += reversed(record.held)
        self._held.difference_update(record.held)
        record.held = []
