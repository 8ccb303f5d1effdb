"""Every state in which a power cut may leave a checkpoint, on real file systems.

    sudo python -m tests.prove.power_cuts [--system NAME...] [--format SUFFIX...] [--states N]

A checkpoint lives through its whole life (adopted, saved to, synced, reopened, left half-done by a
writer that is killed, settled, compacted, merged) on a file system on a loop device, whose file is
one of ours: it is served through /dev/fuse, and notes each write and each flush. What may be on the
disk after a power cut is what was written up to a flush, and any of the writes after it, the last
of them torn at a sector. Such states are made and mounted. The file system repairs itself, and then
the checkpoint must be readable, hold all that was promised by then and nothing else, take the next
run, and be sound for everybody afterwards.

Needs root on Linux, /dev/fuse, a loop device, and the file systems' mkfs. All is mounted in a
namespace of its own, which ends with this process.
"""

from __future__ import annotations

import argparse
import ctypes
import enum
import errno
import json
import os
import pickle
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from resumable_pool import CheckpointError, open_checkpoint
from resumable_pool.checkpoints import checkpoint_at, merge
from tests.checkpoints.conftest import SUFFIXES, failed, result
from tests.kill.sweep import plain

SECTOR = 512


class System(NamedTuple):
    """A file system: how it is made, how large, and how it is mounted."""

    make: Sequence[str]
    megabytes: int
    options: str = "rw"

    @property
    def type(self) -> str:
        return self.make[0].removeprefix("mkfs.")


_EXT4 = ["mkfs.ext4", "-qF", "-b", "4096", "-J", "size=4"]
_EXT4 += ["-E", "lazy_itable_init=0,lazy_journal_init=0"]
SYSTEMS = {
    "ext4": System(_EXT4, 32),
    "ext4-writeback": System(_EXT4, 32, "data=writeback"),
    "xfs": System(["mkfs.xfs", "-qf"], 300),
    "btrfs": System(["mkfs.btrfs", "-qf"], 128),
}


def missing(system: System) -> str:
    """What this machine lacks, if anything."""
    if sys.platform != "linux":
        return "Linux"
    if os.geteuid() != 0:
        return "root"
    for needed in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(needed):
            return needed
    if not shutil.which(system.make[0]):
        return system.make[0]
    allowed = subprocess.run(
        ["unshare", "-m", "mount", "--make-rprivate", "/"], capture_output=True
    )
    return "the right to mount" if allowed.returncode else ""


# The disk: two files under /dev/fuse, `disk` and `mark`. See linux/fuse.h for the numbers.

_ROOT, _DISK, _MARK = 1, 2, 3
_NAMES = {b"disk": _DISK, b"mark": _MARK}
_LONGEST_WRITE = 1 << 17
_VALID_SECONDS = 3600
_BIG_WRITES, _DIRECT = 1 << 5, 1


