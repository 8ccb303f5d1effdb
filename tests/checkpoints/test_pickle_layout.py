"""The bytes of result.pkl: each rule of the layout, on records made here."""

from __future__ import annotations

import io
import itertools
import pickle
import pickletools
import re
import struct
import tracemalloc
from binascii import crc32
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from resumable_pool import CheckpointError
from resumable_pool.checkpoints import disk, pickle_record
from resumable_pool.checkpoints.pickle_record import (
    FIRST_RECORD,
    METADATA,
    STOP,
    Header,
    Metadata,
    PickleScan,
    new_header,
    outcome_in,
    outcome_of,
    pid_field,
    read_header,
    read_payload,
    record_of,
)
from resumable_pool.records import NO_FINGERPRINT, Failure, Outcome

from .conftest import FINGERPRINT, FINISHED_AT, failed, metadata_at, pickled_result, result

HEADER = Header(b"C40123", crc32(b"01234567"))
OTHER_HEADER = Header(b"C47654", crc32(b"76543210"))
TAG = HEADER.record_start[2:]
MEGABYTE = 1 << 20


def encode(header: Header, outcome: Outcome) -> bytes:
    return b"".join(record_of(header, outcome))


class Record(NamedTuple):
    """A record, as a scan finds it, with what follows from that."""

    path: str
    start: int
    failed: bool
    sound: bool
    metadata: Metadata

    @property
    def end(self) -> int:
        return self.start + self.metadata.end + 1

    def payload(self, fd: int) -> bytes | None:
        return read_payload(fd, self.start, self.metadata)


def records_of(scan: PickleScan) -> list[Record]:
    return [
        Record(path, start, found.failed, found.sound, metadata_at(scan._fd, start))
        for found in scan
        for path, start in zip(found.paths, found.starts, strict=True)
    ]


def record_at(fd: int, start: int) -> tuple[str, Metadata] | None:
    """What stands there, for one that has not looked at anything before."""
    return PickleScan(fd, "", start, start, HEADER).record_at(start)


class File:
    """A file with given bytes, open for reading."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb+", buffering=0)  # noqa: SIM115

    def holding(self, *parts: bytes) -> int:
        self._file.seek(0)
        self._file.truncate()
        self._file.write(b"".join(parts))
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path / "file")
    yield file
    file.close()


def test_a_new_header_is_an_empty_dict() -> None:
    """The header with its STOP is a pickle of {}, in any unpickler."""
    header = new_header(12345)
    assert len(header) == FIRST_RECORD + 1
    assert header.endswith(STOP)
    assert pickle.loads(header) == {}
    assert pickle._loads(header) == {}  # type: ignore[attr-defined]  # the one in Python


def test_a_header_is_read_back(file: File) -> None:
    """A header has the pid that it was made with, and a salt of its own."""
    first, second = (
        read_header(file.holding(new_header(pid)), "x.pkl") for pid in (12345, 2**32 - 1)
    )
    assert (first.pid, second.pid) == (12345, 2**32 - 1)
    assert first.record_start != second.record_start
    assert first.seed != second.seed
    assert [first.record_start[:2], len(first.record_start)] == [b"C4", 6]


def test_the_pid_can_be_changed_in_place(file: File) -> None:
    """Another process writes its pid over that of the first, and the header stays sound."""
    header = new_header(1)
    pid, offset = pid_field(77)
    changed = header[:offset] + pid + header[offset + len(pid) :]
    assert read_header(file.holding(changed), "x.pkl").pid == 77
    assert pickle.loads(changed) == {}


def test_any_changed_bit_of_the_header_is_noticed(file: File) -> None:
    """No bit of the header, except the pid's, can change without being refused."""
    header = new_header(1)[:FIRST_RECORD]
    pid, offset = pid_field(1)
    checked = [*range(offset), *range(offset + len(pid), FIRST_RECORD)]
    for position in checked:
        for bit in range(8):
            changed = bytearray(header)
            changed[position] ^= 1 << bit
            with pytest.raises(CheckpointError, match=r"x\.pkl.* its header is not what was"):
                read_header(file.holding(changed), "x.pkl")


