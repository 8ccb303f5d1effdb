"""Runners that save elsewhere, or collect and process differently, under every start method."""

from __future__ import annotations

import csv
import errno
import os
import select
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Outcome, ResumableRunner, SaverError, open_checkpoint
from resumable_pool.options import _MOST_SECONDS
from resumable_pool.saver import process as saver_process

from .. import functions
from ..conftest import CHEAPEST
from ..stage import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = [f"in/{number:02}.txt" for number in range(10)]
NUMBERS = {path: number for number, path in enumerate(ALL)}


class ToCsv(ResumableRunner[int]):
    """Appends to a file; nothing else is overridden."""

    def save(self, outcomes: Sequence[Outcome]) -> None:
        with open("out.csv", "a", newline="") as file:
            csv.writer(file).writerows((outcome.path, outcome.value) for outcome in outcomes)

    def load_completed(self) -> Iterable[str]:
        if not os.path.exists("out.csv"):
            return []
        with open("out.csv", newline="") as file:
            return [row[0] for row in csv.reader(file)]


class ToDatabase(ResumableRunner[int]):
    """Has a connection that is born in the saver, and an attribute of its own."""

    def __init__(self, *arguments: Any, table: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.table = table
        self.unpicklable = None

    def open_saver(self) -> None:
        self.database = sqlite3.connect("out.db")
        self.database.execute(
            f"create table if not exists {self.table} (path primary key, value, process)"
        )

    def save(self, outcomes: Sequence[Outcome]) -> None:
        rows = [(outcome.path, outcome.value, os.getpid()) for outcome in outcomes]
        with self.database:
            self.database.executemany(f"insert into {self.table} values (?, ?, ?)", rows)

    def close_saver(self) -> None:
        self.database.close()
        Path("closed").touch()

    def load_completed(self) -> Iterable[str]:
        return self._all().keys()

    def read_result(self, path: str) -> int:
        return self._all()[path]

    def _all(self) -> dict[str, int]:
        if not os.path.exists("out.db"):
            return {}
        database = sqlite3.connect("out.db")
        try:
            return dict(database.execute(f"select path, value from {self.table}"))
        finally:
            database.close()


class ToBoth(ResumableRunner[int]):
    """Keeps the checkpoint as well."""

    def save(self, outcomes: Sequence[Outcome]) -> None:
        super().save(outcomes)
        with open("sizes", "a") as file:
            file.write(f"{len(outcomes)}\n")


def options(method: str | None = None, **changed: Any) -> dict[str, Any]:
    return {"max_workers": 2, "mp_context": method, "progress": False, **changed}


def test_overriding_save_is_enough_to_save_elsewhere(folder: Path, method: str) -> None:
    """And `load_completed`, to resume; what failed is in the checkpoint, and is tried again."""
    Path("in/07.txt").write_text("not a number")
    csv_only = ToCsv(functions.number_in, "in/*.txt", "result.pkl", **options(method))
    report = csv_only.run()
    assert (report.completed, report.failed) == (9, 1)
    assert len(open_checkpoint("result.pkl")) == 0
    Path("in/07.txt").write_text("7")
    again = ToCsv(functions.number_in, "in/*.txt", "result.pkl", **options(method))
    assert again.pending() == [*again.failures] == ["in/07.txt"]
    report = again.run()
    assert (report.completed, report.skipped, report.failed, report.remaining) == (1, 9, 0, 0)
    assert "in/07.txt" in open_checkpoint("result.pkl").failures()  # which knows no better
    assert dict(again.failures) == {}
    assert again.run().skipped == 10
    with open("out.csv", newline="") as file:
        assert {path: int(value) for path, value in csv.reader(file)} == NUMBERS
    assert functions.calls() == sorted([*ALL, "in/07.txt"])


def test_a_value_that_is_elsewhere_needs_a_hook_to_be_read(folder: Path) -> None:
    """Without it the outcome still comes, and says so when it is asked."""
    csv_only = ToCsv(functions.number_in, ALL[:1], "result.pkl", **options(CHEAPEST))
    (outcome,) = csv_only.as_completed()
    assert (outcome.path, outcome.ok) == (ALL[0], True)
    with pytest.raises(LookupError, match="override read_result"):
        outcome.value  # noqa: B018
    with pytest.raises(KeyError, match=r"ToCsv saves elsewhere, and must override read_result"):
        csv_only.results[ALL[0]]
    assert csv_only.results.get("no file") is None


class Forgetful(ResumableRunner[int]):
    """What it has saved, no run will know."""

    def save(self, outcomes: Sequence[Outcome]) -> None:
        pass


class Inbox(Forgetful):
    """Knows itself what is to do."""

    def collect_files(self) -> Iterable[str]:
        return ALL[8:]


class Returnless(ResumableRunner[int]):
    """Has forgotten the `return`."""

    def collect_files(self) -> Any:
        pass


def test_a_hook_that_gives_no_paths_is_named(folder: Path) -> None:
    """The `pattern` that was passed is as it should be."""
    runner = Returnless(functions.number_in, "in/*.txt", "result.pkl", **options(CHEAPEST))
    with pytest.raises(TypeError, match=r"^Returnless.collect_files\(\) must be .*, not None"):
        runner.pending()


@pytest.mark.parametrize(
    ("kind", "told"), [(Forgetful, True), (Inbox, False), (ToCsv, False), (ToBoth, False)]
)
def test_who_forgets_load_completed_is_told(
    folder: Path, kind: type[ResumableRunner], told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every run would do all files again, and none would say so."""
    ToBoth(functions.number_in, ALL[:8], "result.pkl", **options(CHEAPEST)).run()
    runner = kind(functions.number_in, ALL, "result.pkl", **options(CHEAPEST, progress=None))
    runner.run()
    text = f"{kind.__name__} saves elsewhere, and must override load_completed, too: "
    assert (text in capsys.readouterr().err) == told


def test_a_connection_may_be_born_in_the_saver(folder: Path, method: str) -> None:
    """It is opened and closed there, once; values are read back through the hook."""
    arguments = (functions.number_in, "in/*.txt", "result.pkl")
    database = ToDatabase(*arguments, table="numbers", **options(method))
    seen = {outcome.path: outcome.value for outcome in database.as_completed()}
    assert seen == NUMBERS == dict(database.results)
    assert len(database.results) == 10
    connection = sqlite3.connect("out.db")
    (processes,) = connection.execute("select count(distinct process) from numbers").fetchone()
    (saver,) = connection.execute("select process from numbers").fetchone()
    connection.close()
    assert (processes, saver != os.getpid()) == (1, True)
    assert Path("closed").exists()
    assert database.run().skipped == 10


def test_the_checkpoint_can_be_kept_as_well(folder: Path) -> None:
    """By calling the original."""
    ToBoth(functions.number_in, "in/*.txt", "result.pkl", **options()).run()
    assert dict(open_checkpoint("result.pkl")) == NUMBERS
    assert Path("sizes").exists()


@pytest.mark.alike
@pytest.mark.parametrize(
    ("every", "sizes"), [(4, [4, 4, 2]), (10, [10]), (100, [10]), (3, [3, 3, 3, 1])]
)
def test_so_many_are_saved_together(folder: Path, every: int, sizes: list[int]) -> None:
    """What is left at the end is saved at the end; the report counts it."""
    both = ToBoth(
        functions.number_in, "in/*.txt", "result.pkl", save_every=every, save_interval=60,
        **options(CHEAPEST),
    )  # fmt: skip
    seen = [outcome.value for outcome in both.as_completed()]
    assert [int(line) for line in Path("sizes").read_text().splitlines()] == sizes
    assert sorted(seen) == [*range(10)]
    Path("result.pkl").unlink()
    assert both.run().completed == 10


def test_the_longest_interval_can_be_waited_for(folder: Path) -> None:
    """No system waits for much more than three weeks at a time."""
    both = ToBoth(
        functions.number_in, "in/*.txt", "result.pkl", save_every=4, save_interval=_MOST_SECONDS,
        **options(CHEAPEST, timeout=_MOST_SECONDS, stop_after=_MOST_SECONDS),
    )  # fmt: skip
    assert both.run().completed == 10


def test_no_result_waits_longer_than_the_interval(folder: Path) -> None:
    """However many are to be saved together."""
    both = ToBoth(
        wait_at_seven, "in/*.txt", "result.pkl", save_every=100, save_interval=0.1,
        **options(CHEAPEST, max_workers=1),
    )  # fmt: skip
    thread = threading.Thread(target=both.run)
    thread.start()
    while len(both.results) < 7:  # no event tells of it, and who reads keeps others waiting
        time.sleep(0.01)
    Path("go").touch()
    thread.join()
    assert len(both.results) == 10


def wait_at_seven(path: str) -> None:
    """Until it is told that what was before it is saved."""
    while "07" in path and not os.path.exists("go"):  # no event tells of it
        time.sleep(0.01)


class Failing(ResumableRunner[int]):
    def save(self, outcomes: Sequence[Outcome]) -> None:
        if any(outcome.path == "in/05.txt" for outcome in outcomes) and not os.path.exists("fixed"):
            raise ConnectionError(errno.ECONNRESET, "the database has gone")
        super().save(outcomes)

    def close_saver(self) -> None:
        Path("closed").touch()


def test_a_save_that_raises_ends_the_run_with_its_traceback(folder: Path) -> None:
    """What was saved before is kept, and the rest is still to do."""
    failing = Failing(functions.number_in, "in/*.txt", "result.pkl", **options())
    told = r"saved by \w+, which was given 'in/0\d.txt'.*: .*the database has gone"
    with pytest.raises(SaverError, match=told) as caught:
        failing.run()
    assert "in save" in caught.value.traceback
    assert Path("closed").exists()
    Path("fixed").touch()
    assert failing.run().remaining == 0
    assert dict(failing.results) == NUMBERS


class Forking(ResumableRunner[int]):
    def save(self, outcomes: Sequence[Outcome]) -> None:
        if outcomes[0].path == "in/05.txt":
            reader, self.writer = os.pipe()
            if os.fork() == 0:
                if Path("exits").exists():
                    sys.exit()
                return
            os.close(self.writer)
            assert select.select([reader], [], [], PATIENCE)[0]  # nobody has the other end
        super().save(outcomes)


@pytest.mark.skipif("sys.platform == 'win32'", reason="nothing forks there")
@pytest.mark.parametrize("exits", [False, True])
def test_a_copy_of_the_saver_ends_with_its_hook(folder: Path, exits: bool) -> None:
    """It is not left behind, as a saver that nobody tells anything."""
    if exits:
        Path("exits").touch()
    assert Forking(functions.number_in, "in/*.txt", "result.pkl", **options()).run().completed == 10


class FailingToClose(ResumableRunner[int]):
    def close_saver(self) -> None:
        with open("closed", "a") as file:
            file.write("closed\n")
        raise ConnectionError("nothing was committed")


class FailingToOpen(FailingToClose):
    def open_saver(self) -> None:
        raise ConnectionError("no database")


@pytest.mark.parametrize(
    ("kind", "text", "closed"),
    [(FailingToClose, "nothing was committed", 1), (FailingToOpen, "no database", 0)],
)
def test_opening_and_closing_may_fail(
    folder: Path, kind: type[FailingToClose], text: str, closed: int
) -> None:
    """Each is called once, and what has been opened is closed; the error says where it was."""
    with pytest.raises(SaverError, match=text) as caught:
        kind(functions.number_in, "in/*.txt", "result.pkl", **options()).run()
    assert "_saver" in caught.value.traceback
    calls = Path("closed").read_text().split() if closed else []
    assert len(calls) == closed
    assert Path("closed").exists() == bool(closed)


class Nowhere(ResumableRunner[int]):
    def save(self, outcomes: Sequence[Outcome]) -> None:
        pass

    def save_failures(self, outcomes: Sequence[Outcome]) -> None:
        pass


def test_what_has_failed_is_no_success_wherever_that_is_saved(folder: Path) -> None:
    """The loop is told so, though it cannot be told why."""
    Path("in/03.txt").write_text("not a number")
    nowhere = Nowhere(functions.number_in, "in/*.txt", "result.pkl", **options())
    outcomes = {outcome.path: outcome for outcome in nowhere.as_completed()}
    assert len(outcomes) == 10
    assert [path for path, outcome in outcomes.items() if not outcome.ok] == ["in/03.txt"]
    with pytest.raises(ValueError, match="its failure is saved elsewhere"):
        outcomes["in/03.txt"].value  # noqa: B018


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class FailingWithoutWords(ResumableRunner[int]):
    def save(self, outcomes: Sequence[Outcome]) -> None:
        raise Unspeakable


def test_a_save_that_raises_what_cannot_be_printed_is_told_all_the_same(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing but the error, whose traceback says where; that begins with the hook."""
    failing = FailingWithoutWords(functions.number_in, "in/*.txt", "result.pkl", **options())
    with pytest.raises(SaverError, match="Unspeakable: <its text cannot be printed>") as caught:
        failing.run()
    assert "in save" in caught.value.traceback
    assert saver_process.__file__ not in caught.value.traceback
    assert capfd.readouterr().err == ""


class Own(ResumableRunner[str]):
    """Collects, processes and notes in its own way; the lock must not travel."""

    def __init__(self, *arguments: Any, suffix: str, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.suffix = suffix

    def collect_files(self) -> list[str]:
        return [path for path in super().collect_files() if path != "in/03.txt"]

    def process_file(self, path: str) -> str:
        return f"{super().process_file(path)}{self.suffix}"


def test_files_can_be_collected_and_processed_differently(folder: Path, method: str) -> None:
    """`process_file` runs in a worker, with what the subclass has set."""
    own = Own(
        functions.number_in, [*ALL, "in/../in/04.txt"], "r.pkl", suffix="!", **options(method)
    )
    assert "in/03.txt" not in own.pending()
    assert own.run().completed == 9
    assert own.results["in/04.txt"] == "4!"
    assert str(os.getpid()) not in functions.callers()
