"""Counts over one set of images, summed over all workers: the same to the last image for any number of them."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from model.objectives import dense_targets
from orchestrator.engine.step import Objective
from orchestrator.training.evaluation.metrics import BINS, NOT_JUDGED, WRONG, calibration_bins, confusion_matrix
from orchestrator.training.evaluation.rules import RULES
from orchestrator.training.measurement import HeldOutSet, Network

MOST_CLASSES = 1000  # of a confusion matrix


@dataclass(frozen=True, eq=False)
class Counts:
    """What was counted, on the host, equal on all ranks. K classes, N samples of the index.

    Attributes:
        loss: sum over the images, float64.
        images: that could be used.
        judged: of these, images that the rule judges.
        bad: images that could not be used.
        right: judged images with a right answer, by name of the accuracy.
        bins: of calibration, (3, M) float64, with the first accuracy's right answers.
        class_images, class_right: int64 (K,), by the image's one label; None if images have several.
        confusion: int64 (K, K); None for several labels, or more than 1,000 classes.
        answers: uint8 (N,), WRONG, RIGHT or NOT_JUDGED by the first accuracy, in order of the index.
    """

    loss: float
    images: int
    judged: int
    bad: int
    right: dict[str, int]
    bins: np.ndarray
    class_images: np.ndarray | None
    class_right: np.ndarray | None
    confusion: np.ndarray | None
    answers: np.ndarray


def count(
    network: Network,
    held_out: HeldOutSet,
    objective: Objective,
    *,
    rule: str,
    num_classes: int,
    sigmoid: bool,
    shared: list[int] | None = None,
) -> Counts:
    """Judge every image of a set once. Collective.

    Args:
        network: computes the logits.
        held_out: the set; a label counts if its weight is above `held_out.positive`.
        objective: loss of each image.
        rule: one of `rules.RULES`.
        num_classes: K.
        sigmoid: whether the classes are independent: of the confidence.
        shared: classes that ObjectNet and ImageNet share.
    """
    device, several = network.device, held_out.index.multi_label
    known = None
    if shared is not None:
        known = torch.zeros(num_classes, dtype=torch.bool, device=device)
        known[shared] = True
    one_label = rule == "top1" and not several
    loss = torch.zeros((), dtype=torch.float64, device=device)
    totals = torch.zeros(3, dtype=torch.int64, device=device)  # images, judged, bad
    right: dict[str, Tensor] = {}
    bins = torch.zeros(3, BINS, dtype=torch.float64, device=device)
    by_class = torch.zeros(2, num_classes, dtype=torch.int64, device=device)
    with_matrix = one_label and num_classes <= MOST_CLASSES
    matrix = torch.zeros(num_classes if with_matrix else 0, num_classes, dtype=torch.int64, device=device)
    answers = torch.full((held_out.index.num_samples,), WRONG, dtype=torch.uint8, device=device)
    seen = torch.zeros_like(answers)

    for batch in held_out.batches:
        totals[2] += len(batch.bad)
        for part in torch.arange(len(batch.valid)).split(network.micro_batch):
            keep = batch.valid[part].to(device)
            logits = network.logits(batch.images[part])[keep]
            labels, weights = batch.labels[part].to(device)[keep], batch.weights[part].to(device)[keep]
            ids = batch.ids[part].to(device)[keep]
            loss += objective(logits, labels, weights).double().sum()
            targets = dense_targets(labels, weights, num_classes)
            found = RULES[rule](logits, targets * (targets > held_out.positive), known)
            judged = found.judged
            totals[0] += len(logits)
            totals[1] += judged.sum()
            for name, of_images in found.right.items():
                right.setdefault(name, torch.zeros_like(totals[0])).add_((of_images & judged).sum())
            first = next(iter(found.right.values()))
            confidence = (logits.sigmoid() if sigmoid else logits.softmax(dim=1)).amax(dim=1)
            bins += calibration_bins(confidence[judged], first[judged])
            answers[ids[judged]] = first[judged].to(torch.uint8)
            seen[ids[judged]] = 1
            if one_label:
                truth = labels[:, 0]
                by_class[0] += torch.bincount(truth, minlength=num_classes)
                by_class[1] += torch.bincount(truth[first], minlength=num_classes)
                if with_matrix:
                    matrix += confusion_matrix(truth, logits.nan_to_num(nan=torch.inf).argmax(dim=1), num_classes)

    sums = torch.stack(list(right.values()))
    for counted in (loss, totals, sums, bins, by_class, matrix, answers, seen):
        dist.all_reduce(counted)
    images, judged_images, bad = totals.tolist()
    judged_answers = torch.where(seen > 0, answers, NOT_JUDGED)
    return Counts(
        loss=float(loss),
        images=images,
        judged=judged_images,
        bad=bad,
        right=dict(zip(right, sums.tolist(), strict=True)),
        bins=bins.cpu().numpy(),
        class_images=by_class[0].cpu().numpy() if one_label else None,
        class_right=by_class[1].cpu().numpy() if one_label else None,
        confusion=matrix.cpu().numpy() if with_matrix else None,
        answers=judged_answers.cpu().numpy(),
    )
