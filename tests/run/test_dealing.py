"""The books as a table: what happens, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resumable_pool import Failure, Outcome, Report, ResumableRunner
from resumable_pool.between.clock import NEVER
from resumable_pool.between.messages import BATCH_SECONDS, attempts_in
from resumable_pool.records import KILLED
from resumable_pool.run import books as dealing
from resumable_pool.run.books import JUDGING_SECONDS, Books, Verdict
from resumable_pool.run.plan import Plan

NOW = 0.0
QUICK = NOW + 0.001  # after which one file has been quick enough for long batches


def new_books(workers: int = 1, batch_seconds: float = BATCH_SECONDS, **options: Any) -> Books:
    """Of a run in which there is nothing to do yet."""
    runner = ResumableRunner(len, [], "result.pkl", max_workers=workers, progress=False, **options)
    books = Books(runner._options, Plan([], 0, [], 0, 0, workers))
    books.batch_seconds = batch_seconds
    return books


def failed(path: str | None, attempt: int = 1) -> Outcome[Any]:
    """What a worker sends of a file that has failed."""
    assert path is not None
    return Outcome(path, None, 0, Failure(path, "error", "OSError: no", "", attempt, 0.0), 0.0)


def _state(books: Books) -> tuple[Any, ...]:
    busy = [worker for worker in range(5) if books.is_busy(worker)]
    return books.to_do, busy, books.over


def _deal(books: Books, worker: int, *arguments: Any, **options: Any) -> list[str]:
    return [*(books.deal(worker, NOW, *arguments, **options) or ())]


def in_the_way(books: Books, worker: int) -> bool:
    """Whether the worker had better go."""
    return books.deal(worker, NOW) is None


def _do(books: Books, name: str, *arguments: Any) -> Any:
    match name:
        case "deal":
            return "".join(_deal(books, *arguments, most=3))
        case "finish":
            return "".join(books.finish(*arguments, QUICK))
        case _:
            return getattr(books, name)(*arguments)


# Each case is a list of events and what they return, and then how things stand: how many to do, who
# has a batch, whether all is over. Files are quick, and batches have up to 3 paths.
CASES: dict[str, tuple[list[tuple[Any, ...]], tuple[Any, ...]]] = {
    "nothing to do": ([("deal", 0, "")], (0, [], True)),
    "added": ([("add", "abcd", None)], (4, [], False)),
    "added twice": ([("add", "ab", None), ("add", "c", None), ("deal", 0, "abc")],
                    (0, [0], False)),
    "dealt": ([("add", "abcd", None), ("deal", 0, "abc")], (1, [0], False)),
    "dealt to two": ([("add", "abcd", None), ("deal", 0, "abc"), ("deal", 1, "d")],
                     (0, [0, 1], False)),
    "dealt more than there is": ([("add", "a", None), ("deal", 0, "a"), ("deal", 1, "")],
                                 (0, [0], False)),
    "finished in order": ([("add", "abc", None), ("deal", 0, "abc"), ("finish", 0, 1, "a"),
                           ("finish", 0, 1, "b")], (0, [0], False)),
    "finished several": ([("add", "abc", None), ("deal", 0, "abc"), ("finish", 0, 2, "ab")],
                         (0, [0], False)),
    "finished all, and not said so": ([("add", "ab", None), ("deal", 0, "ab"),
                                       ("finish", 0, 2, "ab")], (0, [0], False)),
    "finished all": ([("add", "ab", None), ("deal", 0, "ab"), ("finish", 0, 2, "ab"),
                      ("give_back", 0, None)], (0, [], True)),
    "finished and dealt again": ([("add", "abcd", None), ("deal", 0, "abc"),
                                  ("finish", 0, 3, "abc"), ("give_back", 0, None),
                                  ("deal", 0, "d")], (0, [0], False)),
    "what is given back comes first, in order": (
        [("add", "abcde", None), ("deal", 0, "abc"), ("finish", 0, 1, "a"), ("give_back", 0, None),
         ("deal", 1, "bcd")], (1, [1], False)),
    "given back as it was": ([("add", "abcd", None), ("deal", 0, "abc"), ("give_back", 0, None)],
                             (4, [], False)),
    "lost at the first path": ([("add", "abcd", None), ("deal", 0, "abc"), ("lose", 0, "a")],
                               (3, [], False)),
    "lost in the middle": ([("add", "abcd", None), ("deal", 0, "abc"), ("finish", 0, 1, "a"),
                            ("lose", 0, "b")], (2, [], False)),
    "the rest of a lost batch comes first, in order": (
        [("add", "abcde", None), ("deal", 0, "abc"), ("lose", 0, "a"), ("deal", 1, "bcd")],
        (1, [1], False)),
    "lost with its last path": ([("add", "a", None), ("deal", 0, "a"), ("lose", 0, "a")],
                                (0, [], True)),
    "lost without a path": ([("add", "a", None), ("lose", 0, None)], (1, [], False)),
    "lost after all": ([("add", "a", None), ("deal", 0, "a"), ("finish", 0, 1, "a"),
                        ("lose", 0, None)], (0, [], True)),
    "lost, the others go on": ([("add", "abcdef", None), ("deal", 0, "abc"), ("deal", 1, "def"),
                                ("lose", 0, "a"), ("finish", 1, 1, "d")], (2, [1], False)),
    "stopped before": ([("add", "ab", None), ("stop", None), ("deal", 0, "")], (0, [], True)),
    "stopped in work": ([("add", "abcd", None), ("deal", 0, "abc"), ("stop", None)],
                        (0, [0], False)),
    "stopped and given back": ([("add", "abc", None), ("deal", 0, "abc"), ("stop", None),
                                ("finish", 0, 1, "a"), ("give_back", 0, None), ("deal", 0, "")],
                               (0, [], True)),
    "stopped and lost": ([("add", "ab", None), ("deal", 0, "ab"), ("stop", None),
                          ("lose", 0, "a"), ("deal", 1, "")], (0, [], True)),
    "stopped twice, and added": ([("stop", None), ("stop", None), ("add", "ab", None)],
                                 (0, [], True)),
}  # fmt: skip


@pytest.mark.parametrize(("events", "state"), CASES.values(), ids=CASES.keys())
def test_events(monkeypatch: pytest.MonkeyPatch, events: Any, state: Any) -> None:
    """Each sequence of events returns what the table says, and leaves what it says."""
    monkeypatch.setattr(dealing, "SHARES", 0.1)
    books = _with_quick_files(new_books(1))
    for name, *arguments, returned in events:
        assert _do(books, name, *arguments) == returned
    assert _state(books) == state


def _with_quick_files(books: Books, seconds: float = QUICK - NOW) -> Books:
    """One file has been done, in so many seconds."""
    books.add(["before"])
    assert _deal(books, 0) == ["before"]
    books.finish(0, 1, NOW + seconds)
    books.give_back(0)
    return books


# How long files take, and how many of very many are dealt together.
LENGTHS = {
    1000.0: 1,
    1.0: 1,
    0.11: 1,
    0.1: 2,
    0.05: 4,
    0.01: 20,
    0.001: 200,
    0.00025: 800,
    0.00004: 5000,
    0.00001: 8192,
    0.0: 8192,
    -1.0: 8192,  # as a clock may have it that was set
}


@pytest.mark.parametrize(("seconds", "length"), LENGTHS.items())
def test_quick_files_are_dealt_together(seconds: float, length: int) -> None:
    """As many as take a fifth of a second, if they go on as the last one did."""
    books = _with_quick_files(new_books(1), seconds)
    books.add(map(str, range(100_000)))
    assert len(_deal(books, 1)) == length


def test_until_files_prove_to_be_quick_they_are_dealt_singly() -> None:
    """At the beginning nobody knows."""
    books = new_books(1)
    books.add(map(str, range(1000)))
    assert _deal(books, 0) == ["0"]
    assert _deal(books, 1) == ["1"]


def test_a_slow_file_makes_the_next_batch_short() -> None:
    """And quick ones make it long again: what counts is how it was lately."""
    books = _with_quick_files(new_books(1))
    books.add(map(str, range(10_000)))
    assert len(_deal(books, 0)) == 200
    books.finish(0, 199, NOW + 0.199)
    books.finish(0, 1, NOW + 60)
    books.give_back(0)
    assert len(_deal(books, 0)) == 1
    books.finish(0, 1, NOW + 0.01)
    books.give_back(0)
    assert len(_deal(books, 0)) == 20


def test_outcomes_share_the_time_of_their_batch() -> None:
    """The pace is that of one file, however many are reported together: also in two reports that
    come at the same moment, between which there was no time at all."""
    books = _with_quick_files(new_books(1))
    books.add(map(str, range(10_000)))
    _deal(books, 0)
    books.finish(0, 10, NOW + 0.5)
    books.finish(0, 20, NOW + 0.5)
    books.finish(0, 20, NOW + 0.5)
    books.give_back(0)
    assert len(_deal(books, 0)) == 20


@pytest.mark.parametrize(("to_do", "workers", "length"), [
    (9000, 10, 200), (1000, 10, 25), (100, 10, 2), (79, 10, 1), (10, 10, 1), (1, 10, 1),
    (10, 1, 2), (4, 1, 1),
])  # fmt: skip
def test_towards_the_end_batches_become_short(to_do: int, workers: int, length: int) -> None:
    """Nobody is left with a long one when the others have finished."""
    books = _with_quick_files(new_books(workers))
    books.add(map(str, range(to_do)))
    assert len(_deal(books, 0)) == length


def test_a_batch_is_no_longer_than_it_may_be() -> None:
    """A worker that is soon to be replaced, or whose files have a time limit, gets fewer."""
    books = _with_quick_files(new_books(1))
    books.add(map(str, range(1000)))
    assert _deal(books, 0, most=3) == ["0", "1", "2"]
    assert _deal(books, 1, most=1) == ["3"]


def test_who_loses_a_batch_changes_nothing_for_what_was_dealt() -> None:
    """The list that was dealt is the caller's own."""
    books = new_books(1)
    books.add(["a"])
    batch = books.deal(0, NOW)
    batch.clear()
    assert books.finish(0, 1, NOW) == ["a"]


