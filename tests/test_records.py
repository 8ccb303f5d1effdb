"""What users read: outcomes, failures and the report."""

from __future__ import annotations

import io
import pickle
import sys
from typing import Any

import pytest

from resumable_pool import Failure, Outcome, Report
from resumable_pool.records import (
    KILLED,
    SHOWN_FAILURES,
    SHOWN_PATHS,
    AlikeFailures,
    count_files,
    explained,
    in_words,
    quoted,
    some_of,
)


def _failure(path: str = "a.wav", message: str = "ValueError: no") -> Failure:
    return Failure(path, "error", message, "Traceback", 1, 0.5)


def _report(**changed: Any) -> Report:
    facts: dict[str, Any] = {
        "total": 3, "completed": 3, "skipped": 0, "failed": 0, "remaining": 0,
        "seconds": 2.0, "stopped": False, "failures": [],
    }  # fmt: skip
    return Report(**{**facts, **changed})


@pytest.mark.parametrize(
    ("facts", "text"),
    [
        ({}, "3 files: 3 done, in 2.0 s"),
        ({"total": 1, "completed": 1}, "1 file: 1 done, in 2.0 s"),
        ({"total": 0, "completed": 0, "seconds": 0.01}, "no files: nothing to do"),
        ({"total": 0, "completed": 0, "note": "no files match 'a'"},
         "nothing to do: no files match 'a'"),
        ({"total": 1296, "completed": 93, "skipped": 1203, "seconds": 200},
         "1,296 files: 93 done, 1,203 done before, in 3 min 20 s"),
        ({"completed": 0, "skipped": 3}, "3 files: 3 done before, in 2.0 s"),
        ({"completed": 1, "remaining": 2, "stopped": True},
         "3 files: 1 done, 2 still to do (run again to go on), in 2.0 s"),
        ({"completed": 2, "failed": 1, "failures": [_failure()]},
         "3 files: 2 done, 1 failed, in 2.0 s\n  a.wav: ValueError: no"),
    ],
)  # fmt: skip
def test_report(facts: dict[str, Any], text: str) -> None:
    """The report says what there is, and not what there is not."""
    assert str(_report(**facts)) == text


def test_a_prompt_shows_a_report_in_one_line() -> None:
    """Not thousands of tracebacks, which a notebook would keep in its file."""
    report = _report(completed=1, failed=2, failures=[_failure("a.wav"), _failure("b.wav")])
    assert repr(report) == "<Report: 3 files: 1 done, 2 failed, in 2.0 s>"


def _letters(number: int) -> str:
    """Another word for each number."""
    return str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def test_failures_that_are_alike_share_a_line() -> None:
    """With a count and one example, the most frequent first, whatever numbers and names differ."""
    failures = [
        _failure("in/x.wav", "OSError: no space"),
        *(
            _failure(f"in/{n}.wav", f"ValueError: {n} of in/{n}.wav at 0x7f{n}, in /a/in/{n}.wav")
            for n in range(11)
        ),
    ]
    assert str(_report(failed=12, failures=failures)).split("\n")[1:] == [
        "  in/0.wav and 10 more: ValueError: 0 of in/0.wav at 0x7f0, in /a/in/0.wav",
        "  in/x.wav: OSError: no space",
        "  (report.failures has them all)",
    ]


def test_messages_that_name_their_files_are_alike() -> None:
    """Whole names, by path or without the folder; what follows the first line is no matter."""
    alike = AlikeFailures()
    for number, name in enumerate(["one.wav", "two.wav", "three.wav"], 1):
        message = f"ValueError: in/{name} and {name}\nand {name}, {_letters(number)}"
        assert alike.add(_failure(f"in/{name}", message)) == number
    assert len(alike) == 1
    assert alike.add(_failure("in/a", "ValueError: in/abc and abc")) == 1
    assert [*alike.lines("there")] == [
        "  in/one.wav and 2 more: ValueError: in/one.wav and one.wav...",
        "  in/a: ValueError: in/abc and abc",
        "  (there)",
    ]


