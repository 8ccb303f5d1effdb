"""Requests to stop, without a run; and signals while processes are started."""

from __future__ import annotations

import _thread
import contextlib
import functools
import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import ResumableRunner
from resumable_pool.between.children import Child
from resumable_pool.run.loop import Run
from resumable_pool.run.processes import Crew, Saver, Worker
from resumable_pool.run.stopping import BY_CALL, StopRequests, handlers_held_back

from ..conftest import not_on_windows
from ..functions import number_in
from ..stage import PATIENCE

pytestmark = pytest.mark.usefixtures("nothing_left")


def test_more_requests_than_a_pipe_holds_keep_nobody_waiting() -> None:
    """Whoever asks goes on, and each of them is taken once."""
    requests = StopRequests()
    asking = threading.Thread(target=lambda: [requests.ask() for _ in range(20_000)])
    asking.start()
    asking.join(PATIENCE)
    kept_waiting = asking.is_alive()
    taken = [*requests.take()]
    while asking.is_alive():
        taken += requests.take()
    assert (len(taken), set(taken), kept_waiting) == (20_000, {BY_CALL}, False)
    assert wait([requests.wakener], 0) == []
    requests.deliver()


def test_a_request_after_the_end_is_nobodys() -> None:
    """A thread may ask at any moment."""
    requests = StopRequests()
    requests.deliver()
    requests.ask()
    assert not requests.signals


@pytest.mark.parametrize("first_to_end", [0, 1])
def test_runs_that_overlap_in_a_thread_leave_no_handler_behind(first_to_end: int) -> None:
    """Two loops may be taken in turns. A signal is for the one that is still there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        both = [StopRequests() for _ in range(2)]
        for requests in both:
            requests.__enter__()
        ended, living = both[first_to_end], both[1 - first_to_end]
        ended.__exit__(None, None, None)
        signal.raise_signal(signal.SIGINT)
        assert (ended.signals, living.signals) == ([], [signal.SIGINT])
        living.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
        ended.deliver()
        with pytest.raises(KeyboardInterrupt):
            living.deliver()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def late() -> Iterator[Any]:
    """The handler of SIGALRM, meanwhile: it raises."""

    def raise_it(signum: int, frame: Any) -> None:
        raise TimeoutError("all of it takes too long")

    before = signal.signal(signal.SIGALRM, raise_it)
    yield raise_it
    signal.signal(signal.SIGALRM, before)


@not_on_windows("SIGALRM")
@pytest.mark.parametrize("name", ["saver", "probe", "worker 0", "worker 1"])
def test_a_handler_that_raises_while_a_process_is_started_leaves_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, late: Any, name: str
) -> None:
    """The run ends with what it raises, and the checkpoint is free."""
    watch, started = Child._watch_its_end, list[str]()

    def then_raise(child: Child, context: Any) -> None:
        watch(child, context)
        started.append(child.name)
        if started.count(name) == 1 and child.name == name:
            signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(Child, "_watch_its_end", then_raise)
    options: Any = {"max_workers": 2, "mp_context": "fork", "timeout": 60, "progress": False}
    runner = ResumableRunner(number_in, "in/*.txt", "result.pkl", **options)
    with pytest.raises(TimeoutError):
        runner.run()
    assert signal.getsignal(signal.SIGALRM) is late
    assert runner.run().ok


@not_on_windows("SIGALRM")
def test_a_handler_that_raises_where_the_loop_jumps_back_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, late: Any
) -> None:
    """From there Python 3.13 leaves no block by its `__exit__`: the run ends all the same."""
    over, rounds = Run._over, itertools.count()
    # What is done in C, when a missing key is asked for: the next look at signals is in the jump.
    alarm = defaultdict[str, Any](functools.partial(_thread.interrupt_main, signal.SIGALRM))

    def not_over(run: Run) -> bool:
        result: bool = alarm["no"] if next(rounds) == 2 else over(run)
        return result

    monkeypatch.setattr(Run, "_over", not_over)
    options: Any = {"max_workers": 2, "mp_context": "fork", "progress": False}
    runner = ResumableRunner(number_in, "in/*.txt", "result.pkl", **options)
    with pytest.raises(TimeoutError):
        runner.run()
    assert not multiprocessing.active_children()
    assert runner.run().ok


@not_on_windows("SIGALRM")
def test_a_handler_that_raises_where_handlers_begin_to_be_held_back_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in a run that is, and so at its end, which must not be left out."""
    valid, pid = signal.valid_signals, os.getpid()

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError("all of it takes too long")

    before = signal.signal(signal.SIGALRM, late)
    options: Any = {"max_workers": 1, "mp_context": "fork", "progress": False}
    ended, place = False, 0
    try:
        while not ended:
            times = itertools.count()

            def valid_signals(times: Iterator[int] = times, place: int = place) -> Any:
                if os.getpid() == pid and next(times) == place:
                    signal.raise_signal(signal.SIGALRM)
                return valid()

            monkeypatch.setattr(signal, "valid_signals", valid_signals)
            runner = ResumableRunner(number_in, "in/*.txt", f"{place}.pkl", **options)
            with contextlib.suppress(TimeoutError):
                ended = runner.run().ok
            assert not multiprocessing.active_children()
            place += 1
    finally:
        signal.signal(signal.SIGALRM, before)


