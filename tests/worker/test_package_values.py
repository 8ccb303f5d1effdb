"""Results of the packages that people use, through a whole run, where these are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ResumableRunner


def array(path: str) -> Any:
    import numpy

    return numpy.arange(12.0).reshape(3, 4) * int(Path(path).read_text())


def frame(path: str) -> Any:
    import pandas

    return pandas.DataFrame({"path": [path], "number": [int(Path(path).read_text())]})


def mixed(path: str) -> Any:
    return {"set": {1, 2}, "bytes": bytes(1 << 20), "nested": [(1, None), frozenset("ab")]}


@pytest.mark.parametrize("suffix", ["pkl", "sqlite"])
@pytest.mark.parametrize(
    ("function", "package"), [(array, "numpy"), (frame, "pandas"), (mixed, "pickle")]
)
def test_values_come_back_as_they_were(
    folder: Path, method: str, suffix: str, function: Any, package: str
) -> None:
    """Whatever can be pickled."""
    pytest.importorskip(package)
    runner: ResumableRunner[Any] = ResumableRunner(
        function, "in/*.txt", f"result.{suffix}", mp_context=method, max_workers=2, progress=False
    )
    assert runner.run().completed == 10
    value, expected = runner.results["in/07.txt"], function("in/07.txt")
    assert type(value) is type(expected)
    equal = value == expected
    assert equal if isinstance(equal, bool) else equal.all(axis=None)
