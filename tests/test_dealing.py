"""Dealing as a table: what is asked of it, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from resumable_pool import dealing
from resumable_pool.dealing import Dealer


def _paths(returned: Any) -> Any:
    """Without the attempts, if it is a batch."""
    return [path for path, _ in returned] if isinstance(returned, list) else returned


def _state(dealer: Dealer) -> tuple[Any, ...]:
    busy = [worker for worker in range(5) if dealer.is_busy(worker)]
    return dealer.to_do, dealer.in_work, busy, dealer.over


# Each case is a list of events and what they return, and then how things stand:
# how many to do, how many in work, who is busy, whether all is over. Batches have up to 3 paths.
CASES: dict[str, tuple[list[tuple[Any, ...]], tuple[Any, ...]]] = {
    "nothing to do": ([("deal", 0, [])], (0, 0, [], True)),
    "added": ([("add", "abcd", None)], (4, 0, [], False)),
    "added twice": ([("add", "ab", None), ("add", "c", None), ("deal", 0, [*"abc"])],
                    (0, 3, [0], False)),
    "dealt": ([("add", "abcd", None), ("deal", 0, [*"abc"])], (1, 3, [0], False)),
    "dealt to two": ([("add", "abcd", None), ("deal", 0, [*"abc"]), ("deal", 1, ["d"])],
                     (0, 4, [0, 1], False)),
    "dealt more than there is": ([("add", "a", None), ("deal", 0, ["a"]), ("deal", 1, [])],
                                 (0, 1, [0], False)),
    "finished in order": ([("add", "abc", None), ("deal", 0, [*"abc"]), ("finish", 0, "a"),
                           ("finish", 0, "b")], (0, 1, [0], False)),
    "finished all": ([("add", "ab", None), ("deal", 0, [*"ab"]), ("finish", 0, "a"),
                      ("finish", 0, "b")], (0, 0, [], True)),
    "finished and dealt again": ([("add", "abcd", None), ("deal", 0, [*"abc"]), ("finish", 0, "a"),
                                  ("finish", 0, "b"), ("finish", 0, "c"), ("deal", 0, ["d"])],
                                 (0, 1, [0], False)),
    "lost at the first path": ([("add", "abcd", None), ("deal", 0, [*"abc"]), ("lose", 0, "a")],
                               (3, 0, [], False)),
    "lost in the middle": ([("add", "abcd", None), ("deal", 0, [*"abc"]), ("finish", 0, "a"),
                            ("lose", 0, "b")], (2, 0, [], False)),
    "the rest of a lost batch comes first, in order": (
        [("add", "abcde", None), ("deal", 0, [*"abc"]), ("lose", 0, "a"), ("deal", 1, [*"bcd"])],
        (1, 3, [1], False)),
    "lost with its last path": ([("add", "a", None), ("deal", 0, ["a"]), ("lose", 0, "a")],
                                (0, 0, [], True)),
    "lost without a path": ([("add", "a", None), ("lose", 0, None)], (1, 0, [], False)),
    "lost after all": ([("add", "a", None), ("deal", 0, ["a"]), ("finish", 0, "a"),
                        ("lose", 0, None)], (0, 0, [], True)),
    "lost, the others go on": ([("add", "abcdef", None), ("deal", 0, [*"abc"]),
                                ("deal", 1, [*"def"]), ("lose", 0, "a"), ("finish", 1, "d")],
                               (2, 2, [1], False)),
    "stopped before": ([("add", "ab", None), ("stop", None), ("deal", 0, [])], (0, 0, [], True)),
    "stopped in work": ([("add", "abcd", None), ("deal", 0, [*"abc"]), ("stop", None)],
                        (0, 3, [0], False)),
    "stopped and finished": ([("add", "ab", None), ("deal", 0, [*"ab"]), ("stop", None),
                              ("finish", 0, "a"), ("finish", 0, "b")], (0, 0, [], True)),
    "stopped and lost": ([("add", "ab", None), ("deal", 0, [*"ab"]), ("stop", None),
                          ("lose", 0, "a"), ("deal", 1, [])], (0, 0, [], True)),
    "stopped twice, and added": ([("stop", None), ("stop", None), ("add", "ab", None)],
                                 (0, 0, [], True)),
}  # fmt: skip


@pytest.mark.parametrize(("events", "state"), CASES.values(), ids=CASES.keys())
def test_events(monkeypatch: pytest.MonkeyPatch, events: Any, state: Any) -> None:
    """Each sequence of events returns what the table says, and leaves what it says."""
    monkeypatch.setattr(dealing, "BATCH_LENGTH", 3)
    dealer = Dealer()
    for name, *arguments, returned in events:
        assert _paths(getattr(dealer, name)(*arguments)) == returned
    assert _state(dealer) == state


def test_batches_are_single_paths() -> None:
    """As shipped, a worker has one path at a time, in the order of adding."""
    dealer = Dealer()
    dealer.add(["b", "a", "c"])
    batches = [dealer.deal(worker) for worker in range(4)]
    assert batches == [[("b", 1)], [("a", 1)], [("c", 1)], []]


def test_who_loses_a_batch_changes_nothing_for_what_was_dealt() -> None:
    """The list that was dealt is the caller's own."""
    dealer = Dealer()
    dealer.add(["a"])
    batch = dealer.deal(0)
    batch.clear()
    assert dealer.finish(0) == "a"


