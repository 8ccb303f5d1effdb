"""Somebody else's executor in place of our workers. The standard library's are used as they are;
what no real one does when it is asked to, `Hand` does."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
)
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import (
    ExecutorError,
    Report,
    ResumableRunner,
    WorkerStartError,
    open_checkpoint,
)
from resumable_pool.between.messages import Batch
from resumable_pool.run.executors import FarCrew
from resumable_pool.run.stopping import StopRequests

from .. import far_functions as far
from ..far_functions import TEN
from ..functions import CALLS, calls, number_in
from ..stage import PATIENCE, Stage, act, announcement
from ..test_scripts import python

POOLS: dict[str, Callable[..., Executor]] = {
    method: partial(ProcessPoolExecutor, mp_context=multiprocessing.get_context(method))
    for method in ("fork", "spawn")
    if method in multiprocessing.get_all_start_methods()
}
# Where others are forked, those that are spawned take as long as all others together.
PROCESSES = [
    pytest.param(method, marks=pytest.mark.alike if method == "spawn" and "fork" in POOLS else ())
    for method in POOLS
]
POOLS["threads"] = ThreadPoolExecutor


@pytest.fixture(params=[*PROCESSES, "threads"])
def pool(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Each of the standard library's, which is ours to shut down and nobody else's."""
    with POOLS[request.param](2) as executor:
        yield executor


def runner(function: Any, executor: Executor, **options: Any) -> ResumableRunner[Any]:
    options = {"progress": False, "executor": executor, **options}
    return ResumableRunner(function, "in/*.txt", "result.pkl", **options)


def test_all_files_are_saved_and_not_done_again(folder: Path, pool: Executor) -> None:
    """As with workers of our own; and the executor is left as it was."""
    assert runner(number_in, pool).run().completed == 10
    assert calls() == TEN
    assert dict(open_checkpoint("result.pkl")) == {path: int(path[3:5]) for path in TEN}
    Path("in/10.txt").write_text("10")
    report = runner(number_in, pool).run()
    assert (report.skipped, report.completed) == (10, 1)
    assert calls() == [*TEN, "in/10.txt"]
    assert pool.submit(len, "four").result() == 4


def test_failures_cost_nobody_else_anything(folder: Path, pool: Executor) -> None:
    """Not even exceptions and results that break pools because they cannot be unpickled."""
    report = runner(far.misbehave, pool).run()
    said = {failure.path: failure.message for failure in report.failures}
    assert [*said] == TEN[:4]
    assert said[TEN[0]] == "NeedsTwo: one"
    assert "the result cannot be pickled" in said[TEN[1]]
    assert "the result can be pickled, but not unpickled again" in said[TEN[2]]
    assert said[TEN[3]] == "SystemExit: leaving"
    for failure in report.failures:
        assert failure.kind == "error"
        assert "far_process.py" not in failure.traceback
    assert sorted(open_checkpoint("result.pkl")) == TEN[4:]


@pytest.mark.parametrize("method", PROCESSES)
def test_a_file_finds_itself_where_the_run_began(folder: Path, method: str) -> None:
    """Wherever an earlier one in its process has gone."""
    with POOLS[method](2) as executor:
        assert runner(far.wander, executor).run().completed == 10


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="there are no signal masks")
@pytest.mark.parametrize("method", PROCESSES)
def test_processes_that_are_started_meanwhile_hold_no_signal_back(
    folder: Path, method: str
) -> None:
    """A pool starts its processes when it is given something, in the middle of our loop. What they
    have blocked, so have the programs that the function starts."""
    with POOLS[method](2) as pool:
        runner = ResumableRunner(far.blocked_signals, TEN[:1], "r.pkl", executor=pool)
        runner.run()
    assert [*runner.results.values()] == [[]]


def test_a_file_has_its_attempts(folder: Path, pool: Executor) -> None:
    """One after the other, until it succeeds."""
    assert runner(far.fail_at_first, pool, retries=2).run().completed == 10
    assert Counter(calls()) == {path: 1 + 2 * (path == TEN[3]) for path in TEN}


def test_each_process_is_initialized_once_in_a_run(folder: Path, pool: Executor) -> None:
    """Before its first file; and once more in the next run, which may need something else."""
    for _ in range(2):
        runner(number_in, pool, initializer=far.load).run()
        loaded = Path("loaded").read_text().split()
        callers = [line.split()[0] for line in CALLS.read_text().splitlines()]
        assert sorted(loaded) == sorted({*callers})
        for name in ("loaded", "calls", "result.pkl"):
            os.remove(name)


