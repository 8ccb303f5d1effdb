"""Where progress is shown: terminals, logs, notebooks, and bars of others."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from resumable_pool import Failure, Outcome, ResumableRunner, WorkerStartError, open_checkpoint
from resumable_pool.run import screen as display
from resumable_pool.run.screen import (
    LOG_SECONDS,
    REDRAW_SECONDS,
    Longest,
    Screen,
    screen_for,
)

from .. import functions
from ..conftest import not_on_windows
from ..stage import PATIENCE, Stage, act, announcement
from .test_progress import Counts


@pytest.fixture
def stage(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    yield stage
    stage.close()


def _drawn(*seconds: float) -> str:
    stream = io.StringIO()
    line = Screen(stream, redrawn=True)
    for completed, now in enumerate(seconds):
        line.draw(Counts(len(seconds), 0, completed), now)
    return stream.getvalue()


def test_the_line_is_redrawn_in_its_place() -> None:
    """Each drawing starts at the beginning of the line, and none ends it."""
    first, second = _drawn(0.0, 1.0)[1:].split("\r")
    assert first == "0/2 files"
    assert second == "1/2 files, 1.0 files/s, 1.0 s left"


def test_tracebacks_are_not_kept() -> None:
    """Of a hundred thousand failures, each of its own kind, they are gigabytes."""
    traceback = "".join(["a traceback"] * 2)
    before = sys.getrefcount(traceback)
    screen = Screen(None, redrawn=False)
    screen.fails(Failure("a", "error", "ValueError: no", traceback, 1, 0.1), Counts(1, 0))
    assert sys.getrefcount(traceback) == before


def test_a_kind_of_failure_that_will_not_be_shown_is_not_kept() -> None:
    """A million files may fail in a million ways, with a page of text each."""
    screen = Screen(None, redrawn=False)
    for number in range(display.SHOWN_KINDS + 2):
        message = f"ValueError: {'abcdefghijklmnopqrstuvwxyz'[number]}"
        before = sys.getrefcount(message)
        screen.fails(Failure("1", "error", message, "", 1, 0.1), Counts(1, 0))
    assert sys.getrefcount(message) == before


def test_drawing_too_often_is_left_out() -> None:
    """Within a fraction of a second of the last drawing nothing is drawn."""
    just_before = REDRAW_SECONDS * 0.9
    assert _drawn(0.0, just_before, REDRAW_SECONDS, REDRAW_SECONDS + just_before).count("\r") == 2


@pytest.mark.parametrize("has_bar", [False, True])
def test_a_stream_that_has_not_all_letters_goes_on(has_bar: bool) -> None:
    """A file of Windows's own encoding, for instance: what it has no bytes for is escaped."""
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding="cp1252", write_through=True, newline="")
    made = SimpleNamespace(write=lambda text, file: file.write(f"{text}\n"), update=lambda n: None)
    screen = screen_for(lambda **facts: made, stream) if has_bar else Screen(stream, redrawn=False)
    screen.draw(Counts(1, 0), 0.0)
    screen.announce("'\u65e5\xfc'")
    screen.announce("more")
    assert file.getvalue() == b"'\\u65e5\xfc'\nmore\n"
    assert screen.error is None


def test_a_shorter_line_covers_a_longer_one() -> None:
    """What a longer line left behind is overwritten, also at the end."""
    stream = io.StringIO()
    line = Screen(stream, redrawn=True)
    line.draw(Counts(10, 0, 5), 5.0)
    longer = len(stream.getvalue()) - 1
    line.draw(Counts(10, 0), 10.0)
    assert stream.getvalue().endswith("\r" + "0/10 files".ljust(longer))
    line.clear()
    assert stream.getvalue().endswith("\r" + " " * 10 + "\r")
    line.clear()
    assert stream.getvalue().endswith("\r" + " " * 10 + "\r")


