"""A chaos soak: runs over real files whose processes are killed at random, until all is done.

    python -m tests.kill.soak --minutes 15

Each round makes a folder and starts a script on it again and again. Each time, at a random moment,
random processes of it get a random signal. After every ending the checkpoint must be a plain
pickle with right values, never fewer than before, and no process may be left; at the end every file
must be done, and no file may have been called more often than the signals explain.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pickle
import random
import select
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests import functions

from .scripts import Script

WORKERS = 3  # of the script
STARTS = 6  # in a round, before the last one, which nobody disturbs
LONGEST_SECONDS = 0.8  # until a signal comes

# What the script calls, for how many files, and how many calls in each worker a signal may have
# repeated: that of the file in work, and where files are quick those that are on their way.
WORK = [("number_slowly", 50, 1), ("number_slowly", 400, 1), ("number_in_bursts", 3000, 100)]

OPTIONS = ["", "retries=1", "timeout=30", "max_tasks_per_child=20", "grace_period=0.1"]

# Mostly what nobody can prepare for, to one, or to all.
SIGNALS = [signal.SIGKILL] * 6 + [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@dataclass
class Tally:
    """What a soak has seen."""

    rounds: int = 0
    starts: int = 0
    signals: int = 0
    files: int = 0
    repeated: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rounds:,} rounds, {self.starts:,} starts, {self.signals:,} signals: "
            f"{self.files:,} files done, {self.repeated:,} calls repeated, 0 results lost"
        )


def soak(
    seconds: float, methods: Sequence[str], seed: int, starts: int = STARTS, say: bool = False
) -> Tally:
    """Round after round, at least one, until so many seconds have passed. Raises `AssertionError`
    at once if anything is wrong, and leaves the folder of that round as it is."""
    choice = random.Random(seed)
    tally = Tally()
    end = time.monotonic() + seconds
    home = os.getcwd()
    while not tally.rounds or time.monotonic() < end:
        folder = Path(tempfile.mkdtemp(prefix="soak-"))
        os.chdir(folder)
        try:
            method = methods[tally.rounds % len(methods)]
            _one_round(folder, method, choice, starts, tally)
        finally:
            os.chdir(home)
        shutil.rmtree(folder)
        if say:
            print(tally, flush=True)
    return tally


def _one_round(folder: Path, method: str, choice: random.Random, starts: int, tally: Tally) -> None:
    function, files, most = choice.choice(WORK)
    (folder / "in").mkdir()
    for number in range(files):
        (folder / "in" / f"{number:03}.txt").write_text(str(number))
    script = Script(folder, method, function, options=choice.choice(OPTIONS))
    done: dict[str, int] = {}
    signals = 0
    for _ in range(starts):
        script.start()
        select.select([], [], [], choice.uniform(0, LONGEST_SECONDS))  # it is moments that we test
        signals += _disturb(script, choice)
        _, _, errors = script.wait(growing=folder / "result.pkl")
        script.wait_gone()
        assert errors.count("Traceback") <= 1, errors
        before, done = done, _checked(folder)
        assert before.items() <= done.items(), f"lost: {before.keys() - done.keys()}"
    while len(done) < files:  # what its worker was killed with is done by the next run
        script.run(growing=folder / "result.pkl")
        done = _checked(folder)
    repeated = functions.CALLS.read_text().count("\n") - files
    assert set(Counter(functions.calls())) == done.keys()
    what = f"{repeated} calls repeated after {signals} signals"
    assert repeated <= WORKERS * signals * most, what
    tally.rounds += 1
    tally.starts += starts
    tally.signals += signals
    tally.files += files
    tally.repeated += repeated


def _disturb(script: Script, choice: random.Random) -> int:
    """Send a signal to one process, or to all; returns to how many."""
    signum = choice.choice(SIGNALS)
    victims = script.processes()
    choice.shuffle(victims)
    if victims and choice.random() < 0.5:
        victims = [script.pid if signum == signal.SIGINT else victims[0]]
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
    return len(victims)


def _checked(folder: Path) -> dict[str, int]:
    """What a plain reader finds in the checkpoint."""
    path = folder / "result.pkl"
    if not path.exists():
        return {}
    done: dict[str, int] = pickle.loads(path.read_bytes())
    assert all(int(Path(key).stem) == value for key, value in done.items()), done
    return done


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Kill processes of runs at random, and check.")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--method", action="append", help="a start method; default: all")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    methods = arguments.method or ["fork", "spawn", "forkserver"]
    print(soak(60 * arguments.minutes, methods, arguments.seed, say=True))


if __name__ == "__main__":
    main()
