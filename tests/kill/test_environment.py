"""Whole scripts where something is scarce, forbidden or odd: they work, or they say what is wrong.

Never is a process left, and what was saved stays: a rerun under better conditions goes on.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from resumable_pool import open_checkpoint
from tests import functions
from tests.stage import PATIENCE, Stage

from .scripts import Script, rerun

IN_SCRIPT = """
import resource
if __name__ == "__main__":
"""


def script_under(
    condition: str, folder: Path, method: str, function: str = "number_in", definitions: str = ""
) -> Script:
    """A script that runs a line of its own first: in the script, not in spawned children."""
    return Script(folder, method, function, f"{definitions}{IN_SCRIPT}    {condition}\n")


def plain() -> dict[str, object]:
    """What a reader sees that knows nothing of us."""
    values = pickle.loads(Path("result.pkl").read_bytes())
    assert isinstance(values, dict)
    return values


# No room.

LARGE = """
def large(path):
    note(path)
    return bytes(10_000)
"""


def test_a_limit_on_the_size_of_files(folder: Path, method: str) -> None:
    """The error has the system's reason; what fitted is kept, and a rerun does the rest."""
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (45_000, resource.RLIM_INFINITY))"
    script = script_under(limit, folder, method, "large", LARGE)
    for _ in range(2):
        script.start()
        status, _, errors = script.wait()
        script.wait_gone()
        assert status == 1
        assert "SaverError" in errors
        assert "File too large. What was saved before is kept" in errors
        assert errors.count("Traceback") == 1
        assert list(plain().values()) == [bytes(10_000)] * 4
    assert len(open_checkpoint("result.pkl")) == 4
    functions.CALLS.unlink()
    assert "10 files: 6 done, 4 done before" in rerun(functions.number_in)
    assert len(functions.calls()) == 6
    assert len(plain()) == 10


SMALL_DISK = """
import contextlib, os, subprocess, sys
from resumable_pool import CheckpointError, ResumableRunner, SaverError
from tests.functions import note

def large(path):
    note(path)
    return bytes(10_000)

def mount(*options):
    subprocess.run(["mount", *options, "disk"], check=True)

def run(checkpoint="disk/result.pkl"):
    runner = ResumableRunner(
        large, "in/*.txt", checkpoint, max_workers=3, progress=False
    )
    try:
        return runner.run()
    except (CheckpointError, SaverError) as error:
        return f"{type(error).__name__}: {error}"

def fill(name, size):
    with contextlib.suppress(OSError), open(f"disk/{name}", "wb", buffering=0) as file:
        for _ in range(0, size, 4096):
            file.write(bytes(4096))

if __name__ == "__main__":
    os.mkdir("disk")
    mount("-t", "tmpfs", "-o", "size=1m", "none")
    fill("most", 0xF0000)
    print(run())                    # full in the middle
    fill("rest", 0x10000)
    print(run())                    # full from the start
    print(run("disk/new.pkl"))      # not even room for a checkpoint
    os.unlink("disk/rest")
    mount("-o", "remount,bind,ro")
    print(run())                    # read-only
    print(run("disk/new.pkl"))
    mount("-o", "remount,bind,rw")
    os.unlink("disk/most")
    print(run())                    # room again
    mount("-o", "remount,bind,ro")
    print(run())                    # read-only, and nothing to do
    print(sorted(os.listdir("disk")))
"""

SMALL_DISK_RESULTS = r"""
SaverError: .*result.pkl': No space left on device\. What was saved before is kept
SaverError: .*result.pkl': No space left on device\. What was saved before is kept
CheckpointError: .*new.pkl' cannot be opened for writing: No space left on device\.
CheckpointError: .*result.pkl' cannot be opened for writing: Read-only file .* folder writable
CheckpointError: .*new.pkl' cannot be opened for writing: Read-only file system\.
10 files: 4 done, 6 done before, in
10 files: 10 done before, in
\['result.pkl'\]
"""

