"""What only Windows does otherwise, on Windows: pipes, waits, and what stops processes there."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, ResumableRunner, open_checkpoint
from resumable_pool.between import children, forks, frames, pipes, system
from resumable_pool.between.messages import Values
from resumable_pool.between.waiting import Waiter
from resumable_pool.checkpoints import checkpoint_at

from .checkpoints.conftest import result, write

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="Windows")

CONTEXT = multiprocessing.get_context("spawn")


@pytest.fixture
def pipe() -> Iterator[tuple[pipes.End, pipes.End]]:
    ends = pipes.pipe(duplex=False)
    yield ends
    forks.close(*ends)


def count_words(path: str) -> int:
    return len(Path(path).read_text(encoding="utf-8").split())


def test_files_are_processed(tmp_path: Path) -> None:
    """A run ends with every result saved, and no error at its end."""
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("one two", encoding="utf-8")
    runner = ResumableRunner(count_words, f"{tmp_path}/*.txt", tmp_path / "r.pkl", max_workers=2)
    assert runner.run().completed == 2
    assert sorted(runner.results.values()) == [2, 2]


def start_out_of_the_job(path: str) -> int:
    flags = getattr(subprocess, "CREATE_BREAKAWAY_FROM_JOB", 0)
    return subprocess.call([sys.executable, "-c", "raise SystemExit(3)"], creationflags=flags)


def test_what_a_function_starts_may_leave_the_job(tmp_path: Path) -> None:
    """Windows refuses to start it where the job does not say so."""
    (tmp_path / "a.txt").touch()
    runner = ResumableRunner(start_out_of_the_job, f"{tmp_path}/*.txt", tmp_path / "r.pkl")
    assert runner.run().completed == 1
    assert [*runner.results.values()] == [3]


@contextlib.contextmanager
def held(path: Path, shared: int) -> Iterator[None]:
    """Somebody has it open, and lets others read (1) or write it (2), or nobody (0)."""
    import _winapi

    arguments = str(path), _winapi.GENERIC_READ, shared, 0, _winapi.OPEN_EXISTING, 0, 0
    handle = _winapi.CreateFile(*arguments)
    try:
        yield
    finally:
        _winapi.CloseHandle(handle)


@pytest.mark.parametrize("suffix", [".pkl", ".jsonl", ".sqlite"])
def test_a_checkpoint_that_a_program_has_open_says_so(tmp_path: Path, suffix: str) -> None:
    """As one that may not be read or written does, of which Windows says the same."""
    path = tmp_path / f"r{suffix}"
    write(path, result("a", 1))
    told = "or another program has this file open: close it there, and try again"
    for call in (open_checkpoint, lambda path: checkpoint_at(path).compact()):
        with held(path, 0), pytest.raises(CheckpointError, match=f"for reading: .*{told}"):
            call(path)
    with held(path, 0):
        assert told in " ".join(checkpoint_at(path).check())
    with held(path, 1), pytest.raises(OSError, match=told):
        checkpoint_at(path).compact()


def test_a_pipe_closed_at_the_other_end_is_ready(
    pipe: tuple[pipes.End, pipes.End],
) -> None:
    """As on POSIX: that no more can come is found by reading."""
    reader, writer = pipe
    forks.close(writer)
    assert pipes.wait([reader], 0) == [reader]
    with pytest.raises(EOFError):
        reader.recv_bytes()


def test_a_wait_survives_a_handler(pipe: tuple[pipes.End, pipes.End]) -> None:
    """A handler of SIGINT that returns ends the wait, and raises nothing out of it."""
    heard = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: heard.set())
    try:
        interrupter = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        interrupter.start()
        while not heard.is_set():
            assert pipes.wait([pipe[0]], None) == []
        interrupter.join()
    finally:
        signal.signal(signal.SIGINT, before)


def write_half(told: Any, said: Any, writer: Any, address: str) -> None:
    """A large frame's beginning, and more of it than the pipe takes."""
    with Client(address) as stage:
        stage.send(os.getpid())
    record = bytes(1 << 22)
    writer.send_bytes(frames._FRAME.pack(frames._VALUE, 2 * len(record)) + record)


def test_a_writer_that_dies_in_the_middle_of_a_message_ends_its_stream(
    pipe: tuple[pipes.End, pipes.End],
) -> None:
    """What was whole is received, and what was not is no error."""
    reader, writer = pipe
    pipes.write(writer.fileno(), [frames._FRAME.pack(frames._VALUE, 4), b"rest"])
    with Listener(family="AF_PIPE") as stage:
        child = children.Child(CONTEXT, "test", write_half, (stage.address,), Waiter(), writer)
        forks.close(writer)
        with stage.accept() as told:
            told.recv()
    taken = frames.FrameReader(reader)
    received = taken.messages()
    while len(received) < 1 or not taken._unread:  # it has begun to write
        pipes.wait([reader], None)
        received += taken.messages()
    child.signal_group("SIGKILL")
    while not taken.at_end:
        pipes.wait([reader], None)
        received += taken.messages()
    assert received == [Values([b"rest"])]
    assert system.was_killed(child.reap(in_peace=False)[0])


