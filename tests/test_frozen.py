"""Programs that were frozen into an executable: it starts itself as its children."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import resumable_pool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no script is an executable there")

# As PyInstaller's are: marked, without a file that could be imported, and started with the
# arguments of what is wanted, which `freeze_support` looks for.
PROGRAM = f"""#!{sys.executable}
import multiprocessing.spawn, sys

sys.path.insert(0, {str(Path(resumable_pool.__file__).parents[1])!r})
sys.frozen, sys.executable = True, __file__
multiprocessing.set_executable(__file__)
__file__ = "/nowhere/program.py"

from resumable_pool import ResumableRunner

def count(path):
    return 1

def freeze_support():
    if "-c" in sys.argv:
        exec(sys.argv[sys.argv.index("-c") + 1])
        sys.exit()
    multiprocessing.spawn.freeze_support()

if __name__ == "__main__":
    freeze_support()
    print(ResumableRunner(count, "*.txt", "r.pkl", mp_context="spawn").run())
"""


def run_program(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    file = folder / "program"
    file.write_text(program, encoding="utf-8")
    file.chmod(0o755)
    (folder / "a.txt").touch()
    return subprocess.run([file], cwd=folder, capture_output=True, text=True, check=False)


def test_a_frozen_program_runs(tmp_path: Path) -> None:
    """What it defines is found in itself."""
    ended = run_program(tmp_path, PROGRAM)
    assert ended.stderr == ""
    assert ended.stdout.startswith("1 file: 1 done")


def test_a_frozen_program_that_does_not_expect_to_be_one_is_told(tmp_path: Path) -> None:
    """Instead of starting itself again and again: all of it has ended when its output has."""
    ended = run_program(tmp_path, PROGRAM.replace("    freeze_support()\n", ""))
    assert ended.returncode == 1
    assert "call multiprocessing.freeze_support() first" in ended.stderr