class Call(enum.IntEnum):
    """What the kernel asks of a file system."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    OPEN = 14
    READ = 15
    WRITE = 16
    RELEASE = 18
    FSYNC = 20
    FLUSH = 25
    INIT = 26
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42


# What is noted, in order: ("write", offset, bytes), ("flush",), ("mark", what the life says).
Event = tuple[Any, ...]


class Recorder:
    """Serves the disk at `place`, in a process of its own, and notes what happens to it."""

    def __init__(self, image: Path, log: Path, place: Path) -> None:
        self._image = os.open(image, os.O_RDWR)
        self._log = open(log, "wb")  # noqa: SIM115
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0"
        _mount("recorder", place, "fuse", options)

    def serve(self) -> None:
        """Answer the kernel until the disk is unmounted."""
        while True:
            try:
                asked = os.read(self._fuse, _LONGEST_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                raise
            _, opcode, unique, node = struct.unpack_from("<IIQQ", asked)
            if opcode in (Call.FORGET, Call.BATCH_FORGET, Call.INTERRUPT):  # no answer
                continue
            answer = self._answer(opcode, node, asked[40:])
            number, data = (answer, b"") if isinstance(answer, int) else (0, answer)
            os.write(self._fuse, struct.pack("<IiQ", 16 + len(data), -number, unique) + data)

    def _answer(self, opcode: int, node: int, body: bytes) -> bytes | int:
        match opcode:
            case Call.INIT:
                rest = struct.pack("<HHIIHHI28x", 16, 12, _LONGEST_WRITE, 1, 0, 0, 0)
                return struct.pack("<IIII", 7, 31, 1 << 17, _BIG_WRITES) + rest
            case Call.LOOKUP:
                found = _NAMES.get(body.rstrip(b"\0"))
                if found is None:
                    return errno.ENOENT
                valid = struct.pack("<QQQQII", found, 0, _VALID_SECONDS, _VALID_SECONDS, 0, 0)
                return valid + self._attributes(found)
            case Call.GETATTR | Call.SETATTR:
                return struct.pack("<QII", _VALID_SECONDS, 0, 0) + self._attributes(node)
            case Call.OPEN:
                return struct.pack("<QII", 0, _DIRECT if node == _MARK else 0, 0)
            case Call.READ:
                _, offset, size = struct.unpack_from("<QQI", body)
                return os.pread(self._image, size, offset) if node == _DISK else b""
            case Call.WRITE:
                _, offset, size = struct.unpack_from("<QQI", body)
                self._note_write(node, offset, body[40 : 40 + size])
                return struct.pack("<II", size, 0)
            case Call.FSYNC:
                if node == _DISK:
                    self._note("flush")
                return b""
            case Call.RELEASE | Call.FLUSH | Call.DESTROY:
                return b""
        return errno.ENOSYS

    def _attributes(self, node: int) -> bytes:
        size = os.fstat(self._image).st_size if node == _DISK else 0
        mode = stat.S_IFDIR | 0o755 if node == _ROOT else stat.S_IFREG | 0o600
        numbers = (node, size, size // SECTOR, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)
        return struct.pack("<6Q10I", *numbers)

    def _note_write(self, node: int, offset: int, data: bytes) -> None:
        if node == _MARK:
            self._note("mark", json.loads(data))
        else:
            os.pwrite(self._image, data, offset)
            self._note("write", offset, data)

    def _note(self, *event: Any) -> None:
        pickle.dump(event, self._log)
        if event[0] == "mark":
            self._log.flush()


def _mount(what: str, place: Path, kind: str, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = [str(each).encode() for each in (what, place, kind)]
    if libc.mount(*arguments, ctypes.c_ulong(0), options.encode()):
        number = ctypes.get_errno()
        raise OSError(number, f"mount: {os.strerror(number)}", str(place))


def apart() -> None:
    """Have this process mount where nobody else sees it, and nothing is left when it ends."""
    new_namespace = 0x20000  # CLONE_NEWNS
    if ctypes.CDLL(None, use_errno=True).unshare(new_namespace):
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


class Unmountable(OSError):
    """The file system itself has not survived: Btrfs does not find its way without its first
    superblock, if that is torn."""


def _mount_image(image: Path, place: Path, system: System) -> None:
    options = f"loop,{system.options}"
    command = ["mount", "-t", system.type, "-o", options, str(image), str(place)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Unmountable(errno.EIO, f"cannot be mounted: {done.stderr.strip()}", str(image))


def _unmount(place: Path) -> None:
    subprocess.run(["umount", str(place)], check=True)


def recorded(system: System, home: Path, life: Callable[[Path, Path], None]) -> list[Event]:
    """What happens to the disk while `life(folder on it, file for marks)` is lived. `home/base` is
    what was on it before."""
    image, rec, folder = home / "disk", home / "rec", home / "fs"
    with open(image, "wb") as file:
        file.truncate(system.megabytes << 20)
    subprocess.run([*system.make, str(image)], check=True, stdout=subprocess.DEVNULL)
    _copy_sparse(image, home / "base")
    rec.mkdir()
    folder.mkdir()
    recorder = Recorder(image, home / "log", rec)
    server = os.fork()
    if server == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            recorder.serve()
        finally:
            os._exit(0)
    os.close(recorder._fuse)
    try:
        _mount_image(rec / "disk", folder, system)
        try:
            _in_a_child(lambda: life(folder, rec / "mark"))
        finally:
            _unmount(folder)
    finally:
        subprocess.run(["umount", "-l", str(rec)], check=True)
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
    return [*_events(home / "log")]


def _in_a_child(act: Callable[[], None]) -> None:
    """A process that is gone afterwards, as all are after a power cut."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            act()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    _, how = os.waitpid(pid, 0)
    assert how == 0, f"the life has ended with {how}"


