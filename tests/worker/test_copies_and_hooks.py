"""What a copied runner says, and what the hooks of a subclass may give and take."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Outcome, ResumableRunner, SaverError

from ..functions import calls, number_in
from ..test_scripts import python

OPTIONS: dict[str, Any] = {"max_workers": 2, "progress": False}

USES: dict[str, Callable[[ResumableRunner[Any]], object]] = {
    "run": lambda runner: runner.run(),
    "as_completed": lambda runner: list(runner.as_completed()),
    "stop": lambda runner: runner.stop(),
    "workers": lambda runner: runner.workers(),
    "pending": lambda runner: runner.pending(),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("how", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_says_what_it_cannot_do(folder: Path, use: str, how: Callable[[Any], Any]) -> None:
    """It has the hooks, the results and the failures, but no run."""
    one = how(ResumableRunner(number_in, "in/*.txt", "result.pkl", **OPTIONS))
    with pytest.raises(RuntimeError, match="this is a copy of a runner"):
        USES[use](one)
    assert dict(one.results) == {}
    with pytest.raises(AttributeError, match="nothing"):
        _ = one.nothing


class UsesItself(ResumableRunner[int]):
    def process_file(self, path: str) -> int:
        USES[Path(path).read_text()](self)
        return 1


def test_nor_can_one_in_a_worker(folder: Path, method: str) -> None:
    """Whether it was sent there or inherited."""
    paths = [f"in/{use}.txt" for use in USES]
    for use, path in zip(USES, paths, strict=True):
        Path(path).write_text(use)
    one = UsesItself(number_in, paths, "result.pkl", mp_context=method, **OPTIONS)
    failures = one.run().failures
    assert sorted(failure.path for failure in failures) == sorted(paths)
    for failure in failures:
        assert failure.message.startswith("RuntimeError: this ")
        assert "copy" in failure.message


class OddOnes(ResumableRunner[int]):
    def collect_files(self) -> Iterable[Any]:
        return [path for path in super().collect_files() if path[-5] in "13579"]


def test_a_subclass_filters_the_files(folder: Path) -> None:
    """Those that the base class's method finds."""
    runner = OddOnes(number_in, "in/*.txt", "result.pkl", **OPTIONS)
    assert runner.pending() == [f"in/0{n}.txt" for n in (1, 3, 5, 7, 9)]
    assert runner.run().total == 5


def test_a_list_keeps_its_order(folder: Path) -> None:
    """Also when some are to do again, and in a rerun."""
    paths = [f"in/0{n}.txt" for n in (5, 1, 9, 3)]
    options = {**OPTIONS, "max_workers": 1}
    ResumableRunner(number_in, paths[1:2], "result.pkl", **options).run()
    Path("in/01.txt").write_text("-1 ")
    runner = ResumableRunner(number_in, paths, "result.pkl", rerun_changed=True, **options)
    assert runner.pending() == paths
    Path("calls").unlink()
    runner.run()
    assert [line.split()[1] for line in Path("calls").read_text().splitlines()] == paths


class Completed(ResumableRunner[int]):
    given: Any = ()

    def load_completed(self) -> Any:
        return self.given


def test_what_is_completed_may_be_told_as_paths(folder: Path) -> None:
    """Texts or `Path`s."""
    runner = Completed(number_in, "in/*.txt", "result.pkl", **OPTIONS)
    runner.given = [Path("in") / f"0{number}.txt" for number in range(9)]
    assert runner.run().completed == 1
    assert calls() == ["in/09.txt"]


@pytest.mark.parametrize("given", ["in/01.txt", None, ["in/01.txt", 3], [b"in/01.txt"]])
def test_what_is_no_path_is_refused(folder: Path, given: object) -> None:
    """The error names the hook and the value, before anything is started."""
    runner = Completed(number_in, "in/*.txt", "result.pkl", **OPTIONS)
    runner.given = given
    value = repr(given[-1] if isinstance(given, list) else given)
    with pytest.raises(TypeError, match=r"Completed\.load_completed\(\)") as caught:
        runner.run()
    assert value in str(caught.value)
    assert not Path("result.pkl").exists()


