"""The benchmarks work: that they can be run, not how fast anything is."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

if sys.platform != "linux":
    pytest.skip("they read from /proc what processes cost", allow_module_level=True)

from .benchmarks.measuring import Measured
from .benchmarks.page import PAGE, write
from .benchmarks.plot import draw
from .benchmarks.roster import BY_KEY
from .benchmarks.rounds import Entry, Result
from .benchmarks.workloads import NO_OP, WORKLOADS
from .stage import PATIENCE

ROOT = Path(__file__).parents[1]


def benchmarks(tmp_path: Path, *options: str) -> str:
    """What they print, with what Python has itself for peers."""
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--rounds", "1"]
    command += ["--workers", "2", "--scratch", str(tmp_path), "--peers", "pool-tuned", "executor"]
    done = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.iterdir()] == []  # nothing is left behind
    return done.stdout


@pytest.mark.alike
def test_a_table_has_a_row_for_everybody_and_says_what_became_of_our_targets(
    tmp_path: Path,
) -> None:
    said = benchmarks(tmp_path, "--only", "no-op")
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith("| ")]
    titles = [row[0].strip() for row in rows[2:]]
    assert titles == ["**resumable_pool**", "Pool.imap_unordered, tuned", "ProcessPoolExecutor.map"]
    assert {row[2].strip() for row in rows[2:]} == {"1,000"}
    assert re.search(r"time: at most 1.3 x that of .*; is \d+\.\d\d x, (reached|missed)", said)
    assert "failed" not in said


def result(**seconds: float) -> Result:
    """A no-op on a hundred files that took each contender so long."""
    entries = []
    for key, taken in seconds.items():
        run = Measured(taken, cpu=taken, memory=1e7, written=1, kept=1, idle_cpu=None)
        entries.append(Entry(BY_KEY[key.replace("_", "-")], 100, 100, run, [run]))
    return Result(NO_OP, workers=2, rounds=1, entries=entries, ideal=None)


def test_the_picture_has_a_bar_for_everybody_the_quickest_on_top() -> None:
    root = ElementTree.fromstring(draw(result(template=40.0, ours=0.5, joblib=0.75), "Time"))
    svg = "{http://www.w3.org/2000/svg}"
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{svg}rect")]
    assert widths == sorted(widths)
    assert widths[0] > 0
    texts = [text.text for text in root.iter(f"{svg}text")]
    assert [text for text in texts if text in ("5.00 ms", "7.50 ms", "400 ms")] == [
        "5.00 ms",
        "7.50 ms",
        "400 ms",
    ]


def test_a_table_is_written_between_its_two_comments_and_nothing_else_is_touched(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- no-op begins -->\nold\n<!-- no-op ends -->\nAfter.\n")
    write(result(ours=0.5), "new \\1\n", page)
    between = "<!-- no-op begins -->\nnew \\1\n<!-- no-op ends -->"
    assert page.read_text() == f"Before.\n{between}\nAfter.\n"
    assert (tmp_path / "page.svg").exists()


def test_a_page_without_a_place_for_the_table_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Nothing.\n")
    with pytest.raises(ValueError, match="no-op"):
        write(result(ours=0.5), "new", page)
    assert page.read_text() == "Nothing.\n"


def test_the_page_has_a_place_for_every_workload() -> None:
    text = PAGE.read_text()
    for key in WORKLOADS:
        assert text.count(f"<!-- {key} begins -->") == text.count(f"<!-- {key} ends -->") == 1
