"""The task of a classifier: labelled images, cross-entropy, accuracy on held-out sets."""

import torch
from torch import Tensor

from data import Batch
from data.splitmix import Purpose, key, stream
from model import VisionTransformer
from model.objectives import dense_targets
from orchestrator.engine.step import Engine, Objective
from orchestrator.job.kinds import ClassifierJob
from orchestrator.job.tables import OBJECTIVES
from orchestrator.training.evaluators.accuracy import evaluate
from orchestrator.training.measurement import HeldOutSet
from orchestrator.training.task import Task


class Classify(Task):
    """Train a network to name the classes of images."""

    job: ClassifierJob

    def network(self) -> VisionTransformer:
        return VisionTransformer(self.job.model.vit_config())

    def objective(self) -> Objective:
        loss, num_classes = OBJECTIVES.bound(self.job.objective), self.job.model.num_classes

        def objective(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
            losses: Tensor = loss(logits, dense_targets(labels, weights, num_classes))
            return losses

        return objective

    def seeds(self, batch: Batch) -> Tensor | None:
        if not self.job.model.dropout:
            return None
        return dropout_seeds(self.job.seed, batch.step, batch.slots, self.job.batch_size)

    def measure(self, engine: Engine, held_out: HeldOutSet) -> dict[str, float]:
        return evaluate(
            engine,
            held_out.batches,
            num_classes=self.job.model.num_classes,
            multi_label=held_out.index.multi_label,
            positive=held_out.positive,
        )


def dropout_seeds(seed: int, step: int, slots: Tensor, batch_size: int) -> Tensor:
    """One int64 seed a slot, (n,): a function of (seed, step, slot), so that masks do not depend on the workers."""
    of_step = torch.from_numpy(stream(key(Purpose.DROPOUT, seed, step), batch_size).view("int64"))
    return of_step[slots.clamp(min=0)]
