import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from data import DataError
from data.shards import tar

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def make_tar(files: list[tuple[str, bytes]], file_format: int = tarfile.PAX_FORMAT, mtime: float = 0) -> bytes:
    """By the standard library; names that end in "/" become folders."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=file_format) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name.rstrip("/"))
            info.size, info.mtime = len(content), mtime
            if name.endswith("/"):
                info.type, info.size = tarfile.DIRTYPE, 0
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def by_tarfile(content: bytes) -> list[tuple[str, bytes, int]]:
    """(name, bytes, offset of the first header) of the files, by the standard library."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return [(info.name, archive.extractfile(info).read(), info.offset) for info in archive if info.isreg()]


def by_webdataset(content: bytes) -> list[tuple[str, dict[str, bytes]]]:
    """(key, fields) of the samples, by WebDataset."""
    files = tar_file_expander([{"url": "x", "stream": io.BytesIO(content)}])
    samples = list(group_by_keys(files))
    return [(s["__key__"], {name: data for name, data in s.items() if not name.startswith("__")}) for s in samples]


def found_files(members) -> list[tuple[str, bytes, int]]:
    return [(member.name, bytes(member.data), member.offset) for member in members if member.is_file]


names = st.text(st.sampled_from("ab/.ü-_Z9"), min_size=1, max_size=160).filter(
    lambda name: not name.startswith("/") and not name.endswith("/") and "//" not in name
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=6), st.sampled_from(["gnu", "pax"]))
def test_members_as_tarfile_reads_them(files, file_format):
    content = make_tar(files, FORMATS[file_format])
    assert found_files(tar.members(content)) == by_tarfile(content)


@pytest.mark.parametrize("file_format", FORMATS)
def test_long_names_links_and_folders(file_format):
    """Names that need ustar's prefix, a GNU long name or a pax record, and between them entries that are no files."""
    long_name = "/".join(["folder" * 5] * 5) + "/000000.jpg"
    content = make_tar([("folder/", b""), (long_name, b"x" * 513), ("b.jpg", b"")], FORMATS[file_format])
    assert 100 < len(long_name) < 256
    assert found_files(tar.members(content)) == by_tarfile(content)
    assert [member.is_file for member in tar.members(content)] == [False, True, True]


def test_pax_times_and_global_headers():
    """Other records of `tar --format=pax` and Python: fractional times, and a header for the whole archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "made by"}) as archive:
        info = tarfile.TarInfo("ä/1.jpg")
        info.size, info.mtime = 3, 1.5
        archive.addfile(info, io.BytesIO(b"abc"))
    content = file.getvalue()
    assert [(name, data) for name, data, _ in found_files(tar.members(content))] == [("ä/1.jpg", b"abc")]


def test_sizes_beyond_octal():
    """GNU's base-256 number, as tarfile writes it for a file over 8 GiB (header only)."""
    info = tarfile.TarInfo("huge.bin")
    info.size = 9 << 30
    header = info.tobuf(tarfile.GNU_FORMAT)
    assert tar._number(header[tar.SIZE]) == 9 << 30
    assert list(tar.members(header)) == []  # not whole in the buffer


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(names, st.binary(max_size=2000)), max_size=8), st.integers(100, 5000))
def test_any_chunk_size_gives_the_same_members(files, chunk):
    content = make_tar(files)
    assert found_files(tar.read_members(io.BytesIO(content), chunk)) == by_tarfile(content)


member_names = st.builds(
    "{}{}.{}".format,
    st.sampled_from(["", "train/", "./", "a.b/"]),
    st.sampled_from(["000", "001", "x-y"]),
    st.sampled_from(["jpg", "CLS", "seg.png", "json"]),
) | st.sampled_from(["__meta__/info.json", "__index__", "README", "folder/"])


@settings(max_examples=60, deadline=None)
@given(st.lists(member_names, max_size=12, unique_by=str.lower))
def test_samples_as_webdataset_groups_them(chosen):
    files = [(name, name.encode()) for name in chosen]
    content = make_tar(files)
    found = [
        (sample.key, {name: bytes(data) for name, data in sample.fields.items()})
        for sample in tar.samples(tar.members(content))
    ]
    assert found == by_webdataset(content)


def test_samples_of_any_range_between_samples():
    """A range from one sample's offset to another's holds exactly the samples between them."""
    content = make_tar([(f"{n:03d}.{kind}", bytes([n]) * n) for n in range(20) for kind in ("jpg", "cls")])
    offsets = [sample.offset for sample in tar.samples(tar.members(content))]
    for first, last in ((0, 5), (7, 8), (3, 19)):
        part = content[offsets[first] : offsets[last]]
        assert [sample.key for sample in tar.samples(tar.members(part))] == [f"{n:03d}" for n in range(first, last)]


@pytest.mark.parametrize("name", ["train/.hidden", "train/._0001.jpg", "README", "__meta__/x.json", "__x__"])
def test_names_outside_of_samples(name):
    """Among them `._0001.jpg`, which macOS's tar adds for each file."""
    assert tar.split_name(name) is None


def test_not_a_tar():
    with pytest.raises(DataError, match="no tar header at byte 0"):
        list(tar.members(b"<html>" + bytes(1000)))
    content = bytearray(make_tar([("a.jpg", b"1"), ("b.jpg", b"2")]))
    content[1024 + 3] ^= 1  # a flipped bit in the second header
    with pytest.raises(DataError, match="no tar header at byte 1024"):
        list(tar.members(content))


@pytest.mark.parametrize("cut", [700, 1024 + 100, 1024 + 512 + 5])
def test_truncated_file(cut):
    content = make_tar([("a.jpg", b"1" * 400), ("b.jpg", b"2" * 600)])
    with pytest.raises(DataError, match="ends in the middle"):
        list(tar.read_members(io.BytesIO(content[:cut]), 512))


def test_archive_without_end_records():
    content = make_tar([("a.jpg", b"1" * 400)])[:1024]
    assert [name for name, _, _ in found_files(tar.read_members(io.BytesIO(content), 300))] == ["a.jpg"]
