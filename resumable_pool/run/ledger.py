"""What has become of the files of one run: received, saved, failed; and the report in the end.

    Received ──▶ received ──Saved──▶ finished        (in the same order)
                 FailureSaved ─────▶ finished

Pure: no process, no clock, no file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..records import Failure, Report
from .plan import Plan
from .screen import Counts

# A path, and whether what was saved of it is a value; otherwise it is a failure.
Finished = tuple[str, bool]


class Ledger:
    """The books of one run; they begin with what was to do before the checkpoint was locked.

    Attributes:
        counts: where the run stands.
        standing: the paths that stand as failed, whether in this run or in an earlier one.
        kept: the failures of this run, where the checkpoint will not have them.
    """

    def __init__(self, plan: Plan, keep_failures: bool = False) -> None:
        self.kept: dict[str, Failure] = {}
        self._keep_failures = keep_failures
        self._total = plan.total
        self._received: deque[str] = deque()
        self._finished: list[Finished] = []
        self.counts = Counts(plan.total, plan.done)
        self.begin(plan)

    def begin(self, plan: Plan) -> None:
        """The checkpoint is locked: what it has now, nobody else will add to."""
        self.counts.skipped, self.counts.left = plan.done, plan.left
        self._sizes, self.counts.size_to_do = plan.sizes, sum(plan.sizes.values())
        self.standing = {*plan.failed}

    def note_received(self, paths: Sequence[str]) -> None:
        """The saver has the values of these."""
        self._received.extend(paths)

    def note_saved(self, number: int) -> None:
        """The next so many of those are saved."""
        paths = [self._received.popleft() for _ in range(number)]
        self._finished += [(path, True) for path in paths]
        self.counts.completed += number
        self._note_sizes(paths)
        if self.standing:
            self.standing.difference_update(paths)

    def note_failure(self, failure: Failure) -> None:
        """The file has failed for good."""
        if self._keep_failures:
            self.kept[failure.path] = failure

    def note_failure_saved(self, path: str) -> None:
        """The failure of this one is saved."""
        self._finished.append((path, False))
        self.counts.failed += 1
        self._note_sizes([path])
        self.standing.add(path)

    def _note_sizes(self, paths: Sequence[str]) -> None:
        if self._sizes:
            self.counts.size_done += sum(self._sizes.get(path, 0) for path in paths)

    @property
    def untaken(self) -> bool:
        """Whether there is something to take."""
        return bool(self._finished)

    def take_finished(self, most: int | None = None) -> list[Finished]:
        """Those whose outcomes have been saved since the last time, or the first of them."""
        finished = self._finished[:most]
        del self._finished[: len(finished)]
        return finished

    def report(self, failures: Sequence[Failure], seconds: float, stopped: bool) -> Report:
        """How the run has ended; `failures` are those of `standing`."""
        counts = self.counts
        return Report(
            total=self._total,
            completed=counts.completed,
            skipped=counts.skipped,
            failed=len(self.standing),
            # Not what another run would do, since inputs may have changed meanwhile.
            remaining=self._total - counts.completed - counts.skipped - len(self.standing),
            seconds=seconds,
            stopped=stopped,
            failures=failures,
        )
