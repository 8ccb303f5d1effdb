"""Real engines behind `executor=`, where they are installed: Dask with a real scheduler and workers
on loopback, loky, and MPI, where the death of one rank is the death of all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ExecutorError, ResumableRunner, open_checkpoint

from ..functions import KILL, calls, note
from ..stage import PATIENCE

fcntl = pytest.importorskip("fcntl")

ROOT = Path(__file__).resolve().parents[2]
NUMBER = 300

# Engines leave sockets and loops to the garbage collector, and so to whatever test comes next.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def many(folder: Path) -> list[str]:
    """Files enough for a while."""
    (folder / "many").mkdir()
    paths = [f"many/{number:03}.txt" for number in range(NUMBER)]
    for path in paths:
        Path(path).touch()
    return paths


def runner(function: Any, executor: Any, **options: Any) -> ResumableRunner[Any]:
    options = {"progress": False, "executor": executor, **options}
    return ResumableRunner(function, "many/*.txt", "result.pkl", **options)


def quick(path: str) -> str:
    note(path)
    return path


def failing(path: str) -> str:
    note(path)
    if path.endswith("50.txt"):
        raise ValueError("fifty")
    return path


def slow(path: str) -> str:
    threading.Event().wait(0.01)
    return quick(path)


def deadly(path: str) -> str:
    """One file takes its process along, each time."""
    note(path)
    if path == "many/150.txt":
        os.kill(os.getpid(), KILL)
    return path


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A scheduler and two worker processes; a task is given up when its second worker dies."""
    dask = pytest.importorskip("dask")
    distributed = pytest.importorskip("distributed")
    settings = {
        "distributed.scheduler.allowed-failures": 1,
        "distributed.worker.use-file-locking": False,
    }
    with (
        dask.config.set(settings),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1",
            dashboard_address=None, silence_logs="CRITICAL",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):  # fmt: skip
        yield client


@pytest.mark.parametrize("pure", [True, False])
def test_dask(many: list[str], cluster: Any, pure: bool) -> None:
    """Each file is called once, and failures have their attempts, which Dask does not remember."""
    executor = cluster.get_executor(pure=pure)
    report = runner(failing, executor, retries=1, max_workers=4).run()
    bad = [path for path in many if path.endswith("50.txt")]
    assert [failure.path for failure in report.failures] == bad
    assert {failure.message for failure in report.failures} == {"ValueError: fifty"}
    assert Counter(calls()) == {path: 1 + (path in bad) for path in many}
    assert len(open_checkpoint("result.pkl")) == NUMBER - len(bad)
    assert executor.submit(len, "four").result() == 4


def test_dask_when_a_worker_is_killed(many: list[str], cluster: Any) -> None:
    """Dask does what it had again elsewhere, and every file is done."""
    pids = [*cluster.run(os.getpid).values()]
    running = runner(slow, cluster.get_executor(pure=False), max_workers=4)
    for number, outcome in enumerate(running.as_completed()):
        assert outcome.ok
        if number == 50:
            os.kill(pids[0], KILL)
    assert sorted(open_checkpoint("result.pkl")) == many


def test_dask_and_a_file_that_kills(many: list[str], cluster: Any) -> None:
    """It is found out among those that were in its batch, and all the others are done."""
    executor = cluster.get_executor(pure=False)
    report = runner(deadly, executor, max_workers=2).run()
    (failure,) = report.failures
    assert (failure.path, failure.kind) == ("many/150.txt", "crashed")
    assert failure.message.startswith("its worker was lost: KilledWorker: ")
    assert report.completed == NUMBER - 1
    assert len({*calls()}) == NUMBER


def test_loky(many: list[str]) -> None:
    """As the standard library's: a dead process is its end, and a new one goes on."""
    loky = pytest.importorskip("loky")
    executor = loky.get_reusable_executor(max_workers=2)
    with pytest.raises(ExecutorError, match="TerminatedWorkerError"):
        runner(deadly, executor).run()
    assert len({*open_checkpoint("result.pkl").failures()} - {"many/150.txt"}) == 0
    saved = {*open_checkpoint("result.pkl")}
    os.remove("calls")
    executor = loky.get_reusable_executor(max_workers=2)
    report = runner(quick, executor).run()
    assert (report.skipped, report.completed) == (len(saved), NUMBER - len(saved))
    assert calls() == sorted({*many} - saved)
    executor.shutdown(wait=True)


MPI = """
import os, signal, sys
from mpi4py.futures import MPIPoolExecutor
from resumable_pool import ResumableRunner
from tests.functions import KILL, note

class Text:
    def __init__(self, text):
        self.text = text

def work(path):
    note(path)
    if path == "many/150.txt" and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), KILL)
    return Text(path)

if __name__ == "__main__":
    with MPIPoolExecutor(max_workers=2) as executor:
        runner = ResumableRunner(work, "many/*.txt", "result.pkl", executor=executor)
        print(runner.run())
        print(all(text.text == path for path, text in runner.results.items()))
"""


def run_script() -> subprocess.CompletedProcess[str]:
    """In a session of its own, since MPI kills whom it finds in its group."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where MPI's own programs are
    return subprocess.run(
        [sys.executable, "script.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PATH": path},
        timeout=PATIENCE, capture_output=True, text=True, start_new_session=True,
    )  # fmt: skip


def test_mpi(many: list[str]) -> None:
    """A dead rank kills all, the script included, but for the saver. What had come back is saved,
    and a rerun does the rest."""
    pytest.importorskip("mpi4py")
    Path("script.py").write_text(MPI)
    first = run_script()
    assert first.returncode != 0
    assert Path("killed").exists()
    saved = wait_until_free()
    os.remove("calls")
    second = run_script()
    assert second.returncode == 0, second.stderr
    assert f"{NUMBER - len(saved)} done, {len(saved)} done before" in second.stdout
    assert second.stdout.endswith("True\n")
    assert calls() == sorted({*many} - saved)


def wait_until_free() -> set[str]:
    """What the saver of a dead script has saved, once it has let go of the checkpoint."""
    with open("result.pkl", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    return {*open_checkpoint("result.pkl")}
