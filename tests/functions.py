"""Functions for workers: in a module, so that every start method can send them."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

if sys.platform == "win32":
    import msvcrt

CALLS = Path("calls")  # in the folder of the run
KILL = getattr(signal, "SIGKILL", 9)  # which has no name on Windows, and works


def number_in(path: str) -> int:
    """The number that the file holds; notes the call."""
    note(path)
    return int(Path(path).read_text())


def number_slowly(path: str) -> int:
    """The same, in a hundredth of a second."""
    time.sleep(0.01)
    return number_in(path)


def number_in_bursts(path: str) -> int:
    """The same; most files are quick, but each hundredth takes as long as a batch of them."""
    if path.endswith("00.txt"):
        time.sleep(0.02)
    return number_in(path)


def note(path: str) -> None:
    """One line per call: a write this small is never torn or mixed with another."""
    with open(CALLS, "ab", buffering=0) as file, _alone_with(file):
        file.write(f"{os.getpid()} {path}\n".encode())


@contextlib.contextmanager
def _alone_with(file: FileIO) -> Iterator[None]:
    """On Windows, where the end of a file is looked for before it is written to. The lock is on a
    byte that no file here has, and so keeps no reader out."""
    if sys.platform == "win32":
        while True:
            file.seek(1 << 30)
            try:
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                break
            except PermissionError:  # not LK_LOCK, which tries once a second
                time.sleep(0.001)
    yield  # who closes the file gives up the lock


def calls() -> list[str]:
    """The paths that were noted, sorted."""
    return sorted(line.split()[1] for line in CALLS.read_text().splitlines())


def callers() -> set[str]:
    """The processes that noted a call."""
    return {line.split()[0] for line in CALLS.read_text().splitlines()}


def falsy(path: str) -> object:
    note(path)
    return [None, False, 0, "", b"", [], 0.0, (), {}, set()][int(Path(path).read_text())]


# Exceptions of the difficult kind.


class NeedsTwo(Exception):
    """Pickles, but cannot be unpickled."""

    def __init__(self, one: object, two: object) -> None:
        super().__init__(one)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not me")


class FailsToUnpickle:
    def __reduce__(self) -> Any:
        return _refuse, ()


class ExitsAtUnpickling:
    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class FailsToPickle:
    def __reduce__(self) -> Any:
        raise ValueError("secret")


def _refuse() -> None:
    raise ValueError("cannot be made again")


def deep_list() -> list[Any]:
    outermost: list[Any] = []
    innermost = outermost
    for _ in range(100_000):
        innermost.append([])
        innermost = innermost[0]
    return outermost


# What a function can do to itself, to its file and to its worker, by name.


def raise_(error: BaseException) -> None:
    raise error


RAISING: dict[str, Callable[[], Any]] = {
    "ValueError": lambda: raise_(ValueError("seven is bad")),
    "StopIteration": lambda: raise_(StopIteration(7)),
    "GeneratorExit": lambda: raise_(GeneratorExit()),
    "SystemExit": lambda: sys.exit("leaving"),
    "KeyboardInterrupt": lambda: raise_(KeyboardInterrupt()),
    "NeedsTwo": lambda: raise_(NeedsTwo(1, 2)),
    "Unprintable": lambda: raise_(Unprintable()),
    "Unpicklable": lambda: raise_(Unpicklable("held back")),
    "RecursionError": lambda: repr(deep_list()),
}

RETURNING: dict[str, Callable[[], Any]] = {
    "a lambda": lambda: lambda: None,
    "what fails to pickle": FailsToPickle,
    "what fails to unpickle": FailsToUnpickle,
    "what exits at unpickling": ExitsAtUnpickling,
    "an exception that fails to unpickle": lambda: NeedsTwo(1, 2),
    "a very deep list": deep_list,
    "a lock": threading.Lock,
}

DYING: dict[str, Callable[[], Any]] = {
    "SIGKILL": lambda: os.kill(os.getpid(), KILL),
    "SIGTERM": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "SIGINT": lambda: os.kill(os.getpid(), signal.SIGINT),
    "SIGSEGV": lambda: ctypes.string_at(0),
    "os._exit(0)": lambda: os._exit(0),
    "os._exit(3)": lambda: os._exit(3),
    "exit in a library": lambda: ctypes.CDLL(None).exit(0),
    "all descriptors closed": lambda: os.closerange(3, 1 << 16),
    "dies in a forked child's hands": lambda: _fork_and_die(),
}


if sys.platform == "win32":  # where most of them are one and the same
    DYING = {name: DYING[name] for name in ("SIGKILL", "os._exit(0)", "os._exit(3)")}


def _fork_and_die() -> None:
    """A child in C, which no hook of Python sees, keeps the worker's pipes open."""
    if ctypes.CDLL(None).fork() == 0:
        signal.pause()
    os.kill(os.getpid(), KILL)


