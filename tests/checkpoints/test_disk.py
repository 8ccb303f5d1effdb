"""Reading and writing many bytes at once, whatever the system makes of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_pool.checkpoints.disk import (
    force_folder,
    make_like,
    read_at,
    read_into,
    write_parts,
)

from .conftest import SUFFIXES

MEGABYTE = 1 << 20
PARTS: list[Any] = [
    b"", b"start", bytearray(b"L" * 5_000), memoryview(b"M" * 4_097), b"", b"s" * 4_096, b"a", b"b",
    memoryview(bytes(range(256)) * 300), b"end",
]  # fmt: skip


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0))
    yield fd
    os.close(fd)


def _short(limit: int) -> Callable[..., int]:
    """A write that takes no more than so many bytes, as the real one may."""

    def pwritev(fd: int, parts: list[Any], offset: int) -> int:
        return os.pwrite(fd, b"".join(parts)[:limit], offset)

    return pwritev


@pytest.mark.parametrize("limit", [None, 0, 1, 4_999, 5_000, 5_005, 5_006, 10_000, MEGABYTE])
def test_parts_are_written_one_behind_the_other(
    fd: int, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """Small and large ones, however much the system takes at once; and where it takes no lists."""
    if limit is None:
        monkeypatch.delattr(os, "pwritev", raising=False)
    elif limit and sys.platform != "win32":
        monkeypatch.setattr(os, "pwritev", _short(limit))
    write_parts(fd, PARTS, 7)
    assert read_at(fd, MEGABYTE, 0) == bytes(7) + b"".join(PARTS)


def test_any_number_of_parts_is_written(fd: int) -> None:
    """More than the system takes in one call."""
    parts = [bytes([number % 251]) * 4_100 for number in range(2_500)]
    write_parts(fd, parts, 0)
    view = memoryview(bytearray(4_100 * 2_500))
    read_into(fd, view, 0)
    assert view == b"".join(parts)


def test_a_buffer_is_filled_as_far_as_the_file_goes(fd: int) -> None:
    """From any place; the rest stays as it was."""
    os.write(fd, b"0123456789" * MEGABYTE)
    buffer = bytearray(b"x" * (3 * MEGABYTE))
    read_into(fd, memoryview(buffer), 10 * MEGABYTE - 25)
    assert buffer == (b"56789" + b"0123456789" * 2).ljust(3 * MEGABYTE, b"x")
    read_into(fd, memoryview(buffer), 5)
    assert buffer == (b"5678901234" * MEGABYTE)[: 3 * MEGABYTE]
    read_into(fd, memoryview(b""), 0)


def test_large_parts_are_not_copied(fd: int) -> None:
    """Writing 40 MB takes next to no memory, and reading them only what they take themselves."""
    large = memoryview(bytes(20 * MEGABYTE))
    tracemalloc.start()
    write_parts(fd, [b"a", large, b"b", large, b"c"], 0)
    read_into(fd, memoryview(bytearray(20 * MEGABYTE)), 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < (24 if sys.platform == "win32" else 21) * MEGABYTE


A_LIFE = """
import sys
from resumable_pool.checkpoints import checkpoint_at
from tests.checkpoints.conftest import result

checkpoint = checkpoint_at(sys.argv[1])
for number in range(2):
    checkpoint.open()
    checkpoint.save([result(f"in/{number}", number, checkpoint.encode)])
    checkpoint.close()
    checkpoint.compact()
"""
_CALL = re.compile(
    r'^(\w+)\((?:AT_FDCWD<[^>]*>, )?(?:\d+<)?"?([^">]*)[">](?:.*, "([^"]*)")?.* = \d+$', re.M
)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_are_forced_to_the_disk_and_so_is_what_is_given_one(
    tmp_path: Path, suffix: str
) -> None:
    """What takes a checkpoint's place is on the disk before it does, and that it has done so is on
    the disk before more is written: a power cut would take away what was saved in between."""
    trace, path = tmp_path / "trace", tmp_path / "folder" / f"result{suffix}"
    path.parent.mkdir()
    calls = "write,pwrite64,pwritev,pwritev2,fsync,fdatasync,link,linkat,rename,renameat,renameat2"
    command = ["strace", "-y", "-o", trace, "-e", f"trace={calls}", sys.executable, "-c", A_LIFE]
    root = Path(__file__).parents[2]
    subprocess.run([*command, path], env={**os.environ, "PYTHONPATH": str(root)}, check=True)
    unforced: set[str] = set()
    names = 0
    done = [call for call in _CALL.findall(trace.read_text()) if str(path.parent) in call[1]]
    for call, name, target in [*done, ("exit", str(path), "")]:
        if "sync" in call:
            unforced.discard(name)
        elif call.startswith(("link", "rename")):
            assert ".new-" not in name or name not in unforced, f"{call} of {name}"
            if name != target:
                unforced.add(str(path.parent))
                names += 1
        elif name.startswith(str(path)):
            assert str(path.parent) not in unforced, f"{call} of {name}"
            unforced.add(name)
    assert names >= 6


def test_a_folder_that_cannot_be_opened_is_not_forced(tmp_path: Path) -> None:
    """Who may only write to it (a drop box) can have a checkpoint there."""
    force_folder(str(tmp_path / "no folder" / "file"))


@pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only an administrator has two users"
)
def test_who_may_not_give_a_file_away_gives_it_to_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If somebody of a team compacts the checkpoint of another, the team can still use it."""
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o777)
    old, new, groups = Path("old"), Path("new"), os.getgroups()
    old.touch()
    os.chown(old, 1234, 1235)
    old.chmod(0o660)
    os.setgroups([1235])
    os.seteuid(65534)
    try:
        make_like("old", "new")
    finally:
        os.seteuid(0)
        os.setgroups(groups)
    status = new.stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (65534, 1235, 0o660)
