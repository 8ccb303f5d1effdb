"""Whether the wheel and the source archive hold what they should: `check_dist.py CHECKOUT FILES`.

The wheel is the package and its metadata, no more; the source archive is the checkout without
its dotfiles, so that whoever packages it can run the tests.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile

METADATA = {"METADATA", "RECORD", "WHEEL", "entry_points.txt"}


def checked_in(checkout: str) -> set[str]:
    """The files under version control, but those of the workshop."""
    listed = subprocess.run(["git", "-C", checkout, "ls-files"], stdout=subprocess.PIPE, check=True)
    return {name for name in listed.stdout.decode().splitlines() if not name.startswith(".")}


def compare(archive: str, found: set[str], expected: set[str]) -> None:
    """Ends the program where they differ."""
    if found != expected:
        missing, strange = sorted(expected - found), sorted(found - expected)
        sys.exit(f"{archive}: missing: {missing}, not expected: {strange}")
    print(f"{archive}: {len(found)} files, as they should be")


def main(checkout: str, *archives: str) -> None:
    """The command."""
    files = checked_in(checkout)
    (source,) = (name for name in archives if name.endswith(".tar.gz"))
    (wheel,) = (name for name in archives if name.endswith(".whl"))
    with tarfile.open(source) as tar:
        found = {name.partition("/")[2] for name in tar.getnames()}
    compare(source, found, files | {"PKG-INFO"})
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
    (folder,) = {name.partition("/")[0] for name in names if ".dist-info/" in name}
    package = {name for name in files if name.startswith("resumable_pool/")}
    assert "resumable_pool/py.typed" in package
    compare(wheel, set(names), package | {f"{folder}/{name}" for name in METADATA})


if __name__ == "__main__":
    main(*sys.argv[1:])