# Mounts of its own, for anybody who may have a user namespace of his own.
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]


def may_mount() -> bool:
    if shutil.which("unshare") is None or shutil.which("mount") is None:
        return False
    tried = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return tried.returncode == 0


with_mounts = pytest.mark.skipif(not may_mount(), reason="needs a user namespace with mounts")


def run_alone(script: Script, *command: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*ALONE, *command],
        cwd=script.folder,
        env=script.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    script.wait_gone()
    return done


@with_mounts
def test_a_full_disk_and_a_read_only_one(folder: Path) -> None:
    """Each is an error with the system's reason, nothing is left beside the checkpoint, and when
    there is room again the run goes on."""
    script = Script(folder, None)
    script.path.write_text(SMALL_DISK)
    done = run_alone(script, sys.executable, script.path.name)
    assert (done.returncode, done.stderr) == (0, "")
    results, expected = done.stdout.splitlines(), SMALL_DISK_RESULTS.split("\n")[1:-1]
    assert len(results) == len(expected)
    for result, pattern in zip(results, expected, strict=True):
        assert re.match(pattern, result), result


@with_mounts
def test_without_shared_memory(folder: Path, method: str) -> None:
    """No semaphore is made: everything works where /dev/shm is read-only."""
    script = Script(folder, method, "number_in")
    shell = f"mount -t tmpfs -o ro none /dev/shm && exec {sys.executable} {script.path.name}"
    done = run_alone(script, "sh", "-c", shell)
    assert (done.returncode, done.stderr) == (0, "running\n")
    assert "10 files: 10 done" in done.stdout


# Little of everything else.

GREEDY = """
def greedy(path):
    return len(bytearray(1 << 30)) if number_in(path) == 7 else 0
"""


def test_a_limit_on_memory(folder: Path, method: str) -> None:
    """Who wants more gets a MemoryError, as the failure of that file."""
    limit = "resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))"
    out = script_under(limit, folder, method, "greedy", GREEDY).run()
    assert "10 files: 9 done, 1 failed" in out
    assert "in/07.txt: MemoryError" in out


def test_a_long_path_to_temporary_files(folder: Path, method: str) -> None:
    """Only the fork server has its socket there: it runs all the same, or says what to do."""
    (folder / ("t" * 120)).mkdir()
    script = Script(folder, method, "number_in")
    script.environment["TMPDIR"] = str(folder / ("t" * 120))
    script.start()
    status, out, errors = script.wait()
    script.wait_gone()
    if method == "forkserver" and status != 0:
        assert "TMPDIR, whose path is too long: set a shorter one" in errors
        assert errors.count("Traceback") == 1
    else:
        assert "10 files: 10 done" in out


CLEANING = """
import glob
import shutil
import tempfile
class Cleaned(ResumableRunner):
    def on_saved(self, outcome):
        for folder in glob.glob(tempfile.gettempdir() + "/pymp-*"):
            shutil.rmtree(folder)
ResumableRunner = Cleaned
"""


def test_a_cleaner_of_temporary_files(folder: Path, method: str) -> None:
    """It takes the fork server's socket away: with it a run ends that needs one more worker, says
    why, and the next one goes on. No other start method has anything there."""
    options = "max_tasks_per_child=1"
    script = Script(folder, method, "number_in", CLEANING, options=options)
    (folder / "t").mkdir()
    script.environment["TMPDIR"] = str(folder / "t")
    script.start()
    status, out, errors = script.wait()
    if method == "forkserver" and status != 0:
        assert "Is TMPDIR writable, and does nothing clean it?" in errors
        assert ", 0 failed" not in rerun(functions.number_in)
    else:
        assert "10 files: 10 done" in out


EIGHT_WORKERS = """
class ResumableRunner(ResumableRunner):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{**options, "max_workers": 8})
"""

REAPER = """
import contextlib
import os
def reap(*arguments):
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
"""

