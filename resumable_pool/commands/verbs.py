"""What the commands do, once their arguments are read: run, show, export, check, compact,
move, merge.

Each returns its exit status. Knows nothing of argparse, and of processes no more than the runner's
users do.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import heapq
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any, TextIO

from ..checkpoints import Checkpoint, checkpoint_at, merge
from ..errors import CheckpointError
from ..files import nothing_found
from ..records import (
    AlikeFailures,
    Entry,
    Failure,
    count_files,
    explained,
    in_words,
    printable,
    quoted,
)
from ..runner import ResumableRunner
from .loading import CannotLoad, load, module_part

ALL_DONE, SOME_LEFT, USAGE = 0, 1, 2

SHOWN_SLOWEST = 5


class Refused(Exception):
    """The command cannot be carried out as given; the text says why."""


class NotExported(Exception):
    """A value has no place in the file that was asked for; nothing was written."""


def run(
    function: str,
    patterns: list[str],
    checkpoint: str,
    as_json: bool = False,
    quiet: bool = False,
    allow_empty: bool = False,
    **options: Any,
) -> int:
    """Process the files; `options` are the runner's, as far as they are given."""
    if quiet:
        options["progress"] = False
    try:
        if "initializer" in options:
            options["initializer"] = load(options["initializer"], module_part(function))
        may_be_empty = allow_empty or "shard" in options
        files = _files(patterns, may_be_empty)
        runner = ResumableRunner(load(function), files, checkpoint, **options)
    except OSError as error:
        raise Refused(explained(error)) from None
    except (CannotLoad, TypeError, ValueError) as error:
        raise Refused(str(error)) from None
    report = runner.run()
    if as_json:
        failures = [failure._asdict() for failure in report.failures]
        _write_json({**report._asdict(), "failures": failures})
    elif not (report.ok and (quiet or report.note)):
        _write(report.lines(f"show {checkpoint} --failures lists them all"))
    if report.note and not may_be_empty:
        if quiet:  # or the run has said so
            raise Refused(report.note)
        return USAGE
    return ALL_DONE if report.ok else SOME_LEFT


def _files(patterns: list[str], may_be_empty: bool) -> str | list[str]:
    """One glob as it is, so that the runner expands it; several paths, or globs, as one list."""
    for pattern in patterns:
        if not glob.has_magic(pattern) and not os.path.exists(pattern):
            raise Refused(f"there is no file {quoted(pattern)}")
    if len(patterns) == 1 and not os.path.isfile(patterns[0]):
        if os.path.isdir(patterns[0]):
            raise Refused(nothing_found(patterns[0]))
        return patterns[0]
    files = [path for path in _expanded(patterns) if os.path.isfile(path)]
    if not (files or may_be_empty):
        raise Refused("; ".join(map(nothing_found, patterns)))
    return files


def _expanded(patterns: list[str]) -> Iterator[str]:
    """What the globs among them mean, as a shell has it: cmd.exe expands nothing. A file may be
    called like a glob: take[1].wav."""
    for pattern in patterns:
        found = [] if os.path.exists(pattern) else sorted(glob.glob(pattern, recursive=True))
        yield from found or [pattern]


def show(
    checkpoint: str, failures: bool = False, as_json: bool = False, verbose: bool = False
) -> int:
    """What is in a checkpoint, without its values."""
    entries = _existing(checkpoint).entries()
    if failures:
        failed = (entry.failure for entry in entries if entry.failure is not None)
        _write(line for each in failed for line in _describe(each, as_json, verbose))
        return ALL_DONE
    tally = _Tally()
    slowest = heapq.nlargest(SHOWN_SLOWEST, tally.count(entries), key=lambda entry: entry.seconds)
    if as_json:
        _write_json(tally.as_facts(checkpoint, slowest))
    else:
        _write(tally.as_lines(checkpoint, slowest))
    return ALL_DONE


