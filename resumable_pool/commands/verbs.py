"""The commands: run, show, export, check, compact, move, merge.

Each stands here in one place: its arguments, as the parser takes them; what it is for, its
docstring, which is also its help; and what it does. It returns its exit status, if that is not the
one for "all done". Of processes it knows no more than the runner's users do.
"""

from __future__ import annotations

import contextlib
import csv
import glob
import json
import os
import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TextIO

from .. import checkpoints
from ..checkpoints.base import refuse_odd
from ..checkpoints.disk import make_like, replace
from ..checkpoints.lock import new_beside
from ..errors import CheckpointError, ResumablePoolError
from ..files import list_files, nothing_found
from ..records import AlikeFailures, Failure, count_files, explained, in_words, printable, quoted
from ..runner import ResumableRunner
from .loading import load

SOME_LEFT, USAGE = 1, 2

SHOWN_SLOWEST = 5


class Refused(Exception):
    """The command cannot be carried out as given; the text says why."""


@contextlib.contextmanager
def _refusing(*errors: type[Exception]) -> Iterator[None]:
    """What raises one of these was not given as it must be."""
    try:
        yield
    except errors as error:
        raise Refused(explained(error)) from None


Verb = Callable[..., int | None]

# The names of an argument, and what else `ArgumentParser.add_argument` is told of it.
Argument = tuple[Sequence[str], dict[str, Any]]

# The commands, each with an example of its arguments, and with these.
COMMANDS: list[tuple[Verb, str, Sequence[Argument]]] = []


def _command(example: str, *arguments: Argument) -> Callable[[Verb], Verb]:
    def enter(verb: Verb) -> Verb:
        COMMANDS.append((verb, example, arguments))
        return verb

    return enter


def _seconds(text: str) -> float:
    """`90`, `1.5h`, `1h30m`."""
    parts = re.findall(r"([\d.]+)([smhd]?)", text)
    with contextlib.suppress(ValueError):
        if parts and "".join(map("".join, parts)) == text:
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
        return float(text)
    raise ArgumentTypeError(f"{text!r} is not a time; write 90, 90s, 5m, 3h or 1h30m")


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise ArgumentTypeError(f"{text!r} is not part K of N; write 0/16, for instance")
    return int(number), int(count)


_TYPES = {"N": int, "S": _seconds, "K/N": _shard}


def _takes(names: str, shown: str, help: str | None = None, **more: Any) -> Argument:
    """An argument. `shown` is what stands for it in the help, and says of which type it is; for a
    switch it is empty."""
    more = {"help": help, "action": "store_true", **more}
    if shown:
        more |= {"metavar": shown, "action": "store", "type": _TYPES.get(shown, str)}
    return names.split(), more


_CHECKPOINT = _takes("checkpoint", "CHECKPOINT")


