"""docs/benchmarks.md: which of it is written here, and what was measured on which machine."""

from __future__ import annotations

import os
import platform
import re
from datetime import date
from multiprocessing import get_start_method
from pathlib import Path

from .measuring import ROOT
from .plot import draw
from .rounds import Result
from .workloads import NO_OP

PAGE = ROOT / "docs" / "benchmarks.md"


def write(result: Result, text: str, page: Path = PAGE) -> None:
    """Put `text` between the two comments that name the workload; with the no-op comes the picture.

    Raises:
        ValueError: the page has no such comments, or several.
    """
    key = re.escape(result.workload.key)
    between = re.compile(rf"(<!-- {key} begins -->\n).*?(<!-- {key} ends -->)", re.S)
    old = page.read_text()
    new, found = between.subn(lambda match: f"{match[1]}{text}{match[2]}", old)
    if found != 1:
        raise ValueError(f"{page} has not exactly one place for {result.workload.key}")
    page.write_text(new)
    if result.workload.key == NO_OP.key:
        page.with_suffix(".svg").write_text(
            draw(result, "Time per file of a function that does nothing (* saves)")
        )


def conditions(result: Result) -> str:
    """What has to be known of the numbers that follow, in a paragraph."""
    versions = {version for entry in result.entries if (version := entry.contender.version())}
    counted = f"medians of {result.rounds} rounds" if result.rounds > 1 else "one round"
    which = f" With {', '.join(sorted(versions, key=str.lower))}." if versions else ""
    method = result.workload.method or get_start_method()
    processors = len(os.sched_getaffinity(0))
    return (
        f"{date.today():%d %B %Y}: Python {platform.python_version()}, start method "
        f"{method}, {result.workers} workers on {processors} processors "
        f"({_processor()}), Linux {platform.release().split('-')[0]}; {counted}.{which}"
    )


def _processor() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    return match[1] if match else platform.machine()