def test_a_large_value_arrives_whole(pipe: tuple[pipes.End, pipes.End]) -> None:
    """In as many pieces as it takes."""
    reader, writer = pipe
    record = os.urandom(5_000_000)
    taken = frames.FrameReader(reader)
    parts = [frames._FRAME.pack(frames._VALUE, len(record)), record]
    sender = threading.Thread(target=pipes.write, args=[writer.fileno(), parts])
    sender.start()
    received: list[Any] = []
    while not received:
        pipes.wait([reader], None)
        received += taken.messages()
    sender.join()
    assert received == [Values([record])]


def test_a_bell_that_is_rung_again_and_again_keeps_nobody() -> None:
    """Also from a handler that interrupts the ringing."""
    bell = system.Bell()
    before = signal.signal(signal.SIGINT, lambda *_: bell.ring())
    try:
        for _ in range(10_000):
            bell.ring()
            signal.raise_signal(signal.SIGINT)
        assert pipes.wait([bell.handle], 0)
        bell.hush()
        assert not pipes.wait([bell.handle], 0)
    finally:
        signal.signal(signal.SIGINT, before)
        bell.close()


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (3, "exited with status 3"),
        (0xC0000005, "crashed with status 0xC0000005, an access violation"),
        (0xC0123456, "crashed with status 0xC0123456"),
        (-15, "was terminated"),
        (None, "died or lost its pipes"),
    ],
)
def test_an_exit_status_says_what_it_means(status: int | None, words: str) -> None:
    """In the system's own numbers, and words."""
    assert system.ending_in_words(status) == words


# The function, its child, the keys and the importing of the script all do as the test says: each
# tells what it is, and waits for its cue.
SCRIPT = """
import os, signal, subprocess, sys, threading
from multiprocessing.connection import Client

def told(what):
    with Client(os.environ["STAGE"]) as stage:
        stage.send(what)
        return stage.recv()

def close_console():
    if __name__ != "__main__":  # Wine does not ask a process that Ctrl-C does not reach
        from resumable_pool.between.system import _hear_in_child
        threading.Thread(target=_hear_in_child, args=[2], daemon=True).start()
        return
    import ctypes
    kernel32, routine = ctypes.WinDLL("kernel32"), ctypes.WinDLL("kernelbase").CtrlRoutine
    begin = ctypes.cast(routine, ctypes.c_void_p)
    kernel32.CreateThread(None, ctypes.c_size_t(0), begin, ctypes.c_void_p(2), 0, None)

def act(path):
    cue = told(path)
    if cue == "child":
        code = "import sys; sys.path.insert(0, '.'); from script import told"
        code += "; told('child'); told('child, still')"
        child = subprocess.Popen([sys.executable, "-c", code])
        cue = told(path)
        if cue == "wait":
            assert child.wait() == 0
    if cue == "close":
        close_console()
        told(path)
    return path

def keys():
    while True:
        key = told("keys")
        if key == "close":
            close_console()
        else:
            os.kill(0, getattr(signal, key))

if __name__ == "__mp_main__" and "STOP_IMPORT" in os.environ:
    told("importing")
if __name__ == "__main__":
    from resumable_pool import ResumableRunner
    threading.Thread(target=keys, daemon=True).start()
    timeout = float(os.environ.get("TIMEOUT", "0")) or None
    print(ResumableRunner(act, "in/*", "r.pkl", max_workers=1, timeout=timeout).run())
"""


# Seconds for a file that hangs. Before they are over its child must have started, which takes long
# under Wine, on a machine that does other things.
TIMEOUT = "15"


