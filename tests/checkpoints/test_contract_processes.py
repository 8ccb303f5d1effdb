"""Every checkpoint format and several processes: the lock, readers beside a writer, a full disk,
SIGKILL, and somebody who may not write."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointLocked, open_checkpoint
from resumable_pool.checkpoints import base, checkpoint_at
from tests.conftest import not_on_windows, open_descriptors

from .conftest import PATIENCE_SECONDS, SUFFIXES, result, start_python, writing


@pytest.fixture(params=SUFFIXES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A checkpoint of each format."""
    return tmp_path / f"result{request.param}"


def write(path: Path, **values: object) -> None:
    with writing(path) as checkpoint:
        checkpoint.save([result(key, value, checkpoint.encode) for key, value in values.items()])


PROGRAM = """
import os, sys
from binascii import crc32
from resumable_pool import CheckpointLocked, open_checkpoint
from resumable_pool.checkpoints import checkpoint_at
from resumable_pool.records import Outcome

checkpoint = checkpoint_at(sys.argv[1])

def result(path, value):
    data = checkpoint.encode(value)
    return Outcome(path, data, crc32(data), None, 0.25)

def say(*words):
    print(*words, flush=True)
"""

HOLDER = f"""{PROGRAM}
checkpoint.open()
checkpoint.save([result("held", 1)])
say("open")
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
    """While another process writes, opening raises at once, and says which process that is; being
    refused changes nothing, also not for the next one."""
    for _ in range(3):
        with pytest.raises(CheckpointLocked) as caught:
            checkpoint_at(path).open()
        assert caught.value.path == str(path)
        assert caught.value.pid == holder.pid
        assert f"process {holder.pid} is writing to it" in str(caught.value)


def test_who_resumes_a_checkpoint_is_its_writer(path: Path) -> None:
    """A refused process is told of the one that writes now, not of the one that made the file."""
    write(path, a=1)
    with start_python(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        with pytest.raises(CheckpointLocked) as caught:
            checkpoint_at(path).open()
        assert caught.value.pid == process.pid
        process.communicate(timeout=PATIENCE_SECONDS)
    assert dict(checkpoint_at(path)) == {"a": 1, "held": 1}


def test_readers_need_no_lock(path: Path, holder: subprocess.Popen[str]) -> None:
    """While another process writes, ours can read."""
    assert dict(checkpoint_at(path)) == {"held": 1}
    assert checkpoint_at(path).check() == []


def test_the_lock_ends_with_the_writer(path: Path, holder: subprocess.Popen[str]) -> None:
    """When the other process has closed the checkpoint, this one can open it."""
    holder.communicate(timeout=PATIENCE_SECONDS)
    assert holder.returncode == 0
    write(path, a=1)
    assert dict(checkpoint_at(path)) == {"held": 1, "a": 1}


def test_the_lock_dies_with_a_killed_writer(path: Path, holder: subprocess.Popen[str]) -> None:
    """SIGKILL of the process that writes frees the checkpoint, and nothing it saved is lost."""
    holder.kill()
    holder.wait(PATIENCE_SECONDS)
    assert dict(checkpoint_at(path)) == {"held": 1}
    write(path, a=1)
    assert dict(checkpoint_at(path)) == {"held": 1, "a": 1}
    assert list(path.parent.iterdir()) == [path]


def test_one_process_cannot_open_twice(path: Path) -> None:
    """Two runs in two threads of one process exclude each other as well."""
    with writing(path), pytest.raises(CheckpointLocked) as caught:
        checkpoint_at(path).open()
    assert caught.value.pid == os.getpid()
    write(path, a=1)
    assert list(path.parent.iterdir()) == [path]


def test_a_reader_does_not_drop_the_lock(path: Path) -> None:
    """Somebody who opens and closes the file in the writer's own process changes nothing."""
    with writing(path):
        path.read_bytes()
        dict(checkpoint_at(path))
        with pytest.raises(CheckpointLocked):
            checkpoint_at(path).open()


@not_on_windows("fork")
def test_a_forked_child_does_not_hold_the_lock(path: Path) -> None:
    """What the writer's process has forked keeps nobody from the checkpoint after its end."""
    waiting, release = os.pipe()
    ready, tell = os.pipe()
    checkpoint = checkpoint_at(path)
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
    write(path, a=1)
    assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child must live while the test opens"
    os.close(release)
    os.waitpid(child, 0)


MAKERS = f"""{PROGRAM}
say("ready")
sys.stdin.readline()
try:
    checkpoint.open()
except CheckpointLocked:
    say("locked")
else:
    say("open")
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
    write(path, a=1)
    assert list(path.parent.iterdir()) == [path]


TAKERS = f"""{PROGRAM}
for number in range(40):
    try:
        checkpoint.open()
    except CheckpointLocked:
        continue
    checkpoint.save([result(f"{{os.getpid()}} {{number}}", len(checkpoint))])
    checkpoint.close()
