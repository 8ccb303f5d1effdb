"""The workers' streams of outcomes as the saver sees them, and how each of them ends.

    open ──Done, with the right count──▶ ended, clean
    open ──end of file, death note, bytes that are no message──▶ ended, not clean

whichever comes first, once. An end of file does not prove a clean end (the worker may have died
between two messages), and a death need not bring an end of file (something that the worker forked
may hold the pipe), so neither is relied on alone.

Knows nothing of the checkpoint, or of what an end means for a file.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..between import forks, system
from ..between.frames import FrameReader
from ..between.messages import Done, Ended, FromSaver, FromWorker, Hello, Values
from ..between.pipes import End
from ..between.waiting import Waiter
from ..records import Outcome

# What comes out of a stream.
FromStream = FromSaver | Values


class _Stream(FrameReader):
    """One worker's pipe, and how many outcomes came through it."""

    def __init__(self, worker: int, end: End) -> None:
        super().__init__(end)
        self.worker = worker
        self.pid: int | None = None
        self.outcomes = 0


class Streams:
    """All streams that are open, and what has come through them. Lives in the saver process.

    Their pipes are among those that `waiter` waits for.

    Attributes:
        received: what has come and was not taken yet, in order: worker, and message or end.
    """

    def __init__(self, waiter: Waiter) -> None:
        self.received: list[tuple[int, FromStream]] = []
        self._waiter = waiter
        self._streams: dict[End, _Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def add(self, worker: int, end: End) -> None:
        """Read this pipe, too."""
        self._streams[end] = _Stream(worker, end)
        self._waiter.add(end)

    def read(self, ready: Iterable[End]) -> None:
        """Receive what is there in those of the pipes that are `ready`."""
        for end in ready:
            if (stream := self._streams.get(end)) is not None:
                self._receive(stream, stream.messages())

    def end_dead(self, worker: int) -> None:
        """The worker is dead: receive what it has left, and end its stream if it has not."""
        for stream in [each for each in self._streams.values() if each.worker == worker]:
            self._drain(stream)

    def end_orphaned(self) -> None:
        """End the streams of dead workers when nobody is there to tell who is dead."""
        for stream in [*self._streams.values()]:
            if stream.pid is not None and not system.lives(stream.pid):
                self._drain(stream)

    def kill_workers(self) -> None:
        """Kill the workers whose streams are open, with all that they have started."""
        for stream in self._streams.values():
            if stream.pid is not None:
                system.signal_group(stream.pid, "SIGKILL")

    def _drain(self, stream: _Stream) -> None:
        self._receive(stream, stream.remaining_messages())
        if stream.end in self._streams:
            self._end(stream, clean=False)

    def _receive(self, stream: _Stream, messages: list[FromWorker]) -> None:
        for message in messages:
            match message:
                case Values(records):
                    stream.outcomes += len(records)
                case Outcome():
                    stream.outcomes += 1
                case Hello(pid):
                    stream.pid = pid
                    continue
                case Done(outcomes):
                    self._end(stream, clean=outcomes == stream.outcomes)
                    return
            self.received.append((stream.worker, message))
        if stream.at_end:
            self._end(stream, clean=False)

    def _end(self, stream: _Stream, clean: bool) -> None:
        del self._streams[stream.end]
        self._waiter.remove(stream.end)
        forks.close(stream.end)
        self.received.append((stream.worker, Ended(clean)))