async def never_run(self: object, outcomes: object = None) -> None:
    """Whoever calls it only makes a coroutine."""


@pytest.mark.parametrize("hook", ["save", "save_failures", "open_saver", "close_saver", "on_saved"])
def test_a_hook_that_nothing_would_run_is_refused(folder: Path, hook: str) -> None:
    """Otherwise each file would be done, and nothing saved."""
    kind = type("Own", (ResumableRunner,), {hook: never_run})
    with pytest.raises(TypeError, match=f"^{hook} .* must not be a coroutine or a generator"):
        kind(number_in, "in/*.txt", "result.pkl", **OPTIONS)


class HoldsALock(ResumableRunner[int]):
    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        self.lock = threading.Lock()

    def save(self, outcomes: Sequence[Outcome[int]]) -> None:
        super().save(outcomes)


class HoldsALockInWorkers(HoldsALock):
    save = ResumableRunner.save

    def process_file(self, path: str) -> int:
        return number_in(path)


@pytest.mark.parametrize("kind", [HoldsALock, HoldsALockInWorkers])
def test_a_subclass_that_cannot_be_sent_is_refused_by_name(
    folder: Path, method: str, kind: type[HoldsALock]
) -> None:
    """Before any process is started; and what cannot be sent is named, too."""
    runner = kind(number_in, "in/*.txt", "result.pkl", mp_context=method, **OPTIONS)
    if method == "fork":
        assert runner.run().completed == 10
        return
    with pytest.raises(TypeError, match=f"{kind.__name__} overrides .*'lock'"):
        runner.run()
    assert not Path("result.pkl").exists()


class StateInATuple(HoldsALock):
    def __getstate__(self) -> Any:
        return "no attributes", self.lock


def test_a_subclass_with_a_state_of_its_own_is_refused_as_well(folder: Path) -> None:
    """Though nothing names the attribute."""
    runner = StateInATuple(number_in, "in/*.txt", "result.pkl", mp_context="spawn", **OPTIONS)
    with pytest.raises(TypeError, match=r"StateInATuple overrides hooks .*cannot pickle"):
        runner.run()


class LeavesItsLock(HoldsALock):
    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["lock"]
        return state


def test_a_subclass_may_leave_out_what_cannot_be_sent(folder: Path, method: str) -> None:
    """As the manual of `pickle` says, which begins with all attributes: ours are none of them."""
    runner = LeavesItsLock(number_in, "in/*.txt", "result.pkl", mp_context=method, **OPTIONS)
    assert runner.run().completed == 10


def test_a_hook_may_be_the_runners_own(folder: Path) -> None:
    """Set on it, and not in a class."""
    runner = ResumableRunner(number_in, "in/*.txt", "result.pkl", **OPTIONS)
    told: list[str] = []
    runner.on_saved = lambda outcome: told.append(outcome.path)  # type: ignore[method-assign]
    runner.run()
    assert sorted(told) == sorted(runner.results)


class Exits(ResumableRunner[int]):
    def save(self, outcomes: Sequence[Outcome[int]]) -> None:
        sys.exit("the licence has run out")


def test_a_save_that_exits_has_its_traceback_in_the_error(folder: Path) -> None:
    """As one that raises anything else."""
    with pytest.raises(SaverError, match="SystemExit: the licence has run out") as caught:
        Exits(number_in, "in/*.txt", "result.pkl", **OPTIONS).run()
    assert "in save" in caught.value.traceback


class FailuresElsewhere(ResumableRunner[int]):
    def save_failures(self, outcomes: Sequence[Outcome[int]]) -> None:
        """Nowhere, to be exact."""


def fail_at_three(path: str) -> int:
    if path == "in/03.txt":
        raise ValueError("three")
    return number_in(path)