def _events(log: Path) -> Iterator[Event]:
    with open(log, "rb") as file:
        try:
            while True:
                yield pickle.load(file)
        except (EOFError, pickle.UnpicklingError):  # killed, after the last mark
            return


def _copy_sparse(image: Path, copy: Path) -> None:
    subprocess.run(["cp", "--sparse=always", str(image), str(copy)], check=True)


# The life.


class Life:
    """What one checkpoint goes through. Every promise is marked once it has been made.

    The values of a path are numbered: what is read of it must be at least the number promised, and
    at most the number that was last handed over.
    """

    def __init__(self, folder: Path, marks: Path, suffix: str, seed: int) -> None:
        self._path = folder / f"result{suffix}"
        self._other = folder / f"other{suffix}"
        self._suffix = suffix
        self._marks = marks
        self._chance = random.Random(seed)
        self._encode = type(checkpoint_at(self._path)).encode
        self._numbers: dict[str, int] = {}

    def live(self) -> None:
        """All of it."""
        self._mark("begins")
        if self._suffix == ".pkl":
            self._plain_pickle()
        self._session()
        self._session()
        self._be_killed()
        checkpoint_at(self._path).settle()
        self._promise("settled")
        self._session()
        checkpoint_at(self._path).compact()
        self._promise("compacted")
        self._be_killed()
        checkpoint_at(self._path).compact()
        self._promise("compacted what was left half-done")
        self._more_elsewhere()
        merge(self._path, [self._other])
        self._promise("merged")
        self._session()
        self._mark("ends")

    def _mark(self, what: str, **more: object) -> None:
        with open(self._marks, "wb", buffering=0) as marks:
            marks.write(json.dumps({"what": what, **more}).encode())

    def _promise(self, what: str) -> None:
        self._mark(what, promised=self._numbers)

    def _batch(self, most: int = 8, start: str = "p") -> list[Any]:
        """Results, some of them of paths that have one, of all lengths."""
        made = []
        for _ in range(self._chance.choice([1, 1, 1, 3, most])):
            again = self._numbers and self._chance.random() < 0.15
            if again:
                path = self._chance.choice([*self._numbers])
            else:
                path = f"{start}{len(self._numbers):03}"
            number = self._numbers[path] = self._numbers.get(path, 0) + 1
            length = self._chance.choice([10, 10, 10, 300, 3000, 5000, 30_000, 150_000])
            value = [path, number, "x" * length]
            made.append(result(path, value, self._encode, at=1.7e9 + number))
        self._mark("saving", handed_over=self._numbers)
        return made

    def _session(self) -> None:
        """What a saver does."""
        checkpoint = checkpoint_at(self._path)
        checkpoint.open()
        self._promise("opened")
        for _ in range(12):
            checkpoint.save(self._batch())
            if self._chance.random() < 0.2:
                path = self._chance.choice([*self._numbers, "never done"])
                checkpoint.save_failures([failed(path, at=1.7e9)])
            if self._chance.random() < 0.35:
                checkpoint.sync()
                self._promise("synced")
        checkpoint.close()
        self._promise("closed")

    def _be_killed(self) -> None:
        batches = [self._batch() for _ in range(3)]
        if (pid := os.fork()) == 0:
            try:
                checkpoint = checkpoint_at(self._path)
                checkpoint.open()
                for batch in batches:
                    checkpoint.save(batch)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)

    def _plain_pickle(self) -> None:
        """A dict that another program has saved well."""
        values = {f"a{number:03}": [f"a{number:03}", 1, "adopted"] for number in range(30)}
        self._numbers = dict.fromkeys(values, 1)
        self._mark("pickles", handed_over=self._numbers)
        with open(self._path, "wb") as file:
            pickle.dump(values, file)
            file.flush()
            os.fsync(file.fileno())
        fd = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        self._promise("pickled")

    def _more_elsewhere(self) -> None:
        other = checkpoint_at(self._other)
        other.open()
        for _ in range(4):
            other.save(self._batch(start="m"))
        other.close()


