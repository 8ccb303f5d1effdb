"""Kills of a runner that saves elsewhere: what its save() has returned from is never lost."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path

import pytest

from tests import functions
from tests.conftest import METHODS
from tests.stage import Stage

from .scripts import Script

TO_DATABASE = """
import sqlite3

class ToDatabase(ResumableRunner):
    def open_saver(self):
        self.database = sqlite3.connect("out.db")
        self.database.execute("create table if not exists results (path primary key, value)")

    def save(self, outcomes):
        rows = [(outcome.path, outcome.value) for outcome in outcomes]
        with self.database:
            self.database.executemany("insert into results values (?, ?)", rows)

    def load_completed(self):
        return saved()

def saved():
    if not os.path.exists("out.db"):
        return []
    database = sqlite3.connect("out.db")
    try:
        return [path for path, in database.execute("select path from results")]
    finally:
        database.close()

import os
ResumableRunner = ToDatabase
"""


def saved() -> set[str]:
    database = sqlite3.connect("out.db")
    try:
        return {path for (path,) in database.execute("select path from results")}
    finally:
        database.close()


@pytest.mark.parametrize(
    ("victim", "method"),
    [*(("everybody", method) for method in METHODS), ("the script", None), ("the saver", None)],
)
def test_what_was_saved_elsewhere_is_not_done_again(
    folder: Path, stage: Stage, method: str | None, victim: str
) -> None:
    """And the next run does the rest; nothing is inserted twice, which would raise."""
    script = Script(folder, method, definitions=TO_DATABASE)
    script.start()
    stage.wait_begun(3)
    stage.cue(4)
    stage.wait_begun(4)
    if victim == "everybody":
        script.kill_all()
    elif victim == "the script":
        script.kill()
        stage.cue(3)
    else:
        os.kill(script.saver(), signal.SIGKILL)
    script.wait()
    script.wait_gone()
    before = saved()
    assert len(before) == (7 if victim == "the script" else 4)
    stage.cue(10 - len(before))
    assert f"{10 - len(before)} done, {len(before)} done before" in script.run()
    assert len(saved()) == 10
    assert all(functions.calls().count(path) == 1 for path in before)


HANGS = """
import threading
import resumable_pool.run.stopping

resumable_pool.run.stopping.SAVING_SECONDS = 0.2

class Hangs(ResumableRunner):
    def save(self, outcomes):
        with open("begun", "wb", buffering=0) as begun:
            begun.write(b"0 saving\\n")
        threading.Event().wait()

ResumableRunner = Hangs
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_who_insists_need_not_wait_for_a_save_that_hangs(
    folder: Path, stage: Stage, signum: signal.Signals
) -> None:
    """What has come is waited for until somebody has been told so, and asks once more."""
    script = Script(folder, None, options="grace_period=0.1", definitions=HANGS)
    script.start()
    stage.wait_begun(3)
    stage.cue(1)
    assert "saving" in stage.wait_begun(1)
    os.kill(script.pid, signum)
    if signum == signal.SIGINT:
        script.wait_for_words("press it again")
        os.kill(script.pid, signum)
    script.wait_for_words("another Ctrl-C or SIGTERM gives up on it")
    os.kill(script.pid, signum)
    status, _, errors = script.wait()
    assert status == -signum
    assert errors.count("Traceback") == (signum == signal.SIGINT)
    script.wait_gone()
