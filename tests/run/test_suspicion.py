"""Which workers are broken, as a table: what they did, and what is decided."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_pool.between.messages import attempts_in
from resumable_pool.run.books import JUDGING_SECONDS, Books
from resumable_pool.run.suspicion import Starts

from .test_dealing import failed, in_the_way, new_books

NOW = 0.0


def counted(books: Books) -> list[str]:
    """The files whose failures have turned out to count."""
    judged = iter(lambda: books.judge(NOW + JUDGING_SECONDS, stopped=False), None)
    return [outcome.path for _, outcome, _ in judged if outcome is not None]


class Play:
    """Workers that are dealt files one at a time, and succeed or fail as a text says.

    `1+2-` is: worker 1 succeeds with its next file, worker 2 fails with its. `1*` is that it dies
    with it, `1.` that it is dealt one and is at it, `1<` that it has left, `1>` that it has come.
    """

    def __init__(self, workers: int, files: str, **options: Any) -> None:
        self.books = new_books(workers, **options)
        self.books.add(files)
        self.dealt: list[str] = []
        self.dismissed: list[int] = []
        self.counted: list[str] = []
        for worker in range(1, workers + 1):
            self.books.enter(worker)

    def act(self, text: str) -> None:
        for worker, deed in zip(map(int, text[::2]), text[1::2], strict=True):
            self._do(worker, deed)
            self.review()

    def review(self) -> None:
        self.books.review()
        of = self.books._suspicion.of
        self.dismissed += [n for n in range(10) if of(n).dismissed and n not in self.dismissed]
        self.counted += counted(self.books)

    def _do(self, worker: int, deed: str) -> None:
        if deed == ">":
            self.books.enter(worker)
            return
        if deed != "<" and not self.books.is_busy(worker):
            batch = self.books.deal(worker, NOW, most=1) or []
            self.dealt += [f"{worker}{path}{attempt}" for path, attempt in attempts_in(batch)]
            if not batch:
                return
        match deed:
            case "+":
                self.books.finish(worker, 1, NOW)
                self.books.give_back(worker)
            case "-":
                path, _ = self.books.in_work(worker) or (None, NOW)
                self.books.fail(worker, failed(path), NOW)
                self.books.give_back(worker)
            case "*" | "<":
                self.books.lose(worker)


# How many workers, which files, what happens; and then: who is dismissed, whose failures count, and
# which doubtful files wait for a fresh worker, in their order.
CASES: dict[str, tuple[int, str, str, tuple[list[int], str, str]]] = {
    "a success, and three failures": (1, "abcdefg", "1+1-1-1-", ([1], "", "dcb")),
    "two failures are not enough": (1, "abcdefg", "1+1-1-", ([], "", "")),
    "and count once there is a success": (1, "abcdefg", "1+1-1-1+", ([], "cb", "")),
    "or nothing more to do": (1, "abc", "1+1-1-1.", ([], "cb", "")),
    "or it leaves": (2, "abcdefg", "1+1-1-1<", ([], "cb", "")),
    "not in a row": (1, "abcdefg", "1+1-1-1+1-1-1+", ([], "cbfe", "")),
    "nobody has ever had a success, and there is nobody else":
        (1, "abcdefg", "1-1-1-1-", ([], "abcd", "")),
    "nobody has, and all have failed": (2, "abcdefg", "1-2-1-2-", ([], "abcd", "")),
    "nobody has, and somebody may yet": (2, "abcdefgh", "2.1-1-1-1-", ([], "", "")),
    "and then has": (2, "abcdefgh", "2.1-1-1-1-2+", ([1], "", "dcb")),
    "and then has not": (2, "abcdefgh", "2.1-1-1-1-2-", ([], "adcb", "")),
    "others have had one": (2, "abcdefgh", "2+1-1-1-", ([1], "", "dcb")),
    "none since the last dismissal, nor itself, but another worker is to come":
        (2, "abcdefghijkl", "2-1+1-1-1-1<2-2-", ([1], "", "edc")),
    "two at the same time": (2, "abcdefghijkl", "1+2+1-2-1-2-1-2-", ([1, 2], "", "gechfd")),
    "its crash is the third": (1, "abcdefg", "1+1-1-1*", ([], "", "cb")),
    "a crash alone is nothing": (1, "abcdefg", "1+1*", ([], "", "")),
}  # fmt: skip


@pytest.mark.parametrize(("workers", "files", "text", "decided"), CASES.values(), ids=CASES)
def test_what_is_decided(workers: int, files: str, text: str, decided: Any) -> None:
    """After these events these workers go, these failures count, and these files are doubtful."""
    play = Play(workers, files)
    play.act(text)
    dismissed, counted, doubtful = decided
    assert play.dismissed == dismissed
    assert sorted(play.counted) == sorted(counted)
    assert [*play.books._doubtful] == [*doubtful]


def test_a_doubtful_file_is_tried_in_a_worker_that_nothing_can_have_broken() -> None:
    """The last one first, and as long as they succeed all of them in the same; that call is no
    attempt. One that fails again is to blame, and its worker goes as well."""
    play = Play(2, "abcdefgh")
    play.act("2+1+1-1-1-2+3>3+3+")
    assert play.dealt[-3:] == ["2f1", "3e1", "3d1"]
    assert play.books.attempt("d") == 1
    play.act("3-")
    assert play.dealt[-1] == "3c1"
    assert (play.dismissed, play.counted) == ([1, 3], ["c"])
    play.books.note_failure_saved("c")
    play.act("2+2+2.")
    assert play.dealt[-2:] == ["2g1", "2h1"]
    assert play.books.over


def test_a_doubtful_file_may_take_its_worker_along() -> None:
    """Then that is gone, and need not be dismissed; the next one is tried in another."""
    play = Play(2, "abcdefgh")
    play.act("1+1-1-1-3>3*4>4.")
    assert play.dismissed == [1]
    assert play.dealt[-2:] == ["3d1", "4c1"]


def test_a_doubtful_file_that_takes_its_worker_along_has_failed_once() -> None:
    """What had become of it before does not count as well."""
    play = Play(1, "abcd")
    play.act("1+1-1-1-1<3>3*")
    play.books.blame("d", "crashed", "its worker died", "", 0.0, NOW)
    play.act("4>4+4+4.")
    assert play.counted == ["d"]
    assert not play.books.over
    play.books.note_failure_saved("d")
    assert play.books.over


def test_a_doubtful_file_does_not_wait_for_who_is_not_clean() -> None:
    """Who has had other files makes room for a fresh one."""
    play = Play(1, "abcdef")
    play.act("1+1-1-1-3>3.4>4.1<3*4+4+")
    assert play.dealt[-4:] == ["1d1", "3d1", "4e1", "4f1"]
    assert [*play.books._doubtful] == ["c", "b"]
    assert in_the_way(play.books, 4)
    play.act("4<5>5.")
    assert play.dealt[-1] == "5c1"


def test_until_one_has_succeeded_doubtful_files_are_tried_one_by_one() -> None:
    """If it is the function, more would be for nothing; after it, side by side."""
    play = Play(2, "abcdefgh")
    play.act("1+1-1-1-3>4>5>3.4.")
    assert play.dealt[-2:] == ["3d1", "4e1"]
    play.act("3+3.5.")
    assert play.dealt[-2:] == ["3c1", "5b1"]


def test_a_suspicion_that_is_refuted_is_a_lesson() -> None:
    """When three fail again the others count as they are, and from then on it takes twelve in a
    row; a doubtful file that succeeds makes it three again."""
    files = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ"
    play = Play(2, files)
    play.act("1+2+1-1-1-2-2-2-3>3-4>4-5>5-")
    assert play.dealt[-3:] == ["3e1", "4d1", "5c1"]
    assert play.dismissed == [1, 2, 3, 4, 5]
    assert play.counted == ["e", "d", "c", "h", "g", "f"]
    play.act("6>6+" + 11 * "6-")
    assert play.dismissed == [1, 2, 3, 4, 5]
    play.act("6-7>7+8>8+8-8-8-")
    assert play.dismissed == [1, 2, 3, 4, 5, 6, 8]


def test_after_a_refuted_suspicion_success_is_still_possible() -> None:
    """No worker was broken, so one that is broken by its first file may be told again."""
    play = Play(2, "abcdefghijklmnopqrstuvwxyz")
    play.act("1+2+1-1-1-2-2-2-3>3-4>4-5>5-")
    play.act("6>" + 12 * "6-")
    assert play.dismissed == [1, 2, 3, 4, 5, 6]
    assert play.counted == ["e", "d", "c", "h", "g", "f"]


def test_each_suspicion_takes_as_many_to_be_refuted() -> None:
    """What has refuted the last one does not count for the next."""
    play = Play(2, "abcdefghijklmnopqrstuvwxyz")
    play.act("1+2+1-1-1-2-2-2-3>3-4>4-5>5-")
    play.act("6>6+" + 12 * "6-" + "7>7-8>8-")
    assert play.dealt[-2:] == ["7u1", "8t1"]
    assert play.counted[6:] == ["u", "t"]
    assert len(play.books._doubtful) == 10
    play.act("9>9-")
    assert not play.books._doubtful
    assert len(play.counted) == 6 + 12


def test_one_that_succeeds_ends_the_count_of_those_that_refute_a_suspicion() -> None:
    """Three in a row it takes."""
    play = Play(2, "abcdefgh")
    play.act("1+2+1-1-1-2-2-2-3>3-4>4-5>5+5-6>6-")
    assert play.dealt[-4:] == ["4d1", "5c1", "5h1", "6g1"]
    assert [*play.books._doubtful] == ["f"]


def test_what_is_left_of_a_suspicion_that_was_right_refutes_none() -> None:
    """One of them has succeeded, so a worker was broken. Those that fail then, in a row, may be the
    files that have broken workers, one each."""
    play = Play(2, "abcdefgh")
    play.act("1+2+1-1-1-2-2-2-3>3+3-4>4-5>5-")
    assert play.dealt[-4:] == ["3e1", "3d1", "4c1", "5h1"]
    assert [*play.books._doubtful] == ["g", "f"]


def test_what_has_failed_before_says_nothing_of_a_worker() -> None:
    """It does so again anywhere: its further attempts are no suspicious row."""
    play = Play(1, "abcd")
    play.act("1+1-1+1-1.")
    for path in play.counted:
        play.books.retry(path, play.books.again)
    for _ in range(3):
        play.books.wake(NOW)
        play.act("1-1-")
        play.books.retry("b", play.books.again)
        play.books.retry("d", play.books.again)
    assert play.dismissed == []


def test_who_has_just_failed_twice_is_not_trusted_with_further_attempts() -> None:
    """As long as there is another; and if there is none, it makes room for a fresh one."""
    play = Play(2, "abcd")
    play.act("2.1+1-1-1.")
    assert play.counted == ["d", "c"]
    for path in play.counted:
        play.books.retry(path, play.books.again)
    play.books.wake(NOW)
    play.act("1.")
    assert not in_the_way(play.books, 1)
    play.act("2+2.")
    assert play.dealt[-1] == "2d2"
    play.act("2+2<")
    assert in_the_way(play.books, 1)
    play.act("1.")
    assert play.dealt[-1] == "2d2"
    play.act("1<3>3.")
    assert play.dealt[-1] == "3c2"


def test_who_has_failed_once_is_trusted_with_further_attempts() -> None:
    """Also if there are others."""
    play = Play(2, "abc")
    play.act("2.1+1-")
    play.books.retry("z", play.books.again)
    play.books.wake(NOW)
    play.act("1.")
    assert play.dealt[-1] == "1z2"


def test_where_nobody_has_had_a_success_further_attempts_need_no_fresh_worker() -> None:
    """It is the function, so another one would fail as well."""
    play = Play(1, "abc")
    play.act("1-1-1-")
    assert play.counted == ["a", "b", "c"]
    for path in play.counted:
        play.books.retry(path, play.books.again)
    play.books.wake(NOW)
    play.act("1-1-1-")
    assert play.dealt[-3:] == ["1a2", "1b2", "1c2"]


def test_of_an_executor_s_processes_nothing_is_known() -> None:
    """So nothing is suspected, and every failure counts at once."""
    books = new_books(1)
    books.add("abcd")
    for path in "abcd":
        books.deal(0, NOW)
        books.fail(0, failed(path), NOW)
        assert counted(books) == [path]
        books.give_back(0)
    books.review()
    assert books.deal(0, NOW) == []


def test_when_no_more_may_be_dealt_it_is_decided_what_can_be() -> None:
    """Two failures in a row make a worker go; one counts."""
    play = Play(2, "abcdefgh", max_failures=0)
    play.act("1+2+1-1-2-")
    assert not play.books.may_deal()
    play.review()
    assert (play.dismissed, play.counted) == ([1], ["e"])
    assert [*play.books._doubtful] == ["d", "c"]


def test_when_no_more_may_be_dealt_who_can_tell_goes_on() -> None:
    """One whose worker has had a success counts at once; where nobody has had one, the others are
    to show first whether there can be any."""
    play = Play(3, "abcdefgh", max_failures=0)
    play.act("3.1+1-")
    assert not play.books.may_deal()
    play.review()
    assert play.counted == ["c"]
    play = Play(2, "abcdefgh", max_failures=0)
    play.act("2.1-")
    assert play.books.may_deal()
    play.review()
    assert play.counted == []


def test_a_file_that_will_be_tried_again_holds_nobody_up() -> None:
    """However few may fail: only its last attempt may be a failure of the run."""
    play = Play(2, "abcde", max_failures=0, retries=1)
    play.act("1+2+1-")
    assert play.books.may_deal()
    play.act("1+2+")
    play.books.wake(NOW + JUDGING_SECONDS)
    assert play.books.deal(2, NOW) == {"c": 2}
    play.books.fail(2, failed("c", 2), NOW)
    assert not play.books.may_deal()


# Starts that failed: when, whether by themselves, and whether there are others who could work; and
# then whether the run has to end, and when the next may be tried.
STARTS: dict[str, tuple[bool, list[tuple[float, bool, bool]], tuple[bool, float]]] = {
    "by itself, and nobody was ever ready": (False, [(0.0, True, False)], (True, 0.5)),
    "killed": (False, [(0.0, False, False)], (False, 0.5)),
    "killed twice": (False, [(0.0, False, False), (1.0, False, False)], (False, 2.0)),
    "killed three times, and nobody was ever ready": (
        False, [(0.0, False, True), (1.0, False, True), (3.0, False, True)], (True, 5.0)
    ),
    "two at a time are one attempt": (
        False, [(0.0, False, False), (0.1, False, False), (0.2, False, False)], (False, 0.5)
    ),
    "by itself, where others were ready": (True, [(0.0, True, False)], (False, 0.5)),
    "three times, and nobody else is there": (
        True, [(0.0, True, False), (1.0, True, False), (3.0, True, False)], (True, 5.0)
    ),
    "three times, and others work": (
        True, [(0.0, True, True), (1.0, True, True), (3.0, True, True)], (False, 5.0)
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ready", "failures", "decided"), STARTS.values(), ids=STARTS)
def test_a_start_that_fails_is_tried_again(
    ready: bool, failures: list[tuple[float, bool, bool]], decided: tuple[bool, float]
) -> None:
    """After a pause, doubled each time, unless the reason is one that stays."""
    starts = Starts()
    starts.possible = starts.possible or ready
    ends = [starts.note_failed(*failure) for failure in failures]
    assert (ends[-1], starts.allowed_at) == decided
    assert not any(ends[:-1])
    starts.note_proven()
    assert starts.allowed_at == 0.0
    starts.note_failed(100.0, by_itself=False, others=True)
    assert starts.allowed_at == 100.5


def test_starts_are_tried_again_once_a_minute_at_least() -> None:
    """However often they have failed, as long as others work."""
    starts = Starts()
    starts.possible = True
    for number in range(100):
        assert not starts.note_failed(100.0 * number, by_itself=True, others=True)
    assert starts.allowed_at == 9_900.0 + 60.0
