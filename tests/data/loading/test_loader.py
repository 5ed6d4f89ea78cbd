import dataclasses
import io
import subprocess
import sys
import tarfile
import threading
import uuid
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
import torch
import webdataset
from sklearn.datasets import load_digits

from data import Augment, DataError, Index, Loader, Mixture, SampleOrder, open_index
from data.errors import Cause
from data.packing.scan import index_shards
from data.shards.index import concatenate
from data.sources.digits import held_out_mask, pack_digits

PLAIN = Augment("resize")


def batches(index: Index, order: SampleOrder, *, world_size: int = 1, ranks=None, **options) -> list[list]:
    """[[batch of rank 0 at the first step, ...], ...]: all batches of all workers, by worker."""
    options = {"image_size": 8, "augment": PLAIN, "seed": 0, "threads": 2} | options
    result = []
    for rank in ranks or range(world_size):
        with Loader(index, order, rank=rank, world_size=world_size, **options) as loader:
            result.append(list(loader))
    return result


def slow_samples(folder: Path) -> list[tuple[np.ndarray, int]]:
    """(image, label) of every sample in storage order, by the standard library and OpenCV."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            files = {info.name: archive.extractfile(info).read() for info in archive}
        for key in sorted({name.split(".")[0] for name in files}):
            bgr = cv2.imdecode(np.frombuffer(files[f"{key}.png"], np.uint8), cv2.IMREAD_COLOR)
            samples.append((bgr[..., ::-1], int(files[f"{key}.cls"])))
    return samples


@pytest.mark.parametrize("world_size", [1, 3, 4])
def test_an_epoch_against_the_slow_way(digits, train_index, world_size):
    """Every slot of every batch, across an epoch's end, from 1, 3 or 4 workers, which do not divide 50."""
    expected = slow_samples(digits / "train")
    keys = np.flatnonzero(~held_out_mask(load_digits().target))
    order = SampleOrder(train_index, seed=4, batch_size=50, lanes=10, block=32)
    steps = range(order.steps_per_epoch - 3, order.steps_per_epoch + 2)
    by_rank = batches(train_index, order, world_size=world_size, start_step=steps.start, stop_step=steps.stop)
    for step, of_ranks in zip(steps, zip(*by_rank, strict=True), strict=True):
        share = -(-50 // world_size)
        assert [batch.step for batch in of_ranks] == [step] * world_size
        assert all(batch.images.shape == (share, 3, 8, 8) for batch in of_ranks)
        slots = torch.cat([batch.slots for batch in of_ranks])
        assert slots[slots >= 0].tolist() == list(range(50))
        ids = torch.cat([batch.ids for batch in of_ranks])
        assert ids[slots >= 0].tolist() == order.batch(step)
        for batch in of_ranks:
            assert torch.equal(batch.valid, batch.ids >= 0)
            assert (batch.labels.shape, batch.weights.shape) == ((share, 1), (share, 1))
            for place, sample in enumerate(batch.ids.tolist()):
                image, label = expected[sample] if sample >= 0 else (np.zeros((8, 8, 3)), -1)
                assert np.array_equal(batch.images[place].permute(1, 2, 0), image)
                assert batch.labels[place].item() == label
                assert batch.weights[place].item() == float(sample >= 0)
            assert batch.bad == []
            assert [int(key) if key else -1 for key in batch.keys] == [
                keys[sample] if sample >= 0 else -1 for sample in batch.ids.tolist()
            ]


def test_tensors_are_what_the_accelerator_wants(train_index):
    order = SampleOrder(train_index, batch_size=16)
    [[batch]] = batches(train_index, order, stop_step=1, image_size=24)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (16, 3, 24, 24)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.ids.dtype, batch.labels.dtype, batch.slots.dtype) == (torch.int64,) * 3
    assert (batch.weights.dtype, batch.valid.dtype) == (torch.float32, torch.bool)


def test_augmentation_is_the_samples_own(train_index):
    """A sample's crop does not depend on the worker or on the first step, and is another in the next epoch."""
    order = SampleOrder(train_index, batch_size=60)
    options = {"augment": Augment("inception", flip=True), "image_size": 12, "seed": 9}
    last = 2 * order.steps_per_epoch

    def images(**changes) -> dict[tuple[int, int], bytes]:
        return {
            (order.epoch(batch.step), sample): batch.images[place].numpy().tobytes()
            for worker in batches(train_index, order, **options | changes)
            for batch in worker
            for place, sample in enumerate(batch.ids.tolist())
            if sample >= 0
        }

    whole = images(stop_step=last)
    assert len(whole) == 2 * train_index.num_samples
    later = images(world_size=7, start_step=last - 4, stop_step=last, threads=1)
    assert later.items() <= whole.items()
    assert len(later) > 3 * 60
    changed = sum(whole[0, sample] != whole[1, sample] for sample in range(train_index.num_samples))
    assert changed > 0.99 * train_index.num_samples
    other_seed = images(stop_step=1, seed=10)
    assert sum(other_seed[key] != whole[key] for key in other_seed) > 55