def test_what_tells_alike_ones_is_not_made_anew_for_each() -> None:
    """Of a hundred thousand failures each names its file."""
    failures = [_failure(f"in/{n}.wav", f"OSError: no such file: 'in/{n}.wav'") for n in range(50)]
    calls: list[str] = []
    sys.setprofile(lambda frame, event, given: calls.append(event))
    alike = AlikeFailures(failures)
    sys.setprofile(None)
    assert len(alike) == 1
    assert len(calls) < 50 * 50


def test_two_that_are_alike_are_one_and_one_more() -> None:
    """And ten kinds are shown."""
    alike = AlikeFailures([_failure("a"), _failure("b")])
    assert [*alike.lines("there")] == ["  a and 1 more: ValueError: no", "  (there)"]
    alike = AlikeFailures(_failure(message=f"Error: {_letters(number)}") for number in range(12))
    assert len([*alike.lines("there")]) == 11


@pytest.mark.parametrize(
    ("kind", "message", "killed"),
    [
        ("crashed", KILLED, True),
        ("crashed", f"{KILLED}, perhaps out of memory", True),
        ("crashed", "its worker exited with status 1", False),
        ("error", KILLED, False),
    ],
)
def test_whether_the_system_has_killed_the_worker(kind: Any, message: str, killed: bool) -> None:
    """Its function may say so, too."""
    assert _failure(message=message)._replace(kind=kind).was_killed is killed


def test_ok_means_that_every_file_has_a_result() -> None:
    """So a script can end with `sys.exit(not report.ok)`."""
    assert _report().ok
    assert not _report(failed=1).ok
    assert not _report(remaining=1).ok


@pytest.mark.parametrize(
    ("number", "more"),
    [
        (SHOWN_FAILURES, None),
        (SHOWN_FAILURES + 1, "  ... and 1 more: report.failures has them all"),
        (SHOWN_FAILURES + 2345, "  ... and 2,345 more: report.failures has them all"),
    ],
)
def test_a_report_shows_the_first_failures(number: int, more: str | None) -> None:
    """The first failures have a line each, in order; of the others it says how many they are."""
    failures = [_failure(f"{index}.wav", f"Error: {_letters(index)}") for index in range(number)]
    lines = str(_report(failed=number, failures=failures)).split("\n")[1:]
    assert lines[:SHOWN_FAILURES] == [f"  {failure}" for failure in failures[:SHOWN_FAILURES]]
    assert lines[SHOWN_FAILURES:] == ([more] if more else [])


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("ValueError: no", "a.wav: ValueError: no"),
        ("first\nsecond", "a.wav: first..."),
        ("first\n", "a.wav: first"),
        ("", "a.wav: "),
        ("x" * 200, "a.wav: " + "x" * 200),
        ("x" * 201, "a.wav: " + "x" * 200 + "..."),
    ],
)
def test_a_failure_is_one_line(message: str, line: str) -> None:
    """A failure's text is its path and the first line of its message, with a mark where more
    follows or it was cut because it is very long."""
    assert str(_failure(message=message)) == line


def test_a_path_with_a_newline_is_still_one_line() -> None:
    """Whatever is in the name of a file, its failure stays on one line of the report."""
    assert "\n" not in str(_failure("two\nlines.wav"))


