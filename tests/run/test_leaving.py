"""A worker that leaves in peace leaves like a program, and so does the saver; but not for ever."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import Outcome, ResumableRunner
from resumable_pool.between import pipes
from resumable_pool.between.frames import FrameReader
from resumable_pool.between.messages import Done, Hello
from resumable_pool.worker.process import run_worker

from ..conftest import not_on_windows
from ..functions import number_in
from ..hostile_functions import wait_for_ever
from ..test_scripts import python

_kept: list[Any] = []


def _touch(name: str) -> None:
    Path(f"left-{name}").touch()


def begin() -> None:
    """Register, start and open all that a program may have when it ends."""
    atexit.register(_touch, "exit handler")
    Finalize(None, _touch, ("finalizer",), exitpriority=1)
    weakref.finalize(begin, _touch, "weak finalizer")
    child = multiprocessing.Process(target=wait_for_ever, daemon=True)
    child.start()
    Path("daemonic child").write_text(str(child.pid))
    pool = multiprocessing.Pool(1)
    Path("child of the pool").write_text(str(pool.apply(os.getpid)))
    thread = threading.Thread(target=_wait_for_main)
    thread.start()
    rows = open("rows.txt", "w")  # noqa: SIM115
    _kept[:] = [child, pool, rows, tempfile.TemporaryDirectory(prefix="kept-", dir=".")]


def _wait_for_main() -> None:
    threading.main_thread().join()
    _touch("thread")


def write_row(path: str) -> int:
    _kept[2].write(path + "\n")
    return number_in(path)


LEFT = ["exit handler", "finalizer", "weak finalizer", "thread"]


def test_what_a_worker_has_registered_started_and_opened_is_ended(
    folder: Path, method: str
) -> None:
    """Exit handlers and finalizers run, threads are waited for, daemonic children and pools end,
    files are written and temporary folders removed."""
    options: Any = {"max_workers": 1, "initializer": begin, "progress": False}
    runner = ResumableRunner(write_row, "in/*.txt", "result.pkl", mp_context=method, **options)
    assert runner.run().completed == 10
    assert sorted(path.name for path in folder.glob("left-*")) == sorted(f"left-{n}" for n in LEFT)
    assert Path("rows.txt").read_text().splitlines() == [f"in/{n:02}.txt" for n in range(10)]
    assert [*folder.glob("kept-*")] == []
    for child in ("daemonic child", "child of the pool") if sys.platform != "win32" else ():
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(child).read_text()), 0)


IN_A_POOL = """
import asyncio, concurrent.futures, multiprocessing, sys
from resumable_pool import ResumableRunner

def work(path):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(len, path).result()
    kept.submit(len, path).result()
    return path

def begin():
    global kept
    kept = concurrent.futures.ThreadPoolExecutor(1)

async def main():
    options = {"max_workers": 2, "mp_context": sys.argv[1], "initializer": begin}
    return await asyncio.to_thread(ResumableRunner(work, "in/*.txt", "result.pkl", **options).run)

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[1])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(len, "").result()
        assert asyncio.run(main()).completed == 10
        assert pool.submit(len, "four").result() == 4
"""


def test_a_run_may_be_in_a_thread_of_a_pool(folder: Path, method: str) -> None:
    """Its processes, which may be forked in it, do not join themselves; the pools that a function
    has made are ended."""
    Path("script.py").write_text(IN_A_POOL)
    done = python("script.py", method)
    assert done.returncode == 0, done.stderr


TORN_DOWN = """
import multiprocessing
from pathlib import Path
from resumable_pool import ResumableRunner

class Kept:
    def __init__(self):
        self.name = multiprocessing.current_process().name

    def __del__(self, touch=Path.touch, path=Path):
        touch(path(f"left-{self.name}"))

kept = Kept()

def work(path):
    return path

if __name__ == "__main__":
    options = {"max_workers": 1, "mp_context": "spawn"}
    assert ResumableRunner(work, "in/*.txt", "result.pkl", **options).run().ok
"""


def test_only_a_worker_that_is_spawned_is_taken_apart(folder: Path) -> None:
    """A library in C that the function uses may wait for that. One that the saver's hooks use has
    `close_saver`, and the end of the run would wait."""
    Path("script.py").write_text(TORN_DOWN)
    done = python("script.py")
    assert done.returncode == 0, done.stderr
    left = sorted(path.name for path in folder.glob("left-*"))
    assert left == ["left-MainProcess", "left-resumable_pool worker 0"]


IN_THE_END = """
import sys, threading
from resumable_pool import ResumableRunner

def work(path):
    return path

