"""When values are saved, and forced to the disk, as a table: what comes when, and what is done."""

from __future__ import annotations

from typing import Any, cast

import pytest

from resumable_pool.between.clock import NEVER
from resumable_pool.checkpoints import Checkpoint
from resumable_pool.records import Outcome
from resumable_pool.saver.saving import Saving


class Recording:
    """Stands for a checkpoint: what it was told since somebody looked."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def append(self, records: list[bytes]) -> None:
        self.done.append(b"".join(records).decode())

    def save_failures(self, outcomes: list[Outcome[Any]]) -> None:
        self.done += [f"failed {outcome.path}" for outcome in outcomes]

    def outcome_in(self, record: bytes) -> Outcome[Any]:
        return Outcome(record.decode(), record, 0, None, 0.0)

    def sync(self) -> None:
        self.done.append("sync")

    def close(self) -> None:
        self.done.append("closed")


class Elsewhere:
    """Stands for a runner whose hooks save elsewhere; what it cannot save is `x`."""

    def __init__(self, done: list[str]) -> None:
        self._done = done

    def open_saver(self) -> None:
        self._done.append("opened elsewhere")

    def save(self, outcomes: list[Outcome[Any]]) -> None:
        self._done.append("elsewhere " + "".join(outcome.path for outcome in outcomes))
        if self._done[-1].endswith("x"):
            raise OSError("no room elsewhere")

    save_failures = save

    def close_saver(self) -> None:
        self._done.append("closed elsewhere")


# How many are saved together; then what comes at which time (a capital is a failure), what is done,
# how many values are saved, and when there is something to do if nothing comes.
CASES: dict[str, tuple[int, list[tuple[float, str, list[str], int, float]]]] = {
    "each at once, and forced once in an interval": (1, [
        (100.0, "a", ["a", "sync"], 1, NEVER),
        (100.1, "bc", ["bc"], 2, 101.0),
        (100.9, "d", ["d"], 1, 101.0),
        (101.0, "", ["sync"], 0, NEVER),
        (150.0, "", [], 0, NEVER),
        (200.0, "e", ["e", "sync"], 1, NEVER),
    ]),
    "so many together, or when the oldest has waited": (3, [
        (100.0, "ab", [], 0, 101.0),
        (100.5, "cd", ["abc", "sync"], 3, 101.5),
        (101.0, "e", [], 0, 101.5),
        (101.5, "", ["de", "sync"], 2, NEVER),
        (101.6, "fghijkl", ["fgh", "ijk"], 6, 102.5),
        (102.5, "", ["sync"], 0, 102.6),
        (102.6, "", ["l"], 1, 103.5),
        (NEVER, "", ["sync"], 0, NEVER),
    ]),
    "what waits at the end": (10, [
        (100.0, "ab", [], 0, 101.0),
        (NEVER, "", ["ab", "sync"], 2, NEVER),
    ]),
    "a failure at once, and forced like the others": (10, [
        (100.0, "A", ["failed A", "sync"], 0, NEVER),
        (100.2, "B", ["failed B"], 0, 101.0),
        (101.0, "", ["sync"], 0, NEVER),
    ]),
}  # fmt: skip


@pytest.mark.parametrize(("every", "steps"), CASES.values(), ids=CASES)
def test_what_is_saved_and_forced_when(every: int, steps: list[Any]) -> None:
    """A value waits for the others, a power cut costs what has come since, and neither is longer
    than the interval."""
    checkpoint = Recording()
    saving = Saving(cast(Checkpoint, checkpoint), None, every, interval=1.0)
    for now, comes, done, saved, due in steps:
        for path in filter(str.isupper, comes):
            saving.save_failure(Outcome(path, None, 0, None, 0.0))
        number = saving.save([value.encode() for value in comes if value.islower()], now)
        assert (checkpoint.done, number) == (done, saved), now
        assert saving.due == pytest.approx(due)
        checkpoint.done.clear()


def test_who_saves_elsewhere_is_given_what_the_checkpoint_would_be() -> None:
    """So many values at a time, and failures; the checkpoint is only kept, and closed last."""
    checkpoint = Recording()
    done = checkpoint.done
    saving = Saving(cast(Checkpoint, checkpoint), cast(Any, Elsewhere(done)), 2, interval=1.0)
    saving.begin()
    assert saving.save([b"a", b"b", b"c"], 100.0) == 2
    saving.save_failure(Outcome("F", None, 0, None, 0.0))
    assert saving.who() == "Elsewhere"
    with pytest.raises(OSError, match="no room"):
        saving.save([b"x"], 100.1)
    assert saving.who() == "Elsewhere, which was given 'c', 'x'"
    saving.close()
    given = ["elsewhere ab", "sync", "elsewhere F", "elsewhere cx"]
    assert done == ["opened elsewhere", *given, "closed elsewhere", "closed"]


def test_who_was_not_opened_elsewhere_is_not_closed() -> None:
    """The checkpoint is; and where nobody saves elsewhere, nobody is named."""
    for elsewhere in (False, True):
        checkpoint = Recording()
        hooks = Elsewhere(checkpoint.done) if elsewhere else None
        saving = Saving(cast(Checkpoint, checkpoint), cast(Any, hooks), 1, interval=1.0)
        assert saving.who() == ("Elsewhere" if hooks else "")
        if hooks is None:
            saving.begin()
        saving.close()
        assert checkpoint.done == ["closed"]
