"""This library, saving every result, with all parameters at their defaults."""

from __future__ import annotations

from resumable_pool import ResumableRunner

from . import Work


def run(function: Work, pattern: str, folder: str, workers: int, method: str | None = None) -> int:
    checkpoint = f"{folder}/ours.pkl"
    runner = ResumableRunner(function, pattern, checkpoint, max_workers=workers, mp_context=method)
    report = runner.run()
    return report.completed + report.skipped
