"""Call a function for every file of a folder, in processes, and never lose a result.

This module is the front door.
"""

from .checkpoints import Checkpoint, open_checkpoint
from .errors import CheckpointError, CheckpointLocked, ResumablePoolError
from .records import Failure, Outcome, Report

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointLocked",
    "Failure",
    "Outcome",
    "Report",
    "ResumablePoolError",
    "open_checkpoint",
]
