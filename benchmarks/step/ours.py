"""This project's training step: the model in `orchestrator.engine.step.Engine`, as in a run with one worker."""

import torch
from torch import Tensor

import model
from benchmarks.shared.alone import join_alone
from benchmarks.step.task import OPTIMIZER, Batch, Task, objective
from orchestrator.engine.step import Engine
from orchestrator.job.sections import Parallel


class Ours:
    """A DeepSpeed engine on a process group of one. A `benchmarks.step.task.Contender`."""

    def __init__(self, task: Task, device: torch.device) -> None:
        join_alone(device)
        with device:
            vit = model.VisionTransformer(task.config)
        self.parameters = sum(p.numel() for p in vit.parameters())
        model.checkpoint_blocks(vit, task.checkpointing)
        if task.compiled:
            model.compile_blocks(vit)
        largest = max(task.batches)
        self._engine = Engine(
            vit,
            objective(task),
            model.decay_mask(vit),
            optimizer=OPTIMIZER,
            parallel=Parallel(zero_stage=task.zero_stage, precision=task.precision),
            micro_batch=largest,
            local_batch=largest,
            device=device,
        )

    def step(self, batch: Batch) -> Tensor:
        result = self._engine.train_step(*batch, None, lr=OPTIMIZER.lr)
        return result.loss_sum / result.valid