IGNORING_ALL = """
import contextlib
def ignore_all():
    for signum in signal.valid_signals():
        with contextlib.suppress(OSError):
            signal.signal(signum, signal.SIG_IGN)
"""

ODD = {
    "64 descriptors": ("resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))", EIGHT_WORKERS),
    "all signals blocked": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
        "",
    ),
    "all signals ignored": ("ignore_all()", IGNORING_ALL),
    "dead children forgotten": ("signal.signal(signal.SIGCHLD, signal.SIG_IGN)", ""),
    "dead children taken away": ("signal.signal(signal.SIGCHLD, reap)", REAPER),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_conditions(folder: Path, method: str, odd: str) -> None:
    """All is done, and a worker that is killed is replaced; how it ended is told if anybody can."""
    Path("in/07.txt").write_text("!die:SIGKILL")
    condition, definitions = ODD[odd]
    script = script_under(condition, folder, method, "sabotage", definitions)
    out = script.run()
    script.wait_gone()
    assert "10 files: 9 done, 1 failed" in out
    assert "in/07.txt: its worker " in out
    if "ignored" not in odd and "children" not in odd:
        assert "in/07.txt: its worker was killed by SIGKILL" in out


WITHOUT_STREAMS = """
import os, sys
from resumable_pool import ResumableRunner
from resumable_pool.checkpoints import PickleFile

class Loud(PickleFile):
    def append(self, records):
        for fd in (1, 2):
            os.write(fd, b"saving")
        super().append(records)

def loud(path):
    with open(path + ".out", "wb") as file:
        os.system("echo working; echo working >&2")
        file.write(b"quiet")
    return path

if __name__ == "__main__":
    os.closerange(0, 3)
    ResumableRunner(loud, "in/??.txt", Loud("result.pkl"), mp_context=sys.argv[1]).run()
"""


def test_where_the_program_has_closed_its_streams(folder: Path, method: str) -> None:
    """What is printed goes nowhere, rather than into the checkpoint or a file of the function."""
    script = Script(folder, method)
    script.path.write_text(WITHOUT_STREAMS)
    done = subprocess.run(
        [sys.executable, script.path.name, method],
        env=script.environment,
        timeout=PATIENCE,
        check=False,
    )
    script.wait_gone()
    assert done.returncode == 0
    assert plain() == {f"in/{number:02}.txt": f"in/{number:02}.txt" for number in range(10)}
    assert {path.read_bytes() for path in Path("in").glob("*.out")} == {b"quiet"}


# Deaths.

BUSY_PROGRAM = """
import subprocess
def call_program(path):
    with subprocess.Popen(["sleep", "600"]):
        with open("begun", "wb", buffering=0) as begun:
            begun.write(f"{os.getpid()} {path}\\n".encode())
"""


def test_a_dead_saver_leaves_no_program_of_a_function(
    folder: Path, stage: Stage, method: str
) -> None:
    """Nobody could save what they make; they are ended with their workers."""
    script = Script(folder, method, "call_program", BUSY_PROGRAM)
    script.start()
    stage.wait_begun(3)
    os.kill(script.saver(), signal.SIGKILL)
    status, _, errors = script.wait()
    assert status == 1
    assert "the saver process was killed by SIGKILL" in errors
    script.wait_gone()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the server alone tells who lives")
def test_a_dead_fork_server_changes_nothing(folder: Path, stage: Stage) -> None:
    """Its children live, and what is in progress is finished; the next worker has a new one."""
    script = Script(folder, "forkserver", options="max_tasks_per_child=2")
    script.start()
    stage.wait_begun(3)
    stage.cue()
    stage.wait_begun(1)
    _, parent = Path(f"/proc/{script.saver()}/stat").read_text().rsplit(")", 1)[1].split()[:2]
    os.kill(int(parent), signal.SIGKILL)
    stage.cue(9)
    status, out, errors = script.wait()
    assert status == 0, errors
    assert "10 files: 10 done" in out
    script.wait_gone()
    assert len(open_checkpoint("result.pkl")) == 10
