"""The types that a user of the package sees."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .stage import PATIENCE

ROOT = Path(__file__).parents[1]
USE = ROOT / "tests" / "typed_use.py"


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_a_type_checker_takes_what_is_right_and_nothing_else(tmp_path: Path) -> None:
    """Where a comment says `error`, there is one of that kind, and nowhere else."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"),
            *("--python-version=3.10", f"--cache-dir={tmp_path}", str(USE)),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=3 * PATIENCE,
    )  # fmt: skip
    found = re.findall(r"^tests.typed_use\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.M)
    expected = [
        (str(number), kind)
        for number, line in enumerate(USE.read_text().splitlines(), 1)
        for kind in re.findall(r"# error: ([\w-]+)$", line)
    ]
    assert found == expected, done.stdout + done.stderr
    assert len(expected) >= 9
