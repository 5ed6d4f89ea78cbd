import io
import itertools
import random
import tarfile
import uuid
from contextlib import suppress

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import storage
from data.errors import Cause, Unreadable
from data.loading import ranges
from data.loading.ranges import Read, Sample, UnreadableSample, fetch, plan_reads
from data.packing.scan import index_shards
from data.shards.index import Index, Shard
from tests.tars import STRIDE, tar_of_random_samples, uniform_index, write_set


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 0),
    st.integers(1, 16),
    st.sampled_from([1024, 100 * 1024, 3 << 20]),
)
def test_plan_covers_what_is_wanted_and_little_else(data, counts, stride, sample_bytes):
    index = uniform_index(counts, stride, sample_bytes)
    wanted = sorted(data.draw(st.sets(st.integers(0, index.num_samples - 1), min_size=1)))
    planned = plan_reads(index, np.array(wanted))
    assert [sample for read in planned for sample in read.wanted.tolist()] == wanted
    for read in planned:
        shard, start = index.shards[read.shard], int(index.starts[read.shard])
        first, last = read.first_id - start, read.first_id - start + read.count
        assert 0 <= first < last <= shard.samples
        assert read.begin == first * sample_bytes
        assert read.end == (last * sample_bytes if last < shard.samples else shard.bytes)
        assert read.first_id <= read.wanted[0] <= read.wanted[-1] < read.first_id + read.count
        # A read is not longer than allowed, unless a stride group is. Long unused stretches are not read.
        assert read.count <= stride or read.end - read.begin <= ranges.READ_BYTES
        used_groups = np.unique((read.wanted - start) // stride)
        assert (np.diff(used_groups) - 1).max(initial=0) * stride * sample_bytes <= ranges.GAP_BYTES
    for one, two in itertools.pairwise(planned):  # two reads are separate only for a reason
        if one.shard == two.shard:
            assert (
                two.begin - one.end > ranges.GAP_BYTES or two.end - one.begin > ranges.READ_BYTES or two.count > stride
            )


@settings(max_examples=100, deadline=None)
@given(st.data(), st.lists(st.integers(1, 60), min_size=1, max_size=3), st.integers(1, 16))
def test_reads_keep_what_they_hold_anyway(data, counts, stride):
    """Of the other ids, those in the ranges are kept, too. The ranges are those of the requested ids alone."""
    index = uniform_index(counts, stride, 100 * 1024)
    every = st.sets(st.integers(0, index.num_samples - 1), min_size=1)
    among = sorted(data.draw(every))
    asked = sorted(data.draw(st.sets(st.sampled_from(among), min_size=1)))
    alone = plan_reads(index, np.array(asked))
    found = plan_reads(index, np.array(asked), np.array(among))
    assert [(read.shard, read.begin, read.end) for read in found] == [
        (read.shard, read.begin, read.end) for read in alone
    ]
    for read in found:
        within = [number for number in among if read.first_id <= number < read.first_id + read.count]
        assert read.wanted.tolist() == within


def test_fetch_gives_the_bytes_of_the_tar(train_index, digits):
    """Against the standard library, for a whole shard and for a few samples from its middle."""
    with tarfile.open(digits / "train" / "000001.tar") as archive:
        files = {info.name: archive.extractfile(info).read() for info in archive}
    names = sorted({name.split(".")[0] for name in files})
    start = int(train_index.starts[1])
    for positions in (list(range(400)), [70, 71, 130, 399]):
        found = {}
        for read in plan_reads(train_index, start + np.array(positions)):
            found |= fetch(train_index, read)
        assert list(found) == [start + position for position in positions]
        for position in positions:
            sample = found[start + position]
            assert sample.key == names[position]
            assert sample.shard == train_index.shard_url(1)
            assert sample.fields == {"png": files[f"{sample.key}.png"], "cls": files[f"{sample.key}.cls"]}


def test_unused_fields_are_not_kept():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (
            ("0.jpg", b"image"),
            ("0.cls", b"3"),
            ("0.txt", b"a long caption"),
            ("0.npy", bytes(999)),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    url = f"memory://{uuid.uuid4()}"
    fsspec.filesystem("memory").pipe_file(f"{url}/0.tar", file.getvalue())
    index = Index(f"{url}/index.json", (Shard("0.tar", 1, len(file.getvalue()), "", np.array([0])),), 4, False)
    [(_, sample)] = fetch(index, Read(0, 0, len(file.getvalue()), 0, 1, np.array([0]))).items()
    assert sample.fields == {"jpg": b"image", "cls": b"3"}


def read_all(index: Index, shard: int = 0) -> dict[int, Sample | UnreadableSample]:
    ids = np.arange(index.starts[shard], index.starts[shard + 1])
    return {number: sample for read in plan_reads(index, ids) for number, sample in fetch(index, read).items()}


def whole_samples(content: bytes, length: int) -> int:
    """Number of samples that are whole in the first `length` bytes of a tar, by the standard library."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        ends = {info.name.split(".")[0]: info.offset_data + -(-info.size // 512) * 512 for info in archive}
    return sum(end <= length for end in ends.values())


@pytest.mark.parametrize("where", ["in a group", "between samples", "between the fields of a sample", "in a header", 0])
def test_a_shard_cut_short(tmp_path, where):
    """The samples that are whole in the rest are returned; all after them are unreadable, and no others."""
    index, fields = write_set(str(tmp_path), [150])
    path = tmp_path / "000000.tar"
    content = path.read_bytes()
    with tarfile.open(path) as archive:
        starts = {info.name: info.offset for info in archive}
    length = {
        "in a group": starts["00000100.jpg"] + 600,
        "between samples": starts["00000100.jpg"],
        "between the fields of a sample": starts["00000100.cls"],
        "in a header": starts["00000128.jpg"] + 100,
        0: 0,
    }[where]
    path.write_bytes(content[:length])
    found = read_all(index)
    there = whole_samples(content, length)
    assert list(found) == list(range(150))
    for number, sample in found.items():
        if number < there:
            assert sample == Sample(f"{number:08d}", str(path), fields[number])
        else:
            assert sample == UnreadableSample(str(path), Cause.CUT_SHORT)
    assert there == {"in a group": 100, "in a header": 128, 0: 0}.get(where, 100)


def test_a_bad_answer_is_asked_for_again(tmp_path):
    index, fields = write_set(str(tmp_path), [64])
    [read] = plan_reads(index, np.arange(64))
    content = (tmp_path / "000000.tar").read_bytes()
    answers = [b"<html>" * 1000 + content[6000:], content]
    asked = []

    def get(read: Read, attempt: int) -> bytes:
        asked.append(attempt)
        return answers[attempt]

    found = fetch(index, read, get)
    assert [sample.fields for sample in found.values()] == fields
    assert asked == [0, 1]
    asked.clear()
    answers = [answers[0]] * 5
    with pytest.raises(Unreadable, match=r"000000\.tar: not what was indexed: no tar header at byte 0"):
        fetch(index, read, get)
    assert asked == [0, 1, 2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["flip", "cut", "drop", "insert"]))
def test_damaged_headers_never_bring_foreign_bytes(seed, kind):
    """After damage to headers or lengths: an error, unreadable samples, or right ones, perhaps without a field."""
    rng = random.Random(seed)
    content, offsets, fields = tar_of_random_samples(rng, 70, (600, 900))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        header = rng.choice([info.offset for info in archive])
    place = header + rng.randrange(512)
    damaged = {
        "flip": content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :],
        "cut": content[:place],
        "drop": content[:header] + content[header + 512 :],
        "insert": content[:header] + bytes(512) + content[header:],
    }[kind]
    url = f"memory://{uuid.uuid4()}"
    storage.write_atomic(f"{url}/0.tar", damaged)
    shard = Shard("0.tar", 70, len(content), "", offsets)
    index = Index(f"{url}/index.json", (shard,), 10, False, extensions=("cls", "jpg"), stride=STRIDE)
    for read in plan_reads(index, np.arange(70)):
        with suppress(Unreadable):
            for number, sample in fetch(index, read, tries=1).items():
                if sample != UnreadableSample(f"{url}/0.tar", Cause.CUT_SHORT):
                    assert sample.fields.items() <= fields[number].items()


@pytest.mark.parametrize("into", [100, 512, 700, 2500, 2600])
def test_a_shard_that_was_cut_short_before_it_was_indexed(into, tmp_path):
    """The sample in whose middle it ends has an id, and is a bad one. It once made the whole shard unreadable."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for number in range(3):
            for name, size in ((f"{number}.png", 1500), (f"{number}.cls", 1)):
                info = tarfile.TarInfo(name)
                info.size = size
                archive.addfile(info, io.BytesIO(b"1" * size))
    (tmp_path / "a.tar").write_bytes(file.getvalue()[: 2 * 3072 + into])  # a sample has 3,072 bytes
    index, _ = index_shards(str(tmp_path))
    assert index.num_samples == (3 if into >= 512 else 2)
    ids = np.arange(index.num_samples)
    (read,) = plan_reads(index, ids)
    samples = fetch(index, read)
    assert [isinstance(samples[number], Sample) for number in range(2)] == [True, True]
    if into >= 512:
        last = samples[2]
        assert isinstance(last, UnreadableSample)
        assert last.cause == Cause.CUT_SHORT
    (tmp_path / "a.tar").write_bytes(b"1" * index.shards[0].bytes)
    with pytest.raises(Unreadable, match="no tar header"):
        fetch(index, read)
