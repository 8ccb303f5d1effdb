"""Which module may import which: held against the code, function-level imports included."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import resumable_pool

PACKAGE = Path(resumable_pool.__file__).parent

# From the top down: each imports only from those below it.
LAYERS = [
    "resumable_pool.__main__",
    "resumable_pool.commands.verbs.verbs",
    "resumable_pool.commands.loading",
    "resumable_pool",
    "resumable_pool.runner",
    "resumable_pool.run.loop",
    "resumable_pool.run.stopping",
    "resumable_pool.run.verdicts",
    "resumable_pool.run.ledger",
    "resumable_pool.run.plan",
    "resumable_pool.run.executors",
    "resumable_pool.run.worker_crew",
    "resumable_pool.run.workers",
    "resumable_pool.run.starts",
    "resumable_pool.run.crew",
    "resumable_pool.run.books",
    "resumable_pool.run.saver_handle",
    "resumable_pool.run.saver_handle.process",
    "resumable_pool.run.saver_handle.saving",
    "resumable_pool.hooks",
    "resumable_pool.run.saver_handle.reporting",
    "resumable_pool.worker.process",
    "resumable_pool.worker.far_process",
    "resumable_pool.worker.calling",
    "resumable_pool.between.describing",
    "resumable_pool.options",
    "resumable_pool.callables",
    "resumable_pool.checkpoints",
    "resumable_pool.checkpoints.sqlite",
    "resumable_pool.checkpoints.sqlite_reader",
    "resumable_pool.checkpoints.sqlite_layout",
    "resumable_pool.checkpoints.json_lines",
    "resumable_pool.checkpoints.merging",
    "resumable_pool.checkpoints.pickle_file",
    "resumable_pool.checkpoints.plain_pickle",
    "resumable_pool.checkpoints.log_file",
    "resumable_pool.checkpoints.pickle_scan",
    "resumable_pool.checkpoints.pickle_record",
    "resumable_pool.checkpoints.log_reader",
    "resumable_pool.checkpoints.copying",
    "resumable_pool.checkpoints.lock",
    "resumable_pool.checkpoints.disk",
    "resumable_pool.checkpoints.base",
    "resumable_pool.run.saver_handle.streams",
    "resumable_pool.between.frames",
    "resumable_pool.run.saver_handle.waiting",
    "resumable_pool.run.stop_requests",
    "resumable_pool.run.inbox",
    "resumable_pool.between.children",
    "resumable_pool.between.messages",
    "resumable_pool.run.screen",
    "resumable_pool.run.progress",
    "resumable_pool.files",
    "resumable_pool.between.clock",
    "resumable_pool.records",
    "resumable_pool.values",
    "resumable_pool.between.pipes",
    "resumable_pool.errors",
]

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


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_layer(module: str) -> None:
    """A new module is given a place in the list above."""
    assert module in LAYERS


def test_the_layers_exist() -> None:
    """The list names no module that is no more, and none twice."""
    assert sorted(LAYERS) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_downwards(module: str) -> None:
    """A module imports of the package only what is strictly below it."""
    own = [name for name in _imports(module) if name.split(".")[0] == "resumable_pool"]
    below = LAYERS[LAYERS.index(module) + 1 :]
    assert [name for name in own if name not in below] == []


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
