"""Which of the workers this process is. All that a function, or a program, needs of this folder."""

from __future__ import annotations

_slot: int | None = None


def worker_slot() -> int:
    """Which of the workers this one is: 0 to `max_workers` - 1. One that takes another's place has
    its number. For functions and initializers, to choose a GPU or a port by, say.

    Raises:
        RuntimeError: this process is no worker.
    """
    if _slot is None:
        raise RuntimeError("worker_slot() is for the function and the initializer, in a worker")
    return _slot


def take_slot(slot: int) -> None:
    """This process is that worker from now on."""
    global _slot
    _slot = slot
