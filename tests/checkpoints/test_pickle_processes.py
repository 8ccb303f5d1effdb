"""result.pkl and several processes, for plain `pickle.load`: beside a writer, on a full disk, after
SIGKILL. What does not depend on it is in test_contract_processes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_pool.checkpoints import PickleFile
from tests.conftest import not_on_windows

from .conftest import PATIENCE_SECONDS, plain, result, start_python, write, writing

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


@not_on_windows("limits of a process")
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


def test_what_save_returned_from_survives_sigkill(path: Path) -> None:
    """After SIGKILL at any moment the file is plain, and has what was reported as saved."""
    saved = 0
    for killed_after in (1, 2, 3, 5, 8, 13):
        with start_python(WRITER, path) as writer:
            assert writer.stdout is not None
            for _ in range(killed_after):
                saved = int(writer.stdout.readline())
            writer.kill()
            saved = max([saved, *(int(line) for line in writer.stdout if line.endswith("\n"))])
        plain(path)
        reader = PickleFile(path)
        assert len(reader) >= saved
        assert all(value == key * 100_000 for key, value in reader.items())
        write(path)
        assert plain(path) == dict(reader)
