"""The calendar of a run, as pure functions of the step: learning rate, lengths in steps, what is due.

Steps are counted from 0 before the first update; the update that takes the weights from step t to t + 1 uses
`learning_rate(t)`, as in the authors' code.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Self

from orchestrator.job.choices import Evaluator
from orchestrator.job.kinds import NetworkJob
from orchestrator.job.values import Duration


@dataclass(frozen=True)
class Calendar:
    """When everything happens in a run: all lengths in optimizer steps.

    What is due "at step t" is due when t updates are made.

    Attributes:
        total_steps: length of the run.
        warmup_steps: of these, with a rising learning rate; 0 = none.
        steps_per_epoch: of the training set, at the job's batch size.
        log_every, evaluate_every, save_every: steps between points of the curves, evaluations, checkpoints.
        base_lr, end_lr, decay: the learning rate after warm-up, at the end, and the shape in between.
        evaluators_every: steps between measurements of the evaluators that have a time of their own, by name.
    """

    total_steps: int
    warmup_steps: int
    steps_per_epoch: int
    log_every: int
    evaluate_every: int
    save_every: int
    base_lr: float
    end_lr: float
    decay: Literal["linear", "cosine"]
    evaluators_every: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, job: NetworkJob, steps_per_epoch: int) -> Self:
        """The calendar of a job whose training set has that many steps an epoch."""

        def steps(duration: Duration) -> int:
            return steps_of(duration, job.batch_size, steps_per_epoch)

        return cls(
            total_steps=steps(job.schedule.length),
            warmup_steps=steps(job.schedule.warmup) if job.schedule.warmup else 0,
            steps_per_epoch=steps_per_epoch,
            log_every=steps(job.tracking.every),
            evaluate_every=steps(job.evaluate.every),
            save_every=steps(job.checkpoint.every),
            base_lr=job.optimizer.lr,
            end_lr=job.schedule.end_lr,
            decay=job.schedule.decay,
            evaluators_every={
                name: steps(keys.every)
                for name, keys in job.evaluators.items()
                if isinstance(keys, Evaluator) and keys.every is not None
            },
        )

    def lr(self, step: int) -> float:
        """The learning rate of the update from step `step` to the next."""
        return learning_rate(
            step,
            base=self.base_lr,
            total_steps=self.total_steps,
            warmup_steps=self.warmup_steps,
            decay=self.decay,
            end_lr=self.end_lr,
        )

    def epoch(self, step: int) -> float:
        """Passes over the training set after `step` updates."""
        return step / self.steps_per_epoch

    def is_over(self, step: int) -> bool:
        """Whether the run is complete after `step` updates."""
        return step >= self.total_steps

    def log_due(self, step: int) -> bool:
        """Whether a point of the curves is due."""
        return is_time(step, self.log_every, self.total_steps)

    def held_out_due(self, step: int) -> bool:
        """Whether the held-out sets are due to be measured."""
        return is_time(step, self.evaluate_every, self.total_steps)

    def evaluator_due(self, name: str, step: int) -> bool:
        """Whether an evaluator of the job is due to measure."""
        return is_time(step, self.evaluators_every.get(name, self.evaluate_every), self.total_steps)

    def evaluation_due(self, step: int) -> bool:
        """Whether the held-out sets or an evaluator are due."""
        return self.held_out_due(step) or any(self.evaluator_due(name, step) for name in self.evaluators_every)

    def save_due(self, step: int) -> bool:
        """Whether a checkpoint is due."""
        return is_time(step, self.save_every, self.total_steps)


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
