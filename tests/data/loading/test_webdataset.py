"""The pipeline of the package WebDataset gives what the loader gives, and loses nothing silently."""

import io
import pickle
import random
import tarfile
import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

import data
from data import Augment, DataError, Index, Loader, SampleOrder, Unreadable, open_index, storage
from data.packing.scan import index_shards
from data.shards.index import write_index
from data.shards.writer import ShardWriter
from data.sources.digits import pack_digits
from data.storage import patience
from infra.local.stores import FaultyProxy, Server, gcs_server, reached_by, s3_server
from tests.tars import write_set

Seen = dict[int, tuple[bytes, int]]  # by sample id: RGB pixels and label


def by_the_loader(index: Index, size: int) -> Seen:
    """Every usable sample of a set of images of `size` x `size` pixels, as training sees it without augmentation."""
    order = SampleOrder(index, batch_size=64, shuffle=False)
    options = {"rank": 0, "world_size": 1, "image_size": size, "augment": Augment("resize"), "seed": 0}
    with Loader(index, order, stop_step=order.steps_per_epoch, mask_unreadable=True, **options) as loader:
        return {
            number: (image.permute(1, 2, 0).numpy().tobytes(), int(labels[0]))
            for batch in loader
            for number, image, labels in zip(batch.ids.tolist(), batch.images, batch.labels, strict=True)
            if number >= 0
        }


class WithId:
    """A sample's id, key, pixels and label. A class, so that it can be pickled."""

    def __init__(self, index: Index) -> None:
        from data.loading.webdataset import _Pair

        self._pair = _Pair(index, "uint8")

    def __call__(self, sample: dict) -> tuple[int, str, bytes, int]:
        image, label = self._pair(sample)
        return sample["__id__"], sample["__key__"], image.tobytes(), label


def with_ids(url: str, **options) -> wds.WebDataset:
    handler = options.get("handler", wds.reraise_exception)
    return data.webdataset(url, decode=None, **options).map(WithId(open_index(url)), handler=handler)


def once(samples: Iterable[tuple[int, str, bytes, int]]) -> Seen:
    """The samples by id. Checks that none comes twice."""
    seen: Seen = {}
    for number, _, image, label in samples:
        assert number not in seen
        seen[number] = image, label
    return seen


def in_two_workers(dataset: wds.WebDataset, **options) -> DataLoader:
    return DataLoader(dataset, batch_size=None, num_workers=2, **options)


def test_pairs_in_storage_order(digits: Path, train_index: Index) -> None:
    expected = by_the_loader(train_index, 8)
    dataset = data.webdataset(str(digits / "train"))
    assert isinstance(dataset, wds.WebDataset)
    assert dataset.index.num_samples == len(expected) == 1442
    pairs = list(dataset)
    assert [(np.asarray(image).tobytes(), label) for image, label in pairs] == [expected[n] for n in range(1442)]
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" and type(label) is int for image, label in pairs)
    arrays = list(data.webdataset(str(digits / "train"), decode="uint8"))
    assert [(image.tobytes(), label) for image, label in arrays] == [expected[n] for n in range(1442)]
    assert (arrays[0][0].dtype, arrays[0][0].shape) == (np.uint8, (8, 8, 3))


def test_two_workers_and_two_nodes_share_the_samples(digits: Path, train_index: Index, monkeypatch) -> None:
    expected, url = by_the_loader(train_index, 8), str(digits / "train")
    assert once(in_two_workers(with_ids(url, shuffle=100))) == expected
    of_nodes = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        of_nodes.append(list(in_two_workers(with_ids(url))))
    assert once([sample for node in of_nodes for sample in node]) == expected
    assert min(map(len, of_nodes)) > 600


def test_fewer_shards_than_nodes(digits: Path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "5")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(DataError, match="4 shards cannot be split among 5 nodes"):
        list(data.webdataset(str(digits / "train")))


@pytest.mark.parametrize("server", [gcs_server, s3_server])
def test_workers_read_from_a_bucket(server: Callable[[], AbstractContextManager[Server]]) -> None:
    with server() as store, reached_by(store) as url:
        pack_digits(url)
        index = open_index(f"{url}/train")
        keys = [f"{number:06d}" for number in range(1797)]
        samples = list(in_two_workers(with_ids(f"{url}/train", shuffle=10)))
        assert once(samples) == by_the_loader(index, 8)
        assert {key for _, key, _, _ in samples} < set(keys)


