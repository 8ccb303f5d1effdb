"""Some bytes that nobody wrote, before everything that reads a checkpoint: the same ones each time.

`python -m tests.prove.fuzzing` goes on from there, for as long as one likes.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from .prove.fuzzing import FORMATS, Fuzzer

INPUTS, SEED = 300, 17


@pytest.mark.alike
@pytest.mark.usefixtures("unforced")
@pytest.mark.parametrize("suffix", FORMATS)
def test_whatever_the_bytes_are_readers_answer_or_refuse(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other error, no code of the file's that runs, no memory or time that its size does not
    explain; and what is sound before it is opened for writing is there afterwards."""
    monkeypatch.setattr(os, "urandom", random.Random(SEED).randbytes)  # of a file's salt
    fuzzer = Fuzzer(suffix, tmp_path)
    fuzzer.by_chance(SEED, inputs=INPUTS)
    assert fuzzer.inputs >= INPUTS