"""


def test_runs_that_come_and_go_exclude_each_other(path: Path) -> None:
    """Opening at the moment at which another process closes never makes two writers, nor an error:
    each found all that was saved before."""
    takers = [start_python(TAKERS, path) for _ in range(3)]
    for taker in takers:
        taker.communicate(timeout=PATIENCE_SECONDS)
    assert [taker.returncode for taker in takers] == [0, 0, 0]
    values = list(checkpoint_at(path).values())
    assert values == list(range(len(values)))
    assert values


READER = f"""{PROGRAM}
seen, rounds = 0, 0
while "end" not in checkpoint:
    values = dict(checkpoint)
    assert len(values) >= seen, "something has disappeared"
    assert all(value == key * 2000 for key, value in values.items()), "a wrong value"
    seen, rounds = len(values), rounds + 1
    if rounds == 1:
        say("reading")
say(rounds)
"""


def test_readers_work_while_it_is_written(path: Path) -> None:
    """A process that reads all of it over and over never fails, whenever it looks."""
    write(path, start="start" * 2000)
    with start_python(READER, path) as reader, writing(path) as checkpoint:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "reading\n"
        for number in range(150):
            key = f"path {number}"
            checkpoint.save([result(key, key * 2000, checkpoint.encode)])
            if number % 3 == 0:
                checkpoint.sync()
        checkpoint.save([result("end", "end" * 2000, checkpoint.encode)])
        output, _ = reader.communicate(timeout=PATIENCE_SECONDS)
    assert reader.returncode == 0
    assert int(output) > 1


FULL_DISK = f"""{PROGRAM}
import resource
synced = sys.argv[2] == "True"
checkpoint.open()
resource.setrlimit(resource.RLIMIT_FSIZE, (160_000, resource.RLIM_INFINITY))
kept = []
for number in range(100):
    batch = [result(f"{{number}}{{half}}", "x" * 5_000) for half in "ab"]
    try:
        checkpoint.save(batch)
        kept += [outcome.path for outcome in batch]
        if synced:
            checkpoint.sync()
    except OSError as error:
        assert error.strerror
        say("full")
        break
found = list(checkpoint)
assert found[:len(kept)] == kept and len(found) < len(kept) + 2, "all before is kept"
kept = found
for _ in range(3):
    try:
        checkpoint.save([result("too large", "x" * 160_000)])
    except OSError:
        pass
    else:
        raise AssertionError("this cannot fit")
assert list(checkpoint) == kept
assert checkpoint.check() == []
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoint.save([result("more", "x" * 160_000)])
checkpoint.close()
reader = open_checkpoint(sys.argv[1])
assert list(reader) == [*kept, "more"]
assert all(len(value) in (5_000, 160_000) for value in reader.values())
assert reader.check() == []
"""


@not_on_windows("limits of a process")
@pytest.mark.parametrize("synced", [True, False])
def test_a_full_disk_costs_only_what_did_not_fit(path: Path, synced: bool) -> None:
    """Where no more can be written, save raises, everything before is kept, nothing torn is left,
    and saving goes on when there is room again."""
    with start_python(FULL_DISK, path, synced) as process:
        output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert output == "full\n"


WRITER = f"""{PROGRAM}
checkpoint.open()
number = len(checkpoint)
while True:
    checkpoint.save([result(f"{{n}}", f"{{n}}" * 20_000) for n in range(number, number + 3)])
    number += 3
    say(number)
    if number % 2 == 0:
        checkpoint.sync()
"""


def test_what_save_returned_from_survives_sigkill(path: Path) -> None:
    """After SIGKILL at any moment everything that was reported as saved is there; what is more is
    whole; and the next writer goes on from there."""
    choice = random.Random(path.suffix)
    saved = 0
    for killed_after in (1, 2, 3, 5, 8):
        with start_python(WRITER, path) as writer:
            assert writer.stdout is not None
            for _ in range(killed_after):
                saved = int(writer.stdout.readline())
            for _ in range(choice.randrange(20_000)):  # some moment in the middle of something
                pass
            writer.kill()
            saved = max([saved, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        reader = checkpoint_at(path)
        assert len(reader) >= saved
        assert list(reader) == [f"{number}" for number in range(len(reader))]
        assert all(value == key * 20_000 for key, value in reader.items())


def test_settling_brings_a_killed_writers_work_to_its_end(path: Path) -> None:
    """Without a run: afterwards there is one file without a torn end, and the values are in it."""
    with start_python(WRITER, path) as writer:
        assert writer.stdout is not None
        saved = int(writer.stdout.readline())
        writer.kill()
    if path.suffix != ".sqlite":
        with open(path, "ab") as file:
            file.write(b'{"path": "x", "val')
    checkpoint_at(path).settle()
    assert list(path.parent.iterdir()) == [path]
    assert checkpoint_at(path).check() == []
    assert len(checkpoint_at(path)) >= saved


def test_who_compacts_is_the_writer_meanwhile(
    path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that would begin at that moment is refused, and told by whom."""
    holder.communicate(timeout=PATIENCE_SECONDS)

    fill = base._fill

    def try_to_open(new: Any, outcomes: Any) -> Any:
        outcomes = [*outcomes]
        with pytest.raises(CheckpointLocked) as caught:
            checkpoint_at(path).open()
        assert caught.value.pid == os.getpid()
        return fill(new, outcomes)

    monkeypatch.setattr(base, "_fill", try_to_open)
    assert checkpoint_at(path).compact()
    assert dict(checkpoint_at(path)) == {"held": 1}


