"""What counts as a right answer on a set, for the sets that people report.

    top1         the predicted class is the image's one label
    any_label    it is among the image's labels (ImageNet ReaL, arXiv 2006.07159)
    multi_label  it is among the labels with a weight above a threshold; images without such a label are left out
    objectnet    the best of all classes is one of those that the image's object stands for; beside it, the best among
                 the classes that ObjectNet and ImageNet share (arXiv 1907.00737)

Shapes: B images, K classes.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from model.objectives import correct_top_k


class Answers(NamedTuple):
    """Judged answers.

    Attributes:
        right: bool (B,), by name of the accuracy. The first is what a paired test compares.
        judged: bool (B,): the image counts.
    """

    right: dict[str, Tensor]
    judged: Tensor


Rule = Callable[[Tensor, Tensor, Tensor | None], Answers]
"""(logits (B, K), targets (B, K), shared: bool (K,) or None) -> Answers; a target above 0 is a label that counts."""


def top1(logits: Tensor, targets: Tensor, shared: Tensor | None) -> Answers:
    """One label: `top1` and `top5` (top-k for k = min(5, K))."""
    right = {"top1": correct_top_k(logits, targets, 1), "top5": correct_top_k(logits, targets, min(5, logits.shape[1]))}
    return Answers(right, torch.ones_like(right["top1"]))


def any_label(logits: Tensor, targets: Tensor, shared: Tensor | None) -> Answers:
    """Several labels, any of which is right: `top1` and `top5`, of the images that have labels."""
    return Answers(top1(logits, targets, shared).right, (targets > 0).any(dim=1))


def multi_label(logits: Tensor, targets: Tensor, shared: Tensor | None) -> Answers:
    """Labels with weights: `precision_at_1`, of the images that have labels."""
    return Answers({"precision_at_1": correct_top_k(logits, targets, 1)}, (targets > 0).any(dim=1))


def objectnet(logits: Tensor, targets: Tensor, shared: Tensor | None) -> Answers:
    """`top1` and `top5` of all K classes; `top1_among_shared` of those in `shared` alone.

    Raises:
        ValueError: `shared` is None: the set has no class map.
    """
    if shared is None:
        raise ValueError("the rule objectnet needs the classes that ObjectNet and ImageNet share")
    right = top1(logits, targets, shared).right
    among = logits.masked_fill(~shared, -torch.inf)
    right["top1_among_shared"] = correct_top_k(among, targets, 1)
    return Answers(right, (targets > 0).any(dim=1))


RULES: Mapping[str, Rule] = {"top1": top1, "any_label": any_label, "multi_label": multi_label, "objectnet": objectnet}
