"""This project's training step: the model under `orchestrator.engine.step.Engine`, as a run's only worker."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

import model
from benchmarks.step.task import OPTIMIZER, Batch, Task, objective
from orchestrator.engine.step import Engine
from orchestrator.job.sections import Parallel


class Ours:
    """A DeepSpeed engine on a process group of one. See `step_task.Contender`."""

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


def join_alone(device: torch.device) -> None:
    """Make the process group; its store listens on a free port of this machine, which the system chooses."""
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1")  # DeepSpeed reads them
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
