"""Dealing as a table: what is asked of it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resumable_pool.between.clock import NEVER
from resumable_pool.run import books as dealing
from resumable_pool.run.books import Again, Dealer

NOW = 0.0
QUICK = NOW + 0.001  # after which one file has been quick enough for long batches


def _state(dealer: Dealer) -> tuple[Any, ...]:
    busy = [worker for worker in range(5) if dealer.is_busy(worker)]
    return dealer.to_do, busy, dealer.over


def _deal(dealer: Dealer, worker: int, *arguments: Any, **options: Any) -> list[str]:
    return [path for path, _ in dealer.deal(worker, NOW, *arguments, **options)]


def _do(dealer: Dealer, name: str, *arguments: Any) -> Any:
    match name:
        case "deal":
            return "".join(_deal(dealer, *arguments, most=3))
        case "finish":
            return "".join(dealer.finish(*arguments, QUICK))
        case _:
            return getattr(dealer, name)(*arguments)


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
    dealer = _with_quick_files(Dealer(1))
    for name, *arguments, returned in events:
        assert _do(dealer, name, *arguments) == returned
    assert _state(dealer) == state


def _with_quick_files(dealer: Dealer, seconds: float = QUICK - NOW) -> Dealer:
    """One file has been done, in so many seconds."""
    dealer.add(["before"])
    assert _deal(dealer, 0) == ["before"]
    dealer.finish(0, 1, NOW + seconds)
    dealer.give_back(0)
    return dealer


# How long files take, and how many of very many are dealt together.
LENGTHS = {
    1000.0: 1,
    1.0: 1,
    0.05: 1,
    0.026: 1,
    0.025: 2,
    0.01: 5,
    0.001: 50,
    0.00025: 200,
    0.00001: 5000,
    0.0: 8192,
    -1.0: 8192,  # as a clock may have it that was set
}


@pytest.mark.parametrize(("seconds", "length"), LENGTHS.items())
def test_quick_files_are_dealt_together(seconds: float, length: int) -> None:
    """As many as take a twentieth of a second, if they go on as the last one did."""
    dealer = _with_quick_files(Dealer(1), seconds)
    dealer.add(map(str, range(100_000)))
    assert len(_deal(dealer, 1)) == length


def test_until_files_prove_to_be_quick_they_are_dealt_singly() -> None:
    """At the beginning nobody knows."""
    dealer = Dealer(1)
    dealer.add(map(str, range(1000)))
    assert _deal(dealer, 0) == ["0"]
    assert _deal(dealer, 1) == ["1"]


def test_a_slow_file_makes_the_next_batch_short() -> None:
    """And quick ones make it long again: what counts is how it was lately."""
    dealer = _with_quick_files(Dealer(1))
    dealer.add(map(str, range(10_000)))
    assert len(_deal(dealer, 0)) == 50
    dealer.finish(0, 49, NOW + 0.049)
    dealer.finish(0, 1, NOW + 10)
    dealer.give_back(0)
    assert len(_deal(dealer, 0)) == 1
    dealer.finish(0, 1, NOW + 0.01)
    dealer.give_back(0)
    assert len(_deal(dealer, 0)) == 5


def test_outcomes_share_the_time_of_their_batch() -> None:
    """The pace is that of one file, however many are reported together: also in two reports that
    come at the same moment, between which there was no time at all."""
    dealer = _with_quick_files(Dealer(1))
    dealer.add(map(str, range(10_000)))
    _deal(dealer, 0)
    dealer.finish(0, 10, NOW + 0.5)
    dealer.finish(0, 20, NOW + 0.5)
    dealer.finish(0, 20, NOW + 0.5)
    dealer.give_back(0)
    assert len(_deal(dealer, 0)) == 5


@pytest.mark.parametrize(("to_do", "workers", "length"), [
    (8000, 10, 50), (1000, 10, 25), (100, 10, 2), (79, 10, 1), (10, 10, 1), (1, 10, 1),
    (10, 1, 2), (4, 1, 1),
])  # fmt: skip
def test_towards_the_end_batches_become_short(to_do: int, workers: int, length: int) -> None:
    """Nobody is left with a long one when the others have finished."""
    dealer = _with_quick_files(Dealer(workers))
    dealer.add(map(str, range(to_do)))
    assert len(_deal(dealer, 0)) == length


def test_a_batch_is_no_longer_than_it_may_be() -> None:
    """A worker that is soon to be replaced, or whose files have a time limit, gets fewer."""
    dealer = _with_quick_files(Dealer(1))
    dealer.add(map(str, range(1000)))
    assert _deal(dealer, 0, most=3) == ["0", "1", "2"]
    assert _deal(dealer, 1, most=1) == ["3"]


def test_who_loses_a_batch_changes_nothing_for_what_was_dealt() -> None:
    """The list that was dealt is the caller's own."""
    dealer = Dealer(1)
    dealer.add(["a"])
    batch = dealer.deal(0, NOW)
    batch.clear()
    assert dealer.finish(0, 1, NOW) == ["a"]


