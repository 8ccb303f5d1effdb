"""Which files are to do, from files and a checkpoint that are there."""

from __future__ import annotations

import os
from binascii import crc32
from pathlib import Path

import pytest

from resumable_pool import ResumableRunner
from resumable_pool.checkpoints import PickleFile
from resumable_pool.files import fingerprint, not_asked
from resumable_pool.options import Options
from resumable_pool.records import KILLED, NO_FINGERPRINT, Failure, Fingerprint, Outcome
from resumable_pool.run.plan import Plan, make_plan


def options(**changed: bool) -> Options:
    """A runner's, with these of them changed."""
    return ResumableRunner(len, [], "result.pkl")._options._replace(**changed)


def done(path: str, found: Fingerprint = NO_FINGERPRINT) -> Outcome:
    pickled = b"\x80\x03K\x01."
    return Outcome(path, pickled, crc32(pickled), None, 1.0, 1, found)


def failed(path: str) -> Outcome:
    return Outcome(path, None, 0, Failure(path, "error", "no", "", 1, 1.0), 1.0)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PickleFile:
    """Of the files `a` to `d`, `a` and `b` are done, `c` has failed and `d` is new; nobody knows
    how `b` was."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("abcd"):
        Path(name).write_text("x" * number)
    checkpoint = PickleFile("result.pkl")
    checkpoint.open()
    checkpoint.save([done("a", fingerprint("a")), done("b")])
    checkpoint.save_failures([failed("c")])
    checkpoint.close()
    return checkpoint


def plan(checkpoint: PickleFile, **changed: bool) -> Plan:
    return make_plan(["a", "b", "c", "d"], checkpoint, options(**changed))


def test_what_failed_and_what_is_new_is_to_do(checkpoint: PickleFile) -> None:
    """In path order, and it says why."""
    made = plan(checkpoint)
    assert (made.to_do, made.done, made.failed, made.left) == (["c", "d"], 2, ["c"], 0)
    assert str(made) == "4 files: 2 done before, 1 failed before (tried again), 1 new"


def test_what_failed_may_be_left_alone(checkpoint: PickleFile) -> None:
    """Then it still stands as failed, even if it has changed since."""
    made = plan(checkpoint, retry_failed=False)
    assert (made.to_do, made.failed, made.left) == (["d"], ["c"], 1)
    Path("c").write_text("repaired")
    assert plan(checkpoint, retry_failed=False, rerun_changed=True).to_do == ["d"]
    assert str(made) == "4 files: 2 done before, 1 failed before (left alone), 1 new"


def test_of_a_result_that_was_made_without_looking_the_time_of_change_counts(
    checkpoint: PickleFile,
) -> None:
    """As `make` has it: what has changed since the result was made is done again."""
    now = not_asked()
    os.utime("a", ns=(now.mtime_ns, now.mtime_ns - 1_000))
    os.utime("b", ns=(now.mtime_ns, now.mtime_ns + 1_000))  # Windows counts in steps of 100
    checkpoint.open()
    checkpoint.save([done("a", now), done("b", now)])
    checkpoint.close()
    made = plan(checkpoint, rerun_changed=True)
    assert (made.to_do, made.changed) == (["b", "c", "d"], 1)


def test_a_time_in_the_longer_steps_of_another_system_is_no_change(checkpoint: PickleFile) -> None:
    """Windows and Linux see the files of one shared folder in this way."""
    changed_at = 1_700_000_000_123_456_789
    os.utime("a", ns=(changed_at, changed_at))
    checkpoint.open()
    checkpoint.save([done("a", Fingerprint(os.path.getsize("a"), changed_at))])
    checkpoint.close()
    os.utime("a", ns=(changed_at, changed_at // 100 * 100))
    assert "a" not in plan(checkpoint, rerun_changed=True).to_do


def test_what_has_changed_and_failed_since_has_failed(checkpoint: PickleFile) -> None:
    """It is counted once."""
    checkpoint.open()
    checkpoint.save_failures([failed("a")])
    checkpoint.close()
    Path("a").write_text("changed")
    made = plan(checkpoint, rerun_changed=True)
    assert (made.to_do, made.done, made.failed, made.changed) == (["a", "c", "d"], 1, ["a", "c"], 0)


def test_big_files_may_come_first(checkpoint: PickleFile) -> None:
    """Those of the same size in path order, and empty ones, and those that are gone, last."""
    Path("e").write_text("x")
    Path("0").write_text("x")
    Path("1").touch()
    made = make_plan([*"012abcde"], checkpoint, options(largest_first=True))
    assert made.to_do == ["d", "c", "0", "e", "1", "2"]


def test_what_is_saved_elsewhere_takes_the_place_of_what_is_here(checkpoint: PickleFile) -> None:
    """What stands as failed here may have a result there, of which nobody knows the file."""
    elsewhere = {"a", "c"}
    for rerun_changed in (False, True):
        changed = options(rerun_changed=rerun_changed)
        made = make_plan(["a", "b", "c", "d"], checkpoint, changed, elsewhere)
        assert (made.to_do, made.failed, made.done) == (["b", "d"], [], 2)


def test_it_says_whose_worker_the_system_has_killed(checkpoint: PickleFile) -> None:
    """Among those that are tried again."""
    killed = Failure("b", "crashed", KILLED, "", 1, 1.0)
    checkpoint.open()
    checkpoint.save_failures([failed("b")._replace(failure=killed)])
    checkpoint.close()
    assert plan(checkpoint).killed() == {"b"}
    assert plan(checkpoint, retry_failed=False).killed() == set()


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_what_has_changed_since_may_be_done_again(checkpoint: PickleFile, change: str) -> None:
    """By size or time of change, if it is known how the file was."""
    assert plan(checkpoint, rerun_changed=True).to_do == ["c", "d"]
    for name in ("a", "b"):
        before = os.stat(name)
        if change == "size":
            Path(name).write_text("more")
            os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns))
        elif change == "time":
            os.utime(name, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000))
        else:
            Path(name).unlink()
    made = plan(checkpoint, rerun_changed=True)
    assert (made.to_do, made.done, made.changed) == (["a", "c", "d"], 1, 1)
    assert str(made).startswith("4 files: 1 done before, 1 failed before (tried again), 1 changed")
    assert plan(checkpoint).to_do == ["c", "d"]


def test_a_failure_after_a_change_leaves_the_value_and_counts_as_failed(
    checkpoint: PickleFile,
) -> None:
    """The value that was saved is not lost, and the file is to do."""
    checkpoint.open()
    checkpoint.save_failures([failed("a")])
    checkpoint.close()
    assert checkpoint["a"] == 1
    made = plan(checkpoint)
    assert (made.to_do, made.done, made.failed) == (["a", "c", "d"], 1, ["a", "c"])
    checkpoint.open()
    checkpoint.save([done("a")])
    checkpoint.close()
    assert plan(checkpoint).failed == ["c"]


@pytest.mark.parametrize(
    ("key", "seen"),
    [("a.txt", "in/a.txt"), ("in/a.txt", "/data/in/a.txt"), ("/data/in/a.txt", "in/a.txt")],
)
def test_results_under_other_paths_of_the_same_files_are_explained(
    tmp_path: Path, key: str, seen: str
) -> None:
    """Base names alone, absolute paths that are relative now: the run says so in a line."""
    checkpoint = PickleFile(tmp_path / "result.pkl")
    checkpoint.open()
    checkpoint.save([done(key), done("other")])
    checkpoint.close()
    (advice,) = make_plan([seen, "in/b.txt"], checkpoint, options()).advice
    assert advice.startswith(
        "1 of the 2 files without a result have the same names as files that have one, "
        f"{seen!r} and {key!r}. If they are the same files, in a folder that was moved or renamed, "
        "stop now and keep their results with: python -m resumable_pool move "
    )
    assert "\n" not in advice


MOVED = {
    "a folder renamed": (
        ["a/1.txt", "a/2.txt"], ["b/1.txt", "b/2.txt"], "'a/' 'b/'. Otherwise"
    ),
    "one of two": (
        ["a/1.txt", "b/2.txt"], ["c/1.txt", "b/2.txt"], "'a/' 'c/'. Otherwise"
    ),
    "with the same names in several folders below": (
        ["a/x/1.txt", "a/y/1.txt"], ["b/x/1.txt", "b/y/1.txt"], "'a/' 'b/'. Otherwise"
    ),
    "one absolute path to another": (
        ["/home/a/in/1.txt"], ["/data/b/in/1.txt"], "'/home/a/' '/data/b/'. Otherwise"
    ),
    "a folder more": (["1.txt", "2.txt"], ["x/1.txt", "x/2.txt"], "'' 'x/'. Otherwise"),
    "a folder less": (["x/1.txt", "x/2.txt"], ["1.txt", "2.txt"], "'x/' ''. Otherwise"),
    "in pieces": (
        ["1.txt", "2.txt", "3.txt"], ["x/1.txt", "x/2.txt", "y/3.txt"],
        "'' 'x/'. Otherwise",
    ),
    "long before all was done": (
        ["a/1.txt"], ["b/1.txt", "b/2.txt", "b/3.txt"], "'a/' 'b/'. Otherwise"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("before", "now", "remedy"), MOVED.values(), ids=MOVED.keys())
def test_moved_folders_are_noticed(
    tmp_path: Path, before: list[str], now: list[str], remedy: str
) -> None:
    """By the names of the files in them; the remedy is a command that can be typed."""
    checkpoint = PickleFile(tmp_path / "result.pkl")
    checkpoint.open()
    checkpoint.save([done(path) for path in before])
    checkpoint.close()
    (advice,) = make_plan(sorted(now), checkpoint, options()).advice
    assert remedy.replace("'", '"') in advice


@pytest.mark.parametrize(("size", "noticed"), [(5, True), (6, False)])
def test_files_of_another_size_are_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, noticed: bool
) -> None:
    """Every day has its data.csv."""
    monkeypatch.chdir(tmp_path)
    checkpoint = PickleFile(tmp_path / "result.pkl")
    checkpoint.open()
    checkpoint.save([done("monday/data.csv")._replace(fingerprint=Fingerprint(5, 0))])
    checkpoint.close()
    (tmp_path / "tuesday").mkdir()
    (tmp_path / "tuesday" / "data.csv").write_bytes(b"." * size)
    made = make_plan(["tuesday/data.csv"], checkpoint, options())
    assert bool(made.advice) is noticed


@pytest.mark.parametrize(
    ("others", "noticed"), [((), True), ((1, 2), True), ((1, 2, 3), False)], ids=str
)
def test_most_of_what_is_new_or_of_what_was_there_must_be_called_alike(
    tmp_path: Path, others: tuple[int, ...], noticed: bool
) -> None:
    """Two of up to four, say."""
    checkpoint = PickleFile(tmp_path / "result.pkl")
    checkpoint.open()
    gone = [f"a/gone {number}.txt" for number in others]
    checkpoint.save([done(path) for path in ("a/a.txt", "a/b.txt", *gone)])
    checkpoint.close()
    files = ["b/a.txt", "b/b.txt", *(f"b/other {number}.txt" for number in others)]
    assert bool(make_plan(files, checkpoint, options()).advice) is noticed


@pytest.mark.parametrize(("alike", "noticed"), [(0, False), (1, False), (2, True), (3, True)])
def test_most_of_what_has_moved_must_be_as_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alike: int, noticed: bool
) -> None:
    """Two of four, say, but not one of three."""
    monkeypatch.chdir(tmp_path)
    names = ["1.txt", "2.txt", "3.txt", "4.txt"][: 4 if alike % 2 == 0 else 3]
    checkpoint = PickleFile(tmp_path / "result.pkl")
    checkpoint.open()
    found = Fingerprint(5, 0)
    checkpoint.save([done(f"a/{name}")._replace(fingerprint=found) for name in names])
    checkpoint.close()
    (tmp_path / "b").mkdir()
    for number, name in enumerate(names):
        (tmp_path / "b" / name).write_bytes(b"." * (5 if number < alike else 6))
    made = make_plan([f"b/{name}" for name in names], checkpoint, options())
    assert bool(made.advice) is noticed


@pytest.mark.parametrize("files", [["in/x.txt"], ["2024/a.txt"], ["in/xa.txt"], ["in/a.txt"], []])
def test_results_of_other_files_are_not(tmp_path: Path, files: list[str]) -> None:
    """Files of the same base name in several folders; and where a result is found all is well."""
    checkpoint = PickleFile(tmp_path / "result.pkl")
    checkpoint.open()
    checkpoint.save([done("in/a.txt"), done("2023/a.txt")])
    checkpoint.close()
    assert not make_plan(files, checkpoint, options()).advice
