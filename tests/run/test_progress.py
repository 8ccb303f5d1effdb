"""The line of progress: counts into text."""

from __future__ import annotations

import sys

import pytest

from resumable_pool.run import screen
from resumable_pool.run.screen import LONG_SECONDS, Longest, columns_of, describe_end


class Counts(screen.Counts):
    """Of a run that has come so far, perhaps with a file that has been in progress for long."""

    at: Longest = None

    def __init__(
        self, total: int, skipped: int, completed: int = 0, failed: int = 0, left: int = 0
    ) -> None:
        self.total, self.skipped, self.left = total, skipped, left
        self.completed, self.failed = completed, failed

    def longest(self, now: float) -> Longest:
        return self.at


def render(
    counts: Counts, seconds: float, longest: Longest = None, width: int = sys.maxsize
) -> str:
    """The line, where this has been in progress longest."""
    counts.at = longest
    return screen.render(counts, seconds, width)


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


def test_what_is_left_alone_is_finished_and_says_nothing_about_the_speed() -> None:
    """It had failed before this run."""
    counts = Counts(13, 2, completed=3, failed=1, left=3)
    assert render(counts, 2.0) == "9/13 files, 1 failed, 2.0 files/s, 2.0 s left"


def test_nobody_knows_how_long_what_is_being_stopped_takes() -> None:
    """Of the files that are left, none is begun."""
    counts = Counts(10, 0, completed=5)
    counts.stopped = True
    assert render(counts, 2.0, ("a.wav", 6.0)) == "5/10 files, 2.5 files/s, 6.0 s on a.wav"


def test_models_that_load_say_nothing_about_the_speed() -> None:
    """While no worker is ready, the line says what is waited for; time left counts from the first
    that is."""
    counts = Counts(12, 0)
    counts.starting = 2
    assert render(counts, 1.9) == "0/12 files"
    assert render(counts, 8.0) == "0/12 files, starting 2 workers, 8.0 s"
    counts.starting = 1
    assert render(counts, 9.0, width=30) == "0/12 files"
    assert render(counts, 9.0) == "0/12 files, starting 1 worker, 9.0 s"
    counts.starting, counts.ready_at = 0, 10.0
    assert render(counts, 11.0) == "0/12 files"
    counts.completed = 2
    assert render(counts, 12.0) == "2/12 files, 1.0 files/s, 10 s left"


def test_sizes_say_how_much_is_left() -> None:
    """With the largest files first, the rest is soon done."""
    counts = Counts(14, 4, completed=2)
    counts.size_to_do, counts.size_done = 1000, 900
    assert render(counts, 9.0) == "6/14 files, 4.5 s a file, 1.0 s left"
    counts.size_done = 0  # two empty ones
    assert render(counts, 9.0) == "6/14 files, 4.5 s a file"


HALF = Counts(10, 0, completed=4, failed=1)
WIDTHS = [
    (200, "5/10 files, 1 failed, 2.5 files/s, 2.0 s left, 1 min 00 s on audio/2024/recording.wav"),
    (85, "5/10 files, 1 failed, 2.5 files/s, 2.0 s left, 1 min 00 s on audio/2024/recording.wav"),
    (84, "5/10 files, 1 failed, 2.5 files/s, 2.0 s left, 1 min 00 s on ...o/2024/recording.wav"),
    (73, "5/10 files, 1 failed, 2.5 files/s, 2.0 s left, 1 min 00 s on ...rding.wav"),
    (72, "5/10 files, 1 failed, 2.0 s left, 1 min 00 s on audio/2024/recording.wav"),
    (60, "5/10 files, 1 failed, 2.0 s left, 1 min 00 s on ...rding.wav"),
    (59, "5/10 files, 1 failed, 2.5 files/s, 2.0 s left"),
    (45, "5/10 files, 1 failed, 2.5 files/s, 2.0 s left"),
    (44, "5/10 files, 1 failed, 2.5 files/s"),
    (20, "5/10 files, 1 failed"),
    (19, "5/10 files"),
    (5, "5/10 "),
]


@pytest.mark.parametrize(("width", "line"), WIDTHS)
def test_as_much_is_shown_as_fits(width: int, line: str) -> None:
    """Parts are left out whole, the least needed first; of a path its end is kept."""
    assert render(HALF, 2.0, ("audio/2024/recording.wav", 60.0), width) == line
    assert len(line) <= width


def test_a_file_is_named_once_it_takes_long() -> None:
    """Names that change with every look are noise."""
    assert render(Counts(1, 0), 5.0, ("a.wav", LONG_SECONDS)) == "0/1 file, 2.0 s on a.wav"
    assert render(Counts(1, 0), 5.0, ("a.wav", LONG_SECONDS * 0.9)) == "0/1 file"


def test_wide_letters_take_two_columns() -> None:
    """So that a line of them does not wrap, either."""
    line = render(Counts(1, 0), 5.0, ("\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 30, 9.0), 40)
    assert line == "0/1 file, 9.0 s on ..." + "\N{CJK UNIFIED IDEOGRAPH-4E2D}" * 9
    assert columns_of(line) == 40


def test_a_path_does_nothing_to_the_terminal() -> None:
    """Control characters in it are shown, not sent."""
    assert render(Counts(1, 0), 5.0, ("a\n\x1b[2J", 9.0)) == r"0/1 file, 9.0 s on a\n\x1b[2J"


def test_where_a_stopped_run_stands() -> None:
    """Done before and done now are one thing to somebody who has just stopped it."""
    assert describe_end(Counts(10, 3, 2, 1)) == "10 files: 5 done, 1 failed, 4 to do"


def test_it_is_said_how_many_wait() -> None:
    """For their next attempt; nobody wonders then why nothing goes on."""
    counts = Counts(10, 0, 4)
    counts.waiting = range(3)
    assert "3 waiting to be tried again" in render(counts, 2.0)
