"""Features of whole sets of images: computed on all workers, every image once, and gathered on rank 0.

Every evaluator of frozen features uses them. A set that several evaluators name is read once in an evaluation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from data import Batch
from orchestrator.job.choices import FeatureSet, HeldOutAugment
from orchestrator.training.measurement import Measurement


@dataclass(frozen=True, eq=False)
class Features:
    """The features of a set, in order of the images' keys. Ranks other than 0 hold none.

    Attributes:
        values: float32 (N, D), the inputs of the network's head.
        labels: int64 (N,).
        keys: names of the images.
        num_classes: of the set.
    """

    values: np.ndarray
    labels: np.ndarray
    keys: list[str]
    num_classes: int


def on_each_set(
    measurement: Measurement, sets: Mapping[str, FeatureSet], solve: Callable[[Features, Features], dict[str, float]]
) -> dict[str, float]:
    """Metrics of each set, as `SET/METRIC`. Collective.

    Args:
        measurement: of this evaluation. It keeps the features.
        sets: by name; unusable images are listed under it.
        solve: called on rank 0 with the features of the images to learn from, and of those to test on; metrics by name.

    Raises:
        DataError: a set cannot be opened.
        EvaluationCutOff: a notice that this attempt has to end.
    """
    metrics: dict[str, float] = {}
    for name, settings in sets.items():
        train = _once(measurement, f"{name}/train", settings.train, settings.augment)
        test = _once(measurement, f"{name}/test", settings.test, settings.augment)
        found = measurement.on_one(partial(solve, train, test))
        metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
    return metrics


def usable(*sets: Features) -> bool:
    """Whether each set has images, and only finite features: those of a network that diverged are NaN."""
    return all(len(one.values) and np.isfinite(one.values).all() for one in sets)


def _once(measurement: Measurement, name: str, url: str, augment: HeldOutAugment) -> Features:
    place = (url, augment.model_dump_json())
    if place not in measurement.kept:
        measurement.kept[place] = _extract(measurement, name, url, augment)
    found: Features = measurement.kept[place]
    return found


def _extract(measurement: Measurement, name: str, url: str, augment: HeldOutAugment) -> Features:
    values, labels, valid, keys = [], [], [], []
    with measurement.open(name, url, augment, own_classes=True) as held_out:
        for batch in held_out.batches:
            values.append(_gather(_features(measurement, batch)))
            labels.append(_gather(batch.labels[:, :1].to(measurement.engine.device)))
            valid.append(_gather(batch.valid[:, None].to(measurement.engine.device, torch.int64)))
            keys += batch.keys
    gathered: list[list[str] | None] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, keys)
    if dist.get_rank() != 0:
        return Features(np.empty((0, 0), np.float32), np.empty(0, np.int64), [], held_out.index.num_classes)

    # Every gathered tensor has a batch of one rank after another; the keys come rank by rank.
    steps = len(values)
    by_rank = [np.array(own or [], object).reshape(steps, -1) for own in gathered]
    names = np.concatenate(by_rank, axis=1).ravel()
    used = np.flatnonzero(np.concatenate(valid)[:, 0])
    used = used[np.argsort(names[used], kind="stable")]
    return Features(
        np.concatenate(values)[used],
        np.concatenate(labels)[used, 0],
        names[used].tolist(),
        held_out.index.num_classes,
    )


def _features(measurement: Measurement, batch: Batch) -> torch.Tensor:
    """(n, D) float32 on the device; those of masked slots mean nothing."""
    parts = torch.arange(len(batch.valid)).split(measurement.engine.micro_batch)
    return torch.cat([measurement.engine.features(batch.images[part]) for part in parts])


def _gather(own: torch.Tensor) -> np.ndarray:
    """The tensors of all ranks, one after another, on rank 0; an empty array on the others."""
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())] if dist.get_rank() == 0 else None
    dist.gather(own.contiguous(), parts)
    return torch.cat(parts).cpu().numpy() if parts is not None else np.empty((0, own.shape[1]))