@not_on_windows("SIGALRM")
def test_no_handler_is_lost_if_another_one_raises_while_they_are_put_back() -> None:
    """Whichever has not been put back by then still hears of its signal."""
    heard = list[int]()

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError

    def look_busy() -> None:  # not in the `with`, see the test above
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            pass

    before = {
        signal.SIGALRM: signal.signal(signal.SIGALRM, late),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda signum, frame: heard.append(signum)),
    }
    gc.collect()  # Python drops what is raised in a finalizer: none is to run here
    gc.disable()
    try:
        for attempt in range(3_000):
            with contextlib.suppress(TimeoutError):
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (1 + attempt % 20))
                with handlers_held_back():
                    pass
                look_busy()
            signal.raise_signal(signal.SIGTERM)
            assert len(heard) == attempt + 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        gc.enable()
        for signum, handler in before.items():
            signal.signal(signum, handler)


@not_on_windows("SIGALRM")
def test_a_handler_that_raises_while_it_is_put_back_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Until it is, it waits."""
    put = signal.signal

    def late(signum: int, frame: Any) -> None:
        raise TimeoutError

    def put_when_it_has_come(signum: int, handler: Any) -> None:
        signal.raise_signal(signal.SIGALRM)
        put(signum, handler)

    before = signal.signal(signal.SIGALRM, late)
    try:
        with pytest.raises(TimeoutError), handlers_held_back():
            monkeypatch.setattr(signal, "signal", put_when_it_has_come)
        assert signal.getsignal(signal.SIGALRM) is late
    finally:
        put(signal.SIGALRM, before)


@not_on_windows("SIGALRM")
def test_a_handler_that_raises_while_a_worker_is_buried_leaves_nothing_of_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, late: Any
) -> None:
    """No descriptor either."""
    forget, buried = Child._forget, list[str]()

    def raise_first(child: Child) -> None:
        buried.append(child.name)
        if buried == ["worker 0"]:
            signal.raise_signal(signal.SIGALRM)
        forget(child)

    monkeypatch.setattr(Child, "_forget", raise_first)
    options: Any = {"max_workers": 1, "mp_context": "fork", "progress": False}
    with pytest.raises(TimeoutError):
        ResumableRunner(number_in, "in/*.txt", "result.pkl", **options).run()


def test_handlers_are_put_back_although_another_one_has_raised() -> None:
    """A Ctrl-C has its usual effect once the run is over: nobody else would hear it any more."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        requests = StopRequests()
        requests.__enter__()
        requests.deliver()
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@not_on_windows("SIGALRM")
def test_signals_in_a_storm_while_handlers_are_held_back_are_delivered_once() -> None:
    """As many as come while a process takes long to start: each is delivered as if it had been
    blocked."""
    heard = list[int]()
    signals = signal.SIGALRM, signal.SIGUSR1
    before = [signal.signal(each, lambda signum, frame: heard.append(signum)) for each in signals]
    try:
        with handlers_held_back():
            for number in range(3_000):
                signal.raise_signal(signals[number % 2])
        assert sorted(heard) == sorted(signals)
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@not_on_windows("SIGALRM")
@pytest.mark.parametrize("step", [(Crew, "kill"), (Worker, "bury"), (Saver, "bury")])
def test_a_handler_that_raises_while_the_run_ends_leaves_no_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[type[Any], str]
) -> None:
    """A timer that goes on, say: the run ends with what it raised, and the checkpoint is free."""

    def over(signum: int, frame: Any) -> None:
        raise TimeoutError("all of it takes too long")

    def raises_first(taken: Any) -> Any:
        def instead(*given: Any) -> Any:
            signal.raise_signal(signal.SIGALRM)
            return taken(*given)

        return instead

    before = signal.signal(signal.SIGALRM, over)
    options: Any = {"max_workers": 2, "mp_context": "fork", "progress": False}
    runner = ResumableRunner(number_in, "in/*.txt", "result.pkl", **options)
    try:
        with monkeypatch.context() as patches:
            for owner, name in [(Crew, "begin"), step]:
                patches.setattr(owner, name, raises_first(getattr(owner, name)))
            with pytest.raises(TimeoutError):
                runner.run()
        assert runner.run().ok
    finally:
        signal.signal(signal.SIGALRM, before)