class Script:
    """The script above, in a console of its own, and whoever of it waits for a cue."""

    def __init__(self, folder: Path, files: int, **environment: str) -> None:
        (folder / "in").mkdir(exist_ok=True)
        for number in range(files):
            (folder / "in" / f"{number}").touch()
        (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
        self._folder = folder
        self._stage = Listener(family="AF_PIPE")
        self._waiting: list[tuple[str, Connection]] = []
        root = str(Path(pipes.__file__).parents[2])
        environment = {**os.environ, "PYTHONPATH": root, **environment, "STAGE": self._address}
        self.process = self._start(environment)

    @property
    def _address(self) -> str:
        assert isinstance(self._stage.address, str)
        return self._stage.address

    def _start(self, environment: dict[str, str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "script.py"],
            cwd=self._folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            creationflags=getattr(subprocess, "CREATE_NEW_CONSOLE", 0),
        )

    def wait_for(self, who: str, number: int = 1) -> None:
        """Until so many of this name wait for their cues."""
        while len([name for name, _ in self._waiting if name == who]) < number:
            end: Any = self._stage.accept()
            self._waiting.append((os.path.basename(end.recv()), end))

    def cue(self, who: str, what: str = "") -> None:
        self.wait_for(who)
        for entry in self._waiting:
            if entry[0] == who:
                self._waiting.remove(entry)
                with entry[1] as end, contextlib.suppress(BrokenPipeError):  # it has ended
                    end.send(what)
                return

    def end(self) -> str:
        """All that it has printed, once it and all of its processes have ended."""
        assert self.process.stdout is not None
        with self.process.stdout as output:
            said = output.read()
        self.process.wait()
        return said

    def close(self) -> None:
        self._stage.close()
        self.process.kill()
        for _, end in self._waiting:
            end.close()


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[Any]:
    scripts = []

    def start(files: int = 1, **environment: str) -> Script:
        scripts.append(Script(tmp_path, files, **environment))
        return scripts[-1]

    yield start
    for script in scripts:
        script.close()


def test_ctrl_c_reaches_only_the_runner(start_script: Any) -> None:
    """The file in work is finished, and so is what the function has started."""
    script = start_script(files=2)
    script.cue("0", "child")
    script.wait_for("child")
    script.cue("keys", "CTRL_C_EVENT")
    script.wait_for("keys")
    script.cue("0", "wait")
    script.cue("child")
    script.cue("child, still")
    said = script.end()
    assert "Ctrl-C: finishing 1 file" in said
    assert "2 files: 1 done" in said
    assert said.count("Traceback") == 1  # the script's own KeyboardInterrupt


def test_ctrl_c_reaches_no_child_that_is_still_importing(start_script: Any) -> None:
    """It begins as if nothing had been, and leaves when it is told to."""
    script = start_script(STOP_IMPORT="1")
    script.wait_for("importing", 2)  # the saver and a worker
    script.cue("keys", "CTRL_C_EVENT")
    script.wait_for("keys")
    script.cue("importing")
    script.cue("importing")
    said = script.end()
    assert "Ctrl-C: stopping" in said
    assert said.count("Traceback") == 1


def test_a_second_ctrl_c_ends_what_the_function_has_started(start_script: Any) -> None:
    """All that the script has started holds its output open: that ends, or this would hang."""
    script = start_script()
    script.cue("0", "child")
    script.wait_for("child")
    script.cue("keys", "CTRL_C_EVENT")
    script.cue("keys", "CTRL_C_EVENT")
    assert "abandoning 1 file" in script.end()


def test_what_the_function_has_started_ends_with_its_file_at_a_time_out(start_script: Any) -> None:
    """As on POSIX with its process group."""
    script = start_script(TIMEOUT=TIMEOUT)
    script.cue("0", "child")
    script.wait_for("child")
    assert "took longer than 15 s" in script.end()


def test_what_the_function_has_left_running_goes_on(start_script: Any) -> None:
    """A worker that leaves in peace lets go of it."""
    script = start_script()
    script.cue("0", "child")
    script.wait_for("child")
    script.cue("0", "leave")
    script.process.wait()
    script.cue("child")  # it is there to hear
    script.cue("child, still")
    assert "1 file: 1 done" in script.end()


@pytest.mark.parametrize("who", ["keys", "0"])
def test_a_closed_console_is_a_request_to_stop(start_script: Any, who: str) -> None:
    """Whichever of the processes the system asks first: what is in work goes on for a moment."""
    script = start_script(files=2)
    script.wait_for("0")
    script.cue(who, "close")
    if who == "0":
        script.wait_for("0")  # the worker has survived it
    assert script.process.stdout is not None
    assert "the console was closed: finishing 1 file" in script.process.stdout.readline()
    script.cue("0")
    assert "2 files: 1 done" in script.end()


def test_a_hung_file_of_a_killed_script_does_not_lock_the_checkpoint(start_script: Any) -> None:
    """With a time limit its worker is killed by the saver, with all that it has started."""
    script = start_script(TIMEOUT=TIMEOUT)
    script.cue("0", "child")
    script.wait_for("child")
    script.process.kill()
    script.end()
    again = start_script(files=0)
    again.cue("0")
    assert "1 file: 1 done" in again.end()
