"""The contract of a checkpoint as a machine of states: whatever is done to one in whatever order,
readers find what was saved. Real writers, in processes of their own, which end well or are killed.
"""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_pool.checkpoints import checkpoint_at
from tests.checkpoints.conftest import SUFFIXES, failed, result

hypothesis = pytest.importorskip("hypothesis", exc_type=ImportError)
if not hasattr(os, "fork"):
    pytest.skip("writers are forked", allow_module_level=True)

from hypothesis import settings, stateful  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

NAMES = st.sampled_from(["a", "b", "c/d.wav", "ü\udc80", "x" * 300])
VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=50),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    st.sampled_from([5_000, 100_000]).map("y".__mul__),
)
RESULTS = st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=4)


def in_writer(path: Path, write: Callable[[Any], None], end: str) -> None:
    """A process opens the checkpoint, writes, and ends: it closes it, exits, or is killed."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            checkpoint = checkpoint_at(path)
            checkpoint.open()
            write(checkpoint)
            if end == "close":
                checkpoint.close()
            elif end == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert status in (0, signal.SIGKILL), "the writer has failed"


class Contract(stateful.RuleBasedStateMachine):
    """A checkpoint, and what it must have."""

    suffix = ""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="contract-")
        self.path = Path(self.folder.name) / f"result{self.suffix}"
        self.results: dict[str, Any] = {}
        self.failures: set[str] = set()
        self.settled = True

    def teardown(self) -> None:
        self.folder.cleanup()

    @stateful.rule(
        batches=st.lists(RESULTS, min_size=1, max_size=3),
        sync=st.booleans(),
        end=st.sampled_from(["close", "exit", "kill"]),
    )
    def save(self, batches: list[list[tuple[str, Any]]], sync: bool, end: str) -> None:
        def write(checkpoint: Any) -> None:
            for batch in batches:
                made = [result(name, value, checkpoint.encode) for name, value in batch]
                checkpoint.save(made)
                if sync:
                    checkpoint.sync()

        in_writer(self.path, write, end)
        for name, value in (pair for batch in batches for pair in batch):
            self.results[name] = value
            self.failures.discard(name)
        self.settled = end == "close"

    @stateful.rule(name=NAMES, end=st.sampled_from(["close", "kill"]))
    def fail(self, name: str, end: str) -> None:
        in_writer(self.path, lambda checkpoint: checkpoint.save_failures([failed(name)]), end)
        self.failures.add(name)
        self.settled = end == "close"

    @stateful.rule()
    def open_and_close(self) -> None:
        in_writer(self.path, lambda checkpoint: None, "close")
        self.settled = True

    @stateful.rule()
    def settle(self) -> None:
        checkpoint_at(self.path).settle()

    @stateful.precondition(lambda self: self.path.exists())
    @stateful.rule()
    def compact(self) -> None:
        checkpoint_at(self.path).compact()
        self.settled = True

    @stateful.invariant()
    def readers_find_it(self) -> None:
        checkpoint = checkpoint_at(self.path)
        assert dict(checkpoint) == self.results
        assert {*checkpoint.failures()} == self.failures
        assert {entry.path for entry in checkpoint.entries()} == {*self.results, *self.failures}

    @stateful.precondition(lambda self: self.settled and self.path.exists())
    @stateful.invariant()
    def nothing_is_wrong_with_it(self) -> None:
        assert checkpoint_at(self.path).check() == []
        if self.suffix == ".pkl":
            assert pickle.loads(self.path.read_bytes()) == self.results


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whatever_happens_to_a_checkpoint_it_has_what_was_saved(suffix: str) -> None:
    """Saved, failed, synced, killed, reopened, settled and compacted, in any order."""
    machine = type("Machine", (Contract,), {"suffix": suffix})
    rounds = int(os.environ.get("RESUMABLE_POOL_EXAMPLES", "8"))
    stateful.run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=rounds, stateful_step_count=10, deadline=None, database=None,
            derandomize=rounds <= 8,
        ),
    )  # fmt: skip
