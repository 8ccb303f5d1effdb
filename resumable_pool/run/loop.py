"""The runner's side of a run: the loop, and what it decides about workers (see runner.py).

Knows nothing of bytes and pickles, of how a process is started or ended, nor of checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..between import children, messages
from ..between.clock import Clock
from ..between.forks import Owned
from ..between.system import broken_pipes_raise
from ..between.waiting import Waiter
from ..errors import BY_SIGNALS, STOPS, SaverError, WorkerStartError
from ..options import Options
from ..records import Failure, Outcome, WorkerStatus, count_files, in_words, quoted
from ..saver.saving import Saving
from ..values import Encoder
from .books import Books, Verdict
from .plan import Plan
from .processes import Crew, Saver, State, Worker
from .screen import DEBUG, INFO, Screen, describe_end
from .stopping import Phase, Stopping, StopRequests, handlers_held_back
from .suspicion import Starts

# The loop waits for events. This is how soon it notices what makes none: a death that something
# which the worker has forked keeps quiet, and a signal that came just before it began to wait.
TICK_SECONDS = 1.0

# Workers are started for so long at a time, or one of them if that takes longer, as it does where a
# program of gigabytes is forked: those that are there have work meanwhile, and a Ctrl-C is heard.
STARTING_SECONDS = 0.05

# Who takes longer over what has been saved is given one at a time: between them files that take too
# long are ended, and nothing new is dealt. And batches are of one file, since after a stop, too, he
# is given all that is saved.
SLOW_SECONDS = 0.05

_REMEDY = "Fix that and run again; what was saved is kept."


class Run:
    """One run, as its runner sees it. Lives in the runner's process, in the thread of `run`.

    It is given what the saver saves with, what says what is to do once the checkpoint is locked,
    and what workers it has. It keeps the `books`.
    """

    def __init__(
        self,
        options: Options,
        saving: Saving,
        make_plan: Callable[[], Plan],
        books: Books,
        stop_requests: StopRequests,
        screen: Screen,
        crew: type[Crew],
    ) -> None:
        children.refuse_in_daemonic_process()
        self._make_plan = make_plan
        self._books = books
        self._clock = Clock()
        self._stop_requests = stop_requests
        self._screen = screen
        self._opened = self._behind = self._excused = False
        self._slow = True  # until it turns out that who gets the outcomes is not
        self._error: Exception | None = None
        self._stopping = Stopping(options.grace_period)
        self._starts = Starts()
        self._waiter = Waiter()
        self._waiter.add(stop_requests.wakener)
        self._saver = Saver(options.context, saving, self._waiter)
        self._crew = crew(options, self._saver, books, self._waiter, stop_requests.wake)
        self._forked = self._crew.forked
        self._threads = self._forked and children.has_other_threads()

    def go(self) -> Iterator[list[str]]:
        """Until every file is dealt with, or can not be, and every process has left.

        Yields:
            The paths whose outcomes have been saved, some at a time. While nobody asks for more
            nothing new is dealt, but everything is saved.
        """
        # Twice: the handler of a signal may raise before all of that has begun.
        with Owned() as life, life:
            try:
                with handlers_held_back(), broken_pipes_raise():
                    self._saver.start()
                    end = handlers_held_back()(broken_pipes_raise()(self._end))
                    life.callback(end, life)
                    life.callback(end, life)
            except WorkerStartError as error:
                self._fail(error)
            # Not a loop in this block, which Python 3.12 and 3.13 would not leave by `__exit__` if
            # the handler of a signal raised where a loop jumps back.
            yield from self._turns()
        yield self._books.take_finished()
        if self._error is not None and not self._excused:
            raise self._error

    def _turns(self) -> Iterator[list[str]]:
        while not self._over():
            with broken_pipes_raise():
                self._turn()
            yield from self._hand_out()

    def _turn(self) -> None:
        self._show_progress()
        ready = self._wait_for_something()
        self._look()
        for serial, report in self._saver.read_reports():
            self._note_report(serial, report)
        self._attend_workers(ready)
        self._crew.end_overdue(self._clock.now)
        self._judge_failures()
        self._start_workers()
        self._deal_paths()
        if self._no_more_files():
            self._crew.dismiss()

    def _hand_out(self) -> Iterator[list[str]]:
        """What has been saved, or only the first of it, while who gets it is slow."""
        finished = self._books.take_finished(1 if self._slow else None)
        if self._behind:  # nothing was dealt, and so nothing else will wake the loop
            self._stop_requests.wake()
        self._behind = bool(self._books.untaken)
        begun = self._clock.look()
        yield finished
        if finished:
            self._slow = self._clock.look() > begun + SLOW_SECONDS

    def workers(self) -> list[WorkerStatus]:
        """What each worker does now. From any thread."""
        return self._crew.statuses(self._clock.peek())

    def _over(self) -> bool:
        return self._saver.gone or (self._no_more_files() and not self._crew)

    def _no_more_files(self) -> bool:
        return self._opened and self._books.over

    def _wait_for_something(self) -> list[Any]:
        with self._clock.waiting(self._patience()) as patience:
            return self._waiter.wait(patience, self._crew.events(self._clock.now))

    def _patience(self) -> float:
        """How long to wait for an event until something is due by the clock."""
        if self._short_of_workers() or self._behind:
            return 0.0
        now = self._clock.look()
        later = [at for at in (self._starts.allowed_at, *self._crew.moments()) if at > now]
        due = min(self._books.due, self._stopping.due, *later)
        seconds = min(due - now, self._stop_requests.seconds_left)
        return min(TICK_SECONDS, max(0.0, seconds))

    # The steps of the loop.

    def _look(self) -> None:
        """What time is it, and has anybody asked for a stop?"""
        now = self._clock.look()
        for request in self._stop_requests.take():
            how = self._stopping.hear(request, now)
            if how is not None:
                self._stop("Ctrl-C" if request == "SIGINT" else request, how)
        if now >= self._stopping.due:
            self._abandon(now)
        if self._stopping.phase is Phase.GIVEN_UP:
            self._saver.kill()

    def _note_report(self, serial: int, report: messages.FromSaver) -> None:
        match report:
            case messages.Received(number):  # by far the most
                self._note_outcomes(serial, number)
                self._books.finish(serial, number, self._clock.now)
            case messages.Opened(notes, encoder):
                self._note_opened(notes, encoder)
            case messages.Ready():
                self._crew[serial].note_ready()
                self._starts.possible = True
                since = f"{in_words(self._clock.now)} after the start of the run"
                self._screen.log(DEBUG, f"{self._crew[serial].name} is ready, {since}")
            case messages.StartFailed():
                self._note_start_failed(serial, report)
            case messages.Saved(number):
                self._books.note_saved(number)
            case messages.FailureSaved(path):
                self._books.note_failure_saved(path)
            case Outcome():
                self._note_failure(serial, report)
            case messages.BatchOver():
                if self._crew[serial].state is not State.CONDEMNED:
                    self._books.give_back(serial)  # or what it has is decided when it has ended
            case messages.Ended(clean):
                self._note_end(serial, clean)
            case messages.Unable(error):
                self._fail(error)
            case _:
                raise TypeError(f"the saver cannot report {report!r}")

    def _attend_workers(self, ready: Sequence[object]) -> None:
        for worker in self._crew.attend(ready, self._clock.now):
            self._note_gone(worker)
        self._fail(self._crew.error)

    def _judge_failures(self) -> None:
        self._books.review()
        now = self._clock.now
        while judged := self._books.judge(now, self._stopping.stopped):
            verdict, outcome, failure = judged
            if self._forked and verdict is not Verdict.DROP:
                self._suspect_fork(failure)
            if verdict is Verdict.SAVE:
                self._saver.tell(messages.SaveFailure(outcome))
                self._screen.fails(failure, self._books)
            else:
                what = f"{verdict.value} (attempt {failure.attempts})"
                self._screen.log(INFO, f"{quoted(failure.path)} {what}: {failure.message}")
            if self._books.too_many and not self._stopping.stopped:
                self._stop(self._books.too_many)
        self._books.wake(now)

    def _suspect_fork(self, failure: Failure) -> None:
        """A library that had threads in the program, or a GPU, often hangs in a forked copy of it,
        or says that it cannot be used there. Told once."""
        first = failure.kind == "timeout" and not self._books.completed
        if (first and self._threads) or "forked" in failure.message.lower():
            self._forked = False
            self._screen.suspects_fork(failure)

    def _start_workers(self) -> None:
        """As many as there are paths for, also in place of those that died."""
        enough = self._clock.look() + STARTING_SECONDS
        while self._short_of_workers():
            try:
                with handlers_held_back():
                    self._crew.start()
            except WorkerStartError as error:
                self._note_no_start(error, by_itself=True)
            if self._clock.look() >= enough:
                break

    def _short_of_workers(self) -> bool:
        """Also before the checkpoint is open: they come into being meanwhile, and wait for it."""
        may_start = self._error is None and self._clock.now >= self._starts.allowed_at
        return may_start and len(self._crew) < self._books.wanted

    def _deal_paths(self) -> None:
        if self._behind or not self._opened or not self._books.may_deal():
            return
        now = self._clock.look()  # it may have taken long to start workers
        for worker in self._crew.are(State.READY):
            if self._books.is_busy(worker.serial):
                continue
            most = self._crew.most(worker.serial)
            batch = self._books.deal(worker.serial, now, min(most, 1) if self._slow else most)
            if batch:
                worker.deal(batch, now)
            elif batch is None:
                worker.dismiss()

    def _show_progress(self) -> None:
        now, books = self._clock.now, self._books
        if not books.ready_at:
            ready = bool(self._crew.are(State.READY, State.LEAVING))
            books.starting, books.ready_at = (0, now) if ready else (len(self._crew), 0.0)
        if self._opened:  # a run that was refused has not begun
            self._screen.draw(books, now)
        self._fail(self._screen.error)

    # What is decided.

    def _note_opened(self, notes: list[str], encoder: Encoder) -> None:
        """The checkpoint is locked: what it has now, nobody else will add to."""
        plan = self._make_plan()
        self._screen.knows_the_plan(plan, notes)
        self._books.begin(plan, plan.killed())
        self._opened = True
        self._crew.begin(encoder)

    def _note_outcomes(self, serial: int, number: int) -> None:
        if (worker := self._crew.get(serial)) is not None:
            if not worker.finished:
                self._starts.note_proven()
            worker.note_outcomes(number)

    def _note_failure(self, serial: int, outcome: Outcome[Any]) -> None:
        """The function failed."""
        if self._crew[serial].state is State.CONDEMNED:
            return  # it failed of being told to end, and its worker's end is near
        self._note_outcomes(serial, 1)
        self._books.fail(serial, outcome, self._clock.now)

    def _note_start_failed(self, serial: int, said: messages.StartFailed) -> None:
        """One of our own ends now; behind an executor no other process would do better."""
        worker = self._crew.get(serial)
        if worker is not None and worker.state is not State.READY:
            worker.said = said
        elif not self._stopping.stopped:
            self._fail(_start_error(*said))

    def _note_no_start(self, error: WorkerStartError, by_itself: bool) -> None:
        """A worker could not be started, or has ended before its first file, for this reason."""
        now = self._clock.now
        others = bool(self._crew.are(State.STARTING, State.READY) or self._books.busy)
        if self._stopping.stopped:  # it may have failed of being told to end
            return
        if self._starts.note_failed(now, by_itself, others):
            self._fail(error)
        else:
            pause = in_words(max(0.0, self._starts.allowed_at - now))
            self._screen.say(f"{error.reason}; trying another start in {pause}")

    def _note_end(self, serial: int, clean: bool) -> None:
        """A worker's stream has ended, and what was whole in it is saved: only now is it certain
        that no outcome will come of its file in progress."""
        if clean and not self._books.is_busy(serial):
            self._books.lose(serial)  # at once: how long it takes to leave says nothing of files
        if (worker := self._crew.get(serial)) is not None:  # its start may have failed
            worker.note_end(clean, self._clock.now)

    def _note_gone(self, worker: Worker) -> None:
        """And its process has ended, so it is known how."""
        serial = worker.serial
        with handlers_held_back():
            del self._crew[serial]
            how, last_words = worker.bury()
        if not worker.was_clean:
            then = "if there are files left for it, another one takes its place"
            self._screen.log(INFO, f"{worker.name} {how}; {then}")
        now = self._clock.now
        if worker.unread and self._books.is_busy(serial):
            self._books.give_back(serial)  # it was dead, or as good as dead, before
        _, since = self._books.in_work(serial) or ("", now)
        path = self._books.lose(serial, certain=worker.to_blame)
        if path is not None:
            worker.finished += 1
            self._books.blame(path, *worker.deadline.failure(how), last_words, now - since, now)
        elif worker.state in (State.STARTING, State.READY) and not worker.finished:
            more = self._opened and (self._books.to_do or self._books.waiting)
            if worker.said or more:  # or nobody needs it any more
                by_itself = worker.state is State.STARTING and not worker.was_killed
                words = worker.said or (f"before its first file, a worker {how}", last_words)
                self._note_no_start(_start_error(*words), by_itself)

    def _stop(self, why: str, how: str = "") -> None:
        """Deal nothing more; files in progress are finished."""
        if self._stopping.stop():
            self._books.stop()
            self._crew.recall()
            self._crew.terminate(self._clock.now, State.STARTING)
        in_work = self._books.busy
        if self._crew.engine:
            how = f"{how} (they are with the {self._crew.engine})"
        what = f"finishing {count_files(in_work)}{how}" if in_work else "stopping"
        self._screen.announce(f"{why}: {what}")

    def _abandon(self, now: float) -> None:
        """First the files in progress; what has arrived from them only if somebody insists."""
        if not self._stopping.abandon(now):
            self._screen.announce(
                f"the saver has not yet saved what has arrived; another {STOPS} gives up on it"
            )
            return
        states = State.STARTING, State.READY, State.LEAVING
        if self._crew.are(*states) and self._books.busy:
            self._screen.announce(f"abandoning {count_files(self._books.busy)}")
        self._crew.terminate(now, *states)

    def _fail(self, error: Exception | None) -> None:
        """Bring the run to an end for this reason, if it is one and there is no earlier one."""
        if error is not None and self._error is None:
            self._error = error
            self._excused = isinstance(error, BY_SIGNALS) and bool(self._stop_requests.signals)
            self._books.stop()
            self._crew.recall()
            if self._books.busy and not isinstance(error, SaverError):
                what = f"{type(error).__name__}: finishing {count_files(self._books.busy)} first"
                self._screen.announce(f"{what}; press Ctrl-C twice to abandon them")

    # The end.

    def _end(self, life: Owned) -> None:
        """No process is left: workers have gone, or go now because something is wrong."""
        life.pop_all()  # not once more
        lost = self._saver.gone
        self._crew.kill()
        for serial, report in self._saver.last_reports(self._look):
            if isinstance(report, (messages.Unable, messages.Received, messages.Saved)):
                self._note_report(serial, report)
        how = self._saver.bury()
        if (how or lost) and self._stopping.phase is not Phase.GIVEN_UP:
            self._fail(self._saver.loss(how or "ended", self._opened))
        self._screen.end(self._books)
        self._fail(self._screen.error)
        if self._stop_requests.signals:  # and so there will be no report
            again = "; run again to go on" if self._books.finished < self._books.total else ""
            self._screen.announce(f"Stopped. {describe_end(self._books)}{again}")


def _start_error(message: str, traceback: str) -> WorkerStartError:
    """What ends the run when a worker cannot start, for this reason."""
    return WorkerStartError(f"a worker cannot start: {message}", _REMEDY, traceback)
