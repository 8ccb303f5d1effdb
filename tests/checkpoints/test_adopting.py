"""A dict that another program has pickled: converted before it is opened for writing."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointError, CheckpointLocked, open_checkpoint
from resumable_pool.checkpoints import PickleFile
from resumable_pool.checkpoints.lock import LockableFile
from resumable_pool.files import as_key
from resumable_pool.records import quoted
from tests.conftest import not_on_windows

from .conftest import PATIENCE_SECONDS, plain, result, start_python, write
from .test_pickle_file import PATHS, VALUES, Nested, TouchesAtUnpickling

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def dump(path: Path, values: object, protocol: int | None = None) -> bytes:
    """What the older script did; the bytes."""
    path.write_bytes(pickle.dumps(values, protocol))
    return path.read_bytes()


def backup(path: Path) -> Path:
    return path.with_name(path.name + ".bak")


def adopt(path: Path) -> list[str]:
    checkpoint = PickleFile(path)
    notes = checkpoint.open()
    checkpoint.close()
    return notes


class Unknown:
    """Of a module that is not there any more."""


class PickledOnce:
    """Can be unpickled, and not pickled again."""

    pickled = False

    def __reduce__(self) -> Any:
        if self.pickled:
            raise TypeError("only once")
        return PickledOnce, ()


@not_on_windows("these are other names there")
@pytest.mark.parametrize("key", ["a/../\0", "a/../\ud800"])
def test_a_key_that_no_file_can_have_is_adopted(path: Path, key: str) -> None:
    dump(path, {key: 1})
    adopt(path)
    assert plain(path) == {key: 1} or plain(path) == {key[5:]: 1}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_adopted_values_are_equal(path: Path, protocol: int) -> None:
    """Whatever wrote them, they are there, for us and for plain readers; the original is kept, to
    the byte, and a note says so."""
    values = {key: value for key, value in VALUES.items() if key != "refuses protocol 3"}
    before = dump(path, values, protocol)
    reader = PickleFile(path)
    assert adopt(path) == [
        f"adopted the results of {len(values)} files from a plain pickle",
        f"what was there before is kept as {quoted(str(backup(path)))}",
    ]
    assert plain(path) == dict(reader) == dict(open_checkpoint(path)) == values
    assert PickleFile(path).check() == []
    assert backup(path).read_bytes() == before
    assert sorted(os.listdir(path.parent)) == [path.name, backup(path).name]
    assert adopt(path) == []
    write(path, result("new", 1))
    assert plain(path) == {**values, "new": 1}


@pytest.mark.parametrize(
    "values", [OrderedDict(a=1), defaultdict(list, a=1), defaultdict(None, a=1)]
)
def test_other_dicts_are_dicts(path: Path, values: dict[str, int]) -> None:
    """Those of the standard library, which scripts collect results in."""
    dump(path, values)
    adopt(path)
    assert plain(path) == {"a": 1}


def test_an_empty_dict_is_adopted(path: Path) -> None:
    """An older script that has not come far."""
    dump(path, {})
    write(path, result("a", 1))
    assert plain(path) == {"a": 1}


def test_odd_paths_are_kept_and_normalised(path: Path) -> None:
    """A key is the path that the function will receive; of two for one file the later counts, and
    how many did not is said."""
    values = {key: number for number, key in enumerate(PATHS)}
    dump(path, {**values, "./in//b": "older", "in/../in/b": "newer"})
    expected = {as_key(os.path.normpath(key)): number for key, number in values.items()}
    expected["in/b"] = "newer"
    (done, _) = adopt(path)
    dropped = len(values) + 2 - len(expected)
    assert done.endswith(f"; {dropped} more were for the same files under other names")
    assert plain(path) == dict(open_checkpoint(path)) == expected


@not_on_windows("it takes two dots off a path before it looks at links")
def test_a_result_stays_with_its_file_behind_a_link(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two dots behind a link to a folder lead to where that is, and not to where the link is."""
    monkeypatch.chdir(path.parent)
    for folder in ("far/in", "here"):
        os.makedirs(folder)
    os.symlink(os.path.join("far", "in"), "link")
    dump(path, {"link/../x.wav": "far", "x.wav": "here", "here/../x.wav": "here, too"})
    adopt(path)
    assert plain(path) == {"link/../x.wav": "far", "x.wav": "here, too"}