def test_the_way_to_a_worker_is_not_part_of_the_pace() -> None:
    """Where it takes long, it is told when the batch began."""
    dealer = Dealer(1)
    dealer.add(map(str, range(10_000)))
    _deal(dealer, 0)
    dealer.note_begun(0, NOW + 10)
    dealer.finish(0, 1, NOW + 10.01)
    dealer.give_back(0)
    assert len(_deal(dealer, 0)) == 5


@pytest.mark.parametrize(("batch_seconds", "length"), [(0.5, 100), (0.05, 10), (0.0, 1)])
def test_how_long_a_batch_is_to_take(batch_seconds: float, length: int) -> None:
    """Longer where the way is longer, and one file at a time where that is asked for."""
    dealer = _with_quick_files(Dealer(1, batch_seconds), 0.005)
    dealer.add(map(str, range(10_000)))
    assert len(_deal(dealer, 0)) == length


def test_when_nobody_knows_who_is_to_blame_nobody_is() -> None:
    """What was lost together is dealt once more, each alone, after all the rest."""
    dealer = _with_quick_files(Dealer(1), 0.01)
    dealer.add(map(str, range(20)))
    assert _deal(dealer, 0) == ["0", "1", "2", "3", "4"]
    assert dealer.lose(0, certain=False) is None
    dealt = []
    while batch := dealer.deal(0, NOW):
        dealt.append(batch)
        dealer.finish(0, len(batch), NOW + 0.01)
        dealer.give_back(0)
    assert dealt[-5:] == [[(str(number), 1)] for number in range(5)]
    assert dealer.over


def test_another_attempt_comes_after_all_first_ones() -> None:
    """And it knows which one it is."""
    dealer = Dealer(1)
    dealer.add("abc")
    dealer.deal(0, NOW)
    dealer.retry(*dealer.finish(0, 1, NOW), Again.ANY)
    dealer.wake(NOW)
    assert [dealer.deal(worker, NOW) for worker in range(1, 5)] == [
        [("b", 1)], [("c", 1)], [("a", 2)], [],
    ]  # fmt: skip
    dealer.retry(*dealer.finish(3, 1, NOW), Again.ANY)
    assert dealer.attempt("a") == 3
    assert dealer.attempt("b") == 1


def test_what_took_its_worker_along_waits_for_a_fresh_one() -> None:
    """Who is none is in the way, though there is something to do; and it is dealt alone."""
    dealer = _with_quick_files(Dealer(1))
    dealer.enter(1)
    dealer.add("ab")
    dealer.retry("x", Again.FRESH)
    dealer.retry("y", Again.FRESH)
    dealer.wake(NOW)
    assert _deal(dealer, 1) == ["a"]
    dealer.enter(2)
    assert _deal(dealer, 2) == ["b"]
    dealer.finish(1, 1, NOW)
    dealer.give_back(1)
    assert (dealer.to_do, dealer.over) == (2, False)
    assert _deal(dealer, 1) == []
    assert dealer.is_in_the_way(1)
    dealer.enter(3)
    assert not dealer.is_in_the_way(3)
    assert dealer.deal(3, NOW) == [("x", 2)]
    dealer.stop()
    dealer.retry(*dealer.finish(3, 1, NOW), Again.FRESH)
    dealer.wake(NOW)
    dealer.enter(4)
    assert _deal(dealer, 4) == []


