"""Requests to stop, without a run."""

from __future__ import annotations

import signal
import threading
from multiprocessing.connection import wait

import pytest

from resumable_pool.run.stopping import BY_CALL, StopRequests

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
