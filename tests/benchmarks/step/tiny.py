"""A tiny task of the step benchmark, for its tests."""

import dataclasses

import torch

from benchmarks.step import __main__ as step
from benchmarks.step.task import Task

CPU = torch.device("cpu")
TASK = Task(
    model="B/16",
    impl="ours",
    compiled=False,
    precision="float32",
    checkpointing="none",
    zero_stage=0,
    loss="softmax",
    batches=(2,),
    device="cpu",
    threads=1,
    memory=10**10,
    warm_up=1,
    windows=1,
    seconds=0.01,
    profile=True,
    sizes={"image_size": 64, **step.TINY},
)


def task(**changes: object) -> Task:
    """`TASK` with other fields."""
    return dataclasses.replace(TASK, **changes)  # type: ignore[arg-type]
