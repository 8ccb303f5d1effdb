"""What a user's program can be: a script with classes of its own, without a guard, on stdin, ..."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import resumable_pool

from .conftest import IMPORTING
from .functions import calls
from .kill.scripts import ROOT


def python(
    *arguments: str, stdin: str = "", stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run Python in the current folder, as a user would."""
    return subprocess.run(
        [sys.executable, *arguments],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        check=False,
    )


CLASSES = """
import collections, dataclasses, enum, pickle, sys
from resumable_pool import ResumableRunner, open_checkpoint

@dataclasses.dataclass
class Text:
    words: list

    class Inner:
        def __eq__(self, other):
            return type(self) is type(other)

Point = collections.namedtuple("Point", "x y")
Color = enum.Enum("Color", "RED GREEN")

def work(path):
    with open(path) as file:
        return Text([file.read(), Text.Inner(), Point(1, 2), Color.RED])

if __name__ == "__main__":
    runner = ResumableRunner(work, "in/*.txt", "result.pkl", mp_context=sys.argv[1])
    print(runner.run())
    assert runner.results["in/03.txt"] == Text(["3", Text.Inner(), Point(1, 2), Color.RED])
    assert len(pickle.load(open("result.pkl", "rb"))) == 10
"""


def test_classes_of_the_script_are_read_back_by_it(folder: Path, method: str) -> None:
    """They are named after the script, under every start method, so a plain `pickle.load` works."""
    Path("script.py").write_text(CLASSES)
    for number in ("10 done", "10 done before"):
        done = python("script.py", method)
        assert (done.returncode, done.stderr) == (0, "")
        assert number in done.stdout
    assert b"__mp_main__" not in Path("result.pkl").read_bytes()


UNGUARDED = """
from resumable_pool import ResumableRunner
from tests.functions import number_in
print(ResumableRunner(number_in, "in/*.txt", "result.pkl", mp_context="{method}").run())
"""


@pytest.mark.parametrize("method", IMPORTING)
def test_without_a_main_guard_the_error_says_so(folder: Path, method: str) -> None:
    """In moments, with one traceback, and before the checkpoint is touched."""
    Path("script.py").write_text(UNGUARDED.format(method=method))
    done = python("script.py")
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert "WorkerStartError" in done.stderr
    assert "if __name__ == '__main__'" in done.stderr
    assert not Path("result.pkl").exists()


ON_STDIN = """
from resumable_pool import ResumableRunner
def work(path):
    return path
print(ResumableRunner(work, "in/*.txt", "result.pkl"{options}).run())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere fork is not safe as a default")
@pytest.mark.parametrize("how", [("-",), ("-c", ON_STDIN.format(options=""))])
def test_a_program_without_a_file_runs_by_default(folder: Path, how: tuple[str, ...]) -> None:
    """From stdin or `-c`, as in a notebook: forked, because nobody could import it."""
    done = python(*how, stdin=ON_STDIN.format(options=""))
    assert (done.returncode, done.stderr) == (0, "")
    assert pickle.loads(Path("result.pkl").read_bytes())["in/03.txt"] == "in/03.txt"


SCRIPT_AND_PROMPT = """
import multiprocessing
from resumable_pool import ResumableRunner

def work(path):
    return "of the script"

def run(result):
    runner = ResumableRunner(work, "in/*.txt", result, max_workers=1)
    print(runner.run(), *set(runner.results.values()), sep="; ")

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")  # as by default from Python 3.14 on
    run("script.pkl")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere fork is not safe as a default")
def test_what_is_called_is_what_the_prompt_has(folder: Path) -> None:
    """Not what the fork server has: it has loaded the script once, and nothing that was defined
    after that, be it at the prompt or by running the script again."""
    Path("script.py").write_text(SCRIPT_AND_PROMPT)
    prompt = "def work(path): return 'of the prompt'\n\nrun('prompt.pkl')\n"
    done = python("-i", "script.py", stdin=prompt)
    assert [line.split("; ")[1] for line in done.stdout.splitlines()] == [
        "of the script",
        "of the prompt",
    ], done.stderr


@pytest.mark.parametrize("method", IMPORTING)
@pytest.mark.parametrize("how", ["-", "-c"])
def test_a_program_without_a_file_cannot_be_spawned(folder: Path, method: str, how: str) -> None:
    """The constructor says so, and what to do."""
    program = ON_STDIN.format(options=f", mp_context={method!r}")
    done = python(*(["-c", program] if how == "-c" else ["-"]), stdin=program)
    assert done.returncode == 1
    assert "ValueError: function <function work" in done.stderr
    assert f"cannot be sent to a new process, as the start method {method!r} needs" in done.stderr
    assert "move it to the top level of a module" in done.stderr


