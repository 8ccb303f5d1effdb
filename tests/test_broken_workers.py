"""A worker may be broken by a file, or not start: what that costs the others, under every start
method where it makes a difference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ResumableRunner

if sys.platform == "win32":
    pytest.skip("limits of a process", allow_module_level=True)

from . import broken_functions as broken

pytestmark = pytest.mark.usefixtures("nothing_left")


def runner(function: Any, **options: Any) -> ResumableRunner[Any]:
    options = {"max_workers": 2, "progress": False, **options}
    return ResumableRunner(function, "in/*.txt", "result.pkl", **options)


# What is said of an error.


@pytest.mark.parametrize("reason", broken.DESPERATE)
def test_where_nothing_more_can_be_had_the_reason_is_still_told(
    folder: Path, method: str, reason: str
) -> None:
    """No file can be opened, no module imported, nothing allocated: the failure says so."""
    Path("in/00.txt").write_text(reason)
    despairing = ResumableRunner(
        broken.despair, ["in/00.txt"], "result.pkl", mp_context=method, progress=False
    )
    (failure,) = despairing.run().failures
    assert (failure.kind, failure.message.startswith(reason)) == ("error", True), failure
