"""Bytes that nobody wrote on purpose, before everything that reads a checkpoint.

    python -m tests.prove.fuzzing [--format SUFFIX] [--seconds N] [--seed N]

Inputs are what is in the corpus, changed at random. The corpus is made anew: small checkpoints of
each kind, while they are written and closed, and what others may put in their place.

Whatever the bytes are, the readers and `show` and `check` give an answer or an error of ours, run
no code of the file's, and take memory and time that the size of the file explains.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from resumable_pool import ResumablePoolError
from resumable_pool.__main__ import main as command_line
from resumable_pool.checkpoints import checkpoint_at
from tests.checkpoints.conftest import failed, result

if sys.platform != "win32":
    import resource

FORMATS = (".pkl", ".jsonl", ".sqlite")

# What a reader may take for a file of a few kilobytes, over what the process has: SQLite's cache,
# and a traceback's text. And for how long.
MOST_MEMORY = 256 << 20
MOST_SECONDS = 10.0

_MAGIC = b"\x80\x04}C\x16\x89RPL"

_sprung: list[object] = []


def spring(*arguments: object) -> str:
    """What a pickle in the corpus would call, if anybody unpickled it."""
    _sprung.append(arguments)
    return "sprung"


class Trap:
    """Its pickle calls `spring`."""

    def __reduce__(self) -> tuple[Callable[..., str], tuple[str]]:
        return spring, ("unpickled",)


def corpus(suffix: str) -> list[bytes]:
    """Small files as we write them, and what others may put in their place."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        seeds = [*_ours(Path(folder), suffix)]
    plain = [{}, {"a": 1, "b": [1, "x"]}, {"a": Trap()}, [1, 2], "text"]
    seeds += [pickle.dumps(value, protocol) for value in plain for protocol in (0, 2, 3, 4)]
    return [*seeds, b"", b"\x80", b"{}\n", json.dumps({"path": "a"}).encode() + b"\n"]


def _ours(folder: Path, suffix: str) -> Iterator[bytes]:
    value = Trap() if suffix != ".jsonl" else {"a": None}
    kinds = [[], [result("a", 1)], [result("a", "x" * 300), failed("b")], [result("t", value)]]
    kinds.append([result("a", 1), result("a", 2), failed("a"), result("ü\udc80", [1.5, None])])
    for number, outcomes in enumerate(kinds):
        path = folder / f"{number}{suffix}"
        checkpoint = checkpoint_at(path)
        checkpoint.open()
        for outcome in outcomes:
            if outcome.failure is None:
                made = result(outcome.path, outcome.value, checkpoint.encode)
                checkpoint.save([made])
            else:
                checkpoint.save_failures([outcome])
        yield path.read_bytes()  # as it is while a run goes on
        checkpoint.close()
        yield path.read_bytes()
    _sprung.clear()  # by `outcome.value` above


