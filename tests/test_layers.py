"""Which module may import which: held against the code, function-level imports included."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resumable_pool

PACKAGE = Path(resumable_pool.__file__).parent

# The house: a folder is a process, or what lies between two. Which may import which; nothing else
# may. `plain` are the modules beside runner.py that know no process, `front` is what a user sees.
PLAIN = {"errors", "values", "records", "files"}
FRONT = {"callables", "options", "hooks"}
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

# A process that is killed while it holds one of these hangs all others (or, as a pool, is one).
SHARED_STATE = {
    "Array", "Barrier", "BoundedSemaphore", "Condition", "Event", "JoinableQueue", "Lock",
    "Manager", "Pool", "Queue", "RLock", "Semaphore", "SimpleQueue", "Value",
}  # fmt: skip


def _name_of(file: Path) -> str:
    parts = [*file.relative_to(PACKAGE.parent).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def _tree(module: str) -> ast.AST:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


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


def test_the_imports_are_seen() -> None:
    """These tests look at something: the picture's main road is among what they see."""
    assert "resumable_pool.run.loop" in _imports("resumable_pool.runner")
    assert "resumable_pool.between.pipes" in _imports("resumable_pool.checkpoints.log_file")
    assert "resumable_pool.records" in _imports("resumable_pool.checkpoints.base")
    assert sum(len(list(_imports(module))) for module in MODULES) > 100


# What takes as long to import as all of the package, and most runs do without.
SLOW = ["asyncio", "concurrent.futures", "dataclasses", "hashlib", "inspect", "logging", "pathlib",
        "sqlite3", "traceback", "urllib"]  # fmt: skip


def test_what_is_slow_to_import_is_imported_where_it_is_needed() -> None:
    """Every spawned worker imports all of the package, and four quick files are no work."""
    code = f"import sys, resumable_pool; print([name for name in {SLOW} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
