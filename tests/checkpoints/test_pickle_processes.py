"""result.pkl and several processes: the lock, readers beside a writer, a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_pool import CheckpointLocked
from resumable_pool.checkpoints import PickleFile

from .conftest import PATIENCE_SECONDS, plain, result, start_python, write, writing

posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")

HOLDER = """
import sys
from resumable_pool.checkpoints import PickleFile
checkpoint = PickleFile(sys.argv[1])
checkpoint.open()
print("open", flush=True)
sys.stdin.read()
checkpoint.close()
"""


@pytest.fixture
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the checkpoint open, until its stdin is closed."""
    with start_python(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused(path: Path, holder: subprocess.Popen[str]) -> None:
    """While another process writes, opening raises at once, and says which process that is."""
    with pytest.raises(CheckpointLocked) as caught:
        PickleFile(path).open()
    assert caught.value.path == str(path)
    assert caught.value.pid == holder.pid
    assert f"process {holder.pid} is writing to it" in str(caught.value)


def test_who_resumes_a_checkpoint_is_its_writer(path: Path) -> None:
    """A refused process is told of the one that writes now, not of the one that made the file."""
    write(path, result("a", 1))
    with start_python(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(CheckpointLocked) as caught:
            PickleFile(path).open()
        assert caught.value.pid == process.pid
        process.communicate(timeout=PATIENCE_SECONDS)
    assert plain(path) == {"a": 1}


def test_readers_need_no_lock(path: Path, holder: subprocess.Popen[str]) -> None:
    """While another process writes, plain pickle.load and our own reader work."""
    assert plain(path) == dict(PickleFile(path)) == {}


def test_the_lock_ends_with_the_writer(path: Path, holder: subprocess.Popen[str]) -> None:
    """When the other process has closed the checkpoint, this one can open it."""
    holder.communicate(timeout=PATIENCE_SECONDS)
    assert holder.returncode == 0
    write(path, result("a", 1))
    assert plain(path) == {"a": 1}


def test_the_lock_dies_with_a_killed_writer(path: Path, holder: subprocess.Popen[str]) -> None:
    """SIGKILL of the process that writes frees the checkpoint."""
    holder.kill()
    holder.wait(PATIENCE_SECONDS)
    write(path, result("a", 1))
    assert plain(path) == {"a": 1}


def test_a_refused_writer_leaves_the_name_of_the_first(
    path: Path, holder: subprocess.Popen[str]
) -> None:
    """Refusing one process does not change what the next one is told."""
    for _ in range(3):
        with pytest.raises(CheckpointLocked) as caught:
            PickleFile(path).open()
        assert caught.value.pid == holder.pid


def test_one_process_cannot_open_twice(path: Path) -> None:
    """Two runs in two threads of one process exclude each other as well."""
    with writing(path), pytest.raises(CheckpointLocked) as caught:
        PickleFile(path).open()
    assert caught.value.pid == os.getpid()


def test_a_plain_reader_does_not_drop_the_lock(path: Path) -> None:
    """Somebody who opens and closes the file in the writer's own process changes nothing."""
    with writing(path):
        plain(path)
        with pytest.raises(CheckpointLocked):
            PickleFile(path).open()


@posix
def test_a_forked_child_does_not_hold_the_lock(path: Path) -> None:
    """What the writer's process has forked keeps nobody from the checkpoint after its end."""
    waiting, release = os.pipe()
    ready, tell = os.pipe()
    checkpoint = PickleFile(path)
    checkpoint.open()
    child = os.fork()
    if child == 0:
        os.close(release)
        os.write(tell, b"!")
        os.read(waiting, 1)
        os._exit(0)
    os.read(ready, 1)
    for end in (waiting, ready, tell):
        os.close(end)
    checkpoint.close()
    write(path, result("a", 1))
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child must live while the test opens"
    os.close(release)
    os.waitpid(child, 0)


MAKERS = """
import sys
from resumable_pool import CheckpointLocked
from resumable_pool.checkpoints import PickleFile
checkpoint = PickleFile(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
try:
    checkpoint.open()
except CheckpointLocked:
    print("locked", flush=True)
else:
    print("open", flush=True)
sys.stdin.read()
"""


def test_of_several_makers_one_wins(path: Path) -> None:
    """When several processes make the same checkpoint at once, one has it, the others are told."""
    makers = [start_python(MAKERS, path) for _ in range(4)]
    answers = []
    for message in ("ready", "answer"):
        answers = []
        for maker in makers:
            assert maker.stdout is not None
            answers.append(maker.stdout.readline().strip())
        if message == "ready":
            for maker in makers:
                assert maker.stdin is not None
                maker.stdin.write("go\n")
                maker.stdin.flush()
    for maker in makers:
        maker.communicate(timeout=PATIENCE_SECONDS)
    assert sorted(answers) == ["locked", "locked", "locked", "open"]
    assert list(path.parent.iterdir()) == [path]


READER = """
import pickle, sys
from resumable_pool import open_checkpoint
path = sys.argv[1]
ours = open_checkpoint(path)
values, loads = {}, 0
while "end" not in values:
    with open(path, "rb") as file:
        values = pickle.load(file)
    loads += 1
    for source in (values, ours):
        for key, value in source.items():
            assert value == key * 2000, f"a wrong value for {key}"
    if loads == 1:
        print("reading", flush=True)
print("loads", loads)
"""


def test_readers_work_while_records_are_appended(path: Path) -> None:
    """A process that loads the file over and over never fails, whenever it looks."""
    write(path, result("start", "start" * 2000))
    with start_python(READER, path) as reader, writing(path) as checkpoint:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for number in range(300):
            key = f"path {number}"
            checkpoint.save([result(key, key * 2000)])
            if number % 3 == 0:
                checkpoint.sync()
        checkpoint.save([result("end", "end" * 2000)])
        checkpoint.sync()
        output, _ = reader.communicate(timeout=PATIENCE_SECONDS)
    assert reader.returncode == 0
    assert int(output.split()[1]) > 1


FULL_DISK = """
import pickle, resource, sys
from binascii import crc32
from resumable_pool.checkpoints import PickleFile
from resumable_pool.records import Outcome

path, synced = sys.argv[1], sys.argv[2] == "True"

def results(number, size):
    for name in (f"{number}", f"{number}+"):
        pickled = pickle.dumps(bytes(size), 3)
        yield Outcome(name, pickled, crc32(pickled), None, 0.0)

def plain():
    with open(path, "rb") as file:
        return sorted(pickle.load(file))

checkpoint = PickleFile(path)
checkpoint.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))
kept = []
for number in range(100):
    try:
        checkpoint.save(list(results(number, 3_000)))
    except OSError as error:
        print(type(error).__name__, number)
        break
    kept += [f"{number}", f"{number}+"]
    if synced:
        checkpoint.sync()
assert plain() == (sorted(kept) if synced else [])
assert sorted(checkpoint) == sorted([*kept, "9"]), "all before is kept, and what is whole"
kept.append("9")
for _ in range(3):
    try:
        checkpoint.save(list(results("too large", 60_000)))
    except OSError:
        pass
    else:
        raise AssertionError("this cannot fit")
checkpoint.save([next(results("small", 10))])
checkpoint.sync()
assert plain() == sorted([*kept, "small"]), "what fits is saved"
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save(list(results("more", 100_000)))
checkpoint.close()
assert plain() == sorted(PickleFile(path)) == sorted([*kept, "small", "more", "more+"])
assert all(len(value) in (10, 3_000, 100_000) for value in PickleFile(path).values())
"""


@posix
@pytest.mark.parametrize("synced", [True, False])
def test_a_full_disk_costs_only_what_did_not_fit(path: Path, synced: bool) -> None:
    """Where no more can be written, save raises, everything before is kept and plain, nothing torn
    is left, and saving goes on when there is room again."""
    with start_python(FULL_DISK, path, synced) as process:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert output.startswith("OSError 9")


WRITER = """
import sys
from resumable_pool.checkpoints import PickleFile
from resumable_pool.records import Outcome
from binascii import crc32
import pickle
checkpoint = PickleFile(sys.argv[1])
checkpoint.open()
number = len(checkpoint)
while True:
    value = pickle.dumps(str(number) * 100_000, 3)
    checkpoint.save([Outcome(str(number), value, crc32(value), None, 0.0)])
    number += 1
    print(number, flush=True)
    if number % 3 == 0:
        checkpoint.sync()
"""


@posix
def test_what_save_returned_from_survives_sigkill(path: Path) -> None:
    """After SIGKILL at any moment the file is plain, and has what was reported as saved."""
    saved = 0
    for killed_after in (1, 2, 3, 5, 8, 13):
        with start_python(WRITER, path) as writer:
            assert writer.stdout is not None
            for _ in range(killed_after):
                saved = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            saved = max([saved, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        plain(path)
        reader = PickleFile(path)
        assert len(reader) >= saved
        assert all(value == key * 100_000 for key, value in reader.items())
        write(path)
        assert plain(path) == dict(reader)