def test_what_the_system_has_killed_is_dealt_last_and_alone() -> None:
    """In a fresh worker, when nothing else is in work, and nothing else until it is done."""
    dealer = Dealer(3)
    for worker in range(3):
        dealer.enter(worker)
    dealer.add("abk", killed={"k"})
    dealer.retry("l", Again.ALONE)
    dealer.retry("x", Again.FRESH)
    dealer.wake(NOW)
    assert [_deal(dealer, worker) for worker in range(3)] == [["a"], ["b"], ["x"]]
    dealer.enter(3)
    dealer.finish(0, 1, NOW)
    dealer.give_back(0)
    dealer.lose(1)
    assert _deal(dealer, 3) == []
    assert (dealer.wanted, dealer.is_in_the_way(3), dealer.is_in_the_way(0)) == (1, False, False)
    dealer.finish(2, 1, NOW)
    dealer.give_back(2)
    assert dealer.is_in_the_way(0)
    assert _deal(dealer, 0) == []
    assert dealer.deal(3, NOW) == [("k", 1)]
    dealer.add("c")
    dealer.enter(4)
    assert (_deal(dealer, 4), dealer.is_in_the_way(4), dealer.wanted) == ([], True, 1)
    assert dealer.lose(3) == "k"
    assert _deal(dealer, 4) == ["c"]
    dealer.finish(4, 1, NOW)
    dealer.give_back(4)
    assert (_deal(dealer, 4), dealer.is_in_the_way(4), dealer.wanted) == ([], True, 1)
    dealer.enter(5)
    assert dealer.deal(5, NOW) == [("l", 2)]


def test_a_further_attempt_may_have_to_wait() -> None:
    """It is dealt when its time has come; until then the run is not over, unless it is stopped."""
    dealer = Dealer(1)
    dealer.add("ab")
    dealer.deal(0, NOW)
    dealer.retry(*dealer.finish(0, 1, NOW), Again.ANY, due=NOW + 2)
    dealer.give_back(0)
    dealer.retry("z", Again.ANY, due=NOW + 1)
    dealer.wake(NOW + 0.5)
    assert _deal(dealer, 0) == ["b"]
    dealer.finish(0, 1, NOW)
    dealer.give_back(0)
    assert (dealer.waiting, dealer.due, dealer.to_do, dealer.over) == (2, NOW + 1, 0, False)
    dealer.wake(NOW + 1)
    assert dealer.deal(0, NOW) == [("z", 2)]
    dealer.finish(0, 1, NOW)
    dealer.give_back(0)
    assert (dealer.waiting, dealer.due) == (1, NOW + 2)
    dealer.stop()
    assert (dealer.waiting, dealer.due, dealer.over) == (0, NEVER, True)


ILLEGAL: dict[str, tuple[Callable[[Dealer], object], str]] = {
    "dealt while busy": (
        lambda dealer: dealer.deal(1, NOW),
        r"^worker 1 is to be dealt, but has .*'a'",
    ),
    "an outcome of an idle worker": (
        lambda dealer: dealer.finish(2, 1, NOW),
        "^worker 2 sent 1 outcomes, but has no paths$",
    ),
    "more outcomes than paths": (
        lambda dealer: dealer.finish(1, 2, NOW),
        "^worker 1 sent 2 outcomes, but has 1 paths$",
    ),
    "begun by an idle worker": (
        lambda dealer: dealer.note_begun(2, NOW),
        "^worker 2 has begun its batch, but has none$",
    ),
    "given back by an idle worker": (
        lambda dealer: dealer.give_back(2),
        "^worker 2 gives back its batch, but has none$",
    ),
}


@pytest.mark.parametrize(("event", "message"), ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal_events_raise_and_change_nothing(
    event: Callable[[Dealer], object], message: str
) -> None:
    """An event that cannot be raises, naming the worker and what it has, and changes nothing."""
    dealer = Dealer(1)
    dealer.add("abc")
    dealer.deal(1, NOW)
    before = _state(dealer)
    with pytest.raises(ValueError, match=message):
        event(dealer)
    assert _state(dealer) == before
    assert _deal(dealer, 2) == ["b"]
    assert dealer.finish(1, 1, NOW) == ["a"]
