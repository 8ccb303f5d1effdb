"""A glob, or any paths, into the files of a run, and the names under which they are known.

Knows no process and no checkpoint.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import functools
import glob
import itertools
import os
import re
import stat
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .records import Fingerprint, quoted

# By so much a file's time of change may be earlier than the change (at 100 ticks a second).
_CLOCK_TICK_NS = 10_000_000

_PACKAGE = os.path.join(os.path.dirname(__file__), "")

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def check_pattern(pattern: object, what: str = "pattern") -> str | list[str]:
    """A glob as text, or a list of paths as text; `what` it is, in the message.

    Raises:
        TypeError: it is neither, or a path in it is none.
    """
    if isinstance(pattern, (str, os.PathLike)):
        return as_text(pattern, "a path")
    return check_paths(pattern, f"{what} must be a glob or an iterable of paths", "a path")


def check_paths(paths: object, rule: str, each: str) -> list[str]:
    """A list of paths as text.

    Raises:
        TypeError: they are none, against the `rule`, or one of them, which `each` names, is none.
    """
    if isinstance(paths, (str, bytes)) or not isinstance(paths, Iterable):
        raise TypeError(f"{rule}, not {paths!r}")
    return [as_text(path, each) for path in paths]


def as_text(path: object, what: str) -> str:
    """A path as text; raises `TypeError`, with `what` it is for, if it is none."""
    text = os.fspath(path) if isinstance(path, os.PathLike) else path
    if not isinstance(text, str):
        raise TypeError(f"{what} must be a str or an os.PathLike of str, not {path!r}")
    return text


def here() -> str:
    """The current directory, or `""` where it is gone: only relative paths need it."""
    with contextlib.suppress(OSError):
        return os.getcwd()
    return ""


def as_key(path: str) -> str:
    r"""The path as results are kept and looked up under it: itself, where a backslash is a letter.
    On Windows with forward slashes, as on every other system, which every call there takes, and a
    drive as a capital letter: editors start scripts, and terminals, in `c:` as well as in `C:`. Not
    so \\?\ and \\.\ names, which are taken letter by letter."""
    if not isinstance(path, str):  # nothing is kept under it
        raise KeyError(path)
    if sys.platform != "win32" or path.startswith(("\\\\?\\", "\\\\.\\")):
        return path
    path = path.replace("\\", "/")
    return path[0].upper() + path[1:] if path[1:2] == ":" else path


# Is told how many have been found so far: listing may take long.
Told = Callable[[int], None]

# So many entries of a folder are read between two times.
_TELL_EVERY = 5_000

# What says that nothing is there, or that nobody may look. Any other error (a disk that fails, a
# server that is away, no descriptor left) is raised: half a list would look like a whole one, and a
# run over nothing like one that has done everything.
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP}
_NOT_THERE |= {errno.ENAMETOOLONG, errno.EINVAL}


def list_files(
    pattern: str | list[str], told: Told = lambda number: None, in_order: bool = True
) -> list[str]:
    """The files that `pattern` names, each once: those of a glob sorted, unless nobody needs them
    `in_order`, those of a list in its order. Without directories, sockets and dangling links.

    Paths stay as they are given (relative ones relative), but normalised: `./a//b` is `a/b`, and on
    Windows so is `a\\b`.
    Listed paths that are no files are left out with a warning, since somebody meant them, and so is
    what is in folders that may not be read. `told` hears now and then how many there are so far.

    Raises:
        OSError: the system cannot say what is there.
    """
    if isinstance(pattern, str):
        found = _matches(pattern, told)
        return sorted(found) if in_order else found
    return [*_of_list(pattern, told)]


def nothing_found(pattern: str | list[str]) -> str:
    """What to say to a person who expects files where there are none: what was looked for, in which
    folder, and what may be wrong with it."""
    if not isinstance(pattern, str):
        listed = f"none of the {len(pattern):,} paths listed is a file"
        return listed if pattern else "no files were listed"
    if os.path.isdir(pattern):
        inside = quoted(as_key(os.path.join(pattern, "**", "*")))
        return f"{quoted(pattern)} is a folder, not a file: {inside} matches all files in it"
    hint = _hint(pattern)
    return f"no files match {quoted(pattern)}{_where(pattern)}{hint and '; '}{hint}"


def _where(path: str) -> str:
    return "" if is_rooted(path) else f" in the folder {quoted(here())}"


def _hint(pattern: str) -> str:
    """The usual mistakes in a glob."""
    if pattern.startswith("~"):
        return "~ is not expanded: use os.path.expanduser"
    if not pattern.isprintable():
        return "a backslash in it has become another character: write / in its place, or r'...'"
    if "\\" in pattern and os.sep == "/":
        return f"folders are separated by / here: {quoted(pattern.replace(chr(92), '/'))}"
    above, below = os.path.splitdrive(as_key(pattern))
    for name in below.split("/"):
        path = f"{above}{name}"
        if glob.has_magic(name) or ("{" in name and not os.path.exists(path)):
            if os.path.exists(path):  # it may be called like a glob
                return f"brackets match one character; to match them, glob.escape({quoted(path)})"
            if any("**" in part and part != "**" for part in below.split("/")):
                return "** takes in folders only if it is alone between slashes"
            return "{a,b} is not expanded: use a glob for each" if "{" in below else ""
        if not os.path.exists(path or os.sep):
            return f"there is no {quoted(path)}"
        above = f"{path}/"
    return ""


def _of_list(paths: list[str], told: Told) -> Iterable[str]:
    files: list[str] = []
    missing: list[str] = []
    for path in paths:
        (files if _is_file(path) else missing).append(path)
        told(len(files))
    if missing:
        what = "a folder" if os.path.isdir(missing[0]) else f"no such file{_where(missing[0])}"
        advice = "; a glob in a list is not expanded" if glob.has_magic(missing[0]) else ""
        warnings.warn(
            f"{what}, and so left out: {quoted(missing[0])} ({len(missing)} of the {len(paths)} "
            f"paths listed{advice})",
            stacklevel=_levels_to_the_caller(),
        )
    return dict.fromkeys(map(normalised, files))


def normalised(path: str) -> str:
    """The path without `.`, `//` and `a/..`; but with what `..` means behind a link."""
    short = os.path.normpath(path)
    shorter = short.count(os.pardir) < path.count(os.pardir)
    with contextlib.suppress(ValueError):  # no file can have such a name
        if shorter and os.path.realpath(short) != os.path.realpath(path):
            first, *names = path.split("/")
            names = [name for name in names if name not in ("", os.curdir)]
            short = "/".join(names if first == os.curdir else [first, *names])
    return as_key(short)


def _levels_to_the_caller() -> int:
    """How many frames up from who asks the first one is that is not of this package."""
    levels, frame = 1, sys._getframe().f_back
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        levels, frame = levels + 1, frame.f_back
    return levels


def _matches(pattern: str, told: Told) -> list[str]:
    """What `glob.glob` finds that is a file, normalised, each once.

    It looks twice at every file, and goes round in a circle of links until the system refuses to,
    so folders are read here.
    """
    head, tail = os.path.split(pattern)
    if not glob.has_magic(pattern):
        return [normalised(pattern)] if _is_file(pattern) else []
    if tail == "**":
        head, tail = pattern, "*"
    seen: set[str] = set()
    paths: list[str] = []
    above = os.path.join(os.curdir, head)
    for folder, inside in _folders(above, lambda more: told(len(paths) + more)):
        start = normalised(folder + "x")[:-1]  # what its files' paths begin with
        if start not in seen:  # `*/../x` names one folder in many ways
            seen.add(start)
            names = _named(inside.files, inside.links, tail, os.DirEntry.is_file)
            paths.extend([start + name for name in names])
    return paths


class _Inside(NamedTuple):
    """What is in a folder: names of files and of folders, and links, of which only the disk knows
    what they are. (To keep an `os.DirEntry` of each would take three times as much memory.)"""

    files: list[str]
    folders: list[str]
    links: dict[str, os.DirEntry[str]]


def _folders(pattern: str, told: Told) -> Iterator[tuple[str, _Inside]]:
    """The folders that `pattern` names, with what is in each; a folder ends in a separator."""
    above, last = os.path.split(pattern)
    # There is no more above a drive, and what looks like a glob in its name (`\\?\C:\`) is none.
    if above == pattern or not glob.has_magic(pattern):
        yield from _folder(pattern, told)
        return
    for folder, inside in _folders(above, told):
        if last == "**":
            yield from _all_below(folder, inside, told)
            continue
        names = [last]
        if glob.has_magic(last):
            names = _named(inside.folders, inside.links, last, os.DirEntry.is_dir)
        for name in names:
            yield from _folder(os.path.join(folder, name), told)


def _folder(path: str, told: Told) -> Iterator[tuple[str, _Inside]]:
    """This one, if it is one."""
    if stat.S_ISDIR(_mode(folder := os.path.join(path, ""))):
        yield folder, _inside(folder, told)


def _all_below(folder: str, inside: _Inside, told: Told) -> Iterator[tuple[str, _Inside]]:
    """The folder, and all that are in it."""
    yield folder, inside
    for name in _named(inside.folders, inside.links, "*", os.DirEntry.is_dir):
        if name not in inside.links or not _leads_up(inside.links[name]):
            below = os.path.join(folder, name, "")
            yield from _all_below(below, _inside(below, told), told)


def _leads_up(link: os.DirEntry[str]) -> bool:
    """Whether it leads to a folder above itself, in which there would be no end."""
    path = os.path.abspath(link.path)
    while (above := os.path.dirname(path)) != path:
        path = above
        with contextlib.suppress(OSError):  # it may lead nowhere
            if os.path.samefile(link.path, path):
                return True
    return False


if sys.platform == "win32":

    def _is_link(entry: os.DirEntry[str]) -> bool:
        """Also if it is a junction, which says that it is none."""
        if not entry.is_dir(follow_symlinks=False):
            return entry.is_symlink()
        attributes = entry.stat(follow_symlinks=False).st_file_attributes
        return bool(attributes & stat.FILE_ATTRIBUTE_REPARSE_POINT)

else:
    _is_link = os.DirEntry.is_symlink


def _inside(folder: str, told: Told) -> _Inside:
    """What is in the folder; nothing, with a warning, if nobody can look."""
    files, folders, links = inside = _Inside([], [], {})
    # By way of its `.`, since a folder may be read whose files nobody may open. (On Windows there
    # are no such folders, and names that are taken letter by letter, in which a dot is one.)
    path = folder if sys.platform == "win32" else folder + os.curdir
    try:
        with os.scandir(path) as entries:
            while some := [*itertools.islice(entries, _TELL_EVERY)]:
                links.update({entry.name: entry for entry in filter(_is_link, some)})
                plain = [entry for entry in some if entry.name not in links] if links else some
                files += [entry.name for entry in plain if entry.is_file()]
                folders += [entry.name for entry in plain if entry.is_dir()]
                told(len(files))
    except OSError as error:  # it was there: it may not be read, or its path is too long
        if error.errno not in _NOT_THERE:
            raise
        what = f"folder {quoted(normalised(folder))} is left out, with all that is in it"
        warnings.warn(f"{what}: {error.strerror}", stacklevel=_levels_to_the_caller())
    return inside


@contextlib.contextmanager
def _nothing_where_nobody_may_look() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise


def _mode(path: str) -> int:
    """What kind of file it is; 0 where there is none, or a name that no file can have."""
    with contextlib.suppress(ValueError), _nothing_where_nobody_may_look():
        return os.stat(path).st_mode
    return 0


def _is_file(path: str) -> bool:
    return stat.S_ISREG(_mode(path))


def _named(
    names: list[str], links: dict[str, os.DirEntry[str]], pattern: str,
    is_kind: Callable[[os.DirEntry[str]], bool],
) -> list[str]:  # fmt: skip
    """Of these, and of the links that are of this kind, those that match by `glob.glob`'s rules."""
    matches = _matcher(pattern)
    linked = [link for name, link in links.items() if matches(name)]
    try:
        linked = [*filter(is_kind, linked)]
    except OSError:  # some go in a circle
        linked = [*filter(is_kind, [link for link in linked if _mode(link.path)])]
    return [*filter(matches, names), *(link.name for link in linked)]