def test_the_way_to_a_worker_is_not_part_of_the_pace() -> None:
    """Where it takes long, it is told when the batch began."""
    books = new_books(1)
    books.add(map(str, range(10_000)))
    _deal(books, 0)
    books.note_begun(0, NOW + 10)
    books.finish(0, 1, NOW + 10.01)
    books.give_back(0)
    assert len(_deal(books, 0)) == 20


@pytest.mark.parametrize(("batch_seconds", "length"), [(0.5, 100), (0.05, 10), (0.0, 1)])
def test_how_long_a_batch_is_to_take(batch_seconds: float, length: int) -> None:
    """Longer where the way is longer, and one file at a time where that is asked for."""
    books = _with_quick_files(new_books(1, batch_seconds), 0.005)
    books.add(map(str, range(10_000)))
    assert len(_deal(books, 0)) == length


def test_when_nobody_knows_who_is_to_blame_nobody_is() -> None:
    """What was lost together is dealt once more, each alone, after all the rest."""
    books = _with_quick_files(new_books(1), 0.01)
    books.add(map(str, range(20)))
    assert _deal(books, 0) == ["0", "1", "2", "3", "4"]
    assert books.lose(0, certain=False) is None
    dealt = []
    while batch := books.deal(0, NOW):
        dealt.append(batch)
        books.finish(0, len(batch), NOW + 0.01)
        books.give_back(0)
    assert dealt[-5:] == [[str(number)] for number in range(5)]
    assert books.over


