"""The inputs of fuzzing.py, guided: what reaches code that none before it has reached is kept, and
changed further.

    python -m tests.prove.guided [--format SUFFIX...] [--seconds N] [--corpus FOLDER]

Needs `atheris`. `--corpus` is where inputs worth keeping are, and are added, by format.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMATS = (".pkl", ".jsonl", ".sqlite")  # as in fuzzing.py, which is not imported here

# The largest file, in bytes, that is made: larger ones reach nothing that these do not.
LARGEST = 1 << 15


def fuzz(suffix: str, corpus: Path, seconds: float, seed: int) -> None:
    """In a process of its own, which this ends."""
    import atheris

    # With what it uses for the first time here: what is imported before is not looked into.
    with atheris.instrument_imports(include=["resumable_pool"]):
        from . import fuzzing
    for number, data in enumerate(fuzzing.corpus(suffix)):
        (corpus / f"seed-{number:03}").write_bytes(data)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="guided-", dir=memory) as scratch:
        fuzzer = fuzzing.Fuzzer(suffix, Path(scratch))
        options = [f"-max_total_time={seconds:.0f}", f"-seed={seed}", f"-max_len={LARGEST}"]
        options += ["-timeout=30", "-rss_limit_mb=4096", f"-artifact_prefix={scratch}/"]
        atheris.Setup([sys.argv[0], *options, str(corpus)], fuzzer.one)
        atheris.Fuzz()


def _run(suffix: str, corpus: Path, seconds: float, seed: int) -> tuple[int, str]:
    """How many inputs there were, and what is wrong, if anything."""
    command = [sys.executable, "-m", "tests.prove.guided", "--inside"]
    command += ["--format", suffix, "--corpus", str(corpus), "--seconds", str(seconds)]
    done = subprocess.run([*command, "--seed", str(seed)], capture_output=True, text=True)
    said = done.stderr
    counts = re.findall(r"^(?:Done |#)(\d+)", said, re.M)
    reached = (re.findall(r"cov: (\d+)", said) or ["0"])[-1]
    inputs = int(counts[-1]) if counts else 0
    found = "nothing" if done.returncode == 0 else "something"
    print(f"{suffix}: {inputs:,} inputs, {reached} branches reached, {found} found", flush=True)
    return inputs, f"{done.stdout}{said}" if done.returncode else ""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.prove.guided", description=__doc__)
    parser.add_argument("--format", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seconds", type=float, default=60.0, help="for each format (60)")
    parser.add_argument("--seed", type=int, default=int(time.time()) % (1 << 31))
    parser.add_argument("--corpus", type=Path, metavar="FOLDER")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        fuzz(options.format[0], options.corpus, options.seconds, options.seed)
        return 0
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed")
        return 0
    total, faults = 0, 0
    with tempfile.TemporaryDirectory(prefix="guided-") as scratch:
        for suffix in options.format:
            corpus = (options.corpus or Path(scratch)) / suffix[1:]
            corpus.mkdir(parents=True, exist_ok=True)
            inputs, wrong = _run(suffix, corpus, options.seconds, options.seed)
            total += inputs
            faults += bool(wrong)
            print(wrong[-5000:])
    print(f"{total:,} inputs that were guided, {faults} formats with a fault")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
