"""What a run tells where nobody watches: the log, and the lines that a person must see."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resumable_pool import Report, ResumableRunner
from resumable_pool.records import quoted
from resumable_pool.run.screen import FIRST_FILES, SHOWN_KINDS

from .. import functions
from ..conftest import not_on_windows
from ..stage import PATIENCE, Stage, act, announcement

ROOT = Path(__file__).parents[2]


def odd_ones_fail(path: str) -> int:
    number = functions.number_in(path)
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number


def all_fail(path: str) -> int:
    return nonsense  # type: ignore[name-defined, no-any-return]  # noqa: F821


def fail_each_in_its_way(path: str) -> int:
    raise ValueError(Path(path).stem)


def die_once(path: str) -> int:
    if functions.number_in(path) == 3 and functions.calls().count(path) == 1:
        os._exit(5)
    return 0


def worker_name(path: str) -> tuple[int, str]:
    import multiprocessing

    from resumable_pool import worker_slot

    return worker_slot(), multiprocessing.current_process().name


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "resumable_pool")
    return caplog


def _lines(log: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno == level]


@pytest.mark.parametrize("progress", [False, None])
def test_nothing_found_is_said_without_a_terminal(
    folder: Path, log: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str],
    progress: bool | None,
) -> None:  # fmt: skip
    """In a pipe as well; the log and the report have it, whatever was asked for."""
    report = ResumableRunner(functions.number_in, "no/*.txt", "r.pkl", progress=progress).run()
    text = f"no files match 'no/*.txt' in the folder {quoted(os.getcwd())}; there is no 'no'"
    assert capsys.readouterr().err == ("" if progress is False else f"{text}\n")
    assert text in _lines(log, logging.INFO)
    assert str(report) == f"nothing to do: {text}"


def test_nothing_found_is_said_of_a_part(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part without files is nothing to speak of, but a pattern without files is."""
    ResumableRunner(functions.number_in, "in/00.txt", "a.pkl", shard=(0, 2)).run()
    ResumableRunner(functions.number_in, "in/00.txt", "b.pkl", shard=(1, 2)).run()
    assert capsys.readouterr().err == ""
    ResumableRunner(functions.number_in, "no/*", "a.pkl", shard=(0, 2)).run()
    assert "no files match 'no/*'" in capsys.readouterr().err