def test_another_attempt_comes_after_all_first_ones() -> None:
    """And it knows which one it is."""
    books = new_books(1)
    books.add("abc")
    books.deal(0, NOW)
    books.retry(*books.finish(0, 1, NOW), books.again)
    books.wake(NOW)
    assert [books.deal(worker, NOW) for worker in range(1, 5)] == [
        {"b": 1}, {"c": 1}, {"a": 2}, [],
    ]  # fmt: skip
    books.retry(*books.finish(3, 1, NOW), books.again)
    assert books.attempt("a") == 3
    assert books.attempt("b") == 1


def test_what_took_its_worker_along_waits_for_a_fresh_one() -> None:
    """Who is none is in the way, though there is something to do; and it is dealt alone."""
    books = _with_quick_files(new_books(1))
    books.enter(1)
    books.add("ab")
    books.retry("x", books.dangerous)
    books.retry("y", books.dangerous)
    books.wake(NOW)
    assert _deal(books, 1) == ["a"]
    books.enter(2)
    assert _deal(books, 2) == ["b"]
    books.finish(1, 1, NOW)
    books.give_back(1)
    assert (books.to_do, books.over) == (2, False)
    assert _deal(books, 1) == []
    assert in_the_way(books, 1)
    books.enter(3)
    assert books.deal(3, NOW) == {"x": 2}
    books.stop()
    books.retry(*books.finish(3, 1, NOW), books.dangerous)
    books.wake(NOW)
    books.enter(4)
    assert _deal(books, 4) == []