def test_a_report_can_be_printed_whatever_a_file_is_called() -> None:
    """A name that is not UTF-8 does not make print(report) raise at the end of a long run."""
    failure = _failure("caf\udce9.wav", "ValueError: \udcff")
    text = str(_report(failed=1, failures=[failure]))
    assert "ValueError" in text
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (0.44, "0.4 s"),
        (9.9, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (86_400, "1 d 00 h"),
        (3 * 86_400 + 4 * 3600 + 59, "3 d 04 h"),
        (float("inf"), "? s"),
        (float("nan"), "? s"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    """A duration has the two units that matter."""
    assert in_words(seconds) == words


def test_files_are_counted_in_english() -> None:
    """One file, several files, and thousands with a comma."""
    assert [count_files(number) for number in (0, 1, 2, 1296)] == [
        "0 files", "1 file", "2 files", "1,296 files",
    ]  # fmt: skip


def test_an_outcome_has_a_value() -> None:
    """The value is unpickled anew at each access."""
    outcome = Outcome("a", pickle.dumps([1]), 0, None, 0.5)
    assert outcome.ok
    assert outcome.value == [1]
    assert outcome.value is not outcome.value


def test_of_what_is_saved_elsewhere_the_value_is_not_known_here() -> None:
    """The error says what to override; and what nobody has said is not known either."""
    outcome = Outcome[Any]("a", None, 0, None, 0.5)
    with pytest.raises(LookupError, match="'a' is saved elsewhere: override read_result"):
        _ = outcome.value
    assert (outcome.attempts, outcome.finished_at, outcome.fingerprint) == (1, 0.0, (-1, -1))


def test_an_outcome_may_be_none() -> None:
    """A function that returned None has not failed."""
    outcome = Outcome("a", pickle.dumps(None), 0, None, 0.5)
    assert outcome.ok
    assert outcome.value is None


def test_a_failed_outcome_has_no_value() -> None:
    """Asking for it raises, and says why the file failed."""
    outcome = Outcome("a.wav", None, 0, _failure(), 0.5)
    assert not outcome.ok
    with pytest.raises(ValueError, match=r"'a\.wav' failed, there is no value: .*ValueError: no"):
        _ = outcome.value


def test_outcomes_travel() -> None:
    """They are equal after pickling."""
    outcome: Outcome[None] = Outcome("a", b"N.", 0, None, 0.5)
    assert pickle.loads(pickle.dumps(outcome)) == outcome


@pytest.mark.parametrize("record", [_failure(), _report()], ids=lambda one: type(one).__name__)
def test_records_travel_and_stay(record: Any) -> None:
    """Records are equal after pickling, and cannot be changed."""
    assert pickle.loads(pickle.dumps(record)) == record
    with pytest.raises(AttributeError):
        record.seconds = 3


def test_a_path_is_shown_as_one_would_type_it() -> None:
    """In quotes, with as many backslashes as it has, in one line."""
    assert quoted("C:\\texts\\one.txt") == "'C:\\texts\\one.txt'"
    assert quoted("it's.txt") == '"it\'s.txt"'
    assert quoted("two\nlines") == "'two\\nlines'"


def test_an_error_of_the_system_shows_its_file_likewise() -> None:
    """Python's own text doubles the backslashes."""
    error = PermissionError(13, "Permission denied", "C:\\texts\\one.txt")
    assert explained(error) == "Permission denied: 'C:\\texts\\one.txt'"
    assert explained(FileNotFoundError("there is no x")) == "there is no x"


@pytest.mark.parametrize(
    ("encoding", "shown"), [("cp1252", "caf\u00e9\\u0107"), ("utf-8", "caf\u00e9\u0107")]
)
def test_a_report_can_be_printed_whatever_stdout_can_show(
    monkeypatch: pytest.MonkeyPatch, encoding: str, shown: str
) -> None:
    """A console, or a file, may have no more than the 256 letters of one language."""
    out = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", out)
    print(Failure("caf\u00e9\u0107", "error", "no", "", 1, 0.0), file=out, flush=True)
    assert out.buffer.getvalue().decode(encoding).strip() == f"{shown}: no"  # type: ignore[attr-defined]


def test_of_many_paths_the_first_are_named() -> None:
    """And how many more there are."""
    names = [f"{number}.wav" for number in range(1_000 + SHOWN_PATHS)]
    all_shown = "'0.wav', '1.wav', '2.wav', '3.wav', '4.wav'"
    assert some_of(names[:1]) == "'0.wav'"
    assert some_of(names[:SHOWN_PATHS]) == all_shown
    assert some_of(names[: SHOWN_PATHS + 1]) == f"{all_shown} and 1 more"
    assert some_of(names) == f"{all_shown} and 1,000 more"
