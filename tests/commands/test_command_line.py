"""`python -m resumable_pool`, as a user types it: whole processes on real files."""

from __future__ import annotations

import csv
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import resumable_pool
from resumable_pool import ResumableRunner, open_checkpoint
from resumable_pool.__main__ import main
from resumable_pool.checkpoints import PickleFile, checkpoint_at

from .. import functions
from ..checkpoints.conftest import failed, result, write, write_together, writing
from ..conftest import not_on_windows
from ..stage import PATIENCE

ROOT = Path(__file__).parents[2]

WORK = """
import dataclasses, time
from pathlib import Path

@dataclasses.dataclass
class Number:
    number: int

def number(path):
    return int(Path(path).read_text())

def as_object(path):
    return Number(number(path))

def even(path):
    if number(path) % 2:
        raise ValueError("odd")
    return number(path)

prefix = []

def load_prefix():
    prefix.append("number ")

def with_prefix(path):
    return prefix[0] + Path(path).read_text()

def no_model():
    raise OSError("no model")

def hang(path):
    time.sleep(1000)

class Tool:
    def method(path):
        return number(path)

answer = 42
"""


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Carry out a command line in the current folder."""
    return subprocess.run(
        [sys.executable, "-m", "resumable_pool", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", **options.pop("env", {})},
        check=False,
        **options,
    )


def succeed(*arguments: object, **options: Any) -> str:
    """Carry it out; what it wrote."""
    done = command(*arguments, **options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(autouse=True)
def _work(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])  # to which a command that is called here may add
    (folder / "code").mkdir()
    (folder / "code" / "work.py").write_text(WORK)


NUMBERS = {f"in/{number:02}.txt": number for number in range(10)}


# run


def test_run_goes_on_where_it_was(method: str) -> None:
    """The function is found in a file of another folder, in every child as well."""
    arguments = ("run", "code/work.py:number", "in/*.txt", "result.pkl", "--mp-context", method)
    assert "10 files: 10 done, in" in succeed(*arguments, "-j", 2)
    assert dict(open_checkpoint("result.pkl")) == NUMBERS
    assert "10 files: 10 done before, in" in succeed(*arguments)


def test_classes_of_the_file_are_named_after_it(method: str) -> None:
    """So that whoever has its folder on the path can unpickle their objects."""
    succeed(
        "run", "code/work.py:as_object", "in/*.txt", "result.pkl", f"--mp-context={method}", "-j2"
    )
    code = "import pickle; print(pickle.load(open('result.pkl', 'rb'))['in/03.txt'])"
    plain = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": f"code{os.pathsep}{ROOT}"},
        stdout=subprocess.PIPE,
        check=True,
    )
    assert plain.stdout.strip() == b"Number(number=3)"


def test_a_file_may_hide_a_module_of_python(folder: Path, method: str) -> None:
    """As it would when it is run as a script."""
    (folder / "code" / "work.py").rename("code/colorsys.py")
    succeed("run", "code/colorsys.py:number", "in/*", "result.pkl", f"--mp-context={method}", "-j2")
    assert dict(open_checkpoint("result.pkl")) == NUMBERS


SCRIPT = """
import sys
from resumable_pool.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""