def test_who_has_pickled_a_dict_elsewhere_is_told_what_converts_it(file: File) -> None:
    """And nobody else is."""
    for content, told in ((pickle.dumps({"a": 1}), True), (b"text", False), (bytes(99), False)):
        with pytest.raises(CheckpointError, match="is not a checkpoint") as error:
            read_header(file.holding(content), "x.pkl")
        assert ("compact converts it" in str(error.value)) == told


RECORDS = [
    result("a", 1),
    failed("b"),
    result("refused by protocol 3", pickle.PickleBuffer(b"\0" * 20)),
    result("", [[], {"x": (1, 2)}]),
    failed("\udcff"),
    result("large", b"." * 10_000),
]


def test_records_behind_a_header_are_a_plain_pickle() -> None:
    """Header, records and STOP make a pickle of the results, in any unpickler, and nothing follows
    its STOP."""
    data = new_header(1)[:-1] + b"".join(encode(HEADER, outcome) for outcome in RECORDS) + STOP
    expected = {outcome.path: outcome.value for outcome in RECORDS if outcome.ok}
    assert pickle.loads(data) == expected == pickle._loads(data)  # type: ignore[attr-defined]
    stream = io.BytesIO(data)
    pickle.load(stream)
    assert stream.read() == b""


def _documented(table: str) -> list[tuple[int, int, str, str]]:
    """The rows of docs/format.md that say where something is: offset, size, what, and meaning."""
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d+) \| (\d+) \| (.*) \| (.*) \|$", text.partition(table)[2], re.M)
    found = [(int(offset), int(size), what, meaning) for offset, size, what, meaning in rows]
    end = next((n for n, row in enumerate(found) if n and row[0] == 0), len(found))
    return found[:end]


FACTS = [
    ("attempts", "<H", 2), ("seconds that", "<f", 0.25), ("size of the input", "<q", 1234),
    ("its modification time", "<q", FINGERPRINT.mtime_ns), ("when the", "<d", FINISHED_AT),
    ("length of the path", "<I", 4), ("length of the region", "<Q", 2),
]  # fmt: skip


def test_the_layout_is_the_documented_one() -> None:
    """Every byte of a header and of a record's metadata has its row, whose bytes are there."""
    record = encode(HEADER, result("path", 1)._replace(attempts=2))
    for table, data, end in (
        ("offset in the header", new_header(1), FIRST_RECORD),
        ("offset in a record", record, METADATA.size),
    ):
        rows = _documented(table)
        assert [row[0] for row in rows] == [0, *itertools.accumulate(row[1] for row in rows)][:-1]
        assert sum(row[1] for row in rows) == end
        for offset, size, what, _ in rows:
            if literal := re.match(r"`((?:[0-9a-f]{2} ?)+)`", what):
                assert data[offset : offset + size].hex(" ") == literal[1]
    for meaning, code, value in FACTS:
        (offset,) = (
            row[0] for row in _documented("offset in a record") if row[3].startswith(meaning)
        )
        assert struct.unpack_from(code, record, offset) == (value,)
    assert pickle.loads(b"\x80\x03" + record[64:66] + b".") == 1
    assert record[60:64] == b"path"


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [(result("a", 1), 1), (result("a", pickle.PickleBuffer(b"x")), 2), (failed("a"), 0x81)],
    ids=["value", "nested value", "failure"],
)
def test_kinds_are_the_documented_ones(file: File, outcome: Outcome, kind: int) -> None:
    """And one of which nobody knows what it is has no value, though its checksum is right."""
    record = bytearray(encode(HEADER, outcome))
    assert outcome_in(record) == outcome
    (offset,) = (row[0] for row in _documented("offset in a record") if row[2] == "kind")
    assert record[offset] == kind
    assert record_at(file.holding(record, STOP), 0) is not None
    record[offset] = kind + 2
    path_end = METADATA.size + 1
    record[6:10] = crc32(record[10:path_end], HEADER.seed).to_bytes(4, "little")
    found = record_at(fd := file.holding(record, STOP), 0)
    assert found is None or read_payload(fd, 0, found[1]) is None
    assert outcome_in(record[:-1]) is None