def test_an_initializer_that_raises_ends_the_run(folder: Path, pool: Executor) -> None:
    """As it does with our own workers. No file is called, and none has failed."""
    with pytest.raises(WorkerStartError, match="the initializer failed: OSError: no model"):
        runner(number_in, pool, initializer=far.cannot_load).run()
    assert not CALLS.exists()
    assert runner(number_in, pool).run().completed == 10


def test_a_hook_is_sent(folder: Path, pool: Executor) -> None:
    """With what the subclass has added to the runner."""
    labelled = far.Labelled("seen", pool)
    assert {outcome.value for outcome in labelled.as_completed()} == {f"seen {p}" for p in TEN}


def test_large_results_come_whole(folder: Path, pool: Executor) -> None:
    """However many pipes full they are."""
    values = {outcome.path: outcome.value for outcome in runner(far.large, pool).as_completed()}
    assert values == {path: path.encode() * 100_000 for path in TEN}


def test_nothing_is_left_open(folder: Path, nothing_left: None) -> None:
    """No descriptor and no child, after a good end and after a bad one."""
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(WorkerStartError):
            runner(number_in, executor, initializer=far.cannot_load).run()
        assert runner(number_in, executor).run().completed == 10


def test_what_nobody_can_tell_is_refused(folder: Path) -> None:
    """`workers()` and `worker_slot()` say so."""
    with ThreadPoolExecutor(1) as executor:
        running = runner(far.slot_of, executor)
        steps = running.as_completed()
        failure = next(steps).failure
        assert failure is not None
        assert "worker_slot() is for the function" in failure.message
        with pytest.raises(RuntimeError, match="its dashboard or logs"):
            running.workers()
        steps.close()  # type: ignore[attr-defined]
        assert running.workers() == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"timeout": 5}, ValueError, "timeout=5 cannot be combined with an executor: a call"),
        ({"max_tasks_per_child": 3}, ValueError, "max_tasks_per_child=3 cannot be combined"),
        ({"mp_context": "spawn"}, ValueError, "mp_context='spawn' cannot be combined"),
        ({"executor": 3}, TypeError, r"executor must be a concurrent\.futures\.Executor, not 3"),
        ({"executor": ThreadPoolExecutor}, TypeError, "executor must be a"),
    ],
)
def test_what_cannot_be_had_is_refused(
    folder: Path, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    """By the constructor, with the reason."""
    with ThreadPoolExecutor(1) as executor, pytest.raises(error, match=words):
        runner(number_in, **{"executor": executor, **options})


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("method", PROCESSES)
def test_a_broken_pool_ends_the_run_and_the_next_goes_on(folder: Path, method: str) -> None:
    """No file has failed but the one that did it, if it was alone there; what was saved is kept."""
    with (
        POOLS[method](2) as executor,
        pytest.raises(ExecutorError, match="make a new executor and run again") as raised,
    ):
        runner(far.kill_pool_once, executor, max_workers=4).run()
    assert raised.value.broken
    assert raised.value.reason.startswith("BrokenProcessPool: ")
    assert TEN[5] in raised.value.in_flight
    saved = [*open_checkpoint("result.pkl")]
    assert {*open_checkpoint("result.pkl").failures()} <= {TEN[5]}
    Path("calls").unlink()
    with POOLS[method](2) as executor:
        report = runner(far.kill_pool_once, executor).run()
    assert (report.completed, report.skipped) == (10 - len(saved), len(saved))
    assert calls() == sorted({*TEN} - {*saved})


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_alone_in_the_pool_a_file_that_breaks_it_is_known(folder: Path) -> None:
    """With max_workers=1, which gives it one file at a time: so the next run can leave it alone."""
    with (
        ProcessPoolExecutor(2) as executor,
        pytest.raises(ExecutorError, match="With max_workers=1 it gets"),
    ):
        runner(far.kill_pool, executor, max_workers=1).run()
    (failure,) = open_checkpoint("result.pkl").failures().values()
    assert (failure.path, failure.kind) == (TEN[5], "crashed")
    assert failure.message.startswith("its worker was lost: BrokenProcessPool: ")
    with ProcessPoolExecutor(2) as executor:
        report = runner(far.kill_pool, executor, retry_failed=False).run()
    assert (report.completed, report.failed) == (4, 1)
    assert calls() == TEN


def test_with_one_slot_files_are_given_singly(many: list[str]) -> None:
    """However quick they are."""
    hand = Hand()
    running = Running(runner(far.quick, hand, max_workers=1))
    assert [len(batch) for batch in do_rest(hand, running)] == [1] * len(many)


def test_the_pace_is_that_of_the_function(many: list[str]) -> None:
    """What it took where it ran, and not the way there, or a queue: as told, whatever that is."""
    hand = Hand()
    running = Running(runner(far.quick, hand, max_workers=2))
    while running._thread.is_alive():
        try:
            task = hand.given.get(timeout=0.05)
        except queue.Empty:
            continue
        assert len(task.batch) == 1
        number, _, frames = task.call()
        task.future.set_result((number, 1000.0, frames))
    assert running.report().completed == len(many)


SCRIPT = """
import multiprocessing, pickle
from concurrent.futures import ProcessPoolExecutor
from resumable_pool import ResumableRunner

class Text:
    def __init__(self, text):
        self.text = text

def work(path):
    return Text(path)

if __name__ == "__main__":
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as executor:
        print(ResumableRunner(work, "in/*.txt", "result.pkl", executor=executor).run())
    print([text.text for text in pickle.load(open("result.pkl", "rb")).values()].count("in/03.txt"))
"""


def test_classes_of_the_script_are_read_back_by_it(folder: Path) -> None:
    """They are named after the script, as everywhere."""
    Path("script.py").write_text(SCRIPT)
    done = python("script.py")
    assert (done.returncode, done.stderr) == (0, "")
    assert "10 done" in done.stdout
    assert done.stdout.endswith("\n1\n")
    assert b"__mp_main__" not in Path("result.pkl").read_bytes()


def test_a_function_that_cannot_be_sent_ends_the_run(folder: Path) -> None:
    """After a few attempts; no file has failed for that."""
    with (
        ProcessPoolExecutor(2) as executor,
        pytest.raises(ExecutorError, match=r"has sent nothing back yet: .*(?i:pickle)") as raised,
    ):
        runner(lambda path: path, executor).run()
    assert not raised.value.broken
    assert open_checkpoint("result.pkl").failures() == {}


# What no real executor does when it is asked to.


class Hand(Executor):
    """Whatever is submitted waits in `given` until the test says what comes of it."""

    def __init__(self, most: float = float("inf")) -> None:
        self.given: queue.Queue[Task] = queue.Queue()
        self.most = most
        self.cancelled = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        assert not kwargs
        self.most -= 1
        if self.most < 0:
            raise RuntimeError("no more, thank you")
        task = Task(self, partial(fn, *args), args[-1])
        self.given.put(task)
        return task.future

    def next(self) -> Task:
        return self.given.get(timeout=PATIENCE)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        raise AssertionError("it is not theirs")


class HandsFuture(Future[Any]):
    def __init__(self, hand: Hand) -> None:
        super().__init__()
        self.hand = hand

    def cancel(self) -> bool:
        self.hand.cancelled += 1
        raise NotImplementedError("no cancelling here")


class Task:
    """One batch, and what the test does with it."""

    def __init__(self, hand: Hand, call: Callable[[], Any], batch: Batch) -> None:
        self.future = HandsFuture(hand)
        self.batch = batch
        self.call = call

    def do(self) -> None:
        """In another thread, as any real engine."""
        thread = threading.Thread(target=lambda: self.future.set_result(self.call()))
        thread.start()
        thread.join()

    def lose(self, error: BaseException) -> None:
        self.future.set_exception(error)


class Running:
    """A run in another thread."""

    def __init__(self, runner: ResumableRunner[Any]) -> None:
        self._runner = runner
        self._result: Report | BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._runner.run()
        except BaseException as error:
            self._result = error

    def report(self) -> Report:
        self._thread.join(PATIENCE)
        assert isinstance(self._result, Report), self._result
        return self._result

    def error(self) -> ExecutorError:
        self._thread.join(PATIENCE)
        assert isinstance(self._result, ExecutorError), self._result
        return self._result


def do_rest(hand: Hand, running: Running) -> list[Batch]:
    """All that is still submitted until the run is over; what there was in each batch."""
    batches = []
    while running._thread.is_alive():
        try:
            task = hand.given.get(timeout=0.05)
        except queue.Empty:
            continue
        batches.append(task.batch)
        task.do()
    return batches


def test_so_many_are_in_flight_and_they_may_come_back_in_any_order(folder: Path) -> None:
    """No more than max_workers are, and each is answered for itself."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=3))
    first, second, third = hand.next(), hand.next(), hand.next()
    third.do()
    fourth = hand.next()
    assert hand.given.empty()
    assert fourth.batch != third.batch
    for task in (second, fourth, first):
        task.do()
    do_rest(hand, running)
    assert running.report().completed == 10
    assert calls() == TEN


def test_a_file_that_was_alone_and_is_lost_has_crashed(folder: Path) -> None:
    """The failure says what the engine said, and all the others are done."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2))
    first, second = hand.next(), hand.next()
    first.do()
    hand.given.get(timeout=PATIENCE).do()  # something has come back by now
    second.lose(RuntimeError("worker lost"))
    do_rest(hand, running)
    (failure,) = running.report().failures
    assert [failure.path] == [*second.batch]
    assert failure.kind == "crashed"
    assert failure.message == "its worker was lost: RuntimeError: worker lost"
    assert running.report().completed == 9


def test_a_file_that_is_lost_has_its_attempts(folder: Path) -> None:
    """Which the executor is told apart by the number of the attempt."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2, retries=1))
    first, second = hand.next(), hand.next()
    first.do()
    hand.next().do()
    second.lose(RuntimeError("worker lost"))
    batches = do_rest(hand, running)
    (path,) = second.batch
    assert {path: 2} in batches
    assert running.report().completed == 10


@pytest.fixture
def many(folder: Path) -> list[str]:
    """Files enough for long batches."""
    paths = [f"in/{number:03}.txt" for number in range(100, 300)]
    for path in paths:
        Path(path).write_text("0")
    return [*TEN, *paths]


def long_batch(hand: Hand) -> Task:
    """The first one of several files."""
    while len((task := hand.next()).batch) < 3:
        task.do()
    return task


def test_of_a_batch_that_is_lost_each_file_is_dealt_alone(many: list[str]) -> None:
    """Nobody knows which one was to blame, and so none is, unless it is lost once more."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2))
    task = long_batch(hand)
    task.lose(RuntimeError("worker lost"))
    bad = [*task.batch][1]
    lost = {*task.batch}
    alone = []
    while running._thread.is_alive():
        try:
            task = hand.given.get(timeout=0.05)
        except queue.Empty:
            continue
        if {*task.batch} & lost:
            alone.append(task.batch)
        if bad in task.batch:
            task.lose(RuntimeError("worker lost"))
        else:
            task.do()
    assert sorted(map(sorted, alone)) == sorted([path] for path in lost)
    assert [failure.path for failure in running.report().failures] == [bad]
    assert running.report().completed == len(many) - 1
    assert calls() == sorted({*many} - {bad})


def test_until_something_has_come_back_nobody_is_to_blame(folder: Path) -> None:
    """A few batches are lost, and the run ends; nothing has failed."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=1))
    for _ in range(3):
        hand.next().lose(ImportError("no module named work"))
    error = running.error()
    assert "the Hand has sent nothing back yet: ImportError: no module named work" in str(error)
    assert open_checkpoint("result.pkl").failures() == {}
    assert len(open_checkpoint("result.pkl")) == 0


def test_a_batch_that_is_lost_first_may_still_be_done(folder: Path) -> None:
    """Bad luck at the beginning costs no file anything."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2))
    hand.next().lose(OSError("bad luck"))
    do_rest(hand, running)
    assert running.report().completed == 10


def test_a_future_that_says_twice_that_it_is_done_is_read_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then its slot may have another batch, and that is not lost."""
    lost: list[object] = []
    monkeypatch.setattr(FarCrew, "_note_lost", lambda crew, *loss: lost.append(loss))
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2))
    for _ in range(10):
        task = hand.next()
        task.do()
        task.future._invoke_callbacks()  # type: ignore[attr-defined]
    assert running.report().completed == 10
    assert lost == []
    assert calls() == TEN


@pytest.mark.parametrize("answer", [None, (1, 0.0), (99, 0.0, b""), (1, 0.0, "text"), [1, 2, 3]])
def test_an_answer_that_is_none_is_a_loss(folder: Path, answer: object) -> None:
    """An engine may make anything of what was returned."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2))
    first, second = hand.next(), hand.next()
    first.do()
    hand.next().do()
    second.future.set_result(answer)
    do_rest(hand, running)
    (failure,) = running.report().failures
    assert failure.message.startswith("its worker was lost: TypeError: the executor made ")


def test_when_nothing_more_is_taken_the_run_ends(folder: Path) -> None:
    """What is in flight is waited for and saved, nothing has failed, and a rerun goes on."""
    hand = Hand(most=3)
    running = Running(runner(number_in, hand, max_workers=2))
    first, second = hand.next(), hand.next()
    first.do()
    third = hand.next()
    third.do()  # now a fourth is refused
    second.do()
    error = running.error()
    assert "the Hand cannot continue: RuntimeError: no more, thank you" in str(error)
    assert sorted(open_checkpoint("result.pkl")) == sorted(calls())
    assert len(calls()) == 3
    assert open_checkpoint("result.pkl").failures() == {}
    with ThreadPoolExecutor(2) as executor:
        assert runner(number_in, executor).run().completed == 7
    assert calls() == TEN


@pytest.mark.parametrize("error", [BrokenExecutor("all gone"), CancelledError()])
def test_a_broken_executor_is_nobodys_fault(folder: Path, error: Exception) -> None:
    """It may have lost all that it had; the error names that."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=2))
    first, second = hand.next(), hand.next()
    first.do()
    third = hand.next()
    second.lose(error)
    third.lose(error)
    raised = running.error()
    assert sorted(raised.in_flight) == sorted([*second.batch, *third.batch])
    assert type(error).__name__ in raised.reason
    assert open_checkpoint("result.pkl").failures() == {}
    assert [*open_checkpoint("result.pkl")] == [*first.batch]


def test_a_stop_waits_for_what_is_in_flight(folder: Path) -> None:
    """And submits nothing more."""
    hand = Hand()
    stopped = runner(number_in, hand, max_workers=2)
    running = Running(stopped)
    first, second = hand.next(), hand.next()
    stopped.stop()
    first.do()
    second.do()
    report = running.report()
    assert (report.completed, report.remaining, report.stopped) == (2, 8, True)
    assert hand.given.empty()
    assert hand.cancelled == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_what_never_comes_back_can_be_abandoned(folder: Path) -> None:
    """By a second Ctrl-C. That it cannot even be cancelled does not matter, nor that it comes."""
    hand = Hand()
    tasks: list[Task] = []

    def press() -> None:
        tasks.extend([hand.next(), hand.next()])
        with announcement("Ctrl-C: finishing 2 files") as heard:
            os.kill(os.getpid(), signal.SIGINT)
            assert heard.wait(PATIENCE)  # or the system would make one signal of two
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            runner(number_in, hand, max_workers=2).run()
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert hand.cancelled == 2
    for task in tasks:
        task.do()
    assert len(open_checkpoint("result.pkl")) == 0
    with ThreadPoolExecutor(2) as executor:
        assert runner(number_in, executor).run().completed == 10


def test_what_comes_back_in_another_thread_wakes_the_loop() -> None:
    """It waits for that, and for nothing shorter."""
    requests = StopRequests()
    thread = threading.Thread(target=requests.wake)
    thread.start()
    assert wait([requests.wakener], PATIENCE)
    thread.join()
    assert [*requests.take()] == []
    assert not wait([requests.wakener], 0)
    requests.deliver()
    requests.wake()


def test_futures_are_dropped_once_they_are_read(folder: Path) -> None:
    """Some engines do again what is still held, when a worker of theirs dies."""
    hand = Hand()
    running = Running(runner(number_in, hand, max_workers=1))
    task = hand.next()
    held = weakref.ref(task.future)
    task.do()
    del task
    following = hand.next()
    gc.collect()
    assert held() is None
    following.do()
    do_rest(hand, running)
    assert running.report().completed == 10


def test_a_stop_in_the_middle_of_real_calls(folder: Path) -> None:
    """The files that threads are at are finished and saved."""
    stage = Stage(folder)
    try:
        with ThreadPoolExecutor(2) as executor:
            stopped = runner(act, executor)
            running = Running(stopped)
            begun = stage.wait_begun(2)
            stopped.stop()
            stage.cue(2)
            assert running.report().completed == 2
            assert {*open_checkpoint("result.pkl")} == {*begun}
    finally:
        stage.close()
