"""Held-out metrics against brute force over the whole set at once, for several numbers of workers."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import webdataset

from data import Augment, Loader, SampleOrder, open_index
from data.packing.scan import index_shards
from infra.local.ranks import run_ranks
from orchestrator.training.evaluators.accuracy import evaluate
from tests.orchestrator.small_run import BATCH, build_engine


def metrics(shards: str, multi_label: bool, stage: int, positive: float = 0.0) -> dict[str, float]:
    engine = build_engine(stage)
    index = open_index(shards)
    order = SampleOrder(index, batch_size=BATCH, shuffle=False)
    slots = engine.micro_batch * engine.micro_batches
    with Loader(
        index,
        order,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        image_size=8,
        augment=Augment(crop="resize"),
        seed=0,
        stop_step=order.steps_per_epoch,
        slots_per_rank=slots,
        threads=1,
    ) as batches:
        return evaluate(engine, batches, num_classes=10, multi_label=multi_label, positive=positive)


def digits_brute_force() -> dict[str, float]:
    """The metrics of the held-out digits from scikit-learn's arrays, without shards, loader or batches."""
    from sklearn.datasets import load_digits

    from data.sources.digits import held_out_mask

    engine = build_engine(1)
    data = load_digits()
    mask = held_out_mask(data.target)
    pixels = torch.from_numpy(np.rint(data.images[mask] * 255 / 16)).float() / 127.5 - 1
    labels = torch.from_numpy(data.target[mask])
    with torch.no_grad():
        logits = engine.deepspeed.module.eval()(pixels[:, None].expand(-1, 3, -1, -1))
    ranks = (logits > logits.gather(1, labels[:, None])).sum(1)
    return {
        "loss": float(torch.nn.functional.cross_entropy(logits, labels)),
        "top1": float((ranks < 1).double().mean()),
        "top5": float((ranks < 5).double().mean()),
        "images": len(labels),
        "bad_samples": 0,
    }


@pytest.mark.parametrize(("world_size", "stage"), [(1, 1), (2, 3), (3, 1)])
def test_every_held_out_image_counts_once(digits: Path, world_size: int, stage: int) -> None:
    expected = run_ranks(1, digits_brute_force)[0]
    for found in run_ranks(world_size, metrics, str(digits / "test"), False, stage):
        assert found.keys() == expected.keys()
        assert (found["images"], found["bad_samples"]) == (expected["images"], 0)
        assert found["top1"] == pytest.approx(expected["top1"])
        assert found["top5"] == pytest.approx(expected["top5"])
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def best_classes(images: np.ndarray) -> list[int]:
    engine = build_engine(1)
    with torch.no_grad():
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        classes: list[int] = engine.deepspeed.module.eval()(pixels).argmax(1).tolist()
    return classes


def test_precision_at_one_of_several_labels(tmp_path: Path) -> None:
    """A third-party set with .json labels, one of its images unreadable."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (31, 8, 8, 3), dtype=np.uint8)
    labels = [sorted(rng.choice(10, size=1 + i % 3, replace=False).tolist()) for i in range(31)]
    with webdataset.TarWriter(str(tmp_path / "000000.tar")) as tar:
        for i, image in enumerate(images):
            png = b"broken" if i == 7 else cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
            tar.write({"__key__": f"{i:04d}", "png": png, "json": json.dumps({"labels": labels[i]}).encode()})
    index_shards(str(tmp_path))
    good = [i for i in range(31) if i != 7]
    best = run_ranks(1, best_classes, images[good])[0]
    expected = sum(k in labels[i] for i, k in zip(good, best, strict=True)) / 30
    for found in run_ranks(2, metrics, str(tmp_path), True, 1):
        assert found["precision_at_1"] == pytest.approx(expected)
        assert (found["images"], found["bad_samples"]) == (30, 1)
        assert math.isfinite(found["loss"])
        assert "top1" not in found


def test_labels_above_a_threshold(tmp_path: Path) -> None:
    """Soft labels of all classes, as a classifier gives them: any class is right unless a threshold is set."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    weights = rng.uniform(0.01, 1, (40, 10)).round(3)
    weights[::4] *= 0.4  # none above the threshold, of every fourth
    with webdataset.TarWriter(str(tmp_path / "000000.tar")) as tar:
        for i, image in enumerate(images):
            png = cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()
            record = {"labels": list(range(10)), "probabilities": weights[i].tolist()}
            tar.write({"__key__": f"{i:04d}", "png": png, "json": json.dumps(record).encode()})
    index_shards(str(tmp_path))
    best = run_ranks(1, best_classes, images)[0]
    judged = [i for i in range(40) if max(weights[i]) > 0.6]
    assert 0 < len(judged) <= 30
    expected = sum(weights[i][best[i]] > 0.6 for i in judged) / len(judged)
    plain, *_ = run_ranks(2, metrics, str(tmp_path), True, 1)
    assert plain["precision_at_1"] == 1
    assert "judged_images" not in plain
    for found in run_ranks(2, metrics, str(tmp_path), True, 1, 0.6):
        assert found["precision_at_1"] == pytest.approx(expected)
        assert 0 < expected < 1
        assert (found["images"], found["judged_images"]) == (40, len(judged))
        assert found["loss"] == plain["loss"]