def test_what_the_system_has_killed_is_dealt_last_and_alone() -> None:
    """In a fresh worker, when nothing else is in work, and nothing else until it is done."""
    books = new_books(3)
    for worker in range(3):
        books.enter(worker)
    books.begin(Plan("abk", 0, [], 0, 0, 3), killed={"k"})
    books.retry("l", books.killed)
    books.retry("x", books.dangerous)
    books.wake(NOW)
    assert [_deal(books, worker) for worker in range(3)] == [["a"], ["b"], ["x"]]
    books.enter(3)
    books.finish(0, 1, NOW)
    books.give_back(0)
    books.lose(1)
    assert _deal(books, 3) == []
    assert (books.wanted, in_the_way(books, 3), in_the_way(books, 0)) == (1, False, False)
    books.finish(2, 1, NOW)
    books.give_back(2)
    assert in_the_way(books, 0)
    assert _deal(books, 0) == []
    assert books.deal(3, NOW) == {"k": 1}
    books.add("c")
    books.enter(4)
    assert (_deal(books, 4), in_the_way(books, 4), books.wanted) == ([], True, 1)
    assert books.lose(3) == "k"
    assert _deal(books, 4) == ["c"]
    books.finish(4, 1, NOW)
    books.give_back(4)
    assert (_deal(books, 4), in_the_way(books, 4), books.wanted) == ([], True, 1)
    books.enter(5)
    assert books.deal(5, NOW) == {"l": 2}


def test_a_further_attempt_may_have_to_wait() -> None:
    """It is dealt when its time has come; until then the run is not over, unless it is stopped."""
    books = new_books(1)
    books.add("ab")
    books.deal(0, NOW)
    books.retry(*books.finish(0, 1, NOW), books.again, due=NOW + 2)
    books.give_back(0)
    books.retry("z", books.again, due=NOW + 1)
    books.wake(NOW + 0.5)
    assert _deal(books, 0) == ["b"]
    books.finish(0, 1, NOW)
    books.give_back(0)
    assert (len(books.waiting), books.due, books.to_do, books.over) == (2, NOW + 1, 0, False)
    books.wake(NOW + 1)
    assert books.deal(0, NOW) == {"z": 2}
    books.finish(0, 1, NOW)
    books.give_back(0)
    assert (len(books.waiting), books.due) == (1, NOW + 2)
    books.stop()
    assert (len(books.waiting), books.due, books.over) == (0, NEVER, True)
    books.retry("z", books.again, due=NOW + 600)
    assert (books.due, books.over) == (NEVER, True)


# How often a file may be tried again, and what becomes of its first failures, one after the other.
VERDICTS = {
    0: [Verdict.SAVE],
    1: [Verdict.RETRY, Verdict.SAVE],
    2: [Verdict.RETRY, Verdict.RETRY, Verdict.SAVE],
}


@pytest.mark.parametrize(("retries", "verdicts"), VERDICTS.items())
def test_a_failure_is_judged_after_a_moment(retries: int, verdicts: list[Verdict]) -> None:
    """Then it leads to another attempt, as long as there may be one; the last one is saved."""
    books = new_books(retries=retries)
    books.add("a")
    for attempt, verdict in enumerate(verdicts, 1):
        batch = books.deal(0, NOW) or []
        assert [*attempts_in(batch)] == [("a", attempt)]
        outcome = failed("a", attempt)
        books.fail(0, outcome, NOW)
        books.give_back(0)
        assert (books.over, books.due) == (False, NOW + JUDGING_SECONDS)
        assert books.judge(NOW, stopped=False) is None
        judged = books.judge(NOW + JUDGING_SECONDS, stopped=False)
        assert judged == (verdict, outcome, outcome.failure)
        books.wake(NOW + JUDGING_SECONDS)
    assert not books.over
    books.note_failure_saved("a")
    assert (books.over, books.failed, books.take_finished()) == (True, 1, ["a"])
    assert books.has_failed("a")


