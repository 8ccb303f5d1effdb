"""Who is measured: the way each contender is called, and what it keeps."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """One way to call a function for every file of a folder."""

    key: str  # what the command line calls it
    title: str
    module: str  # in contenders/
    keeps: str = "nothing"  # what is left of the results after the script was killed
    tuned: bool = False  # it is told the chunk size that suits the work best
    package: str | None = None  # what has to be installed for it
    program: str | None = None

    def missing(self) -> bool:
        """Whether what it needs is not here."""
        return self.version() is None

    def version(self) -> str | None:
        """Of what has to be installed, with its name; empty if that is nothing."""
        if self.program is not None:
            return _version_of_program(self.program)
        if self.package is None:
            return ""
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            return None


def _version_of_program(name: str) -> str | None:
    if shutil.which(name) is None:
        return None
    said = subprocess.run([name, "--version"], capture_output=True, text=True, check=False).stdout
    return said.split("\n", 1)[0]


OURS = Contender("ours", "resumable_pool", "ours", keeps="every result")

CONTENDERS = [
    OURS,
    Contender("pool-tuned", "Pool.imap_unordered, tuned", "pool", tuned=True),
    Contender("executor-tuned", "ProcessPoolExecutor.map, tuned", "executor", tuned=True),
    Contender("joblib", "joblib", "joblib_parallel", package="joblib"),
    Contender("mpire", "mpire", "mpire_pool", package="mpire"),
    Contender("pebble", "Pebble, tuned", "pebble_pool", tuned=True, package="Pebble"),
    Contender("pool", "Pool.imap_unordered", "pool"),
    Contender("executor", "ProcessPoolExecutor.map", "executor"),
    Contender("pool-log", "Pool, tuned, + append log", "pool_log", "every result", tuned=True),
    Contender("pool-sqlite", "Pool, tuned, + sqlite3", "pool_sqlite", "every result", tuned=True),
    Contender(
        "pool-diskcache",
        "Pool, tuned, + diskcache",
        "pool_diskcache",
        "every result",
        tuned=True,
        package="diskcache",
    ),
    Contender(
        "joblib-memory", "joblib + Memory", "joblib_memory", "every result", package="joblib"
    ),
    Contender("template", "written by hand", "template", "all but the last 9"),
    Contender("parallel", "GNU parallel --resume", "parallel", "every result", program="parallel"),
    Contender("pickle-load", "glob and pickle.load", "pickle_load", "-"),
]
BY_KEY = {contender.key: contender for contender in CONTENDERS}