# The states.


class State(NamedTuple):
    """What may be found after a power cut: writes on top of what is certainly on the disk."""

    writes: Sequence[tuple[int, bytes]]
    what: str  # for people: where it is in the record
    promised: dict[str, int]
    handed_over: dict[str, int]


def states(
    events: Sequence[Event], chance: random.Random, most: int, disk: Callable[[int, bytes], None]
) -> Iterator[State]:
    """About `most` states, as many before each flush. `disk` is called with what is certain."""
    begin = next(at for at, event in enumerate(events) if event[0] == "mark")
    end = max(at for at, event in enumerate(events) if event[0] == "mark")
    flushes = max(1, sum(event[0] == "flush" for event in events[begin:end]))
    pending: list[tuple[int, bytes]] = []
    promised: dict[str, int] = {}
    handed_over: dict[str, int] = {}
    doing, flush = "", 0
    for at, event in enumerate(events[: end + 1]):
        if event[0] == "write":
            pending.append(event[1:])
        elif event[0] == "mark":
            doing = event[1]["what"]
            promised = event[1].get("promised", promised)
            handed_over = event[1].get("handed_over", handed_over)
        else:
            flush += at > begin
            number = most * flush // flushes - most * (flush - 1) // flushes if at > begin else 0
            # Promised before this flush is only what an earlier one has made certain.
            for kept, how in _choices(pending, chance, number):
                what = f"before flush {flush} ({doing}), {how} of {len(pending)} writes"
                yield State(kept, what, promised, handed_over)
            for write in pending:
                disk(*write)
            pending = []


def _choices(
    pending: list[tuple[int, bytes]], chance: random.Random, most: int
) -> Iterator[tuple[list[tuple[int, bytes]], str]]:
    """Which of them may have reached the disk: prefixes, and any others."""
    for _ in range(most if pending else 0):
        if chance.random() < 0.4:
            kept = pending[: chance.randrange(len(pending) + 1)]
            how = f"the first {len(kept)}"
        else:
            kept = [write for write in pending if chance.random() < 0.5]
            how = f"any {len(kept)}"
        if kept and chance.random() < 0.3:
            torn = chance.randrange(len(kept))
            offset, data = kept[torn]
            kept = [*kept]
            kept[torn] = offset, data[: chance.randrange(0, len(data) + 1, SECTOR)]
            how = f"{how}, one torn,"
        yield kept, how


def judge(folder: Path, suffix: str, state: State) -> str:
    """What a person finds after the cut, and after the next run: `AssertionError` if that is not as
    promised. Returns a word for the statistics."""
    path = folder / f"result{suffix}"
    if not path.exists():
        assert not state.promised, "the checkpoint is not there"
        return "not there yet"
    before: dict[str, Any] = {}
    try:
        before = dict(open_checkpoint(path))
    except CheckpointError:
        # An adopted pickle is read by us when it has been adopted, at the next run.
        if suffix != ".pkl" or not _is_plain(path):
            raise
    checkpoint = checkpoint_at(path)
    checkpoint.open()
    found = dict(checkpoint)
    checkpoint.save([result("the next run", 1, checkpoint.encode)])
    checkpoint.close()
    _judge_values(found, state)
    assert before.items() <= found.items(), "a reader saw what the next run has cut off"
    found["the next run"] = 1
    assert dict(open_checkpoint(path)) == found, "what the next run read is not what is there"
    assert plain(str(path)) == found, "plain readers see something else"
    assert (findings := checkpoint_at(path).check()) == [], f"check: {findings}"
    left = [name for name in os.listdir(folder) if ".new-" in name and name.startswith("result")]
    assert not left, f"left: {left}"
    return "sound"