def _describe(failure: Failure, as_json: bool, verbose: bool) -> Iterator[str]:
    yield json.dumps(failure._asdict()) if as_json else str(failure)
    if verbose and not as_json:
        yield from (f"    {line}" for line in failure.traceback.splitlines())


class _Tally:
    """Counts entries as they pass by, and groups the failures."""

    def __init__(self) -> None:
        self._done = self._failed = self._size = 0
        self._seconds = 0.0
        self._failures = AlikeFailures()

    def count(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        for entry in entries:
            self._seconds += entry.seconds
            if entry.failure is None:
                self._done += 1
                self._size += entry.size
            else:
                self._failed += 1
                self._failures.add(entry.failure)
            yield entry

    def as_facts(self, checkpoint: str, slowest: list[Entry]) -> dict[str, Any]:
        return {
            "checkpoint": checkpoint,
            "done": self._done,
            "failed": self._failed,
            "seconds": self._seconds,
            "size": self._size,
            "slowest": [{"path": entry.path, "seconds": entry.seconds} for entry in slowest],
        }

    def as_lines(self, checkpoint: str, slowest: list[Entry]) -> Iterator[str]:
        yield f"{checkpoint}: {count_files(self._done)} done, {self._failed:,} failed"
        if slowest:
            mean = in_words(self._seconds / (self._done + self._failed))
            yield f"time in the function: {in_words(self._seconds)}, {mean} a file; the slowest:"
            yield from (f"  {in_words(each.seconds)}: {each.path}" for each in slowest)
        if self._failed:
            yield "failed:"
            yield from self._failures.lines("--failures lists them all")
        yield f"values: {self._size:,} bytes (not unpickled)"


def export(checkpoint: str, out: str, force: bool = False, as_repr: bool = False) -> int:
    """Write the values to a file that needs no Python to be read. Unpickles them."""
    source = _existing(checkpoint)
    write = {".jsonl": _write_json_lines, ".csv": _write_csv}.get(PurePath(out).suffix.lower())
    if write is None:
        raise Refused(f"{quoted(out)}: its suffix names the format, and must be .jsonl or .csv")
    if source.owns(out):
        raise Refused(f"{quoted(out)} is the checkpoint itself, or belongs to it")
    if os.path.lexists(out) and not force:
        raise Refused(f"{quoted(out)} exists already: --force replaces it")
    if not os.path.isdir(os.path.dirname(out) or os.curdir):
        raise Refused(f"{quoted(out)}: there is no folder {quoted(os.path.dirname(out))}")
    paths = sorted(source)
    new = f"{out}.new-{os.getpid()}"
    try:
        # What UTF-8 cannot hold, bytes of a file's name for instance, becomes a JSON escape.
        with (
            source.reading() as read,
            open(new, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            written = write(file, lambda: _values(read, paths, as_repr))
            file.flush()
            os.fsync(file.fileno())  # before it takes the place of another one
        os.replace(new, out)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    _write([f"{count_files(written)}: values written to {out}"])
    if written == len(paths):
        return ALL_DONE
    damaged = len(paths) - written
    print(f"{damaged:,} values are damaged, and were left out; run again", file=sys.stderr)
    return SOME_LEFT


# What to do where the class of a value is not found.
_OF_A_MODULE = "the module of its class must be importable: put its folder on PYTHONPATH"
_OF_THE_SCRIPT = (
    "its class was defined in the script that ran: move it to a module, or return a dict. To "
    "read what is there, if the script is work.py, replace `python -m resumable_pool` by "
    '`python -c "from work import *; from resumable_pool.__main__ '
    'import main; raise SystemExit(main())"`'
)


def _values(
    read: Callable[[str], Any], paths: list[str], as_repr: bool
) -> Iterator[tuple[str, object, str]]:
    """Path, value, and the value as JSON; without those that are damaged."""
    for path in paths:
        try:
            value = read(path)
        except KeyError:
            continue
        except CheckpointError:
            raise
        except Exception as error:  # code of the value's own
            remedy = _OF_THE_SCRIPT if "__main__" in str(error) else _OF_A_MODULE
            raise NotExported(
                f"the value of {quoted(path)} cannot be unpickled: {type(error).__name__}: "
                f"{error}; {remedy}"
            ) from None
        try:
            yield path, value, _as_json(value)
        except (TypeError, ValueError, RecursionError) as error:
            if not as_repr:
                raise NotExported(
                    f"the value of {quoted(path)}, a {type(value).__qualname__}, is not JSON: "
                    f"{error}; --repr writes such values as Python shows them"
                ) from None
            yield path, repr(value), _as_json(repr(value))


# Reads what `_values` says, anew at each call.
Values = Callable[[], Iterator[tuple[str, object, str]]]


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_json_lines(file: TextIO, values: Values) -> int:
    written = 0
    for written, (path, _, text) in enumerate(values(), 1):  # noqa: B007
        file.write(f'{{"path": {_as_json(path)}, "value": {text}}}\n')
    return written


def _write_csv(file: TextIO, values: Values) -> int:
    """Text stands as it is, everything else as JSON. If all values are dicts, each of their keys
    gets a column."""
    written = 0
    rows = csv.writer(file)
    columns = _columns(values)
    names = [f"value.{name}" if name == "path" else name for name in columns or ["value"]]
    rows.writerow(["path", *names])
    for written, (path, value, text) in enumerate(values(), 1):  # noqa: B007
        if columns and isinstance(value, dict):
            rows.writerow([path, *(_cell(value[key]) if key in value else "" for key in columns)])
        else:
            rows.writerow([path, value if isinstance(value, str) else text])
    return written


def _columns(values: Values) -> list[str]:
    """The keys of the values, in the order in which they come, if all values are dicts. They are
    read once more for that, since all of them may be more than memory holds."""
    columns: dict[str, None] = {}
    for _, value, _ in values():
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return []
        columns.update(dict.fromkeys(value))
    return [*columns]


def _cell(value: object) -> str:
    return value if isinstance(value, str) else _as_json(value)


def check(checkpoint: str, as_json: bool = False) -> int:
    """What is wrong with a checkpoint, a line each."""
    findings = _existing(checkpoint).check()
    if as_json:
        _write_json({"checkpoint": checkpoint, "findings": findings})
    else:
        _write(findings)
    return SOME_LEFT if findings else ALL_DONE


def compact(checkpoint: str) -> int:
    """Rewrite a checkpoint with what is sound and counts."""
    _write(_existing(checkpoint).compact())
    return ALL_DONE


def move(checkpoint: str, old_start: str, new_start: str) -> int:
    """Give files that were moved their results back."""
    try:
        _write(map(printable, _existing(checkpoint).move(old_start, new_start)))
    except ValueError as error:
        raise Refused(str(error)) from None
    return ALL_DONE


def merge_all(out: str, inputs: list[str]) -> int:
    """Join checkpoints in one."""
    inputs = [*_expanded(inputs)]
    for path in inputs:
        _existing(path)
    try:
        notes = merge(out, inputs)
    except ValueError as error:
        raise Refused(str(error)) from None
    _write(notes)
    return ALL_DONE


def _existing(path: str) -> Checkpoint:
    try:
        checkpoint = checkpoint_at(path)
        open(path, "rb").close()
    except FileNotFoundError:
        raise Refused(f"there is no checkpoint {quoted(path)}") from None
    except ValueError as error:
        raise Refused(str(error)) from None
    except OSError as error:
        raise Refused(explained(error)) from None
    return checkpoint


def _write_json(facts: dict[str, Any]) -> None:
    _write(json.dumps(facts, indent=2).splitlines())


def _write(lines: Iterable[str]) -> None:
    """To stdout, as long as somebody reads it; whatever is in a line, it stays one."""
    try:
        for line in lines:
            print(printable(line))
        print(end="", flush=True)
    except BrokenPipeError:  # `head`, say, has seen enough; at its end Python would flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
