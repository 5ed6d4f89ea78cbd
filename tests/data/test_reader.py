import io
import itertools
import tarfile
import threading
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, Index, SampleOrder, Shard, open_index, reader
from data.index import write_index
from data.reader import Read, Reader, ReaderClosed, fetch, plan_reads
from data.sources.digits import pack_digits


class LoggedFileSystem(MemoryFileSystem):
    """The memory file system, with a log of its ranged reads, and a gate that can hold them back."""

    protocol = "logged"
    store: dict = {}  # noqa: RUF012 - fsspec's way to share the content between instances
    pseudo_dirs = [""]  # noqa: RUF012
    log: list[tuple[str, int, int]] = []  # noqa: RUF012
    gate = threading.Event()

    def cat_file(self, path, start=None, end=None, **options):
        if path.endswith(".tar"):
            type(self).gate.wait(30)
            type(self).log.append((path, start, end))
        return super().cat_file(path, start, end, **options)


fsspec.register_implementation("logged", LoggedFileSystem)


@pytest.fixture
def logged() -> Index:
    """The packed digits on a file system that logs."""
    url = f"logged://{uuid.uuid4()}"
    pack_digits(url)
    LoggedFileSystem.log.clear()
    LoggedFileSystem.gate.set()
    return open_index(f"{url}/train")


