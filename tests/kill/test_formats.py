"""SIGKILL of everything, with checkpoints other than result.pkl."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_pool import open_checkpoint
from tests import functions
from tests.stage import Stage

from .scripts import Script, rerun


@pytest.mark.parametrize("name", ["result.jsonl", "result.sqlite"])
def test_nothing_that_was_saved_is_lost(folder: Path, stage: Stage, name: str) -> None:
    """What was saved is there at once; a rerun does what is missing, and leaves one file. (How
    workers start means nothing to a file: with result.pkl it is tried in each way.)"""
    script = Script(folder, None, checkpoint=name)
    script.start()
    stage.wait_begun(3)
    stage.cue(4)
    stage.wait_begun(4)
    script.kill_all()
    script.wait()
    script.wait_gone()
    saved = dict(open_checkpoint(name))
    assert len(saved) == 4
    stage.cue(6)
    assert "10 files: 6 done, 4 done before" in rerun(checkpoint=name)
    assert len(open_checkpoint(name)) == 10
    assert dict(open_checkpoint(name)).items() > saved.items()
    assert len(functions.calls()) == 13  # three were in work
    assert [path.name for path in folder.glob("result*")] == [name]
    assert open_checkpoint(name).check() == []
