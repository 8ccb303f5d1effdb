"""Call a function for every file in a folder, in processes, and never lose a result.

This module is the front door; runner.py has the picture of what is behind it.
"""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 (a copied folder knows no requires-python)
    here = ".".join(map(str, sys.version_info[:2]))
    raise ImportError("resumable_pool needs Python 3.10 or newer; this is " + here)

from .checkpoints import Checkpoint, open_checkpoint
from .errors import (
    CheckpointError,
    CheckpointLocked,
    ExecutorError,
    ResumablePoolError,
    SaverError,
    WorkerStartError,
)
from .records import Failure, Outcome, Report, WorkerStatus
from .runner import ResumableRunner
from .worker.slot import worker_slot

__version__ = "0.1.0"

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointLocked",
    "ExecutorError",
    "Failure",
    "Outcome",
    "Report",
    "ResumablePoolError",
    "ResumableRunner",
    "SaverError",
    "WorkerStartError",
    "WorkerStatus",
    "__version__",
    "open_checkpoint",
    "worker_slot",
]
