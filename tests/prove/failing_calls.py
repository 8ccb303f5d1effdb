"""A system call that fails, and a kill, at every call that the runner, the saver or a worker makes.

    python -m tests.prove.failing_calls [--format SUFFIX...] [--method NAME...] [--role NAME...]
        [--calls NAME...] [--most N] [--sample N]

A script processes a few files. In one of its processes, `strace` makes the n-th call of a kind fail
with an error that this kind may have, or sends SIGKILL there. The process waits for `strace` before
it does the first thing that is ours, so that Python's own start is not in it.

However it comes, the script ends, and all its processes. What it was told is saved is there, in the
words of its status and stderr it has told the truth, and the next run completes everything, without
a word from `check`. Needs `strace`. `--most` bounds how many calls of each kind are tried in each
process (3; 0: all), and `--sample` how many calls altogether, by chance.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

from resumable_pool import open_checkpoint
from resumable_pool.checkpoints import checkpoint_at
from tests.checkpoints.conftest import SUFFIXES
from tests.kill.sweep import plain

ROOT = Path(__file__).parents[2]
FILES = 8
METHODS = ("fork", "spawn", "forkserver")
ROLES = ("runner", "saver", "worker")
KILL = "signal=KILL"
DEADLINE_SECONDS = 45.0  # for a run; only a hang takes so long
AT_ONCE = 2

# What may fail, and how. Not `close`, which would leave open what no real close does.
_READ, _WRITE, _MANY = ("EIO", "EINTR"), ("EIO", "ENOSPC", "EINTR"), ("EMFILE",)
ERRORS: dict[str, Sequence[str]] = {
    "open": ("EMFILE", "EIO", "ENOSPC"),
    "openat": ("EMFILE", "EIO", "ENOSPC"),
    "read": _READ, "pread64": _READ, "preadv": _READ, "preadv2": _READ, "readv": _READ,
    "write": _WRITE, "pwrite64": _WRITE, "pwritev": _WRITE, "pwritev2": _WRITE, "writev": _WRITE,
    "fsync": ("EIO", "ENOSPC", "EINTR"), "fdatasync": ("EIO", "ENOSPC", "EINTR"),
    "ftruncate": _WRITE, "fallocate": _WRITE, "copy_file_range": _WRITE,
    "fadvise64": ("EIO",), "lseek": ("EIO",), "getdents64": ("EIO",), "flock": ("ENOLCK", "EINTR"),
    "stat": ("EIO",), "lstat": ("EIO",), "fstat": ("EIO",), "newfstatat": ("EIO",),
    "access": ("EIO",), "readlink": ("EIO",), "readlinkat": ("EIO",), "getcwd": ("ENOMEM",),
    "link": ("EIO", "ENOSPC"), "linkat": ("EIO", "ENOSPC"), "unlink": ("EIO",),
    "unlinkat": ("EIO",),
    "rename": ("EIO", "ENOSPC"), "renameat": ("EIO", "ENOSPC"), "renameat2": ("EIO", "ENOSPC"),
    "mkdir": ("EIO", "ENOSPC"), "fchmod": ("EIO",), "fchown": ("EIO",),
    "pipe": _MANY, "pipe2": _MANY, "socket": _MANY, "socketpair": _MANY, "epoll_create1": _MANY,
    "dup": _MANY, "dup3": _MANY, "fcntl": _MANY, "eventfd2": _MANY, "pidfd_open": _MANY,
    "poll": ("EINTR", "ENOMEM"), "ppoll": ("EINTR", "ENOMEM"), "select": ("EINTR", "ENOMEM"),
    "pselect6": ("EINTR",), "epoll_wait": ("EINTR",), "epoll_ctl": ("ENOMEM",),
    "clone": ("EAGAIN", "ENOMEM"), "clone3": ("EAGAIN", "ENOMEM"), "fork": ("EAGAIN", "ENOMEM"),
    "vfork": ("EAGAIN", "ENOMEM"), "wait4": ("EINTR",), "waitid": ("EINTR",),
    "sendmsg": ("EINTR", "ENOBUFS"), "recvmsg": ("EINTR", "ENOMEM"),
    "mmap": ("ENOMEM",), "setsid": (), "ioctl": (), "kill": (),
}  # fmt: skip

# What is used for its memory or signals alone, and so often that it would take most of the time.
NOT_KILLED_AT = {"mmap", "munmap", "brk", "mremap", "madvise", "rt_sigaction", "rt_sigprocmask"}

# Where a write to multiprocessing's resource tracker fails, Python waits for that for ever.
_PYTHONS_OWN = re.compile(r'"PROBE:.*\(INJECTED\)')

SCRIPT = """
import ctypes, multiprocessing.process, multiprocessing.util, os, sys
from resumable_pool import ResumableRunner

