"""How fast we are, side by side with the others: `python -m tests.benchmarks --help`.

`workloads.py` says what is measured and `roster.py` who runs it; `contenders/` has one small file
for each way of doing it, and `work.py` the functions that all of them call. `rounds.py` starts
every run in a fresh interpreter (`one_run.py`) and takes turns, `measuring.py` and
`process_tree.py` read what a run costs, `tables.py`, `verdicts.py` and `plot.py` say it.

Linux only: what a whole tree of processes costs is read from /proc.
"""

import sys

if sys.platform != "linux":
    raise SystemExit("the benchmarks read from /proc what processes cost, and so need Linux")