def test_nothing_is_left_on_the_stack() -> None:
    """Metadata and failures are popped again, as pickletools confirms."""
    outcomes = [result("a", 1), failed("b"), result("c", None), failed("d")]
    data = new_header(1)[:-1] + b"".join(encode(HEADER, outcome) for outcome in outcomes) + STOP
    listing = io.StringIO()
    pickletools.dis(data, listing)  # raises if the stack is not empty at the end
    assert listing.getvalue().count("SETITEM") == 2


def test_plain_values_name_no_globals() -> None:
    """Scanners and restricted unpicklers find nothing to refuse in a file of plain values."""
    outcomes = [result("a", {"x": [1, "two", None, (3.0,)]}), failed("b"), result("c", b"")]
    data = new_header(1)[:-1] + b"".join(encode(HEADER, outcome) for outcome in outcomes) + STOP
    used = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    assert not used & {"GLOBAL", "STACK_GLOBAL", "REDUCE", "INST", "OBJ", "NEWOBJ", "EXT1"}


def test_a_scan_finds_every_record(file: File) -> None:
    """The records tile the file from its header to its STOP, with what their metadata say."""
    encoded = [encode(HEADER, outcome) for outcome in RECORDS]
    fd = file.holding(new_header(1)[:-1], *encoded, STOP)
    scan = PickleScan(fd, "", FIRST_RECORD, FIRST_RECORD, HEADER)
    records = records_of(scan)
    assert [record.path for record in records] == [outcome.path for outcome in RECORDS]
    assert [record.failed for record in records] == [not outcome.ok for outcome in RECORDS]
    assert [record.end - record.start for record in records] == [len(data) for data in encoded]
    assert records[0].start == FIRST_RECORD
    assert all(one.end == two.start for one, two in itertools.pairwise(records))
    assert scan.end == records[-1].end
    assert scan.marks == [scan.end]
    for record, outcome in zip(records, RECORDS, strict=True):
        assert record.sound
        assert record_at(fd, record.start) == (record.path, record.metadata)
        payload = record.payload(fd)
        assert payload is not None
        assert outcome_of(record.path, record.metadata, payload) == outcome


def _scan(fd: int, header: Header = HEADER) -> tuple[list[Record], PickleScan]:
    scan = PickleScan(fd, "", 0, 0, header)
    return records_of(scan), scan


def test_records_behind_the_stop_are_found(file: File) -> None:
    """A first byte of STOP, on each first record of a group that is not committed, is told, and
    passed."""
    one, two, three, four = (encode(HEADER, outcome) for outcome in RECORDS[:4])
    records, scan = _scan(file.holding(one, STOP + two[1:], three, STOP + four[1:], STOP))
    assert len(records) == 4
    assert scan.end == len(one + two + three + four)
    assert scan.marks == [len(one), len(one + two + three), scan.end]


def test_an_uncommitted_record_counts_only_with_its_value(file: File) -> None:
    """Behind the STOP a record whose value does not match, however large, is a torn write."""
    large = encode(HEADER, result("large", b"x" * 50_000))
    for damaged in (large[:-9] + bytes(9), large[:-100] + b"yy" + large[-98:]):
        records, scan = _scan(file.holding(STOP + damaged[1:], STOP))
        assert not records
        assert (scan.marks, scan.end) == ([0], 0)


