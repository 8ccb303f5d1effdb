"""python -m tests.benchmarks: measure, print, and write it down if asked to.

Without options it takes over half an hour and wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from . import page, process_tree
from .roster import BY_KEY, OURS, Contender
from .rounds import Harness
from .tables import section
from .workloads import WORKLOADS, Workload


def main() -> int:
    """The command line."""
    parser = _parser()
    options = parser.parse_args()
    if options.write and (options.quick or options.peers):
        parser.error("--write is for what was measured with everybody and all files")
    keys = options.only or [key for key, workload in WORKLOADS.items() if not workload.optional]
    workloads = [WORKLOADS[key].quickly() if options.quick else WORKLOADS[key] for key in keys]
    process_tree.adopt_orphans()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing is left behind
    with tempfile.TemporaryDirectory(prefix="benchmarks-", dir=options.scratch) as scratch:
        harness = Harness(Path(scratch), options.workers, options.rounds, _say)
        for workload in workloads:
            wanted = _wanted(workload, options.peers)
            here = [contender for contender in wanted if not contender.missing()]
            absent = [contender.title for contender in wanted if contender.missing()]
            result = harness.compare(workload, here)
            text = section(result, absent)
            print(f"\n## {workload.key}\n\n{text}", flush=True)
            conditions = page.conditions(result)
            print(conditions, flush=True)
            if options.write:
                page.write(result, f"{text}\n{conditions}\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    several = [*WORKLOADS]
    parser.add_argument(
        "--only", nargs="+", choices=several, metavar="WORK", help=", ".join(several)
    )
    peers = [key for key in BY_KEY if key != OURS.key]
    parser.add_argument("--peers", nargs="+", choices=peers, metavar="NAME", help=", ".join(peers))
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds (default: 5)")
    processors = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=processors, help="default: one a processor")
    parser.add_argument("--quick", action="store_true", help="a few files, to see that it works")
    parser.add_argument("--write", action="store_true", help=f"into {page.PAGE.name}, and the plot")
    parser.add_argument("--scratch", metavar="FOLDER", help="for files; on a disk, not in memory")
    return parser


def _wanted(workload: Workload, peers: list[str] | None) -> list[Contender]:
    """Ours, and those peers that the workload is for."""
    keys = workload.contenders.split()
    return [BY_KEY[key] for key in keys if peers is None or key in peers or key == OURS.key]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
