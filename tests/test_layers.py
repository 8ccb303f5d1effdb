"""The house: which module may import which, function-level imports included, and how long it is."""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import os
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import resumable_pool

PACKAGE = Path(resumable_pool.__file__).parent

# The house: a folder is a process, or what lies between two. Which may import which; nothing else
# may. `plain` are the modules beside runner.py that know no process, `front` is what a user sees.
PLAIN = {"errors", "values", "records", "files"}
FRONT = {"options", "hooks"}
MAY_IMPORT = {
    "plain": {"plain"},
    "between": {"plain", "between"},
    "checkpoints": {"plain", "between", "checkpoints"},
    "front": {"plain", "between", "checkpoints", "front"},
    "worker": {"plain", "between", "worker"},
    "saver": {"plain", "between", "checkpoints", "front", "saver"},
    "run": {"plain", "between", "checkpoints", "front", "worker", "saver", "run"},
    "runner": {"plain", "between", "checkpoints", "front", "saver", "run"},
    "": {"plain", "checkpoints", "worker", "runner"},
    "commands": {"plain", "checkpoints", "runner", "commands"},
    "__main__": {"", "plain", "commands"},
}

# Lines of code (none of them blank, comment or docstring) that all files of a folder may have.
# Whoever makes one smaller lowers its number, and whoever adds to it says why it is worth that.
BUDGET = {
    "": 1172,  # the modules beside runner.py, and the front doors
    "between": 1225,
    "checkpoints": 1997,
    "commands": 392,
    "run": 1796,
    "saver": 285,
    "worker": 232,
}

# A file is one story, and a function one thought.
MOST_MODULES = 46
MOST_IN_FILE = 400
MOST_IN_FUNCTION = 50
USUAL_IN_FUNCTION = 25  # nine of ten have no more

# Who may name a feature, as a word of its code: what plugs in does not thread through. `platform`
# is the question which system this is.
FEATURES = {
    "executor": {
        "runner", "options", "errors", "run.executors",
    },
    "shard": {"runner", "options", "files", "commands.verbs"},
    "largest_first": {"runner", "options", "run.plan"},
    "max_tasks_per_child": {"runner", "options", "run.processes"},
    "stop_after": {"runner", "options"},
    # And between.time_limit, which calls it by another name; that of SQLite is one for locks.
    "timeout": {"runner", "options", "run.processes", "checkpoints.sqlite"},
    "bar": {"run.screen"},
    "plain_pickle": {"checkpoints.pickle_file", "checkpoints.plain_pickle"},
    "platform": {
        "errors", "files", "__main__", "between.clock", "between.pipes", "between.system",
        "between.waiting", "checkpoints.disk", "checkpoints.lock",
    },
}  # fmt: skip

NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip

# A process that is killed while it holds one of these hangs all others (or, as a pool, is one).
SHARED_STATE = {
    "Array", "Barrier", "BoundedSemaphore", "Condition", "Event", "JoinableQueue", "Lock",
    "Manager", "Pool", "Queue", "RLock", "Semaphore", "SimpleQueue", "Value",
}  # fmt: skip


