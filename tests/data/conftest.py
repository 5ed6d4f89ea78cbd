"""Real data for the tests of the data plane: scikit-learn's digits, and crops of its two photographs."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from data.order import Order
from data.shards.index import Index, Shard, open_index


@pytest.fixture(scope="session")
def train_index(digits: Path) -> Index:
    return open_index(str(digits / "train"))


@pytest.fixture(scope="session")
def photos() -> list[np.ndarray]:
    """Two real photographs, uint8 (427, 640, 3)."""
    return [np.asarray(image) for image in load_sample_images().images]


@pytest.fixture(scope="session")
def encode():
    """encode(array, format, mode="RGB", **options) -> file bytes, by PIL."""

    def encode_with_pil(image: np.ndarray, file_format: str, mode: str = "RGB", **options: object) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image).convert(mode).save(file, file_format, **options)
        return file.getvalue()

    return encode_with_pil


@pytest.fixture(scope="session")
def make_index():
    """make_index([3, 5, ...]) -> an index of shards with these counts. Its other numbers mean nothing."""

    def index_of_counts(counts: list[int]) -> Index:
        shards = tuple(Shard(f"{n:06d}.tar", count, 0, "", np.zeros(0, np.int64)) for n, count in enumerate(counts))
        return Index("memory://nowhere/index.json", shards, num_classes=1, multi_label=False)

    return index_of_counts


@pytest.fixture(scope="session")
def train():
    """train(order, first, last, workers) -> the batches of steps first .. last-1, joined from all workers' slots.

    Each worker does what a reader does: it fetches the blocks that it enters and keeps their samples until they are
    used. Checks that it has every sample that it uses, fetches none twice, never has more than `order.most_waiting`,
    and has none at the end. Returns [(ids, passes), ...], one pair of lists a step.
    """

    def run_workers(order: Order, first: int, last: int, workers: int) -> list[tuple[list[int], list[int]]]:
        batches: list[tuple[list[int], list[int]]] = [([], []) for _ in range(first, last)]
        share = -(-order.batch_size // workers)
        for rank in range(workers):
            own = (min(rank * share, order.batch_size), min((rank + 1) * share, order.batch_size))
            window = order.most_waiting(*own)
            fetched: set[tuple[int, int]] = set()
            held: set[tuple[int, int]] = set()
            for step, (batch_ids, batch_passes) in zip(range(first, last), batches, strict=True):
                for number, ids in order.blocks_entered(step, *own, since=first, until=last):
                    assert ids.dtype == np.int64
                    assert len(ids)
                    assert (ids[1:] > ids[:-1]).all()
                    new = {(number, sample) for sample in ids.tolist()}
                    assert not new & fetched
                    fetched |= new
                    held |= new
                assert len(held) <= window
                ids, passes = order.slots(step, *own).tolist(), order.epochs(step, *own).tolist()
                used = {pair for pair in zip(passes, ids, strict=True) if pair[1] != -1}
                assert used <= held
                held -= used
                batch_ids += ids
                batch_passes += passes
            assert not held
        return batches

    return run_workers
