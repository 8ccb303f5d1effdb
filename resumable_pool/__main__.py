"""The command line: `python -m resumable_pool`, or `resumable-pool` where it is installed.

Reads arguments, calls the command, and turns what it raises into a line and an exit status. What
the commands are, and what they do, is in commands/verbs.py.

exit status:
  0    all done
  1    some files of the run failed or are still to do, `check` found something, or an error ended
       the command
  2    the command cannot be done as given, no file matches, or the checkpoint is in use, damaged
       or missing
  130  stopped by Ctrl-C
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
import textwrap
from collections.abc import Sequence

from . import __version__
from .commands.loading import look_here
from .commands.verbs import COMMANDS, SOME_LEFT, USAGE, Refused
from .errors import CheckpointError, CheckpointLocked, ResumablePoolError
from .records import explained, printable

ALL_DONE = 0
INTERRUPTED = 130  # as a shell has it for a program that Ctrl-C has ended

_DESCRIPTION = """\
Call a Python function for every file in a folder, in worker processes, and never lose a result.
"""

# The end of the text above, and of each help.
_STATUSES = "".join((__doc__ or "").partition("exit status:")[1:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line, by default this process's; returns its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a path may hold what cannot be encoded
            stream.reconfigure(errors="backslashreplace")
    look_here()
    name = os.path.basename(sys.argv[0])
    program = "python -m resumable_pool" if name == "__main__.py" else name
    options = vars(_parse(program, _unquoted(sys.argv[1:] if arguments is None else arguments)))
    verb = options.pop("verb")
    try:
        return verb(**options) or ALL_DONE
    except KeyboardInterrupt:  # the run has said all there is to say
        return INTERRUPTED
    except (Refused, ResumablePoolError, OSError) as error:
        text = f"{program} {verb.__name__}: {explained(error)}"
        for line in text.splitlines():  # with a traceback, perhaps
            print(printable(line), file=sys.stderr)
        as_given = isinstance(error, (Refused, CheckpointError, CheckpointLocked))
        return USAGE if as_given else SOME_LEFT


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
    for verb, example, takes in COMMANDS:
        name, purpose = verb.__name__, " ".join((verb.__doc__ or verb.__name__).split())
        command = commands.add_parser(
            name, help=f"{purpose[0].lower()}{purpose[1:]}".rstrip("."),
            description=textwrap.fill(purpose, 80),
            epilog=f"example: {program} {name} {example}\n\n{_STATUSES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,  # what is not given is left to the function
        )  # fmt: skip
        for names, facts in takes:
            command.add_argument(*names, **facts)
        command.set_defaults(verb=verb)
    if arguments and arguments[0] in commands.choices and "--" not in arguments:
        # Options may stand between the positional arguments, and so be added at the end. This
        # parses twice, and forgets after the first time that behind `--` there are no options.
        return commands.choices[arguments[0]].parse_intermixed_args(arguments[1:])
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