def test_another_attempt_comes_after_all_first_ones() -> None:
    """And it knows which one it is."""
    dealer = Dealer()
    dealer.add("abc")
    dealer.deal(0)
    dealer.retry(dealer.finish(0), fresh=False)
    assert [dealer.deal(worker) for worker in range(1, 5)] == [
        [("b", 1)], [("c", 1)], [("a", 2)], [],
    ]  # fmt: skip
    dealer.retry(dealer.finish(3), fresh=False)
    assert dealer.attempt("a") == 3
    assert dealer.attempt("b") == 1


def test_what_took_its_worker_along_waits_for_a_fresh_one() -> None:
    """Others get nothing, though there is something to do."""
    dealer = Dealer()
    dealer.add("ab")
    dealer.deal(0)
    dealer.retry(str(dealer.lose(0)), fresh=True)
    assert dealer.deal(1, fresh=False) == [("b", 1)]
    dealer.finish(1)
    assert (dealer.to_do, dealer.over) == (1, False)
    assert dealer.deal(1, fresh=False) == []
    assert dealer.deal(2, fresh=True) == [("a", 2)]
    dealer.stop()
    dealer.retry(dealer.finish(2), fresh=True)
    assert (dealer.deal(3, fresh=True), dealer.over) == ([], True)


ILLEGAL: dict[str, tuple[Callable[[Dealer], object], str]] = {
    "dealt while busy": (
        lambda dealer: dealer.deal(1),
        r"^worker 1 is to be dealt, but has .*'a'",
    ),
    "an outcome of an idle worker": (
        lambda dealer: dealer.finish(2),
        "^worker 2 sent an outcome, but has no path$",
    ),
    "an outcome of an unknown worker": (
        lambda dealer: dealer.finish(99),
        "^worker 99 sent an outcome, but has no path$",
    ),
}


@pytest.mark.parametrize(("event", "message"), ILLEGAL.values(), ids=ILLEGAL.keys())
def test_illegal_events_raise_and_change_nothing(
    event: Callable[[Dealer], object], message: str
) -> None:
    """An event that cannot be raises, naming the worker and what it has, and changes nothing."""
    dealer = Dealer()
    dealer.add("abc")
    dealer.deal(1)
    before = _state(dealer)
    with pytest.raises(ValueError, match=message):
        event(dealer)
    assert _state(dealer) == before
    assert dealer.deal(2) == [("b", 1)]
    assert dealer.finish(1) == "a"