@functools.cache
def _matcher(pattern: str) -> Callable[[str], object]:
    """Says of a name whether it matches."""
    shown = "" if pattern.startswith(".") else r"(?!\.)"
    flags = re.IGNORECASE if sys.platform == "win32" else 0
    return re.compile(shown + fnmatch.translate(pattern), flags).match


def is_in_shard(path: str, shard: tuple[int, int]) -> bool:
    """Whether the file belongs to shard `k` of `n`, `shard` being `(k, n)`: a hash of its path says
    so, and nothing else, so that it stays in its shard whatever other files come and go, and every
    machine knows which one that is. (Python's own `hash` is another in each process.)"""
    from hashlib import blake2b  # for those who have shards: it takes longer than all else here

    number, count = shard
    digest = blake2b(as_key(path).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % count == number


def fingerprint(path: str) -> Fingerprint:
    """The file's size and time of change now."""
    try:
        status = os.stat(path)
    except OSError:
        return Fingerprint()
    # Checkpoints have 64 bits for nanoseconds, which end in the year 2262; some disks have more.
    return Fingerprint(status.st_size, max(-1 << 63, min(status.st_mtime_ns, (1 << 63) - 1)))


def not_asked() -> Fingerprint:
    """In place of one for quick files, of which asking may take longer than all else: no size, and
    when they were processed at the earliest. If such a file has changed since is told by its time
    of change, as `make` does; Linux takes that from a clock that is some milliseconds behind."""
    return Fingerprint(-1, time.time_ns() - _CLOCK_TICK_NS)


def is_rooted(path: str) -> bool:
    """Whether it does not start in the current folder. (To Python 3.13 and later, `/name` is not
    absolute on Windows, since it is on the current drive.)"""
    return path.startswith("/") or os.path.isabs(path)
