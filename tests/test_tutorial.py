"""docs/tutorial.md, typed into a real terminal by somebody who believes every word of it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import resumable_pool

if sys.platform == "win32":
    pytest.skip("on Windows: bash on a terminal", allow_module_level=True)

from .terminal import Terminal

ROOT = Path(__file__).parents[1]
PACKAGE = Path(resumable_pool.__file__).parent  # the installed one, if that is tested
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")

# What the reader is told to save under which name, and what to type.
STEP = re.compile(r"as\s`(?P<name>\w+\.py)`[^`]*(?:`\w+`[^`]*)?```python\n(?P<script>.*?)```"
                  r"|```console\n(?P<session>.*?)```", re.S)  # fmt: skip

ANY_LINES = r"(?:.*\n)*?"

# They hang on how fast the machine is, and when the run was stopped.
COUNTS = re.compile(r"\d s\b|\bdone\b|\bbytes\b|\bfinishing\b")


@pytest.mark.alike
def test_every_step_of_the_tutorial_shows_what_it_says(tmp_path: Path) -> None:
    """In a copy of the repository. `...` stands for any lines; numbers may be others, since they
    hang on how fast the machine is, and so may the folder."""
    (tmp_path / "repository").mkdir()
    shutil.copytree(PACKAGE, tmp_path / "repository" / "resumable_pool")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").symlink_to(sys.executable)
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    terminal = Terminal(tmp_path / "repository", {"PATH": path})
    try:
        for step in STEP.finditer(TUTORIAL):
            if step["name"]:
                (tmp_path / "tour" / step["name"]).write_text(step["script"])
            else:
                _type(terminal, step["session"], str(tmp_path))
    finally:
        terminal.close()
    assert len(list(STEP.finditer(TUTORIAL))) == TUTORIAL.count("```") / 2


def _type(terminal: Terminal, session: str, folder: str) -> None:
    for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.M):
        before, pressed, after = expected.rpartition("^C\n")
        shown = terminal.run(command, _pattern(before) if pressed else None)
        shown = shown.replace(folder, "/home/you")
        assert re.fullmatch(_pattern(after.rstrip("\n")), shown), f"$ {command}\n{shown}"


def _pattern(expected: str) -> str:
    """What matches `expected`, where `...` stands for any lines, or any text, and numbers may be
    others in a line of counts."""
    return "\n".join(map(_line_pattern, expected.split("\n"))).replace(f"{ANY_LINES}\n", ANY_LINES)


def _line_pattern(line: str) -> str:
    if line == "...":
        return ANY_LINES
    number = r"\d[\d,.]*" if COUNTS.search(line) else None
    tokens = re.split(r"(files|\b\d[\d,]*(?:\.\d+)?\b)", line)
    tokens[::2] = map(re.escape, tokens[::2])
    tokens[1::2] = ["files?" if token == "files" else number or token for token in tokens[1::2]]
    return "".join(tokens)
