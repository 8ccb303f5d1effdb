"""A run belongs to one process: what a forked copy of it does harms nobody; and what ends a run is
told in the process that it belongs to, however its loop is left."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from resumable_pool import open_checkpoint

from ..conftest import CHEAPEST
from ..test_scripts import python

needs_fork = pytest.mark.skipif(sys.platform == "win32", reason="nothing forks there")

# What may be left is given: how a loop is left, and what happens before.
FORKS = """
import gc, os, sys, time
from resumable_pool import ResumableRunner

def work(path):
    time.sleep(0.05)
    return path

def fork():
    pid = os.fork()
    if pid == 0:
        {child}
    _, status = os.waitpid(pid, 0)
    print("child:", os.waitstatus_to_exitcode(status), flush=True)

class Telling(ResumableRunner):
    forked = False

    def on_saved(self, outcome):
        if "hook" in sys.argv and not Telling.forked:
            Telling.forked = True
            fork()

def main():
    runner = Telling(
        work, "in/*.txt", "result.pkl", max_workers=2, mp_context=sys.argv[1], progress=True
    )
    if "hook" in sys.argv:
        print(runner.run())
        return
    loop = runner.as_completed()
    for number, outcome in enumerate(loop):
        if number == 0:
            fork()
    print(len(runner.results), "results", len(runner.failures), "failures")

if __name__ == "__main__":
    main()
"""

CHILDREN = {
    "exits": "sys.exit(3)",
    "raises": "raise SystemExit(3)",
    "collects garbage": "loop = runner = None; gc.collect(); sys.exit(3)",
    "returns": "return",
}


@needs_fork
@pytest.mark.parametrize(
    "child",
    ["exits", *(pytest.param(c, marks=pytest.mark.alike) for c in CHILDREN if c != "exits")],
)
@pytest.mark.parametrize("where", ["hook", "loop"])
def test_a_forked_copy_ends_and_prints_nothing(
    folder: Path, method: str, where: str, child: str
) -> None:
    """Nor are the original's workers ended by it. One that goes on is told that it cannot."""
    Path("script.py").write_text(FORKS.format(child=CHILDREN[child]))
    done = python("script.py", method, where)
    assert done.returncode == 0, done.stderr
    if child == "returns":
        assert "child: 1" in done.stdout
        assert "RuntimeError: this run belongs to process" in done.stderr
        assert done.stderr.count("Traceback") == 1
    else:
        assert "child: 3" in done.stdout
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
    for text in ("10 results 0 failures", "10 files: 10 done"):
        assert done.stdout.count(text) == (text.startswith("10 files") == (where == "hook"))


IN_THE_MIDDLE = """
import os, signal, sys, threading, time
from importlib.machinery import PathFinder
from resumable_pool import ResumableRunner

importing = threading.Event()

class Slow:
    def find_spec(self, name, path, target=None):
        if not name.endswith(sys.argv[1]):
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def slowly(module):  # not while it is looked for: Python lets nobody fork then
            importing.set()
            time.sleep(0.5)
            execute(module)

        spec.loader.exec_module = slowly
        return spec

def run(result):
    options = {"mp_context": sys.argv[2], "timeout": 60}
    print(ResumableRunner(len, "in/*.txt", result, **options).run(), flush=True)

if __name__ == "__main__":
    sys.meta_path.insert(0, Slow())
    thread = threading.Thread(target=run, args=["one.pkl"])
    thread.start()
    importing.wait()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        run("other.pkl")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    thread.join()
"""


@needs_fork
@pytest.mark.parametrize(
    ("module", "method"),
    [
        ("between.pipes", "fork"),
        ("run.loop", "fork"),
        ("multiprocessing.popen_fork", "fork"),
        ("multiprocessing.popen_spawn_posix", "spawn"),
    ],
)
def test_what_is_forked_while_a_run_begins_can_run_too(
    folder: Path, module: str, method: str
) -> None:
    """By another thread, in the middle of an import: that would never end in the copy."""
    Path("script.py").write_text(IN_THE_MIDDLE)
    done = python("-W", "ignore", "script.py", module, method)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("10 done") == 2