def sabotage(path: str) -> Any:
    """Number 7 does what its file says, in the table that its file says; the others are well."""
    note(path)
    text = Path(path).read_text()
    if not text.startswith("!"):
        return int(text)
    table, _, name = text[1:].partition(":")
    tables: dict[str, Any] = {"raise": RAISING, "return": RETURNING, "die": DYING}
    return tables[table][name]()


def die(path: str) -> None:
    note(path)
    os.kill(os.getpid(), KILL)


def wander(path: str) -> str:
    """Reads a relative path, and leaves for elsewhere."""
    text = Path(path).read_text()
    os.chdir("/")
    return text


def misbehave(path: str) -> str:
    """Leaves all sorts of things behind, and returns."""
    note(path)
    if os.fork() == 0:
        return "from the copy"  # the function returns twice
    if os.fork() == 0:
        os.execvp("sleep", ["sleep", "2"])
    threading.Thread(target=threading.Event().wait).start()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdout.close()
    os.umask(0)
    os.chdir("/")
    return "well"


def set_alarm(path: str) -> float:
    """Returns while something is still ticking: an alarm, and a thread that never ends. The result
    is how long the alarm that it found still had."""
    note(path)
    threading.Thread(target=threading.Event().wait).start()
    found, _ = signal.setitimer(signal.ITIMER_REAL, 600)
    time.sleep(0.002)  # quicker files share one look at what they have left
    return found


def break_worker(path: str) -> int:
    """Number 7 makes the worker's own code raise, and leaves a thread that never ends."""
    note(path)
    number = int(Path(path).read_text())
    if number == 7:
        threading.Thread(target=threading.Event().wait).start()
        sys.setprofile(_raise_in_send)
    return number


def _raise_in_send(frame: Any, event: str, argument: object) -> None:
    if frame.f_code.co_name == "_write":
        raise RuntimeError("from a hook")


def return_twice_from_c(path: str) -> str:
    """Forks where no hook of Python sees it, and returns in both processes."""
    note(path)
    ctypes.CDLL(None).fork()
    return f"from {os.getpid()}"


def wait_for_copy(path: str) -> str:
    """Forks, and waits for the copy, which leaves as a program does."""
    note(path)
    if (pid := os.fork()) == 0:
        sys.exit()
    os.waitpid(pid, 0)
    return "well"


def read_terminal(path: str) -> bytes:
    return os.read(0, 1)


def append(path: str) -> int:
    with open(path, "a") as file:
        return file.write("x")


def remove(path: str) -> None:
    os.unlink(path)


def remove_checkpoint(path: str) -> str:
    """Number 3 removes what the results are saved in."""
    if Path(path).read_text() == "3":
        Path("result.pkl").unlink()
    return path


# What a function can be doing when its time is up, by name.


def _sleep_on() -> None:
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


def _sleep_with_handler(handler: Any) -> None:
    signal.signal(signal.SIGTERM, handler)
    time.sleep(600)


def _sleep_with_signals_blocked() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    time.sleep(600)


def _loop() -> None:
    while True:
        pass


class SleepsAtPickling:
    def __reduce__(self) -> Any:
        time.sleep(600)
        return str, ()


class SleepsAtPrinting(Exception):
    def __str__(self) -> str:
        time.sleep(600)
        return ""


class SleepsAtItsEnd:
    def __del__(self) -> None:
        time.sleep(600)


def _raise(kind: type[Exception], held: object) -> None:
    raise kind