role, checkpoint, method = sys.argv[1:]

def hold(me):
    try:
        os.close(os.open("taken", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    # PR_SET_PTRACER, PR_SET_PTRACER_ANY: else strace may only attach to what it has started.
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
    with open("held", "w") as held:
        held.write(f"{os.getpid()}\\n")
    with open("go") as go:
        go.readline()

def hold_child(_):
    if multiprocessing.process.current_process().name.startswith(f"resumable_pool {role}"):
        hold(role)

def work(path):
    return {"number": int(path[3:5]), "text": "x" * 3000}

class Telling(ResumableRunner):
    def on_saved(self, outcome):
        if outcome.ok:
            os.write(told, f"{outcome.path}\\n".encode())

if __name__ == "__main__":
    told = os.open("told", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    runner = Telling(
        work, "in/*.txt", checkpoint, max_workers=2, mp_context=method, progress=False, timeout=20
    )
    if role == "runner":
        hold(role)
    elif method == "fork":
        multiprocessing.util.register_after_fork(runner, hold_child)
    report = runner.run()
    print(report)
    sys.exit(0 if report.ok else 1)
elif __name__ == "__mp_main__":
    hold_child(None)
"""

ALL = {f"in/{number:02}.txt": {"number": number, "text": "x" * 3000} for number in range(FILES)}


class Point(NamedTuple):
    """A call, and what happens there."""

    call: str
    number: int
    what: str

    def __str__(self) -> str:
        return f"{self.call} {self.number}, {self.what.partition('=')[2]}"


class Fault(AssertionError):
    """Something that was promised is not so."""


class CannotAttach(Exception):
    """The system does not let strace look at a process here."""


class Script:
    """The script, once: about to run, in a fresh folder, one of its processes waiting for us."""

    def __init__(self, folder: Path, checkpoint: str, method: str, role: str) -> None:
        self._folder = folder
        self._mark = uuid.uuid4().hex
        (folder / "in").mkdir(parents=True)
        for path in ALL:
            (folder / path).touch()
        for name in ("held", "go"):
            os.mkfifo(folder / name)
        # Both ends, so that opening never waits.
        self._held = os.open(folder / "held", os.O_RDWR)
        self._go = os.open(folder / "go", os.O_RDWR)
        (folder / "script.py").write_text(SCRIPT)
        self._out = open(folder / "out", "w+b")  # noqa: SIM115
        self._process = self._start(role, checkpoint, method, self._out)
        self._checkpoint = checkpoint

    def _start(
        self, role: str, checkpoint: str, method: str, out: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
        return subprocess.Popen(
            [sys.executable, "script.py", role, checkpoint, method],
            cwd=self._folder,
            env={**environment, "RESUMABLE_POOL_MARK": self._mark},
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )

    def run(self, *options: str) -> str:
        """Let it go on under strace with these options; until all of its processes have ended. What
        strace has seen."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        trace = self._folder / "trace"
        ready, _, _ = select.select([self._held], [], [], DEADLINE_SECONDS)
        if not ready:
            self._kill_all()
            raise Fault(f"nobody is held: {self.said}")
        pid = int(os.read(self._held, 100))
        strace = subprocess.Popen(
            ["strace", "-p", str(pid), "-o", str(trace), *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert strace.stderr is not None
        words = strace.stderr.readline()
        if b"attached" not in words:
            self._kill_all()
            raise CannotAttach(words.decode())
        os.write(self._go, b"\n")
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._kill_all()
            raise Fault(f"it hangs: {self.said}") from None
        finally:
            self._wait_gone(deadline)
            strace.wait()
            strace.stderr.close()
        return self.trace

    def run_again(self) -> int:
        """The next run, which nobody disturbs."""
        (self._folder / "taken").touch()
        with open(self._folder / "again", "w+b") as out:
            process = self._start("nobody", self._checkpoint, "fork", out)
            return process.wait(DEADLINE_SECONDS)

    @property
    def status(self) -> int:
        """How the script has ended."""
        status = self._process.returncode
        assert status is not None
        return status

    @property
    def trace(self) -> str:
        """What strace has seen so far."""
        return (self._folder / "trace").read_text(errors="replace")

    @property
    def said(self) -> str:
        """What it has said."""
        return (self._folder / "out").read_text(errors="replace").strip()

    def close(self) -> None:
        """Be done with it."""
        self._kill_all()
        self._process.wait()
        self._out.close()
        os.close(self._held)
        os.close(self._go)

    def _processes(self) -> list[int]:
        mark = f"RESUMABLE_POOL_MARK={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if mark in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def _wait_gone(self, deadline: float) -> None:
        while pids := self._processes():
            for pid in pids:
                with contextlib.suppress(OSError):  # gone in between
                    fd = os.pidfd_open(pid)
                    left = max(0.0, deadline - time.monotonic())
                    ready, _, _ = select.select([fd], [], [], left)
                    os.close(fd)
                    if not ready:
                        self._kill_all()
                        raise Fault(f"process {pid} is left behind: {self.said}")

    def _kill_all(self) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Trial:
    """One format, start method and role."""

    def __init__(self, suffix: str, method: str, role: str, home: Path) -> None:
        self._checkpoint = f"result{suffix}"
        self._method, self._role = method, role
        self._home = home
        self.name = f"{suffix} {method} {role}"
        self.ends: Counter[str] = Counter()  # how the runs have ended

    def points(self, calls: Iterable[str] = (), most: int = 0) -> list[Point]:
        """Where this process may be struck: of each kind of call, up to `most` (0: all)."""
        with self._script("undisturbed") as script:
            trace = script.run("-e", "signal=none")
            if script.status != 0:
                raise Fault(f"undisturbed, it says: {script.said}")
        counts = Counter(re.findall(r"^(\w+)\(", trace, re.M))
        points = []
        for call, count in sorted(counts.items()):
            if calls and call not in calls:
                continue
            kinds = [f"error={error}" for error in ERRORS.get(call, ())]
            if call not in NOT_KILLED_AT:
                kinds.append(KILL)
            for number in _spread(count, most):
                points += [Point(call, number, what) for what in kinds]
        return points

    def strike(self, point: Point) -> bool:
        """Disturb a run there; `Fault` if it does not end as promised. Returns whether there was
        such a call this time."""
        with self._script(f"{point.call}-{point.number}-{point.what}") as script:
            injection = f"inject={point.call}:{point.what}:when={point.number}"
            try:
                trace = script.run("-e", f"trace={point.call}", "-e", injection)
            except Fault:
                if _PYTHONS_OWN.search(script.trace):
                    return False
                raise
            if "killed by SIGKILL" not in trace and "(INJECTED)" not in trace:
                return False
            self._judge(script, point)
        return True

    @contextlib.contextmanager
    def _script(self, name: str) -> Iterator[Script]:
        folder = self._home / name
        script = Script(folder, self._checkpoint, self._method, self._role)
        try:
            yield script
        finally:
            script.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _judge(self, script: Script, point: Point) -> None:
        folder = self._home / f"{point.call}-{point.number}-{point.what}"
        path = folder / self._checkpoint
        told = {*(folder / "told").read_text().split()}
        before = dict(open_checkpoint(path)) if path.exists() else {}
        _demand(before.items() <= ALL.items(), "a wrong value")
        _demand(told <= before.keys(), f"lost: {sorted(told - before.keys())}")
        status = script.status
        if status == 0:
            _demand(before == ALL, f"status 0, but {len(before)} files are done: {script.said}")
            end = "all done"
        elif status == -signal.SIGKILL:
            _demand(self._role == "runner", f"the runner was killed: {script.said}")
            end = "killed"
        else:
            _demand(status == 1, f"status {status}: {script.said}")
            _demand(script.said != "", "not a word")
            end = "said so"
        self.ends[end] += 1
        again = script.run_again()
        words = (folder / "again").read_text(errors="replace")
        _demand(again == 0, f"the next run ends with {again}: {words}")
        for after in (dict(open_checkpoint(path)), plain(str(path))):
            _demand(after == ALL, f"after the next run: {len(after)} values")
        findings = checkpoint_at(path).check()
        _demand(findings == [], f"check: {findings}")
        beside = [name for name in os.listdir(folder) if name.startswith(f"{self._checkpoint}.")]
        # A lock file that nobody holds stays until somebody has something to write.
        left = [name for name in beside if not name.endswith(".lock")]
        _demand(left == [], f"left: {left}")


def _demand(true: bool, otherwise: str) -> None:
    if not true:
        raise Fault(otherwise)


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` numbers from 1 to `count`: the first, the last, and some in between."""
    if not most or count <= most:
        return [*range(1, count + 1)]
    if most == 1:
        return [(count + 1) // 2]
    return [1 + (count - 1) * each // (most - 1) for each in range(most)]


def _struck(trial: Trial, point: Point) -> tuple[bool, str]:
    try:
        return trial.strike(point), ""
    except CannotAttach:
        raise
    except Exception as error:
        words = str(error).replace("\n", " / ")
        return True, f"{trial.name}, {point}: {type(error).__name__}: {words[:600]}"


def try_all(trial: Trial, points: Sequence[Point], at_once: int = AT_ONCE) -> tuple[int, list[str]]:
    """How many of the points there were, and what is wrong."""
    with ThreadPoolExecutor(at_once) as pool:
        results: list[Any] = [*pool.map(lambda point: _struck(trial, point), points)]
    return sum(hit for hit, _ in results), [words for _, words in results if words]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.prove.failing_calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", nargs="+", choices=SUFFIXES, default=SUFFIXES)
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--role", nargs="+", choices=ROLES, default=ROLES)
    parser.add_argument("--calls", nargs="+", default=(), metavar="NAME")
    parser.add_argument("--most", type=int, default=3, metavar="N")
    parser.add_argument("--sample", type=int, metavar="N")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    if not shutil.which("strace"):
        print("strace is not installed")
        return 0
    trials = [*itertools.product(options.format, options.method, options.role)]
    chance = random.Random(options.seed)
    total, faults = 0, 0
    for suffix, method, role in trials:
        with tempfile.TemporaryDirectory(prefix="calls-") as home:
            trial = Trial(suffix, method, role, Path(home))
            points = trial.points(options.calls, options.most)
            if options.sample is not None:
                share = max(1, options.sample // len(trials))
                points = chance.sample(points, min(len(points), share))
            struck, found = try_all(trial, points)
        ends = ", ".join(f"{end} {count}" for end, count in sorted(trial.ends.items()))
        print(f"{trial.name}: {struck} struck ({ends}), {len(found)} faults", flush=True)
        print(*(f"  {words}\n" for words in found), sep="", end="", flush=True)
        total += struck
        faults += len(found)
    print(f"{total:,} calls struck, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