def test_the_installed_script_does_the_same(folder: Path, method: str) -> None:
    """It finds modules of the current folder, though it is a file elsewhere, and spawns."""
    (folder / "bin").mkdir()
    (folder / "bin" / "resumable-pool").write_text(SCRIPT)
    (folder / "code" / "work.py").rename("work.py")
    line = ["run", "work:number", "in/*.txt", "result.pkl", "--mp-context", method]
    done = subprocess.run(
        [sys.executable, "bin/resumable-pool", *line],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert dict(open_checkpoint("result.pkl")) == NUMBERS
    done = subprocess.run(
        [sys.executable, "bin/resumable-pool", "show", "no.pkl"],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == "resumable-pool show: there is no checkpoint 'no.pkl'\n"


def test_the_version_is_told() -> None:
    """The same that the package has."""
    assert succeed("--version") == f"resumable_pool {resumable_pool.__version__}\n"


def test_the_shell_may_expand_the_pattern() -> None:
    """Several paths, or globs, or both; options may stand anywhere."""
    paths = ("in/00.txt", "-j", 1, "in/01.txt", "in", "in/0[89]*")
    out = succeed("run", "code/work.py:number", *paths, "result.pkl")
    assert "4 files: 4 done" in out
    assert sorted(open_checkpoint("result.pkl").values()) == [0, 1, 8, 9]


def test_a_file_may_be_called_like_an_option(folder: Path) -> None:
    """Behind `--` nothing is an option, as with every command."""
    (folder / "-j.txt").write_text("1")
    succeed("run", "-j", 1, "--", "code/work.py:number", "-j.txt", "-r.pkl")
    succeed("run", "code/work.py:number", "-j", 1, "--", "-j.txt", "in/01.txt", "-s.pkl")
    assert "1 file done" in succeed("show", "--", "-r.pkl")
    assert json.loads(succeed("show", "--json", "--", "-r.pkl"))["done"] == 1
    succeed("move", "--", "-r.pkl", "-j.txt", "-k.txt")
    succeed("merge", "--", "-all.pkl", "-r.pkl", "-s.pkl")
    succeed("export", "./-all.pkl", "--", "-all.csv")
    assert [*open_checkpoint("-all.pkl")] == ["-k.txt", "-j.txt", "in/01.txt"]


def test_a_file_may_be_called_like_a_glob(folder: Path) -> None:
    """As the shell passes it on."""
    (folder / "in" / "take[1].txt").write_text("1")
    assert "1 file: 1 done" in succeed("run", "code/work.py:number", "in/take[1].txt", "result.pkl")


@not_on_windows("links")
def test_two_globs_find_what_each_finds_alone(folder: Path) -> None:
    """A link to a folder above itself is not followed round and round."""
    (folder / "two" / "deep").mkdir(parents=True)
    (folder / "two" / "deep" / "1.txt").write_text("1")
    (folder / "two" / "deep" / "up").symlink_to("..")
    out = succeed("run", "code/work.py:number", "two/**/*.txt", "in/00.txt", "result.pkl")
    assert "2 files: 2 done" in out


@pytest.mark.parametrize("options", [(), ("-q",), ("--json",)])
@pytest.mark.parametrize("patterns", [("no/*",), ("no/*", "nor/*")])
def test_a_glob_without_files_is_an_error(
    options: tuple[str, ...], patterns: tuple[str, ...]
) -> None:
    """In a job that nobody watches a typo would pass for success otherwise."""
    done = command("run", "code/work.py:number", *patterns, "r.pkl", *options)
    assert done.returncode == 2
    assert done.stderr.count("no files match 'no/*' in the folder ") == 1
    assert "no files match" not in done.stdout.replace("note", "") or "--json" in options


def test_a_glob_without_files_may_be_expected() -> None:
    """It may match something another day."""
    done = command("run", "code/work.py:number", "no/*", "r.pkl", "--allow-empty")
    assert done.returncode == 0
    assert "no files match 'no/*'" in done.stderr
    assert succeed("run", "code/work.py:number", "no/*", "r.pkl", "--allow-empty", "-q") == ""
    assert command("run", "code/work.py:number", "no/*", "r.pkl", "--shard=0/2").returncode == 0


def test_a_part_without_files_is_nothing_to_do() -> None:
    """The pattern does match some, in another part."""
    outs = [
        succeed("run", "code/work.py:number", "in/0[0]*", f"{part}.pkl", "--shard", f"{part}/2")
        for part in range(2)
    ]
    assert "no files: nothing to do\n" in outs


def test_failures_make_the_status_1() -> None:
    """They are listed, and show tells all of them."""
    done = command("run", "code/work.py:even", "in/*.txt", "result.pkl")
    assert done.returncode == 1
    assert re.fullmatch(r"failed: in/0\d.txt: ValueError: odd\n", done.stderr)
    assert "10 files: 5 done, 5 failed" in done.stdout
    assert "in/01.txt and 4 more: ValueError: odd" in done.stdout


def test_many_failures_are_listed_by_another_command(folder: Path) -> None:
    """Which is named."""
    for number in range(10, 30):
        (folder / "in" / f"{number}.txt").write_text("1")
    done = command("run", "code/work.py:even", "in/*.txt", "result.pkl")
    *_, line, last = done.stdout.splitlines()
    assert line == "  in/01.txt and 24 more: ValueError: odd"
    assert last == "  (python -m resumable_pool show result.pkl --failures lists them all)"


def test_quiet_is_silent_unless_there_is_trouble() -> None:
    """As cron likes it."""
    arguments = ("code/work.py:even", "in/*.txt", "result.pkl", "--quiet")
    assert "5 failed" in command("run", *arguments).stdout
    options = ("-q", "--progress")
    assert succeed("run", "code/work.py:number", "in/*.txt", "result.pkl", *options) == ""


def test_progress_is_logged_if_that_is_asked_for() -> None:
    """A line on stderr."""
    done = command("run", "code/work.py:number", "in/*.txt", "result.pkl", "--progress")
    assert re.fullmatch(r"0/10 files(, starting 2 workers, .* s)?\n", done.stderr)


def test_the_report_as_json() -> None:
    """For a script."""
    done = command("run", "code/work.py:even", "in/*.txt", "result.pkl", "--json")
    report = json.loads(done.stdout)
    assert (report["total"], report["completed"], report["failed"]) == (10, 5, 5)
    assert report["failures"][0]["path"] == "in/01.txt"
    assert "Traceback" in report["failures"][0]["traceback"]


@pytest.mark.parametrize("name", ["load_prefix", "code/work.py:load_prefix"])
def test_the_initializer_is_of_the_same_module(name: str) -> None:
    """Unless another one is named."""
    succeed(
        "run", "code/work.py:with_prefix", "in/*.txt", "result.pkl", "--initializer", name, "-j1"
    )
    assert open_checkpoint("result.pkl")["in/03.txt"] == "number 3"


def test_a_method_can_be_named() -> None:
    """By the way to it."""
    succeed("run", "code/work.py:Tool.method", "in/*.txt", "result.pkl")
    assert dict(open_checkpoint("result.pkl")) == NUMBERS


def test_the_options_are_those_of_the_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same names, all of them, and only if they are given."""
    seen: list[dict[str, Any]] = []

    def runner(function: object, pattern: object, checkpoint: object, **options: Any) -> None:
        seen.append(options)
        raise ValueError("seen")

    monkeypatch.setattr("resumable_pool.commands.verbs.ResumableRunner", runner)
    line = ["run", "tests.functions:number_in", "in/*", "result.pkl"]
    assert main(line) == 2
    line += ["-j", "2", "--timeout", "1.5", "--initializer", "number_slowly"]
    line += ["--retries", "3", "--retry-delay", "2.5"]
    line += ["--max-failures", "4", "--max-tasks-per-child", "5", "--mp-context", "spawn"]
    line += ["--largest-first", "--rerun-changed", "--no-retry-failed", "--grace-period", "6"]
    line += [
        "--stop-after",
        "1h30m",
        "--save-every",
        "7",
        "--save-interval",
        "0.5",
        "--shard",
        "2/16",
    ]
    assert main([*line, "--progress"]) == 2
    nothing, given = seen
    assert nothing == {}
    assert given == {
        "max_workers": 2,
        "timeout": 1.5,
        "retries": 3,
        "retry_delay": 2.5,
        "initializer": functions.number_slowly,
        "max_failures": 4,
        "max_tasks_per_child": 5,
        "mp_context": "spawn",
        "largest_first": True,
        "rerun_changed": True,
        "retry_failed": False,
        "grace_period": 6.0,
        "stop_after": 5400.0,
        "save_every": 7,
        "save_interval": 0.5,
        "progress": True,
        "shard": (2, 16),
    }
    unnamed = {"function", "pattern", "checkpoint", "initargs", "executor"}
    assert {*given} == {*inspect.signature(ResumableRunner).parameters} - unnamed


def test_a_time_out_ends_a_file() -> None:
    """The report says so, and its file can be left alone afterwards."""
    line = ("run", "code/work.py:hang", "in/0[01].txt", "result.pkl", "--json")
    report = json.loads(command(*line, "--timeout", 0.2).stdout)
    assert [failure["kind"] for failure in report["failures"]] == ["timeout", "timeout"]
    report = json.loads(command(*line, "--no-retry-failed").stdout)
    assert (report["failed"], report["remaining"]) == (2, 0)


REFUSED = [
    (["run", "work.py"], "the following arguments are required: PATTERN, CHECKPOINT"),
    (["fly"], "invalid choice: 'fly'"),
    (["run", "work.py", "in/*", "r.pkl"], "'work.py' names no function: write module:function"),
    (["run", "C:\\work.py", "in/*", "r.pkl"], "'C:\\work.py' names no function: write module:"),
    (["run", "no.py:number", "in/*", "r.pkl"], "there is no file 'no.py'"),
    (["run", "nowhere:number", "in/*", "r.pkl"], "there is no module 'nowhere' here: name a"),
    (["run", "no.where:number", "in/*", "r.pkl"], "there is no module 'no.where' here"),
    (["run", "code/work.py:nmber", "in/*", "r.pkl"],
     "'code/work.py' has no 'nmber'; defined there: Number, number, as_object, even, load_prefix"),
    (["run", "code/work.py:answer", "in/*", "r.pkl"], "'code/work.py:answer' cannot be called, it "
                                                      "is 42"),
    (["run", "code/dotted.name.py:f", "in/*", "r.pkl"], "the dot in its name: rename it"),
    (["run", "code/json.py:f", "in/*", "r.pkl"], "'json' is also the name of another module"),
    (["run", "code/lambdas.py:f", "in/*", "r.pkl", "--mp-context=spawn"], "cannot be sent"),
    (["run", "code/work.py:number", "in/no.txt", "r.pkl"], "there is no file 'in/no.txt'"),
    (["run", "code/work.py:number", "in/01.txt", "in/02.txt"], "'.txt' is not one of .pkl"),
    (["run", "code/work.py:number", "in/*", "no/r.pkl"], "there is no folder"),
    (["run", "code/work.py:number", "in/*", "foreign.pkl"], "is not a checkpoint of this library"),
    (["run", "code/work.py:number", "in/*", "r.pkl", "-j", "0"], "must be at least 1, not 0"),
    (["run", "code/work.py:number", "in/*", "r.pkl", "--stop-after=3 hours"], "'3 hours' is not"),
    (["run", "code/work.py:number", "in/*", "r.pkl", "--stop-after="], "'' is not a time; write"),
    (["run", "code/work.py:number", "in/*", "r.pkl", "--stop-after=0h"], "must be more than 0 sec"),
    (["run", "code/work.py:number", "in/*", "r.pkl", "-j", "x"], "invalid int value: 'x'"),
    (["run", "code/work.py:number", "in/*", "r.pkl", "--initializer", "no"], "has no 'no'"),
    (["show", "no.pkl"], "there is no checkpoint 'no.pkl'"),
    (["show", "foreign.pkl"], "is not a checkpoint of this library"),
    (["show", "code"], "its suffix names the format"),
    (["export", "no.pkl", "out.csv"], "there is no checkpoint 'no.pkl'"),
    (["export", "good.pkl", "out.txt"], "'out.txt': its suffix names the format, and must be"),
    (["export", "good.pkl", "there.csv"], "'there.csv' exists already: --force replaces it"),
    (["export", "good.pkl", "no/out.csv"], "'no/out.csv': there is no folder 'no'"),
    (["merge", "no/all.pkl", "good.pkl"], "'no/all.pkl': there is no folder 'no'"),
    (["run", "code/work.py:number", "in", "r.pkl"], "'in' is a folder, not a file: "
                                                    "'in/**/*' matches all files in it"),
]  # fmt: skip


@pytest.mark.alike
@pytest.mark.parametrize(("line", "message"), REFUSED, ids=[" ".join(line) for line, _ in REFUSED])
def test_what_cannot_be_carried_out_is_refused(folder: Path, line: list[str], message: str) -> None:
    """Status 2, one line that names the value, and nothing is made or changed."""
    for name in ("code/dotted.name.py", "code/json.py", "there.csv"):
        (folder / name).write_text("f = print")
    (folder / "code" / "lambdas.py").write_text("f = lambda path: path")
    (folder / "foreign.pkl").write_bytes(b"something else")
    write(folder / "good.pkl", result("a", 1))
    before = sorted(folder.iterdir())
    done = command(*line)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    if "usage:" not in done.stderr:
        assert done.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import nowhere_else",
            "ModuleNotFoundError: No module named 'nowhere_else' "
            f"(install it for {sys.executable}, or name it as a module, package.broken, if",
        ),
        (
            "from . import sibling",
            "ImportError: attempted relative import with no known parent "
            "package (name it as a module, package.broken, if it is in a package)",
        ),
        ("1 / 0", "ZeroDivisionError: division by zero (fix that)"),
        ("1 +", "SyntaxError: invalid syntax"),
        ("import sys; sys.exit('no guard')", "SystemExit: no guard"),
    ],
)
def test_a_module_that_cannot_be_imported_says_where(folder: Path, code: str, message: str) -> None:
    """With the user's part of the traceback, and no other."""
    (folder / "broken.py").write_text(f"\n{code}\n")
    done = command("run", "broken.py:f", "in/*", "result.pkl")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'broken.py' cannot be imported: {message}" in done.stderr
    assert 'broken.py", line 2' in done.stderr
    assert "loading.py" not in done.stderr
    assert not done.stderr.endswith("\n\n")


def test_an_error_of_the_run_is_told_without_our_traceback() -> None:
    """Status 1, what happened and where in the user's code."""
    done = command("run", "code/work.py:number", "in/*", "result.pkl", "--initializer", "no_model")
    assert done.returncode == 1
    assert "a worker cannot start: the initializer failed: OSError: no model" in done.stderr
    assert done.stderr.count("Traceback") == 1
    assert "resumable_pool/" not in done.stderr


def test_a_checkpoint_in_use_is_refused(folder: Path) -> None:
    """The line says who has it."""
    checkpoint = PickleFile("result.pkl")
    checkpoint.open()
    done = command("run", "code/work.py:number", "in/*", "result.pkl")
    checkpoint.close()
    assert (done.returncode, done.stdout) == (2, "")
    assert f"'result.pkl' is in use: process {os.getpid()}" in done.stderr.replace(
        f"{folder}{os.sep}", ""
    )
    assert done.stderr.count("\n") == 1


# show


class Bomb:
    """Nobody unpickles one unnoticed."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("unpickled"),)


def test_show_unpickles_nothing(folder: Path) -> None:
    """Counts, time, the slowest and the failures, also of values that nobody here could read."""
    write(folder / "result.pkl", result("in/a", Bomb()), result("in/b", 2), failed("in/c"),
          failed("in/b\n"), result("in/b\n", 1))  # fmt: skip
    (folder / "unpickled").unlink()  # the worker has tried
    *lines, last = succeed("show", "result.pkl").splitlines()
    assert lines == [
        "result.pkl: 3 files done, 1 failed",
        "time in the function: 1.2 s, 0.3 s a file; the slowest:",
        "  0.5 s: in/c",
        "  0.2 s: in/a",
        "  0.2 s: in/b",
        r"  0.2 s: in/b\n",
        "failed:",
        "  in/c: ValueError: no",
    ]
    assert re.fullmatch(r"values: 1\d\d bytes \(not unpickled\)", last)
    facts = json.loads(succeed("show", "result.pkl", "--json"))
    assert (facts["done"], facts["failed"], facts["seconds"]) == (3, 1, 1.25)
    assert facts["slowest"][0] == {"path": "in/c", "seconds": 0.5}
    assert not (folder / "unpickled").exists()


def test_show_lists_the_failures(folder: Path) -> None:
    """The first ten, or all of them, in lines or as JSON."""
    write(folder / "result.pkl", *(failed(f"in/{number}") for number in range(12)), result("a", 1))
    assert "  in/0 and 11 more: ValueError: no\n  (--failures lists them all)" in succeed(
        "show", "result.pkl"
    )
    lines = succeed("show", "result.pkl", "--failures").splitlines()
    assert lines == [f"in/{number}: ValueError: no" for number in range(12)]
    lines = succeed("show", "result.pkl", "--failures", "-v").splitlines()
    assert lines[:2] == ["in/0: ValueError: no", "    Traceback: here"]
    facts = [json.loads(line) for line in
             succeed("show", "result.pkl", "--failures", "--json").splitlines()]  # fmt: skip
    assert [fact["path"] for fact in facts] == [f"in/{number}" for number in range(12)]
    assert (facts[0]["kind"], facts[0]["traceback"]) == ("error", "Traceback: here")


def test_an_empty_checkpoint_is_shown(folder: Path) -> None:
    """Nothing is done, nothing has failed."""
    write(folder / "result.pkl")
    assert succeed("show", "result.pkl").startswith("result.pkl: 0 files done, 0 failed\nvalues:")


@not_on_windows("a shell with pipefail")
def test_nobody_has_to_read_it_to_the_end(folder: Path) -> None:
    """`show ... | head -1`: no complaint, and a good status."""
    write_together(
        folder / "result.pkl", *(failed(f"in/{number}", "x" * 190) for number in range(2000))
    )
    line = f"{sys.executable} -m resumable_pool show result.pkl --failures | head -n 1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_a_name_that_cannot_be_encoded_is_no_matter(folder: Path) -> None:
    """Whatever the terminal can show."""
    write(folder / "result.pkl", result("in/grün\udcff", 1), failed("in/\N{OWL}"))
    assert r"in/gr\xfcn\udcff" in succeed("show", "result.pkl", env={"PYTHONIOENCODING": "ascii"})


# check, compact, merge


def damage(path: str) -> None:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content.replace(b"damaged", b"DAMAGED", 1))


def test_check_says_what_is_wrong(folder: Path) -> None:
    """A line each, or as JSON; the status says whether there is anything."""
    write(folder / "result.pkl", result("a", "damaged" * 1000), result("b\n", "x" * 9000))
    assert succeed("check", "result.pkl") == ""
    sound = {"checkpoint": "result.pkl", "findings": []}
    assert json.loads(succeed("check", "result.pkl", "--json")) == sound
    damage("result.pkl")
    Path("result.pkl").write_bytes(Path("result.pkl").read_bytes().replace(b"xxx", b"yyy", 1))
    before = Path("result.pkl").read_bytes()
    done = command("check", "result.pkl")
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("the value of 'a' is damaged, at byte ")
    assert len(lines) == 2
    done = command("check", "result.pkl", "--json")
    assert (done.returncode, json.loads(done.stdout)["findings"]) == (1, lines)
    assert Path("result.pkl").read_bytes() == before


def test_compact_keeps_what_is_sound(folder: Path) -> None:
    """It says what was lost, and what was done; then nothing is wrong any more."""
    write(folder / "result.pkl", result("a", "damaged" * 1000), result("b", 1), result("b", 2))
    damage("result.pkl")
    lost, done, kept = succeed("compact", "result.pkl").splitlines()
    assert lost.startswith("the value of 'a' is damaged")
    assert done == "rewritten with the results of 1 file and the failures of 0 files"
    assert kept.endswith("result.pkl.bak'")
    assert dict(open_checkpoint("result.pkl")) == {"b": 2}
    assert succeed("check", "result.pkl") == ""


def test_move_gives_moved_files_their_results_back(folder: Path) -> None:
    """As the run that notices them says, typed into the system's shell; afterwards nothing is to
    do."""
    succeed("run", "code/work.py:number", "in/*.txt", "result.pkl")
    (folder / "in").rename(folder / "new name")
    line = ("run", "code/work.py:number", "new name/*.txt", "result.pkl")
    done = command(*line, "--stop-after=0.001")
    told = re.search(r"python (-m resumable_pool move .*)\. Otherwise", done.stderr)
    assert told is not None
    typed = f'"{sys.executable}" {told[1]}'
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    lines = subprocess.check_output(typed, shell=True, text=True, env=env).splitlines()
    assert "moved from 'in/' to 'new name/'" in lines[-1]
    assert "10 done before" in succeed(*line)
    done = command("move", "result.pkl", "in/", "new name/")
    assert done.returncode == 2
    assert "no path starts with 'in/' (one of them is 'new name/00.txt'): nothing" in done.stderr


def test_a_plain_pickle_is_adopted_by_compact(folder: Path) -> None:
    """Before, whoever asks is told so."""
    (folder / "result.pkl").write_bytes(b"\x80\x03}X\x01\0\0\0aK\x01s.")
    done = command("show", "result.pkl")
    assert done.returncode == 2
    assert "a run or compact converts it" in done.stderr
    done = command("check", "result.pkl")
    assert done.returncode == 1
    assert "a run or compact converts it" in done.stdout
    assert "adopted the results of 1 file" in succeed("compact", "result.pkl")
    assert succeed("check", "result.pkl") == ""


def test_values_of_a_scripts_own_classes_are_exported_as_the_error_says(folder: Path) -> None:
    """The pickle names the script `__main__`, which is another module then."""
    (folder / "own.py").write_text(
        "import sys\n"
        "from resumable_pool import ResumableRunner\n"
        "class Words(dict):\n    pass\n"
        "def work(path):\n    return Words(path=path)\n"
        "if __name__ == '__main__':\n"
        "    ResumableRunner(work, 'in/00.txt', 'result.pkl', mp_context='spawn').run()\n"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]}
    subprocess.run([sys.executable, "own.py"], check=True, env=environment)
    done = command("export", "result.pkl", "out.jsonl")
    assert done.returncode == 1
    assert "its class was defined in the script that ran" in done.stderr
    (code,) = re.findall('python -c "(.*)"`', done.stderr)
    line = [sys.executable, "-c", code.replace("work", "own"), "export", "result.pkl", "out.jsonl"]
    subprocess.run(line, check=True, env=environment)
    assert (
        folder / "out.jsonl"
    ).read_text() == '{"path": "in/00.txt", "value": {"path": "in/00.txt"}}\n'


def test_merge_joins_shards(folder: Path) -> None:
    """Also in one that is there."""
    for number in range(3):
        write(folder / f"shard-{number}.pkl", result("all", number), result(f"{number}", number))
    shards = ["shard-0.pkl", "shard-1.pkl", "shard-2.pkl"]
    out = succeed("merge", "all.pkl", "shard-[01].pkl")  # as cmd.exe leaves it
    assert out.startswith("merged the results of 3 files and the failures of 0 files; 1 had")
    assert succeed("merge", "all.pkl", shards[2]).startswith("merged the results of 4 files")
    assert dict(open_checkpoint("all.pkl")) == {"all": 2, "0": 0, "1": 1, "2": 2}


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows")
def test_exporting_to_a_file_that_a_program_has_open_names_that(folder: Path) -> None:
    """Excel keeps what it shows."""
    write(folder / "result.pkl", result("a", 1))
    (folder / "out.csv").write_text("before")
    with open("out.csv"):
        done = command("export", "result.pkl", "out.csv", "--force")
    assert done.returncode == 1
    told = "another program has this file open: close it there, and try again: 'out.csv'"
    assert told in done.stderr
    assert not [*folder.glob("*.new-*")]


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows")
def test_single_quotes_that_no_shell_has_taken_away_do_no_harm(folder: Path) -> None:
    """cmd.exe takes them for letters."""
    (folder / "work.py").write_text(WORK)
    assert succeed("run", "work.py:number", "'in/*.txt'", "result.pkl").startswith("10 files: 10")


@pytest.mark.skipif(sys.platform != "win32", reason="of Windows")
def test_a_script_may_be_named_in_any_case(folder: Path) -> None:
    """As everything on Windows, but for what `import` is told."""
    (folder / "work.py").write_text(WORK)
    assert succeed("run", "Work.PY:number", "in/*.txt", "result.pkl").startswith("10 files: 10")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (("check", "no.pkl"), "there is no checkpoint 'no.pkl'"),
        (("compact", "no.pkl"), "there is no checkpoint 'no.pkl'"),
        (("merge", "all.pkl", "no.pkl"), "there is no checkpoint 'no.pkl'"),
        (("merge", "all.pkl", "a.jsonl"), "have different formats"),
        (("merge", "all.jsonl", "a.pkl"), "have different formats"),
        (("merge", "all.pkl", "foreign.pkl"), "is not a checkpoint of this library"),
        (("compact", "foreign.pkl"), "is not a checkpoint of this library"),
    ],
)
def test_what_is_no_checkpoint_for_it_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], line: tuple[str, ...], text: str
) -> None:
    """With status 2 and in a line; nothing is made."""
    write(folder / "a.pkl", result("a", 1))
    write(folder / "a.jsonl", result("a", 1, checkpoint_at("a.jsonl").encode))
    (folder / "foreign.pkl").write_bytes(b"a,b")
    before = {*os.listdir()}
    assert main(line) == 2
    out, error = capsys.readouterr()
    assert (out, error.count("\n")) == ("", 1)
    assert text in error
    assert {*os.listdir()} == before


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
@pytest.mark.parametrize("verb", ["show", "check", "compact"])
def test_a_named_pipe_is_not_waited_for(verb: str) -> None:
    """It would be until somebody writes to it."""
    os.mkfifo("pipe.pkl")
    done = command(verb, "pipe.pkl")
    assert (done.returncode, done.stdout) == (2, "")
    assert "'pipe.pkl' is not a checkpoint of this library: it is not a regular file" in done.stderr


def test_a_checkpoint_in_use_is_not_rewritten(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The status is 2, since another time it may be."""
    write(folder / "a.pkl", result("a", 1))
    with writing(folder / "result.pkl"):
        for line in (["compact", "result.pkl"], ["merge", "result.pkl", "a.pkl"]):
            assert main(line) == 2
            assert f"process {os.getpid()} is writing to it" in capsys.readouterr().err


# export

VALUES = {
    "a": {"text": 'grüße, "quoted"\n', "list": [1, 2.5, None, True]},
    "b": "plain, text",
    "c": 3,
    "d\udcff": None,
}


def test_export_as_json_lines(folder: Path) -> None:
    """Path and value in each line, sorted by path."""
    write(folder / "result.pkl", *(result(path, value) for path, value in [*VALUES.items()][::-1]))
    assert succeed("export", "result.pkl", "out.jsonl") == "4 files: values written to out.jsonl\n"
    text = (folder / "out.jsonl").read_text(encoding="utf-8")
    assert "grüße" in text
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows == [{"path": path, "value": value} for path, value in VALUES.items()]


def test_export_as_csv(folder: Path) -> None:
    """Text as it is, everything else as JSON."""
    write(folder / "result.pkl", *(result(path, value) for path, value in VALUES.items()))
    succeed("export", "result.pkl", "out.csv")
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = [*csv.reader(file)]
    assert rows[0] == ["path", "value"]
    assert json.loads(rows[1][1]) == VALUES["a"]
    assert rows[2:] == [["b", "plain, text"], ["c", "3"], [r"d\udcff", "null"]]


def test_export_makes_columns_of_dicts(folder: Path) -> None:
    """Of all their keys; the path keeps its own column."""
    write(folder / "result.pkl", result("a", {"words": 3, "path": "x"}),
          result("b", {"words": 4, "language": "grüße", "rest": [1]}))  # fmt: skip
    succeed("export", "result.pkl", "out.csv")
    with open("out.csv", encoding="utf-8", newline="") as file:
        assert [*csv.reader(file)] == [
            ["path", "words", "value.path", "language", "rest"],
            ["a", "3", "x", "", ""],
            ["b", "4", "", "grüße", "[1]"],
        ]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ({1, 2}, "a set, is not JSON"),
        ({"x": b"abc"}, "a dict, is not JSON: Object of type bytes"),
        (float("nan"), "a float, is not JSON"),
    ],
)
def test_export_refuses_what_is_not_json(folder: Path, value: object, what: str) -> None:
    """It names the path and the type, and writes nothing; or writes it as Python shows it."""
    write(folder / "result.pkl", result("a", 1), result("b", value))
    done = command("export", "result.pkl", "out.jsonl")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the value of 'b', {what}" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not [*folder.glob("out*")]
    succeed("export", "result.pkl", "out.jsonl", "--repr")
    last = json.loads((folder / "out.jsonl").read_text().splitlines()[-1])
    assert last == {"path": "b", "value": repr(value)}


