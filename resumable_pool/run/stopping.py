"""How a run is stopped before everything is done: files in progress are finished first. If somebody
insists, or it takes too long, they are abandoned.

Knows no signal handler, and nothing of what becomes of a file.
"""

from __future__ import annotations

from ..between.clock import NEVER
from ..errors import STOPS
from ..options import Options
from ..records import count_files, in_words
from .books import Dealer
from .ledger import Ledger
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


class Stopping:
    """Whether and how one run is being stopped. Lives in the runner's process.

    Attributes:
        stopped: whether no new files are dealt.
        due: when the files in progress, or what has arrived from them, will be abandoned.
        insisted: whether the run does not even wait for what has arrived.
    """

    def __init__(
        self,
        options: Options,
        requests: StopRequests,
        dealer: Dealer,
        crew: Crew,
        ledger: Ledger,
        story: Story,
    ) -> None:
        self.stopped = self.insisted = self._abandoned = False
        self.due = self._insist_at = NEVER
        self._grace_period = options.grace_period
        self._requests = requests
        self._dealer = dealer
        self._crew = crew
        self._counts = ledger.counts
        self._story = story
        self._interrupts = 0

    def follow_requests(self, now: float) -> None:
        """Do as has been asked since the last time, and abandon what is due."""
        for request in self._requests.take():
            if self._abandoned:
                self.insisted = self.insisted or (now >= self._insist_at and request not in _ASKED)
            elif request == "SIGINT":
                self._interrupts += 1
                if self._interrupts == 1:
                    self.stop("Ctrl-C", now, "; press it again to abandon them")
                else:
                    self.due = now
            elif request in _ASKED:
                if not self.stopped:
                    self.stop(request, now)
            else:
                seconds = CLOSING_SECONDS if request == CONSOLE_CLOSED else self._grace_period
                seconds = min(seconds, self._grace_period)
                self.stop(request, now, f", for {in_words(seconds)} at most")
                self.due = min(self.due, now + seconds)
        if now >= self.due:
            self._abandon(now)

    def stop(self, why: str, now: float, how: str = "") -> None:
        """Deal nothing more; files in progress are finished."""
        if not self.stopped:
            self.stopped = self._counts.stopping = True
            self._dealer.stop()
            self._crew.recall()
            self._crew.terminate(now, State.STARTING)
        in_work = self._dealer.busy
        if self._crew.engine:
            how = f"{how} (they are with the {self._crew.engine})"
        what = f"finishing {count_files(in_work)}{how}" if in_work else "stopping"
        self._story.announce(f"{why}: {what}")

    def end(self) -> None:
        """The run has ended: say where it stands, where there will be no report."""
        if self._requests.signals:
            again = "; run again to go on" if self._counts.finished < self._counts.total else ""
            self._story.announce(f"Stopped. {describe_end(self._counts)}{again}")

    def _abandon(self, now: float) -> None:
        """First the files in progress; what has arrived from them only if somebody insists."""
        if self._abandoned:
            self.due = NEVER
            self._story.announce(
                f"the saver has not yet saved what has arrived; another {STOPS} gives up on it"
            )
            return
        self._abandoned = True
        self.due = self._insist_at = now + SAVING_SECONDS
        states = State.STARTING, State.READY, State.LEAVING
        more = bool(self._crew.are(*states))
        self._crew.terminate(now, *states)
        if more and self._dealer.busy:
            self._story.announce(f"abandoning {count_files(self._dealer.busy)}")