def test_before_it_is_converted_it_is_none(path: Path) -> None:
    """Who only reads is told what would make a checkpoint of it; nothing of it is unpickled, and
    nothing of it is run."""
    witness = path.with_name("witness")
    odd = [TouchesAtUnpickling(witness), Nested.Inner(1), Fraction(1, 3)]
    for protocol in PROTOCOLS:
        before = dump(path, {"a": odd, "b": OrderedDict(x=[1])}, protocol)
        reader = PickleFile(path)
        for ask in (reader.completed, reader.__len__, lambda: open_checkpoint(path)):
            with pytest.raises(CheckpointError, match="a run or compact converts it"):
                ask()
        (finding,) = reader.check()
        assert "a run or compact converts it" in finding
        assert path.read_bytes() == before
    assert not witness.exists()


@not_on_windows("limits of a process")
@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04N}" + b"r\xff\xff\xff\x1fs.",
        b"}r\xff\xff\xff\x1f.",
        b"}p4000000000\n.",
        b"\x80\x04}\x8e\xff\xff\xff\xff\xff\xff\xff\x7fab.",
    ],
    ids=["no dict", "memo", "memo in text", "length"],
)
def test_a_hostile_one_is_refused_before_it_is_unpickled(path: Path, content: bytes) -> None:
    """A number in it is no reason to take as much memory."""
    import resource

    path.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        adopt(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000
    assert path.read_bytes() == content


def test_what_cannot_be_unpickled_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says why; not a byte is changed and nothing is left behind."""
    before = dump(path, {"a": 1, "b": Unknown()})
    monkeypatch.delattr(sys.modules[__name__], "Unknown")
    with pytest.raises(CheckpointError, match="it cannot be unpickled: AttributeError"):
        adopt(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_one_that_is_written_anew_meanwhile_is_refused(path: Path) -> None:
    """By the older script, say, which empties it first: that killed the reader, by SIGBUS."""
    dump(path, dict.fromkeys(map(str, range(100_000)), 1))
    code = """
import os, pickletools, sys
from resumable_pool import CheckpointError
from resumable_pool.checkpoints import PickleFile

def cut(data, genops=pickletools.genops):
    for number, opcode in enumerate(genops(data)):
        if number == 9:
            os.truncate(sys.argv[1], 0)
        yield opcode

pickletools.genops = cut
try:
    PickleFile(sys.argv[1]).open()
except CheckpointError as error:
    print(error.reason)
"""
    said, _ = start_python(code, path).communicate(timeout=PATIENCE_SECONDS)
    assert said == "is not a checkpoint of this library\n"
    assert path.read_bytes() == b""


def test_what_cannot_be_pickled_again_is_refused(path: Path) -> None:
    """The error names whose value it is."""
    before = dump(path, {"a": 1, "b": PickledOnce()})
    PickledOnce.pickled = True
    try:
        with pytest.raises(CheckpointError, match="pickled, of 'b': TypeError: only once"):
            adopt(path)
    finally:
        PickledOnce.pickled = False
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("attempt", [adopt, lambda path: PickleFile(path).compact()])
def test_a_backup_is_not_overwritten(path: Path, attempt: Callable[[Path], list[str]]) -> None:
    """Unless it is a copy of the same; otherwise the original gets a number."""
    before = dump(path, {"a": 1})
    backup(path).write_bytes(b"precious")
    assert f"{backup(path)}-2" in attempt(path)[-1]
    assert plain(path) == {"a": 1}
    assert backup(path).read_bytes() == b"precious"
    assert Path(f"{backup(path)}-2").read_bytes() == before
    backup(path).write_bytes(before)
    path.write_bytes(before)
    attempt(path)
    assert plain(path) == {"a": 1}
    assert backup(path).read_bytes() == before
    assert len(os.listdir(path.parent)) == 3


def test_compacting_adopts_as_well(path: Path) -> None:
    """For those who would rather do it before the run."""
    dump(path, {"a": 1})
    assert "adopted the results of 1 file from a plain pickle" in PickleFile(path).compact()[0]
    assert PickleFile(path).check() == []


@not_on_windows("Wine makes no links")
def test_a_link_stays_one(path: Path) -> None:
    """The file that it leads to is adopted, and the original is kept beside that."""
    real = path.with_name("real.pkl")
    before = dump(real, {"a": 1})
    path.symlink_to(real)
    adopt(path)
    assert path.is_symlink()
    assert plain(real) == {"a": 1}
    assert backup(real).read_bytes() == before


HOLDER = """
import sys
from resumable_pool.checkpoints.lock import open_locked
file = open_locked(sys.argv[1], b"", lambda fd: None, [])
print("locked", flush=True)
sys.stdin.read()
"""


def test_it_is_not_adopted_while_another_run_has_the_lock(path: Path) -> None:
    """Two runs that start at once: one of them adopts."""
    before = dump(path, {"a": 1})
    with start_python(HOLDER, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        for attempt in (lambda: adopt(path), PickleFile(path).compact):
            with pytest.raises(CheckpointLocked):
                attempt()
        assert path.read_bytes() == before
        process.communicate(timeout=PATIENCE_SECONDS)
    assert adopt(path)


def test_who_comes_second_does_not_adopt_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The original is still the one that is kept, when another run was faster between two looks."""
    before = dump(path, {"a": 1})
    lock = PickleFile._lock

    def lock_second(self: PickleFile, notes: list[str]) -> LockableFile:
        monkeypatch.undo()
        adopt(path)
        return lock(self, notes)

    monkeypatch.setattr(PickleFile, "_lock", lock_second)
    assert adopt(path) == []
    assert backup(path).read_bytes() == before


ADOPT = """
import sys
from resumable_pool.checkpoints import PickleFile
checkpoint = PickleFile(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
checkpoint.open()
checkpoint.close()
"""


def _kill_while_adopting(path: Path, after: float) -> float:
    """Let another process adopt it, and kill that after so many seconds. Says how long it ran."""
    with start_python(ADOPT, path) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        begun = time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.kill()
        return time.monotonic() - begun


@pytest.mark.alike
def test_adopting_10000_results_survives_sigkill(path: Path) -> None:
    """At whatever moment it comes, the file is the old one or the new one, and the next adopts."""
    values = {f"in/{number:05}": [number, "x" * 50] for number in range(10_000)}
    original = dump(path, values)
    seconds = _kill_while_adopting(path, PATIENCE_SECONDS)
    assert plain(path) == values
    assert backup(path).read_bytes() == original
    generator = random.Random(1)
    adopted = 0
    for _ in range(5):
        backup(path).unlink(missing_ok=True)
        path.write_bytes(original)
        _kill_while_adopting(path, seconds * generator.random())
        assert plain(path) == values
        if path.read_bytes() == original:
            adopt(path)
        else:
            adopted += 1
        assert plain(path) == dict(open_checkpoint(path)) == values
        assert backup(path).read_bytes() == original
    assert adopted < 5, "no kill came while it was adopted"


@not_on_windows("SIGKILL at a call")
@pytest.mark.parametrize("step", range(5))
def test_a_kill_between_any_two_steps_leaves_the_old_or_the_new(path: Path, step: int) -> None:
    """The steps of putting the new file in place, one by one; then it is adopted as ever."""
    original = dump(path, {"a": 1})
    code = f"""
import os, shutil, signal, sys
from resumable_pool.checkpoints import PickleFile
left = {step}
def deadly(function):
    def call(*arguments, **options):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return function(*arguments, **options)
    return call
checkpoint = PickleFile(sys.argv[1])
import resumable_pool.checkpoints.base as base
fill = base._fill
def then_kill(*arguments):
    written = fill(*arguments)
    os.link, os.replace, os.unlink = deadly(os.link), deadly(os.replace), deadly(os.unlink)
    shutil.copymode = deadly(shutil.copymode)
    return written
base._fill = then_kill
checkpoint.open()
"""
    with start_python(code, path) as process:
        process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == -signal.SIGKILL
    assert plain(path) == {"a": 1}
    assert path.read_bytes() == original
    left = {*os.listdir(path.parent)}
    adopt(path)
    assert plain(path) == {"a": 1}
    assert backup(path).read_bytes() == original
    assert {*os.listdir(path.parent)} <= left | {path.name, backup(path).name}
