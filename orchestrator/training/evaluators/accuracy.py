"""Exact held-out metrics: every image once, for any number of workers; the last batch is masked, not dropped."""

from collections.abc import Iterable

import torch
from torch import Tensor

from data import Batch
from model.objectives import correct_top_k, dense_targets
from orchestrator.engine.collectives import all_reduce_sums
from orchestrator.engine.step import Engine


def evaluate(
    engine: Engine,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    multi_label: bool,
    positive: float = 0.0,
) -> dict[str, float]:
    """Metrics of one held-out set, equal on all ranks.

    Every rank must call it at the same point with its own slices of the same order.

    Args:
        positive: a label is right if its weight is above this. If it is not 0, images without such a label count for
            the loss alone.

    Returns:
        `loss` and, for single-label sets, `top1` and `top5` (top-k for k = min(5, classes)); for multi-label sets
        `precision_at_1`: the share of images whose highest-scored class is one of their labels (authors' ImageNet-21k
        and JFT validation metric). `images` is the number of images that counted, `bad_samples` of those that could not
        be used; `judged_images`, if `positive` is not 0, of those with a label above it.
    """
    names = {"precision_at_1": 1} if multi_label else {"top1": 1, "top5": min(5, num_classes)}
    zero = torch.zeros((), dtype=torch.float64, device=engine.device)
    loss, count, judged, unusable = zero.clone(), zero.clone(), zero.clone(), zero.clone()
    correct: dict[str, Tensor] = {name: zero.clone() for name in names}
    for batch in batches:
        unusable += len(batch.bad)
        labels, weights = batch.labels.to(engine.device), batch.weights.to(engine.device)
        valid = batch.valid.to(engine.device)
        for part in torch.arange(len(valid)).split(engine.micro_batch):
            logits = engine.logits(batch.images[part])
            keep = valid[part]
            losses = engine.objective(logits, labels[part], weights[part])
            targets = dense_targets(labels[part], weights[part], num_classes)
            loss += torch.where(keep, losses, torch.zeros_like(losses)).double().sum()
            count += keep.sum()
            judged += (keep & (targets > positive).any(dim=1)).sum() if positive else keep.sum()
            for name, k in names.items():
                correct[name] += (correct_top_k(logits, targets, k, positive) & keep).sum()
    loss_sum, images, answers, bad, *hits = all_reduce_sums([loss, count, judged, unusable, *correct.values()])
    metrics = {"images": images, "bad_samples": bad}
    if images:
        metrics = {"loss": loss_sum / images, **metrics}
    if answers:
        metrics.update({name: total / answers for name, total in zip(names, hits, strict=True)})
    return metrics | ({"judged_images": answers} if positive else {})
