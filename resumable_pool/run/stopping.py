"""How a run is stopped before everything is done: files in progress are finished first. If somebody
insists, or it takes too long, they are abandoned.

    GOING ──any request──▶ FINISHING ──due──▶ ABANDONING ──a signal, after a while──▶ GIVEN_UP

Pure: no signal handler, no worker; the clock is an argument. The loop does what is decided here.
"""

from __future__ import annotations

import enum

from ..between.clock import NEVER
from ..records import in_words
from .stop_requests import BY_CALL, CONSOLE_CLOSED, TIME_OVER

# What has come is saved within moments. If it is not, because the saver waits for a dead disk or
# hangs in a hook, somebody may insist; not earlier, since many press Ctrl-C more than twice.
SAVING_SECONDS = 3.0

# A console of Windows that is closed ends its programs after five seconds: time to abandon what is
# in work, and to save what has come.
CLOSING_SECONDS = 3.0

# Requests that never abandon anything, however many there are.
_ASKED = BY_CALL, TIME_OVER


class Phase(enum.Enum):
    """What a run waits for before it ends."""

    GOING = enum.auto()  # all files
    FINISHING = enum.auto()  # those in progress; no others are dealt
    ABANDONING = enum.auto()  # that what has arrived from them is saved
    GIVEN_UP = enum.auto()  # nothing


class Stopping:
    """Whether and how one run is being stopped.

    Attributes:
        phase: what is still waited for.
        due: when the files in progress will be abandoned, or when it is time to say that what has
            arrived from them is not saved yet.
    """

    def __init__(self, grace_period: float) -> None:
        self.phase = Phase.GOING
        self.due = self._insist_at = NEVER
        self._grace_period = grace_period
        self._interrupted = False

    @property
    def stopped(self) -> bool:
        """Whether somebody, or something, has stopped the run."""
        return self.phase is not Phase.GOING

    def hear(self, request: str, now: float) -> str | None:
        """Somebody asks for a stop. Returns what to say of how files in progress are finished, or
        `None` if there is nothing new to be said."""
        if self.phase in (Phase.ABANDONING, Phase.GIVEN_UP):
            if now >= self._insist_at and request not in _ASKED:
                self.phase = Phase.GIVEN_UP
        elif request in _ASKED:
            return None if self.stopped else ""
        elif request != "SIGINT":
            closing = CLOSING_SECONDS if request == CONSOLE_CLOSED else NEVER
            seconds = min(closing, self._grace_period)
            self.due = min(self.due, now + seconds)
            return f", for {in_words(seconds)} at most"
        elif self._interrupted:
            self.due = now
        else:
            self._interrupted = True
            return "; press it again to abandon them"
        return None

    def stop(self) -> bool:
        """From now on files in progress are finished. Returns whether that is new."""
        new = not self.stopped
        if new:
            self.phase = Phase.FINISHING
        return new

    def abandon(self, now: float) -> bool:
        """It is `due`. Returns whether to abandon the files in progress; what has arrived from them
        is abandoned only if somebody insists, once that has been said."""
        if self.phase is not Phase.FINISHING:
            self.due = NEVER
            return False
        self.phase = Phase.ABANDONING
        self.due = self._insist_at = now + SAVING_SECONDS
        return True
