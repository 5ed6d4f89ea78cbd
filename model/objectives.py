"""Training objectives and accuracy, for one or several labels per image.

Targets are dense, (B, K) float32 with the weight of each class, so that one label, several labels and soft labels have
one form. Losses are per sample, (B,) float32 for logits of any dtype, because only the caller knows which samples are
valid.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dense_targets(labels: Tensor, weights: Tensor, num_classes: int) -> Tensor:
    """(B, K) float32 targets from label lists.

    Args:
        labels: (B, L) int64 class numbers, below `num_classes`; -1 pads, and a row may be all padding.
        weights: (B, L) float32, not negative; ignored where the label is -1. A class listed twice keeps the larger.
    """
    weights = weights.float().masked_fill(labels < 0, 0.0)
    targets = torch.zeros(labels.shape[0], num_classes, device=labels.device)
    # Padding goes to class 0 with weight 0, which does not change the maximum.
    return targets.scatter_reduce(1, labels.clamp(min=0), weights, "amax")


def sigmoid_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-sum_k [t_k log s(x_k) + (1 - t_k) log(1 - s(x_k))], (B,) float32: one yes-no question per class (authors' code).

    Summed, not averaged, over the classes. logits, targets: (B, K). Smoothing replaces t_k by
    (1 - label_smoothing) t_k + label_smoothing / K.
    """
    logits, targets = logits.float(), _smooth(targets.float(), label_smoothing)
    # Not binary_cross_entropy_with_logits: for logits near -10, as most are, its 10.00005 - 10 leaves two digits.
    return -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).sum(dim=1)


def softmax_cross_entropy(logits: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """-sum_k t_k log softmax(x)_k, (B,) float32. logits, targets: (B, K).

    A row of targets is divided by its sum first, because the probabilities of a softmax sum to 1. A row of zeros stays
    zeros and has loss 0. Smoothing replaces t_k by
    (1 - label_smoothing) t_k + label_smoothing / K.
    """
    targets = targets.float()
    total = targets.sum(dim=1, keepdim=True)
    targets = _smooth(targets / torch.where(total > 0, total, 1.0), label_smoothing)
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(dim=1)


def _smooth(targets: Tensor, label_smoothing: float) -> Tensor:
    if label_smoothing == 0:
        return targets
    return (1 - label_smoothing) * targets + label_smoothing / targets.shape[1]


def correct_top_k(logits: Tensor, targets: Tensor, k: int, positive: float = 0.0) -> Tensor:
    """Whether any true class is among the k highest logits, (B,) bool. logits, targets: (B, K).

    A class is true if its target is above `positive`. With one label this is top-k accuracy; with several, k = 1 is
    precision@1: the top prediction is a true class.
    Equal logits rank by class number on every device, as with argmax. NaN ranks above all numbers and is never correct.
    A row without a true class is not correct.
    """
    true = targets > positive
    scores = logits.masked_fill(~true, -torch.inf)
    best = scores.argmax(dim=1, keepdim=True)  # the first of equal scores
    score = scores.gather(1, best)
    classes = torch.arange(logits.shape[1], device=logits.device)
    ahead = ~(logits <= score) | ((logits == score) & (classes < best))
    return true.any(dim=1) & ((ahead & ~true).sum(dim=1) < k) & ~score.isnan().squeeze(1)
