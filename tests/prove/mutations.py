"""Whether a module's own tests notice when the module is changed.

    python -m tests.prove.mutations [MODULE...] [--sample N]

Each mutant is the module with one small change: a comparison turned round, a number one higher, a
statement left out. The tests must fail; a mutant that passes them survives, and is either a test
that is missing, or a change that makes no difference.

The mutants are the files of a run of our own: each worker has a copy of the checkout, and tries one
after the other in it.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import contextlib
import functools
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resumable_pool import ResumableRunner, worker_slot

ROOT = Path(__file__).parents[2]

# Fifty of them: all would take most of the time.
_UNIVERSES = "tests/run/test_simulation.py::test_in_whatever_order_things_happen_the_promises_hold"
SOME_UNIVERSES = f"{_UNIVERSES}[0]"
_STORY = "tests/run/test_story.py"
_LINES = "tests/checkpoints/test_json_lines.py"
_DAMAGE = "tests/checkpoints/test_damage.py"
_PICKLE_DAMAGE = "tests/checkpoints/test_pickle_damage.py"
# What goes over a file byte by byte takes most of the time, too.
_BYTE_BY_BYTE = [
    f"--deselect={_LINES}::test_cut_at_every_byte",
    f"--deselect={_DAMAGE}::test_no_sound_record_is_lost",
    f"--deselect={_PICKLE_DAMAGE}::test_cut_at_every_byte",
    f"--deselect={_PICKLE_DAMAGE}::test_damage_never_makes_a_wrong_value",
    f"--deselect={_PICKLE_DAMAGE}::test_saving_goes_on_after_any_cut",
    f"--deselect={_PICKLE_DAMAGE}::test_a_power_cut_leaves_a_plain_pickle",
]

# The pure modules, or the class of one that is pure, and the tests that are about each.
MODULES = {
    "run/books.py": ["tests/run/test_dealing.py", "tests/run/test_suspicion.py", SOME_UNIVERSES],
    "run/suspicion.py": [
        "tests/run/test_suspicion.py",
        "tests/run/test_dealing.py",
        SOME_UNIVERSES,
    ],
    "run/plan.py": ["tests/run/test_plan.py"],
    "run/stopping.py::Stopping": ["tests/run/test_stopping.py"],
    "run/screen.py": ["tests/run/test_progress.py", "tests/run/test_display.py", _STORY],
    "saver/saving.py": ["tests/saver/test_saving.py"],
    "files.py": ["tests/test_files.py"],
    "records.py": ["tests/test_records.py"],
    "values.py": ["tests/test_values.py"],
    "checkpoints/pickle_record.py": [
        "tests/checkpoints/test_pickle_layout.py",
        "tests/checkpoints/test_pickle_file.py",
        _PICKLE_DAMAGE,
        _DAMAGE,
        *_BYTE_BY_BYTE,
    ],
    "checkpoints/json_lines.py": [_LINES, _DAMAGE, *_BYTE_BY_BYTE],
}

_OPPOSITES: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


class Change(NamedTuple):
    """One change of a tree that was parsed for it: where, what, and how to make it."""

    line: int
    what: str
    make: Callable[[], None]


def changes(tree: ast.AST) -> Iterator[Change]:
    """All small changes of a module, in an order that depends on nothing but its text."""
    for node in ast.walk(tree):
        match node:
            case ast.Compare(ops=[operator]) if type(operator) in _OPPOSITES:
                opposite = _OPPOSITES[type(operator)]()
                yield _change(node, "comparison", ops=[opposite])
            case ast.BoolOp(op=operator):
                other = ast.Or() if isinstance(operator, ast.And) else ast.And()
                yield _change(node, "and, or", op=other)
            case ast.BinOp(op=ast.Add()):
                yield _change(node, "+ to -", op=ast.Sub())
            case ast.BinOp(op=ast.Sub()):
                yield _change(node, "- to +", op=ast.Add())
            case ast.Constant(value=bool(value)):
                yield _change(node, f"{value} to {not value}", value=not value)
            case ast.Constant(value=int(value) | float(value)):
                yield _change(node, f"{value} to {value + 1}", value=value + 1)
            case ast.If() | ast.While() | ast.IfExp():
                yield _change(node, "never", test=ast.Constant(False))
                yield _change(node, "not", test=ast.UnaryOp(ast.Not(), node.test))
            case ast.Expr(value=ast.Constant()):
                pass  # a docstring
            case ast.Expr() | ast.AugAssign():
                yield Change(node.lineno, "left out", functools.partial(_leave_out, node))


def _change(node: Any, what: str, **fields: Any) -> Change:
    return Change(node.lineno, what, lambda: vars(node).update(fields))


def _leave_out(node: ast.stmt) -> None:
    vars(node).update(vars(ast.Pass()))
    node.__class__ = ast.Pass


def mutants(source: str, part: str = "") -> Iterator[tuple[int, str, str]]:
    """Each mutant of a module, or of this class of it: the line, what is changed there, and its
    text."""
    for number in range(sum(1 for _ in changes(_part(ast.parse(source), part)))):
        tree = ast.parse(source)
        change = [*changes(_part(tree, part))][number]
        change.make()
        yield change.line, change.what, ast.unparse(ast.fix_missing_locations(tree))


def _part(tree: ast.Module, name: str) -> ast.AST:
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return classes[0] if name else tree


def _place(root: Path, module: str) -> Path:
    return root / "resumable_pool" / module.partition("::")[0]


# A process that has imported what takes long, and forks for each trial.
SERVER = """
import os, sys
import multiprocessing, pickle, sqlite3, subprocess, tempfile
import pytest, _pytest.assertion, _pytest.tmpdir

