"""What README and docs show is run, and what they link to is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from .stage import PATIENCE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
]
OURS = {"resumable_pool", *sys.stdlib_module_names}


@pytest.mark.parametrize("block", BLOCKS)
def test_every_python_block_runs_as_a_script(tmp_path: Path, block: str) -> None:
    """As a user would copy it, in a folder with files of the kinds that the examples name; if it
    imports packages of others, where those are installed."""
    others = set(re.findall(r"^(?:from|import) (\w+)", block, re.M)) - OURS
    for package in others:
        pytest.importorskip(package)
    for name in ("texts/poems/one.txt", "audio/one.wav"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("one two three")
    (tmp_path / "script.py").write_text(block)
    command = [sys.executable, "script.py"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or others  # which may draw bars there
    assert "1 file: 1 done" in done.stdout or "one.txt 3" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Links between the pages name files that exist."""
    for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / link).exists(), link
