"""What a checkpoint tells of each file without its value."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_pool.checkpoints import checkpoint_at, log_file
from resumable_pool.records import Outcome

from . import conftest
from .conftest import SUFFIXES, failed, write, writing

Result = Callable[..., Outcome]


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of each format."""
    return tmp_path / f"result{request.param}"


@pytest.fixture
def result(path: Path) -> Result:
    """Makes an outcome as a worker would for this checkpoint."""
    return functools.partial(conftest.result, encode=checkpoint_at(path).encode)


def test_entries_tell_what_stands(path: Path, result: Result) -> None:
    """Each path once, with the last that was saved of it."""
    checkpoint = checkpoint_at(path)
    assert list(checkpoint.entries()) == []
    path.touch()
    assert list(checkpoint.entries()) == []
    write(path, result("a", 1), failed("a"), failed("b", "ValueError: old"), failed("b"),
          result("c", [1]), failed("d"), result("d", 2), result("\udcff", "x" * 100),
          result("\udcff", ""))  # fmt: skip
    entries = {entry.path: entry for entry in checkpoint.entries()}
    assert len(entries) == len(list(checkpoint.entries())) == 5
    assert {path for path, entry in entries.items() if entry.failure is None} == {*"cd\udcff"}
    assert {name: entries[name].failure for name in "ab"} == dict(checkpoint.failures())
    assert (entries["a"].seconds, entries["a"].attempts) == (0.5, 2)
    assert (entries["\udcff"].seconds, entries["\udcff"].attempts) == (0.25, 1)
    assert 0 < entries["\udcff"].size < 100  # not that of the one before
    assert entries["a"].size > len("ValueError: no")


def test_an_outcome_is_what_stands_of_a_path(path: Path, result: Result) -> None:
    """With all its facts; a failure if it has that and a value, too."""
    outcomes = [result("a", {"x": [1]}), failed("b"), result("c", 1), failed("c")]
    write(path, *outcomes)
    checkpoint = checkpoint_at(path)
    for number, name in enumerate("ab"):
        assert checkpoint.outcome(name) == outcomes[number]
    assert checkpoint.outcome("c") == outcomes[3]
    for missing in ("d", ""):
        with pytest.raises(KeyError):
            checkpoint.outcome(missing)


def test_bytes_may_come_in_a_buffer(path: Path, result: Result) -> None:
    """In a bytearray, as large ones do: small, large, a pickle in the database, too."""
    outcomes = [result("a", 1), result("b", "x" * 100_000), result("c", [(1,)])]
    write(path, *(one._replace(pickled=bytearray(one.pickled or b"")) for one in outcomes))
    assert [checkpoint_at(path).outcome(name) for name in "abc"] == outcomes
    assert dict(checkpoint_at(path)) == {one.path: one.value for one in outcomes}


def test_when_a_file_was_finished_is_kept(path: Path, result: Result) -> None:
    """To the microsecond, also where it is not known, and by compacting."""
    outcomes = [result("a", 1, at=1_764_259_200.123_456_7), result("b", [2], at=0.0)]
    outcomes.append(failed("c", at=1e9))
    write(path, result("a", 0), failed("b"), *outcomes)
    checkpoint = checkpoint_at(path)
    for _ in range(2):
        assert [checkpoint.outcome(name) for name in "abc"] == outcomes
        checkpoint.compact()


def test_entries_are_those_of_one_moment(
    path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is saved meanwhile does not make an entry come twice."""
    with writing(path) as checkpoint:
        checkpoint.save([result("a", 1), result("b", 1)])

        class Interrupted(log_file.Index):
            def enter(self, records: Any) -> None:
                super().enter(records)
                checkpoint.save([result("a", 2), result("b", 2)])

        monkeypatch.setattr(log_file, "Index", Interrupted)
        paths = []
        for entry in checkpoint_at(path).entries():
            paths.append(entry.path)
            checkpoint.save([result("a", 3), result("c", 1)])
            checkpoint.save_failures([failed("b"), failed("d")])
        assert sorted(paths) == ["a", "b"]


@pytest.mark.alike
def test_many_entries_are_right(path: Path, result: Result) -> None:
    """Also where reading a failure comes in between reading on."""
    with writing(path) as checkpoint:
        for number in range(0, 2_000, 2):
            checkpoint.save([result(f"{number}", f"{number}" * 200)])
            checkpoint.save_failures([failed(f"{number + 1}", f"{number + 1}" * 200)])
    assert path.stat().st_size > 1 << 20  # more than is read at once
    entries = {entry.path: entry for entry in checkpoint.entries()}
    assert sorted(entries, key=int) == [f"{number}" for number in range(2_000)]
    for number in range(1, 2_000, 2):
        failure = entries[f"{number}"].failure
        assert failure is not None
        assert failure.message == f"{number}" * 200
    assert checkpoint_at(path).check() == []
    checkpoint_at(path).compact()
    assert len(checkpoint) == len(checkpoint.failures()) == 1_000
    assert all(value == key * 200 for key, value in checkpoint.items())


def test_a_damaged_failure_does_not_hide_a_result(tmp_path: Path) -> None:
    """The mapping has it, so there is an entry."""
    path = tmp_path / "result.pkl"
    write(path, conftest.result("a", 1), failed("a"))
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    checkpoint = checkpoint_at(path)
    assert dict(checkpoint) == {"a": 1}
    assert [(entry.path, entry.failure) for entry in checkpoint.entries()] == [("a", None)]
