"""The run's calendar, as pure functions of the step: learning rate, lengths in steps, what is due.

Steps are counted from 0 before the first update; the update that takes the weights from step t to t + 1 uses
`learning_rate(t)`, as in the authors' code.
"""

import math
from typing import Literal

from orchestrator.job.values import Duration


def learning_rate(
    step: int,
    *,
    base: float,
    total_steps: int,
    warmup_steps: int,
    decay: Literal["linear", "cosine"],
    end_lr: float = 1e-5,
) -> float:
    """The learning rate of an update (authors' code, `create_learning_rate_schedule`).

        p(t) = clip((t - warmup) / (total - warmup), 0, 1)
        linear:  lr(t) = min(1, t / warmup) * (end + (base - end) * (1 - p))
        cosine:  lr(t) = min(1, t / warmup) * base * (1 + cos(pi * p)) / 2

    Args:
        step: t, updates already made.
        base: the rate when warm-up ends.
        total_steps: length of the run.
        warmup_steps: length of the linear rise from 0; 0 = none.
        decay: shape of the way down.
        end_lr: where a linear decay ends. A cosine ends at 0 and does not read it.
    """
    # A run that is all warm-up has no way down: p stays 0 until its end.
    progress = min(max((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0), 1.0)
    if decay == "linear":
        rate = end_lr + (base - end_lr) * (1.0 - progress)
    else:
        rate = base * 0.5 * (1.0 + math.cos(math.pi * progress))
    return rate * min(1.0, step / warmup_steps) if warmup_steps > 0 else rate


def steps_of(duration: Duration, batch_size: int, steps_per_epoch: int) -> int:
    """A duration in steps, at least 1.

    Epochs are rounded to the nearest step; an epoch's last batch may be partly masked, so epochs are counted in
    steps_per_epoch and not in images. Images are rounded up to whole batches.
    """
    if duration.steps is not None:
        return duration.steps
    if duration.epochs is not None:
        return max(1, round(duration.epochs * steps_per_epoch))
    assert duration.images is not None
    return -(-duration.images // batch_size)


def is_time(step: int, every_steps: int, total: int) -> bool:
    """Whether what happens every so many steps is due once `step` updates are made; it always is at the end."""
    return step > 0 and (step % every_steps == 0 or step == total)