def _name_of(file: Path) -> str:
    parts = [*file.relative_to(PACKAGE.parent).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def _source(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


@functools.cache
def _tree(module: str) -> ast.AST:
    return ast.parse(_source(module))


def _parent(file: Path) -> str:
    return "" if file.parent == PACKAGE else file.parent.name


def _imports(module: str) -> Iterator[str]:
    """All that the module imports anywhere, by full name."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            source = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            submodules = [f"{source}.{alias.name}" for alias in node.names]
            inside = [name for name in submodules if name in MODULES]
            yield from inside
            if len(inside) < len(submodules):
                yield source


def _folder_of(module: str) -> str:
    name, _, rest = module.removeprefix("resumable_pool").removeprefix(".").partition(".")
    if name in PLAIN | FRONT:
        return "plain" if name in PLAIN else "front"
    assert not rest or name in MAY_IMPORT
    return name


def _own_imports(module: str) -> set[str]:
    return {name for name in _imports(module) if name.split(".")[0] == "resumable_pool"}


@pytest.mark.parametrize("module", MODULES)
def test_folders_import_what_the_house_allows(module: str) -> None:
    """A module imports only from folders that its own may know."""
    allowed = MAY_IMPORT[_folder_of(module)]
    assert {name for name in _own_imports(module) if _folder_of(name) not in allowed} == set()


def test_no_import_runs_back() -> None:
    """There is an order in which every module comes after all that it imports."""
    graph = {module: _own_imports(module) - {module} for module in MODULES}
    assert {*graphlib.TopologicalSorter(graph).static_order()} == {*MODULES}


@pytest.mark.parametrize("module", MODULES)
def test_nothing_outside_the_standard_library_is_imported(module: str) -> None:
    """The package needs nothing but Python."""
    allowed = {"resumable_pool", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in _imports(module)} <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_processes_share_no_locks(module: str) -> None:
    """Nothing of multiprocessing that has a lock in it is used; a thread's lock is none such."""
    used = []
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("multiprocessing"):
            used += [alias.name for alias in node.names]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "threading":
            used.append(node.attr)
    assert SHARED_STATE.isdisjoint(used)


def _code_lines(module: str) -> int:
    """How many lines of it are neither blank nor comment nor docstring."""
    seen = {
        line
        for token in tokenize.generate_tokens(io.StringIO(_source(module)).readline)
        if token.type not in NO_CODE
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(_tree(module)):
        seen -= _docstring(node)
    return len(seen)


def _docstring(node: ast.AST) -> set[int]:
    """The lines that its docstring takes."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if not isinstance(node, kinds) or ast.get_docstring(node) is None:
        return set()
    return {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}


@pytest.mark.parametrize("folder", BUDGET)
def test_a_folder_keeps_its_budget(folder: str) -> None:
    """A small library stays small only if somebody counts."""
    inside = [name for name, file in MODULES.items() if _parent(file) == folder]
    assert sum(map(_code_lines, inside)) <= BUDGET[folder]


def test_every_folder_has_a_budget() -> None:
    """And all of them have so many modules, without the folders' own."""
    assert {_parent(file) for file in MODULES.values()} == {*BUDGET}
    files = [file for file in MODULES.values() if file.name != "__init__.py"]
    assert len(files) <= MOST_MODULES


@pytest.mark.parametrize("module", MODULES)
def test_a_file_is_one_story(module: str) -> None:
    """It can be read in one go."""
    assert _code_lines(module) <= MOST_IN_FILE


def test_a_function_is_one_thought() -> None:
    """None is longer than a page, and few fill one."""
    lengths = {
        f"{module}.{node.name}": (node.end_lineno or 0) - node.lineno + 1 - len(_docstring(node))
        for module in MODULES
        for node in ast.walk(_tree(module))
        if isinstance(node, ast.FunctionDef)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_IN_FUNCTION} == {}
    assert sum(lines <= USUAL_IN_FUNCTION for lines in lengths.values()) >= 0.9 * len(lengths)


@functools.cache
def _words(module: str) -> set[str]:
    """The names that its code uses, whatever they stand for."""
    attributes = ("id", "attr", "arg", "name", "module")
    named = {getattr(node, each, None) for node in ast.walk(_tree(module)) for each in attributes}
    return {word.strip("_") for word in named if isinstance(word, str)}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_plugs_in(feature: str) -> None:
    """Few files name it, and so few must be opened to change it."""
    naming = {name for name in MODULES if feature in _words(name)}
    assert {name.removeprefix("resumable_pool.") for name in naming} <= FEATURES[feature]


def test_the_imports_are_seen() -> None:
    """These tests look at something: the picture's main road is among what they see."""
    assert "resumable_pool.run.loop" in _imports("resumable_pool.runner")
    assert "resumable_pool.between.forks" in _imports("resumable_pool.checkpoints.log_file")
    assert "resumable_pool.records" in _imports("resumable_pool.checkpoints.base")
    assert sum(len(list(_imports(module))) for module in MODULES) > 100


# What takes as long to import as all of the package, and most runs do without.
SLOW = ["asyncio", "concurrent.futures", "dataclasses", "hashlib", "inspect", "logging", "pathlib",
        "multiprocessing.connection", "pickletools", "resumable_pool.checkpoints.json_lines",
        "resumable_pool.run.loop", "resumable_pool.worker.process", "shutil", "sqlite3", "tempfile",
        "traceback", "urllib"]  # fmt: skip


def test_what_is_slow_to_import_is_imported_where_it_is_needed() -> None:
    """A run that finds nothing to do starts no process, and four quick files are no work."""
    code = f"import sys, resumable_pool; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


SLOW_TO_START = ["multiprocessing.connection", "multiprocessing.forkserver", "random", "shutil",
                 "tempfile"]  # fmt: skip


# Windows's pipes are of multiprocessing.connection, and without a pidfd a process is joined by it.
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="Linux")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_short_run_is_not_kept_waiting_by_imports(method: str, tmp_path: Path) -> None:
    """To start processes takes no module that takes longer to import than one of them to start."""
    code = (
        "import os, sys\nfrom resumable_pool import ResumableRunner\n"
        f"runner = ResumableRunner(os.path.getsize, [os.__file__], {str(tmp_path / 'r.pkl')!r}, "
        f"mp_context={method!r})\n"
        f"print(runner.run().ok, [name for name in {SLOW_TO_START} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True []\n"