def test_what_is_said_gets_a_line_of_its_own() -> None:
    """A message clears the line of progress, and ends its own."""
    stream = io.StringIO()
    line = Screen(stream, redrawn=True)
    line.draw(Counts(1, 0), 0.0)
    line.say("hello")
    line.announce("attention")
    assert stream.getvalue() == "\r0/1 file\r        \rhello\nattention\n"


def test_what_is_logged_to_the_same_terminal_gets_a_line_of_its_own() -> None:
    """As after `logging.basicConfig()`; but for what is not logged the line stays."""
    stream, counts = io.StringIO(), Counts(1, 0)
    line, handler = Screen(stream, redrawn=True), logging.StreamHandler(stream)
    logging.root.addHandler(handler)
    try:
        line.draw(counts, 0.0)
        line.fails(Failure("a", "error", "boom", "", 1, 0.0), counts)
        line.draw(counts, REDRAW_SECONDS / 2)
        told = "'a' has failed (error): boom\nfailed: a: boom\n"
        assert stream.getvalue() == f"\r0/1 file\r        \r{told}\r0/1 file"
        line.log(logging.DEBUG, "no matter")
        assert stream.getvalue().endswith("\r0/1 file")
    finally:
        logging.root.removeHandler(handler)


def test_the_line_makes_room_and_comes_back() -> None:
    """What the program writes begins in an empty line, behind which the next drawing comes at once;
    there is nothing to make room where nothing was."""
    stream = io.StringIO()
    line = Screen(stream, redrawn=True)
    line.clear()
    stream.write("first\n")
    line.draw(Counts(1, 0), 0.0)
    line.clear()
    stream.write("second\n")
    line.draw(Counts(1, 0), REDRAW_SECONDS / 2)
    empty = "\r        \r"
    assert stream.getvalue() == f"first\n\r0/1 file{empty}second\n\r0/1 file"