@_command(
    'work.py:transcribe "audio/**/*.wav" result.pkl -j 4',
    _takes("function", "FUNCTION",
           "module:function or file.py:function, called with each path; what it returns is saved"),
    _takes("patterns", "PATTERN", 'a glob in quotes ("audio/**/*.wav"), or paths; files only',
           nargs="+"),
    _takes("checkpoint", "CHECKPOINT", "where results are saved, such as result.pkl"),
    _takes("-j --max-workers", "N", "worker processes (default: as many as there are processors)"),
    _takes("--timeout", "S", "seconds for one file, or 5m, 1h30m; after that it has failed"),
    _takes("--stop-after", "S",
           "stop after this many seconds, or 90m, 3h: finish files in progress, start no more"),
    _takes("--retries", "N", "more attempts at a file that fails (default: 0)"),
    _takes("--retry-delay", "S", "seconds before another attempt, doubled each time (default: 0)"),
    _takes("--initializer", "NAME",
           "a function, in the same module unless you name another, called once in each worker"),
    _takes("--max-failures", "N", "stop when more files than this have failed"),
    _takes("--max-tasks-per-child", "N", "replace a worker after this many files"),
    _takes("--mp-context", "M", "start processes by fork, spawn or forkserver"),
    _takes("--largest-first", "", "start with the largest files"),
    _takes("--rerun-changed", "", "process files again if they have changed"),
    _takes("--no-retry-failed", "", "do not try again what failed in an earlier run",
           dest="retry_failed", action="store_false"),
    _takes("--save-every", "N", "save this many results together (default: 1)"),
    _takes("--save-interval", "S", "seconds that a result may wait for others (default: 1)"),
    _takes("--grace-period", "S",
           "seconds for files in progress after SIGTERM or SIGHUP (default: 10)"),
    _takes("--shard", "K/N", "only part K of N, from 0: for array jobs, each with its checkpoint"),
    _takes("--allow-empty", "",
           "do not treat it as an error if no file matches (with --shard it never is)"),
    _takes("--progress", "", "write a line to stderr every ten seconds if it is not a terminal"),
    _takes("-q --quiet", "", "no progress line, and no report if every file is done"),
    _takes("--json", "", "print the report as JSON", dest="as_json"),
)  # fmt: skip
def run(
    function: str,
    patterns: list[str],
    checkpoint: str,
    as_json: bool = False,
    quiet: bool = False,
    allow_empty: bool = False,
    **options: Any,
) -> int | None:
    """Process files, and continue where the last run stopped."""
    if quiet:
        options["progress"] = False
    may_be_empty = allow_empty or "shard" in options
    with _refusing(OSError, TypeError, ValueError):
        if "initializer" in options:
            options["initializer"] = load(options["initializer"], beside=function)
        files = _files(patterns, may_be_empty)
        runner = ResumableRunner(load(function), files, checkpoint, **options)
    report = runner.run()
    if as_json or not (report.ok and (quiet or report.note)):
        facts = {**report._asdict(), "failures": [each._asdict() for each in report.failures]}
        where = f"python -m resumable_pool show {checkpoint} --failures lists them all"
        _write(report.lines(where), as_json and facts)
    if report.note and not may_be_empty:
        if quiet:  # or the run has said so
            raise Refused(report.note)
        return USAGE
    return None if report.ok else SOME_LEFT


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
    """The files that the globs among them mean, as for a run. A file may be called like a glob:
    take[1].wav."""
    for pattern in patterns:
        found = [] if os.path.exists(pattern) else list_files(pattern)
        yield from found or [pattern]


@_command(
    "result.pkl",
    _CHECKPOINT,
    _takes("--failures", "", "only the failures, a line each"),
    _takes("-v --verbose", "", "with --failures, also their tracebacks"),
    _takes("--json", "", "as JSON; with --failures one object a line, with tracebacks",
           dest="as_json"),
)  # fmt: skip
def show(
    checkpoint: str, failures: bool = False, as_json: bool = False, verbose: bool = False
) -> None:
    """Show what is in a checkpoint; unpickles nothing, so it is safe on a file that you do not
    trust."""
    entries = [*_existing(checkpoint).entries()]
    failed = [entry.failure for entry in entries if entry.failure is not None]
    if failures:
        _write(_in_lines(failed, as_json, verbose))
        return
    size = sum(entry.size for entry in entries if entry.failure is None)
    seconds = sum(entry.seconds for entry in entries)
    slowest = sorted(entries, key=lambda entry: -entry.seconds)[:SHOWN_SLOWEST]
    done = len(entries) - len(failed)
    lines = [f"{checkpoint}: {count_files(done)} done, {len(failed):,} failed"]
    if slowest:
        mean = in_words(seconds / len(entries))
        lines.append(f"time in the function: {in_words(seconds)}, {mean} a file; the slowest:")
        lines += [f"  {in_words(entry.seconds)}: {entry.path}" for entry in slowest]
    if failed:
        lines += ["failed:", *AlikeFailures(failed).lines("--failures lists them all")]
    lines.append(f"values: {size:,} bytes (not unpickled)")
    listed = [{"path": entry.path, "seconds": entry.seconds} for entry in slowest]
    facts = {
        "checkpoint": checkpoint, "done": done, "failed": len(failed), "seconds": seconds,
        "size": size, "slowest": listed,
    }  # fmt: skip
    _write(lines, as_json and facts)


