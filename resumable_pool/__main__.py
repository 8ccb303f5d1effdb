"""The command line: `python -m resumable_pool`, or `resumable-pool` where it is installed.

Reads arguments, calls the command, and turns what it raises into a line and an exit status. What
the commands do is in commands/verbs.py.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import __version__
from .commands.loading import look_here
from .commands.verbs import (
    SOME_LEFT,
    USAGE,
    NotExported,
    Refused,
    check,
    compact,
    export,
    merge_all,
    move,
    run,
    show,
)
from .errors import CheckpointError, CheckpointLocked, ResumablePoolError
from .records import explained, printable

INTERRUPTED = 130  # as a shell has it for a program that Ctrl-C has ended

_DESCRIPTION = """\
Call a Python function for every file in a folder, in worker processes, and never lose a result.
"""

_STATUSES = """\
exit status:
  0    all done
  1    some files failed or are still to do, `check` found something, or an error ended the command
  2    the command cannot be done as given, no file matches, or the checkpoint is in use, damaged
       or missing
  130  stopped by Ctrl-C
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line, by default this process's; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold what cannot be encoded
            stream.reconfigure(errors="backslashreplace")
    look_here()
    name = os.path.basename(sys.argv[0])
    program = "python -m resumable_pool" if name == "__main__.py" else name
    options = vars(_parse(program, _unquoted(sys.argv[1:] if arguments is None else arguments)))
    command, carry_out = options.pop("command"), options.pop("carry_out")
    try:
        return int(carry_out(**options))
    except KeyboardInterrupt:  # the run has said all there is to say
        return INTERRUPTED
    except (Refused, NotExported, ResumablePoolError, OSError) as error:
        text = explained(error) if isinstance(error, OSError) else str(error)
        for line in f"{program} {command}: {text}".splitlines():  # with a traceback, perhaps
            print(printable(line), file=sys.stderr)
        refused = isinstance(error, (Refused, CheckpointError, CheckpointLocked))
        return USAGE if refused else SOME_LEFT


def _unquoted(arguments: Sequence[str]) -> Sequence[str]:
    """Without the single quotes that cmd.exe, other than all shells, leaves around them."""
    if sys.platform != "win32":
        return arguments
    return [re.sub(r"^'(.*)'$", r"\1", argument) for argument in arguments]