@pytest.mark.parametrize("watched", [False, True])
def test_the_line_stays_where_the_program_has_no_say(
    folder: Path, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    """It would be written twice for nothing."""
    rooms: list[Screen] = []
    clear = Screen.clear
    monkeypatch.setattr(Screen, "clear", lambda self: rooms.append(self) or clear(self))
    runner = ResumableRunner(functions.number_in, "in/*.txt", "result.pkl", progress=False)
    if watched:
        assert len([*runner.as_completed()]) == 10
    else:
        assert runner.run().ok
    assert (len(rooms) > 2) is watched  # before the run, and after it


def test_where_nobody_watches_only_announcements_are_written() -> None:
    """On a stream that is no terminal neither progress nor small talk is written."""
    stream = io.StringIO()
    line = screen_for(None, stream)
    line.draw(Counts(1, 0), 0.0)
    line.say("hello")
    line.announce("attention")
    line.clear()
    assert stream.getvalue() == "attention\n"


class Timed(Counts):
    """With a file that has been in progress for some time."""

    asked = 0

    def longest(self, now: float) -> Longest:
        self.asked += 1
        return "a.wav", 5.0


def test_a_log_gets_a_line_now_and_then() -> None:
    """progress=True writes whole lines where nothing can be redrawn: one at once, then few."""
    stream = io.StringIO()
    line = screen_for(True, stream)
    for seconds in (0.0, 1.0, LOG_SECONDS * 0.9, LOG_SECONDS, LOG_SECONDS * 1.9):
        line.draw(Timed(1, 0), seconds)
    line.say("hello")
    line.end(Counts(1, 0))
    assert stream.getvalue() == "0/1 file, 5.0 s on a.wav\n" * 2 + "hello\n"


def test_the_longest_is_asked_for_only_when_it_is_shown() -> None:
    """A million calls between two drawings cost a comparison each."""
    counts = Timed(1, 0)
    line = Screen(io.StringIO(), redrawn=True)
    for _ in range(1000):
        line.draw(counts, 0.0)
    assert counts.asked == 1


def test_listing_is_shown_and_the_clock_starts_anew() -> None:
    """What comes after it is drawn at once, in its place."""
    stream = io.StringIO()
    line = screen_for(True, stream)
    with line.looks_for_files():
        line.draw("looking for files: 12,000", 1.0)
        line.draw("looking for files: 13,000", 2.0)
    line.draw(Counts(1, 0), 0.0)
    assert stream.getvalue() == "looking for files: 12,000\n0/1 file\n"
    unwatched = screen_for(None, stream)
    with unwatched.looks_for_files():
        unwatched.draw("looking", 1.0)
    unwatched.draw(Counts(1, 0), 0.0)
    assert stream.getvalue() == "looking for files: 12,000\n0/1 file\n"


class Notebook(io.StringIO):
    """What stderr is in a notebook's cell: no terminal, but shown by a browser."""


Notebook.__module__ = "ipykernel.iostream"


def test_a_notebook_is_drawn_on() -> None:
    """It is no terminal, but somebody watches, and a carriage return works there."""
    stream = Notebook()
    screen_for(None, stream).draw(Counts(1, 0), 0.0)
    assert stream.getvalue() == "\r0/1 file"


class Idle(io.StringIO):
    """What stderr is in IDLE."""

    def isatty(self) -> bool:
        return True


Idle.__module__ = "idlelib.run"


def test_idle_is_not_drawn_on() -> None:
    """It says that it is a terminal, and ignores a carriage return: hours of progress would be one
    line. What a person must see is said there, too."""
    stream = Idle()
    line = screen_for(None, stream)
    line.draw(Counts(1, 0), 0.0)
    line.announce("attention")
    assert stream.getvalue() == "attention\n"


@pytest.mark.parametrize("progress", [False, None, True])
def test_nothing_is_written_where_nobody_wants_it(progress: bool | None) -> None:
    """progress=False writes nothing at all, and neither does a process without stderr."""
    stream = io.StringIO()
    line = screen_for(progress, stream if progress is False else None)
    line.draw(Counts(1, 0), 0.0)
    line.announce("attention")
    line.clear()
    assert stream.getvalue() == ""


def test_a_closed_stream_is_no_matter() -> None:
    """When the stream was closed, the run goes on in silence."""
    stream = io.StringIO()
    line = screen_for(True, stream)
    stream.close()
    line.draw(Counts(1, 0), 0.0)
    line.announce("attention")
    assert screen_for(None, stream) is not None


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


@not_on_windows("terminals")
def test_a_terminal_is_drawn_on(terminal: Terminal) -> None:
    """By default progress is drawn on a terminal."""
    screen_for(None, terminal.stream).draw(Counts(1, 0), 0.0)
    assert terminal.shown() == "\r0/1 file"


@not_on_windows("terminals")
def test_a_dumb_terminal_is_not_drawn_on(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a carriage return does nothing, no line is redrawn."""
    monkeypatch.setenv("TERM", "dumb")
    screen_for(None, terminal.stream).draw(Counts(1, 0), 0.0)
    assert terminal.shown() == ""


@not_on_windows("terminals")
@pytest.mark.parametrize("terminal", [20], indirect=True)
def test_the_line_fits_a_narrow_terminal(terminal: Terminal) -> None:
    """It never wraps, because a wrapped line cannot be redrawn."""
    screen_for(None, terminal.stream).draw(Counts(10, 0, 5), 5.0)
    assert terminal.shown() == "\r5/10 files"


@not_on_windows("terminals")
def test_a_terminal_that_is_gone_is_no_matter(terminal: Terminal) -> None:
    """When the window was closed, the run goes on in silence."""
    line = screen_for(None, terminal.stream)
    line.draw(Counts(1, 0), 0.0)
    terminal.hang_up()
    line.draw(Counts(1, 0), 1.0)
    line.announce("attention")
    line.draw(Counts(1, 0), 2.0)
    line.end(Counts(1, 0))


class OnFullDisk(io.StringIO):
    full = True

    def flush(self) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_told_once_the_disk_has_room_again_is_not_lost() -> None:
    """Where stderr is a file, and its disk was full for a while."""
    stream = OnFullDisk()
    screen = screen_for(True, stream)
    screen.announce("lost, perhaps")
    stream.full = False
    screen.announce("attention")
    screen.draw(Counts(2, 0, 1), 1.0)
    assert stream.getvalue().endswith("attention\n1/2 files, 1.0 files/s, 1.0 s left\n")


class Tells(ResumableRunner[int]):
    def on_saved(self, outcome: Outcome[int]) -> None:
        print(outcome.path, file=sys.stderr, flush=True)


@not_on_windows("terminals")
@pytest.mark.parametrize("hooked", [False, True])
def test_what_a_program_prints_stands_in_lines_of_its_own(
    folder: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch, hooked: bool
) -> None:
    """In its loop, and in `on_saved`; progress is drawn below."""
    from ..terminal import screen

    monkeypatch.setattr(sys, "stderr", terminal.stream)
    monkeypatch.setattr(display, "REDRAW_SECONDS", 0.0)
    if hooked:
        Tells(functions.number_in, "in/*.txt", "result.pkl").run()
    else:
        for outcome in ResumableRunner(functions.number_in, "in/*.txt", "r.pkl").as_completed():
            print(outcome.path, file=sys.stderr, flush=True)
    shown = terminal.shown()
    assert "\r0/10 files" in shown
    assert sorted(screen(shown).split("\n")) == [f"in/{number:02}.txt" for number in range(10)]


@not_on_windows("terminals")
def test_who_watches_is_told_that_nothing_was_found(
    folder: Path, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A glob that matches nothing is no error: it may match something another day."""
    monkeypatch.setattr(sys, "stderr", terminal.stream)
    ResumableRunner(functions.number_in, "no/*.txt", "r.pkl").run()
    assert terminal.shown().startswith("no files match 'no/*.txt' in the folder ")


class Bar:
    """A bar that notes what is done with it, and raises at the update of that number."""

    def __init__(self, raise_at: int = -1, **options: Any) -> None:
        self.calls: list[Any] = [options]
        self._raise_at = raise_at

    def update(self, n: int) -> None:
        self.calls.append(n)
        if len(self.calls) - 2 == self._raise_at:
            raise RuntimeError("no more bars")

    def close(self) -> None:
        self.calls.append("close")


class TalkingBar(Bar):
    """One that has what tqdm's bars have."""

    def write(self, text: str, file: Any) -> None:
        self.calls.append((text, file))

    def set_postfix(self, refresh: bool, **values: Any) -> None:
        self.calls.append(values)


def _bars(kind: type[Bar] = Bar, **options: Any) -> tuple[list[Bar], Any]:
    made: list[Bar] = []

    def make(**arguments: Any) -> Bar:
        made.append(kind(**arguments, **options))
        return made[-1]

    return made, make


def test_a_bar_is_brought_to_the_counts_now_and_then() -> None:
    """It is made once, knows what was done before, and ends where the run ends."""
    made, make = _bars()
    line = screen_for(make, io.StringIO(), "transcribe")
    counts = Counts(110, 100)
    for now in (0.0, 1.0, 1.0 + REDRAW_SECONDS / 2, 2.0):
        line.draw(counts, now)
        counts.completed += 1
        counts.failed += 1
    line.end(counts)
    options = {"total": 110, "initial": 100, "desc": "transcribe", "unit": "file"}
    assert [bar.calls for bar in made] == [[options, 2, 4, 2, "close"]]


def test_what_is_said_beside_a_bar_goes_to_stderr() -> None:
    """If the bar cannot say it, it gets a line of its own."""
    stream = io.StringIO()
    line = screen_for(_bars()[1], stream)
    line.draw(Counts(1, 0), 0.0)
    line.say("hello")
    line.announce("attention")
    assert stream.getvalue() == "hello\nattention\n"


def test_a_bar_that_can_write_says_it_all() -> None:
    """So that it can put itself below; and once it is closed the stream is written to again."""
    made, make = _bars(TalkingBar)
    stream = io.StringIO()
    line = screen_for(make, stream)
    line.draw(Counts(2, 0), 0.0)
    line.say("hello")
    line.draw(Counts(2, 0, 1, 1), 1.0)
    line.end(Counts(2, 0, 1, 1))
    line.announce("the end")
    assert made[0].calls[1:] == [("hello", stream), {"failed": 1}, 2, "close"]
    assert stream.getvalue() == "the end\n"


def test_a_bar_that_raises_ends_the_run(
    folder: Path, method: str, nothing_left: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its exception comes out of `run`, no process is left, and what has come in is saved."""
    monkeypatch.setattr("resumable_pool.run.screen.REDRAW_SECONDS", 0.0)
    made, make = _bars(raise_at=2)
    runner = ResumableRunner(
        functions.number_slowly, "in/*.txt", "result.pkl",
        max_workers=1, mp_context=method, progress=make,
    )  # fmt: skip
    with pytest.raises(RuntimeError, match="no more bars"):
        runner.run()
    assert [len(bar.calls[1:]) for bar in made] == [3]  # and none after the one that raised
    saved = len(open_checkpoint("result.pkl"))
    assert 3 <= saved < 10
    rest = ResumableRunner(functions.number_in, "in/*.txt", "result.pkl", progress=False).run()
    assert (rest.skipped, rest.completed) == (saved, 10 - saved)


def _stop() -> None:
    raise ValueError("no model")


def test_a_bar_that_raises_lets_the_files_in_work_finish(
    folder: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As everything that stops a run does."""
    monkeypatch.setattr(display, "REDRAW_SECONDS", 0.0)
    _, make = _bars(raise_at=0)
    runner = ResumableRunner(act, "in/*.txt", "result.pkl", max_workers=3, progress=make)
    raised: list[BaseException] = []

    def run() -> None:
        with pytest.raises(RuntimeError, match="no more bars") as caught:
            runner.run()
        raised.append(caught.value)

    with announcement("RuntimeError: finishing") as heard:
        thread = threading.Thread(target=run)
        thread.start()
        stage.wait_begun(3)
        stage.cue(1)
        assert heard.wait(PATIENCE)
        stage.cue(9)
        thread.join(PATIENCE)
    assert len(raised) == 1
    assert 3 <= len(runner.results) == len(functions.calls()) < 10


def test_a_bar_is_closed_whatever_ends_the_run(folder: Path) -> None:
    """So that the terminal is left in order."""
    made, make = _bars()
    runner = ResumableRunner(
        functions.number_in, "in/*.txt", "result.pkl", initializer=_stop, progress=make
    )
    with pytest.raises(WorkerStartError):
        runner.run()
    assert made[0].calls[1:] == ["close"]


class RichBar:
    """The adapter of docs/howto.md, on a terminal of its own."""

    def __init__(self, total: int, initial: int, desc: str, unit: str) -> None:
        rich_console = pytest.importorskip("rich.console")
        rich_progress = pytest.importorskip("rich.progress")
        self.console = rich_console.Console(file=sys.stderr, force_terminal=True, width=80)
        self.progress = rich_progress.Progress(
            rich_progress.TextColumn("{task.description} {task.completed}/{task.total}"),
            console=self.console, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        self.task = self.progress.add_task(desc, total=total, completed=initial)
        self.progress.start()

    def update(self, n: int) -> None:
        self.progress.advance(self.task, n)

    def write(self, text: str, file: Any) -> None:
        self.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        self.progress.stop()


def _tqdm(**options: Any) -> Any:
    return pytest.importorskip("tqdm").tqdm(**options)


@pytest.mark.parametrize("bar", [_tqdm, RichBar])
def test_bars_of_others(folder: Path, bar: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """tqdm's and rich's count on from what was done before, and share stderr with what is said."""
    ResumableRunner(functions.number_in, "in/0[0-3].txt", "result.pkl", progress=False).run()
    ResumableRunner(functions.number_in, "in/*.txt", "result.pkl", progress=bar).run()
    out, errors = capsys.readouterr()
    assert out == ""
    assert "10 files: 4 done before, 6 new" in errors
    assert "number_in" in errors
    assert "4/10" in errors
    assert "10/10" in errors
