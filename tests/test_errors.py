"""Errors: their facts, their texts, and that they survive a pipe."""

from __future__ import annotations

import inspect
import pickle

import pytest

from resumable_pool import errors
from resumable_pool.errors import (
    CheckpointError,
    CheckpointLocked,
    ExecutorError,
    ResumablePoolError,
    SaverError,
    WorkerStartError,
)

# Each with what its text must say: the facts, and what to do.
ERRORS: list[tuple[ResumablePoolError, list[str]]] = [
    (
        CheckpointLocked("r.pkl", 123),
        ["'r.pkl' is in use", "process 123", "Wait until that run", "Ctrl-C"],
    ),
    (
        CheckpointLocked("r.pkl", 123, 100),
        [
            "process 123 is writing to it, the saver",
            "script is process 100",
            "SIGTERM to the script (kill 100)",
        ],
    ),
    (CheckpointLocked("r.pkl", None), ["another process", "or give this run another checkpoint"]),
    (
        CheckpointError("r.pkl", "is damaged", "Restore it."),
        ["'r.pkl' is damaged. Nothing in it was changed. Restore it."],
    ),
    (
        SaverError("r.pkl", "No space left on device"),
        ["'r.pkl': No space left on device.", "saved before is kept", "run again to continue"],
    ),
    (SaverError("r.pkl", "it died", "Traceback: there"), ["it died", "\n\nTraceback: there"]),
    (
        ExecutorError("Pool", "Broken: gone", [*"abcdefg"], True),
        ["the Pool cannot continue: Broken: gone", "'e' and 2 more", "make a new executor and run"],
    ),
    (
        ExecutorError("Pool", "No module", ["a"], False, "Traceback: there"),
        ["the Pool has sent nothing back yet: No module", "It had 'a'.", "Traceback: there"],
    ),
    (WorkerStartError("It raised", "Put that right."), ["It raised. Put that right."]),
    (WorkerStartError("It raised", "Fix it.", "Traceback: there"), ["\n\nTraceback: there"]),
]


@pytest.mark.parametrize(("error", "parts"), ERRORS)
def test_the_text_says_what_happened_and_what_to_do(
    error: ResumablePoolError, parts: list[str]
) -> None:
    """Each error's text has its facts, and a way out."""
    for part in parts:
        assert part in str(error)


@pytest.mark.parametrize("error", [error for error, _ in ERRORS])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_errors_survive_pickling(error: ResumablePoolError, protocol: int) -> None:
    """An error that crosses a pipe has the same type, attributes and text."""
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error)
    assert vars(again) == vars(error)
    assert vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("error", [error for error, _ in ERRORS])
def test_all_facts_are_attributes(error: ResumablePoolError) -> None:
    """Each argument is an attribute of the same name."""
    names = list(inspect.signature(type(error)).parameters)
    assert [getattr(error, name) for name in names] == list(error.args)


def test_one_base_catches_all() -> None:
    """Every error of the library is a ResumablePoolError, and is tested here."""
    classes = {
        thing for thing in vars(errors).values()
        if isinstance(thing, type) and thing is not ResumablePoolError
    }  # fmt: skip
    assert all(issubclass(error, ResumablePoolError) for error in classes)
    assert {type(error) for error, _ in ERRORS} == classes
