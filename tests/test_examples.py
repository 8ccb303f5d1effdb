"""The examples that need packages or programs of others, run where those are installed. (The one on
the standard library is the first command of README.md.)"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .stage import PATIENCE

ROOT = Path(__file__).parents[1]


def run_example(folder: Path, name: str, *arguments: str, failed: str = "") -> str:
    """As its docstring says, in a folder of its own, where only what starts with `failed` fails;
    returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"docs.examples.{name}", *arguments],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=2 * PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(f"{re.escape(failed)}.*\n" if failed else "", done.stderr)
    return done.stdout


@pytest.mark.skipif(
    not (shutil.which("espeak-ng") and shutil.which("sox")), reason="makes speech with these"
)
def test_speech_is_transcribed_as_it_was_said(tmp_path: Path) -> None:
    """The second run does the one file that is new."""
    pytest.importorskip("pocketsphinx")
    run_example(tmp_path, "make_speech", "6")
    first = run_example(tmp_path, "transcribe_speech")
    assert "6 files: 6 done, in" in first
    assert "6 of 6 are exactly what was said" in first
    shutil.copy(tmp_path / "speech" / "0000.wav", tmp_path / "speech" / "0000 again.wav")
    with open(tmp_path / "speech" / "said.csv", "a") as file:
        file.write("speech/0000 again.wav,nobody knows\n")
    second = run_example(tmp_path, "transcribe_speech")
    assert "7 files: 1 done, 6 done before" in second
    assert "6 of 7 are exactly what was said" in second


def test_thumbnails_are_made_of_images(tmp_path: Path) -> None:
    """And of a file that is none, nothing."""
    image = pytest.importorskip("PIL.Image")
    first = run_example(tmp_path, "thumbnails")
    assert "30 files: 30 done, in" in first
    with image.open(tmp_path / "thumbnails" / "000.jpg") as thumbnail:
        assert thumbnail.size == (128, 128)
    (tmp_path / "images" / "text.png").write_text("no image")
    second = run_example(tmp_path, "thumbnails", failed="failed: images/text.png: Unidentified")
    assert "31 files: 30 done before, 1 failed" in second
    assert "  images/text.png: UnidentifiedImageError" in second
    assert len(list((tmp_path / "thumbnails").iterdir())) == 30