INTERRUPTED = """
import atexit, os, signal, sys, time
from resumable_pool import ResumableRunner

def work(path):
    return path

def leave_early(number):
    runner = ResumableRunner(work, "in/*.txt", "result.pkl", max_workers=2, mp_context=sys.argv[1])
    for outcome in runner.as_completed():
        os.kill(os.getpid(), number)
        {leave}

if __name__ == "__main__":
    atexit.register(print, "exit handler")
    print("written")
    {main}
"""

LEAVE = {"break": "break", "return": "return", "exception": "raise ValueError('mine')"}


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot interrupt itself there")
@pytest.mark.parametrize("leave", LEAVE)
def test_a_ctrl_c_is_not_swallowed_by_leaving_the_loop(
    folder: Path, method: str, leave: str
) -> None:
    """It is raised where the loop was left: before anything else that the program does."""
    main = """
    try:
        leave_early(signal.SIGINT)
        print("went on")
    except KeyboardInterrupt:
        print("interrupted")
    except ValueError:
        print("the error")
    """
    Path("script.py").write_text(INTERRUPTED.format(leave=LEAVE[leave], main=main))
    done = python("script.py", method)
    assert "went on" not in done.stdout
    assert "interrupted" in done.stdout or leave == "exception"
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot interrupt itself there")
def test_nor_by_a_loop_in_the_last_line(folder: Path) -> None:
    """The program ends as by any Ctrl-C: exit handlers run, what was printed comes out."""
    main = "leave_early(signal.SIGINT)"
    Path("script.py").write_text(INTERRUPTED.format(leave="break", main=main))
    done = python("script.py", "fork")
    assert done.returncode == -signal.SIGINT
    assert done.stdout == "written\nexit handler\n"
    assert done.stderr.endswith("KeyboardInterrupt\n")
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot interrupt itself there")
def test_a_loop_that_has_raised_ends_the_program_with_that(folder: Path) -> None:
    """What Ctrl-C raises does not strike while Python writes down what is wrong with the loop."""
    main = "leave_early(signal.SIGINT)"
    Path("script.py").write_text(INTERRUPTED.format(leave=LEAVE["exception"], main=main))
    done = python("script.py", "fork")
    assert (done.returncode, done.stdout) == (1, "written\nexit handler\n"), done.stderr
    assert done.stderr.endswith("\nValueError: mine\n")
    assert "in leave_early\n    raise ValueError('mine')\n" in done.stderr
    assert "KeyboardInterrupt" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_a_handler_that_raises_is_heard_after_a_loop_that_was_left(folder: Path) -> None:
    """As it would be after one that was not."""
    main = """
    def handler(number, frame):
        raise ConnectionError("from the handler")
    signal.signal(signal.SIGTERM, handler)
    try:
        leave_early(signal.SIGTERM)
        print("went on")
    except ConnectionError as error:
        print("caught", error)
    """
    Path("script.py").write_text(INTERRUPTED.format(leave="break", main=main))
    done = python("script.py", "fork")
    assert "caught from the handler" in done.stdout
    assert "went on" not in done.stdout


FAILING = """
import os, signal, sys
from resumable_pool import ResumableRunner

class Full(ResumableRunner):
    saved = 0

    def save(self, outcomes):
        Full.saved += 1
        if Full.saved > {after}:
            raise OSError(28, "No space left on device")
        super().save(outcomes)

    def on_saved(self, outcome):
        {on_saved}

MAIN = os.getpid() if __name__ == "__main__" else None  # where it is forked, as it was there

def work(path):
    {work}
    return path

if __name__ == "__main__":
    runner = Full(work, "in/*.txt", "result.pkl", max_workers=1, mp_context={method!r})
    try:
        {how}
        print("went on")
    except Exception as error:
        print("caught", type(error).__name__)
    except KeyboardInterrupt as error:
        print("interrupted after", type(error.__context__).__name__)
"""


