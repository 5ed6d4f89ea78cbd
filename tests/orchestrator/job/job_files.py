"""A valid job file, and what loading a changed one gives."""

from pathlib import Path
from typing import Any

import pytest

from orchestrator import JobError, load_job
from orchestrator.job.kinds import PretrainJob

VALID = """\
kind: pretrain
model: {name: ViT-Ti/16, image_size: 32, num_classes: 10}
data:
  train: {url: digits/train}
  eval:
    val: {url: digits/val}
objective: {loss: softmax}
optimizer: {name: adamw, lr: 1.0e-3, weight_decay: 0.1}
schedule: {length: {epochs: 10}, warmup: {epochs: 1}, decay: cosine}
batch_size: 64
"""


def load_text(text: str, *overrides: str) -> Any:
    Path("job.yaml").write_text(text)
    return load_job("job.yaml", overrides)


def load_pretrain(*overrides: str) -> Any:
    job = load_text(VALID, *overrides)
    assert isinstance(job, PretrainJob)
    return job


def line_of(text: str, *overrides: str) -> str:
    with pytest.raises(JobError) as caught:
        load_text(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)
