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
in rows. No worker was broken then, so what was known of success still holds.

And which do not even start: bad luck, or a reason that stays (`Starts`).

Pure: no process, no clock, no file.
"""

from __future__ import annotations

from collections import deque

# So many failures in a row are suspicious. Two are not rare: bad files have bad neighbours.
STREAK = 3

# After so many a worker is not trusted with what has failed before, if there is another.
UNSOUND = 2

# So many doubtful files that fail again, with none that succeeds, refute the suspicion; and then it
# takes so many times as many failures in a row.
REFUTED, HARDER = 3, 4

# A worker that is killed before it has a file may have had bad luck, when memory is short, and a
# server that it loads a model from may be away; so many attempts in a row, if there is nobody else
# who could work, have a reason that will not go away.
START_ATTEMPTS = 3

# Between two attempts, doubled each time. (All that fail in the meantime are one attempt.)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0


class History:
    """What one worker has done so far.

    Attributes:
        failed: how many files have failed since its last success,
        streak: and how many of them at their first attempt: only that says something of the worker.
        held: those of them that do not count yet.
        succeeded: whether it has had a success.
        fresh: whether it was dealt nothing yet.
        clean: whether it was dealt doubtful files at the most, and has succeeded with all of them.
        dismissed: whether it is to go, since it is broken.
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
        confirmed: that it was the worker, the last time.
    """

    def __init__(self) -> None:
        self.doubtful: deque[str] = deque()
        self.confirmed = False
        self._cleared: list[str] = []
        self._histories: dict[int, History] = {}
        self._entered = self._dismissals = 0
        self._streak = STREAK
        self._refuted = 0
        self._success_since = False  # the last dismissal
        self._settled = False  # since then: it is the function

    def of(self, worker: int) -> History:
        """What the worker has done."""
        return self._histories.get(worker) or History()

    @property
    def held(self) -> list[str]:
        """The paths whose failures do not count yet, but may."""
        return [path for history in self._histories.values() for path in history.held]

    def some_are_clean(self) -> bool:
        """Whether there is such a worker, or will be when it has started."""
        return any(each.clean and not each.dismissed for each in self._histories.values())

    def waits(self, worker: int) -> bool:
        """Whether others must show first whether this worker is broken."""
        return not self._settled and self.of(worker).streak >= self._streak

    def trusts(self, worker: int) -> bool:
        """Whether the worker may try what has failed before: it has not just failed more than once,
        or all others have as well."""
        if self.of(worker).failed < UNSOUND:
            return True
        return not (self._some_are_sound() or self.is_to_be_replaced(worker))

    def is_to_be_replaced(self, worker: int) -> bool:
        """Whether nobody is left to try what has failed before, and this worker is perhaps broken:
        a fresh one is to do that."""
        history = self.of(worker)
        perhaps_broken = history.streak >= UNSOUND and self._is_suspect(history)
        return perhaps_broken and not self._some_are_sound()

    def _some_are_sound(self) -> bool:
        return any(h.failed < UNSOUND and not h.dismissed for h in self._histories.values())

    def _is_suspect(self, history: History) -> bool:
        return history.succeeded or self._success_since

    def _others_may_tell(self, wanted: int) -> bool:
        if self._entered < wanted + self._dismissals:  # they are being started
            return True
        return any(not (each.failed or each.dismissed) for each in self._histories.values())

    # What happens.

    def enter(self, worker: int) -> None:
        """One more worker, of which everything will be told."""
        self._histories[worker] = History()
        self._entered += 1

    def note_dealt(self, worker: int, doubtful: bool) -> None:
        """The worker was dealt files, or a `doubtful` one."""
        history = self.of(worker)
        history.fresh = False
        history.clean = history.clean and doubtful

    def succeed(self, worker: int, doubtful: bool) -> None:
        """The worker has succeeded with these."""
        history = self.of(worker)
        history.succeeded = self._success_since = True
        self._settled = False
        if history.failed:
            history.failed = history.streak = 0
            self._clear(history)
        if doubtful:  # it was the worker, then
            self._refuted, self._streak, self.confirmed = 0, STREAK, True

    def fail(self, worker: int, path: str, first: bool, doubtful: bool) -> bool:
        """The worker has failed with this file, of which it was the `first` attempt, or which is
        `doubtful`. Returns whether that does not count yet."""
        history = self._histories.get(worker)
        if history is None:
            return False
        if doubtful and not history.dismissed:
            self._condemn(history)  # this file may have broken it as well
        self._note_failed(history, first, doubtful)
        if first:
            history.held.append(path)
        return first

    def leave(self, worker: int, died: bool, first: bool, doubtful: bool) -> None:
        """The worker is gone; if it `died` with a file, that is noted like a failure."""
        history = self._histories.pop(worker, None) or History()
        if died:
            self._note_failed(history, first, doubtful)
        if history.held and history.streak >= self._streak and self._is_suspect(history):
            self._doubt(history)
        else:
            self._clear(history)

    def _note_failed(self, history: History, first: bool, doubtful: bool) -> None:
        history.failed += 1
        history.streak += first
        history.clean = False
        self._refuted += doubtful and not self.confirmed  # then what is left may be culprits
        if self._refuted >= REFUTED:
            self._refuted = 0
            self._streak *= HARDER
            self._success_since = True  # as before: no worker was broken
            self._cleared += self.doubtful
            self.doubtful.clear()

    # What is decided.

    def review(self, wanted: int, idle: bool) -> list[str]:
        """Decide what can be decided: who is broken, and so dismissed.

        Args:
            wanted: how many workers there are to be.
            idle: whether nobody has anything to do.

        Returns:
            The paths of which it has turned out that their failures count.
        """
        failing = self._failing()
        suspects = [history for history in failing if self._is_suspect(history)]
        for history in suspects:
            if history.streak >= self._streak:
                self._dismiss(history)
        if len(suspects) < len(failing) and not self._others_may_tell(wanted):
            self._settled = True
        if self._settled or idle:
            for history in self._failing():
                self._clear(history)
        cleared, self._cleared = self._cleared, []
        return cleared

    def press(self, wanted: int) -> bool:
        """Too many failures may count: decide now. Returns whether those may go on who can tell
        what only they can."""
        others_may_tell = self._others_may_tell(wanted)
        undecided = False
        for history in self._failing():
            if self._is_suspect(history) and history.streak >= UNSOUND:
                self._dismiss(history)
            elif self._is_suspect(history) or not others_may_tell:
                self._clear(history)
            else:
                undecided = True
        return undecided

    def rest(self, worker: int) -> None:
        """There is nothing more for this worker to show what it is worth with."""
        if self._is_suspect(history := self.of(worker)):
            self._clear(history)

    def _failing(self) -> list[History]:
        """Who has a streak, and is not dismissed for it."""
        return [each for each in self._histories.values() if each.streak and not each.dismissed]

    def _dismiss(self, history: History) -> None:
        self._condemn(history)
        self._doubt(history)

    def _condemn(self, history: History) -> None:
        history.dismissed = True
        self._dismissals += 1

    def _doubt(self, history: History) -> None:
        # What came last is the least likely to have broken the worker: it is tried again first.
        self.doubtful.extend(reversed(history.held))
        history.held = []
        self._success_since = self._settled = self.confirmed = False

    def _clear(self, history: History) -> None:
        self._cleared += reversed(history.held)
        history.held = []


class Starts:
    """The starts of one run that have failed since one has last led to a file that was done.

    Attributes:
        allowed_at: when the next one may be tried.
        possible: whether one has ever been ready.
    """

    allowed_at = 0.0
    possible = False
    _failed = 0

    def note_proven(self) -> None:
        """A worker has done its first file."""
        self.allowed_at, self._failed = 0.0, 0

    def note_failed(self, now: float, by_itself: bool, others: bool) -> bool:
        """A worker could not be started, or ended before it had done a file. Returns whether the
        run has to end.

        Args:
            by_itself: whether it was not killed.
            others: whether somebody is left who could work.
        """
        if now >= self.allowed_at:
            self._failed += 1
            pause = FIRST_PAUSE * 2.0 ** min(self._failed - 1, 16)
            self.allowed_at = now + min(pause, LONGEST_PAUSE)
        if not self.possible:
            return by_itself or self._failed >= START_ATTEMPTS
        return self._failed >= START_ATTEMPTS and not others