def changed(data: bytes, others: list[bytes], chance: random.Random) -> bytes:
    """`data` after one to four small accidents."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        data = _once(bytearray(data), others, chance)
    return data


def _once(data: bytearray, others: list[bytes], chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    end = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 64)))
    match chance.randrange(8):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 1 if at < len(data):
            data[at] = chance.choice((0, 0xFF, 0x2E, 0x43, 0x0A, chance.randrange(256)))
        case 2:
            del data[at:]
        case 3:
            del data[at:end]
        case 4:
            data[at:at] = data[at:end]
        case 5:
            data[at:end] = bytes(end - at)
        case 6:
            other = chance.choice(others)
            begin = chance.randrange(len(other) + 1)
            data[at:at] = other[begin : begin + chance.choice((1, 8, 52, 500))]
        case 7:
            data[at:end] = chance.randbytes(end - at)
    return bytes(data)


def read_all(path: Path) -> None:
    """Everything that may be done with a file that one does not trust; raises what is a fault."""
    before = _memory()
    begun = time.perf_counter()
    for read in (_mapping, _check, _show, _show_json, _settle_and_write):
        # Refused, or not there: any other exception is a fault.
        with contextlib.suppress(ResumablePoolError, FileNotFoundError):
            read(path)
    took = time.perf_counter() - begun
    assert not _sprung, "code of the file's was run"
    assert took < MOST_SECONDS, f"it took {took:.1f} s"
    grown = _memory() - before
    assert grown < MOST_MEMORY, f"it took {grown >> 20:,} MB"


def _mapping(path: Path) -> None:
    checkpoint = checkpoint_at(path)
    for name in [*checkpoint][:100]:
        with contextlib.suppress(KeyError):
            checkpoint.fingerprint(name)
    for entry in checkpoint.entries():
        assert isinstance(entry.path, str)
    for name in [*checkpoint.failures()][:100]:
        with contextlib.suppress(KeyError):
            assert checkpoint.failures()[name].path == name


def _check(path: Path) -> None:
    assert all(isinstance(finding, str) for finding in checkpoint_at(path).check())


def _show(path: Path) -> None:
    _command("show", str(path))


def _show_json(path: Path) -> None:
    _command("show", "--json", str(path))


def _command(*arguments: str) -> None:
    said = io.StringIO()
    with (
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(said),
        contextlib.suppress(SystemExit),
    ):
        command_line([*arguments])
    text = said.getvalue()
    assert "Traceback" not in text, text
    assert all(sign.isprintable() or sign == "\n" for sign in text), (
        f"raw on the terminal: {text!r}"
    )


def _settle_and_write(path: Path) -> None:
    """What is sound before it is opened for writing is there afterwards."""
    data = path.read_bytes()
    if path.suffix == ".pkl" and not data.startswith(_MAGIC) and b"spring" in data:
        return  # a plain pickle is adopted, which unpickles it, as documented
    try:
        before = {*checkpoint_at(path).completed()}
        checkpoint = checkpoint_at(path)
        checkpoint.open()
        checkpoint.close()
    except ResumablePoolError:
        before = set()
        if path.suffix == ".pkl" and b"spring" in data:
            return
        checkpoint_at(path).compact()  # or it raises that, too, having changed nothing
        assert checkpoint_at(path).check() == []
    after = checkpoint_at(path)
    assert {*after.completed()} >= before
    if path.suffix == ".pkl" and not after.check():
        assert {*_Plain(io.BytesIO(path.read_bytes())).load()} == {*after.completed()}


class _Plain(pickle.Unpickler):
    """Reads a plain pickle, and calls nothing that a file of strangers may name."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("pickle", "loads"):  # of a value that protocol 3 cannot hold
            return lambda data: _Plain(io.BytesIO(data)).load()
        return lambda *arguments: (module, name)


def _memory() -> int:
    """The most that this process has had, in bytes; 0 where nobody tells."""
    if sys.platform == "win32":
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class Fuzzer:
    """One file that is written over and over. What is wrong raises, with the input kept."""

    def __init__(self, suffix: str, folder: Path) -> None:
        self._suffix = suffix
        self._folder = folder
        self.inputs = 0

    def one(self, data: bytes) -> None:
        """Try this input."""
        self.inputs += 1
        for old in self._folder.iterdir():
            old.unlink()
        path = self._folder / f"input{self._suffix}"
        path.write_bytes(data)
        try:
            read_all(path)
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            kept = Path(tempfile.gettempdir()) / f"fuzzing-{os.getpid()}{self._suffix}"
            kept.write_bytes(data)
            raise AssertionError(f"{self._suffix}, input {self.inputs}, kept as {kept}") from error

    def by_chance(self, seed: int, inputs: int | None = None, seconds: float | None = None) -> None:
        """So many inputs, or for so long."""
        chance = random.Random(seed)
        seeds = corpus(self._suffix)
        for data in seeds:
            self.one(data)
        end = None if seconds is None else time.monotonic() + seconds
        while (inputs is None or self.inputs < inputs) and (end is None or time.monotonic() < end):
            self.one(changed(chance.choice(seeds), seeds, chance))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.fuzzing", description=__doc__)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each format (60)")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    total = 0
    for suffix in options.format:
        with tempfile.TemporaryDirectory(prefix="fuzzing-") as scratch:
            folder = Path(scratch) / "file"
            folder.mkdir()
            fuzzer = Fuzzer(suffix, folder)
            print(f"{suffix}: seed {options.seed}", flush=True)
            fuzzer.by_chance(options.seed, seconds=options.seconds)
            print(f"{suffix}: {fuzzer.inputs:,} inputs, nothing found", flush=True)
            total += fuzzer.inputs
    print(f"{total:,} inputs at random, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
