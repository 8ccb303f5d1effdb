"""How a run is stopped before everything is done: files in progress are finished first. If somebody
insists, or it takes too long, they are abandoned.

Knows no signal handler, and nothing of what becomes of a file.
"""

from __future__ import annotations

import enum

from ..between.clock import NEVER
from ..errors import STOPS
from ..records import count_files, in_words
from .books import Books
from .screen import Story, describe_end
from .stop_requests import BY_CALL, CONSOLE_CLOSED, TIME_OVER, StopRequests
from .workers import Crew, State

# What has come is saved within moments. If it is not, because the saver waits for a dead disk or
# hangs in a hook, somebody may insist; not earlier, since many press Ctrl-C more than twice.
SAVING_SECONDS = 3.0

# A console of Windows that is closed ends its programs after five seconds: time to abandon what is
# in work, and to save what has come.
CLOSING_SECONDS = 3.0

# Requests that never abandon anything, however many there are.
_ASKED = BY_CALL, TIME_OVER


class Phase(enum.Enum):
    """What a run waits for before it ends.

    GOING ──any request──▶ FINISHING ──due──▶ ABANDONING ──a signal, once it may insist──▶ GIVEN_UP
    """

    GOING = enum.auto()  # all files
    FINISHING = enum.auto()  # those in progress; no others are dealt
    ABANDONING = enum.auto()  # that what has arrived from them is saved
    GIVEN_UP = enum.auto()  # nothing


class Stopping:
    """Whether and how one run is being stopped. Lives in the runner's process.

    Attributes:
        phase: what is still waited for.
        due: when the files in progress, or what has arrived from them, will be abandoned.
    """

    def __init__(
        self,
        grace_period: float,
        requests: StopRequests,
        books: Books,
        crew: Crew,
        story: Story,
    ) -> None:
        self.phase = Phase.GOING
        self.due = self._insist_at = NEVER
        self._grace_period = grace_period
        self._requests = requests
        self._books = books
        self._crew = crew
        self._story = story
        self._interrupted = False

    @property
    def stopped(self) -> bool:
        """Whether somebody, or something, has stopped the run."""
        return self.phase is not Phase.GOING

    def follow_requests(self, now: float) -> None:
        """Do as has been asked since the last time, and abandon what is due."""
        for request in self._requests.take():
            if self.phase in (Phase.ABANDONING, Phase.GIVEN_UP):
                if now >= self._insist_at and request not in _ASKED:
                    self.phase = Phase.GIVEN_UP
            elif request in _ASKED:
                if not self.stopped:
                    self.stop(request, now)
            elif request != "SIGINT":
                closing = CLOSING_SECONDS if request == CONSOLE_CLOSED else NEVER
                seconds = min(closing, self._grace_period)
                self.stop(request, now, f", for {in_words(seconds)} at most")
                self.due = min(self.due, now + seconds)
            elif self._interrupted:
                self.due = now
            else:
                self._interrupted = True
                self.stop("Ctrl-C", now, "; press it again to abandon them")
        if now >= self.due:
            self._abandon(now)

    def stop(self, why: str, now: float, how: str = "") -> None:
        """Deal nothing more; files in progress are finished."""
        if not self.stopped:
            self.phase = Phase.FINISHING
            self._books.stop()
            self._crew.recall()
            self._crew.terminate(now, State.STARTING)
        in_work = self._books.busy
        if self._crew.engine:
            how = f"{how} (they are with the {self._crew.engine})"
        what = f"finishing {count_files(in_work)}{how}" if in_work else "stopping"
        self._story.announce(f"{why}: {what}")

    def end(self) -> None:
        """The run has ended: say where it stands, where there will be no report."""
        if self._requests.signals:
            counts = self._books.counts
            again = "; run again to go on" if counts.finished < counts.total else ""
            self._story.announce(f"Stopped. {describe_end(counts)}{again}")

    def _abandon(self, now: float) -> None:
        """First the files in progress; what has arrived from them only if somebody insists."""
        if self.phase is not Phase.FINISHING:
            self.due = NEVER
            self._story.announce(
                f"the saver has not yet saved what has arrived; another {STOPS} gives up on it"
            )
            return
        self.phase = Phase.ABANDONING
        self.due = self._insist_at = now + SAVING_SECONDS
        states = State.STARTING, State.READY, State.LEAVING
        if self._crew.are(*states) and self._books.busy:
            self._story.announce(f"abandoning {count_files(self._books.busy)}")
        self._crew.terminate(now, *states)