def test_a_failure_during_a_stop_is_nobody_s() -> None:
    """It may have failed of that, so it is still to do; and nobody waits for the verdict."""
    books = new_books()
    books.add("a")
    books.deal(0, NOW)
    books.fail(0, failed("a"), NOW)
    books.give_back(0)
    books.stop()
    judged = books.judge(NOW, stopped=True)
    assert judged is not None
    assert judged[0] is Verdict.DROP
    assert (books.over, books.failed, books.report({}, 0.0, "").remaining) == (True, 0, 1)


@pytest.mark.parametrize(("message", "killed"), [(KILLED, True), ("exited with status 1", False)])
def test_what_took_its_worker_along_is_judged_like_any_failure(message: str, killed: bool) -> None:
    """After a moment; then it waits for a fresh worker, and all the memory if it was killed."""
    books = new_books(retries=1)
    books.add("a")
    books.deal(0, NOW)
    assert books.lose(0) == "a"
    books.blame("a", "crashed", message, "", 1.5, NOW)
    assert (books.judge(NOW, stopped=False), books.due) == (None, NOW + JUDGING_SECONDS)
    judged = books.judge(NOW + JUDGING_SECONDS, stopped=False)
    assert judged is not None
    assert judged[1] == Outcome("a", None, 0, judged[2], 1.5, 1)
    assert judged[::2] == (Verdict.RETRY, Failure("a", "crashed", message, "", 1, 1.5))
    books.wake(NOW + JUDGING_SECONDS)
    assert ([*books.killed], [*books.dangerous]) == ((["a"], []) if killed else ([], ["a"]))


@pytest.mark.parametrize(
    ("attempt", "pause"), [(1, 3.0), (2, 6.0), (4, 24.0), (12, 600.0), (5_000, 600.0)]
)
def test_the_pause_before_an_attempt_grows(attempt: int, pause: float) -> None:
    """It doubles each time, up to ten minutes."""
    books = new_books(retries=10_000, retry_delay=3.0)
    books._attempts["a"] = attempt
    books.blame("a", "error", "no", "", 0.0, NOW)
    books.judge(NOW + JUDGING_SECONDS, stopped=False)
    assert books.due == NOW + JUDGING_SECONDS + pause


def test_for_what_is_dealt_alone_one_worker_is_enough() -> None:
    """However many there are of it."""
    books = new_books(4)
    books.begin(Plan([*"abc"], 0, [*"abc"], 0, 0, 0), killed={"a", "b", "c"})
    assert (books.wanted, books.to_do) == (1, 3)
    assert _deal(books, 0) == ["a"]
    assert (books.wanted, in_the_way(books, 1)) == (1, True)


@pytest.mark.parametrize(("limit", "said"), [(0, "1 file failed"), (1, "2 files failed")])
def test_how_many_may_fail(limit: int, said: str) -> None:
    """A failure counts as soon as it is judged, and not twice when it is saved."""
    books = new_books(max_failures=limit)
    books.add("ab")
    for path, too_many in (("a", limit < 1), ("b", True)):
        books.deal(0, NOW)
        books.fail(0, failed(path), NOW)
        books.give_back(0)
        books.judge(NOW + JUDGING_SECONDS, stopped=False)
        assert bool(books.too_many) is too_many
        books.note_failure_saved(path)
        assert bool(books.too_many) is too_many
    assert books.too_many == f"{said}, more than max_failures={limit}"
    assert not new_books().too_many


