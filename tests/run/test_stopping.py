"""How a run is stopped, as a table: what is asked for and when, and what comes of it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from resumable_pool.run.stopping import (
    BY_CALL,
    CONSOLE_CLOSED,
    SAVING_SECONDS,
    TIME_OVER,
    Phase,
    Stopping,
)

GRACE = 10.0
GOING, FINISHING, ABANDONING, GIVEN_UP = Phase
LATE = GRACE + SAVING_SECONDS

# Each case is requests with their times, and then: the phase at the time of the last one, and what
# is said of each of them (`None` for those that change nothing).
CASES: dict[str, tuple[list[tuple[float, str]], Phase, list[str | None]]] = {
    "nothing": ([], GOING, []),
    "asked": ([(0, BY_CALL)], FINISHING, [""]),
    "asked again and again": (
        [(0, BY_CALL), (99, BY_CALL), (999, TIME_OVER)], FINISHING, ["", None, None]
    ),
    "a Ctrl-C": ([(0, "SIGINT")], FINISHING, ["; press it again to abandon them"]),
    "a Ctrl-C after it was asked": (
        [(0, TIME_OVER), (1, "SIGINT")], FINISHING, ["", "; press it again to abandon them"]
    ),
    "two": ([(0, "SIGINT"), (1, "SIGINT")], ABANDONING,
            ["; press it again to abandon them", None]),
    "three at once": (
        [(0, "SIGINT"), (1, "SIGINT"), (1, "SIGINT")], ABANDONING,
        ["; press it again to abandon them", None, None],
    ),
    "a third one after a while": (
        [(0, "SIGINT"), (1, "SIGINT"), (1 + SAVING_SECONDS, "SIGINT")], GIVEN_UP,
        ["; press it again to abandon them", None, None],
    ),
    "who only asks gives nothing up": (
        [(0, "SIGINT"), (1, "SIGINT"), (99, BY_CALL)], ABANDONING,
        ["; press it again to abandon them", None, None],
    ),
    "to end": ([(0, "SIGTERM")], FINISHING, [", for 10 s at most"]),
    "to end, and the time is over": (
        [(0, "SIGTERM"), (GRACE, BY_CALL)], ABANDONING, [", for 10 s at most", None]
    ),
    "to end twice does not take longer": (
        [(0, "SIGTERM"), (9, "SIGHUP"), (GRACE, BY_CALL)], ABANDONING,
        [", for 10 s at most", ", for 10 s at most", None],
    ),
    "to end, and once more when that has lasted": (
        [(0, "SIGTERM"), (GRACE, BY_CALL), (LATE, "SIGTERM")], GIVEN_UP,
        [", for 10 s at most", None, None],
    ),
    "a console that is closed": (
        [(0, CONSOLE_CLOSED), (3, BY_CALL)], ABANDONING, [", for 3.0 s at most", None]
    ),
}  # fmt: skip


@pytest.mark.parametrize(("requests", "phase", "said"), CASES.values(), ids=CASES.keys())
def test_requests(requests: list[tuple[float, str]], phase: Phase, said: list[str | None]) -> None:
    """Each sequence of requests leads to what the table says, and says what it says."""
    stopping = Stopping(GRACE)
    heard: list[str | None] = []
    for now, request in requests:
        if now >= stopping.due:
            stopping.abandon(now)
        heard.append(stopping.hear(request, now))
        if heard[-1] is not None:
            stopping.stop()
        if now >= stopping.due:
            stopping.abandon(now)
    assert (stopping.phase, heard) == (phase, said)
    assert stopping.stopped == bool(requests)


def test_that_nothing_is_saved_is_said_once() -> None:
    """When somebody may insist; and then there is nothing more to wait for by the clock."""
    stopping = Stopping(GRACE)
    stopping.hear("SIGTERM", 0.0)
    assert stopping.stop()
    assert not stopping.stop()
    assert stopping.due == GRACE
    assert stopping.abandon(GRACE)
    assert stopping.due == LATE
    assert not stopping.abandon(LATE)
    assert stopping.due > 1e9
    assert stopping.phase is ABANDONING


SUSPENDED = """
import ctypes, os, sys
from resumable_pool.run.stopping import StopRequests
requests = StopRequests(600)
print([*requests.take()])
if ctypes.CDLL(None).setns(os.open(sys.argv[1], os.O_RDONLY), 0x80):
    sys.exit("may not")
print([*requests.take()])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a Linux has this")
def test_a_set_time_goes_on_while_the_machine_is_suspended() -> None:
    """Of which a namespace knows the one clock that shows it."""
    sleeper = ["unshare", "--time", "--boottime", "3600", "sleep", "60"]
    with subprocess.Popen(sleeper, stderr=subprocess.DEVNULL) as process:
        names = Path(f"/proc/{process.pid}")
        while process.poll() is None and (names / "comm").read_text() != "sleep\n":
            time.sleep(0.01)
        command = [sys.executable, "-c", SUSPENDED, str(names / "ns/time_for_children")]
        told = subprocess.run(command, capture_output=True, text=True)
        process.kill()
    if process.returncode != -9 or "may not" in told.stderr:
        pytest.skip("needs a time namespace")
    assert told.stdout == f"[]\n[{TIME_OVER!r}]\n", told.stderr