def fake_index(counts: list[int], stride: int, sample_bytes: int) -> Index:
    """Shards whose samples are all `sample_bytes` long, and whose ends are 1024 bytes of zeros."""
    shards = tuple(
        Shard(f"{n}.tar", count, count * sample_bytes + 1024, "", np.arange(0, count, stride) * sample_bytes)
        for n, count in enumerate(counts)
    )
    return Index("memory://nowhere/index.json", shards, num_classes=1, multi_label=False, stride=stride)


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(lambda counts: sum(counts) > 0),
    st.integers(1, 16),
    st.sampled_from([1024, 100 * 1024, 3 << 20]),
)
def test_plan_covers_what_is_wanted_and_little_else(data, counts, stride, sample_bytes):
    index = fake_index(counts, stride, sample_bytes)
    wanted = sorted(data.draw(st.sets(st.integers(0, index.num_samples - 1), min_size=1)))
    reads = plan_reads(index, np.array(wanted))
    assert [sample for read in reads for sample in read.wanted.tolist()] == wanted
    for read in reads:
        shard, start = index.shards[read.shard], int(index.starts[read.shard])
        first, last = read.first_id - start, read.first_id - start + read.count
        assert 0 <= first < last <= shard.samples
        assert read.begin == first * sample_bytes
        assert read.end == (last * sample_bytes if last < shard.samples else shard.bytes)
        assert read.first_id <= read.wanted[0] <= read.wanted[-1] < read.first_id + read.count
        # Not longer than said, unless one stride group is; and no stretch is read through that is long and unused.
        assert read.count <= stride or read.end - read.begin <= reader.READ_BYTES
        used_groups = np.unique((read.wanted - start) // stride)
        assert (np.diff(used_groups) - 1).max(initial=0) * stride * sample_bytes <= reader.GAP_BYTES
    for one, two in itertools.pairwise(reads):  # neighbours are not left apart without a reason
        if one.shard == two.shard:
            assert (
                two.begin - one.end > reader.GAP_BYTES or two.end - one.begin > reader.READ_BYTES or two.count > stride
            )


def test_fetch_gives_the_bytes_of_the_tar(train_index, digits):
    """Against the standard library, for all of a shard and for a few samples of its middle."""
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
            assert sample.fields == {"png": files[f"{sample.key}.png"], "cls": files[f"{sample.key}.cls"]}


def take_all(source: Reader, order: SampleOrder, steps: range, slots: range) -> dict[int, list[str]]:
    taken = {}
    for step in steps:
        ids = order.slots(step, slots.start, slots.stop)
        taken[step] = [sample.key for sample in source.take(step, ids[ids >= 0].tolist())]
    return taken


def test_reads_are_few_and_long(logged):
    """One worker, one epoch of 1,442 samples: a request a shard, and one for a lane that begins its block later."""
    order = SampleOrder(logged, batch_size=128)
    with Reader(logged, order, range(128), 0, order.steps_per_epoch) as source:
        taken = take_all(source, order, range(order.steps_per_epoch), range(128))
    assert len(set().union(*taken.values())) == sum(map(len, taken.values())) == logged.num_samples
    assert len(LoggedFileSystem.log) == len(logged.shards) + 1
    assert sum(end - begin for _, begin, end in LoggedFileSystem.log) < logged.num_bytes + 64 * 2048


def test_a_worker_reads_only_the_neighbourhood_of_its_lanes(logged):
    """A quarter of the slots costs a quarter of the bytes, but for the edges of its stretch of the line."""
    order = SampleOrder(logged, batch_size=128, lanes=4, block=128)
    with Reader(logged, order, range(32, 64), 0, order.steps_per_epoch) as source:
        take_all(source, order, range(order.steps_per_epoch), range(32, 64))
    read = sum(end - begin for _, begin, end in LoggedFileSystem.log)
    assert read < 0.25 * logged.num_bytes + len(LoggedFileSystem.log) * 64 * 2048


def test_read_ahead_is_bounded(logged, monkeypatch):
    """Nobody asks for more than step 0: fetched is what it needs, and ahead of it one read, which crosses the bound."""
    monkeypatch.setattr(reader, "AHEAD_BYTES", 100_000)
    order = SampleOrder(logged, batch_size=8, lanes=1, block=64, seed=2)
    with Reader(logged, order, range(8), 0, order.steps_per_epoch) as source:
        source.take(0, order.batch(0))
        time.sleep(0.3)  # enough to read everything, were it allowed
        longest = 2 * 64 * 2048  # a block of 64 samples lies in two stride groups
        assert sum(end - begin for _, begin, end in LoggedFileSystem.log) <= 2 * longest < logged.num_bytes / 4
        taken = take_all(source, order, range(1, order.steps_per_epoch), range(8))
    assert sum(map(len, taken.values())) == logged.num_samples - 8


def test_closing_wakes_who_waits(logged):
    order = SampleOrder(logged, batch_size=128)
    LoggedFileSystem.gate.clear()  # the store does not answer
    source = Reader(logged, order, range(128), 0, 10)
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            source.take(0, order.batch(0))
        except ReaderClosed as closed:
            outcome.append(closed)

    waiting = threading.Thread(target=wait)
    waiting.start()
    source.close()
    waiting.join(10)
    LoggedFileSystem.gate.set()
    assert len(outcome) == 1


def damaged(digits: Path, tmp_path: Path) -> tuple[Index, Path]:
    index = open_index(str(digits / "train"))
    for shard in index.shards:
        (tmp_path / shard.url).write_bytes((digits / "train" / shard.url).read_bytes())
    write_index(Index(f"{tmp_path}/index.json", index.shards, index.num_classes, index.multi_label))
    return open_index(str(tmp_path)), tmp_path / "000002.tar"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda content: None, "there is no such shard"),
        (lambda content: content[: len(content) // 2], "samples instead of 400"),
        (lambda content: content[:512] + b"\0" * 512 + content[512:], "no tar header|samples instead of 400"),
        (lambda content: b"<html>" * 200_000, "no tar header at byte 0"),
    ],
)
def test_a_shard_that_is_not_what_was_indexed(digits, tmp_path, damage, words):
    """The error names the shard and reaches whoever waits for a sample."""
    index, path = damaged(digits, tmp_path)
    content = damage(path.read_bytes())
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    order = SampleOrder(index, batch_size=128)
    with Reader(index, order, range(128), 0, order.steps_per_epoch) as source:
        with pytest.raises(DataError, match=words) as raised:
            take_all(source, order, range(order.steps_per_epoch), range(128))
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)


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