def test_an_error_of_the_run_is_raised_where_its_loop_was_left(folder: Path) -> None:
    """What could not be saved was in work when the loop was left."""
    how = "\n        ".join(["for outcome in runner.as_completed():", "    break"])
    parts = {"on_saved": "pass", "work": "pass", "how": how, "method": CHEAPEST}
    Path("script.py").write_text(FAILING.format(after=1, **parts))
    done = python("script.py")
    assert done.stdout == "caught SaverError\n", done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot interrupt another there")
@pytest.mark.parametrize("why", ["SaverError", "KeyError"])
def test_a_ctrl_c_does_not_hide_why_the_run_failed(folder: Path, why: str) -> None:
    """That is its context, and a line on the terminal."""
    kill = "os.kill(MAIN, signal.SIGINT)"
    saved = f"{kill}; raise KeyError('mine')"
    lost = why == "SaverError"
    on_saved, work, after = ("pass", kill, 0) if lost else (saved, "pass", 99)
    parts = {"on_saved": on_saved, "work": work, "how": "runner.run()", "method": CHEAPEST}
    Path("script.py").write_text(FAILING.format(after=after, **parts))
    done = python("script.py")
    assert done.stdout == f"interrupted after {why}\n", done.stderr
    assert f"\n{why}: " in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio handles no signals there")
def test_a_signal_is_handled_once_by_asyncio(folder: Path) -> None:
    """It has heard of it by the descriptor that wakes it, and is not told anew."""
    Path("script.py").write_text(
        """
import asyncio, os, signal
from resumable_pool import ResumableRunner

def work(path):
    os.kill(os.getppid(), signal.SIGTERM)
    return path

async def main():
    handled = asyncio.Queue()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, handled.put_nowait, "handled")
    ResumableRunner(work, "in/00.txt", "result.pkl", mp_context="fork", progress=False).run()
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, handled.put_nowait, "the next")
    os.kill(os.getpid(), signal.SIGHUP)
    while (signal_name := await handled.get()) != "the next":
        print(signal_name)

asyncio.run(main())
"""
    )
    assert python("script.py").stdout == "handled\n"


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio handles no signals there")
def test_an_error_where_a_loop_was_left_is_no_ctrl_c_for_asyncio(folder: Path) -> None:
    """Python is made to raise it by a signal, which goes to the descriptor that wakes asyncio."""
    how = "\n        ".join(
        [
            "async def main():",
            "    loop = asyncio.get_running_loop()",
            "    loop.add_signal_handler(signal.SIGINT, print, 'a Ctrl-C')",
            "    try:",
            "        for outcome in runner.as_completed():",
            "            break",
            "    finally:",
            "        await asyncio.sleep(0.2)",
            "import asyncio",
            "asyncio.run(main())",
        ]
    )
    parts = {"on_saved": "pass", "work": "pass", "how": how, "method": CHEAPEST}
    Path("script.py").write_text(FAILING.format(after=1, **parts))
    done = python("script.py")
    assert done.stdout == "caught SaverError\n", done.stderr


def test_a_run_in_a_thread_that_the_program_does_not_wait_for_is_stopped_at_its_end(
    folder: Path,
) -> None:
    """Files in progress are finished and saved before the program goes on to end, and what is said
    is true: no loop was left."""
    script = """
import atexit, sys, threading, time
from resumable_pool import ResumableRunner, open_checkpoint

class Telling(ResumableRunner):
    def on_saved(self, outcome):
        saved.set()

def work(path):
    time.sleep(0.2)

if __name__ == "__main__":
    atexit.register(lambda: print(len(open_checkpoint("result.pkl"))))
    saved = threading.Event()
    runner = Telling(work, "in/*", "result.pkl", mp_context=sys.argv[1], max_workers=1)
    threading.Thread(target=runner.run, daemon=True).start()
    saved.wait()
"""
    Path("script.py").write_text(script)
    done = python("script.py", CHEAPEST)
    assert done.returncode == 0, done.stderr
    assert "your code has left the loop, raised an exception or ended: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == f"{len(open_checkpoint('result.pkl'))}\n"
    assert 1 <= int(done.stdout) < len(list(Path("in").iterdir()))
