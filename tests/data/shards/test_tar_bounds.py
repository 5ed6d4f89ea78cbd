"""Tars whose headers claim more than they hold, or more than a sample may have."""

import io
import tarfile
import time

import pytest

from data import DataError, bounds
from data.shards import tar

CHUNKS = [512, 4096, 1 << 20]


def header(name: str, size: int, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 512)


def entry(name: str, content: bytes, kind: bytes = b"0") -> bytes:
    return header(name, len(content), kind) + padded(content)


class Counting(io.BytesIO):
    """A file that ends in a hole."""

    def __init__(self, content: bytes, hole: int, after: bytes = b"") -> None:
        super().__init__(content)
        self._hole, self._after = hole, io.BytesIO(after)

    def read(self, size: int | None = -1, /) -> bytes:
        assert size is not None
        if content := super().read(size):
            return content
        if self._hole:
            count = min(size, self._hole)
            self._hole -= count
            return bytes(count)
        return self._after.read(size)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("in_one_buffer", [False, True])
def test_a_field_that_is_too_long_is_missing_and_its_sample_counts(chunk, in_one_buffer, monkeypatch):
    monkeypatch.setattr(bounds, "FIELD_BYTES", 10_000)
    parts = [("a.png", b"1"), ("b.png", bytes(10_001)), ("b.cls", b"2"), ("c.png", bytes(10_000)), ("c.cls", b"3")]
    content = b"".join(entry(name, data) for name, data in parts) + bytes(1024)
    members = tar.members(content) if in_one_buffer else tar.read_members(io.BytesIO(content), chunk)
    found = list(tar.samples(members))
    assert [(sample.key, sorted(sample.fields)) for sample in found] == [
        ("a", ["png"]),
        ("b", ["cls"]),
        ("c", ["cls", "png"]),
    ]
    assert found[1].offset == 1024


def test_offsets_after_a_field_that_is_skipped():
    size = bounds.FIELD_BYTES + 1000
    file = Counting(
        entry("a.png", b"1") + header("b.png", size), size + -size % 512, entry("c.png", b"3") + bytes(1024)
    )
    found = list(tar.read_members(file, 1 << 20))
    assert [(one.name, one.too_long) for one in found] == [("a.png", False), ("b.png", True), ("c.png", False)]
    assert found[2].offset == found[1].end == 1024 + 512 + size + -size % 512


def test_a_claim_beyond_the_end_of_the_file():
    for size in (1000, 3 << 30, 1 << 62):
        with pytest.raises(DataError, match="ends in the middle of the entry at byte 1024"):
            list(tar.read_members(io.BytesIO(entry("a.png", b"1") + header("b.png", size) + bytes(600)), 512))


def test_the_fields_of_a_sample_together_are_bounded(monkeypatch):
    monkeypatch.setattr(bounds, "SAMPLE_BYTES", 3000)
    content = b"".join(entry(f"a.{number}", bytes(1000)) for number in range(5))
    (sample,) = tar.samples(tar.members(content))
    assert list(sample.fields) == ["0", "1", "2"]


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_records_of_gigabytes_before_a_member_are_refused(kind, chunk):
    """A single one, and a chain of them: of the latter no more is read than the bound."""
    with pytest.raises(DataError, match="bytes of records before a member"):
        list(tar.read_members(Counting(entry("a.png", b"1") + header("x", 3 << 30, kind), 3 << 30), chunk))
    chain = entry("x", b"12 path=ab\n\0", kind) * (bounds.RECORD_BYTES // 1024 + 2)
    if chunk > 4096:
        with pytest.raises(DataError, match="bytes of records before a member, at byte 0"):
            list(tar.read_members(io.BytesIO(chain), chunk))


def test_many_pax_records_take_no_time():
    """Each record once copied the rest of them."""
    records = b"".join(b"9 a=%04d\n" % (number % 10_000) for number in range(400_000))
    begin = time.perf_counter()
    (member,) = tar.members(entry("x", records + b"14 path=b.png\n", b"x") + entry("a.png", b"1"))
    assert member.name == "b.png"
    assert time.perf_counter() - begin < 5


def sparse_by_gnu(parts: int) -> bytes:
    """A sparse file of many parts, as GNU tar writes it: the list goes on in records after the header."""
    head = bytearray(header("s.png", 1024, b"S"))
    head[482:483] = b"\1" if parts > 4 else b"\0"
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    more = [bytearray(512) for _ in range(-(-(parts - 4) // 21))] if parts > 4 else []
    for one in more[:-1]:
        one[504] = 1
    return bytes(head) + b"".join(map(bytes, more)) + bytes(1024)


@pytest.mark.parametrize("parts", [1, 4, 5, 25, 26, 100])
@pytest.mark.parametrize("chunk", CHUNKS)
def test_sparse_members_of_gnu_tar_are_passed_over(parts, chunk):
    content = entry("a.png", b"1") + sparse_by_gnu(parts) + entry("b.png", b"2") + bytes(1024)
    found = list(tar.read_members(io.BytesIO(content), chunk))
    assert [(one.name, one.is_file) for one in found] == [("a.png", True), ("s.png", False), ("b.png", True)]
    assert [one.name for one in tar.members(content)] == ["a.png", "s.png", "b.png"]