@not_on_windows("nobody may move what is open")
def test_a_writer_whose_folder_was_moved_leaves_the_next_one_in_peace(
    tmp_path: Path, path: Path, holder: subprocess.Popen[str]
) -> None:
    """What is at its old place then, the lock and SQLite's log among it, is not its own. What it
    has saved moves along."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for file in tmp_path.glob("result*"):
        file.rename(moved / file.name)
    with writing(path) as checkpoint:
        checkpoint.save([result("next", 2, checkpoint.encode)])
        holder.communicate(timeout=PATIENCE_SECONDS)
        assert dict(open_checkpoint(path)) == {"next": 2}
        with pytest.raises(CheckpointLocked, match=f"process {os.getpid()} is writing"):
            checkpoint_at(path).open()
    assert dict(open_checkpoint(path)) == {"next": 2}
    alone = shutil.copy(moved / path.name, tmp_path / f"alone{path.suffix}")
    assert dict(open_checkpoint(alone)) == {"held": 1}


def test_settling_leaves_a_writer_in_peace(path: Path, holder: subprocess.Popen[str]) -> None:
    """While somebody writes it does nothing."""
    checkpoint_at(path).settle()
    holder.communicate(timeout=PATIENCE_SECONDS)
    assert holder.returncode == 0
    assert dict(checkpoint_at(path)) == {"held": 1}


NOBODY = f"""{PROGRAM}
import sqlite3, urllib.parse  # while the library can still be read
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
say(dict(open_checkpoint(sys.argv[1])), open_checkpoint(sys.argv[1]).check())
for attempt in (checkpoint.open, checkpoint.compact):
    try:
        attempt()
    except OSError as error:
        say("refused")
checkpoint.settle()
"""


@not_on_windows("modes")
def test_who_may_not_write_can_read(path: Path) -> None:
    """In a folder and of a file that are read-only, reading works, writing is an `OSError`, and
    nothing is left in the folder."""
    folder = Path(tempfile.mkdtemp(prefix="resumable_pool-"))  # pytest's own are closed to others
    try:
        path = folder / path.name
        write(path, a=1)
        before = path.read_bytes()
        path.chmod(0o444)
        folder.chmod(0o555)
        with start_python(NOBODY, path) as process:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert output == "{'a': 1} []\nrefused\nrefused\n"
        assert path.read_bytes() == before
        assert os.listdir(folder) == [path.name]
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


LOCKED_OUT = f"""{PROGRAM}
import sqlite3  # while the library can still be read
from resumable_pool.errors import CheckpointError
if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
failed = checkpoint.failures().__len__
for attempt in (checkpoint.completed, failed, checkpoint.open, checkpoint.compact):
    try:
        attempt()
    except CheckpointError as error:
        say(error.reason, "|", error.remedy)
"""


@not_on_windows("modes")
def test_who_may_not_read_is_told_so(path: Path) -> None:
    """As for everything else that is wrong with the file; it is another user's, say."""
    folder = Path(tempfile.mkdtemp(prefix="resumable_pool-"))  # pytest's own are closed to others
    try:
        path = folder / path.name
        write(path, a=1)
        path.chmod(0o000)
        folder.chmod(0o777)
        with start_python(LOCKED_OUT, path) as process:
            output, _ = process.communicate(timeout=PATIENCE_SECONDS)
        why = "cannot be opened for reading: Permission denied"
        assert output == f"{why} | Make it readable, or name another checkpoint.\n" * 4
        assert os.listdir(folder) == [path.name]
    finally:
        shutil.rmtree(folder)


def test_nobody_is_left_with_a_descriptor(path: Path) -> None:
    """What a writer opens, and a reader, is closed again, also when it was refused."""
    before = open_descriptors()
    with writing(path):
        for _ in range(3):
            with pytest.raises(CheckpointLocked):
                checkpoint_at(path).open()
            list(open_checkpoint(path))
    assert open_descriptors() == before
