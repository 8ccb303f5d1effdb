"""A kill, or an error, at every system call that changes a file; and then everything goes on.

    python -m tests.kill.sweep --suffix .sqlite --act run
    python -m tests.kill.sweep --error ENOSPC

Kills at random moments miss what is half-done for a microsecond. So `strace` counts the calls of
one undisturbed act (a run, a first run, settling, compacting, merging, adopting a plain pickle),
and the act is repeated in a fresh copy of its folder for each of them: at the n-th call of a kind
SIGKILL comes to whichever process makes it, just before it is carried out, or the call fails with
an error. Then what was there before, and what the run had been told is saved, must be there, for
our readers and for those who have none of this library; and after the next run everything must be,
with nothing left beside it, and nothing for `check` to find.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from resumable_pool import CheckpointError, ResumableRunner, open_checkpoint
from resumable_pool.checkpoints import checkpoint_at

from .scripts import ROOT

SUFFIXES = [".pkl", ".jsonl", ".sqlite"]
FILES, DONE_BEFORE, BAD = (
    7,
    3,
    5,
)  # so many files, the first of them done before, and one that fails
KILL = "signal=KILL"
DEADLINE_SECONDS = 60  # for an act; none waits for it to pass

# What changes a file, but for `write`, which is pipes' and logs'. A system need not know all.
CALLS = [
    "pwrite64", "pwritev", "pwritev2", "ftruncate", "fallocate", "fsync", "fdatasync", "link",
    "linkat", "unlink", "unlinkat", "rename", "renameat", "renameat2", "copy_file_range",
]  # fmt: skip


def work(path: str) -> Any:
    """What is done with a file."""
    number = int(Path(path).stem)
    if number == BAD:
        raise ValueError("it is the bad one")
    return {"number": number, "text": "x" * 3000}


def _value_of(number: int) -> tuple[str, Any]:
    path = f"in/{number:02}.txt"
    return path, work(path)


ALL = dict(_value_of(number) for number in range(FILES) if number != BAD)
BEFORE = dict(_value_of(number) for number in range(DONE_BEFORE))


class Telling(ResumableRunner[Any]):
    """Notes what it was told is saved."""

    def on_saved(self, outcome: Any) -> None:
        with open("told", "ab", buffering=0) as told:
            told.write(f"{outcome.path}\n".encode())


def run(checkpoint: str, pattern: str = "in/*.txt") -> None:
    """Do all that is to do, here."""
    options: dict[str, Any] = {"max_workers": 2, "mp_context": "fork", "progress": False}
    Telling(work, pattern, checkpoint, **options).run()


# The acts: what is in the folder before, and what is done.


def _some_done(checkpoint: str) -> None:
    run(checkpoint, f"in/0[0-{DONE_BEFORE - 1}].txt")


def _more_elsewhere(checkpoint: str) -> None:
    _some_done(checkpoint)
    run(f"other{Path(checkpoint).suffix}", f"in/0[{DONE_BEFORE}-{FILES - 1}].txt")


def _left_half_done(checkpoint: str) -> None:
    """A writer has been killed between saving and closing."""
    _some_done(checkpoint)
    if (pid := os.fork()) == 0:
        half = checkpoint_at(checkpoint)
        half.open()
        other = open_checkpoint(checkpoint)
        half.save([other.outcome(path) for path in other])
        os.kill(os.getpid(), 9)
    os.waitpid(pid, 0)


def _plain_pickle(checkpoint: str) -> None:
    with open(checkpoint, "wb") as file:
        pickle.dump(BEFORE, file)


class Act(NamedTuple):
    """What is disturbed."""

    prepare: Callable[[str], None]
    code: str  # `path` is the checkpoint
    suffixes: list[str] = SUFFIXES


ACTS = {
    "first run": Act(lambda checkpoint: None, "sweep.run(path)"),
    "run": Act(_some_done, "sweep.run(path)"),
    "settle": Act(_left_half_done, "checkpoint_at(path).settle()"),
    "compact": Act(_left_half_done, "checkpoint_at(path).compact()"),
    "merge": Act(_more_elsewhere, "merge(path, ['other' + os.path.splitext(path)[1]])"),
    "adopt": Act(_plain_pickle, "sweep.run(path)", [".pkl"]),
}

PROGRAM = """
import os, sys
from tests.kill import sweep
from resumable_pool.checkpoints import checkpoint_at, merge
path = sys.argv[1]
"""


class Point(NamedTuple):
    """The n-th call of a kind that one process makes."""

    call: str
    number: int

    def __str__(self) -> str:
        return f"{self.call} {self.number}"


class Sweep:
    """One act with a checkpoint of one format, in a folder of its own.

    Args:
        act: its name.
        suffix: the format.
        home: an empty folder.
        what: comes at each point: `KILL`, or `"error=EIO"`.
    """

    def __init__(self, act: str, suffix: str, home: Path, what: str = KILL) -> None:
        self._act = ACTS[act]
        self._what = what
        self._name = f"result{suffix}"
        self._template, self._folder = home / "before", home / "now"
        self._trace = home / "trace"
        (self._template / "in").mkdir(parents=True)
        for path in [*ALL, f"in/{BAD:02}.txt"]:
            (self._template / path).touch()
        with _within(self._template):
            self._act.prepare(self._name)
        (self._template / "told").unlink(missing_ok=True)
        self._before = BEFORE if (self._template / self._name).exists() else {}

    def points(self) -> list[Point]:
        """All calls of the act, undisturbed."""
        self._do("")
        counts: Counter[tuple[str, str]] = Counter()
        for line in self._trace.read_text(errors="replace").splitlines():
            if made := re.match(r"(\d+) +(\w+)\(", line):
                counts[made[1], made[2]] += 1
        most: dict[str, int] = {}
        for (_, call), count in counts.items():
            most[call] = max(count, most.get(call, 0))
        return [Point(call, number + 1) for call in sorted(most) for number in range(most[call])]

    def strike(self, point: Point) -> bool:
        """Disturb the act there; `AssertionError` if anything is lost, or does not go on. Returns
        whether there was such a call this time."""
        self._do(f"inject={point.call}:{self._what}:when={point.number}")
        trace = self._trace.read_text(errors="replace")
        if "killed by SIGKILL" not in trace and "(INJECTED)" not in trace:
            return False
        with _within(self._folder):
            self._judge()
        return True

    def _do(self, injection: str) -> None:
        """The act, under strace, in a fresh folder; until all of its processes have ended."""
        shutil.rmtree(self._folder, ignore_errors=True)
        shutil.copytree(self._template, self._folder)
        options = ["-f", "-qq", "-o", str(self._trace), "-e", f"trace=?{',?'.join(CALLS)}"]
        options += ["-e", injection] if injection else ["-e", "signal=none"]
        program = [sys.executable, "-c", PROGRAM + self._act.code, self._name]
        done = subprocess.run(
            ["strace", *options, *program],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
        )
        assert injection or done.returncode == 0, done.stderr

    def _judge(self) -> None:
        """In the folder: what must be true now, and after the next run."""
        told = Path("told").read_text().split() if Path("told").exists() else []
        known = {**self._before, **{path: ALL[path] for path in told if path in ALL}}
        found = self._read()
        assert found.items() <= ALL.items(), "a wrong value"
        assert known.items() <= found.items(), f"lost: {sorted(known.keys() - found.keys())}"
        run(self._name)
        for reader in (self._read, lambda: plain(self._name)):
            assert reader() == ALL
        assert list(open_checkpoint(self._name).failures()) == [f"in/{BAD:02}.txt"]
        assert checkpoint_at(self._name).check() == []
        expected = {"in", "told", self._name, f"{self._name}.bak", f"other{self._name[6:]}"}
        left = {*os.listdir()} - expected
        assert not left, f"left: {sorted(left)}"

    def _read(self) -> dict[str, Any]:
        if not os.path.exists(self._name):
            return {}
        try:
            return dict(open_checkpoint(self._name))
        except CheckpointError:  # a plain pickle that is not adopted yet
            assert self._act.prepare is _plain_pickle
            return plain(self._name)


@contextlib.contextmanager
def _within(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def plain(name: str) -> dict[str, Any]:
    """What somebody without this library reads."""
    if name.endswith(".pkl"):
        with open(name, "rb") as file:
            return dict(pickle.load(file))
    if name.endswith(".jsonl"):
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        return {line["path"]: line["value"] for line in lines if "value" in line}
    with closing(sqlite3.connect(name)) as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        return {
            path: json.loads(value) for path, value in db.execute("SELECT path, value FROM results")
        }


def sweep_over(act: str, suffix: str, what: str, share: float) -> tuple[int, list[str]]:
    """How many calls were struck, of this share of them by chance, and what is wrong."""
    with tempfile.TemporaryDirectory(prefix="sweep-") as home:
        sweep = Sweep(act, suffix, Path(home), what)
        points = [point for point in sweep.points() if random.random() < share]
        struck, faults = 0, []
        for point in points:
            try:
                struck += sweep.strike(point)
            except Exception as error:
                faults.append(f"  {point}: {type(error).__name__}: {error}")
    print(f"{act} {suffix}: {struck} of {len(points)} points, {len(faults)} faults")
    print(*faults, sep="\n", end="\n" * bool(faults), flush=True)
    return struck, faults


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Kill at every call that changes a file.")
    parser.add_argument("--suffix", action="append", choices=SUFFIXES)
    parser.add_argument("--act", action="append", choices=ACTS)
    parser.add_argument("--error", help="ENOSPC, say: the call fails with it, and nobody is killed")
    parser.add_argument("--share", type=float, default=1.0, help="of all calls, by chance (1)")
    arguments = parser.parse_args()
    what = f"error={arguments.error}" if arguments.error else KILL
    total, faults = 0, 0
    for act in arguments.act or ACTS:
        for suffix in [each for each in arguments.suffix or SUFFIXES if each in ACTS[act].suffixes]:
            struck, found = sweep_over(act, suffix, what, arguments.share)
            total += struck
            faults += len(found)
    print(f"{total:,} calls struck, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