def _parse(program: str, arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        program, description=_DESCRIPTION, epilog=_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"resumable_pool {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for each in _COMMANDS:
        command = commands.add_parser(
            each.name, help=each.purpose,
            description=textwrap.fill(f"{each.purpose[0].upper()}{each.purpose[1:]}.", 80),
            epilog=f"example: {program} {each.name} {each.example}\n\n{_STATUSES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,  # what is not given is left to the function
        )  # fmt: skip
        each.add_arguments(command)
        command.set_defaults(command=each.name, carry_out=each.carry_out)
    if arguments and arguments[0] in commands.choices:
        # Options may stand between the positional arguments, and so be added at the end.
        return commands.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return parser.parse_args(arguments)


def _add_run(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    # fmt: off
    add("function", metavar="FUNCTION",
        help="module:function or file.py:function, called with each path; what it returns is saved")
    add("patterns", metavar="PATTERN", nargs="+",
        help='a glob in quotes ("audio/**/*.wav"), or paths; files only')
    add("checkpoint", metavar="CHECKPOINT", help="where results are saved, such as result.pkl")
    add("-j", "--max-workers", metavar="N", type=int,
        help="worker processes (default: as many as there are processors)")
    add("--timeout", metavar="S", type=_seconds,
        help="seconds for one file, or 5m, 1h30m; after that it has failed")
    add("--stop-after", metavar="S", type=_seconds,
        help="stop after this many seconds, or 90m, 3h: finish files in progress, start no more")
    add("--retries", metavar="N", type=int, help="more attempts at a file that fails (default: 0)")
    add("--retry-delay", metavar="S", type=float,
        help="seconds before a further attempt, doubled each time (default: 0)")
    add("--initializer", metavar="NAME",
        help="a function, in the same module unless you name another, called once in each worker")
    add("--max-failures", metavar="N", type=int, help="stop when more files than this have failed")
    add("--max-tasks-per-child", metavar="N", type=int, help="files that a worker does at most")
    add("--mp-context", metavar="M", help="start processes by fork, spawn or forkserver")
    add("--largest-first", action="store_true", help="start with the largest files")
    add("--rerun-changed", action="store_true", help="process files again if they have changed")
    add("--no-retry-failed", dest="retry_failed", action="store_false",
        help="do not try again what failed in an earlier run")
    add("--save-every", metavar="N", type=int, help="save this many results together (default: 1)")
    add("--save-interval", metavar="S", type=float,
        help="seconds that a result may wait for others (default: 1)")
    add("--grace-period", metavar="S", type=float,
        help="seconds for files in progress after SIGTERM or SIGHUP (default: 10)")
    add("--shard", metavar="K/N", type=_shard,
        help="only part K of N, from 0: for array jobs that each have their own checkpoint")
    add("--allow-empty", action="store_true",
        help="do not treat it as an error if no file matches (with --shard it never is)")
    add("--progress", action="store_true",
        help="if stderr is not a terminal, write a progress line to it every ten seconds")
    add("-q", "--quiet", action="store_true",
        help="no progress line, and no report if every file is done")
    add("--json", dest="as_json", action="store_true", help="print the report as JSON")
    # fmt: on


def _seconds(text: str) -> float:
    """`90`, `1.5h`, `1h30m`."""
    parts = re.findall(r"([\d.]+)([smhd]?)", text)
    try:
        if text and "".join(map("".join, parts)) == text:
            return sum(float(number) * _UNITS[unit] for number, unit in parts)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90, 90s, 5m, 3h or 1h30m")


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _shard(text: str) -> tuple[int, int]:
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not part K of N; write 0/16, for instance")
    return int(number), int(count)


def _add_show(command: argparse.ArgumentParser) -> None:
    _add_checkpoint(command)
    command.add_argument("--failures", action="store_true", help="only the failures, a line each")
    command.add_argument(
        "-v", "--verbose", action="store_true", help="with --failures, also their tracebacks"
    )
    command.add_argument(
        "--json", dest="as_json", action="store_true",
        help="as JSON; with --failures one object a line, with tracebacks",
    )  # fmt: skip


def _add_export(command: argparse.ArgumentParser) -> None:
    _add_checkpoint(command)
    add = command.add_argument
    add("out", metavar="OUT", help="a new file: .jsonl (a line for each path and value) or .csv")
    add("--force", action="store_true", help="replace OUT if it exists")
    add("--repr", dest="as_repr", action="store_true", help="write values that are no JSON as text")


def _add_check(command: argparse.ArgumentParser) -> None:
    _add_checkpoint(command)
    command.add_argument("--json", dest="as_json", action="store_true", help="as JSON")


def _add_move(command: argparse.ArgumentParser) -> None:
    _add_checkpoint(command)
    add = command.add_argument
    add(
        "old_start",
        metavar="OLD_START",
        help="the folder (or file) that paths in the checkpoint start with; '' for relative paths",
    )
    add("new_start", metavar="NEW_START", help="where those files are now")  # fmt: skip


def _add_merge(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("out", metavar="OUT", help="the checkpoint to write; if it exists, it comes first")
    add("inputs", metavar="IN", nargs="+",
        help="checkpoints to join: of several results for one path the newest counts; a result "
             "beats a failure; one that a run is writing to is taken as it is now")  # fmt: skip


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument("checkpoint", metavar="CHECKPOINT")


class _Command(NamedTuple):
    name: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    carry_out: Callable[..., int]
    purpose: str
    example: str


_COMMANDS = [
    _Command("run", _add_run, run,
             "process files, and continue where the last run stopped",
             'work.py:transcribe "audio/**/*.wav" result.pkl -j 4'),
    _Command("show", _add_show, show,
             "show what is in a checkpoint; unpickles nothing, so it is safe on a file that you do "
             "not trust",
             "result.pkl"),
    _Command("export", _add_export, export,
             "write the values to a .jsonl or .csv file; this unpickles them, which can run code "
             "in the file, so only use it on a file that you trust",
             "result.pkl result.jsonl"),
    _Command("check", _add_check, check,
             "read all of a checkpoint, and say what is wrong with it, one line each; unpickles "
             "nothing",
             "result.pkl"),
    _Command("compact", _add_checkpoint, compact,
             "rewrite a checkpoint with the last result of each path, if sound, and keep the old "
             "file as .bak; unpickles nothing, except a plain pickle that it adopts",
             "result.pkl"),
    _Command("move", _add_move, move,
             "give files their results back after they were moved, or their folder was renamed, "
             "and keep the old checkpoint as .bak; unpickles nothing",
             "result.pkl old/folder new/folder"),
    _Command("merge", _add_merge, merge_all,
             "join checkpoints into one, for instance the shards of a run; unpickles nothing",
             "result.pkl shard-*.pkl"),
]  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
