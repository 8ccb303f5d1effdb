"""Opening and locking a file that others make, remove and replace at the same moment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_pool import CheckpointLocked
from resumable_pool.between import forks
from resumable_pool.checkpoints.lock import (
    LockableFile,
    is_at,
    lock_file,
    open_locked,
    sign,
    signer,
    unsign,
)
from tests.conftest import not_on_windows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def _open(path: Path) -> bytes:
    """What is in the file that was opened and locked, which is the one at `path`."""
    file = open_locked(str(path), b"new", lambda fd: None, [])
    try:
        assert is_at(os.fstat(file.fileno()), str(path))
        return path.read_bytes()
    finally:
        forks.close(file)


def _once(
    monkeypatch: pytest.MonkeyPatch, where: Any, name: str, action: Callable[[], None]
) -> None:
    """Do something just before the first call of this function."""
    real = getattr(where, name)

    def first(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(where, name, real)
        action()
        return real(*arguments, **keywords)

    monkeypatch.setattr(where, name, first)


def test_a_file_is_made_in_one_step(path: Path) -> None:
    """A new one has its bytes, an empty one gets them, and nothing is left beside it."""
    assert _open(path) == b"new"
    path.write_bytes(b"")
    assert _open(path) == b"new"
    path.write_bytes(b"old")
    assert _open(path) == b"old"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_is_removed_before_it_is_opened_is_made_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lock file's owner removes it when it leaves."""
    path.write_bytes(b"old")
    _once(monkeypatch, os, "open", path.unlink)
    assert _open(path) == b"new"


@pytest.mark.parametrize("replaced", [True, False])
@not_on_windows("nobody may remove what is open")
def test_a_lock_counts_only_on_the_file_that_is_there(
    path: Path, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    """Who has opened a file that is then removed or replaced takes the one that is there now."""
    path.write_bytes(b"old")
    other = path.with_name("other")
    other.write_bytes(b"other")
    action = (lambda: other.rename(path) and None) if replaced else path.unlink
    _once(monkeypatch, LockableFile, "lock", action)
    assert _open(path) == (b"other" if replaced else b"new")


def test_a_holder_that_is_dead_is_none(path: Path) -> None:
    """Who has the lock may not have signed yet, and his predecessor's number may be anybody's."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    file = open_locked(str(path), b"new", lambda fd: None, [])
    try:
        holders = [lambda fd: dead.pid, lambda fd: os.getpid()]
        for holder, told in zip(holders, (None, os.getpid()), strict=True):
            with pytest.raises(CheckpointLocked) as caught:
                open_locked(str(path), b"new", holder, [])
            assert caught.value.pid == told
    finally:
        forks.close(file)


@not_on_windows("Wine makes no links")
def test_the_lock_file_is_beside_the_file_itself(path: Path) -> None:
    """Whatever links lead to it."""
    path.with_name("link").symlink_to(path)
    assert lock_file(str(path.with_name("link"))) == lock_file(str(path)) == f"{path}.lock"


def test_a_lock_file_names_who_has_signed(path: Path) -> None:
    """Until that is taken back; a file that is there without a signature names nobody."""
    lock = path.with_name("file.lock")
    assert signer(str(path)) is None
    for content in (b"", b" ", b"x" * 30):
        lock.write_bytes(content)
        assert signer(str(path)) is None
    sign(str(path))
    assert signer(str(path)) == signer(str(lock)) == os.getpid()
    unsign(str(path))
    unsign(str(path))
    assert signer(str(path)) is None
    assert list(path.parent.iterdir()) == []