def test_a_damaged_value_is_told_from_a_damaged_record(file: File) -> None:
    """A committed record whose small value does not match is there, and not sound; its payload is
    None, for a large one as well."""
    small, large = (encode(HEADER, result("x", "y" * size)) for size in (100, 10_000))
    records, _ = _scan(
        fd := file.holding(*(data.replace(b"yy", b"yz", 1) for data in (small, large)))
    )
    assert [record.sound for record in records] == [False, True]
    assert [record.payload(fd) for record in records] == [None, None]


@pytest.mark.parametrize("outcome", [result("a", "x" * 10_000), failed("a", "x" * 10_000)])
def test_what_does_not_end_as_a_record_is_none(file: File, outcome: Outcome) -> None:
    """Its last byte is looked at, however long it is."""
    data = encode(HEADER, outcome)
    assert record_at(file.holding(data, STOP), 0) is not None
    assert record_at(file.holding(data[:-1], b"x", STOP), 0) is None


@pytest.mark.alike
@pytest.mark.parametrize(
    "outcome",
    [result("key", "value"), result("key", pickle.PickleBuffer(b"value")), failed("key")],
    ids=["value", "nested", "failure"],
)
def test_any_changed_bit_of_a_record_is_noticed(file: File, outcome: Outcome) -> None:
    """Whatever bit of a record changes, its value is not read any more, nor its failure; nor does
    a scan that comes to it take it for sound."""
    before, data = encode(HEADER, result("before", 1)), encode(HEADER, outcome)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            records, _ = _scan(fd := file.holding(changed, STOP))
            assert all(record.payload(fd) is None for record in records), (position, bit)
            (first, *records), _ = _scan(file.holding(before, changed, before, STOP))
            assert (first.path, first.sound) == ("before", True)
            for record in records[:1]:
                assert (record.path, record.sound) == ("key", False), (position, bit)


def test_records_of_another_file_are_none(file: File) -> None:
    """A record counts only in the file whose salt it carries, wherever stale blocks come from."""
    data = encode(OTHER_HEADER, result("a", 1))
    assert not _scan(file.holding(data))[0]
    retagged = data[:2] + TAG + data[6:]
    records, scan = _scan(file.holding(b"x", retagged))
    assert not records
    assert scan.skip() == ([], False)


def test_a_record_that_is_not_there_is_none(file: File) -> None:
    """Reading a record where none starts finds nothing."""
    fd = file.holding(encode(HEADER, result("a", 1)))
    assert record_at(fd, 3) is None


@pytest.mark.parametrize(
    "distance", [1, 2, 100, MEGABYTE - 3, MEGABYTE - 2, MEGABYTE - 1, MEGABYTE]
)
@pytest.mark.parametrize("first_byte", [b"C", STOP])
def test_a_later_record_is_found(file: File, distance: int, first_byte: bytes) -> None:
    """A whole record behind damage is found wherever it is, also across the blocks of reading."""
    record = encode(HEADER, result("later", 1))
    for shift in range(-4, 5):
        gap = bytes(max(distance + shift, 1))
        scan = PickleScan(file.holding(gap, first_byte + record[1:]), "", 0, 0, HEADER)
        assert not records_of(scan)
        assert scan.skip()[1]
        assert scan.end == len(gap)


def test_what_only_looks_like_a_later_record_is_none(file: File) -> None:
    """Tags alone, and records that are cut or whose values do not match, prove no damage."""
    record = encode(HEADER, result("later", "value"))
    pieces = [TAG * 50, record[:-1], record.replace(b"value", b"valve")]
    for piece in pieces:
        scan = PickleScan(file.holding(b"x", piece), "", 0, 0, HEADER)
        assert not records_of(scan)
        assert scan.skip() == ([], False)


def test_large_values_are_not_copied() -> None:
    """To be written, they are left where they are."""
    outcomes = [pickled_result("a", b"\x80" + bytes(20 * MEGABYTE)), result("b", b"x" * MEGABYTE)]
    tracemalloc.start()
    parts = [record_of(HEADER, outcome) for outcome in outcomes]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(map(len, itertools.chain(*parts))) > 21 * MEGABYTE
    assert peak < 100_000