def _in_lines(failures: Iterable[Failure], as_json: bool, verbose: bool) -> Iterator[str]:
    for failure in failures:
        yield json.dumps(failure._asdict()) if as_json else str(failure)
        if verbose and not as_json:
            yield from (f"    {line}" for line in failure.traceback.splitlines())


@_command(
    "result.pkl result.jsonl",
    _CHECKPOINT,
    _takes("out", "OUT", "a new file: .jsonl (a line for each path and value) or .csv"),
    _takes("--force", "", "replace OUT if it exists"),
    _takes("--repr", "", "write values that are not JSON as text", dest="as_repr"),
)
def export(checkpoint: str, out: str, force: bool = False, as_repr: bool = False) -> int | None:
    """Write the values to a .jsonl or .csv file; this unpickles them, which can run code in the
    file, so only use it on a file that you trust."""
    source = _existing(checkpoint)
    write = {".jsonl": _write_json_lines, ".csv": _write_csv}.get(os.path.splitext(out)[1].lower())
    if write is None:
        raise Refused(f"{quoted(out)}: its suffix names the format, and must be .jsonl or .csv")
    if source.owns(out):
        raise Refused(f"{quoted(out)} is the checkpoint itself, or belongs to it")
    if os.path.lexists(out) and not force:
        raise Refused(f"{quoted(out)} exists already: --force replaces it")
    _refuse_without_folder(out)
    paths = sorted(source)
    damaged: set[str] = set()
    target = os.path.realpath(out) if os.path.islink(out) and os.path.isfile(out) else out
    with new_beside(target) as new:
        # What UTF-8 cannot hold, bytes of a file's name for instance, becomes a JSON escape.
        with (
            source.reading() as read,
            open(new, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            if os.path.isfile(target):
                make_like(target, new)  # behind `open`: it may be read-only
            write(file, lambda: _values(read, paths, as_repr, damaged))
            file.flush()
            os.fsync(file.fileno())  # before it takes the place of another one
        replace(new, target)
    _write([f"{count_files(len(paths) - len(damaged))}: values written to {out}"])
    if damaged:
        what = f"{len(damaged):,} values are damaged, and were left out; run again"
        print(what, file=sys.stderr)
    return SOME_LEFT if damaged else None


# What to do where the class of a value is not found.
_OF_A_MODULE = "the module of its class must be importable: put its folder on PYTHONPATH"
_OF_THE_SCRIPT = (
    "its class was defined in the script that ran: move it to a module, or return a dict. To "
    "read what is there, if the script is work.py, replace `python -m resumable_pool` by "
    '`python -c "from work import *; from resumable_pool.__main__ '
    'import main; raise SystemExit(main())"`'
)


def _values(
    read: Callable[[str], Any], paths: list[str], as_repr: bool, damaged: set[str]
) -> Iterator[tuple[str, Any]]:
    """Paths and values that are JSON; notes those that are damaged."""
    for path in paths:
        try:
            value = read(path)
        except KeyError:
            damaged.add(path)
            continue
        except CheckpointError:
            raise
        except Exception as error:  # code of the value's own
            remedy = _OF_THE_SCRIPT if "__main__" in str(error) else _OF_A_MODULE
            raise ResumablePoolError(
                f"the value of {quoted(path)} cannot be unpickled: {type(error).__name__}: "
                f"{error}; {remedy}"
            ) from None
        try:
            _as_json(value)
        except (TypeError, ValueError, RecursionError) as error:
            if not as_repr:
                raise ResumablePoolError(
                    f"the value of {quoted(path)}, a {type(value).__qualname__}, is not JSON: "
                    f"{error}; --repr writes such values as Python shows them"
                ) from None
            value = repr(value)
        yield path, value


# Reads what `_values` says, anew at each call.
Values = Callable[[], Iterator[tuple[str, Any]]]


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _write_json_lines(file: TextIO, values: Values) -> None:
    for path, value in values():
        file.write(f'{{"path": {_as_json(path)}, "value": {_as_json(value)}}}\n')


def _write_csv(file: TextIO, values: Values) -> None:
    """Text stands as it is, everything else as JSON. If all values are dicts, each of their keys
    gets a column."""
    rows = csv.writer(file)
    columns = _columns(values)
    names = [f"value.{name}" if name == "path" else name for name in columns or ["value"]]
    rows.writerow(["path", *names])
    for path, value in values():
        cells = [value.get(key, "") for key in columns] if columns else [value]
        rows.writerow([path, *map(_cell, cells)])


def _cell(value: object) -> str:
    return value if isinstance(value, str) else _as_json(value)


def _columns(values: Values) -> list[str]:
    """The keys of the values, in the order in which they come, if all values are dicts. They are
    read once more for that, since all of them may be more than memory holds."""
    columns: dict[str, None] = {}
    for _, value in values():
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            return []
        columns.update(dict.fromkeys(value))
    return [*columns]


@_command("result.pkl", _CHECKPOINT, _takes("--json", "", "as JSON", dest="as_json"))
def check(checkpoint: str, as_json: bool = False) -> int | None:
    """Read all of a checkpoint, and say what is wrong with it, one line each; unpickles nothing."""
    findings = _existing(checkpoint).check()
    _write(findings, as_json and {"checkpoint": checkpoint, "findings": findings})
    return SOME_LEFT if findings else None


@_command("result.pkl", _CHECKPOINT)
def compact(checkpoint: str) -> None:
    """Rewrite a checkpoint with the last result of each path, if sound, and keep the old file as
    .bak; unpickles nothing, except a plain pickle that it adopts."""
    _write(_existing(checkpoint).compact())


@_command(
    "result.pkl old/folder new/folder",
    _CHECKPOINT,
    _takes("old_start", "OLD_START",
           "the folder (or file) that paths in the checkpoint start with; '' for relative paths"),
    _takes("new_start", "NEW_START", "where those files are now"),
)  # fmt: skip
def move(checkpoint: str, old_start: str, new_start: str) -> None:
    """Give files their results back after they were moved, or their folder was renamed, and keep
    the old checkpoint as .bak; unpickles nothing."""
    with _refusing(ValueError):
        _write(_existing(checkpoint).move(old_start, new_start))


@_command(
    "result.pkl shard-*.pkl",
    _takes("out", "OUT", "the checkpoint to write; if it exists, it comes first"),
    _takes("inputs", "IN",
           "checkpoints to join: of several results for one path the newest counts; a result beats "
           "a failure; one that a run is writing to is taken as it is now", nargs="+"),
)  # fmt: skip
def merge(out: str, inputs: list[str]) -> None:
    """Join checkpoints into one, for instance the shards of a run; unpickles nothing."""
    inputs = [*_expanded(inputs)]
    for path in inputs:
        _existing(path)
    _refuse_without_folder(out)
    with _refusing(ValueError):
        _write(checkpoints.merge(out, inputs))


def _refuse_without_folder(out: str) -> None:
    if not os.path.isdir(os.path.dirname(out) or os.curdir):
        raise Refused(f"{quoted(out)}: there is no folder {quoted(os.path.dirname(out))}")


def _existing(path: str) -> checkpoints.Checkpoint:
    with _refusing(OSError, ValueError):
        checkpoint = checkpoints.checkpoint_at(path)
        if not os.path.lexists(path):
            raise Refused(f"there is no checkpoint {quoted(path)}")
        refuse_odd(path)
        open(path, "rb").close()
    return checkpoint


def _write(lines: Iterable[str], facts: object = False) -> None:
    """To stdout, as long as somebody reads it; whatever is in a line, it stays one. Where JSON is
    asked for, these facts in place of the lines."""
    try:
        for line in json.dumps(facts, indent=2).splitlines() if facts else lines:
            print(printable(line))
        print(end="", flush=True)
    except BrokenPipeError:  # `head`, say, has seen enough; at its end Python would flush again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
