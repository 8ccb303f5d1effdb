"""One run of one contender, as a script of its own: prints how many results it has.

    python -m tests.benchmarks.one_run CONTENDER FUNCTION PATTERN FOLDER WORKERS [OPTION=VALUE ...]

Imports as little as it can, since what it imports is measured along.
"""

from __future__ import annotations

import importlib
import sys

from . import work


def main(
    contender: str, function: str, pattern: str, folder: str, workers: str, *options: str
) -> None:
    run = importlib.import_module(f".contenders.{contender}", __package__).run
    given: dict[str, str | int] = {}
    for option in options:
        name, _, value = option.partition("=")
        given[name] = int(value) if name == "chunk" else value
    print(run(getattr(work, function), pattern, folder, int(workers), **given))


if __name__ == "__main__":
    main(*sys.argv[1:])