def test_a_store_in_trouble_loses_no_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.5)
    monkeypatch.setattr(patience, "FIRST_WAIT", 0.05)
    with s3_server() as store:
        with reached_by(store) as url:
            fields = write_set(url, [70] * 8)[1]
        with FaultyProxy(store, seed=3, fail=0.2, stall=0.2, truncate=0.2) as proxy, reached_by(proxy.server) as url:
            found = {sample["__id__"]: sample["jpg"] for sample in data.webdataset(url, decode=None)}
            assert proxy.counts.total() > proxy.counts["passed"]
    assert found == {number: sample["jpg"] for number, sample in enumerate(fields)}


def test_code_for_webdataset_runs_as_it_is(digits: Path, train_index: Index) -> None:
    expected = by_the_loader(train_index, 8)
    samples = data.webdataset(str(digits / "train"), decode=None).decode("rgb8").to_tuple("png;jpg", "cls", "__key__")
    plain = wds.WebDataset(sorted(map(str, (digits / "train").glob("*.tar"))), shardshuffle=False)
    theirs = list(plain.decode("rgb8").to_tuple("png;jpg", "cls", "__key__"))
    for ours, other, (pixels, label) in zip(samples, theirs, expected.values(), strict=True):
        assert ours[0].tobytes() == other[0].tobytes() == pixels
        assert ours[1:] == other[1:]
        assert ours[1] == label
    batches = list(data.webdataset(str(digits / "train"), decode="uint8").batched(100))
    assert [len(images) for images, _ in batches] == [100] * 14 + [42]
    assert len(list(data.webdataset(str(digits / "train")).repeat(2))) == 2 * 1442
    assert len(list(pickle.loads(pickle.dumps(data.webdataset(str(digits / "train"), shuffle=9))))) == 1442


def test_all_fields_are_there(tmp_path: Path) -> None:
    with wds.ShardWriter(f"{tmp_path}/%04d.tar", verbose=0) as writer:
        writer.write({"__key__": "a/one", "png": np.zeros((3, 3), np.uint8), "cls": 1, "seg.PNG": b"mask", "txt": "so"})
    index_shards(str(tmp_path))
    [sample] = data.webdataset(str(tmp_path), decode=None)
    assert sample.keys() == {"__key__", "__url__", "__id__", "png", "cls", "seg.png", "txt"}
    assert (sample["__key__"], sample["__url__"], sample["__id__"]) == ("a/one", f"{tmp_path}/0000.tar", 0)
    assert (sample["seg.png"], sample["txt"]) == (b"mask", b"so")


def test_every_pass_has_another_order(digits: Path) -> None:
    """The seed is that of `random` in this process, and that of torch in workers: equal seeds give equal passes."""

    def passes(dataset: Iterable) -> list[list[int]]:
        return [[sample[0] for sample in dataset] for _ in range(2)]

    dataset = with_ids(str(digits / "train"), shuffle=300)
    random.seed(5)
    first = passes(dataset)
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == list(range(1442))
    assert first[0] != sorted(first[0])
    random.seed(5)
    assert passes(dataset) == first
    torch.manual_seed(7)
    in_workers = passes(in_two_workers(dataset))
    assert in_workers[0] != in_workers[1]
    torch.manual_seed(7)
    assert passes(in_two_workers(dataset)) == in_workers