def test_large_values_are_not_read_in_passing(file: File) -> None:
    """Scanning reads the metadata, so it finds records around values that were damaged."""
    first, second = (encode(HEADER, result(key, b"v" * MEGABYTE)) for key in "ab")
    records, _ = _scan(fd := file.holding(first.replace(b"v" * 500, b"w" * 500), second))
    assert [record.path for record in records] == ["a", "b"]
    assert records[0].payload(fd) is None
    assert records[1].payload(fd) == pickle.dumps(b"v" * MEGABYTE, 3)


def test_reading_takes_few_steps(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small records are read many at a time, and found in rows; of large ones little is read."""
    lengths: list[int] = []

    def read_at(fd: int, length: int, offset: int) -> bytes:
        lengths.append(length)
        return disk.read_at(fd, length, offset)

    monkeypatch.setattr(pickle_record, "read_at", read_at)
    encoded = [encode(HEADER, result(f"{number}", number)) for number in range(1000)]
    rows = [
        len(found.paths) for found in PickleScan(file.holding(*encoded, STOP), "", 0, 0, HEADER)
    ]
    assert sum(rows) == 1000
    assert len(rows) <= 3
    assert len(lengths) <= 2
    lengths.clear()
    records, _ = _scan(fd := file.holding(*encoded, STOP))
    scan = PickleScan(fd, "", 0, 0, HEADER)
    for record in reversed(records):  # those of files that were done again stand in any order
        assert scan.outcome_at(record.start) is not None
    assert sum(lengths) < 1000 * 5_000
    lengths.clear()
    encoded = [encode(HEADER, result(f"{number}", b"x" * 100_000)) for number in range(20)]
    records, _ = _scan(file.holding(*encoded, STOP))
    assert len(records) == 20
    assert sum(lengths) < 20 * 10_000


def test_what_is_appended_meanwhile_is_for_the_next_scan(file: File) -> None:
    """A scan ends where the file ended when it began."""
    encoded = [encode(HEADER, result(f"{number}", number)) for number in range(3)]
    first, both = len(encoded[0]), len(encoded[0]) * 2
    scan = PickleScan(file.holding(*encoded[:2]), "", first, first, HEADER)
    file.holding(*encoded, STOP)
    assert [record.path for record in records_of(scan)] == ["1"]
    assert scan.end == scan.size == both


@pytest.mark.parametrize(
    "message", ["", "text", "two\nlines", "\ud800 \udcff \0", "\N{OWL}" * 5000]
)
def test_failures_are_read_back(file: File, message: str) -> None:
    """A failure comes back with all of its facts, whatever is in its texts."""
    failure = Failure("path \udcff", "crashed", message, message * 2, 3, 1.5)
    outcome = Outcome(failure.path, None, 0, failure, 1.5, 3)
    (record,), _ = _scan(fd := file.holding(encode(HEADER, outcome)))
    payload = record.payload(fd)
    assert payload is not None
    assert outcome_of(record.path, record.metadata, payload) == outcome


@pytest.mark.parametrize(
    ("facts", "attempts"),
    [
        ({"attempts": 70_000}, 0xFFFF),
        ({"seconds": 1e30}, 1),
        ({"fingerprint": NO_FINGERPRINT}, 1),
    ],
)
def test_extreme_facts_fit(file: File, facts: dict[str, Any], attempts: int) -> None:
    """More attempts, a longer time or less of a file than there can be still make a record."""
    seconds = facts.pop("seconds", 0.5)
    outcome = Outcome("a", pickle.dumps(1, 3), 0, None, seconds, **facts)
    (record,), _ = _scan(file.holding(encode(HEADER, outcome)))
    assert record.metadata.attempts == attempts
    assert record.metadata.seconds == pytest.approx(seconds)