def test_export_replaces_a_file_when_told_to(folder: Path) -> None:
    """All of it, in one step."""
    write(folder / "result.pkl", result("a", 1))
    (folder / "out.csv").write_text("something else " * 1000)
    succeed("export", "result.pkl", "out.csv", "--force")
    assert (folder / "out.csv").read_text() == "path,value\na,1\n"
    assert not [*folder.glob("out.csv.*")]


@not_on_windows("modes")
def test_export_replaces_what_a_link_leads_to(folder: Path) -> None:
    """Whoever could read that, and nobody else, can read it again, by both names."""
    write(folder / "result.pkl", result("a", 1))
    (folder / "real.csv").write_text("something else")
    (folder / "real.csv").chmod(0o440)
    (folder / "out.csv").symlink_to("real.csv")
    succeed("export", "result.pkl", "out.csv", "--force")
    assert (folder / "out.csv").is_symlink()
    assert (folder / "real.csv").read_text() == "path,value\na,1\n"
    assert (folder / "real.csv").stat().st_mode & 0o777 == 0o440


def test_export_needs_the_classes(folder: Path) -> None:
    """The error says how to give them."""
    succeed("run", "code/work.py:as_object", "in/*.txt", "result.pkl")
    done = command("export", "result.pkl", "out.csv", "--repr")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No module named 'work'; the module of its class must be importable" in done.stderr
    assert done.stderr.count("\n") == 1
    succeed("export", "result.pkl", "out.csv", "--repr",
            env={"PYTHONPATH": f"code{os.pathsep}{ROOT}"})  # fmt: skip
    assert "in/03.txt,Number(number=3)" in (folder / "out.csv").read_text()


def test_export_says_what_is_damaged(folder: Path) -> None:
    """The rest is written; status 1."""
    write(folder / "result.pkl", result("a", "x" * 10_000), result("b", "y"))
    data = (folder / "result.pkl").read_bytes()
    (folder / "result.pkl").write_bytes(data.replace(b"xxxx", b"xyxx", 1))
    done = command("export", "result.pkl", "out.csv")
    assert done.returncode == 1
    assert "1 values are damaged, and were left out" in done.stderr
    assert (folder / "out.csv").read_text() == "path,value\nb,y\n"


@pytest.mark.parametrize("name", ["run", "show", "export", "check", "compact", "merge"])
def test_help_has_an_example(name: str) -> None:
    """And the statuses; show and export say what they do to values."""
    text = succeed(name, "--help")
    assert f"example: python -m resumable_pool {name} " in text
    assert "130  stopped by Ctrl-C" in text
    assert "unpickles" in text or name == "run"