# When the call itself is over.
_HANGING_LATE: dict[str, Any] = {
    "sleeps at pickling": SleepsAtPickling,
    "sleeps when its error is told": lambda: _raise(SleepsAtPrinting, None),
    "sleeps when what its error held dies": lambda: _raise(ValueError, SleepsAtItsEnd()),
}
HANGING: dict[str, Any] = {
    **_HANGING_LATE,
    "sleeps": lambda: time.sleep(600),
    "loops": _loop,
    "holds the interpreter in C": lambda: ctypes.PyDLL(None).sleep(600),
    "swallows every exception": _sleep_on,
    "ignores SIGTERM": lambda: _sleep_with_handler(signal.SIG_IGN),
    "makes an exit of SIGTERM": lambda: _sleep_with_handler(lambda *_: sys.exit("told to")),
    "blocks signals": _sleep_with_signals_blocked,
    "waits for a subprocess": lambda: os.system("sleep 600"),
    "waits for a subprocess, which ignores SIGTERM": lambda: os.system("trap '' TERM; sleep 600"),
    "waits for a forked child": lambda: os.waitpid(_fork_and_sleep(), 0),
}


if sys.platform == "win32":
    _SLEEP = f'"{sys.executable}" -c "import time; time.sleep(600)"'
    HANGING = {
        name: HANGING[name]
        for name in ("sleeps", "loops", "swallows every exception", *_HANGING_LATE)
    }
    HANGING["waits for a subprocess"] = lambda: os.system(f'"{_SLEEP}"')


def _fork_and_sleep() -> int:
    if (pid := os.fork()) == 0:
        time.sleep(600)
    return pid


def hang(path: str) -> Any:
    """As the file says, until the end of time."""
    note(path)
    return HANGING[Path(path).read_text()]()


def fail_or_fail_to_end(path: str) -> None:
    """Number 0 raises at once, 1 when it is told to end."""
    note(path)
    if number_of(path) == 0:
        raise ValueError("0 is bad")
    _sleep_with_handler(lambda *_: sys.exit("told to"))


def hang_without_a_word(path: str) -> None:
    """Number 0 leaves word as if it had been done at the last moment; then comes one that is
    stopped, and cannot."""
    if number_of(path) == 0:
        (worker,) = (o for o in gc.get_objects() if type(o).__name__ == "_InWorker")
        os.write(worker._last_words, b"Timeout (of another file)!\n")
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


def sleep_a_while(path: str) -> None:
    time.sleep(float(Path(path).read_text()))


# What fails at first.


def fail_twice(path: str) -> int:
    """Odd numbers fail twice: 1, 5, 9 raise, 3 takes its worker along, 7 takes too long."""
    note(path)
    number = number_of(path)
    if number % 2 and calls().count(path) < 3:
        if number == 3:
            os.kill(os.getpid(), KILL)
        if number == 7:
            time.sleep(600)
        raise ValueError("not yet")
    return number


def number_of(path: str) -> int:
    return int(Path(path).read_text())


def fail(path: str) -> None:
    note(path)
    raise ValueError(f"{number_of(path)} is bad")


# Initializers.


def begin_together(number: int) -> None:
    """No call begins before so many workers have been started, however long that takes."""
    with open("begun-together", "ab", buffering=0) as begun:
        begun.write(b".")
    while os.path.getsize("begun-together") < number:
        time.sleep(0.01)


def take_a_second() -> None:
    time.sleep(1)


def take_longer() -> None:
    time.sleep(1.3)


loaded: list[str] = []


def load(name: str) -> None:
    loaded.append(name)


def what_is_loaded(path: str) -> list[str]:
    return loaded


def fail_to_load() -> None:
    raise RuntimeError("the model is not there")


def die_loading() -> None:
    os.kill(os.getpid(), KILL)


def die_every_other_time() -> None:
    """Not the first time: on Windows, where a kill is a status like any other, that may be a reason
    that will not go away."""
    with open("started", "ab", buffering=0) as started:
        started.write(b".")
    if os.path.getsize("started") % 2 == 0:
        os.kill(os.getpid(), KILL)


def exit_loading() -> None:
    os._exit(0)


def die_soon() -> None:
    """Is ready, and dies before it has a file."""
    sys.setprofile(_die_in_receive)


def _die_in_receive(frame: Any, event: str, argument: object) -> None:
    if frame.f_code.co_name == "_receive":
        os.kill(os.getpid(), KILL)