def test_which_file_is_in_progress_longest() -> None:
    """It is told since when; nothing is where nothing is in progress, or nobody can tell."""
    books = new_books(2, batch_seconds=0.0)
    books.add("abc")
    assert books.longest(5.0) == ("", 0.0)
    books.deal(0, 2.0)
    books.deal(1, 1.0)
    assert books.longest(5.0) == ("b", 4.0)
    books.finish(1, 1, 5.0)
    books.give_back(1)
    assert books.longest(5.0) == ("a", 3.0)
    books.tells_files = False
    assert books.longest(5.0) is None


def test_what_took_its_worker_along_is_dealt_alone_however_quick_files_are() -> None:
    """So that it is known which of them does it again."""
    books = new_books(1, retries=1)
    books.add("abcdefghijklm")
    for _ in range(12):
        books.deal(0, NOW, most=1)
        path = books.lose(0)
        assert path is not None
        books.blame(path, "crashed", "its worker died", "", 0.0, NOW)
        books.judge(NOW + JUDGING_SECONDS, stopped=False)
    books.wake(NOW + 1)
    books.deal(0, NOW)
    books.finish(0, 1, QUICK)
    books.give_back(0)
    assert _deal(books, 1) == ["a"]


@pytest.mark.parametrize("keep_failures", [False, True])
def test_the_books_say_how_the_run_stands_and_how_it_ended(keep_failures: bool) -> None:
    """With what was done and has failed before; a failure is the checkpoint's, or, where that has
    none, the run's own."""
    plan = Plan([*"abcd"], 5, ["c", "x"], 1, 0, 3, sizes={"a": 1, "b": 2, "c": 4, "d": 8})
    kept = (True,) if keep_failures else ()
    books = Books(new_books()._options, plan, *kept)
    books.begin(plan)  # once more, when the checkpoint is locked
    assert (books.total, books.completed, books.failed) == (10, 0, 0)
    assert (books.to_do, books.skipped, books.left) == (4, 5, 1)
    for path in "abc":
        assert _deal(books, 0, most=1) == [path]
        if path == "b":
            books.fail(0, failed("b"), NOW)
            books.give_back(0)
            books.judge(NOW + JUDGING_SECONDS, stopped=False)
            books.note_failure_saved("b")
        else:
            books.finish(0, 1, NOW)
            books.give_back(0)
            books.note_saved(1)
    assert (books.completed, books.failed) == (2, 1)
    assert (books.size_done, books.size_to_do) == (7, 15)
    assert books.take_finished(2) == ["a", "b"]
    assert books.take_finished() == ["c"]
    assert [*filter(books.has_failed, "abc")] == ["b"]
    own = failed("b").failure
    assert own is not None
    elsewhere = own._replace(path="x")
    report = books.report({"x": elsewhere} if keep_failures else {"b": own}, 2.0, "a note")
    # What is known of x is damaged, unless it is there.
    failures = [own, elsewhere] if keep_failures else [own]
    assert report == Report(10, 2, 5, 2, 1, 2.0, False, failures, "a note")


ILLEGAL: dict[str, tuple[Callable[[Books], object], str]] = {
    "dealt while busy": (
        lambda books: books.deal(1, NOW),
        r"^worker 1 is to be dealt, but has .*'a'",
    ),
    "an outcome of an idle worker": (
        lambda books: books.finish(2, 1, NOW),
        "^worker 2 sent 1 outcomes, but has no paths$",
    ),
    "more outcomes than paths": (
        lambda books: books.finish(1, 2, NOW),
        "^worker 1 sent 2 outcomes, but has 1 paths$",
    ),
    "begun by an idle worker": (
        lambda books: books.note_begun(2, NOW),
        "^worker 2 has begun its batch, but has none$",
    ),
    "given back by an idle worker": (
        lambda books: books.give_back(2),
        "^worker 2 gives back its batch, but has none$",
    ),
}


@pytest.mark.parametrize(("event", "message"), ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal_events_raise_and_change_nothing(
    event: Callable[[Books], object], message: str
) -> None:
    """An event that cannot be raises, naming the worker and what it has, and changes nothing."""
    books = new_books(1)
    books.add("abc")
    books.deal(1, NOW)
    before = _state(books)
    with pytest.raises(ValueError, match=message):
        event(books)
    assert _state(books) == before
    assert _deal(books, 2) == ["b"]
    assert books.finish(1, 1, NOW) == ["a"]
