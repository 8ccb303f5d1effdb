"""Run the machines of docs/reliability.md, and print the table of that page.

    python -m tests.prove [--only NAME...] [--minutes N]

Each machine has a command of its own, which says more, and repeats what it has found. What needs a
tool that is not here says so, and is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple


class Machine(NamedTuple):
    """A command, and how it is told to take so many minutes.

    Attributes:
        arguments: of Python. `{...}` in them is worked out from `minutes`.
        needs: a module or a program, if there is one without which it cannot run.
    """

    arguments: Sequence[str]
    needs: str = ""
    environment: Sequence[tuple[str, str]] = ()


MACHINES = {
    "simulation": Machine(["-m", "tests.prove.simulation", "--seeds", "{1500}"]),
    "sweep": Machine(["-m", "tests.kill.sweep", "--share", "{0.05}"], needs="strace"),
    "calls": Machine(
        ["-m", "tests.prove.failing_calls", "--most", "0", "--sample", "{90}"], needs="strace"
    ),
    "power cuts": Machine(["-m", "tests.prove.power_cuts", "--states", "{30}"]),
    "fuzzing": Machine(["-m", "tests.prove.fuzzing", "--seconds", "{20}"]),
    "guided": Machine(["-m", "tests.prove.guided", "--seconds", "{20}"], needs="atheris"),
    "contract": Machine(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/checkpoints/test_machine.py"],
        needs="hypothesis",
        environment=[("RESUMABLE_POOL_EXAMPLES", "{50}")],
    ),
    "mutations": Machine(["-m", "tests.prove.mutations", "--sample", "{20}"], needs="pytest"),
    "soak": Machine(["-m", "tests.kill.soak", "--minutes", "{1}"]),
}


def _filled(text: str, minutes: float) -> str:
    if not text.startswith("{"):
        return text
    return f"{float(text[1:-1]) * minutes:.{2 if '.' in text else 0}f}"


def _is_here(needed: str) -> bool:
    return bool(importlib.util.find_spec(needed) or shutil.which(needed))


def run(name: str, minutes: float) -> tuple[str, bool]:
    """Run one. Returns a row of the table, and whether it has found nothing."""
    machine = MACHINES[name]
    if machine.needs and not _is_here(machine.needs):
        return f"| {name} | {machine.needs} is not here | | |", True
    command = [sys.executable, *(_filled(argument, minutes) for argument in machine.arguments)]
    environment = {key: _filled(value, minutes) for key, value in machine.environment}
    begun = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    )
    print(done.stdout, flush=True)
    said = done.stdout.rstrip().rpartition("\n")[2]
    found = "nothing" if done.returncode == 0 else f"status {done.returncode}"
    return f"| {name} | {said} | {time.monotonic() - begun:.0f} s | {found} |", done.returncode == 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.prove",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = f"of {', '.join(MACHINES)}; default: all"
    parser.add_argument(
        "--only", nargs="+", choices=MACHINES, metavar="NAME", default=[*MACHINES], help=names
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long, about: for each (1)")
    options = parser.parse_args()
    rows = [run(name, options.minutes) for name in options.only]
    print("| machine | what it did | time | found |\n| --- | --- | --- | --- |")
    for row, _ in rows:
        print(row)
    return 0 if all(well for _, well in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
