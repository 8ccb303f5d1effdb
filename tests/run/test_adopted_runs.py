"""Whole runs on the `result.pkl` of an older, hand-written script."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from resumable_pool import CheckpointError, ResumableRunner, open_checkpoint

from .. import functions
from ..test_scripts import CLASSES, python

pytestmark = pytest.mark.usefixtures("nothing_left")

ALL = [f"in/{number:02}.txt" for number in range(10)]


def dump(values: object) -> bytes:
    Path("result.pkl").write_bytes(pickle.dumps(values))
    return Path("result.pkl").read_bytes()


def runner(**options: object) -> ResumableRunner[int]:
    return ResumableRunner(
        functions.number_in,
        "in/*.txt",
        "result.pkl",
        max_workers=2,
        **options,  # type: ignore[arg-type]
    )


def test_a_run_goes_on_from_it(
    folder: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """What it has is not processed again."""
    before = dump({path: f"old {path}" for path in ALL[:6]} | {"gone": 0})
    first = runner(mp_context=method)
    assert str(first.run()).startswith("10 files: 4 done, 6 done before, in")
    assert functions.calls() == ALL[6:]
    expected = {path: f"old {path}" for path in ALL[:6]} | {"gone": 0}
    expected |= {path: number for number, path in enumerate(ALL) if number >= 6}
    assert pickle.loads(Path("result.pkl").read_bytes()) == expected == dict(first.results)
    assert Path("result.pkl.bak").read_bytes() == before
    error = capfd.readouterr().err
    assert error.count("adopted the results of 7 files from a plain pickle") == 1
    assert "result.pkl.bak" in error
    assert runner(mp_context=method).run().skipped == 10
    assert capfd.readouterr().err == ""


def test_a_run_with_nothing_to_do_converts_it_too(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """So that it is a checkpoint for whoever looks at it then."""
    dump(dict.fromkeys(ALL, 1))
    assert runner().run().skipped == 10
    assert "adopted the results of 10 files" in capfd.readouterr().err
    assert dict(open_checkpoint("result.pkl")) == dict.fromkeys(ALL, 1)


def test_base_names_are_explained(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The run says loudly why it does everything again, and what to do about it."""
    dump({Path(path).name: "old" for path in ALL})
    assert runner().run().completed == 10
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "the same names" in line]
    assert "10 of the 10 files without a result have the same names as files that have one" in line
    assert 'python -m resumable_pool move "result.pkl" "" "in/". Otherwise' in line
    assert runner().run().skipped == 10
    assert capfd.readouterr().err == ""


def test_what_cannot_be_adopted_ends_the_run_before_the_first_call(
    folder: Path, method: str
) -> None:
    """The error says why; nothing is changed."""
    before = dump({"in/00.txt": functions.FailsToUnpickle()})
    with pytest.raises(CheckpointError, match="is a plain pickle, but it cannot be unpickled"):
        runner(mp_context=method).run()
    assert not functions.CALLS.exists()
    assert Path("result.pkl").read_bytes() == before


def test_classes_of_the_script_are_adopted_by_it(folder: Path, method: str) -> None:
    """They are found there, and still named after the script afterwards."""
    script = CLASSES.replace(
        "    runner =",
        """    if len(sys.argv) > 2:
        results = {f"in/{n:02}.txt": work(f"in/{n:02}.txt") for n in range(9)}
        pickle.dump(results, open("result.pkl", "wb"))
    runner =""",
    )
    assert script != CLASSES
    Path("script.py").write_text(script)
    done = python("script.py", method, "by hand")
    assert "adopted the results of 9 files" in done.stderr
    assert (done.returncode, done.stdout.split(", in")[0]) == (0, "10 files: 1 done, 9 done before")
    values = Path("result.pkl").read_bytes()
    assert b"__mp_main__" not in values
    assert values.count(b"c__main__\nPoint\n") == 10
    assert len(open_checkpoint("result.pkl")) == 10