def _judge_values(found: dict[str, Any], state: State) -> None:
    for path, (name, number, _) in found.items():
        assert name == path, f"the value of {name} is said to be of {path}"
        assert number <= state.handed_over.get(path, 0), f"nobody has saved {path} number {number}"
    lost = [
        path
        for path, number in state.promised.items()
        if path not in found or found[path][1] < number
    ]
    assert not lost, f"{len(lost)} promised values are lost: {lost[:3]}"


def _is_plain(path: Path) -> bool:
    with open(path, "rb") as file:
        value = pickle.load(file)
    return isinstance(value, dict) and all(each[2] == "adopted" for each in value.values())


class Trial:
    """One file system and one format."""

    def __init__(self, name: str, suffix: str, seed: int, most: int, home: Path) -> None:
        self._system = SYSTEMS[name]
        self._name = f"{name} {suffix}"
        self._suffix = suffix
        self._seed = seed
        self._most = most
        self._home = home
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self) -> None:
        """Record a life, and try its states."""
        suffix, seed = self._suffix, self._seed
        events = recorded(
            self._system,
            self._home,
            lambda folder, marks: Life(folder, marks, suffix, seed).live(),
        )
        self.counts["writes"] = sum(event[0] == "write" for event in events)
        self.counts["flushes"] = sum(event[0] == "flush" for event in events)
        with open(self._home / "base", "r+b", buffering=0) as base:

            def certain(offset: int, data: bytes) -> None:
                base.seek(offset)
                base.write(data)

            for state in states(events, random.Random(seed), self._most, certain):
                self._try(state)

    def _try(self, state: State) -> None:
        image, place = self._home / "state", self._home / "fs"
        _copy_sparse(self._home / "base", image)
        with open(image, "r+b", buffering=0) as file:
            for offset, data in state.writes:
                file.seek(offset)
                file.write(data)
        self.counts["states"] += 1
        try:
            _mount_image(image, place, self._system)
            try:
                self.counts[judge(place, self._suffix, state)] += 1
            finally:
                _unmount(place)
        except Unmountable:
            self.counts["unmountable"] += 1
        except Exception as error:
            self._keep(state, error)

    def _keep(self, state: State, error: Exception) -> None:
        """Say what is wrong, and keep the state as it was found."""
        kept = Path(tempfile.gettempdir()) / f"power-cut-{os.getpid()}-{len(self.faults)}"
        _copy_sparse(self._home / "base", kept)
        with open(kept, "r+b", buffering=0) as file:
            for offset, data in state.writes:
                file.seek(offset)
                file.write(data)
        words = f"{type(error).__name__}: {str(error)[:300]}"
        self.faults.append(f"{self._name}, {state.what}, kept as {kept}: {words}")

    def __str__(self) -> str:
        counts = self.counts
        lost = f" ({counts['unmountable']} could not be mounted)" if counts["unmountable"] else ""
        return (
            f"{self._name}: {counts['states']:,} states of {counts['writes']:,} writes and "
            f"{counts['flushes']:,} flushes{lost}, {len(self.faults)} faults"
        )


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.power_cuts", description=__doc__)
    parser.add_argument("--system", nargs="+", choices=SYSTEMS, default=[*SYSTEMS])
    parser.add_argument("--format", nargs="+", choices=SUFFIXES, default=SUFFIXES)
    parser.add_argument("--states", type=int, default=100, help="of each, at most (100)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    usable = []
    for name in options.system:
        if lacking := missing(SYSTEMS[name]):
            print(f"{name}: left out, {lacking} is missing")
        else:
            usable.append(name)
    tried, faults, counts = 0, 0, 0
    if usable:
        apart()
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    for name in usable:
        for suffix in options.format:
            with tempfile.TemporaryDirectory(prefix="power-cuts-", dir=memory) as home:
                trial = Trial(name, suffix, options.seed, options.states, Path(home))
                trial.run()
            print(f"{trial} (seed {options.seed})", *trial.faults, sep="\n  ", flush=True)
            tried += 1
            faults += len(trial.faults)
            counts += trial.counts["states"]
    print(f"{counts:,} states in {len(usable)} file systems, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