def main():
    threading.main_thread().join()
    options = {"max_workers": 1, "max_tasks_per_child": 5, "mp_context": sys.argv[1]}
    print(ResumableRunner(work, "in/*.txt", "result.pkl", **options).run())

if __name__ == "__main__":
    threading.Thread(target=main).start()
"""


def _skip_where_python_does_not_fork_at_its_end(method: str) -> None:
    if method == "fork" and sys.version_info[:2] == (3, 12) and sys.version_info < (3, 12, 2):
        pytest.skip("fork: python/cpython#113964, mended in 3.12.2")


def test_a_run_may_outlive_the_last_line_of_the_script(folder: Path, method: str) -> None:
    """In a thread: what is spawned still finds the function."""
    _skip_where_python_does_not_fork_at_its_end(method)
    Path("script.py").write_text(IN_THE_END)
    done = python("script.py", method)
    assert "10 files: 10 done" in done.stdout, done.stderr


INHERITED = """
import atexit, logging.handlers, multiprocessing.util, os, sys, tempfile, weakref
from resumable_pool import ResumableRunner

def work(path):
    return path

if __name__ == "__main__":
    folder = tempfile.TemporaryDirectory(dir=".")
    rows = open("rows.txt", "w")
    rows.write("a row\\n")
    atexit.register(os.write, 1, b"exit handler\\n")
    weakref.finalize(work, os.write, 1, b"finalizer\\n")
    multiprocessing.util.Finalize(None, os.write, (1, b"Finalize\\n"), exitpriority=1)
    runner = ResumableRunner(work, "in/*.txt", "result.pkl", max_workers=2, mp_context=sys.argv[1])
    assert runner.run().completed == 10
    assert os.path.isdir(folder.name)
    rows.close()
    assert open("rows.txt").read() == "a row\\n"
"""


def test_what_the_program_has_registered_is_left_to_it(folder: Path, method: str) -> None:
    """Though what is forked inherits it."""
    Path("script.py").write_text(INHERITED)
    done = python("script.py", method)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split("\n")) == ["", "Finalize", "exit handler", "finalizer"]


WORK = """
import os, tempfile, weakref
from resumable_pool import ResumableRunner

folder = tempfile.TemporaryDirectory(dir=".")

def work(path):
    assert os.path.isdir(folder.name)
    weakref.finalize(folder, os.write, 1, b"finalizer\\n")
"""

PRELOADING = """
import multiprocessing
from work import ResumableRunner, work

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["work"])
    runner = ResumableRunner(
        work, "in/*.txt", "r.pkl", max_workers=1, max_tasks_per_child=5, mp_context="forkserver"
    )
    print(runner.run().completed)
"""


@not_on_windows("there is no fork server")
def test_what_the_fork_server_has_loaded_is_left_to_it(folder: Path) -> None:
    """Its children are copies of it, as forked ones are of the program: the first to leave does not
    remove a temporary folder that all others have as well, and does what it has registered itself.
    (From Python 3.14 on, the fork server is the default, and loads the script.)"""
    Path("work.py").write_text(WORK)
    Path("script.py").write_text(PRELOADING)
    done = python("script.py")
    assert done.stdout == "finalizer\n" * 10 + "10\n", done.stderr


LATE_IMPORT = """
import os, tempfile, weakref

folder = tempfile.TemporaryDirectory(dir=".")
log = open("log.txt", "a")
log.write(f"loaded by {os.getpid()}\\n")

def work(path):
    assert os.path.isdir(folder.name)
    weakref.finalize(folder, os.write, 1, b"finalizer\\n")

if __name__ == "__main__":
    from resumable_pool import ResumableRunner

    options = {"max_workers": 1, "max_tasks_per_child": 5, "mp_context": "forkserver"}
    print(ResumableRunner(work, "in/*.txt", "r.pkl", **options).run().completed)
"""


@not_on_windows("there is no fork server")
def test_so_is_what_it_has_loaded_without_this_package(folder: Path) -> None:
    """As it does from Python 3.14 on where a script imports this under its guard, or lazily."""
    Path("script.py").write_text(LATE_IMPORT)
    done = python("script.py")
    assert done.stdout == "finalizer\n" * 10 + "10\n", done.stderr
    lines = Path("log.txt").read_text().splitlines()
    assert len(lines) == len({*lines}), lines


LATE = """
import atexit, multiprocessing, os, sys, time
from resumable_pool import ResumableRunner

def work(path):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    child.start()
    return child.pid

def run(result):
    runner = ResumableRunner(work, "in/*.txt", result, max_workers=2, mp_context=sys.argv[1])
    runner.run()
    return list(runner.results.values())

def late():
    for pid in run("late.pkl"):
        try:
            os.kill(pid, 0)
            print("lives")
        except ProcessLookupError:
            print("is gone")

