"""Features of whole sets, and few-shot accuracy on them, for several numbers of workers and stages."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist
import webdataset
from sklearn.datasets import load_digits

from data.packing.scan import index_shards
from infra.local.ranks import run_ranks
from orchestrator.job.choices import FeatureSet, HeldOutAugment
from orchestrator.job.sections import Model
from orchestrator.training.evaluators import features, fewshot
from orchestrator.training.measurement import Measurement
from tests.orchestrator.small_run import BATCH, build_engine
from tests.orchestrator.training.evaluators.test_fewshot import ridge

SHOTS, SEEDS = [1, 5], [0, 1]
PARTS = {"train": range(400), "test": range(400, 601)}
BROKEN = 450  # this image cannot be decoded


def key_of(number: int) -> str:
    """Text whose order is neither that of the numbers nor that of storage."""
    return f"img{number * 7919 % 1797}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """601 of scikit-learn's digits in two sets; the shards are not in the order of their keys."""
    root, data = tmp_path_factory.mktemp("sets"), load_digits()
    for part, numbers in PARTS.items():
        (root / part).mkdir()
        for shard, members in enumerate(np.array_split(np.array(numbers), 3)):
            with webdataset.TarWriter(str(root / part / f"{shard:06d}.tar")) as tar:
                for number in members.tolist():
                    png = cv2.imencode(".png", np.rint(data.images[number] * 255 / 16).astype(np.uint8))[1].tobytes()
                    content = {"png": b"broken" if number == BROKEN else png, "cls": str(data.target[number]).encode()}
                    tar.write({"__key__": key_of(number), **content})
        index_shards(str(root / part))
    return root


def measurement(stage: int) -> tuple[Measurement, list[str]]:
    """One with a network of three classes: the sets of evaluators have classes of their own."""
    job: Any = SimpleNamespace(
        batch_size=BATCH,
        seed=0,
        model=Model(name="ViT-Ti/16", patch_size=2, image_size=8, num_classes=3),
        data=SimpleNamespace(workers=1, prefetch=1, memory=None, cache_dir=None, cache_size=2**20, unreadable="stop"),
    )
    opened: list[str] = []

    def around(items: Iterable[Any]) -> Iterator[Any]:
        yield from items

    def report(name: str, bad: Iterable[Any]) -> None:
        assert [sample.key for sample in bad] in ([], [key_of(BROKEN)])
        if not opened or opened[-1] != name:
            opened.append(name)

    return Measurement(build_engine(stage), job, 7, 3, around, report), opened


def on_digits(folder: str, stage: int) -> tuple[dict[str, float], features.Features, list[str]]:
    """Accuracy, the features of the test images, and which sets were read."""
    made, opened = measurement(stage)
    sets = {
        name: FeatureSet(train=f"{folder}/train", test=f"{folder}/test", augment=HeldOutAugment(crop="resize"))
        for name in ("a", "b")
    }
    accuracies = fewshot.measure(made, sets=sets, shots=SHOTS, seeds=SEEDS, l2=1024.0)
    train, test = made.kept.values()
    assert len(train.values) == (400 if dist.get_rank() == 0 else 0)
    return accuracies, test, opened


def brute_force() -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The same from scikit-learn's arrays, images in the order of their keys' text, all at once."""
    network = build_engine(1).deepspeed.module.eval()
    data = load_digits()
    pixels = torch.from_numpy(np.rint(data.images * 255 / 16)).float() / 127.5 - 1
    with torch.no_grad():
        values = network.features(pixels[:, None].expand(-1, 3, -1, -1)).numpy()
    train = np.array(sorted(PARTS["train"], key=key_of))
    test = np.array(sorted(set(PARTS["test"]) - {BROKEN}, key=key_of))
    accuracies: dict[str, list[float]] = {}
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        drawn = [rng.permutation(np.where(data.target[train] == number)[0]) for number in range(10)]
        for shots in SHOTS:
            few = train[np.concatenate([places[:shots] for places in drawn])]
            x = values[few].astype(np.float64)
            white = (values[test] - x.mean(0)) / (x.std(0) + 1e-5)
            scores = np.hstack([white, np.full((len(test), 1), 100.0)]) @ ridge(x, data.target[few], 10, 1024.0)
            accuracies.setdefault(f"{shots}shot", []).append(float((scores.argmax(1) == data.target[test]).mean()))
    return {name: float(np.mean(of_seeds)) for name, of_seeds in accuracies.items()}, values[test], data.target[test]


@pytest.fixture(scope="module")
def expected() -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    found: tuple[dict[str, float], np.ndarray, np.ndarray] = run_ranks(1, brute_force)[0]
    return found


@pytest.mark.parametrize(("world_size", "stage"), [(1, 1), (2, 3), (3, 0)])
def test_every_image_once_for_any_number_of_workers(
    folder: Path, expected: tuple[dict[str, float], np.ndarray, np.ndarray], world_size: int, stage: int
) -> None:
    accuracies, values, labels = expected
    results = run_ranks(world_size, on_digits, str(folder), stage)
    _, test, _ = results[0]
    assert test.keys == sorted(key_of(number) for number in PARTS["test"] if number != BROKEN)
    np.testing.assert_allclose(test.values, values, atol=1e-5)
    assert test.labels.tolist() == labels.tolist()
    for found, _, opened in results:
        assert opened == ["a/train", "a/test"], "the sets are the same, so each is read once"
        for name, accuracy in accuracies.items():
            assert found[f"a/{name}"] == found[f"b/{name}"] == pytest.approx(accuracy, abs=1e-12)
        assert found == results[0][0]
    assert 0.1 < accuracies["1shot"] < accuracies["5shot"]


def failing() -> str:
    made, _ = measurement(1)

    def solve() -> dict[str, float]:
        raise ValueError("no solution")

    with pytest.raises(RuntimeError, match="an evaluator failed on rank 0: ValueError: no solution") as caught:
        made.on_one(solve)
    return type(caught.value.__cause__).__name__


def test_an_error_on_rank_0_ends_all_ranks() -> None:
    assert run_ranks(2, failing) == ["ValueError", "NoneType"]