def test_the_first_failure_of_a_kind_is_said_at_once(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no terminal is, too; the others of its kind are counted in the report."""
    report = ResumableRunner(odd_ones_fail, "in/*.txt", "r.pkl", max_workers=1).run()
    assert capsys.readouterr().err == "failed: in/01.txt: ValueError: 1 is odd\n"
    assert "  in/01.txt and 4 more: ValueError: 1 is odd" in str(report)


def test_ten_kinds_of_failure_are_enough(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Who has seen them waits for the report."""
    (folder / "ways").mkdir()
    for letter in "abcdefghijklmn":
        (folder / "ways" / f"{letter}.txt").touch()
    ResumableRunner(fail_each_in_its_way, "ways/*.txt", "r.pkl").run()
    assert capsys.readouterr().err.count("failed: ways/") == SHOWN_KINDS


@pytest.mark.alike
@pytest.mark.parametrize("first_succeeds", [False, True])
def test_a_function_that_never_works_is_told_as_such(
    folder: Path, capsys: pytest.CaptureFixture[str], first_succeeds: bool
) -> None:
    """All of the first files have failed alike."""
    for number in range(10, FIRST_FILES + 5):
        (folder / "in" / f"{number}.txt").write_text(str(number))
    if first_succeeds:
        for path in (folder / "in").iterdir():
            path.write_text("1" if path.name != "00.txt" else "0")
    function = odd_ones_fail if first_succeeds else all_fail
    ResumableRunner(function, "in/*.txt", "r.pkl", max_workers=1).run()
    told = f"the first {FIRST_FILES} files have all failed in this way" in capsys.readouterr().err
    assert told is not first_succeeds


class Away(logging.Handler):
    """As people write them: what goes wrong in it is raised."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ConnectionRefusedError("the log's server is away")


def test_a_log_that_cannot_be_written_ends_no_run(folder: Path) -> None:
    """Nor do files in progress suffer from it."""
    logger = logging.getLogger("resumable_pool")
    logger.addHandler(away := Away())
    try:
        report = ResumableRunner(odd_ones_fail, "in/*.txt", "r.pkl", progress=False).run()
    finally:
        logger.removeHandler(away)
    assert (report.completed, report.failed) == (5, 5)


def test_the_log_tells_the_story(folder: Path, log: pytest.LogCaptureFixture) -> None:
    """From its start to its end, with each failure."""
    ResumableRunner(functions.number_in, "in/0[0-3].txt", "r.pkl", progress=False).run()
    log.clear()
    report = ResumableRunner(
        odd_ones_fail, "in/*.txt", "r.pkl", max_workers=1, progress=False
    ).run()
    begin, plan, *_, end = _lines(log, logging.INFO)
    path = quoted(os.path.abspath("r.pkl"))
    assert begin == f"a run of 'odd_ones_fail' begins, with the checkpoint {path}"
    assert plan == "10 files: 4 done before, 6 new"
    assert end == f"the run has ended: {report}"
    assert sorted(_lines(log, logging.WARNING)) == [
        f"'in/0{n}.txt' has failed (error): ValueError: {n} is odd" for n in (5, 7, 9)
    ]
    ready = [line.split(" is ready, ")[0] for line in _lines(log, logging.DEBUG)]
    assert {*ready} == {"worker 0"}


def test_the_log_tells_of_attempts_and_lost_workers(
    folder: Path, log: pytest.LogCaptureFixture
) -> None:
    """A file that is tried again, and a worker that is replaced."""
    options = {"max_workers": 1, "progress": False, "retries": 1}
    report = ResumableRunner(die_once, "in/*.txt", "r.pkl", **options).run()
    assert report.ok
    told = "\n".join(_lines(log, logging.INFO))
    assert "worker 0 exited with status 5; if there are files left for it, another" in told
    assert "'in/03.txt' will be tried again (attempt 1): its worker exited with status 5" in told
    assert not _lines(log, logging.WARNING)


def test_the_log_tells_why_a_run_ended_early(folder: Path, log: pytest.LogCaptureFixture) -> None:
    """As an error, with the remedy."""
    (folder / "r.pkl").write_text("something else")
    with pytest.raises(Exception, match="is not a checkpoint") as raised:
        ResumableRunner(functions.number_in, "in/*.txt", "r.pkl", progress=False).run()
    (told,) = _lines(log, logging.ERROR)
    assert told == f"the run has ended early: CheckpointError: {raised.value}"


def test_a_run_has_a_time_budget(folder: Path) -> None:
    """When it is over no file is begun, and those in progress are finished."""
    stage = Stage(folder)
    runner = ResumableRunner(act, "in/*.txt", "r.pkl", max_workers=2, stop_after=0.5)
    reports: list[Report] = []
    with announcement("the time set by stop_after is over: ") as over:
        thread = threading.Thread(target=lambda: reports.append(runner.run()))
        thread.start()
        assert over.wait(PATIENCE)
        stage.cue(2)  # for whoever has begun
        thread.join(PATIENCE)
    stage.close()
    (report,) = reports
    assert (report.stopped, report.failed) == (True, 0)
    assert report.completed <= 2
    assert report.remaining == 10 - report.completed


def test_slow_listing_is_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what has been found so far."""
    monkeypatch.setattr("resumable_pool.run.screen.SLOW_LISTING", 0.0)
    ResumableRunner(functions.number_in, "in/*.txt", "r.pkl", progress=True).run()
    said, progress = capsys.readouterr().err.splitlines()
    assert said == "looking for files: 10"
    assert progress.startswith("0/10 files")  # and perhaps how long workers have been starting


def wait_for_cue() -> None:
    act("a model")


def test_workers_that_load_are_shown(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one of them is ready."""
    monkeypatch.setattr("resumable_pool.run.screen.LONG_SECONDS", 0.0)
    monkeypatch.setattr("resumable_pool.run.screen.LOG_SECONDS", 0.0)
    stage = Stage(folder)
    runner = ResumableRunner(
        functions.number_in, "in/*.txt", "r.pkl", max_workers=2, initializer=wait_for_cue,
        progress=True,
    )  # fmt: skip
    thread = threading.Thread(target=runner.run)
    thread.start()
    stage.wait_begun(2)
    shown = ""
    while "starting 2 workers, " not in shown:
        shown += capsys.readouterr().err
    stage.cue(2)
    thread.join(PATIENCE)
    stage.close()
    assert "starting" not in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal")
def test_nothing_to_do_says_how_to_do_it_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To somebody who watches."""
    runner = ResumableRunner(functions.number_in, "in/*.txt", "r.pkl")
    runner.run()
    runner.run()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    runner.run()
    assert capsys.readouterr().err == (
        "nothing to do: no file is new. To do all of them again, delete or rename 'r.pkl'\n"
    )


def test_a_mappings_repr_has_counts(folder: Path) -> None:
    """Of results and failures; nobody wants all of them in a notebook's cell."""
    runner = ResumableRunner(odd_ones_fail, "in/*.txt", "r.pkl")
    runner.run()
    path = os.path.abspath("r.pkl")
    assert repr(runner.results) == f"<PickleFile {quoted(path)}: 5 results, 5 failures>"
    assert repr(runner.failures) == "<5 failures>"
    Path("r.pkl").write_text("something else")
    assert repr(runner.results) == f"<PickleFile {quoted(path)}: cannot be read: CheckpointError>"


def test_the_constructors_errors_have_no_inner_frames(folder: Path) -> None:
    """What is wrong is in the call, and so is the last frame but one."""
    with pytest.raises(TypeError, match="max_workers must be an int") as caught:
        ResumableRunner(odd_ones_fail, "in/*.txt", "r.pkl", max_workers="4")  # type: ignore[arg-type]
    assert [entry.name for entry in caught.traceback][1:] == ["__init__"]


def test_workers_are_named_with_their_slot(folder: Path, method: str) -> None:
    """So a log that they write tells them apart."""
    runner = ResumableRunner(worker_name, "in/*.txt", "r.pkl", max_workers=2, mp_context=method)
    assert runner.run().ok
    assert all(name == f"resumable_pool worker {slot}" for slot, name in runner.results.values())


@not_on_windows("fork")
@pytest.mark.parametrize("imports", ["", "import logging; logging.basicConfig(filename='log')"])
def test_a_program_that_does_not_log_gets_no_logging(folder: Path, imports: str) -> None:
    """It is not imported for us, and a warning does not come out on stderr a second time."""
    script = f"""\
import sys
import threading
{imports}
from resumable_pool import Report, ResumableRunner

def fail(path):
    raise ValueError("no")

if __name__ == "__main__":
    ResumableRunner(fail, "in/*.txt", "r.pkl", progress=False, mp_context="fork").run()
    print("logging" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout == f"{bool(imports)}\n"
    if imports:
        assert (folder / "log").read_text().count("WARNING:resumable_pool:") == 10
