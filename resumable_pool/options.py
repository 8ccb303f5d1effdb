"""The runner's arguments, checked: a bad one raises at once, names itself and says what to do.

Knows nothing of what a run does with them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from .between.clock import NEVER
from .between.messages import Setup
from .callables import check_function, check_initializer, context_for
from .checkpoints import Checkpoint, checkpoint_at
from .files import check_pattern
from .records import quoted

if TYPE_CHECKING:
    from concurrent.futures import Executor

# The system call that waits for processes on Windows takes 63 handles.
_MOST_WORKERS = 60 if sys.platform == "win32" else None

# A month: more than any file needs, and less than the systems' clocks can wait for.
_MOST_SECONDS = 31 * 24 * 3600


class Choices(NamedTuple):
    """The runner's options of the same names."""

    retry_failed: bool = True
    rerun_changed: bool = False
    largest_first: bool = False


class Options(NamedTuple):
    """What a run needs to know. Made by `check_options` alone."""

    setup: Setup
    pattern: str | list[str]
    checkpoint: Checkpoint
    max_workers: int
    context: BaseContext
    max_tasks_per_child: int | None
    timeout: float | None
    retries: int
    retry_delay: float
    max_failures: int | None
    choices: Choices
    save_every: int
    save_interval: float
    grace_period: float
    stop_after: float
    progress: bool | Callable[..., Any] | None
    executor: Executor | None
    shard: tuple[int, int] | None


def check_options(given: SimpleNamespace) -> Options:
    """The arguments of `ResumableRunner`, by their names; see there for what is raised."""
    _check_executor(given)
    timeout = _check_duration("timeout", given.timeout)
    stop_after = _check_duration("stop_after", given.stop_after)
    checkpoint = _check_checkpoint(given.checkpoint)
    setup = _check_setup(given, timeout)
    # With an executor only the saver is a process of ours, and it is not given the function.
    sent = setup._replace(function=len, initializer=None, initargs=())
    return Options(
        setup=setup,
        pattern=check_pattern(given.pattern),
        checkpoint=checkpoint,
        max_workers=_check_max_workers(given.max_workers, given.executor),
        context=context_for(given.mp_context, setup if given.executor is None else sent),
        max_tasks_per_child=_check_limit("max_tasks_per_child", given.max_tasks_per_child, 1),
        timeout=timeout,
        retries=_check_number("retries", given.retries, 0),
        retry_delay=_check_seconds("retry_delay", given.retry_delay),
        max_failures=_check_limit("max_failures", given.max_failures, 0),
        choices=Choices(
            retry_failed=_check_bool("retry_failed", given.retry_failed),
            rerun_changed=_check_bool("rerun_changed", given.rerun_changed),
            largest_first=_check_bool("largest_first", given.largest_first),
        ),
        save_every=_check_number("save_every", given.save_every, 1),
        save_interval=_check_seconds("save_interval", given.save_interval),
        grace_period=_check_seconds("grace_period", given.grace_period),
        stop_after=NEVER if stop_after is None else stop_after,
        progress=_check_progress(given.progress),
        executor=given.executor,
        shard=_check_shard(given.shard),
    )


def _check_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _check_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value


def _check_limit(name: str, value: Any, least: int) -> int | None:
    return None if value is None else _check_number(name, value, least)


def _check_seconds(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value <= _MOST_SECONDS:  # nor nan
        raise ValueError(f"{name} must be 0 to {_MOST_SECONDS:,} seconds, not {value!r}")
    return float(value)


def _check_duration(name: str, value: Any) -> float | None:
    if value is None:
        return None
    try:
        if (seconds := _check_seconds(name, value)) > 0:
            return seconds
    except ValueError:
        pass
    raise ValueError(
        f"{name} must be more than 0 seconds, and {_MOST_SECONDS:,} at most, not {value!r}; "
        "None means no limit"
    )


def _check_setup(given: SimpleNamespace, timeout: float | None) -> Setup:
    check_function(given.function)
    check_initializer(given.initializer)
    initargs = given.initargs
    if isinstance(initargs, (str, bytes)) or not isinstance(initargs, Iterable):
        raise TypeError(f"initargs must be a tuple of arguments, not {initargs!r}")
    return Setup(
        given.function, given.initializer, tuple(initargs), timeout, given.rerun_changed is True
    )


def _check_checkpoint(checkpoint: Any) -> Checkpoint:
    if not isinstance(checkpoint, (str, os.PathLike, Checkpoint)):
        raise TypeError(f"checkpoint must be a path or a Checkpoint, not {checkpoint!r}")
    checked = checkpoint if isinstance(checkpoint, Checkpoint) else checkpoint_at(checkpoint)
    folder = os.path.dirname(checked.path)
    if not os.path.isdir(folder):
        what = f"there is no folder {quoted(folder)}"
        raise FileNotFoundError(f"checkpoint {quoted(checked.path)}: {what}")
    if os.path.isdir(checked.path):
        raise IsADirectoryError(f"checkpoint {quoted(checked.path)} is a folder; name a file")
    if os.path.exists(checked.path) and not os.path.isfile(checked.path):
        raise ValueError(f"checkpoint {quoted(checked.path)} is not a regular file")
    return checked


def _check_executor(given: SimpleNamespace) -> None:
    """Refuse what is none, and what only processes of our own can be made to do."""
    executor = given.executor
    if executor is None:
        return
    if isinstance(executor, type) or not callable(getattr(executor, "submit", None)):
        raise TypeError(f"executor must be a concurrent.futures.Executor, not {executor!r}")
    reasons = {
        "timeout": "a call in one of its processes cannot be ended",
        "max_tasks_per_child": "only it can replace its processes",
        "mp_context": "it starts its processes itself",
    }
    for name, reason in reasons.items():
        if (value := getattr(given, name)) is not None:
            raise ValueError(f"{name}={value!r} cannot be combined with an executor: {reason}")


def _check_max_workers(max_workers: Any, executor: Any) -> int:
    if max_workers is None and executor is not None:
        size = getattr(executor, "_max_workers", None)  # the standard library's own do have it
        return size if isinstance(size, int) and size > 0 else 2 * usable_processors()
    if max_workers is None:
        return min(usable_processors(), _MOST_WORKERS or sys.maxsize)
    number = _check_number("max_workers", max_workers, 1)
    if _MOST_WORKERS is not None and number > _MOST_WORKERS:
        raise ValueError(f"max_workers can be at most {_MOST_WORKERS} here, not {number}")
    return number


def usable_processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_progress(progress: Any) -> bool | Callable[..., Any] | None:
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise TypeError(
            f"progress must be True, False, None or a callable such as tqdm.tqdm, not {progress!r}"
        )
    checked: bool | Callable[..., Any] | None = progress
    return checked


def _check_shard(shard: Any) -> tuple[int, int] | None:
    if shard is None:
        return None
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(f"shard must be a tuple (k, n), for part k of n, not {shard!r}")
    for number in shard:
        if isinstance(number, bool) or not isinstance(number, int):
            hint = "what comes from the environment is text: use int()"
            raise TypeError(f"shard must be two ints, not {shard!r}; {hint}")
    number, count = shard
    if not 0 <= number < count:
        raise ValueError(
            f"shard must be (k, n) with k from 0 to n - 1, not {shard!r}; an array job may count "
            "from 1: then subtract that"
        )
    return number, count
