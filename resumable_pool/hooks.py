"""What a subclass of `ResumableRunner` may override, and in which process each of it runs.

To save elsewhere, override `save`, and also `load_completed`, so that the next run knows:

    class ToDatabase(ResumableRunner):
        def open_saver(self):
            self.database = sqlite3.connect("results.db")

        def save(self, outcomes):
            rows = [(outcome.path, outcome.value) for outcome in outcomes]
            with self.database:
                self.database.executemany("insert or replace into results values (?, ?)", rows)

        def load_completed(self):
            ...

`super().save(outcomes)` saves to the checkpoint as well. Without it the checkpoint still keeps
other runs away, and holds what failed. Only a runner that overrides one of the saver's hooks is
sent to the saver, and only one that overrides `process_file` to the workers; there it is a copy
(under spawn and forkserver it is pickled), and what a hook changes in it, nobody else sees.

Knows no process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic

from .checkpoints import Checkpoint
from .files import as_key, check_paths, list_files
from .records import Failure, Outcome, Result
from .values import pickle_value


class Hooks(Generic[Result]):
    """The hooks of a runner, with what they do if they are not overridden."""

    _function: Callable[[str], Result]
    _pattern: str | list[str]
    _checkpoint: Checkpoint

    def __getstate__(self) -> dict[str, Any]:
        """What a copy in another process needs: what the subclass has added, and the above."""
        return _without_what_stays(vars(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Also if a subclass does as `pickle`'s manual says, and begins with all of its `__dict__`.
        made = super().__reduce_ex__(protocol)
        return tuple(_without_what_stays(one) if isinstance(one, dict) else one for one in made)

    # In the runner's process.

    def collect_files(self) -> Iterable[Any]:
        """The paths to process, in this order, or a glob: called at the start of a run, and for
        `pending`. Paths that are not files are left out, and each file counts once.

        Returns:
            The files of the pattern: a subclass can filter `super().collect_files()`.
        """
        return self._checkpoint.others(list_files(self._pattern))

    def load_completed(self) -> Iterable[Any]:
        """The paths that need no processing because their results are saved, as the function
        receives them (on Windows backslashes work too), or as `Path`s. Called before a run, and
        once more when the checkpoint is locked."""
        return self._checkpoint.completed()

    def read_result(self, path: str) -> Result:
        """The saved value of `path`: for `as_completed`, `on_saved`, and `results`.

        Raises:
            KeyError: it has none, or it is saved elsewhere, and this is not overridden.
        """
        try:
            value: Result = self._checkpoint.read(path)
        except KeyError:
            if not overrides(self, "save", "load_completed"):
                raise
            raise KeyError(
                f"{path}: it is not in the checkpoint; {type(self).__name__} saves elsewhere, and "
                "must override read_result to read it"
            ) from None
        return value

    def _read_outcome(self, path: str, ok: bool) -> Outcome[Result]:
        """What was saved of the path: a value if it is `ok`, otherwise a failure."""
        if ok and overrides(self, "read_result"):
            return Outcome(path, pickle_value(self.read_result(path)), 0, None, 0.0)
        with contextlib.suppress(KeyError):
            return self._checkpoint.outcome(path, failed=not ok)
        # It is saved elsewhere.
        failure = None if ok else Failure(path, "error", "its failure is saved elsewhere", "", 1, 0)
        return Outcome(path, None, 0, failure, 0.0)

    def on_saved(self, outcome: Outcome[Result]) -> None:
        """Called for each outcome once it is saved, in the thread of the run. If it raises, the run
        stops as by `stop`, and `run` raises the same exception."""

    # In a worker.

    def process_file(self, path: str) -> Result:
        """Called for each file; what it returns is the result."""
        return self._function(path)

    # In the saver.

    def open_saver(self) -> None:
        """Called once before anything is saved: for connections that must not be shared."""

    def save(self, outcomes: Sequence[Outcome[Result]]) -> None:
        """Save these, which have values. When it returns they count as saved; if it raises, the run
        ends with a `SaverError`, and they are still to do.

        Args:
            outcomes: as many as have arrived, or as `save_every` says.
        """
        self._checkpoint.save(outcomes)

    def save_failures(self, outcomes: Sequence[Outcome[Result]]) -> None:
        """The same for files that failed."""
        self._checkpoint.save_failures(outcomes)

    def close_saver(self) -> None:
        """Called once when everything is saved, also if `save` raised."""


# What a copy does not have.
_STAY_HERE = ("_options", "_running", "_life", "_stop_requests", "_ring")


def _without_what_stays(state: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in _STAY_HERE}


SAVER_HOOKS = ("open_saver", "save", "save_failures", "close_saver")


def overrides(runner: Hooks[Any], *names: str) -> bool:
    """Whether the runner, or its class, overrides one of these hooks."""
    kind, own = type(runner), vars(runner)
    return any(getattr(kind, name) is not getattr(Hooks, name) or name in own for name in names)


def completed_elsewhere(hooks: Hooks[Any]) -> list[str]:
    """What its `load_completed` gives, checked: as keys.

    Raises:
        TypeError: it is no iterable of paths.
    """
    giver = f"{type(hooks).__name__}.load_completed()"
    rule, each = f"{giver} must return an iterable of paths", f"each path that {giver} returns"
    return [*map(as_key, check_paths(hooks.load_completed(), rule, each))]