@pytest.mark.parametrize("cut", ["between samples", "between fields", "in an image"])
def test_a_truncated_shard_is_an_error_or_a_warning_with_a_number(tmp_path: Path, cut: str) -> None:
    """For the library alone the first two are whole shards. Here the number of missing samples is said."""
    pack_digits(str(tmp_path))
    index = open_index(f"{tmp_path}/train")
    path = tmp_path / "train" / "000002.tar"
    with tarfile.open(path) as archive:
        members = archive.getmembers()
    member = members[600 + (cut != "between samples")]  # sample 300's first or second field
    end = member.offset if cut.startswith("between") else member.offset_data - 400
    path.write_bytes(path.read_bytes()[:end])
    if cut.startswith("between"):
        assert len(list(wds.WebDataset(str(path), shardshuffle=False))) == 300 + (cut == "between fields")
    with pytest.raises(Unreadable, match=r"000002\.tar: shard cut short in bytes \d+ to \d+ \(100 samples are missing"):
        list(data.webdataset(f"{tmp_path}/train"))
    with pytest.raises(Unreadable, match=r"100 samples are missing"):
        list(in_two_workers(data.webdataset(f"{tmp_path}/train")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = once(with_ids(f"{tmp_path}/train", handler=wds.warn_and_continue))
    assert len(caught) == 1
    assert "000002.tar: shard cut short" in str(caught[0].message)
    assert found == by_the_loader(index, 8)
    assert len(found) == index.num_samples - 100


def test_a_damaged_or_missing_shard(tmp_path: Path) -> None:
    index, _ = write_set(str(tmp_path), [70, 70, 70])
    (tmp_path / "000000.tar").unlink()
    content = bytearray((tmp_path / "000001.tar").read_bytes())
    content[:512] = bytes(range(256)) * 2
    (tmp_path / "000001.tar").write_bytes(content)
    errors: list[str] = []

    def note(error: Exception) -> bool:
        errors.append(str(error))
        return True

    found = [sample["__id__"] for sample in data.webdataset(str(tmp_path), decode=None, handler=note)]
    assert found == list(range(140, 210))
    assert [error.split(":")[0] for error in errors] == [f"{tmp_path}/000000.tar", f"{tmp_path}/000001.tar"]
    assert all(error.endswith("(70 samples are missing)") for error in errors)
    assert list(data.webdataset(str(tmp_path), decode=None, handler=wds.ignore_and_stop)) == []
    with pytest.raises(Unreadable, match=r"000000\.tar: not what was indexed: there is no such shard"):
        list(data.webdataset(str(tmp_path), decode=None))
    assert index.num_samples == 210


def test_bad_samples_are_errors_that_name_them(tmp_path: Path, encode, photos) -> None:
    """They are those that the loader masks, with the same causes."""
    good = encode(photos[0][:32, :32], "PNG")
    contents = [
        {"png": good, "cls": b"0"},
        {"png": good[: len(good) // 2], "cls": b"1"},
        {"png": b"", "cls": b"1"},
        {"gif": b"GIF89a", "cls": b"1"},
        {"png": good, "cls": b"cat"},
        {"png": good},
        {"png": good, "cls": b"7"},
        {"png": good, "cls": b"2"},
    ]
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number, fields in enumerate(contents):
            for extension, content in fields.items():
                info = tarfile.TarInfo(f"k{number}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    index, _ = index_shards(str(tmp_path), num_classes=3)
    errors: list[str] = []

    def note(error: Exception) -> bool:
        errors.append(str(error))
        return True

    found = once(with_ids(str(tmp_path), handler=note))
    assert found == by_the_loader(index, 32)
    assert sorted(found) == [0, 7]
    [batch] = Loader(
        index,
        SampleOrder(index, batch_size=8, shuffle=False),
        rank=0,
        world_size=1,
        image_size=32,
        augment=Augment("resize"),
        seed=0,
        stop_step=1,
    )
    assert errors == [f"{bad.shard}: sample {bad.key!r}: {bad.cause}" for bad in batch.bad]
    assert len(errors) == 6
    with pytest.raises(DataError, match=r"0\.tar: sample 'k1': undecodable image"):
        list(data.webdataset(str(tmp_path)))


def test_labels_of_a_multi_label_set(tmp_path: Path) -> None:
    records = [{"labels": [3]}, {"labels": [1, 4], "weights": [0.5, 0.25]}, {"labels": []}]
    with wds.ShardWriter(f"{tmp_path}/%04d.tar", verbose=0) as writer:
        for number, record in enumerate(records):
            writer.write({"__key__": f"{number}", "png": np.zeros((3, 3), np.uint8), "json": record})
    index_shards(str(tmp_path))
    labels = [label for _, label in data.webdataset(str(tmp_path))]
    assert all(label.dtype == np.float32 for label in labels)
    assert np.array_equal(labels, [[0, 0, 0, 1, 0], [0, 0.5, 0, 0, 0.25], [0] * 5])


def test_wrong_arguments(tmp_path: Path, digits: Path) -> None:
    with pytest.raises(ValueError, match="decode 'rgb' is none of 'pil', 'uint8' and None"):
        data.webdataset(str(digits / "train"), decode="rgb")
    with pytest.raises(ValueError, match="shuffle -1 is negative"):
        data.webdataset(str(digits / "train"), shuffle=-1)
    storage.write_atomic(f"{tmp_path}/0.tar", b"")
    with pytest.raises(DataError, match="--index-only"):
        data.webdataset(str(tmp_path))


def test_classes_that_are_only_claimed_cost_nothing(tmp_path: Path) -> None:
    with ShardWriter(str(tmp_path), "0.tar") as writer:
        writer.write("k", {"png": b"", "json": b'{"labels": [3]}'})
        shard = writer.close()
    write_index(Index(f"{tmp_path}/index.json", (shard,), num_classes=10**12, multi_label=True))
    with pytest.raises(DataError, match=r"1,000,000,000,000 classes are more than 16,777,216"):
        data.webdataset(str(tmp_path))
    assert [sample["json"] for sample in data.webdataset(str(tmp_path), decode=None)] == [b'{"labels": [3]}']