if __name__ == "__main__":
    atexit.register(late)
    run("early.pkl")
"""


@not_on_windows("the children are forked")
def test_a_run_in_an_exit_handler_leaves_nothing_behind(folder: Path, method: str) -> None:
    """Also where multiprocessing believes that this program, of which workers are forked, is at its
    end: it was imported after that handler was registered, and so has run its own before."""
    _skip_where_python_does_not_fork_at_its_end("fork")  # as the function does
    Path("script.py").write_text(LATE)
    done = python("script.py", method)
    assert done.stdout == "is gone\n" * 10, done.stderr


TALKATIVE = """
import atexit, sys
from resumable_pool import ResumableRunner

def work(path):
    return path

class Talkative(ResumableRunner):
    def open_saver(self):
        print("opened")
        atexit.register(print, "exit handler")

    def save(self, outcomes):
        print("saved", len(outcomes))
        super().save(outcomes)

if __name__ == "__main__":
    Talkative(work, "in/00.txt", "result.pkl", mp_context=sys.argv[1]).run()
"""


def test_what_hooks_of_the_saver_print_comes_out(folder: Path, method: str) -> None:
    """Also where stdout is a file or a pipe; and the saver leaves like a program."""
    Path("script.py").write_text(TALKATIVE)
    assert python("script.py", method).stdout == "opened\nsaved 1\nexit handler\n"


@pytest.mark.parametrize("hooks", ["Talkative", "ResumableRunner"])
def test_what_nobody_reads_any_more_ends_no_process(folder: Path, method: str, hooks: str) -> None:
    """What is in a buffer of the saver, or of a worker, when the reader of stdout is gone (it is
    `head`, say): all is saved, so the run does not fail, and no process leaves with a traceback."""
    script = TALKATIVE.replace("return path", "print(path); return path")
    Path("script.py").write_text(script.replace("Talkative(work", hooks + "(work"))
    reader, writer = os.pipe()
    os.close(reader)
    done = python("script.py", method, stdout=writer)
    os.close(writer)
    words = [line for line in done.stderr.splitlines() if "Error" in line]
    assert (done.returncode, words) == (0, [])


def hang_at_exit() -> None:
    atexit.register(threading.Event().wait)


class HangsAtExit(ResumableRunner[int]):
    def open_saver(self) -> None:
        hang_at_exit()

    def save(self, outcomes: Sequence[Outcome[int]]) -> None:
        super().save(outcomes)


def test_nobody_is_held_by_an_exit_handler_that_hangs(folder: Path) -> None:
    """Of a worker or of the saver. While one worker leaves, the others are dealt files."""
    options: Any = {"max_workers": 2, "initializer": hang_at_exit, "progress": False}
    runner = HangsAtExit(number_in, "in/*.txt", "result.pkl", **options)
    report = runner.run()
    assert (report.completed, report.failed) == (10, 0)


def test_coverage_measures_what_runs_in_workers(folder: Path) -> None:
    """As in any process of multiprocessing."""
    pytest.importorskip("coverage")
    Path("script.py").write_text(
        """
import sys
from resumable_pool import ResumableRunner

def work(path):
    return path  # measured

if __name__ == "__main__":
    ResumableRunner(work, "in/*.txt", "r.pkl", mp_context=sys.argv[1], max_workers=2).run()
"""
    )
    Path(".coveragerc").write_text("[run]\nconcurrency = multiprocessing\nparallel = true\n")
    for method in ("fork", "spawn"):
        ran = python("-m", "coverage", "run", "script.py", method)
        assert ran.returncode == 0, ran.stderr
        python("-m", "coverage", "combine")
        lines = python("-m", "coverage", "report", "-m", "--include=script.py").stdout
        assert "100%" in lines, lines
        Path("r.pkl").unlink()


@not_on_windows("pipes of multiprocessing's own, which a worker reads otherwise")
def test_a_worker_that_nobody_needs_any_more_leaves_in_peace() -> None:
    """Others were quicker while it was starting. That is no loss, and nobody is told of one."""
    context = multiprocessing.get_context("spawn")
    (tasks, our_tasks), (our_results, results), (_, words) = (context.Pipe(False) for _ in "abc")
    arguments = (tasks, words, results, None, 0, os.getcwd())
    worker = context.Process(target=run_worker, args=arguments)
    worker.start()
    for end in (our_tasks, results):
        end.close()
    reader = FrameReader(our_results)
    said: list[Any] = []
    while not reader.at_end:
        pipes.wait([our_results], None)
        said += reader.messages()
    worker.join()
    assert [type(message) for message in said] == [Hello, Done]
