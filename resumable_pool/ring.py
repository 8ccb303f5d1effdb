"""The runner's side of a run: the loop, and what it decides about workers and failures.

runner.py has the picture. Knows nothing of bytes and pickles, of how a process is started or ended,
nor of the checkpoint more than which paths it has.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import wait
from typing import Any

from .crew import Crew
from .dealing import Dealer
from .display import ProgressLine
from .errors import ResumablePoolError, SaverError, WorkerStartError
from .messages import (
    DropFailure,
    Ended,
    Failed,
    FromSaver,
    Hello,
    KeepFailure,
    Opened,
    PassedOn,
    Ready,
    RecordCrash,
    Saved,
    StartFailed,
    Unable,
)
from .options import Options
from .processes import MAIN_GUARD_REMEDY
from .progress import Counts, describe_end, describe_start
from .records import Failure, Outcome, count_files
from .saver import Saver
from .signals import StopRequests
from .workers import Worker

# The loop waits for events. This is how soon it notices what makes none: a death that something
# which the worker has forked keeps quiet, and a signal that came just before it began to wait.
TICK_SECONDS = 1.0

# A worker that is killed before it has a file may have had bad luck, when memory is short; so many
# in a row, with no file done in between, have a reason that will not go away.
START_ATTEMPTS = 3

START_REMEDY = "Put that right and run again; what was saved is kept."


class Run:
    """One run, as its runner sees it. Lives in the runner's process, in the thread of `run`.

    Args:
        options: the runner's.
        files: all files; those that the checkpoint has, once it is locked, are left out.
        counts: kept up to date.
        stop_requests: entered.
        progress: where a person looks.

    Attributes:
        stopped: whether it was asked to stop.
    """

    def __init__(
        self,
        options: Options,
        files: list[str],
        counts: Counts,
        stop_requests: StopRequests,
        progress: ProgressLine,
    ) -> None:
        self.stopped = False
        self._checkpoint = options.checkpoint
        self._max_workers = options.max_workers
        self._files = files
        self._counts = counts
        self._begun = time.monotonic()
        self._stop_requests = stop_requests
        self._progress = progress
        self._opened = False
        self._abandoned = False
        self._dealer = Dealer()
        self._error: ResumablePoolError | None = None
        self._lost_idle = 0
        self._saver = Saver(options.context, options.checkpoint)
        self._crew = Crew(options.context, self._saver, options.setup, os.getcwd())

    def go(self) -> None:
        """Until every file is dealt with, or can not be, and every process has left."""
        self._saver.start()
        try:
            while not self._over():
                ready = wait(self._events(), TICK_SECONDS)
                self._note_stop_requests(ready)
                self._note_reports()
                self._crew.report_deaths(ready)
                self._start_workers()
                self._deal_paths()
                self._dismiss_workers()
                self._show_progress()
        finally:
            self._end()
        if self._error is not None:
            raise self._error

    def _over(self) -> bool:
        return self._saver.gone or (self._opened and self._dealer.over and not self._crew)

    def _events(self) -> list[Any]:
        return [self._stop_requests.wakener, self._saver.reports, *self._crew.sentinels()]

    # The steps of the loop.

    def _note_stop_requests(self, ready: list[Any]) -> None:
        """After a first Ctrl-C deal nothing more, after a second one end the workers, too."""
        if self._stop_requests.wakener in ready:
            self._stop_requests.clear()
        if self._stop_requests.count >= 1 and not self.stopped:
            self.stopped = True
            self._dealer.stop()
            self._crew.terminate([worker for worker in self._crew if not worker.ready])
            if self._dealer.in_work:
                self._progress.announce(
                    f"Ctrl-C: finishing {count_files(self._dealer.in_work)}; "
                    "press it again to abandon them"
                )
        if self._stop_requests.count >= 2 and not self._abandoned:
            self._abandoned = True
            self._crew.terminate([*self._crew])
            self._progress.announce("Ctrl-C again: abandoning what is in work")
        self._crew.kill_overdue()

    def _note_reports(self) -> None:
        for report in self._saver.read_reports():
            self._note_report(report)

    def _note_report(self, report: FromSaver) -> None:
        match report:
            case Opened(notes):
                self._note_opened(notes)
            case PassedOn(serial, Hello()):
                self._crew.set_up(serial)
            case PassedOn(serial, Ready()):
                self._crew[serial].ready = True
            case PassedOn(serial, StartFailed(message, traceback)):
                self._note_failed_start(message, traceback)
            case Saved(serial):
                self._dealer.finish(serial)
                self._lost_idle = 0
                self._counts.completed += 1
            case Failed(serial):
                self._note_failure(serial)
            case Ended(serial, clean):
                self._note_end(serial, clean)
            case Unable(error):
                self._fail(error)
            case _:
                raise TypeError(f"the saver cannot report {report!r}")

    def _start_workers(self) -> None:
        """As many as there are paths for, also in place of those that died."""
        wanted = min(self._max_workers, self._dealer.to_do + self._dealer.in_work)
        while len(self._crew) < wanted and self._error is None:
            try:
                self._crew.start()
            except WorkerStartError as error:
                self._fail(error)

    def _deal_paths(self) -> None:
        for worker in self._crew.ready_workers():
            if not self._dealer.is_busy(worker.serial):
                batch = self._dealer.deal(worker.serial)
                if batch:
                    worker.deal(batch)

    def _dismiss_workers(self) -> None:
        if self._opened and self._dealer.over:
            self._crew.dismiss()

    def _show_progress(self) -> None:
        self._progress.draw(self._counts, time.monotonic() - self._begun)

    # What is decided.

    def _note_opened(self, notes: list[str]) -> None:
        """The checkpoint is locked: what it has now, nobody else will add to."""
        for note in notes:
            self._progress.announce(note)
        completed, failures = self._checkpoint.completed(), {*self._checkpoint.failures()}
        paths = [path for path in self._files if path not in completed]
        self._counts.skipped = len(self._files) - len(paths)
        failed_before = sum(path in failures for path in paths)
        if self._counts.skipped or failed_before:
            self._progress.say(describe_start(self._counts, failed_before))
        self._dealer.add(paths)
        self._opened = True

    def _note_failure(self, serial: int) -> None:
        """The function failed, or was made to fail by what stops the run: then nobody can say what
        it would have done, and the file is still to do."""
        self._dealer.finish(serial)
        self._lost_idle = 0
        if self._stop_requests.count:
            self._saver.tell(DropFailure(serial))
        else:
            self._saver.tell(KeepFailure(serial))
            self._counts.failed += 1

    def _note_end(self, serial: int, clean: bool) -> None:
        """A worker's stream has ended, and what was whole in it is saved: only now is it certain
        that no outcome will come of the file it had in work."""
        worker = self._crew.remove(serial)
        if worker is None:  # its start has failed
            return
        how, last_words = worker.bury(in_peace=clean)
        path = self._dealer.lose(serial)
        if self._stop_requests.count or worker.dismissed:
            return
        if path is not None:
            self._note_crash(worker, path, f"its worker {how}", last_words)
        elif self._dealer.to_do:
            self._lost_idle += 1
            if self._lost_idle >= START_ATTEMPTS or not (worker.ready or worker.was_killed):
                self._note_failed_start(f"before its first file, a worker {how}", last_words)

    def _note_crash(self, worker: Worker, path: str, message: str, traceback: str) -> None:
        seconds = time.monotonic() - worker.busy_since
        failure = Failure(path, "crashed", message, traceback, 1, seconds)
        self._saver.tell(RecordCrash(Outcome(path, None, 0, failure, seconds)))
        self._counts.failed += 1

    def _note_failed_start(self, message: str, traceback: str) -> None:
        self._fail(WorkerStartError(f"a worker cannot start: {message}", START_REMEDY, traceback))

    def _fail(self, error: ResumablePoolError) -> None:
        """Bring the run to an end for this reason, if there is no earlier one."""
        if self._error is None:
            self._error = error
            self._dealer.stop()
            if self._dealer.in_work and not isinstance(error, SaverError):
                self._progress.announce(
                    f"{type(error).__name__}: finishing {count_files(self._dealer.in_work)} first; "
                    "press Ctrl-C twice to abandon them"
                )

    # The end.

    def _end(self) -> None:
        """No process is left: workers have gone, or go now because something is wrong."""
        lost = self._saver.gone
        self._crew.kill()
        self._saver.no_more_workers()
        while not self._saver.gone:
            wait([self._saver.reports, self._saver.process.sentinel], TICK_SECONDS)
            for report in self._saver.read_reports():
                if isinstance(report, Unable):
                    self._fail(report.error)
        how = self._saver.bury()
        if how or lost:
            self._fail(self._lost_saver(how or "ended"))
        self._progress.end(self._counts)
        if self.stopped:
            self._progress.announce(f"Stopped. {describe_end(self._counts)}; run again to go on")

    def _lost_saver(self, how: str) -> ResumablePoolError:
        if self._opened:
            return SaverError(self._checkpoint.path, f"the saver process {how}")
        return WorkerStartError(f"the saver process {how} before it was ready", MAIN_GUARD_REMEDY)
