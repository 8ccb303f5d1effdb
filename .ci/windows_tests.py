"""The tests, as they are shipped, on Windows's own CPython: `windows_tests.py PYTHON MINUTES`.

Run it in the folder of the tests. PYTHON is what windows_python has made. Four parts run side by
side, as most tests wait for processes. What fails is repeated once, alone: Wine has faults of its
own that come and go. A test that hangs is ended, and counts as failed.

Every test writes down when it begins and how it ends (see `PLUGIN` below), so that a part that had
to be ended goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

SILENT_SECONDS = 150  # so long no test takes
LEAST_PASSED = 1_000
PARTS = 4

# What takes longest, in this order; all others are quick. They are dealt to the parts to and fro.
SLOW = [
    "executors", "runner", "hooks", "contract_processes", "formats", "contract", "faults",
    "windows", "command_line", "story", "copies_and_hooks", "seen", "scripts", "sqlite", "leaving",
    "files", "display", "json_lines", "pickle_processes", "adopted_runs",
]  # fmt: skip

PLUGIN = """
import json, os, time
said, ended = os.path.abspath(os.environ["TOLD"]), set()  # tests change directory

def say(**facts):
    with open(said, "a", encoding="utf-8") as file:
        file.write(json.dumps(facts) + "\\n")

if os.path.exists(said):
    with open(said, encoding="utf-8") as file:
        ended = {json.loads(line).get("ended") for line in file}

def pytest_collection_modifyitems(config, items):
    items[:] = [item for item in items if item.nodeid not in ended]

def pytest_runtest_logstart(nodeid, location):
    begun[nodeid] = time.monotonic()
    say(begun=nodeid)

outcomes, begun = {}, {}

def pytest_runtest_logreport(report):
    before = outcomes.get(report.nodeid, "passed")
    outcomes[report.nodeid] = report.outcome if before == "passed" else before
    if report.failed:
        say(text=f"{report.nodeid}\\n{report.longreprtext[-3000:]}")
    if report.skipped:
        say(why=report.longrepr[2].removeprefix("Skipped: "))

def pytest_collectreport(report):
    if report.failed:
        say(ended=report.nodeid, outcome="failed")

def pytest_runtest_logfinish(nodeid, location):
    say(ended=nodeid, outcome=outcomes[nodeid], seconds=round(time.monotonic() - begun[nodeid], 1))
"""


class Part:
    """Some test files, in one process after the other until all have ended."""

    def __init__(self, python: str, name: str, tests: list[str], deadline: float) -> None:
        self.python, self.name, self.tests, self.deadline = python, name, tests, deadline
        self.told = Path(f"told-{name}.jsonl")
        self.output = Path(f"output-{name}.txt")
        self.failed: list[str] = []
        self.counts: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.seconds: Counter[str] = Counter()

    def run(self) -> None:
        """Until all have ended."""
        while self._run_once() and time.monotonic() < self.deadline:
            pass
        self._count()

    def _run_once(self) -> bool:
        """Whether it had to be ended, and has to go on."""
        options = ["-p", "no:cacheprovider", "-p", "told", "--tb=short", "-m", "not alike"]
        options.append("--continue-on-collection-errors")
        environment = {**os.environ, "TOLD": self.told.name}
        with open(self.output, "ab") as output:
            pytest = subprocess.Popen(
                [self.python, "-m", "pytest", *options, *self.tests],
                env=environment, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        while pytest.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                pytest.wait(5)
            heard = self.told.stat().st_mtime if self.told.exists() else time.time()
            if time.time() - heard > SILENT_SECONDS or time.monotonic() > self.deadline:
                os.killpg(pytest.pid, signal.SIGKILL)
                pytest.wait()
        return pytest.returncode not in (0, 1, 5) and self._fail_what_had_begun()

    def _lines(self) -> list[dict[str, Any]]:
        if not self.told.exists():
            return []
        return [json.loads(line) for line in self.told.read_text(encoding="utf-8").splitlines()]

    def _fail_what_had_begun(self) -> bool:
        """A test that hangs, or ends the process that it is in. Whether there is one."""
        last = self._lines()[-1:]
        if not (last and "begun" in last[0]):
            self.failed.append(f"pytest itself, see {self.output}")
            return False
        with open(self.told, "a", encoding="utf-8") as told:
            told.write(json.dumps({"ended": last[0]["begun"], "outcome": "failed"}) + "\n")
        return True

    def _count(self) -> None:
        for line in self._lines():
            if "ended" in line:
                self.counts[line["outcome"]] += 1
                self.seconds[line["ended"].partition("::")[0]] += line.get("seconds", 0)
                if line["outcome"] == "failed":
                    self.failed.append(line["ended"])
            elif "why" in line:
                self.reasons[line["why"]] += 1


def main(python: str, minutes: str) -> None:
    """The command."""
    deadline = time.monotonic() + 60 * float(minutes)
    Path("told.py").write_text(PLUGIN)
    # Without those that find processes in /proc, and send them signals.
    files = [path for path in Path("tests").rglob("test_*.py") if "kill" not in path.parts]
    files.sort(key=lambda path: path.stat().st_size)
    slow = {f"test_{name}": place for place, name in enumerate(SLOW)}
    files.sort(key=lambda path: slow.get(path.stem, len(SLOW)))
    names = [str(path) for path in files]
    rounds = 2 * PARTS
    dealt = [names[n::rounds] + names[rounds - 1 - n :: rounds] for n in range(PARTS)]
    parts = [Part(python, str(n), tests, deadline) for n, tests in enumerate(dealt)]
    threads = [threading.Thread(target=part.run) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in parts:
        slowest = ", ".join(f"{name} {s:.0f} s" for name, s in part.seconds.most_common(5))
        print(f"part {part.name}: {sum(part.seconds.values()):.0f} s; {slowest}")
        print(part.output.read_text(encoding="utf-8", errors="replace"))
    counts = sum((part.counts for part in parts), Counter())
    failed = [test for part in parts for test in part.failed]
    again = [Part(python, f"again-{n}", [test], deadline) for n, test in enumerate(failed)]
    for one in again:
        one.run()
        print(one.output.read_text(encoding="utf-8", errors="replace"))
    for reason, number in sum((part.reasons for part in parts), Counter()).most_common():
        print(f"{number} skipped: {reason}")
    twice = [test for one in again for test in one.failed]
    print(f"Windows: {dict(counts)}; repeated {len(again)} times, failed again {len(twice)} times")
    for test in twice:
        print(f"failed twice: {test}")
    if twice or counts["passed"] < LEAST_PASSED or time.monotonic() > deadline:
        sys.exit(f"at least {LEAST_PASSED:,} must pass within {minutes} minutes, and none fail")


if __name__ == "__main__":
    main(*sys.argv[1:])