for line in sys.stdin:
    if (pid := os.fork()) == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(null, fd)
        os._exit(pytest.main(line.split()))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Tests:
    """Runs tests in a copy of the checkout."""

    def __init__(self, copy: Path, bytecode: str = "1") -> None:
        self.copy = copy
        self._temporary = tempfile.mkdtemp(prefix="mutants-", dir=_memory())
        environment = {"PYTHONPATH": str(copy), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            cwd=copy,
            env={**os.environ, **environment, "PYTHONDONTWRITEBYTECODE": bytecode},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        atexit.register(self.close)

    def pass_(self, tests: Sequence[str], seconds: float) -> bool:
        """Whether they do, within so long."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        temporary = f"--basetemp={self._temporary}/tests"
        asked = " ".join(["-qx", "-p", "no:cacheprovider", temporary, *tests])
        self._server.stdin.write(f"{asked}\n".encode())
        self._server.stdin.flush()
        pid = int(self._server.stdout.readline())
        ready, _, _ = select.select([self._server.stdout], [], [], seconds)
        # All that they have started, too, whatever came of it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        return int(self._server.stdout.readline()) == 0 and bool(ready)

    def close(self) -> None:
        """Be done with it."""
        if self._server.poll() is None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait()
        shutil.rmtree(self._temporary, ignore_errors=True)


def _memory() -> str | None:
    return "/dev/shm" if os.path.isdir("/dev/shm") else None


_tests: Tests | None = None  # in a worker
_seconds: dict[str, float] = {}  # how long the tests of a module may take


def set_up(folder: str, seconds: dict[str, float]) -> None:
    """The initializer of a worker: a copy of its own."""
    global _tests
    copy = Path(folder) / f"copy-{worker_slot()}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(Path(folder) / "undisturbed", copy)
    _tests = Tests(copy)
    _seconds.update(seconds)


def noticed(mutant: str) -> bool:
    """Whether the tests of the mutant's module fail with it. Its folder names the module."""
    assert _tests is not None
    module = Path(mutant).parent.name.replace("!", "/")
    place = _place(_tests.copy, module)
    before = place.read_bytes()
    place.write_bytes(Path(mutant).read_bytes())
    try:
        return not _tests.pass_(MODULES[module], _seconds[module])
    finally:
        place.write_bytes(before)


def undisturbed(copy: Path, modules: Sequence[str]) -> dict[str, float]:
    """Make a copy of the checkout. How long the tests of each module may take in one of it: much
    longer than they do here, without a mutant."""
    for name in ("resumable_pool", "tests", "docs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy)
    tests = Tests(copy, bytecode="")  # what is not changed need not be compiled again
    seconds = {}
    for module in modules:
        begun = time.monotonic()
        assert tests.pass_(MODULES[module], 600), f"without a mutant: {MODULES[module]}"
        seconds[module] = 20 + 5 * (time.monotonic() - begun)
    tests.close()
    for module in MODULES:
        place = _place(copy, module)
        for compiled in place.parent.glob(f"__pycache__/{place.stem}.*"):
            compiled.unlink()
    return seconds


def write_mutants(folder: Path, modules: Sequence[str]) -> dict[str, str]:
    """A file for each; returns what is changed in it, by its path."""
    described = {}
    for module in modules:
        source = _place(ROOT, module).read_text(encoding="utf-8")
        lines = source.splitlines()
        home = folder / module.replace("/", "!")
        home.mkdir()
        for number, (line, what, text) in enumerate(mutants(source, module.partition("::")[2])):
            path = home / f"{number:04}.py"
            path.write_text(text, encoding="utf-8")
            described[str(path)] = f"{module}:{line} {what}: {lines[line - 1].strip()[:80]}"
    return described


class Score(NamedTuple):
    """What came of it: how many mutants of a module were noticed, of how many; and the others."""

    noticed: int
    tried: int
    survivors: list[str]

    def __str__(self) -> str:
        return f"{self.noticed:,} of {self.tried:,} mutants noticed"


def run(
    modules: Sequence[str] = (), sample: int | None = None, workers: int = 2
) -> dict[str, Score]:
    """Try all mutants of these modules, or of all of them; or only a `sample`, by chance."""
    modules = modules or [*MODULES]
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        folder = Path(scratch) / "mutants"
        folder.mkdir()
        described = write_mutants(folder, modules)
        paths = sorted(described)
        if sample is not None:
            paths = random.sample(paths, min(len(paths), sample))
        runner = ResumableRunner(
            noticed,
            paths,
            os.path.join(scratch, "noticed.pkl"),
            max_workers=workers,
            initializer=set_up,
            initargs=(scratch, undisturbed(Path(scratch) / "undisturbed", modules)),
        )
        report = runner.run()
        assert not report.failed, report
        results = dict(runner.results)
    scores = {}
    for module in modules:
        mine = {path: seen for path, seen in results.items() if described[path].startswith(module)}
        survivors = [described[path] for path, seen in sorted(mine.items()) if not seen]
        scores[module] = Score(sum(mine.values()), len(mine), survivors)
    return scores


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.mutations", description=__doc__)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; default: all")
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants, by chance")
    options = parser.parse_args()
    if unknown := {*options.modules} - {*MODULES}:
        parser.error(f"no tests are named for {', '.join(sorted(unknown))}")
    scores = run(options.modules, options.sample)
    for module, score in scores.items():
        print(f"{module}: {score}")
        for survivor in score.survivors:
            print(f"  {survivor}")
    tried = sum(score.tried for score in scores.values())
    print(Score(sum(score.noticed for score in scores.values()), tried, []))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