@pytest.mark.parametrize(("world_size", "slots_per_rank"), [(3, None), (3, 20), (64, None), (40, 2)])
def test_padding(train_index, world_size, slots_per_rank):
    """Workers with fewer slots than others, or none at all, get batches of the same shape."""
    order = SampleOrder(train_index, batch_size=50)
    by_rank = batches(train_index, order, world_size=world_size, stop_step=1, slots_per_rank=slots_per_rank, threads=1)
    assert {worker[0].images.shape[0] for worker in by_rank} == {slots_per_rank or -(-50 // world_size)}
    assert sorted(s for [batch] in by_rank for s in batch.slots.tolist() if s >= 0) == list(range(50))
    for [batch] in by_rank:
        padding = batch.slots < 0
        assert not batch.images[padding].any()
        assert not batch.valid[padding].any()
        assert (batch.ids[padding] == -1).all()
        assert (batch.labels[padding] == -1).all()


def test_evaluation_sees_every_image_once_in_order(digits):
    index = open_index(str(digits / "test"))
    order = SampleOrder(index, batch_size=32, shuffle=False)
    data = load_digits()
    by_rank = batches(index, order, world_size=3, stop_step=order.steps_per_epoch)
    ids = [s for of_ranks in zip(*by_rank, strict=True) for batch in of_ranks for s in batch.ids.tolist() if s >= 0]
    assert ids == list(range(index.num_samples))
    labels = [s for of in zip(*by_rank, strict=True) for batch in of for s in batch.labels[batch.valid, 0].tolist()]
    assert np.bincount(labels).tolist() == [int((data.target == n).sum()) // 5 for n in range(10)]


def write_shards(folder: Path, samples: list[dict], maxcount: int = 7) -> None:
    folder.mkdir(exist_ok=True)
    with webdataset.ShardWriter(f"{folder}/part-%04d.tar", maxcount=maxcount, verbose=0) as writer:
        for sample in samples:
            writer.write(sample)


def test_shards_of_webdatasets_writer(tmp_path, photos):
    """JPEG and .cls, as WebDataset's ShardWriter stores them, read after `--index-only`."""
    samples = [
        {"__key__": f"{n:05d}", "jpg": photos[n % 2][n : 200 + n, 2 * n : 200 + 2 * n], "cls": n % 9} for n in range(25)
    ]
    write_shards(tmp_path / "set", samples)
    index, _ = index_shards(str(tmp_path / "set"))
    assert ([shard.samples for shard in index.shards], index.num_classes) == ([7, 7, 7, 4], 9)
    assert not index.multi_label
    order = SampleOrder(index, seed=1, batch_size=10)
    [worker] = batches(index, order, stop_step=order.steps_per_epoch, image_size=200)
    seen = set()
    for batch in worker:
        for place, sample in enumerate(batch.ids.tolist()):
            if sample >= 0:
                seen.add(sample)
                difference = batch.images[place].permute(1, 2, 0).numpy().astype(int) - samples[sample]["jpg"]
                assert np.abs(difference).mean() < 6  # JPEG's own loss
                assert batch.labels[place].tolist() == [sample % 9]
    assert seen == set(range(25))


def test_multi_label_shards(tmp_path, photos):
    """PNG and .json with any number of labels, some with weights."""
    records = [
        {"labels": [3]},
        {"labels": [1, 4, 6], "weights": [0.5, 0.25, 1.0]},
        {"labels": []},
        {"labels": [9, 2], "probabilities": [0.125, 1]},
    ]
    samples = [
        {"__key__": f"s{n}", "png": photos[0][:20, :20], "json": records[n % 4], "txt": "words"} for n in range(8)
    ]
    write_shards(tmp_path / "set", samples)
    index, _ = index_shards(str(tmp_path / "set"))
    assert (index.multi_label, index.num_classes, index.extensions) == (True, 10, ("json", "png", "txt"))
    [[first, second]] = batches(index, SampleOrder(index, batch_size=4, shuffle=False), stop_step=2)
    for batch in (first, second):
        assert batch.labels.tolist() == [[3, -1, -1], [1, 4, 6], [-1, -1, -1], [9, 2, -1]]
        assert batch.weights.tolist() == [[1, 0, 0], [0.5, 0.25, 1], [0, 0, 0], [0.125, 1, 0]]
        assert batch.valid.all()


def test_bad_samples_become_masked_slots(tmp_path, photos, encode):
    """Truncated, empty, no image, no image field, no label, several labels: masked and named; nothing else moves."""
    good = encode(photos[0][:64, :64], "JPEG")
    contents = [
        {"jpg": good, "cls": b"0"},
        {"jpg": good[: len(good) // 2], "cls": b"1"},
        {"jpg": b"", "cls": b"1"},
        {"jpg": b"<html>", "cls": b"1"},
        {"gif": b"GIF89a", "cls": b"1"},
        {"jpg": good, "cls": b"cat"},
        {"jpg": good},
        {"jpg": good, "cls": b"2"},
    ]
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        for number, fields in enumerate(contents):
            for extension, content in fields.items():
                info = tarfile.TarInfo(f"k{number}.{extension}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    index, found = index_shards(str(tmp_path))
    assert (found.unlabelled, found.without_image, index.num_samples) == (2, 1, 8)
    [[batch]] = batches(index, SampleOrder(index, batch_size=8, shuffle=False), stop_step=1)
    assert batch.valid.tolist() == [True, False, False, False, False, False, False, True]
    assert batch.ids.tolist() == [0, -1, -1, -1, -1, -1, -1, 7]
    assert batch.labels[:, 0].tolist() == [0, -1, -1, -1, -1, -1, -1, 2]
    assert batch.slots.tolist() == list(range(8))
    assert not batch.images[1:7].any()
    assert {bad.shard for bad in batch.bad} == {f"{tmp_path}/0.tar"}
    assert [(bad.sample_id, bad.key, bad.cause) for bad in batch.bad] == [
        (1, "k1", "undecodable image"),
        (2, "k2", "empty image"),
        (3, "k3", "undecodable image"),
        (4, "k4", "no image"),
        (5, "k5", "unreadable label"),
        (6, "k6", "no label"),
    ]


def test_several_labels_in_a_single_label_set(tmp_path, photos):
    """If the index says one label an image, samples with several are masked."""
    samples = [{"__key__": f"{n}", "png": photos[0][:9, :9], "cls": text} for n, text in enumerate(["3", "3 4", "5"])]
    write_shards(tmp_path / "set", samples)
    index, _ = index_shards(str(tmp_path / "set"))
    assert index.multi_label
    index = dataclasses.replace(index, multi_label=False)
    [[batch]] = batches(index, SampleOrder(index, batch_size=3, shuffle=False), stop_step=1)
    assert batch.labels.tolist() == [[3], [-1], [5]]
    assert [(bad.sample_id, bad.key, bad.cause) for bad in batch.bad] == [(1, "1", Cause.SEVERAL)]


def test_labels_outside_the_classes(train_index):
    """Of ten digits, a loader with six classes masks the other four."""
    order = SampleOrder(train_index, batch_size=train_index.num_samples, shuffle=False)
    [[everything]] = batches(train_index, order, stop_step=1)
    [[batch]] = batches(train_index, order, stop_step=1, num_classes=6)
    assert torch.equal(batch.valid, everything.labels[:, 0] < 6)
    assert {bad.cause for bad in batch.bad} == {Cause.OUTSIDE}
    assert [bad.sample_id for bad in batch.bad] == torch.where(~batch.valid)[0].tolist()


def test_samples_of_a_shard_that_is_gone(tmp_path):
    """Masked and named with `mask_unreadable`; else an error that names the shard."""
    pack_digits(str(tmp_path))
    index = open_index(f"{tmp_path}/train")
    (tmp_path / "train/000001.tar").unlink()
    order = SampleOrder(index, batch_size=64)
    gone = set(range(int(index.starts[1]), int(index.starts[2])))
    [worker] = batches(index, order, stop_step=order.steps_per_epoch, mask_unreadable=True)
    bad = [bad for batch in worker for bad in batch.bad]
    assert sorted(bad.sample_id for bad in bad) == sorted(gone)
    assert {(bad.key, bad.shard, bad.cause) for bad in bad} == {("", index.shard_url(1), Cause.UNREADABLE)}
    good = [number for batch in worker for number in batch.ids.tolist() if number >= 0]
    assert sorted(good) == sorted(set(range(index.num_samples)) - gone)
    with pytest.raises(DataError, match=r"000001\.tar"):
        batches(index, order, stop_step=order.steps_per_epoch)


def test_passes_of_a_mixture(digits):
    """Two sets in one batch: each sample is cropped by its own pass over its own set."""
    sets = [open_index(str(digits / split)) for split in ("train", "test")]
    parts = [SampleOrder(sets[0], batch_size=8), SampleOrder(sets[1], batch_size=24)]
    mixture, index = Mixture([(parts[0], 0), (parts[1], sets[0].num_samples)]), concatenate(sets)
    augment = Augment("inception", flip=True)
    step = 2 * parts[1].steps_per_epoch + 1
    options = {"augment": augment, "seed": 9, "start_step": step, "stop_step": step + 1}
    for [batch] in batches(index, mixture, world_size=3, **options):
        for place, number in enumerate(batch.ids.tolist()):
            if number < 0:
                continue
            own = number >= sets[0].num_samples
            alone, first = sets[own], number - own * sets[0].num_samples
            [[single]] = batches(
                alone, SampleOrder(alone, batch_size=1, shuffle=False), start_step=first, stop_step=first + 1
            )
            assert batch.labels[place].item() == single.labels.item()
            image = np.empty((8, 8, 3), np.uint8)
            png = cv2.imencode(".png", single.images[0].permute(1, 2, 0).numpy()[..., ::-1])[1].tobytes()
            augment.render(png, image, seed=9, epoch=2 if own else 0, sample_id=number)
            assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), image)


def test_memory_file_system():
    url = f"memory://{uuid.uuid4()}"
    pack_digits(url)
    assert fsspec.filesystem("memory").exists(f"{url}/train/000003.tar")
    index = open_index(f"{url}/train")
    order = SampleOrder(index, batch_size=64)
    [worker] = batches(index, order, stop_step=order.steps_per_epoch)
    assert sum(int(batch.valid.sum()) for batch in worker) == index.num_samples


def test_batches_are_the_consumers_own(train_index):
    """A kept batch does not change when later ones are drawn."""
    order = SampleOrder(train_index, batch_size=32)
    with Loader(train_index, order, rank=0, world_size=1, image_size=8, augment=PLAIN, seed=0, stop_step=12) as loader:
        kept = next(loader)
        copy = kept.images.clone()
        list(loader)
    assert torch.equal(kept.images, copy)


def threads_of_data() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("data-decode")]


def test_threads_end_with_the_loader(train_index):
    order = SampleOrder(train_index, batch_size=32)
    options = {"rank": 0, "world_size": 1, "image_size": 8, "augment": PLAIN, "seed": 0, "threads": 3}
    loader = Loader(train_index, order, stop_step=10**6, **options)
    next(loader)
    assert len(threads_of_data()) > 0
    loader.close()
    loader.close()
    assert threads_of_data() == []
    with pytest.raises(StopIteration):
        next(loader)
    finished = Loader(train_index, order, stop_step=3, **options)
    assert len(list(finished)) == 3
    assert threads_of_data() == []


def test_a_program_that_dies_with_an_open_loader_ends(digits):
    """An exception in the training loop is reported at once, while threads still work."""
    program = f"""
import atexit, threading
def left():  # called last
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("data-")])
atexit.register(left)
import data
index = data.open_index({str(digits / "train")!r})
order = data.SampleOrder(index, batch_size=64)
options = dict(image_size=64, augment=data.Augment(), seed=0, stop_step=10**6, prefetch=4, threads=2)
loader = data.Loader(index, order, rank=0, world_size=1, **options)
next(loader)
raise SystemExit("out of memory, say")
"""
    died = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (died.returncode, died.stderr, died.stdout) == (1, "out of memory, say\n", "[]\n")


def test_errors_of_threads_reach_the_consumer(digits, tmp_path):
    """A shard is missing: next() raises the error, and the threads have ended."""
    for path in (digits / "train").iterdir():
        if path.name != "000003.tar":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    index = open_index(str(tmp_path))
    order = SampleOrder(index, batch_size=64)
    loader = Loader(
        index, order, rank=0, world_size=1, image_size=8, augment=PLAIN, seed=0, stop_step=order.steps_per_epoch
    )
    with pytest.raises(DataError, match=r"000003.tar: not what was indexed: there is no such shard"):
        list(loader)
    assert threads_of_data() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 2}, "rank 2 of 2 workers"),
        ({"slots_per_rank": 3}, "slots_per_rank 3 is less than the 5 slots"),
        ({"augment": Augment("center", resize=4)}, "resize 4 is smaller than the image size 8"),
    ],
)
def test_impossible_numbers(train_index, options, words):
    order = SampleOrder(train_index, batch_size=10)
    defaults = {"rank": 0, "world_size": 2, "image_size": 8, "augment": PLAIN, "seed": 0, "stop_step": 1}
    with pytest.raises(ValueError, match=words):
        Loader(train_index, order, **defaults | options)