IN_MAIN = """
import multiprocessing, sys
from resumable_pool import ResumableRunner
def work(path):
    return path
if __name__ == "__main__":
    default, *asked = sys.argv[1:]
    multiprocessing.set_start_method(default)
    print(ResumableRunner(work, "in/*.txt", "result.pkl", mp_context=(asked or [None])[0]).run())
"""


@pytest.mark.parametrize("how", [["-m", "package"], ["package"], ["package.zip"]])
def test_no_process_is_sent_what_a_package_s_main_defines(folder: Path, how: list[str]) -> None:
    """It is called `package.__main__` or so, and multiprocessing imports no module of that name:
    it is forked, or who has asked for another way is told so."""
    Path("package").mkdir()
    Path("package/__main__.py").write_text(IN_MAIN)
    with zipfile.ZipFile("package.zip", "w") as zipped:
        zipped.write("package/__main__.py", "__main__.py")
    done = python(*how, "spawn", "spawn")
    assert done.returncode == 1
    assert "ValueError: function <function work" in done.stderr
    assert "it is defined in a __main__.py, which multiprocessing does not import" in done.stderr
    if sys.platform == "linux":
        done = python(*how, "spawn")
        assert (done.returncode, done.stderr) == (0, "")
        assert "10 done" in done.stdout


GUARDED_FUNCTION = """
from resumable_pool import ResumableRunner
if __name__ == "__main__":
    def work(path):
        return path
    ResumableRunner(work, "in/*.txt", "result.pkl", mp_context="spawn").run()
"""


def test_a_function_that_workers_cannot_find_is_an_error(folder: Path) -> None:
    """One that only the script itself defines: the error has its name and what to do."""
    Path("script.py").write_text(GUARDED_FUNCTION)
    done = python("script.py")
    assert done.returncode == 1
    assert "WorkerStartError: a worker cannot start" in done.stderr
    assert "'work'" in done.stderr
    assert "cannot be loaded in a new process; it must be importable there" in done.stderr


QUIET = """
import sys
from resumable_pool import ResumableRunner
from tests.functions import number_in
if __name__ == "__main__":
    ResumableRunner(number_in, "in/*.txt", "result.pkl", progress={progress}).run()
"""


@pytest.mark.parametrize("progress", [None, False, True])
def test_off_a_terminal_only_what_is_asked_for_is_written(
    folder: Path, progress: bool | None
) -> None:
    """No line of progress goes into a log file, unless `progress=True`."""
    Path("script.py").write_text(QUIET.format(progress=progress))
    done = python("script.py")
    assert (done.returncode, done.stdout) == (0, "")
    assert ("10 files" in done.stderr) is (progress is True)


HELD = """
from resumable_pool import ResumableRunner
from tests.functions import number_slowly
if __name__ == "__main__":
    runner = ResumableRunner(number_slowly, "in/*.txt", "result.pkl", mp_context={method!r})
    outcomes = runner.as_completed()
    next(outcomes)
    print("over")
"""


def test_a_program_that_still_holds_a_loop_ends(folder: Path, method: str) -> None:
    """What is in work is finished and saved, as if the loop had been left."""
    Path("script.py").write_text(HELD.format(method=method))
    done = python("script.py")
    assert (done.returncode, done.stdout) == (0, "over\n")
    assert len(pickle.loads(Path("result.pkl").read_bytes())) == len(calls())


def old_pythons() -> list[str]:
    """Those from before 3.10 that this machine has: on the PATH, or kept by pyenv."""
    root = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    kept = [str(path) for path in root.glob("versions/3.[6-9].*/bin/python3")]
    found = [shutil.which(f"python3.{minor}") for minor in range(6, 10)]
    return [python for python in [*filter(None, found), *kept] if _runs(python)]


def _runs(python: str) -> bool:  # pyenv has a name for each, also where it is not installed
    return subprocess.run([python, "-c", ""], capture_output=True).returncode == 0


@pytest.mark.skipif(not old_pythons(), reason="there is no Python before 3.10 here")
def test_an_older_python_is_told_so_in_words() -> None:
    """By the import, and not by the first line that it cannot run."""
    where = Path(resumable_pool.__file__).parents[1]  # perhaps where the wheel was installed
    code = f"import sys; sys.path.insert(0, {str(where)!r}); import resumable_pool"
    for old in old_pythons():
        done = subprocess.run([old, "-c", code], capture_output=True, text=True)
        last = done.stderr.rstrip().split("\n")[-1]
        assert last.startswith("ImportError: resumable_pool needs Python 3.10 or newer; this is 3.")
