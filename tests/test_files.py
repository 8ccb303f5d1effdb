"""Patterns into files."""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import socket
import sys
import time
import tracemalloc
import warnings
from binascii import crc32
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

import pytest

from resumable_pool import files
from resumable_pool.checkpoints import PickleFile, checkpoint_at
from resumable_pool.files import (
    as_key,
    check_pattern,
    fingerprint,
    is_in_shard,
    list_files,
    not_asked,
    nothing_found,
)
from resumable_pool.records import Fingerprint, Outcome, quoted

posix = pytest.mark.skipif(sys.platform == "win32", reason="of POSIX systems")
windows = pytest.mark.skipif(sys.platform != "win32", reason="of Windows")


def _fill(folder: Path) -> None:
    for name in ("b.txt", "a.txt", "a.log", ".hidden.txt", "sub/c.txt", "sub/deep/d.txt"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current directory, with some files."""
    _fill(tmp_path)
    monkeypatch.chdir(tmp_path)


def _files(pattern: Any) -> list[str]:
    return list_files(check_pattern(pattern))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("*", ["a.log", "a.txt", "b.txt"]),
        ("[b-z].txt", ["b.txt"]),
        ("**/*.txt", ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]),
        ("sub/**", ["sub/c.txt", "sub/deep/d.txt"]),
        ("./sub//*.txt", ["sub/c.txt"]),
        ("sub/../*.log", ["a.log"]),
        ("a.txt", ["a.txt"]),
        ("sub", []),
        ("nothing*", []),
        ("", []),
    ],
)
def test_globs(pattern: str, names: list[str]) -> None:
    """A glob gives the files it matches: no directories, sorted, normalised, relative as it is."""
    assert _files(pattern) == names


def test_a_path_can_be_a_glob(tmp_path: Path) -> None:
    """A Path is a glob as its text is; absolute ones give absolute paths."""
    assert _files(Path("sub") / "*.txt") == ["sub/c.txt"]
    assert _files(tmp_path / "*.log") == [(tmp_path / "a.log").as_posix()]


@pytest.mark.parametrize("kind", [list, tuple, set, iter, lambda paths: (path for path in paths)])
def test_iterables_of_paths(kind: Any) -> None:
    """Any iterable of texts and Paths gives these files: in its order, normalised, each once."""
    paths: Iterable[Any] = ["./b.txt", Path("a.txt"), "sub/../a.txt", "sub//c.txt"]
    files = _files(kind(paths))
    if kind is set:
        assert sorted(files) == ["a.txt", "b.txt", "sub/c.txt"]
    else:
        assert files == ["b.txt", "a.txt", "sub/c.txt"]


def test_listed_paths_are_no_globs(tmp_path: Path) -> None:
    """A listed path means that file, whatever characters are in its name."""
    (tmp_path / "[a].txt").touch()
    assert _files(["[a].txt"]) == ["[a].txt"]


@windows
@pytest.mark.parametrize(
    "pattern", ["sub\\*.txt", "SUB\\..\\sub/*.txt", ["sub\\c.txt"], Path("sub", "*.txt")]
)
def test_paths_have_forward_slashes_on_every_system(pattern: Any) -> None:
    """So that a checkpoint of one system goes on on another."""
    assert _files(pattern) == ["sub/c.txt"]


@windows
@pytest.mark.parametrize("prefix", ["\\\\?\\", "//?/"])
def test_names_that_windows_takes_letter_by_letter_keep_their_backslashes(
    tmp_path: Path, prefix: str
) -> None:
    """They would name nothing with other ones. Such folders are listed as all others are."""
    for pattern in (f"{prefix}{tmp_path}\\**\\*.txt", f"{prefix}{tmp_path}\\sub\\*.txt"):
        found = _files(pattern)
        assert found[0] == f"\\\\?\\{tmp_path}\\sub\\c.txt" or "**" in pattern
        assert all(os.path.isfile(path) and "/" not in path for path in found)
    assert _files([f"{prefix}{tmp_path}\\a.txt"]) == [f"\\\\?\\{tmp_path}\\a.txt"]


@windows
def test_a_shared_folder_keeps_its_two_slashes() -> None:
    """`//machine/folder` is what such a name is with forward slashes."""
    assert as_key("\\\\machine\\folder\\a.txt") == "//machine/folder/a.txt"


@windows
def test_a_drive_is_a_capital_letter(tmp_path: Path) -> None:
    """Whoever starts the script in `c:`, as editors do, has the same files as who does in `C:`."""
    drive, rest = os.path.splitdrive(tmp_path)
    for letter in (drive.lower(), drive.upper()):
        (found,) = {*_files(f"{letter}{rest}\\a.txt"), *_files([f"{letter}{rest}\\a.txt"])}
        assert found == as_key(f"{drive.upper()}{rest}/a.txt")
        assert _files(f"{letter}{rest}\\*.txt")[0] == found


def test_an_empty_list_is_no_files() -> None:
    """No paths are no files, without a warning."""
    assert _files([]) == []


def _slowly(pattern: str) -> list[str]:
    """What the pattern means, by `glob` alone; but that goes round in circles."""
    found = glob.glob(pattern, recursive=True)
    if "**" in pattern:
        found = [path for path in found if "again/" not in path]
    return sorted({as_key(os.path.normpath(path)) for path in found if os.path.isfile(path)})


@pytest.fixture(scope="module")
def jungle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with whatever may be in one; made once, as nobody changes it."""
    here = tmp_path_factory.mktemp("jungle") / "here"
    _fill(here)
    names = ["[a].txt", "*.txt", "?", "new\nline.txt", "a b", "ü.txt", "A.TXT", "..x", "...", "~"]
    for folder in ("sub", "sub/deep/b", "sub/.hidden/deep", "[b]", "a-b", "a", "b/a/b", "circle"):
        (here / folder).mkdir(parents=True, exist_ok=True)
        for name in ["x.txt"] if folder == "circle" or sys.platform == "win32" else names:
            (here / folder / name).touch()
    if sys.platform == "win32":
        yield here  # most of these names cannot be there
        return
    (here / os.fsdecode(b"\xff.txt")).touch()
    (here / "a" / os.fsdecode(b"\xfe\xff")).touch()
    for link, target in [
        ("sub/file.txt", "../a.txt"), ("sub/nowhere.txt", "none"), ("sub/self.txt", "self.txt"),
        ("link", "sub"), ("b/other", "../sub/deep"),
        ("circle/again", "."),
    ]:  # fmt: skip
        (here / link).symlink_to(target)
    os.mkfifo(here / "a" / "pipe.txt")
    for folder, mode in (("closed", 0o000), ("blind", 0o444), ("dark", 0o111)):
        (here / folder).mkdir()
        (here / folder / "x.txt").touch()
        (here / folder).chmod(mode)
    yield here
    for folder in ("closed", "blind", "dark"):
        (here / folder).chmod(0o755)


PATTERNS = """
* *.txt *.TXT .* .*/* .*/** ** */ **/ **/* **/*.txt **/**/*.txt **/.* **/.*/* ***/*.txt a** a**/*
a/** a/**/b/* sub/**/b/* **/b/* **/b/** */x* */*.txt */*/* */../*.txt link/../*.txt */../*/*.txt
[ab]* [!a]* ?.txt [[]*[]]*.txt [[]b]/* [b]/* [ab]/* [a [a/* *[ ./a//* .//*.txt ../* ../*/*.txt
a/../*.txt a.txt a.txt/ a.txt/* none/* none/*/* none */none sub sub/ sub/*/ */deep/* link/* link/**
sub/[a].txt sub/[[]a].txt sub/* sub//*.txt */new?line* **/*\udcff* **/\udcff* . .. ./* ./**/*.txt
/ /* closed/* blind/* dark/* dark/x.* */x.txt // ~ ~/* $HOME/* *\\*
""".split()  # noqa: SIM905


@pytest.mark.filterwarnings("ignore:folder .* is left out")
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_means_what_it_means_to_glob(
    jungle: Path, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is, and whatever there is, from here, from above and from the root."""
    monkeypatch.chdir(jungle)
    if sys.platform == "win32" and pattern in ("/", "/*"):
        pytest.skip("on Windows: Wine takes what begins with a slash for a path of Linux")
    for whole in (pattern, f"{jungle}/{pattern}", f"{jungle}//./{pattern}", f"*/../{pattern}"):
        assert _files(whole) == _slowly(whole)


@posix
def test_a_folder_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    """As `find` does: nobody else would notice that files are missing."""
    (tmp_path / "sub").chmod(0o000)
    tmp_path.chmod(0o755)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        with pytest.warns(UserWarning, match="folder 'sub' is left out, .*Permission") as warned:
            assert _files("**/*.txt") == ["a.txt", "b.txt"]
    finally:
        os.seteuid(user)
        (tmp_path / "sub").chmod(0o755)
    assert [warning.filename for warning in warned] == [__file__]


@windows
def test_a_junction_to_a_folder_above_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is found once: a junction is no link, Windows and Python say."""
    import _winapi

    monkeypatch.chdir("sub/deep")
    try:
        _winapi.CreateJunction(os.path.abspath(".."), os.path.abspath("again"))
    except OSError:  # Wine makes a folder, and shows links of Linux as junctions
        os.rmdir("again")
        os.spawnl(os.P_WAIT, "/bin/ln", "ln", "-s", "..", "again")
        while not os.path.exists("again"):
            time.sleep(0.01)
    assert _files("../**/*.txt") == ["../c.txt", "../deep/d.txt"]
    assert _files("again/*.txt") == ["again/c.txt"]  # by its name it is
    with contextlib.suppress(OSError):  # or what cleans up under Wine would go round in it
        os.spawnl(os.P_WAIT, "/bin/rm", "rm", "again")


@posix
def test_a_folder_that_is_too_deep_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has such folders can work in them: on Windows they begin at 260 characters."""
    for _ in range(25):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
        Path("x.deep").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match="folder 'ddd.*d' is left out, .*name too long"):
        assert 0 < len(_files("**/*.deep")) < 25


@posix
def test_behind_a_link_two_dots_lead_elsewhere(tmp_path: Path) -> None:
    """A path that would name another file, or none, without them keeps them."""
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "far" / "b.x").touch()
    (tmp_path / "link").symlink_to("far/away")
    for pattern in ("link/../*.x", "l*/../b.x", "l*/../*.x", ["link/../b.x"]):
        assert _files(pattern) == ["link/../b.x"]
    assert _files("far/away/../*.x") == _files(["far/away/../b.x"]) == ["far/b.x"]
    for path in (".//link/../b.x", "././link/../b.x", "link//.././b.x"):
        assert _files([path]) == _files(path) == ["link/../b.x"]
    assert _files([f"{tmp_path}//link/../b.x"]) == [f"{tmp_path}/link/../b.x"]


@posix
def test_only_files_count(tmp_path: Path) -> None:
    """Directories, sockets, pipes and dangling links that a glob matches are left out silently;
    links to files are files."""
    (tmp_path / "folder.x").mkdir()
    (tmp_path / "dangling.x").symlink_to("nowhere")
    (tmp_path / "loop.x").symlink_to("loop.x")
    (tmp_path / "link.x").symlink_to("a.txt")
    (tmp_path / "folder-link.x").symlink_to("sub")
    os.mkfifo(tmp_path / "pipe.x")
    with socket.socket(socket.AF_UNIX) as unix_socket:
        unix_socket.bind("socket.x")  # relative: an absolute path may be too long for one
        assert _files("*.x") == ["link.x"]


@posix
def test_a_backslash_is_a_letter(tmp_path: Path) -> None:
    """In a name and in a key; and a name that is too long is that of no file."""
    (tmp_path / "a\\b.y").touch()
    assert _files("*.y") == ["a\\b.y"]
    assert as_key("a\\b") == "a\\b"
    assert _files("x" * 1_000) == _files(f"{'x' * 1_000}/*") == []


def test_a_warning_names_the_caller() -> None:
    """Not a line of this package."""
    with pytest.warns(UserWarning, match="no such file") as warned:
        _files(["a.txt", "nothing"])
    assert warned[0].filename == __file__


@pytest.mark.parametrize(("path", "shard"), [("a.txt", 5), ("in/b.txt", 5)])
def test_a_file_stays_in_its_shard(path: str, shard: int) -> None:
    """On every machine, and with every version."""
    assert [is_in_shard(path, (number, 7)) for number in range(7)].index(True) == shard
    assert sum(is_in_shard(path, (number, 7)) for number in range(7)) == 1


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        ("scandir", "s*/*.txt"),
        ("scandir", "**/*.txt"),
        ("stat", "sub/*.txt"),
        ("stat", "sub/c.txt"),
        ("stat", ["sub/c.txt"]),
    ],
)
def test_what_cannot_be_read_now_is_not_left_out(
    monkeypatch: pytest.MonkeyPatch, call: str, pattern: str | list[str]
) -> None:
    """Where a disk or a server fails, or no descriptor is left, a run over some of the files would
    look like one over all of them."""

    def fail(path: str) -> NoReturn:
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            _files(pattern)


@posix
def test_names_that_are_no_text_are_files(tmp_path: Path) -> None:
    """A name that is not UTF-8 is found, under the name that opens it."""
    name = os.fsdecode(b"\xff\n.bin")
    (tmp_path / name).touch()
    assert _files("*.bin") == [name] == _files([name])


@pytest.mark.parametrize(
    ("paths", "text"),
    [
        (
            ["a.txt", "gone.txt"],
            r"no such file in the folder '.*', and so left out: 'gone.txt' \(1 of the 2 paths lis",
        ),
        (["sub", "gone.txt", "a.txt"], r"a folder, .* left out: 'sub' \(2 of the 3 paths listed\)"),
        (["/gone.txt", "a.txt"], r"no such file, and so left out: '/gone.txt' \(1 of"),
        (["a.txt", "*.txt"], r"'\*.txt' .* listed; a glob in a list is not expanded\)"),
    ],
)
def test_listed_paths_that_are_no_files_are_warned_of(paths: list[str], text: str) -> None:
    """Somebody meant them, so he is told how many are left out, and the first."""
    with pytest.warns(UserWarning, match=text):
        assert _files(paths) == ["a.txt"]


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("no/*.txt", "no files match 'no/*.txt' in the folder {here}; there is no 'no'"),
        ("sub/no/**/*.txt", "no files match 'sub/no/**/*.txt' in the folder {here}; there is no "
                            "'sub/no'"),
        ("/no/where/*.txt", "no files match '/no/where/*.txt'; there is no '/no'"),
        ("no*.txt", "no files match 'no*.txt' in the folder {here}"),
        ("take [1]/*.txt", "no files match 'take [1]/*.txt' in the folder {here}; brackets match "
                           "one character; to match them, glob.escape('take [1]')"),
        pytest.param(
            "sub\\*.txt", "no files match 'sub\\*.txt' in the folder {here}; folders are "
                          "separated by / here: 'sub/*.txt'", marks=posix),
        ("sub\text/*", "no files match 'sub\\text/*' in the folder {here}; a backslash in it "
                       "has become another character: write / in its place, or r'...'"),
        (
            "sub",
            "'sub' is a folder, not a file: 'sub/**/*' matches all files in it",
        ),
        ("*.{txt,md}", "no files match '*.{{txt,md}}' in the folder {here}; {{a,b}} is not "
                       "expanded: use a glob for each"),
        ("sub/**/*.{txt,md}", "no files match 'sub/**/*.{{txt,md}}' in the folder {here}; {{a,b}} "
                              "is not expanded: use a glob for each"),
        ("{sub,no}/*.txt", "no files match '{{sub,no}}/*.txt' in the folder {here}; {{a,b}} is not "
                           "expanded: use a glob for each"),
        ("sub/**.md", "no files match 'sub/**.md' in the folder {here}; ** takes in folders only "
                      "if it is alone between slashes"),
        ("~/no.*", "no files match '~/no.*' in the folder {here}; ~ is not expanded: "
                   "use os.path.expanduser"),
        (["a", "b"], "none of the 2 paths listed is a file"),
        ([], "no files were listed"),
    ],
)  # fmt: skip
def test_who_expects_files_is_told(pattern: str | list[str], text: str) -> None:
    """What was looked for, and what was perhaps meant."""
    Path("take [1]").mkdir()
    assert nothing_found(pattern).startswith(text.format(here=quoted(os.getcwd())))


@pytest.mark.parametrize("pattern", ["*.txt", "**/*.txt", "*/../a.txt", ["a.txt"]])
def test_who_waits_is_told_how_many_there_are(pattern: str | list[str]) -> None:
    """Whatever way they are listed."""
    told: list[int] = []
    found = list_files(pattern, told.append)
    assert max(told) >= len(found) > 0


def test_who_waits_is_told_in_the_middle_of_a_large_folder(tmp_path: Path) -> None:
    """There may be only one."""
    (tmp_path / "large").mkdir()
    for number in range(5_001):
        (tmp_path / "large" / f"{number}").touch()
    told: list[int] = []
    list_files("large/*", told.append)
    assert 5_000 in told


def test_a_large_folder_takes_as_little_memory_as_with_glob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Little more is kept of each file than its path, as many as there may be."""
    monkeypatch.setattr(files, "_TELL_EVERY", 50)  # what is more than that is many
    for number in range(1_000):
        (tmp_path / f"{number:05}.txt").touch()
    peaks: list[int] = []
    for list_them in (list_files, glob.glob):
        list_them("0*.txt")  # what is made once
        tracemalloc.start()
        assert len(list_them("0*.txt")) == 1_000
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[0] <= 1.5 * peaks[1]


def test_a_glob_warns_of_nothing() -> None:
    """Whatever a glob leaves out, nobody named it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _files("sub*") == []


def test_the_checkpoint_is_no_input(tmp_path: Path) -> None:
    """The checkpoint and the files that it keeps beside itself are left out, and no others."""
    own = ["a.pkl", "a.pkl.lock", "a.pkl.bak", "a.pkl.new-12-ab"]
    for name in (*own, "b.pkl", "a.pkl.txt"):
        (tmp_path / name).touch()
    checkpoint = PickleFile("a.pkl")
    assert checkpoint.others(list_files("*.pkl*")) == ["a.pkl.txt", "b.pkl"]
    assert checkpoint.others(list_files([*own, str(tmp_path / "a.pkl"), "b.pkl"])) == ["b.pkl"]


@posix
def test_a_checkpoint_that_is_named_by_a_link_is_no_input(tmp_path: Path) -> None:
    """Neither under that name, nor under its own."""
    (tmp_path / "data").mkdir()
    for name in ("data/real.pkl", "data/real.pkl.bak", "data/real.pkl.new-notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "data" / "latest.pkl").symlink_to("real.pkl")
    (tmp_path / "latest.pkl").symlink_to("data/real.pkl")
    notes = "data/real.pkl.new-notes.txt"
    for name in ("latest.pkl", "data/latest.pkl"):
        inputs = PickleFile(name).others(list_files("**/*.pkl*"))
        others = {"latest.pkl", "data/latest.pkl"} - {name}
        assert inputs == sorted([*others, notes])


def test_a_folder_may_be_called_like_the_checkpoint_in_it(tmp_path: Path) -> None:
    """Its files are no side files for that."""
    (tmp_path / "a.pkl").mkdir()
    for name in ("a.pkl", "a.pkl.lock", ".lock", ".bak", "x"):
        (tmp_path / "a.pkl" / name).touch()
    checkpoint = PickleFile(tmp_path / "a.pkl" / "a.pkl")
    assert checkpoint.others(list_files("a.pkl/*")) == ["a.pkl/x"]
    assert checkpoint.others(list_files("a.pkl/.*")) == ["a.pkl/.bak", "a.pkl/.lock"]


@pytest.mark.parametrize("pattern", [b"*.txt", 5, None, len])
def test_what_is_no_pattern_is_refused(pattern: Any) -> None:
    """Neither bytes nor what cannot be iterated over are a pattern, and the value is named."""
    with pytest.raises(TypeError, match="pattern must be a glob or an iterable of paths") as caught:
        check_pattern(pattern)
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("item", [b"a.txt", 5, None, ["a.txt"]])
def test_what_is_no_path_is_refused(item: Any) -> None:
    """Each listed path must be one, and the one that is not is named."""
    with pytest.raises(
        TypeError, match=r"a path must be a str or an os\.PathLike of str"
    ) as caught:
        check_pattern(["a.txt", item])
    assert repr(item) in str(caught.value)


def test_a_fingerprint_is_size_and_time(tmp_path: Path) -> None:
    """A file is known by its size and its time of change, to the nanosecond."""
    (tmp_path / "f").write_bytes(b"12345")
    os.utime("f", ns=(0, 1_234_567_890_123_456_700))
    assert fingerprint("f") == Fingerprint(5, 1_234_567_890_123_456_700)


@pytest.mark.parametrize("year", [1600, 2300])
@pytest.mark.parametrize("checkpoint", ["result.pkl", "result.jsonl", "result.sqlite"])
def test_a_file_of_another_century_is_saved(tmp_path: Path, checkpoint: str, year: int) -> None:
    """Nanoseconds since 1970 are a number of 64 bits in a checkpoint, and more on some disks."""
    (tmp_path / "f").write_bytes(b"12345")
    with contextlib.suppress(OSError):  # of Windows
        os.utime("f", (0, (year - 1970) * 365 * 86_400))
    outcome = Outcome("f", b"1", crc32(b"1"), None, 0.0, 1, fingerprint("f"))
    with closing(checkpoint_at(checkpoint)) as saver:
        saver.open()
        saver.save([outcome])
        assert saver.fingerprint("f") == fingerprint("f")


def test_a_file_that_is_gone_has_no_fingerprint() -> None:
    """Where there is nothing, both are -1."""
    assert fingerprint("gone") == Fingerprint(-1, -1)
    assert not_asked().size == -1


def test_what_changes_right_behind_a_quick_call_has_changed(tmp_path: Path) -> None:
    """A kernel's time of change is some milliseconds behind its clock."""
    path = tmp_path / "f"
    for _ in range(50):
        found = not_asked()
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, b"x")
        os.close(fd)
        assert fingerprint(str(path)).mtime_ns > found.mtime_ns