def test_failures_that_are_saved_elsewhere_are_in_the_report(folder: Path) -> None:
    """Those of this run."""
    report = FailuresElsewhere(fail_at_three, "in/*.txt", "result.pkl", **OPTIONS).run()
    assert [(one.path, one.message) for one in report.failures] == [
        ("in/03.txt", "ValueError: three")
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can remove a folder that is in use")
def test_a_folder_that_is_gone_harms_only_relative_paths(folder: Path, method: str) -> None:
    """Not a run over absolute ones."""
    Path("script.py").write_text(
        f"""
import os, sys
from resumable_pool import ResumableRunner

def work(path):
    return open(path).read()

if __name__ == "__main__":
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
    runner = ResumableRunner(
        work, {str(folder / "in" / "*.txt")!r}, {str(folder / "result.pkl")!r},
        mp_context=sys.argv[1], max_workers=2, max_tasks_per_child=3,
    )
    print(runner.run())
    print(ResumableRunner(work, "in/*.txt", {str(folder / "other.pkl")!r}).run())
"""
    )
    done = python(str(folder / "script.py"), method)
    assert "10 files: 10 done" in done.stdout, done.stderr
    assert "0 files" in done.stdout, done.stderr


def test_a_run_ends_where_time_is_frozen(folder: Path) -> None:
    """Though a file fails, and its verdict waits for a moment."""
    freezegun = pytest.importorskip("freezegun")
    with freezegun.freeze_time("2026-01-01"):
        runner = ResumableRunner(fail_at_three, "in/*.txt", "result.pkl", **OPTIONS)
        report = runner.run()
    assert (report.completed, report.failed) == (9, 1)


class TornBar:
    """One whose `write` raises."""

    def __init__(self, **given: Any) -> None:
        """As tqdm's."""

    def update(self, number: int) -> None:
        """As tqdm's."""

    def close(self) -> None:
        """As tqdm's."""

    def write(self, text: str, file: Any) -> None:
        raise RuntimeError("no such terminal")


def test_a_bar_whose_write_raises_does_not_kill_the_files_in_work(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are finished, then the run ends for that reason; and what was said is said all the
    same."""
    options = {**OPTIONS, "progress": TornBar}
    runner = ResumableRunner(fail_at_three, "in/*.txt", "result.pkl", **options)
    with pytest.raises(RuntimeError, match="no such terminal"):
        runner.run()
    assert sorted(set(calls()) - {*runner.results}) == []
    assert "in/03.txt" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_to_a_folder_above_itself_is_not_followed(folder: Path) -> None:
    """Whether it leads up directly, or by way of another one."""
    for link, target in {"in/up": "..", "in/here": ".", "a/b": "../b", "b/a": "../a"}.items():
        Path(link).parent.mkdir(exist_ok=True)
        Path(link).symlink_to(target)
    Path("a/a.txt").touch()
    Path("b/b.txt").touch()
    expected = {
        "**/*.txt": ["a/a.txt", "a/b/b.txt", "b/a/a.txt", "b/b.txt"],
        "**/a.txt": ["a/a.txt", "b/a/a.txt"],
        "**/b/*.txt": ["a/b/b.txt", "b/a/b/b.txt", "b/b.txt"],
    }
    for pattern, paths in expected.items():
        runner = ResumableRunner(number_in, pattern, "result.pkl", **OPTIONS)
        assert [path for path in runner.pending() if not path.startswith("in/")] == paths


FORKED = """
import sys, threading, time
from resumable_pool import ResumableRunner

lock = threading.Lock()

def work(path):
    if "cuda" in sys.argv:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
    with lock:
        return path

def hold():
    with lock:
        held.set()
        over.wait()

if __name__ == "__main__":
    held, over = threading.Event(), threading.Event()
    if "threads" in sys.argv:
        threading.Thread(target=hold).start()
        held.wait()
    runner = ResumableRunner(
        work, "in/0[0-3].txt", "result.pkl", mp_context=sys.argv[1], timeout=1.0, max_workers=2
    )
    print(runner.run())
    over.set()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")
@pytest.mark.parametrize(
    ("arguments", "times"),
    [("fork threads", 1), ("fork cuda", 1), ("spawn cuda", 0), ("fork", 0), ("spawn threads", 0)],
)
def test_who_forks_a_program_with_threads_is_told_of_spawn(
    folder: Path, arguments: str, times: int
) -> None:
    """Once, when the first calls hang or say so."""
    Path("script.py").write_text(FORKED)
    done = python("script.py", *arguments.split())
    assert done.stderr.count('mp_context="spawn"') == times, done.stderr
