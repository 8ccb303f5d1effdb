"""The line of progress: counts into text, and text onto streams."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator

import pytest

from resumable_pool.progress import REDRAW_SECONDS, Counts, ProgressLine, progress_line, render

posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")


@pytest.mark.parametrize(
    ("counts", "seconds", "line"),
    [
        (Counts(0, 0), 0.0, "0/0 files"),
        (Counts(1, 0), 5.0, "0/1 file"),
        (Counts(1296, 1203), 5.0, "1,203/1,296 files"),
        (Counts(10, 0, completed=5), 0.0, "5/10 files"),
        (Counts(10, 0, completed=5), 2.0, "5/10 files, 2.5 files/s, 2.0 s left"),
        (Counts(110, 100, completed=5), 2.0, "105/110 files, 2.5 files/s, 2.0 s left"),
        (Counts(10, 0, completed=4, failed=1), 2.0,
         "5/10 files, 1 failed, 2.5 files/s, 2.0 s left"),
        (Counts(10, 0, failed=10), 5.0, "10/10 files, 10 failed, 2.0 files/s, 0.0 s left"),
        (Counts(100, 0, completed=1), 60.0, "1/100 files, 1 min 00 s a file, 1 h 39 min left"),
        (Counts(100_000, 0, completed=50_000), 10.0,
         "50,000/100,000 files, 5,000.0 files/s, 10 s left"),
    ],
)  # fmt: skip
def test_render(counts: Counts, seconds: float, line: str) -> None:
    """Files done before count as done; speed and time left come from this run alone."""
    assert render(counts, seconds) == line


def _drawn(*seconds: float) -> str:
    stream = io.StringIO()
    line = ProgressLine(stream, redrawn=True)
    for completed, now in enumerate(seconds):
        line.draw(Counts(len(seconds), 0, completed), now)
    return stream.getvalue()


def test_the_line_is_redrawn_in_its_place() -> None:
    """Each drawing starts at the beginning of the line, and none ends it."""
    first, second = _drawn(0.0, 1.0)[1:].split("\r")
    assert first == "0/2 files"
    assert second == "1/2 files, 1.0 files/s, 1.0 s left"


def test_drawing_too_often_is_left_out() -> None:
    """Within a fraction of a second of the last drawing nothing is drawn."""
    just_before = REDRAW_SECONDS * 0.9
    assert _drawn(0.0, just_before, REDRAW_SECONDS, REDRAW_SECONDS + just_before).count("\r") == 2


def test_a_shorter_line_covers_a_longer_one() -> None:
    """What a longer line left behind is overwritten, also at the end."""
    stream = io.StringIO()
    line = ProgressLine(stream, redrawn=True)
    line.draw(Counts(10, 0, 5), 5.0)
    longer = len(stream.getvalue()) - 1
    line.draw(Counts(10, 0), 10.0)
    assert stream.getvalue().endswith("\r" + "0/10 files".ljust(longer))
    line.clear()
    assert stream.getvalue().endswith("\r" + " " * 10 + "\r")
    line.clear()
    assert stream.getvalue().endswith("\r" + " " * 10 + "\r")


def test_what_is_said_gets_a_line_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """A message clears the line of progress, ends its own, and goes to the logger as well."""
    stream = io.StringIO()
    line = ProgressLine(stream, redrawn=True)
    line.draw(Counts(1, 0), 0.0)
    with caplog.at_level(logging.INFO, "resumable_pool"):
        line.say("hello")
        line.announce("attention")
    assert stream.getvalue() == "\r0/1 file\r        \rhello\nattention\n"
    assert caplog.messages == ["hello", "attention"]


def test_where_nobody_watches_only_announcements_are_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """On a stream that is no terminal neither progress nor small talk is written."""
    stream = io.StringIO()
    line = progress_line(None, stream)
    with caplog.at_level(logging.INFO, "resumable_pool"):
        line.draw(Counts(1, 0), 0.0)
        line.say("hello")
        line.announce("attention")
        line.clear()
    assert stream.getvalue() == "attention\n"
    assert caplog.messages == ["hello", "attention"]


def test_progress_can_be_asked_for_anywhere() -> None:
    """progress=True draws on whatever stream there is."""
    stream = io.StringIO()
    progress_line(True, stream).draw(Counts(1, 0), 0.0)
    assert stream.getvalue() == "\r0/1 file"


@pytest.mark.parametrize("progress", [False, None, True])
def test_nothing_is_written_where_nobody_wants_it(
    progress: bool | None, caplog: pytest.LogCaptureFixture
) -> None:
    """progress=False writes nothing at all, and neither does a process without stderr; the logger
    has it."""
    stream = io.StringIO()
    line = progress_line(progress, stream if progress is False else None)
    with caplog.at_level(logging.INFO, "resumable_pool"):
        line.draw(Counts(1, 0), 0.0)
        line.announce("attention")
        line.clear()
    assert stream.getvalue() == ""
    assert caplog.messages == ["attention"]


def test_a_closed_stream_is_no_matter() -> None:
    """When the stream was closed, the run goes on in silence."""
    stream = io.StringIO()
    line = progress_line(True, stream)
    stream.close()
    line.draw(Counts(1, 0), 0.0)
    line.announce("attention")
    assert progress_line(None, stream) is not None


class Terminal:
    """A real terminal of so many columns."""

    def __init__(self, columns: int) -> None:
        import fcntl
        import struct
        import termios

        self._master, terminal = os.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(terminal, "w")

    def shown(self) -> str:
        self.stream.write("|")
        self.stream.flush()
        shown = ""
        while not shown.endswith("|"):
            shown += os.read(self._master, 10_000).decode()
        return shown[:-1]

    def hang_up(self) -> None:
        os.close(self._master)
        self._master = -1

    def close(self) -> None:
        if self._master >= 0:
            self.hang_up()
        with contextlib.suppress(OSError):  # it may hold what nobody can be shown any more
            self.stream.close()


@pytest.fixture
def terminal(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(getattr(request, "param", 80))
    yield terminal
    terminal.close()


@posix
def test_a_terminal_is_drawn_on(terminal: Terminal) -> None:
    """By default progress is drawn on a terminal."""
    progress_line(None, terminal.stream).draw(Counts(1, 0), 0.0)
    assert terminal.shown() == "\r0/1 file"


@posix
def test_a_dumb_terminal_is_not_drawn_on(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a carriage return does nothing, no line is redrawn."""
    monkeypatch.setenv("TERM", "dumb")
    progress_line(None, terminal.stream).draw(Counts(1, 0), 0.0)
    assert terminal.shown() == ""


@posix
@pytest.mark.parametrize("terminal", [20], indirect=True)
def test_the_line_fits_a_narrow_terminal(terminal: Terminal) -> None:
    """The line is cut before it would wrap, because a wrapped one cannot be redrawn."""
    progress_line(None, terminal.stream).draw(Counts(10, 0, 5), 5.0)
    assert terminal.shown() == "\r" + "5/10 files, 1.0 files/s"[:19]


@posix
def test_a_terminal_that_is_gone_is_no_matter(terminal: Terminal) -> None:
    """When the window was closed, the run goes on in silence."""
    line = progress_line(None, terminal.stream)
    line.draw(Counts(1, 0), 0.0)
    terminal.hang_up()
    line.draw(Counts(1, 0), 1.0)
    line.announce("attention")
